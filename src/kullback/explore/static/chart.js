// Charts, tables and lists of completions, as SVG and HTML elements without dependencies.
//
// chart(spec): spec = { id, title, note, groups: [name], x: { label, integer },
//                y: { label, log, toggle, zero, min, max, logMin }, lines: [{ value, low, high, label, group }],
//                xLines: [{ value, low, high, label, group }], series: [series] }
//   lines are horizontal, xLines are vertical. The x of a series need not increase: its points are joined in the order of the list.
//   series = { name, group: index, x: [number], values: [number or null], low and high: lists of bounds, optional,
//              spans: [[first, last]] when each point is the mean of a bucket, mark: "line" or "points", faint, dash: index, last: { x, value } }
//   Colour and marker shape show the group, which is usually a run; the dash pattern, and filled or hollow markers, show the name. null is a gap.
// table({ caption, columns, rows }), of strings. samples([{ prompt, columns: [[name, text]], cells: [{ run, label, completion, rewards }] }], names).
//
// Data is inserted as text, never as markup.

import { consecutive, domain, format, logTicks, nearest, scale, tickLabels, ticks } from "./axes.js";

// ---- elements ----

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
  node.append(...children.flat().filter((child) => child || child === ""));
  return node;
}

/** An HTML element; children are nodes or strings, and strings become text nodes. */
export const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element; children are nodes or strings. */
export const shape = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Calls `callback` with the width of a node, initially and at every change. */
export function onWidth(node, callback) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now > 0 && now !== width) callback((width = now));
  }).observe(node);
}

// Circle, square, triangle up, diamond, triangle down, plus: centred at the origin, with radius 1.
const MARKERS = [
  "M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0Z", "M-.9,-.9h1.8v1.8h-1.8Z", "M0,-1.2l1.2,2.1h-2.4Z",
  "M0,-1.3l1.3,1.3l-1.3,1.3l-1.3,-1.3Z", "M0,1.2l1.2,-2.1h-2.4Z", "M-1.2,0h2.4M0,-1.2v2.4",
];
const marker = (group, dash, x, y, size = 3) => shape("path", {
  class: dash ? "marker hollow" : "marker", d: MARKERS[group % MARKERS.length], transform: `translate(${x},${y}) scale(${size})`,
});

const key = (group, { dash, mark, faint }) => shape("svg", { class: faint ? "key faint" : "key", viewBox: "0 0 26 10", width: 26, height: 10, "aria-hidden": true },
  shape("path", { class: `line d${dash}`, d: "M1,5H25" }), mark === "points" && marker(group, dash, 13, 5));

/** The name of a group after its colour and marker. */
export const swatch = (group, name) =>
  element("span", { class: `swatch c${group}` }, key(group, { dash: 0, mark: "points" }), element("bdi", {}, name));

/** A table of strings; the first cell of each row is the row header. */
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

function dataTable({ title, groups, series, x }, xValues) {
  const index = series.map((curve) => new Map(curve.x.map((value, i) => [value, i])));
  const text = (curve, i) => (Number.isFinite(curve.values[i]) ? `${format(curve.values[i], 6)} ${uncertainty(curve, i)}` : "");
  return table({
    caption: `${title}: data`,
    columns: [x.label, ...series.map((curve) => `${groups[curve.group]}, ${curve.name}`)],
    rows: xValues.map((value) => [format(value, 12), ...series.map((curve, k) => text(curve, index[k].get(value)))]),
  });
}

/** The function that returns the index of the point of a curve whose x is nearest to a value. */
function nearestIndex({ x }) {
  const order = x.map((_, i) => i).sort((i, j) => x[i] - x[j]);
  const sorted = order.map((i) => x[i]);
  return (value) => order[nearest(sorted, value)];
}

/** A figure: an SVG with a cursor for the arrow keys and the pointer, a legend with the values at the cursor, and a data table. */
export function chart(spec) {
  const { series, groups, lines = [], xLines = [] } = spec;
  const nearestPoint = series.map(nearestIndex);
  const xValues = [...new Set(series.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  const id = `chart-${spec.id}`;
  let [log, width, at, placeCursor] = [Boolean(spec.y.log), 0, xValues.length - 1, null];

  const lastValues = series.filter((curve) => curve.last).map((curve) =>
    `${groups[curve.group]}, ${curve.name}: ${format(curve.last.value)} at ${spec.x.label} ${format(curve.last.x)}.`);
  const heading = [
    shape("title", { id: `${id}-title` }, `${spec.title}, ${spec.y.label}`),
    shape("desc", { id: `${id}-desc` }, [spec.note, ...lastValues, "Use the arrow keys to move the cursor."].filter(Boolean).join(" ")),
  ];
  const svg = shape("svg", {
    role: "slider", tabindex: 0, "aria-labelledby": `${id}-title`, "aria-describedby": `${id}-desc`,
    "aria-valuemin": xValues[0], "aria-valuemax": xValues.at(-1),
  });

  // The legend shows the values at the cursor, with a column for each group and a row for each name.
  const cursorLabel = element("th", { scope: "col", class: "position" });
  const cells = series.map(() => element("td"));
  const columns = groups.map((_, group) => group).filter((group) => series.some((curve) => curve.group === group));
  const rows = [...Map.groupBy(series, (curve) => curve.name)].map(([name, some]) => element("tr", {},
    element("th", { scope: "row" }, key(0, some.find((curve) => curve.faint) ?? some[0]), name),
    columns.map((group) => cells[series.findIndex((curve) => curve.group === group && curve.name === name)] ?? element("td"))));
  const legend = element("div", { class: "scroll" }, element("table", { class: "legend" },
    element("thead", {}, element("tr", {}, cursorLabel, columns.map((group) => element("th", { scope: "col" }, swatch(group, groups[group]))))),
    element("tbody", {}, rows)));

  function moveTo(index) {
    at = Math.max(0, Math.min(xValues.length - 1, index));
    let where = "";
    const spokenValues = series.map((curve, k) => {
      const i = nearestPoint[k](xValues[at]);
      const [from, to] = curve.spans?.[i] ?? [curve.x[i], curve.x[i]];
      const isHere = from <= xValues[at] && xValues[at] <= to;
      if (isHere && from < to) where ||= `${spec.x.label}s ${format(from, 12)}–${format(to, 12)}`;
      const detail = `${uncertainty(curve, i)} ${isHere ? "" : `at ${format(curve.x[i])}`}`.trim();
      cells[k].replaceChildren(format(curve.values[i]), " ", element("small", {}, detail));
      Object.assign(cells[k].dataset, { x: curve.x[i], value: curve.values[i] ?? "" });
      return `${groups[curve.group]}, ${curve.name} ${format(curve.values[i])} ${detail}`.trim();
    });
    where ||= `${spec.x.label} ${format(xValues[at], spec.x.integer ? 12 : 4)}`;
    cursorLabel.textContent = where;
    fill(svg, { "aria-valuenow": xValues[at], "aria-valuetext": `${where}: ${spokenValues.join("; ")}` }, []);
    placeCursor?.();
  }

  function redraw() {
    const height = Math.round(Math.max(190, Math.min(260, width * 0.52)));
    const shown = (value) => Number.isFinite(value) && (!log || value > 0);
    const numbers = [...series.flatMap((curve) => [curve.values, curve.low ?? [], curve.high ?? []].flat()), ...lines.flatMap((line) => [line.low, line.high])];
    const yDomain = domain(numbers, { ...spec.y, log, min: (log ? spec.y.logMin : spec.y.min) ?? null });
    const xNumbers = [...xValues, ...xLines.flatMap((line) => [line.low, line.high])];
    const [xLow, xHigh] = [Math.min(...xNumbers), Math.max(...xNumbers)];
    const xDomain = xHigh > xLow ? [xLow, xHigh] : [xLow - 1, xHigh + 1];
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
    const xLimits = xLines.map(({ group, value, low, high }) => shape("g", { class: `limit c${group}` },
      shape("rect", { class: "band", x: x(low), width: x(high) - x(low), y: top, height: bottom - top }),
      shape("line", { x1: x(value), x2: x(value), y1: top, y2: bottom })));
    const xLabels = xLines.map(({ value, high, label }, i) => (x(value) < (left + right) / 2
      ? text(label, x(high) + 5, bottom - 6 - 14 * i, "start", "limit-label") : text(label, x(value) - 5, bottom - 6 - 14 * i, "end", "limit-label")));
    // Labels are placed from top to bottom without overlap.
    let lowest = -Infinity;
    const labels = lines.toSorted((a, b) => b.high - a.high).map((line) =>
      text(line.label, right - 4, (lowest = Math.max(y(line.high) - 5, lowest + 12)), "end", "limit-label"));

    const curves = series.map((curve) => {
      const parts = consecutive(curve.values, shown);
      const to = (values) => (i) => `${x(curve.x[i]).toFixed(1)},${y(values[i]).toFixed(1)}`;
      const path = (name, pieces) => shape("path", { class: name, d: pieces.join("") });
      const outline = (part) => `M${part.map(to(curve.high)).join("L")}L${part.toReversed().map(to(curve.low)).join("L")}Z`;
      const whisker = (i) => `M${to(curve.high)(i)}V${shown(curve.low[i]) ? y(curve.low[i]) : bottom}`;
      const bounds = curve.spans ? ["band", consecutive(curve.low ?? [], shown).map(outline)] : ["whisker", consecutive(curve.high ?? [], shown).flat().map(whisker)];
      const count = parts.flat().length;
      // A value between two gaps needs a marker because it has no line. More than 100 markers would hide the line.
      const dots = curve.mark === "points" && count <= 100 ? parts.flat() : parts.filter((part) => part.length === 1).flat();
      return shape("g", {
        class: `series c${curve.group}${curve.faint ? " faint" : ""}`, "data-group": groups[curve.group], "data-name": curve.name,
        "data-count": count, "data-last-x": curve.last?.x, "data-last-value": curve.last?.value,
      }, path(...bounds), path(`line d${curve.dash}`, parts.map((part) => `M${part.map(to(curve.values)).join("L")}`)),
      dots.map((i) => marker(curve.group, curve.dash, x(curve.x[i]), y(curve.values[i]), count > 40 ? 2 : 3)));
    });
    const clip = shape("clipPath", { id: `${id}-clip` }, shape("rect", { x: left - 6, y: top - 6, width: right - left + 12, height: bottom - top + 6 }));
    const cursor = shape("g", { class: "cursor" });
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...heading, clip, axes, shape("g", { "clip-path": `url(#${id}-clip)` }, limits, xLimits, curves), ...labels, ...xLabels, cursor);

    placeCursor = () => {
      const here = x(xValues[at]);
      const dots = series.map((curve, k) => [curve, nearestPoint[k](xValues[at])]).filter(([curve, i]) => shown(curve.values[i]) && y(curve.values[i]) <= bottom);
      cursor.replaceChildren(shape("line", { x1: here, x2: here, y1: top, y2: bottom }),
        ...dots.map(([curve, i]) => shape("circle", { class: `c${curve.group}`, cx: x(curve.x[i]), cy: y(curve.values[i]), r: 4 })));
    };
    svg.onpointermove = (event) => {
      const box = svg.getBoundingClientRect();
      const along = (((event.clientX - box.left) / box.width) * width - left) / (right - left);
      moveTo(nearest(xValues, xDomain[0] + along * (xDomain[1] - xDomain[0])));
    };
    moveTo(at);
  }

  const pageStep = Math.max(1, Math.round(xValues.length / 10));
  const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -pageStep, PageUp: pageStep, Home: -Infinity, End: Infinity };
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
  // The data table of a long run has thousands of cells, so it is created when it is opened.
  const data = element("details", { class: "data" }, element("summary", {}, "Data table"));
  data.addEventListener("toggle", () => data.childElementCount === 1 && data.append(dataTable(spec, xValues)));

  const caption = element("figcaption", {}, element("h3", {}, spec.title), toggle, spec.note && element("p", {}, spec.note));
  const figure = element("figure", { class: "chart", id }, caption, svg, legend, data);
  onWidth(figure, (now) => {
    width = now;
    redraw();
  });
  return figure;
}

// ---- samples ----

/** A list of prompts, each with the completions of all runs side by side and their rewards. The list `names` has the names of the runs. */
export function samples(items, names) {
  const pair = ([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value));
  const reward = ([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { "data-value": value ?? "" }, format(value)));
  function cell({ run, label, completion, rewards }) {
    const heading = run === null || names.length === 1 ? label : [swatch(run, names[run]), `, ${label.toLowerCase()}`];
    return element("section", {}, element("h4", {}, heading),
      element("p", { class: "completion", dir: "auto", tabindex: 0, role: "region", "aria-label": run === null ? label : `${names[run]}, ${label}` }, completion),
      element("dl", { class: "rewards" }, rewards.map(reward)));
  }
  return element("ol", { class: "samples" }, items.map(({ prompt, columns, cells }) => element("li", {},
    element("p", { class: "prompt", dir: "auto" }, prompt),
    columns.length > 0 && element("dl", { class: "rewards" }, columns.map(pair)),
    element("div", { class: "cells" }, cells.map(cell)))));
}
