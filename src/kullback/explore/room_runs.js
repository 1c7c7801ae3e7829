// Room 4: training runs, with the charts of their report; live while they train, where a server tells of them.

import { element } from "./kullback.js";
import { report } from "./report.js";

const EVERY = 2000; // milliseconds

export function runsRoom(page, live) {
  const shown = element("div", { class: "report" });
  const status = element("p", { class: "aside", role: "status" });
  const hint = element("p", {}, "Open run directories with ", element("code", {}, "kullback explore RUN ..."),
    "; with ", element("code", {}, "--output page.html"), " they are kept in one file.");
  const section = element("section", { class: "room", id: "runs", "aria-labelledby": "runs-title" },
    element("h2", { id: "runs-title" }, "A run"), page ? null : hint, status, shown);
  let last = "";

  function show(data, text) {
    if (text === last) return;
    last = text;
    // What was open stays open.
    const open = [...shown.querySelectorAll("details")].map((one) => one.open);
    shown.replaceChildren(...report(data));
    [...shown.querySelectorAll("details")].forEach((one, i) => { one.open = open[i] ?? false; });
  }

  async function look() {
    if (document.visibilityState === "visible") {
      try {
        const answer = await fetch("runs.json");
        if (!answer.ok) throw new Error(String(answer.status));
        const text = await answer.text();
        show(JSON.parse(text), text);
        status.textContent = "Live: looked at every two seconds.";
      } catch {
        status.textContent = "The server does not answer; what is shown is the last that it said.";
      }
    }
    setTimeout(look, EVERY);
  }

  return {
    section,
    begin: () => {
      if (page) show(page, JSON.stringify(page));
      if (page && live) look();
    },
  };
}
