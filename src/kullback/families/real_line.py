"""Univariate distributions on the whole real line."""

from kullback.families.base import REAL_LINE, Distribution, Positive, Real, ScipyForm, record

__all__ = ["Cauchy", "Gumbel", "Laplace", "Logistic", "Normal", "StudentT"]


@record
class Normal(Distribution):
    """Normal (Gaussian) distribution on the real line.

    Density: exp(-(x - loc)^2 / (2 scale^2)) / (scale sqrt(2 pi)).

    Args:
        loc: The mean; finite, any shape.
        scale: The standard deviation; > 0 and finite, broadcast against `loc`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> Normal(loc=0.0, scale=1.0)
        Normal(loc=0.0, scale=1.0)
        >>> Normal(loc=0.0, scale=[1.0, -1.0])
        Traceback (most recent call last):
        kullback.errors.ParameterError: expected Normal's scale to be > 0 and finite, but scale[1] is -1.0
    """

    support = REAL_LINE

    loc: Real
    scale: Positive


@record
class Laplace(Distribution):
    """Laplace distribution on the real line.

    Density: exp(-|x - loc| / scale) / (2 scale).

    Args:
        loc: The mean and median; finite, any shape.
        scale: The mean of |x - loc|; > 0 and finite, broadcast against `loc`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Laplace(loc=0.0, scale=1.0), Laplace(loc=1.0, scale=2.0))), 6)
        0.377087
    """

    support = REAL_LINE

    loc: Real
    scale: Positive


@record
class Cauchy(Distribution):
    """Cauchy distribution on the real line; its mean does not exist.

    Density: scale / (pi (scale^2 + (x - loc)^2)).

    Args:
        loc: The median; finite, any shape.
        scale: The half width at half maximum; > 0 and finite, broadcast against `loc`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Cauchy(loc=0.0, scale=1.0), Cauchy(loc=1.0, scale=1.0))), 6)
        0.223144
    """

    support = REAL_LINE
    scipy_form = ScipyForm("cauchy", lambda d: {"loc": d.loc, "scale": d.scale})

    loc: Real
    scale: Positive


@record
class Logistic(Distribution):
    """Logistic distribution on the real line.

    Density: 1 / (4 scale cosh^2((x - loc) / (2 scale))).

    Args:
        loc: The mean and median; finite, any shape.
        scale: The scale; > 0 and finite, broadcast against `loc`. The variance is pi^2 scale^2 / 3.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Logistic(loc=0.0, scale=1.0), Logistic(loc=1.0, scale=1.0))), 6)
        0.163953
    """

    support = REAL_LINE
    scipy_form = ScipyForm("logistic", lambda d: {"loc": d.loc, "scale": d.scale})

    loc: Real
    scale: Positive


@record
class Gumbel(Distribution):
    """Gumbel distribution of maxima on the real line (type-I extreme value distribution).

    Density: exp(-z - e^-z) / scale with z = (x - loc) / scale.

    Args:
        loc: The mode; finite, any shape.
        scale: The scale; > 0 and finite, broadcast against `loc`. The variance is pi^2 scale^2 / 6.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Gumbel(loc=0.0, scale=1.0), Gumbel(loc=1.0, scale=2.0))), 6)
        0.365681
    """

    support = REAL_LINE
    scipy_form = ScipyForm("gumbel_r", lambda d: {"loc": d.loc, "scale": d.scale})

    loc: Real
    scale: Positive


@record
class StudentT(Distribution):
    """Student's t distribution with a location and a scale, on the real line.

    Density: (1 + z^2 / df)^(-(df + 1) / 2) / (scale sqrt(df) B(df / 2, 1 / 2)) with z = (x - loc) / scale and the beta
    function B.

    Args:
        df: The degrees of freedom; > 0 and finite, any shape.
        loc: The median; finite, broadcast against `df`.
        scale: The scale; > 0 and finite, broadcast against `df`. The variance is scale^2 df / (df - 2) for df > 2.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(StudentT(df=5.0, loc=0.0, scale=1.0), Normal(loc=0.0, scale=1.0))), 6)
        0.124769
    """

    support = REAL_LINE
    scipy_form = ScipyForm("t", lambda d: {"df": d.df, "loc": d.loc, "scale": d.scale})

    df: Positive
    loc: Real
    scale: Positive
