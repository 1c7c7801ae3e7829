"""What the exact KL and its controller cost: whole steps of BudgetGRPOTrainer against TRL's own with beta > 0.

    .venv/bin/python benchmarks/overhead.py

Both train the embedded task; they take turns, the ratio is of medians over all steps after the first of each turn.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from kullback import KLBudget
from kullback.integrations.trl import BudgetGRPOTrainer
from kullback.train.demo.addition_task import prefix_found, prompt_rows, train_reference
from kullback.train.demo.run import DEMO_SETTINGS


class Clock(TrainerCallback):
    """Seconds from one step's end to the next's."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def turn(kind: str, reference: Path, steps: int, directory: str, seed: int) -> list[float]:
    settings = {**DEMO_SETTINGS, "save_strategy": "no", "bf16": False, "use_cpu": True, "dataloader_pin_memory": False}
    settings |= {"max_steps": steps, "seed": seed, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    args = GRPOConfig(directory, beta=0.04 if kind == "trl" else 0.0, **settings)
    tokenizer = AutoTokenizer.from_pretrained(reference, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(reference)
    common: dict[str, Any] = {
        "train_dataset": Dataset.from_list(prompt_rows(2000, seed)),
        "processing_class": tokenizer,
        "callbacks": [clock := Clock()],
    }
    if kind == "trl":
        trainer = GRPOTrainer(model, prefix_found, args, **common)
    else:
        trainer = BudgetGRPOTrainer(model, prefix_found, args, budget=KLBudget(0.05), **common)
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return clock.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="a model to start from (default: one trained for 300 steps)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    times: dict[str, list[float]] = {"trl": [], "kullback": []}
    with tempfile.TemporaryDirectory() as directory:
        reference = options.reference
        if reference is None:
            reference = Path(directory) / "reference"
            reference.mkdir()
            train_reference(reference, steps=300, seed=0, report=lambda _step, _kl: None)
        for number in range(options.turns):
            for kind, seen in times.items():
                seen += turn(kind, reference, options.steps, directory, seed=number)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    for kind, seen in times.items():
        print(
            f"{kind:9s} median {1000 * median(seen):.0f} ms a step over {len(seen)} steps, least {1000 * min(seen):.0f}"
        )
    print(f"ratio {median(times['kullback']) / median(times['trl']):.3f} (the aim: at most 1.25)")


if __name__ == "__main__":
    main()
