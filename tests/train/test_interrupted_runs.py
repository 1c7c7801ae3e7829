"""Runs that end early, fail, are resumed after their end, or meet damage: no work and no number is lost."""

import importlib.util
import json
import linecache
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kullback.cli import main
from kullback.errors import InputError
from kullback.runs.run_directory import RunDirectory
from kullback.train.sft import SFTPlan, train_sft
from kullback.train.trainer_callbacks import WriteMetrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

HAS_DISTILLATION = importlib.util.find_spec("trl.trainer.distillation_trainer") is not None
ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(4)]
COMMON = {"learning_rate": 1e-2, "gradient_checkpointing": False, "save_steps": 2, "lr_scheduler_type": "constant"}
SFT = {**COMMON, "per_device_train_batch_size": 8}
GRPO = {**COMMON, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 4}
DISTILL = {**COMMON, "per_device_train_batch_size": 8, "max_completion_length": 4}
PPO = {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 2, "save_every": 1}


def longer(completions: list[str], **_: Any) -> list[float]:
    return [len(text) / 4 for text in completions]


@pytest.fixture
def words(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The command of each recipe, in whose working directory the run directory is `run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "lengths.py").write_text(
        "def longer(completions, **_):\n    return [len(text) / 4 for text in completions]\n"
    )
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    shutil.copytree(tiny_model, "teacher")
    weights = load_file("teacher/model.safetensors")
    save_file({name: 1.2 * weight for name, weight in weights.items()}, "teacher/model.safetensors", {"format": "pt"})
    model = ["--model", str(tiny_model), "--output", "run", "--steps", "4"]
    grpo = ["train", "grpo", *model, "--prompts", "rows.jsonl", "--reward", "lengths:longer", "--evaluate-every", "0"]
    return {
        "grpo": [*grpo, *settings(GRPO)],
        "sft": ["train", "sft", *model, "--data", "rows.jsonl", "--evaluate-every", "0", *settings(SFT)],
        "distill": [
            *("train", "distill", *model, "--teacher", "teacher", "--prompts", "rows.jsonl"),
            *("--evaluate-every", "0", *settings(DISTILL)),
        ],
        "ppo": ["train", "ppo", "--env", "CartPole-v1", "--output", "run", "--steps", "128", *settings(PPO)],
        "vae": ["train", "vae", "--data", "digits", "--output", "run", "--steps", "4", "--hidden", "8"],
    }


def settings(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value).strip(chr(34))}")]


def contents(run: Path) -> dict[str, bytes]:
    """The files of a run, except for the report, which has the time."""
    paths = [path for path in run.rglob("*") if path.is_file() and path.name != "report.html"]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def without_progress(error: str) -> str:
    """The lines of standard error that are not lines of progress."""
    progress = ("run  step ", "--steps ")
    return "".join(line for line in error.splitlines(keepends=True) if not line.startswith(progress))


def with_option(words: list[str], option: str, value: str) -> list[str]:
    index = words.index(option)
    return [*words[: index + 1], value, *words[index + 2 :]]


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT, *, times: int = 1) -> None:
    """Send a signal to this process after the metrics of a step were written."""
    add = RunDirectory.add_metrics

    def add_and_stop(self: RunDirectory, row: dict[str, Any]) -> None:
        add(self, row)
        if row["step"] == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    monkeypatch.setattr(RunDirectory, "add_metrics", add_and_stop)


RECIPES = [
    "grpo",
    pytest.param("distill", marks=pytest.mark.skipif(not HAS_DISTILLATION, reason="TRL 1.14 has no such trainer")),
    "sft",
    "ppo",
    "vae",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_finished_run_is_not_changed_by_a_resumption(
    recipe: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words[recipe]) == 0
    before = contents(Path("run"))
    steps = "64" if recipe == "ppo" else "2"
    for command in (words[recipe], with_option(words[recipe], "--steps", steps)):
        capsys.readouterr()
        assert main([*command, "--resume"]) == 0
        output = capsys.readouterr().out
        assert f"{steps}/" not in output
        assert "metric" in output
        assert contents(Path("run")) == before
    assert {"checksums.json", "training.json"} <= {Path(name).name for name in before}
    # A process that was killed before it saved the model.
    for name in list(before):
        if name.startswith("model/"):
            (Path("run") / name).unlink()
    (Path("run") / "model").rmdir()
    assert main([*words[recipe], "--resume"]) == 0
    after = contents(Path("run"))
    assert after.keys() == before.keys()
    assert after["metrics.jsonl"] == before["metrics.jsonl"]
    weights = [load_file(Path("run") / "model" / "model.safetensors")]
    Path("w.safetensors").write_bytes(before["model/model.safetensors"])
    weights.append(load_file("w.safetensors"))
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


@pytest.mark.usefixtures("hangup_is_not_ignored")
@pytest.mark.parametrize(("recipe", "number"), [
    ("grpo", signal.SIGINT), ("sft", signal.SIGTERM), ("ppo", signal.SIGHUP), ("vae", signal.SIGTERM)
])  # fmt: skip
def test_a_signal_saves_a_checkpoint_and_the_run_is_evaluated(
    recipe: str,
    number: int,
    words: dict[str, list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # transformers writes the metrics after it has checked for a stop, so that one more step follows.
    step = {"ppo": 96, "vae": 3}.get(recipe, 2)
    with monkeypatch.context() as patch:
        stop_after(patch, step, number)
        assert main([*words[recipe], "--json"]) == 130
    outcome = json.loads(capsys.readouterr().out)
    run = RunDirectory(Path("run"))
    last = run.metrics()[-1]["step"]
    evaluation = outcome["last"]["run"] if recipe == "vae" else outcome["last"]
    assert evaluation["step"] == last
    assert step <= last < step + 2
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{last}"
    assert not run.model.exists()
    assert main([*words[recipe], "--resume"]) == 0
    assert run.metrics()[-1]["step"] == (128 if recipe == "ppo" else 4)
    assert "as of" not in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["sft", "ppo", "vae"])
def test_a_second_interrupt_ends_at_once_and_the_run_can_be_resumed(
    recipe: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 96 if recipe == "ppo" else 3, times=2)
        assert main(words[recipe]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert without_progress(captured.err) == "kullback: interrupted\n"
    assert not (Path("run") / "model").exists()
    assert main([*words[recipe], "--resume"]) == 0
    steps = [row["step"] for row in RunDirectory(Path("run")).metrics()]
    assert steps == ([32, 64, 96, 128] if recipe == "ppo" else [1, 2, 3, 4])
    # A run of which no checkpoint is left starts again, and a line states it.
    again = "the run has no checkpoint, and starts again from its first step" in capsys.readouterr().err
    assert again == (recipe == "vae")


def test_a_resumed_ppo_run_states_that_the_environments_were_reset(
    words: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*words["ppo"], "--set", "save_every=2"]
    for step, is_due in ((32, False), (64, True)):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            assert main([*command, "--overwrite"]) == 130
        capsys.readouterr()
        assert main([*command, "--resume"]) == 0
        error = without_progress(capsys.readouterr().err)
        assert (f"the run stopped at step {step}, at which no checkpoint was due" in error) != is_due
        assert error.count("\n") == (0 if is_due else 1)


def test_the_columns_of_a_resumed_run_are_compared(
    words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["--prompt-column", "completion", "--completion-column", "prompt"]
    assert main([*words["sft"], *columns]) == 0
    assert main([*words["sft"], *columns, "--resume"]) == 0
    capsys.readouterr()
    assert main([*words["sft"], "--resume"]) == 2
    assert 'prompt_column "completion", got not set' in capsys.readouterr().err
    assert main([*words["sft"], "--overwrite", "--completion-column", "prompt"]) == 2
    assert "expected different columns, got 'prompt' twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("temperature=1e-300", "before step 1: expected finite outputs of the model"),
        ("learning_rate=1e30", r"step \d: expected finite (outputs of the model|gradients|weights)"),
        ("torch_compile=true", "torch_compile cannot be set with --set"),
        ("torch_compile_backend=inductor", "torch_compile_backend cannot be set with --set"),
    ],
)
def test_settings_that_make_the_outputs_infinite_give_one_line(
    setting: str, message: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words["grpo"], "--set", setting]) == 2
    error = without_progress(capsys.readouterr().err)
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert "defect" not in error


def test_completions_can_be_logged(words: dict[str, list[str]]) -> None:
    assert main([*with_option(words["grpo"], "--steps", "1"), "--set", "log_completions=true", "--json"]) == 0
    assert list(Path("run/checkpoints/completions").glob("*.parquet"))


def test_an_old_evaluation_is_marked(words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words["vae"]) == 0
    run = RunDirectory(Path("run"))
    rows = run.evaluations()
    (run.path / "evaluations.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert main([*words["vae"], "--resume"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if "distortion" in line][-1]
    assert "(as of step 0)" in table
    assert "→" not in table


def test_damaged_files_of_a_finished_run_give_a_table_or_one_line(
    words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words["vae"]) == 0
    run = Path("run")
    damages = {
        "metrics.jsonl": ['{"step": 4}', '{"step": 4, "seconds": "x"}', '{"step": 4, "beta": {}, "seconds": []}', ""],
        "evaluations.jsonl": ["", '{"step": 4}', '{"step": 4, "distortion": "x", "kl_latents": 3}'],
        "pictures.json": [
            '{"after": 3}',
            '{"after": [3]}',
            '{"after": [{}]}',
            '{"after": [{"title": "", "images": 2}]}',
        ],
        "model/training.json": ["{", "{}", '{"step": "4"}'],
    }
    refused = set()
    for name, contents_of_file in damages.items():
        intact = (run / name).read_bytes()
        for content in contents_of_file:
            (run / name).write_text(content + "\n" if content else "")
            capsys.readouterr()
            status = main([*words["vae"], "--resume"])
            captured = capsys.readouterr()
            error = captured.err
            if status == 2:
                assert error.startswith("kullback: "), content
                assert error.count("\n") == 1
                assert re.search(name if "training" in name else r"pictures\.json|cannot be shown", error)
                refused.add(name)
            else:
                assert (status, error) == (0, "")
                assert "steps" in captured.out
                # The value before training is not known if its row is lost.
                assert "distortion" not in captured.out or "- → " in captured.out or name != "evaluations.jsonl"
        (run / name).write_bytes(intact)
    assert refused == {"pictures.json", "model/training.json"}


def test_a_lost_model_is_saved_again_and_a_model_without_checkpoints_is_kept(
    words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words["vae"]) == 0
    weights = Path("run/model/model.safetensors")
    intact = weights.read_bytes()
    weights.unlink()
    assert main([*words["vae"], "--resume"]) == 0
    assert "model is damaged: model.safetensors is missing; it is saved again" in capsys.readouterr().err
    assert weights.read_bytes() == intact
    shutil.rmtree("run/checkpoints")
    assert main([*with_option(words["vae"], "--steps", "6"), "--resume"]) == 2
    assert "expected a checkpoint to continue from, found none" in capsys.readouterr().err
    assert weights.read_bytes() == intact


@pytest.mark.parametrize("extra", [{"num_iterations": 2}, {"steps_per_generation": 4, "save_steps": 3}])
def test_every_optimizer_step_has_a_row(extra: dict[str, Any], words: dict[str, list[str]]) -> None:
    assert main([*with_option(words["grpo"], "--steps", "5"), *settings(extra)]) == 0
    rows = RunDirectory(Path("run")).metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["kl_policy_ref_per_token"] is not None and "loss" in row for row in rows)
    assert "reward" in rows[0]
    assert "reward" not in rows[1]  # this step reuses the completions of the first step


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_locked_run_directory_is_refused(
    recipe: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    from kullback.runs.lock import run_lock

    with run_lock(Path("run")):
        before = contents(Path("run"))
        assert main(words[recipe]) == 2
        assert contents(Path("run")) == before
    error = without_progress(capsys.readouterr().err)
    assert f"process {os.getpid()}" in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_damaged_newest_checkpoint_is_replaced_by_the_earlier_one(
    recipe: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, {"ppo": 96, "vae": 3}.get(recipe, 2))
        if recipe == "vae":  # the option that sets the interval is not public
            from kullback.train.vae.train import LatentPlan

            patch.setattr(LatentPlan, "save_every", 2)
            patch.setattr(LatentPlan.__init__, "__defaults__", tuple(
                2 if value == 500 else value for value in LatentPlan.__init__.__defaults__ or ()
            ))  # fmt: skip
        assert main(words[recipe]) == 130
    run = RunDirectory(Path("run"))
    newest = run.last_checkpoint()
    assert newest is not None
    damaged = max(newest.glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-8])
    capsys.readouterr()
    assert main([*words[recipe], "--resume"]) == 0
    error = without_progress(capsys.readouterr().err)
    assert f"{newest.name} is damaged: {damaged.name} differs from its checksum" in error
    steps = [row["step"] for row in run.metrics()]
    assert steps == ([32, 64, 96, 128] if recipe == "ppo" else [1, 2, 3, 4])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_failed_start_leaves_no_files_and_overwrite_replaces_a_run(
    recipe: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise InputError("the first step fails")

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "add_metrics", fail)
        assert main(words[recipe]) == 2
        assert not Path("run").exists()
    assert main(words[recipe]) == 0
    (Path("run") / "notes.txt").write_text("mine")
    before = contents(Path("run"))
    assert main(words[recipe]) == 2
    assert "--overwrite" in without_progress(capsys.readouterr().err)
    assert main([*words[recipe], "--overwrite", "--seed", "-1"]) == 2
    assert contents(Path("run")) == before
    assert main([*words[recipe], "--overwrite", "--seed", "5"]) == 0
    assert RunDirectory(Path("run")).config()["seed"] == 5
    assert (Path("run") / "notes.txt").read_text() == "mine"
    Path("other").mkdir()
    (Path("other") / "thesis.txt").write_text("mine")
    assert main([*with_option(words[recipe], "--output", "other"), "--overwrite"]) == 2
    assert [path.name for path in Path("other").iterdir()] == ["thesis.txt"]


def test_overwrite_does_not_delete_the_model_of_the_run(
    words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words["sft"]) == 0
    assert main([*with_option(words["sft"], "--model", "run/model"), "--overwrite"]) == 2
    assert "expected a path outside of --output run" in without_progress(capsys.readouterr().err)
    assert (Path("run") / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_full_disk_gives_one_line_and_keeps_the_last_checkpoint(
    recipe: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = "64" if recipe == "ppo" else "2"
    assert main(with_option(words[recipe], "--steps", step)) == 0
    run = RunDirectory(Path("run"))
    model = contents(run.model)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    capsys.readouterr()
    with monkeypatch.context() as patch:
        for name in ("kullback.train.trainer_callbacks", "kullback.runs.checkpoint"):
            patch.setattr(f"{name}.write_checksums", full)
        assert main([*words[recipe], "--resume"]) == 2
    error = without_progress(capsys.readouterr().err)
    assert error == "kullback: run: cannot be written: No space left on device; free some space, and continue with " \
        "--resume if the run has a checkpoint\n"  # fmt: skip
    assert max(path.name for path in run.checkpoints.glob("*checkpoint*")) == f"checkpoint-{step}"
    assert contents(run.model) == model
    assert main([*words[recipe], "--resume"]) == 0


def test_a_full_disk_at_the_report_gives_one_line_and_keeps_the_model(
    words: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kullback.explore.run_tables.write_run_report", full)
        assert main(words["vae"]) == 2
    error = without_progress(capsys.readouterr().err)
    assert "report.html: cannot be written: No space left on device; free some space, and repeat the command" in error
    assert error.count("\n") == 1
    assert main([*words["vae"], "--resume"]) == 0
    assert Path("run/report.html").is_file()


@pytest.mark.parametrize("recipe", ["sft", "vae"])
def test_an_ascii_output_loses_nothing(
    recipe: str, words: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(words[recipe]) == 0
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "->" in text
    assert "?" not in text
    assert Path("run/report.html").is_file()


@pytest.mark.parametrize("recipe", ["grpo", "sft"])
def test_a_model_with_a_weight_of_nan_is_refused(
    recipe: str, words: dict[str, list[str]], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "nan"
    model.mkdir()
    for path in tiny_model.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert main(with_option(words[recipe], "--model", str(model))) == 2
    error = without_progress(capsys.readouterr().err)
    assert error == "kullback: before step 1: expected finite weights, got nan at index 3 of model.norm.weight\n"
    assert not Path("run").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_stops_at_the_first_gradient_that_is_not_finite(
    recipe: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = "64" if recipe == "ppo" else "2"
    assert main(with_option(words[recipe], "--steps", step)) == 0
    backward, calls = torch.Tensor.backward, []

    def diverge(self: torch.Tensor, *arguments: Any, **options: Any) -> None:
        calls.append(None)
        backward(self * float("nan"), *arguments, **options)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", diverge)
        assert main([*words[recipe], "--resume"]) == 2
    error = without_progress(capsys.readouterr().err)
    assert error.startswith(f"kullback: step {96 if recipe == 'ppo' else 3}: expected finite gradients, got nan at ")
    assert error.count("\n") == 1
    run = RunDirectory(Path("run"))
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step}"
    assert len(calls) == 1
    assert main([*words[recipe], "--resume"]) == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_that_grow_without_bound_stop_the_run(
    recipe: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    rate = ["--learning-rate", "0.9999", "--steps", "60"] if recipe == "vae" else settings({"learning_rate": 1e30})
    assert main([*words[recipe], *rate]) == 2
    error = without_progress(capsys.readouterr().err)
    assert error.startswith("kullback: step ")
    assert error.count("\n") == 1
    assert not (Path("run") / "model").exists()


@pytest.mark.parametrize("recipe", ["grpo", "sft"])
def test_outputs_that_are_not_finite_after_the_last_step_name_the_step(
    recipe: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    last_step = ["--steps", "1", "--evaluate-every", "0"]
    assert main([*words[recipe], *last_step, *settings({"learning_rate": 1e30})]) == 2
    error = without_progress(capsys.readouterr().err)
    assert error.startswith("kullback: step 1: ")
    assert error.count("\n") == 1


def test_the_first_weight_that_is_not_finite_is_named(
    words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words["sft"], *settings({"learning_rate": 3e38, "weight_decay": 100, "optim": "sgd"})]) == 2
    assert "kullback: step 1: expected finite weights, got " in without_progress(capsys.readouterr().err)


def test_a_run_in_another_thread_has_no_signal_handlers(tiny_model: Path, tmp_path: Path) -> None:
    results: list[Any] = []
    plan = SFTPlan(tiny_model, ROWS, 1, tmp_path / "run", settings=SFT, evaluate_every=0)
    thread = threading.Thread(target=lambda: results.append(train_sft(plan)))
    thread.start()
    thread.join()
    assert results == [True]


def test_the_logs_of_an_evaluation_are_not_rows(tmp_path: Path) -> None:
    class State:
        is_world_process_zero = True
        global_step = 3

    run = RunDirectory(tmp_path)
    shown: list[Any] = []
    progress: Any = type("Progress", (), {"show": lambda _, row: shown.append(row)})()
    callback = WriteMetrics(run, {"loss": "loss"}, progress)
    callback.on_log(None, State(), None, logs={"eval_loss": 1.0})
    callback.on_log(None, State(), None, logs={"train_loss": 1.0})
    assert run.metrics() == shown == []
    callback.on_log(None, State(), None, logs={"loss": 1.0})
    assert [row["step"] for row in run.metrics()] == [3]


CHANGED_INPUTS = {
    "the prompts": ("grpo", "rows.jsonl", "prompts"),
    "the reward": ("grpo", "lengths.py", "reward longer"),
    "the model": ("grpo", "base/model.safetensors", "model"),
    "the prompts of a distillation": ("distill", "rows.jsonl", "prompts"),
    "the teacher": ("distill", "teacher/model.safetensors", "teacher"),
    "the examples": ("sft", "rows.jsonl", "examples"),
    "the model of an adapter": ("sft", "base/model.safetensors", "model"),
    "the images": ("vae", "images.npy", "images"),
}


@pytest.mark.parametrize("name", CHANGED_INPUTS)
def test_a_resumption_with_changed_inputs_is_refused(
    name: str, words: dict[str, list[str]], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metrics before and after would be of different inputs."""
    recipe, changed, words_of_message = CHANGED_INPUTS[name]
    if recipe == "distill" and not HAS_DISTILLATION:
        pytest.skip("TRL 1.14 has no such trainer")
    shutil.copytree(tiny_model, "base")
    np.save("images.npy", np.random.default_rng(0).random((40, 8, 8), np.float32))
    command = with_option(words[recipe], *(("--data", "images.npy") if recipe == "vae" else ("--model", "base")))
    command += ["--lora", "r=2"] if name == "the model of an adapter" else []
    assert main(command) == 0
    if changed.endswith(".safetensors"):
        weights = {key: weight + 0.01 for key, weight in load_file(changed).items()}
        save_file(weights, changed, {"format": "pt"})
    elif changed.endswith(".npy"):
        np.save(changed, np.load(changed) * np.float32(0.5))
    else:
        text = Path(changed).read_text()
        Path(changed).write_text(text.replace("+", "-").replace("/ 4", "/ 8"))
        sys.modules.pop("lengths", None)
    linecache.clearcache()
    before = contents(Path("run"))
    capsys.readouterr()
    assert main([*with_option(command, "--steps", "6"), "--resume"]) == 2
    error = capsys.readouterr().err
    assert re.search(f'started with other contents of the {words_of_message}: SHA-256 "[0-9a-f]{{16}}", got', error)
    assert contents(Path("run")) == before
