"""SFT runs: the run directory, resuming, the decrease of forward KL, and one-line messages for invalid input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from kullback.cli import main
from kullback.errors import InputError
from kullback.runs.run_directory import RunDirectory
from kullback.train.prompts import read_examples
from kullback.train.sft import SFTPlan, _print_untrained_answers, train_sft

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b + (a == b))} for a in range(4) for b in range(4)] * 2
SETTINGS = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "gradient_checkpointing": False, "save_steps": 3}


def make_plan(model: Path, output: Path, steps: int = 6, **more: Any) -> SFTPlan:
    return SFTPlan(model, ROWS, steps, output, settings=SETTINGS, evaluation_rows=ROWS[:4], evaluate_every=3, **more)


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.slow
def test_a_resumed_run_is_identical_to_an_uninterrupted_run(tiny_model: Path, tmp_path: Path) -> None:
    # A constant learning rate, because the interrupted run has another number of steps.
    constant = {**SETTINGS, "lr_scheduler_type": "constant"}
    uninterrupted, resumed = (
        SFTPlan(tiny_model, ROWS, 6, tmp_path / name, settings=constant, evaluate_every=3) for name in ("one", "two")
    )
    assert train_sft(uninterrupted)
    assert train_sft(SFTPlan(tiny_model, ROWS, 3, tmp_path / "two", settings=constant, evaluate_every=3))
    with (resumed.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "seconds": 1.0}\n{"step": 5')
    assert train_sft(resumed, resume=True)
    runs = [RunDirectory(plan.output) for plan in (uninterrupted, resumed)]
    assert [row["step"] for row in runs[0].metrics()] == [1, 2, 3, 4, 5, 6]
    assert without_seconds(runs[0].metrics()) == without_seconds(runs[1].metrics())
    assert runs[0].evaluations() == runs[1].evaluations()
    models = [AutoModelForCausalLM.from_pretrained(run.model).state_dict() for run in runs]
    assert all(torch.equal(weight, models[1][name]) for name, weight in models[0].items())


@pytest.mark.slow
def test_forward_kl_decreases_and_is_measured_on_both_sets(tiny_model: Path, tmp_path: Path) -> None:
    assert train_sft(make_plan(tiny_model, tmp_path / "run", steps=60))
    rows = RunDirectory(tmp_path / "run").evaluations()
    assert [row["step"] for row in rows] == list(range(0, 61, 3))
    first, last = rows[0], rows[-1]
    # Equal prompts have equal completions, so that the entropy given the prefix is 0.
    assert first["train_entropy_floor_per_token"] == last["train_entropy_floor_per_token"] == 0.0
    assert last["train_forward_kl_per_token"] < 0.5 * first["train_forward_kl_per_token"]
    assert last["eval_forward_kl_per_token"] == pytest.approx(last["eval_cross_entropy_per_token"])


def test_the_command_writes_the_run_directory_that_it_reports(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data.jsonl", tmp_path / "run"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = ["--model", str(tiny_model), "--data", str(data), "--steps", "4", "--output", str(run), *settings]
    assert main(["train", "sft", *words, "--evaluate-every", "2", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["ended"]
    assert outcome["last"]["step"] == 4
    config = json.loads((run / "config.json").read_text())
    assert (config["kind"], config["examples"], config["data"]) == ("sft", 32, str(data))
    assert "KL(data || model)" in (run / "report.html").read_text()
    assert main(["train", "sft", *words]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["doctor", str(run)]) == 0
    assert "nothing found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('{"prompt": "1+1="}', [], "line 1: expected the column \"completion\", got 'prompt'"),
        ('{"prompt": "1+1=", "completion": ""}', [], 'line 1: expected "completion" to be text'),
        ("", [], "no rows"),
        ('{"prompt": "1", "completion": "2"}', ["--set", "learning_rat=1"], "SFTConfig has no learning_rat"),
        ('{"prompt": "1", "completion": "2"}', ["--steps", "0"], "--steps: expected 1 or more"),
        ('{"prompt": "1", "completion": "2"}', ["--max-examples", "0"], "--max-examples: expected 1 or more"),
        ('{"prompt": "1", "completion": "2"}', ["--evaluate", "absent.jsonl"], "--evaluate absent.jsonl: no such file"),
    ],
)
def test_invalid_input_gives_a_one_line_message(
    text: str, options: list[str], message: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(text)
    words = ["--model", str(tiny_model), "--data", str(data), "--output", str(tmp_path / "run")]
    words += [] if "--steps" in options else ["--steps", "1"]
    assert main(["train", "sft", *words, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_examples_may_be_chat_messages(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    prompt = '[{"role": "user", "content": "a"}]'
    path.write_text(f'{{"prompt": {prompt}, "completion": [{{"role": "assistant", "content": "b"}}]}}\n')
    assert read_examples(path)[0]["completion"] == [{"role": "assistant", "content": "b"}]
    with pytest.raises(InputError, match="no such file"):
        read_examples(tmp_path / "absent")


def test_earlier_answers_of_a_conversation_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    messages = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    path.write_text("".join(json.dumps({"messages": part}) + "\n" for part in (messages, messages[:2])))
    plan = SFTPlan(Path("model"), read_examples(path), 1, tmp_path / "run")
    _print_untrained_answers(plan)
    assert "--data: 1 of 2 examples have several messages of the assistant" in capsys.readouterr().err
    _print_untrained_answers(replace(plan, rows=plan.rows[1:]))
    assert capsys.readouterr().err == ""
