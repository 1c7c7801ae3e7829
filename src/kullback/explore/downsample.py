"""The rows of a run along its steps, thinned honestly when they are many, as curves to draw."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from numbers import Real
from typing import Any

__all__ = ["DownsampledSeries", "finite"]

Row = Mapping[str, Any]

MOST_POINTS = 800  # a run with more steps than this is drawn in buckets
BUCKETS = 400


def finite(value: object) -> float | None:
    """Read a value as a finite float.

    Args:
        value: Anything that a row of a run may hold.

    Returns:
        The number, or None, which is drawn as a gap, when the value is nan, infinite or not a number.

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
    return number if abs(number) < 1e300 else None  # an axis needs room above; nan compares false


class DownsampledSeries:
    """Rows sorted by step, each in a bucket of its own, or many to a bucket when there are more than 800.

    A resumed run writes some steps twice: the later row is the one that counts. Rows without a step are left out.

    Args:
        rows: Dictionaries with a `step`.

    Example:
        >>> track = DownsampledSeries([{"step": 1, "kl": 0.5}, {"step": 2, "kl": float("nan")}])
        >>> track.curve("kl")["values"], track.not_finite("kl"), track.curve("beta")
        ([0.5, None], 1, None)
    """

    def __init__(self, rows: Sequence[Row]):
        latest = {step: row for row in rows if (step := finite(row.get("step"))) is not None}
        self.steps = sorted(latest)
        self.rows = [latest[step] for step in self.steps]
        self.bucketed = len(self.steps) > MOST_POINTS
        count = BUCKETS if self.bucketed else len(self.steps)
        indices = range(len(self.steps))
        if self.bucketed:
            first, width = self.steps[0], (self.steps[-1] - self.steps[0]) / count
            place = [min(int((step - first) / width), count - 1) for step in self.steps]
            self.buckets = [list(bucket) for _, bucket in groupby(indices, place.__getitem__)]
        else:
            self.buckets = [[i] for i in indices]

    def grid(self) -> dict[str, Any]:
        """Say where the buckets lie.

        Returns:
            `x`, the mean step of each bucket, and, when a bucket holds many, `spans`: its first and last step.
        """
        steps = [[self.steps[i] for i in bucket] for bucket in self.buckets]
        grid: dict[str, Any] = {"x": [_short(math.fsum(some) / len(some)) for some in steps]}
        if self.bucketed:
            grid["spans"] = [[some[0], some[-1]] for some in steps]
        return grid

    def curve(self, key: str) -> dict[str, Any] | None:
        """Return the numbers under a key, ready to draw.

        Args:
            key: A key of the rows. Beside it, `key_std_error` is read when it is there.

        Returns:
            None when no row has a finite number. Otherwise `last` (the last number and its step, not rounded), `values`
            (the mean of each bucket; None is a gap), and `low` and `high`: the least and the greatest number of each
            bucket, or two standard errors to either side when each bucket is one row.
        """
        values = [finite(row.get(key)) for row in self.rows]
        known = [i for i, value in enumerate(values) if value is not None]
        if not known:
            return None
        curve: dict[str, Any] = {"last": {"x": self.steps[known[-1]], "value": values[known[-1]]}}
        if self.bucketed:
            groups = [[value for i in bucket if (value := values[i]) is not None] for bucket in self.buckets]
            curve["values"] = [_short(math.fsum(some) / len(some)) if some else None for some in groups]
            curve["low"] = [_short(min(some, default=None)) for some in groups]
            curve["high"] = [_short(max(some, default=None)) for some in groups]
            return curve
        curve["values"] = [_short(value) for value in values]
        errors = [finite(row.get(f"{key}_std_error")) for row in self.rows]
        if any(error is not None for error in errors):
            pairs = list(zip(values, errors, strict=True))
            curve["low"] = [None if v is None or e is None else _short(v - 2 * e) for v, e in pairs]
            curve["high"] = [None if v is None or e is None else _short(v + 2 * e) for v, e in pairs]
        return curve

    def not_finite(self, key: str) -> int:
        """Count the numbers under a key that are nan or infinite.

        Args:
            key: A key of the rows.

        Returns:
            How many. What is absent or None was not measured, and is not counted.
        """
        return sum(finite(value) is None for row in self.rows if isinstance(value := row.get(key), Real))


def _short(number: float | None) -> float | None:
    """Eight significant digits: the drawing needs three, its reader six."""
    return None if number is None else float(f"{number:.8g}")
