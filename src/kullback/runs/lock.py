"""A lock on a run directory, so that only one process writes to it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from kullback.errors import InputError

__all__ = ["LOCK_FILE", "is_locked", "run_lock"]

LOCK_FILE = ".lock"


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory within the context.

    The operating system holds the lock on an open file, and releases it when the process ends for whatever reason. A
    lock file that a killed process left behind therefore does not block the next process. The lock file is deleted at
    the end, and so are the directories that were created for it if they are empty.

    Args:
        directory: The run directory, which is created if it does not exist.

    Raises:
        InputError: Another process holds the lock, or the directory cannot be created or written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with run_lock(Path(parent) / "run"):
        ...         print(sorted(os.listdir(Path(parent) / "run")))
        ...     print(sorted(os.listdir(parent)))
        ['.lock']
        []
    """
    created: list[Path] = []
    try:
        created = _create_directories(directory)
        file = _open_and_lock(directory / LOCK_FILE)
    except OSError as error:
        _remove_empty(created)
        raise InputError(
            f"--output {directory}: expected a writable directory, got: {error.strerror or error}"
        ) from error
    try:
        yield
    finally:
        if os.name != "nt":
            # The file is deleted while it is locked, so that no other process can hold a lock on it.
            (directory / LOCK_FILE).unlink(missing_ok=True)
        file.close()
        if os.name == "nt":
            with suppress(OSError):  # another process has opened the file, and deletes it later
                (directory / LOCK_FILE).unlink(missing_ok=True)
        _remove_empty(created)


def is_locked(directory: Path) -> bool:
    """Whether a process is writing to a run directory.

    Args:
        directory: The run directory.

    Returns:
        Whether another process holds the lock.

    Example:
        >>> import tempfile
        >>> is_locked(Path(tempfile.mkdtemp()))
        False
    """
    try:
        with (directory / LOCK_FILE).open("r+", encoding="utf-8") as file:
            return not _try_lock(file)
    except OSError:
        return False


def _open_and_lock(path: Path) -> IO[str]:
    """Open and lock a file, and write the process id and the host to it."""
    while True:
        file, locked = path.open("a+", encoding="utf-8"), False
        try:
            locked = _try_lock(file)
            if locked and not _is_file_at(file, path):  # its last holder deleted the file before the lock was free
                file.close()
                continue
            if not locked:
                raise InputError(
                    f"--output {path.parent}: {_holder(path)} is writing to this run directory; wait until it ends, or "
                    "choose another directory"
                )
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            file.flush()
        except BaseException:
            if locked and os.name != "nt":  # nothing can be written, as on a full disk
                path.unlink(missing_ok=True)
            file.close()
            raise
        return file


def _holder(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return f"process {content['pid']} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _is_file_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


if os.name == "nt":
    import msvcrt

    _LOCKED_BYTE = 1 << 20  # after the content, so that other processes can read the content

    def _try_lock(file: IO[str]) -> bool:
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        finally:
            file.seek(0)
        return True

else:
    import errno
    import fcntl

    def _try_lock(file: IO[str]) -> bool:
        """Lock a file without waiting. On a file system without locks, the result is true."""
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        return True


def _create_directories(directory: Path) -> list[Path]:
    """Create a directory and its parents, and return the created directories, the innermost first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(directories: list[Path]) -> None:
    for path in directories:
        try:
            path.rmdir()
        except OSError:
            return
