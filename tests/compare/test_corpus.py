"""Corpora are read whole or refused with a clear message, and windows count each token once."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kullback.compare.corpus import Document, encode, read_documents, windows
from kullback.errors import InputError


class Tokenizer:
    """A tokenizer of characters, with or without a BOS token, and with a template that names the roles."""

    def __init__(self, *, adds_bos: bool = False, bos: int | None = 1, template: bool = True) -> None:
        self.bos_token_id, self.adds_bos = bos, adds_bos
        self.chat_template = "a template" if template else None

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        ids = [ord(character) for character in text]
        return {"input_ids": [self.bos_token_id, *ids] if self.adds_bos and add_special_tokens else ids}

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: object) -> dict[str, list[int]]:
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return {"input_ids": [self.bos_token_id, *map(ord, text + "$")]}


def read(path: Path, form: str | None = None) -> list[Document]:
    return list(read_documents(path, form=form))


@pytest.mark.parametrize("content", ["ab \ud800", [{"role": "user", "content": "ab \ud800"}]])
def test_lone_surrogates_are_refused(content: Any) -> None:
    with pytest.raises(InputError, match=r"here: expected text .* got the lone surrogate '\\ud800' at position 3"):
        encode([Document("here", content)], Tokenizer())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="got a pipe or a device, which cannot be read twice"):
            read(path)


def test_a_directory_has_one_document_for_each_file_in_the_order_of_the_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/c.py", "a.txt", ".hidden.txt", "data.bin"):
        (tmp_path / name).write_text(name)
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n\n{"messages": [{"role": "user", "content": "hi"}]}\n')
    documents = read(tmp_path)
    assert [document.content for document in documents][:3] == ["a.txt", "b/c.py", "one"]
    assert documents[3].content == [{"role": "user", "content": "hi"}]
    assert documents[3].name.endswith("c.jsonl, line 3")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "expected text, got an empty file"),
        ("a.txt", b" \n", "expected text, got an empty file"),
        ("a.jsonl", b"\n", "expected text, got an empty file"),
        ("a.txt", b"one\ntw\xff", "line 2: expected UTF-8 text, got the byte 0xff at position 6"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2: expected a JSON object"),
        ("a.jsonl", b'{"prompt": "a"}', 'expected an object with "text" or "messages", got the keys prompt'),
        ("a.jsonl", b'{"text": 3}', 'expected "text" to be text, got 3'),
        ("a.jsonl", b'{"messages": ["hi"]}', 'expected "messages" to be a list of objects'),
        ("a.jsonl", b'{"messages": []}', 'expected "messages" to be a list of objects'),
        ("a.jsonl", b"[1]", "got [1]"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert expected in str(error.value)
    assert name in str(error.value)


def test_an_absent_path_and_a_directory_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or directory"):
        read(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="got no files"):
        read(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match="got 1 other files"):
        read(tmp_path)


def test_the_form_chooses_the_key_of_rows(tmp_path: Path) -> None:
    row = {"text": "plain", "messages": [{"role": "user", "content": "hi"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert read(tmp_path / "a.jsonl", "jsonl")[0].content == "plain"
    assert read(tmp_path / "a.jsonl", "chat")[0].content == row["messages"]
    assert read(tmp_path / "a.jsonl", "text")[0].content == json.dumps(row)


@given(st.integers(2, 200), st.integers(3, 40), st.integers(0, 1), st.data())
def test_windows_count_each_token_once(count: int, context: int, prefix: int, data: st.DataObject) -> None:
    room = context - prefix
    stride = data.draw(st.none() | st.integers(1, room - 1))
    found = windows(count, context, stride, prefix=prefix)
    counted = [token for window in found for token in range(window.first, window.end)]
    assert counted == list(range(1 - prefix, count))
    for window in found:
        assert window.end - window.start <= room
        assert window.first + prefix > window.start  # a token precedes each counted token


@pytest.mark.parametrize(("context", "stride", "prefix"), [(1, None, 0), (2, None, 1), (8, 8, 0), (8, 7, 1), (8, 0, 0)])
def test_windows_that_would_miss_a_token_are_refused(context: int, stride: int | None, prefix: int) -> None:
    with pytest.raises(InputError, match=r"--context|--stride"):
        windows(20, context, stride, prefix=prefix)


def test_the_prefix_follows_the_tokenizer() -> None:
    documents = [Document("a", "ab"), Document("b", "c"), Document("c", "")]
    without = encode(documents, Tokenizer())
    assert (without.prefix, without.skipped_documents, without.counted_tokens) == ((), 2, 1)
    with_bos = encode(documents, Tokenizer(adds_bos=True))
    assert (with_bos.prefix, with_bos.skipped_documents, with_bos.counted_tokens) == ((1,), 1, 3)
    assert encode(documents, Tokenizer(), bos="always").prefix == (1,)
    assert encode(documents, Tokenizer(adds_bos=True), bos="never").prefix == ()
    assert without.token_hash != with_bos.token_hash
    assert without.text_hash == with_bos.text_hash
    with pytest.raises(InputError, match="--bos always"):
        encode(documents, Tokenizer(bos=None), bos="always")
    with pytest.raises(InputError, match="but the document is shorter"):
        encode([Document("b", "c")], Tokenizer())


def test_the_hash_of_the_tokens_depends_on_their_division_into_documents() -> None:
    hashes = {
        encode([Document("a", text) for text in texts], Tokenizer()).token_hash
        for texts in (["abcd"], ["ab", "cd"], ["abc", "de"])
    }
    assert len(hashes) == 3


def test_roles_of_chat_messages_are_the_roles_of_their_tokens() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "tool", "content": "42"}]
    corpus = encode([Document("a", messages), Document("b", "plain")], Tokenizer(adds_bos=True))
    chat, plain = corpus.documents
    assert "".join(map(chr, chat.ids)) == "<user>hi<tool>42$"
    assert [corpus.roles[role] for role in chat.roles] == ["user"] * 8 + ["tool"] * 9
    assert not plain.roles.any()
    assert corpus.roles[0] == "text"
    assert chat.ids.dtype == np.int32


def test_chat_messages_without_a_template_are_refused() -> None:
    with pytest.raises(InputError, match="no chat template"):
        encode([Document("a", [{"role": "user", "content": "hi"}])], Tokenizer(template=False))


def test_a_template_that_refuses_the_messages_is_named() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("roles must alternate")

    tokenizer = SimpleNamespace(bos_token_id=None, chat_template="x", apply_chat_template=refuse)
    with pytest.raises(InputError, match=r"a, line 1: the chat template refuses the messages: .*roles must alternate"):
        encode([Document("a, line 1", [{"role": "user", "content": "hi"}])], tokenizer)


def test_empty_files_of_a_directory_are_counted_as_skipped(tmp_path: Path) -> None:
    for name, content in {"a.txt": "abc", "empty.txt": "", "line.txt": "\n", "short.txt": "a"}.items():
        (tmp_path / name).write_text(content)
    corpus = encode(read_documents(tmp_path), Tokenizer())
    assert (len(corpus.documents), corpus.skipped_documents) == (1, 3)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.txt").write_text(" ")
    with pytest.raises(InputError, match="expected text, got only empty files"):
        list(read_documents(tmp_path / "rows"))
