// Room 1: a normal Q under a target P of modes that can be dragged; both KLs, their integrands, descents and the map.

import { format } from "./axes.js";
import { area, choice, dot, eachFrame, handle, line, plot, readings } from "./live_plot.js";
import { element, shape } from "./chart.js";
import { descend, klTo, logDensity, mapOf, minimaOf, phi } from "./math.js";

const [LOW, HIGH] = [-15, 35];
const [NARROW, WIDE] = [0.4, 25];
const GRID = Array.from({ length: 501 }, (_, i) => LOW + (i * (HIGH - LOW)) / 500);
const MEANS = Array.from({ length: 61 }, (_, i) => LOW + (i * (HIGH - LOW)) / 60);
const WIDTHS = Array.from({ length: 41 }, (_, i) => NARROW * (WIDE / NARROW) ** (i / 40));
const near = (mean) => Math.round(1e4 * mean) / 1e4 || 0; // beyond that a mean near 0 shows digits that say nothing
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export function directionsRoom() {
  const target = [{ weight: 0.5, mean: 0, width: 2 }, { weight: 0.5, mean: 20, width: 2 }];
  const q = { mean: 5, width: Math.sqrt(5) };
  let [direction, integrand, paths, minima, map] = ["reverse", "phi", {}, [], []];

  const numbers = readings({
    mean: "mean of Q", width: "width of Q", forward: "forward, KL(P || Q), nats", reverse: "reverse, KL(Q || P), nats",
  });
  const found = element("ol", { class: "minima" });
  const curves = (log) => GRID.map((x) => [x, Math.exp(log(x))]);
  const tallest = () => Math.max(0.22, ...[...target, q].map(({ width, weight = 1 }) => (weight * 0.42) / width));

  const densities = plot({
    title: "P and Q",
    note: "Blue: P. Orange: Q. Drag the top of a curve: sideways for its place, up and down for its width. Arrow keys do the same.",
    x: { label: "x", domain: () => [LOW, HIGH] },
    y: { label: "density", domain: () => [0, Math.min(1.1, tallest())] },
    draw: (api) => {
      const one = [{ weight: 1, ...q }];
      const top = (part, weight) => [part.mean, Math.min(weight * 0.3989 / part.width, api.invert(0, 12)[1])];
      return [
        area(api, curves((x) => logDensity(target, x)), 0), line(api, curves((x) => logDensity(target, x)), 0),
        line(api, curves((x) => logDensity(one, x)), 1),
        ...target.map((part, i) => grip(api, part, `mode-${i}`, 0, `mode ${i + 1} of P`, top(part, part.weight))),
        grip(api, q, "q", 1, "Q", top(q, 1)),
      ];
    },
  });

  function grip(api, part, name, group, label, at) {
    return handle(api, {
      name, group, label, at, value: part.mean, min: LOW, max: HIGH, steps: [0.1, 0.02],
      words: `mean ${format(part.mean, 4)}, width ${format(part.width, 4)}`,
      move: (dx, dy) => {
        part.mean = clamp(part.mean + dx, LOW, HIGH);
        part.width = clamp(part.width * Math.exp(-dy / Math.max(at[1], 0.02)), NARROW, 15);
        paths = {};
        if (name !== "q") stale();
        update();
      },
    });
  }

  const integrands = plot({
    title: "What is integrated",
    note: "Solid: KL(P || Q). Dashed: KL(Q || P). The areas are the two KLs.",
    x: { label: "x", domain: () => [LOW, HIGH] },
    y: { label: "nats per unit of x", domain: () => span },
    draw: (api) => [area(api, terms.forward, 2), line(api, terms.forward, 2), area(api, terms.reverse, 3), line(api, terms.reverse, 3, 1)],
  });
  let [span, terms] = [[0, 1], { forward: [], reverse: [] }];
  function integrate() {
    const of = (first, second) => GRID.map((x) => {
      const [a, b] = [logDensity(first, x), logDensity(second, x)];
      const p = Math.exp(a);
      return [x, integrand === "phi" ? (p < 1e-300 ? Math.exp(b) : p * phi(Math.min(b - a, 700))) : p * (a - b)];
    });
    const one = [{ weight: 1, ...q }];
    terms = { forward: of(target, one), reverse: of(one, target) };
    const values = [...terms.forward, ...terms.reverse].map(([, value]) => value).filter(Number.isFinite);
    span = [Math.min(0, ...values) * 1.05, Math.max(0.05, ...values) * 1.05];
  }

  const canvas = element("canvas", { width: MEANS.length, height: WIDTHS.length, "aria-hidden": "true" });
  const chart = plot({
    title: "KL over every Q",
    note: "",
    x: { label: "mean of Q", domain: () => [LOW, HIGH] },
    y: {
      label: "width of Q (log scale)", domain: () => [Math.log(NARROW), Math.log(WIDE)],
      ticks: [0.5, 1, 2, 5, 10, 20].map(Math.log), labels: ["0.5", "1", "2", "5", "10", "20"],
    },
    height: 320,
    draw: (api) => {
      const [x0, x1, y0, y1] = [api.x(LOW), api.x(HIGH), api.y(Math.log(WIDE)), api.y(Math.log(NARROW))];
      const route = (path, group, dash) => line(api, path.map((step) => [step.mean, Math.log(step.width)]), group, dash);
      return [
        shape("image", { href: canvas.toDataURL(), x: x0, y: y0, width: x1 - x0, height: y1 - y0, preserveAspectRatio: "none", class: "map" }),
        paths.forward && route(paths.forward, 2, 0), paths.reverse && route(paths.reverse, 3, 1),
        ...minima.map((one, i) => dot(api, [one.mean, Math.log(one.width)], 4, `minimum ${i + 1}: ${format(one.kl, 5)} nats`)),
        handle(api, {
          name: "map-q", at: [q.mean, Math.log(q.width)], group: 1, label: "Q on the map", value: q.mean, min: LOW, max: HIGH, steps: [0.1, 0.05],
          words: `mean ${format(q.mean, 4)}, width ${format(q.width, 4)}`,
          move: (dx, dy) => {
            q.mean = clamp(q.mean + dx, LOW, HIGH);
            q.width = clamp(q.width * Math.exp(dy), NARROW, WIDE);
            paths = {};
            update();
          },
        }),
      ];
    },
  });

  function paint() {
    map = mapOf(direction, target, MEANS, WIDTHS);
    minima = minimaOf(direction, target, MEANS, WIDTHS, map);
    const context = canvas.getContext("2d");
    const image = context.createImageData(MEANS.length, WIDTHS.length);
    const [least, most] = [Math.log(Math.max(minima[0]?.kl ?? 0.01, 0.01)), Math.log(60)];
    map.forEach((row, i) => row.forEach((value, j) => {
      const share = clamp((Math.log(Math.max(value, 1e-3)) - least) / (most - least), 0, 1);
      image.data.set([70, 100, 150, Math.round(210 * (1 - share))], 4 * ((WIDTHS.length - 1 - i) * MEANS.length + j));
    }));
    context.putImageData(image, 0, 0);
    const words = direction === "forward" ? "KL(P || Q)" : "KL(Q || P)";
    chart.words.textContent = `${words}: the bluer, the lower. Dots: its minima. Lines: descents, solid for KL(P || Q).`;
    found.replaceChildren(...minima.map((one) => element("li", { "data-mean": one.mean, "data-width": one.width, "data-value": one.kl },
      `${words} ${format(one.kl, 6)} nats at mean ${format(near(one.mean), 5)}, width ${format(one.width, 5)}`)));
    chart.redraw();
  }
  let timer = 0;
  function stale() {
    clearTimeout(timer);
    timer = setTimeout(paint, 120);
  }

  const update = eachFrame(() => {
    integrate();
    densities.redraw();
    integrands.redraw();
    chart.redraw();
    numbers.set("mean", q.mean);
    numbers.set("width", q.width);
    numbers.set("forward", klTo("forward", target, q.mean, q.width));
    numbers.set("reverse", klTo("reverse", target, q.mean, q.width));
  });

  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  function watch() {
    const whole = Object.fromEntries(["forward", "reverse"].map((way) => [way, descend(way, target, q)]));
    const longest = Math.max(whole.forward.length, whole.reverse.length);
    let shown = still ? longest : 1;
    const advance = () => {
      paths = Object.fromEntries(Object.entries(whole).map(([way, path]) => [way, path.slice(0, shown + 1)]));
      chart.redraw();
      shown += 1;
      if (shown <= longest) requestAnimationFrame(advance);
      else outcome.textContent = ["forward", "reverse"].map((way) => {
        const end = whole[way].at(-1);
        return `${way}: ${whole[way].length - 1} steps to mean ${format(near(end.mean), 5)}, width ${format(end.width, 5)}, ${format(end.kl, 6)} nats`;
      }).join("; ");
    };
    advance();
  }
  const outcome = element("p", { class: "aside", role: "status" });
  const go = element("button", { type: "button", id: "descend" }, "Descend from here, both ways");
  go.addEventListener("click", watch);

  const section = element("section", { class: "room", id: "directions", "aria-labelledby": "directions-title" },
    element("h2", { id: "directions-title" }, "Two directions"),
    element("p", { class: "lead" }, "The forward fit, least KL(P || Q), covers every mode of P; the reverse fit, least KL(Q || P), settles under one."),
    numbers.list,
    element("div", { class: "charts" }, densities.figure, integrands.figure),
    choice("integrand", { phi: "terms p φ(log q/p), never negative", usual: "p log(p/q)" }, integrand, (value) => { integrand = value; update(); }),
    chart.figure, element("div", { class: "row" }, choice("map of", { reverse: "map of KL(Q || P)", forward: "map of KL(P || Q)" }, direction, (value) => { direction = value; paint(); }), go),
    outcome, element("h3", {}, "Every minimum"), found);
  return { section, begin: () => { paint(); update(); } };
}
