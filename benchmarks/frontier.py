"""Compare trainers with the exact reward-KL frontier of a language task whose completions can all be enumerated.

    .venv/bin/python benchmarks/frontier.py            both tables: under 10 minutes on 2 cores
    .venv/bin/python benchmarks/frontier.py --prices   the runs with a budget alone, which are a table of their own
    .venv/bin/python benchmarks/frontier.py --quick    one seed, one price, one budget: under a minute, not stored

The reference is a Llama with random weights over four letters and an end token, with different weights for each seed. A
prompt is one letter, and a completion has at most five tokens. The reward is the share of five positions whose letter
is the alphabetical successor of the letter before it. KL and reward of a trained policy are sums over all 1365
completions of each prompt. Runs that already exist under --output are read, not repeated. `frontier_figure.py` draws
the stored tables.
"""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import results
import torch
import transformers
from frontier_task import Gradient, Task, make_reference
from frontier_trainers import PENALTIES, train

K3, PPO, BUDGET = "k3 in the loss (TRL)", "PPO, k1 in the reward", "budget"
# The trainers whose gradient has a stationary point below the frontier.
BIASED: dict[str, Gradient] = {K3: "k3", "exact in the loss": "token"}
COLUMNS = [
    "trainer",
    "price or budget",
    "KL",
    "reward",
    "share of the frontier's reward",
    "minimum share",
    "share of the frontier's gain",
    "share at the stationary point",
]


class Run(NamedTuple):
    kind: str
    value: float
    seed: int
    steps: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark-frontier"))
    parser.add_argument("--prices", type=float, nargs="*", default=[0.2, 0.1, 0.06], help="reward per nat")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.5, 1.0, 2.0, 4.0], help="nats per completion")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.prices, options.budgets, options.seeds, options.steps = [0.1], [2.0], [0], 100

    priced = [(kind, price) for kind in (K3, *PENALTIES, PPO) for price in options.prices]
    runs = [
        Run(kind, value, seed, options.steps)
        for kind, value in [*priced, *((BUDGET, budget) for budget in options.budgets)]
        for seed in options.seeds
    ]
    outcomes = _outcomes(runs, options.output / "results.jsonl", options.processes)
    settings = dict.fromkeys((run.kind, run.value) for run in runs)
    tables = {"trainers": (COLUMNS, []), "budgets": (COLUMNS, [])}
    for kind, value in settings:
        of_setting = {run.seed: outcomes[run] for run in runs if run[:2] == (kind, value)}
        tables["budgets" if kind == BUDGET else "trainers"][1].append(table_row(kind, value, of_setting))
    tables = {name: table for name, table in tables.items() if table[1]}
    for table in tables.values():
        print(f"\n{results.markdown(table)}")
    if not (options.quick or options.no_save):
        results.save("frontier", tables, packages=("torch", "transformers", "trl"))


def _outcomes(runs: Iterable[Run], file: Path, processes: int) -> dict[Run, tuple[float, float]]:
    """KL and reward of each run; runs that are not in the file are trained and appended to it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    finished = {Run(*run): (kl, reward) for run, kl, reward in lines}
    missing = [run for run in runs if run not in finished]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, file.open("a") as out:
        for run, outcome in zip(missing, pool.map(_outcome, missing), strict=True):
            finished[run] = outcome
            out.write(json.dumps([run, *outcome]) + "\n")
            out.flush()
            print(
                f"{run.kind} {run.value:g}, seed {run.seed}: KL {outcome[0]:.2f}, reward {outcome[1]:.3f}", flush=True
            )
    return {run: finished[run] for run in runs}


@cache
def _task(seed: int) -> Task:
    return Task(make_reference(seed))


def _outcome(run: Run) -> tuple[float, float]:
    """Train one run and return its KL and its expected reward."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    task = _task(run.seed)
    return task.evaluate(train(task, run.kind, run.value, steps=run.steps, seed=run.seed))


def table_row(kind: str, value: float, outcomes: dict[int, tuple[float, float]]) -> list[str]:
    """Return the means over the seeds of one setting; `outcomes` has the KL and the reward by seed."""
    shares, gains, stationary = [], [], []
    for seed, (kl, reward) in outcomes.items():
        task = _task(seed)
        best = float(task.frontier.reward_at(kl))
        shares.append(reward / best)
        gains.append((reward - task.reference_reward) / (best - task.reference_reward))
        if kind in BIASED:
            stationary_kl, stationary_reward = task.stationary_point(value, BIASED[kind])
            stationary.append(stationary_reward / float(task.frontier.reward_at(stationary_kl)))
    return [
        kind,
        f"{value:g}",
        f"{fmean(kl for kl, _ in outcomes.values()):.2f}",
        f"{fmean(reward for _, reward in outcomes.values()):.3f}",
        f"{fmean(shares):.1%}",
        f"{min(shares):.1%}",
        f"{fmean(gains):.1%}",
        f"{fmean(stationary):.1%}" if stationary else "100%" if kind != BUDGET else "",
    ]


if __name__ == "__main__":
    main()
