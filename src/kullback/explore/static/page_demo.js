// Question 4: the runs of `kullback train demo` with and without a KL budget, as trails of reward against the root of the KL.

import { keepInAddress, noteState, numbersIn } from "./address.js";
import { table } from "./chart.js";
import { element } from "./elements.js";
import { control, curveOf, labelAt, liveFigure, number4, oncePerFrame, pointAt, playback, pressButton, valueList } from "./figure.js";

/** `demo`: { budget, arms: [{ name, steps, kl, proxy, true }], prompts: [{ prompt, answer, completions: [[text per step] per arm] }] }. */
export function demoPage(demo) {
  const { arms, prompts, budget } = demo;
  const { steps } = arms[0];
  let index = steps.length - 1;
  const looks = [{ dash: "", hollow: "" }, { dash: "dashed", hollow: "hollow" }];
  const rootKl = (arm, i) => Math.sqrt(arm.kl[i]);

  const trails = liveFigure({
    id: "trails", title: "Reward against the root of the KL", height: 320,
    note: `Solid: without a budget. Dashed: with a budget of ${budget} nats per token. Vertical line: the budget. One point for each evaluation on 1024 sums.`,
    describe: () => arms.map((arm) => `${arm.name}, step ${steps[index]}: KL ${number4(arm.kl[index])} nats per token, proxy reward ${number4(arm.proxy[index])}, true reward ${number4(arm.true[index])}`).join("; "),
    x: { label: "√KL(policy || reference), KL in nats per token", domain: () => [0, 1.05 * Math.sqrt(Math.max(...arms.flatMap(({ kl }) => kl)))] },
    y: { label: "reward", domain: () => [0, 1.1 * Math.max(...arms.flatMap(({ proxy }) => proxy))] },
    draw: (api) => {
      const line = (x) => curveOf(api, [[x, api.invert(0, api.box.bottom)[1]], [x, api.invert(0, api.box.top)[1]]], "limit-line");
      return [
        line(Math.sqrt(budget)), labelAt(api, [Math.sqrt(budget), api.invert(0, api.box.top)[1]], "budget", { dx: 5, dy: 10, anchor: "start" }),
        arms.flatMap((arm, k) => ["proxy", "true"].map((name) => {
          const points = arm.kl.map((_, i) => [rootKl(arm, i), arm[name][i]]);
          return [
            curveOf(api, points, `${name} faint ${looks[k].dash}`), curveOf(api, points.slice(0, index + 1), `${name} ${looks[k].dash}`),
            pointAt(api, points[index], `${name} ${looks[k].hollow}`, `${arm.name}, ${name} reward ${number4(arm[name][index])} at step ${steps[index]}`, 6),
          ];
        })),
      ];
    },
    rows: () => [["run", "step", "kl", "proxy reward", "true reward"], ...arms.flatMap((arm) => steps.map((step, i) => [arm.name, step, arm.kl[i], arm.proxy[i], arm.true[i]]))],
  });
  const curves = liveFigure({
    id: "demo-steps", title: "Rewards during training", height: 320,
    note: "Solid: without a budget. Dashed: with the budget. Vertical line: the selected step.",
    describe: () => "",
    x: { label: "step", domain: () => [0, steps.at(-1)] }, y: { label: "reward", domain: () => [0, 1.1 * Math.max(...arms.flatMap(({ proxy }) => proxy))] },
    draw: (api) => [
      curveOf(api, [[steps[index], 0], [steps[index], api.invert(0, api.box.top)[1]]], "limit-line"),
      arms.flatMap((arm, k) => ["proxy", "true"].map((name) => [
        curveOf(api, steps.map((step, i) => [step, arm[name][i]]), `${name} ${looks[k].dash}`),
        pointAt(api, [steps[index], arm[name][index]], `${name} ${looks[k].hollow}`, "", 5),
      ])),
    ],
    rows: () => [["step", ...arms.flatMap((arm) => [`${arm.name}: proxy reward`, `${arm.name}: true reward`])], ...steps.map((step, i) => [step, ...arms.flatMap((arm) => [arm.proxy[i], arm.true[i]])])],
  });

  const completions = element("div", { class: "completions" });
  const numbers = valueList({
    step: "step", ...Object.fromEntries(arms.flatMap(({ name }, k) => [[`kl-${k}`, `KL ${name}, nats per token`], [`proxy-${k}`, `proxy reward ${name}`], [`true-${k}`, `true reward ${name}`]])),
  });
  const update = oncePerFrame(() => {
    numbers.set("step", steps[index]);
    arms.forEach((arm, k) => { numbers.set(`kl-${k}`, arm.kl[index]); numbers.set(`proxy-${k}`, arm.proxy[index]); numbers.set(`true-${k}`, arm.true[index]); });
    completions.replaceChildren(table({
      caption: `Completions at step ${steps[index]}`,
      columns: ["prompt", "expected", ...arms.map(({ name }) => name)],
      rows: prompts.map(({ prompt, answer, completions: texts }) => [prompt, answer, ...texts.map((perStep) => `${perStep[index]}${perStep[index] === answer ? " ✓" : ""}`)]),
    }));
    trails.redraw();
    curves.redraw();
    noteState();
  });
  const choose = (now) => { index = now; update(); };
  const stepControl = control({
    id: "step", label: "step of training", min: 0, max: steps.length - 1, step: 1, value: index, text: (value) => String(steps[Math.round(value)]),
    change: (value) => { player.stop(); choose(Math.round(value)); },
  });
  const player = playback({ id: "demo-play", label: "", seconds: 4, text: String, change: (fraction) => { const now = Math.round(fraction * (steps.length - 1)); stepControl.set(now); choose(now); } });

  const section = element("section", { class: "question", id: "demo", "aria-labelledby": "demo-title" },
    element("h2", { id: "demo-title" }, "4. What did a run do?"),
    element("p", { class: "lead" }, `The demonstration (kullback train demo) trains a small language model to add two numbers with GRPO. The proxy reward is a grader that adds 0.05 for each character of an answer; the true reward is 1 for the exact answer. Without a budget the policy learns to write long answers. With a budget of ${budget} nats per token, both rewards increase and stay.`),
    element("p", { class: "key-row" }, element("span", { class: "key-proxy" }, "proxy reward"), element("span", { class: "key-true" }, "true reward"), element("span", {}, "The root of the KL is proportional to the distance of nearby policies.")),
    element("div", { class: "controls" }, stepControl.row, pressButton("Play", () => player.play(), { id: "play" })),
    element("div", { class: "pair" }, trails.figure, curves.figure), completions, numbers.list);
  return {
    section,
    start: () => {
      keepInAddress("step", {
        get: () => (index === steps.length - 1 ? undefined : String(steps[index])),
        set: (text) => {
          const at = steps.indexOf(numbersIn(text, 1)?.[0]);
          index = at < 0 ? steps.length - 1 : at;
          stepControl.set(index);
          update();
        },
      });
      update();
    },
  };
}
