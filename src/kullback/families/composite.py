"""Distributions made of others."""

from typing import Any

from kullback.families.base import Distribution, Positive, Probability, Real, record, require_mass_one

__all__ = ["Independent", "NormalMixture", "TanhNormal", "Transformed"]


@record
class NormalMixture(Distribution):
    """A mixture of normals on the line: weights, locs and scales lie along the last axis, and weights sum to one.

    Example:
        >>> NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
        NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
    """

    weights: Probability
    locs: Real
    scales: Positive

    def _check(self) -> None:
        require_mass_one(self, "weights")


@record
class TanhNormal(Distribution):
    """tanh(x) for x Normal(loc, scale): a squashed normal, as soft actor-critic has it."""

    loc: Real
    scale: Positive


@record
class Independent(Distribution):
    """The last `event_dims` batch axes of `base` as one event of independent parts."""

    base: Any
    event_dims: int


@record
class Transformed(Distribution):
    """transform(x) for x from `base`.

    `transform` may be anything that tells itself from others by ==: a name, or a library's own object. KL looks through
    two equal ones only if they are invertible, which an attribute `bijective` says, or else `invertible` here.
    """

    base: Any
    transform: Any
    invertible: bool = False
