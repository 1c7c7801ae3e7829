"""The doctor finds damaged checkpoints and truncated models in a run directory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kullback.doctor.run import doctor_path
from kullback.runs.checkpoint import save_checkpoint
from kullback.runs.lock import run_lock
from kullback.runs.run_directory import RunDirectory


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture(params=["grpo", "ppo", "sft", "vae"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A finished run with two checkpoints and a model."""
    (tmp_path / "config.json").write_text(json.dumps({"kind": request.param, "clip": 0.2, "model": "absent"}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 0.1}) + "\n" for i in (1, 2, 3, 4)))
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    for step in (2, 4):
        optimizer.step()
        save_checkpoint(tmp_path / "checkpoints", step, model, optimizer, {})
    (tmp_path / "model").mkdir()
    save_file(model.state_dict(), tmp_path / "model" / "model.safetensors")
    return tmp_path


def test_an_intact_run_has_no_finding(run: Path) -> None:
    assert doctor_path(run) == []


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["truncated", "flipped", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json", "checksums.json"])
@pytest.mark.parametrize("run", ["grpo"], indirect=True)
def test_a_damaged_checkpoint(run: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(run / "checkpoints" / "checkpoint-4" / name)
    findings = doctor_path(run)
    if name == "checksums.json" and damage is Path.unlink:  # as checkpoints of earlier versions
        assert findings == []
        return
    [found] = findings
    assert (found.name, found.severity) == ("damaged-checkpoint", "warning")
    assert name in found.cause
    assert "checkpoint-2" in found.remedy
    assert RunDirectory(run).last_checkpoint() == run / "checkpoints" / "checkpoint-2"


def test_all_checkpoints_are_damaged(run: Path) -> None:
    for step in (2, 4):
        truncate(run / "checkpoints" / f"checkpoint-{step}" / "optimizer.safetensors")
    assert [found.name for found in doctor_path(run)] == ["damaged-checkpoint"] * 2
    assert "no checkpoint is intact" in doctor_path(run)[0].remedy


@pytest.mark.parametrize("run", ["grpo"], indirect=True)
def test_the_checkpoint_that_a_process_writes_is_not_damaged(run: Path) -> None:
    (run / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    with run_lock(run):
        assert doctor_path(run) == []


@pytest.mark.parametrize("run", ["grpo"], indirect=True)
def test_a_truncated_model(run: Path) -> None:
    truncate(run / "model" / "model.safetensors")
    [found] = doctor_path(run)
    assert (found.name, found.severity) == ("damaged-model", "error")
    assert "model: model.safetensors is truncated" in found.cause


def test_a_damaged_checkpoint_of_trl(tmp_path: Path) -> None:
    state = {"log_history": [{"step": i, "reward": float(i), "kl": 0.01 * i} for i in range(4)]}
    for step in (2, 4):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        save_file({"a": torch.ones(4)}, checkpoint / "model.safetensors")
    before = {found.name for found in doctor_path(tmp_path)}
    truncate(tmp_path / "checkpoint-4" / "model.safetensors")
    assert {found.name for found in doctor_path(tmp_path)} - before == {"damaged-checkpoint"}
    assert {found.name for found in doctor_path(tmp_path / "checkpoint-4")} >= {"damaged-checkpoint"}


@pytest.mark.parametrize("run", ["grpo"], indirect=True)
def test_a_finished_run_does_not_need_its_last_checkpoint(run: Path) -> None:
    (run / "model" / "training.json").write_text('{"step": 4}')
    truncate(run / "checkpoints" / "checkpoint-4" / "optimizer.safetensors")
    assert "the trained model is complete" in doctor_path(run)[0].remedy
    (run / "model" / "training.json").write_text('{"step": 3}')
    assert doctor_path(run)[0].remedy.startswith("--resume continues from checkpoint-2")
