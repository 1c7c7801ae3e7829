"""The demonstration with few steps, and its summary."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kullback.runs.run_directory import RunDirectory
from kullback.train.demo import run as demo
from kullback.train.demo.run import demo_summary


def make_run(
    path: Path, budget: Any, score: tuple[float, float], exact: tuple[float, float], kl: float
) -> RunDirectory:
    run = RunDirectory(path)
    run.create({"budget": budget})
    for step, (graded, matches) in enumerate(zip(score, exact, strict=True)):
        row = {"step": step, "rewards/grader": graded, "rewards/exact_match": matches}
        run.add_evaluation({**row, "kl_policy_ref_per_token": kl * step})
    return run


def test_the_summary_states_the_rewards_and_the_kl(tmp_path: Path) -> None:
    runs = {
        "unconstrained": make_run(tmp_path / "a", None, (0.87, 1.51), (0.69, 0.0), 5.7),
        "budget": make_run(tmp_path / "b", {"target": 0.05, "unit": "token"}, (0.87, 1.07), (0.69, 0.93), 0.05),
    }
    assert demo_summary(runs) == (
        "The grader, which is optimised, adds a flaw to the share of correct digits: 0.05 for each character of a "
        "completion, whether it is correct or not. "
        "Without a budget, the grader's score rises from 0.87 to 1.51, the share of exact matches falls from 0.69 to "
        "0.00, and KL(policy || reference) is 5.7 nats per token. With a budget of 0.05 nats per token, the grader's "
        "score rises from 0.87 to 1.07, the share of exact matches rises from 0.69 to 0.93, and "
        "KL(policy || reference) is 0.05 nats per token."
    )
    worse = demo_summary({"unconstrained": make_run(tmp_path / "c", None, (0.87, 0.6), (0.694, 0.6941), 1.0)})
    assert "the grader's score falls from 0.87 to 0.60" in worse
    assert "the share of exact matches stays at 0.69" in worse


@pytest.mark.slow
def test_the_demo_writes_all_runs_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kullback.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_EVALUATION_PROMPTS", 64)
    words = ["train", "demo", "--output", "demo", "--steps", "2", "--reference-steps", "15"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "KL(data || model)" in captured.err
    assert "report: demo/report.html" in captured.out
    for name in ("reference/model/model.safetensors", "unconstrained/model/model.safetensors", "budget/report.html"):
        assert (tmp_path / "demo" / name).is_file()
    configs = [
        json.loads((tmp_path / "demo" / name / "config.json").read_text()) for name in ("unconstrained", "budget")
    ]
    assert configs[0]["budget"] is None
    assert configs[1]["budget"].items() >= {"kind": "KLBudget", "target": 0.05, "unit": "token"}.items()
    assert len({config["learning_rate"] for config in configs}) == 1
    assert main(words) == 2
    assert "replace a run by --overwrite" in capsys.readouterr().err
    (tmp_path / "mine" / "budget").mkdir(parents=True)
    (tmp_path / "mine" / "budget" / "notes.txt").write_text("not a run")
    assert main(["train", "demo", "--output", "mine", "--overwrite"]) == 2
    assert (tmp_path / "mine" / "budget" / "notes.txt").is_file()
    # A model of another program under the name of one of the runs is not a run either.
    model = tmp_path / "models" / "reference"
    shutil.copytree(tmp_path / "demo" / "reference" / "model", model)
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    assert main(["train", "demo", "--output", "models", "--overwrite"]) == 2
    assert "expected a training run to replace" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in model.iterdir()} == files
    assert main([*words, "--overwrite"]) == 0
