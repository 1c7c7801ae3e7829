"""Reverse fits of members that end as sharply as their target does: minima on the target's own ends."""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import isfinite
from typing import Any

from kullback import families
from kullback.densities.density import Density
from kullback.families import Distribution
from kullback.fit.result import Minimum
from kullback.fit.solver.multistart import MultistartResult, search
from kullback.fit.solver.objectives import problem_on_the_line
from kullback.fit.solver.parametrisation import coordinates_of

__all__ = ["search_with_edges"]

# Parameters that are an end of the support, and which.
_ENDS = {families.Uniform: {"low": 0, "high": 1}, families.Pareto: {"scale": 0}}
_INWARD = 1e-6  # of the member's width


def search_with_edges(
    kind: type[Distribution],
    density: Density,
    starts: Sequence[Distribution],
    fixed: dict[str, Any],
    kl: Callable[[Distribution], float],
) -> MultistartResult:
    """The minima of KL(member || target), those included where the member ends where the target does.

    Past the target's end KL is `inf`, so that a minimum there has no vanishing gradient: the end is held, the rest is
    searched, and it is a minimum if KL rises inward.
    """
    chart = coordinates_of(kind, starts[0], fixed)
    free = search(chart, problem_on_the_line(chart, density, alpha=0.0), starts)
    ends = {
        name: density.support[side]
        for name, side in _ENDS.get(kind, {}).items()
        if name not in fixed and isfinite(density.support[side])
    }
    held = [
        minimum
        for count in range(1, len(ends) + 1)
        for names in combinations(ends, count)
        for minimum in _held(kind, density, starts, fixed, {name: ends[name] for name in names}, kl)
    ]
    if not held:
        return free
    minima = sorted([*(free.minima if free.converged else ()), *held], key=lambda one: one.kl)
    return MultistartResult(free.path, tuple(minima), True)


def _held(
    kind: type[Distribution],
    density: Density,
    starts: Sequence[Distribution],
    fixed: dict[str, Any],
    ends: dict[str, float],
    kl: Callable[[Distribution], float],
) -> list[Minimum]:
    begin = [kind(**vars(one) | ends) for one in starts if _inside(one, ends)]
    if not begin:
        return []
    chart = coordinates_of(kind, begin[0], fixed | ends)
    if chart.size == 0:
        minima = (Minimum(begin[0], kl(begin[0]), tuple(starts)),)
    else:
        found = search(chart, problem_on_the_line(chart, density, alpha=0.0), begin)
        minima = found.minima if found.converged else ()
    return [one for one in minima if isfinite(one.kl) and all(kl(moved) > one.kl for moved in _inward(one, ends))]


def _inside(start: Any, ends: dict[str, float]) -> bool:
    held = vars(start) | ends
    return held["low"] < held["high"] if isinstance(start, families.Uniform) else held["scale"] > 0


def _inward(minimum: Minimum, ends: dict[str, float]) -> list[Distribution]:
    here: Any = minimum.distribution
    width = here.scale if isinstance(here, families.Pareto) else here.high - here.low
    return [
        type(here)(**vars(here) | {name: end + (-1 if name == "high" else 1) * _INWARD * width})
        for name, end in ends.items()
    ]
