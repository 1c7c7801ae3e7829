"""Reverse fits whose minimum lies where a bound of the member's support equals a bound of the target's support."""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import inf, isfinite
from typing import Any

import numpy as np

from kullback.closed_forms.supports import support, support_parameters
from kullback.densities.density import Density
from kullback.errors import ParameterError
from kullback.families import Distribution
from kullback.fit.result import Minimum
from kullback.fit.solver.multistart import MultistartResult, minimise_from_starts
from kullback.fit.solver.objectives import univariate_objective
from kullback.fit.solver.parametrisation import parametrise

__all__ = ["minimise_with_support_bounds"]

_INWARD_STEP = 1e-6  # in units of the width of the support, or of its finite bound


def minimise_with_support_bounds(
    family: type[Distribution],
    target: Density,
    starts: Sequence[Distribution],
    fixed: dict[str, Any],
    kl: Callable[[Distribution], float],
) -> MultistartResult:
    """Minimise KL(member || target), with minima at the bounds of the target's support included.

    KL(member || target) is `inf` for a member that extends beyond the target's support. The gradient therefore need
    not vanish at a minimum on the bound: the parameter is fixed at the bound, the other parameters are fitted, and the
    result is a minimum if KL increases when the bound is moved inward.

    Args:
        family: The class of the family.
        target: The density of the target.
        starts: Members of the family.
        fixed: The parameters that are not fitted, by name.
        kl: KL(member || target) of a member, in nats.
    """
    parametrisation = parametrise(family, starts[0], fixed)
    objective = univariate_objective(parametrisation, target, alpha=0.0)
    interior = minimise_from_starts(parametrisation, objective, starts, lower_bound=0.0)
    bounds = {
        name: target.support[side]
        for name, side in support_parameters(family).items()
        if name not in fixed and isfinite(target.support[side])
    }
    on_boundary = [
        minimum
        for count in range(1, len(bounds) + 1)
        for names in combinations(bounds, count)
        for minimum in _boundary_minima(family, target, starts, fixed, {name: bounds[name] for name in names}, kl)
    ]
    if not on_boundary:
        return interior
    minima = sorted([*(interior.minima if interior.converged else ()), *on_boundary], key=lambda minimum: minimum.kl)
    return MultistartResult(interior.path, tuple(minima), True)


def _boundary_minima(
    family: type[Distribution],
    target: Density,
    starts: Sequence[Distribution],
    fixed: dict[str, Any],
    bounds: dict[str, float],
    kl: Callable[[Distribution], float],
) -> list[Minimum]:
    """The minima of KL(member || target) with some parameters fixed at bounds of the target's support."""
    bounded_starts = [member for start in starts if (member := _with_parameters(start, bounds)) is not None]
    if not bounded_starts:
        return []
    parametrisation = parametrise(family, bounded_starts[0], fixed | bounds)
    if parametrisation.size == 0:
        minima = (Minimum(bounded_starts[0], kl(bounded_starts[0]), tuple(starts)),)
    else:
        objective = univariate_objective(parametrisation, target, alpha=0.0)
        found = minimise_from_starts(parametrisation, objective, bounded_starts, lower_bound=0.0)
        minima = found.minima if found.converged else ()
    return [
        minimum
        for minimum in minima
        if isfinite(minimum.kl) and all(kl(neighbour) > minimum.kl for neighbour in _inward(minimum, bounds))
    ]


def _with_parameters(start: Distribution, parameters: dict[str, float]) -> Distribution | None:
    """The start with some parameters replaced; None if the result is not a member of the family."""
    try:
        return type(start)(**vars(start) | parameters)
    except ParameterError:
        return None


def _inward(minimum: Minimum, bounds: dict[str, float]) -> list[Distribution]:
    """The members with one bound moved inward by a small step."""
    member = minimum.distribution
    low, high = support(np, member)
    width = next((width for width in (high - low, abs(low), abs(high)) if 0 < width < inf), 1.0)
    sides = support_parameters(type(member))
    return [
        type(member)(**vars(member) | {name: bound + (-1 if sides[name] else 1) * _INWARD_STEP * width})
        for name, bound in bounds.items()
    ]
