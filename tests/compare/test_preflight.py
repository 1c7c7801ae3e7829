"""Models that cannot be compared are refused before any forward pass."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kullback.compare.comparison import KINDS, read_result
from kullback.compare.preflight import (
    require_comparable,
    require_positions,
    require_same_vocabulary,
    template_hash,
    tokenizer_hash,
    vocabulary_size,
)
from kullback.compare.token_classes import TokenClasses
from kullback.errors import InputError


def tokenizer(vocabulary: dict[str, int], **fields: Any) -> Any:
    return SimpleNamespace(get_vocab=lambda: vocabulary, **fields)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"a": 0, "c": 1, "b": 2}, r"2 token ids differ: id 1 is 'b' for base and 'c' for model"),
        ({"a": 0, "b": 1}, r"1 token ids differ: id 2 is 'c' for base and no token for model"),
        ({"a": 0, "b": 1, "c": 2, "d": 7}, r"id 7 is no token for base and 'd' for model"),
    ],
)
def test_the_first_difference_of_vocabularies_is_named(other: dict[str, int], expected: str) -> None:
    base = tokenizer({"a": 0, "b": 1, "c": 2})
    require_same_vocabulary(base, tokenizer({"c": 2, "a": 0, "b": 1}), "base", "model")
    with pytest.raises(InputError, match=expected):
        require_same_vocabulary(base, tokenizer(other), "base", "model")


def test_the_vocabulary_includes_unused_ids_below_the_largest() -> None:
    assert vocabulary_size(tokenizer({"a": 0, "b": 9})) == 10


def test_windows_longer_than_the_positions_are_refused() -> None:
    require_positions(None, 4096, "model")
    require_positions(4096, 4096, "model")
    with pytest.raises(InputError, match="at most 2048 tokens, the positions of model, got 4096"):
        require_positions(2048, 4096, "model")


def test_hashes_identify_templates_and_vocabularies() -> None:
    assert template_hash(tokenizer({}, chat_template=None)) is None
    assert template_hash(tokenizer({}, chat_template="a")) != template_hash(tokenizer({}, chat_template="b"))
    assert template_hash(tokenizer({}, chat_template={"x": "a"})) is not None
    assert tokenizer_hash(tokenizer({"a": 0, "b": 1})) == tokenizer_hash(tokenizer({"b": 1, "a": 0}))
    assert tokenizer_hash(tokenizer({"a": 0, "b": 1})) != tokenizer_hash(tokenizer({"a": 1, "b": 0}))


NO_DOCUMENTS = {"columns": [["kl", ""]], "squares": [[]], "documents": {}}


@pytest.mark.parametrize("entry", [
    {}, 7, {"name": "a"}, {"name": "a", "kl_by_document": None}, {"name": "a", "kl_by_document": NO_DOCUMENTS}
])  # fmt: skip
def test_the_models_of_an_earlier_result_are_checked_before_the_comparison(entry: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"format": 1, "config": {}, "models": [entry]}))
    with pytest.raises(InputError, match="expected kl_by_document of each model"):
        read_result(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("earlier", KINDS)
def test_an_earlier_result_must_be_of_the_same_kind(kind: str, earlier: str, tmp_path: Path) -> None:
    sums = {"columns": [["kl", "nats per token"]], "squares": [[1.0]], "documents": {"0": [1, [1.0]]}}
    path = tmp_path / "result.json"
    models = [{"name": "a", "kl_by_document": sums, "bits_by_document": sums}]
    path.write_text(json.dumps({"format": 1, "config": {"kind": earlier}, "models": models}))
    key = "bits_by_document" if kind == "compare-texts" else "kl_by_document"
    if kind == earlier:
        assert read_result(path, kind=kind, sums=key)["models"] == models
        return
    message = f"expected the result of {KINDS[kind]}, got the result of {KINDS[earlier]}"
    with pytest.raises(InputError, match=re.escape(message)):
        read_result(path, kind=kind, sums=key)


def test_a_damaged_earlier_result_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a result.json of kullback compare"):
        require_comparable({"text": {"tokens_sha256": ""}}, {"config": {}})


def test_the_class_of_a_token_includes_its_space() -> None:
    texts = ["<eos>", " the", "the", "42", "();", ",", "\n"]
    named = SimpleNamespace(
        all_special_ids=[0],
        convert_ids_to_tokens=lambda i: ["<eos>", "\u2581the", "the", "42", "();", ",", "\u010a"][i],
        decode=lambda ids: texts[ids[0]].strip(" "),  # SentencePiece drops the space
    )
    assert TokenClasses(named)([[0, 1, 2], [3, 4, 5]]).tolist() == [
        ["special", "word start", "word continuation"],
        ["digits", "code punctuation", "punctuation"],
    ]
