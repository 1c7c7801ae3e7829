"""Univariate distributions on the whole real line."""

import math
from typing import Any

import array_api_compat
import numpy as np

from kullback.errors import ParameterError, ParameterNameError
from kullback.families.base import REAL_LINE, Constraint, Distribution, Positive, Real, ScipyForm, record, require
from kullback.numerics.arrays import ArrayLike, is_compiling

__all__ = ["Cauchy", "Gumbel", "Laplace", "Logistic", "Normal", "StudentT"]


def _exponential(x: ArrayLike) -> ArrayLike:
    """e^x of a number, a list, or an array of any library."""
    if isinstance(x, float | int):
        return math.exp(x)
    array: Any = np.asarray(x, np.float64) if isinstance(x, list | tuple) else x
    if is_compiling():  # torch.compile cannot trace the look-up of the library
        return array.exp()
    return array_api_compat.array_namespace(array).exp(array)


def _is_log_of_positive(x: Any) -> Any:
    scale = _exponential(x)
    return (scale > 0) & (scale < np.inf)


_LOG_OF_POSITIVE = Constraint("the logarithm of a number > 0 and finite in its dtype", _is_log_of_positive)


@record
class Normal(Distribution):
    """Normal (Gaussian) distribution on the real line.

    Density: exp(-(x - loc)^2 / (2 scale^2)) / (scale sqrt(2 pi)). Pass exactly one of `scale` and `log_scale`. If
    `log_scale` is passed, such as the output of an encoder, `scale` is its exponential, and KL is computed from the
    difference of the logarithms, which keeps its digits for nearly equal scales.

    Args:
        loc: The mean; finite, any shape.
        scale: The standard deviation; > 0 and finite, broadcast against `loc`.
        log_scale: The logarithm of the standard deviation; its exponential is > 0 and finite, broadcast against `loc`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint, or not exactly one of `scale` and `log_scale`
            is passed.
        ParameterNameError: A parameter is passed by position, is not a parameter of the family, or is missing.

    Example:
        >>> Normal(loc=0.0, scale=1.0)
        Normal(loc=0.0, scale=1.0)
        >>> Normal(loc=0.0, log_scale=0.0)
        Normal(loc=0.0, scale=1.0)
        >>> Normal(loc=0.0, scale=[1.0, -1.0])
        Traceback (most recent call last):
        kullback.errors.ParameterError: expected Normal's scale to be > 0 and finite, but scale[1] is -1.0
    """

    support = REAL_LINE

    loc: Real
    scale: Positive
    log_scale = None  # not a field; a distribution that was made from a log_scale has one of its own

    def __init__(self, *, loc: ArrayLike, scale: ArrayLike | None = None, log_scale: ArrayLike | None = None) -> None:
        if scale is None and log_scale is None:
            raise ParameterNameError("expected Normal to receive scale or log_scale; write Normal(loc=..., scale=...)")
        if scale is not None and log_scale is not None:
            raise ParameterError("expected Normal to receive exactly one of scale, log_scale, got scale and log_scale")
        object.__setattr__(self, "loc", loc)
        if log_scale is not None:
            if not is_compiling():  # the values of tensors are not available in a graph
                require(self, "log_scale", log_scale, _LOG_OF_POSITIVE)
            object.__setattr__(self, "log_scale", log_scale)
            scale = _exponential(log_scale)
        object.__setattr__(self, "scale", scale)
        self.__post_init__()


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
