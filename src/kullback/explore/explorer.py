"""The explorer: an HTML page that shows KL divergence on interactive charts, and training runs."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from kullback.errors import InputError, KullbackError
from kullback.explore.html import self_contained_page
from kullback.explore.run_data import divergence_names, run_data, run_token, series_data
from kullback.explore.run_logs import RunLog

__all__ = ["MODULES", "explorer_page", "range_data", "readable_runs", "runs_data"]

MODULES = (
    "math.js",
    "bandit.js",
    "contours.js",
    "figure.js",
    "page_directions.js",
    "page_next_token.js",
    "page_policy.js",
    "page_demo.js",
    "read_run_files.js",
    "page_runs.js",
    "page_explorer.js",
)
_TEXTS = {
    "title": "Kullback",
    "summary": "Five questions about KL divergence, each with a figure that can be changed by hand.",
}


def runs_data(logs: Mapping[str, RunLog], findings: Mapping[str, Any], since: Mapping[str, str]) -> dict[str, Any]:
    """Return the data of the page "Training runs", or the parts of them that a page does not have yet.

    Args:
        logs: Logs by the names under which they are shown, which were refreshed.
        findings: The findings of the runs by their names; None for a run that was not checked.
        since: For each run, the `token` of the data that the page has.

    Returns:
        `runs`, a list with the data of each run for `report.js`. A run of which the page has all data has its name,
        its token, its state and its findings only.
    """
    return {"runs": [_log_data(name, log, findings.get(name), since.get(name, "")) for name, log in logs.items()]}


def _log_data(name: str, log: RunLog, findings: Any, since: str) -> dict[str, Any]:
    token = run_token(log.version, log.metrics, log.evaluations)
    data = {"name": name, "token": token, "state": log.state(), "findings": findings}
    known = [int(part) if part.isdecimal() else -1 for part in since.split(".")]
    if len(known) != 5:
        known = [-1] * 5
    if known[0] != log.version:
        problems, samples, pictures = log.problems, log.samples, log.pictures
        data |= run_data(name, log.config, samples, pictures, problems=problems, is_sparse=log.is_sparse)
    for key, columns, version, rows in (
        ("metrics", log.metrics, *known[1:3]),
        ("evaluations", log.evaluations, *known[3:5]),
    ):
        if (version, rows) != (columns.version, columns.count):
            first = rows if version == columns.version else 0
            data[key] = series_data(columns, columns.view(since=first))
    return data


def range_data(log: RunLog, low: float, high: float, x: str) -> dict[str, Any]:
    """Return the rows of a part of a run, or blocks of them.

    Args:
        log: The log.
        low: The smallest value of `x`.
        high: The largest value of `x`.
        x: "step", "seconds" or another key of the rows.

    Returns:
        `metrics` and `evaluations`, as `MetricColumns.view` returns them.
    """
    return {key: getattr(log, key).view(low, high, x=x) for key in ("metrics", "evaluations")}


def readable_runs(runs: Mapping[str, Path]) -> tuple[dict[str, RunLog], list[str]]:
    """Return the logs that can be shown, and the problems of the others.

    A log with rows and a damaged line is shown without this line, which `RunLog.problems` names, as are logs that are
    opened on the page.

    Args:
        runs: Run directories, and logs of other programs, by the names under which they are shown.

    Returns:
        The logs, refreshed, and one sentence for each other run, which names its file and line.

    Raises:
        InputError: No run is readable; the message is the first problem.
    """
    readable, problems = {}, []
    for name, path in runs.items():
        try:
            log = RunLog(path)
            log.refresh()
            if log.problems and not log.metrics.count + log.evaluations.count:
                raise InputError(log.problems[0])
            readable[name] = log
        except KullbackError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror or error}")
    if problems and not readable:
        raise InputError(problems[0])
    return readable, problems


def explorer_page(
    logs: Mapping[str, RunLog],
    *,
    live: bool,
    problems: Sequence[str] = (),
    findings: Mapping[str, Any] | None = None,
) -> str:
    """Return the explorer as one self-contained HTML document.

    Args:
        logs: Logs of runs by the names under which they are shown, which were refreshed; may be empty.
        live: Whether the page requests new data of the runs from the server that it was loaded from.
        problems: Sentences about runs that cannot be shown.
        findings: The findings of the runs by their names.

    Returns:
        The HTML document.

    Example:
        >>> page = explorer_page({}, live=False)
        >>> page.startswith("<!doctype html>")
        True
    """
    runs = {**runs_data(logs, findings or {}, {}), "problems": list(problems)} if logs else None
    demo = json.loads((files("kullback.explore") / "static" / "demo_runs.json").read_text("utf-8"))
    data = {"runs": runs, "live": live, "metrics": divergence_names(), "demo": demo}
    return self_contained_page("explorer.html", data, _TEXTS, images=True, live=live, more=MODULES)
