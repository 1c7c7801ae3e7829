"""The state of a run with generated completions that checkpoints of transformers lack, for exact resumption."""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device

from kullback.integrations.heldout_positions import HeldOutCompletions

__all__ = ["load_generations", "save_generations"]

_logger = logging.getLogger(__name__)


def save_generations(trainer: Any, checkpoint: Path, held_out: HeldOutCompletions | None) -> None:
    """Add to a checkpoint the completions that later steps use.

    The completions of one generation serve `steps_per_generation * num_iterations` micro-batches, and the controller
    measures the KL again on held-out completions of earlier steps. The state also has the number of micro-batches. Each
    process writes a file of its own, which `torch.load` reads with `weights_only`.

    Args:
        trainer: The trainer.
        checkpoint: The directory of the checkpoint.
        held_out: The held-out completions of this process.
    """
    saved = {
        "processes": trainer.accelerator.num_processes,
        "micro_batches": trainer._step,
        "buffered": _compact(trainer._buffered_inputs),
        "held_out": None if held_out is None else _compact(vars(held_out)),
    }
    torch.save(saved, checkpoint / _name(trainer))


def load_generations(trainer: Any, checkpoint: Path, train_dataloader: Any) -> HeldOutCompletions | None:
    """Restore what `save_generations` has saved, before the first step of a resumed run.

    The order of the prompts in later passes over the data follows from the number of passes.

    Args:
        trainer: The trainer.
        checkpoint: The directory of the checkpoint.
        train_dataloader: The batches of prompts.

    Returns:
        The held-out completions of this process, or None.
    """
    path = checkpoint / _name(trainer)
    # PyTorch does not load to a CPU with an index, which is the device of a process that torchrun has started.
    saved: Any = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
    saved = send_to_device(saved, trainer.args.device)
    processes = trainer.accelerator.num_processes
    written_by = gather_object([saved.get("processes", processes if saved else None)])
    if set(written_by) != {processes}:
        known = next((number for number in written_by if number is not None), None)
        _logger.warning(
            "%s: expected the completions of %d processes, got %s; the next steps differ from an uninterrupted run.",
            checkpoint,
            processes,
            "none, because an earlier version wrote the checkpoint" if known is None else f"completions of {known}",
        )
        return None
    trainer._step, trainer._buffered_inputs = saved["micro_batches"], saved["buffered"]
    _skip_orders(int(trainer.state.epoch), train_dataloader)
    return None if saved["held_out"] is None else HeldOutCompletions(**saved["held_out"])


def _name(trainer: Any) -> str:
    return f"generations_{trainer.args.process_index}.pt"


def _skip_orders(passes: int, train_dataloader: Any) -> None:
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
