"""`kullback train ppo`, as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO

pytestmark = pytest.mark.slow

SETTINGS = ("n_steps=128", "n_epochs=2", "save_every=2")


def command(*more: str, **changes: Any) -> list[str]:
    options = {"env": "CartPole-v1", "budget": 0.001, "clip": "none", "steps": 768, "output": "run", **changes}
    words = ["train", "ppo", "--evaluate-every", "3"]
    for key, value in options.items():
        if value is not None:
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    return [*words, *(part for setting in SETTINGS for part in ("--set", setting)), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error", "COLUMNS": "100"}


def kullback(words: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kullback", *words],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def in_process(words: list[str], directory: Path) -> int:
    """Run the command in this process, which saves the seconds of the imports."""
    from kullback.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        return main(words)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def documented_keys() -> set[str]:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    return set(re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE))


def test_the_files_and_the_output_of_a_run(tmp_path: Path) -> None:
    done = kullback(command(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("run  step ") for line in done.stderr.splitlines())
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    bounds = {"price_min": 5e-4, "price_max": 0.5, "gain": 0.05}
    budget = {"kind": "KLBudget", "target": 0.001, "unit": "step", "constrain": "old-policy", "states": "visited"}
    assert config["budget"] == budget | bounds
    assert config["clip"] is None
    assert config["versions"]["stable_baselines3"].startswith("2.9")
    metrics = rows_of(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [128, 256, 384, 512, 640, 768]
    assert all(0 < row["kl_old_policy_per_step"] < 1.021e-3 for row in metrics)
    assert [row["step"] for row in rows_of(run / "evaluations.jsonl")] == [0, 384, 768]
    assert sorted(path.name for path in (run / "model").iterdir()) == [
        "model.safetensors",
        "policy.json",
        "training.json",
    ]
    page = (run / "report.html").read_text()
    for words in ("KL(old policy || policy)", "Episode length", "Policy statistics"):
        assert words in page
    assert "step 768/768" in done.stderr
    assert "of 0.001 nats/step" in done.stderr
    assert "step 768/768" not in done.stdout
    assert "KL(old policy || policy), nats per step" in done.stdout
    assert "\x1b" not in done.stdout  # plain lines if the output is not a terminal


@pytest.mark.parametrize("kind", ["reference", "fixed", "plain"])
def test_every_logged_key_is_documented(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PPO("MlpPolicy", "Pendulum-v1", device="cpu").save(tmp_path / "model.zip")
    changes = {
        "reference": {"reference": "model.zip", "budget": 0.01},
        "fixed": {"budget": None, "controller": "FixedBeta", "beta": 3},
        "plain": {"budget": None},
    }
    assert in_process([*command(env="Pendulum-v1", steps=384, **changes[kind]), "--json"], tmp_path) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["ended"] is True
    assert outcome["last"]["step"] == 384
    rows = [row for name in ("metrics.jsonl", "evaluations.jsonl") for row in rows_of(tmp_path / "run" / name)]
    keys = {key for row in rows for key in row}
    assert {key.replace("rewards/return", "rewards/NAME") for key in keys} <= documented_keys()
    assert ("beta" in keys) == (kind != "plain")
    assert ("kl_policy_ref_per_step" in keys) == (kind == "reference")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "CartPole-v9"}, "--env CartPole-v9"),
        ({"budget": 0}, "> 0, got 0.0"),
        ({"budget": "nan"}, "> 0, got nan"),
        ({"steps": 0}, "--steps: expected 1 or more"),
        ({"clip": 0}, "--clip: expected a finite number > 0, or none"),
        ({"clip": "some"}, "--clip: expected a number or none, got 'some'; see kullback train ppo --help"),
        ({"steps": "many"}, "--steps: expected a whole number, got 'many'; see kullback train ppo --help"),
        ({"budget": "much"}, "--budget: expected a number, got 'much'; see kullback train ppo --help"),
        ({"output": ""}, "--output: expected a path, got an empty argument"),
        ({"reference": ""}, "--reference: expected a path, got an empty argument"),
        ({"output": "/proc/none/run"}, "--output /proc/none/run: expected a writable directory, got: No such file"),
        ({"reference": "absent.zip"}, "--reference absent.zip: no such file"),
        ({"constrain": "reference"}, "--constrain reference: expected --reference"),
        ({"constrain": "old-policy", "budget": None}, "--constrain: expected --budget or --controller FixedBeta"),
        ({"constrain": "reference", "mean_over_updates": True}, "--mean-over-updates: expected --constrain old-policy"),
        ({"controller": "PPO2017", "mean_over_updates": True}, "--mean-over-updates: expected --constrain old-policy"),
        ({"budget": None, "mean_over_updates": True}, "--mean-over-updates: expected --budget"),
        ({"budget": None, "budget_decay": 2}, "--budget-decay: expected --budget"),
        ({"constrain": "reference", "budget_decay": 2}, "--budget-decay: expected --constrain old-policy"),
        ({"budget_decay": -1}, "--budget-decay: expected a number from 0 to 10, got -1"),
        ({"budget_decay": "nan"}, "--budget-decay: expected a number from 0 to 10, got nan"),
        ({"controller": "FixedBeta"}, "expected --beta and no --budget"),
        ({"controller": "FixedBeta", "budget": None}, "expected --beta and no --budget"),
        ({"controller": "PPO2017", "budget": None}, "--controller PPO2017: expected --budget"),
        ({"beta": 1.0}, "--beta: KLBudget determines beta itself"),
        ({"beta": -1.0, "controller": "RLlibController"}, "beta > 0"),
        ({"set": "n_step=1"}, "the nearest is n_steps"),
        ({"set": "batch_size=100"}, "expected a divisor"),
        ({"evaluate_every": -1}, "--evaluate-every"),
    ],
)
def test_invalid_input_gives_one_line_and_no_files(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(command(**changes), tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "stable_baselines3":
            raise ModuleNotFoundError("No module named 'stable_baselines3'", name=name)

sys.meta_path.insert(0, Missing())
from kullback.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_error_of_a_missing_library_names_the_extra(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WITHOUT, *command()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == "kullback: stable_baselines3 is missing: pip install 'kullback[rl]'\n"
    assert done.returncode == 2


def start(words: list[str], directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kullback", *words],
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(run: Path, rows: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.is_file() and len(path.read_text().splitlines()) >= rows:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"{rows} rows were not reached")


def test_a_killed_run_resumes_identically(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(command(steps=1280, output="whole"), tmp_path) == 0
    process = start(command(steps=1280), tmp_path)
    wait_for_rows(tmp_path / "run", 5, process)
    process.kill()
    process.communicate()
    resumed = kullback([*command(steps=1280), "--resume"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        ours, theirs = (rows_of(tmp_path / run / name) for run in ("run", "whole"))
        for row in (*ours, *theirs):
            row.pop("seconds", None)
        assert ours == theirs
    assert in_process([*command(steps=1280, budget=0.5), "--resume"], tmp_path) == 2
    assert "was started with budget" in capsys.readouterr().err


def test_ctrl_c_stops_after_the_update_with_a_checkpoint(tmp_path: Path) -> None:
    process = start(command(steps=100_000), tmp_path)
    wait_for_rows(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    last = rows_of(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{last}" / "trainer_state.json").is_file()
    assert "--resume" in out
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "model").exists()
    assert in_process([*command(steps=last + 128), "--resume"], tmp_path) == 0
    assert rows_of(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == last + 128
