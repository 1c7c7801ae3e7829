"""Quantiles of a stream of numbers from a histogram that can be merged and stored exactly."""

import math
from collections.abc import Iterable, Mapping
from math import inf, isfinite, nan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kullback.errors import InputError, SupportError

__all__ = ["QuantileSketch"]

_DROPPED_BITS = 45  # of the 52 bits of a significand; 2^7 bins remain for each power of 2
_SMALLEST = 2.0**-1022


class QuantileSketch:
    """A histogram of numbers from which quantiles are computed with a relative error of at most 2^-8 = 0.4%.

    Each power of 2 is divided into 128 bins of equal width, and a bin is identified by the first bits of the numbers in
    it. The bins thus do not depend on the numbers, their order or the processor. A sketch has at most 524 288 bins; the
    token KL of a corpus uses about 3000. The minimum and the maximum are exact.

    Example:
        >>> sketch = QuantileSketch()
        >>> sketch.add([0.0, 1e-9, 0.02, 3.0])
        >>> [f"{sketch.quantile(q):.3g}" for q in (0, 0.5, 1)]
        ['0', '0.00998', '3']
    """

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}
        self.count, self.minimum, self.maximum = 0, inf, -inf

    def add(self, values: ArrayLike) -> None:
        """Add numbers.

        Args:
            values: The numbers, any shape. Numbers with an absolute value below 2^-1022 count as 0.

        Raises:
            SupportError: A number is nan.
        """
        numbers = np.asarray(values, np.float64).ravel() + 0.0  # -0.0 becomes 0.0
        if np.isnan(numbers).any():
            raise SupportError(f"expected numbers, got nan at index {int(np.isnan(numbers).argmax())}")
        if not numbers.size:
            return
        numbers[abs(numbers) < _SMALLEST] = 0.0
        bits = abs(numbers).view(np.int64) >> _DROPPED_BITS
        bins, counts = np.unique(np.where(numbers < 0, ~bits, bits), return_counts=True)
        self._merge(dict(zip(bins.tolist(), counts.tolist(), strict=True)), float(numbers.min()), float(numbers.max()))

    def merge(self, other: "QuantileSketch") -> None:
        """Add the numbers of another sketch.

        Args:
            other: The other sketch.
        """
        self._merge(other._bins, other.minimum, other.maximum)

    def _merge(self, bins: Mapping[int, int], minimum: float, maximum: float) -> None:
        for key, count in bins.items():
            self._bins[key] = self._bins.get(key, 0) + count
        self.count += sum(bins.values())
        self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)

    def quantile(self, q: float) -> float:
        """The q-quantile, interpolated linearly between the order statistics around position q (count - 1).

        Args:
            q: A number from 0 to 1.

        Returns:
            The quantile. Where the two order statistics have one sign, the relative error is at most 2^-8. The
            quantiles 0 and 1 are exact. The result is nan without numbers.

        Raises:
            SupportError: q is not from 0 to 1.
        """
        if not 0 <= q <= 1:
            raise SupportError(f"expected q to be from 0 to 1, got {q!r}")
        if not self.count:
            return nan
        position = q * (self.count - 1)
        below = math.floor(position)
        weight = position - below
        low = self._order_statistic(below)
        return low if not weight else (1 - weight) * low + weight * self._order_statistic(below + 1)

    def _order_statistic(self, rank: int) -> float:
        """The number at a rank from 0, by the middle of its bin."""
        if rank == 0:
            return self.minimum
        if rank == self.count - 1:
            return self.maximum
        count = 0
        for key in sorted(self._bins):
            count += self._bins[key]
            if count > rank:
                return min(max(_middle(key), self.minimum), self.maximum)
        raise AssertionError("the rank is below the count")

    def state(self) -> dict[str, Any]:
        """The sketch as values that JSON stores exactly.

        Returns:
            A dictionary, in which infinities are the strings "inf" and "-inf".
        """
        ends = numbers_to_json((self.minimum, self.maximum))
        return {"bins": {str(key): self._bins[key] for key in sorted(self._bins)}, "ends": ends}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "QuantileSketch":
        """Restore a sketch.

        Args:
            state: The result of `state`, also after storage as JSON.

        Returns:
            A sketch that equals the original.

        Raises:
            InputError: The state is damaged.
        """
        sketch = cls()
        try:
            bins = {int(key): int(count) for key, count in state["bins"].items()}
            minimum, maximum = map(float, state["ends"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"expected the state of a quantile sketch, got a damaged one: {error!r}") from error
        sketch._merge(bins, minimum, maximum)
        return sketch

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantileSketch) and self.state() == other.state()

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _middle(key: int) -> float:
    """The middle of a bin; infinite numbers and 0 have bins of their own."""
    size = ~key if key < 0 else key
    bits = size << _DROPPED_BITS
    if size and size != 2047 << 52 - _DROPPED_BITS:
        bits |= 1 << _DROPPED_BITS - 1
    value = float(np.int64(bits).view(np.float64))
    return -value if key < 0 else value


def numbers_to_json(numbers: Iterable[float]) -> list[float | str]:
    """Numbers as JSON stores them exactly: infinities and nan are strings, which `float` converts back."""
    return [number if isfinite(number) else str(number) for number in numbers]
