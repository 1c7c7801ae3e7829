"""Errors of a full disk as exceptions with one line of text."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kullback.errors import InputError, KullbackError

__all__ = ["find_write_failure", "write_errors"]

_DISK_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "EMFILE", "ENAMETOOLONG")
    if hasattr(errno, name)
}
_RUST_ERROR = re.compile(r"os error (\d+)")  # in exceptions of safetensors
_TORCH_ERROR = re.compile(r"PytorchStreamWriter failed|inline_container|iostream error")  # in exceptions of torch.save


@contextmanager
def write_errors(directory: Path, advice: str) -> Iterator[None]:
    """Within the context, failures to write become `InputError`.

    Args:
        directory: The directory that is written to, for the message.
        advice: The end of the message.

    Raises:
        InputError: The disk is full, a quota is exceeded, or files may not be written.

    Example:
        >>> with write_errors(Path("run"), "free some space"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        kullback.errors.InputError: run: cannot be written: No space left on device; free some space
    """
    try:
        yield
    except KullbackError:
        raise
    except Exception as error:
        if (reason := find_write_failure(error)) is None:
            raise
        raise InputError(f"{directory}: cannot be written: {reason}; {advice}") from error


def find_write_failure(error: BaseException | None) -> str | None:
    """Return a failure to write as text, or None for another exception. The causes of an exception are included."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return error.strerror or str(error)
        if not isinstance(error, OSError):
            if (number := _RUST_ERROR.search(str(error))) and int(number[1]) in _DISK_ERRORS:
                return os.strerror(int(number[1]))
            if _TORCH_ERROR.search(str(error)):
                return "PyTorch could not write a file, as on a full disk"
        error = error.__cause__ or error.__context__
    return None
