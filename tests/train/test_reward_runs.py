"""Rewards of every kind of callable, rewards that fail, and rewards that print, in whole runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kullback.cli import main
from kullback.runs.run_directory import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

MODULE = """
import functools
import os
import subprocess
import sys

import numpy as np
import torch

def scaled(completions, scale=1.0, **_):
    return [scale * len(text) for text in completions]

async def later(completions, **_):
    return [float(len(text)) for text in completions]

class Length:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, completions, **_):
        return [self.scale * len(text) for text in completions]

    def method(self, completions, **_):
        return [1.0 for _ in completions]

class Later:
    async def __call__(self, completions, **_):
        return [float(len(text)) for text in completions]

partial = functools.partial(scaled, scale=0.5)
partial_later = functools.partial(later)
instance = Length(2.0)
instance_later = Later()
anonymous = lambda completions, **_: [1.0 for _ in completions]
as_tensor = lambda completions, **_: torch.tensor([float(len(text)) for text in completions])
as_array = lambda completions, **_: np.asarray([len(text) for text in completions], np.float32)
as_bool = lambda completions, **_: [np.bool_(True) for _ in completions]

def nothing(completions, **_):
    return [None for _ in completions]

def text(completions, **_):
    return ["1.0" for _ in completions]

def too_large(completions, **_):
    return [1e300 for _ in completions]

def dictionary(completions, **_):
    return {index: 1.0 for index, _ in enumerate(completions)}

def without_kwargs(completions):
    return [1.0 for _ in completions]

def leaves(completions, **_):
    sys.exit(0)

def helper(answer):
    return {}[answer]

def deep(completions, **_):
    return [helper("x") for _ in completions]

def noisy(completions, **_):
    print("to stdout")
    sys.stdout.write("more" * 3)
    sys.__stdout__.write("raw")
    os.write(1, b"{")
    subprocess.run(["echo", "from a child"])
    return [float(len(text)) for text in completions]

print("imported")
"""


@pytest.fixture
def words(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A short command of GRPO, without its reward, in a new working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "callables.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "callables", raising=False)
    Path("rows.jsonl").write_text('{"prompt": "1+2="}\n{"prompt": "2+2="}\n')
    model = ["train", "grpo", "--model", str(tiny_model), "--output", "run", "--prompts", "rows.jsonl", "--steps", "1"]
    settings = {
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 3,
        "gradient_checkpointing": "false",
    }
    return [*model, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


VALID = ["scaled", "later", "partial", "partial_later", "instance", "instance_later", "instance.method", "anonymous",
         "as_tensor", "as_array", "as_bool"]  # fmt: skip


def test_every_kind_of_callable_is_a_reward(words: list[str]) -> None:
    rewards = [word for name in VALID for word in ("--reward", f"callables:{name}")]
    assert main([*words, *rewards]) == 0
    row = RunDirectory(Path("run")).metrics()[0]
    names = [name.rpartition(".")[2] for name in VALID]
    assert all(isinstance(row[f"rewards/{name}"], float) for name in names)
    length = row["rewards/scaled"]
    for name, factor in {"later": 1, "partial": 0.5, "partial_later": 1, "instance": 2, "as_tensor": 1}.items():
        assert row[f"rewards/{name}"] == pytest.approx(factor * length)
    assert row["rewards/method"] == row["rewards/as_bool"] == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "text": "the reward text gave '1.0' for completion 0",
        "too_large": "the reward too_large gave 1e+300 for completion 0",
        "dictionary": "the reward dictionary returned dict; expected a list of numbers",
        "without_kwargs": "a reward takes completions and **kwargs",
        "leaves": "the reward leaves raised SystemExit: 0 (callables.py, line ",
        "deep": "the reward deep raised KeyError: 'x' (callables.py, line 58)",
        "Length": "expected a function or an instance, got the class Length",
        "absent": "has no function absent",
        "instance.absent": "has no function instance.absent",
    }.items(),
)
def test_a_reward_that_fails_is_named(
    name: str, message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--reward", f"callables:{name}"]) == 2
    error = capsys.readouterr().err.replace("imported\n", "")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    {
        "raise SystemExit(0)": "SystemExit: 0 (broken_rewards.py, line 1)",
        "def f(:\n    pass": "(broken_rewards.py, line 1)",
        "\n\n1 / 0": "ZeroDivisionError: division by zero (broken_rewards.py, line 3)",
        "import absent_module_of_mine": "No module named 'absent_module_of_mine' (broken_rewards.py, line 1)",
    }.items(),
)
def test_a_module_that_does_not_import_is_named_with_the_line(
    source: str, message: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("broken_rewards.py").write_text(source)
    monkeypatch.delitem(sys.modules, "broken_rewards", raising=False)
    assert main([*words, "--reward", "broken_rewards:f"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_name_is_not_the_name_of_a_module(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--reward", "callables.py:scaled"]) == 2
    assert "my_rewards:exact_match for the file my_rewards.py" in capsys.readouterr().err
    assert main([*words, "--reward", "callables:scaled", "--watch", "nope:f"]) == 2
    assert "--watch nope:f" in capsys.readouterr().err


def test_a_run_without_any_reward_is_stopped(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words[words.index("--steps") + 1] = "20"
    assert main([*words, "--reward", "callables:nothing"]) == 2
    text = capsys.readouterr().err
    assert text.count("kullback: ") == 2, text
    first, last = [line for line in text.splitlines() if line.startswith("kullback: ")]
    assert first.startswith("kullback: step 1: every reward of every completion is None")
    assert last.startswith("kullback: step 3: every reward of every completion was None in 3 generations in succession")


@pytest.mark.slow
def test_a_reward_that_prints_does_not_change_the_results(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kullback", *words, "--reward", "callables:noisy", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome: Any = json.loads(done.stdout)
    assert outcome["step"] == 1
    for printed in ("imported", "to stdout", "raw", "from a child", "{"):
        assert printed in done.stderr
