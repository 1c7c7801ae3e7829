// The metrics of a run as views: at most 800 points, each a row or the mean of a block of 2^k successive rows.
//
// view = { rows, version, k, first, x, from, to, columns: { key: { mean, low, high, bad } } }, see MetricColumns.view in downsample.py.

const MAX_POINTS = 800;
const LARGEST = 1e300;

/** A number that is not too large for an axis, or null. */
export const finiteNumber = (value) => (typeof value === "number" && Math.abs(value) < LARGEST ? value : null);

const unpacked = (text) => new Float64Array(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);

/** The view that Python encoded. */
export function decodedView(data) {
  const columns = Object.entries(data.columns).map(([key, { mean, low, high, bad }]) =>
    [key, { mean: unpacked(mean), low: low && unpacked(low), high: high && unpacked(high), bad: new Set(bad) }]);
  return { ...data, x: unpacked(data.x), from: data.from && unpacked(data.from), to: data.to && unpacked(data.to), columns: Object.fromEntries(columns) };
}

function joined(before, after, kept) {
  const values = new Float64Array(kept + after.length);
  values.set(before.subarray(0, kept));
  values.set(after, kept);
  return values;
}

/** A view with the blocks of another view of the same run that start later; the same view if the other has all blocks. */
export function mergedView(old, added) {
  if (!old || added.first === 0 || added.version !== old.version || added.k !== old.k) return added;
  const kept = Math.min(old.x.length, added.first - old.first);
  const columns = {};
  for (const key of new Set([...Object.keys(old.columns), ...Object.keys(added.columns)])) {
    const [a, b] = [old.columns[key], added.columns[key]];
    const missing = (length) => new Float64Array(length).fill(NaN);
    const part = (name) => (a ?? b)[name] && joined(a?.[name] ?? missing(kept), b?.[name] ?? missing(added.x.length), kept);
    const bad = new Set([...[...(a?.bad ?? [])].filter((i) => i < kept), ...[...(b?.bad ?? [])].map((i) => i + kept)]);
    columns[key] = { mean: part("mean"), low: part("low"), high: part("high"), bad };
  }
  const ends = (name) => old[name] && joined(old[name], added[name], kept);
  return { ...added, first: old.first, x: joined(old.x, added.x, kept), from: ends("from"), to: ends("to"), columns };
}

/** Rows of an opened file as columns, with the same views as MetricColumns in downsample.py. */
export class RowColumns {
  /** With `merge`, rows of one step are joined; otherwise the last row of a step is used. Under keys with `isMissing(key)`, null stands for a value that does not exist. */
  constructor(rows, { isMissing = () => true, merge = false } = {}) {
    const latest = new Map();
    this.omitted = 0;
    for (const row of rows) {
      const step = finiteNumber(row.step);
      if (step === null) this.omitted += 1;
      else latest.set(step, merge && latest.has(step) ? { ...latest.get(step), ...row } : row);
    }
    this.steps = [...latest.keys()].sort((a, b) => a - b);
    this.sorted = this.steps.map((step) => latest.get(step));
    this.columns = new Map();
    this.keys = {};
    const names = [...new Set(this.sorted.flatMap(Object.keys))].filter((key) => key !== "step");
    for (const key of names) {
      const values = this.sorted.map((row) => (Object.hasOwn(row, key) ? RowColumns.number(row[key], isMissing(key)) : NaN));
      const bad = values.flatMap((value, i) => (Math.abs(value) === Infinity ? [this.steps[i]] : []));
      const last = values.findLastIndex(Number.isFinite);
      if (last < 0 && bad.length === 0) continue;
      this.columns.set(key, values);
      this.keys[key] = { last: last < 0 ? null : [this.steps[last], values[last]], ...(bad.length ? { bad: [bad.length, bad[0]] } : {}) };
    }
    const shown = (row) => row && Object.fromEntries(Object.entries(row).map(([key, value]) =>
      [key, (value === null && !isMissing(key)) || RowColumns.number(value, true) === Infinity ? "not finite" : value]));
    [this.firstRow, this.lastRow] = [shown(this.sorted[0]) ?? null, shown(this.sorted.at(-1)) ?? null];
  }

  /** A finite number; NaN for no value, and Infinity for a value that is not finite. */
  static number(value, isMissing) {
    if (value === null) return isMissing ? NaN : Infinity;
    if (typeof value === "string") return /^(nan|[+-]?inf(inity)?)$/i.test(value) ? Infinity : NaN;
    return typeof value === "number" ? finiteNumber(value) ?? Infinity : NaN;
  }

  view(low, high, x = "step") {
    const column = x === "step" ? this.steps : this.columns.get(x) ?? [];
    const inside = low === undefined ? null : column.flatMap((value, i) => (low <= value && value <= high ? [i] : []));
    const [start, stop] = inside === null ? [0, this.steps.length] : inside.length ? [Math.max(0, inside[0] - 1), Math.min(this.steps.length, inside.at(-1) + 2)] : [0, 0];
    const k = Math.max(0, Math.ceil(Math.log2(Math.max(1, stop - start) / MAX_POINTS)));
    const [size, first] = [2 ** k, Math.floor(start / 2 ** k)];
    const count = Math.ceil(stop / size) - first;
    const blocks = Array.from({ length: Math.max(0, count) }, (_, i) => [(first + i) * size, Math.min((first + i + 1) * size, this.steps.length)]);
    const reduced = (values) => {
      const result = { mean: new Float64Array(blocks.length), low: new Float64Array(blocks.length), high: new Float64Array(blocks.length), bad: new Set() };
      blocks.forEach(([from, to], i) => {
        let [sum, number, least, most] = [0, 0, Infinity, -Infinity];
        for (let j = from; j < to; j += 1) {
          const value = values[j];
          if (Number.isFinite(value)) [sum, number, least, most] = [sum + value, number + 1, Math.min(least, value), Math.max(most, value)];
          else if (!Number.isNaN(value)) result.bad.add(i);
        }
        [result.mean[i], result.low[i], result.high[i]] = number ? [sum / number, least, most] : [NaN, NaN, NaN];
      });
      return k ? result : { ...result, low: undefined, high: undefined };
    };
    const columns = [...this.columns].filter(([key]) => !k || !key.endsWith("_std_error")).map(([key, values]) => [key, reduced(values)]);
    return {
      rows: this.steps.length, version: 0, k, first, x: reduced(this.steps).mean,
      ...(k ? { from: Float64Array.from(blocks, ([from]) => this.steps[from]), to: Float64Array.from(blocks, ([, to]) => this.steps[to - 1]) } : {}),
      columns: Object.fromEntries(columns),
    };
  }
}

/** Linear interpolation of y at `value` in points with increasing x; the ends continue as constants. */
export function interpolated(xs, ys, value) {
  let [low, high] = [0, xs.length - 1];
  if (high < 0) return NaN;
  if (value <= xs[0]) return ys[0];
  if (value >= xs[high]) return ys[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= value) low = middle;
    else high = middle;
  }
  return ys[low] + ((ys[high] - ys[low]) * (value - xs[low])) / (xs[high] - xs[low]);
}
