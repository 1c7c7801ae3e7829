// The state of the explorer in the address of the page: #section?name=value&name=value. Only values that differ from the
// initial state are written.

const addressEntries = new Map(); // name: { get() returns text or undefined for the initial value, set(text or undefined) }
let addressTimer = 0;
let addressSection = "";

/** The section and the values of an address. */
export function readAddress() {
  const [section, query = ""] = location.hash.slice(1).split("?");
  return { section, values: new URLSearchParams(query) };
}

/** Registers a part of the state, and sets it to the value in the address. Text that `set` does not accept is ignored. */
export function keepInAddress(name, { get, set }) {
  addressEntries.set(name, { get, set });
  const value = readAddress().values.get(name);
  if (value !== null) set(value);
}

/** The fragment of the address for the present state. */
export function addressOf(section = addressSection) {
  const values = [...addressEntries].map(([name, { get }]) => [name, get()]).filter(([, value]) => value !== undefined);
  const query = values.map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2C", ",").replaceAll("%3B", ";").replaceAll("%3A", ":")}`);
  return `#${section}${query.length ? `?${query.join("&")}` : ""}`;
}

/** Writes the state to the address, at most every 300 ms. A page in a sandboxed frame has no address of its own. */
export function noteState(section) {
  if (section) addressSection = section;
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => {
    try {
      history.replaceState(null, "", addressOf());
    } catch { /* a sandboxed frame */ }
  }, 300);
}

/** Names the section that later addresses lead to. */
export function startAt(section) {
  addressSection = section;
}

/** Sets the state to the values of the address; a value that is absent becomes its initial value. */
export function restoreState() {
  const { section, values } = readAddress();
  addressSection = section;
  for (const [name, { set }] of addressEntries) set(values.get(name) ?? undefined);
}

/** Sets everything to its initial value. */
export function resetState() {
  for (const { set } of addressEntries.values()) set(undefined);
  noteState();
}

/** The finite numbers of a text such as "5,2.2", or null unless there are `count`. */
export function numbersIn(text, count) {
  const values = (text ?? "").split(",").map((part) => (part.trim() === "" ? NaN : Number(part)));
  return values.length === count && values.every(Number.isFinite) ? values : null;
}

/** A number as short text, for the address. */
export const shortNumber = (value) => String(Number(value.toPrecision(12)));
