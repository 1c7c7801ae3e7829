"""The demo from end to end, cut short, and the sentence that it ends with."""

import json
from pathlib import Path
from typing import Any

import pytest

from kullback.runs.run_directory import RunDirectory
from kullback.train.demo import run as demo
from kullback.train.demo.run import verdict


def run_with(path: Path, budget: Any, proxy: tuple[float, float], true: tuple[float, float]) -> RunDirectory:
    run = RunDirectory(path)
    run.create({"budget": budget})
    for step, (one, other) in enumerate(zip(proxy, true, strict=True)):
        row = {"step": step, "rewards/prefix_found": one, "rewards/exact_match": other}
        run.add_evaluation({**row, "kl_policy_ref_per_token": 0.05 * step})
    return run


def test_the_verdict_says_what_happened(tmp_path: Path) -> None:
    runs = {
        "unconstrained": run_with(tmp_path / "a", None, (0.75, 0.9), (0.7, 0.0)),
        "budget": run_with(tmp_path / "b", {"target": 0.05, "unit": "token"}, (0.75, 0.95), (0.7, 0.92)),
    }
    said = verdict(runs)
    assert "The unconstrained policy cheats the verifier: proxy 0.75 → 0.90, true reward 0.70 → 0.00" in said
    assert "the budgeted policy learns to add: proxy 0.75 → 0.95, true reward 0.70 → 0.92" in said
    assert "at 0.050 of a budget of 0.05 nats per token" in said
    worse = run_with(tmp_path / "c", None, (0.75, 0.6), (0.7, 0.5))
    assert "gets worse" in verdict({"unconstrained": worse})


def test_the_demo_runs_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kullback.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_JUDGED_PROMPTS", 64)
    words = ["train", "demo", "--output", "demo", "--steps", "2", "--reference-steps", "15"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "KL(data || model)" in out
    assert "report: demo/report.html" in out
    for name in ("reference/model/model.safetensors", "unconstrained/model/model.safetensors", "budget/report.html"):
        assert (tmp_path / "demo" / name).is_file()
    configs = [json.loads((tmp_path / "demo" / arm / "config.json").read_text()) for arm in ("unconstrained", "budget")]
    assert configs[0]["budget"] is None
    assert configs[1]["budget"].items() >= {"kind": "KLBudget", "target": 0.05, "unit": "token"}.items()
    assert len({config["learning_rate"] for config in configs}) == 1
    assert main(words) == 2
    assert "replace a run by --overwrite" in capsys.readouterr().err
    (tmp_path / "mine" / "budget").mkdir(parents=True)
    (tmp_path / "mine" / "budget" / "letter.txt").write_text("not a run")
    assert main(["train", "demo", "--output", "mine", "--overwrite"]) == 2
    assert (tmp_path / "mine" / "budget" / "letter.txt").is_file()
