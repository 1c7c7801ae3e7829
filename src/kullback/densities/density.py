"""A univariate density, or a probability mass function on the integers, as quadrature and summation evaluate it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from kullback.errors import SupportError
from kullback.numerics.arrays import Array

__all__ = ["Density", "require_resolved_counts"]


@dataclass(frozen=True)
class Density:
    """A density on the real line, or a probability mass function on the integers.

    Args:
        log_density: Called as `log_density(origin, offset)`; returns the log-density at origin + offset, and -inf
            outside the support. The point is passed as a sum so that a density that is steep at an end of its support
            keeps its relative accuracy near that end.
        support: The smallest interval outside which the density is 0.
        anchors: Pairs (location, width) of the points around which the density varies and the length over which it
            varies. Every point where the density is not smooth is a location.
        fine_ends: Ends of the support near which `log_density` uses the offset without rounding, so that every power
            of the distance to the end is evaluated to full accuracy. (Points near 0 always are.)
        discrete: Whether the distribution is supported on integers.
        sample: Called as `sample(count, rng)`; returns `count` independent draws. None without a sampler.
        gaps: Disjoint intervals inside the support in which a continuous density is 0, in increasing order.
        epsilon: The relative rounding error of one operation in `log_density`: 1.2e-7 if it is computed in float32.
    """

    log_density: Callable[[Array, Array], Array]
    support: tuple[float, float] = (-inf, inf)
    anchors: tuple[tuple[float, float], ...] = ()
    fine_ends: tuple[float, ...] = ()
    discrete: bool = False
    sample: Callable[[int, Any], Array] | None = None
    gaps: tuple[tuple[float, float], ...] = ()
    epsilon: float = 2.0**-52


def require_resolved_counts(*densities: Density) -> None:
    """Check that float64 distinguishes the counts on which probability mass functions are concentrated.

    Args:
        densities: Probability mass functions.

    Raises:
        SupportError: A mass function is narrower than the distance between the float64 numbers at its anchor.

    Example:
        >>> from kullback.densities.from_families import as_density
        >>> from kullback.families import Poisson
        >>> require_resolved_counts(as_density(Poisson(rate=1e6)))
    """
    for location, width in (anchor for density in densities for anchor in density.anchors):
        if not np.spacing(abs(location)) <= width:
            raise SupportError(
                f"expected counts that float64 distinguishes, got a distribution of width {width:.3g} near "
                f"{location:.3g}, where float64 numbers are {np.spacing(abs(location)):.3g} apart; use a continuous "
                "approximation, such as a normal distribution of x - constant"
            )
