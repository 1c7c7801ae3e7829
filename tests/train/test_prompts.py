"""Reading of prompt files, and the error message for each kind of invalid file."""

from pathlib import Path

import pytest

from kullback.errors import InputError
from kullback.train.prompts import read_prompts


def test_rows_keep_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    chat = '{"prompt": [{"role": "user", "content": "hi"}], "answer": "b"}'
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n\n' + chat + "\n", encoding="utf-8")
    rows = read_prompts(path)
    assert rows[0] == {"prompt": "1+1=", "answer": "2"}
    assert rows[1]["prompt"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON: Expecting value at column 12"),
        ('{"prompt": "a"}\n\n["b"]\n', "line 3: expected an object, got list"),
        ('{"promt": "a"}\n', "line 1: expected a \"prompt\", got 'promt'"),
        ('{"prompt": 3}\n', 'line 1: expected "prompt" to be text, or a list of messages'),
        ('{"prompt": ""}\n', 'line 1: expected "prompt" to be text, or a list of messages'),
        ('{"prompt": [{"role": "user"}]}\n', 'line 1: expected "prompt" to be text, or a list of messages'),
        ('{"prompt": "a", "answer": 1}\n{"prompt": "b"}\n', "line 2: expected the keys of the first row"),
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
