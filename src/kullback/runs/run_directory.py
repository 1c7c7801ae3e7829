"""The run directory: the files that a training run writes, and how they are read back.

config.json        the configuration of the run
metrics.jsonl      a row for each optimizer step or update
evaluations.jsonl  a row for each evaluation
samples.json       completions of the first evaluation prompts, before, during and after training
pictures.json      images of a VAE, before and after training
checkpoints/       the states from which `--resume` continues
model/             the trained model; its training.json has the number of steps
report.html        the report
.lock              a lock, while a process writes to the directory
"""

import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from kullback.errors import InputError
from kullback.runs.atomic_write import follow_umask, umask, write_atomically
from kullback.runs.checksums import CHECKSUMS, find_damage, find_model_damage, weight_files
from kullback.runs.interrupts import termination_as_interrupt
from kullback.runs.lock import LOCK_FILE, run_lock
from kullback.runs.metrics import with_present_keys, with_present_settings
from kullback.runs.write_errors import write_errors

__all__ = [
    "RunDirectory",
    "checkpoint_step",
    "is_main_process",
    "missing_steps",
    "parse_row",
    "process_rank",
    "run_kind",
    "versions",
]

Row = dict[str, Any]
RunKind = Literal["training", "comparison"]

# The files that each kind of run adds lines to.
_RECORDS: dict[RunKind, tuple[str, ...]] = {
    "training": ("metrics.jsonl",),
    "comparison": ("blocks-*.jsonl", "parts-*.jsonl"),
}

_FILES = ("config.json", "metrics.jsonl", "evaluations.jsonl", "samples.json", "pictures.json", "report.html")
_DIRECTORIES = ("checkpoints", "model", "reference")
_OF_CHECKPOINTS = re.compile(r"checkpoint-\d+|\..*|README\.md|runs|completions")  # runs: TensorBoard's files
_MAX_EVALUATIONS = 8  # whose completions are in samples.json


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

    @contextmanager
    def open_for_training(
        self, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False, main: bool = True
    ) -> Iterator[None]:
        """Within the context, this process may train in the directory, which other processes may not.

        The directory is locked. An exception before the first step removes all files of a new run, so that the command
        can be repeated. SIGTERM and SIGHUP raise KeyboardInterrupt. Failures to write become one line of text.

        Args:
            config: The configuration of the run that is to start.
            resume: Whether it continues the run in this directory.
            overwrite: Whether it may replace a run in this directory. The run is replaced by `create`.
            main: Whether this is the main process of a distributed run; the other processes take no lock.

        Returns:
            A context manager.

        Raises:
            InputError: The run may not start, see `check_can_start`; another process writes to the directory; or the
                directory cannot be written to.
        """
        self.check_can_start(config, resume=resume, overwrite=overwrite)
        if not main:
            with termination_as_interrupt():
                yield
            return
        advice = "continue with --resume if the run has a checkpoint"
        with termination_as_interrupt(), write_errors(self.path, advice), run_lock(self.path):
            self.check_can_start(config, resume=resume, overwrite=overwrite)  # another process may have written to it
            for unfinished in self.path.glob(".model.*"):  # a process was killed in `save_model`
                shutil.rmtree(unfinished, ignore_errors=True)
            before = self._config_identity()
            try:
                yield
            except BaseException:
                is_new = before is None or self._config_identity() != before
                if is_new and not resume and not self._rows("metrics.jsonl"):
                    self.remove()
                raise

    def _config_identity(self) -> tuple[int, int] | None:
        """Return values that differ after config.json has been replaced, or None if it does not exist."""
        path = self.path / "config.json"
        if not path.is_file():
            return None
        status = path.stat()
        return status.st_ino, status.st_mtime_ns

    def remove(self) -> None:
        """Delete all files of the run. Other files in the directory are kept."""
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in _DIRECTORIES:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def create(self, config: Mapping[str, Any]) -> None:
        """Create the directory, delete the files of an earlier run in it, and write config.json.

        Args:
            config: The configuration of the run.

        Raises:
            InputError: The directory cannot be created or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.remove()
            self._write_json("config.json", config)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"--output {self.path}: expected a writable directory, got: {reason}") from error

    def check_output(self, *, resume: bool, overwrite: bool = False, kind: RunKind = "training") -> None:
        """Check that a new run does not replace files by accident, and that a run to resume exists.

        Args:
            resume: Whether the run in this directory is to be continued.
            overwrite: Whether a run in this directory may be replaced.
            kind: What the new run is: "training", or "comparison" of models. Only a run of the same kind is replaced.

        Raises:
            InputError: The directory is not empty; or, with `overwrite`, it contains files but not a run of this kind;
                or, with `resume`, it does not contain a run.
        """
        if resume and overwrite:
            raise InputError("--resume, --overwrite: expected one of these options, got both")
        if resume:
            self.config()
            return
        if self.path.is_symlink() and not self.path.exists():
            raise InputError(
                f"--output {self.path}: expected a directory, got a symbolic link to {os.readlink(self.path)}, which "
                "does not exist"
            )
        if not self.path.exists():
            return
        # A process that was killed at its start can leave the lock file and empty directories.
        files = (path for path in self.path.rglob("*") if not path.is_dir() and path.name != LOCK_FILE)
        is_empty = self.path.is_dir() and not any(files)
        if is_empty:
            return
        if not self.path.is_dir():
            raise InputError(f"--output {self.path}: expected a directory, got a file; choose another path")
        if overwrite:
            self._check_replaceable(kind)
            return
        raise InputError(
            f"--output {self.path}: expected a new or an empty directory, but it already exists with files; "
            "choose another directory, continue the run with --resume, or replace it with --overwrite"
        )

    def _check_replaceable(self, kind: RunKind) -> None:
        """Raise InputError if the directory contains anything else than a run of this kind."""
        expected = {"training": "a training run", "comparison": "an earlier comparison"}[kind]
        try:
            config = json.loads((self.path / "config.json").read_bytes())
        except OSError:
            found = "no config.json in it"
        except (ValueError, RecursionError):  # damaged: the other files show what it was
            if any(path for pattern in _RECORDS[kind] for path in self.path.glob(pattern)):
                self._check_no_files_of_others()
                return
            found = "a damaged config.json"
        else:
            stored = run_kind(config) if isinstance(config, dict) else None
            if stored == kind:
                self._check_no_files_of_others()
                return
            found = "a config.json of another program" if stored is None else f"a run of kind {config.get('kind')}"
        raise InputError(
            f"--overwrite {self.path}: expected {expected} to replace, found {found}; choose another directory"
        )

    def _check_no_files_of_others(self) -> None:
        """Raise InputError if `--overwrite` would delete a file that another program added to the run."""
        others = [path for part in (self.model, self.checkpoints) for path in self._files_of_others(part)]
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise InputError(
                f"--overwrite {self.path}: expected only files of the run, found {others[0]}{more}, which would be "
                "deleted; move it, or choose another directory"
            )

    def check_can_start(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool = False) -> None:
        """Check that a run neither overwrites files nor resumes a run of another configuration.

        Args:
            config: The configuration of the run that is to start.
            resume: Whether it continues the run in this directory.
            overwrite: Whether it may replace a run in this directory.

        Raises:
            InputError: See `check_output`; or, with `resume`, the configuration differs from the configuration of the
                run in anything but `steps`. The message names each setting that differs, with both values.
        """
        self.check_output(resume=resume, overwrite=overwrite, kind=run_kind(config) or "training")
        if not resume:
            return
        stored, given = self.config(), self.as_stored(config)
        if stored.get("kind") != given.get("kind"):
            raise InputError(
                f"--resume {self.path}: expected a run of kind {given.get('kind')}, got a run of kind "
                f"{stored.get('kind')}"
            )
        differences = [
            f"{name} {before}, got {now}"
            for key, value in given.items()
            if key != "steps" and (key != "hashes" or key in stored)  # runs of version 0.1.0 have no hashes
            for name, before, now in _differences(key, stored.get(key), value, _option_of_setting(given.get("kind")))
        ]
        if differences:
            raise InputError(
                f"--resume {self.path}: the run was started with {'; '.join(differences)}; resume it with its original "
                "settings, or start a new run"
            )

    def check_not_replaced(self, option: str, path: Path) -> None:
        """Check that `--overwrite` does not delete an input of the run.

        Args:
            option: The option that names the input, such as "--model".
            path: The input.

        Raises:
            InputError: The input is in the run directory.
        """
        if path.resolve().is_relative_to(self.path.resolve()):
            raise InputError(
                f"{option} {path}: expected a path outside of --output {self.path}, whose files --overwrite replaces"
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
            InputError: config.json does not exist, or it is not a JSON object.
        """
        try:
            content = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: expected a run directory, found no config.json in it") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path / 'config.json'}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{self.path / 'config.json'}: expected a JSON object, got {json.dumps(content):.80}")
        return with_present_settings(content)

    def last_checkpoint(self) -> Path | None:
        """Return the newest intact checkpoint.

        Returns:
            The directory of the checkpoint, or None if none is intact.
        """
        return next((path for path in self._checkpoints() if find_damage(path) is None), None)

    def checkpoint_to_resume(self, *, main: bool = True) -> Path | None:
        """Return the newest intact checkpoint, and set newer checkpoints, which are damaged, aside.

        A damaged checkpoint is renamed to `damaged-checkpoint-STEP`, and a line on standard error describes the damage.

        Args:
            main: Whether this is the main process of a distributed run. The other processes neither rename nor print.

        Returns:
            The directory of the checkpoint, or None if the run has not saved any checkpoint.

        Raises:
            InputError: All checkpoints are damaged; or the run has a trained model without a checkpoint, which a start
                from the first step would replace.
        """
        damaged: list[tuple[Path, str]] = []
        for path in self._checkpoints():
            if (damage := find_damage(path)) is None:
                for other, reason in damaged if main else ():
                    print(
                        f"kullback: {other} is damaged: {reason}; the run continues from {path.name}", file=sys.stderr
                    )
                    shutil.rmtree(aside := other.with_name(f"damaged-{other.name}"), ignore_errors=True)
                    other.rename(aside)
                return path
            damaged.append((path, damage))
        # Of a checkpoint whose process ended before the last files, both of these are missing.
        last_files = ("trainer_state.json", CHECKSUMS)
        complete = [(path, reason) for path, reason in damaged if any((path / name).is_file() for name in last_files)]
        if complete:
            path, reason = complete[0]
            raise InputError(
                f"--resume {self.path}: expected an intact checkpoint, but {path.name} and all others are damaged: "
                f"{reason}; start again with --overwrite"
            )
        if self.model.is_dir():
            raise InputError(
                f"--resume {self.path}: expected a checkpoint to continue from, found none, and a start from the first "
                f"step would replace {self.model}; start a new run, or start again with --overwrite"
            )
        rows = self.path / "metrics.jsonl"
        if main and rows.is_file() and rows.stat().st_size:
            print(
                f"kullback: --resume {self.path}: the run has no checkpoint, and starts again from its first step",
                file=sys.stderr,
            )
        return None

    def _checkpoints(self) -> list[Path]:
        """Return the directories of all checkpoints, the newest first."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
        return sorted(found, key=checkpoint_step, reverse=True)

    def is_finished(self, steps: int) -> bool:
        """Return whether the run has saved a model of at least this number of steps, and no checkpoint of more steps.

        Args:
            steps: The number of steps that is to be reached.

        Returns:
            Whether nothing remains to be trained or to be saved: the result is also False if weights of the model are
            missing or truncated, which a line on standard error describes. Another line states that the run has taken
            more steps.
        """
        step = self.model_step()
        newest = next(iter(self._checkpoints()), None)
        if step is None or step < steps or (newest is not None and checkpoint_step(newest) > step):
            return False
        if (damage := find_model_damage(self.model)) is not None:
            print(f"kullback: {self.model} is damaged: {damage}; it is saved again", file=sys.stderr)
            return False
        if step > steps:
            print(
                f"kullback: {self.path} has taken {step} steps, more than {steps}; nothing is trained", file=sys.stderr
            )
        return True

    def model_step(self) -> int | None:
        """Return the number of steps of the trained model.

        Returns:
            The number of steps, or None if no model has been saved.

        Raises:
            InputError: training.json is damaged.
        """
        if not self.model.is_dir():
            return None
        path = self.model / "training.json"
        if path.is_file():
            return parse_row(path, None, path.read_bytes())["step"]
        rows = self.metrics()
        return rows[-1]["step"] if rows else None

    def save_model(self, step: int, write: Callable[[Path], None]) -> None:
        """Write the trained model. After an error or a crash, `model` has its old content or the whole new content.

        Files that another program added to an earlier model are kept.

        Args:
            step: The number of steps of the model.
            write: A function that writes the model to a directory, which exists.

        Raises:
            OSError: A file cannot be written; `model` has its old content.
        """
        temporary = Path(tempfile.mkdtemp(dir=self.path, prefix=".model."))
        try:
            temporary.chmod(0o777 & ~umask())
            write(temporary)
            follow_umask(temporary)
            written = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
            training = {"step": step, "weights": weight_files(temporary), "files": written}
            write_atomically(temporary / "training.json", json.dumps(training) + "\n")
            for path in self._files_of_others(self.model):
                kept = temporary / path.relative_to(self.model)
                if not kept.exists():
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, kept)
            if self.model.exists():
                old = Path(tempfile.mkdtemp(dir=self.path, prefix=".model."))
                self.model.rename(old / "model")
                temporary.rename(self.model)
                shutil.rmtree(old)
            else:
                temporary.rename(self.model)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _files_of_others(self, directory: Path) -> list[Path]:
        """The files that another program added to `model` or to `checkpoints`.

        The files of the run are listed in training.json of the model, except by earlier versions. The files of a
        checkpoint are those in its directory, and TRL writes README.md.
        """
        if directory == self.checkpoints:
            return [path for path in sorted(directory.glob("*")) if not _OF_CHECKPOINTS.fullmatch(path.name)]
        try:
            listed = json.loads((directory / "training.json").read_bytes())["files"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []
        files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "training.json"]
        return [path for path in files if path.relative_to(directory).as_posix() not in listed]

    def remove_rows_after(self, step: int) -> None:
        """Remove the rows of the steps after a checkpoint, because a resumed run takes these steps again.

        Args:
            step: The step of the checkpoint; -1 removes all rows.
        """
        kept = {
            name: [row for row in self._rows(name) if row["step"] <= step]
            for name in ("metrics.jsonl", "evaluations.jsonl")
        }
        for name, rows in kept.items():
            write_atomically(self.path / name, "".join(_line(row) for row in rows))
        self._remove_samples_after(step)
        if missing := missing_steps([row["step"] for row in kept["metrics.jsonl"]], step):
            ranges = ", ".join(f"{first:g} to {last:g}" for first, last in missing[:3])
            print(
                f"kullback: {self.path / 'metrics.jsonl'}: the rows of the steps {ranges} are missing", file=sys.stderr
            )

    def metrics(self) -> list[Row]:
        """Return the rows of metrics.jsonl.

        Returns:
            A dictionary for each complete line, by metric; an empty list if the file does not exist.

        Raises:
            InputError: A line is not an object with a step; the message has its number.
        """
        return self._rows("metrics.jsonl")

    def evaluations(self) -> list[Row]:
        """Return the rows of evaluations.jsonl.

        Returns:
            A dictionary for each complete line, by metric; an empty list if the file does not exist.

        Raises:
            InputError: A line is not an object with a step; the message has its number.
        """
        return self._rows("evaluations.jsonl")

    def readable_rows(self, name: Literal["metrics", "evaluations"]) -> list[Row]:
        """Return the rows of a file without the lines that cannot be read.

        Args:
            name: The name of the file without its extension.

        Returns:
            A dictionary for each line that is an object with a step.
        """
        rows = []
        for number, line in self._lines(f"{name}.jsonl"):
            with suppress(InputError):
                rows.append(with_present_keys(parse_row(self.path / f"{name}.jsonl", number, line)))
        return rows

    def elapsed_seconds(self) -> float:
        """Return the duration of training up to the last row of metrics.jsonl.

        Returns:
            The duration in seconds; 0.0 if no row has a duration.
        """
        durations = [row["seconds"] for row in self.metrics() if _is_number(row.get("seconds"))]
        return float(durations[-1]) if durations else 0.0

    def samples(self) -> dict[str, list[Row]]:
        """Return the sampled completions before, during and after training.

        Returns:
            The contents of samples.json, with the keys "before", "after", and "step N" for evaluations after N steps,
            if they have been written.

        Raises:
            InputError: The file is not an object of lists of objects.
        """
        return self._read_json("samples.json")

    def pictures(self) -> dict[str, list[Row]]:
        """Return the images of a VAE before and after training.

        Returns:
            The contents of pictures.json, with the keys "before" and "after" if they have been written.

        Raises:
            InputError: The file is not an object of lists of objects.
        """
        return self._read_json("pictures.json")

    def set_pictures(self, when: str, rows: list[Row]) -> None:
        """Write images to pictures.json.

        Args:
            when: "before" or "after" training.
            rows: The images.
        """
        self._write_json("pictures.json", self._updated_json("pictures.json", when, rows))

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

    def add_evaluation_once(self, row: Mapping[str, Any]) -> None:
        """Append a row to evaluations.jsonl, unless the file has a row of the same step.

        Args:
            row: Values by metric, with the key "step".
        """
        if all(earlier["step"] != row["step"] for earlier in self.evaluations()):
            self.add_evaluation(row)

    def set_samples(self, when: str, samples: list[Row]) -> None:
        """Write sampled completions to samples.json.

        Args:
            when: "before" or "after" training.
            samples: The completions.
        """
        self._write_json("samples.json", self._updated_json("samples.json", when, samples))

    def add_samples(self, step: int, samples: list[Row]) -> None:
        """Write the sampled completions of an evaluation during training to samples.json, under the key "step N".

        The file does not grow with the number of evaluations. Once it has the completions of more than 8, every second
        of them is removed; the last is kept.

        Args:
            step: The optimizer step N of the evaluation.
            samples: The completions.
        """
        stored = self._updated_json("samples.json", f"step {step}", samples)
        steps = sorted((key for key in stored if _sample_step(key) is not None), key=lambda key: _sample_step(key) or 0)
        if len(steps) > _MAX_EVALUATIONS:
            removed = set(steps[-2::-2])
            stored = {key: rows for key, rows in stored.items() if key not in removed}
        self._write_json("samples.json", stored)

    def _remove_samples_after(self, step: int) -> None:
        """Remove the completions of later steps. The key "after" becomes the step of the trained model."""
        try:
            stored = self.samples()
        except InputError:
            return  # the next update replaces the file, and reports it
        last = self.model_step() if "after" in stored else None
        if last is not None:
            stored[f"step {last}"] = stored["after"]
        kept = {key: rows for key, rows in stored.items() if _sample_step(key) in range(step + 1) or key == "before"}
        if kept != stored:
            self._write_json("samples.json", kept)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        # A file that is opened as text takes longer to open, and a run appends a line at every step.
        with open(f"{self.path}/{name}", "ab") as file:
            file.write(_line(row).encode())

    def _rows(self, name: str) -> list[Row]:
        """Return the rows of a file, without an unfinished last line, which a killed process can leave."""
        path = self.path / name
        return [with_present_keys(parse_row(path, number, line)) for number, line in self._lines(name)]

    def _lines(self, name: str) -> list[tuple[int, bytes]]:
        """Return the complete lines of a file with their numbers."""
        path = self.path / name
        if not path.is_file():
            return []
        with path.open("rb") as file:
            return [(number, line) for number, line in enumerate(file, 1) if line.endswith(b"\n")]

    def _read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a file; an empty object if the file does not exist."""
        path = self.path / name
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON: {error}; remove the file") from error
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected a JSON object, got {type(content).__name__}; remove the file")
        for key, rows in content.items():
            if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
                raise InputError(
                    f'{path}: expected a list of objects under "{key}", got {json.dumps(rows):.60}; remove the file'
                )
        return content

    def _updated_json(self, name: str, key: str, value: Any) -> dict[str, Any]:
        """The object in a file with one entry set. A damaged file counts as empty: no training is lost."""
        try:
            content = self._read_json(name)
        except InputError as error:
            print(f"kullback: {error}; the file is replaced", file=sys.stderr)
            content = {}
        return {**content, key: value}

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomically(
            self.path / name, json.dumps(_plain(content), indent=2, ensure_ascii=True, allow_nan=False) + "\n"
        )


def missing_steps(steps: Sequence[float], last: float) -> list[tuple[float, float]]:
    """Return the ranges of steps without a row, if rows are written at regular intervals from the first one on.

    Args:
        steps: The steps of the rows, in ascending order.
        last: The last step that was taken.

    Returns:
        The first and the last step of each range.

    Example:
        >>> missing_steps([1, 2, 5, 6], 8)
        [(3, 4), (7, 8)]
    """
    spacing = min((b - a for a, b in pairwise([0, *steps]) if b > a), default=1)
    gaps = pairwise([0, *steps, last + spacing])
    return [(a + spacing, b - spacing) for a, b in gaps if b - a > 1.5 * spacing]


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, Kullback and further packages.

    Args:
        *packages: Names of installed packages.

    Returns:
        A dictionary from name to version.
    """
    return {"python": platform.python_version(), **{name: version(name) for name in ("kullback", *packages)}}


def run_kind(config: Mapping[str, Any]) -> RunKind | None:
    """Return whether a config.json is of a training run or of a comparison of models; None: of another program."""
    if str(config.get("kind")).startswith("compare"):
        return "comparison"
    return "training" if {"kind", "rewards", "budget"} & config.keys() else None


def _sample_step(key: str) -> int | None:
    """Return N of a key "step N" of samples.json, and None for other keys."""
    name, _, number = key.partition(" ")
    return int(number) if name == "step" and number.isdecimal() else None


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step of a checkpoint, which its name contains."""
    return int(checkpoint.name.rpartition("-")[2])


def is_main_process() -> bool:
    """Return whether this is the only process of a run, or the first of several that were launched together."""
    return process_rank()[0] == 0


def process_rank() -> tuple[int, int]:
    """Return the rank of this process and the number of processes that were launched together.

    They are the environment variables RANK and WORLD_SIZE, which `torchrun` and `accelerate launch` set; (0, 1) without
    them.

    Raises:
        InputError: A variable is not a whole number, or RANK is not below WORLD_SIZE.
    """
    rank, world = (os.environ.get(name) or default for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    try:
        numbers = int(rank), int(world)
    except ValueError:
        numbers = -1, 1
    if not 0 <= numbers[0] < numbers[1]:
        raise InputError(
            f"expected whole numbers 0 <= RANK < WORLD_SIZE in the environment, got RANK={rank} and "
            f"WORLD_SIZE={world}; start several processes by accelerate launch or torchrun, or unset both variables"
        )
    return numbers


def parse_row(path: Path, number: int | None, line: bytes) -> Row:
    """Return the object in a line of a file, or in the whole file; InputError names the file and the line."""
    place, thing = (f"{path}: line {number}", "line") if number is not None else (f"{path}", "file")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise InputError(
            f"{place}: expected an object, got a {thing} that is not JSON: {reason}; remove this {thing}"
        ) from error
    step = row.get("step") if isinstance(row, dict) else None
    if not _is_number(step):
        got = line.decode(errors="replace")[:60].strip()
        raise InputError(f'{place}: expected an object with a number under "step", got {got}; remove this {thing}')
    return row


def _is_number(value: Any) -> bool:
    """Whether a value of a row is a finite number, which can be converted to a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _differences(name: str, before: Any, now: Any, option: Callable[[str], str]) -> Iterator[tuple[str, str, str]]:
    """The names of the settings that differ, with both values as text; `option` is the option of a setting."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(f"{name}.{key}", before.get(key), now.get(key), option)
    elif before != now or isinstance(before, bool) != isinstance(now, bool):
        label = option(name.removeprefix("settings.")) if name.startswith("settings.") else name
        if name.startswith("hashes."):
            label = f"other contents of the {name.removeprefix('hashes.')}: SHA-256"
        yield label, _short(before), _short(now)


def _option_of_setting(kind: Any) -> Callable[[str], str]:
    """The option of the command line that has a setting, for a kind of run."""
    if str(kind).startswith("compare"):
        return lambda name: f"--{'format' if name == 'form' else name.replace('_', '-')}"
    return lambda name: f"--set {name}"


def _short(value: Any) -> str:
    """A setting as JSON of at most 80 characters; a controller as its class with the main parameters."""
    text = "not set" if value is None else json.dumps(value)
    if isinstance(value, dict) and "kind" in value:
        parameters = [f"{key}={json.dumps(value[key])}" for key in ("target", "beta", "unit") if key in value]
        text = f"{value['kind']}({', '.join(parameters)})"
    return text if len(text) <= 80 else f"{text[:77]}..."


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
