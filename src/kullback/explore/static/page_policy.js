// Room 3: the best policy that a budget of nats can buy, of a bandit and of a gridworld, and where a flawed reward is cheated.

import { format } from "./axes.js";
import { choice, dot, eachFrame, line, plot, readings, slider } from "./live_plot.js";
import { element, shape } from "./chart.js";
import { bestOfN, gridToBudget, klOf, MOVES, tiltToBudget } from "./math.js";

const ANSWERS = ["vague", "wrong", "right", "right, short", "right, cited", "long", "flattery", "answer key"];
const REFERENCE = [0.24, 0.2, 0.22, 0.12, 0.07, 0.11, 0.03, 0.01];
const PROXY = [0.2, 0.1, 0.6, 0.66, 0.8, 0.55, 0.9, 1];
const TRUE = [0.2, 0, 0.7, 0.75, 1, 0.4, 0.1, 0];
const DRAWS = [1, 2, 4, 8, 16, 64];

// 5 by 5, from the bottom left: the goal at the top right; a coin in the middle that the flawed reward pays for at every visit.
const SIDE = 5;
const goal = 4;
const coin = 12;
const paid = (cell) => (cell === goal ? 1 : cell === coin ? 0.6 : 0);
const WORLD = { side: SIDE, start: 20, horizon: 16, stops: [goal], reward: Array.from({ length: 25 }, (_, cell) => paid(cell)) };
const HONEST = Array.from({ length: 25 }, (_, cell) => (cell === goal ? 1 : 0));

export function policyRoom() {
  let [budget, world] = [0.3025, "bandit"];
  const numbers = readings({ kl: "KL(policy || reference), nats", beta: "price β, reward per nat", proxy: "reward that is paid", true: "reward that is meant" });
  const bandit = (nats) => {
    const best = tiltToBudget(REFERENCE, PROXY, nats);
    return { ...best, watched: best.policy.reduce((sum, one, i) => sum + one * TRUE[i], 0) };
  };
  const most = () => (world === "bandit" ? 4 : 12);
  const at = (nats) => (world === "bandit" ? bandit(nats) : gridToBudget(WORLD, nats, HONEST));
  let [curve, best] = [[], null];
  function trace() {
    const count = world === "bandit" ? 80 : 32;
    curve = Array.from({ length: count + 1 }, (_, i) => at(most() * (i / count) ** 2));
  }

  const frontier = plot({
    title: "What nats can buy",
    note: "",
    x: { label: "KL(policy || reference), nats", domain: () => [0, most()] },
    y: { label: "reward", domain: () => [0, Math.max(1.05, 1.05 * Math.max(...curve.map((one) => one.reward)))] },
    draw: (api) => {
      const peak = curve.reduce((high, one) => (one.watched > high.watched ? one : high), curve[0]);
      const points = world === "bandit" ? DRAWS.map((n) => {
        const kept = bestOfN(REFERENCE, PROXY, n);
        return dot(api, [klOf(kept, REFERENCE), kept.reduce((sum, one, i) => sum + one * PROXY[i], 0)], 4, `best of ${n}`);
      }) : [];
      frontier.words.textContent = `Solid: the reward that is paid, and the most that any policy of that KL can have. Dashed: the reward that is meant. It turns at ${format(peak.kl, 3)} nats; beyond, the policy cheats.${world === "bandit" ? " Dots: best of 1, 2, 4, 8, 16, 64." : ""}`;
      return [
        line(api, curve.map((one) => [one.kl, one.reward]), 0), line(api, curve.map((one) => [one.kl, one.watched]), 1, 1),
        shape("line", { class: "now", x1: api.x(best.kl), x2: api.x(best.kl), y1: api.y(0), y2: api.y(api.invert(0, 12)[1]) }),
        shape("line", { class: "turn", x1: api.x(peak.kl), x2: api.x(peak.kl), y1: api.y(0), y2: api.y(peak.watched) }),
        ...points, dot(api, [best.kl, best.reward], 0, "the policy"), dot(api, [best.kl, best.watched], 1, "what was meant"),
      ];
    },
  });

  const bars = plot({
    title: "The policy",
    note: "Blue: the reference. Orange: reference times e^(reward/β), the best within the budget.",
    x: { label: "", domain: () => [-0.6, ANSWERS.length - 0.4], ticks: ANSWERS.map((_, i) => i), labels: ANSWERS.map((_, i) => String(i + 1)) },
    y: { label: "probability", domain: () => [0, Math.max(0.4, ...(best?.policy ?? [0])) * 1.05] },
    draw: (api) => {
      const wide = (api.x(1) - api.x(0)) * 0.36;
      return (best.policy ?? []).flatMap((one, i) => [
        shape("rect", { class: "bar c0", x: api.x(i) - wide, width: wide, y: api.y(REFERENCE[i]), height: api.y(0) - api.y(REFERENCE[i]) }),
        shape("rect", { class: "bar c1", x: api.x(i), width: wide, y: api.y(one), height: api.y(0) - api.y(one) }, shape("title", {}, `${ANSWERS[i]}: ${format(one, 4)}`)),
      ]);
    },
  });
  const legend = element("ol", { class: "answers" }, ANSWERS.map((answer, i) => element("li", {}, `${answer}: pays ${PROXY[i]}, is worth ${TRUE[i]}`)));

  const grid = shape("svg", { class: "grid", viewBox: "0 0 250 250", role: "img" });
  function drawGrid() {
    const first = best.policies[0];
    grid.setAttribute("aria-label", `A grid of 5 by 5, from the bottom left to the goal at the top right; the coin in the middle is stepped on ${format(best.visits[coin], 3)} times an episode`);
    grid.replaceChildren(...best.visits.flatMap((visits, cell) => {
      const [x, y] = [50 * (cell % SIDE), 50 * Math.floor(cell / SIDE)];
      const arrows = cell === goal ? [] : MOVES.map(([down, right], a) => shape("line", {
        class: "arrow", x1: x + 25, y1: y + 25, x2: x + 25 + 20 * right * first[cell][a], y2: y + 25 + 20 * down * first[cell][a],
      }));
      const name = { [goal]: "goal", [coin]: "coin", [WORLD.start]: "start" }[cell];
      return [shape("rect", { class: "cell c0", x: x + 1, y: y + 1, width: 48, height: 48, "fill-opacity": Math.min(0.75, 0.04 + visits / 4) }),
        ...arrows, name && shape("text", { x: x + 25, y: y + 44, "text-anchor": "middle" }, name)].filter(Boolean);
    }));
  }
  const held = { bandit: element("div", {}, bars.figure, legend), grid: element("figure", { class: "chart live" }, element("figcaption", {}, element("h3", {}, "The policy at the first step, and where it goes"), element("p", {}, "Arrows: how likely each move is, against a reference that wanders at random. The darker a cell, the more visits.")), grid) };

  const update = eachFrame(() => {
    best = at(budget);
    for (const [name, node] of Object.entries(held)) node.hidden = name !== world;
    frontier.redraw();
    if (world === "bandit") bars.redraw();
    else drawGrid();
    for (const [name, value] of Object.entries({ kl: best.kl, beta: best.beta, proxy: best.reward, true: best.watched })) numbers.set(name, value);
  });
  const nats = slider({ id: "budget", label: "KL budget", min: 0, max: 1, step: 0.005, value: 0.275, words: (share) => `${format(most() * share * share, 3)} nats`, change: (share) => { budget = most() * share * share; update(); } });

  const section = element("section", { class: "room", id: "policy", "aria-labelledby": "policy-title" },
    element("h2", { id: "policy-title" }, "A policy on a budget"),
    element("p", { class: "lead" }, "The best policy within a KL of the reference is the reference, tilted by the reward. When the reward is flawed, a small budget learns what was meant, and a large one learns to cheat."),
    choice("task", { bandit: "eight answers to one question", grid: "a gridworld" }, world, (value) => {
      world = value;
      budget = world === "bandit" ? 0.3025 : 3;
      nats.set(Math.sqrt(budget / most()));
      trace();
      update();
    }),
    nats.row, numbers.list, element("div", { class: "charts" }, frontier.figure, element("div", {}, held.bandit, held.grid)));
  return { section, begin: () => { best = at(budget); trace(); update(); } };
}
