// The report of training runs: from the page's data, as report.py makes it, to its sections.

import { chart, element, samples, swatch, table } from "./chart.js";

function settings(title, entries, names) {
  if (entries.length === 0) return null;
  const value = (text, i) => element("dd", {}, names ? swatch(i, names[i]) : null, element("code", {}, text));
  const entry = ([name, values]) => element("div", {}, element("dt", {}, name), values.map(value));
  return element("details", { class: "settings" },
    element("summary", {}, title + " (" + entries.length + ")"), element("dl", {}, entries.map(entry)));
}

/** The nodes of a report, in their order. */
export function report(page) {
  const names = page.arms.map((arm) => arm.name);
  const section = (title, ...children) => element("section", {}, element("h2", {}, title), ...children);
  const figure = (spec) => chart({
    ...spec,
    groups: spec.groups ?? names,
    series: spec.series.map((one) => ({ ...one, x: page.grids[one.grid].x, spans: page.grids[one.grid].spans })),
  });
  return [
    page.table && table(page.table, { class: "outcome" }),
    element("ul", { class: "arms" }, page.arms.map((arm, i) => element("li", {}, swatch(i, arm.name), element("p", {}, arm.facts)))),
    ...page.notes.map((note) => element("p", { class: "notice" }, note)),
    ...page.sections.map(({ title, charts }) => section(title, element("div", { class: "charts" }, charts.map(figure)))),
    page.pictures.length > 0 && section("Images", ...page.pictures.flatMap(({ arm, rows }) =>
      [element("h3", {}, swatch(arm, names[arm])), ...rows.map(({ title, images }) => element("figure", { class: "pictures" },
        element("figcaption", {}, title),
        images.map((image, i) => element("img", { src: "data:image/png;base64," + image, alt: title + ", " + (i + 1) }))))])),
    page.samples.length > 0 && section("Completions", ...page.samples.flatMap(({ arm, note, items }) =>
      [element("h3", {}, swatch(arm, names[arm])), element("p", { class: "aside" }, note), samples(items)])),
    section("Configuration", settings("Settings that differ", page.settings.differing, names),
      settings(names.length > 1 ? "Settings in common" : "Settings", page.settings.shared, null)),
  ].filter(Boolean);
}
