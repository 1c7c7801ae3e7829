// Question 3: policies that learn from a proxy reward with a KL penalty or a KL budget, in a bandit and in a gridworld.

import { format } from "./axes.js";
import { keepInAddress, noteState, numbersIn } from "./address.js";
import { LEARNER_SETTINGS, makeLearner, penaltyKl } from "./bandit.js";
import { element, shape } from "./elements.js";
import { control, curveOf, dragPoint, labelAt, limit, liveFigure, number4, oncePerFrame, pointAt, pressButton, radioButtons, saveMenu, valueList } from "./figure.js";
import { bestOfN, expectation, forwardTilt, forwardTiltToBudget, gridFrontier, gridToBudget, MOVES, tilt, tiltToBudget } from "./math.js";

const ANSWERS = ["vague", "wrong", "correct", "correct and short", "correct with sources", "long", "flattering", "copied answer key"];
const REFERENCE = [0.24, 0.2, 0.22, 0.12, 0.07, 0.11, 0.03, 0.01];
const PROXY_REWARD = [0.2, 0.1, 0.6, 0.66, 0.8, 0.55, 0.9, 1];
const TRUE_REWARD = [0.2, 0, 0.7, 0.75, 1, 0.4, 0.1, 0];
const BEST_OF = [1, 2, 4, 8, 16, 64];
const [BUDGET_LOW, BUDGET_HIGH, BETA_LOW, BETA_HIGH] = [0.01, 4, 0.02, 3];
const LAST_UPDATE = 600;

// A grid of 5 by 5 cells: the start at the bottom left, the goal three cells above it, a coin at the right edge.
const SIDE = 5;
const CELLS = Array.from({ length: SIDE * SIDE }, (_, cell) => cell);
const [START_CELL, GOAL_CELL, COIN_CELL, HORIZON] = [20, 5, 14, 12];
const COIN_REWARD = 0.3;
const WORLD = { side: SIDE, start: START_CELL, horizon: HORIZON, terminal: [GOAL_CELL], reward: CELLS.map((cell) => ({ [GOAL_CELL]: 1, [COIN_CELL]: COIN_REWARD })[cell] ?? 0) };
const TRUE_GRID_REWARD = CELLS.map((cell) => (cell === GOAL_CELL ? 1 : 0));
const [GRID_LOW, GRID_HIGH] = [0.01, 12];
const highestTrue = (points) => points.reduce((best, point) => (point.trueReward > best.trueReward ? point : best), points[0]);

export function policyPage() {
  let [algorithm, constraint, direction, budget, beta, guess, guessed] = ["ppo", "budget", "reverse", 0.3, 0.3, 1.5, false];
  let [learner, running, trail, seed] = [makeLearner(REFERENCE, PROXY_REWARD, 1), false, [], 1];
  const withTrue = (solution) => ({ ...solution, trueReward: expectation(solution.policy, TRUE_REWARD) });
  const atBeta = (value) => withTrue((direction === "reverse" ? tilt : forwardTilt)(REFERENCE, PROXY_REWARD, value));
  const atBudget = (nats) => withTrue((direction === "reverse" ? tiltToBudget : forwardTiltToBudget)(REFERENCE, PROXY_REWARD, nats));
  let [curve, best] = [[], null];
  const klName = () => (direction === "reverse" ? "KL(policy || reference)" : "KL(reference || policy)");
  const klOf = (policy) => penaltyKl(direction, policy, REFERENCE);
  const pointOf = (policy) => [klOf(policy), expectation(policy, PROXY_REWARD), expectation(policy, TRUE_REWARD)];
  const bestOf = () => BEST_OF.map((n) => [n, ...pointOf(bestOfN(REFERENCE, PROXY_REWARD, n))]);
  function updateCurve() {
    curve = [atBeta(Infinity)];
    for (let logBeta = 3; curve.at(-1).kl < BUDGET_HIGH && logBeta > -6; logBeta -= 0.1) curve.push(atBeta(Math.exp(logBeta)));
  }

  // ---- the frontier ----

  const frontier = liveFigure({
    id: "frontier", title: "Expected reward against KL", height: 280,
    describe: () => `The policy with the largest proxy reward has ${number4(best?.kl)} nats, proxy reward ${number4(best?.reward)}${guessed ? `, true reward ${number4(best?.trueReward)}` : ""}.`,
    get x() { return { label: `${klName()}, nats`, domain: () => [0, BUDGET_HIGH] }; },
    y: { label: "expected reward", domain: () => [0, 1.1] },
    draw: (api) => {
      const peak = highestTrue(curve);
      const learned = pointOf(learner.policy);
      const mark = (x, name, height) => shape("line", { class: `upright ${name}`, x1: api.x(x), x2: api.x(x), y1: api.y(0), y2: api.y(height) });
      return [
        mark(best.kl, "limit-mark", 1.1),
        curveOf(api, curve.map(({ kl, reward }) => [kl, reward]), "proxy"),
        guessed && curveOf(api, curve.map(({ kl, trueReward }) => [kl, trueReward]), "true dashed"),
        guessed && [mark(peak.kl, "true", peak.trueReward), labelAt(api, [peak.kl, 0.2], `turning point: ${format(peak.kl, 3)} nats`, { dx: 6, anchor: "start" })],
        bestOf().filter(([, kl]) => kl <= BUDGET_HIGH).map(([n, kl, reward]) => [
          pointAt(api, [kl, reward], "neutral hollow", `best of ${n}: ${number4(kl)} nats, proxy reward ${number4(reward)}`, 4),
          n > 2 && labelAt(api, [kl, reward], String(n), { dy: 17, anchor: "middle" }),
        ]),
        trail.length > 1 && [curveOf(api, trail.map(([kl, reward]) => [kl, reward]), "proxy trail"), guessed && curveOf(api, trail.map(([kl, , reward]) => [kl, reward]), "true trail")],
        pointAt(api, learned.slice(0, 2), "proxy", "proxy reward of the learned policy", 6),
        guessed && pointAt(api, [learned[0], learned[2]], "true", "true reward of the learned policy", 6),
        dragPoint(api, { name: "guess", style: "neutral", at: [guess, 0.06], move: (kl) => { guess = limit(kl, 0, BUDGET_HIGH); update(); }, done: () => update() }),
        mark(guess, "guess-mark", 1.1), labelAt(api, [guess, 0.06], "your guess", { dy: -14, dx: guess > 3.3 ? -6 : 6, anchor: guess > 3.3 ? "end" : "start" }),
      ];
    },
    rows: () => [["kl", "proxy reward", "true reward"], ...curve.map(({ kl, reward, trueReward }) => [kl, reward, trueReward])],
  });

  const answers = liveFigure({
    id: "answers", title: "Probability and rewards of each answer", height: 330,
    note: "Bars: the reference and the learned policy. Open circles: the policy with the largest proxy reward. Ticks: the proxy reward and the true reward of the answer, on the same scale.",
    describe: () => ANSWERS.map((answer, i) => `${answer}: probability ${number4(learner.policy[i])}, proxy reward ${PROXY_REWARD[i]}, true reward ${TRUE_REWARD[i]}`).join("; "),
    x: { label: "probability, reward", domain: () => [0, 1.02] },
    y: { label: "", domain: () => [ANSWERS.length - 0.45, -0.55], ticks: ANSWERS.map((_, i) => i), labels: ANSWERS, left: 134 },
    draw: (api) => ANSWERS.flatMap((answer, i) => {
      const bar = (value, name, offset) => shape("rect", { class: `bar ${name}`, x: api.x(0), width: api.x(value) - api.x(0), y: api.y(i) + offset, height: 9 }, shape("title", {}, `${answer}: ${number4(value)}`));
      const tick = (value, name, text) => shape("line", { class: `reward-tick ${name}`, x1: api.x(value), x2: api.x(value), y1: api.y(i) - 13, y2: api.y(i) + 13 }, shape("title", {}, `${answer}: ${text} ${value}`));
      return [bar(REFERENCE[i], "p", -10), bar(learner.policy[i], "q", 1), tick(PROXY_REWARD[i], "proxy", "proxy reward"), tick(TRUE_REWARD[i], "true dashed", "true reward"),
        shape("circle", { class: "ring", cx: api.x(best.policy[i]), cy: api.y(i) + 5.5, r: 4 })];
    }),
    rows: () => [["answer", "reference", "learned", "optimal", "proxy reward", "true reward"], ...ANSWERS.map((answer, i) => [answer, REFERENCE[i], learner.policy[i], best.policy[i], PROXY_REWARD[i], TRUE_REWARD[i]])],
  });

  // ---- learning ----

  const settings = () => ({ algorithm, direction, ...(constraint === "beta" ? { beta } : { budget }) });
  function learn(count) {
    for (let i = 0; i < count && learner.step < LAST_UPDATE; i += 1) {
      learner.update(settings());
      trail.push(pointOf(learner.policy));
    }
    if (learner.step >= LAST_UPDATE) running = false;
    update();
  }
  const trainButton = pressButton("Train", () => {
    if (learner.step >= LAST_UPDATE) restart();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return learn(LAST_UPDATE);
    running = !running;
    if (running) requestAnimationFrame(advance);
    return update();
  }, { id: "train" });
  const advance = () => {
    if (!running) return;
    learn(2);
    requestAnimationFrame(advance);
  };
  function restart() {
    learner = makeLearner(REFERENCE, PROXY_REWARD, seed);
    [trail, running] = [[], false];
    update();
  }

  const numbers = valueList({ kl: "KL of the optimal policy, nats", beta: "its β, reward per nat", proxy: "its proxy reward", true: "its true reward" });
  const learnedNumbers = valueList({ "learned-step": "updates", "learned-kl": "KL of the learned policy, nats", "learned-beta": "its β", "learned-proxy": "its proxy reward", "learned-true": "its true reward" });
  const note = element("p", { class: "aside", id: "learning-note" });
  const verdict = element("p", { role: "status", id: "turning-point" });
  const update = oncePerFrame(() => {
    best = constraint === "beta" ? atBeta(beta) : atBudget(budget);
    frontier.caption.textContent = `Solid: the largest proxy reward at each KL. ${guessed ? "Dashed: the true reward of the same policies. " : ""}Vertical line: the ${constraint === "beta" ? "KL at this β" : "budget"}. Open circles: best-of-n sampling for n = ${BEST_OF.join(", ")}.`;
    const learned = pointOf(learner.policy);
    for (const [name, value] of Object.entries({ kl: best.kl, beta: best.beta, proxy: best.reward, true: guessed ? best.trueReward : "guess first" })) numbers.set(name, value);
    for (const [name, value] of Object.entries({ "learned-step": learner.step, "learned-kl": learned[0], "learned-beta": constraint === "beta" ? beta : learner.beta, "learned-proxy": learned[1], "learned-true": guessed ? learned[2] : "guess first" })) learnedNumbers.set(name, value);
    const peak = highestTrue(curve);
    verdict.textContent = guessed ? `You guessed ${number4(guess)} nats. The true reward is largest at ${number4(peak.kl)} nats, where it is ${number4(peak.trueReward)}; beyond this KL the policy exploits the proxy.` : "";
    guessButton.hidden = guessed;
    guessControl.set(guess);
    note.textContent = algorithm === "ppo"
      ? `PPO: ${LEARNER_SETTINGS.samples} answers per update are drawn from the old policy; the ratio of the new to the old policy is clipped to 1 ± ${LEARNER_SETTINGS.clip}, and ${LEARNER_SETTINGS.epochs} gradient steps are taken. The advantage is the reward minus a running mean.`
      : `GRPO: ${LEARNER_SETTINGS.samples} answers per update, in groups of ${LEARNER_SETTINGS.group}; the advantage is the reward minus the mean of its group, divided by the standard deviation of the group. Because of this division, β has another meaning than in PPO, and the same β can give a much larger KL; a budget does not depend on it.`;
    trainButton.textContent = running ? "Pause" : learner.step >= LAST_UPDATE ? "Train again" : "Train";
    budgetControl.row.hidden = constraint === "beta";
    betaControl.row.hidden = constraint === "budget";
    frontier.redraw();
    answers.redraw();
    noteState();
  });
  const guessControl = control({ id: "guess", label: "your guess: the KL with the largest true reward", min: 0, max: BUDGET_HIGH, step: 0.05, value: guess, text: (value) => `${number4(value)} nats`, change: (value) => { guess = value; update(); } });
  const guessButton = pressButton("Compare with the true reward", () => { guessed = true; update(); gridUpdate(); }, { id: "reveal" });
  const budgetControl = control({ id: "budget", label: "KL budget", min: BUDGET_LOW, max: BUDGET_HIGH, step: 0.05, log: true, value: budget, text: (value) => `${number4(value)} nats`, change: (value) => { budget = value; update(); } });
  const betaControl = control({ id: "beta", label: "β", min: BETA_LOW, max: BETA_HIGH, step: 0.05, log: true, value: beta, change: (value) => { beta = value; update(); } });
  const radios = {
    algorithm: radioButtons({ name: "algorithm", label: "Algorithm", options: { ppo: "PPO", grpo: "GRPO" }, value: algorithm, change: (value) => { algorithm = value; restart(); } }),
    constraint: radioButtons({ name: "constraint", label: "KL", options: { budget: "budget", beta: "fixed β" }, value: constraint, change: (value) => { constraint = value; update(); } }),
    direction: radioButtons({ name: "direction", label: "Direction", options: { reverse: "reverse KL(policy || reference)", forward: "forward KL(reference || policy)" }, value: direction, change: (value) => { direction = value; updateCurve(); restart(); } }),
  };

  // ---- the gridworld ----

  let [gridBudget, gridBest] = [1.5, null];
  let gridCurves = { proxy: [], true: [] };
  const gridNumbers = valueList({ "grid-kl": "KL(policy || reference), nats per episode", "grid-beta": "β, reward per nat", "grid-proxy": "expected proxy reward", "grid-true": "expected true reward", "grid-best": "largest true reward at this KL" });
  const gridChart = liveFigure({
    id: "grid-frontier", title: "Gridworld: expected reward against KL", height: 280,
    describe: () => (gridBest ? `At ${number4(gridBest.kl)} nats the proxy reward is ${number4(gridBest.reward)} and the true reward ${number4(gridBest.trueReward)}.` : ""),
    x: { label: "KL(policy || reference), nats per episode", domain: () => [0, GRID_HIGH] },
    y: { label: "expected reward", domain: () => [0, 1.08 * Math.max(1, ...gridCurves.proxy.map(({ reward }) => reward))] },
    draw: (api) => {
      const peak = highestTrue(gridCurves.proxy);
      const inside = (points) => points.filter(({ kl }) => kl <= GRID_HIGH);
      const honest = [...inside(gridCurves.true).map(({ kl, reward }) => [kl, reward]), [GRID_HIGH, gridCurves.true.at(-1).reward]];
      return [
        shape("line", { class: "upright limit-mark", x1: api.x(gridBest.kl), x2: api.x(gridBest.kl), y1: api.y(0), y2: api.box.top }),
        curveOf(api, inside(gridCurves.proxy).map(({ kl, reward }) => [kl, reward]), "proxy"),
        curveOf(api, honest, "true dotted"), curveOf(api, inside(gridCurves.proxy).map(({ kl, trueReward }) => [kl, trueReward]), "true dashed"),
        labelAt(api, [peak.kl, peak.trueReward], `turning point: ${format(peak.kl, 3)} nats`, { dx: 30, dy: 22, anchor: "start" }),
        pointAt(api, [gridBest.kl, gridBest.reward], "proxy", "proxy reward", 6), pointAt(api, [gridBest.kl, gridBest.trueReward], "true", "true reward", 6),
      ];
    },
    note: "Solid: the largest proxy reward at each KL. Dashed: the true reward of the same policies. Dotted: the largest true reward at each KL, which a policy trained on the true reward has.",
    rows: () => [["kl", "proxy reward", "true reward"], ...gridCurves.proxy.map(({ kl, reward, trueReward }) => [kl, reward, trueReward])],
  });
  const grid = shape("svg", { class: "grid", viewBox: "0 0 250 250", role: "img" });
  const gridFigure = element("figure", { class: "live", id: "gridworld" }, element("figcaption", {}, element("h3", {}, "Policy at the first step, and expected visits"), saveMenu("gridworld", "Gridworld", () => grid, () => [["cell", "expected visits"], ...gridBest.visits.map((visits, cell) => [cell, visits])]),
    element("p", {}, "Length of a line: probability of the move at the first step. Shade: expected number of visits in an episode.")), grid);
  function drawGrid() {
    const first = gridBest.policies[0];
    grid.setAttribute("aria-label", `A grid of 5 by 5 cells with the start at the bottom left, the goal three cells above it and a coin at the right edge. The goal is reached with probability ${number4(gridBest.visits[GOAL_CELL])}, and the coin is visited ${number4(gridBest.visits[COIN_CELL])} times in an episode.`);
    grid.replaceChildren(...CELLS.flatMap((cell) => {
      const [x, y] = [50 * (cell % SIDE), 50 * Math.floor(cell / SIDE)];
      const arrows = cell === GOAL_CELL ? [] : MOVES.map(([down, right], move) => shape("line", {
        class: "arrow", x1: x + 25, y1: y + 25, x2: x + 25 + 21 * right * first[4 * cell + move], y2: y + 25 + 21 * down * first[4 * cell + move],
      }));
      const name = { [GOAL_CELL]: "goal", [COIN_CELL]: "coin", [START_CELL]: "start" }[cell];
      return [shape("rect", { class: "cell", x: x + 1, y: y + 1, width: 48, height: 48, "fill-opacity": limit(gridBest.visits[cell] / 4, 0, 0.5) }),
        ...arrows, name && shape("text", { class: "note", x: x + 25, y: y + 44, "text-anchor": "middle" }, name)].filter(Boolean);
    }));
  }
  const gridUpdate = oncePerFrame(() => {
    gridBest = gridToBudget(WORLD, gridBudget, TRUE_GRID_REWARD);
    const honest = gridToBudget({ ...WORLD, reward: TRUE_GRID_REWARD }, gridBudget, TRUE_GRID_REWARD);
    for (const [name, value] of Object.entries({ "grid-kl": gridBest.kl, "grid-beta": gridBest.beta, "grid-proxy": gridBest.reward, "grid-true": gridBest.trueReward, "grid-best": honest.reward })) gridNumbers.set(name, value);
    gridChart.redraw();
    drawGrid();
    noteState();
  });
  const gridControl = control({ id: "grid-budget", label: "KL budget per episode", min: GRID_LOW, max: GRID_HIGH, step: 0.05, log: true, value: gridBudget, text: (value) => `${number4(value)} nats`, change: (value) => { gridBudget = value; gridUpdate(); } });

  const section = element("section", { class: "question", id: "policy", "aria-labelledby": "policy-title" },
    element("h2", { id: "policy-title" }, "3. What does the penalty do?"),
    element("p", { class: "lead" }, "A policy answers a question and is trained on a proxy reward, which differs from the true reward. The KL penalty β limits its distance from the reference; with a budget, β is adapted until the KL equals the budget. The optimal policy for KL(policy || reference) is proportional to reference\u00a0×\u00a0e^(reward/β). At a small KL both rewards increase. At which KL does the true reward begin to fall?"),
    element("div", { class: "row" }, radios.algorithm.group, radios.constraint.group, radios.direction.group),
    element("div", { class: "guess" }, guessControl.row, guessButton, verdict),
    element("p", { class: "key-row" }, element("span", { class: "key-p" }, "reference"), element("span", { class: "key-q" }, "policy"), element("span", { class: "key-proxy" }, "proxy reward"), element("span", { class: "key-true" }, "true reward")),
    element("div", { class: "controls" }, budgetControl.row, betaControl.row, element("div", { class: "row" }, trainButton, pressButton("Start again", restart, { id: "restart" }))),
    element("div", { class: "pair" }, frontier.figure, answers.figure),
    numbers.list, learnedNumbers.list, note,
    element("h3", { class: "part" }, "The same trade-off in a gridworld"),
    element("p", { class: "lead" }, `The reference chooses all four moves with equal probability. An episode has ${HORIZON} steps and ends at the goal. The true reward is 1 at the goal. The proxy reward is 1 at the goal and ${COIN_REWARD} for each visit of the coin, which can be repeated. With a small budget the best policy for the proxy reward walks to the goal; with a large budget it stays at the coin.`),
    element("div", { class: "controls" }, gridControl.row), gridNumbers.list,
    element("div", { class: "pair" }, gridChart.figure, gridFigure));

  const chosen = (name, values, get, apply) => keepInAddress(name, {
    get: () => (get() === values[0] ? undefined : get()),
    set: (text) => { const value = values.includes(text) ? text : values[0]; radios[name].set(value); apply(value); },
  });
  const numeric = (name, start, low, high, get, apply) => keepInAddress(name, {
    get: () => (get() === start ? undefined : String(get())),
    set: (text) => { apply(limit(numbersIn(text, 1)?.[0] ?? start, low, high)); },
  });
  return {
    section,
    start: () => {
      updateCurve();
      gridCurves = { proxy: gridFrontier(WORLD, GRID_HIGH, TRUE_GRID_REWARD), true: gridFrontier({ ...WORLD, reward: TRUE_GRID_REWARD }, GRID_HIGH, TRUE_GRID_REWARD) };
      best = atBudget(budget);
      gridBest = gridToBudget(WORLD, gridBudget, TRUE_GRID_REWARD);
      chosen("algorithm", ["ppo", "grpo"], () => algorithm, (value) => { algorithm = value; restart(); });
      chosen("constraint", ["budget", "beta"], () => constraint, (value) => { constraint = value; update(); });
      chosen("direction", ["reverse", "forward"], () => direction, (value) => { direction = value; updateCurve(); restart(); });
      numeric("budget", 0.3, BUDGET_LOW, BUDGET_HIGH, () => budget, (value) => { budget = value; budgetControl.set(value); update(); });
      numeric("beta", 0.3, BETA_LOW, BETA_HIGH, () => beta, (value) => { beta = value; betaControl.set(value); update(); });
      numeric("guess", 1.5, 0, BUDGET_HIGH, () => guess, (value) => { guess = value; update(); });
      keepInAddress("guessed", { get: () => (guessed ? "1" : undefined), set: (text) => { guessed = text === "1"; update(); } });
      numeric("grid", 1.5, GRID_LOW, GRID_HIGH, () => gridBudget, (value) => { gridBudget = value; gridControl.set(value); gridUpdate(); });
      update();
      gridUpdate();
    },
  };
}
