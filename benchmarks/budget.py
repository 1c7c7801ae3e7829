"""How well the budget is held on the embedded task, over budgets, learning rates and seeds.

    .venv/bin/python benchmarks/budget.py    the 9 runs of the table: about 10 minutes
    .venv/bin/python benchmarks/budget.py --budgets 0.05 --rates 1e-3 --seeds 0 1 2 --unconstrained

Each run is judged by the exact KL on 512 fixed prompts, spread over all sums, completions sampled from the policy,
every 20 steps; the first third of the run does not count. "batches" is the mean over the training batches of the same
steps. Runs that are already under --output are only read.
"""

import argparse
import json
import shutil
from pathlib import Path
from statistics import fmean

import transformers
from rich.console import Console

from kullback import KLBudget
from kullback.train.demo import demo_plan
from kullback.train.grpo import train_grpo
from kullback.train.run_directory import RunDirectory
from kullback.train.sums import train_reference

HEADER = "| budget | learning rate | seed | KL mean | least | most | batches | true reward | proxy | beta |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark-budget"))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.01, 0.05, 0.2])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 5e-4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--schedule", default="constant", help="of the learning rate (default: constant)")
    parser.add_argument("--reference-steps", type=int, default=700)
    parser.add_argument("--unconstrained", action="store_true", help="the same without a budget, beside each")
    parser.add_argument("--set", type=json.loads, default={}, help="more of KLBudget's fields, as JSON")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    rows = [HEADER, "|---" * HEADER.count(" | ") + "|---|"]
    for seed in options.seeds:
        reference = _reference(
            options.output / f"reference-{seed}-{options.reference_steps}", seed, options.reference_steps
        )
        for budget in [*options.budgets, *([None] if options.unconstrained else [])]:
            for rate in options.rates:
                name = f"{budget}-{rate:g}-{seed}-{options.steps}-{options.schedule}"
                run = RunDirectory(options.output / name)
                if len(run.metrics()) < options.steps:
                    shutil.rmtree(run.path, ignore_errors=True)
                    held = None if budget is None else KLBudget(budget, **options.set)
                    settings = {
                        "learning_rate": rate,
                        "lr_scheduler_type": options.schedule,
                        "save_steps": options.steps,
                    }
                    plan = demo_plan(reference, run.path, held, steps=options.steps, seed=seed, **settings)
                    train_grpo(plan, console=Console(quiet=True))
                rows.append(_row(run, rate, seed, budget))
                print(rows[-1], flush=True)
    print("\n".join(rows))


def _reference(directory: Path, seed: int, steps: int) -> Path:
    if not (directory / "model.safetensors").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        train_reference(directory, steps=steps, seed=seed, report=lambda _step, _kl: None)
    return directory


def _row(run: RunDirectory, rate: float, seed: int, budget: float | None) -> str:
    metrics, evaluations = run.metrics(), run.evaluations()
    settled = metrics[-1]["step"] / 3
    scale = budget or 1.0
    judged = [row["kl_policy_ref_per_token"] / scale for row in evaluations if row["step"] > settled]
    batches = fmean(row["kl_policy_ref_per_token"] / scale for row in metrics if row["step"] > settled)
    first, last = evaluations[0], evaluations[-1]
    said = [
        f"{100 * value - 100:+.1f}%" if budget else f"{value:.3f}"
        for value in (fmean(judged), min(judged), max(judged), batches)
    ]
    cells = [
        "none" if budget is None else f"{budget:g}",
        f"{rate:g}",
        str(seed),
        *said,
        *(f"{first[key]:.2f} → {last[key]:.2f}" for key in ("rewards/exact_match", "rewards/prefix_found")),
        f"{metrics[-1].get('beta') or 0:.2g}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
