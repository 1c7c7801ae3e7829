"""`kullback train rloo` on real files: what it writes, prints, holds and refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kullback.cli import main
from kullback.runs.run_directory import RunDirectory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

SETTINGS = {
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "gradient_checkpointing": "false",
    "save_strategy": "no",
}


def train(tiny_model: Path, directory: Path, *words: str) -> int:
    (directory / "by_length.py").write_text(
        "def longer(completions, **_):\n    return [len(c) / 6 for c in completions]\n"
    )
    rows = [{"prompt": f"{a}+{a + 1}="} for a in range(40)]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        "--model",
        str(tiny_model),
        "--prompts",
        "prompts.jsonl",
        "--reward",
        "by_length:longer",
        "--output",
        "run",
    ]
    sets = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sys, "path", [str(directory), *sys.path])
        patch.delitem(sys.modules, "by_length", raising=False)
        return main(["train", "rloo", *given, *sets, *words])


@pytest.fixture(scope="module")
def directory(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rloo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", (directory / "stdout").open("w", encoding="utf-8"))
        assert train(tiny_model, directory, "--budget", "0.02", "--steps", "60", "--json") == 0
        sys.stdout.close()
    return directory


def test_the_output_is_one_json_object(directory: Path) -> None:
    outcome = json.loads((directory / "stdout").read_text())
    assert outcome["ended"]
    assert outcome["step"] == 60
    assert outcome["last"]["step"] == 60


def test_the_run_has_the_files_of_a_policy(directory: Path) -> None:
    run = RunDirectory(directory / "run")
    assert run.config()["kind"] == "rloo"
    assert run.config()["budget"]["target"] == 0.02
    assert run.metrics()[0]["kl_policy_ref_per_token"] == 0.0
    assert [row["step"] for row in run.evaluations()] == [0, 20, 40, 60]
    assert "nats per token" in run.report.read_text()
    assert (run.model / "model.safetensors").is_file()


def test_the_budget_is_held_and_the_reward_rises(directory: Path) -> None:
    run = RunDirectory(directory / "run")
    held = [row["kl_policy_ref_per_token"] for row in run.metrics()[-20:]]
    assert sum(held) / 20 == pytest.approx(0.02, rel=0.15)
    rewards = [row["rewards/longer"] for row in run.evaluations()]
    assert rewards[-1] > rewards[0]


def test_the_doctor_finds_nothing(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(directory / "run")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "beta=0.05"], "see --budget"),
        (["--set", "sync_ref_model=true"], "the reference of the KL does not change"),
        (["--set", "loss_type=dapo"], "RLOOConfig has no loss_type"),
        (["--set", "num_generations=1"], "in [2, inf)"),
        (["--resume"], "expected a run directory"),
    ],
)
def test_invalid_input_gives_one_line(
    tiny_model: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, tmp_path, "--steps", "1", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_of_grpo_is_not_resumed(
    directory: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory(tmp_path / "run").create({**RunDirectory(directory / "run").config(), "kind": "grpo"})
    assert train(tiny_model, tmp_path, "--budget", "0.02", "--steps", "60", "--resume") == 2
    assert "expected a run of kind rloo, got a run of kind grpo" in capsys.readouterr().err


def test_rewards_are_clipped_to_a_range(tiny_model: Path, tmp_path: Path) -> None:
    def rewards_of(*words: str) -> Any:
        assert train(tiny_model, tmp_path, "--steps", "2", "--overwrite", *words) == 0
        return [row["gradient_norm"] for row in RunDirectory(tmp_path / "run").metrics()]

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"kind": "rloo"}')
    assert rewards_of("--set", "reward_clip_range=[100,101]") == [0.0, 0.0]  # equal rewards have no advantage
