"""`kullback train grpo` in separate processes and on real files, including killed and resumed runs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

REWARDS = """
import math

def longer(completions, **_):
    return [len(text) / 6 for text in completions]

def equals_answer(completions, answer, **_):
    return [float(text == right) for text, right in zip(completions, answer)]

def gives_nan(completions, **_):
    return [math.nan for _ in completions]

def too_few(completions, **_):
    return [1.0]

def raises(completions, **_):
    raise ValueError("no such column")
"""

# `python -m kullback`, where each process also logs the controller's state and the sum of the weights after each step.
LOGGING = """
import os, runpy
import kullback.integrations.trl as trl

step = trl._BudgetCallback.on_optimizer_step

def logging(self, args, state, control, **kwargs):
    step(self, args, state, control, **kwargs)
    weights = float(sum(weight.detach().double().sum() for weight in self.policy.parameters()))
    with open("states/" + os.environ["LOCAL_RANK"], "a") as file:
        print(self.trainer.budget.to_dict(), weights, file=file)

trl._BudgetCallback.on_optimizer_step = logging
runpy.run_module("kullback", run_name="__main__")
"""


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A working directory with a module of rewards and a file of prompts."""
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"{a}+{a + 1}=", "answer": str(2 * a + 1)} for a in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(tiny: Path, **changes: Any) -> list[str]:
    options = {
        "model": tiny,
        "prompts": "prompts.jsonl",
        "reward": "my_rewards:longer",
        "watch": "my_rewards:equals_answer",
        "budget": 0.02,
        "unit": "token",
        "steps": 6,
        "output": "run",
        "evaluate-every": 3,
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    settings = {
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "gradient_checkpointing": "false",
        "save_steps": 2,
    }
    words = ["train", "grpo"]
    for key, value in options.items():
        if value is not None:
            words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return words + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "COLUMNS": "100"}


def kullback(words: list[str], workdir: Path) -> subprocess.CompletedProcess[str]:
    return run_in(workdir, [sys.executable, "-m", "kullback", *words])


def in_process(words: list[str], workdir: Path) -> int:
    """Run the command in this process, which saves the seconds of the imports."""
    from kullback.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workdir)
        patch.setattr(sys, "path", [str(workdir), *sys.path])
        patch.delitem(sys.modules, "my_rewards", raising=False)
        return main(words)


def run_in(workdir: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=workdir,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_and_the_output_of_a_run(workdir: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = kullback(command(tiny_model), workdir)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    run = workdir / "run"
    config = json.loads((run / "config.json").read_text())
    assert config["budget"].items() >= {"kind": "KLBudget", "target": 0.02, "unit": "token"}.items()
    assert config["rewards"] == ["longer"]
    assert config["watched"] == ["equals_answer"]
    assert config["versions"]["trl"] == version("trl")
    metrics = rows_of(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[0]["kl_policy_ref_per_token"] == 0.0
    assert metrics[-1]["kl_policy_ref_per_token"] > 0
    assert {"beta", "kl_filtered", "displacement_scale", "learning_rate_scale", "rewards/equals_answer"} <= metrics[
        -1
    ].keys()
    assert [row["step"] for row in rows_of(run / "evaluations.jsonl")] == [0, 3, 6]
    samples = json.loads((run / "samples.json").read_text())
    assert list(samples) == ["before", "step 3", "after"]
    assert [one["prompt"] for one in samples["before"]] == [one["prompt"] for one in samples["after"]]
    assert "nats per token" in (run / "report.html").read_text()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = AutoModelForCausalLM.from_pretrained(run / "model", use_safetensors=True)
    start = AutoModelForCausalLM.from_pretrained(tiny_model)
    changed = [not bool((a == b).all()) for a, b in zip(trained.parameters(), start.parameters(), strict=True)]
    assert any(changed)
    assert AutoTokenizer.from_pretrained(run / "model")("1+2=")["input_ids"]
    assert not [path for path in (run / "model").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert "step 6/6" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # plain lines if the output is not a terminal
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        keys = {re.sub("rewards/.*", "rewards/NAME", key) for row in rows_of(run / name) for key in row}
        assert keys <= documented_keys(), keys - documented_keys()
    assert in_process(command(tiny_model), workdir) == 2
    assert "already exists" in capsys.readouterr().err


def documented_keys() -> set[str]:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    return set(re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "absent"}, "--model absent: no such directory"),
        ({"prompts": "absent.jsonl"}, "--prompts absent.jsonl: no such file"),
        ({"prompts": "bad.jsonl"}, "line 2: not JSON"),
        ({"prompts": "unprompted.jsonl"}, 'line 1: expected the column "prompt"'),
        ({"reward": "my_rewards:gives_nan"}, "gives_nan gave nan for completion 0"),
        ({"reward": "my_rewards:too_few"}, "too_few returned 1 values for 40 completions"),
        ({"reward": "my_rewards:raises"}, "raises raised ValueError: no such column"),
        ({"reward": "my_rewards:absent"}, "has no function absent"),
        ({"budget": 0}, "> 0, got 0.0"),
        ({"budget": -0.1}, "> 0, got -0.1"),
        ({"steps": 0}, "--steps: expected 1 or more"),
        ({"set": "learning_rat=1"}, "the nearest is learning_rate"),
        ({"set": "num_generations=5"}, "GRPOConfig rejects these settings"),
        ({"resume": True}, "expected a run directory"),
        ({"watch": "my_rewards:longer"}, "rewards of different names"),
        ({"evaluate-every": -1}, "--evaluate-every"),
    ],
)
def test_invalid_input_gives_one_line_and_no_files(
    workdir: Path, tiny_model: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "bad.jsonl").write_text('{"prompt": "1+1="}\n{"prompt"\n')
    (workdir / "unprompted.jsonl").write_text('{"question": "1+1="}\n')
    words = command(tiny_model, **changes)
    if "set" in changes:  # the last setting takes precedence
        words += ["--set", changes["set"]]
    assert in_process(words, workdir) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (workdir / "run").exists()


def test_models_that_cannot_be_used_are_refused(
    workdir: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    without_tokenizer = tmp_path / "without-tokenizer"
    without_tokenizer.mkdir()
    for name in ("config.json", "model.safetensors"):
        (without_tokenizer / name).write_bytes((tiny_model / name).read_bytes())
    truncated = tmp_path / "truncated"
    truncated.mkdir()
    for path in tiny_model.iterdir():
        (truncated / path.name).write_bytes(path.read_bytes()[: 500 if path.suffix == ".safetensors" else None])
    cases = {pickled: "a pickle, which can run code", without_tokenizer: "no tokenizer", truncated: "does not load"}
    for model, message in cases.items():
        assert in_process(command(model), workdir) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (workdir / "run").exists()


def start(words: list[str], workdir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kullback", *words],
        cwd=workdir,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.is_file() and len(path.read_text().splitlines()) >= step:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


def test_a_killed_run_resumes_from_its_checkpoint(
    workdir: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(command(tiny_model, steps=12, output="whole"), workdir) == 0
    process = start(command(tiny_model, steps=12), workdir)
    wait_for_step(workdir / "run", 7, process)
    process.kill()
    process.communicate()
    assert not (workdir / "run" / "model").exists()
    capsys.readouterr()
    assert in_process([*command(tiny_model, steps=12, resume=True), "--json"], workdir) == 0
    assert json.loads(capsys.readouterr().out)["ended"] is True
    ours, theirs = rows_of(workdir / "run" / "metrics.jsonl"), rows_of(workdir / "whole" / "metrics.jsonl")
    assert [row["step"] for row in ours] == list(range(1, 13))
    assert [row["step"] for row in rows_of(workdir / "run" / "evaluations.jsonl")] == [0, 3, 6, 9, 12]
    # The controller and the random numbers are restored, so the runs agree up to the first batch with lost evaluations.
    betas = [[row["beta"] for row in rows] for rows in (ours, theirs)]
    assert betas[0][:8] == betas[1][:8]
    assert abs(betas[0][8] / betas[0][7] - 1) < 0.06  # it resumed and did not restart
    assert ours[7]["beta"] != ours[0]["beta"]
    assert in_process(command(tiny_model, steps=12, resume=True, budget=0.5), workdir) == 2
    assert "was started with budget" in capsys.readouterr().err


def test_ctrl_c_stops_after_the_step_with_a_checkpoint(workdir: Path, tiny_model: Path) -> None:
    process = start(command(tiny_model, steps=400), workdir)
    wait_for_step(workdir / "run", 3, process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    steps = [row["step"] for row in rows_of(workdir / "run" / "metrics.jsonl")]
    assert (workdir / "run" / "checkpoints" / f"checkpoint-{steps[-1]}").is_dir()
    assert "--resume" in out
    assert (workdir / "run" / "report.html").is_file()


def test_two_processes_share_one_budget(workdir: Path, tiny_model: Path) -> None:
    words = command(tiny_model, steps=30, budget=0.02)
    words[words.index("per_device_train_batch_size=16")] = "per_device_train_batch_size=8"
    (workdir / "states").mkdir()
    (workdir / "logging_run.py").write_text(LOGGING)
    # Without a GPU accelerate starts several processes only with --multi_gpu; they communicate by gloo.
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "logging_run.py"]
    done = run_in(workdir, [*launcher, *words])
    assert done.returncode == 0, done.stderr
    states = workdir / "states"
    first, second = ((states / rank).read_text().splitlines() for rank in "01")
    assert len(first) == 30
    assert first == second  # the state of the budget, including beta, and the weights
    metrics = rows_of(workdir / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 31))
    late = [row["kl_policy_ref_per_token"] for row in metrics[15:]]
    assert sum(late) / len(late) == pytest.approx(0.02, rel=0.3)
    assert rows_of(workdir / "run" / "evaluations.jsonl")[0]["count"] == 40


def test_two_processes_resume_as_if_they_had_not_stopped(workdir: Path, tiny_model: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "kullback"]

    for output, steps, resume in (("whole", 8, None), ("run", 4, None), ("run", 8, True)):
        words = command(tiny_model, steps=steps, output=output, resume=resume)
        words[words.index("per_device_train_batch_size=16")] = "per_device_train_batch_size=8"
        done = run_in(workdir, [*launcher, *words, "--set", "lr_scheduler_type=constant"])
        assert done.returncode == 0, done.stderr
    ours, theirs = rows_of(workdir / "run" / "metrics.jsonl"), rows_of(workdir / "whole" / "metrics.jsonl")
    times = ("seconds", "step_seconds")
    assert [{k: v for k, v in row.items() if k not in times} for row in ours] == [
        {k: v for k, v in row.items() if k not in times} for row in theirs
    ]
