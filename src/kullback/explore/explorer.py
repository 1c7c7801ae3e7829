"""The explorer: an HTML page that shows KL divergence on interactive charts, and training runs."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from kullback.errors import InputError, KullbackError
from kullback.explore.charts import DIVERGENCES
from kullback.explore.html import self_contained_page
from kullback.explore.report import page_data
from kullback.explore.run_tables import damage_as_input_error, load_report_runs, outcome_table
from kullback.runs.run_directory import RunDirectory

__all__ = ["explorer_page", "readable_runs", "runs_data"]

_MODULES = (
    "math.js",
    "bandit.js",
    "contours.js",
    "address.js",
    "figure.js",
    "page_directions.js",
    "page_next_token.js",
    "page_policy.js",
    "page_demo.js",
    "read_run_files.js",
    "page_runs.js",
)
_TEXTS = {
    "title": "Kullback",
    "summary": "Five questions about KL divergence, each with a figure that can be changed by hand.",
}


def runs_data(runs: Mapping[str, RunDirectory]) -> dict[str, Any] | None:
    """Return the data of the page "Training runs".

    Args:
        runs: Run directories by the names under which they are shown.

    Returns:
        The data for `report` in `report.js`, or None without runs.

    Raises:
        InputError: A directory does not contain a run.
    """
    if not runs:
        return None
    report_runs = load_report_runs(runs)
    return page_data(report_runs, outcome_table(runs) if all(run.evaluations for run in report_runs) else None)


def readable_runs(runs: Mapping[str, RunDirectory]) -> tuple[dict[str, RunDirectory], list[str]]:
    """Return the runs whose files can be shown, and the problems of the others.

    Args:
        runs: Run directories by the names under which they are shown.

    Returns:
        The readable runs, and one sentence for each other run, which names its file and line.

    Raises:
        InputError: No run is readable; the message is the first problem.
    """
    readable, problems = {}, []
    for name, run in runs.items():
        try:
            if not {"kind", "rewards"} & run.config().keys():
                raise InputError(f"{run.path}: expected a run of kullback train, got a config.json of another program")
            with damage_as_input_error(run):
                json.dumps(runs_data({name: run}), allow_nan=False)
            readable[name] = run
        except KullbackError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{run.path}: cannot be read: {error.strerror or error}")
    if problems and not readable:
        raise InputError(problems[0])
    return readable, problems


def explorer_page(runs: Mapping[str, RunDirectory], *, live: bool) -> str:
    """Return the explorer as one self-contained HTML document.

    Args:
        runs: Run directories by the names under which they are shown; may be empty.
        live: Whether the page requests new data of the runs from the server that it was loaded from.

    Returns:
        The HTML document.

    Raises:
        InputError: A directory does not contain a run.

    Example:
        >>> page = explorer_page({}, live=False)
        >>> page.startswith("<!doctype html>")
        True
    """
    metrics = {key: {"title": one.title, "label": f"nats per {one.unit}"} for key, one in DIVERGENCES.items()}
    demo = json.loads((files("kullback.explore") / "static" / "demo_runs.json").read_text("utf-8"))
    data = {"runs": runs_data(runs), "live": live, "metrics": metrics, "demo": demo}
    return self_contained_page("explorer.html", data, _TEXTS, images=True, live=live, more=_MODULES)
