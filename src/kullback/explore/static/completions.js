// Completions of training runs: a row for each prompt, a column for each run before and after training.

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

/** The prompts of all runs with their completions. Completions before training that are the same in all runs are shown once. */
function promptsOf(runs) {
  const items = new Map();
  const before = runs.map(({ samples }) => JSON.stringify(samples.before));
  const isSame = runs.length > 1 && new Set(before).size === 1;
  for (const [when, label] of [["before", "Before training"], ["after", "After training"]]) {
    const once = when === "before" && isSame;
    (once ? runs.slice(0, 1) : runs).forEach(({ samples }, run) => {
      const occurrences = new Map();
      for (const sample of samples[when] ?? []) {
        const number = (occurrences.get(sample.prompt) ?? 0) + 1;
        occurrences.set(sample.prompt, number);
        const id = JSON.stringify([sample.prompt, number]);
        if (!items.has(id)) items.set(id, { prompt: sample.prompt, columns: sample.columns, cells: [] });
        items.get(id).cells.push({ ...sample, run: once ? null : run, label });
      }
    });
  }
  return [...items.values()];
}

const largestKl = ({ cells }) => Math.max(-Infinity, ...cells.flatMap(({ tokens }) => tokens.map(([, kl]) => kl ?? -Infinity)));
const lowestReward = (name) => ({ cells }) => Math.min(Infinity, ...cells.filter(({ label }) => label.startsWith("After")).map(({ rewards }) => Object.fromEntries(rewards)[name] ?? Infinity));

/** The section of the completions, or null without any. */
export function completions(runs) {
  const items = promptsOf(runs);
  if (items.length === 0) return null;
  const names = runs.map(({ name }) => name);
  const watched = runs.flatMap(({ config }) => (Array.isArray(config.watched) ? config.watched.map(String) : []));
  const rewards = [...new Set([...watched, ...items.flatMap(({ cells }) => cells.flatMap((cell) => cell.rewards.map(([name]) => name)))])];
  const hasTokens = items.some(({ cells }) => cells.some(({ tokens }) => tokens.length));
  const orders = {
    "order of the file": null,
    ...Object.fromEntries(rewards.map((name) => [`lowest ${name}${watched.includes(name) ? " (true reward)" : ""} after training`, lowestReward(name)])),
    ...(hasTokens ? { "largest KL of a token": (item) => -largestKl(item) } : {}),
  };
  const marks = { "words that differ from before training": "changes", ...(hasTokens ? { "KL of each token": "kl" } : {}), nothing: "" };
  const picker = (label, options, change) => {
    const select = element("select", {}, Object.keys(options).map((one) => element("option", {}, one)));
    select.addEventListener("change", () => change(options[select.value]));
    return element("label", { class: "picker" }, label, select);
  };
  let [order, mark] = [null, "changes"];
  const list = element("ol", { class: "samples" });
  const scale = element("p", { class: "scale", hidden: "" }, "KL of a token in nats: ", LEVELS.map((level, i) => element("span", { class: `token k${i + 1}` }, `≥ ${level}`)));
  const total = Math.max(...runs.map(({ samplesTotal }) => samplesTotal), 0);
  const note = items.length < total ? `${items.length} of ${total} prompts.` : `${items.length} ${items.length === 1 ? "prompt" : "prompts"}.`;

  function textOf({ completion, tokens, label }, base) {
    if (mark === "kl" && tokens.length) {
      return tokens.map(([text, kl]) => element("span", { class: `token k${LEVELS.filter((level) => kl >= level).length}`, title: kl === null ? "" : `${format(kl, 3)} nats` }, text));
    }
    if (mark === "changes" && base && label.startsWith("After")) {
      return changedWords(base.completion, completion).map(([word, isChanged]) => (isChanged ? element("mark", {}, word) : word));
    }
    return [completion];
  }

  function cellOf(cell, base) {
    const { run, label, completion, rewards: some, tokens } = cell;
    const heading = run === null || names.length === 1 ? label : [swatch(run, names[run]), `, ${label.toLowerCase()}`];
    const sum = tokens.length ? [["KL, nats", tokens.reduce((total_, [, kl]) => total_ + (kl ?? NaN), 0)]] : [];
    const pair = ([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { "data-value": value ?? "" }, format(value)));
    // A region that can be scrolled needs the focus; a short text does not scroll.
    const isLong = completion.length > 600;
    const region = isLong ? { tabindex: 0, role: "region", "aria-label": run === null ? label : `${names[run]}, ${label}` } : {};
    return element("section", {}, element("h3", {}, heading), element("p", { class: "completion", dir: "auto", ...region }, textOf(cell, base)), element("dl", { class: "rewards" }, [...some, ...sum].map(pair)));
  }

  function draw() {
    const sorted = order ? items.toSorted((a, b) => order(a) - order(b)) : items;
    scale.hidden = mark !== "kl";
    list.replaceChildren(...sorted.map(({ prompt, columns, cells }) => {
      const before = (cell) => cells.find(({ run, label }) => label.startsWith("Before") && (run === null || run === cell.run));
      const grid = element("div", { class: "cells" }, cells.map((cell) => cellOf(cell, before(cell))));
      grid.style.setProperty("--columns", cells.length);
      return element("li", {}, element("p", { class: "prompt", dir: "auto" }, prompt),
        columns.length > 0 && element("dl", { class: "rewards" }, columns.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))), grid);
    }));
  }
  draw();
  const tools = element("div", { class: "row" },
    picker("Sort by", orders, (chosen) => { order = chosen; draw(); }), picker("Mark", marks, (chosen) => { mark = chosen; draw(); }));
  return element("section", {}, element("h2", {}, "Completions"), element("p", { class: "aside" }, note), tools, scale, list);
}
