"""Log-probabilities of discrete families by the saddle-point form, accurate to rounding for counts of any size.

Stirling's formula is log k! = (k + 1/2) log k - k + log(2 pi)/2 + J(k), with Binet's function J. In the log-probability
of a count k with mean m, its leading terms combine with the other terms to the deviance k phi(log(m/k)), so that no
large terms cancel.

References:
    Loader (2000), Fast and accurate computation of binomial probabilities.
"""

from collections.abc import Callable
from math import exp, inf, nan, pi
from typing import Any

import numpy as np
from scipy import special, stats

from kullback.densities.density import Density
from kullback.numerics.arrays import Array
from kullback.numerics.log_gamma import binet
from kullback.numerics.phi import log_ratio, phi

__all__ = ["binomial", "hypergeometric", "negative_binomial", "poisson", "zipf", "zipfian"]

_LARGEST_DRAW = 2.0**62  # SciPy draws 64-bit integers
_LARGEST_QUANTILE = (
    2.0**50
)  # for larger quantiles of nbinom, an error of Boost, which SciPy does not handle, ends the process
_LARGEST_TABLE = 2.0**20  # integers of a finite support that are summed one by one


def poisson(rate: float) -> Density:
    """The Poisson distribution."""

    def log_pmf(k: Array) -> Array:
        positive = np.where(k > 0, k, 1.0)
        value = -_deviance(positive, rate) - 0.5 * np.log(2 * pi * positive) - binet(np, positive)
        return np.where(k > 0, value, -rate)

    frozen = stats.poisson(rate) if rate < _LARGEST_DRAW else None
    return _counts(log_pmf, frozen, (rate, rate**0.5), 0.0 if rate == 0 else inf)


def binomial(total_count: float, log_odds: float) -> Density:
    """The number of successes in total_count trials, whose log-odds of success are log_odds."""
    low, high = (total_count if log_odds == inf else 0.0), (0.0 if log_odds == -inf else total_count)
    one, zero = float(special.expit(log_odds)), float(special.expit(-log_odds))
    # The sampler requires an integer count.
    frozen = stats.binom(int(total_count), one) if total_count < _LARGEST_DRAW else None
    moments = total_count * one, (total_count * one * zero) ** 0.5
    return _counts(lambda k: _binomial(k, total_count - k, log_odds), frozen, moments, high, low)


def hypergeometric(population: float, successes: float, draws: float) -> Density:
    """The number of successes in draws without replacement: a product and quotient of three binomial probabilities."""
    failures = population - successes
    log_odds: Any = special.logit(draws / population) if population else 0.0

    def log_pmf(k: Array) -> Array:
        missed = draws - k
        some = _binomial(k, successes - k, log_odds) + _binomial(missed, failures - missed, log_odds)
        return some - _binomial(np.asarray(draws), np.asarray(population - draws), log_odds)

    low, high = max(0.0, draws - failures), min(draws, successes)
    # SciPy's quantiles of larger populations take seconds to minutes.
    frozen = stats.hypergeom(int(population), int(successes), int(draws)) if population < 1e7 else None
    mean = draws * (successes / max(population, 1.0))
    variance = mean * (failures / max(population, 1.0)) * ((population - draws) / max(population - 1, 1.0))
    return _counts(log_pmf, frozen, (mean, variance**0.5), high, low)


def negative_binomial(total_count: float, log_odds: float) -> Density:
    """The number of successes before total_count failures, in trials whose log-odds of success are log_odds."""
    log_zero = float(special.log_expit(-log_odds))

    def log_pmf(k: Array) -> Array:
        positive = np.where(k > 0, k, 1.0)
        last = np.log(total_count / (positive + total_count))
        return np.where(k > 0, _log_binomial_bulk(positive, total_count, log_odds) + last, total_count * log_zero)

    mean = total_count * exp(log_odds) if log_odds < 700 else inf
    frozen = stats.nbinom(total_count, exp(log_zero)) if max(total_count, mean) < _LARGEST_QUANTILE else None
    moments = mean, (mean / exp(log_zero)) ** 0.5 if log_zero > -700 else inf
    return _counts(log_pmf, frozen, moments, 0.0 if log_odds == -inf else inf)


def zipf(exponent: float) -> Density:
    """The Zipf (zeta) distribution on 1, 2, ..."""
    constant = np.log(np.asarray(special.zeta(exponent)))
    return Density(
        _within_support(lambda k: -exponent * np.log(k) - constant, 1.0, inf),
        (1.0, inf),
        ((1.0, 1.0),),
        discrete=True,
        sample=lambda count, rng: rng.zipf(exponent, count),
    )


def zipfian(exponent: float, total_count: float) -> Density:
    """The Zipf distribution truncated to 1, ..., total_count."""
    first = -exponent * np.log(np.arange(1.0, min(total_count, _LARGEST_TABLE) + 1))
    constant: Any = special.logsumexp(first)
    if total_count > _LARGEST_TABLE:
        constant = np.logaddexp(constant, _log_power_sum(exponent, _LARGEST_TABLE, total_count))

    def sample(count: int, rng: Any) -> Array:
        return rng.choice(first.size, count, p=np.exp(first - constant)) + 1

    return Density(
        _within_support(lambda k: -exponent * np.log(k) - constant, 1.0, total_count),
        (1.0, total_count),
        ((1.0, 1.0), (total_count, 1.0)),
        discrete=True,
        sample=sample if total_count <= _LARGEST_TABLE else None,
    )


def _log_power_sum(exponent: float, start: float, end: float) -> Any:
    """log of the sum of k^-exponent over start < k <= end, by the Euler-Maclaurin formula."""
    low, high = np.log(start), np.log(end)
    slope = (1 - exponent) * (high - low)
    # log of the integral of x^-exponent = x^(1 - exponent) / x from the larger end
    larger = (1 - exponent) * (high if slope > 0 else low)
    length = np.log(high - low) + np.log(-np.expm1(-abs(slope)) / abs(slope) if slope else 1.0)
    ends = [(0.5, -exponent * high), (-0.5, -exponent * low)]
    ends += [(-exponent / 12, -(exponent + 1) * high), (exponent / 12, -(exponent + 1) * low)]
    weights, logs = zip((1.0, larger + length), *ends, strict=True)
    return special.logsumexp(logs, b=weights)


def _counts(
    log_pmf: Callable[[Array], Array], frozen: Any, moments: tuple[float, float], high: float, low: float = 0.0
) -> Density:
    """The density of a log-probability on low, ..., high.

    SciPy's frozen distribution gives the anchors and the sampler. Without it, the anchors follow from the mean and the
    standard deviation in `moments`.
    """
    lower = middle = upper = nan if low < high else low
    if frozen is not None and low < high:
        lower, middle, upper = frozen.ppf([0.25, 0.5, 0.75])
    if not np.isfinite([lower, middle, upper]).all():  # SciPy's quantiles fail for large counts, such as Poisson(1e11)
        middle, half = moments[0], 0.67 * moments[1]
        lower, upper = middle - half, middle + half
    return Density(
        _within_support(log_pmf, low, high),
        (low, high),
        ((float(middle), max(float(upper - lower) / 2, 1.0)),),
        discrete=True,
        sample=None if frozen is None else lambda count, rng: frozen.rvs(size=count, random_state=rng),
    )


def _within_support(log_pmf: Callable[[Array], Array], low: float, high: float) -> Callable[[Array, Array], Array]:
    """The log-probability as a function of origin and offset, -inf outside low, ..., high."""

    def log_density(origin: Array, offset: Array) -> Array:
        k = origin + offset
        inside = (k >= low) & (k <= high)
        return np.where(inside, log_pmf(np.where(inside, k, low)), -inf)

    return log_density


def _binomial(ones: Array, zeros: Array, log_odds: float) -> Array:
    """The log-probability of these numbers of ones and zeros in ones + zeros trials, of which either may be 0."""
    log_one, log_zero = special.log_expit([log_odds, -log_odds])
    both = (ones > 0) & (zeros > 0)
    bulk = _log_binomial_bulk(np.where(both, ones, 1.0), np.where(both, zeros, 1.0), log_odds)
    return np.where(both, bulk, np.where(ones > 0, ones * log_one, np.where(zeros > 0, zeros * log_zero, 0.0)))


def _log_binomial_bulk(ones: Array, zeros: Array | float, log_odds: float) -> Array:
    """The log-probability of these numbers of ones and zeros in ones + zeros trials, both positive."""
    count = ones + zeros
    one, zero = special.expit(log_odds), special.expit(-log_odds)
    bulk = _deviance(ones, count * one) + _deviance(zeros, count * zero)
    ends = binet(np, count) - binet(np, ones) - binet(np, np.asarray(zeros))
    return ends - bulk + 0.5 * np.log(count / ones / zeros / (2 * pi))


def _deviance(k: Array | float, mean: Array | float) -> Array:
    """The Poisson deviance k log(k / mean) - k + mean = k phi(log(mean / k))."""
    return k * phi(log_ratio(np, np.asarray(mean), np.asarray(k)))
