"""Distillation runs: the run directory, resuming, the decrease of the divergence, and one-line messages."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("trl.trainer.distillation_trainer", reason="TRL 1.14 has no such trainer")

from kullback.cli import main
from kullback.errors import InputError
from kullback.policy.distillation import logit_divergence
from kullback.runs.metrics import metrics_of
from kullback.runs.run_directory import RunDirectory
from kullback.train.distill import DistillPlan, train_distill
from kullback.train.distill_evaluation import DistillationEvaluation

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(4)]
SETTINGS = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "gradient_checkpointing": False,
    "save_steps": 3,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 4,
    "lr_scheduler_type": "constant",
}


@pytest.fixture(scope="module")
def teacher(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "teacher"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.15 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


def words(*models: Path, run: Path, **more: Any) -> list[str]:
    settings = [word for key, value in (SETTINGS | more).items() for word in ("--set", f"{key}={value}")]
    data = run.parent / "rows.jsonl"
    if not data.exists():
        data.write_text("\n".join(map(json.dumps, ROWS)))
    files = ["--model", str(models[0]), "--teacher", str(models[1]), "--prompts", str(data)]
    return ["train", "distill", *files, "--output", str(run), *settings]


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["reverse", "skew_forward"])
def test_the_divergence_decreases(divergence: Any, tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    plan = DistillPlan(
        tiny_model, teacher, ROWS, 60, tmp_path / "run", divergence, settings=SETTINGS, evaluate_every=0
    )  # fmt: skip
    assert train_distill(plan)
    first, last = RunDirectory(tmp_path / "run").evaluations()
    assert last["divergence_per_token"] < 0.5 * first["divergence_per_token"]
    assert last["entropy"] > 0


def test_the_command_writes_the_run_directory_that_it_reports(
    tiny_model: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = [*words(tiny_model, teacher, run=run), "--steps", "2"]
    assert main([*command, "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["ended"]
    assert outcome["last"]["step"] == 2
    config = json.loads((run / "config.json").read_text())
    assert (config["kind"], config["teacher"], config["divergence"]) == ("distill", str(teacher), "reverse")
    known = metrics_of("distill")
    directory = RunDirectory(run)
    assert all(row.keys() <= known.keys() for row in (*directory.metrics(), *directory.evaluations()))
    assert "KL(student || teacher)" in (run / "report.html").read_text()
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["doctor", str(run)]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert main([*words(tiny_model, run / "model", run=run), "--steps", "2", "--overwrite"]) == 2
    assert "--teacher" in capsys.readouterr().err


def test_an_adapter_is_trained_on_given_completions(
    tiny_model: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "2", "--off-policy", "--lora", "r=2", "--divergence", "forward"]
    assert main([*words(tiny_model, teacher, run=tmp_path / "run"), *options]) == 0
    assert "divergence of the loss" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()
    evaluation = RunDirectory(tmp_path / "run").evaluations()[0]
    assert evaluation["completion_length"] == sum(len(row["completion"]) + 1 for row in ROWS) / len(ROWS)


@pytest.mark.parametrize("divergence", ["reverse", "generalized_js"])
def test_the_evaluation_equals_the_average_over_tokens(divergence: Any, tiny_model: Path, teacher: Path) -> None:
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (teacher, tiny_model)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side="left")
    rows = [{"prompt": "1+2=", "completion": "3"}, {"prompt": "13+24=", "completion": "37"}]
    weight = None if divergence == "reverse" else 0.3
    evaluation = DistillationEvaluation(rows, tokenizer, 8, 0.7, divergence, weight, off_policy=True)
    row, _ = evaluation.measure(models[1], models[0], step=0)
    values, reverse = [], []
    for example in rows:
        prompt, completion = (tokenizer(example[name])["input_ids"] for name in ("prompt", "completion"))
        ids = torch.tensor([[*prompt, *completion, tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = [model(ids).logits[0, len(prompt) - 1 : -1].double() / 0.7 for model in models]
        values += logit_divergence(*logits, divergence, weight=weight).tolist()
        reverse += logit_divergence(*logits, "reverse").tolist()
    assert row["divergence_per_token"] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert row["kl_student_teacher_per_token"] == pytest.approx(sum(reverse) / len(reverse), rel=1e-5)


def test_teachers_that_cannot_be_used_are_refused(
    tiny_model: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["x"])
    tokenizer.save_pretrained(other)
    run = tmp_path / "run"
    for path, message in (
        (other, f"--teacher {other}: expected a teacher with the student's vocabulary"),
        (tmp_path / "absent", f"--teacher {tmp_path / 'absent'}: no such directory"),
    ):
        assert main([*words(tiny_model, path, run=run), "--steps", "1"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not run.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps: expected 1 or more"),
        (["--weight", "0.2"], "--weight: expected --divergence to be one of skew_forward"),
        (["--weight", "1", "--divergence", "skew_forward"], "--weight: expected a number between 0 and 1, got 1.0"),
        (["--weight", "nan", "--divergence", "skew_forward"], "--weight: expected a number between 0 and 1, got nan"),
        (["--completion-column", "answer"], "--completion-column: expected --off-policy as well"),
        (["--off-policy", "--completion-column", "answer"], 'expected the column "answer"'),
        (["--set", "beta=0.5"], "--divergence"),
        (["--set", "max_completion_length=60"], "the model has 32 positions"),
        (["--set", "learning_rat=1"], "DistillationConfig has no learning_rat"),
        (["--evaluate", "absent.jsonl"], "--evaluate absent.jsonl: no such file"),
    ],
)
def test_invalid_input_gives_a_one_line_message(
    options: list[str], message: str, tiny_model: Path, teacher: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    steps = [] if "--steps" in options else ["--steps", "1"]
    assert main([*words(tiny_model, teacher, run=run), *steps, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not run.exists()


def test_plans_are_checked(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    prompts = [{"prompt": "1+2="}]
    for more, message in (
        ({"divergence": "backward"}, "--divergence: expected one of"),
        ({"weight": 0.0, "divergence": "skew_forward"}, "--weight: expected a number between 0 and 1"),
        ({"weight": 0.1, "divergence": "js"}, "--weight: expected --divergence to be one of skew_forward"),
        ({"off_policy": True}, "--off-policy: expected rows with a completion"),
    ):
        with pytest.raises(InputError, match=message):
            train_distill(DistillPlan(tiny_model, teacher, prompts, 1, tmp_path / "run", **more))


@pytest.mark.slow
def test_an_interrupt_saves_a_checkpoint_and_the_run_can_be_resumed(
    tiny_model: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = tmp_path / "run"
    command = [*words(tiny_model, teacher, run=run), "--steps", "5", "--off-policy", "--json"]
    add = RunDirectory.add_metrics

    def add_and_stop(self: RunDirectory, row: dict[str, Any]) -> None:
        add(self, row)
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "add_metrics", add_and_stop)
        assert main(command) == 130
    outcome = json.loads(capsys.readouterr().out)
    assert not outcome["ended"]
    assert outcome["last"]["step"] == RunDirectory(run).metrics()[-1]["step"] < 5
    assert not (run / "model").exists()
    assert main([*command, "--resume"]) == 0
    assert [row["step"] for row in RunDirectory(run).metrics()] == [1, 2, 3, 4, 5]
    finished = (run / "metrics.jsonl").read_bytes()
    shutil.rmtree(run / "model")  # a process that was killed before it saved the model
    assert main([*command, "--resume"]) == 0
    assert (run / "model" / "model.safetensors").is_file()
    assert (run / "metrics.jsonl").read_bytes() == finished
    capsys.readouterr()
    assert main([*command, "--resume", "--divergence", "forward"]) == 2
    assert "divergence" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--divergence", "forward"]) == 0
    assert RunDirectory(run).config()["divergence"] == "forward"


def test_arguments_are_checked_before_libraries_are_imported(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    command = [*words(tiny_model, teacher, run=tmp_path / "run"), "--steps", "1"]
    extra = [
        ["--weight", "2"], ["--teacher", "nope"], ["--model", "nope"], ["--prompts", "nope.jsonl"], ["--resume"],
        ["--set", "learning_rat=1"], ["--completion-column", "x"], ["--divergence", "nope"],
    ]  # fmt: skip
    code = (
        "import sys\nfrom kullback.cli import main\n"
        f"for words in {[[*command, *more] for more in extra]!r}:\n    assert main(words) == 2, words\n"
        "    found = [name for name in ('torch', 'transformers', 'trl', 'datasets') if name in sys.modules]\n"
        "    assert not found, (words, found)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_padding_of_the_teacher_is_left_out(
    tiny_model: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    padded = tmp_path / "padded"
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.resize_token_embeddings(20, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[14:] = 50.0  # these tokens would dominate the softmax
    model.save_pretrained(padded)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(padded)
    runs = [tmp_path / name for name in ("plain", "of_padded")]
    for run, path in zip(runs, (teacher, padded), strict=True):
        assert main([*words(tiny_model, path, run=run), "--steps", "1"]) == 0
    rows = [[{**row, "step_seconds": 0, "seconds": 0} for row in RunDirectory(run).metrics()] for run in runs]
    assert rows[0] == rows[1]
    evaluations = [RunDirectory(run).evaluations() for run in runs]
    assert evaluations[0] == evaluations[1]
    capsys.readouterr()
    assert main([*words(padded, teacher, run=tmp_path / "third"), "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert "expected logits of at least 20 tokens as of the student, got 14; remove the padding of the student" in error
    assert not (tmp_path / "third").exists()


def test_a_teacher_with_nan_is_named(
    tiny_model: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "nan")
    assert main([*words(tiny_model, tmp_path / "nan", run=tmp_path / "run"), "--steps", "1"]) == 2
    assert f"--teacher {tmp_path / 'nan'}: before step 1: expected finite weights" in capsys.readouterr().err
