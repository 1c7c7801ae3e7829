"""Failures to write have one line of text; other exceptions pass."""

import errno
from pathlib import Path

import pytest

from kullback.errors import InputError
from kullback.runs.write_errors import write_errors


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space, and "),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free some space, and "),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "free some space, and "),
        (RuntimeError("Error while serializing: I/O error: No space left (os error 28)"), "free some space, and "),
        (PermissionError(errno.EACCES, "Permission denied"), "allow writing to it, and "),
        (OSError(errno.EROFS, "Read-only file system"), "allow writing to it, and "),
        (OSError(errno.ENAMETOOLONG, "File name too long"), ""),
    ],
)
def test_failures_to_write_are_input_errors(error: Exception, remedy: str) -> None:
    with (
        pytest.raises(InputError, match=rf"^run: cannot be written: .*; {remedy}continue with --resume$"),
        write_errors(Path("run"), "continue with --resume"),
    ):
        raise error


@pytest.mark.parametrize("error", [KeyError("a"), InputError("b"), FileNotFoundError(errno.ENOENT, "c")])
def test_other_exceptions_pass(error: Exception) -> None:
    with pytest.raises(type(error)), write_errors(Path("run"), "continue with --resume"):
        raise error
