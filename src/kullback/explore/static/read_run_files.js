// Reads files that the reader opens: run directories of kullback, and the logs of other programs, by the rules of run_logs.py.
//
// parsedRuns([{ path, text() , bytes(), modified }], divergences) returns a promise of runs as `report` in report.js draws them. The
// files are not trusted: numbers are checked, and images must be base64.

import { finiteNumber, RowColumns } from "./run_series.js";

const RUN_FILES = { "config.json": "config", "metrics.jsonl": "metrics", "evaluations.jsonl": "evaluations", "samples.json": "samples", "pictures.json": "pictures" };
const STEP_KEYS = ["step", "_step", "time/total_timesteps", "train/global_step", "global_step", "total_timesteps"];
const AXIS_SOURCES = { seconds: ["seconds", "_runtime", "time/time_elapsed"], tokens: ["tokens", "num_tokens", "train/num_tokens", "num_input_tokens_seen"] };
const [MOST_RUNS, MOST_SAMPLES, MOST_CHARACTERS] = [6, 24, 6000];
// The metrics of a budget, to whose names the integrations of transformers and stable-baselines3 add "train/".
const BUDGET_KEY = /^train\/(kl_(?:policy|old_policy|filtered)\w*|beta|learning_rate_scale|displacement_scale)$/;
// The keys of may_be_missing in runs/metrics.py.
const MISSING = new Set(["reward", "reward_std", "episode_length", "completion_length", "truncated", "repetition", "kl_filtered", "explained_variance", "action_std", "log_likelihood", "alarm", "kl_latents"]);
const mayBeMissing = (key) => MISSING.has(key) || key.startsWith("rewards/") || key.endsWith("_std_error");

const fileName = (path) => path.split("/").at(-1);
const isMonitor = (name) => name === "monitor.csv" || name.endsWith(".monitor.csv");
/** Whether a file within a directory is a part of a run. */
export const isRunFile = (path) => Object.hasOwn(RUN_FILES, fileName(path)) || /\.jsonl$|tfevents/.test(path) || ["progress.csv", "trainer_state.json"].includes(fileName(path)) || isMonitor(fileName(path));

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const objectsOf = (value) => (Array.isArray(value) ? value.filter(isObject) : []);

function parsedJson(text, where) {
  try {
    return JSON.parse(text);
  } catch {
    try {
      return JSON.parse(text.replace(/(?<=[:,[]\s*)(NaN|-?Infinity)(?=\s*[,}\]])/g, '"$1"')); // Python writes NaN and Infinity
    } catch (error) {
      throw new Error(`${where}: expected JSON, got ${JSON.stringify(text.slice(0, 40))} (${error.message})`);
    }
  }
}

/** The objects in the lines of a text, and the first problem; a last line without its end may be incomplete while the run writes it. */
function parsedLines(text, path) {
  const lines = text.split("\n");
  const [rows, problems] = [[], []];
  lines.forEach((line, i) => {
    if (!line.trim()) return;
    try {
      const row = parsedJson(line, `${path}: line ${i + 1}`);
      if (!isObject(row)) throw new Error(`${path}: line ${i + 1}: expected a JSON object, got ${line.slice(0, 40)}`);
      rows.push(row);
    } catch (error) {
      if (i < lines.length - 1) problems.push(error.message);
    }
  });
  return { rows, problems: problems.slice(0, 1) };
}

// ---- the logs of other programs ----

function flattened(row, prefix = "") {
  return Object.entries(row).flatMap(([key, value]) => (isObject(value) ? flattened(value, `${prefix}${key}/`) : [[`${prefix}${key}`, value]]));
}

/** A row of another program with `step`, and with `seconds` and `tokens` where it has them. */
export function adaptedRow(row, number) {
  const flat = new Map(flattened(row));
  const firstOf = (keys) => keys.map((key) => flat.get(key)).find((value) => finiteNumber(value) !== null);
  const axes = Object.entries(AXIS_SOURCES).map(([name, keys]) => [name, firstOf(keys)]).filter(([, value]) => value !== undefined);
  const used = new Set([...STEP_KEYS, ...Object.values(AXIS_SOURCES).flat(), "_timestamp"]);
  return { ...Object.fromEntries([...flat].filter(([key]) => !used.has(key)).map(([key, value]) => [key.replace(BUDGET_KEY, "$1"), value])), ...Object.fromEntries(axes), step: firstOf(STEP_KEYS) ?? number };
}

function csvCells(line) {
  const cells = [];
  for (const [, quoted, plain] of line.matchAll(/(?:"((?:[^"]|"")*)"|([^,]*))(?:,|$)/g)) cells.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
  return line.endsWith(",") ? cells : cells.slice(0, -1);
}

function csvRows(text, path) {
  const lines = text.split("\n").map((line) => line.replace(/\r$/, ""));
  const complete = lines.slice(0, -1).map((line, i) => [i + 1, line]).filter(([, line]) => line && !line.startsWith("#"));
  const header = csvCells(complete[0]?.[1] ?? "");
  const isEpisodes = ["r", "l", "t"].every((key) => header.includes(key));
  let steps = 0;
  const [rows, problems] = [[], []];
  for (const [number, line] of complete.slice(1)) {
    const cells = csvCells(line);
    if (cells.length !== header.length) {
      problems.push(`${path}: line ${number}: expected ${header.length} cells, got ${cells.length}`);
      continue;
    }
    const row = Object.fromEntries(header.map((key, i) => [key, cells[i] === "" || Number.isNaN(Number(cells[i])) ? cells[i] : Number(cells[i])]));
    if (isEpisodes) {
      steps += finiteNumber(row.l) ?? 0;
      rows.push({ step: steps, "rewards/return": row.r, episode_length: row.l, seconds: row.t });
    } else rows.push(adaptedRow(row, number - 1));
  }
  return { rows, problems: problems.slice(0, 1) };
}

/** The fields of a message of Protocol Buffers: [number, value], where a value is a number, or bytes. */
function* protoFields(view, start = 0, end = view.byteLength) {
  let at = start;
  const varint = () => {
    let [value, factor, byte] = [0, 1, 0];
    do {
      byte = view.getUint8(at++);
      value += (byte & 127) * factor;
      factor *= 128;
    } while (byte & 128);
    return value;
  };
  while (at < end) {
    const tag = varint();
    const [field, type] = [Math.floor(tag / 8), tag % 8];
    if (type === 0) yield [field, varint()];
    else if (type === 1) yield [field, view.getFloat64((at += 8) - 8, true)];
    else if (type === 5) yield [field, view.getFloat32((at += 4) - 4, true)];
    else if (type === 2) {
      const length = varint();
      yield [field, new DataView(view.buffer, view.byteOffset + at, length)];
      at += length;
    } else throw new Error("expected the event file of TensorBoard");
  }
}

const textOfBytes = (view) => new TextDecoder().decode(view);

/** The scalar in a value of a summary of TensorBoard: a float, or a tensor of float32 with one element. */
function scalarOf(fields) {
  const value = new Map(fields);
  if (value.has(2)) return value.get(2);
  if (!value.has(8)) return null;
  const tensor = new Map(protoFields(value.get(8)));
  const shape = tensor.has(2) ? [...protoFields(tensor.get(2))].length : 0;
  if (tensor.get(1) !== 1 || shape) return null;
  const bytes = tensor.get(4) ?? tensor.get(5);
  return bytes instanceof DataView ? bytes.getFloat32(0, true) : bytes ?? 0;
}

/** The scalars in an event file of TensorBoard; an incomplete last record is left out. */
export function tensorboardRows(buffer, path) {
  const file = new DataView(buffer);
  const rows = [];
  let [at, start] = [0, null];
  try {
    while (at + 12 <= file.byteLength) {
      const length = Number(file.getBigUint64(at, true));
      if (at + 16 + length > file.byteLength) break;
      const event = new Map(protoFields(new DataView(buffer, at + 12, length)));
      at += 16 + length;
      start ??= event.get(1);
      if (!event.has(5)) continue;
      for (const [field, value] of protoFields(event.get(5))) {
        if (field !== 1) continue;
        const fields = [...protoFields(value)];
        const scalar = scalarOf(fields);
        if (scalar !== null) rows.push(adaptedRow({ step: event.get(2) ?? 0, seconds: event.get(1) - start, [textOfBytes(new Map(fields).get(1))]: scalar }, 0));
      }
    }
  } catch (error) {
    throw new Error(`${path}: expected the event file of TensorBoard, got other content (${error.message})`);
  }
  return rows;
}

async function foreignRows(file) {
  const name = fileName(file.path);
  if (name.includes("tfevents")) return { rows: tensorboardRows(await file.bytes(), file.path), problems: [] };
  const text = await file.text();
  if (name.endsWith(".csv")) return csvRows(text, file.path);
  if (name.endsWith(".jsonl")) {
    const { rows, problems } = parsedLines(text, file.path);
    return { rows: rows.map((row, i) => adaptedRow(row, i + 1)), problems };
  }
  const content = parsedJson(text, file.path);
  const rows = isObject(content) ? content.log_history ?? content.history : content;
  if (!Array.isArray(rows)) throw new Error(`${file.path}: expected a list of rows, or an object with a list under "log_history"`);
  return { rows: objectsOf(rows).map((row, i) => adaptedRow(row, i + 1)), problems: [] };
}

// ---- runs ----

/** The metric that the budget of a run constrains, as constrained_kl in runs/metrics.py. Former names of settings are accepted. */
function budgetOf(config, divergences) {
  const budget = config.budget;
  if (!isObject(budget) || !(finiteNumber(budget.target) > 0)) return null;
  const unit = (budget.states ?? budget.over) === "reference" ? "reference_step" : String(budget.unit ?? "token");
  const constrainsOld = ["old-policy", "old"].includes(budget.constrain ?? budget.of);
  const sides = constrainsOld ? "old_policy" : unit === "image" ? "posterior_prior" : "policy_ref";
  const key = `kl_${sides}_per_${unit}`;
  return { target: budget.target, unit: String(budget.unit ?? "token"), key: Object.hasOwn(divergences, key) ? key : null };
}

const shortened = (text) => (text.length > MOST_CHARACTERS ? `${text.slice(0, MOST_CHARACTERS)} … (${(text.length - MOST_CHARACTERS).toLocaleString("en-US")} more characters)` : text);
const entriesOf = (value, format) => (isObject(value) ? Object.entries(value).map(([name, entry]) => [name, format(entry)]) : []);

function samplesOf(content) {
  const found = Object.entries(isObject(content) ? content : {}).filter(([when]) => /^(before|after|step \d+)$/.test(when)).map(([when, rows]) => [when, objectsOf(rows).slice(0, MOST_SAMPLES).map((sample) => ({
    prompt: shortened(String(sample.prompt ?? "")), columns: entriesOf(sample.columns, (entry) => shortened(String(entry))),
    completion: shortened(String(sample.completion ?? "")), rewards: entriesOf(sample.rewards, finiteNumber),
    tokens: (Array.isArray(sample.tokens) ? sample.tokens : []).filter(Array.isArray).map(([text, kl]) => [String(text), finiteNumber(kl)]),
  }))]);
  return Object.fromEntries(found);
}

function picturesOf(content) {
  const isImage = (image) => typeof image === "string" && /^[A-Za-z0-9+/=]+$/.test(image);
  return Object.fromEntries(Object.entries(isObject(content) ? content : {}).map(([when, rows]) =>
    [when, objectsOf(rows).map((row) => ({ title: String(row.title ?? ""), images: (Array.isArray(row.images) ? row.images : []).filter(isImage) }))]));
}

function seriesOf(rows, options) {
  const columns = new RowColumns(rows, options);
  return { columns, view: columns.view(), keys: columns.keys, omitted: columns.omitted, firstRow: columns.firstRow, lastRow: columns.lastRow };
}

const emptyRun = (name) => ({ name, config: {}, budget: null, samples: {}, samplesTotal: 0, pictures: {}, problems: [], findings: null, isSparse: true });

async function kullbackRun(name, files, divergences) {
  const content = { config: {}, metrics: [], evaluations: [], samples: {}, pictures: {} };
  const problems = [];
  for (const file of files) {
    const kind = RUN_FILES[fileName(file.path)];
    if (!kind) continue;
    if (file.path.endsWith(".jsonl")) {
      const parsed = parsedLines(await file.text(), file.path);
      content[kind] = parsed.rows;
      problems.push(...parsed.problems);
      continue;
    }
    try {
      const parsed = parsedJson(await file.text(), file.path);
      if (!isObject(parsed)) throw new Error(`${file.path}: expected a JSON object`);
      content[kind] = parsed;
    } catch (error) {
      if (kind === "config") throw error;
      problems.push(error.message); // the charts are shown without completions or images
    }
  }
  const options = { isMissing: mayBeMissing };
  const samples = samplesOf(content.samples);
  return {
    ...emptyRun(name), config: content.config, budget: budgetOf(content.config, divergences), samples, pictures: picturesOf(content.pictures), problems, isSparse: false,
    samplesTotal: Math.max(0, ...Object.values(samples).map((rows) => rows.length)), metrics: seriesOf(content.metrics, options), evaluations: seriesOf(content.evaluations, options),
  };
}

async function foreignRun(name, files) {
  const parts = await Promise.all(files.map(foreignRows));
  return { ...emptyRun(name), problems: parts.flatMap(({ problems }) => problems), metrics: seriesOf(parts.flatMap(({ rows }) => rows), { merge: true }), evaluations: seriesOf([]) };
}

/** The logs of the first of these kinds that a directory has: stable-baselines3, TensorBoard, transformers, JSON lines. */
function chosenLogs(files) {
  const kinds = [(name) => name === "progress.csv" || isMonitor(name), (name) => name.includes("tfevents"), (name) => name === "trainer_state.json", (name) => name.endsWith(".jsonl")];
  return kinds.map((isKind) => files.filter(({ path }) => isKind(fileName(path)))).find((some) => some.length) ?? [];
}

/** The runs in files: one for each directory; a file that is not within a directory is a run itself, unless it is a file of a run directory. */
export async function parsedRuns(files, divergences) {
  const groups = new Map();
  for (const file of files) {
    const parts = file.path.split("/").filter(Boolean);
    const name = fileName(file.path);
    if (/^checkpoint-\d+$/.test(parts.at(-2) ?? "")) parts.splice(-2, 1); // trainer_state.json belongs to the directory above
    const directory = parts.slice(0, -1).join("/");
    const group = directory || (Object.hasOwn(RUN_FILES, name) ? "run" : name);
    groups.set(group, [...(groups.get(group) ?? []), file]);
  }
  const step = ({ path }) => Number(/checkpoint-(\d+)\//.exec(path)?.[1] ?? Infinity);
  const runs = [];
  for (const [name, some] of groups) {
    const isKullback = some.some(({ path }) => fileName(path) === "config.json") || some.every(({ path }) => Object.hasOwn(RUN_FILES, fileName(path)));
    const logs = chosenLogs(some);
    const newest = logs.length && fileName(logs[0].path) === "trainer_state.json" ? [logs.toSorted((a, b) => step(b) - step(a))[0]] : logs;
    const run = isKullback ? await kullbackRun(name, some, divergences) : await foreignRun(name, newest.length ? newest : some);
    if (run.problems.length && run.metrics.view.rows + run.evaluations.view.rows === 0) throw new Error(run.problems[0]);
    runs.push(run);
  }
  const found = runs.filter((run) => run.metrics.view.rows + run.evaluations.view.rows > 0);
  if (found.length === 0) throw new Error("expected a run directory or a log with at least one row, found none");
  if (found.length > MOST_RUNS) throw new Error(`expected at most ${MOST_RUNS} runs, found ${found.length}`);
  const sameParent = found.every(({ name }) => name.split("/")[0] === found[0].name.split("/")[0]) && found.length > 1;
  return found.map((run) => ({ ...run, name: sameParent ? run.name.split("/").slice(1).join("/") || run.name : run.name }));
}
