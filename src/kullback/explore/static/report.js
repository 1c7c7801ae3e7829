// The report of training runs: from the data of runs to the sections of the page, which are updated in place.

import { addressOf, keepInAddress, noteState, numbersIn, shortNumber } from "./address.js";
import { chart, sharedView, swatch, table, zoomedAround } from "./chart.js";
import { completions } from "./completions.js";
import { element } from "./elements.js";
import { outcomeTable } from "./outcome_table.js";
import { klKey, runSections, X_AXES } from "./run_charts.js";
import { decodedView, interpolated, mergedView } from "./run_series.js";
import { durationText, statusStrip, stepLink } from "./run_status.js";

/** A run with the parts of `data` that Python sent, and the parts that an earlier answer had. */
export function mergedRun(old, data) {
  const part = (name) => (data[name] ? { ...data[name], view: mergedView(old?.[name].view, decodedView(data[name])) } : old[name]);
  return { ...old, ...data, metrics: part("metrics"), evaluations: part("evaluations") };
}

function settingsList(title, entries, names) {
  if (entries.length === 0) return null;
  const value = (text, i) => element("dd", {}, names ? swatch(i, names[i]) : null, element("code", {}, text));
  const entry = ([name, values]) => element("div", {}, element("dt", {}, name), values.map(value));
  return element("details", { class: "settings" }, element("summary", {}, `${title} (${entries.length})`), element("dl", {}, entries.map(entry)));
}

function settingText(value) {
  if (value === null || value === undefined) return "none";
  if (Array.isArray(value)) return value.map((entry) => (typeof entry === "object" ? JSON.stringify(entry) : String(entry))).join(", ") || "none";
  if (typeof value === "object") return Object.entries(value).map(([key, entry]) => `${key} ${typeof entry === "object" ? JSON.stringify(entry) : entry}`).join(", ") || "none";
  return String(value);
}

function settings(runs, names) {
  const keys = [...new Set(runs.flatMap(({ config }) => Object.keys(config)))];
  const rows = keys.map((key) => [key, runs.map(({ config }) => (Object.hasOwn(config, key) ? settingText(config[key]).slice(0, 6000) : "not set"))]);
  const differs = ([, values]) => new Set(values).size > 1;
  const shared = rows.filter((row) => !differs(row)).map(([key, values]) => [key, values.slice(0, 1)]);
  const lists = [settingsList("Settings that differ between the runs", rows.filter(differs), names), settingsList(names.length > 1 ? "Settings that all runs share" : "All settings", shared, null)];
  return rows.length ? element("section", {}, element("h2", {}, "Settings"), lists.filter(Boolean)) : null;
}

const counted = (number, noun) => `${number.toLocaleString("en-US")} ${noun}${number === 1 ? "" : "s"}`;

function facts({ budget, metrics, evaluations }) {
  const seconds = metrics.keys.seconds?.last?.[1];
  return [budget ? `budget ${budget.target} nats per ${budget.unit}` : "no budget", counted(metrics.view.rows, "step"), counted(evaluations.view.rows, "evaluation"),
    ...(seconds === undefined ? [] : [durationText(seconds)])].join(" · ");
}

/** Notices about missing data and blocks; a notice names all runs to which it applies. */
function notices(runs) {
  const found = new Map();
  for (const { name, metrics, evaluations } of runs) {
    const { rows, k, x } = metrics.view;
    const omitted = metrics.omitted + evaluations.omitted;
    const notes = [
      rows === 0 && "no training step has been recorded.",
      rows === 1 && "only one training step has been recorded.",
      omitted > 0 && `${counted(omitted, "row")} without a step number ${omitted === 1 ? "is" : "are"} omitted.`,
      k > 0 && `${rows.toLocaleString("en-US")} steps are drawn as the means of ${x.length} blocks of ${2 ** k}; the shading spans the minimum and the maximum of each block.`,
      evaluations.lastRow?.alarm && `${evaluations.lastRow.alarm}.`,
    ];
    for (const note of notes.filter(Boolean)) found.set(note, [...(found.get(note) ?? []), name]);
  }
  return [...found].map(([note, names]) => `${names.join(", ")}: ${note}`);
}

/**
 * The report: { node, update(page, live) }. page = { runs, divergences, table, problems }; `update` keeps the zoom, the cursor, the
 * focus and everything that was opened. `range(run, low, high)` returns a promise of the views of a part of a run, or null.
 */
export function report({ range = () => null, isLive = false } = {}) {
  const shared = sharedView();
  const node = element("div", { class: "report" });
  const [figures, folds] = [new Map(), new Map()];
  let [runs, divergences, xName, zoomed, sections, request, pending] = [[], {}, "step", null, [], 0, null];

  // ---- the parts of the page ----

  const strip = statusStrip((i, key, step) => showStep(key, step));
  const slot = () => element("div", { class: "part" });
  const [outcome, problems, findings, notes, charts, images, texts, values] = Array.from({ length: 8 }, slot);
  const list = element("ul", { class: "run-list" });
  const xSelect = element("select", { id: "run-x" });
  const smoothing = element("input", { type: "range", id: "run-smoothing", min: 0, max: 0.99, step: 0.01, value: 0, "aria-valuetext": "none" });
  const zoomText = element("span", { class: "aside", role: "status" });
  const button = (label, action) => Object.assign(element("button", { type: "button" }, label), { onclick: action });
  const whole = button("Whole run", () => shared.zoom(null));
  const toolbar = element("div", { class: "row toolbar", role: "group", "aria-label": "All charts" },
    element("label", { class: "picker", for: "run-x" }, "Axis", xSelect), element("label", { class: "picker", for: "run-smoothing" }, "Smoothing", smoothing),
    button("Zoom in", () => zoomBy(0.5)), button("Zoom out", () => zoomBy(2)), whole, zoomText);
  node.append(strip.node, outcome, list, problems, findings, notes, toolbar, charts, images, texts, values);

  /** Replaces the content of a part if the data that it shows has changed. */
  function show(part, data, build) {
    const now = JSON.stringify(data);
    if (part.dataset.shown === String(now.length) && part.shown === now) return;
    [part.shown, part.dataset.shown] = [now, now.length];
    const open = [...part.querySelectorAll("details")].map((details) => details.open);
    part.replaceChildren(...[build()].flat().filter(Boolean));
    [...part.querySelectorAll("details")].forEach((details, i) => { details.open = open[i] ?? false; });
  }

  function findingsList() {
    const shown = runs.flatMap((run, i) => (run.findings ?? []).map((finding) => [i, finding]));
    if (shown.length === 0) return null;
    const item = ([i, { name, severity, cause, remedy, evidence, step }]) => {
      const key = evidence.find(([label]) => label === "value")?.[1] ?? runs[i].budget?.key ?? klKey(runs[i]);
      const where = stepLink(step === null ? "show the chart" : `step ${step}`, () => showStep(key, step), addressOf());
      return element("li", { class: severity }, element("p", {}, element("strong", {}, `${severity} ${name}`), " ", runs.length > 1 && swatch(i, runs[i].name), " ", where),
        element("p", {}, `${cause[0].toUpperCase()}${cause.slice(1)}.`),
        element("details", {}, element("summary", {}, "Remedy and evidence"), element("p", { class: "aside" }, `${remedy[0].toUpperCase()}${remedy.slice(1)}.`), element("p", { class: "aside" }, `Evidence: ${evidence.map((pair) => pair.join(" ")).join(", ")}.`)));
    };
    return element("section", {}, element("h2", {}, "Findings of kullback doctor"), element("ul", { class: "findings" }, shown.map(item)));
  }

  function drawRunList() {
    if (list.children.length !== runs.length || [...list.querySelectorAll("bdi")].some((one, i) => one.textContent !== runs[i].name)) {
      list.replaceChildren(...runs.map(({ name }, i) => {
        const hide = button("", () => {
          if (!shared.hidden.delete(i)) shared.hidden.add(i);
          showHidden();
          shared.redraw();
          noteState();
        });
        hide.append(swatch(i, name));
        hide.classList.add("toggle");
        return element("li", {}, runs.length > 1 ? hide : swatch(i, name), element("p", {}, ""));
      }));
    }
    runs.forEach((run, i) => {
      const text = list.children[i].querySelector("p");
      if (text.textContent !== facts(run)) text.textContent = facts(run);
    });
    showHidden();
  }
  const showHidden = () => list.querySelectorAll(".toggle").forEach((one, i) => {
    one.setAttribute("aria-pressed", String(!shared.hidden.has(i)));
    one.title = shared.hidden.has(i) ? "Show this run" : "Hide this run";
  });

  function drawCharts() {
    const views = runs.map((run, i) => zoomed?.[i] ?? { metrics: run.metrics.view, evaluations: run.evaluations.view });
    sections = runSections(runs, views, xName, divergences);
    const ids = new Set(sections.flatMap(({ charts: some }) => some.map(({ id }) => id)));
    for (const [id, figure] of figures) {
      if (!ids.has(id)) {
        figure.remove();
        figures.delete(id);
      }
    }
    let before = null;
    for (const { title, charts: some, isFolded } of sections) {
      let fold = folds.get(title);
      if (!fold) {
        const grid = element("div", { class: "charts" });
        const box = isFolded ? element("details", { class: "fold" }, element("summary", {}, `${title} (${some.length})`), grid) : element("section", {}, element("h2", {}, title), grid);
        fold = { box, grid, specs: [] };
        folds.set(title, fold);
        if (isFolded) box.addEventListener("toggle", () => box.open && fillSection(fold));
      }
      fold.specs = some;
      if (fold.box.tagName !== "DETAILS" || fold.box.open) fillSection(fold);
      if (before ? before.nextSibling !== fold.box : charts.firstChild !== fold.box) charts.insertBefore(fold.box, before ? before.nextSibling : charts.firstChild);
      before = fold.box;
    }
    for (const [title, { box }] of folds) {
      if (sections.some((one) => one.title === title)) continue;
      box.remove();
      folds.delete(title);
    }
  }

  /** Creates or updates the charts of a section in their order. */
  function fillSection({ grid, specs }) {
    specs.forEach((spec, i) => {
      if (figures.has(spec.id)) figures.get(spec.id).update(spec);
      else figures.set(spec.id, chart(spec, shared));
      const figure = figures.get(spec.id);
      if (grid.children[i] !== figure) grid.insertBefore(figure, grid.children[i] ?? null);
    });
  }

  // ---- zoom, cursor and axis ----

  /** The steps at the ends of the shared range. */
  function stepRange({ metrics: { view } }) {
    if (xName === "step") return shared.range;
    const along = view.columns[xName]?.mean;
    return along && xName !== "kl" ? shared.range.map((value) => interpolated(along, view.x, value)) : null;
  }

  async function refetch() {
    const number = (request += 1);
    if (!shared.range) {
      zoomed = null;
      return drawCharts();
    }
    const found = await Promise.all(runs.map(async (run) => {
      const steps = stepRange(run);
      if (!steps || (run.metrics.view.k === 0 && run.evaluations.view.k === 0)) return null;
      try {
        return await range(run, ...steps);
      } catch {
        return null; // the blocks of the whole run stay
      }
    }));
    if (number !== request) return undefined;
    zoomed = found;
    return drawCharts();
  }

  /** The ends of the shared axis. */
  function extent() {
    const numbers = sections.flatMap(({ charts: some }) => some.filter(({ ownAxis }) => !ownAxis).flatMap(({ series }) => series.flatMap(({ x }) => [x[0], x.at(-1)]))).filter(Number.isFinite);
    return [Math.min(...numbers), Math.max(...numbers)];
  }
  let full = [0, 1];

  shared.zoomed = () => {
    if (shared.range && shared.range[0] <= full[0] && shared.range[1] >= full[1]) shared.range = null;
    whole.disabled = !shared.range;
    zoomText.textContent = shared.range ? `${X_AXES[xName].label} ${shared.range.map((one) => Math.round(one * 1000) / 1000).join(" to ")}` : "";
    noteState();
    return refetch();
  };
  shared.address = (id) => `${location.href.split("#")[0]}${addressOf(id)}`;
  function zoomBy(factor) {
    const now = shared.range ?? full;
    shared.zoom(zoomedAround(now, shared.at === null ? (now[0] + now[1]) / 2 : Math.max(now[0], Math.min(now[1], shared.at)), factor));
  }

  /** Moves the cursor of all charts to a step, and shows the chart of a metric. */
  function showStep(key, step) {
    const spec = sections.flatMap((one) => one.charts).find(({ keys = [] }) => keys.includes(key)) ?? sections[0]?.charts[0];
    if (!spec) return;
    const fold = [...folds.values()].find(({ specs }) => specs.some(({ id }) => id === spec.id));
    if (fold.box.tagName === "DETAILS" && !fold.box.open) {
      fold.box.open = true;
      fillSection(fold);
    }
    if (step !== null) {
      setAxis("step");
      const isBlock = runs.some((run) => run.metrics.view.k > 0);
      if (isBlock) shared.zoom([step - 100, step + 100]);
      shared.pinnedUntil = performance.now() + 1000; // the page scrolls below the pointer
      shared.moveTo(step);
      shared.charts.forEach((one) => one.placeCursor());
    }
    figures.get(spec.id).scrollIntoView({ block: "center" });
    figures.get(spec.id).querySelector("svg").focus({ preventScroll: true });
    noteState(`chart-${spec.id}`);
  }

  function setAxis(name) {
    if (name === xName) return;
    xName = name;
    xSelect.value = name;
    [shared.range, shared.at, zoomed] = [null, null, null];
    whole.disabled = true;
    zoomText.textContent = "";
    drawCharts();
    full = extent();
  }
  xSelect.addEventListener("change", () => {
    setAxis(xSelect.value);
    noteState();
  });
  function setSmoothing(value) {
    shared.smoothing = value;
    smoothing.value = value;
    smoothing.setAttribute("aria-valuetext", value ? `weight ${value} of the mean before` : "none");
    shared.redraw();
  }
  smoothing.addEventListener("input", () => {
    setSmoothing(Number(smoothing.value));
    noteState();
  });

  function keepState() {
    keepInAddress("axis", { get: () => (xName === "step" ? undefined : xName), set: (text) => setAxis(Object.hasOwn(X_AXES, text ?? "") ? text : "step") });
    keepInAddress("smooth", { get: () => (shared.smoothing ? String(shared.smoothing) : undefined), set: (text) => setSmoothing(Math.max(0, Math.min(0.99, Number(text) || 0))) });
    keepInAddress("hide", {
      get: () => (shared.hidden.size ? [...shared.hidden].join(",") : undefined),
      set(text) {
        shared.hidden.clear();
        (text ?? "").split(",").filter((one) => /^\d$/.test(one)).forEach((one) => shared.hidden.add(Number(one)));
        showHidden();
        shared.redraw();
      },
    });
    keepInAddress("range", {
      get: () => shared.range?.map(shortNumber).join(","),
      set(text) {
        const ends = numbersIn(text, 2);
        if (ends || shared.range) shared.zoom(ends && ends[0] < ends[1] ? ends : null);
      },
    });
  }

  // ---- updates ----

  let isFirst = true;
  const chosen = {};
  function update(page, state = {}) {
    [runs, divergences] = [page.runs, page.divergences ?? divergences];
    pending = state;
    const names = runs.map(({ name }) => name);
    strip.update(runs, { isLive, ...pending });
    const results = page.table ?? outcomeTable(runs, divergences);
    show(outcome, results, () => results && table(results, { class: "outcome" }));
    drawRunList();
    const troubles = [...(page.problems ?? []), ...runs.flatMap((run) => run.problems)];
    show(problems, troubles, () => troubles.map((text) => element("p", { class: "notice problem", role: "alert" }, text)));
    show(findings, [names, runs.map((run) => run.findings)], findingsList);
    show(notes, notices(runs), () => notices(runs).map((text) => element("p", { class: "notice" }, text)));
    const axes = Object.entries(X_AXES).filter(([, { present }]) => present(runs));
    if ([...xSelect.options].map(({ value }) => value).join() !== axes.map(([name]) => name).join()) {
      xSelect.replaceChildren(...axes.map(([name, { label }]) => element("option", { value: name }, label)));
      xSelect.value = xName;
    }
    if (zoomed && shared.range && shared.range[1] >= full[1]) refetch(); // the part reaches the end, which has moved
    else drawCharts();
    if (!shared.range) full = extent();
    toolbar.hidden = sections.length === 0;
    whole.disabled = !shared.range;
    const pictures = runs.map((run, i) => [i, run.pictures.after ?? run.pictures.before ?? []]).filter(([, rows]) => rows.length);
    show(images, [names, pictures], () => pictures.length > 0 && element("section", {}, element("h2", {}, "Images"), pictures.flatMap(([run, rows]) =>
      [element("h3", {}, swatch(run, names[run])), ...rows.map(({ title, images: some }) => element("figure", { class: "pictures" }, element("figcaption", {}, title),
        some.map((image, i) => element("img", { src: `data:image/png;base64,${image}`, alt: `${title}, ${i + 1}` }))))])));
    const focused = texts.contains(document.activeElement) && document.activeElement.name;
    show(texts, runs.map(({ name, samples, config }) => [name, samples, config.watched]), () => completions(runs, chosen));
    if (focused) texts.querySelector(`[name="${focused}"]`)?.focus({ preventScroll: true });
    show(values, runs.map(({ name, config }) => [name, config]), () => settings(runs, names));
    if (isFirst && runs.length) {
      isFirst = false;
      keepState();
    }
  }
  /** Shows the age of the data without new data. */
  const tick = (state) => runs.length > 0 && strip.update(runs, { isLive, ...state });
  return { node, update, tick };
}
