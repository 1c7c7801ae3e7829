// Page 3: the optimal policy under a KL budget in a bandit and in a gridworld, with a proxy reward that differs from the true reward.

import { format } from "./axes.js";
import { choice, dot, line, oncePerFrame, plot, readings, slider } from "./live_plot.js";
import { element, shape } from "./chart.js";
import { bestOfN, expectation, gridToBudget, klProbs, MOVES, tiltToBudget } from "./math.js";

const ANSWERS = ["vague", "wrong", "correct", "correct and short", "correct with sources", "long", "flattering", "copied answer key"];
const REFERENCE = [0.24, 0.2, 0.22, 0.12, 0.07, 0.11, 0.03, 0.01];
const PROXY_REWARD = [0.2, 0.1, 0.6, 0.66, 0.8, 0.55, 0.9, 1];
const TRUE_REWARD = [0.2, 0, 0.7, 0.75, 1, 0.4, 0.1, 0];
const BEST_OF = [1, 2, 4, 8, 16, 64];

// A grid of 5 by 5 cells with the start at the bottom left, the goal at the top right and a coin in the centre.
const SIDE = 5;
const CELLS = Array.from({ length: SIDE * SIDE }, (_, cell) => cell);
const [START, GOAL, COIN] = [20, 4, 12];
const WORLD = { side: SIDE, start: START, horizon: 16, terminal: [GOAL], reward: CELLS.map((cell) => ({ [GOAL]: 1, [COIN]: 0.6 })[cell] ?? 0) };
const TRUE_GRID_REWARD = CELLS.map((cell) => (cell === GOAL ? 1 : 0));

export function policyPage() {
  let [budget, task] = [0.3025, "bandit"];
  const numbers = readings({ kl: "KL(policy || reference), nats", beta: "β, proxy reward per nat", proxy: "expected proxy reward", true: "expected true reward" });
  const bandit = (nats) => {
    const solution = tiltToBudget(REFERENCE, PROXY_REWARD, nats);
    return { ...solution, trueReward: expectation(solution.policy, TRUE_REWARD) };
  };
  const maxBudget = () => (task === "bandit" ? 4 : 12);
  const solve = (nats) => (task === "bandit" ? bandit(nats) : gridToBudget(WORLD, nats, TRUE_GRID_REWARD));
  let [curve, best] = [[], null];
  function updateCurve() {
    const count = task === "bandit" ? 80 : 32;
    curve = Array.from({ length: count + 1 }, (_, i) => solve(maxBudget() * (i / count) ** 2));
  }

  const frontier = plot({
    title: "Expected reward against KL",
    note: "",
    x: { label: "KL(policy || reference), nats", domain: () => [0, maxBudget()] },
    y: { label: "expected reward", domain: () => [0, Math.max(1.05, 1.05 * Math.max(...curve.map(({ reward }) => reward)))] },
    draw: (api) => {
      const peak = curve.reduce((highest, point) => (point.trueReward > highest.trueReward ? point : highest), curve[0]);
      const points = task === "bandit" ? BEST_OF.map((n) => {
        const policy = bestOfN(REFERENCE, PROXY_REWARD, n);
        return dot(api, [klProbs(policy, REFERENCE), expectation(policy, PROXY_REWARD)], 4, `best of ${n}`);
      }) : [];
      frontier.caption.textContent = `Solid: the largest proxy reward at each KL. Dashed: the true reward of the same policy; it is largest at ${format(peak.kl, 3)} nats and falls beyond. Vertical line: the budget.${task === "bandit" ? ` Dark dots: the proxy reward of best-of-n sampling for n = ${BEST_OF.join(", ")}.` : ""}`;
      return [
        line(api, curve.map(({ kl, reward }) => [kl, reward]), 0), line(api, curve.map(({ kl, trueReward }) => [kl, trueReward]), 1, 1),
        shape("line", { class: "budget-line", x1: api.x(best.kl), x2: api.x(best.kl), y1: api.y(0), y2: api.y(api.invert(0, 20)[1]) }),
        shape("line", { class: "peak-line", x1: api.x(peak.kl), x2: api.x(peak.kl), y1: api.y(0), y2: api.y(peak.trueReward) }),
        ...points, dot(api, [best.kl, best.reward], 0, "proxy reward of the policy"), dot(api, [best.kl, best.trueReward], 1, "true reward of the policy"),
      ];
    },
  });

  const bars = plot({
    title: "Probability of each answer",
    note: "Blue: the reference. Orange: the optimal policy, proportional to reference\u00a0×\u00a0e^(reward/β). The list below names the answers.",
    x: { label: "answer", domain: () => [-0.6, ANSWERS.length - 0.4], ticks: ANSWERS.map((_, i) => i), labels: ANSWERS.map((_, i) => String(i + 1)) },
    y: { label: "probability", domain: () => [0, Math.max(0.4, ...(best?.policy ?? [0])) * 1.05] },
    draw: (api) => {
      const width = (api.x(1) - api.x(0)) * 0.36;
      return (best.policy ?? []).flatMap((probability, i) => [
        shape("rect", { class: "bar c0", x: api.x(i) - width, width, y: api.y(REFERENCE[i]), height: api.y(0) - api.y(REFERENCE[i]) }),
        shape("rect", { class: "bar c1", x: api.x(i), width, y: api.y(probability), height: api.y(0) - api.y(probability) }, shape("title", {}, `${ANSWERS[i]}: ${format(probability, 4)}`)),
      ]);
    },
  });
  const answers = element("ol", { class: "answers" }, ANSWERS.map((answer, i) => element("li", {}, `${answer}: proxy reward ${PROXY_REWARD[i]}, true reward ${TRUE_REWARD[i]}`)));

  const grid = shape("svg", { class: "grid", viewBox: "0 0 250 250", role: "img" });
  function drawGrid() {
    const firstPolicy = best.policies[0];
    grid.setAttribute("aria-label", `A grid of 5 by 5 cells with the start at the bottom left, the goal at the top right and a coin in the centre. The expected number of visits to the coin is ${format(best.visits[COIN], 3)} per episode.`);
    grid.replaceChildren(...best.visits.flatMap((visits, cell) => {
      const [x, y] = [50 * (cell % SIDE), 50 * Math.floor(cell / SIDE)];
      const arrows = cell === GOAL ? [] : MOVES.map(([down, right], action) => shape("line", {
        class: "arrow", x1: x + 25, y1: y + 25, x2: x + 25 + 20 * right * firstPolicy[cell][action], y2: y + 25 + 20 * down * firstPolicy[cell][action],
      }));
      const name = { [GOAL]: "goal", [COIN]: "coin", [START]: "start" }[cell];
      return [shape("rect", { class: "cell c0", x: x + 1, y: y + 1, width: 48, height: 48, "fill-opacity": Math.min(0.75, 0.04 + visits / 4) }),
        ...arrows, name && shape("text", { x: x + 25, y: y + 44, "text-anchor": "middle" }, name)].filter(Boolean);
    }));
  }
  const gridFigure = element("figure", { class: "chart live" }, element("figcaption", {}, element("h3", {}, "Policy at the first step, and expected visits"),
    element("p", {}, "Length of a line: probability of the move at the first step. Blue: expected number of visits in an episode of 16 steps. The reference chooses all four moves with equal probability. Proxy reward: 1 at the goal, which ends the episode, and 0.6 for each visit to the coin. True reward: 1 at the goal.")), grid);
  const taskViews = { bandit: [bars.figure, answers], grid: [gridFigure] };

  const update = oncePerFrame(() => {
    best = solve(budget);
    for (const [name, nodes] of Object.entries(taskViews)) for (const node of nodes) node.hidden = name !== task;
    frontier.redraw();
    if (task === "bandit") bars.redraw();
    else drawGrid();
    for (const [name, value] of Object.entries({ kl: best.kl, beta: best.beta, proxy: best.reward, true: best.trueReward })) numbers.set(name, value);
  });
  const budgetSlider = slider({ id: "budget", label: "KL budget", min: 0, max: 1, step: 0.005, value: 0.275, text: (position) => `${format(maxBudget() * position * position, 3)} nats`, change: (position) => { budget = maxBudget() * position * position; update(); } });

  const section = element("section", { class: "page", id: "policy", "aria-labelledby": "policy-title" },
    element("h2", { id: "policy-title" }, "Policy under a KL budget"),
    element("p", { class: "lead" }, "Among all policies with KL(policy || reference) up to the budget, the policy with the largest expected reward is proportional to reference\u00a0×\u00a0e^(reward/β). Here the optimised reward is a proxy that differs from the true reward. Under a small budget both rewards increase; under a large budget the proxy reward increases further and the true reward decreases."),
    choice("Task", { bandit: "bandit with eight answers", grid: "gridworld" }, task, (value) => {
      task = value;
      budget = task === "bandit" ? 0.3025 : 3;
      budgetSlider.set(Math.sqrt(budget / maxBudget()));
      updateCurve();
      update();
    }),
    budgetSlider.row, numbers.list, element("div", { class: "charts" }, frontier.figure, bars.figure, gridFigure), answers);
  return { section, start: () => { best = solve(budget); updateCurve(); update(); } };
}
