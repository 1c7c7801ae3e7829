// Tests of axes.js against values worked out by hand. test_report.py runs this file with node.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

// Through a data URL, every version of node loads the file as a module.
const source = readFileSync(new URL("../../src/kullback/explore/static/axes.js", import.meta.url), "utf8");
const { consecutive, domain, format, logTicks, nearest, scale, tickLabels, ticks } = await import(
  `data:text/javascript;base64,${Buffer.from(source).toString("base64")}`
);

test("ticks are round numbers inside the interval", () => {
  assert.deepEqual(ticks(0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  assert.deepEqual(ticks(0.003, 0.052, 5), [0.01, 0.02, 0.03, 0.04, 0.05]);
  assert.deepEqual(ticks(-3, 3, 3), [-2, 0, 2]);
  assert.deepEqual(ticks(0, 3, 10, true), [0, 1, 2, 3]);
  assert.deepEqual(ticks(6, 8, 8, true), [6, 7, 8]);
  assert.deepEqual(ticks(0, 50000, 5), [0, 10000, 20000, 30000, 40000, 50000]);
});

test("ticks are inside the interval, evenly spaced and few at every magnitude", () => {
  for (let power = -12; power <= 12; power += 1) {
    for (const [a, b] of [[0, 1], [1, 1.7], [-9.3, 4.1], [2.2, 97], [0.999, 1.001]]) {
      const [low, high] = [a * 10 ** power, b * 10 ** power];
      const found = ticks(low, high, 5);
      assert.ok(found.length >= 2 && found.length <= 9, `${low} ${high}: ${found}`);
      assert.ok(found.every((tick) => tick >= low - 1e-9 * Math.abs(low) && tick <= high * (1 + 1e-9)), `${low} ${high}: ${found}`);
      const gaps = found.slice(1).map((tick, i) => (tick - found[i]) / (found[1] - found[0]));
      assert.ok(gaps.every((gap) => Math.abs(gap - 1) < 1e-6), `${found}`);
    }
  }
});

test("logarithmic ticks are powers of ten, with more ticks for few decades", () => {
  assert.deepEqual(logTicks(1e-4, 1, 5), [1e-4, 1e-3, 1e-2, 0.1, 1]);
  assert.deepEqual(logTicks(1e-8, 1, 4), [1e-8, 1e-6, 1e-4, 1e-2, 1]);
  assert.deepEqual(logTicks(0.002, 0.5, 5), [0.003, 0.01, 0.03, 0.1, 0.3]);
  assert.deepEqual(logTicks(0.002, 0.02, 5), [0.002, 0.005, 0.01, 0.02]);
  assert.ok(logTicks(1, 1.1, 5).length >= 2);
});

test("a domain contains its numbers, is never empty, and is positive on a logarithmic axis", () => {
  assert.deepEqual(domain([]), [0, 1]);
  assert.deepEqual(domain([null, NaN]), [0, 1]);
  assert.deepEqual(domain([0, 0]), [0, 1]);
  assert.deepEqual(domain([2, 2]), [1.8, 2.2]);
  assert.deepEqual(domain([1, 3], { zero: true }), [0, 3.15]);
  assert.deepEqual(domain([0.2, 0.4], { min: 0, max: 1.03 }), [0, 1.03]);
  assert.deepEqual(domain([-1, 0, null], { log: true }), [0.1, 1]);
  assert.deepEqual(domain([4, 0], { log: true }), [2, 8]);
  const [low, high] = domain([1e-4, 1], { log: true });
  assert.ok(low > 5e-5 && low < 1e-4 && high > 1 && high < 2);
});

test("a scale maps its domain onto its range", () => {
  const y = scale([0, 10], [200, 0]);
  assert.deepEqual([0, 5, 10].map(y), [200, 100, 0]);
  const log = scale([0.01, 1], [0, 100], true);
  assert.ok(Math.abs(log(0.1) - 50) < 1e-9);
});

test("the nearest number is found, also beyond the ends", () => {
  const stops = [0, 20, 40, 60];
  assert.deepEqual([-5, 9, 11, 20, 49, 51, 99].map((x) => nearest(stops, x)), [0, 0, 1, 1, 2, 3, 3]);
  assert.equal(nearest([7], 100), 0);
});

test("a curve has a gap where a value is missing", () => {
  assert.deepEqual(consecutive([1, 2, null, 3, null, null, 4, 5]), [[0, 1], [3], [6, 7]]);
  assert.deepEqual(consecutive([1, 0, 2], (value) => value > 0), [[0], [2]]);
  assert.deepEqual(consecutive([]), []);
});

test("numbers are formatted with digit groups, minus signs and exponents", () => {
  assert.deepEqual([0, 0.05, -0.25, 12345.6, 0.123456, 1e-6, -2.5e-7, 3e9].map((v) => format(v)),
    ["0", "0.05", "−0.25", "12,346", "0.1235", "1e−6", "−2.5e−7", "3e9"]);
  assert.deepEqual([null, undefined, NaN, Infinity].map((v) => format(v)), ["–", "–", "–", "–"]);
  assert.deepEqual(tickLabels([0, 0.05, 0.1]), ["0.00", "0.05", "0.10"]);
  assert.deepEqual(tickLabels([0, 10000]), ["0", "10,000"]);
});
