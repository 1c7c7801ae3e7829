"""A run directory: what a training run leaves on disk, and how it is read back.

config.json        what the run was told
metrics.jsonl      a row for each optimizer step
evaluations.jsonl  a row for each measurement on the fixed prompts
samples.json       completions of the first of those prompts, before and after
pictures.json      images of a VAE, before and after
checkpoints/       what `--resume` continues from
model/             the trained policy, for transformers
report.html        all of it to look at
"""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kullback.errors import InputError
from kullback.runs.atomic_write import write_whole

__all__ = ["RunDirectory", "versions"]

Row = dict[str, Any]


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, by name.

    Args:
        path: The directory; it need not exist yet.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def create(self, config: Mapping[str, Any]) -> None:
        """Make the directory and say in it what the run was told.

        Raises:
            InputError: It cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_json("config.json", config)
        except OSError as error:
            raise InputError(f"--output {self.path}: cannot be written: {error.strerror or error}") from error

    def check_can_start(self, config: Mapping[str, Any], *, resume: bool) -> None:
        """Refuse to write over what is there, or to go on with another run than the one that was begun.

        Raises:
            InputError: The directory holds something, or to resume, a run that was told otherwise, `steps` apart.
        """
        if not resume:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(f"--output {self.path}: already there; name another, or continue it with --resume")
            return
        stored = self.config()
        for key, value in self.as_stored(config).items():
            if key != "steps" and stored.get(key) != value:
                raise InputError(f"--resume {self.path}: it was started with {key} {stored.get(key)!r}, not {value!r}")

    @staticmethod
    def as_stored(config: Mapping[str, Any]) -> Row:
        """`config` as it reads after a trip through config.json."""
        return json.loads(json.dumps(_plain(config)))

    def config(self) -> Row:
        """What the run was told.

        Raises:
            InputError: There is no run here, or its config.json is broken.
        """
        try:
            return json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: no run here, expected a config.json") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{self.path / 'config.json'}: not JSON: {error}") from error

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that no checkpoint holds: a resumed run takes these steps again."""
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            rows = [row for row in self._rows(name) if row["step"] <= step]
            write_whole(self.path / name, "".join(_line(row) for row in rows))

    def metrics(self) -> list[Row]:
        return self._rows("metrics.jsonl")

    def evaluations(self) -> list[Row]:
        return self._rows("evaluations.jsonl")

    def samples(self) -> dict[str, list[Row]]:
        path = self.path / "samples.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def pictures(self) -> dict[str, list[Row]]:
        path = self.path / "pictures.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def set_pictures(self, when: str, rows: list[Row]) -> None:
        self._write_json("pictures.json", {**self.pictures(), when: rows})

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        self._append("metrics.jsonl", row)

    def add_evaluation(self, row: Mapping[str, Any]) -> None:
        self._append("evaluations.jsonl", row)

    def set_samples(self, when: str, samples: list[Row]) -> None:
        self._write_json("samples.json", {**self.samples(), when: samples})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def _rows(self, name: str) -> list[Row]:
        path = self.path / name
        if not path.is_file():
            return []
        # A killed process can leave its last line unfinished, and only that one.
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_whole(self.path / name, json.dumps(_plain(content), indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def versions(*packages: str) -> dict[str, str]:
    """What config.json says of the software: Python's version, and these packages'."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("kullback", *packages)}}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_plain(row), ensure_ascii=True, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """JSON has no nan and no infinity: what is not a finite number is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
