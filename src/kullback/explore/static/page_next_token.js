// Room 2: the distributions P and Q of a next word; mass that is pushed about, a temperature and a top-p on Q.

import { format } from "./axes.js";
import { eachFrame, handle, plot, readings, slider } from "./live_plot.js";
import { element, shape, table } from "./chart.js";
import { jensenShannon, klOf, sampled, softmax, termsOf } from "./math.js";

const WORDS = ["the", "a", "cat", "dog", "moon", "blue", "ran", "sat", "is", "not"];
const P = softmax([2.1, 1.6, 2.4, 2.2, -0.6, -1.2, 0.3, 0.5, 0.9, -0.4]);

export function wordsRoom() {
  let logits = [1.9, 1.7, 2.9, 1.2, 0.4, -0.8, 0.1, 0.9, 0.7, -0.9];
  let [temperature, top] = [1, 1];
  const numbers = readings({ forward: "KL(P || Q), nats", reverse: "KL(Q || P), nats", js: "Jensen-Shannon, nats" });
  const terms = element("div");
  const q = () => sampled(softmax(logits), temperature, top);

  const bars = plot({
    title: "P and Q of the next word",
    note: "Blue: P. Orange: Q; drag its handles, or use the up and down keys. What one word gains, all others lose in proportion.",
    x: { label: "", domain: () => [-0.6, WORDS.length - 0.4], ticks: WORDS.map((_, i) => i), labels: WORDS },
    y: { label: "probability", domain: () => [0, Math.max(0.45, 1.1 * Math.max(...q()))] },
    draw: (api) => {
      const now = q();
      const wide = (api.x(1) - api.x(0)) * 0.32;
      return WORDS.flatMap((word, i) => [
        shape("rect", { class: "bar c0", x: api.x(i) - wide, width: wide, y: api.y(P[i]), height: api.y(0) - api.y(P[i]) }),
        shape("rect", { class: "bar c1", x: api.x(i), width: wide, y: api.y(now[i]), height: api.y(0) - api.y(now[i]) }),
        handle(api, {
          name: `word-${i}`, at: [i + 0.16, now[i]], group: 1, label: `Q of “${word}”`, value: now[i], min: 0, max: 1, steps: [0, 0.01],
          words: format(now[i], 4), move: (_, dy) => push(i, dy),
        }),
      ]);
    },
  });

  function push(i, by) {
    // In the plain Q, before temperature and top-p.
    const plain = softmax(logits);
    const now = Math.min(0.999, Math.max(1e-6, plain[i] + by));
    const rest = (1 - now) / (1 - plain[i]);
    logits = plain.map((one, j) => Math.log(j === i ? now : one * rest));
    update();
  }

  const shown = (value) => (value === Infinity ? "∞" : format(value, 4));
  const update = eachFrame(() => {
    const now = q();
    bars.redraw();
    numbers.set("forward", klOf(P, now));
    numbers.set("reverse", klOf(now, P));
    numbers.set("js", jensenShannon(P, now));
    const [there, back] = [termsOf(P, now), termsOf(now, P)];
    terms.replaceChildren(table({
      caption: "What each word adds, nats",
      columns: ["word", "P", "Q", "to KL(P || Q)", "to KL(Q || P)"],
      rows: WORDS.map((word, i) => [word, shown(P[i]), shown(now[i]), shown(there[i]), shown(back[i])]),
    }));
    warning.textContent = now.includes(0) ? "Top-p has cut words that P says: KL(P || Q) is infinite, and KL(Q || P) is not." : "";
  });
  const warning = element("p", { class: "aside", role: "status" });

  const section = element("section", { class: "room", id: "words", "aria-labelledby": "words-title" },
    element("h2", { id: "words-title" }, "A next token"),
    element("p", { class: "lead" }, "What a language model says next, P, and what its copy says, Q: a copy may be quantised, tuned, or merely sampled with a temperature."),
    numbers.list, bars.figure,
    slider({ id: "temperature", label: "temperature of Q", min: 0.2, max: 3, step: 0.05, value: 1, words: (value) => format(value, 3), change: (value) => { temperature = value; update(); } }).row,
    slider({ id: "top-p", label: "top-p of Q", min: 0.3, max: 1, step: 0.01, value: 1, words: (value) => format(value, 3), change: (value) => { top = value; update(); } }).row,
    warning, terms);
  return { section, begin: update };
}
