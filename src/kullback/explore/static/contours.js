// Contours of a function on a rectangular grid, by marching squares. All functions are pure.

/**
 * The closed loops around the region in which `rows` is below `level`: lists of points [column, row] in units of the grid.
 * Values between the points of the grid are interpolated linearly; loops follow the border where the region reaches it.
 */
export function contourLoops(rows, level) {
  const [height, width] = [rows.length, rows[0].length];
  const value = (i, j) => rows[i]?.[j] ?? Infinity; // the grid has a border at which the function is infinite
  const place = (i, j) => [Math.min(width - 1, Math.max(0, j)), Math.min(height - 1, Math.max(0, i))];
  // An edge is named by its first point and its direction, so that the two cells beside it give it the same name.
  const across = (i, j) => 2 * ((i + 1) * (width + 2) + j + 1);
  const next = new Map(); // from each crossed edge to the point on it, and to the next edge of its loop
  const outside = new Array(width).fill(Infinity);
  for (let i = -1; i < height; i += 1) {
    const [upper, lower] = [rows[i] ?? outside, rows[i + 1] ?? outside];
    let [a, d] = [false, false];
    for (let j = -1; j < width; j += 1) {
      const [b, c] = [j + 1 < width && upper[j + 1] < level, j + 1 < width && lower[j + 1] < level];
      if (a !== b || b !== c || c !== d) addCell(i, j, [a, b, c, d]);
      [a, d] = [b, c];
    }
  }

  function addCell(i, j, inside) {
    const corners = [[i, j], [i, j + 1], [i + 1, j + 1], [i + 1, j]];
    const names = [across(i, j), across(i, j + 1) + 1, across(i + 1, j), across(i, j) + 1];
    const crossed = [0, 1, 2, 3].filter((k) => inside[k] !== inside[(k + 1) % 4]);
    crossed.forEach((k, n) => {
      if (!inside[k]) return; // a loop leaves the region at an edge, and its next point is where it enters again
      const [from, to] = [value(...corners[k]), value(...corners[(k + 1) % 4])];
      const t = to === Infinity ? 0 : (level - from) / (to - from);
      const [[x0, y0], [x1, y1]] = [place(...corners[k]), place(...corners[(k + 1) % 4])];
      next.set(names[k], [[x0 + t * (x1 - x0), y0 + t * (y1 - y0)], names[crossed[(n + 1) % crossed.length]]]);
    });
  }

  const loops = [];
  for (const start of [...next.keys()]) {
    const loop = [];
    for (let edge = start; next.has(edge);) {
      const [point, following] = next.get(edge);
      next.delete(edge);
      loop.push(point);
      edge = following;
    }
    if (loop.length > 2) loops.push(loop);
  }
  return loops;
}

/** The parts of a loop that are not on the border of a grid of `width` by `height` points. */
export function insideParts(loop, width, height) {
  const onBorder = ([x, y]) => x === 0 || y === 0 || x === width - 1 || y === height - 1;
  const first = loop.findIndex(onBorder);
  if (first < 0) return [[...loop, loop[0]]];
  const around = [...loop.slice(first), ...loop.slice(0, first), loop[first]];
  const parts = [[]];
  around.forEach((point, i) => {
    parts.at(-1).push(point);
    if (i > 0 && onBorder(point)) parts.push([point]);
  });
  return parts.filter((part) => part.length > 2 || (part.length === 2 && !(onBorder(part[0]) && onBorder(part[1]))));
}
