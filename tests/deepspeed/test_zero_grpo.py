"""GRPO within a KL budget under DeepSpeed ZeRO: the trajectory of one process without DeepSpeed.

`make test-deepspeed` installs DeepSpeed and runs these tests; other test runs skip them.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ..integrations.test_distributed_grpo import SCRIPT, Train, assert_same, forked_runs, once, tolerance_of, trained

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("DeepSpeed is not installed: make test-deepspeed", allow_module_level=True)

CONFIGURATIONS = Path(__file__).parents[2] / "examples" / "accelerate"


def zero(stage: int, **settings: Any) -> tuple[str, str]:
    """The option that gives `GRPOConfig(deepspeed=...)` a configuration of DeepSpeed."""
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    shared = dict.fromkeys((*automatic, "gradient_clipping"), "auto") | {"bf16": {"enabled": "auto"}}
    return "--deepspeed", json.dumps({"zero_optimization": {"stage": stage}, **shared, **settings})


@pytest.fixture(scope="module")
def train() -> Iterator[Train]:
    """A function that runs the script on processes which are forked from a process that has imported DeepSpeed."""
    with forked_runs("deepspeed", DS_ACCELERATOR="cpu") as train_once:
        yield train_once


@pytest.fixture(scope="module")
def run(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A function that trains once for each combination of its arguments."""
    return once(train, tmp_path_factory)


@pytest.mark.parametrize(
    ("stage", "processes", "options"),
    [
        (1, 2, ()),
        (2, 1, ()),
        (2, 2, ()),
        (2, 4, ()),
        (3, 1, ()),
        (3, 2, ()),
        (3, 4, ()),
        (2, 2, ("--tied",)),
        (3, 2, ("--tied",)),
        (2, 2, ("--lora",)),
        (3, 2, ("--lora",)),
        (2, 2, ("--ignored-scale",)),
        (3, 2, ("--ignored-scale",)),
        (2, 2, ("--two-passes",)),
        (3, 2, ("--two-passes",)),
        (2, 2, ("--unit", "sequence")),
        (3, 2, ("--unit", "sequence")),
        (3, 4, ("--unit", "sequence", "--generations", "4")),
        (2, 2, ("--unit", "sequence", "--lora")),
        (3, 2, ("--unit", "sequence", "--lora")),
        (3, 2, ("--unit", "sequence", "--two-passes")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_trajectory_is_that_of_one_process_without_deepspeed(
    run: Train, stage: int, processes: int, options: tuple[str, ...]
) -> None:
    alone = run("ddp", 1, *options)
    assert any(row["displacement_scale"] != 1.0 for row in alone.rows)  # the budget acts on the weights
    assert_same(run("zero", processes, *options, *zero(stage)), alone, tolerance=tolerance_of(options))


def test_the_weights_may_be_partitioned_while_they_are_loaded(run: Train) -> None:
    assert_same(run("zero", 2, "--path", *zero(3)), run("ddp", 1))


@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_may_be_accumulated(run: Train, stage: int) -> None:
    options = ("--accumulated", "2", "--schedule", "linear")
    assert_same(run("zero", 2, *options, *zero(stage)), run("ddp", 2, *options))


@pytest.mark.parametrize("stage", [2, 3])
def test_the_configuration_for_accelerate_launch(run: Train, stage: int, tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / f"zero{stage}.yaml")]
    settings = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    words = [sys.executable, *launch, *settings, str(SCRIPT), str(tmp_path), "zero"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(trained(tmp_path), run("ddp", 1))


@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_is_the_uninterrupted_run(train: Train, run: Train, stage: int, tmp_path: Path) -> None:
    whole = run("zero", 2, *zero(stage))
    assert len(train(tmp_path, "zero", 2, "--steps", "3", *zero(stage)).rows) == 3
    resumed = train(tmp_path, "zero", 2, "--resume", *zero(stage))
    assert_same(replace(resumed, seen=[*whole.seen[:3], *resumed.seen]), whole)
    shutil.rmtree(tmp_path)


def test_bfloat16_is_held_at_the_budget(run: Train) -> None:
    # DeepSpeed converts the weights to bfloat16, and its optimizer has float32 copies.
    alone = run("ddp", 1, "--bf16-weights", "--steps", "12").rows
    by_stage = [run("zero", 2, "--bf16", "--steps", "12", *zero(stage)).rows for stage in (2, 3)]
    for rows in by_stage:
        kl, expected = ([row["kl_policy_ref_per_token"] for row in each] for each in (rows, alone))
        assert kl[:6] == pytest.approx(expected[:6], rel=0.1, abs=1e-5)
        # A step changes the KL by less than the rounding of weights to bfloat16 does, from which it would be measured.
        assert max(row["learning_rate_scale"] for row in rows[-4:]) < 0.02
        assert rows[-1]["kl_filtered"] == pytest.approx(0.01, rel=0.1)
    for name in ("kl_policy_ref_per_token", "beta", "learning_rate_scale"):
        values = [[row[name] for row in rows] for rows in by_stage]
        assert values[0] == pytest.approx(values[1], rel=0.02, abs=1e-5), name


def test_a_second_call_of_train_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="expected one call of train"):
        train(tmp_path, "zero", 1, "--twice", "--steps", "1", *zero(2))


def test_the_schedule_of_deepspeed_is_kept_when_the_learning_rate_is_scaled(run: Train) -> None:
    optimizer = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True}
    scheduler = {"warmup_min_lr": 0.0, "warmup_max_lr": "auto", "warmup_num_steps": 1, "total_num_steps": "auto"}
    settings = {
        "optimizer": {"type": "AdamW", "params": optimizer},
        "scheduler": {"type": "WarmupDecayLR", "params": scheduler},
    }
    rows = run("zero", 2, *zero(2, **settings)).rows
    assert any(row["learning_rate_scale"] < 0.9 for row in rows)
    falls = [former - later for former, later in pairwise([row["learning_rate"] for row in rows[2:]])]
    assert falls == pytest.approx([falls[0]] * 3, rel=1e-6)
    assert falls[0] > 1e-5  # the schedule advances
