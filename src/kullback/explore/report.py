"""The report of training runs: one HTML file with its data, style sheet and scripts, which works offline.

`downsample.py` reduces the metrics to the points that are drawn, `static/run_charts.js` selects the charts, and
`static/chart.js` draws them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from kullback.errors import InputError
from kullback.explore.downsample import MetricColumns
from kullback.explore.html import self_contained_page
from kullback.explore.run_data import divergence_names, run_data, series_data
from kullback.runs.atomic_write import write_atomically
from kullback.runs.metrics import may_be_missing

__all__ = ["ReportRun", "Table", "page_data", "write_report"]

Row = Mapping[str, Any]

MAX_RUNS = 6  # the number of colours in style.css


@dataclass(frozen=True)
class ReportRun:
    """The data of one training run for a report.

    Args:
        name: The name in the report, for example "budget 0.05".
        config: The settings of the run. `budget` (None, or {"target": nats, "unit": unit}), `rewards` and `watched`
            (names of reward functions) determine the charts; all settings are listed.
        metrics: One row for each training step. A value that is absent is drawn as a gap. A value that is nan or
            infinite is marked and counted, and so is None, except under the keys of `may_be_missing`.
        evaluations: One row for each evaluation, on a fixed set of prompts, examples or images.
        samples: "before", "step N" and "after", each a list of {"prompt": str, "completion": str,
            "rewards": {name: number}}, and optionally "columns": {name: text}, further columns of the prompt, such as
            the expected answer, and "tokens": a list of pairs of the text and the KL of each token of the completion.
        pictures: "before" and "after", each a list of {"title": str, "images": list of base64-encoded PNG images}.
        findings: The findings of `kullback doctor`, as `kullback.explore.findings.check_run` returns them; None if
            the run was not checked.
        problems: Sentences about files of the run that cannot be read.
    """

    name: str
    config: Row = field(default_factory=dict)
    metrics: Sequence[Row] = ()
    evaluations: Sequence[Row] = ()
    samples: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    findings: Sequence[Row] | None = None
    problems: Sequence[str] = ()


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
        table: Results, shown above the charts; None: the first and the last evaluation of the runs.

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

    page = self_contained_page("report.html", page_data(runs, table), {"title": title, "summary": summary}, images=True)
    write_atomically(path, page)
    return path


def page_data(runs: Sequence[ReportRun], table: Table | None) -> dict[str, Any]:
    """Return everything that the report shows, as plain data for `report` in `report.js`."""
    return {
        "runs": [_run_data(run) for run in runs],
        "divergences": divergence_names(),
        "table": dict(table) | {"caption": "Results"} if table else None,
    }


def _run_data(run: ReportRun) -> dict[str, Any]:
    metrics, evaluations = (MetricColumns(rows, is_missing=may_be_missing) for rows in (run.metrics, run.evaluations))
    return {
        **run_data(run.name, run.config, run.samples, run.pictures, problems=run.problems),
        "metrics": series_data(metrics, metrics.view()),
        "evaluations": series_data(evaluations, evaluations.view()),
        "findings": None if run.findings is None else list(run.findings),
    }
