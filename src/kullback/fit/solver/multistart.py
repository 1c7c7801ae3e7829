"""Descents from several starts, and the minima that they end in."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from kullback.fit.result import Minimum, Step
from kullback.fit.solver.trust_region import Descent, Problem, descend
from kullback.numerics.arrays import Array

__all__ = ["Chart", "MultistartResult", "search"]

_SAME = 1e-4  # nearer in value and in the members' coordinates than this, relative to their size, is one minimum


class Chart(Protocol):
    """A family's members as vectors without bounds, and back."""

    def vector(self, record: Any, /) -> Array:
        """Where a member is."""
        ...

    def record(self, vector: Array, /) -> Any:
        """The member that is there."""
        ...


class MultistartResult(NamedTuple):
    """What came of the descents.

    Args:
        path: Of the first start.
        minima: The lowest first, each with its starts.
        converged: Whether the descent to the lowest came to a minimum.
    """

    path: tuple[Step, ...]
    minima: tuple[Minimum, ...]
    converged: bool


def search(chart: Chart, problem: Problem, starts: Sequence[Any]) -> MultistartResult:
    """Descend from every start."""
    ends: list[tuple[Descent, list[Any]]] = []
    begun: list[tuple[Array, list[Any]]] = []
    path: tuple[Step, ...] = ()
    for number, start in enumerate(starts):
        with np.errstate(all="ignore"):
            vector = chart.vector(start)
        if not np.isfinite(vector).all():
            continue  # on the family's edge
        if (twin := next((basin for seen, basin in begun if np.array_equal(seen, vector)), None)) is not None:
            twin.append(start)
            continue
        # The first path is told whole.
        descent = descend(problem, vector, known=[end for end, _ in ends if end.converged] if number else ())
        if number == 0:
            path = tuple(Step(chart.record(one), kl) for one, kl in zip(descent.vectors, descent.values, strict=True))
        if not np.isfinite(descent.values[-1]):
            continue
        for end, basin in ends:
            if end is descent or _same(chart, end, descent):
                basin.append(start)
                begun.append((vector, basin))
                break
        else:
            ends.append((descent, [start]))
            begun.append((vector, ends[-1][1]))
    # Of values that only rounding tells apart, the coordinates decide.
    ends.sort(key=lambda end: (round(end[0].values[-1], 9), *end[0].vectors[-1]))
    # What did not settle is no minimum: where nothing did, the lowest place is all there is.
    settled = [end for end in ends if end[0].converged] or ends[:1]
    minima = tuple(Minimum(chart.record(end.vectors[-1]), end.values[-1], tuple(basin)) for end, basin in settled)
    return MultistartResult(path, minima, bool(settled and settled[0][0].converged))


def _same(chart: Chart, one: Descent, other: Descent) -> bool:
    a, b = (chart.vector(chart.record(descent.vectors[-1])) for descent in (one, other))
    near = np.abs(a - b) <= _SAME * (1 + np.abs(a))
    return bool(near.all()) and abs(one.values[-1] - other.values[-1]) <= 1e-7 * (1 + abs(one.values[-1]))
