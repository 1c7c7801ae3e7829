"""Measure the overhead of the exact KL and its controller: steps of BudgetGRPOTrainer and of TRL's GRPOTrainer.

    .venv/bin/python benchmarks/overhead.py

The trainers train the addition task of `kullback train demo`, in alternation; GRPOTrainer has beta = 0.04, or beta = 0
without a reference. The ratios are between the medians over all steps except the first of each run. The times are
processor seconds in one thread, which other processes on the machine affect less than the elapsed time.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import results
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from kullback import KLBudget
from kullback.integrations.trl import BudgetGRPOTrainer
from kullback.train.demo.addition_task import grader, prompt_rows, train_reference
from kullback.train.demo.run import DEMO_SETTINGS

NAMES = {
    "no-penalty": "GRPOTrainer, beta = 0",
    "penalty": "GRPOTrainer, beta = 0.04",
    "budget": "BudgetGRPOTrainer",
}


class Clock(TrainerCallback):
    """A callback that records the end of every optimizer step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.process_time())

    @property
    def steps(self) -> list[float]:
        """The seconds between the ends of successive steps."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def step_times(kind: str, reference: Path, steps: int, directory: str, seed: int) -> list[float]:
    """Train for a number of steps with a trainer of `NAMES` and return the seconds of each step after the first."""
    settings = {**DEMO_SETTINGS, "save_strategy": "no", "bf16": False, "use_cpu": True, "dataloader_pin_memory": False}
    settings |= {"max_steps": steps, "seed": seed, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    args = GRPOConfig(directory, beta=0.04 if kind == "penalty" else 0.0, **settings)
    tokenizer = AutoTokenizer.from_pretrained(reference, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(reference)
    common: dict[str, Any] = {
        "train_dataset": Dataset.from_list(prompt_rows(2000, seed)),
        "processing_class": tokenizer,
        "callbacks": [clock := Clock()],
    }
    if kind != "budget":
        trainer = GRPOTrainer(model, grader, args, **common)
    else:
        trainer = BudgetGRPOTrainer(model, grader, args, budget=KLBudget(0.05), **common)
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return clock.steps


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="the initial model (default: a model trained for 300 steps)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {kind: [] for kind in NAMES}
    with tempfile.TemporaryDirectory() as directory:
        reference = options.reference
        if reference is None:
            reference = Path(directory) / "reference"
            reference.mkdir()
            train_reference(reference, steps=300, seed=0, report=lambda _step, _kl: None)
        for number in range(options.turns):
            for kind, seconds in times.items():
                seconds += step_times(kind, reference, options.steps, directory, seed=number)
                print(f"turn {number + 1}, {kind}: median {1000 * median(seconds):.0f} ms", flush=True)
    unit = median(times["penalty"])
    rows = [
        [
            NAMES[kind],
            f"{1000 * median(seconds):.0f}",
            f"{1000 * min(seconds):.0f}",
            f"{median(seconds) / unit:.2f}",
            str(len(seconds)),
        ]
        for kind, seconds in times.items()
    ]
    columns = ["trainer", "median, ms a step", "minimum, ms a step", "median / median with beta = 0.04", "steps"]
    table = (columns, rows)
    print(results.markdown(table))
    print("required: at most 1.1 times the time of GRPOTrainer, beta = 0.04")
    if not options.no_save:
        results.save("overhead", {"step-time": table}, packages=("torch", "transformers", "trl"))


if __name__ == "__main__":
    main()
