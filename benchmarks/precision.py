"""Measure how well the KL is held, and at which reward, in float32, under bfloat16 autocast and with bfloat16 weights.

    .venv/bin/python benchmarks/precision.py [--steps 300] [--rates 2e-4 1e-3] [--reference DIRECTORY]

The addition task of `kullback train demo` is trained with a budget of 0.05 nats per token. The KL of the final policy
is measured in float32 on completions of 1024 prompts; every 20 steps, the KL on 512 prompts updates the controller. The
rewards and the logged KL are means over the last third of the steps.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig

from kullback import KLBudget
from kullback.integrations.trl import BudgetGRPOTrainer
from kullback.train.demo.addition_task import exact_match, grader, prompt_rows, spread_rows, train_reference
from kullback.train.demo.run import DEMO_SETTINGS
from kullback.train.evaluation import Evaluation

BUDGET = 0.05
PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "bfloat16 autocast": (torch.float32, True),
    "bfloat16 weights and autocast": (torch.bfloat16, True),
}
COLUMNS = ["precision", "learning rate", "KL, final policy", "KL, logged", "reward", "learning-rate scale"]


class UpdateByEvaluation(TrainerCallback):
    """A callback that updates the budget by the KL on a fixed evaluation set, as `kullback train grpo` does."""

    def __init__(self, trainer: Any, evaluation: Evaluation, every: int) -> None:
        self.trainer, self.evaluation, self.every = trainer, evaluation, every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.every and state.global_step % self.every == 0:
            row, _ = self.evaluation.measure(self.trainer.model, self.trainer.ref_model, step=state.global_step)
            kl, error = row["kl_policy_ref_per_token"], row["kl_policy_ref_per_token_std_error"]
            self.trainer.budget = self.trainer.budget.update_evaluation(kl, std_error=error)


def row_of(name: str, rate: float, reference: Path, options: argparse.Namespace, directory: str) -> list[str]:
    """Train once, and return a row of the table."""
    dtype, autocast = PRECISIONS[name]
    settings: dict[str, Any] = {**DEMO_SETTINGS, "save_strategy": "no", "learning_rate": rate, "bf16": autocast}
    settings |= {"use_cpu": True, "dataloader_pin_memory": False, "max_steps": options.steps, "seed": options.seed}
    settings |= {"report_to": "none", "disable_tqdm": True, "logging_steps": 1, "beta": 0.0}
    settings |= {"per_device_train_batch_size": options.batch}
    tokenizer = AutoTokenizer.from_pretrained(reference, padding_side="left")
    trainer = BudgetGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(reference, dtype=dtype),
        grader,
        GRPOConfig(directory, **settings),
        budget=KLBudget(BUDGET),
        train_dataset=Dataset.from_list(prompt_rows(4800, options.seed)),
        processing_class=tokenizer,
    )
    trainer.pop_callback(PrinterCallback)
    trained: Any = trainer.model
    rewards = [grader, exact_match]
    during = Evaluation(spread_rows(512), rewards, tokenizer, max_new_tokens=12, temperature=1.0)
    trainer.add_callback(UpdateByEvaluation(trainer, during, options.evaluate_every))
    trainer.train()
    rows = [row for row in trainer.state.log_history if "reward" in row]
    late = rows[2 * len(rows) // 3 :]
    policy, ref_model = (AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32) for _ in range(2))
    policy.load_state_dict({name: value.float() for name, value in trained.state_dict().items()})
    evaluation = Evaluation(spread_rows(1024), rewards, tokenizer, max_new_tokens=12, temperature=1.0, seed=1)
    measured, _ = evaluation.measure(policy, ref_model, step=options.steps)
    return [
        name,
        f"{rate:g}",
        f"{measured['kl_policy_ref_per_token']:.4f} ± {measured['kl_policy_ref_per_token_std_error']:.4f}",
        f"{fmean(row['kl_policy_ref_per_token'] for row in late):.4f}",
        f"{fmean(row['reward'] for row in late):.3f}",
        results.significant(fmean(row["learning_rate_scale"] for row in late), 2),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="the initial model (default: a model trained for 300 steps)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128, help="completions per step")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4, 1e-3])
    parser.add_argument("--evaluate-every", type=int, default=20, help="0: the budget is not updated by evaluations")
    parser.add_argument("--seed", type=int, default=0)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        reference = options.reference
        if reference is None:
            reference = Path(directory) / "reference"
            reference.mkdir()
            train_reference(reference, steps=300, seed=options.seed, report=lambda *_: None)
        for rate in options.rates:
            for name in PRECISIONS:
                rows.append(row_of(name, rate, reference, options, directory))
                print(results.markdown_row(rows[-1]), flush=True)
    if not options.no_save:
        results.save("precision", {"held": (COLUMNS, rows)}, packages=("torch", "transformers", "trl"))


if __name__ == "__main__":
    main()
