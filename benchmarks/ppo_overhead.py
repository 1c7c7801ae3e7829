"""Measure the time of BudgetPPO relative to the PPO of stable-baselines3, rollouts included.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/ppo_overhead.py

The algorithms take one update of 2048 steps each in turns, with the default settings of stable-baselines3 and one
thread. The time is the processor time of the process, since other processes do not change it much. The ratios are
between medians, and between minima.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import results
import torch
from stable_baselines3 import PPO

from kullback import KLBudget
from kullback.integrations.sb3 import BudgetPPO

STEPS = 2048  # environment steps of one update
BUDGET = KLBudget(0.01, unit="step")
NAMES = {
    "ppo": "PPO",
    "old": "BudgetPPO, old_budget of 0.01",
    "reference": "BudgetPPO, budget of 0.01",
    "both": "BudgetPPO, both budgets",
}


def make_algorithms(env: str) -> dict[str, Any]:
    """Create the algorithms, and take one update with each as a warm-up."""
    common: dict[str, Any] = {"device": "cpu", "seed": 0}
    algorithms = {
        "ppo": PPO("MlpPolicy", env, **common),
        "old": BudgetPPO("MlpPolicy", env, old_budget=BUDGET, **common),
        "reference": BudgetPPO("MlpPolicy", env, budget=BUDGET, **common),
        "both": BudgetPPO("MlpPolicy", env, budget=BUDGET, old_budget=BUDGET, **common),
    }
    return {name: algorithm.learn(STEPS) for name, algorithm in algorithms.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["CartPole-v1"])
    parser.add_argument("--turns", type=int, default=8)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for env in options.envs:
        algorithms = make_algorithms(env)
        seconds: dict[str, list[float]] = {name: [] for name in algorithms}
        for _ in range(options.turns):
            for name, algorithm in algorithms.items():
                start = time.process_time()
                algorithm.learn(STEPS, reset_num_timesteps=False)
                seconds[name].append(time.process_time() - start)
        for name, times in seconds.items():
            rows.append(
                [
                    env,
                    NAMES[name],
                    f"{median(times):.2f}",
                    f"{min(times):.2f}",
                    f"{median(times) / median(seconds['ppo']):.2f}",
                    f"{min(times) / min(seconds['ppo']):.2f}",
                    str(len(times)),
                ]
            )
    columns = ["task", "algorithm", "median, s an update", "minimum, s an update", "ratio of medians", "of minima"]
    table = ([*columns, "updates"], rows)
    print(results.markdown(table))
    if not options.no_save:
        results.save("ppo_overhead", {"update-time": table}, packages=("torch", "gymnasium", "stable-baselines3"))


if __name__ == "__main__":
    main()
