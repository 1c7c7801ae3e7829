// Axes of a chart: ticks, domains, scales and number formats. All functions are pure.

const clean = (value) => Number(value.toPrecision(12)) + 0;
const minus = (text) => text.replaceAll("-", "−");

/** Formats a number with at least `digits` significant digits; an exponent is used below 1e-4 and from 1e7. */
export function format(value, digits = 4) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) {
    return minus(value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e"));
  }
  const whole = size < 1 ? 1 : Math.floor(Math.log10(size)) + 1;
  return minus(formatter(Math.max(digits, whole)).format(value));
}

const formatters = new Map(); // creating a formatter takes longer than using it
function formatter(maximumSignificantDigits) {
  if (!formatters.has(maximumSignificantDigits)) formatters.set(maximumSignificantDigits, new Intl.NumberFormat("en-US", { maximumSignificantDigits }));
  return formatters.get(maximumSignificantDigits);
}

/** The labels of evenly spaced ticks, with the same number of decimals unless a label needs an exponent. */
export function tickLabels(values) {
  const plain = values.map((value) => format(value, 6));
  if (plain.some((text) => text.includes("e"))) return plain;
  const decimals = Math.max(0, ...plain.map((text) => (text.split(".")[1] ?? "").length));
  return values.map((value) => minus(value.toLocaleString("en-US", { minimumFractionDigits: decimals })));
}

/** About `count` round numbers in [low, high], whose spacing is 1, 2 or 5 times a power of ten. */
export function ticks(low, high, count = 5, integer = false) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(integer ? 1 : 0, power * [1, 2, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9)));
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => clean((first + i) * step));
}

/** Ticks of a logarithmic axis: powers of ten, with further ticks in each decade when there are few decades. */
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

/** The interval of an axis that shows all `numbers`: it is never empty, and it is positive when `log` is true. */
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

/** The function that maps a domain to a range of pixels, linearly or logarithmically. */
export function scale([low, high], [from, to], log = false) {
  const fraction = log ? (value) => Math.log(value / low) / Math.log(high / low) : (value) => (value - low) / (high - low);
  return (value) => from + fraction(value) * (to - from);
}

/** The index of the number nearest to `value` in the ascending list `sorted`. */
export function nearest(sorted, value) {
  let [low, high] = [0, sorted.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[high] - value) < Math.abs(sorted[low] - value) ? high : low;
}

/** The maximal ranges of consecutive indices whose values satisfy `isDrawn`; a curve has a gap between two ranges. */
export function consecutive(values, isDrawn = (value) => value !== null) {
  const found = [];
  values.forEach((value, i) => {
    if (!isDrawn(value)) return;
    if (found.at(-1)?.at(-1) === i - 1) found.at(-1).push(i);
    else found.push([i]);
  });
  return found;
}
