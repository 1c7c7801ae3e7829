"""The run directory: the files that a training run writes, and how they are read back.

config.json        the configuration of the run
metrics.jsonl      a row for each optimizer step or update
evaluations.jsonl  a row for each evaluation
samples.json       completions of the first evaluation prompts, before and after training
pictures.json      images of a VAE, before and after training
checkpoints/       the states from which `--resume` continues
model/             the trained model
report.html        the report
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
from kullback.runs.atomic_write import write_atomically
from kullback.runs.metrics import with_present_keys, with_present_settings

__all__ = ["RunDirectory", "versions"]

Row = dict[str, Any]


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Files that were written under former names of metrics and settings are read under the present names.

    Args:
        path: The directory, which need not exist yet.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = RunDirectory(Path(directory) / "run")
        ...     run.create({"kind": "grpo"})
        ...     run.add_metrics({"step": 1, "kl_policy_ref_per_token": 0.01})
        ...     run.metrics()
        [{'step': 1, 'kl_policy_ref_per_token': 0.01}]
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The directory of the trained model."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The path of the report."""
        return self.path / "report.html"

    def create(self, config: Mapping[str, Any]) -> None:
        """Create the directory and write config.json.

        Args:
            config: The configuration of the run.

        Raises:
            InputError: The directory cannot be created or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_json("config.json", config)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"--output {self.path}: expected a writable directory, got: {reason}") from error

    def check_can_start(self, config: Mapping[str, Any], *, resume: bool) -> None:
        """Check that a run neither overwrites files nor resumes a run of another configuration.

        Args:
            config: The configuration of the run that is to start.
            resume: Whether it continues the run in this directory.

        Raises:
            InputError: The directory is not empty; or, with `resume`, it does not contain a run, or its configuration
                differs in anything but `steps`.
        """
        if not resume:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(
                    f"--output {self.path}: expected a new or an empty directory, but it already exists with files; "
                    "choose another directory, or continue the run with --resume"
                )
            return
        stored = self.config()
        for key, value in self.as_stored(config).items():
            if key != "steps" and stored.get(key) != value:
                raise InputError(
                    f"--resume {self.path}: the run was started with {key} {stored.get(key)!r}, got {value!r}; "
                    "resume it with its original settings, or start a new run"
                )

    @staticmethod
    def as_stored(config: Mapping[str, Any]) -> Row:
        """Return a configuration as it is read back from config.json.

        Args:
            config: The configuration of a run.

        Returns:
            The configuration as JSON types: paths are text, tuples are lists, and numbers that are not finite are None.
        """
        return json.loads(json.dumps(_plain(config)))

    def config(self) -> Row:
        """Return the configuration of the run.

        Returns:
            The contents of config.json.

        Raises:
            InputError: config.json does not exist, or it is not JSON.
        """
        try:
            return with_present_settings(json.loads((self.path / "config.json").read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: expected a run directory, found no config.json in it") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{self.path / 'config.json'}: not JSON: {error}") from error

    def last_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint.

        Returns:
            The directory of the checkpoint, or None if none is complete.
        """
        found = [path for path in self.checkpoints.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    def remove_rows_after(self, step: int) -> None:
        """Remove the rows of the steps after a checkpoint, because a resumed run takes these steps again.

        Args:
            step: The step of the checkpoint; -1 removes all rows.
        """
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            rows = [row for row in self._rows(name) if row["step"] <= step]
            write_atomically(self.path / name, "".join(_line(row) for row in rows))

    def metrics(self) -> list[Row]:
        """Return the rows of metrics.jsonl.

        Returns:
            A dictionary for each complete line, by metric; an empty list if the file does not exist.
        """
        return self._rows("metrics.jsonl")

    def evaluations(self) -> list[Row]:
        """Return the rows of evaluations.jsonl.

        Returns:
            A dictionary for each complete line, by metric; an empty list if the file does not exist.
        """
        return self._rows("evaluations.jsonl")

    def samples(self) -> dict[str, list[Row]]:
        """Return the sampled completions before and after training.

        Returns:
            The contents of samples.json, with the keys "before" and "after" if they have been written.
        """
        path = self.path / "samples.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def pictures(self) -> dict[str, list[Row]]:
        """Return the images of a VAE before and after training.

        Returns:
            The contents of pictures.json, with the keys "before" and "after" if they have been written.
        """
        path = self.path / "pictures.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def set_pictures(self, when: str, rows: list[Row]) -> None:
        """Write images to pictures.json.

        Args:
            when: "before" or "after" training.
            rows: The images.
        """
        self._write_json("pictures.json", {**self.pictures(), when: rows})

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl.

        Args:
            row: Values by metric, with the key "step".
        """
        self._append("metrics.jsonl", row)

    def add_evaluation(self, row: Mapping[str, Any]) -> None:
        """Append a row to evaluations.jsonl.

        Args:
            row: Values by metric, with the key "step".
        """
        self._append("evaluations.jsonl", row)

    def set_samples(self, when: str, samples: list[Row]) -> None:
        """Write sampled completions to samples.json.

        Args:
            when: "before" or "after" training.
            samples: The completions.
        """
        self._write_json("samples.json", {**self.samples(), when: samples})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def _rows(self, name: str) -> list[Row]:
        """Return the rows of a file, without an unfinished last line, which a killed process can leave."""
        path = self.path / name
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(True)
        return [with_present_keys(json.loads(line)) for line in lines if line.endswith("\n")]

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomically(
            self.path / name, json.dumps(_plain(content), indent=2, ensure_ascii=True, allow_nan=False) + "\n"
        )


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, Kullback and further packages.

    Args:
        *packages: Names of installed packages.

    Returns:
        A dictionary from name to version.
    """
    return {"python": platform.python_version(), **{name: version(name) for name in ("kullback", *packages)}}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_plain(row), ensure_ascii=True, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return a value as JSON types; numbers that are not finite, which JSON does not have, become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
