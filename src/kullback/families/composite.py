"""Distributions that are built from other distributions."""

from typing import Any

from kullback.errors import ParameterError
from kullback.families.base import (
    REAL_LINE,
    Distribution,
    Positive,
    Probability,
    Real,
    Support,
    axes,
    record,
    require_mass_one,
)
from kullback.numerics.arguments import is_index

__all__ = ["Independent", "NormalMixture", "TanhNormal", "Transformed"]


@record
class NormalMixture(Distribution):
    """Mixture of univariate normal distributions; the components lie along the last axis of each parameter.

    Density: sum_i weights_i exp(-(x - locs_i)^2 / (2 scales_i^2)) / (scales_i sqrt(2 pi)).

    Args:
        weights: The probabilities of the components, shape (..., n); in [0, 1], with sum 1 along the last axis.
        locs: The means of the components, shape (..., n); finite.
        scales: The standard deviations of the components, shape (..., n); > 0 and finite.

    Raises:
        NotNormalizedError: The weights do not sum to 1.
        ParameterError: An entry of a parameter violates its constraint.
        ShapeError: `weights` is a number.

    Example:
        >>> NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
        NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
    """

    support = REAL_LINE
    event_axes = axes(weights="n", locs="n", scales="n")

    weights: Probability
    locs: Real
    scales: Positive

    def _check(self) -> None:
        require_mass_one(self, "weights")


@record
class TanhNormal(Distribution):
    """Tanh-normal distribution on -1 < x < 1: the distribution of tanh(y) for y distributed as Normal(loc, scale).

    It is the action distribution of soft actor-critic.

    Density: exp(-(atanh(x) - loc)^2 / (2 scale^2)) / ((1 - x^2) scale sqrt(2 pi)).

    Args:
        loc: The mean of y; finite, any shape.
        scale: The standard deviation of y; > 0 and finite, broadcast against `loc`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(TanhNormal(loc=0.0, scale=1.0), TanhNormal(loc=1.0, scale=1.0))), 6)
        0.5
    """

    support = Support(-1.0, 1.0)

    loc: Real
    scale: Positive


@record
class Independent(Distribution):
    """Joint distribution of independent components: the last `event_dims` batch axes of `base` become event axes.

    Density: prod_i base_i(x_i) over the last `event_dims` axes. KL is the sum of KL over the same axes.

    Args:
        base: A distribution whose batch shape has at least `event_dims` axes.
        event_dims: The number of batch axes that become event axes; a whole number >= 0.

    Raises:
        ParameterError: `event_dims` is not a whole number >= 0.

    Example:
        >>> from kullback import kl
        >>> from kullback.families import Normal
        >>> p, q = (Independent(base=Normal(loc=[m, m], scale=1.0), event_dims=1) for m in (0.0, 1.0))
        >>> float(kl(p, q))
        1.0
    """

    base: Any
    event_dims: int

    def _check(self) -> None:
        if not is_index(self.event_dims) or self.event_dims < 0:
            raise ParameterError(
                f"expected Independent's event_dims to be a whole number >= 0, got {self.event_dims!r}"
            )


@record
class Transformed(Distribution):
    """Distribution of transform(y) for y distributed as `base` (a push-forward distribution).

    Density, for an invertible transform T: base(T^-1(x)) |det dT^-1/dx|. KL between two distributions with the same
    invertible transform equals KL between their bases. KL has no closed form for other transforms.

    Args:
        base: The distribution of y.
        transform: A name, or a transform object of another library. Two transforms are the same if they compare equal.
        invertible: Whether the transform is invertible. A true attribute `bijective` of `transform` has the same
            meaning.

    Example:
        >>> from kullback import kl
        >>> from kullback.families import Normal
        >>> bases = [Normal(loc=loc, scale=1.0) for loc in (0.0, 1.0)]
        >>> p, q = (Transformed(base=base, transform="exp", invertible=True) for base in bases)
        >>> float(kl(p, q))
        0.5
    """

    base: Any
    transform: Any
    invertible: bool = False
