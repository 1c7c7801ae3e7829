"""Atomic writes: after an error the path has its old content, and no temporary file remains."""

import os
from pathlib import Path

import pytest

from kullback.runs.atomic_write import open_atomically, umask, write_atomically


def test_an_error_keeps_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(TypeError), open_atomically(tmp_path / "a") as file:
        file.writelines([b"new", None])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_the_content_is_replaced_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with open_atomically(tmp_path / "a") as file:
        file.write(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask()


def test_links_are_followed_and_text_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    os.symlink(tmp_path / "target", tmp_path / "link")
    write_atomically(tmp_path / "link", "\u0394p\n")
    assert (tmp_path / "target").read_bytes() == b"\xce\x94p\n"
    assert (tmp_path / "link").is_symlink()


def test_devices_are_written_to() -> None:
    with open_atomically(Path(os.devnull)) as file:
        file.write(b"text")
    assert not Path(os.devnull).is_file()


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "result.json"
    with pytest.raises(FileNotFoundError) as error:
        write_atomically(path, "{}")
    assert error.value.filename == str(path)
