// Question 1: a normal distribution Q, a mixture P, the fits that minimise each KL, the integrands, and maps of both KLs.

import { keepInAddress, noteState, numbersIn } from "./address.js";
import { element, shape } from "./elements.js";
import { contourLoops, insideParts } from "./contours.js";
import { areaUnder, control, curveOf, dragPoint, labelAt, limit, liveFigure, number4, oncePerFrame, playback, pointAt, pressButton, radioButtons, valueList } from "./figure.js";
import { descend, forwardFit, klIntegrand, klMap, klTo, localMinima, logDensityOf } from "./math.js";

const [MEAN_LOW, MEAN_HIGH] = [-15, 35];
const [SD_LOW, SD_HIGH] = [0.4, 25];
const MAP_MEANS = Array.from({ length: 61 }, (_, i) => MEAN_LOW + (i * (MEAN_HIGH - MEAN_LOW)) / 60);
const MAP_SDS = Array.from({ length: 41 }, (_, i) => SD_LOW * (SD_HIGH / SD_LOW) ** (i / 40));
const MAP_LEVELS = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128];
const DIRECTIONS = { forward: "KL(P || Q)", reverse: "KL(Q || P)" };
const mixtureOf = (...parts) => parts.map(([weight, mean, sd]) => ({ weight, mean, sd }));
const TARGETS = {
  two: { label: "two modes", parts: () => mixtureOf([0.5, 0, 2], [0.5, 20, 2]), q: [5, Math.sqrt(5)] },
  unequal: { label: "unequal", parts: () => mixtureOf([0.8, 2, 2.5], [0.2, 16, 1.2]), q: [9, 3] },
  skewed: { label: "skewed", parts: () => mixtureOf([0.45, 2, 1.2], [0.35, 5, 2.2], [0.2, 11, 4]), q: [18, 2] },
  disjoint: { label: "disjoint", parts: () => mixtureOf([0.5, -8, 0.8], [0.5, 28, 0.8]), q: [10, 1.5] },
};

export function directionsPage() {
  let [preset, target, q] = ["two", TARGETS.two.parts(), { mean: 5, sd: Math.sqrt(5) }];
  let [guess, form, path] = ["", "phi", null];
  const fits = { forward: forwardFit(target), reverse: [] };
  const maps = { forward: { minima: [] }, reverse: { minima: [] } };
  /** The map of a KL for the present P, computed when it is first needed: { rows, loops, minima }. */
  function mapOf(name) {
    const map = maps[name];
    map.rows ??= klMap(name, target, MAP_MEANS, MAP_SDS);
    map.loops ??= MAP_LEVELS.map((level) => contourLoops(map.rows, level));
    return map;
  }
  const normalPart = ({ mean, sd }) => [{ weight: 1, mean, sd }];
  const setTo = ({ mean, sd }) => { q = { mean: limit(mean, MEAN_LOW, MEAN_HIGH), sd: limit(sd, SD_LOW, SD_HIGH) }; };
  const best = () => fits.reverse.filter(({ kl }) => kl < fits.reverse[0].kl + 1e-6);

  // ---- the densities, and the integrands on the same axis ----

  const drawnInterval = () => {
    const all = [...target, q];
    return [Math.min(MEAN_LOW, ...all.map(({ mean, sd }) => mean - 3.5 * sd)), Math.max(MEAN_HIGH, ...all.map(({ mean, sd }) => mean + 3.5 * sd))];
  };
  /** Points for curves: evenly spaced over the domain, and denser around every component. */
  function gridOver([low, high]) {
    const points = Array.from({ length: 301 }, (_, i) => low + (i * (high - low)) / 300);
    for (const { mean, sd } of [...target, q]) for (let z = -4; z <= 4; z += 0.125) points.push(mean + z * sd);
    return points.filter((x) => x >= low && x <= high).sort((a, b) => a - b);
  }
  const densityCurve = (parts, grid) => {
    const logDensity = logDensityOf(parts);
    return grid.map((x) => [x, Math.exp(logDensity(x))]);
  };
  const highest = () => Math.max(...[...target, { ...q, weight: 1 }].map(({ weight, sd }) => (0.39894228 * weight) / sd));

  const densities = liveFigure({
    id: "densities", title: "Densities of P and Q",
    describe: () => `P has ${target.length} components. Q has mean ${number4(q.mean)} and standard deviation ${number4(q.sd)}.`,
    x: { label: "x", domain: drawnInterval }, y: { label: "probability density", domain: () => [0, 1.2 * Math.max(0.18, highest())] },
    draw: (api) => {
      const grid = gridOver([api.invert(api.box.left, 0)[0], api.invert(api.box.right, 0)[0]]);
      const faint = [["forward", [fits.forward]], ["reverse", best()]].flatMap(([name, all]) => all.map((fit, i) => [
        curveOf(api, densityCurve(normalPart(fit), grid), `faint ${guess ? name : "neutral"} ${name === "reverse" ? "dashed" : ""}`),
        i === 0 && labelAt(api, [fit.mean + (name === "forward" ? 0.6 * fit.sd : -fit.sd), (name === "forward" ? 0.333 : 0.242) / fit.sd],
          guess ? `${name} fit` : name === "forward" ? "A" : "B", { dx: name === "forward" ? 6 : -8, dy: -5, anchor: name === "forward" ? "start" : "end" }),
      ]));
      const peak = (part, weight) => [part.mean, (weight * 0.39894228) / part.sd];
      return [
        areaUnder(api, densityCurve(target, grid), "p"), curveOf(api, densityCurve(target, grid), "p"), faint,
        curveOf(api, densityCurve(normalPart(q), grid), "q"),
        target.map((part, i) => densityHandle(api, part, `mode-${i}`, "p", peak(part, part.weight), part.weight)),
        densityHandle(api, q, "q", "q", peak(q, 1), 1),
      ];
    },
    rows: () => {
      const grid = gridOver(drawnInterval());
      const [p, other] = [densityCurve(target, grid), densityCurve(normalPart(q), grid)];
      return [["x", "p", "q"], ...grid.map((x, i) => [x, p[i][1], other[i][1]])];
    },
  });

  /** A handle at the highest point of a component: sideways for the mean, up and down for the standard deviation. */
  function densityHandle(api, part, name, style, at, weight) {
    return dragPoint(api, {
      name, style, at,
      start: () => stopPath(),
      move: (mean, height) => {
        const now = name === "q" ? q : part;
        now.mean = limit(mean, MEAN_LOW, MEAN_HIGH);
        now.sd = limit((0.39894228 * weight) / Math.max(height, 1e-9), SD_LOW, SD_HIGH);
        if (name === "q") update();
        else updateTarget();
      },
      done: () => (name === "q" ? update() : settleTarget()),
    });
  }

  let terms = { grid: [], forward: [], reverse: [], inside: {}, missing: {} };
  function updateIntegrands(kls) {
    const grid = gridOver(integrands.dragging || densities.dragging ? terms.domain : drawnInterval());
    const [logP, logQ] = [logDensityOf(target), logDensityOf(normalPart(q))].map((logDensity) => grid.map(logDensity));
    const integrand = (a, b) => grid.map((x, i) => [x, form === "phi" ? klIntegrand(a[i], b[i]) : Math.exp(a[i]) * (a[i] - b[i])]);
    terms = { domain: [grid[0], grid.at(-1)], forward: integrand(logP, logQ), reverse: integrand(logQ, logP), inside: {}, missing: {} };
    for (const name of ["forward", "reverse"]) {
      const isShort = (i) => (name === "forward" ? logP[i] > logQ[i] : logQ[i] > logP[i]);
      let [sum, part, from, top, worst] = [0, 0, 0, 0, { part: 0, at: 0 }];
      terms[name].forEach(([x, value], i) => {
        if (i === 0) return;
        const piece = ((value + terms[name][i - 1][1]) / 2) * (x - terms[name][i - 1][0]);
        sum += piece;
        if (isShort(i)) {
          if (!isShort(i - 1)) [part, from] = [0, i];
          part += piece;
          if (part > worst.part) {
            top = from;
            for (let k = from; k <= i; k += 1) if (terms[name][k][1] > terms[name][top][1]) top = k;
            worst = { part, at: terms[name][top] };
          }
        }
      });
      terms.inside[name] = sum;
      terms.missing[name] = worst;
    }
    const outside = ["forward", "reverse"].map((name) => [name, kls[name] - terms.inside[name]]).filter(([name, value]) => Math.abs(value) > 1e-3 * kls[name]);
    outsideNote.textContent = outside.map(([name, value]) => `${number4(value)} of the ${number4(kls[name])} nats of ${DIRECTIONS[name]} are outside of the drawn interval.`).join(" ");
    for (const name of ["forward", "reverse"]) outsideNote.dataset[name] = String(kls[name] - terms.inside[name]);
    const { forward, reverse } = terms.missing;
    missingNote.textContent = [
      kls.forward > 1e-6 && `Around x = ${number4(Math.round(forward.at[0]))}, Q has less probability than P; this interval contributes ${number4(forward.part)} of the ${number4(kls.forward)} nats of KL(P || Q).`,
      kls.reverse > 1e-6 && `Around x = ${number4(Math.round(reverse.at[0]))}, Q has more probability than P; this interval contributes ${number4(reverse.part)} of the ${number4(kls.reverse)} nats of KL(Q || P).`,
    ].filter(Boolean).join(" ");
  }
  const outsideNote = element("p", { class: "aside", id: "outside" });
  const missingNote = element("p", { id: "missing" });

  const integrands = liveFigure({
    id: "integrands", title: "Where the KL comes from", height: 210,
    note: "Solid: the integrand of KL(P || Q). Dashed: the integrand of KL(Q || P). The area under each curve is the KL.",
    x: { label: "x", domain: () => terms.domain ?? drawnInterval() },
    y: {
      label: "nats per unit of x",
      domain: () => {
        const values = [...terms.forward, ...terms.reverse].map(([, value]) => value);
        return [Math.min(0, 1.05 * Math.min(0, ...values)), 1.2 * Math.max(0.02, ...values)];
      },
    },
    draw: (api) => {
      const { forward } = terms.missing;
      return [
        areaUnder(api, terms.forward, "forward"), curveOf(api, terms.forward, "forward", { "data-curve": "forward" }),
        areaUnder(api, terms.reverse, "reverse"), curveOf(api, terms.reverse, "reverse dashed", { "data-curve": "reverse" }),
        forward?.part > 0.05 && labelAt(api, forward.at, `Q is missing here: ${number4(forward.part)} of ${number4(shown.forward)} nats`, { dy: -6 }),
      ];
    },
    rows: () => [["x", "integrand of KL(P || Q)", "integrand of KL(Q || P)"], ...terms.forward.map(([x, value], i) => [x, value, terms.reverse[i][1]])],
  });

  // ---- the maps ----

  const mapFigures = Object.fromEntries(["forward", "reverse"].map((name) => [name, liveFigure({
    id: `map-${name}`, title: `${DIRECTIONS[name]} for every Q`, height: 300,
    describe: () => maps[name].minima.map((minimum) => minimumText(name, minimum)).join("; "),
    x: { label: "mean of Q", domain: () => [MEAN_LOW, MEAN_HIGH] },
    y: {
      label: "standard deviation of Q (log scale)", domain: () => [Math.log(SD_LOW), Math.log(SD_HIGH)],
      ticks: [0.5, 1, 2, 5, 10, 20].map(Math.log), labels: ["0.5", "1", "2", "5", "10", "20"],
    },
    backKey: () => version,
    back: (api) => {
      const [across, up] = [(api.box.right - api.box.left) / 60, (api.box.bottom - api.box.top) / 40];
      const toPixels = ([column, row]) => [Math.round(10 * (api.box.left + column * across)) / 10, Math.round(10 * (api.box.bottom - row * up)) / 10];
      const through = (points) => `M${points.map(toPixels).join("L")}`;
      const { loops: allLoops } = mapOf(name);
      const bands = allLoops.map((loops) => shape("path", { class: `level ${name}`, d: loops.map((loop) => `${through(loop)}Z`).join("") }));
      const lines = shape("path", { class: `contour ${name}`, d: allLoops.flat().flatMap((loop) => insideParts(loop, 61, 41)).map(through).join("") });
      // The label of a level stands where its region is widest, unless another label is near.
      const taken = [];
      const labels = allLoops.map((loops, i) => {
        const top = loops.flat().reduce((high, point) => (point[1] > (high?.[1] ?? -1) && point[1] < 39 ? point : high), null);
        if (!top) return null;
        const [px, py] = toPixels(top);
        if (taken.some(([x, y]) => Math.abs(x - px) < 34 && Math.abs(y - py) < 15)) return null;
        taken.push([px, py]);
        return shape("text", { class: "note small", x: limit(px, api.box.left + 14, api.box.right - 14), y: py + 4, "text-anchor": "middle" }, number4(MAP_LEVELS[i]));
      });
      return [...bands, lines, ...labels.filter(Boolean)];
    },
    draw: (api) => {
      return [
        path?.name === name && curveOf(api, path.points.map(({ mean, sd }) => [mean, Math.log(sd)]), "q"),
        maps[name].minima.map((minimum, i) => {
          const node = pointAt(api, [minimum.mean, Math.log(minimum.sd)], `${name} press`, `${minimumText(name, minimum)}`, 6);
          node.addEventListener("click", () => goTo(minimum));
          node.dataset.minimum = String(i);
          return node;
        }),
        dragPoint(api, {
          name: `map-q-${name}`, style: "q", at: [q.mean, Math.log(q.sd)], start: () => stopPath(),
          move: (mean, logSd) => { setTo({ mean, sd: Math.exp(logSd) }); update(); }, done: () => update(),
        }),
      ];
    },
    rows: () => [["standard deviation", "mean", "kl"], ...MAP_SDS.flatMap((sd, i) => MAP_MEANS.map((mean, j) => [sd, mean, mapOf(name).rows[i][j]]))],
  })]));
  const scaleNode = (name) => element("p", { class: "scale-row", "aria-hidden": "true" }, "KL, nats: ", ...MAP_LEVELS.slice(1, 8).map((level, i) =>
    element("span", { class: `swatch-level ${name} l${i}` }, `< ${level}`)));

  function minimumText(name, { mean, sd, kl }) {
    const covered = target.filter((part) => Math.abs(part.mean - mean) < 2 * sd).length;
    const cover = target.length === 1 ? "" : covered === target.length ? "spans every mode" : covered === 1 ? "covers one mode" : `covers ${covered} modes`;
    return `${number4(kl)} nats at mean ${number4(Math.abs(mean) < 1e-4 ? 0 : mean)}, standard deviation ${number4(sd)}${cover && `: ${cover}`}`;
  }

  const minimaLists = Object.fromEntries(["forward", "reverse"].map((name) => [name, element("ol", { class: "minima", "data-minima": name })]));
  const minimaNote = element("p", { id: "minima-note" });
  function listMinima() {
    for (const name of ["forward", "reverse"]) {
      minimaLists[name].replaceChildren(...maps[name].minima.map((minimum) =>
        element("li", { "data-mean": minimum.mean, "data-sd": minimum.sd, "data-value": minimum.kl },
          pressButton(minimumText(name, minimum), () => goTo(minimum), { class: "plain" }))));
    }
    const { minima } = maps.reverse;
    const local = minima.length - best().length;
    minimaNote.textContent = `KL(P || Q) has one minimum, with the mean and the variance of P. It is called mean-seeking, and mode-covering when it spans the modes. ${
      minima.length > 1 ? `KL(Q || P) has ${minima.length} local minima${local > 0 ? `, of which ${local === 1 ? "one is" : `${local} are`} not the lowest` : ""}. The lowest covers ${target.filter((part) => Math.abs(part.mean - minima[0].mean) < 2 * minima[0].sd).length === 1 ? "one mode (mode-seeking)" : "several components"}; which minimum a fit reaches depends on where it starts.`
        : "KL(Q || P) has one minimum for this P."}`;
  }

  let version = 0; // counts the changes of P
  function changeTarget() {
    version += 1;
    for (const map of Object.values(maps)) [map.rows, map.loops] = [undefined, undefined];
    fits.forward = forwardFit(target);
    maps.forward.minima = [{ ...fits.forward, kl: klTo("forward", target, fits.forward.mean, fits.forward.sd) }];
  }
  function findMinima() {
    maps.reverse.minima = localMinima("reverse", target, MAP_MEANS, MAP_SDS, mapOf("reverse").rows);
    fits.reverse = maps.reverse.minima;
    listMinima();
  }
  /** The minima of a changed P, followed from the minima of the former P. */
  function followMinima() {
    maps.reverse.minima = maps.reverse.minima.map((minimum) => descend("reverse", target, minimum, 12).at(-1)).sort((a, b) => a.kl - b.kl);
    fits.reverse = maps.reverse.minima;
  }

  // ---- fits, and the reader's guess ----

  const stopPath = () => { player.stop(); };
  function startFit(name) {
    player.stop();
    const points = descend(name, target, q);
    const lengths = [0];
    points.slice(1).forEach((point, i) => lengths.push(lengths.at(-1) + Math.hypot((point.mean - points[i].mean) / point.sd, Math.SQRT2 * Math.log(point.sd / points[i].sd))));
    path = { name, points, lengths };
    player.set(0);
    player.play();
  }
  function placeOnPath(fraction) {
    if (!path) return;
    const { points, lengths, name } = path;
    const along = fraction * lengths.at(-1);
    const i = fraction >= 1 ? points.length - 1 : Math.max(0, lengths.findIndex((length) => length > along) - 1);
    const next = Math.min(i + 1, points.length - 1);
    const t = lengths[next] > lengths[i] ? (along - lengths[i]) / (lengths[next] - lengths[i]) : 0;
    setTo({ mean: points[i].mean + t * (points[next].mean - points[i].mean), sd: points[i].sd * (points[next].sd / points[i].sd) ** t });
    if (fraction >= 1) {
      const end = points.at(-1);
      outcome.textContent = `${DIRECTIONS[name]} descends to mean ${number4(Math.abs(end.mean) < 1e-4 ? 0 : end.mean)}, standard deviation ${number4(end.sd)}, ${number4(end.kl)} nats.`;
    }
    update();
  }
  const player = playback({ id: "path", label: "position on the path of the fit", seconds: 1.5, text: (value) => `${Math.round(100 * value)}%`, change: placeOnPath });
  function goTo(minimum) {
    stopPath();
    path = null;
    setTo(minimum);
    update();
  }
  const outcome = element("p", { class: "aside", role: "status", id: "outcome" });

  const verdict = element("p", { role: "status", id: "verdict" });
  const guessButtons = element("div", { class: "row" }, pressButton("A", () => setGuess("A"), { "data-guess": "A" }), pressButton("B", () => setGuess("B"), { "data-guess": "B" }));
  function setGuess(value) {
    guess = value;
    verdict.textContent = guess && `${guess === "A" ? "Correct" : "It is A"}. A is the forward fit: it minimises KL(P || Q), has the mean of P (mean-seeking) and covers every mode (mode-covering). B is the reverse fit: it minimises KL(Q || P) and stays where P is large (mode-seeking).`;
    guessButtons.hidden = Boolean(guess);
    update();
  }

  // ---- controls ----

  const numbers = valueList({ forward: "forward KL(P || Q), nats", reverse: "reverse KL(Q || P), nats", mean: "mean of Q", sd: "standard deviation of Q" });
  const meanControl = (id, label, part) => control({
    id, label, min: MEAN_LOW, max: MEAN_HIGH, step: 0.1, value: part().mean,
    change: (mean) => { stopPath(); part().mean = mean; part() === q ? update() : updateTarget(); },
  });
  const sdControl = (id, label, part) => control({
    id, label, min: SD_LOW, max: SD_HIGH, step: 0.02, log: true, value: part().sd,
    change: (sd) => { stopPath(); part().sd = sd; part() === q ? update() : updateTarget(); },
  });
  const qControls = [meanControl("q-mean", "mean of Q", () => q), sdControl("q-sd", "standard deviation of Q", () => q)];
  let pControls = [];
  const pPanel = element("div");
  function buildTargetControls() {
    pControls = target.map((_, i) => [meanControl(`p-mean-${i}`, `mean of component ${i + 1} of P`, () => target[i]), sdControl(`p-sd-${i}`, `standard deviation of component ${i + 1}`, () => target[i])]);
    pPanel.replaceChildren(...pControls.flat().map(({ row }) => row));
  }
  const presets = radioButtons({
    name: "preset", label: "P", options: Object.fromEntries(Object.entries(TARGETS).map(([name, { label }]) => [name, label])), value: preset,
    change: (value) => choosePreset(value),
  });
  function choosePreset(name) {
    stopPath();
    preset = name;
    target = TARGETS[name].parts();
    setTo({ mean: TARGETS[name].q[0], sd: TARGETS[name].q[1] });
    path = null;
    outcome.textContent = "";
    buildTargetControls();
    settleTarget();
  }
  const forms = radioButtons({
    name: "form", label: "Form of the integrand", options: { phi: "p φ(log(q/p)), never negative", usual: "p log(p/q)" }, value: form,
    change: (value) => { form = value; update(); },
  });

  // ---- updates ----

  let shown = { forward: 0, reverse: 0 };
  let targetChanged = false;
  let settleTimer = 0;
  const update = oncePerFrame(() => {
    if (targetChanged) {
      changeTarget();
      followMinima();
      targetChanged = false;
    }
    shown = { forward: klTo("forward", target, q.mean, q.sd), reverse: klTo("reverse", target, q.mean, q.sd) };
    updateIntegrands(shown);
    for (const figure of [densities, integrands, ...Object.values(mapFigures)]) figure.redraw();
    for (const [name, value] of Object.entries({ ...shown, mean: q.mean, sd: q.sd })) numbers.set(name, value);
    qControls[0].set(q.mean);
    qControls[1].set(q.sd);
    pControls.forEach(([mean, sd], i) => { mean.set(target[i].mean); sd.set(target[i].sd); });
    noteState();
  });
  /** P changes continuously: the maps follow, and the search for all minima waits for a pause. */
  function updateTarget() {
    [targetChanged, path, preset] = [true, null, ""];
    presets.set(preset);
    clearTimeout(settleTimer);
    settleTimer = setTimeout(settleTarget, 150);
    update();
  }
  function settleTarget() {
    clearTimeout(settleTimer);
    changeTarget();
    findMinima();
    targetChanged = false;
    update();
  }

  const section = element("section", { class: "question", id: "directions", "aria-labelledby": "directions-title" },
    element("h2", { id: "directions-title" }, "1. Which Q is nearest?"),
    element("p", { class: "lead" }, "P is a mixture of normal distributions, and Q is one normal distribution. KL(P || Q) is the mean of log(p(x)/q(x)) over x drawn from P; KL(Q || P) is the mean of log(q(x)/p(x)) over x drawn from Q. Two faint curves show the Q that minimises each of them."),
    element("div", { class: "guess" }, element("p", {}, "Before you move anything: which faint curve, A or B, minimises KL(P || Q)?"), guessButtons, verdict),
    presets.group, numbers.list,
    element("p", { class: "key-row" }, element("span", { class: "key-p" }, "P"), element("span", { class: "key-q" }, "Q"), element("span", {}, "Drag the handle of a curve: sideways for the mean, up and down for the standard deviation.")),
    densities.figure,
    element("div", { class: "controls" }, qControls.map(({ row }) => row)),
    element("details", { class: "more" }, element("summary", {}, "Change P by numbers"), pPanel),
    integrands.figure, missingNote, outsideNote, forms.group,
    element("div", { class: "row" }, pressButton("Fit forward", () => startFit("forward"), { id: "fit-forward" }), pressButton("Fit reverse", () => startFit("reverse"), { id: "fit-reverse" })),
    player.row, outcome,
    element("div", { class: "pair" }, ["forward", "reverse"].map((name) => element("div", {}, mapFigures[name].figure, scaleNode(name),
      element("h4", {}, `Local minima of ${DIRECTIONS[name]}`), minimaLists[name]))),
    minimaNote);

  return {
    section,
    start: () => {
      keepInAddress("p", {
        get: () => (preset === "" ? target.map(({ weight, mean, sd }) => [weight, mean, sd].join(",")).join(";") : preset === "two" ? undefined : preset),
        set: (text) => {
          if (text === undefined || Object.hasOwn(TARGETS, text)) {
            presets.set(text ?? "two");
            choosePreset(text ?? "two");
            return;
          }
          const rows = text.split(";").map((row) => numbersIn(row, 3));
          const isValid = rows.length >= 1 && rows.length <= 4 && rows.every((row) => row && row[0] > 0 && row[0] <= 1) && Math.abs(rows.reduce((sum, row) => sum + row[0], 0) - 1) < 1e-6;
          if (!isValid) return;
          [preset, path] = ["", null];
          presets.set(preset);
          target = mixtureOf(...rows.map(([weight, mean, sd]) => [weight, limit(mean, MEAN_LOW, MEAN_HIGH), limit(sd, SD_LOW, SD_HIGH)]));
          buildTargetControls();
          settleTarget();
        },
      });
      keepInAddress("q", {
        get: () => (preset !== "" && q.mean === TARGETS[preset].q[0] && q.sd === TARGETS[preset].q[1] ? undefined : `${String(q.mean)},${String(q.sd)}`),
        set: (text) => {
          const values = text === undefined ? TARGETS[preset || "two"].q : numbersIn(text, 2);
          if (values) goTo({ mean: values[0], sd: values[1] });
        },
      });
      keepInAddress("guess1", { get: () => guess || undefined, set: (text) => setGuess(text === "A" || text === "B" ? text : "") });
      keepInAddress("form", { get: () => (form === "phi" ? undefined : form), set: (text) => { form = text === "usual" ? "usual" : "phi"; forms.set(form); update(); } });
      buildTargetControls();
      settleTarget();
    },
  };
}
