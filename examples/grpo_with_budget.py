"""Train a small language model by TRL's GRPO with KL(policy || reference) held at 0.05 nats per token."""

import tempfile
from pathlib import Path

import transformers
from datasets import Dataset
from trl import GRPOConfig

from kullback import KLBudget
from kullback.integrations.trl import BudgetGRPOTrainer
from kullback.train.demo.addition_task import grader, prompt_rows, train_reference

transformers.utils.logging.disable_progress_bar()
with tempfile.TemporaryDirectory() as directory:
    # The reference is a character-level model that was trained to add; any transformers model can replace it.
    model = Path(directory) / "reference"
    model.mkdir()
    train_reference(model, steps=20, seed=0, report=lambda _step, _kl: None)
    settings = {"max_steps": 5, "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 8}
    config = GRPOConfig(directory, beta=0.0, learning_rate=1e-3, bf16=False, use_cpu=True, report_to="none", **settings)
    trainer = BudgetGRPOTrainer(
        str(model),
        grader,
        config,
        budget=KLBudget(0.05, unit="token"),
        train_dataset=Dataset.from_list(prompt_rows(100, seed=0)),
    )
    trainer.train()
    budget = trainer.budget
    print(f"KL {budget.filtered_kl:.4f} of {budget.target} nats per token, beta {budget.beta:.3f}, {budget.status}")
