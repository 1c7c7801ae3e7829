"""Distributions on an interval, and on the circle."""

from kullback.families._record import (
    Nonnegative,
    Positive,
    Probability,
    Real,
    Record,
    record,
    require_one_of,
    require_order,
)

__all__ = ["Beta", "ContinuousBernoulli", "Kumaraswamy", "Uniform", "VonMises"]


@record
class Uniform(Record):
    """Density 1 / (high - low), low <= x <= high."""

    low: Real
    high: Real

    def _check(self) -> None:
        require_order(self, "high", "low")


@record
class Beta(Record):
    """Density proportional to x^(concentration1 - 1) (1 - x)^(concentration0 - 1), 0 < x < 1."""

    concentration1: Positive
    concentration0: Positive


@record
class Kumaraswamy(Record):
    """Density a b x^(a - 1) (1 - x^a)^(b - 1), 0 < x < 1, with a = concentration1 and b = concentration0."""

    concentration1: Positive
    concentration0: Positive


@record
class ContinuousBernoulli(Record):
    """Density proportional to probs^x (1 - probs)^(1 - x), 0 <= x <= 1; or give logits."""

    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")


@record
class VonMises(Record):
    """Density proportional to exp(concentration cos(x - loc)), on the circle: loc and loc + 2 pi are one."""

    loc: Real
    concentration: Nonnegative
