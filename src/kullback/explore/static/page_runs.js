// Page 4: training runs with the charts of their report. The data is embedded in the page, requested from the local server
// during training, or read from files that the reader opens or drops; these files are not sent anywhere.

import { element } from "./chart.js";
import { report } from "./report.js";
import { isRunFile, pageData, parseRuns } from "./read_run_files.js";

const INTERVAL = 2000; // milliseconds between two requests
const MAX_BYTES = 256 * 2 ** 20;
const MAX_ENTRIES = 20_000; // files and directories below a dropped directory

export function runsPage(embedded, live, metrics) {
  const shown = element("div", { class: "report" });
  const status = element("p", { class: "aside", role: "status" });
  const folder = element("input", { type: "file", webkitdirectory: "", id: "run-folder", class: "visually-hidden" });
  const files = element("input", { type: "file", multiple: "", accept: ".jsonl,.json", id: "run-files", class: "visually-hidden" });
  const opener = element("div", { class: "opener" },
    element("p", {}, "Drop run directories, or files such as metrics.jsonl, here. The browser reads the files and does not upload them."),
    element("div", { class: "row" }, folder, element("label", { class: "button", for: "run-folder" }, "Open a run directory"),
      files, element("label", { class: "button", for: "run-files" }, "Open files")),
    element("p", { class: "aside" }, "To follow runs during training: ", element("code", {}, "kullback explore RUN ...")),
    element("p", { class: "aside" }, "To save runs in one file: ", element("code", {}, "kullback explore RUN ... --output page.html")));
  const section = element("section", { class: "page", id: "runs", "aria-labelledby": "runs-title" },
    element("h2", { id: "runs-title" }, "Training runs"), opener, status, shown);
  let [lastText, following] = ["", Boolean(embedded && live)];

  function show(data, text) {
    if (text === lastText) return;
    lastText = text;
    // Elements that the reader opened stay open.
    const open = [...shown.querySelectorAll("details")].map((details) => details.open);
    shown.replaceChildren(...report(data));
    [...shown.querySelectorAll("details")].forEach((details, i) => { details.open = open[i] ?? false; });
  }

  async function poll() {
    if (!following) return;
    if (document.visibilityState === "visible") {
      try {
        const response = await fetch("runs.json");
        if (!response.ok) throw new Error(String(response.status));
        const text = await response.text();
        if (!following) return;
        show(JSON.parse(text), text);
        status.textContent = "Live: updated every two seconds.";
      } catch {
        status.textContent = "The server does not respond. The charts show the last data that was received.";
      }
    }
    setTimeout(poll, INTERVAL);
  }

  async function open(chosen) {
    try {
      const selected = chosen.filter(({ path }) => isRunFile(path));
      const size = selected.reduce((sum, { file }) => sum + file.size, 0);
      if (size > MAX_BYTES) throw new Error(`expected files of at most ${MAX_BYTES / 2 ** 20} MiB in total, got ${Math.round(size / 2 ** 20)} MiB`);
      const texts = await Promise.all(selected.map(async ({ path, file }) => ({ path, text: await file.text() })));
      const runs = parseRuns(texts);
      following = false;
      show(pageData(runs, metrics), JSON.stringify(texts));
      status.textContent = `Opened: ${runs.map(({ name }) => name).join(", ")}.`;
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
      if (embedded) show(embedded, JSON.stringify(embedded));
      if (embedded && live) poll();
    },
  };
}

/** The files of run directories among dropped entries and below them. */
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
    } else if (isRunFile(entry.fullPath)) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ path: entry.fullPath.slice(1), file });
    }
  }
  return found;
}
