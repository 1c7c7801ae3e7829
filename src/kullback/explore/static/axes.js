// The numbers of a chart: ticks, domains, scales, labels. Pure functions: no document, no state.

const clean = (value) => Number(value.toPrecision(12)) + 0;
const minus = (text) => text.replaceAll("-", "−");

/** A number as text: at least `digits` significant digits, thousands grouped, an exponent only when very small or large. */
export function format(value, digits = 4) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) {
    return minus(value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e"));
  }
  const whole = size < 1 ? 1 : Math.floor(Math.log10(size)) + 1;
  return minus(value.toLocaleString("en-US", { maximumSignificantDigits: Math.max(digits, whole) }));
}

/** The labels of evenly spaced ticks: the same number of decimals on each, unless one needs an exponent. */
export function tickLabels(values) {
  const plain = values.map((value) => format(value, 6));
  if (plain.some((text) => text.includes("e"))) return plain;
  const decimals = Math.max(0, ...plain.map((text) => (text.split(".")[1] ?? "").length));
  return values.map((value) => minus(value.toLocaleString("en-US", { minimumFractionDigits: decimals })));
}

/** Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `count` of them. */
export function ticks(low, high, count = 5, integer = false) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(integer ? 1 : 0, power * [1, 2, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9)));
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => clean((first + i) * step));
}

/** Ticks of a logarithmic axis: powers of ten, or more of each decade when there are few decades. */
export function logTicks(low, high, count = 5) {
  const every = Math.max(1, Math.ceil(Math.log10(high / low) / count));
  const inside = (factors) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      found.push(...factors.map((factor) => clean(factor * 10 ** power)).filter(() => power % every === 0));
    }
    return found.filter((value) => value >= low && value <= high);
  };
  const choices = [[1], [1, 3], [1, 2, 5], [1, 2, 3, 5, 7]].map(inside);
  return choices.find((found) => found.length >= 3) ?? ticks(low, high, count);
}

/** The interval that an axis spans so as to show the numbers; never empty, and positive when `log`. */
export function domain(numbers, { log = false, zero = false, min = null, max = null } = {}) {
  const shown = numbers.filter((value) => Number.isFinite(value) && (!log || value > 0));
  if (zero && !log) shown.push(0);
  const low = min ?? shown.reduce((a, b) => Math.min(a, b), Infinity);
  const high = max ?? shown.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!Number.isFinite(low) || !Number.isFinite(high)) return log ? [0.1, 1] : [0, 1];
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) {
    if (log) return [low / 2, low * 2];
    return low === 0 ? [0, 1] : [low - Math.abs(low) / 10, low + Math.abs(low) / 10];
  }
  const [padLow, padHigh] = [min === null && !(zero && low === 0), max === null && !(zero && high === 0)];
  const pad = log ? (high / low) ** 0.05 : (high - low) * 0.05;
  if (log) return [padLow ? low / pad : low, padHigh ? high * pad : high];
  return [padLow ? low - pad : low, padHigh ? high + pad : high];
}

/** The function from a domain to a range of pixels. */
export function scale([low, high], [from, to], log = false) {
  const along = log ? (value) => Math.log(value / low) / Math.log(high / low) : (value) => (value - low) / (high - low);
  return (value) => from + along(value) * (to - from);
}

/** The index of the number in the ascending list `sorted` that is nearest to `value`. */
export function nearest(sorted, value) {
  let [low, high] = [0, sorted.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[high] - value) < Math.abs(sorted[low] - value) ? high : low;
}

/** The runs of indices at which `drawn(value)` holds: a line breaks where a value is missing. */
export function runs(values, drawn = (value) => value !== null) {
  const found = [];
  values.forEach((value, i) => {
    if (!drawn(value)) return;
    if (found.at(-1)?.at(-1) === i - 1) found.at(-1).push(i);
    else found.push([i]);
  });
  return found;
}
