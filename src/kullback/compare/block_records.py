"""The results of blocks of a run: a line for each block and model, in files of a run directory or in memory."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kullback.errors import InputError

__all__ = ["BlockRecords"]


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
        self.done = {(record["block"], record["model"]) for record in self.read()}

    def add(self, block: int, model: int, content: Mapping[str, Any]) -> None:
        """Store the result of a block and a model; the line is on disk when the method returns."""
        line = json.dumps({"block": block, "model": model, **content}) + "\n"
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
        while len(self.done) < expected:
            if is_alone:  # the blocks of this process are done
                raise AssertionError("a block has no result")
            time.sleep(0.2)
            self.done |= {(record["block"], record["model"]) for record in self.read()}

    def read(self) -> Iterator[dict[str, Any]]:
        """All complete results of all processes, each block and model once.

        Raises:
            InputError: A line is damaged.
        """
        if self.directory is None:
            yield from map(json.loads, self.lines)
            return
        seen = set()  # two runs with different numbers of processes can both have computed a block
        for path in sorted(self.directory.glob(f"{self.stem}-*.jsonl")):
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        continue
                    try:
                        record = json.loads(line)
                        found = {key: record[key] for key in ("block", "model", *self.keys)}
                    except (ValueError, KeyError, TypeError) as error:
                        raise InputError(
                            f"{path}: line {number}: expected the result of a block, got a damaged line; delete it "
                            "and continue with --resume"
                        ) from error
                    if (found["block"], found["model"]) not in seen:
                        seen.add((found["block"], found["model"]))
                        yield found
