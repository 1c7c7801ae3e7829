"""Failures to write as exceptions with one line of text."""

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
_NO_SPACE = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_RUST_ERROR = re.compile(r"os error (\d+)")  # in exceptions of safetensors
_TORCH_ERROR = re.compile(r"PytorchStreamWriter failed|inline_container|iostream error")  # in exceptions of torch.save


@contextmanager
def write_errors(directory: Path, advice: str) -> Iterator[None]:
    """Within the context, failures to write become `InputError`.

    Args:
        directory: The directory that is written to, for the message.
        advice: The end of the message: what to do when the cause has been removed.

    Raises:
        InputError: The disk is full, a quota is exceeded, or files may not be written.

    Example:
        >>> with write_errors(Path("run"), "use --resume"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        kullback.errors.InputError: run: cannot be written: No space left on device; free some space, and use --resume
    """
    try:
        yield
    except KullbackError:
        raise
    except Exception as error:
        if (failure := _find(error)) is None:
            raise
        number, reason = failure
        remedy = ""
        if number is None or number in _NO_SPACE:
            remedy = "free some space, and "
        elif number in _NO_PERMISSION:
            remedy = "allow writing to it, and "
        raise InputError(f"{directory}: cannot be written: {reason}; {remedy}{advice}") from error


def find_write_failure(error: BaseException | None) -> str | None:
    """Return a failure to write as text, or None for another exception. The causes of an exception are included."""
    failure = _find(error)
    return None if failure is None else failure[1]


def _find(error: BaseException | None) -> tuple[int | None, str] | None:
    """The number and the text of a failure to write; PyTorch gives no number."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return error.errno, error.strerror or str(error)
        if not isinstance(error, OSError):
            if (number := _RUST_ERROR.search(str(error))) and int(number[1]) in _DISK_ERRORS:
                return int(number[1]), os.strerror(int(number[1]))
            if _TORCH_ERROR.search(str(error)):
                return None, "PyTorch could not write a file, as on a full disk"
        error = error.__cause__ or error.__context__
    return None
