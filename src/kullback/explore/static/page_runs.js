// Room 4: training runs, with the charts of their report; live while they train, where a server tells of them; or from
// files that the reader opens or drops here, which never leave the page.

import { element } from "./chart.js";
import { report } from "./report.js";
import { isWanted, pageOf, runsOf } from "./read_run_files.js";

const EVERY = 2000; // milliseconds
const MOST_BYTES = 256 * 2 ** 20;
const MOST_ENTRIES = 20_000; // of what is dropped

export function runsRoom(page, live, named) {
  const shown = element("div", { class: "report" });
  const status = element("p", { class: "aside", role: "status" });
  const folder = element("input", { type: "file", webkitdirectory: "", id: "run-folder", class: "unseen" });
  const files = element("input", { type: "file", multiple: "", accept: ".jsonl,.json", id: "run-files", class: "unseen" });
  const opener = element("div", { class: "opener" },
    element("p", {}, "Drop run directories here, or their files, such as metrics.jsonl. They are read by this page alone."),
    element("div", { class: "row" }, folder, element("label", { class: "button", for: "run-folder" }, "Open a run directory"),
      files, element("label", { class: "button", for: "run-files" }, "Open files")),
    element("p", { class: "aside" }, "To follow a run while it trains: ", element("code", {}, "kullback explore RUN ..."),
      "; with ", element("code", {}, "--output page.html"), " runs are kept in one file."));
  const section = element("section", { class: "room", id: "runs", "aria-labelledby": "runs-title" },
    element("h2", { id: "runs-title" }, "A run"), opener, status, shown);
  let [last, following] = ["", Boolean(page && live)];

  function show(data, text) {
    if (text === last) return;
    last = text;
    // What was open stays open.
    const open = [...shown.querySelectorAll("details")].map((one) => one.open);
    shown.replaceChildren(...report(data));
    [...shown.querySelectorAll("details")].forEach((one, i) => { one.open = open[i] ?? false; });
  }

  async function look() {
    if (!following) return;
    if (document.visibilityState === "visible") {
      try {
        const answer = await fetch("runs.json");
        if (!answer.ok) throw new Error(String(answer.status));
        const text = await answer.text();
        if (!following) return;
        show(JSON.parse(text), text);
        status.textContent = "Live: looked at every two seconds.";
      } catch {
        status.textContent = "The server does not answer; what is shown is the last that it said.";
      }
    }
    setTimeout(look, EVERY);
  }

  async function open(chosen) {
    try {
      const wanted = chosen.filter(({ path }) => isWanted(path));
      const size = wanted.reduce((sum, { file }) => sum + file.size, 0);
      if (size > MOST_BYTES) throw new Error(`expected at most ${MOST_BYTES / 2 ** 20} MiB of rows, got ${Math.round(size / 2 ** 20)}`);
      const texts = await Promise.all(wanted.map(async ({ path, file }) => ({ path, text: await file.text() })));
      const runs = runsOf(texts);
      following = false;
      show(pageOf(runs, named), JSON.stringify(texts));
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
    const loose = entries.length ? [] : [...event.dataTransfer.files].map((file) => ({ path: file.name, file }));
    open([...loose, ...(await filesIn(entries))]);
  });

  return {
    section,
    begin: () => {
      if (page) show(page, JSON.stringify(page));
      if (page && live) look();
    },
  };
}

/** The wanted files below entries that were dropped. */
async function filesIn(entries) {
  const [waiting, found] = [[...entries], []];
  for (let seen = 0; waiting.length && seen < MOST_ENTRIES; seen += 1) {
    const entry = waiting.shift();
    if (entry.isDirectory) {
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((done, failed) => reader.readEntries(done, failed));
        if (some.length === 0) break;
        waiting.push(...some);
      }
    } else if (isWanted(entry.fullPath)) {
      const file = await new Promise((done, failed) => entry.file(done, failed));
      found.push({ path: entry.fullPath.slice(1), file });
    }
  }
  return found;
}
