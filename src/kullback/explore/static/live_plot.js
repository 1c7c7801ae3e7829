// Small live figures for the explorer: axes that stay, curves and areas that are redrawn, handles that hand and keys move.

import { format, scale, tickLabels, ticks } from "./axes.js";
import { element, onWidth, shape } from "./chart.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [52, 12, 12, 40];

/**
 * A figure with an x and a y axis: { figure, set({ x, y }), place, curve(name, points, look), area(...), mark(...), onResize }.
 * Its drawing is told anew by `redraw`, at every change of width.
 */
export function plot({ title, note, x, y, height = 260, draw }) {
  const svg = shape("svg", { role: "img", "aria-label": title });
  const words = element("p", {}, note ?? "");
  const figure = element("figure", { class: "chart live" }, element("figcaption", {}, element("h3", {}, title), words), svg);
  let width = 600;
  const api = { figure, svg, words, redraw, x: null, y: null, invert: null };

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
    // Where neighbours would touch, every other one stands lower.
    const room = across.length > 1 ? api.x(across[1]) - api.x(across[0]) : Infinity;
    const low = labels.some((label) => 7.5 * label.length > room) ? 13 : 0;
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

export const line = (api, points, group, dash = 0) => shape("path", { class: `line c${group} d${dash}`, d: pathOf(points, api) });

/** The area between a curve and 0. */
export function area(api, points, group) {
  if (points.length === 0) return null;
  const [first, last] = [points[0][0], points.at(-1)[0]];
  return shape("path", { class: `band c${group}`, d: `${pathOf([[first, 0], ...points, [last, 0]], api)}Z` });
}

export const dot = (api, [a, b], group, words) => shape("circle", { class: `marker c${group}`, cx: api.x(a), cy: api.y(b), r: 4.5 }, words && shape("title", {}, words));

/**
 * A handle at (a, b): dragged by the pointer, moved by the arrow keys; `move(dx, dy, where)` is told by how much in the
 * figure's own units. It is a slider to a screen reader: `value` of it, in `words`.
 */
export function handle(api, { name, at: [a, b], group, label, value, words, min, max, move, steps }) {
  const node = shape("circle", {
    class: `handle c${group}`, cx: api.x(a), cy: api.y(b), r: 9, tabindex: 0, role: "slider", "data-handle": name,
    "aria-label": label, "aria-valuenow": value, "aria-valuemin": min, "aria-valuemax": max, "aria-valuetext": words,
  });
  node.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const size = event.shiftKey ? 10 : 1;
    move(way[0] * steps[0] * size, way[1] * steps[1] * size);
  });
  node.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    node.focus();
    const svg = api.svg;
    const place = (moving) => {
      const box = svg.getBoundingClientRect();
      const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
      return api.invert(((moving.clientX - box.left) / box.width) * width, ((moving.clientY - box.top) / box.height) * height - 8);
    };
    let [x0, y0] = place(event);
    const drag = (moving) => {
      const [x1, y1] = place(moving);
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

/** A labelled slider: { row, set(value) }; `change(value)` is told at every move. */
export function slider({ id, label, min, max, step, value, words, change }) {
  const input = element("input", { type: "range", id, min, max, step, value });
  const output = element("output", { for: id });
  const tell = () => {
    const text = words(Number(input.value));
    input.setAttribute("aria-valuetext", text);
    output.textContent = text;
  };
  input.addEventListener("input", () => {
    tell();
    change(Number(input.value));
  });
  tell();
  const set = (now) => {
    input.value = now;
    tell();
  };
  return { row: element("div", { class: "slider" }, element("label", { for: id }, label), input, output), set };
}

/** Numbers for eyes, screen readers and tests: { list, set(name, value, words) }. */
export function readings(names) {
  const cells = Object.fromEntries(Object.keys(names).map((name) => [name, element("dd", { "data-name": name })]));
  const list = element("dl", { class: "readings" }, Object.entries(names).map(([name, words]) => element("div", {}, element("dt", {}, words), cells[name])));
  const set = (name, value, words) => {
    cells[name].textContent = words ?? (value === Infinity ? "∞" : format(value, 6));
    cells[name].dataset.value = String(value);
  };
  return { list, set };
}

/** Runs a function at most once a frame, with the newest call. */
export function eachFrame(work) {
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

/** Buttons of which one is pressed. */
export function choice(label, options, chosen, change) {
  const buttons = Object.entries(options).map(([value, words]) => {
    const button = element("button", { type: "button", "aria-pressed": String(value === chosen), "data-choice": value }, words);
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      change(value);
    });
    return button;
  });
  return element("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}
