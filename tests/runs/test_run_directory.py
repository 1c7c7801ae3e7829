"""Tests of run directories: JSON round trips, interrupted writes, checkpoints and errors."""

import json
import math
from pathlib import Path

import pytest

from kullback.errors import InputError
from kullback.runs.run_directory import RunDirectory


def test_rows_are_read_back_and_nan_becomes_none(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "run")
    run.create({"budget": {"target": 0.05}, "path": Path("x")})
    run.add_metrics({"step": 1, "reward": 0.5, "reward_std": math.nan})
    run.set_samples("before", [{"prompt": "</script>\u2028", "completion": "\ud800"}])
    run.set_samples("after", [])
    assert run.config() == {"budget": {"target": 0.05}, "path": "x"}
    assert run.metrics() == [{"step": 1, "reward": 0.5, "reward_std": None}]
    assert run.samples() == {"before": [{"prompt": "</script>\u2028", "completion": "\ud800"}], "after": []}


def test_an_incomplete_last_line_is_skipped_and_later_steps_are_deleted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(1, 6):
        run.add_metrics({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5]
    run.remove_rows_after(3)
    run.add_metrics({"step": 4})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_the_last_complete_checkpoint_is_found(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.last_checkpoint() is None
    for step in (9, 10, 200):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    for step in (9, 10):  # the process stopped while it wrote checkpoint 200
        (run.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-10"


def test_a_directory_without_a_run_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a run directory"):
        RunDirectory(tmp_path).config()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        RunDirectory(tmp_path).config()
