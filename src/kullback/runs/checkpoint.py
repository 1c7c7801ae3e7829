"""Checkpoints of PyTorch training runs: weights and optimizer state as safetensors, all other state as JSON."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from kullback.errors import InputError
from kullback.runs.atomic_write import umask, write_atomically
from kullback.runs.checksums import write_checksums

__all__ = ["load_checkpoint", "load_weights", "save_checkpoint", "save_weights"]

_MAX_CHECKPOINTS = 2  # older checkpoints are deleted


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors to a safetensors file."""
    # safetensors rejects tensors that share memory, as the parts of a model that several modules use do.
    save_file({name: weight.detach().clone().contiguous() for name, weight in weights.items()}, path)
    path.chmod(0o666 & ~umask())  # safetensors gives its files mode 0600


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read named tensors from a safetensors file.

    Raises:
        InputError: The file is absent or damaged.
    """
    try:
        return load_file(path)
    except Exception as error:  # the exception class of safetensors has no type stub
        raise InputError(f"{path}: does not load: {' '.join(str(error).split())}") from error


def save_checkpoint(
    checkpoints: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    weights_file: str = "model.safetensors",
) -> None:
    """Write the checkpoint of a step to `checkpoints/checkpoint-STEP`, and delete all but the newest two checkpoints.

    The checkpoint is written to a temporary directory, which is then renamed. After an error or a crash, all earlier
    checkpoints are intact. checksums.json has the SHA-256 of every file.

    Args:
        checkpoints: The directory of all checkpoints of the run.
        step: The number of steps so far.
        model: The model, whose parameters and buffers are saved.
        optimizer: The optimizer, whose per-parameter state is saved; its hyperparameters are not.
        state: JSON-serialisable values that the run needs to continue.
        weights_file: The name of the file with the model's weights.
    """
    path, temporary = checkpoints / f"checkpoint-{step}", checkpoints / f".checkpoint-{step}"
    for unfinished in checkpoints.glob(".checkpoint-*"):  # a process was killed during a save
        shutil.rmtree(unfinished, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_weights(temporary / weights_file, model.state_dict())
        slots = optimizer.state_dict()["state"]
        save_weights(
            temporary / "optimizer.safetensors",
            {f"{index}.{name}": value for index, slot in slots.items() for name, value in slot.items()},
        )
        write_atomically(temporary / "trainer_state.json", json.dumps({"step": step, **state}, indent=2) + "\n")
        write_checksums(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in sorted(checkpoints.glob("checkpoint-*"), key=_step)[:-_MAX_CHECKPOINTS]:
        shutil.rmtree(old)


def load_checkpoint(
    checkpoint: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    weights_file: str = "model.safetensors",
) -> dict[str, Any]:
    """Restore the model and the optimizer from a checkpoint that `save_checkpoint` wrote.

    Args:
        checkpoint: The directory of the checkpoint.
        model: A model of the same architecture, which receives the weights.
        optimizer: An optimizer of the same parameters, which receives the state and keeps its hyperparameters.
        weights_file: The name of the file with the model's weights.

    Returns:
        "step" and the values that were passed to `save_checkpoint` as `state`.

    Raises:
        InputError: A safetensors file is absent or damaged.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    model.load_state_dict(load_weights(checkpoint / weights_file))
    slots: dict[int, dict[str, Any]] = {}
    for key, value in load_weights(checkpoint / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
