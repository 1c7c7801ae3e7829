"""Damaged checkpoints are recognised, and a run continues from the newest intact one."""

import re
from pathlib import Path

import pytest
import torch

from kullback.errors import InputError
from kullback.runs.checkpoint import save_checkpoint
from kullback.runs.checksums import find_damage
from kullback.runs.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with the checkpoints 1 and 2."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", step, model, optimizer, {})
    return RunDirectory(tmp_path)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "missing":
            path.unlink()


FILES = ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("file", [*FILES, "checksums.json"])
def test_a_damaged_checkpoint_is_set_aside(
    run: RunDirectory, file: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if (file, how) == ("checksums.json", "missing"):
        return  # a checkpoint of an earlier version
    newest, earlier = run.checkpoints / "checkpoint-2", run.checkpoints / "checkpoint-1"
    damage(newest / file, how)
    assert find_damage(newest) is not None
    assert run.last_checkpoint() == earlier
    assert run.checkpoint_to_resume() == earlier
    assert not newest.exists()
    assert (run.checkpoints / "damaged-checkpoint-2").is_dir()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "checkpoint-2 is damaged" in error
    assert "continues from checkpoint-1" in error


@pytest.mark.parametrize("file", FILES)
def test_checkpoints_of_earlier_versions_are_checked_for_their_structure(run: RunDirectory, file: str) -> None:
    newest = run.checkpoints / "checkpoint-2"
    (newest / "checksums.json").unlink()
    assert run.checkpoint_to_resume() == newest
    damage(newest / file, "truncated")
    assert run.checkpoint_to_resume() == run.checkpoints / "checkpoint-1"


def test_a_truncated_file_of_torch_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("{}")
    torch.save({"a": torch.ones(10)}, tmp_path / "optimizer.pt")
    assert find_damage(tmp_path) is None
    damage(tmp_path / "optimizer.pt", "truncated")
    assert find_damage(tmp_path) == "optimizer.pt is damaged"


def test_only_damaged_checkpoints_give_one_line(run: RunDirectory) -> None:
    for step in (1, 2):
        damage(run.checkpoints / f"checkpoint-{step}" / "model.safetensors", "truncated")
    with pytest.raises(InputError, match=r"checkpoint-2 and all others are damaged: model\.safetensors"):
        run.checkpoint_to_resume()


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors"])
def test_a_checkpoint_that_lost_a_file_is_damaged_and_the_run_does_not_start_again(
    run: RunDirectory, name: str
) -> None:
    for step in (1, 2):
        (run.checkpoints / f"checkpoint-{step}" / name).unlink()
    with pytest.raises(InputError, match=rf"checkpoint-2 and all others are damaged: {re.escape(name)} is missing"):
        run.checkpoint_to_resume()


def test_an_error_during_a_save_leaves_all_earlier_checkpoints(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kullback.runs.checkpoint.write_checksums", full)
    model = torch.nn.Linear(3, 2)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(run.checkpoints, 3, model, torch.optim.Adam(model.parameters()), {})
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-2"
