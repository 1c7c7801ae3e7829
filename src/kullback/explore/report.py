"""The report of a training run: one HTML file that holds its data, style and script, and works with no network.

This file says what the page holds, `charts.py` which charts, `downsample.py` which numbers; `chart.js` draws them.
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
from kullback.runs.atomic_write import write_whole

__all__ = ["ReportRun", "Table", "page_data", "write_report"]

Row = Mapping[str, Any]

_PER = {"image": "image"}
MOST_ARMS = 6  # as many as there are colours
MOST_SAMPLES = 24
MOST_CHARACTERS = 6_000


@dataclass(frozen=True)
class ReportRun:
    """One training run of the report: what it was told, and what it wrote down.

    Args:
        name: What the reader sees, for example "budget 0.05".
        config: Its settings. `budget` ({"target": nats, "unit": "token" or "sequence"}, or None), `rewards` and
            `watched` (names of reward functions) shape the charts; everything is listed.
        metrics: One row for each training step; a key that is absent, None or nan is a gap.
        evaluations: Rows measured on a fixed set of prompts.
        samples: "before" and "after", each a list of {"prompt": str, "completion": str, "rewards": {name: number}}.
        pictures: "before" and "after", each a list of {"title": str, "images": PNGs in base64}.
    """

    name: str
    config: Row = field(default_factory=dict)
    metrics: Sequence[Row] = ()
    evaluations: Sequence[Row] = ()
    samples: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[Row]] = field(default_factory=dict)


class Table(TypedDict):
    """The outcome in words and numbers: column names, and rows of as many strings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(
    arms: Sequence[ReportRun],
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str = "",
    table: Table | None = None,
) -> Path:
    """Write the report of one training run, or of several side by side, as a single HTML file.

    The file appears whole or not at all: it is written under a temporary name and then moved into place.

    Args:
        arms: The runs, from 1 to 6, in the order of their colours.
        path: The file to write; its directory must exist.
        title: The heading of the page.
        summary: One sentence under the heading: what came out.
        table: The outcome, a row for each arm, shown above the charts.

    Returns:
        The path of the file.

    Raises:
        InputError: No arm or more than 6, a ragged table, or a directory that does not exist.

    Example:
        >>> import tempfile
        >>> arm = ReportRun("a", {"budget": {"target": 0.05, "unit": "token"}}, [{"step": 1, "reward": 0.5}])
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     page = write_report([arm], Path(directory) / "report.html", title="One step").read_text()
        >>> "One step" in page
        True
    """
    path = Path(path)
    if not 1 <= len(arms) <= MOST_ARMS:
        raise InputError(f"A report shows from 1 to {MOST_ARMS} arms, and {len(arms)} came; write several reports.")
    for row in table["rows"] if table else ():
        if table and len(row) != len(table["columns"]):
            raise InputError(
                f"The table has {len(table['columns'])} columns, but a row of {len(row)} cells: {list(row)}."
            )
    if not path.parent.is_dir():
        raise InputError(f"The directory {path.parent} does not exist; create it, or name another file.")

    images = any(arm.pictures for arm in arms)
    page = self_contained_page(
        "report.html", page_data(arms, table), {"title": title, "summary": summary}, images=images
    )
    write_whole(path, page)
    return path


# ---- words: facts, samples, settings ----


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _facts(arm: ReportRun, steps: int, evaluations: int) -> str:
    budget = budget_of(arm.config)
    facts = [
        f"budget {budget[0]:g} nats per {_PER.get(budget[1], budget[1])}" if budget else "no budget",
        _count(steps, "step"),
    ]
    facts.append(_count(evaluations, "evaluation"))
    seconds = [s for row in arm.metrics if (s := finite(row.get("seconds"))) is not None]
    return " · ".join(facts + ([_duration(max(seconds))] if seconds else []))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _notes(arms: Sequence[ReportRun], tracks: Sequence[DownsampledSeries]) -> list[str]:
    """What the reader must know before trusting the charts; said once for all the arms that it is true of."""
    said: dict[str, list[str]] = {}
    for arm, track in zip(arms, tracks, strict=True):
        notes = []
        if not track.steps:
            notes.append("no training step has been recorded.")
        if len(track.steps) == 1:
            notes.append("a single training step has been recorded.")
        if lost := sum(finite(row.get("step")) is None for row in (*arm.metrics, *arm.evaluations)):
            notes.append(f"{_count(lost, 'row')} without a step left out.")
        if track.bucketed:
            drawn = f"{len(track.steps):,} steps are drawn as {len(track.buckets)} means"
            notes.append(f"{drawn}; the shading runs from the least to the greatest value under each.")
        alarms = [row["alarm"] for row in arm.evaluations if row.get("alarm")]
        if alarms and arm.evaluations[-1].get("alarm"):
            notes.append(f"{_cut(str(alarms[-1]))}.")
        for note in notes:
            said.setdefault(note, []).append(arm.name)
    return [f"{', '.join(names)}: {note}" for note, names in said.items()]


def _samples(arm: ReportRun, index: int) -> dict[str, Any] | None:
    """Before and after side by side: the same prompt, and the same occurrence of it when it comes twice."""
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for when, label in (("before", "Before training"), ("after", "After training")):
        times: dict[str, int] = {}
        for sample in arm.samples.get(when) or ():
            prompt = str(sample.get("prompt", ""))
            times[prompt] = times.get(prompt, 0) + 1
            rewards = [[str(name), finite(value)] for name, value in (sample.get("rewards") or {}).items()]
            cell = {"label": label, "completion": _cut(str(sample.get("completion") or "")), "rewards": rewards}
            cells.setdefault((prompt, times[prompt]), []).append(cell)
    if not cells:
        return None
    items = [{"prompt": _cut(prompt), "cells": both} for (prompt, _), both in cells.items()]
    shown = items[:MOST_SAMPLES]
    many = len(shown) < len(items)
    note = f"The first {len(shown)} of {len(items)} prompts." if many else f"{_count(len(items), 'prompt')}."
    return {"arm": index, "note": note, "items": shown}


def _cut(text: str) -> str:
    left = len(text) - MOST_CHARACTERS
    return text if left <= 0 else f"{text[:MOST_CHARACTERS]} … ({left:,} more characters)"


def _settings(arms: Sequence[ReportRun]) -> dict[str, list[Any]]:
    """Each setting with the arms' values: once when they agree, one for each arm when they differ."""
    keys = dict.fromkeys(key for arm in arms for key in arm.config)
    rows = [(str(key), [_words(arm.config[key]) if key in arm.config else "not set" for arm in arms]) for key in keys]
    return {
        "shared": [[key, values[:1]] for key, values in rows if len(set(values)) == 1],
        "differing": [[key, values] for key, values in rows if len(set(values)) > 1],
    }


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return _cut(", ".join(f"{key} {one}" for key, one in value.items())) or "none"
    if isinstance(value, list | tuple):
        return _cut(", ".join(str(one) for one in value)) or "none"
    return "none" if value is None else _cut(str(value))


def page_data(arms: Sequence[ReportRun], table: Table | None) -> dict[str, Any]:
    """All that the page shows, as plain data."""
    batches = [DownsampledSeries(arm.metrics) for arm in arms]
    evaluations = [DownsampledSeries(arm.evaluations) for arm in arms]
    charts = RunCharts([arm.config for arm in arms], batches, evaluations)
    counts = [(len(batch.steps), len(evaluation.steps)) for batch, evaluation in zip(batches, evaluations, strict=True)]
    return {
        "arms": [{"name": arm.name, "facts": _facts(arm, *count)} for arm, count in zip(arms, counts, strict=True)],
        "table": dict(table) | {"caption": "Outcome"} if table else None,
        "notes": _notes(arms, batches),
        "grids": charts.grids(),
        "sections": charts.sections(),
        "pictures": [
            {"arm": i, "rows": [{"title": str(row["title"]), "images": list(map(str, row["images"]))} for row in rows]}
            for i, arm in enumerate(arms)
            if (rows := arm.pictures.get("after") or arm.pictures.get("before"))
        ],
        "samples": [samples for i, arm in enumerate(arms) if (samples := _samples(arm, i))],
        "settings": _settings(arms),
    }
