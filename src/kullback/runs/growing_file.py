"""Reading of a text file that another process appends to: each read returns the lines that were added since."""

import os
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["GrowingFile"]

_CHECKED = 64  # bytes before the position that must be unchanged, so that a rewritten file is recognised


@dataclass
class GrowingFile:
    """A file of lines that grows, and that may be truncated, rewritten or replaced.

    Args:
        path: The file, which need not exist yet.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lines"
        >>> file = GrowingFile(path)
        >>> _ = path.write_text("a\\nb\\nhalf")
        >>> file.read()
        ([(1, b'a\\n'), (2, b'b\\n')], False)
        >>> _ = path.write_text("a\\nb\\nhalf of it\\n")
        >>> file.read()
        ([(3, b'half of it\\n')], False)
        >>> _ = path.write_text("c\\n")
        >>> file.read()
        ([(1, b'c\\n')], True)
    """

    path: Path
    position: int = 0
    lines: int = 0
    modified: float | None = None
    _identity: tuple[int, int] | None = field(default=None, repr=False)
    _before: bytes = field(default=b"", repr=False)

    def read(self, limit: int | None = None) -> tuple[list[tuple[int, bytes]], bool]:
        """Return the complete lines after the position, and move the position behind them.

        A last line without its end is left for the next call.

        Args:
            limit: The largest number of lines; None for all.

        Returns:
            The lines with their numbers, from 1; and whether the file is another than before, so that all lines
            of earlier calls are obsolete. The file is then read from its beginning.

        Raises:
            OSError: The file cannot be read.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            changed = self.position > 0
            self._restart(None)
            return [], changed
        with file:
            status = os.fstat(file.fileno())
            self.modified = status.st_mtime
            identity = (status.st_dev, status.st_ino)
            changed = False
            if self.position:
                changed = identity != self._identity or status.st_size < self.position
                if not changed:
                    file.seek(self.position - len(self._before))
                    changed = file.read(len(self._before)) != self._before
            if changed or self._identity is None:
                self._restart(identity)
            file.seek(self.position)
            found = []
            while limit is None or len(found) < limit:
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                self.lines += 1
                self.position += len(line)
                found.append((self.lines, line))
            if found:
                file.seek(max(0, self.position - _CHECKED))
                self._before = file.read(min(_CHECKED, self.position))
        return found, changed

    def _restart(self, identity: tuple[int, int] | None) -> None:
        self.position, self.lines, self._before, self._identity = 0, 0, b"", identity
