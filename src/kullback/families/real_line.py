"""Distributions on the whole line."""

from kullback.families.base import Distribution, Positive, Real, record

__all__ = ["Cauchy", "Gumbel", "Laplace", "Logistic", "Normal", "StudentT"]


@record
class Normal(Distribution):
    """Density exp(-(x - loc)^2 / (2 scale^2)) / (scale sqrt(2 pi)).

    Example:
        >>> Normal(loc=0.0, scale=1.0)
        Normal(loc=0.0, scale=1.0)
        >>> Normal(loc=0.0, scale=[1.0, -1.0])
        Traceback (most recent call last):
        kullback.errors.ParameterError: expected Normal's scale to be > 0 and finite, but scale[1] is -1.0
    """

    loc: Real
    scale: Positive


@record
class Laplace(Distribution):
    """Density exp(-|x - loc| / scale) / (2 scale)."""

    loc: Real
    scale: Positive


@record
class Cauchy(Distribution):
    """Density scale / (pi (scale^2 + (x - loc)^2))."""

    loc: Real
    scale: Positive


@record
class Logistic(Distribution):
    """Density 1 / (4 scale cosh^2((x - loc) / (2 scale)))."""

    loc: Real
    scale: Positive


@record
class Gumbel(Distribution):
    """Density exp(-z - e^-z) / scale, z = (x - loc) / scale: the largest of many."""

    loc: Real
    scale: Positive


@record
class StudentT(Distribution):
    """Density proportional to (1 + ((x - loc) / scale)^2 / df)^(-(df + 1) / 2)."""

    df: Positive
    loc: Real
    scale: Positive
