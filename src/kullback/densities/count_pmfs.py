"""Log-probabilities of discrete families by the saddle-point form, accurate to rounding for counts of any size.

Stirling's formula is log k! = (k + 1/2) log k - k + log(2 pi)/2 + s(k). In the log-probability of a count k with mean
m, its leading terms combine with the other terms to the deviance k phi(log(m/k)), so that no large terms cancel.

References:
    Loader (2000), Fast and accurate computation of binomial probabilities.
"""

from collections.abc import Callable
from math import inf, log, pi
from typing import Any

import numpy as np
from scipy import special, stats

from kullback.densities.density import Density
from kullback.errors import SupportError
from kullback.numerics.arrays import Array
from kullback.numerics.phi import phi

__all__ = ["binomial", "hypergeometric", "negative_binomial", "poisson", "zipf", "zipfian"]

_MAX_SUM = 1e7  # the largest number of counts whose probabilities are summed one by one


def poisson(rate: float) -> Density:
    """The Poisson distribution."""

    def log_pmf(k: Array) -> Array:
        positive = np.where(k > 0, k, 1.0)
        value = -_deviance(positive, rate) - 0.5 * np.log(2 * pi * positive) - _stirling(positive)
        return np.where(k > 0, value, -rate)

    return _counts(log_pmf, stats.poisson(rate), 0.0 if rate == 0 else inf)


def binomial(total_count: float, log_odds: float) -> Density:
    """The number of successes in total_count trials, whose log-odds of success are log_odds."""
    low, high = (total_count if log_odds == inf else 0.0), (0.0 if log_odds == -inf else total_count)
    frozen = stats.binom(int(total_count), special.expit(log_odds))  # the sampler requires an integer count
    return _counts(lambda k: _binomial(k, total_count - k, log_odds), frozen, high, low)


def hypergeometric(population: float, successes: float, draws: float) -> Density:
    """The number of successes in draws without replacement: a product and quotient of three binomial probabilities."""
    failures = population - successes
    log_odds: Any = special.logit(draws / population) if population else 0.0

    def log_pmf(k: Array) -> Array:
        missed = draws - k
        some = _binomial(k, successes - k, log_odds) + _binomial(missed, failures - missed, log_odds)
        return some - _binomial(np.asarray(draws), np.asarray(population - draws), log_odds)

    low, high = max(0.0, draws - failures), min(draws, successes)
    quartiles = None
    if high - low > _MAX_SUM:  # SciPy's quantiles sum the probabilities
        mean = draws * (successes / population)
        half = 0.67 * np.sqrt(mean * (failures / population) * ((population - draws) / (population - 1)))
        quartiles = mean - half, mean, mean + half
    return _counts(log_pmf, stats.hypergeom(int(population), int(successes), int(draws)), high, low, quartiles)


def negative_binomial(total_count: float, log_odds: float) -> Density:
    """The number of successes before total_count failures, in trials whose log-odds of success are log_odds."""
    log_zero = float(special.log_expit(-log_odds))

    def log_pmf(k: Array) -> Array:
        positive = np.where(k > 0, k, 1.0)
        last = np.log(total_count / (positive + total_count))
        return np.where(k > 0, _log_binomial_bulk(positive, total_count, log_odds) + last, total_count * log_zero)

    return _counts(log_pmf, stats.nbinom(total_count, np.exp(log_zero)), 0.0 if log_odds == -inf else inf)


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
    if total_count > _MAX_SUM:
        raise SupportError(
            f"expected Zipfian's total_count of at most {_MAX_SUM:.0e}, because the normaliser is a sum, "
            f"got {total_count:.15g}"
        )
    logs = -exponent * np.log(np.arange(1.0, total_count + 1))
    constant: Any = special.logsumexp(logs)
    return Density(
        _within_support(lambda k: -exponent * np.log(k) - constant, 1.0, total_count),
        (1.0, total_count),
        ((1.0, 1.0), (total_count, 1.0)),
        discrete=True,
        sample=lambda count, rng: rng.choice(logs.size, count, p=np.exp(logs - constant)) + 1,
    )


def _counts(
    log_pmf: Callable[[Array], Array],
    frozen: Any,
    high: float,
    low: float = 0.0,
    quartiles: tuple[float, float, float] | None = None,
) -> Density:
    """The density of a log-probability on low, ..., high, with anchors and sampler of SciPy's frozen distribution.

    The quartiles of SciPy's distribution are used where `quartiles` is None.
    """
    if quartiles is None:
        quartiles = frozen.ppf([0.25, 0.5, 0.75]) if low < high else (low, low, low)
    lower, middle, upper = quartiles
    if not np.isfinite([lower, middle, upper]).all():  # SciPy's quantiles fail for large counts, such as Poisson(1e11)
        middle, half = frozen.mean(), 0.67 * frozen.std()
        lower, upper = middle - half, middle + half
    return Density(
        _within_support(log_pmf, low, high),
        (low, high),
        ((float(middle), max(float(upper - lower) / 2, 1.0)),),
        discrete=True,
        sample=lambda count, rng: frozen.rvs(size=count, random_state=rng),
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
    ends = _stirling(count) - _stirling(ones) - _stirling(np.asarray(zeros))
    return ends - bulk + 0.5 * np.log(count / ones / zeros / (2 * pi))


def _deviance(k: Array | float, mean: Array | float) -> Array:
    """The Poisson deviance k log(k / mean) - k + mean = k phi(log(mean / k))."""
    change = (mean - k) / k
    near = np.abs(change) < 0.5
    return k * phi(np.where(near, np.log1p(np.where(near, change, 0.0)), np.log(mean) - np.log(k)))


def _stirling(k: Array) -> Array:
    """The remainder of Stirling's formula, s(k) = log k! - (k + 1/2) log k + k - log(2 pi) / 2, for k > 0."""
    w = 1 / np.maximum(k, 15.0)
    v = w * w
    far = w * (1 / 12 - v * (1 / 360 - v * (1 / 1260 - v * (1 / 1680 - v * (1 / 1188 - v * (691 / 360360 - v / 156))))))
    return np.where(k > 15, far, special.gammaln(k + 1) - (k + 0.5) * np.log(k) + k - 0.5 * log(2 * pi))
