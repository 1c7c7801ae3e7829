"""Distributions on an interval, and on the circle."""

from kullback.families.base import (
    Constraint,
    Distribution,
    Nonnegative,
    Positive,
    Probability,
    Real,
    record,
    require,
    require_one_of,
    require_order,
)

__all__ = ["Beta", "ContinuousBernoulli", "Kumaraswamy", "Uniform", "VonMises"]


_BETWEEN = Constraint("between 0 and 1, where it has a density", lambda x: (x > 0) & (x < 1))


@record
class Uniform(Distribution):
    """Density 1 / (high - low), low <= x <= high."""

    low: Real
    high: Real

    def _check(self) -> None:
        require_order(self, "high", "low")


@record
class Beta(Distribution):
    """Density proportional to x^(concentration1 - 1) (1 - x)^(concentration0 - 1), 0 < x < 1."""

    concentration1: Positive
    concentration0: Positive


@record
class Kumaraswamy(Distribution):
    """Density a b x^(a - 1) (1 - x^a)^(b - 1), 0 < x < 1, with a = concentration1 and b = concentration0."""

    concentration1: Positive
    concentration0: Positive


@record
class ContinuousBernoulli(Distribution):
    """Density proportional to probs^x (1 - probs)^(1 - x), 0 <= x <= 1, with 0 < probs < 1; or give logits."""

    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")
        if self.probs is not None:
            require(self, "probs", self.probs, _BETWEEN)


@record
class VonMises(Distribution):
    """Density proportional to exp(concentration cos(x - loc)), on the circle: loc and loc + 2 pi are one."""

    loc: Real
    concentration: Nonnegative
