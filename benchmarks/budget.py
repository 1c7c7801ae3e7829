r"""Measure how accurately controllers hold a KL budget, over tasks, budgets, learning rates and seeds.

    .venv/bin/python benchmarks/budget.py    KLBudget on the language task, 9 runs: ten minutes
    .venv/bin/python benchmarks/budget.py --budgets 0.05 --rates 1e-3 --seeds 0 1 2 --unconstrained
    .venv/bin/python benchmarks/budget.py --task CartPole-v1 --controllers all --unconstrained
    .venv/bin/python benchmarks/budget.py --task CartPole-v1 --controllers KLBudget --rates 4.5e-4 --seeds 0
    .venv/bin/python benchmarks/budget.py --task CartPole-v1 --controllers FixedBeta Ziegler2019 --rates 4.5e-4 \
        --seeds 0 1 2 3 4 5 6 7 8 9
    .venv/bin/python benchmarks/budget.py --task CartPole-v1 --equal-kl    KLBudget at the final KLs of the other rules
    .venv/bin/python benchmarks/budget.py --summary    a table of all runs under --output, by task and controller

The tasks, and the KL by which each run is evaluated (benchmarks/budget_tasks.py): "sums", GRPO: the exact KL on 2048
fixed prompts every 20 steps; "CartPole-v1" and "Pendulum-v1", PPO: the exact KL at 1024 fixed states after every
update; "digits", a VAE: the closed-form KL on all held-out images every 25 steps.

The first third of a run is excluded, except from the settling time and the overshoot. The mean over training batches
covers the same steps as the evaluations. A budget is called binding if the same run without a budget exceeds 1.1
budgets. The summary also excludes evaluations before the KL first comes within 10% of its budget, and evaluations of
KLBudget below the budget with the price at its minimum, where the constraint does not bind. A run whose KL never comes
within 10% of its budget is included from the end of its first third. FixedBeta has no target: its price is the final
price of KLBudget at the middle learning rate. Rewards at equal KL are compared by interpolation between the runs of
KLBudget, whose default budgets are factors of ten apart; where the reward is concave in sqrt(KL), this is below the
reward of KLBudget at that KL. --equal-kl removes this error: it trains KLBudget with the KL of the last policy of each
run of another controller as its budget, with the same rate, seed and number of steps, and compares the rewards of the
last policies in pairs (PPO: in 256 episodes). Runs that already exist under --output are read, not repeated.

The figures of the language task are stored as the table "seeds" if there are several seeds, and as "learning-rates"
otherwise; --summary stores the table "controllers", and --equal-kl the table "equal-kl-TASK".
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from math import nan
from pathlib import Path
from statistics import fmean, median, stdev

import results
import transformers
from budget_tasks import TASKS, Trace, name_of, read, train

from kullback.budget.controllers import PPO2017, Controller, FixedBeta, RLlibController, Ziegler2019

COLUMNS = [
    "budget",
    "learning rate",
    "seed",
    "mean KL",
    "minimum",
    "maximum",
    "mean over training batches",
    "true reward",
    "beta",
]
SUMMARY_COLUMNS = [
    "task",
    "controller",
    "runs with a binding budget",
    "within 10%",
    "mean error",
    "largest overshoot",
    "first within 10% after",
    "reward minus reward of KLBudget at equal KL",
]
EQUAL_KL_COLUMNS = [
    *("controller", "its target", "final KL", "reward", "KL of KLBudget", "reward of KLBudget"),
    *("difference of the rewards", "standard error", "runs"),
]
CONTROLLERS = ("KLBudget", "PPO2017", "RLlibController", "Ziegler2019", "FixedBeta")
_CLOSE = 0.1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/benchmark-budget"))
    add("--task", choices=TASKS, default="sums")
    add("--controllers", nargs="+", choices=(*CONTROLLERS, "all"), default=["KLBudget"])
    add("--budgets", type=float, nargs="+", help="default: three budgets of the task that span a factor of 100")
    add("--rates", type=float, nargs="+", help="learning rates; default: three of the task that span a factor of 20")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--steps", type=int, help="optimizer steps, or PPO updates; default: the number of the task")
    add("--unconstrained", action="store_true", help="also run each setting without a budget")
    add("--equal-kl", action="store_true", help="train KLBudget at the final KLs of other controllers")
    add("--summary", action="store_true", help="train nothing; summarise the runs under --output")
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.equal_kl:
        print(results.markdown((COLUMNS, [])))
        for budget, rate, seed, steps in equal_kl_settings(read(options.output, options.task)):
            controller = TASKS[options.task].budget(budget)
            trace = train(options.output, options.task, controller, "KLBudget", budget, rate, seed, steps)
            print(results.markdown_row(row(trace)), flush=True)
        name, table = f"equal-kl-{options.task}", equal_kl_table(read(options.output, options.task))
        print(f"\n{results.markdown(table)}")
    elif options.summary:
        name, table = "controllers", summary_table([trace for task in TASKS for trace in read(options.output, task)])
        print(results.markdown(table))
    else:
        name, table = "seeds" if len(options.seeds) > 1 else "learning-rates", (COLUMNS, _rows(options))
    is_table = options.summary or options.equal_kl or options.task == "sums"
    if table[1] and not options.no_save and is_table:
        results.save("budget", {name: table}, packages=("torch", "transformers", "trl", "stable-baselines3"))


def _rows(options: argparse.Namespace) -> list[list[str]]:
    """Train every setting and return its row; each row is printed when its run has ended."""
    task = TASKS[options.task]
    budgets, rates = options.budgets or task.budgets, options.rates or task.rates
    kinds = CONTROLLERS if "all" in options.controllers else options.controllers
    print(results.markdown((COLUMNS, [])))
    rows = []
    for seed in options.seeds:
        for kind in [*(["none"] if options.unconstrained else []), *kinds]:
            for budget in budgets if kind != "none" else [0.0]:
                for rate in rates:
                    controller = None if kind == "none" else _controller(kind, budget, options, task.rates)
                    steps = options.steps or task.steps
                    trace = train(options.output, options.task, controller, kind, budget, rate, seed, steps)
                    rows.append(row(trace))
                    print(results.markdown_row(rows[-1]), flush=True)
    return rows


def _controller(kind: str, budget: float, options: argparse.Namespace, rates: Sequence[float]) -> Controller:
    task = TASKS[options.task]
    match kind:
        case "KLBudget":
            return task.budget(budget)
        case "FixedBeta":
            steps = options.steps or task.steps
            name = name_of("KLBudget", budget, sorted(rates)[len(rates) // 2], options.seeds[0], steps)
            traces = [trace for trace in read(options.output, options.task) if trace.name == name]
            if not traces:
                raise SystemExit(
                    f"FixedBeta: expected a finished run {name} of KLBudget, whose final price it uses; run it first"
                )
            return FixedBeta(traces[0].beta)
    return {"PPO2017": PPO2017, "RLlibController": RLlibController, "Ziegler2019": Ziegler2019}[kind](budget)


def equal_kl_settings(traces: Sequence[Trace]) -> list[tuple[float, float, int, int]]:
    """Return the budget, the rate, the seed and the steps of KLBudget's runs at the final KLs of other controllers."""
    settings = [_equal_kl_setting(trace) for trace in traces if _can_be_matched(trace)]
    return sorted({setting for setting in settings if setting[0] > 0})


def _can_be_matched(trace: Trace) -> bool:
    return trace.kind not in ("none", "KLBudget") and not trace.diverged


def _equal_kl_setting(trace: Trace) -> tuple[float, float, int, int]:
    return float(f"{trace.kls[-1]:.3g}"), trace.rate, trace.seed, int(trace.name.split("_")[-1])


def equal_kl_table(traces: Sequence[Trace]) -> results.Table:
    """Return one row for each controller and target: its rewards, and the rewards of KLBudget at the KL of each run.

    The rewards and the KL are of the last policies.
    """
    budget_runs = {trace.name: trace for trace in traces if trace.kind == "KLBudget"}
    groups: dict[tuple[str, float], list[tuple[Trace, Trace]]] = {}
    for trace in traces:
        name = name_of("KLBudget", *_equal_kl_setting(trace)) if _can_be_matched(trace) else ""
        if name in budget_runs:
            groups.setdefault((trace.kind, trace.budget), []).append((trace, budget_runs[name]))
    rows = []
    for (kind, target), pairs in sorted(groups.items()):
        differences = [budget_run.final_reward - run.final_reward for run, budget_run in pairs]
        error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else nan
        figures: list[float] = []
        for side in zip(*pairs, strict=True):
            figures += [fmean(run.kls[-1] for run in side), fmean(run.final_reward for run in side)]
        cells = [f"{figure:.4g}" for figure in figures]
        rows.append([kind, f"{target:g}", *cells, f"{fmean(differences):+.3g}", f"{error:.2g}", str(len(pairs))])
    return EQUAL_KL_COLUMNS, rows


def row(trace: Trace) -> list[str]:
    """Return the row of one run: its KL relative to the budget, or in nats without a budget."""
    scale = trace.budget or 1.0
    relative = [kl / scale for kl in trace.late_kls] or [nan]
    values = (fmean(relative), min(relative), max(relative), trace.batch_kl / scale)
    kls = [f"{100 * value - 100:+.1f}%" if trace.budget else f"{value:.3f}" for value in values]
    budget = f"{trace.kind} {trace.budget:g}" if trace.kind != "KLBudget" else f"{trace.budget:g}"
    reward = f"{trace.rewards[0]:.2f} → {trace.rewards[-1]:.2f}"
    if trace.diverged:
        reward += ", diverged"
    return [budget if trace.budget else "none", f"{trace.rate:g}", str(trace.seed), *kls, reward, f"{trace.beta:.2g}"]


def summary_table(traces: Sequence[Trace]) -> results.Table:
    """Return one row for each task and controller that has runs with a binding budget."""
    rows = []
    for task in TASKS:
        of_task = [trace for trace in traces if trace.task == task]
        unconstrained = {(trace.rate, trace.seed): fmean(trace.late_kls) for trace in of_task if trace.kind == "none"}
        for kind in CONTROLLERS:
            runs = [
                trace
                for trace in of_task
                if trace.kind == kind and unconstrained.get((trace.rate, trace.seed), 0.0) > (1 + _CLOSE) * trace.budget
            ]
            if runs:
                rows.append(_summary_row(task, kind, runs, [trace for trace in of_task if trace.kind == "KLBudget"]))
    return SUMMARY_COLUMNS, rows


def _summary_row(task: str, kind: str, runs: Sequence[Trace], budget_runs: Sequence[Trace]) -> list[str]:
    errors = [abs(kl / trace.budget - 1) for trace in runs for kl in trace.binding_kls(_CLOSE)]
    # The evaluations that a diverged run lacks count as outside of 10%.
    evaluations, diverged = max(len(trace.late_kls) for trace in runs), [trace for trace in runs if trace.diverged]
    expected = len(errors) + sum(evaluations - len(trace.late_kls) for trace in diverged)
    overshoot = max(max(trace.kls) / trace.budget - 1 for trace in runs)
    settled = [trace.settling_step(_CLOSE) for trace in runs]
    shares = [step / trace.steps[-1] for step, trace in zip(settled, runs, strict=True) if step is not None]
    after = f"{100 * median(shares):.0f}% of the run" if shares else "-"
    if len(shares) < len(runs):
        after += f" ({_count(len(runs) - len(shares))} never)"
    differences = [value for trace in runs if (value := _reward_difference(trace, budget_runs)) is not None]
    reward = f"{fmean(differences):+.3g} ({_count(len(differences))})" if differences else "-"
    return [
        task,
        kind,
        f"{len(runs)} ({len(diverged)} diverged)" if diverged else str(len(runs)),
        f"{100 * sum(error <= _CLOSE for error in errors) / expected:.0f}%",
        f"{100 * fmean(errors):.0f}%",
        f"{100 * overshoot:+.0f}%",
        after,
        "-" if kind == "KLBudget" else reward,
    ]


def _count(runs: int) -> str:
    return f"{runs} run" if runs == 1 else f"{runs} runs"


def _reward_difference(trace: Trace, budget_runs: Sequence[Trace]) -> float | None:
    """The late reward minus the reward of KLBudget's runs at the same learning rate, interpolated to the same KL.

    The interpolation is linear in sqrt(KL), because reward grows as sqrt(KL) near the reference and the budgets are
    factors of ten apart. None where the KL is outside of the range of KLBudget's runs.
    """
    same_rate = [run for run in budget_runs if (run.rate, run.seed) == (trace.rate, trace.seed)]
    points = sorted((fmean(run.late_kls) ** 0.5, run.late_reward) for run in same_rate)
    kl = fmean(trace.late_kls or [nan]) ** 0.5
    for (low, first), (high, second) in pairwise(points):
        if low <= kl <= high:
            return trace.late_reward - first - (second - first) * (kl - low) / (high - low)
    return None


if __name__ == "__main__":
    main()
