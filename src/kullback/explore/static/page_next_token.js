// Page 2: two next-token distributions P and Q. Each probability of Q can be changed, and Q has a temperature and a top-p.

import { format } from "./axes.js";
import { handle, oncePerFrame, plot, readings, slider } from "./live_plot.js";
import { element, shape, table } from "./chart.js";
import { jensenShannon, klProbs, klTerms, samplingDistribution, softmax } from "./math.js";

const TOKENS = ["the", "a", "cat", "dog", "moon", "blue", "ran", "sat", "is", "not"];
const P = softmax([2.1, 1.6, 2.4, 2.2, -0.6, -1.2, 0.3, 0.5, 0.9, -0.4]);

export function nextTokenPage() {
  let logits = [1.9, 1.7, 2.9, 1.2, 0.4, -0.8, 0.1, 0.9, 0.7, -0.9];
  let [temperature, topP] = [1, 1];
  const numbers = readings({ forward: "KL(P || Q), nats", reverse: "KL(Q || P), nats", js: "Jensen-Shannon divergence, nats" });
  const terms = element("div");
  const currentQ = () => samplingDistribution(softmax(logits), temperature, topP);

  const bars = plot({
    title: "Next-token probabilities under P and Q",
    note: "Blue: P. Orange: Q. Drag a handle, or use the up and down arrow keys, to change the probability of a token under Q. The other probabilities of Q are rescaled so that the sum stays 1.",
    x: { label: "", domain: () => [-0.6, TOKENS.length - 0.4], ticks: TOKENS.map((_, i) => i), labels: TOKENS },
    y: { label: "probability", domain: () => [0, Math.max(0.45, 1.1 * Math.max(...currentQ()))] },
    draw: (api) => {
      const q = currentQ();
      const width = (api.x(1) - api.x(0)) * 0.32;
      return TOKENS.flatMap((token, i) => [
        shape("rect", { class: "bar c0", x: api.x(i) - width, width, y: api.y(P[i]), height: api.y(0) - api.y(P[i]) }),
        shape("rect", { class: "bar c1", x: api.x(i), width, y: api.y(q[i]), height: api.y(0) - api.y(q[i]) }),
        handle(api, {
          name: `token-${i}`, at: [i + 0.16, q[i]], group: 1, label: `probability of “${token}” under Q`, value: q[i], min: 0, max: 1, steps: [0, 0.01],
          text: format(q[i], 4), move: (_, dy) => addProbability(i, dy),
        }),
      ]);
    },
  });

  /** Adds to the probability of a token, before temperature and top-p, and rescales the other probabilities. */
  function addProbability(i, change) {
    const q = softmax(logits);
    const probability = Math.min(0.999, Math.max(1e-6, q[i] + change));
    const factor = (1 - probability) / (1 - q[i]);
    logits = q.map((other, j) => Math.log(j === i ? probability : other * factor));
    update();
  }

  const shown = (value) => (value === Infinity ? "∞" : format(value, 4));
  const update = oncePerFrame(() => {
    const q = currentQ();
    bars.redraw();
    numbers.set("forward", klProbs(P, q));
    numbers.set("reverse", klProbs(q, P));
    numbers.set("js", jensenShannon(P, q));
    const [forward, reverse] = [klTerms(P, q), klTerms(q, P)];
    terms.replaceChildren(table({
      caption: "Contributions, nats",
      columns: ["token", "P", "Q", "to KL(P || Q)", "to KL(Q || P)"],
      rows: TOKENS.map((token, i) => [token, shown(P[i]), shown(q[i]), shown(forward[i]), shown(reverse[i])]),
    }));
    warning.textContent = q.includes(0) ? "Top-p sampling sets the probability of the least likely tokens under Q to 0, but P gives these tokens positive probability. Therefore KL(P || Q) is infinite, while KL(Q || P) is finite." : "";
  });
  const warning = element("p", { class: "aside", role: "status" });

  const section = element("section", { class: "page", id: "next-token", "aria-labelledby": "next-token-title" },
    element("h2", { id: "next-token-title" }, "Next-token distributions"),
    element("p", { class: "lead" }, "P is the next-token distribution of a language model. Q is the distribution of a changed copy of the model, for example after quantisation or fine-tuning, or with another sampling temperature. KL(P || Q) is the increase of the mean log-loss, in nats, when tokens drawn from P are predicted with Q instead of P."),
    numbers.list, bars.figure,
    slider({ id: "temperature", label: "temperature of Q", min: 0.2, max: 3, step: 0.05, value: 1, text: (value) => format(value, 3), change: (value) => { temperature = value; update(); } }).row,
    slider({ id: "top-p", label: "top-p of Q", min: 0.3, max: 1, step: 0.01, value: 1, text: (value) => format(value, 3), change: (value) => { topP = value; update(); } }).row,
    warning, element("h3", {}, "Contribution of each token"),
    element("p", { class: "aside" }, "A token adds p φ(log(q/p)) to KL(P || Q) and q φ(log(p/q)) to KL(Q || P), where φ(d) = e^d − 1 − d. No contribution is negative, and their sum is the KL."),
    terms);
  return { section, start: update };
}
