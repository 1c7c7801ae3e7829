"""The demonstration with few steps, and its summary."""

import json
from pathlib import Path
from typing import Any

import pytest

from kullback.runs.run_directory import RunDirectory
from kullback.train.demo import run as demo
from kullback.train.demo.run import demo_summary


def make_run(path: Path, budget: Any, proxy: tuple[float, float], true: tuple[float, float]) -> RunDirectory:
    run = RunDirectory(path)
    run.create({"budget": budget})
    for step, (flawed, exact) in enumerate(zip(proxy, true, strict=True)):
        row = {"step": step, "rewards/prefix_found": flawed, "rewards/exact_match": exact}
        run.add_evaluation({**row, "kl_policy_ref_per_token": 0.05 * step})
    return run


def test_the_summary_states_the_rewards_and_the_kl(tmp_path: Path) -> None:
    runs = {
        "unconstrained": make_run(tmp_path / "a", None, (0.75, 0.9), (0.7, 0.0)),
        "budget": make_run(tmp_path / "b", {"target": 0.05, "unit": "token"}, (0.75, 0.95), (0.7, 0.92)),
    }
    summary = demo_summary(runs)
    unconstrained, constrained = summary.split("; ")
    assert unconstrained == (
        "The unconstrained policy exploits the flawed verifier: proxy reward 0.75 → 0.90, true reward 0.70 → 0.00, "
        "KL 0.050 nats per token"
    )
    assert constrained == (
        "the policy with a budget becomes more accurate: proxy reward 0.75 → 0.95, true reward 0.70 → 0.92, "
        "KL 0.050 nats per token, budget 0.05."
    )
    worse = make_run(tmp_path / "c", None, (0.75, 0.6), (0.7, 0.5))
    assert "becomes less accurate" in demo_summary({"unconstrained": worse})


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
