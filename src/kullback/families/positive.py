"""Distributions of a positive number."""

from kullback.families.base import Distribution, Positive, Real, record

__all__ = [
    "ChiSquared",
    "Exponential",
    "F",
    "Gamma",
    "HalfCauchy",
    "HalfNormal",
    "InverseGamma",
    "InverseGaussian",
    "LogNormal",
    "Maxwell",
    "Pareto",
    "Rayleigh",
    "Weibull",
]


@record
class Exponential(Distribution):
    """Density rate exp(-rate x), x >= 0."""

    rate: Positive


@record
class Gamma(Distribution):
    """Density proportional to x^(concentration - 1) exp(-rate x), x > 0."""

    concentration: Positive
    rate: Positive


@record
class ChiSquared(Distribution):
    """Density proportional to x^(df/2 - 1) exp(-x/2), x > 0."""

    df: Positive


@record
class InverseGamma(Distribution):
    """Density proportional to x^(-concentration - 1) exp(-rate / x), x > 0: 1/x is Gamma(concentration, rate)."""

    concentration: Positive
    rate: Positive


@record
class Weibull(Distribution):
    """Density proportional to x^(concentration - 1) exp(-(x/scale)^concentration), x > 0."""

    scale: Positive
    concentration: Positive


@record
class Rayleigh(Distribution):
    """Density proportional to x exp(-x^2 / (2 scale^2)), x > 0."""

    scale: Positive


@record
class Maxwell(Distribution):
    """Density proportional to x^2 exp(-x^2 / (2 scale^2)), x > 0."""

    scale: Positive


@record
class HalfNormal(Distribution):
    """|x| for x Normal(0, scale)."""

    scale: Positive


@record
class HalfCauchy(Distribution):
    """|x| for x Cauchy(0, scale)."""

    scale: Positive


@record
class LogNormal(Distribution):
    """e^x for x Normal(loc, scale)."""

    loc: Real
    scale: Positive


@record
class InverseGaussian(Distribution):
    """Density sqrt(shape / (2 pi x^3)) exp(-shape (x - mean)^2 / (2 mean^2 x)), x > 0."""

    mean: Positive
    shape: Positive


@record
class Pareto(Distribution):
    """Density alpha scale^alpha / x^(alpha + 1), x >= scale."""

    scale: Positive
    alpha: Positive


@record
class F(Distribution):
    """The ratio of ChiSquared(df1)/df1 to ChiSquared(df2)/df2."""

    df1: Positive
    df2: Positive
