// Completions of training runs: a row for each prompt, a column for each run and evaluation.

import { format } from "./axes.js";
import { swatch } from "./chart.js";
import { element } from "./elements.js";

const LEVELS = [0.01, 0.03, 0.1, 0.3, 1, 3]; // nats: the tint of a token is the number of levels that its KL reaches
const MAX_WORDS = 500; // of a text that is compared word by word

/** The parts of `text`, and whether each is outside of the longest common subsequence with the words of `base`. */
export function changedWords(base, text) {
  const [a, b] = [base, text].map((one) => one.match(/\s+|[^\s]+/g) ?? []);
  if (a.length > MAX_WORDS || b.length > MAX_WORDS) return b.map((word) => [word, false]);
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
  }
  const words = [];
  for (let [i, j] = [0, 0]; j < b.length;) {
    if (i < a.length && a[i] === b[j]) [i, j] = [i + 1, words.push([b[j], false]) && j + 1];
    else if (i < a.length && lengths[i + 1][j] >= lengths[i][j + 1]) i += 1;
    else j = words.push([b[j], b[j].trim() !== ""]) && j + 1;
  }
  // Changed words with only a space between them are one change.
  const isChanged = words.map(([word, changed], i) => changed || (word.trim() === "" && Boolean(words[i - 1]?.[1] && words[i + 1]?.[1])));
  const parts = [];
  words.forEach(([word], i) => {
    if (parts.length && parts.at(-1)[1] === isChanged[i]) parts.at(-1)[0] += word;
    else parts.push([word, isChanged[i]]);
  });
  return parts;
}

const stepOf = (when) => (when === "before" ? -1 : when === "after" ? Infinity : Number(when.slice("step ".length)));
const labelOf = (when) => (when === "before" ? "Before training" : when === "after" ? "After training" : `Step ${stepOf(when).toLocaleString("en-US")}`);

/** The evaluations of all runs that have completions, in the order of the steps. */
const evaluationsOf = (runs) => [...new Set(runs.flatMap(({ samples }) => Object.keys(samples)))].sort((a, b) => stepOf(a) - stepOf(b));

/** The last evaluation of a run. */
const lastOf = ({ samples }) => evaluationsOf([{ samples }]).at(-1);

/** The prompts of all runs with the completions of some evaluations. Those before training that are the same in all runs are shown once. */
function promptsOf(runs, isShown) {
  const items = new Map();
  const before = runs.map(({ samples }) => JSON.stringify(samples.before));
  const isSame = runs.length > 1 && new Set(before).size === 1;
  for (const when of evaluationsOf(runs)) {
    const once = when === "before" && isSame;
    (once ? runs.slice(0, 1) : runs).forEach(({ samples }, run) => {
      if (!isShown(when, runs[run])) return;
      const occurrences = new Map();
      for (const sample of samples[when] ?? []) {
        const number = (occurrences.get(sample.prompt) ?? 0) + 1;
        occurrences.set(sample.prompt, number);
        const id = JSON.stringify([sample.prompt, number]);
        if (!items.has(id)) items.set(id, { prompt: sample.prompt, columns: sample.columns, cells: [] });
        items.get(id).cells.push({ ...sample, run: once ? null : run, when });
      }
    });
  }
  return [...items.values()];
}

const largestKl = ({ cells }) => Math.max(-Infinity, ...cells.flatMap(({ tokens }) => tokens.map(([, kl]) => kl ?? -Infinity)));
const lowestReward = (name) => ({ cells }) => Math.min(Infinity, ...cells.filter(({ when }) => when !== "before").map(({ rewards }) => Object.fromEntries(rewards)[name] ?? Infinity));

/** The section of the completions, or null without any. `chosen` keeps the selections of the reader when the section is drawn again. */
export function completions(runs, chosen = {}) {
  const isFirstOrLast = (when, run) => when === "before" || when === lastOf(run);
  const all = promptsOf(runs, () => true);
  if (all.length === 0) return null;
  const names = runs.map(({ name }) => name);
  const watched = runs.flatMap(({ config }) => (Array.isArray(config.watched) ? config.watched.map(String) : []));
  const rewards = [...new Set([...watched, ...all.flatMap(({ cells }) => cells.flatMap((cell) => cell.rewards.map(([name]) => name)))])];
  const hasTokens = all.some(({ cells }) => cells.some(({ tokens }) => tokens.length));
  const during = evaluationsOf(runs).filter((when) => when.startsWith("step"));
  const columns = {
    "first and last": isFirstOrLast,
    ...(during.length ? { "every stored evaluation": () => true } : {}),
    ...Object.fromEntries(during.map((when) => [`before training and ${labelOf(when).toLowerCase()}`, (one) => one === "before" || one === when])),
  };
  const orders = {
    "order of the file": null,
    ...Object.fromEntries(rewards.map((name) => [`lowest ${name}${watched.includes(name) ? " (true reward)" : ""}`, lowestReward(name)])),
    ...(hasTokens ? { "largest KL of a token": (item) => -largestKl(item) } : {}),
  };
  const marks = { "words that differ from before training": "changes", ...(hasTokens ? { "KL of each token": "kl" } : {}), nothing: "" };
  const pickers = { show: ["Show", columns], order: ["Sort by", orders], mark: ["Mark", marks] };
  const selected = (key) => Object.entries(pickers[key][1]).find(([name]) => name === chosen[key]) ?? Object.entries(pickers[key][1])[0];
  function picker(key) {
    const [label, options] = pickers[key];
    const select = element("select", { name: key }, Object.keys(options).map((one) => element("option", {}, one)));
    [select.value] = selected(key);
    select.addEventListener("change", () => { chosen[key] = select.value; draw(); });
    return element("label", { class: "picker" }, label, select);
  }
  let mark = "";
  const list = element("ol", { class: "samples" });
  const scale = element("p", { class: "scale", hidden: "" }, "KL of a token in nats: ", LEVELS.map((level, i) => element("span", { class: `token k${i + 1}` }, `≥ ${level}`)));
  const total = Math.max(...runs.map(({ samplesTotal }) => samplesTotal), 0);
  const note = all.length < total ? `${all.length} of ${total} prompts.` : `${all.length} ${all.length === 1 ? "prompt" : "prompts"}.`;

  function textOf({ completion, tokens, when }, base) {
    if (mark === "kl" && tokens.length) {
      return tokens.map(([text, kl]) => element("span", { class: `token k${LEVELS.filter((level) => kl >= level).length}`, title: kl === null ? "" : `${format(kl, 3)} nats` }, text));
    }
    if (mark === "changes" && base && when !== "before") {
      return changedWords(base.completion, completion).map(([word, isChanged]) => (isChanged ? element("mark", {}, word) : word));
    }
    return [completion];
  }

  function cellOf(cell, base) {
    const { run, completion, rewards: some, tokens } = cell;
    const label = labelOf(cell.when);
    const heading = run === null || names.length === 1 ? label : [swatch(run, names[run]), `, ${label.toLowerCase()}`];
    const sum = tokens.length ? [["KL, nats", tokens.reduce((total_, [, kl]) => total_ + (kl ?? NaN), 0)]] : [];
    const pair = ([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { "data-value": value ?? "" }, format(value)));
    // A region that can be scrolled needs the focus; a short text does not scroll.
    const isLong = completion.length > 600;
    const region = isLong ? { tabindex: 0, role: "region", "aria-label": run === null ? label : `${names[run]}, ${label}` } : {};
    return element("section", {}, element("h3", {}, heading), element("p", { class: "completion", dir: "auto", ...region }, textOf(cell, base)), element("dl", { class: "rewards" }, [...some, ...sum].map(pair)));
  }

  function draw() {
    mark = selected("mark")[1];
    const [items, order] = [promptsOf(runs, selected("show")[1]), selected("order")[1]];
    const sorted = order ? items.toSorted((a, b) => order(a) - order(b)) : items;
    scale.hidden = mark !== "kl";
    list.replaceChildren(...sorted.map(({ prompt, columns, cells }) => {
      const before = (cell) => cells.find(({ run, when }) => when === "before" && (run === null || run === cell.run));
      const grid = element("div", { class: "cells" }, cells.map((cell) => cellOf(cell, before(cell))));
      grid.style.setProperty("--columns", cells.length);
      return element("li", {}, element("p", { class: "prompt", dir: "auto" }, prompt),
        columns.length > 0 && element("dl", { class: "rewards" }, columns.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))), grid);
    }));
  }
  draw();
  const tools = element("div", { class: "row" }, during.length > 0 && picker("show"), picker("order"), picker("mark"));
  return element("section", {}, element("h2", {}, "Completions"), element("p", { class: "aside" }, note), tools, scale, list);
}
