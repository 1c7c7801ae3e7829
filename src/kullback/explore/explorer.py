"""The explorer: one page of four rooms, with runs in the last of them; as a file, or from a server on this machine."""

from collections.abc import Mapping
from typing import Any

from kullback.explore.charts import DIVERGENCES
from kullback.explore.html import self_contained_page
from kullback.explore.report import page_data
from kullback.explore.run_tables import closing_table, report_runs_of
from kullback.runs.run_directory import RunDirectory

__all__ = ["explorer_page", "runs_data"]

_MODULES = (
    "math.js",
    "live_plot.js",
    "page_directions.js",
    "page_next_token.js",
    "page_policy.js",
    "read_run_files.js",
    "page_runs.js",
)
_WORDS = {
    "title": "Kullback",
    "summary": "What KL divergence is, what each of its directions wants, and what a budget of it buys.",
}


def runs_data(runs: Mapping[str, RunDirectory]) -> dict[str, Any] | None:
    """What the last room shows of runs; None without any.

    Raises:
        InputError: A directory is no run.
    """
    if not runs:
        return None
    arms = report_runs_of(runs)
    return page_data(arms, closing_table(runs) if all(arm.evaluations for arm in arms) else None)


def explorer_page(runs: Mapping[str, RunDirectory], *, live: bool) -> str:
    """The page as HTML that needs nothing beside it.

    Args:
        runs: By the names that they are shown under.
        live: Whether it is to ask the server that it comes from for news of them.

    Raises:
        InputError: A directory is no run.
    """
    named = {key: {"title": one.title, "label": f"nats per {one.unit}"} for key, one in DIVERGENCES.items()}
    data = {"runs": runs_data(runs), "live": live, "named": named}
    return self_contained_page("explorer.html", data, _WORDS, images=True, live=live, more=_MODULES)
