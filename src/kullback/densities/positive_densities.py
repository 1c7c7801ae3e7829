"""Log-densities of gamma, inverse-gamma, F, Weibull and Dirichlet distributions that keep their digits where narrow.

The terms of the usual formulas grow with the concentration a, and their rounding with them. In the saddle-point form,
the log-density of a gamma distribution at x with the mean m is log(a) - log(x) - log(2 pi a)/2 - s(a) - D, where
D = a phi(log(x/m)) is a deviance and s the remainder of Stirling's formula.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import inf, log, log1p, pi

import numpy as np
from scipy import special, stats

from kullback.densities.density import Density
from kullback.densities.from_scipy import continuous_density
from kullback.densities.saddle_point import deviance_of_change, poisson_deviance, stirling_remainder
from kullback.numerics.arrays import Array

__all__ = [
    "LARGE_CONCENTRATION",
    "chi_squared",
    "dirichlet_log_density",
    "f",
    "gamma",
    "inverse_gamma",
    "log_beta",
    "log_beta_factor",
    "weibull",
]

LARGE_CONCENTRATION = 16.0  # from which the saddle-point form is used; below it, the usual form has no large terms
_SMALLEST, _LARGEST = 1e-300, 1e300  # centres within which the relative distance of x is computed


def gamma(concentration: float, rate: float) -> Density:
    """The gamma distribution with density proportional to x^(concentration - 1) e^(-rate x)."""
    density = continuous_density(stats.gamma, concentration, scale=1 / rate)
    mean, residual = _quotient(concentration, rate)
    log_gamma = float(special.gammaln(concentration))

    def usual(origin: Array, offset: Array) -> Array:
        x = origin + offset
        power = 0.0 if concentration == 1 else (concentration - 1) * _log_quotient(x, 1 / rate)
        return np.where((x >= 0) & (x < inf), power - rate * x - log_gamma + log(rate), -inf)

    def saddle_point(origin: Array, offset: Array) -> Array:
        x = origin + offset
        change = ((origin - mean) + (offset - residual)) / mean
        return _log_gamma_density(x, change, np.log(x) - log(mean), concentration)

    is_narrow = concentration >= LARGE_CONCENTRATION and _SMALLEST < mean < _LARGEST
    return replace(density, log_density=saddle_point if is_narrow else usual)


def chi_squared(df: float) -> Density:
    """The chi-squared distribution, which is gamma(df / 2, 1 / 2)."""
    return gamma(df / 2, 0.5)


def inverse_gamma(concentration: float, rate: float) -> Density:
    """The distribution of 1/y, where y has the gamma distribution with these parameters."""
    density = continuous_density(stats.invgamma, concentration, scale=rate)
    center, residual = _quotient(rate, concentration)  # the inverse of the mean of y
    log_gamma = float(special.gammaln(concentration))

    def usual(origin: Array, offset: Array) -> Array:
        x = origin + offset
        # The rounding of this order is the same for p and q with equal rates.
        value = -(concentration + 1) * _log_quotient(x, rate) - log_gamma - rate / x - log(rate)
        return np.where((x > 0) & (x < inf), value, -inf)

    def saddle_point(origin: Array, offset: Array) -> Array:
        x = origin + offset
        change = -((origin - center) + (offset - residual)) / x  # of 1/x, relative to 1/center
        return _log_gamma_density(x, change, log(center) - np.log(x), concentration)

    is_narrow = concentration >= LARGE_CONCENTRATION and _SMALLEST < center < _LARGEST
    return replace(density, log_density=saddle_point if is_narrow else usual)


def _quotient(a: float, b: float) -> tuple[float, float]:
    """The quotient of two numbers, and the error of its rounding; 0 where the quotient overflows."""
    quotient = a / b
    if not 0 < quotient < inf:
        return quotient, 0.0
    return quotient, float(Fraction(a) / Fraction(b) - Fraction(quotient))


def _log_quotient(x: Array, scale: float) -> Array:
    """log(x / scale), also where the quotient is not a normal number of float64."""
    quotient = x / scale
    is_normal = (quotient > _SMALLEST) & (quotient < _LARGEST)
    return np.where(is_normal, np.log(np.where(is_normal, quotient, 1.0)), np.log(x) - log(scale))


def _log_gamma_density(x: Array, change: Array, log_ratio: Array, concentration: float) -> Array:
    """The log-density at x > 0, where the gamma variable is 1 + change = e^log_ratio times its mean."""
    constant = 0.5 * log(concentration / (2 * pi)) - float(stirling_remainder(np.asarray(concentration)))
    value = constant - np.log(x) - deviance_of_change(concentration, change, log_ratio)
    return np.where((x > 0) & (x < inf), value, -inf)


def f(df1: float, df2: float) -> Density:
    """The F distribution."""
    ratio = df1 / df2
    constant = log(df1) - log(df2) - log_beta(df1 / 2, df2 / 2)
    factor = log_beta_factor(df1 / 2, df2 / 2)

    def usual(origin: Array, offset: Array) -> Array:
        # The terms are small where the density is large, so that the difference of two log-densities keeps its digits.
        z = ratio * (origin + offset)
        near, far = np.where(z < 1, np.maximum(z, 0.0), 0.5), np.where(z < 1, 1.0, z)
        small = special.xlogy(df1 / 2 - 1, near) - (df1 + df2) / 2 * np.log1p(near)
        large = -np.log(far) - df1 / 2 * np.log1p(1 / far) - df2 / 2 * np.log1p(far)
        return np.where(z >= 0, constant + np.where(z < 1, small, large), -inf)

    def saddle_point(origin: Array, offset: Array) -> Array:
        # z / (1 + z) has a beta distribution, and its relative change from df1 / (df1 + df2) is (x - 1) / (1 + z).
        x = origin + offset
        z = ratio * x
        step = np.where(z < inf, ((origin - 1) + offset) / (1 + z), 1 / ratio)
        log_one = np.log(x) - np.log1p((x - 1) / (1 + 1 / ratio))
        log_zero = -np.log1p((x - 1) / (1 + 1 / ratio))
        bulk = deviance_of_change(df1 / 2, step, log_one) + deviance_of_change(df2 / 2, -ratio * step, log_zero)
        return np.where((x > 0) & (x < inf), factor - np.log(x) - bulk, -inf)

    is_narrow = min(df1, df2) / 2 >= LARGE_CONCENTRATION
    return replace(continuous_density(stats.f, df1, df2), log_density=saddle_point if is_narrow else usual)


def log_beta_factor(a: float, b: float) -> float:
    """log(a^a b^b / ((a + b)^(a + b) B(a, b))), without the large terms of the logarithm of the beta function B."""
    remainders = stirling_remainder(np.asarray([a + b, a, b]))
    return 0.5 * (log(a / (2 * pi)) - _log1p_ratio(a, b)) + float(remainders[0] - remainders[1] - remainders[2])


def log_beta(a: float, b: float) -> float:
    """log B(a, b), with more digits than a difference of values of log-gamma where only one argument is large."""
    return -(a * _log1p_ratio(b, a) + b * _log1p_ratio(a, b)) - log_beta_factor(a, b)


def _log1p_ratio(a: float, b: float) -> float:
    """log(1 + a/b), also where a/b overflows."""
    return log1p(a / b) if a < b else log(a) - log(b) + log1p(b / a)


def dirichlet_log_density(concentration: Array) -> Callable[[Array], Array] | None:
    """The log-density of a Dirichlet distribution at vectors of shape (n, d); None for small concentrations."""
    if concentration.ndim != 1 or concentration.min() < LARGE_CONCENTRATION:
        return None
    total = float(concentration.sum())
    factor = 0.5 * float(np.log(concentration / (2 * pi)).sum() - log(total / (2 * pi)))
    factor += float(stirling_remainder(np.asarray(total)) - stirling_remainder(concentration).sum())

    def log_density(x: Array) -> Array:
        bulk = poisson_deviance(concentration, total * x) + np.log(x)
        inside = (x > 0).all(axis=-1)
        return np.where(inside, factor - np.where(x > 0, bulk, 0.0).sum(axis=-1), -inf)

    return log_density


def weibull(scale: float, concentration: float) -> Density:
    """The Weibull distribution."""
    density = continuous_density(stats.weibull_min, concentration, scale=scale)
    constant = log(concentration) - log(scale)

    def log_density(origin: Array, offset: Array) -> Array:
        change = ((origin - scale) + offset) / scale
        is_near = np.abs(change) < 0.5
        log_ratio = np.where(is_near, np.log1p(np.where(is_near, change, 0.0)), _log_quotient(origin + offset, scale))
        power = np.exp(concentration * log_ratio)
        tail = np.where(concentration == 1, 0.0, (concentration - 1) * log_ratio)
        return np.where(origin + offset >= 0, constant + tail - power, -inf)

    return replace(density, log_density=log_density)
