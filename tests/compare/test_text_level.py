"""Models with different tokenizers are compared by the log-likelihoods of whole texts, never by a KL of tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kullback.cli import main
from kullback.compare.text_level import TextLevelComparison, compare_text_level
from kullback.errors import InputError

from ..oracles.tiny_gguf import byte_model

TEXTS = ["12+34=46", "9+9=18", "100+200=300 and 7", "5", "1+1=2" * 12]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has bytes and a few merges; the tokens of `tiny_model` are characters."""
    directory = tmp_path_factory.mktemp("text") / "bytes"
    byte_model(directory)
    return directory


@torch.no_grad()
def brute_force(directory: Path, text: str, context: int) -> float:
    """-log2 p(text), from the logits of one prefix at a time, with windows that overlap by one token."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    room, total = context - 1, 0.0
    for index, token in enumerate(ids):
        window = 0 if index < room else (index - 1) // (room - 1)
        first = window * (room - 1)
        prompt = torch.tensor([[begin, *ids[first:index]]])
        logits = model(prompt).logits[0, -1, : len(tokenizer)].double()
        total -= float(logits.log_softmax(-1)[token]) / np.log(2)
    return total


@pytest.fixture(scope="module")
def comparison(tiny_model: Path, byte_level: Path) -> TextLevelComparison:
    return compare_text_level(str(tiny_model), [str(byte_level)], text=TEXTS, context=24)


def test_the_bits_of_each_document_equal_brute_force(
    comparison: TextLevelComparison, tiny_model: Path, byte_level: Path
) -> None:
    bits = {str(path): [brute_force(path, text, 24) for text in TEXTS] for path in (tiny_model, byte_level)}
    sizes = np.array([len(text.encode()) for text in TEXTS])
    for row, size, number in zip(comparison.by_document(), sizes, range(len(TEXTS)), strict=True):
        assert row["bytes"] == size
        for name, value in row["bits_per_byte"].items():
            assert value == pytest.approx(bits[name][number] / size, rel=1e-5), (name, number)
    for model in (comparison.base, *comparison.models):
        total = sum(bits[model.name])
        assert model.bits_per_byte.value == pytest.approx(total / sizes.sum(), rel=1e-5)
        assert model.log_likelihood == pytest.approx(-total * np.log(2), rel=1e-5)
    tokens = [
        len(AutoTokenizer.from_pretrained(byte_level)(text, add_special_tokens=False)["input_ids"]) for text in TEXTS
    ]
    assert comparison.models[0].tokens == sum(tokens)


def test_the_difference_is_paired_by_document(
    comparison: TextLevelComparison, tiny_model: Path, byte_level: Path
) -> None:
    pair = comparison.differences()[str(byte_level)]
    sizes = np.array([len(text.encode()) for text in TEXTS])
    differences = np.array([brute_force(byte_level, text, 24) - brute_force(tiny_model, text, 24) for text in TEXTS])
    assert pair.difference.value == pytest.approx(differences.sum() / sizes.sum(), rel=1e-5)
    left_out = [np.delete(differences, out).sum() / np.delete(sizes, out).sum() for out in range(len(TEXTS))]
    variance = (len(TEXTS) - 1) / len(TEXTS) * sum((value - pair.difference.value) ** 2 for value in left_out)
    assert pair.difference.std_error == pytest.approx(np.sqrt(variance), rel=1e-4)


def test_the_result_is_labelled_and_has_no_kl(comparison: TextLevelComparison) -> None:
    assert "not the KL divergence of tokens" in str(comparison).splitlines()[0]
    result = comparison.to_dict()
    assert result["level"] == "text"
    assert "kl" not in {key for model in result["models"] for key in model}
    assert "KL(" not in str(comparison)


def test_the_command_stores_continues_and_compares_with_an_earlier_result(
    tiny_model: Path, byte_level: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = ["compare", str(tiny_model), str(byte_level), "--text", str(tmp_path / "a.jsonl"), "--text-level"]
    run = tmp_path / "run"
    assert main([*words, "--output", str(run)]) == 0
    output, errors = capsys.readouterr()
    assert "bits per byte" in output
    assert "minus the base, paired" in output
    assert "bytes" in errors.splitlines()[-1]
    whole = (run / "result.json").read_bytes()
    lines = (run / "parts-0.jsonl").read_bytes().splitlines(keepends=True)
    (run / "parts-0.jsonl").write_bytes(b"".join(lines[:7]) + b'{"block"')
    assert main([*words, "--output", str(run), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(whole)
    assert main([*words, "--against", str(run), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["differences"]
    assert [one["model"] for one in found] == [str(byte_level), f"{byte_level} (earlier)"]
    assert found[0]["difference"] == found[1]["difference"]
    (tmp_path / "a.jsonl").write_text('{"text": "other"}')
    assert main([*words, "--against", str(run)]) == 2
    assert "the hash of the texts was" in capsys.readouterr().err


def test_tokens_of_these_models_are_not_compared(
    tiny_model: Path, byte_level: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    assert main(["compare", str(tiny_model), str(byte_level), "--text", str(tmp_path / "a.txt")]) == 2
    assert "the KL divergence of tokens requires one vocabulary" in capsys.readouterr().err


def test_a_tokenizer_that_changes_the_text_is_reported(tiny_model: Path, byte_level: Path) -> None:
    found = compare_text_level(str(byte_level), [str(tiny_model)], text=["12 cats", "3+4=7"])
    assert any(
        "does not reproduce 1 of 2 documents" in warning and str(tiny_model) in warning for warning in found.warnings
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--floor", "bfloat16"], "--floor: expected a comparison of tokens, got --text-level"),
        (["--fail-above", "1"], "--fail-above: expected a comparison of tokens"),
        (["--bos", "never"], "--bos: expected auto"),
        (["--context", "2"], "--context: expected at least 3"),
        (["--context", "33"], "--context: expected at most 32"),
        (["--resume"], "--resume: expected --output RUN"),
        (["--format", "chat"], 'expected an object with "messages"'),
    ],
)
def test_invalid_input_is_one_line(
    tiny_model: Path,
    byte_level: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "1+1=2"}\n')
    given = ["compare", str(tiny_model), str(byte_level), "--text", str(tmp_path / "a.jsonl"), "--text-level", *words]
    assert main(given) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert expected in errors
    assert errors.count("\n") == 1


def test_logits_that_are_not_finite_name_the_document_and_the_model(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "nan")
    with pytest.raises(
        InputError, match=r"^text 1: expected the log-likelihood by .*nan to be a number, got nan: .*--dtype$"
    ):
        compare_text_level(str(tiny_model), [str(tmp_path / "nan")], text=["", "1+1=2"])


def test_chats_are_refused(tiny_model: Path, byte_level: Path, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "1+1"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="expected plain text, because chat templates differ"):
        compare_text_level(str(tiny_model), [str(byte_level)], text=tmp_path / "a.jsonl")
