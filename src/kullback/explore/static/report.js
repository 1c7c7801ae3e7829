// The report of training runs: from the data of `page_data` in report.py to the sections of the page.

import { chart, element, samples, swatch, table } from "./chart.js";

function settings(title, entries, names) {
  if (entries.length === 0) return null;
  const value = (text, i) => element("dd", {}, names ? swatch(i, names[i]) : null, element("code", {}, text));
  const entry = ([name, values]) => element("div", {}, element("dt", {}, name), values.map(value));
  return element("details", { class: "settings" },
    element("summary", {}, title + " (" + entries.length + ")"), element("dl", {}, entries.map(entry)));
}

/** The nodes of a report, in display order. */
export function report(page) {
  const names = page.runs.map((run) => run.name);
  const section = (title, ...children) => element("section", {}, element("h2", {}, title), ...children);
  const figure = (spec) => chart({
    ...spec,
    groups: spec.groups ?? names,
    series: spec.series.map((curve) => ({ ...curve, x: page.grids[curve.grid].x, spans: page.grids[curve.grid].spans })),
  });
  return [
    page.table && table(page.table, { class: "outcome" }),
    element("ul", { class: "run-list" }, page.runs.map((run, i) => element("li", {}, swatch(i, run.name), element("p", {}, run.facts)))),
    ...page.notes.map((note) => element("p", { class: "notice" }, note)),
    ...page.sections.map(({ title, charts }) => section(title, element("div", { class: "charts" }, charts.map(figure)))),
    page.pictures.length > 0 && section("Images", ...page.pictures.flatMap(({ run, rows }) =>
      [element("h3", {}, swatch(run, names[run])), ...rows.map(({ title, images }) => element("figure", { class: "pictures" },
        element("figcaption", {}, title),
        images.map((image, i) => element("img", { src: "data:image/png;base64," + image, alt: title + ", " + (i + 1) }))))])),
    page.samples && section("Completions", element("p", { class: "aside" }, page.samples.note), samples(page.samples.items, names)),
    section("Settings", settings("Settings that differ between the runs", page.settings.differing, names),
      settings(names.length > 1 ? "Settings that all runs share" : "All settings", page.settings.shared, null)),
  ].filter(Boolean);
}
