"""Every trainer against the exact optimum of a language task so small that all it can write is listed.

    .venv/bin/python benchmarks/frontier.py            all of the table: under 10 minutes on 2 cores
    .venv/bin/python benchmarks/frontier.py --quick    one seed, one price, one budget: under a minute

The reference is a Llama with random weights over four letters and an end mark, another for each seed; a prompt is one
letter, a completion has five tokens at most, and its reward is the share of five places that hold the letter after the
one before. What a trained policy costs and earns are sums over all 1365 completions of each prompt. Runs that are
already under --output are only read.
"""

import argparse
import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import transformers
from frontier_figure import drawn
from frontier_task import Gradient, Task, make_reference
from frontier_trainers import PENALTIES, train

K3, PPO, BUDGET = "k3 in the loss (TRL)", "PPO, k1 in the reward", "budget"
RESTS: dict[str, Gradient] = {K3: "k3", "exact in the loss": "token"}
HEADER = "| trainer | price or budget | KL | reward | of the frontier's | least | of the gain | at rest |"


class Run(NamedTuple):
    kind: str
    value: float
    seed: int
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark-frontier"))
    parser.add_argument("--prices", type=float, nargs="+", default=[0.2, 0.1, 0.06], help="reward for a nat")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0], help="nats a completion")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--figure", type=Path, help="where to draw it, as SVG")
    options = parser.parse_args()
    if options.quick:
        options.prices, options.budgets, options.seeds, options.steps = [0.1], [2.0], [0], 100

    priced = [(kind, price) for kind in (K3, *PENALTIES, PPO) for price in options.prices]
    wanted = [
        Run(kind, value, seed, options.steps)
        for kind, value in [*priced, *((BUDGET, budget) for budget in options.budgets)]
        for seed in options.seeds
    ]
    results = _results(wanted, options.output / "results.jsonl", options.processes)
    print(HEADER, "|---" * HEADER.count(" | ") + "|---|", sep="\n")
    for kind, value in dict.fromkeys((run.kind, run.value) for run in wanted):
        print(_row(kind, value, [(run.seed, results[run]) for run in wanted if run[:2] == (kind, value)]))
    if options.figure:
        options.figure.write_text(drawn({seed: _task(seed) for seed in options.seeds}, results.items()))


def _results(wanted: Iterable[Run], file: Path, processes: int) -> dict[Run, tuple[float, float]]:
    """KL and reward of each run, from the file where they are in it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {Run(*run): (kl, earned) for run, kl, earned in lines}
    missing = [run for run in wanted if run not in known]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, file.open("a") as out:
        for run, stands in zip(missing, pool.map(_stands, missing), strict=True):
            known[run] = stands
            out.write(json.dumps([run, *stands]) + "\n")
            out.flush()
    return {run: known[run] for run in wanted}


@cache
def _task(seed: int) -> Task:
    return Task(make_reference(seed))


def _stands(run: Run) -> tuple[float, float]:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    task = _task(run.seed)
    return task.judged(train(task, run.kind, run.value, steps=run.steps, seed=run.seed))


def _row(kind: str, value: float, seen: list[tuple[int, tuple[float, float]]]) -> str:
    shares, gains, rests = [], [], []
    for seed, (kl, earned) in seen:
        task = _task(seed)
        best = float(task.frontier.reward_at(kl))
        shares.append(earned / best)
        gains.append((earned - task.base) / (best - task.base))
        if kind in RESTS:
            rest_kl, rest_earned = task.rest(value, RESTS[kind])
            rests.append(rest_earned / float(task.frontier.reward_at(rest_kl)))
    cells: list[Any] = [
        kind,
        f"{value:g}",
        f"{fmean(kl for _, (kl, _) in seen):.2f}",
        f"{fmean(earned for _, (_, earned) in seen):.3f}",
        f"{fmean(shares):.1%}",
        f"{min(shares):.1%}",
        f"{fmean(gains):.1%}",
        f"{fmean(rests):.1%}" if rests else "100%" if kind != BUDGET else "",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
