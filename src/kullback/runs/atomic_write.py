"""Atomic writes of files."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["follow_umask", "open_atomically", "umask", "write_atomically"]


def umask() -> int:
    """Return the permissions that new files of this process do not have.

    Example:
        >>> previous = os.umask(0o027)
        >>> oct(umask())
        '0o27'
        >>> _ = os.umask(previous)
    """
    os.umask(mask := os.umask(0o077))
    return mask


def follow_umask(directory: Path) -> None:
    """Give all files below a directory the mode of new files; safetensors gives its files mode 0600.

    Args:
        directory: The directory, whose files belong to this process.

    Raises:
        OSError: A mode cannot be changed.
    """
    mode = 0o666 & ~umask()
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically.

    The text is written to a temporary file in the same directory, which then replaces `path`. After an error or a crash
    the path has either its old content or the whole new content. A symbolic link is followed. A device or a pipe, such
    as /dev/stdout, is written to and is not replaced.

    Args:
        path: The file to write, in a directory that exists.
        text: The content.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_atomically(Path(directory) / "a.txt", "whole")
        ...     os.listdir(directory)
        ['a.txt']
    """
    with open_atomically(path) as file:
        file.write(text.encode())


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file whose content replaces `path` at the end of the context.

    The content is written to a temporary file in the same directory. After an error or a crash the path has either its
    old content or the whole new content. A symbolic link is followed. A device or a pipe, such as /dev/stdout, is
    written to and is not replaced.

    Args:
        path: The file to write, in a directory that exists.

    Returns:
        The file, within the context.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with open_atomically(Path(directory) / "a.bin") as file:
        ...         _ = file.write(b"whole")
        ...     os.listdir(directory)
        ['a.bin']
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        error.filename = str(path)  # in place of the name of the temporary file
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())  # mkstemp gives mode 0600
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
