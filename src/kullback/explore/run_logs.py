"""Logs of training runs as columns: run directories of kullback, and the logs of other programs.

| files | written by |
| --- | --- |
| config.json, metrics.jsonl, evaluations.jsonl | `kullback train` |
| progress.csv, monitor.csv, *.monitor.csv | stable-baselines3 |
| events.out.tfevents.* | TensorBoard's writers; the package tensorboard reads them |
| trainer_state.json, also in checkpoint-* | transformers and TRL |
| *.jsonl, *.json | rows of Weights & Biases (`_step`), of TRL, or of any program with a number under `step` |

`RunLog.refresh` reads only what was written since the last call. `static/read_run_files.js` reads the same files in
the browser.
"""

import csv
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kullback.errors import InputError, MissingDependencyError
from kullback.explore.downsample import MetricColumns, finite
from kullback.explore.run_data import run_data
from kullback.runs.growing_file import GrowingFile
from kullback.runs.lock import is_locked
from kullback.runs.metrics import may_be_missing, with_present_keys
from kullback.runs.run_directory import RunDirectory, parse_row, run_kind

__all__ = ["RunLog", "is_log_file", "is_run", "log_files"]

Row = dict[str, Any]
Reader = Callable[[], tuple[list[Row], bool]]

_FIRST_EVENT = 40  # bytes of the first record of an event file, at least
_CHUNK = 5000  # lines that are parsed at once
_STEP_KEYS = ("step", "_step", "time/total_timesteps", "train/global_step", "global_step", "total_timesteps")
_SECONDS_KEYS = ("seconds", "_runtime", "time/time_elapsed")
_TOKENS_KEYS = ("tokens", "num_tokens", "train/num_tokens", "num_input_tokens_seen")
# The metrics of a budget, to whose names the integrations of transformers and stable-baselines3 add "train/".
_BUDGET_KEY = re.compile(r"^train/(kl_(?:policy|old_policy|filtered)\w*|beta|learning_rate_scale|displacement_scale)$")
_MONITOR_KEYS = {"r": "rewards/return", "l": "episode_length", "t": "seconds"}


class RunLog:
    """The log of a run, which may grow.

    Args:
        path: A run directory of kullback, a directory with the log of another program, or a file of one.

    Raises:
        InputError: The path has no log, or its config.json is damaged.
        MissingDependencyError: The path has event files of TensorBoard only, and tensorboard is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "history.jsonl"
        >>> _ = path.write_text('{"_step": 0, "objective/kl": 0.0}\\n{"_step": 1, "objective/kl": 0.25}\\n')
        >>> log = RunLog(path)
        >>> log.refresh()
        >>> log.metrics.last("objective/kl")
        (1.0, 0.25)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: Row = {}
        self.samples: Mapping[str, Any] = {}
        self.pictures: Mapping[str, Any] = {}
        self.problems: list[str] = []
        self.version = 0  # changes with config, samples, pictures and problems
        self.modified: float | None = None
        self._stamps: dict[str, object] = {}
        self.directory = RunDirectory(path) if _has_run_of_kullback(path) else None
        self.is_sparse = self.directory is None  # whether a row has only the values that were logged at its step
        is_missing = may_be_missing if self.directory else (lambda _key: True)
        self.metrics = MetricColumns(is_missing=is_missing, merge=self.is_sparse)
        self.evaluations = MetricColumns(is_missing=is_missing)
        self._line_problems: dict[str, str] = {}
        if (path / "config.json").is_file():
            self._check_kind(RunDirectory(path).config())
        if self.directory is not None:
            files = [GrowingFile(path / name) for name in ("metrics.jsonl", "evaluations.jsonl")]
            self._sources = [
                (self.metrics, [self._lines(files[0], _kullback_row)]),
                (self.evaluations, [self._lines(files[1], _kullback_row)]),
            ]
        else:
            readers = [self._reader(file) for file in log_files(path)]
            if not readers:
                raise InputError(f"{path}: expected a run directory, found no config.json in it, nor another log")
            self._sources = [(self.metrics, readers)]

    def _check_kind(self, config: Any) -> None:
        kind = run_kind(config)
        if kind == "comparison":
            page, result = self.path / "compare.html", self.path / "result.json"
            shown = next((f"; open {file}" for file in (page, result) if file.is_file()), "")
            raise InputError(f"{self.path}: expected a run of kullback train, got a run of kullback compare{shown}")
        if self.directory is not None and kind is None:
            raise InputError(f"{self.path}: expected a run of kullback train, got a config.json of another program")

    def refresh(self) -> None:
        """Read what was written since the last call. Lines that cannot be read are in `problems`, and are omitted."""
        before = dict(self._line_problems)
        for columns, readers in self._sources:
            self._read(columns, readers)
        problems = dict(self._line_problems)
        if self.directory is not None:
            for name, read in (
                ("config.json", self.directory.config),
                ("samples.json", self.directory.samples),
                ("pictures.json", self.directory.pictures),
            ):
                if problem := self._reread(name, read):
                    problems[name] = problem
        if problems != before or list(problems.values()) != self.problems:
            self.problems, self.version = list(problems.values()), self.version + 1

    def _read(self, columns: MetricColumns, readers: list[Reader]) -> None:
        active = list(readers)
        while active:
            rows, again = [], []
            for reader in active:
                new, is_restarted = reader()
                if is_restarted:
                    columns.clear()
                    if len(readers) > 1:  # the rows of the other files were removed too
                        readers[:] = [self._reader(file) for file in log_files(self.path)]
                        return self._read(columns, readers)
                rows += new
                again += [reader] if new else []
            columns.append(_merged(rows) if self.is_sparse else rows)
            active = again
        return None

    def _reread(self, name: str, read: Callable[[], Any]) -> str | None:
        """Read a file again if it has changed; return the problem of the file."""
        try:
            status = (self.path / name).stat()
            stamp: object = (status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError:
            stamp = None
        known = self._stamps.get(name)
        if isinstance(known, tuple) and known[0] == stamp:
            return known[1]
        problem = None
        try:
            content = read() if stamp is not None or name == "config.json" else {}
            kind = name.removesuffix(".json")
            run_data("", **{"config": {}, "samples": {}, "pictures": {}, kind: content})  # raises if it cannot be shown
            setattr(self, kind, content)
        except InputError as error:
            problem = str(error)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            problem = (
                f"{self.path / name}: expected a file of kullback train, got values that cannot be shown "
                f"({type(error).__name__}: {error})"
            )
        self._stamps[name] = (stamp, problem)
        self.version += 1
        return problem

    # ---- the state of the run ----

    def state(self) -> Row:
        """Return `age`, the seconds since the last row was written; `is_locked` and `is_finished`, None if unknown."""
        age = None if self.modified is None else max(0.0, time.time() - self.modified)
        if self.directory is None:
            return {"age": age, "is_locked": None, "is_finished": None}
        return {"age": age, "is_locked": is_locked(self.path), "is_finished": self.directory.model.is_dir()}

    # ---- readers ----

    def _lines(self, file: GrowingFile, to_row: Callable[[Path, int, bytes], Row | None]) -> Reader:
        def read() -> tuple[list[Row], bool]:
            lines, is_restarted = file.read(_CHUNK)
            if is_restarted:
                self._line_problems.pop(str(file.path), None)
            if file.modified is not None:
                self.modified = max(file.modified, self.modified or 0.0)
            rows = []
            for number, line in lines:
                try:
                    row = to_row(file.path, number, line)
                except InputError as error:
                    self._line_problems.setdefault(str(file.path), str(error))
                    continue
                if row is not None:
                    rows.append(row)
            return rows, is_restarted

        return read

    def _reader(self, path: Path) -> Reader:
        if "tfevents" in path.name:
            return self._tensorboard(path)
        if path.suffix == ".csv":
            return self._lines(GrowingFile(path), _CSVRows())
        if path.suffix == ".jsonl":
            return self._lines(GrowingFile(path), _json_row)
        return self._whole(path)

    def _whole(self, path: Path) -> Reader:
        """Read a JSON file again whenever it has changed."""
        stamp: object = None

        def read() -> tuple[list[Row], bool]:
            nonlocal stamp
            try:
                status = path.stat()
                present = (status.st_ino, status.st_size, status.st_mtime_ns)
                if present == stamp:
                    return [], False
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                self._line_problems[str(path)] = f"{path}: expected JSON: {error}"
                return [], False
            is_restarted, stamp = stamp is not None, present
            self._line_problems.pop(str(path), None)
            self.modified = status.st_mtime
            entries = content.get("log_history", content.get("history")) if isinstance(content, dict) else content
            if not isinstance(entries, list):
                self._line_problems[str(path)] = (
                    f'{path}: expected a list of rows, or an object with a list under "log_history"'
                )
                return [], is_restarted
            return [adapted(row, i) for i, row in enumerate(entries, 1) if isinstance(row, dict)], is_restarted

        return read

    def _tensorboard(self, path: Path) -> Reader:
        """Read the scalars of an event file with the loader of TensorBoard, which continues where it stopped."""
        try:
            from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
            from tensorboard.util.tensor_util import make_ndarray
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{path}: tensorboard, which reads event files, is not installed: pip install tensorboard"
            ) from error
        loader, start, records = EventFileLoader(str(path)), None, _EventRecords(path)

        def read() -> tuple[list[Row], bool]:
            nonlocal start
            if start is None and (problem := _event_file_problem(path)) is not None:
                self._line_problems[str(path)] = problem
                return [], False
            self._line_problems.pop(str(path), None)
            rows = []
            for event in loader.Load():
                records.read += 1
                start = event.wall_time if start is None else start
                for value in event.summary.value:
                    if value.HasField("tensor") and value.tensor.dtype == 1 and not value.tensor.tensor_shape.dim:
                        number = float(make_ndarray(value.tensor))
                        row = {"step": event.step, "seconds": event.wall_time - start, value.tag: number}
                        rows.append(adapted(row, event.step))
            if path.exists():
                self.modified = max(path.stat().st_mtime, self.modified or 0.0)
                if (problem := records.damage()) is not None:
                    self._line_problems[str(path)] = problem
            return _merged(rows), False

        return read


class _EventRecords:
    """Counts the complete records of an event file, because the loader of TensorBoard ends at a damaged one in silence.

    A record is its length in 8 bytes, a checksum of 4 bytes, the event, and a checksum of 4 bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.read, self._complete, self._end = path, 0, 0, 0

    def damage(self) -> str | None:
        """Why the file has records after the `read` ones that cannot be read, or None."""
        size, is_damaged = self.path.stat().st_size, False
        with self.path.open("rb") as file:
            while self._end + 12 <= size:
                file.seek(self._end)
                head = file.read(12)
                end = self._end + 16 + int.from_bytes(head[:8], "little")
                if end > size:  # the record is being written, unless its length is damaged
                    is_damaged = not _has_valid_length(head)
                    break
                self._complete, self._end = self._complete + 1, end
        is_damaged = is_damaged or self._complete > self.read
        return f"{self.path}: record {self.read + 1} is damaged; the later records are left out" if is_damaged else None


def _has_valid_length(head: bytes) -> bool:
    """Whether the first 12 bytes of a record have the checksum of its length."""
    from tensorboard.summary.writer.record_writer import masked_crc32c

    return masked_crc32c(head[:8]) == int.from_bytes(head[8:], "little")


def _event_file_problem(path: Path) -> str | None:
    """Why a file cannot be an event file of TensorBoard, or None.

    The first record, which begins with its length and a checksum, has the version of the file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_FIRST_EVENT)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror or error}"
    if len(start) < _FIRST_EVENT or b"brain.Event:" in start:  # a shorter file is being created
        return None
    return f"{path}: expected an event file of TensorBoard, got other content"


def _kullback_row(path: Path, number: int, line: bytes) -> Row:
    return with_present_keys(parse_row(path, number, line))


def _json_row(path: Path, number: int, line: bytes) -> Row | None:
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: line {number}: expected a JSON object, got a line that is not JSON") from error
    if not isinstance(row, dict):
        got = line.decode(errors="replace")[:60].strip()
        raise InputError(f"{path}: line {number}: expected a JSON object, got {got}")
    return adapted(row, number)


class _CSVRows:
    """Converts the lines of progress.csv and of a monitor file of stable-baselines3."""

    def __init__(self) -> None:
        self.header: list[str] = []
        self.steps = 0.0

    def __call__(self, path: Path, number: int, line: bytes) -> Row | None:
        cells = next(csv.reader([line.decode("utf-8", "replace").rstrip("\r\n")]), [])
        if number == 1:
            self.header, self.steps = [], 0.0
        if not cells or cells[0].startswith("#"):
            return None
        if not self.header:
            self.header = cells
            return None
        if len(cells) != len(self.header):
            raise InputError(f"{path}: line {number}: expected {len(self.header)} cells, got {len(cells)}")
        row: Row = {name: _cell(cell) for name, cell in zip(self.header, cells, strict=True)}
        if set(self.header) >= _MONITOR_KEYS.keys():
            self.steps += finite(row["l"]) or 0.0
            return {"step": self.steps, **{_MONITOR_KEYS.get(key, key): value for key, value in row.items()}}
        return adapted(row, number - 1)


def _cell(text: str) -> float | str | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text


def adapted(row: Mapping[str, Any], number: int) -> Row:
    """Return a row of another program with `step`, and with `seconds` and `tokens` where it has them.

    Args:
        row: Numbers, and dictionaries of numbers, by key.
        number: The number of the row, which is the step of a row without a step.

    Example:
        >>> adapted({"_step": 3, "objective": {"kl": 0.5}, "_runtime": 1.5}, 1)
        {'step': 3, 'seconds': 1.5, 'objective/kl': 0.5}
    """
    flat = dict(_flattened(row))
    result: Row = {"step": next((flat[key] for key in _STEP_KEYS if finite(flat.get(key)) is not None), number)}
    for name, keys in (("seconds", _SECONDS_KEYS), ("tokens", _TOKENS_KEYS)):
        if (value := next((flat[key] for key in keys if finite(flat.get(key)) is not None), None)) is not None:
            result[name] = value
    used = {*_STEP_KEYS, *_SECONDS_KEYS, *_TOKENS_KEYS, "_timestamp"}
    return result | {_BUDGET_KEY.sub(r"\1", key): value for key, value in flat.items() if key not in used}


def _flattened(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _merged(rows: Iterable[Row]) -> list[Row]:
    """Join successive rows of one step."""
    found: list[Row] = []
    for row in rows:
        if found and found[-1]["step"] == row["step"]:
            found[-1] |= row
        else:
            found.append(row)
    return found


# ---- which files are logs ----


def _has_run_of_kullback(path: Path) -> bool:
    if not (path / "config.json").is_file():
        return False
    return (path / "metrics.jsonl").is_file() or not log_files(path)


def is_log_file(path: Path) -> bool:
    """Whether a file has the name of a log that can be shown without a run directory."""
    return path.is_file() and ("tfevents" in path.name or path.suffix in (".jsonl", ".json", ".csv"))


def is_run(path: Path) -> bool:
    """Whether a directory has a run of kullback or the log of another program."""
    return path.is_dir() and ((path / "config.json").is_file() or bool(log_files(path)))


def log_files(path: Path) -> list[Path]:
    """Return the files of the log of another program.

    Args:
        path: A directory or a file.

    Returns:
        The file itself; or, of a directory, the files of the first of these kinds that it has: stable-baselines3,
        event files, trainer_state.json of the newest checkpoint, *.jsonl. An empty list without any.
    """
    if path.is_file():
        return [path] if is_log_file(path) else []
    if not path.is_dir():
        return []
    if found := [*path.glob("progress.csv"), *path.glob("monitor.csv"), *path.glob("*.monitor.csv")]:
        return sorted(found)
    events = sorted(path.glob("*tfevents*")) or sorted(path.glob("runs/*/*tfevents*"))
    states = [*path.glob("trainer_state.json"), *path.glob("checkpoint-*/trainer_state.json")]
    if events and (not states or _has_tensorboard()):
        return events
    if states:
        return [max(states, key=lambda state: (state.parent == path, _checkpoint_number(state)))]
    return sorted(path.glob("*.jsonl"))


def _checkpoint_number(state: Path) -> float:
    step = state.parent.name.rpartition("-")[2]
    return int(step) if step.isdecimal() else -math.inf


def _has_tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None
