"""Output of the commands: results on standard output, plain-text tables, and JSON without infinities."""

import errno
import io
import math
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kullback.errors import InputError
from kullback.runs.printable import one_line, printable

__all__ = ["discard_output", "open_diagnostics", "output_errors", "print_result", "strict", "table"]


@contextmanager
def output_errors() -> Iterator[None]:
    """Within the context, results are written. A reader that has closed its pipe or terminal is not an error.

    Raises:
        InputError: The output cannot be written, for example because the disk is full.
    """
    try:
        yield
    except BrokenPipeError:
        discard_output(sys.stdout)
    except OSError as error:
        was_terminal = error.errno == errno.EIO and _is_device(sys.stdout)
        discard_output(sys.stdout)
        if not was_terminal:
            raise InputError(f"the output cannot be written: {error.strerror or error}") from error


def _is_device(stream: Any) -> bool:
    try:
        return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # the stream is closed or is not a file
        return False


def print_result(text: str) -> None:
    """Print the result of a command.

    Raises:
        InputError: The output cannot be written, for example because the disk is full.
    """
    with output_errors():
        print(printable(text), flush=True)


class _DiagnosticFile(io.FileIO):
    """A file of progress and warnings, whose loss must not end a command: what cannot be written is discarded."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:  # the reader of a pipe has closed it, or the disk is full
            return len(data)


def open_diagnostics(descriptor: int, encoding: str) -> io.TextIOWrapper:
    """A text stream that writes to a file descriptor, and discards what cannot be written.

    Args:
        descriptor: The descriptor, such as 2; the stream closes it.
        encoding: The encoding of the text. Characters that it does not have become escape sequences.
    """
    buffered = io.BufferedWriter(_DiagnosticFile(descriptor, "wb"))
    return io.TextIOWrapper(buffered, encoding=encoding, errors="backslashreplace", line_buffering=True)


def discard_output(stream: Any) -> None:
    """Redirect a stream to the null device, so that the interpreter can flush the stream at its end."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table with right-aligned columns, separated by two spaces.

    Example:
        >>> print(table(["step", "nats"], [["0", "0.25"], ["10", "0.1"]]))
        step  nats
           0  0.25
          10   0.1
    """
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def strict(value: Any) -> Any:
    """Replace infinities and nan, which JSON does not have, by the strings "inf", "-inf" and "nan".

    Example:
        >>> strict({"kl": [0.5, math.inf]})
        {'kl': [0.5, 'inf']}
    """
    if isinstance(value, dict):
        return {key: strict(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [strict(element) for element in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
