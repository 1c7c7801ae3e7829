// Figures and controls of the explorer: axes, curves, points that the pointer drags, sliders, downloads as SVG and CSV.

import { addressOf } from "./address.js";
import { format, scale, tickLabels, ticks } from "./axes.js";
import { element, onWidth, shape } from "./elements.js";
import { exportMenu } from "./export_figure.js";

const FRAME = { left: 46, right: 16, top: 24, bottom: 34 };
const limit = (value, low, high) => Math.min(high, Math.max(low, value));
/** A number with 4 significant digits. */
const number4 = (value) => (value === Infinity ? "∞" : value === -Infinity ? "−∞" : format(value, 4));

/**
 * A figure with an x and a y axis: { figure, svg, caption, redraw, x, y, invert, dragging }. `draw(api)` returns the SVG
 * nodes of the content; it is called by `redraw` and at every change of width. `back(api)` returns nodes below them, which
 * are drawn again only when the axes, the width or `backKey()` change. `api.x` and `api.y` map values to pixels,
 * and `api.invert` maps pixels to values. A figure far from the visible part of the page is drawn when it comes near. While a point is dragged the axes keep their domains, so that the point follows
 * the pointer. `rows()` returns the table that the figure is saved as: a list of lists, the first of column names.
 */
function liveFigure({ id, title, note = "", describe, x, y, height: inner = 250, draw, back, backKey, rows }) {
  const height = inner + 10; // with the label of the y axis
  const layers = [shape("g"), shape("g")];
  const svg = shape("svg", { role: "img", "aria-label": title }, layers);
  const caption = element("p", {}, note);
  const figure = element("figure", { class: "live", id },
    element("figcaption", {}, element("h3", {}, title), saveMenu(id, title, () => { drawNow(); return svg; }, rows), caption), svg);
  let [width, wanted, near] = [0, false, true];
  const api = { figure, svg, caption, redraw, dragging: false, x: null, y: null, invert: null };
  let [domains, drawn] = [null, null];

  function redraw() {
    wanted = true;
    if (width === 0 || (!near && drawn)) return;
    wanted = false;
    if (!api.dragging || !domains) domains = [x.domain(), y.domain()];
    const [[xLow, xHigh], [yLow, yHigh]] = domains;
    const [left, right, top, bottom] = [y.ticks?.length === 0 ? 2 : (y.left ?? FRAME.left), width - FRAME.right, FRAME.top, height - FRAME.bottom];
    api.x = scale([xLow, xHigh], [left, right]);
    api.y = scale([yLow, yHigh], [bottom, top]);
    api.box = { left, right, top, bottom };
    api.invert = (px, py) => [
      xLow + ((limit(px, left, right) - left) / (right - left)) * (xHigh - xLow),
      yLow + ((bottom - limit(py, top, bottom)) / (bottom - top)) * (yHigh - yLow),
    ];
    svg.setAttribute("aria-label", describe ? `${title}. ${describe()}` : title);
    const labels = [x.labels, y.labels, x.label, backKey?.()];
    if (drawn?.width !== width || drawn.domains.some((domain, i) => domain[0] !== domains[i][0] || domain[1] !== domains[i][1])
      || drawn.labels.some((label, i) => label !== labels[i])) {
      drawn = { width, domains, labels };
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      layers[0].replaceChildren(...drawAxes(), ...(back?.(api) ?? []));
    }
    layers[1].replaceChildren(...draw(api).flat(Infinity).filter(Boolean));
  }

  function drawAxes() {
    const [[xLow, xHigh], [yLow, yHigh]] = domains;
    const { left, right, bottom } = api.box;
    const nodes = [];
    const across = x.ticks ?? ticks(xLow, xHigh, Math.max(3, Math.round(width / 90)));
    const up = y.ticks ?? ticks(yLow, yHigh, Math.max(2, Math.round(height / 60)));
    (x.labels ?? tickLabels(across)).forEach((label, i) => nodes.push(
      shape("text", { x: api.x(across[i]), y: bottom + 17, "text-anchor": "middle" }, label)));
    (y.labels ?? tickLabels(up)).forEach((label, i) => nodes.push(
      shape("line", { x1: left, x2: right, y1: api.y(up[i]), y2: api.y(up[i]) }),
      shape("text", { x: left - 7, y: api.y(up[i]) + 4, "text-anchor": "end" }, label)));
    nodes.push(shape("text", { x: right, y: height - 3, "text-anchor": "end" }, x.label), shape("text", { x: 0, y: 12 }, y.label));
    return [shape("g", { class: "axes" }, nodes)];
  }

  const drawNow = () => {
    near = true;
    if (wanted) redraw();
  };
  onWidth(figure, (now) => {
    width = now;
    if (wanted || drawn) redraw();
  });
  new IntersectionObserver(([entry]) => {
    near = entry.isIntersecting;
    if (near) drawNow();
  }, { rootMargin: "10%" }).observe(figure);
  window.addEventListener("beforeprint", drawNow);
  return api;
}

const round1 = (value) => Math.round(value * 10) / 10;
const pathThrough = (api, points) => points.map(([a, b], i) => `${i ? "L" : "M"}${round1(api.x(a))},${round1(api.y(b))}`).join("");

/** A curve through points. */
const curveOf = (api, points, name, attributes = {}) => shape("path", { class: `line ${name}`, d: pathThrough(api, points), ...attributes });

/** The area between a curve and zero. */
const areaUnder = (api, points, name) => points.length > 0
  && shape("path", { class: `band ${name}`, d: `${pathThrough(api, [[points[0][0], 0], ...points, [points.at(-1)[0], 0]])}Z` });

/** A dot with a halo of the background colour. */
const pointAt = (api, [a, b], name, tooltip, r = 4.5) =>
  shape("circle", { class: `spot ${name}`, cx: round1(api.x(a)), cy: round1(api.y(b)), r }, tooltip && shape("title", {}, tooltip));

/** A label with a halo, inside of the frame. */
function labelAt(api, [a, b], text, { dx = 0, dy = 0, anchor } = {}) {
  const at = api.x(a) + dx;
  const side = anchor ?? (at < api.box.left + 90 ? "start" : at > api.box.right - 90 ? "end" : "middle");
  const inside = side === "middle" ? at : limit(at, api.box.left + 2, api.box.right - 2);
  return shape("text", { class: "note", x: round1(inside), y: round1(Math.max(api.box.top, api.y(b) + dy)), "text-anchor": side }, text);
}

/** The position of a pointer event in the coordinates of an SVG. */
function pointerIn(svg, event) {
  const box = svg.getBoundingClientRect();
  const [left, top, width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  return [left + ((event.clientX - box.left) / box.width) * width, top + ((event.clientY - box.top) / box.height) * height];
}

/**
 * A point at (a, b) that the pointer drags. `move(a, b)` receives the values under the pointer, corrected for the place at
 * which the point was taken; `done()` is called at the end. The same quantity has a slider for the keyboard.
 */
function dragPoint(api, { name, at: [a, b], style, move, start, done, r = 8 }) {
  const [atX, atY] = [api.x(a), api.y(b)];
  const [cx, cy] = [round1(atX), round1(atY)];
  const node = shape("g", { class: `handle ${style}`, "data-handle": name }, shape("circle", { class: "reach", cx, cy, r: 20 }), shape("circle", { cx, cy, r }));
  node.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false }); // the page does not scroll
  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    const [px, py] = pointerIn(api.svg, event);
    const offset = [px - atX, py - atY];
    api.svg.setPointerCapture(event.pointerId); // the figure receives all events, because redrawing replaces the handle
    api.dragging = true;
    start?.();
    const follow = (moved) => {
      if (moved.pointerId !== event.pointerId) return;
      const [nowX, nowY] = pointerIn(api.svg, moved);
      move(...api.invert(nowX - offset[0], nowY - offset[1]));
    };
    const end = (ended) => {
      if (ended.pointerId !== event.pointerId) return;
      for (const [type, listener] of Object.entries(listeners)) window.removeEventListener(type, listener);
      api.dragging = false;
      done?.();
      api.redraw();
    };
    const listeners = { pointermove: follow, pointerup: end, pointercancel: end };
    for (const [type, listener] of Object.entries(listeners)) window.addEventListener(type, listener);
  });
  return node;
}

/**
 * A labelled slider: { row, set(value), label(text), input }. `change(value)` is called at every change. An arrow key
 * changes the value by `step`, or multiplies it by e^step if `log` is true; with shift, and for Page Up and Page Down, by
 * ten steps. Home and End select the limits.
 */
function control({ id, label, min, max, step, value, log = false, text = number4, change }) {
  const [to, from] = log ? [Math.log, Math.exp] : [Number, Number];
  const input = element("input", { type: "range", id, min: to(min), max: to(max), step: "any" });
  const output = element("output", { for: id });
  const name = element("label", { for: id }, label);
  let current = value;
  const set = (now) => {
    current = now;
    input.value = String(to(now));
    input.setAttribute("aria-valuetext", text(now));
    input.dataset.value = String(now);
    output.textContent = text(now);
  };
  const choose = (now) => {
    set(limit(now, min, max));
    change(current);
  };
  input.addEventListener("input", () => choose(from(Number(input.value))));
  const page = 10 * step;
  const steps = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -page, PageUp: page, Home: -Infinity, End: Infinity };
  input.addEventListener("keydown", (event) => {
    if (!Object.hasOwn(steps, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const size = steps[event.key] * (event.shiftKey && event.key.startsWith("Arrow") ? 10 : 1);
    choose(size === -Infinity ? min : size === Infinity ? max : Number(from(to(current) + size).toPrecision(12)));
  });
  set(value);
  return { row: element("div", { class: "slider" }, name, input, output), set, label: (words) => { name.textContent = words; }, input };
}

/** Radio buttons: { group, set(value) }. `options` maps values to labels. */
function radioButtons({ name, label, options, value, change }) {
  const inputs = Object.entries(options).map(([key]) => element("input", { type: "radio", name, value: key, "data-choice": key }));
  for (const input of inputs) input.addEventListener("change", () => change(input.value));
  const set = (now) => { for (const input of inputs) input.checked = input.value === now; };
  set(value);
  return {
    group: element("fieldset", { class: "options" }, element("legend", {}, label),
      Object.values(options).map((text, i) => element("label", {}, inputs[i], element("span", {}, text)))),
    set,
  };
}

/** A button that calls `press`. */
function pressButton(label, press, attributes = {}) {
  const button = element("button", { type: "button", ...attributes }, label);
  button.addEventListener("click", press);
  return button;
}

/** Labelled numbers: { list, set(name, value) }. The unrounded value is in `data-value`, and changes are announced politely. */
function valueList(labels) {
  const cells = Object.fromEntries(Object.keys(labels).map((name) => [name, element("dd", { "data-name": name })]));
  const announcement = element("p", { class: "visually-hidden", "aria-live": "polite" });
  const list = element("div", {}, element("dl", { class: "readings" },
    Object.entries(labels).map(([name, label]) => element("div", {}, element("dt", {}, label), cells[name]))), announcement);
  let timer = 0;
  const set = (name, value) => {
    cells[name].textContent = typeof value === "string" ? value : number4(value);
    cells[name].dataset.value = String(value);
    clearTimeout(timer);
    timer = setTimeout(() => {
      announcement.textContent = Object.entries(labels).map(([key, label]) => `${label}: ${cells[key].textContent}`).join("; ");
    }, 700);
  };
  return { list, set };
}

/** Wraps a function so that all calls within an animation frame run it once, at the next frame. */
function oncePerFrame(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}

/** A slider from 0 to 1 with a button that moves it to 1 in `seconds`: { row, play(), set(fraction), stop() }. */
function playback({ id, label, seconds, text, change, startLabel }) {
  let started = 0;
  const stop = () => { started = 0; };
  const slide = control({ id, label, min: 0, max: 1, step: 0.01, value: 0, text, change: (value) => { stop(); change(value); } });
  function play() {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      slide.set(1);
      change(1);
      return;
    }
    const begin = performance.now();
    started = begin;
    const advance = (now) => {
      if (started !== begin) return;
      const fraction = limit((now - begin) / (1000 * seconds), 0, 1);
      slide.set(fraction);
      change(fraction);
      if (fraction < 1) requestAnimationFrame(advance);
    };
    requestAnimationFrame(advance);
  }
  return { row: slide.row, play, set: slide.set, stop, button: startLabel && pressButton(startLabel, play) };
}

/** The menu that saves and copies a figure; its links lead to the figure with the present state. */
const saveMenu = (id, title, svg, rows) => element("details", { class: "save" }, element("summary", { "aria-label": `Save the figure: ${title}` }, "Save"),
  exportMenu(id, { rows, svg, link: () => `${location.href.split("#")[0]}${addressOf(id)}` }));

export { areaUnder, control, curveOf, dragPoint, labelAt, limit, liveFigure, number4, oncePerFrame, playback, pointAt, pressButton, radioButtons, saveMenu, valueList };
