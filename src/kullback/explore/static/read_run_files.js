// Reads the files of run directories, or JSON lines of numbers, into the data that `report` draws.
//
// parseRuns([{ path, text }]) returns [{ name, config, metrics, evaluations, samples, pictures }], and pageData(runs, metrics)
// returns the data of the page. The files are not trusted: numbers are checked, and images must be base64.

const FILES = { "config.json": "config", "metrics.jsonl": "metrics", "evaluations.jsonl": "evaluations", "samples.json": "samples", "pictures.json": "pictures" };
const MAX_RUNS = 6;
// The same limits as in downsample.py and report.py.
const [MAX_POINTS, BUCKETS, MAX_SAMPLES, MAX_CHARACTERS] = [800, 400, 24, 6000];
const EMPTY_RUN = { config: {}, metrics: [], evaluations: [], samples: {}, pictures: {} };

export const isRunFile = (path) => Object.hasOwn(FILES, path.split("/").at(-1)) || path.endsWith(".jsonl");

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const listOf = (value) => (Array.isArray(value) ? value.filter(isObject) : []);

function parseJson(text, where) {
  try {
    return JSON.parse(text);
  } catch {
    try {
      return JSON.parse(text.replace(/(?<=[:,[]\s*)(NaN|-?Infinity)(?=\s*[,}\]])/g, "null")); // Python writes NaN and Infinity
    } catch (error) {
      throw new Error(`${where}: expected JSON, got ${JSON.stringify(text.slice(0, 40))} (${error.message})`);
    }
  }
}

function parseRows(text, path) {
  const lines = text.split("\n");
  return lines.flatMap((line, i) => {
    if (!line.trim()) return [];
    try {
      return listOf([parseJson(line, `${path}, line ${i + 1}`)]);
    } catch (error) {
      if (i === lines.length - 1) return []; // the last line may be incomplete while the run writes it
      throw error;
    }
  });
}

/** The runs in files: one run for each directory. A .jsonl file with another name contains the metrics of a separate run. */
export function parseRuns(files) {
  const runs = new Map();
  for (const { path, text } of files) {
    const parts = path.split("/").filter(Boolean);
    const file = parts.pop();
    const kind = Object.hasOwn(FILES, file) ? FILES[file] : "metrics";
    const name = Object.hasOwn(FILES, file) ? parts.join("/") || "run" : path;
    if (!runs.has(name)) runs.set(name, { name, ...EMPTY_RUN });
    const value = file.endsWith(".jsonl") ? parseRows(text, path) : parseJson(text, path);
    if (!Array.isArray(value) && !isObject(value)) throw new Error(`${path}: expected a JSON object`);
    runs.get(name)[kind] = value;
  }
  const found = [...runs.values()].filter((run) => run.metrics.length + run.evaluations.length > 0);
  if (found.length === 0) throw new Error("expected a run directory or a metrics.jsonl with at least one row, found none");
  if (found.length > MAX_RUNS) throw new Error(`expected at most ${MAX_RUNS} runs, found ${found.length}`);
  const sameParent = found.every(({ name }) => name.split("/")[0] === found[0].name.split("/")[0]) && found.length > 1;
  return found.map((run) => ({ ...run, name: sameParent ? run.name.split("/").slice(1).join("/") || run.name : run.name }));
}

const finite = (value) => (typeof value === "number" && Math.abs(value) < 1e300 ? value : null);

/** Rows in the order of their steps, as DownsampledSeries in downsample.py: bucket means for more than 800 rows. */
function downsample(rows) {
  const latest = new Map(rows.map((row, i) => [finite(row.step) ?? i + 1, row]));
  const steps = [...latest.keys()].sort((a, b) => a - b);
  const bucketed = steps.length > MAX_POINTS;
  const width = (steps.at(-1) - steps[0]) / BUCKETS;
  const groups = bucketed ? [...Map.groupBy(steps, (step) => Math.min(BUCKETS - 1, Math.floor((step - steps[0]) / width))).values()] : steps.map((step) => [step]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const grid = { x: groups.map(mean), ...(bucketed ? { spans: groups.map((group) => [group[0], group.at(-1)]) } : {}) };
  const valueAt = (key) => (step) => (Object.hasOwn(latest.get(step), key) ? finite(latest.get(step)[key]) : null);
  function curve(key) {
    const parts = groups.map((group) => group.map(valueAt(key)).filter((value) => value !== null));
    const last = steps.findLast((step) => valueAt(key)(step) !== null);
    if (last === undefined) return null;
    const reduceParts = (reduce) => parts.map((part) => (part.length ? reduce(part) : null));
    const found = { values: reduceParts(mean), last: { x: last, value: valueAt(key)(last) } };
    if (bucketed) return { ...found, low: reduceParts((part) => Math.min(...part)), high: reduceParts((part) => Math.max(...part)) };
    const errors = steps.map(valueAt(`${key}_std_error`));
    if (errors.every((error) => error === null)) return found;
    const bound = (side) => found.values.map((value, i) => (value === null || errors[i] === null ? null : value + side * errors[i]));
    return { ...found, low: bound(-2), high: bound(2) };
  }
  const keys = new Set(rows.flatMap((row) => Object.keys(row).filter((key) => finite(row[key]) !== null)));
  return { grid, curve, keys, bucketed, count: steps.length };
}

/** The metric that the budget of a run constrains, as constrained_kl in runs/metrics.py, or null. Former names of settings are accepted. */
function budgetedKey(config, metrics) {
  const budget = config.budget;
  if (!isObject(budget) || !(finite(budget.target) > 0)) return null;
  const unit = (budget.states ?? budget.over) === "reference" ? "reference_step" : String(budget.unit ?? "token");
  const constrainsOld = ["old-policy", "old"].includes(budget.constrain ?? budget.of);
  const sides = constrainsOld ? "old_policy" : unit === "image" ? "posterior_prior" : "policy_ref";
  const key = `kl_${sides}_per_${unit}`;
  return Object.hasOwn(metrics, key) ? key : null;
}

const truncate = (text) => (text.length > MAX_CHARACTERS ? `${text.slice(0, MAX_CHARACTERS)} …` : text);
const formatSetting = (value) => truncate(typeof value === "string" ? value : JSON.stringify(value) ?? "none");

/** The completions of all runs, with one item for each prompt. Completions before training that are the same in all runs are shown once. */
function samplesOf(runs) {
  const items = new Map();
  const before = runs.map(({ samples }) => JSON.stringify(samples.before));
  const sameBefore = runs.length > 1 && new Set(before).size === 1;
  const entries = (value, format) => (isObject(value) ? Object.entries(value).map(([name, entry]) => [name, format(entry)]) : []);
  for (const [when, label] of [["before", "Before training"], ["after", "After training"]]) {
    const once = when === "before" && sameBefore;
    (once ? runs.slice(0, 1) : runs).forEach(({ samples }, index) => {
      const occurrences = new Map();
      for (const sample of listOf(samples[when])) {
        const prompt = truncate(String(sample.prompt ?? ""));
        occurrences.set(prompt, (occurrences.get(prompt) ?? 0) + 1);
        const id = JSON.stringify([prompt, occurrences.get(prompt)]);
        if (!items.has(id)) items.set(id, { prompt, columns: entries(sample.columns, (entry) => truncate(String(entry))), cells: [] });
        items.get(id).cells.push({ run: once ? null : index, label, completion: truncate(String(sample.completion ?? "")), rewards: entries(sample.rewards, finite) });
      }
    });
  }
  const shown = [...items.values()].slice(0, MAX_SAMPLES);
  return shown.length ? { note: `${shown.length} of ${items.size} prompts.`, items: shown } : null;
}

function picturesOf(run, index) {
  const rows = listOf(run.pictures.after ?? run.pictures.before).map((row) => ({
    title: String(row.title ?? ""),
    images: (Array.isArray(row.images) ? row.images : []).filter((image) => typeof image === "string" && /^[A-Za-z0-9+/=]+$/.test(image)),
  }));
  return rows.length ? { run: index, rows } : null;
}

/** The data for `report`; `metrics` has titles and axis labels by metric. */
export function pageData(runs, metrics) {
  const batches = runs.map((run) => downsample(run.metrics));
  const evaluations = runs.map((run) => downsample(run.evaluations));
  const allSeries = [...batches, ...evaluations];
  const keys = [...new Set(allSeries.flatMap((rows) => [...rows.keys]))].filter((key) => key !== "step" && !key.endsWith("_std_error"));
  const chart = (key, index) => {
    const series = allSeries.flatMap((rows, grid) => {
      const [curve, training] = [rows.curve(key), grid < runs.length];
      const group = grid % runs.length;
      if (!curve) return [];
      const { low, high, ...line } = curve;
      const bounds = training && !rows.bucketed ? line : curve;
      return [{ ...bounds, grid, group, dash: 0, mark: training ? "line" : "points", name: training ? "training" : "evaluation", faint: training && evaluations[group].keys.has(key) }];
    });
    const lines = runs.flatMap(({ config }, group) => {
      const target = config.budget?.target;
      return budgetedKey(config, metrics) === key ? [{ value: target, low: 0.8 * target, high: 1.2 * target, label: `budget ${target}, ±20%`, group }] : [];
    });
    const names = Object.hasOwn(metrics, key) ? metrics[key] : { title: key.replaceAll("_", " "), label: key };
    return { id: `opened-${index}`, title: names.title, note: "", x: { label: "step", integer: true }, y: { label: names.label, toggle: true }, lines, series };
  };
  const heading = (key) => (/^kl_|_kl_/.test(key) ? "Divergence" : /^reward/.test(key) ? "Reward" : "Other metrics");
  const sections = [...Map.groupBy(keys, heading)].map(([title, some]) => ({ title, charts: some.map((key) => chart(key, keys.indexOf(key))) }));
  const settings = [...new Set(runs.flatMap(({ config }) => Object.keys(config)))].map((key) => [key, runs.map(({ config }) => (Object.hasOwn(config, key) ? formatSetting(config[key]) : "not set"))]);
  const differs = ([, values]) => new Set(values).size > 1;
  const bucketed = runs.filter((_, i) => batches[i].bucketed).map(({ name }) => name);
  return {
    runs: runs.map(({ name }, i) => ({ name, facts: `${batches[i].count} steps · ${evaluations[i].count} evaluations` })),
    table: null,
    notes: bucketed.length ? [`${bucketed.join(", ")}: steps are drawn as the means of ${BUCKETS} buckets; the shading spans the minimum and the maximum of each bucket.`] : [],
    grids: allSeries.map(({ grid }) => grid),
    sections: sections.sort((a, b) => b.title.startsWith("D") - a.title.startsWith("D") || a.title.startsWith("Other") - b.title.startsWith("Other")),
    pictures: runs.map(picturesOf).filter(Boolean),
    samples: samplesOf(runs),
    settings: { differing: settings.filter(differs), shared: settings.filter((row) => !differs(row)).map(([key, values]) => [key, values.slice(0, 1)]) },
  };
}
