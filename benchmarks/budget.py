"""How well controllers hold a KL budget, over tasks, budgets, learning rates and seeds.

    .venv/bin/python benchmarks/budget.py    KLBudget on the language task, the 9 runs of the first table: ten minutes
    .venv/bin/python benchmarks/budget.py --budgets 0.05 --rates 1e-3 --seeds 0 1 2 --unconstrained
    .venv/bin/python benchmarks/budget.py --task CartPole-v1 --controllers all --unconstrained
    .venv/bin/python benchmarks/budget.py --summary    of all runs under --output, by task and controller

The tasks, and what judges each run (benchmarks/budget_tasks.py): "sums", GRPO: the exact KL on 2048 fixed prompts every
20 steps; "CartPole-v1" and "Pendulum-v1", PPO: the exact KL at 1024 fixed states after every update; "digits", a VAE:
the closed-form KL on all held-out images every 25 steps. The first third of a run does not count, but for settling and
overshoot. "batches" is the mean over the training batches of the same steps. A run can bind where the same run without
a budget goes beyond 1.1 budgets; in the summary what lies before it first comes within 10% of its budget does not
count either, nor what lies below the budget with KLBudget's price at its floor, where nothing is to be held; any other
run that never comes near counts as it is. FixedBeta has no target: it is given the price that KLBudget
ended with at the middle rate. Runs that are already under --output are only read.
"""

import argparse
from itertools import pairwise
from math import nan
from pathlib import Path
from statistics import fmean, median

import transformers
from budget_tasks import TASKS, Trace, name_of, read, train

from kullback.budget.controllers import PPO2017, FixedBeta, RLlibController, Ziegler2019

HEADER = "| budget | learning rate | seed | KL mean | least | most | batches | reward | beta |"
SUMMARY = (
    "| task | controller | runs that can bind | within 10% | mean error | worst overshoot | settled after | "
    "reward less KLBudget's at its KL |"
)
CONTROLLERS = ("KLBudget", "PPO2017", "RLlibController", "Ziegler2019", "FixedBeta")
_CLOSE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/benchmark-budget"))
    add("--task", choices=TASKS, default="sums")
    add("--controllers", nargs="+", choices=(*CONTROLLERS, "all"), default=["KLBudget"])
    add("--budgets", type=float, nargs="+", help="default: the task's own, over 100 times")
    add("--rates", type=float, nargs="+", help="learning rates; default: the task's own, over 20 times")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--steps", type=int, help="optimizer steps, or of PPO updates; default: the task's own")
    add("--unconstrained", action="store_true", help="the same without a budget, beside each")
    add("--summary", action="store_true", help="train nothing; judge what there is")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.summary:
        print("\n".join(_summary([trace for task in TASKS for trace in read(options.output, task)])))
        return
    task = TASKS[options.task]
    budgets, rates = options.budgets or task.budgets, options.rates or task.rates
    kinds = CONTROLLERS if "all" in options.controllers else options.controllers
    print(HEADER, "|---" * HEADER.count(" | ") + "|---|", sep="\n")
    for seed in options.seeds:
        for kind in [*(["none"] if options.unconstrained else []), *kinds]:
            for budget in budgets if kind != "none" else [0.0]:
                for rate in rates:
                    controller = None if kind == "none" else _controller(kind, budget, options, task.rates)
                    steps = options.steps or task.steps
                    trace = train(options.output, options.task, controller, kind, budget, rate, seed, steps)
                    print(_row(trace), flush=True)


def _controller(kind, budget, options, rates):
    task = TASKS[options.task]
    match kind:
        case "KLBudget":
            return task.budget(budget)
        case "FixedBeta":
            steps = options.steps or task.steps
            name = name_of("KLBudget", budget, sorted(rates)[len(rates) // 2], options.seeds[0], steps)
            there = [trace for trace in read(options.output, options.task) if trace.name == name]
            if not there:
                raise SystemExit(f"FixedBeta: expected the run {name} of KLBudget first, whose price it takes")
            return FixedBeta(there[0].beta)
    return {"PPO2017": PPO2017, "RLlibController": RLlibController, "Ziegler2019": Ziegler2019}[kind](budget)


def _row(trace: Trace) -> str:
    scale = trace.budget or 1.0
    judged = [kl / scale for kl in trace.late] or [nan]
    values = (fmean(judged), min(judged), max(judged), trace.batches / scale)
    said = [f"{100 * value - 100:+.1f}%" if trace.budget else f"{value:.3f}" for value in values]
    budget = f"{trace.kind} {trace.budget:g}" if trace.kind != "KLBudget" else f"{trace.budget:g}"
    reward = f"{trace.rewards[0]:.2f} → {trace.rewards[-1]:.2f}"
    if trace.broken:
        reward += ", broke down"
    cells = [budget if trace.budget else "none", f"{trace.rate:g}", str(trace.seed), *said, reward, f"{trace.beta:.2g}"]
    return "| " + " | ".join(cells) + " |"


def _summary(traces: list[Trace]) -> list[str]:
    rows = [SUMMARY, "|---" * SUMMARY.count(" | ") + "|---|"]
    for task in TASKS:
        here = [trace for trace in traces if trace.task == task]
        free = {(trace.rate, trace.seed): fmean(trace.late) for trace in here if trace.kind == "none"}
        for kind in CONTROLLERS:
            runs = [
                trace
                for trace in here
                if trace.kind == kind and free.get((trace.rate, trace.seed), 0.0) > (1 + _CLOSE) * trace.budget
            ]
            if runs:
                rows.append(_judged(task, kind, runs, [trace for trace in here if trace.kind == "KLBudget"]))
    return rows


def _judged(task: str, kind: str, runs: list[Trace], ours: list[Trace]) -> str:
    errors = [abs(kl / trace.budget - 1) for trace in runs for kl in trace.held(_CLOSE)]
    # What a run that broke down was not there to be measured at counts as outside.
    whole, broken = max(len(trace.late) for trace in runs), [trace for trace in runs if trace.broken]
    due = len(errors) + sum(whole - len(trace.late) for trace in broken)
    overshoot = max(max(trace.kls) / trace.budget - 1 for trace in runs)
    settled = [trace.settled(_CLOSE) for trace in runs]
    shares = [step / trace.steps[-1] for step, trace in zip(settled, runs, strict=True) if step is not None]
    after = f"{100 * median(shares):.0f}% of the run" if shares else "-"
    if len(shares) < len(runs):
        after += f", {len(runs) - len(shares)} never"
    beside = [gap for trace in runs if (gap := _beside(trace, ours)) is not None]
    cells = [
        task,
        kind,
        f"{len(runs)}, {len(broken)} broke down" if broken else str(len(runs)),
        f"{100 * sum(error <= _CLOSE for error in errors) / due:.0f}%",
        f"{100 * fmean(errors):.0f}%",
        f"{100 * overshoot:+.0f}%",
        after,
        "-" if kind == "KLBudget" or not beside else f"{fmean(beside):+.3g} ({len(beside)} runs)",
    ]
    return "| " + " | ".join(cells) + " |"


def _beside(trace: Trace, ours: list[Trace]) -> float | None:
    """The late reward less that of KLBudget's runs at the same rate, interpolated to the same KL; None outside.

    Along the root of KL, since that is how reward begins to grow with it: budgets lie ten times apart.
    """
    same = [one for one in ours if (one.rate, one.seed) == (trace.rate, trace.seed)]
    points = sorted((fmean(one.late) ** 0.5, one.reward) for one in same)
    kl = fmean(trace.late or [nan]) ** 0.5
    for (low, first), (high, second) in pairwise(points):
        if low <= kl <= high:
            return trace.reward - first - (second - first) * (kl - low) / (high - low)
    return None


if __name__ == "__main__":
    main()
