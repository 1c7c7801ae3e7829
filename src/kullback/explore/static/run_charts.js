// The charts of training runs, as arguments of `chart` in chart.js.
//
// run = { name, config, budget: { target, unit, key } or null, isSparse, metrics: part, evaluations: part }
// part = { view, keys: { key: { last: [step, value], bad: [number, first step] } }, omitted, firstRow, lastRow }, see run_data.py.

import { finiteNumber, interpolated } from "./run_series.js";

const BUDGET_BAND = 0.2; // relative half-width of the band around a budget
const LOG_SCALE_RATIO = 4; // a KL this many times the smallest budget selects the logarithmic axis
const SEPARATE_CHARTS_RATIO = 6; // reward functions whose ranges differ by more than this factor get separate charts
const AXIS_KEYS = ["seconds", "tokens"];

const FORWARD_KL = { train_forward_kl_per_token: "training examples", eval_forward_kl_per_token: "held-out examples" };
const CROSS_ENTROPY = {
  loss: "training loss",
  train_cross_entropy_per_token: "cross-entropy, training examples",
  eval_cross_entropy_per_token: "cross-entropy, held-out examples",
  train_entropy_floor_per_token: "entropy floor, training examples",
  eval_entropy_floor_per_token: "entropy floor, held-out examples",
};
const FLOOR_NOTE = "The entropy floor is the entropy of the next token in the data, given all preceding tokens. No model has a lower cross-entropy on these examples.";
const SCALES = { learning_rate_scale: "learning-rate scale", displacement_scale: "displacement scale" };
const SCALES_NOTE = "A scale of 1 has no effect. A learning-rate scale below 1 shortens the steps; a displacement scale below 1 moves the weights towards the reference weights.";

/** The horizontal axes that the charts of runs can have, by name. `present(runs)` is whether a run has the values. */
export const X_AXES = {
  step: { label: "step", integer: true, present: () => true },
  seconds: { label: "time, s", present: (runs) => runs.some((run) => run.metrics.keys.seconds) },
  tokens: { label: "tokens", integer: true, present: (runs) => runs.some((run) => run.metrics.keys.tokens) },
  kl: { label: "KL, nats", present: (runs) => runs.some((run) => klKey(run)) },
};

/** The KL that is the horizontal axis of a run: the KL of its budget, or else the first KL that it logged. */
export const klKey = (run) => run.budget?.key ?? [...Object.keys(run.metrics.keys), ...Object.keys(run.evaluations.keys)].find(isKl) ?? null;
const isKl = (key) => /(^|[_/ ])kl([_/ ]|$)/i.test(key) && !/coef|target|std_error$|beta/.test(key);

/** The position of each point of a view on a horizontal axis. */
function axisPositions(run, part, view, xName) {
  if (xName === "step") return view.x;
  const key = xName === "kl" ? klKey(run) : xName;
  if (view.columns[key]) return view.columns[key].mean;
  if (part === run.metrics || xName === "kl") return view.x.map(() => NaN);
  const { x, columns } = run.metrics.view; // evaluations have no time of their own
  return columns[key] ? view.x.map((step) => interpolated(x, columns[key].mean, step)) : view.x.map(() => NaN);
}

/** The points of a metric, or null if it was not recorded. */
function metricCurve(run, part, view, key, xName) {
  const [found, column] = [part.keys[key], view.columns[key]];
  if (!found || (!found.last && !found.bad)) return null;
  const empty = { x: [], values: [], bad: [], last: null };
  if (!column) return empty;
  const where = axisPositions(run, part, view, xName);
  const errors = view.k === 0 ? view.columns[`${key}_std_error`] : null;
  const kept = Array.from(column.mean, (_, i) => i).filter((i) => Number.isFinite(where[i]) && (!run.isSparse || Number.isFinite(column.mean[i]) || column.bad.has(i)));
  const pick = (values) => kept.map((i) => (Number.isFinite(values[i]) ? values[i] : null));
  const curve = { x: kept.map((i) => where[i]), values: pick(column.mean), bad: kept.flatMap((i, j) => (column.bad.has(i) ? [j] : [])) };
  if (view.k > 0) {
    Object.assign(curve, { low: pick(column.low), high: pick(column.high) });
    if (xName === "step") curve.spans = kept.map((i) => [view.from[i], view.to[i]]);
    else curve.spans = kept.map((i) => [where[i], where[i]]);
  } else if (errors) {
    const bound = (sign) => kept.map((i) => (Number.isFinite(errors.mean[i]) && Number.isFinite(column.mean[i]) ? column.mean[i] + sign * errors.mean[i] : null));
    Object.assign(curve, { low: bound(-1), high: bound(1) });
  }
  if (found.last) curve.last = { x: xName === "step" ? found.last[0] : curve.x.at(-1) ?? NaN, value: found.last[1] };
  return curve;
}

const count = (number, noun) => `${number.toLocaleString("en-US")} ${noun}${number === 1 ? "" : "s"}`;

/** The sections of the page: [{ title, charts }]. `views` has the views of each run that are drawn: [{ metrics, evaluations }]. */
export function runSections(runs, views, xName, divergences) {
  const names = runs.map(({ name }) => name);
  const used = new Set(["step", "count", ...AXIS_KEYS]);
  const parts = runs.flatMap((run, i) => [[run, run.metrics, views[i].metrics], [run, run.evaluations, views[i].evaluations]]);
  const last = (run, key) => run.evaluations.lastRow?.[key];
  const recorded = (key) => runs.some(({ metrics, evaluations }) => metrics.keys[key] || evaluations.keys[key]);
  const kinds = runs.map(({ config }) => config.kind);
  const x = X_AXES[xName];

  function metricChart(id, title, label, note, keys, { lines = [], keep = () => true, ...axis } = {}) {
    const series = [];
    const lost = [];
    Object.entries(keys).forEach(([key, words], dash) => {
      used.add(key);
      const training = runs.map((run, i) => (keep(i, key) ? metricCurve(run, run.metrics, views[i].metrics, key, xName) : null));
      const evaluated = runs.map((run, i) => metricCurve(run, run.evaluations, views[i].evaluations, key, xName));
      const name = [words, evaluated.some(Boolean) || !words ? "training batch" : ""].filter(Boolean).join(", ");
      runs.forEach((run, group) => {
        if (training[group]) {
          // Error bars at every training step would hide the line, so only blocks keep their bounds.
          const { low, high, ...line } = training[group];
          series.push({ ...(views[group].metrics.k > 0 ? training[group] : line), name, mark: "line", faint: Boolean(evaluated[group]), group, dash });
        }
        if (evaluated[group]) series.push({ ...evaluated[group], name: [words, "evaluation"].filter(Boolean).join(", "), mark: "points", group, dash });
        for (const part of [training[group] && run.metrics, evaluated[group] && run.evaluations]) {
          if (part?.keys[key]?.bad) lost.push([names[group], ...part.keys[key].bad]);
        }
      });
    });
    if (series.length === 0) return null;
    const total = lost.reduce((sum, [, number]) => sum + number, 0);
    const where = lost.map(([name, , step]) => `${runs.length > 1 ? `${name}, ` : ""}step ${step}`).join("; ");
    const warning = total ? `${count(total, "value")} ${total === 1 ? "is" : "are"} not finite, marked × at the top (first: ${where}).` : "";
    const errors = series.some(({ mark, spans, low }) => mark === "points" && !spans && low) ? "Error bars and ±: one standard error." : "";
    return { id, title, note: [note, errors, warning].filter(Boolean).join(" "), x, y: { label, ...axis }, lines, series, groups: names, hasRuns: true, keys: Object.keys(keys) };
  }

  // ---- rewards ----

  const listed = (key) => [...new Set(runs.flatMap(({ config }) => (Array.isArray(config[key]) ? config[key].map(String) : [])))];
  const allKeys = [...new Set(parts.flatMap(([, part]) => Object.keys(part.keys)))];
  const isKnown = runs.some((run) => !run.isSparse);

  /** The reward functions by the chart that shows them: one chart for all unless their ranges differ much. */
  function rewardGroups() {
    const optimised = listed("rewards");
    const found = [...new Set([...optimised, ...listed("watched"), ...allKeys.filter((key) => key.startsWith("rewards/")).map((key) => key.slice(8))])]
      .filter((name) => recorded(`rewards/${name}`) && !name.endsWith("_std_error"));
    const objectives = new Set(optimised.length ? optimised : found.slice(0, 1));
    const labels = Object.fromEntries(found.map((name) => [`rewards/${name}`, objectives.has(name) ? name : `${name} (watched)`]));
    const ranges = Object.keys(labels).map((key) => {
      const values = parts.flatMap(([, , view]) => Array.from(view.columns[key]?.mean ?? []).filter(Number.isFinite));
      return values.reduce((a, b) => Math.max(a, b), -Infinity) - values.reduce((a, b) => Math.min(a, b), Infinity);
    }).filter((range) => range > 0);
    if (Math.max(...ranges) > SEPARATE_CHARTS_RATIO * Math.min(...ranges)) {
      return Object.entries(labels).map(([key, name], i) => [`-${i}`, `: ${name}`, { [key]: "" }]);
    }
    return found.length ? [["", "", labels]] : [];
  }

  function rewards() {
    const groups = rewardGroups();
    if (groups.length === 0) return [metricChart("reward", "Reward", "mean reward", "", { reward: "reward" })];
    return groups.map(([end, title, labels]) => {
      const watched = Object.values(labels).some((name) => name.endsWith(" (watched)")) ? "A watched reward function is recorded but not optimised." : "";
      return metricChart(`reward${end}`, `Reward${title}`, "mean reward", [end ? "" : "Mean of each reward function.", watched].filter(Boolean).join(" "), labels);
    });
  }

  /** The KL of policy and reference that a budget constrains, or else the first that was evaluated. */
  function constrained() {
    const keys = Object.keys(divergences).filter((key) => key.startsWith("kl_policy_ref_"));
    const budgeted = runs.map(({ budget }) => budget?.key).filter((key) => keys.includes(key));
    return budgeted[0] ?? keys.find((key) => runs.some(({ evaluations }) => evaluations.keys[key])) ?? keys[0];
  }

  /** The charts of the evaluated rewards against the square root of the KL, with one trail for each run. */
  function rewardsByKl() {
    const key = constrained();
    const trails = runs.map(({ evaluations: { view } }) => {
      const kl = view.columns[key]?.mean ?? [];
      return Array.from(kl, (_, i) => i).filter((i) => kl[i] >= 0).map((i) => [Math.sqrt(kl[i]), i]);
    });
    if (!trails.some((trail) => trail.length > 1)) return [];
    const lines = [];
    runs.forEach(({ budget }, group) => {
      if (budget?.key !== key || lines.some(({ value }) => value === Math.sqrt(budget.target))) return;
      const [low, value, high] = [1 - BUDGET_BAND, 1, 1 + BUDGET_BAND].map((ratio) => Math.sqrt(budget.target * ratio));
      lines.push({ value, low, high, label: `budget ${budget.target}`, group });
    });
    const divergence = divergences[key];
    return rewardGroups().map(([end, title, labels]) => {
      const series = Object.entries(labels).flatMap(([reward, name], dash) => runs.flatMap(({ evaluations: { view } }, group) => {
        const points = trails[group].map(([at, i]) => [at, finiteNumber(view.columns[reward]?.mean[i])]);
        const drawn = points.filter(([, value]) => value !== null);
        if (drawn.length === 0) return [];
        const [lastX, value] = drawn.at(-1);
        return [{ name: name || "reward", mark: "points", group, dash, x: points.map(([at]) => at), values: points.map(([, one]) => one), last: { x: lastX, value } }];
      }));
      if (series.length === 0) return null;
      return {
        id: `reward-by-kl${end}`, title: `Reward${title} against the square root of KL`,
        note: `${divergence.title}. Each point is an evaluation; the points of a run are joined in the order of the training steps. The KL of a small displacement of the weights is proportional to its square.${lines.length ? " Vertical line: the budget." : ""}`,
        x: { label: `√KL, square root of nats per ${divergence.unit}` }, y: { label: "mean reward" }, xLines: lines, series, groups: names, hasRuns: true, ownAxis: true,
      };
    });
  }

  // ---- divergences and the budget ----

  /** A chart of each KL that has a budget, or of the first KL that was recorded when no run has one. */
  function divergenceCharts() {
    const budgeted = runs.map(({ budget }) => budget?.key).filter(Boolean);
    const shown = new Set(budgeted.length ? budgeted : Object.keys(divergences).filter(recorded).slice(0, 1));
    return Object.keys(divergences).filter((key) => shown.has(key)).map((key) => {
      const { id, title, unit, note } = divergences[key];
      const targets = new Map();
      runs.forEach(({ budget }, group) => budget?.key === key && !targets.has(budget.target) && targets.set(budget.target, group));
      const lines = [...targets].map(([value, group]) => ({ value, low: value * (1 - BUDGET_BAND), high: value * (1 + BUDGET_BAND), label: `budget ${value}, ±${100 * BUDGET_BAND}%`, group }));
      const largest = parts.reduce((most, [, , view]) => Array.from(view.columns[key]?.mean ?? []).reduce((a, b) => (b > a ? b : a), most), 0);
      const least = Math.min(...targets.keys());
      return metricChart(id, title, `nats per ${unit}`, note, key in FORWARD_KL ? FORWARD_KL : { [key]: "", kl_filtered: "filtered KL (controller)" }, {
        lines, zero: true, toggle: true, log: targets.size > 0 && largest > LOG_SCALE_RATIO * least, logMin: targets.size ? least / 20 : null,
        keep: (run, drawn) => drawn !== "kl_filtered" || runs[run].budget?.key === key,
      });
    });
  }

  const isLatent = kinds.some((kind) => ["vae", "bottleneck"].includes(kind));
  const [isPpo, isSft, isDistilled] = ["ppo", "sft", "distill"].map((kind) => kinds.includes(kind));

  /** The weight of the penalty in the runs in which it is positive at some step. */
  function beta() {
    const positive = runs.map((_, i) => Array.from(views[i].metrics.columns.beta?.mean ?? []).some((value) => value > 0));
    const [objective, what] = isLatent ? ["distortion + β KL", "distortion"] : ["reward − β KL", "reward"];
    return metricChart("beta", "Penalty weight β", `${what} per nat`, `β is the weight of the KL penalty in the objective, ${objective}.`, { beta: "β" }, { log: true, keep: (run) => positive[run] });
  }

  // ---- latent variables ----

  function klByDimension() {
    used.add("kl_latents");
    const series = runs.flatMap((run, group) => {
      const kls = (Array.isArray(last(run, "kl_latents")) ? last(run, "kl_latents") : []).filter((kl) => finiteNumber(kl) !== null).sort((a, b) => b - a);
      if (kls.length === 0) return [];
      return [{ name: "KL", mark: "points", group, dash: 0, x: kls.map((_, i) => i + 1), values: kls, last: { x: kls.length, value: kls.at(-1) } }];
    });
    return series.length ? {
      id: "latents", title: "KL by latent dimension", note: "KL of each dimension at the last evaluation, in decreasing order.",
      x: { label: "rank", integer: true }, y: { label: "nats per image", zero: true }, series, groups: names, hasRuns: true, ownAxis: true,
    } : null;
  }

  function accuracyByKl() {
    const pairs = runs.map((run) => [last(run, "kl_posterior_prior_per_image"), last(run, "accuracy")]).filter((pair) => pair.every((one) => finiteNumber(one) !== null)).sort((a, b) => a[0] - b[0]);
    if (pairs.length < 2) return null;
    const [xs, values] = [0, 1].map((i) => pairs.map((pair) => pair[i]));
    return {
      id: "accuracy-by-kl", title: "Accuracy against KL", note: "Each point is the last evaluation of a run, on held-out images.", ownAxis: true,
      x: { label: "KL, nats per image" }, y: { label: "accuracy", max: 1 }, groups: ["all runs"],
      series: [{ name: "accuracy", mark: "points", group: 0, dash: 0, x: xs, values, last: { x: xs.at(-1), value: values.at(-1) } }],
    };
  }

  const hasRewards = !(isLatent || isSft || isDistilled);
  const subject = isSft ? "model" : isDistilled ? "student" : "policy";
  const one = (id, title, label, note, key, axis) => metricChart(id, title, label, note, { [key]: "" }, axis);
  const sections = [
    [hasRewards ? "Reward and divergence" : "Divergence", [...(hasRewards ? rewards() : []), ...divergenceCharts(), ...(hasRewards ? rewardsByKl() : []), accuracyByKl()]],
    ["KL control", [beta(), metricChart("control", "Learning-rate and displacement scale", "scale", SCALES_NOTE, SCALES, { min: 0, max: 1.03 })]],
    [isPpo ? "Policy statistics" : isSft ? "Model statistics" : "Completion statistics", [
      // The differential entropy of continuous actions can be negative.
      one("entropy", "Entropy", `nats per ${isPpo ? "step" : "token"}`, `Mean entropy of the ${subject}'s distribution over ${isPpo ? "actions" : "the next token"}.`, "entropy", { zero: !isPpo }),
      one("episode", "Episode length", "steps", "", "episode_length", { zero: true }),
      one("length", "Completion length", "tokens", "", "completion_length", { zero: true }),
      one("truncated", "Truncated", "fraction", "Completions that were cut off at the length limit.", "truncated", { zero: true }),
      one("repetition", "Repetition", "fraction", "Pairs of adjacent tokens that repeat an earlier pair of the same completion.", "repetition", { zero: true }),
    ]],
    ["Model fit", [
      isSft && metricChart("floor", "Cross-entropy and entropy floor", "nats per token", FLOOR_NOTE, CROSS_ENTROPY, { zero: true }),
      one("distortion", "Distortion", "nats per image", "Mean of −log p(x | z).", "distortion"),
      one("cross-entropy", "Cross-entropy of the classes", "nats per image", "", "cross_entropy"),
      one("accuracy", "Accuracy", "fraction", "", "accuracy", { max: 1 }),
      one("elbo", "Evidence lower bound (ELBO)", "nats per image", "A lower bound of log p(x).", "elbo"),
      one("likelihood", "Log-likelihood", "nats per image", "Importance-sampling estimate of log p(x), after training.", "log_likelihood"),
      one("active", "Active units", "dimensions", "Latent dimensions whose posterior mean has a variance above 0.01 over the images.", "active_units", { zero: true }),
      klByDimension(),
    ]],
  ];
  // Every other number has a chart too.
  const heading = (key) => (isKnown ? "Other metrics" : isKl(key) ? "Reward and divergence" : /reward|(^|_)rew(_|$)|return|score/.test(key) ? "Reward and divergence" : "Other metrics");
  const others = allKeys.filter((key) => !used.has(key) && !key.endsWith("_std_error"));
  for (const title of ["Reward and divergence", "Other metrics"]) {
    const charts = others.filter((key) => heading(key) === title).sort((a, b) => isKl(b) - isKl(a)).map((key) =>
      metricChart(`other-${key.replace(/[^\w-]+/g, "-")}`, divergences[key]?.title ?? key.replaceAll("_", " "), divergences[key] ? `nats per ${divergences[key].unit}` : key, "", { [key]: "" }, { toggle: true }));
    const section = sections.find(([name]) => name === title);
    if (section) section[1].push(...charts);
    else sections.push([title, charts]);
  }
  return sections.map(([title, charts]) => ({ title, charts: charts.filter(Boolean), isFolded: title === "Other metrics" && isKnown })).filter(({ charts }) => charts.length);
}
