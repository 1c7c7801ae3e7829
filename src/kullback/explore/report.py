"""The report of training runs: one HTML file with its data, style sheet and scripts, which works offline.

`charts.py` selects the charts, `downsample.py` reduces the metrics to the points that are drawn, and `static/chart.js`
draws the charts.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from kullback.errors import InputError
from kullback.explore.charts import RunCharts, budget_of
from kullback.explore.downsample import DownsampledSeries, finite
from kullback.explore.html import self_contained_page
from kullback.runs.atomic_write import write_atomically

__all__ = ["ReportRun", "Table", "page_data", "write_report"]

Row = Mapping[str, Any]

MAX_RUNS = 6  # the number of colours in style.css
MAX_SAMPLES = 24
MAX_CHARACTERS = 6_000


@dataclass(frozen=True)
class ReportRun:
    """The data of one training run for a report.

    Args:
        name: The name in the report, for example "budget 0.05".
        config: The settings of the run. `budget` (None, or {"target": nats, "unit": unit}), `rewards` and `watched`
            (names of reward functions) determine the charts; all settings are listed.
        metrics: One row for each training step. A value that is absent, None or nan is drawn as a gap.
        evaluations: One row for each evaluation, on a fixed set of prompts, examples or images.
        samples: "before" and "after", each a list of {"prompt": str, "completion": str, "rewards": {name: number}},
            and optionally "columns": {name: text}, further columns of the prompt, such as the expected answer.
        pictures: "before" and "after", each a list of {"title": str, "images": list of base64-encoded PNG images}.
    """

    name: str
    config: Row = field(default_factory=dict)
    metrics: Sequence[Row] = ()
    evaluations: Sequence[Row] = ()
    samples: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[Row]] = field(default_factory=dict)


class Table(TypedDict):
    """A table of strings: the column names, and rows with one string for each column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(
    runs: Sequence[ReportRun],
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str = "",
    table: Table | None = None,
) -> Path:
    """Write the report of one training run, or of several runs side by side, as a single HTML file.

    The file is written atomically: an error leaves an existing file at `path` unchanged.

    Args:
        runs: From 1 to 6 runs, in the order of their colours.
        path: The file to write, in a directory that exists.
        title: The heading of the page.
        summary: A sentence below the heading.
        table: Results, shown above the charts.

    Returns:
        The path of the file.

    Raises:
        InputError: There are no runs or more than 6, the rows of the table differ in length from its columns, or the
            directory of `path` does not exist.

    Example:
        >>> import tempfile
        >>> run = ReportRun("a", {"budget": {"target": 0.05, "unit": "token"}}, [{"step": 1, "reward": 0.5}])
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     page = write_report([run], Path(directory) / "report.html", title="One step").read_text()
        >>> "One step" in page
        True
    """
    path = Path(path)
    if not 1 <= len(runs) <= MAX_RUNS:
        raise InputError(f"expected from 1 to {MAX_RUNS} runs, got {len(runs)}; write several reports")
    for i, row in enumerate(table["rows"] if table else ()):
        if table and len(row) != len(table["columns"]):
            raise InputError(
                f"table: expected {len(table['columns'])} cells in each row, one for each column, "
                f"got {len(row)} in row {i}: {list(row)}"
            )
    if not path.parent.is_dir():
        raise InputError(f"{path}: expected a file in an existing directory, but {path.parent} does not exist")

    images = any(run.pictures for run in runs)
    page = self_contained_page(
        "report.html", page_data(runs, table), {"title": title, "summary": summary}, images=images
    )
    write_atomically(path, page)
    return path


def page_data(runs: Sequence[ReportRun], table: Table | None) -> dict[str, Any]:
    """Return everything that the report shows, as plain data for `report` in `report.js`."""
    batches = [DownsampledSeries(run.metrics) for run in runs]
    evaluations = [DownsampledSeries(run.evaluations) for run in runs]
    charts = RunCharts([run.config for run in runs], batches, evaluations)
    counts = [(len(batch.steps), len(evaluation.steps)) for batch, evaluation in zip(batches, evaluations, strict=True)]
    return {
        "runs": [{"name": run.name, "facts": _facts(run, *count)} for run, count in zip(runs, counts, strict=True)],
        "table": dict(table) | {"caption": "Results"} if table else None,
        "notes": _notes(runs, batches),
        "grids": charts.grids(),
        "sections": charts.sections(),
        "pictures": [
            {"run": i, "rows": [{"title": str(row["title"]), "images": list(map(str, row["images"]))} for row in rows]}
            for i, run in enumerate(runs)
            if (rows := run.pictures.get("after") or run.pictures.get("before"))
        ],
        "samples": _samples(runs),
        "settings": _settings(runs),
    }


# ---- texts: facts, notes, samples, settings ----


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _facts(run: ReportRun, steps: int, evaluations: int) -> str:
    """Return the line beside the name of a run: its budget, its number of steps and evaluations, its duration."""
    budget = budget_of(run.config)
    facts = [
        f"budget {budget[0]:g} nats per {budget[1]}" if budget else "no budget",
        _count(steps, "step"),
        _count(evaluations, "evaluation"),
    ]
    seconds = [s for row in run.metrics if (s := finite(row.get("seconds"))) is not None]
    return " · ".join(facts + ([_duration(max(seconds))] if seconds else []))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _notes(runs: Sequence[ReportRun], batches: Sequence[DownsampledSeries]) -> list[str]:
    """Return notices about missing data, downsampling and alarms; a notice names all runs to which it applies."""
    names_by_note: dict[str, list[str]] = {}
    for run, series in zip(runs, batches, strict=True):
        notes = []
        if not series.steps:
            notes.append("no training step has been recorded.")
        if len(series.steps) == 1:
            notes.append("only one training step has been recorded.")
        if omitted := sum(finite(row.get("step")) is None for row in (*run.metrics, *run.evaluations)):
            notes.append(f"{_count(omitted, 'row')} without a step number {'is' if omitted == 1 else 'are'} omitted.")
        if series.bucketed:
            notes.append(
                f"{len(series.steps):,} steps are drawn as the means of {len(series.buckets)} buckets; "
                "the shading spans the minimum and the maximum of each bucket."
            )
        alarms = [row["alarm"] for row in run.evaluations if row.get("alarm")]
        if alarms and run.evaluations[-1].get("alarm"):
            notes.append(f"{_truncate(str(alarms[-1]))}.")
        for note in notes:
            names_by_note.setdefault(note, []).append(run.name)
    return [f"{', '.join(names)}: {note}" for note, names in names_by_note.items()]


def _samples(runs: Sequence[ReportRun]) -> dict[str, Any] | None:
    """Return the completions of all runs with one item for each prompt, paired by prompt and occurrence.

    Completions before training that are the same in all runs are shown once.
    """
    same_before = len(runs) > 1 and all(run.samples.get("before") == runs[0].samples.get("before") for run in runs)
    items: dict[tuple[str, int], dict[str, Any]] = {}
    for when, label in (("before", "Before training"), ("after", "After training")):
        once = when == "before" and same_before
        for index, run in enumerate(runs[:1] if once else runs):
            occurrences: dict[str, int] = {}
            for sample in run.samples.get(when) or ():
                prompt = str(sample.get("prompt", ""))
                occurrences[prompt] = occurrences.get(prompt, 0) + 1
                item = items.setdefault(
                    (prompt, occurrences[prompt]), {"prompt": _truncate(prompt), "columns": [], "cells": []}
                )
                item["columns"] = item["columns"] or [
                    [str(name), _truncate(str(value))] for name, value in (sample.get("columns") or {}).items()
                ]
                rewards = [[str(name), finite(value)] for name, value in (sample.get("rewards") or {}).items()]
                completion = _truncate(str(sample.get("completion") or ""))
                item["cells"].append(
                    {"run": None if once else index, "label": label, "completion": completion, "rewards": rewards}
                )
    if not items:
        return None
    shown = list(items.values())[:MAX_SAMPLES]
    many = len(shown) < len(items)
    note = f"The first {len(shown)} of {len(items)} prompts." if many else f"{_count(len(items), 'prompt')}."
    return {"note": note, "items": shown}


def _truncate(text: str) -> str:
    excess = len(text) - MAX_CHARACTERS
    return text if excess <= 0 else f"{text[:MAX_CHARACTERS]} … ({excess:,} more characters)"


def _settings(runs: Sequence[ReportRun]) -> dict[str, list[Any]]:
    """Return the settings in two groups: shared settings with one value, differing settings with a value per run."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = [
        (str(key), [_format_setting(run.config[key]) if key in run.config else "not set" for run in runs])
        for key in keys
    ]
    return {
        "shared": [[key, values[:1]] for key, values in rows if len(set(values)) == 1],
        "differing": [[key, values] for key, values in rows if len(set(values)) > 1],
    }


def _format_setting(value: object) -> str:
    if isinstance(value, Mapping):
        return _truncate(", ".join(f"{key} {entry}" for key, entry in value.items())) or "none"
    if isinstance(value, list | tuple):
        return _truncate(", ".join(str(entry) for entry in value)) or "none"
    return "none" if value is None else _truncate(str(value))
