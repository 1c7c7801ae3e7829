// The table with the first and the last evaluation of each run, as outcome_table in run_tables.py.

const FURTHER = {
  "divergence of the loss, nats per token": "divergence_per_token",
  entropy: "entropy",
  "repeated token pairs": "repetition",
  "completion length, tokens": "completion_length",
  "episode length, steps": "episode_length",
  "cross-entropy, nats per token": "train_cross_entropy_per_token",
  "entropy floor, nats per token": "train_entropy_floor_per_token",
  "held-out cross-entropy, nats per token": "eval_cross_entropy_per_token",
  "distortion, nats per image": "distortion",
  "ELBO, nats per image": "elbo",
  "log-likelihood, nats per image": "log_likelihood",
  "cross-entropy, nats per image": "cross_entropy",
  accuracy: "accuracy",
  "active units": "active_units",
};

/** A number with `digits` significant digits, as Python's format ".3g" writes it. */
export function generalFormat(value, digits = 3) {
  if (value === "not finite") return value;
  if (typeof value !== "number") return "-";
  if (value === 0) return "0";
  const exponent = Number(value.toExponential(digits - 1).split("e")[1]);
  const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (exponent >= -4 && exponent < digits) return trimmed(value.toFixed(digits - 1 - exponent));
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  return `${trimmed(mantissa)}e${power[0]}${power.slice(1).padStart(2, "0")}`;
}

function resultsOf({ config, budget, metrics, evaluations }, divergences) {
  const last = evaluations.lastRow ?? {};
  const steps = metrics.lastRow?.step ?? 0;
  // The last evaluation is older than the last step if the process was killed or the evaluation was interrupted.
  const asOf = evaluations.lastRow && last.step !== steps ? ` (as of step ${last.step})` : "";
  // The evaluation before training is absent if the file has been damaged.
  const first = evaluations.firstRow?.step === 0 ? evaluations.firstRow : {};
  const measuredOnce = (key) => first.step === 0 && ((asOf && evaluations.view.rows === 1) || !Object.hasOwn(first, key));
  const change = (key) => (measuredOnce(key) ? "" : `${generalFormat(first[key])} → `) + generalFormat(last[key]) + asOf;
  const results = {};
  for (const [list, word] of [["rewards", "optimised"], ["watched", "watched"]]) {
    for (const name of Array.isArray(config[list]) ? config[list] : []) results[`reward ${name} (${word})`] = change(`rewards/${name}`);
  }
  for (const [key, { short, unit }] of Object.entries(divergences)) {
    if (!Object.hasOwn(last, key)) continue;
    const limit = budget?.key === key ? ` (budget ${generalFormat(budget.target, 6)})` : "";
    results[`${short}, nats per ${unit}`] = `${generalFormat(last[key])} ± ${generalFormat(last[`${key}_std_error`], 2)}${limit}${asOf}`;
  }
  for (const [label, key] of Object.entries(FURTHER)) {
    if (Object.hasOwn(last, key)) results[label === "entropy" ? `entropy, nats per ${config.kind === "ppo" ? "step" : "token"}` : label] = change(key);
  }
  const seconds = metrics.keys.seconds?.last?.[1] ?? 0;
  return { ...results, steps: String(steps), "time, s": metrics.view.rows ? seconds.toFixed(0) : "-" };
}

/** The table, or null unless every run was evaluated. */
export function outcomeTable(runs, divergences) {
  if (!runs.length || !runs.every(({ evaluations }) => evaluations.view.rows > 0)) return null;
  const results = runs.map((run) => resultsOf(run, divergences));
  const labels = [...new Set(results.flatMap(Object.keys))];
  return {
    caption: "Results at the last evaluation; ± is one standard error", columns: ["metric (± one standard error)", ...runs.map(({ name }) => name)],
    rows: labels.map((label) => [label, ...results.map((result) => result[label] ?? "-")]),
  };
}
