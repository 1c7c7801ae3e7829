// The explorer: five questions on one page, their navigation, and the state in the address.

import { addressOf, noteState, readAddress, resetState, restoreState, startAt } from "./address.js";
import { element } from "./elements.js";
import { pressButton } from "./figure.js";
import { demoPage } from "./page_demo.js";
import { directionsPage } from "./page_directions.js";
import { nextTokenPage } from "./page_next_token.js";
import { policyPage } from "./page_policy.js";
import { runsPage } from "./page_runs.js";

const { runs: embeddedRuns, live, metrics, demo } = JSON.parse(document.getElementById("page").textContent);
const questions = [
  ["1. Which Q is nearest?", directionsPage()],
  ["2. What does a token cost?", nextTokenPage()],
  ["3. What does the penalty do?", policyPage()],
  ["4. What did a run do?", demoPage(demo)],
  ["5. Your run", runsPage(embeddedRuns, live, metrics)],
];
questions[4][1].section.querySelector("h2").textContent = questions[4][0];
questions[4][1].section.classList.add("question");

const links = questions.map(([name, { section }]) => {
  const link = element("a", { href: `#${section.id}` }, name);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    section.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    markSection(section.id);
    noteState(section.id);
  });
  return link;
});
const markSection = (id) => links.forEach((link) => {
  if (link.hash === `#${id}`) link.setAttribute("aria-current", "true");
  else link.removeAttribute("aria-current");
});
const copied = element("span", { class: "copied", role: "status" });
const copyButton = pressButton("Copy link", async () => {
  const address = `${location.href.split("#")[0]}${addressOf()}`;
  try {
    await navigator.clipboard.writeText(address);
    copied.textContent = "Copied.";
  } catch {
    noteState();
    copied.textContent = "The link is in the address bar.";
  }
  setTimeout(() => { copied.textContent = ""; }, 4000);
}, { id: "copy-link" });
document.querySelector("header").after(element("nav", { "aria-label": "Questions" }, element("div", { class: "links" }, links),
  element("div", { class: "tools" }, copied, copyButton, pressButton("Reset", resetState, { id: "reset" }))));
document.querySelector("main").append(...questions.map(([, { section }]) => section));

// Each question starts in a task of its own, so that no task blocks the page for long.
const address = readAddress();
const chosen = document.getElementById(address.section) ? address.section : embeddedRuns ? "runs" : "";
for (const [, { start }] of questions) await new Promise((next) => { start(); setTimeout(next); });
startAt(chosen);
if (chosen) document.getElementById(chosen).scrollIntoView();
markSection(chosen || "directions");
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) markSection(target.id);
}, { rootMargin: "-30% 0px -65% 0px" });
for (const [, { section }] of questions) observer.observe(section);
window.addEventListener("hashchange", restoreState);
document.body.dataset.ready = "true";
