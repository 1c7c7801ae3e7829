// Saves a figure as SVG, PNG or CSV, copies its data, and copies a link to it.

import { element } from "./elements.js";

const PROPERTIES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity", "font-family", "font-size", "font-weight", "text-anchor", "paint-order", "visibility"];

/** The markup of an SVG element, with the styles of the page as attributes, so that it looks the same in another program. */
export function standaloneSvg(svg) {
  const copy = svg.cloneNode(true);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const originals = [svg, ...svg.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((node, i) => {
    const style = getComputedStyle(originals[i]);
    for (const name of PROPERTIES) node.setAttribute(name, style.getPropertyValue(name));
    for (const name of ["class", "tabindex", "role", ...node.getAttributeNames().filter((one) => /^(aria|data)-/.test(one))]) node.removeAttribute(name);
  });
  copy.querySelectorAll("[visibility=hidden]").forEach((node) => node.remove());
  const background = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [name, value] of Object.entries({ width: "100%", height: "100%", fill: getComputedStyle(document.body).backgroundColor })) background.setAttribute(name, value);
  copy.prepend(background);
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  return new XMLSerializer().serializeToString(copy);
}

function saveFile(name, content, type) {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

async function pngOf(svg, scale = 2) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standaloneSvg(svg))}`;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width * scale, height: image.height * scale });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** Text with the cells of rows, separated by commas, as in RFC 4180. */
export const csvOf = (rows) => rows.map((row) => row.map((cell) => (/[",\n]/.test(String(cell)) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell))).join(",")).join("\n") + "\n";

/** Buttons that save or copy a figure. `rows()` returns its data with a header row, `svg()` its picture and `link()` its address. */
export function exportMenu(name, { rows, svg, link }) {
  const status = element("span", { role: "status" });
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = "copied";
    } catch {
      status.textContent = "The browser did not give access to the clipboard.";
    }
  };
  const actions = {
    SVG: () => saveFile(`${name}.svg`, standaloneSvg(svg()), "image/svg+xml"),
    PNG: async () => saveFile(`${name}.png`, await pngOf(svg())),
    CSV: () => saveFile(`${name}.csv`, csvOf(rows()), "text/csv"),
    "Copy data": () => copy(csvOf(rows())),
    "Copy link": () => copy(link()),
  };
  const button = ([label, action]) => Object.assign(element("button", { type: "button" }, label), { onclick: action });
  return element("div", { class: "row export" }, Object.entries(actions).map(button), status);
}
