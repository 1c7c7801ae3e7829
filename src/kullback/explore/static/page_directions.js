// Page 1: a normal distribution Q, a mixture P, both KLs with their integrands, and KL as a function of Q.

import { format } from "./axes.js";
import { area, choice, dot, handle, line, oncePerFrame, plot, readings } from "./live_plot.js";
import { element, shape } from "./chart.js";
import { descend, klMap, klTo, localMinima, logDensity, phi } from "./math.js";

const [LOW, HIGH] = [-15, 35];
const [SD_MIN, SD_MAX] = [0.4, 25];
const GRID = Array.from({ length: 501 }, (_, i) => LOW + (i * (HIGH - LOW)) / 500);
const MEANS = Array.from({ length: 61 }, (_, i) => LOW + (i * (HIGH - LOW)) / 60);
const SDS = Array.from({ length: 41 }, (_, i) => SD_MIN * (SD_MAX / SD_MIN) ** (i / 40));
const KL_NAMES = { forward: "KL(P || Q)", reverse: "KL(Q || P)" };
const roundMean = (mean) => Math.round(1e4 * mean) / 1e4 || 0; // a descent finds a mean of 0 only to about 1e-5
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export function directionsPage() {
  const target = [{ weight: 0.5, mean: 0, sd: 2 }, { weight: 0.5, mean: 20, sd: 2 }];
  const q = { mean: 5, sd: Math.sqrt(5) };
  let [direction, integrandForm, paths, minima] = ["reverse", "phi", {}, []];

  const numbers = readings({
    mean: "mean of Q", sd: "standard deviation of Q", forward: "forward KL(P || Q), nats", reverse: "reverse KL(Q || P), nats",
  });
  const minimaList = element("ol", { class: "minima" });
  const densityCurve = (parts) => GRID.map((x) => [x, Math.exp(logDensity(parts, x))]);
  const maxDensity = () => Math.max(0.22, ...[...target, q].map(({ sd, weight = 1 }) => (weight * 0.42) / sd));
  const describe = (part) => `mean ${format(part.mean, 4)}, standard deviation ${format(part.sd, 4)}`;

  const densities = plot({
    title: "Densities of P and Q",
    note: "Blue: P. Orange: Q. Drag the handle of a curve sideways to change its mean, and up or down to change its standard deviation, or use the arrow keys.",
    x: { label: "x", domain: () => [LOW, HIGH] },
    y: { label: "probability density", domain: () => [0, Math.min(1.1, maxDensity())] },
    draw: (api) => {
      const peak = (part, weight) => [part.mean, Math.min(weight * 0.3989 / part.sd, api.invert(0, 12)[1])];
      return [
        area(api, densityCurve(target), 0), line(api, densityCurve(target), 0), line(api, densityCurve([{ weight: 1, ...q }]), 1),
        ...target.map((part, i) => densityHandle(api, part, `mode-${i}`, 0, `mode ${i + 1} of P`, peak(part, part.weight))),
        densityHandle(api, q, "q", 1, "Q", peak(q, 1)),
      ];
    },
  });

  function densityHandle(api, part, name, group, label, at) {
    return handle(api, {
      name, group, label, at, value: part.mean, min: LOW, max: HIGH, steps: [0.1, 0.02], text: describe(part),
      move: (dx, dy) => {
        part.mean = clamp(part.mean + dx, LOW, HIGH);
        part.sd = clamp(part.sd * Math.exp(-dy / Math.max(at[1], 0.02)), SD_MIN, 15);
        paths = {};
        if (name !== "q") scheduleMap();
        update();
      },
    });
  }

  const integrands = plot({
    title: "Integrands of the KL divergences",
    note: "Solid: KL(P || Q). Dashed: KL(Q || P). The integral of each curve is the KL. Both forms of the integrand below have the same integral; φ(d) = e^d − 1 − d is never negative.",
    x: { label: "x", domain: () => [LOW, HIGH] },
    y: { label: "nats per unit of x", domain: () => range },
    draw: (api) => [area(api, terms.forward, 2), line(api, terms.forward, 2), area(api, terms.reverse, 3), line(api, terms.reverse, 3, 1)],
  });
  let [range, terms] = [[0, 1], { forward: [], reverse: [] }];
  function updateIntegrands() {
    const integrand = (first, second) => GRID.map((x) => {
      const [a, b] = [logDensity(first, x), logDensity(second, x)];
      const p = Math.exp(a);
      return [x, integrandForm === "phi" ? (p < 1e-300 ? Math.exp(b) : p * phi(Math.min(b - a, 700))) : p * (a - b)];
    });
    const qParts = [{ weight: 1, ...q }];
    terms = { forward: integrand(target, qParts), reverse: integrand(qParts, target) };
    const values = [...terms.forward, ...terms.reverse].map(([, value]) => value).filter(Number.isFinite);
    range = [Math.min(0, ...values) * 1.05, Math.max(0.05, ...values) * 1.05];
  }

  const canvas = element("canvas", { width: MEANS.length, height: SDS.length, "aria-hidden": "true" });
  const map = plot({
    title: "KL as a function of the mean and the standard deviation of Q",
    note: "",
    x: { label: "mean of Q", domain: () => [LOW, HIGH] },
    y: {
      label: "standard deviation of Q (log scale)", domain: () => [Math.log(SD_MIN), Math.log(SD_MAX)],
      ticks: [0.5, 1, 2, 5, 10, 20].map(Math.log), labels: ["0.5", "1", "2", "5", "10", "20"],
    },
    height: 320,
    draw: (api) => {
      const [x0, x1, y0, y1] = [api.x(LOW), api.x(HIGH), api.y(Math.log(SD_MAX)), api.y(Math.log(SD_MIN))];
      const pathLine = (path, group, dash) => line(api, path.map((step) => [step.mean, Math.log(step.sd)]), group, dash);
      return [
        shape("image", { href: canvas.toDataURL(), x: x0, y: y0, width: x1 - x0, height: y1 - y0, preserveAspectRatio: "none", class: "map" }),
        paths.forward && pathLine(paths.forward, 2, 0), paths.reverse && pathLine(paths.reverse, 3, 1),
        ...minima.map((minimum, i) => dot(api, [minimum.mean, Math.log(minimum.sd)], 4, `minimum ${i + 1}: ${format(minimum.kl, 5)} nats`)),
        handle(api, {
          name: "map-q", at: [q.mean, Math.log(q.sd)], group: 1, label: "Q on the map", value: q.mean, min: LOW, max: HIGH, steps: [0.1, 0.05],
          text: describe(q),
          move: (dx, dy) => {
            q.mean = clamp(q.mean + dx, LOW, HIGH);
            q.sd = clamp(q.sd * Math.exp(dy), SD_MIN, SD_MAX);
            paths = {};
            update();
          },
        }),
      ];
    },
  });

  function updateMap() {
    const values = klMap(direction, target, MEANS, SDS);
    minima = localMinima(direction, target, MEANS, SDS, values);
    const context = canvas.getContext("2d");
    const image = context.createImageData(MEANS.length, SDS.length);
    const [logLow, logHigh] = [Math.log(Math.max(minima[0]?.kl ?? 0.01, 0.01)), Math.log(60)];
    values.forEach((row, i) => row.forEach((value, j) => {
      const fraction = clamp((Math.log(Math.max(value, 1e-3)) - logLow) / (logHigh - logLow), 0, 1);
      image.data.set([70, 100, 150, Math.round(210 * (1 - fraction))], 4 * ((SDS.length - 1 - i) * MEANS.length + j));
    }));
    context.putImageData(image, 0, 0);
    const kl = KL_NAMES[direction];
    map.caption.textContent = `Colour: ${kl}; a stronger blue is a smaller KL. Dots: local minima of ${kl}. Lines: descents of KL(P || Q), solid, and of KL(Q || P), dashed.`;
    minimaList.replaceChildren(...minima.map((minimum) => element("li", { "data-mean": minimum.mean, "data-sd": minimum.sd, "data-value": minimum.kl },
      `${kl} = ${format(minimum.kl, 6)} nats at mean ${format(roundMean(minimum.mean), 5)}, standard deviation ${format(minimum.sd, 5)}`)));
    map.redraw();
  }
  let timer = 0;
  function scheduleMap() {
    clearTimeout(timer);
    timer = setTimeout(updateMap, 120);
  }

  const update = oncePerFrame(() => {
    updateIntegrands();
    densities.redraw();
    integrands.redraw();
    map.redraw();
    numbers.set("mean", q.mean);
    numbers.set("sd", q.sd);
    numbers.set("forward", klTo("forward", target, q.mean, q.sd));
    numbers.set("reverse", klTo("reverse", target, q.mean, q.sd));
  });

  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
  function runDescents() {
    const whole = Object.fromEntries(["forward", "reverse"].map((name) => [name, descend(name, target, q)]));
    const longest = Math.max(whole.forward.length, whole.reverse.length);
    let shown = reducedMotion ? longest : 1;
    const advance = () => {
      paths = Object.fromEntries(Object.entries(whole).map(([name, path]) => [name, path.slice(0, shown + 1)]));
      map.redraw();
      shown += 1;
      if (shown <= longest) requestAnimationFrame(advance);
      else outcome.textContent = ["forward", "reverse"].map((name) => {
        const end = whole[name].at(-1);
        return `${KL_NAMES[name]}: ${whole[name].length - 1} steps to mean ${format(roundMean(end.mean), 5)}, standard deviation ${format(end.sd, 5)}, ${format(end.kl, 6)} nats.`;
      }).join(" ");
    };
    advance();
  }
  const outcome = element("p", { class: "aside", role: "status" });
  const descendButton = element("button", { type: "button", id: "descend" }, "Descend both KLs from the current Q");
  descendButton.addEventListener("click", runDescents);

  const section = element("section", { class: "page", id: "directions", "aria-labelledby": "directions-title" },
    element("h2", { id: "directions-title" }, "Forward and reverse KL"),
    element("p", { class: "lead" }, "KL(P || Q) is the mean of log(p(x)/q(x)) over x drawn from P. P is the target, a mixture of two normal distributions, and Q is the model, one normal distribution. The Q that minimises the forward KL(P || Q) covers both modes of P. When the modes are far apart, the Q that minimises the reverse KL(Q || P) covers only one mode."),
    numbers.list,
    element("div", { class: "charts" }, densities.figure, integrands.figure),
    choice("Form of the integrand", { phi: "integrand p φ(log(q/p))", usual: "integrand p log(p/q)" }, integrandForm, (value) => { integrandForm = value; update(); }),
    map.figure,
    element("div", { class: "row" }, choice("KL on the map", { reverse: "map of KL(Q || P)", forward: "map of KL(P || Q)" }, direction, (value) => { direction = value; updateMap(); }), descendButton),
    outcome, element("h3", {}, "Local minima"), minimaList);
  return { section, start: () => { updateMap(); update(); } };
}
