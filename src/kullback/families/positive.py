"""Univariate distributions on the positive half-line."""

from math import exp, inf

from kullback.families.base import POSITIVE_REALS, Distribution, Positive, Real, ScipyForm, Support, record

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
    """Exponential distribution on x >= 0.

    Density: rate exp(-rate x).

    Args:
        rate: The inverse of the mean; > 0 and finite, any shape.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Exponential(rate=1.0), Exponential(rate=2.0))), 6)
        0.306853
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("expon", lambda d: {"scale": 1 / d.rate})

    rate: Positive


@record
class Gamma(Distribution):
    """Gamma distribution on x > 0.

    Density: rate^concentration x^(concentration - 1) exp(-rate x) / Gamma(concentration) with the gamma function.

    Args:
        concentration: The shape parameter; > 0 and finite, any shape.
        rate: The inverse of the scale; > 0 and finite, broadcast against `concentration`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Gamma(concentration=2.0, rate=1.0), Gamma(concentration=3.0, rate=1.0))), 6)
        0.270363
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("gamma", lambda d: {"a": d.concentration, "scale": 1 / d.rate})

    concentration: Positive
    rate: Positive


@record
class ChiSquared(Distribution):
    """Chi-squared distribution on x > 0: Gamma(concentration = df/2, rate = 1/2).

    Density: x^(df/2 - 1) exp(-x/2) / (2^(df/2) Gamma(df/2)) with the gamma function.

    Args:
        df: The degrees of freedom; > 0 and finite, any shape.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(ChiSquared(df=3.0), ChiSquared(df=4.0))), 6)
        0.102537
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("chi2", lambda d: {"df": d.df})

    df: Positive


@record
class InverseGamma(Distribution):
    """Inverse-gamma distribution on x > 0: the distribution of 1/y for y distributed as Gamma(concentration, rate).

    Density: rate^concentration x^(-concentration - 1) exp(-rate / x) / Gamma(concentration) with the gamma
    function.

    Args:
        concentration: The shape parameter; > 0 and finite, any shape.
        rate: The rate of 1/x, which is the scale of x; > 0 and finite, broadcast against `concentration`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(InverseGamma(concentration=2.0, rate=1.0), InverseGamma(concentration=3.0, rate=1.0))), 6)
        0.270363
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("invgamma", lambda d: {"a": d.concentration, "scale": d.rate})

    concentration: Positive
    rate: Positive


@record
class Weibull(Distribution):
    """Weibull distribution on x > 0.

    Density: (concentration / scale) (x / scale)^(concentration - 1) exp(-(x / scale)^concentration).

    Args:
        scale: The scale; > 0 and finite, any shape.
        concentration: The shape parameter; > 0 and finite, broadcast against `scale`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Weibull(scale=1.0, concentration=2.0), Weibull(scale=2.0, concentration=2.0))), 6)
        0.636294
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("weibull_min", lambda d: {"c": d.concentration, "scale": d.scale})

    scale: Positive
    concentration: Positive


@record
class Rayleigh(Distribution):
    """Rayleigh distribution on x > 0: the length of a two-dimensional normal vector of independent components.

    Density: (x / scale^2) exp(-x^2 / (2 scale^2)).

    Args:
        scale: The standard deviation of each component of the vector; > 0 and finite, any shape.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Rayleigh(scale=1.0), Rayleigh(scale=2.0))), 6)
        0.636294
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("rayleigh", lambda d: {"scale": d.scale})

    scale: Positive


@record
class Maxwell(Distribution):
    """Maxwell distribution on x > 0: the length of a three-dimensional normal vector of independent components.

    Density: sqrt(2 / pi) x^2 exp(-x^2 / (2 scale^2)) / scale^3.

    Args:
        scale: The standard deviation of each component of the vector; > 0 and finite, any shape.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Maxwell(scale=1.0), Maxwell(scale=2.0))), 6)
        0.954442
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("maxwell", lambda d: {"scale": d.scale})

    scale: Positive


@record
class HalfNormal(Distribution):
    """Half-normal distribution on x >= 0: the distribution of |y| for y distributed as Normal(0, scale).

    Density: sqrt(2 / pi) exp(-x^2 / (2 scale^2)) / scale.

    Args:
        scale: The standard deviation of y; > 0 and finite, any shape.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(HalfNormal(scale=1.0), HalfNormal(scale=2.0))), 6)
        0.318147
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("halfnorm", lambda d: {"scale": d.scale})

    scale: Positive


@record
class HalfCauchy(Distribution):
    """Half-Cauchy distribution on x >= 0: the distribution of |y| for y distributed as Cauchy(0, scale).

    Density: 2 scale / (pi (scale^2 + x^2)).

    Args:
        scale: The median; > 0 and finite, any shape.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(HalfCauchy(scale=1.0), HalfCauchy(scale=2.0))), 6)
        0.117783
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("halfcauchy", lambda d: {"scale": d.scale})

    scale: Positive


@record
class LogNormal(Distribution):
    """Log-normal distribution on x > 0: the distribution of e^y for y distributed as Normal(loc, scale).

    Density: exp(-(log x - loc)^2 / (2 scale^2)) / (x scale sqrt(2 pi)).

    Args:
        loc: The mean of log x; finite, any shape.
        scale: The standard deviation of log x; > 0 and finite, broadcast against `loc`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(LogNormal(loc=0.0, scale=1.0), LogNormal(loc=1.0, scale=1.0))), 6)
        0.5
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("lognorm", lambda d: {"s": d.scale, "scale": exp(d.loc)})

    loc: Real
    scale: Positive


@record
class InverseGaussian(Distribution):
    """Inverse Gaussian (Wald) distribution on x > 0.

    Density: sqrt(shape / (2 pi x^3)) exp(-shape (x - mean)^2 / (2 mean^2 x)).

    Args:
        mean: The mean; > 0 and finite, any shape.
        shape: The shape parameter; > 0 and finite, broadcast against `mean`. The variance is mean^3 / shape.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(InverseGaussian(mean=1.0, shape=1.0), InverseGaussian(mean=2.0, shape=1.0))), 6)
        0.125
    """

    support = POSITIVE_REALS
    scipy_form = ScipyForm("invgauss", lambda d: {"mu": d.mean / d.shape, "scale": d.shape})

    mean: Positive
    shape: Positive


@record
class Pareto(Distribution):
    """Pareto (type I) distribution on x >= scale.

    Density: alpha scale^alpha / x^(alpha + 1).

    Args:
        scale: The smallest value; > 0 and finite, any shape.
        alpha: The tail index; > 0 and finite, broadcast against `scale`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Pareto(scale=2.0, alpha=3.0), Pareto(scale=1.0, alpha=2.0))), 6)
        1.458426
    """

    support = Support("scale", inf)

    scale: Positive
    alpha: Positive


@record
class F(Distribution):
    """F distribution on x > 0: the ratio of two independent chi-squared variables, each divided by its df.

    Density: (df1/df2)^(df1/2) x^(df1/2 - 1) (1 + df1 x / df2)^(-(df1 + df2)/2) / B(df1/2, df2/2) with the beta
    function B.

    Args:
        df1: The degrees of freedom of the numerator; > 0 and finite, any shape.
        df2: The degrees of freedom of the denominator; > 0 and finite, broadcast against `df1`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> F(df1=4.0, df2=10.0)
        F(df1=4.0, df2=10.0)
    """

    support = POSITIVE_REALS

    df1: Positive
    df2: Positive
