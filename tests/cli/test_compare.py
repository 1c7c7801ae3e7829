"""`kullback compare`: its table, its JSON, its exit statuses and invalid input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import kullback
from kullback.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model with changed weights."""
    directory = tmp_path_factory.mktemp("models") / "changed"
    shutil.copytree(tiny_model, directory)
    changed = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    changed.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    rows = [{"text": f"{a}+{b}={a + b}"} for a in range(8, 32, 3) for b in range(5, 95, 31)]
    (directory / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "long.txt").write_text("12+34=46" * 20)
    return directory


@pytest.fixture
def run(tiny_model: Path, model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command on the tiny model; `None` removes one of the default arguments."""

    def run(*words: object, models: list[object] | None = None, text: object = corpus) -> tuple[int, str, str]:
        given = [tiny_model, *([model] if models is None else models), "--text", text, *words]
        status = main(["compare", *map(str, given)])
        return status, *capsys.readouterr()

    return run


def test_the_table_has_the_numbers_of_the_python_api(run: Run, tiny_model: Path, model: Path, corpus: Path) -> None:
    status, output, errors = run("--floor", "bfloat16")
    assert status == 0
    assert f"{model} is above the floor (bfloat16): difference" in output
    comparison = kullback.compare(tiny_model, model, text=corpus, floor="bfloat16")
    assert str(comparison) == output.rstrip("\n")
    kl = comparison.models[0].metrics["kl"]
    row = next(line for line in output.splitlines() if line.startswith("KL(base || model)"))
    assert f"{kl.value:.4g} [{kl.interval[0]:.4g}, {kl.interval[1]:.4g}]" in row
    assert "tokens" in errors.splitlines()[-1]
    for label in ("Jensen-Shannon", "perplexity ratio", "RMS delta-p", "KL 99.9%", "base confidence", "digits"):
        assert label in output


def test_json_is_the_content_of_result_json(run: Run, tmp_path: Path) -> None:
    status, output, errors = run("--json", "--output", tmp_path / "run")
    assert (status, errors) == (0, "")
    assert json.loads(output) == json.loads((tmp_path / "run" / "result.json").read_text())


def test_a_finished_run_is_reported_again_by_resume(run: Run, tmp_path: Path) -> None:
    first = run("--output", tmp_path / "run")[1]
    status, output, errors = run("--output", tmp_path / "run", "--resume")
    assert (status, output, errors) == (0, first, "")
    assert "KL divergence from" in (tmp_path / "run" / "compare.html").read_text()


def test_the_exit_status_is_3_above_the_threshold(run: Run, model: Path) -> None:
    status, output, errors = run("--fail-above", "1e-6", "--json")
    kl = json.loads(output)["models"][0]["metrics"]["kl"]["value"]
    assert status == 3
    assert errors == f"kullback: {model}: {kl:.4g} nats per token exceed 1e-06\n"
    assert run("--fail-above", "50")[0] == 0


def test_the_card_has_hashes_and_intervals(run: Run, tiny_model: Path) -> None:
    status, output, _ = run("--card")
    assert status == 0
    assert output.startswith(f"### Distance from {tiny_model}")
    assert "| KL(base \\|\\| model), nats/token | " in output
    assert "SHA-256 of the tokens `" in output


def test_an_earlier_result_is_compared(run: Run, model: Path, tmp_path: Path, corpus: Path) -> None:
    run("--output", tmp_path / "run")
    _, output, _ = run("--against", tmp_path / "run")
    assert f"{model} and {model} (earlier)" in output
    assert "difference 0 [0, 0] nats per token." in output
    status, output, errors = run("--against", tmp_path / "run", "--context", "9")
    assert (status, output) == (2, "")
    assert "--against: expected a comparable result, but the context was 32, is 9" in errors
    status, _, errors = run("--against", corpus / "long.txt")
    assert status == 2
    assert "got no JSON" in errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--context", "0"], "--context: expected at least 2"),
        (["--fail-above", "-1"], "--fail-above: expected a finite number"),
        (["--fail-above", "nan"], "--fail-above: expected a finite number"),
        (["--resume"], "--resume: expected --output RUN"),
        (["--overwrite"], "--overwrite: expected --output RUN"),
        (["--json", "--card"], "not allowed with"),
        (["--dtype", "int4"], "expected one of auto, float32"),
        (["--adapter", "absent"], "--adapter absent: no such directory"),
        (["--format", "chat"], 'expected an object with "messages"'),
        (["--text", "absent"], "--text absent: no such file or directory"),
    ],
)
def test_invalid_input_is_one_line(run: Run, words: list[str], expected: str) -> None:
    status, output, errors = run(*words)
    assert (status, output) == (2, "")
    assert expected in errors
    assert errors.count("\n") == 1


def test_the_output_of_another_program_is_not_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep")
    status, _, errors = run("--output", tmp_path)
    assert status == 2
    assert "expected a new or an empty directory" in errors
    assert run("--output", tmp_path, "--overwrite")[0] == 2
    assert (tmp_path / "notes.txt").read_text() == "keep"


def test_control_characters_of_a_corpus_are_not_printed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("12+3\x1b[31m4=4\x07 6")
    status, output, _ = run(text=tmp_path / "a.txt")
    assert status == 0
    assert "\x1b" not in output
    assert "One document does not determine an interval" in output
