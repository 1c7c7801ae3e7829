"""Log-densities of gamma, inverse-gamma, F, Weibull and Dirichlet distributions that keep their digits where narrow.

The terms of the usual formulas grow with the concentration a, and their rounding with them. In the saddle-point form,
as in `count_pmfs`, the log-density of a gamma distribution at x with the mean m is log(a/(2 pi))/2 - log(x) - J(a) - D,
where D = a phi(log(x/m)) is a deviance and J is Binet's function.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import inf, log, log1p, nan, pi

import numpy as np
from scipy import special, stats

from kullback.densities.density import Density
from kullback.densities.from_scipy import continuous_density
from kullback.errors import SupportError
from kullback.numerics.arrays import Array
from kullback.numerics.log_gamma import binet
from kullback.numerics.phi import log_ratio, phi

__all__ = ["chi_squared", "dirichlet_log_density", "f", "gamma", "inverse_gamma", "log_beta", "weibull"]

_LARGE_CONCENTRATION = 16.0  # from which the saddle-point form is used; below it, the usual form has no large terms
_SMALLEST, _LARGEST = 1e-300, 1e300  # centres within which the relative distance of x is computed


def gamma(concentration: float, rate: float) -> Density:
    """The gamma distribution with density proportional to x^(concentration - 1) e^(-rate x)."""
    density = continuous_density(stats.gamma, concentration, scale=1 / rate)
    mean, residual = _quotient(concentration, rate)
    is_narrow = concentration >= _LARGE_CONCENTRATION and _SMALLEST < mean < _LARGEST
    log_gamma, constant = float(special.gammaln(concentration)), _gamma_constant(concentration) if is_narrow else nan

    def usual(origin: Array, offset: Array) -> Array:
        x = origin + offset
        power = 0.0 if concentration == 1 else (concentration - 1) * log_ratio(np, x, np.asarray(1 / rate))
        return np.where((x >= 0) & (x < inf), power - rate * x - log_gamma + log(rate), -inf)

    def saddle_point(origin: Array, offset: Array) -> Array:
        x = origin + offset
        deviance = concentration * phi(log_ratio(np, x, mean, (origin - mean) + (offset - residual)))
        return np.where((x > 0) & (x < inf), constant - np.log(x) - deviance, -inf)

    return replace(density, log_density=saddle_point if is_narrow else usual)


def chi_squared(df: float) -> Density:
    """The chi-squared distribution, which is gamma(df / 2, 1 / 2)."""
    return gamma(_half(df), 0.5)


def _half(df: float) -> float:
    if not df / 2 > 0:
        raise SupportError(f"expected degrees of freedom whose half is above 0 in float64, got {df:.15g}")
    return df / 2


def inverse_gamma(concentration: float, rate: float) -> Density:
    """The distribution of 1/y, where y has the gamma distribution with these parameters."""
    density = continuous_density(stats.invgamma, concentration, scale=rate)
    center, residual = _quotient(rate, concentration)  # the inverse of the mean of y
    is_narrow = concentration >= _LARGE_CONCENTRATION and _SMALLEST < center < _LARGEST
    log_gamma, constant = float(special.gammaln(concentration)), _gamma_constant(concentration) if is_narrow else nan

    def usual(origin: Array, offset: Array) -> Array:
        x = origin + offset
        # The rounding of this order is the same for p and q with equal rates.
        value = -(concentration + 1) * log_ratio(np, x, np.asarray(rate)) - log_gamma - rate / x - log(rate)
        return np.where((x > 0) & (x < inf), value, -inf)

    def saddle_point(origin: Array, offset: Array) -> Array:
        x = origin + offset
        deviance = concentration * phi(log_ratio(np, center, x, (center - origin) + (residual - offset)))
        return np.where((x > 0) & (x < inf), constant - np.log(x) - deviance, -inf)

    return replace(density, log_density=saddle_point if is_narrow else usual)


def _quotient(a: float, b: float) -> tuple[Array, float]:
    """The quotient of two numbers, and the error of its rounding; 0 where the quotient overflows."""
    quotient = a / b
    if not 0 < quotient < inf:
        return np.asarray(quotient), 0.0
    return np.asarray(quotient), float(Fraction(a) / Fraction(b) - Fraction(quotient))


def _gamma_constant(concentration: float) -> float:
    return 0.5 * log(concentration / (2 * pi)) - float(binet(np, np.asarray(concentration)))


def f(df1: float, df2: float) -> Density:
    """The F distribution."""
    ratio = df1 / df2
    constant = log(df1) - log(df2) - log_beta(_half(df1), _half(df2))
    factor = _log_beta_factor(np.asarray([df1 / 2, df2 / 2]))

    def usual(origin: Array, offset: Array) -> Array:
        # The terms are small where the density is large, so that the difference of two log-densities keeps its digits.
        z = ratio * (origin + offset)
        near, far = np.where(z < 1, np.maximum(z, 0.0), 0.5), np.where(z < 1, 1.0, z)
        small = special.xlogy(df1 / 2 - 1, near) - (df1 + df2) / 2 * np.log1p(near)
        large = -np.log(far) - df1 / 2 * np.log1p(1 / far) - df2 / 2 * np.log1p(far)
        return np.where(z >= 0, constant + np.where(z < 1, small, large), -inf)

    def saddle_point(origin: Array, offset: Array) -> Array:
        # u = df1 x / (df1 x + df2) has a beta distribution with the mean df1 / (df1 + df2). With the quotient
        # v = (df1 x + df2) / (df1 + df2), u / mean = x/v and (1 - u) / (1 - mean) = 1/v.
        x, distance = origin + offset, (origin - 1) + offset
        share1, share2 = df1 / (df1 + df2), df2 / (df1 + df2)
        v = share2 + share1 * x
        bulk = df1 / 2 * phi(log_ratio(np, x, v, share2 * distance))
        bulk = bulk + df2 / 2 * phi(log_ratio(np, np.ones_like(v), v, -share1 * distance))
        return np.where((x > 0) & (x < inf), factor - np.log(x) - bulk, -inf)

    is_narrow = min(df1, df2) / 2 >= _LARGE_CONCENTRATION
    return replace(continuous_density(stats.f, df1, df2), log_density=saddle_point if is_narrow else usual)


def log_beta(a: float, b: float) -> float:
    """log B(a, b), with more digits than a difference of values of log-gamma where only one argument is large."""
    return -(a * _log1p_ratio(b, a) + b * _log1p_ratio(a, b)) - _log_beta_factor(np.asarray([a, b]))


def _log_beta_factor(concentration: Array) -> float:
    """sum a log a - A log A - log B(a) for A = sum a, without the large terms of the multivariate beta function B."""
    total = np.asarray(concentration.sum())
    logs = np.log(concentration / (2 * pi)).sum() - np.log(total / (2 * pi))
    return float(0.5 * logs + binet(np, total) - binet(np, concentration).sum())


def _log1p_ratio(a: float, b: float) -> float:
    """log(1 + a/b), also where a/b overflows."""
    return log1p(a / b) if a < b else log(a) - log(b) + log1p(b / a)


def dirichlet_log_density(concentration: Array) -> Callable[[Array], Array] | None:
    """The log-density of a Dirichlet distribution at vectors of shape (..., d); None for small concentrations."""
    if concentration.ndim != 1 or concentration.min() < _LARGE_CONCENTRATION:
        return None
    total, factor = float(concentration.sum()), _log_beta_factor(concentration)

    def log_density(x: Array) -> Array:
        terms = concentration * phi(log_ratio(np, total * x, concentration)) + np.log(x)
        return np.where((x > 0).all(axis=-1), factor - np.where(x > 0, terms, 0.0).sum(axis=-1), -inf)

    return log_density


def weibull(scale: float, concentration: float) -> Density:
    """The Weibull distribution."""
    density = continuous_density(stats.weibull_min, concentration, scale=scale)
    constant = log(concentration) - log(scale)

    def log_density(origin: Array, offset: Array) -> Array:
        x = origin + offset
        logs = log_ratio(np, x, np.asarray(scale), (origin - scale) + offset)
        tail = 0.0 if concentration == 1 else (concentration - 1) * logs
        return np.where(x >= 0, constant + tail - np.exp(concentration * logs), -inf)

    return replace(density, log_density=log_density)
