"""Distributions on a bounded interval, and on the circle."""

from typing import Annotated, TypeAlias

from kullback.families.base import (
    UNIT_INTERVAL,
    Constraint,
    Distribution,
    Nonnegative,
    Positive,
    Probability,
    Real,
    Support,
    record,
    require,
    require_one_of,
    require_order,
)
from kullback.numerics.arrays import ArrayLike

__all__ = ["Beta", "ContinuousBernoulli", "Kumaraswamy", "TruncatedNormal", "Uniform", "VonMises"]


_Bound: TypeAlias = Annotated[ArrayLike, Constraint("a number, -inf or inf", lambda x: x == x)]
_BETWEEN = Constraint("strictly between 0 and 1", lambda x: (x > 0) & (x < 1))


@record
class Uniform(Distribution):
    """Uniform distribution on low <= x <= high.

    Density: 1 / (high - low).

    Args:
        low: The lower end; finite, any shape.
        high: The upper end; finite and above `low`, broadcast against `low`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Uniform(low=0.0, high=1.0), Uniform(low=0.0, high=2.0))), 6)
        0.693147
    """

    support = Support("low", "high")

    low: Real
    high: Real

    def _check(self) -> None:
        require_order(self, "high", "low")


@record
class TruncatedNormal(Distribution):
    """Normal distribution conditional on low <= x <= high.

    Density: exp(-(x - loc)^2 / (2 scale^2)) divided by its integral from low to high.

    Args:
        loc: The mean of the normal distribution before the truncation; finite, any shape.
        scale: Its standard deviation; > 0 and finite, broadcast against `loc`.
        low: The lower end; a number or -inf, broadcast against `loc`.
        high: The upper end; above `low`, a number or inf, broadcast against `loc`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> p = TruncatedNormal(loc=0.0, scale=1.0, low=30.0, high=31.0)
        >>> round(float(kl(p, TruncatedNormal(loc=0.0, scale=2.0, low=30.0, high=31.0))), 6)
        0.633362
    """

    support = Support("low", "high")

    loc: Real
    scale: Positive
    low: _Bound
    high: _Bound

    def _check(self) -> None:
        require_order(self, "high", "low")


@record
class Beta(Distribution):
    """Beta distribution on 0 < x < 1.

    Density: x^(concentration1 - 1) (1 - x)^(concentration0 - 1) / B(concentration1, concentration0) with the beta
    function B.

    Args:
        concentration1: The exponent of x plus 1; > 0 and finite, any shape.
        concentration0: The exponent of 1 - x plus 1; > 0 and finite, broadcast against `concentration1`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> p = Beta(concentration1=2.0, concentration0=3.0)
        >>> round(float(kl(p, Beta(concentration1=1.0, concentration0=1.0))), 6)
        0.234907
    """

    support = UNIT_INTERVAL

    concentration1: Positive
    concentration0: Positive


@record
class Kumaraswamy(Distribution):
    """Kumaraswamy distribution on 0 < x < 1.

    Density: a b x^(a - 1) (1 - x^a)^(b - 1) with a = concentration1 and b = concentration0.

    Args:
        concentration1: The parameter a; > 0 and finite, any shape.
        concentration0: The parameter b; > 0 and finite, broadcast against `concentration1`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> p = Kumaraswamy(concentration1=2.0, concentration0=3.0)
        >>> round(float(kl(p, Kumaraswamy(concentration1=2.0, concentration0=1.0))), 6)
        0.431946
    """

    support = UNIT_INTERVAL

    concentration1: Positive
    concentration0: Positive


@record
class ContinuousBernoulli(Distribution):
    """Continuous Bernoulli distribution on 0 <= x <= 1.

    Density: C probs^x (1 - probs)^(1 - x), where C = logit / (2 probs - 1) with logit = log(probs / (1 - probs)), and
    C = 2 for probs = 1/2. Pass exactly one of `probs` and `logits`.

    Args:
        probs: The parameter; strictly between 0 and 1, any shape.
        logits: log(probs / (1 - probs)); finite, any shape.

    Raises:
        ParameterError: An entry violates its constraint, or not exactly one parameter is passed.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(ContinuousBernoulli(probs=0.3), ContinuousBernoulli(probs=0.6))), 6)
        0.064519
    """

    support = UNIT_INTERVAL

    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")
        if self.probs is not None:
            require(self, "probs", self.probs, _BETWEEN)


@record
class VonMises(Distribution):
    """Von Mises distribution on the circle: x is an angle in radians, and x and x + 2 pi are the same point.

    Density: exp(concentration cos(x - loc)) / (2 pi I_0(concentration)) with the modified Bessel function I_0.
    `measure` and the fits use angles from -pi to pi, and the density is 0 elsewhere.

    Args:
        loc: The mean angle in radians; finite, any shape.
        concentration: The concentration; >= 0 and finite, broadcast against `loc`. 0 gives the uniform distribution.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(VonMises(loc=0.0, concentration=2.0), VonMises(loc=1.0, concentration=2.0))), 6)
        0.641531
    """

    loc: Real
    concentration: Nonnegative
