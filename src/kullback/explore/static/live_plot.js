// Interactive plots of the explorer: axes, curves, areas, handles for the pointer and the arrow keys, sliders.

import { format, scale, tickLabels, ticks } from "./axes.js";
import { element, onWidth, shape } from "./elements.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [52, 12, 12, 40];

/**
 * A figure with an x and a y axis: { figure, svg, caption, redraw, x, y, invert }. `draw(plot)` returns the SVG nodes of the
 * content; it is called by `redraw` and at every change of width. `x` and `y` map values to pixels, and `invert` maps
 * pixels to values.
 */
export function plot({ title, note, x, y, height = 260, draw }) {
  const svg = shape("svg", { role: "img", "aria-label": title });
  const caption = element("p", {}, note ?? "");
  const figure = element("figure", { class: "chart live" }, element("figcaption", {}, element("h3", {}, title), caption), svg);
  let width = 600;
  const api = { figure, svg, caption, redraw, x: null, y: null, invert: null };

  function redraw() {
    const [xDomain, yDomain] = [x.domain(), y.domain()];
    api.x = scale(xDomain, [LEFT, width - RIGHT]);
    api.y = scale(yDomain, [height - BOTTOM, TOP]);
    api.invert = (px, py) => [
      xDomain[0] + ((px - LEFT) / (width - RIGHT - LEFT)) * (xDomain[1] - xDomain[0]),
      yDomain[0] + ((height - BOTTOM - py) / (height - BOTTOM - TOP)) * (yDomain[1] - yDomain[0]),
    ];
    const axes = shape("g", { class: "axes", "aria-hidden": "true" });
    const across = x.ticks ?? ticks(...xDomain, Math.max(3, Math.round(width / 90)));
    const up = y.ticks ?? ticks(...yDomain, 4);
    const labels = x.labels ?? tickLabels(across);
    // Labels that would touch their neighbours are placed in two rows.
    const spacing = across.length > 1 ? api.x(across[1]) - api.x(across[0]) : Infinity;
    const low = labels.some((label) => 7.5 * label.length > spacing) ? 13 : 0;
    labels.forEach((label, i) => axes.append(shape("text", { x: api.x(across[i]), y: height - BOTTOM + 18 + (i % 2) * low, "text-anchor": "middle" }, label)));
    (y.labels ?? tickLabels(up)).forEach((label, i) => axes.append(
      shape("line", { x1: LEFT, x2: width - RIGHT, y1: api.y(up[i]), y2: api.y(up[i]) }),
      shape("text", { x: LEFT - 8, y: api.y(up[i]) + 4, "text-anchor": "end" }, label)));
    axes.append(shape("text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, x.label));
    axes.append(shape("text", { x: 0, y: TOP - 2 }, y.label));
    svg.setAttribute("viewBox", `0 -8 ${width} ${height + 8}`);
    const focused = svg.contains(document.activeElement) ? document.activeElement.getAttribute("data-handle") : null;
    svg.replaceChildren(axes, ...draw(api));
    if (focused) svg.querySelector(`[data-handle="${focused}"]`)?.focus();
  }

  onWidth(figure, (now) => {
    width = now;
    redraw();
  });
  return api;
}

const pathOf = (points, api) => points.map(([a, b], i) => `${i ? "L" : "M"}${api.x(a).toFixed(2)},${api.y(b).toFixed(2)}`).join("");

/** A curve through points. */
export const line = (api, points, group, dash = 0) => shape("path", { class: `line c${group} d${dash}`, d: pathOf(points, api) });

/** The area between a curve and zero. */
export function area(api, points, group) {
  if (points.length === 0) return null;
  const [first, last] = [points[0][0], points.at(-1)[0]];
  return shape("path", { class: `band c${group}`, d: `${pathOf([[first, 0], ...points, [last, 0]], api)}Z` });
}

/** A dot at a point, with a tooltip. */
export const dot = (api, [a, b], group, tooltip) => shape("circle", { class: `marker c${group}`, cx: api.x(a), cy: api.y(b), r: 4.5 }, tooltip && shape("title", {}, tooltip));

/**
 * A handle at (a, b) that the pointer drags and the arrow keys move. `move(dx, dy)` receives the displacement in units of
 * the axes. To a screen reader the handle is a slider whose value is `value`, spoken as `text`.
 */
export function handle(api, { name, at: [a, b], group, label, value, text, min, max, move, steps }) {
  const node = shape("circle", {
    class: `handle c${group}`, cx: api.x(a), cy: api.y(b), r: 9, tabindex: 0, role: "slider", "data-handle": name,
    "aria-label": label, "aria-valuenow": value, "aria-valuemin": min, "aria-valuemax": max, "aria-valuetext": text,
  });
  node.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!direction) return;
    event.preventDefault();
    const size = event.shiftKey ? 10 : 1;
    move(direction[0] * steps[0] * size, direction[1] * steps[1] * size);
  });
  node.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    node.focus();
    const svg = api.svg;
    const position = (moved) => {
      const box = svg.getBoundingClientRect();
      const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
      return api.invert(((moved.clientX - box.left) / box.width) * width, ((moved.clientY - box.top) / box.height) * height - 8);
    };
    let [x0, y0] = position(event);
    const drag = (moved) => {
      const [x1, y1] = position(moved);
      move(x1 - x0, y1 - y0);
      [x0, y0] = [x1, y1];
    };
    const end = () => {
      window.removeEventListener("pointermove", drag);
      window.removeEventListener("pointerup", end);
      window.removeEventListener("pointercancel", end);
    };
    window.addEventListener("pointermove", drag);
    window.addEventListener("pointerup", end);
    window.addEventListener("pointercancel", end);
  });
  return node;
}

/** A labelled slider: { row, set(value) }. `change(value)` is called at every change, and `text(value)` formats the value. */
export function slider({ id, label, min, max, step, value, text, change }) {
  const input = element("input", { type: "range", id, min, max, step, value });
  const output = element("output", { for: id });
  const showValue = () => {
    const shown = text(Number(input.value));
    input.setAttribute("aria-valuetext", shown);
    output.textContent = shown;
  };
  input.addEventListener("input", () => {
    showValue();
    change(Number(input.value));
  });
  showValue();
  const set = (now) => {
    input.value = now;
    showValue();
  };
  return { row: element("div", { class: "slider" }, element("label", { for: id }, label), input, output), set };
}

/** Labelled numbers: { list, set(name, value) }. `labels` maps names to labels; the unrounded value is in `data-value`. */
export function readings(labels) {
  const cells = Object.fromEntries(Object.keys(labels).map((name) => [name, element("dd", { "data-name": name })]));
  const list = element("dl", { class: "readings" }, Object.entries(labels).map(([name, label]) => element("div", {}, element("dt", {}, label), cells[name])));
  const set = (name, value) => {
    cells[name].textContent = value === Infinity ? "∞" : format(value, 6);
    cells[name].dataset.value = String(value);
  };
  return { list, set };
}

/** Wraps a function so that all calls within an animation frame run it once, at the next frame. */
export function oncePerFrame(work) {
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

/** Buttons of which exactly one is pressed. */
export function choice(label, options, chosen, change) {
  const buttons = Object.entries(options).map(([value, text]) => {
    const button = element("button", { type: "button", "aria-pressed": String(value === chosen), "data-choice": value }, text);
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      change(value);
    });
    return button;
  });
  return element("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}
