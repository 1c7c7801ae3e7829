"""Minimisation from several starting points, and the distinct minima that are found."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np

from kullback.fit.result import Minimum, Step
from kullback.fit.solver.parametrisation import Parametrisation
from kullback.fit.solver.trust_region import Descent, Objective, minimise
from kullback.numerics.arrays import Array

__all__ = ["MultistartResult", "minimise_from_starts"]

# Two end points are one minimum where their coordinates and values differ by less, relative to their size.
_COORDINATE_TOLERANCE = 1e-4
_VALUE_TOLERANCE = 1e-7
_ZERO = 1e-12  # nats above the lower bound that are rounding
_MAX_EVALUATIONS = 10**8  # log-densities in all descents, which take about 10 s of simple densities


class MultistartResult(NamedTuple):
    """The result of minimisation from several starting points.

    Args:
        path: The steps from the first start.
        minima: The distinct minima, the lowest first, each with the starts that led to it.
        converged: Whether the descent to the lowest minimum converged, and every start was used.
    """

    path: tuple[Step, ...]
    minima: tuple[Minimum, ...]
    converged: bool


def minimise_from_starts(
    parametrisation: Parametrisation,
    objective: Objective,
    starts: Sequence[Any],
    *,
    lower_bound: float = -inf,
    is_unbounded: Callable[[Array], bool] | None = None,
) -> MultistartResult:
    """Minimise an objective from every starting point and collect the distinct minima.

    Args:
        parametrisation: The coordinates of the family.
        objective: The objective as a function of the coordinates.
        starts: Members of the family. A member on the boundary of the family is skipped.
        lower_bound: A number that no value of the objective is below, such as 0 for a KL. A minimum with this value is
            the lowest, whatever the other starts lead to.
        is_unbounded: Whether the objective decreases without bound from a vector on. A descent that ends there is
            used only if no descent converged.

    Returns:
        The minima. If a descent that did not converge ended below all minima, its end is the first, with `converged`
        false. There are no minima where the objective is infinite at every start. The descents end after 1e8
        evaluations of log-densities, and each descent after half of those that are left.
    """
    evaluations = 0
    ends: list[tuple[Descent, list[Any]]] = []
    basin_of_start: list[tuple[Array, list[Any]]] = []
    path: tuple[Step, ...] = ()
    for number, start in enumerate(starts):
        with np.errstate(all="ignore"):
            vector = parametrisation.to_vector(start)
        if not np.isfinite(vector).all():
            continue
        repeated = next((basin for earlier, basin in basin_of_start if np.array_equal(earlier, vector)), None)
        if repeated is not None:
            repeated.append(start)
            continue
        # The first descent is complete, because its path is part of the result.
        known_minima = [end for end, _ in ends if end.converged] if number else ()
        if evaluations >= _MAX_EVALUATIONS:
            break
        # A descent from a distant start must not take the evaluations of all others.
        remaining = (_MAX_EVALUATIONS - evaluations) / 2
        descent = minimise(objective, vector, max_evaluations=remaining, known_minima=known_minima)
        evaluations += descent.evaluations
        if number == 0:
            path = tuple(
                Step(parametrisation.to_distribution(iterate), kl)
                for iterate, kl in zip(descent.vectors, descent.values, strict=True)
            )
        if not np.isfinite(descent.values[-1]):
            continue
        for end, basin in ends:
            if end.vectors is descent.vectors or _is_same_minimum(parametrisation, end, descent):
                basin.append(start)
                basin_of_start.append((vector, basin))
                break
        else:
            ends.append((descent, [start]))
            basin_of_start.append((vector, ends[-1][1]))
    # The coordinates order minima whose values differ by rounding alone.
    ends.sort(key=lambda end: (round(end[0].values[-1], 9), *end[0].vectors[-1]))
    accepted = [end for end in ends if end[0].converged]
    lowest_minimum = accepted[0][0].values[-1] if accepted else inf
    below = (end for end in ends if end[0].values[-1] < lowest_minimum - _tolerance(end[0]))
    unfinished = [end for end in below if is_unbounded is None or not is_unbounded(end[0].vectors[-1])]
    accepted = [*unfinished[:1], *accepted] if accepted else ends[:1]
    minima = tuple(
        Minimum(parametrisation.to_distribution(descent.vectors[-1]), descent.values[-1], tuple(basin))
        for descent, basin in accepted
    )
    lowest = accepted[0][0].values[-1] if accepted else inf
    is_complete = evaluations < _MAX_EVALUATIONS or lowest <= lower_bound + _ZERO
    return MultistartResult(path, minima, bool(is_complete and accepted and accepted[0][0].converged))


def _is_same_minimum(parametrisation: Parametrisation, first: Descent, second: Descent) -> bool:
    # The round trip sorts the components of mixtures.
    with np.errstate(all="ignore"):
        a, b = (
            parametrisation.to_vector(parametrisation.to_distribution(descent.vectors[-1]))
            for descent in (first, second)
        )
        distance = np.abs(a - b)
        distance = np.minimum(distance, np.abs(parametrisation.periods - distance))
    is_close = distance <= _COORDINATE_TOLERANCE * (1 + np.abs(a))
    difference = abs(first.values[-1] - second.values[-1])
    return bool(is_close.all()) and difference <= _tolerance(first)


def _tolerance(descent: Descent) -> float:
    """The difference of values that is a rounding error, in nats."""
    return _VALUE_TOLERANCE * (1 + abs(descent.values[-1]))
