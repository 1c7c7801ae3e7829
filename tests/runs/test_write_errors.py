"""Failures to write have one line of text; other exceptions pass."""

import errno
from pathlib import Path

import pytest

from kullback.errors import InputError
from kullback.runs.write_errors import write_errors


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_failures_to_write_are_input_errors(error: Exception) -> None:
    with (
        pytest.raises(InputError, match=r"^run: cannot be written: .*; free some space$"),
        write_errors(Path("run"), "free some space"),
    ):
        raise error


@pytest.mark.parametrize("error", [KeyError("a"), InputError("b"), FileNotFoundError(errno.ENOENT, "c")])
def test_other_exceptions_pass(error: Exception) -> None:
    with pytest.raises(type(error)), write_errors(Path("run"), "free some space"):
        raise error
