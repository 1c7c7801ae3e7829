"""GRPO within a KL budget on several processes: the same trajectory on 1, 2 and 4 processes, by DDP and by FSDP2."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kullback.doctor.run import doctor_path

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "distributed_grpo.py"
CONTROLLED = ("kl_policy_ref_per_token", "beta", "learning_rate_scale", "displacement_scale", "kl_filtered")


@dataclass(frozen=True)
class Trained:
    """The metrics of each step, the weights at the end, and checksums of the weights that each generation received.

    The directory has the checkpoints and the output of the processes.
    """

    rows: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    seen: list[float]
    directory: Path


Train = Callable[..., Trained]


@contextmanager
def forked_runs(*libraries: str, **environment: str) -> Iterator[Train]:
    """A context manager with a function that runs the script on processes which are forked from one process."""
    words = [sys.executable, str(SCRIPT.with_name("forked_runs.py")), str(SCRIPT), *libraries]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        requests, answers = server.stdin, server.stdout

        def train_once(output: Path, backend: str, processes: int, *options: str) -> Trained:
            output.mkdir(parents=True, exist_ok=True)
            log = output / "output.txt"
            print(json.dumps([processes, str(log), str(output), backend, *options]), file=requests, flush=True)
            while (answer := answers.readline()) not in ("0\n", "1\n", ""):
                pass  # a library has written to the standard output when it was imported
            assert answer == "0\n", log.read_text()[-3000:]
            return trained(output)

        yield train_once
        requests.close()


def trained(output: Path) -> Trained:
    """The result of a run."""
    rows, seen = (json.loads((output / name).read_text()) for name in ("rows.json", "seen.json"))
    return Trained(rows, load_file(output / "weights.safetensors"), seen, output)


def once(train: Train, directories: pytest.TempPathFactory) -> Train:
    """A function that trains once for each combination of its arguments."""
    done: dict[tuple[Any, ...], Trained] = {}

    def run_once(backend: str, processes: int, *options: str) -> Trained:
        key = (backend, processes, *options)
        if key not in done:
            done[key] = train(directories.mktemp("run"), *key)
        return done[key]

    return run_once


@pytest.fixture(scope="module")
def train() -> Iterator[Train]:
    """A function that runs the script."""
    with forked_runs() as train_once:
        yield train_once


@pytest.fixture(scope="module")
def run(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A function that trains once for each combination of its arguments."""
    return once(train, tmp_path_factory)


def assert_same(left: Trained, right: Trained, *, tolerance: float = 1e-5) -> None:
    assert [row["step"] for row in left.rows] == [row["step"] for row in right.rows]
    for name in CONTROLLED:
        # A step whose completions are all masked has no KL.
        values = [[row.get(name, -1.0) for row in run.rows] for run in (left, right)]
        assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-7), name
    assert left.weights.keys() == right.weights.keys()
    for name, weight in left.weights.items():
        torch.testing.assert_close(weight, right.weights[name], rtol=0, atol=tolerance, msg=name)
    assert left.seen == pytest.approx(right.seen, rel=1e-5)


def tolerance_of(options: tuple[str, ...]) -> float:
    """The largest difference of a weight; Adam turns rounding errors of the smallest gradients into shares of a step.

    The learning rate of LoRA is 30 times as large.
    """
    return 1e-4 if "--lora" in options else 1e-5


@pytest.mark.parametrize(
    ("backend", "processes", "options"),
    [
        ("ddp", 2, ()),
        ("fsdp2", 2, ()),
        ("fsdp2", 4, ()),
        ("fsdp2", 2, ("--tied",)),
        ("fsdp2", 2, ("--lora",)),
        ("fsdp2", 2, ("--two-passes",)),
        ("fsdp2", 4, ("--masked",)),
        ("ddp", 2, ("--unit", "sequence")),
        ("fsdp2", 2, ("--unit", "sequence")),
        ("fsdp2", 4, ("--unit", "sequence")),
        ("fsdp2", 2, ("--unit", "sequence", "--lora")),
        ("fsdp2", 2, ("--unit", "sequence", "--two-passes")),
        ("fsdp2", 4, ("--unit", "sequence", "--masked")),
        # The completions of a prompt are on several processes.
        ("fsdp2", 2, ("--unit", "sequence", "--generations", "8")),
        ("fsdp2", 4, ("--unit", "sequence", "--generations", "4")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_trajectory_does_not_depend_on_the_processes(
    run: Train, backend: str, processes: int, options: tuple[str, ...]
) -> None:
    alone = run("ddp", 1, *options)
    assert any(row["displacement_scale"] != 1.0 for row in alone.rows)  # the budget acts on the weights
    assert_same(run(backend, processes, *options), alone, tolerance=tolerance_of(options))


@pytest.mark.parametrize("option", ["--efficient-loading", "--recomputed"])
def test_settings_of_fsdp2_change_nothing(run: Train, option: str) -> None:
    """The weights may be on the first process only at the start, and activations may be computed again."""
    assert_same(run("fsdp2", 2, option), run("ddp", 1))


def test_generation_receives_the_scaled_weights(run: Train) -> None:
    alone = run("ddp", 1)
    assert len(set(alone.seen)) == len(alone.seen) == 6


def test_a_resumed_run_under_fsdp2_is_the_uninterrupted_run(train: Train, run: Train, tmp_path: Path) -> None:
    whole = run("fsdp2", 2)
    first = train(tmp_path, "fsdp2", 2, "--steps", "3")
    assert len(first.rows) == 3
    assert (tmp_path / "checkpoints" / "checkpoint-3").is_dir()
    resumed = train(tmp_path, "fsdp2", 2, "--resume")
    # The reference is the model at the start, and the held-out completions are those of the checkpoint.
    assert_same(replace(resumed, seen=[*whole.seen[:3], *resumed.seen]), whole)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("options", [(), ("--lora",)])
def test_mixed_precision_under_fsdp2_is_that_of_one_process(run: Train, options: tuple[str, ...]) -> None:
    alone, sharded = (run(*launched, "--bf16", "--steps", "12", *options) for launched in (("ddp", 1), ("fsdp2", 2)))
    # A step changes the KL by less than the rounding of weights to bfloat16 does, from which it would be measured.
    assert min(row["learning_rate_scale"] for row in alone.rows) < 0.01
    kls, scales = (
        [[row[name] for row in rows] for rows in (sharded.rows, alone.rows)]
        for name in ("kl_policy_ref_per_token", "learning_rate_scale")
    )
    assert kls[0] == pytest.approx(kls[1], rel=0.15, abs=1e-5)
    # One scale follows from a few measurements in bfloat16, which differ between processors by up to 16%.
    assert geometric_mean(scales[0]) == pytest.approx(geometric_mean(scales[1]), rel=0.1)
    assert sharded.rows[-1]["kl_filtered"] == pytest.approx(0.01, rel=0.1)


def test_gradients_are_accumulated_under_fsdp2(run: Train) -> None:
    alone, sharded = run("ddp", 1), run("fsdp2", 2, "--accumulated", "2", "--steps", "2")
    kls = [[row["kl_policy_ref_per_token"] for row in done.rows[:2]] for done in (sharded, alone)]
    assert kls[0] == pytest.approx(kls[1], rel=1e-4)
    assert kls[0][1] > 1e-3


@pytest.mark.parametrize(
    "launched",
    [
        ("ddp", 1, "--lora"),
        ("ddp", 1, "--bf16", "--steps", "12"),
        ("fsdp2", 2),
        ("fsdp2", 2, "--lora"),
        ("fsdp2", 2, "--bf16", "--steps", "12"),
        ("fsdp2", 2, "--bf16", "--steps", "12", "--lora"),
    ],
    ids=lambda launched: " ".join(map(str, launched)),
)
def test_the_doctor_is_clean_on_healthy_runs(run: Train, launched: tuple[Any, ...]) -> None:
    directory = run(*launched).directory
    assert doctor_path(directory / "checkpoints") == []
    found = re.findall(r"^(?:warning|error) [a-z-]+: .*$", (directory / "output.txt").read_text(), re.MULTILINE)
    assert found == []  # of the checks before the first step
