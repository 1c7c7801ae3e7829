"""The data of runs for the pages: what `report` in `static/report.js` draws, as JSON types."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kullback.explore.divergences import DIVERGENCES, budget_of, budgeted_kl
from kullback.explore.downsample import MetricColumns, finite
from kullback.runs.run_directory import RunDirectory

__all__ = ["divergence_names", "run_data", "run_token", "series_data"]

Row = Mapping[str, Any]

_WHEN = re.compile(r"before|after|step [0-9]+")
MAX_SAMPLES = 24
MAX_CHARACTERS = 6_000


def divergence_names() -> dict[str, dict[str, str]]:
    """Return the identifiers of charts, titles, units and notes of the KL divergences by their keys."""
    return {
        key: {"id": one.name, "title": one.title, "short": one.short, "unit": one.unit, "note": one.note}
        for key, one in DIVERGENCES.items()
    }


def run_data(
    name: str,
    config: Row,
    samples: Mapping[str, Sequence[Row]],
    pictures: Mapping[str, Sequence[Row]],
    *,
    problems: Sequence[str] = (),
    is_sparse: bool = False,
) -> dict[str, Any]:
    """Return the data of a run that do not grow with its steps.

    Args:
        name: The name under which the run is shown.
        config: Its settings.
        samples: Its completions "before" and "after" training, and at "step N"; other keys are left out.
        pictures: Its images.
        problems: Sentences about its files.
        is_sparse: Whether a row has only the values that were logged at its step.

    Returns:
        JSON types.
    """
    budget = budget_of(config)
    for key in ("rewards", "watched"):
        if not isinstance(config.get(key) or [], list | tuple):
            raise TypeError(f"expected a list under {key!r}, got {config[key]!r}")
    samples = {when: rows for when, rows in samples.items() if rows and _WHEN.fullmatch(when)}
    return {
        "name": name,
        "config": RunDirectory.as_stored(config),
        "budget": {"target": budget[0], "unit": budget[1], "key": budgeted_kl(config)} if budget else None,
        "samples": {when: [_sample(sample) for sample in rows[:MAX_SAMPLES]] for when, rows in samples.items()},
        "samplesTotal": max(map(len, samples.values()), default=0),
        "pictures": {
            when: [{"title": str(row["title"]), "images": list(map(str, row["images"]))} for row in rows]
            for when, rows in pictures.items()
        },
        "problems": list(problems),
        "isSparse": is_sparse,
    }


def series_data(columns: MetricColumns, view: Mapping[str, Any]) -> dict[str, Any]:
    """Return a view of columns with the last values, and the values that are not finite, of the whole run.

    Args:
        columns: The metrics or the evaluations of a run.
        view: A view of them.

    Returns:
        The view with `keys`: for each key `last`, its last finite step and value, and `bad`, the number and the first
        step of the values that are not finite. `firstRow` and `lastRow` are the first and the last row, in which such
        values are the text "not finite".
    """
    keys = {
        key: {"last": columns.last(key), **({"bad": [len(bad), bad[0]]} if (bad := columns.not_finite(key)) else {})}
        for key in columns.logged_keys()
    }
    rows = {"firstRow": columns.first_row, "lastRow": columns.last_row}
    return {
        **view,
        "keys": keys,
        "omitted": columns.omitted,
        **{name: _shown(row, columns.is_missing) for name, row in rows.items()},
    }


def run_token(version: int, metrics: MetricColumns, evaluations: MetricColumns) -> str:
    """Return the text by which a page states which part of a run it has."""
    parts = (version, metrics.version, metrics.count, evaluations.version, evaluations.count)
    return ".".join(map(str, parts))


def _sample(sample: Row) -> dict[str, Any]:
    columns, rewards, tokens = sample.get("columns") or {}, sample.get("rewards") or {}, sample.get("tokens") or []
    return {
        "prompt": _truncated(str(sample.get("prompt", ""))),
        "columns": [[str(name), _truncated(str(value))] for name, value in columns.items()],
        "completion": _truncated(str(sample.get("completion") or "")),
        "rewards": [[str(name), finite(value)] for name, value in rewards.items()],
        "tokens": [[str(text), finite(kl)] for text, kl in tokens],
    }


def _truncated(text: str) -> str:
    excess = len(text) - MAX_CHARACTERS
    return text if excess <= 0 else f"{text[:MAX_CHARACTERS]} … ({excess:,} more characters)"


def _shown(row: Row | None, is_missing: Any) -> dict[str, Any] | None:
    if row is None:
        return None
    return {str(key): _shown_value(value, is_missing=is_missing(key)) for key, value in row.items()}


def _shown_value(value: Any, *, is_missing: bool) -> Any:
    if value is None or (isinstance(value, float) and finite(value) is None):
        return None if value is None and is_missing else "not finite"
    if isinstance(value, list | tuple):
        return [_shown_value(entry, is_missing=True) for entry in value]
    return value if isinstance(value, int | float | str) else str(value)
