// Runs from files that the reader opens: the files of run directories, or rows of numbers, to what `report` draws.
//
// runsOf([{ path, text }]) gives [{ name, config, metrics, evaluations, samples, pictures }]; pageOf(runs, named) the page.
// Nothing of them is trusted: texts stay texts, numbers are checked, and images are base64 alone.

const FILES = { "config.json": "config", "metrics.jsonl": "metrics", "evaluations.jsonl": "evaluations", "samples.json": "samples", "pictures.json": "pictures" };
const MOST_RUNS = 6;
const [MOST_POINTS, BUCKETS, MOST_SAMPLES, MOST_CHARACTERS] = [800, 400, 24, 6000];
const PLAIN = { config: {}, metrics: [], evaluations: [], samples: {}, pictures: {} };

export const isWanted = (path) => Object.hasOwn(FILES, path.split("/").at(-1)) || path.endsWith(".jsonl");

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const listOf = (value) => (Array.isArray(value) ? value.filter(isObject) : []);

function parsed(text, where) {
  try {
    return JSON.parse(text);
  } catch {
    try {
      return JSON.parse(text.replace(/(?<=[:,[]\s*)(NaN|-?Infinity)(?=\s*[,}\]])/g, "null")); // as Python writes them
    } catch (error) {
      throw new Error(`${where}: expected JSON, got ${JSON.stringify(text.slice(0, 40))} (${error.message})`);
    }
  }
}

function rowsOf(text, path) {
  const lines = text.split("\n");
  return lines.flatMap((line, i) => {
    if (!line.trim()) return [];
    try {
      return listOf([parsed(line, `${path}, line ${i + 1}`)]);
    } catch (error) {
      if (i === lines.length - 1) return []; // still being written
      throw error;
    }
  });
}

/** The runs that these files are of: a directory each; a lone .jsonl is a run's metrics. */
export function runsOf(files) {
  const runs = new Map();
  for (const { path, text } of files) {
    const parts = path.split("/").filter(Boolean);
    const file = parts.pop();
    const kind = Object.hasOwn(FILES, file) ? FILES[file] : "metrics";
    const name = Object.hasOwn(FILES, file) ? parts.join("/") || "run" : path;
    if (!runs.has(name)) runs.set(name, { name, ...PLAIN });
    const value = file.endsWith(".jsonl") ? rowsOf(text, path) : parsed(text, path);
    if (!Array.isArray(value) && !isObject(value)) throw new Error(`${path}: expected an object`);
    runs.get(name)[kind] = value;
  }
  const found = [...runs.values()].filter((run) => run.metrics.length + run.evaluations.length > 0);
  if (found.length === 0) throw new Error("expected a run directory, or its metrics.jsonl, with at least one row; found none");
  if (found.length > MOST_RUNS) throw new Error(`expected at most ${MOST_RUNS} runs side by side, found ${found.length}`);
  const alike = found.every(({ name }) => name.split("/")[0] === found[0].name.split("/")[0]) && found.length > 1;
  return found.map((run) => ({ ...run, name: alike ? run.name.split("/").slice(1).join("/") || run.name : run.name }));
}

const finite = (value) => (typeof value === "number" && Math.abs(value) < 1e300 ? value : null);

/** Rows by their step, the later of two alike; more than 800 are drawn as means of buckets. */
function trackOf(rows) {
  const latest = new Map(rows.map((row, i) => [finite(row.step) ?? i + 1, row]));
  const steps = [...latest.keys()].sort((a, b) => a - b);
  const many = steps.length > MOST_POINTS;
  const width = (steps.at(-1) - steps[0]) / BUCKETS;
  const groups = many ? [...Map.groupBy(steps, (step) => Math.min(BUCKETS - 1, Math.floor((step - steps[0]) / width))).values()] : steps.map((step) => [step]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const grid = { x: groups.map(mean), ...(many ? { spans: groups.map((group) => [group[0], group.at(-1)]) } : {}) };
  const of = (key) => (step) => (Object.hasOwn(latest.get(step), key) ? finite(latest.get(step)[key]) : null);
  function curve(key) {
    const parts = groups.map((group) => group.map(of(key)).filter((value) => value !== null));
    const last = steps.findLast((step) => of(key)(step) !== null);
    if (last === undefined) return null;
    const every = (how) => parts.map((part) => (part.length ? how(part) : null));
    const found = { values: every(mean), last: { x: last, value: of(key)(last) } };
    if (many) return { ...found, low: every((part) => Math.min(...part)), high: every((part) => Math.max(...part)) };
    const errors = steps.map(of(`${key}_std_error`));
    if (errors.every((error) => error === null)) return found;
    const bound = (side) => found.values.map((value, i) => (value === null || errors[i] === null ? null : value + side * errors[i]));
    return { ...found, low: bound(-2), high: bound(2) };
  }
  const keys = new Set(rows.flatMap((row) => Object.keys(row).filter((key) => finite(row[key]) !== null)));
  return { grid, curve, keys, many, count: steps.length };
}

function heldKey(config, named) {
  const budget = config.budget;
  if (!isObject(budget) || !(finite(budget.target) > 0)) return null;
  const unit = budget.over === "reference" ? "reference_step" : String(budget.unit ?? "token");
  const sides = budget.of === "old" ? "old_policy" : unit === "image" ? "posterior_prior" : "policy_ref";
  const key = `kl_${sides}_per_${unit}`;
  return Object.hasOwn(named, key) ? key : null;
}

const cut = (text) => (text.length > MOST_CHARACTERS ? `${text.slice(0, MOST_CHARACTERS)} …` : text);
const told = (value) => cut(typeof value === "string" ? value : JSON.stringify(value) ?? "none");

function samplesOf(run, arm) {
  const cells = new Map();
  for (const [when, label] of [["before", "Before training"], ["after", "After training"]]) {
    for (const sample of listOf(run.samples[when])) {
      const prompt = cut(String(sample.prompt ?? ""));
      const rewards = isObject(sample.rewards) ? Object.entries(sample.rewards).map(([name, value]) => [name, finite(value)]) : [];
      const cell = { label, completion: cut(String(sample.completion ?? "")), rewards };
      cells.set(prompt, [...(cells.get(prompt) ?? []), cell]);
    }
  }
  const items = [...cells].map(([prompt, both]) => ({ prompt, cells: both })).slice(0, MOST_SAMPLES);
  return items.length ? { arm, note: `${items.length} of ${cells.size} prompts.`, items } : null;
}

function picturesOf(run, arm) {
  const rows = listOf(run.pictures.after ?? run.pictures.before).map((row) => ({
    title: String(row.title ?? ""),
    images: (Array.isArray(row.images) ? row.images : []).filter((one) => typeof one === "string" && /^[A-Za-z0-9+/=]+$/.test(one)),
  }));
  return rows.length ? { arm, rows } : null;
}

/** What `report` draws of runs; `named` has the titles and units of the keys that have one. */
export function pageOf(runs, named) {
  const batches = runs.map((run) => trackOf(run.metrics));
  const judged = runs.map((run) => trackOf(run.evaluations));
  const tracks = [...batches, ...judged];
  const keys = [...new Set(tracks.flatMap((track) => [...track.keys]))].filter((key) => key !== "step" && !key.endsWith("_std_error"));
  const chart = (key, index) => {
    const series = tracks.flatMap((track, grid) => {
      const [curve, training] = [track.curve(key), grid < runs.length];
      const group = grid % runs.length;
      if (!curve) return [];
      const { low, high, ...line } = curve;
      const bounds = training && !track.many ? line : curve;
      return [{ ...bounds, grid, group, dash: 0, mark: training ? "line" : "points", name: training ? "training" : "evaluation", faint: training && judged[group].keys.has(key) }];
    });
    const lines = runs.flatMap(({ config }, group) => {
      const target = config.budget?.target;
      return heldKey(config, named) === key ? [{ value: target, low: 0.8 * target, high: 1.2 * target, label: `budget ${target}, ±20%`, group }] : [];
    });
    const words = Object.hasOwn(named, key) ? named[key] : { title: key.replaceAll("_", " "), label: key };
    return { id: `opened-${index}`, title: words.title, note: "", x: { label: "step", integer: true }, y: { label: words.label, toggle: true }, lines, series };
  };
  const heading = (key) => (/^kl_|_kl_/.test(key) ? "Divergence" : /^reward/.test(key) ? "Reward" : "All else that was written down");
  const sections = [...Map.groupBy(keys, heading)].map(([title, some]) => ({ title, charts: some.map((key) => chart(key, keys.indexOf(key))) }));
  const settings = [...new Set(runs.flatMap(({ config }) => Object.keys(config)))].map((key) => [key, runs.map(({ config }) => (Object.hasOwn(config, key) ? told(config[key]) : "not set"))]);
  const differs = ([, values]) => new Set(values).size > 1;
  const bucketed = runs.filter((_, i) => batches[i].many).map(({ name }) => name);
  return {
    arms: runs.map(({ name }, i) => ({ name, facts: `${batches[i].count} steps · ${judged[i].count} evaluations` })),
    table: null,
    notes: bucketed.length ? [`${bucketed.join(", ")}: steps are drawn as ${BUCKETS} means; the shading runs from the least to the greatest value under each.`] : [],
    grids: tracks.map(({ grid }) => grid),
    sections: sections.sort((a, b) => b.title.startsWith("D") - a.title.startsWith("D") || a.title.startsWith("All") - b.title.startsWith("All")),
    pictures: runs.map(picturesOf).filter(Boolean),
    samples: runs.map(samplesOf).filter(Boolean),
    settings: { differing: settings.filter(differs), shared: settings.filter((row) => !differs(row)).map(([key, values]) => [key, values.slice(0, 1)]) },
  };
}
