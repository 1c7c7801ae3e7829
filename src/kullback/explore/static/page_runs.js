// The page of training runs. The data is embedded in the page, requested from the local server during training, or read from
// files that the reader opens or drops; these files are not sent anywhere.

import { element } from "./elements.js";
import { mergedRun, report } from "./report.js";
import { isRunFile, parsedRuns } from "./read_run_files.js";
import { decodedView } from "./run_series.js";

const [POLL_VISIBLE, POLL_HIDDEN] = [2000, 10_000]; // milliseconds between two requests
const MAX_BYTES = 256 * 2 ** 20;
const MAX_ENTRIES = 20_000; // files and directories below a dropped directory

export function runsPage(embedded, live, divergences) {
  const status = element("p", { class: "aside", role: "status" });
  const folder = element("input", { type: "file", webkitdirectory: "", id: "run-folder", class: "visually-hidden" });
  const files = element("input", { type: "file", multiple: "", accept: ".jsonl,.json,.csv,*", id: "run-files", class: "visually-hidden" });
  const opener = element("details", { class: "opener" },
    element("summary", {}, "Open runs"),
    element("p", {}, "Drop run directories or logs here. The browser reads the files and does not upload them."),
    element("div", { class: "row" }, folder, element("label", { class: "button", for: "run-folder" }, "Open a directory"),
      files, element("label", { class: "button", for: "run-files" }, "Open files")),
    element("p", { class: "aside" }, "Logs: config.json and metrics.jsonl of kullback, event files of TensorBoard, rows of Weights & Biases and TRL as .jsonl or .json, trainer_state.json of transformers, progress.csv and monitor files of stable-baselines3."),
    element("p", { class: "aside" }, "To follow runs during training: ", element("code", {}, "kullback explore RUN ..."), ". To save them in one file: ", element("code", {}, "kullback explore RUN ... --output page.html")));
  opener.open = !embedded;
  let shown = null;
  const place = element("div");
  const section = element("section", { class: "page", id: "runs", "aria-labelledby": "runs-title" },
    element("h2", { id: "runs-title" }, "Training runs"), opener, status, place);
  let [runs, received, following] = [[], 0, Boolean(embedded && live)];

  const elapsed = () => (performance.now() - received) / 1000;
  function showReport(options) {
    shown = report(options);
    place.replaceChildren(shown.node);
  }

  function receive(answer) {
    const known = new Map(runs.map((run) => [run.name, run]));
    runs = answer.runs.map((run) => mergedRun(known.get(run.name), run));
    received = performance.now();
    shown.update({ runs, divergences, problems: embedded.problems }, { elapsed: 0, isAnswered: true });
  }

  async function poll() {
    if (!following) return;
    try {
      const since = JSON.stringify(Object.fromEntries(runs.map(({ name, token }) => [name, token])));
      const response = await fetch(`runs.json?since=${encodeURIComponent(since)}`);
      if (!response.ok) throw new Error((await response.text()).trim());
      const answer = await response.json();
      if (!following) return;
      receive(answer);
      status.textContent = "Live: updated every two seconds.";
    } catch (error) {
      status.textContent = error instanceof TypeError ? "The server does not answer. The charts show the last data that was received." : error.message;
      shown.tick({ elapsed: elapsed(), isAnswered: false });
    }
    setTimeout(poll, document.visibilityState === "visible" ? POLL_VISIBLE : POLL_HIDDEN);
  }

  async function rangeOf({ name }, low, high) {
    const response = await fetch(`runs.json?${new URLSearchParams({ run: name, from: low, to: high })}`);
    if (!response.ok) throw new Error(String(response.status));
    const { metrics, evaluations } = await response.json();
    return { metrics: decodedView(metrics), evaluations: decodedView(evaluations) };
  }

  async function open(chosen) {
    try {
      const selected = chosen.length === 1 ? chosen : chosen.filter(({ path }) => isRunFile(path) || !path.includes("/"));
      const size = selected.reduce((sum, { file }) => sum + file.size, 0);
      if (size > MAX_BYTES) throw new Error(`expected files of at most ${MAX_BYTES / 2 ** 20} MiB in total, got ${Math.round(size / 2 ** 20)} MiB`);
      if (!selected.every(({ path }) => /\.jsonl$|\.json$|\.csv$|tfevents/.test(path)) || !selected.length) throw new Error("expected a run directory or a log, found none");
      const found = await parsedRuns(selected.map(({ path, file }) => ({ path, text: () => file.text(), bytes: () => file.arrayBuffer() })), divergences);
      following = false;
      showReport({ range: async ({ metrics, evaluations }, low, high) => ({ metrics: metrics.columns.view(low, high), evaluations: evaluations.columns.view(low, high) }) });
      shown.update({ runs: found, divergences });
      opener.open = false;
      status.textContent = `Opened: ${found.map(({ name }) => name).join(", ")}. The checks of kullback doctor are not made here; run kullback doctor RUN.`;
    } catch (error) {
      status.textContent = `Not opened: ${error.message}.`;
    }
  }

  for (const input of [folder, files]) {
    input.addEventListener("change", () => {
      open([...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
      input.value = "";
    });
  }
  section.addEventListener("dragover", (event) => {
    event.preventDefault();
    opener.classList.add("over");
  });
  section.addEventListener("dragleave", () => opener.classList.remove("over"));
  section.addEventListener("drop", async (event) => {
    event.preventDefault();
    opener.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const plainFiles = entries.length ? [] : [...event.dataTransfer.files].map((file) => ({ path: file.name, file }));
    open([...plainFiles, ...(await filesIn(entries))]);
  });

  return {
    section,
    start: () => {
      if (!embedded) return;
      showReport({ range: live ? rangeOf : undefined, isLive: live });
      receive(embedded);
      if (!live) return;
      setInterval(() => following && shown.tick({ elapsed: elapsed(), isAnswered: elapsed() < 20 || document.hidden }), 1000);
      poll();
    },
  };
}

/** The files among dropped entries, and the files of runs below them. */
async function filesIn(entries) {
  const [queue, found] = [[...entries], []];
  for (let visited = 0; queue.length && visited < MAX_ENTRIES; visited += 1) {
    const entry = queue.shift();
    if (entry.isDirectory) {
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (some.length === 0) break;
        queue.push(...some);
      }
    } else if (isRunFile(entry.fullPath) || entries.includes(entry)) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ path: entry.fullPath.slice(1), file });
    }
  }
  return found;
}
