"""Reading of prompt files, and the error message for each kind of invalid file."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from kullback.errors import InputError
from kullback.train.prompts import read_examples, read_prompts

CHAT = [{"role": "user", "content": "hi"}]


def test_rows_keep_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n\n{"prompt": "2+2=", "answer": "4"}\n', encoding="utf-8")
    assert read_prompts(path) == [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "4"}]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (json.dumps({"prompt": CHAT}), CHAT),
        (json.dumps({"messages": CHAT}), CHAT),
        ('\ufeff{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n', "a"),
        ('{"prompt": "a\\u2028b"}', "a\u2028b"),
        ('{"prompt": "a", "completion": "b"}', "a"),
    ],
)
def test_valid_forms_of_prompts(tmp_path: Path, text: str, prompt: Any) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_prompts(path)[0]["prompt"] == prompt


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "a", "completion": "b"}, "a", "b"),
        ({"text": "ab"}, "", "ab"),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "yes"}]},
            CHAT,
            [{"role": "assistant", "content": "yes"}],
        ),
        ({"prompt": CHAT, "completion": [{"role": "assistant", "content": "yes"}]}, CHAT, None),
    ],
)
def test_valid_forms_of_examples(tmp_path: Path, row: Any, prompt: Any, completion: Any) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    found = read_examples(path)[0]
    assert found["prompt"] == prompt
    assert completion is None or found["completion"] == completion


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, 'expected the column "completion"'),
        ({"messages": CHAT}, "end with a message of the assistant"),
        ({"messages": "hi"}, '"messages" to be a list of messages'),
        ({"text": 3}, '"text" to be text'),
        ({"text": ""}, '"text" to be text'),
        ({"prompt": CHAT, "completion": "yes"}, "both text or both messages"),
    ],
)
def test_invalid_examples_are_refused(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match="line 1: expected") as caught:
        read_examples(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"role": "assistant", "content": ""}, 'message 2 of "messages": expected text that is not empty as content'),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}, "got a message with tool_calls alone"),
        ({"content": "yes"}, 'message 2 of "messages": expected text that is not empty as role, got null'),
    ],
)
def test_the_message_of_a_chat_that_cannot_be_used_is_named(tmp_path: Path, last: Any, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "1"}, last]}))
    with pytest.raises(InputError) as caught:
        read_examples(path)
    assert message in str(caught.value)


ROWS = [{"question": "1+1=", "answer": "2"}, {"question": 'a "quoted",\ntwo-line prompt', "answer": "é"}]


def write_table(path: Path) -> None:
    if path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(ROWS).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["question", "answer"], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)


@pytest.mark.parametrize(
    "text", ["prompt;answer\n1+1=;a, b\n", "prompt\tanswer\n1+1=\ta, b\n", 'prompt,answer\n1+1=,"a, b"\n']
)
def test_the_delimiter_of_a_table_is_read_from_its_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert read_prompts(tmp_path / "t.csv") == [{"prompt": "1+1=", "answer": "a, b"}]
    (tmp_path / "t.csv").write_text("prompt\na;b\tc\n")
    assert read_prompts(tmp_path / "t.csv") == [{"prompt": "a;b\tc"}]


@pytest.mark.parametrize("name", ["t.csv", "t.CSV", "t.tsv", "t.parquet", "t.json"])
def test_tables_are_read_by_the_name_of_the_prompt_column(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name)
    expected = [{"prompt": row["question"], "answer": row["answer"]} for row in ROWS]
    assert read_prompts(tmp_path / name, column="question") == expected
    examples = read_examples(tmp_path / name, prompt_column="question", completion_column="answer")
    assert examples == [{"prompt": row["question"], "completion": row["answer"]} for row in ROWS]
    with pytest.raises(InputError, match="expected the column \"prompt\", got 'question', 'answer'"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"prompt,answer\n1+1=\n", "line 2: expected 2 values"),
        ("t.csv", b"prompt,answer\n1+1=,2,3\n", "line 2: expected 2 values"),
        ("t.csv", b"prompt,prompt\n1,2\n", "expected columns of different names"),
        ("t.csv", b"prompt;answer\n1+1=;2;3\n", "line 2: expected 2 values"),
        ("t.csv", b"prompt\n", "no rows"),
        ("t.csv", b"", "no rows"),
        ("t.csv", b'prompt\n"open\n', "not a table"),
        ("t.csv", b"prompt\n\xff\n", "UTF-8"),
        ("t.parquet", b"nonsense", "not a Parquet file"),
        ("t.parquet", b"", "not a Parquet file"),
        ("t.json", b"[1]", "row 1: expected an object"),
        ("t.json", b'[{"prompt": "a"}', "not JSON"),
        ("t.jsonl", b"\x00\x01", "not JSON"),
        ("t.jsonl", b"[" * 100000, "not JSON"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(tmp_path / name, "--evaluate")
    assert str(caught.value).startswith(f"--evaluate {tmp_path / name}")
    assert "\n" not in str(caught.value)


def test_a_directory_is_not_a_file_of_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a file, got a directory"):
        read_prompts(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON: Expecting value at column 12"),
        ('{"prompt": "a"}\n\n["b"]\n', "line 3: expected an object, got list"),
        ('{"promt": "a"}\n', "line 1: expected the column \"prompt\", got 'promt'"),
        ('{"prompt": 3}\n', 'line 1: expected "prompt" to be text, or a list of messages'),
        ('{"prompt": ""}\n', 'line 1: expected "prompt" to be text, or a list of messages'),
        (
            '{"prompt": [{"role": "user"}]}\n',
            'line 1: message 1 of "prompt": expected text that is not empty as content',
        ),
        ('{"prompt": "a", "answer": 1}\n{"prompt": "b"}\n', "line 2: expected the keys of the first row"),
        ('{"prompt": "a", "n": 1}\n\n{"prompt": "b", "n": "x"}\n', 'line 3: expected "n" to be a number as in line 1'),
        (
            '{"prompt": "a", "n": true}\n{"prompt": "b", "n": 1}\n',
            'line 2: expected "n" to be true or false as in line 1',
        ),
        ('{"prompt": "a", "n": null}\n{"prompt": "b", "n": [1]}\n{"prompt": "c", "n": {}}\n', "a list as in line 2"),
        ('{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}\n', 'line 2: expected "prompt" to be text'),
        ('{"prompt": "a", "prompt": "b"}\n', "the key 'prompt' occurs twice"),
        ('{"prompt": "\\ud800"}\n', 'line 1: expected "prompt" to be text'),
        ('{"messages": [{"role": "assistant", "content": "b"}]}\n', "a last message of the assistant"),
        *(
            (f'{{"prompt": "a", "{name}": 1}}\n', f'line 1: expected no column "{name}"')
            for name in (
                "prompts",
                "completions",
                "completion_ids",
                "trainer_state",
                "log_extra",
                "log_metric",
                "environments",
                "image",
            )
        ),
    ],
)
def test_the_message_for_an_invalid_file_gives_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    with pytest.raises(InputError, match="UTF-8"):
        read_prompts(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("column", "hint"),
    [("questions", '; did you mean "question"?'), ("prompt", "; name the column by --prompt-column")],
)
def test_an_unknown_column_is_answered_with_the_columns_and_a_hint(tmp_path: Path, column: str, hint: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n1+1=,2\n")
    assert read_prompts(str(path), column="question") == [{"prompt": "1+1=", "answer": "2"}]
    with pytest.raises(InputError) as error:
        read_prompts(path, column=column)
    assert str(error.value).endswith(f"expected the column \"{column}\", got 'question', 'answer'{hint}")
