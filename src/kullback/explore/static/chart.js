// Charts and tables, as SVG and HTML elements without dependencies.
//
// chart(spec, shared): spec = { id, title, note, groups: [name], x: { label, integer },
//                y: { label, log, toggle, zero, min, max, logMin }, lines: [{ value, low, high, label, group }],
//                xLines: [{ value, low, high, label, group }], series: [series], ownAxis }
//   lines are horizontal, xLines are vertical. The x of a series need not increase: its points are joined in the order of the list.
//   series = { name, group: index, x: [number], values: [number or null], low and high: lists of bounds, optional,
//              spans: [[first, last]] when each point is the mean of a block, bad: indices of points with values that are not finite,
//              mark: "line" or "points", faint, dash: index, last: { x, value } }
//   Colour and marker shape show the group, which is usually a run; the dash pattern, and filled or hollow markers, show the name. null is a gap.
//   `shared` (from sharedView) has the part of the axis, the cursor, the smoothing and the hidden groups of several charts; a chart with
//   `ownAxis` takes only the last two. chart returns a figure, whose method update(spec) shows other data in place.
// table({ caption, columns, rows }), of strings.
//
// Data is inserted as text, never as markup.

import { consecutive, domain, format, logTicks, nearest, scale, tickLabels, ticks } from "./axes.js";
import { element, fill, onWidth, shape } from "./elements.js";
import { exportMenu } from "./export_figure.js";

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

/** The state that several charts share: { range, at, smoothing, hidden, charts }, with the methods of the keys and the pointer. */
export function sharedView() {
  const view = {
    range: null, at: null, pinnedUntil: 0, smoothing: 0, hidden: new Set(), charts: new Set(),
    zoomed: () => {}, address: (id) => `${location.href.split("#")[0]}#${id}`,
    redraw: () => view.charts.forEach((one) => one.redraw()),
    /** Moves the cursor: at once in the chart of the pointer, in the next frame in the other charts in view, and then in the rest. */
    moveTo(at, source) {
      view.at = at;
      source?.placeCursor();
      cancelAnimationFrame(view.frame);
      clearTimeout(view.timer);
      view.frame = requestAnimationFrame(() => view.charts.forEach((one) => one !== source && one.isInView && one.placeCursor()));
      view.timer = setTimeout(() => view.charts.forEach((one) => one.isInView || one.placeCursor()), 120);
    },
    zoom(range) {
      view.range = range;
      view.redraw();
      view.zoomed(range);
    },
  };
  return view;
}

function uncertainty({ low, high, spans }, i) {
  if (!Number.isFinite(low?.[i]) || !Number.isFinite(high?.[i])) return "";
  return spans ? `${format(low[i], 3)} to ${format(high[i], 3)}` : `± ${format((high[i] - low[i]) / 2, 2)}`;
}

/** A value as text. The mean of a block may exist although one of its values is not finite. */
function valueText({ values, bad }, i, digits = 4) {
  if (bad?.has(i)) return Number.isFinite(values[i]) ? `${format(values[i], digits)} and not finite` : "not finite";
  return Number.isFinite(values[i]) ? format(values[i], digits) : "–";
}

/** The exponential moving average of a list, with the weight of the start removed; gaps stay. */
export function smoothed(values, weight) {
  let [mean, total] = [0, 0];
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

/** The rows of the data of a chart, with a header row; `text(curve, i)` formats a point. */
function dataRows({ groups, x }, series, xValues, text) {
  const index = series.map((curve) => new Map(Array.from(curve.x, (value, i) => [value, i])));
  return [
    [x.label, ...series.map((curve) => `${groups[curve.group]}, ${curve.name}`)],
    ...xValues.map((value) => [value, ...series.map((curve, k) => (index[k].has(value) ? text(curve, index[k].get(value)) : ""))]),
  ];
}

/** The function that returns the index of the point of a curve whose x is nearest to a value. */
function nearestIndex({ x }) {
  const order = Array.from(x, (_, i) => i).sort((i, j) => x[i] - x[j]);
  const sorted = order.map((i) => x[i]);
  return (value) => order[nearest(sorted, value)];
}

// A chart that scrolls below a pointer at rest receives an event at the same place, which is not a movement of the pointer.
const pointerPlace = { at: "", isSame: false };
document.addEventListener("pointermove", ({ clientX, clientY, isTrusted }) => {
  const now = `${clientX} ${clientY}`;
  Object.assign(pointerPlace, { at: now, isSame: isTrusted && now === pointerPlace.at });
}, { capture: true });

/** A figure: an SVG with a cursor for the arrow keys and the pointer, a legend with the values at the cursor, and a data table. */
export function chart(first, shared = sharedView()) {
  const id = `chart-${first.id}`;
  const own = first.ownAxis ? sharedView() : shared;
  let [spec, series, nearestPoint, xValues, cells] = [first, [], [], [], []];
  let [log, width, at, structure, selection] = [Boolean(first.y.log), 0, 0, "", null];
  let isFollowed = false; // whether the cursor follows a pointer
  let axis = null; // the scales of the last drawing

  const [title, description] = [shape("title", { id: `${id}-title` }), shape("desc", { id: `${id}-desc` })];
  const svg = shape("svg", { role: "slider", tabindex: 0, "aria-labelledby": `${id}-title`, "aria-describedby": `${id}-desc` });
  const cursorLabel = element("th", { scope: "col", class: "position" });
  const legend = element("div", { class: "scroll" });
  const cursor = shape("g", { class: "cursor" });
  const toggle = element("button", { type: "button", "aria-pressed": log }, "log scale");
  const note = element("p");
  const data = element("details", { class: "data" }, element("summary", {}, "Data, save, link"));
  const self = { redraw, placeCursor, isInView: true };
  const inRange = (value) => !own.range || (own.range[0] <= value && value <= own.range[1]);

  /** The legend shows the values at the cursor: a column for each group and a row for each name, or the reverse for more than three groups. */
  function buildLegend() {
    const { groups } = spec;
    const shown = groups.map((_, group) => group).filter((group) => series.some((curve) => curve.group === group));
    const names = [...Map.groupBy(series, (curve) => curve.name)];
    const now = JSON.stringify([groups, series.map(({ name, group, dash, mark, faint }) => [name, group, dash, mark, faint])]);
    if (now === structure) return;
    structure = now;
    cells = series.map(() => element("td", {}, "–", element("small", {}, "")));
    const cell = (group, name) => cells[series.findIndex((curve) => curve.group === group && curve.name === name)] ?? element("td");
    const label = ([name, some]) => [key(0, some.find((curve) => curve.faint) ?? some[0]), name];
    const isWide = shown.length > 3;
    const columns = isWide ? names.map(label) : shown.map((group) => swatch(group, groups[group]));
    const rows = isWide
      ? shown.map((group) => [swatch(group, groups[group]), names.map(([name]) => cell(group, name))])
      : names.map((entry) => [label(entry), shown.map((group) => cell(group, entry[0]))]);
    legend.replaceChildren(element("table", { class: "legend" },
      element("thead", {}, element("tr", {}, cursorLabel, columns.map((column) => element("th", { scope: "col" }, column)))),
      element("tbody", {}, rows.map(([head, some]) => element("tr", {}, element("th", { scope: "row" }, head), some)))));
  }

  function update(next) {
    if (next.y.log !== spec.y.log && !toggle.dataset.used) log = Boolean(next.y.log);
    spec = next;
    redraw();
    if (data.open) showData();
  }

  function showData() {
    const rows = dataRows(spec, series, xValues, (curve, i) => `${valueText(curve, i, 6)} ${uncertainty(curve, i)}`.replace(/^– $/, ""));
    data.querySelector(".scroll")?.remove();
    data.append(table({ caption: `${spec.title}: data`, columns: rows[0], rows: rows.slice(1).map(([x, ...rest]) => [format(x, 12), ...rest]) }));
  }

  function moveTo(index) {
    const value = index === Infinity ? null : xValues[Math.max(0, Math.min(xValues.length - 1, index))] ?? null;
    own.moveTo(value, self);
  }

  /** Shows the values at the shared cursor, which is at the last point if it is null. */
  function placeCursor() {
    if (xValues.length === 0) return;
    at = own.at === null ? xValues.length - 1 : nearest(xValues, own.at);
    let where = "";
    const spokenValues = series.map((curve, k) => {
      const i = nearestPoint[k](xValues[at]);
      if (i === undefined) return "";
      const [from, to] = curve.spans?.[i] ?? [curve.x[i], curve.x[i]];
      const isHere = from <= xValues[at] && xValues[at] <= to;
      if (isHere && from < to) where ||= `${spec.x.label}s ${format(from, 12)}–${format(to, 12)}`;
      const detail = `${uncertainty(curve, i)} ${isHere ? "" : `at ${format(curve.x[i])}`}`.trim();
      const [value, small] = cells[k].childNodes;
      const now = `${valueText(curve, i)} `;
      if (value.data !== now) value.data = now;
      if (small.textContent !== detail) small.textContent = detail;
      Object.assign(cells[k].dataset, { x: curve.x[i], value: curve.values[i] ?? "" });
      return `${spec.groups[curve.group]}, ${curve.name} ${valueText(curve, i)} ${detail}`.trim();
    });
    where ||= `${spec.x.label} ${format(xValues[at], spec.x.integer ? 12 : 4)}`;
    cursorLabel.textContent = where;
    fill(svg, { "aria-valuenow": xValues[at], "aria-valuetext": `${where}: ${spokenValues.filter(Boolean).join("; ")}` }, []);
    if (!axis) return;
    const { x, y, top, bottom, shown } = axis;
    const here = x(xValues[at]);
    const dots = series.map((curve, k) => [curve, nearestPoint[k](xValues[at])]).filter(([curve, i]) => shown(curve.values[i]) && inRange(curve.x[i]) && y(curve.values[i]) <= bottom);
    cursor.replaceChildren(shape("line", { x1: here, x2: here, y1: top, y2: bottom }),
      ...dots.map(([curve, i]) => shape("circle", { class: `c${curve.group}`, cx: x(curve.x[i]), cy: y(curve.values[i]), r: 4 })));
  }

  function redraw() {
    const { lines = [], xLines = [], groups } = spec;
    const isGroup = (group) => !spec.hasRuns || !shared.hidden.has(group);
    series = spec.series.filter((curve) => isGroup(curve.group)).map((curve) => ({ ...curve, bad: new Set(curve.bad) }));
    nearestPoint = series.map(nearestIndex);
    xValues = [...new Set(series.flatMap((curve) => Array.from(curve.x).filter(inRange)))].sort((a, b) => a - b);
    const lastValues = series.filter((curve) => curve.last).map((curve) =>
      `${groups[curve.group]}, ${curve.name}: ${format(curve.last.value)} at ${spec.x.label} ${format(curve.last.x)}.`);
    title.textContent = `${spec.title}, ${spec.y.label}`;
    description.textContent = [spec.note, ...lastValues, "Arrow keys move the cursor; plus and minus zoom, Escape shows the whole axis."].filter(Boolean).join(" ");
    note.textContent = spec.note ?? "";
    note.hidden = !spec.note;
    toggle.hidden = !spec.y.toggle;
    toggle.setAttribute("aria-pressed", log);
    fill(svg, { "aria-valuemin": xValues[0] ?? 0, "aria-valuemax": xValues.at(-1) ?? 0 }, []);
    buildLegend();
    if (width === 0) return;

    const height = Math.round(Math.max(190, Math.min(260, width * 0.52)));
    const shown = (value) => Number.isFinite(value) && (!log || value > 0);
    const numbers = [...lines.filter(({ group }) => isGroup(group)).flatMap((line) => [line.low, line.high])];
    for (const curve of series) {
      for (let i = 0; i < curve.x.length; i += 1) if (inRange(curve.x[i])) numbers.push(curve.values[i], curve.low?.[i], curve.high?.[i]);
    }
    const yDomain = domain(numbers, { ...spec.y, log, min: (log ? spec.y.logMin : spec.y.min) ?? null });
    const xNumbers = [...xValues, ...xLines.flatMap((line) => [line.low, line.high])];
    const [xLow, xHigh] = own.range ?? [Math.min(...xNumbers), Math.max(...xNumbers)];
    const xDomain = xHigh > xLow ? [xLow, xHigh] : xNumbers.length ? [xLow - 1, xHigh + 1] : [0, 1];
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
    const limits = lines.filter(({ group }) => isGroup(group)).map(({ group, value, low, high }) => shape("g", { class: `limit c${group}` },
      shape("rect", { class: "band", x: left, width: right - left, y: y(high), height: y(low) - y(high) }), across(value)));
    const xLimits = xLines.map(({ group, value, low, high }) => shape("g", { class: `limit c${group}` },
      shape("rect", { class: "band", x: x(low), width: x(high) - x(low), y: top, height: bottom - top }),
      shape("line", { x1: x(value), x2: x(value), y1: top, y2: bottom })));
    const xLabels = xLines.map(({ value, high, label }, i) => (x(value) < (left + right) / 2
      ? text(label, x(high) + 5, bottom - 6 - 14 * i, "start", "limit-label") : text(label, x(value) - 5, bottom - 6 - 14 * i, "end", "limit-label")));
    // Labels are placed from top to bottom without overlap.
    let lowest = -Infinity;
    const labels = lines.filter(({ group, value }) => isGroup(group) && y(value) >= top - 1 && y(value) <= bottom).toSorted((a, b) => b.high - a.high).map((line) =>
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
      const isSmooth = shared.smoothing > 0 && curve.mark === "line" && !spec.ownAxis;
      const drawn = (values, name) => path(`${name} d${curve.dash}`, parts.map((part) => `M${part.map(to(values)).join("L")}`));
      const bad = [...curve.bad].filter((i) => inRange(curve.x[i]));
      return shape("g", {
        class: `series c${curve.group}${curve.faint ? " faint" : ""}`, "data-group": groups[curve.group], "data-name": curve.name,
        "data-count": count, "data-bad": bad.length || undefined, "data-last-x": curve.last?.x, "data-last-value": curve.last?.value,
      }, path(...bounds), drawn(curve.values, isSmooth ? "line raw" : "line"), isSmooth && drawn(smoothed(curve.values, shared.smoothing), "line smooth"),
      dots.map((i) => marker(curve.group, curve.dash, x(curve.x[i]), y(curve.values[i]), count > 40 ? 2 : 3)),
      bad.length > 0 && path("bad", bad.map((i) => `M${(x(curve.x[i]) - 3).toFixed(1)},${top + 1}l6,6m0,-6l-6,6`)));
    });
    const clip = shape("clipPath", { id: `${id}-clip` }, shape("rect", { x: left - 6, y: top - 6, width: right - left + 12, height: bottom - top + 6 }));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(title, description, clip, axes, shape("g", { "clip-path": `url(#${id}-clip)` }, limits, xLimits, curves), ...labels, ...xLabels, cursor);
    axis = { x, y, left, right, top, bottom, xDomain, shown };
    placeCursor();
  }

  // ---- the pointer and the keys ----

  const valueAt = (event) => {
    const box = svg.getBoundingClientRect();
    const along = (((event.clientX - box.left) / box.width) * width - axis.left) / (axis.right - axis.left);
    return axis.xDomain[0] + Math.max(0, Math.min(1, along)) * (axis.xDomain[1] - axis.xDomain[0]);
  };
  svg.addEventListener("pointerdown", (event) => {
    // With the mouse, a drag selects a part of the axis; a finger moves the cursor.
    if (event.pointerType === "touch" && axis && xValues.length) moveTo(nearest(xValues, valueAt(event)));
    if (event.button === 0 && event.pointerType !== "touch" && axis && !first.ownAxis) selection = { from: valueAt(event), pixel: event.clientX, node: null };
  });
  svg.addEventListener("pointermove", (event) => {
    if (!axis || xValues.length === 0 || pointerPlace.isSame || performance.now() < own.pinnedUntil) return;
    const value = valueAt(event);
    isFollowed = true;
    if (selection && Math.abs(event.clientX - selection.pixel) > 4) {
      if (!selection.node) {
        svg.setPointerCapture(event.pointerId);
        selection.node = svg.appendChild(shape("rect", { class: "selection", y: axis.top, height: axis.bottom - axis.top }));
      }
      const ends = [axis.x(selection.from), axis.x(value)].sort((a, b) => a - b);
      fill(selection.node, { x: ends[0], width: ends[1] - ends[0] }, []);
    }
    moveTo(nearest(xValues, value));
  });
  svg.addEventListener("pointerup", (event) => {
    const done = selection;
    selection = null;
    if (!done?.node) return;
    done.node.remove();
    const range = [done.from, valueAt(event)].sort((a, b) => a - b);
    if (range[1] > range[0]) own.zoom(range);
  });
  svg.addEventListener("pointercancel", () => {
    selection?.node?.remove();
    selection = null;
  });
  svg.addEventListener("pointerleave", (event) => {
    // The values stay after a finger has left.
    // The chart was scrolled below the pointer, or the cursor has just been set by a link.
    if ((`${event.clientX} ${event.clientY}` === pointerPlace.at && event.isTrusted) || performance.now() < own.pinnedUntil) return;
    if (isFollowed && event.pointerType === "mouse" && !selection?.node) own.moveTo(null, self);
    isFollowed = false;
  });
  svg.addEventListener("dblclick", () => own.range && own.zoom(null));
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || xValues.length === 0) return;
    const page = Math.max(1, Math.round(xValues.length / 10));
    const moves = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - page, PageUp: at + page, Home: 0, End: Infinity };
    if (event.key in moves) moveTo(moves[event.key]);
    else if (event.key === "Escape" && own.range) own.zoom(null);
    else if ("+=-".includes(event.key) && axis && !first.ownAxis) own.zoom(zoomedAround(axis.xDomain, xValues[at], event.key === "-" ? 2 : 0.5));
    else return;
    event.preventDefault();
  });

  toggle.onclick = () => {
    log = !log;
    toggle.dataset.used = "true";
    redraw();
  };
  // The data table of a long run has thousands of cells, so it is created when it is opened.
  data.addEventListener("toggle", () => data.open && showData());
  data.append(exportMenu(first.id, {
    svg: () => svg, link: () => shared.address(id),
    rows: () => dataRows(spec, series, xValues, (curve, i) => (curve.bad.has(i) && !Number.isFinite(curve.values[i]) ? "not finite" : curve.values[i] ?? "")),
  }));

  const heading = element("h3", {}, spec.title);
  const figure = element("figure", { class: "chart", id }, element("figcaption", {}, heading, toggle, note), svg, legend, data);
  own.charts.add(self);
  new IntersectionObserver(([entry]) => { self.isInView = entry.isIntersecting; }, { rootMargin: "200px" }).observe(figure);
  if (own !== shared) shared.charts.add({ redraw, placeCursor: () => {} });
  onWidth(figure, (now) => {
    width = now;
    redraw();
    // Only a legend that can be scrolled needs the focus.
    const attributes = { tabindex: 0, role: "region", "aria-label": `${spec.title}: values` };
    for (const [name, value] of Object.entries(attributes)) {
      if (legend.scrollWidth > legend.clientWidth) legend.setAttribute(name, value);
      else legend.removeAttribute(name);
    }
  });
  redraw();
  placeCursor();
  figure.update = update;
  return figure;
}

/** An interval of `factor` times the length of another, around a value that keeps its relative place. */
export const zoomedAround = ([low, high], value, factor) => [value - (value - low) * factor, value + (high - value) * factor];
