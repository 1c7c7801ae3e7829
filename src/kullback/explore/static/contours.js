// Contours of a function on a rectangular grid, by marching squares. All functions are pure.

/**
 * The closed loops around the region in which `rows` is below `level`: lists of points [column, row] in units of the grid.
 * Values between the points of the grid are interpolated linearly; loops follow the border where the region reaches it.
 */
export function contourLoops(rows, level) {
  const [height, width] = [rows.length + 2, rows[0].length + 2]; // the grid with a border at which the function is infinite
  const value = (i, j) => rows[i - 1]?.[j - 1] ?? Infinity;
  const place = (i, j) => [Math.min(width - 3, Math.max(0, j - 1)), Math.min(height - 3, Math.max(0, i - 1))];
  const next = new Map(); // from each crossed edge to the next one, with the point on the first
  for (let i = 0; i < height - 1; i += 1) {
    for (let j = 0; j < width - 1; j += 1) {
      const corners = [[i, j], [i, j + 1], [i + 1, j + 1], [i + 1, j]];
      const values = corners.map(([a, b]) => value(a, b));
      // An edge is named by its first point and its direction, so that the two cells beside it give it the same name.
      const names = [2 * (i * width + j), 2 * (i * width + j + 1) + 1, 2 * ((i + 1) * width + j), 2 * (i * width + j) + 1];
      const crossed = [0, 1, 2, 3].filter((k) => values[k] < level !== values[(k + 1) % 4] < level);
      if (crossed.length === 0) continue;
      crossed.forEach((k, n) => {
        const [from, to] = [values[k], values[(k + 1) % 4]];
        if (!(from < level)) return; // a loop leaves the region at an edge, and its next point is where it enters again
        const t = to === Infinity ? 0 : (level - from) / (to - from);
        const [[x0, y0], [x1, y1]] = [place(...corners[k]), place(...corners[(k + 1) % 4])];
        next.set(names[k], [[x0 + t * (x1 - x0), y0 + t * (y1 - y0)], names[crossed[(n + 1) % crossed.length]]]);
      });
    }
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
