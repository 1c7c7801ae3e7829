"""Metrics of a run by training step, reduced to at most 400 points for drawing."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from numbers import Real
from typing import Any

__all__ = ["DownsampledSeries", "finite"]

Row = Mapping[str, Any]

MAX_POINTS = 800  # a run with more steps than this is drawn in buckets
BUCKETS = 400


def finite(value: object) -> float | None:
    """Convert a value to a finite float.

    Args:
        value: Any value of a row of metrics.

    Returns:
        The number, or None when the value is nan, infinite or not a number. None is drawn as a gap.

    Example:
        >>> finite(3), finite(float("nan")), finite("3")
        (3.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < 1e300 else None  # larger numbers would overflow the padded axis; nan compares false


class DownsampledSeries:
    """Rows of metrics in the order of their steps, with one bucket per row, or 400 buckets for more than 800 rows.

    When several rows have the same step, the last row is used: a resumed run writes some steps twice. Rows without a
    step are omitted.

    Args:
        rows: Dictionaries with the key `step`.

    Example:
        >>> series = DownsampledSeries([{"step": 1, "kl": 0.5}, {"step": 2, "kl": float("nan")}])
        >>> series.curve("kl")["values"], series.not_finite("kl"), series.curve("beta")
        ([0.5, None], 1, None)
    """

    def __init__(self, rows: Sequence[Row]):
        latest = {step: row for row in rows if (step := finite(row.get("step"))) is not None}
        self.steps = sorted(latest)
        self.rows = [latest[step] for step in self.steps]
        self.bucketed = len(self.steps) > MAX_POINTS
        count = BUCKETS if self.bucketed else len(self.steps)
        indices = range(len(self.steps))
        if self.bucketed:
            first, width = self.steps[0], (self.steps[-1] - self.steps[0]) / count
            bucket_of_row = [min(int((step - first) / width), count - 1) for step in self.steps]
            self.buckets = [list(bucket) for _, bucket in groupby(indices, bucket_of_row.__getitem__)]
        else:
            self.buckets = [[i] for i in indices]

    def grid(self) -> dict[str, Any]:
        """Return the positions of the buckets on the axis of steps.

        Returns:
            `x`, the mean step of each bucket, and for more than 800 rows `spans`, the first and the last step of each
            bucket.
        """
        steps = [[self.steps[i] for i in bucket] for bucket in self.buckets]
        grid: dict[str, Any] = {"x": [_round(math.fsum(some) / len(some)) for some in steps]}
        if self.bucketed:
            grid["spans"] = [[some[0], some[-1]] for some in steps]
        return grid

    def curve(self, key: str) -> dict[str, Any] | None:
        """Return the values of a metric, ready to draw.

        Args:
            key: A key of the rows. The standard error is read from `key_std_error` where it is recorded.

        Returns:
            None when no row has a finite value. Otherwise a dictionary: `last`, the last finite value and its step,
            not rounded; `values`, the mean of each bucket (None is a gap); and `low` and `high`, the minimum and the
            maximum of each bucket, or two standard errors below and above the value when each bucket is one row.
        """
        values = [finite(row.get(key)) for row in self.rows]
        recorded = [i for i, value in enumerate(values) if value is not None]
        if not recorded:
            return None
        curve: dict[str, Any] = {"last": {"x": self.steps[recorded[-1]], "value": values[recorded[-1]]}}
        if self.bucketed:
            groups = [[value for i in bucket if (value := values[i]) is not None] for bucket in self.buckets]
            curve["values"] = [_round(math.fsum(some) / len(some)) if some else None for some in groups]
            curve["low"] = [_round(min(some, default=None)) for some in groups]
            curve["high"] = [_round(max(some, default=None)) for some in groups]
            return curve
        curve["values"] = [_round(value) for value in values]
        errors = [finite(row.get(f"{key}_std_error")) for row in self.rows]
        if any(error is not None for error in errors):
            pairs = list(zip(values, errors, strict=True))
            curve["low"] = [None if v is None or e is None else _round(v - 2 * e) for v, e in pairs]
            curve["high"] = [None if v is None or e is None else _round(v + 2 * e) for v, e in pairs]
        return curve

    def not_finite(self, key: str) -> int:
        """Return the number of rows whose value under `key` is nan or infinite; absent values and None do not count."""
        return sum(finite(value) is None for row in self.rows if isinstance(value := row.get(key), Real))


def _round(number: float | None) -> float | None:
    """Round to eight significant digits, two more than the data table of a chart shows."""
    return None if number is None else float(f"{number:.8g}")
