"""A run that is interrupted and resumed has the same rows and the same weights as an uninterrupted run, bit by bit."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kullback.cli import main
from kullback.runs.run_directory import RunDirectory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(3) for b in range(4)]
COMMON = {"learning_rate": 1e-2, "gradient_checkpointing": False, "save_steps": 100}
GRPO = {**COMMON, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 4}
REWARD = "def longer(completions, **_):\n    return [len(text) / 4 + text.count('1') for text in completions]\n"


@pytest.fixture
def run_command(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a recipe in the directory `output` of a new working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "of_length.py").write_text(REWARD)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(recipe: str, output: str, *words: str, **settings: Any) -> int:
        model = ["--model", str(tiny_model)]
        options = {
            **{key: [*model, "--prompts", "rows.jsonl", "--reward", "of_length:longer"] for key in ("grpo", "rloo")},
            "sft": [*model, "--data", "rows.jsonl"],
            "distill": [*model, "--teacher", str(tiny_model), "--prompts", "rows.jsonl"],
            "ppo": ["--env", "CartPole-v1"],
            "vae": ["--hidden", "8"],
        }[recipe]
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        return main(["train", recipe, *options, "--output", output, *words, *sets])

    return run


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send SIGINT to this process after the metrics of a step were written."""
    add = RunDirectory.add_metrics

    def add_and_stop(self: RunDirectory, row: dict[str, Any]) -> None:
        add(self, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunDirectory, "add_metrics", add_and_stop)


def outcome(output: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The rows of all metrics, without times, and the weights."""
    rows = RunDirectory(Path(output)).metrics()
    times = ("seconds", "step_seconds")
    rows = [{key: value for key, value in row.items() if key not in times} for row in rows]
    weights = next((Path(output) / "model").glob("*model.safetensors"))  # of the whole model or of its adapter
    return rows, load_file(weights)


def assert_equal_after_interrupt(
    run: Any, monkeypatch: pytest.MonkeyPatch, recipe: str, stops: tuple[int, ...], *words: str, **settings: Any
) -> None:
    assert run(recipe, "whole", *words, **settings) == 0
    for number, step in enumerate(stops):
        with monkeypatch.context() as patch:
            interrupt_after(patch, step)
            assert run(recipe, "parts", *words, *(["--resume"] if number else []), **settings) == 130
    assert run(recipe, "parts", *words, "--resume", **settings) == 0
    (rows, weights), (expected_rows, expected_weights) = outcome("parts"), outcome("whole")
    for row, expected in zip(rows, expected_rows, strict=True):
        assert row == expected
    assert all(torch.equal(weight, expected_weights[name]) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        ({}, (2,)),
        ({"num_iterations": 2}, (2, 5)),
        ({"steps_per_generation": 4}, (1, 5)),
        ({"steps_per_generation": 4, "num_iterations": 2}, (4,)),
        ({"gradient_accumulation_steps": 2, "num_iterations": 3}, (3,)),
        ({"per_device_train_batch_size": 16}, (2, 4)),  # three steps to a pass over the prompts
    ],
)
def test_grpo_with_a_budget(
    settings: dict[str, Any], stops: tuple[int, ...], run_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--steps", "9", "--budget", "0.02", "--evaluate-every", "3")
    assert_equal_after_interrupt(run_command, monkeypatch, "grpo", stops, *words, **{**GRPO, **settings})


def test_rloo_with_a_budget(run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--steps", "7", "--budget", "0.02", "--evaluate-every", "3")
    settings = {**GRPO, "steps_per_generation": 2, "num_iterations": 2}
    assert_equal_after_interrupt(run_command, monkeypatch, "rloo", (2, 5), *words, **settings)


@pytest.mark.parametrize("lora", ["r=4", "r=2,target=q_proj+v_proj,dora=true,modules_to_save=lm_head,bias=lora_only"])
def test_grpo_with_an_adapter(lora: str, run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--steps", "7", "--budget", "0.02", "--evaluate-every", "3", "--lora", lora)
    assert_equal_after_interrupt(run_command, monkeypatch, "grpo", (4,), *words, **GRPO)


def test_sft_with_an_adapter(run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**COMMON, "per_device_train_batch_size": 4}
    words = ("--steps", "6", "--lora", "r=4,dropout=0.1")
    assert_equal_after_interrupt(run_command, monkeypatch, "sft", (3,), *words, **settings)


def test_sft(run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**COMMON, "per_device_train_batch_size": 4}
    assert_equal_after_interrupt(run_command, monkeypatch, "sft", (2, 5), "--steps", "8", **settings)


def test_ppo(run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 2, "save_every": 1}
    words = ("--steps", "160", "--budget", "0.01", "--clip", "none")
    assert_equal_after_interrupt(run_command, monkeypatch, "ppo", (64,), *words, **settings)


def test_vae(run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_equal_after_interrupt(run_command, monkeypatch, "vae", (3, 5), "--steps", "8", "--budget", "2")


@pytest.mark.parametrize("options", [(), ("--lora", "r=4,dropout=0.1")])
def test_distillation(options: tuple[str, ...], run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl.trainer.distillation_trainer", reason="TRL 1.14 has no such trainer")
    settings = {**COMMON, "per_device_train_batch_size": 4, "max_completion_length": 4, "temperature": 0.9}
    words = ("--steps", "8", "--evaluate-every", "3", "--divergence", "js", *options)
    assert_equal_after_interrupt(run_command, monkeypatch, "distill", (2, 5), *words, **settings)
