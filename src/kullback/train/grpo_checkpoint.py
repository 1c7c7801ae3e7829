"""The state of a GRPO or RLOO run that checkpoints of transformers lack; a resumed run equals an uninterrupted run."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from kullback.integrations.heldout_positions import HeldOutCompletions
from kullback.integrations.trl import BudgetTrainer

__all__ = ["KeepGenerations"]


class KeepGenerations(TrainerCallback):
    """Adds to every checkpoint the completions that later steps use, and restores them when a run is resumed.

    The completions of one generation serve `steps_per_generation * num_iterations` micro-batches, and the controller
    measures the KL again on held-out completions of earlier steps. The state also has the number of micro-batches. The
    order of the prompts in later passes over the data follows from the number of passes.

    Each process writes a file of its own, which `torch.load` reads with `weights_only`. The callback must precede
    `WriteChecksums`.

    Args:
        trainer: The trainer.
        checkpoint: The checkpoint from which the run continues, or None.
    """

    def __init__(self, trainer: BudgetTrainer, checkpoint: Path | None) -> None:
        self.trainer: Any = trainer
        self.checkpoint = checkpoint
        self.name = f"generations_{trainer.args.process_index}.pt"

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        held_out = self.trainer._controller.held_out
        saved = {
            "micro_batches": self.trainer._step,
            "buffered": _compact(self.trainer._buffered_inputs),
            "held_out": None if held_out is None else _compact(vars(held_out)),
        }
        torch.save(saved, Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.name)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.checkpoint is None:
            return
        if not (path := self.checkpoint / self.name).is_file():
            if args.process_index == 0:
                print(
                    f"kullback: {self.checkpoint} has no {self.name}, because an earlier version or another number of "
                    "processes wrote it: the next steps differ from an uninterrupted run",
                    file=sys.stderr,
                )
            return
        saved = torch.load(path, map_location=args.device, weights_only=True)
        self.trainer._step, self.trainer._buffered_inputs = saved["micro_batches"], saved["buffered"]
        if saved["held_out"] is not None:
            self.trainer._controller.held_out = HeldOutCompletions(**saved["held_out"])
        self._skip_orders(int(state.epoch), kwargs["train_dataloader"])

    def _skip_orders(self, passes: int, train_dataloader: Any) -> None:
        """Draw the orders of the passes over the data that the checkpoint has completed."""
        sampler = train_dataloader.batch_sampler
        while not hasattr(sampler, "generator") and hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        sampler = getattr(sampler, "sampler", sampler)
        if getattr(sampler, "shuffle", False):
            for _ in range(passes):
                torch.randperm(sampler.num_samples, generator=sampler.generator)


def _compact(value: Any) -> Any:
    """Copy tensors, because a view would be saved with all of its storage."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _compact(element) for key, element in value.items()}
    return [_compact(element) for element in value] if isinstance(value, list | tuple) else value
