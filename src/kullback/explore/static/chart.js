// Charts, tables and sample lists for Kullback's pages: SVG and text, no dependency, no build step.
//
// chart(spec): spec = { id, title, note, groups: [name], x: { label, integer },
//                y: { label, log, toggle, zero, min, max, logMin }, lines: [{ value, low, high, label, group }], series: [series] }
//   series = { name, group: index, x: [number], values: [number or null], low, high: bounds alike, or absent,
//              spans: [[first, last]] when a point stands for many, mark: "line" or "points", faint, dash: index, last: { x, value } }
//   The groups are the runs of the page, unless the chart names its own. Colour and marker say the group; dash, and filled or hollow, say the name. null is a gap.
// table({ caption, columns, rows }), of strings. samples([{ prompt, cells: [{ label, completion, rewards }] }]).
//
// Everything that comes from outside is set as text, never as markup.

import { domain, format, logTicks, nearest, runs, scale, tickLabels, ticks } from "./axes.js";

// ---- elements ----

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
  node.append(...children.flat().filter((child) => child || child === ""));
  return node;
}

/** An HTML element; children are nodes, or strings, which become text. */
export const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element, alike. */
export const shape = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Tells the width of a node, at first and at every change. */
export function onWidth(node, told) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now > 0 && now !== width) told((width = now));
  }).observe(node);
}

// Circle, square, triangle up, diamond, triangle down, plus: drawn about the origin, one unit large.
const MARKERS = [
  "M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0Z", "M-.9,-.9h1.8v1.8h-1.8Z", "M0,-1.2l1.2,2.1h-2.4Z",
  "M0,-1.3l1.3,1.3l-1.3,1.3l-1.3,-1.3Z", "M0,1.2l1.2,-2.1h-2.4Z", "M-1.2,0h2.4M0,-1.2v2.4",
];
const marker = (group, dash, x, y, size = 3) => shape("path", {
  class: dash ? "marker hollow" : "marker", d: MARKERS[group % MARKERS.length], transform: `translate(${x},${y}) scale(${size})`,
});

const key = (group, { dash, mark, faint }) => shape("svg", { class: faint ? "key faint" : "key", viewBox: "0 0 26 10", width: 26, height: 10, "aria-hidden": true },
  shape("path", { class: `line d${dash}`, d: "M1,5H25" }), mark === "points" && marker(group, dash, 13, 5));

/** The name of a group behind its colour and marker. */
export const swatch = (group, name) =>
  element("span", { class: `swatch c${group}` }, key(group, { dash: 0, mark: "points" }), element("bdi", {}, name));

/** A table of strings; the first cell of each row heads it. */
export function table({ caption, columns, rows }, attributes = {}) {
  const cells = (row) => row.map((cell, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }, cell));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element("table", attributes, element("caption", {}, caption),
      element("thead", {}, element("tr", {}, columns.map((column) => element("th", { scope: "col" }, column)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, cells(row))))));
}

// ---- the chart ----

function uncertainty({ low, high, spans }, i) {
  if (!Number.isFinite(low?.[i]) || !Number.isFinite(high?.[i])) return "";
  return spans ? `${format(low[i], 3)} to ${format(high[i], 3)}` : `± ${format((high[i] - low[i]) / 2, 2)}`;
}

function dataTable({ title, groups, series, x }, stops) {
  const index = series.map((one) => new Map(one.x.map((value, i) => [value, i])));
  const text = (one, i) => (Number.isFinite(one.values[i]) ? `${format(one.values[i], 6)} ${uncertainty(one, i)}` : "");
  return table({
    caption: `${title}: data`,
    columns: [x.label, ...series.map((one) => `${groups[one.group]}, ${one.name}`)],
    rows: stops.map((stop) => [format(stop, 12), ...series.map((one, k) => text(one, index[k].get(stop)))]),
  });
}

/** A figure: an SVG whose cursor the arrow keys and the pointer move, a legend that reads it out, and the data as a table. */
export function chart(spec) {
  const { series, groups, lines = [] } = spec;
  const stops = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const id = `chart-${spec.id}`;
  let [log, width, at, place] = [Boolean(spec.y.log), 0, stops.length - 1, null];

  const outcome = series.filter((one) => one.last).map((one) =>
    `${groups[one.group]}, ${one.name}: ${format(one.last.value)} at ${spec.x.label} ${format(one.last.x)}.`);
  const heading = [
    shape("title", { id: `${id}-title` }, `${spec.title}, ${spec.y.label}`),
    shape("desc", { id: `${id}-desc` }, [spec.note, ...outcome, "The arrow keys move the cursor."].filter(Boolean).join(" ")),
  ];
  const svg = shape("svg", {
    role: "slider", tabindex: 0, "aria-labelledby": `${id}-title`, "aria-describedby": `${id}-desc`,
    "aria-valuemin": stops[0], "aria-valuemax": stops.at(-1),
  });

  // The legend doubles as the readout: a column for each group, a row for each name, the values under the cursor.
  const position = element("th", { scope: "col", class: "position" });
  const cells = series.map(() => element("td"));
  const columns = groups.map((_, group) => group).filter((group) => series.some((one) => one.group === group));
  const rows = [...Map.groupBy(series, (one) => one.name)].map(([name, some]) => element("tr", {},
    element("th", { scope: "row" }, key(0, some.find((one) => one.faint) ?? some[0]), name),
    columns.map((group) => cells[series.findIndex((one) => one.group === group && one.name === name)] ?? element("td"))));
  const legend = element("div", { class: "scroll" }, element("table", { class: "legend" },
    element("thead", {}, element("tr", {}, position, columns.map((group) => element("th", { scope: "col" }, swatch(group, groups[group]))))),
    element("tbody", {}, rows)));

  function moveTo(index) {
    at = Math.max(0, Math.min(stops.length - 1, index));
    let where = "";
    const spoken = series.map((one, k) => {
      const i = nearest(one.x, stops[at]);
      const [from, to] = one.spans?.[i] ?? [one.x[i], one.x[i]];
      const here = from <= stops[at] && stops[at] <= to;
      if (here && from < to) where ||= `${spec.x.label}s ${format(from, 12)}–${format(to, 12)}`;
      const aside = `${uncertainty(one, i)} ${here ? "" : `at ${format(one.x[i])}`}`.trim();
      cells[k].replaceChildren(format(one.values[i]), " ", element("small", {}, aside));
      Object.assign(cells[k].dataset, { x: one.x[i], value: one.values[i] ?? "" });
      return `${groups[one.group]}, ${one.name} ${format(one.values[i])} ${aside}`.trim();
    });
    where ||= `${spec.x.label} ${format(stops[at], spec.x.integer ? 12 : 4)}`;
    position.textContent = where;
    fill(svg, { "aria-valuenow": stops[at], "aria-valuetext": `${where}: ${spoken.join("; ")}` }, []);
    place?.();
  }

  function redraw() {
    const height = Math.round(Math.max(190, Math.min(260, width * 0.52)));
    const shown = (value) => Number.isFinite(value) && (!log || value > 0);
    const numbers = [...series.flatMap((one) => [one.values, one.low ?? [], one.high ?? []].flat()), ...lines.flatMap((one) => [one.low, one.high])];
    const yDomain = domain(numbers, { ...spec.y, log, min: (log ? spec.y.logMin : spec.y.min) ?? null });
    const xDomain = stops.length > 1 ? [stops[0], stops.at(-1)] : [stops[0] - 1, stops[0] + 1];
    const yTicks = (log ? logTicks : ticks)(...yDomain, height / 40);
    const yLabels = log ? yTicks.map((tick) => format(tick)) : tickLabels(yTicks);
    const [left, right, top, bottom] = [14 + 7 * Math.max(...yLabels.map((label) => label.length)), width - 18, 26, height - 34];
    const xTicks = ticks(...xDomain, Math.min(8, (right - left) / 70), spec.x.integer);
    const x = scale(xDomain, [left, right]);
    const y = scale(yDomain, [bottom, top], log);
    const text = (label, at, over, anchor, name = "") => shape("text", { class: name, x: at, y: over, "text-anchor": anchor }, label);
    const across = (value) => shape("line", { x1: left, x2: right, y1: y(value), y2: y(value) });

    const axes = shape("g", { class: "axes" },
      yTicks.map((tick, i) => [across(tick), text(yLabels[i], left - 8, y(tick) + 4, "end")]).flat(),
      xTicks.map((tick, i) => text(tickLabels(xTicks)[i], x(tick), bottom + 17, "middle")),
      text(spec.y.label + (log ? " (log scale)" : ""), 0, 12, "start"), text(spec.x.label, right, height - 4, "end"));
    const limits = lines.map(({ group, value, low, high }) => shape("g", { class: `limit c${group}` },
      shape("rect", { class: "band", x: left, width: right - left, y: y(high), height: y(low) - y(high) }), across(value)));
    // From the top down, each below the one before it.
    let lowest = -Infinity;
    const labels = lines.toSorted((one, other) => other.high - one.high).map((line) =>
      text(line.label, right - 4, (lowest = Math.max(y(line.high) - 5, lowest + 12)), "end", "limit-label"));

    const curves = series.map((one) => {
      const parts = runs(one.values, shown);
      const to = (values) => (i) => `${x(one.x[i]).toFixed(1)},${y(values[i]).toFixed(1)}`;
      const path = (name, pieces) => shape("path", { class: name, d: pieces.join("") });
      const outline = (part) => `M${part.map(to(one.high)).join("L")}L${part.toReversed().map(to(one.low)).join("L")}Z`;
      const whisker = (i) => `M${to(one.high)(i)}V${shown(one.low[i]) ? y(one.low[i]) : bottom}`;
      const bounds = one.spans ? ["band", runs(one.low ?? [], shown).map(outline)] : ["whisker", runs(one.high ?? [], shown).flat().map(whisker)];
      const crowd = parts.flat().length;
      // A value between two gaps has no line to show it; a hundred markers would hide theirs.
      const dots = one.mark === "points" && crowd <= 100 ? parts.flat() : parts.filter((part) => part.length === 1).flat();
      return shape("g", {
        class: `series c${one.group}${one.faint ? " faint" : ""}`, "data-group": groups[one.group], "data-name": one.name,
        "data-count": crowd, "data-last-x": one.last?.x, "data-last-value": one.last?.value,
      }, path(...bounds), path(`line d${one.dash}`, parts.map((part) => `M${part.map(to(one.values)).join("L")}`)),
      dots.map((i) => marker(one.group, one.dash, x(one.x[i]), y(one.values[i]), crowd > 40 ? 2 : 3)));
    });
    const clip = shape("clipPath", { id: `${id}-clip` }, shape("rect", { x: left - 6, y: top - 6, width: right - left + 12, height: bottom - top + 6 }));
    const cursor = shape("g", { class: "cursor" });
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...heading, clip, axes, shape("g", { "clip-path": `url(#${id}-clip)` }, limits, curves), ...labels, cursor);

    place = () => {
      const here = x(stops[at]);
      const dots = series.map((one) => [one, nearest(one.x, stops[at])]).filter(([one, i]) => shown(one.values[i]) && y(one.values[i]) <= bottom);
      cursor.replaceChildren(shape("line", { x1: here, x2: here, y1: top, y2: bottom }),
        ...dots.map(([one, i]) => shape("circle", { class: `c${one.group}`, cx: x(one.x[i]), cy: y(one.values[i]), r: 4 })));
    };
    svg.onpointermove = (event) => {
      const box = svg.getBoundingClientRect();
      const along = (((event.clientX - box.left) / box.width) * width - left) / (right - left);
      moveTo(nearest(stops, xDomain[0] + along * (xDomain[1] - xDomain[0])));
    };
    moveTo(at);
  }

  const leap = Math.max(1, Math.round(stops.length / 10));
  const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -leap, PageUp: leap, Home: -Infinity, End: Infinity };
  svg.addEventListener("keydown", (event) => {
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moveTo(at + moves[event.key]);
  });
  svg.addEventListener("pointerleave", () => moveTo(Infinity));

  const toggle = spec.y.toggle && element("button", { type: "button", "aria-pressed": log }, "log scale");
  if (toggle) toggle.onclick = () => {
    log = !log;
    toggle.setAttribute("aria-pressed", log);
    redraw();
  };
  // A table of a long run has thousands of cells: it is built when it is opened.
  const data = element("details", { class: "data" }, element("summary", {}, "Data table"));
  data.addEventListener("toggle", () => data.childElementCount === 1 && data.append(dataTable(spec, stops)));

  const caption = element("figcaption", {}, element("h3", {}, spec.title), toggle, spec.note && element("p", {}, spec.note));
  const figure = element("figure", { class: "chart", id }, caption, svg, legend, data);
  onWidth(figure, (now) => {
    width = now;
    redraw();
  });
  return figure;
}

// ---- samples ----

/** Prompts, each with the completions to compare side by side and their rewards. */
export function samples(items) {
  const reward = ([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { "data-value": value ?? "" }, format(value)));
  const cell = ({ label, completion, rewards }) => element("section", {}, element("h4", {}, label),
    element("p", { class: "completion", dir: "auto", tabindex: 0, role: "region", "aria-label": label }, completion),
    element("dl", { class: "rewards" }, rewards.map(reward)));
  return element("ol", { class: "samples" }, items.map(({ prompt, cells }) => element("li", {},
    element("p", { class: "prompt", dir: "auto" }, prompt), element("div", { class: "cells" }, cells.map(cell)))));
}
