"""A growing file: half-written lines, truncation, replacement, and the number of bytes that a read takes."""

import os
from pathlib import Path

import pytest

from kullback.runs.growing_file import GrowingFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def lines(file: GrowingFile) -> list[bytes]:
    return [line for _, line in file.read()[0]]


def test_a_half_written_line_is_read_when_it_is_complete(path):
    file = GrowingFile(path)
    assert file.read() == ([], False)
    content = '{"step": 1}\n{"step": 2, "ä": 1}\n'.encode()
    read = []
    for end in range(len(content) + 1):  # a reader between any two bytes
        path.write_bytes(content[:end])
        new, is_restarted = file.read()
        assert not is_restarted
        read += new
    assert b"".join(line for _, line in read) == content
    assert [number for number, _ in read] == [1, 2]


def test_only_new_bytes_are_read(path, monkeypatch):
    path.write_text("x" * 99 + "\n")
    with path.open("a") as end:
        end.writelines("y" * 99 + "\n" for _ in range(10_000))
    file = GrowingFile(path)
    assert len(lines(file)) == 10_001
    with path.open("a") as end:
        end.write("new\n")
    taken = []
    real_open = Path.open

    def counting(self, mode="r", *rest, **options):
        opened = real_open(self, mode, 0, *rest, **options)
        real_read, real_line = opened.read, opened.readline
        return _Counting(opened, taken, real_read, real_line)

    monkeypatch.setattr(Path, "open", counting)
    assert lines(file) == [b"new\n"]
    assert sum(taken) < 500


class _Counting:
    """A file that notes the number of bytes of each read."""

    def __init__(self, file, taken, read, readline):
        self.file, self.taken, self._read, self._readline = file, taken, read, readline

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, *size):
        return self._noted(self._read(*size))

    def readline(self):
        return self._noted(self._readline())

    def _noted(self, content):
        self.taken.append(len(content))
        return content

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize(
    "change",
    ["truncated", "rewritten to the same length", "rewritten to a greater length", "replaced", "deleted"],
)
def test_a_file_that_is_not_a_continuation_is_read_from_its_beginning(path, change):
    path.write_text("one\ntwo\n")
    file = GrowingFile(path)
    assert lines(file) == [b"one\n", b"two\n"]
    if change == "truncated":
        os.truncate(path, 4)
        expected = [b"one\n"]
    elif change == "rewritten to the same length":
        path.write_text("1ne\n2wo\n")
        expected = [b"1ne\n", b"2wo\n"]
    elif change == "rewritten to a greater length":
        path.write_text("first\nsecond\n")
        expected = [b"first\n", b"second\n"]
    elif change == "replaced":
        other = path.with_name("other")
        other.write_text("one\ntwo\nthree\n")
        other.replace(path)
        expected = [b"one\n", b"two\n", b"three\n"]
    else:
        path.unlink()
        expected = []
    found, is_restarted = file.read()
    assert is_restarted
    assert [line for _, line in found] == expected
    assert file.read() == ([], False)
