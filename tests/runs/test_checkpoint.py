"""Checkpoints: a restored run continues identically, old checkpoints are deleted, and damaged files are rejected."""

from pathlib import Path

import pytest
import torch

from kullback.errors import InputError
from kullback.runs.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights


def make_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def take_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(torch.full((1, 3), float(step))).square().sum().backward()
    optimizer.step()


def test_a_restored_run_continues_identically(tmp_path: Path) -> None:
    model, optimizer = make_model()
    for step in (1, 2):
        take_step(model, optimizer, step)
    save_checkpoint(tmp_path, 2, model, optimizer, {"updates": 7})
    take_step(model, optimizer, 3)
    restored, restored_optimizer = make_model()
    assert load_checkpoint(tmp_path / "checkpoint-2", restored, restored_optimizer) == {"step": 2, "updates": 7}
    take_step(restored, restored_optimizer, 3)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, restored.state_dict()[name])


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    model, optimizer = make_model()
    for step in (8, 9, 10):
        save_checkpoint(tmp_path, step, model, optimizer, {}, weights_file="policy.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-10"}
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    save_weights(tmp_path / "weights.safetensors", {"a": weight, "b": weight.T})
    loaded = load_weights(tmp_path / "weights.safetensors")
    assert torch.equal(loaded["a"], weight)
    assert torch.equal(loaded["b"], weight.T)


def test_absent_and_damaged_weights_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 40)
    for name in ("absent", "damaged"):
        with pytest.raises(InputError, match=f"{name}.safetensors: does not load"):
            load_weights(tmp_path / f"{name}.safetensors")
