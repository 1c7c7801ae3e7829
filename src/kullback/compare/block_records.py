"""The results of blocks of a run: a line for each block and model, in files of a run directory or in memory."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["BlockRecords"]

_QUIET_WAIT = 10.0  # seconds until a process states that it waits for the others


class BlockRecords:
    """A line for each block and model that is finished, in the file STEM-RANK.jsonl of this process or in memory.

    Args:
        directory: The run directory; None: the lines are in memory.
        stem: The beginning of the names of the files.
        rank: The number of this process.
        keys: The keys of the content of a line.

    Example:
        >>> records = BlockRecords(None, "blocks", 0, ("kl",))
        >>> records.add(0, 1, {"kl": 0.5})
        >>> list(records.read()), records.done
        ([{'block': 0, 'model': 1, 'kl': 0.5}], {(0, 1)})
    """

    def __init__(self, directory: Path | None, stem: str, rank: int, keys: tuple[str, ...]) -> None:
        self.directory, self.stem, self.keys = directory, stem, keys
        self.lines: list[str] = []
        self.done: set[tuple[int, int]] = set()
        if directory is None:
            return
        self.path = directory / f"{stem}-{rank}.jsonl"
        if self.path.is_file():
            content = self.path.read_bytes()
            if not content.endswith(b"\n"):  # a killed process left an unfinished line
                with self.path.open("r+b") as file:
                    file.truncate(content.rfind(b"\n") + 1)
        self.done = {(record["block"], record["model"]) for record in self.read(report=True)}

    def add(self, block: int, model: int, content: Mapping[str, Any]) -> None:
        """Store the result of a block and a model; the line is on disk when the method returns."""
        record = {"block": block, "model": model, **content}
        line = _line_of(record)
        self.done.add((block, model))
        if self.directory is None:
            self.lines.append(line)
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def wait(self, expected: int, *, is_alone: bool) -> None:
        """Wait until the processes have stored this number of results."""
        start, is_told = time.monotonic(), False
        while len(self.done) < expected:
            if is_alone:  # the blocks of this process are done
                raise AssertionError("a block has no result")
            if not is_told and time.monotonic() - start > _QUIET_WAIT:
                is_told = True
                print(
                    f"kullback: waiting for the other processes of WORLD_SIZE={os.environ.get('WORLD_SIZE')}, which "
                    f"have stored {len(self.done)} of {expected} results",
                    file=sys.stderr,
                )
            time.sleep(0.2)
            self.done |= {(record["block"], record["model"]) for record in self.read()}

    def read(self, *, report: bool = False) -> Iterator[dict[str, Any]]:
        """All complete results of all processes, each block and model once.

        A line that differs from its checksum is left out, so that its block is computed again.

        Args:
            report: Whether a line on standard error names each damaged line.
        """
        seen = set()  # two runs with different numbers of processes can both have computed a block
        for record in self._records(report):
            found = {key: record[key] for key in ("block", "model", *self.keys)}
            if (found["block"], found["model"]) not in seen:
                seen.add((found["block"], found["model"]))
                yield found

    def _records(self, report: bool) -> Iterator[dict[str, Any]]:
        """The intact lines in memory, or of the files of all processes."""
        if self.directory is None:
            yield from map(json.loads, self.lines)
            return
        for path in sorted(self.directory.glob(f"{self.stem}-*.jsonl")):
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        continue
                    if (record := _intact_record(line)) is not None:
                        yield record
                    elif report:
                        print(
                            f"kullback: {path}: line {number} is damaged; its block is computed again", file=sys.stderr
                        )


def _line_of(record: Mapping[str, Any]) -> str:
    """A record and its checksum as a line of JSON."""
    return json.dumps({**record, "sha256": _checksum(record)}) + "\n"


def _intact_record(line: str | bytes) -> dict[str, Any] | None:
    """The results of a block in a line, or None if the line differs from its checksum."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("sha256") == _checksum(record) else None


def _checksum(record: Mapping[str, Any]) -> str:
    """The SHA-256 of the results of a block, without the checksum that is stored in them."""
    content = json.dumps({key: value for key, value in record.items() if key != "sha256"})
    return hashlib.sha256(content.encode()).hexdigest()
