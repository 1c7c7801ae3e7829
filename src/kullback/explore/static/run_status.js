// The state of training runs: a strip that stays in view, the title of the document and its icon.

import { format } from "./axes.js";
import { swatch } from "./chart.js";
import { element } from "./elements.js";

const DEAD_AFTER = 60; // seconds without a row after which a run counts as stopped, or the time of 10 rows if that is longer

const lastValue = (part, key) => part.keys[key]?.last?.[1];

/** A duration with a fitting unit. */
export function durationText(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 120) return `${format(seconds, 2)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${format(seconds / 3600, 3)} h` : `${format(seconds / 86400, 3)} days`;
}

/** The steps per second, and the seconds per row, of the last rows of a run. */
function speedOf({ view }) {
  const seconds = view.columns.seconds?.mean ?? [];
  const known = Array.from(seconds, (_, i) => i).filter((i) => Number.isFinite(seconds[i]));
  const last = known.at(-1);
  const first = known[Math.max(0, known.length - 1 - Math.max(5, Math.round(known.length / 20)))];
  const time = seconds[last] - seconds[first];
  return time > 0 ? [(view.x[last] - view.x[first]) / time, time / ((last - first) * 2 ** view.k)] : [NaN, NaN];
}

/** The numbers of a run that the strip shows; `elapsed` is the time in seconds since its data was received. */
export function statusOf(run, elapsed = 0) {
  const { metrics, evaluations, budget, config } = run;
  const step = metrics.view.rows ? metrics.lastRow.step : evaluations.lastRow?.step ?? 0;
  const [rate, secondsPerRow] = speedOf(metrics);
  const { age: known, is_locked: isLocked, is_finished: isFinished } = run.state ?? {};
  const age = Number.isFinite(known) ? known + elapsed : NaN;
  const isLate = age > Math.max(DEAD_AFTER, 10 * (secondsPerRow || 0));
  const activity = !run.state ? "" : isFinished && !isLocked ? "finished" : isLocked === false ? "stopped" : isLate ? "no new row" : "running";

  const key = budget?.key ?? Object.keys(metrics.keys).find((one) => one.startsWith("kl_policy_ref_"));
  const price = budget && lastValue(metrics, "beta") * budget.target;
  const { price_min: lowest, price_max: highest } = config.budget ?? {};
  const kl = (budget ? lastValue(metrics, "kl_filtered") : undefined) ?? lastValue(metrics, key) ?? lastValue(evaluations, key);
  const isLost = metrics.lastRow?.[key] === "not finite";
  let state = "no budget";
  if (budget && !isLost && !Number.isFinite(kl)) state = "no KL yet";
  else if (budget) {
    const isMean = config.budget?.mean_over_updates; // one update may have more or less than a budget of the mean
    const most = (lastValue(metrics, "kl_budget") ?? budget.target) + (isMean ? 1.05 : 0.2) * budget.target;
    state = kl > most ? "above the budget" : !isMean && !config.budget?.decay && kl < 0.5 * budget.target ? "below the budget" : "held";
    if (price >= highest * (1 - 1e-9)) state = "saturated";
    else if (price <= lowest * (1 + 1e-9)) state = "not binding";
    else if (!(price > 0) && kl < 0.8 * budget.target) state = "not binding";
  }
  const bad = [metrics, evaluations].flatMap((part) => Object.entries(part.keys).flatMap(([name, { bad: some }]) => (some ? [[name, ...some]] : [])));
  const total = config.steps ?? config.total_timesteps;
  const left = Number.isFinite(total) && total > step && activity !== "finished" && activity !== "stopped" ? (total - step) / rate : NaN;
  const isBad = activity === "stopped" || activity === "no new row" || isLost;
  return {
    state, activity, step, total, rate, left, age, kl: isLost ? NaN : kl, isLost, target: budget?.target, unit: budget?.unit,
    lost: bad.reduce((sum, [, number]) => sum + number, 0), firstLost: bad.sort((a, b) => a[2] - b[2])[0], isBad,
    tone: isBad ? "bad" : state === "saturated" || state === "above the budget" ? "warning" : state === "held" ? "good" : "plain",
  };
}

const ICONS = { bad: "#d1242f", warning: "#e0600c", good: "#009a5c", plain: "#7a7f87" };

/** Shows the states of the runs in the title of the document and in its icon, for a reader on another tab. */
export function showInTab(statuses, names, isAnswered = true) {
  const order = ["bad", "warning", "good", "plain"];
  const rank = ({ tone, isBad, activity }) => (activity === "finished" && !isBad ? order.length : 0) + order.indexOf(tone);
  const worst = statuses.map((status, i) => [status, names[i]]).sort(([a], [b]) => rank(a) - rank(b))[0];
  if (!worst) return;
  const [{ state, activity, step, kl, target, isBad, isLost }, name] = worst;
  const what = !isAnswered ? "no answer" : isLost ? "KL not finite" : isBad || activity === "finished" ? activity : state;
  const ratio = target ? ` ${format(kl, 3)}/${format(target, 3)}` : "";
  document.title = `${what}${ratio} · step ${format(step, 12)} · ${name}`;
  const colour = isAnswered ? ICONS[worst[0].tone] : ICONS.bad;
  const picture = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${colour}"/><\/svg>`;
  const icon = document.querySelector("link[rel=icon]") ?? document.head.appendChild(element("link", { rel: "icon" }));
  const address = `data:image/svg+xml,${encodeURIComponent(picture)}`;
  if (icon.getAttribute("href") !== address) icon.setAttribute("href", address);
}

/** A strip with a row for each run: { node, update(runs, { elapsed, isLive, isAnswered }) }. `toStep(run, key, step)` moves the charts to a step. */
export function statusStrip(toStep) {
  const node = element("section", { class: "strip", "aria-label": "State of the runs" });
  let rows = [];

  function makeRow(name, i) {
    const part = (label, className = "") => {
      const value = element("dd", { class: className });
      return { value, box: element("div", {}, element("dt", {}, label), value) };
    };
    const parts = { state: part("budget", "state"), kl: part("KL"), step: part("step"), rate: part("steps per second"), left: part("time left"), age: part("updated"), lost: part("not finite"), findings: part("findings") };
    const meter = element("span", { class: "meter", role: "meter", "aria-valuemin": 0 }, element("span"));
    const klText = element("span");
    const unitText = element("span", { class: "unit" });
    parts.kl.value.append(meter, klText, unitText);
    const row = element("div", { class: "status" }, swatch(i, name), element("dl", {}, Object.values(parts).map(({ box }) => box)));
    for (const [part_, { box }] of Object.entries(parts)) box.dataset.part = part_;
    return { name, row, parts, meter, klText, unitText };
  }

  const setText = (target, text) => {
    if (target.textContent !== text) target.textContent = text;
  };

  function update(runs, { elapsed = 0, isLive = false, isAnswered = true } = {}) {
    if (runs.map(({ name }) => name).join("\n") !== rows.map(({ name }) => name).join("\n")) {
      rows = runs.map(({ name }, i) => makeRow(name, i));
      node.classList.toggle("many", runs.length > 2);
      node.replaceChildren(...rows.map(({ row }) => row));
    }
    const statuses = runs.map((run) => statusOf(run, elapsed));
    statuses.forEach((status, i) => {
      const { parts, meter, klText, unitText, row } = rows[i];
      row.dataset.tone = status.tone;
      const show = (name, text, isShown = true) => {
        parts[name].box.hidden = !isShown;
        setText(parts[name].value, text);
      };
      show("state", [status.state, status.activity].filter(Boolean).join(", "));
      parts.kl.box.hidden = !(status.isLost || Number.isFinite(status.kl));
      const shownKl = status.isLost ? "not finite" : format(status.kl, 3);
      setText(klText, status.target ? `${shownKl} of ${format(status.target, 3)}` : shownKl);
      setText(unitText, status.target ? ` nats per ${status.unit}` : " nats");
      meter.hidden = !status.target;
      if (status.target) {
        const most = 2 * status.target;
        for (const [name, value] of Object.entries({ "aria-label": `KL of ${runs[i].name} against its budget`, "aria-valuemax": most, "aria-valuenow": Math.min(most, status.kl || 0), "aria-valuetext": klText.textContent + unitText.textContent })) meter.setAttribute(name, value);
        meter.firstChild.style.width = `${Math.min(100, (50 * (status.kl || 0)) / status.target)}%`;
      }
      show("step", Number.isFinite(status.total) ? `${format(status.step, 12)} of ${format(status.total, 12)}` : format(status.step, 12));
      show("rate", format(status.rate, 3), Number.isFinite(status.rate));
      show("left", durationText(status.left), Number.isFinite(status.left));
      show("age", isAnswered ? `${durationText(status.age)} ago` : `no answer from the server; ${durationText(status.age)} ago`, isLive && Number.isFinite(status.age));
      parts.age.value.classList.toggle("dead", !isAnswered || status.isBad);
      parts.lost.box.hidden = status.lost === 0;
      const lostText = status.firstLost ? `${format(status.lost, 12)} ${status.lost === 1 ? "value" : "values"}, from step ${format(status.firstLost[2], 12)}` : "";
      if (parts.lost.value.textContent !== lostText && status.firstLost) {
        const [key, , step] = status.firstLost;
        parts.lost.value.replaceChildren(stepLink(lostText, () => toStep(i, key, step)));
      }
      const errors = (runs[i].findings ?? []).filter(({ severity }) => severity === "error").length;
      const others = (runs[i].findings ?? []).length - errors;
      const findingText = runs[i].findings ? [errors && `${errors} error${errors === 1 ? "" : "s"}`, others && `${others} warning${others === 1 ? "" : "s"}`].filter(Boolean).join(", ") || "none" : "not checked";
      if (parts.findings.value.textContent !== findingText) parts.findings.value.replaceChildren(errors + others ? stepLink(findingText, () => document.querySelector(".findings")?.scrollIntoView({ block: "center" })) : findingText);
    });
    if (isLive) showInTab(statuses, runs.map(({ name }) => name), isAnswered);
    return statuses;
  }
  return { node, update };
}

/** A link within the page that runs a function. */
export function stepLink(text, action, address = "#") {
  const link = element("a", { href: address }, text);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    action();
  });
  return link;
}
