"""Metrics of a run as columns, reduced to at most 800 points for drawing, for the whole run or for any part of it.

`static/run_series.js` reduces the files that are opened in the browser by the same rule.
"""

import base64
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

__all__ = ["MetricColumns", "finite"]

Row = Mapping[str, Any]

MAX_POINTS = 800  # more rows than this are drawn in blocks of 2, 4, 8, ... rows
_BASE = 6  # statistics of blocks of 2^6 rows are kept, so that a view of a long run does not read all rows
_LARGEST = 1e300  # larger numbers would overflow the padded axis
_ABSENT = object()
_NOT_FINITE = {"nan", "inf", "-inf", "infinity", "-infinity"}  # as other programs write them


def finite(value: object) -> float | None:
    """Convert a value to a finite float.

    Args:
        value: Any value of a row of metrics.

    Returns:
        The number, or None when the value is nan, infinite or not a number.

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
    return number if abs(number) < _LARGEST else None  # nan compares false


class MetricColumns:
    """Rows of metrics in the order of their steps, one column for each key, to which further rows can be appended.

    When several rows have the same step, the last row is used: a resumed run writes some steps twice. Rows without a
    step are omitted and counted.

    Args:
        rows: Dictionaries with the key `step`.
        is_missing: Whether None under a key stands for a value that does not exist. Otherwise None counts as a value
            that is not finite, because the trainers write nan and infinity as null.
        merge: Whether rows of the same step are joined, as in the logs of programs that log each value separately.

    Example:
        >>> columns = MetricColumns([{"step": 1, "kl": 0.5}, {"step": 2, "kl": float("nan")}])
        >>> columns.last("kl"), columns.not_finite("kl")
        ((1.0, 0.5), [2.0])
    """

    def __init__(
        self, rows: Iterable[Row] = (), *, is_missing: Callable[[str], bool] = lambda _key: True, merge: bool = False
    ):
        self.is_missing = is_missing
        self.merge = merge
        self.version = 0  # changes when earlier rows change
        self.count = 0
        self.omitted = 0
        self.first_row: Row | None = None
        self.last_row: Row | None = None
        # A column has a finite number, nan where the row has no value, and inf where the value is not finite.
        self._columns: dict[str, np.ndarray] = {"step": np.empty(0)}
        self._blocks: dict[str, np.ndarray] = {}
        self._built = 0
        self._last: dict[str, tuple[float, float]] = {}
        self._bad: dict[str, list[float]] = {}
        self.append(rows)

    def clear(self) -> None:
        """Remove all rows."""
        version = self.version
        self.__init__(is_missing=self.is_missing, merge=self.merge)
        self.version = version + 1

    @property
    def steps(self) -> np.ndarray:
        """The steps of the rows, in increasing order."""
        return self._columns["step"][: self.count]

    def logged_keys(self) -> list[str]:
        """The keys with at least one number, finite or not, in the order of their first occurrence."""
        return [key for key in self._columns if key in self._last or key in self._bad]

    def column(self, key: str) -> np.ndarray:
        """The values of a key: nan where a row has none, and inf where the value is not finite."""
        return self._columns[key][: self.count] if key in self._columns else np.full(self.count, math.nan)

    def last(self, key: str) -> tuple[float, float] | None:
        """The step and the value of the last finite value of a key, or None without one."""
        return self._last.get(key)

    def not_finite(self, key: str) -> list[float]:
        """The steps of the values of a key that are nan or infinite."""
        return self._bad.get(key, [])

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows, of which only the new ones are processed unless a step is not above the steps before.

        Args:
            rows: Dictionaries with the key `step`.
        """
        valid = [row for row in rows if not self._omit(row)]
        if not valid:
            return
        start, total = self.count, self.count + len(valid)
        for key in dict.fromkeys(key for row in valid for key in row):
            numbers = self._numbers(key, valid)
            if key not in self._columns:
                if np.isnan(numbers).all():
                    continue
                self._columns[key] = np.full(total, math.nan)
            column = self._columns[key] = self._with_capacity(self._columns[key], total)
            column[start:total] = numbers
        self.count = total
        steps = self._columns["step"]
        if np.all(np.diff(steps[max(0, start - 1) : total]) > 0):
            self.first_row = self.first_row or valid[0]
            self.last_row = valid[-1]
            self._record(start)
        else:
            self._sort(valid, start)

    def _omit(self, row: Row) -> bool:
        omitted = finite(row.get("step")) is None
        self.omitted += omitted
        return omitted

    def _numbers(self, key: str, rows: list[Row]) -> np.ndarray:
        """The values of a key as a column."""
        values = [row.get(key, _ABSENT) for row in rows]
        if set(map(type, values)) == {float}:
            numbers = np.array(values)
            if (np.abs(numbers) < _LARGEST).all():  # nan compares false
                return numbers
        return np.array([math.nan if value is _ABSENT else self._number(key, value) for value in values])

    def _number(self, key: str, value: object) -> float:
        if type(value) is float and -_LARGEST < value < _LARGEST:
            return value
        if value is None:
            return math.nan if self.is_missing(key) else math.inf
        if isinstance(value, str):
            return math.inf if value.lower() in _NOT_FINITE else math.nan
        if isinstance(value, bool) or not isinstance(value, Real):
            return math.nan
        number = finite(value)
        return math.inf if number is None else number

    def _with_capacity(self, column: np.ndarray, size: int) -> np.ndarray:
        if len(column) >= size:
            return column
        grown = np.full(max(size, 2 * len(column)), math.nan)
        grown[: len(column)] = column
        return grown

    def _sort(self, new: list[Row], start: int) -> None:
        """Sort all rows by step, and keep the last row, or the last value of each key, of each step."""
        order = np.argsort(self._columns["step"][: self.count], kind="stable")
        steps = self._columns["step"][order]
        is_last = np.append(np.diff(steps) > 0, True)
        for key, column in self._columns.items():
            values = self._with_capacity(column, self.count)[order]
            if self.merge:
                group = np.concatenate([[0], np.cumsum(is_last)[:-1]])
                recorded = np.maximum.accumulate(np.where(np.isnan(values), -1, np.arange(self.count)))
                is_same = (recorded >= 0) & (group[recorded] == group)
                values = np.where(is_same, values[recorded], math.nan)
            self._columns[key] = values[is_last]
        kept = order[is_last]
        if kept[0] >= start:
            self.first_row = new[kept[0] - start]
        if kept[-1] >= start:
            self.last_row = new[kept[-1] - start]
        self.count, self.version = len(kept), self.version + 1
        self._blocks, self._built, self._last, self._bad = {}, 0, {}, {}
        self._record(0)

    def _record(self, start: int) -> None:
        """Update the last values and the values that are not finite from the rows from `start`."""
        steps = self.steps
        for key in self._columns:
            if key == "step" or len(self._columns[key]) <= start:
                continue
            column = self._columns[key][start : self.count]
            (found,) = np.nonzero(np.isfinite(column))
            if len(found):
                self._last[key] = float(steps[start + found[-1]]), float(column[found[-1]])
            (bad,) = np.nonzero(np.isinf(column))
            if len(bad):
                self._bad.setdefault(key, []).extend(steps[start + bad].tolist())

    # ---- views ----

    def view(
        self, low: float | None = None, high: float | None = None, *, x: str = "step", since: int = 0
    ) -> dict[str, Any]:
        """Return the rows, or blocks of rows, of a part of the run.

        A block has 2^k rows, where k is the smallest number for which the part has at most 800 blocks.

        Args:
            low: The smallest value of the key `x` in the part; None for the whole run.
            high: The largest value.
            x: The key that `low` and `high` refer to.
            since: Omit the blocks whose rows are all among the first `since` rows.

        Returns:
            JSON types: `rows`, the number of rows of the run; `version`; `k`; `first`, the index of the first block in
            the run; `x`, the mean step of each block; `from` and `to`, its first and last step, for k > 0; and
            `columns`, a dictionary for each key: `mean`, `low` and `high` of the finite values of each block, which
            are nan without such a value, and `bad`, the indices in these lists of the blocks with a value that is not
            finite. Lists of numbers are base64-encoded little-endian float64.
        """
        start, stop = 0, self.count
        if low is not None and high is not None:
            column = self.column(x)
            (inside,) = np.nonzero((column >= low) & (column <= high))
            if len(inside):  # with a row on each side, so that a line reaches the ends of the part
                start, stop = max(0, int(inside[0]) - 1), min(self.count, int(inside[-1]) + 2)
            else:
                start, stop = 0, 0
        k = _level(stop - start)
        if since and _level(since) != k:
            since = 0  # the blocks of an earlier view had another size
        first = max(start, since - self.merge) >> k
        last = max(first, -(-stop >> k))
        view: dict[str, Any] = {"rows": self.count, "version": self.version, "k": k, "first": first}
        steps = self.steps
        view["x"] = packed(self._reduced("step", k, first, last)[0])
        if k:
            ends = np.minimum(np.arange(first + 1, last + 1) << k, self.count) - 1
            view |= {"from": packed(steps[(np.arange(first, last) << k)]), "to": packed(steps[ends])}
        view["columns"] = {}
        for key in self.logged_keys():
            if k and key.endswith("_std_error"):
                continue
            mean, lowest, highest, bad = self._reduced(key, k, first, last)
            view["columns"][key] = {"mean": packed(mean)}
            if k:
                view["columns"][key] |= {"low": packed(lowest), "high": packed(highest)}
            if bad.any():
                view["columns"][key]["bad"] = np.nonzero(bad)[0].tolist()
        return view

    def _reduced(self, key: str, k: int, first: int, last: int) -> tuple[np.ndarray, ...]:
        """The mean, the minimum, the maximum and whether a value is not finite, of the blocks first, ..., last - 1."""
        if last <= first:
            return (np.empty(0),) * 4
        if k < _BASE:
            rows = self._columns[key][first << k : min(last << k, self.count)]
            rows = np.concatenate([rows, np.full((last << k) - (first << k) - len(rows), math.nan)])
            total, count, lowest, highest, bad = _statistics(rows.reshape(-1, 1 << k))
        else:
            self._build_blocks()
            size = 1 << (k - _BASE)
            base = self._blocks[key][:, first * size : min(last * size, self._base_count)]
            starts = np.arange(0, base.shape[1], size)
            total, count, bad = (np.add.reduceat(base[i], starts) for i in (0, 1, 4))
            lowest, highest = np.minimum.reduceat(base[2], starts), np.maximum.reduceat(base[3], starts)
        is_empty = count == 0
        mean = np.where(is_empty, math.nan, total / np.maximum(count, 1))
        return mean, np.where(is_empty, math.nan, lowest), np.where(is_empty, math.nan, highest), bad > 0

    @property
    def _base_count(self) -> int:
        return -(-self.count >> _BASE)

    def _build_blocks(self) -> None:
        """Bring the statistics of the blocks of 2^6 rows up to date, from the last block that was complete."""
        if self._built == self.count:
            return
        complete = self._built >> _BASE
        for key in self._columns:
            known = self._blocks.get(key)
            done = 0 if known is None else complete
            rows = self._with_capacity(self._columns[key], self.count)[done << _BASE : self.count]
            rows = np.concatenate([rows, np.full(-len(rows) % (1 << _BASE), math.nan)])
            new = np.stack(_statistics(rows.reshape(-1, 1 << _BASE)))
            self._blocks[key] = new if known is None else np.concatenate([known[:, :done], new], axis=1)
        self._built = self.count


def _level(rows: int) -> int:
    """The smallest k for which blocks of 2^k of these rows are at most 800."""
    return max(0, math.ceil(math.log2(max(1, rows) / MAX_POINTS)))


def _statistics(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """The sum, number, minimum and maximum of the finite values of each row, and the number of infinities."""
    is_finite = np.isfinite(rows)
    total = np.where(is_finite, rows, 0.0).sum(axis=1)
    lowest = np.where(is_finite, rows, math.inf).min(axis=1)
    highest = np.where(is_finite, rows, -math.inf).max(axis=1)
    return total, is_finite.sum(axis=1), lowest, highest, np.isinf(rows).sum(axis=1)


def packed(numbers: np.ndarray) -> str:
    """Encode numbers as little-endian float64 in base64, which keeps nan and every digit."""
    return base64.b64encode(np.asarray(numbers, "<f8").tobytes()).decode("ascii")
