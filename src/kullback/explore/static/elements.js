// HTML and SVG elements without dependencies. Data is inserted as text, never as markup.

/** Sets attributes and appends children; undefined attributes and false children are skipped. */
export function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
  node.append(...children.flat().filter((child) => child || child === ""));
  return node;
}

/** An HTML element; children are nodes or strings, and strings become text nodes. */
export const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element; children are nodes or strings. */
export const shape = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Calls `callback` with the width of a node, initially and at every change. */
export function onWidth(node, callback) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now > 0 && now !== width) callback((width = now));
  }).observe(node);
}
