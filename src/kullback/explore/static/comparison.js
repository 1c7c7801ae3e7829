// The page of a comparison: from the data of `comparison_data` in compare/page.py to the sections of the page.

import { format } from "./axes.js";
import { chart, element, table } from "./chart.js";

const PART = 2000; // tokens that are in the page at a time

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** The KL of the tokens of a document in nats, from the 16 leading bits of each float32. */
function klValues(text) {
  const codes = new DataView(bytes(text).buffer);
  const whole = new DataView(new ArrayBuffer(4));
  return Float32Array.from({ length: codes.byteLength / 2 }, (_, i) => {
    whole.setUint32(0, codes.getUint16(2 * i, true) * 65536);
    return whole.getFloat32(0);
  });
}

/** The number of percentiles of the model that a KL exceeds, from 0 to 6. */
const level = (kl, bounds) => bounds.filter(([, bound]) => kl > 0 && kl >= Number(bound)).length;

const nats = (value, digits = 3) => (Number(value) === Infinity ? "∞" : format(Number(value), digits));
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "(part of a character)";

function select(label, names, onChange) {
  const choice = element("select", { "aria-label": label }, names.map((name, i) => element("option", { value: i }, name)));
  choice.onchange = () => onChange(Number(choice.value));
  return [choice, element("label", { class: "picker" }, element("span", {}, label), choice)];
}

function alternatives(title, entries) {
  return element("div", {}, element("dt", {}, title),
    element("dd", {}, entries.map(([token, prob]) => element("span", { class: "alternative" }, element("code", {}, visible(token)), " ", format(prob, 2)))));
}

/** The tokens of the largest KL of a model, with their context. */
function worstTokens(worst, bounds) {
  return element("ol", { class: "worst" }, worst.map((token) => element("li", {},
    element("p", { class: "aside" }, element("strong", { "data-kl": token.kl }, `${nats(token.kl, 4)} nats`), ` · ${token.name}, token ${token.position}`),
    element("p", { class: "excerpt", dir: "auto" }, token.before, element("mark", { class: `token k${level(Number(token.kl), bounds)}` }, token.token), token.after),
    element("dl", { class: "rewards" },
      element("div", {}, element("dt", {}, "probability of the token"), element("dd", {}, `base ${format(token.prob_base, 3)}, model ${format(token.prob, 3)}`)),
      alternatives("base", token.top_base), alternatives("model", token.top)))));
}

/** The KL of modules: a chart of the layers, and a table for each model. */
function moduleParts({ names, series, tables }) {
  const layers = series.length > 0 && chart({
    id: "modules", title: "KL(base || base with a layer of the model)", note: "The KL of the base from itself with one layer of the model, with 95% intervals.",
    groups: names, x: { label: "layer" }, y: { label: "nats per token", log: true, toggle: true },
    series: series.map((curve, group) => ({ ...curve, name: "KL", group, mark: "points", dash: 0 })),
  });
  return [layers && element("div", { class: "charts" }, layers), ...tables.map((rows) => table(rows, { class: "modules" }))].filter(Boolean);
}

/** The KL along sampled continuations: a chart by position, tables, and the continuations of the largest KL. */
function runningParts({ names, series, tables, examples }) {
  const positions = chart({
    id: "positions", title: "KL along continuations", note: "The mean KL of ranges of positions, at the first position of each, with 95% intervals.",
    groups: names, x: { label: "position" }, y: { label: "nats per token", log: true, toggle: true },
    series: series.map((curve) => ({ ...curve, mark: "points" })),
  });
  return [element("div", { class: "charts" }, positions), ...tables.map((rows) => table(rows, { class: "running" })),
    element("details", {}, element("summary", {}, `Continuations of the largest KL (${examples.length})`),
      element("ol", { class: "worst continuations" }, examples.map((one) => element("li", {},
        element("p", { class: "aside" }, element("strong", { "data-kl": one.kl }, `${nats(one.kl, 4)} nats`), ` · ${one.label} · ${one.name}, ${one.tokens} tokens`),
        element("p", { class: "excerpt", dir: "auto" }, one.prompt, element("mark", {}, one.text))))))];
}

/** The text of documents, coloured by the KL of each token; the pointer and the arrow keys select a token. */
function colouredText(page) {
  let [model, document_, part, current] = [0, 0, 0, null];
  const detail = element("dl", { class: "detail", "aria-live": "polite" });
  const text = element("div", { class: "tokens", dir: "auto", role: "group", "aria-label": "Text, coloured by KL" });
  const legend = element("p", { class: "scale" });
  const position = element("span", { class: "aside" });
  const worst = new Map();
  page.models.forEach(({ worst: tokens }, i) => tokens.forEach((token) => worst.set(`${i} ${token.name} ${token.position}`, token)));

  function show(span) {
    if (!span || span === current) return;
    current?.setAttribute("tabindex", -1);
    (current = span).setAttribute("tabindex", 0);
    const item = page.documents[document_];
    const index = Number(span.dataset.index);
    const at = index - item.first;
    const values = item.values[model];
    const entry = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value));
    const stored = worst.get(`${model} ${item.name} ${index}`);
    detail.replaceChildren(
      entry(`token ${index}`, element("code", {}, visible(item.tokens[index]))),
      ...(at < 0 || !values ? [entry("KL", at < 0 ? "not counted" : "not stored")] : [
        entry("KL(base || model)", `${nats(span.dataset.kl)} nats`),
        entry("log p, base", `−${nats(page.levels[bytes(values[1])[at]], 2)}`),
        entry("log q, model", `−${nats(page.levels[bytes(values[2])[at]], 2)}`)]),
      ...(stored ? [alternatives("most probable, base", stored.top_base), alternatives("most probable, model", stored.top)] : []));
  }

  function draw() {
    const item = page.documents[document_];
    const bounds = page.models[model].bounds;
    const values = item.values[model] && klValues(item.values[model][0]);
    const parts = Math.max(1, Math.ceil(item.tokens.length / PART));
    part = Math.max(0, Math.min(parts - 1, part));
    current = null;
    const begin = part * PART;
    text.replaceChildren(...item.tokens.slice(begin, begin + PART).map((token, i) => {
      const kl = values?.[begin + i - item.first];
      return element("span", { class: `token k${kl === undefined ? 0 : level(kl, bounds)}`, "data-index": begin + i, "data-kl": kl, tabindex: -1 }, token || "▏");
    }));
    legend.replaceChildren("KL from ", ...bounds.flatMap(([name, bound], i) => [element("span", { class: `token k${i + 1}` }, `${nats(bound, 2)} (${name})`), " "]));
    const last = Math.min(item.tokens.length, begin + PART);
    const cut = item.tokens.length < item.length ? `; the last ${(item.length - item.tokens.length).toLocaleString("en")} tokens are left out` : "";
    position.textContent = `Tokens ${begin} to ${last - 1} of ${item.length.toLocaleString("en")}${cut}.`;
    [previous.disabled, next.disabled] = [part === 0, part === parts - 1];
    for (const button of [previous, next]) button.hidden = parts === 1;
    show([...text.children].reduce((a, b) => (Number(b.dataset.kl ?? -1) > Number(a.dataset.kl ?? -1) ? b : a)));
    // The token of the largest KL is at the centre; the text has a height after it was attached to the page.
    requestAnimationFrame(() => (text.scrollTop = current.offsetTop - text.offsetTop - text.clientHeight / 2));
  }

  const button = (label, step) => {
    const node = element("button", { type: "button" }, label);
    node.onclick = () => ((part += step), draw());
    return node;
  };
  const [previous, next] = [button("Previous", -1), button("Next", 1)];
  const token = (node) => node?.closest?.(".tokens > span");
  text.addEventListener("pointerover", (event) => show(token(event.target)));
  text.addEventListener("focusin", (event) => show(token(event.target)));
  text.addEventListener("click", (event) => token(event.target)?.focus());
  text.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" };
    const to = { Home: text.firstElementChild, End: text.lastElementChild }[event.key] ?? current?.[moves[event.key]];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    to.focus();
  });
  const [, models] = select("Model", page.models.map(({ name }) => name), (i) => ((model = i), draw()));
  const [, documents] = select("Document", page.documents.map(({ name }) => name), (i) => ([document_, part] = [i, 0], draw()));
  draw();
  return [element("div", { class: "row" }, page.models.length > 1 && models, documents, previous, next), position, legend, text, detail];
}

/** The nodes of the page, in display order. */
export function comparison(page) {
  const section = (title, ...children) => element("section", {}, element("h2", {}, title), ...children);
  const note = (text) => element("p", { class: "aside" }, text);
  const count = (number) => number.toLocaleString("en");
  const groups = page.percentiles.map(({ name }) => name);
  const distribution = chart({
    id: "percentiles", title: "KL(base || model) of tokens", note: "The percentiles of the KL over all tokens. Zero and infinite percentiles are gaps.",
    groups, x: { label: "percentile" }, y: { label: "nats", log: true, toggle: true },
    series: page.percentiles.map(({ x, values }, group) => ({ name: "KL", group, x, values, mark: "points", dash: 0 })),
  });
  const complete = page.shown === page.counted;
  const left = complete ? "All tokens are shown." : `${count(page.shown)} of ${count(page.counted)} tokens are shown, from the ${count(page.documents.length)} of `
    + `${count(page.documents_total)} documents of the largest KL; ${count(page.counted - page.shown)} tokens are left out to limit the size of this file.`;
  return [
    table(page.summary, { class: "outcome" }),
    ...page.sentences.map((text) => element("p", { class: "notice" }, text)),
    section("Distribution", element("div", { class: "charts" }, distribution)),
    page.running && section("Free running", note("Each next token is sampled at temperature 1 from the whole distribution. Base samples have KL(base || model), model samples KL(model || base)."), ...runningParts(page.running)),
    page.modules && section("Modules", note("Each module of a model is put into the base. The remainder is the part of the KL that does not add up."), ...moduleParts(page.modules)),
    page.documents.length > 0 && section("Text",
      note(`${left} Documents are in the order of decreasing KL. The colour shows which percentile of the model a token exceeds. KL values are rounded to 0.4%, and log-probabilities to 2.3%.`),
      ...colouredText(page)),
    section("Tokens of the largest KL", ...page.models.map(({ name, worst, bounds }, i) => element("details", i ? {} : { open: "" },
      element("summary", {}, `${name} (${worst.length})`), worstTokens(worst, bounds)))),
    section("Where the KL is", ...page.models.map(({ groups: rows }) => table(rows, { class: "groups" }))),
  ].filter(Boolean);
}
