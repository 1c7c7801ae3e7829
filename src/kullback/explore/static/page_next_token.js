// Question 2: a small language model P and a changed copy Q: the KL of one next token, of a sentence, and its estimators.

import { keepInAddress, noteState, numbersIn } from "./address.js";
import { drawIndex, uniformGenerator } from "./bandit.js";
import { table } from "./chart.js";
import { element, shape } from "./elements.js";
import { control, dragPoint, liveFigure, number4, oncePerFrame, pressButton, valueList } from "./figure.js";
import { estimatorMoments, jensenShannon, KL_ESTIMATORS, klProbs, klTerms, logRatioTerms, samplingDistribution, sequenceKl, softmax } from "./math.js";

// P is a bigram model of this text: (count of a pair + 0.2), normalised.
const TRAINING_TEXT = "the cat sat on the mat . the dog ran under the tree . a bird sat on a tree . the cat slept under the tree . the dog slept on the mat . a cat ran on the mat . the bird slept . a dog sat under a tree . the cat sat . the bird ran . the dog sat on a mat .".split(" ");
const SENTENCE = "the cat sat on the mat . a dog ran under the tree . the bird sat on a tree".split(" ");
const WORDS = ["the", "a", "cat", "dog", "bird", "mat", "tree", "sat", "ran", "slept", "on", "under", "."];
const FULL_STOP = WORDS.indexOf(".");
const NEXT_TOKEN_P = WORDS.map((word) => {
  const counts = WORDS.map((next) => 0.2 + TRAINING_TEXT.filter((token, i) => token === next && (i === 0 ? "." : TRAINING_TEXT[i - 1]) === word).length);
  const total = counts.reduce((a, b) => a + b, 0);
  return counts.map((count) => count / total);
});
const CONTEXTS = SENTENCE.map((_, i) => (i === 0 ? FULL_STOP : WORDS.indexOf(SENTENCE[i - 1])));
const START_BIASES = WORDS.map((word) => ({ cat: 0.9, mat: -0.8, slept: 0.6 })[word] ?? 0);
const [Q_LOW, Q_HIGH] = [0.001, 0.999];
const ESTIMATES = 100; // dots for each estimator

export function nextTokenPage() {
  let [biases, temperature, topP, position, token, samples, seed] = [[...START_BIASES], 1, 1, 1, 2, 16, 1];
  let order = WORDS.map((_, i) => i);
  const rowOfP = () => NEXT_TOKEN_P[CONTEXTS[position]];
  const biased = (row) => row.map((probability, i) => Math.log(probability) + biases[i]);
  const tempered = (row) => softmax(biased(row).map((logit) => logit / temperature));
  const rowOfQ = (row) => samplingDistribution(softmax(biased(row)), temperature, topP);
  let [q, terms] = [rowOfP(), []];

  // ---- the sentence ----

  const tokens = SENTENCE.map((word, i) => {
    const node = element("span", { class: "token", "data-position": i }, word);
    node.addEventListener("click", () => choosePosition(i));
    return node;
  });
  const sentence = element("p", { class: "sentence", role: "img" }, tokens.flatMap((node) => [node, " "]));
  const total = element("p", { id: "sentence-total" });
  const choosePosition = (now) => {
    position = now;
    positionControl.set(now);
    update();
  };
  const positionControl = control({
    id: "position", label: "position in the sentence", min: 0, max: SENTENCE.length - 1, step: 1, value: position,
    text: (value) => `${Math.round(value) + 1}: “${SENTENCE[Math.round(value)]}”`,
    change: (value) => choosePosition(Math.round(value)),
  });

  // ---- the next token ----

  const rowAxis = { label: "", domain: () => [WORDS.length - 0.4, -0.6], ticks: WORDS.map((_, i) => i), left: 48 };
  const bar = (api, row, from, to, name, offset, title) => {
    const [a, b] = [api.x(from), api.x(to)].sort((x, y) => x - y);
    return shape("rect", { class: `bar ${name}`, x: a, width: Math.max(0.5, b - a), y: api.y(row) + offset, height: 8 }, shape("title", {}, title));
  };
  const bars = liveFigure({
    id: "next-token-bars", title: "Probability of the next token", height: 400,
    describe: () => WORDS.map((word, i) => `${word}: P ${number4(rowOfP()[i])}, Q ${number4(q[i])}`).join("; "),
    x: { label: "probability", domain: () => [0, Math.min(1, 1.15 * Math.max(...rowOfP(), ...tempered(rowOfP())))] },
    y: { ...rowAxis, get labels() { return order.map((i) => WORDS[i]); } },
    draw: (api) => {
      const [p, before] = [rowOfP(), tempered(rowOfP())];
      return order.flatMap((i, row) => [
        bar(api, row, 0, p[i], "p", -9, `P(${WORDS[i]}) = ${number4(p[i])}`),
        bar(api, row, 0, q[i], "q", 1, `Q(${WORDS[i]}) = ${number4(q[i])}`),
        dragPoint(api, {
          name: `token-${i}`, style: "q", r: 6, at: [before[i], row + 0.17], start: () => { token = i; },
          move: (probability) => setProbability(i, probability), done: () => update(),
        }),
      ]);
    },
    rows: () => [["token", "p", "q", "p log(p/q)", "p phi(log(q/p))"], ...order.map((i) => [WORDS[i], rowOfP()[i], q[i], terms[i].usual, terms[i].phi])],
  });
  const contributions = liveFigure({
    id: "contributions", title: "Contribution to KL(P || Q)", height: 400,
    note: "Bars: p log(p/q), which is negative where Q is larger than P. Rings: p φ(log(q/p)), which is never negative. Both have the same sum.",
    x: {
      label: "nats",
      domain: () => {
        const values = terms.flatMap(({ usual, phi }) => [usual, phi]).filter(Number.isFinite);
        return [Math.min(-0.005, 1.1 * Math.min(...values)), Math.max(0.01, 1.1 * Math.max(...values))];
      },
    },
    y: { ...rowAxis, get labels() { return order.map((i) => WORDS[i]); } },
    draw: (api) => order.flatMap((i, row) => (terms[i].usual === Infinity
      ? [shape("text", { class: "note", x: api.x(0) + 6, y: api.y(row) + 4 }, "infinite")]
      : [bar(api, row, 0, terms[i].usual, "forward", -4, `${WORDS[i]}: p log(p/q) = ${number4(terms[i].usual)} nats`),
        shape("circle", { class: "ring", cx: api.x(terms[i].phi), cy: api.y(row), r: 4 }, shape("title", {}, `${WORDS[i]}: p φ(log(q/p)) = ${number4(terms[i].phi)} nats`))])),
    rows: () => [["token", "p log(p/q)", "p phi(log(q/p))"], ...order.map((i) => [WORDS[i], terms[i].usual, terms[i].phi])],
  });

  /** Sets the probability of a token under Q, before top-p, by its bias; the other probabilities keep their proportions. */
  function setProbability(i, probability) {
    const value = Math.min(Q_HIGH, Math.max(Q_LOW, probability));
    const logits = biased(rowOfP()).map((logit) => logit / temperature);
    const others = Math.log(logits.reduce((sum, logit, j) => (j === i ? sum : sum + Math.exp(logit)), 0));
    biases[i] = temperature * (Math.log(value) - Math.log1p(-value) + others) - Math.log(rowOfP()[i]);
    token = i;
    update();
  }
  const tokenChoice = element("select", { id: "token" }, WORDS.map((word, i) => element("option", { value: i }, word)));
  tokenChoice.addEventListener("change", () => { token = Number(tokenChoice.value); update(); });
  const probabilityControl = control({ id: "probability", label: "its probability under Q, before top-p", min: Q_LOW, max: Q_HIGH, step: 0.01, value: 0.1, change: (value) => setProbability(token, value) });
  const temperatureControl = control({ id: "temperature", label: "temperature of Q", min: 0.2, max: 3, step: 0.05, value: 1, change: (value) => { temperature = value; update(); } });
  const topPControl = control({ id: "top-p", label: "top-p of Q", min: 0.3, max: 1, step: 0.01, value: 1, change: (value) => { topP = value; update(); } });
  const spelled = element("p", { id: "spelled", class: "formula" });
  const warning = element("p", { class: "aside", role: "status" });
  const termsTable = element("div");

  // ---- estimators ----

  const moments = { k1: null, k2: null, k3: null };
  let [draws, drawnFor, clouds] = [[], "", {}];
  const estimators = liveFigure({
    id: "estimators", title: "Estimates of KL(P || Q) from samples", height: 240,
    note: "Each dot is the mean of an estimator over the sampled tokens. The line is the exact KL; the tick is the expectation of the estimator, and the bar reaches one standard deviation of the estimates to both sides.",
    describe: () => Object.entries(moments).map(([name, found]) => found && `${name}: expectation ${number4(found.mean)}, standard deviation of an estimate ${number4(found.sd / Math.sqrt(samples))}`).filter(Boolean).join("; "),
    x: {
      label: "nats",
      domain: () => {
        const values = [0, ...Object.values(moments).filter(Boolean).flatMap(({ mean, sd }) => [mean - (3.2 * sd) / Math.sqrt(samples), mean + (3.2 * sd) / Math.sqrt(samples)])];
        return [Math.min(...values), Math.max(0.001, ...values)];
      },
    },
    y: { label: "", domain: () => [2.6, -0.6], ticks: [0, 1, 2], labels: ["k1", "k2", "k3"], left: 48 },
    draw: (api) => {
      if (!moments.k1) return [];
      const exact = klProbs(rowOfP(), q);
      const inside = (value) => { const [low, high] = [api.invert(api.box.left, 0)[0], api.invert(api.box.right, 0)[0]]; return value >= low && value <= high; };
      return Object.entries(moments).flatMap(([name, { mean, sd }], row) => {
        const half = sd / Math.sqrt(samples);
        const dots = clouds[name].map((value, i) => inside(value) && `M${api.x(value).toFixed(1)},${(api.y(row) - 22 + ((i * 13) % 29)).toFixed(1)}h0`).filter(Boolean).join("");
        return [
          shape("path", { class: "cloud", d: dots }),
          shape("line", { class: "error-bar", x1: api.x(Math.max(mean - half, api.invert(api.box.left, 0)[0])), x2: api.x(mean + half), y1: api.y(row) + 15, y2: api.y(row) + 15 }),
          shape("line", { class: "error-bar", x1: api.x(mean), x2: api.x(mean), y1: api.y(row) + 9, y2: api.y(row) + 21 }),
        ];
      }).concat(shape("line", { class: "exact forward", x1: api.x(exact), x2: api.x(exact), y1: api.box.top, y2: api.box.bottom }));
    },
    rows: () => [["estimate", ...Object.keys(clouds)], ...(clouds.k1 ?? []).map((_, i) => [i + 1, ...Object.values(clouds).map((values) => values[i])])],
  });
  const samplesControl = control({
    id: "samples", label: "sampled tokens in an estimate", min: 1, max: 256, step: Math.LN2, log: true, value: samples, text: (value) => String(Math.round(value)),
    change: (value) => { samples = Math.round(value); update(); },
  });
  const estimatorTable = element("div");
  function updateEstimators() {
    const p = rowOfP();
    const finite = !q.includes(0);
    for (const name of Object.keys(moments)) moments[name] = finite ? estimatorMoments(name, p, q) : null;
    const key = `${CONTEXTS[position]} ${samples} ${seed}`;
    if (key !== drawnFor) {
      const uniform = uniformGenerator(seed);
      draws = Array.from({ length: ESTIMATES }, () => {
        const counts = new Float64Array(WORDS.length);
        for (let n = 0; n < samples; n += 1) counts[drawIndex(p, uniform)] += 1;
        return counts;
      });
      drawnFor = key;
    }
    clouds = {};
    for (const name of finite ? Object.keys(moments) : []) {
      const values = p.map((probability, i) => KL_ESTIMATORS[name](Math.log(q[i]) - Math.log(probability)));
      clouds[name] = draws.map((counts) => counts.reduce((sum, count, i) => sum + count * values[i], 0) / samples);
    }
    const exact = klProbs(p, q);
    estimatorTable.replaceChildren(finite ? table({
      caption: "Bias and spread of one estimate, exact, in nats",
      columns: ["estimator, d = log q − log p", "expectation", "bias", "standard deviation of an estimate"],
      rows: [["k1 = −d", "k1"], ["k2 = d²/2", "k2"], ["k3 = φ(d)", "k3"]].map(([label, name]) =>
        [label, number4(moments[name].mean), number4(name === "k2" ? moments[name].mean - exact : 0), number4(moments[name].sd / Math.sqrt(samples))]),
    }) : element("p", { class: "aside" }, "The estimators have no finite mean, because a sampled token can have probability 0 under Q."));
    estimatorTable.dataset.moments = JSON.stringify(moments);
  }

  // ---- updates ----

  const numbers = valueList({ forward: "KL(P || Q), nats", reverse: "KL(Q || P), nats", js: "Jensen-Shannon divergence, nats" });
  const update = oncePerFrame(() => {
    const p = rowOfP();
    q = rowOfQ(p);
    const [phiTerms, usualTerms, reverseTerms] = [klTerms(p, q), logRatioTerms(p, q), klTerms(q, p)];
    terms = WORDS.map((_, i) => ({ usual: usualTerms[i], phi: phiTerms[i] }));
    if (!bars.dragging) order = WORDS.map((_, i) => i).sort((a, b) => (usualTerms[a] === usualTerms[b] ? a - b : usualTerms[b] - usualTerms[a]));
    const rows = NEXT_TOKEN_P.map((row) => rowOfQ(row));
    const kls = CONTEXTS.map((context) => klProbs(NEXT_TOKEN_P[context], rows[context]));
    const largest = Math.max(...kls.filter(Number.isFinite), 1e-300);
    tokens.forEach((node, i) => {
      node.className = `token tint${kls[i] === Infinity ? 6 : Math.round((5 * kls[i]) / largest)}${i === position ? " current" : ""}`;
      node.title = `KL at this position: ${number4(kls[i])} nats`;
      node.dataset.value = String(kls[i]);
    });
    sentence.setAttribute("aria-label", `${SENTENCE.join(" ")}. KL of each token in nats: ${kls.map(number4).join(", ")}`);
    const sum = kls.reduce((a, b) => a + b, 0);
    const mean = sequenceKl(NEXT_TOKEN_P, rows, FULL_STOP, SENTENCE.length);
    total.textContent = `The KLs at the ${SENTENCE.length} positions sum to ${number4(sum)} nats for this sentence. The mean of this sum over sentences drawn from P, ${number4(mean)} nats, is the KL of the distributions of whole sentences.`;
    Object.assign(total.dataset, { sum: String(sum), mean: String(mean) });

    for (const [name, value] of Object.entries({ forward: klProbs(p, q), reverse: klProbs(q, p), js: jensenShannon(p, q) })) numbers.set(name, value);
    tokenChoice.value = String(token);
    probabilityControl.set(Math.min(Q_HIGH, Math.max(Q_LOW, tempered(p)[token])));
    const [pi, qi] = [number4(p[token]), number4(q[token])];
    spelled.textContent = `“${WORDS[token]}” contributes p log(p/q) = ${pi} × log(${pi} / ${qi}) = ${number4(usualTerms[token])} nats. In the form without cancellation it contributes p φ(log(q/p)) = ${number4(phiTerms[token])} nats, where φ(d) = e^d − 1 − d.`;
    warning.textContent = q.includes(0) ? "Top-p sampling sets the probability of the least likely tokens under Q to 0, but P gives these tokens positive probability. Therefore KL(P || Q) is infinite, while KL(Q || P) is finite." : "";
    updateEstimators();
    bars.redraw();
    contributions.redraw();
    estimators.redraw();
    if (termsPanel.open) fillTable(p, usualTerms, phiTerms, reverseTerms);
    noteState();
  });
  const fillTable = (p, usualTerms, phiTerms, reverseTerms) => termsTable.replaceChildren(table({
    caption: "Contributions, nats",
    columns: ["token", "P", "Q", "p log(p/q)", "p φ(log(q/p))", "q φ(log(p/q))"],
    rows: [...order.map((i) => [WORDS[i], ...[p[i], q[i], usualTerms[i], phiTerms[i], reverseTerms[i]].map(number4)]),
      ["sum", ...[p, q, usualTerms, phiTerms, reverseTerms].map((values) => number4(values.reduce((a, b) => a + b, 0)))]],
  }));
  const termsPanel = element("details", { class: "more" }, element("summary", {}, "All contributions as a table"), termsTable);
  termsPanel.addEventListener("toggle", () => update());

  const section = element("section", { class: "question", id: "next-token", "aria-labelledby": "next-token-title" },
    element("h2", { id: "next-token-title" }, "2. What does a token cost?"),
    element("p", { class: "lead" }, "P is the next-token distribution of a language model, here a bigram model of 13 words. Q is a changed copy, for example after fine-tuning. KL(P || Q) is the increase of the mean log-loss, in nats, when tokens drawn from P are predicted with Q. Every token of the sentence is coloured by the KL of its position; select one."),
    sentence, total, positionControl.row, numbers.list,
    element("p", { class: "key-row" }, element("span", { class: "key-p" }, "P"), element("span", { class: "key-q" }, "Q"), element("span", {}, "Drag the handles of Q. The rows are sorted by their contribution.")),
    element("div", { class: "pair" }, bars.figure, contributions.figure), spelled,
    element("div", { class: "controls" }, element("div", { class: "slider" }, element("label", { for: "token" }, "token"), tokenChoice), probabilityControl.row, temperatureControl.row, topPControl.row),
    warning, termsPanel,
    element("h3", { class: "part" }, "Estimates from sampled tokens"),
    element("p", { class: "lead" }, "During training the KL is often estimated from the sampled tokens alone. k1 and k3 have the KL as their expectation; k2 is biased. k1 can be negative."),
    estimators.figure, element("div", { class: "controls" }, samplesControl.row),
    pressButton("Draw other samples", () => { seed += 1; update(); }, { id: "draw" }), estimatorTable);

  const ranged = (text, low, high, fallback) => {
    const values = numbersIn(text, 1);
    return values && values[0] >= low && values[0] <= high ? values[0] : fallback;
  };
  return {
    section,
    start: () => {
      keepInAddress("bias", {
        get: () => (biases.every((value, i) => value === START_BIASES[i]) ? undefined : biases.map(String).join(",")),
        set: (text) => { biases = numbersIn(text, WORDS.length)?.map((value) => Math.min(30, Math.max(-30, value))) ?? [...START_BIASES]; update(); },
      });
      keepInAddress("temperature", { get: () => (temperature === 1 ? undefined : String(temperature)), set: (text) => { temperature = ranged(text, 0.2, 3, 1); temperatureControl.set(temperature); update(); } });
      keepInAddress("top-p", { get: () => (topP === 1 ? undefined : String(topP)), set: (text) => { topP = ranged(text, 0.3, 1, 1); topPControl.set(topP); update(); } });
      keepInAddress("position", { get: () => (position === 1 ? undefined : String(position + 1)), set: (text) => choosePosition(Math.round(ranged(text, 1, SENTENCE.length, 2)) - 1) });
      keepInAddress("token", { get: () => (token === 2 ? undefined : WORDS[token]), set: (text) => { token = Math.max(0, WORDS.indexOf(text ?? "cat")); update(); } });
      keepInAddress("samples", { get: () => (samples === 16 ? undefined : String(samples)), set: (text) => { samples = Math.round(ranged(text, 1, 256, 16)); samplesControl.set(samples); update(); } });
      keepInAddress("seed", { get: () => (seed === 1 ? undefined : String(seed)), set: (text) => { seed = Math.round(ranged(text, 1, 1e9, 1)); update(); } });
      update();
    },
  };
}
