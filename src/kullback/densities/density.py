"""What quadrature, summation and Monte Carlo know of a distribution on the line."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from kullback.numerics.arrays import Array

__all__ = ["Density"]


@dataclass(frozen=True)
class Density:
    """A density on the line, or the probabilities of whole numbers.

    Args:
        log_density: Called as `log_density(origin, offset)`; its logarithm at origin + offset, -inf outside the
            support. The two come apart so that a density that is steep at its end loses nothing near it.
        support: The least interval outside which it is 0.
        anchors: (place, width): where it changes, and over what length. Every kink is a place.
        fine_ends: Ends of the support near which log_density uses the offset as it comes, so that even a power of the
            distance is met to the last float. (Places near 0 are always told apart.)
        discrete: Whether it lives on whole numbers.
        sample: Called as `sample(count, rng)`; that many independent draws.
    """

    log_density: Callable[[Array, Array], Array]
    support: tuple[float, float] = (-inf, inf)
    anchors: tuple[tuple[float, float], ...] = ()
    fine_ends: tuple[float, ...] = ()
    discrete: bool = False
    sample: Callable[[int, Any], Array] | None = None
