"""Cumulative probabilities, quantiles and log-densities of the univariate families, for the tests of laws."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from kullback import families as f

# The probability levels of the quadrature intervals; they reach far enough for power-law tails.
_LEVELS = special.expit(np.concatenate([np.arange(-150.0, -34.0, 2.0), np.linspace(-34, 34, 160)]))
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)


class UnivariateDistribution(NamedTuple):
    """A univariate distribution as functions of NumPy arrays."""

    cdf: Callable[[Any], Any]
    sf: Callable[[Any], Any]
    ppf: Callable[[Any], Any]
    isf: Callable[[Any], Any]
    log_density: Callable[[Any], Any]
    support: tuple[float, float]
    counts: bool


def _of_scipy(frozen: Any) -> UnivariateDistribution:
    counts = hasattr(frozen.dist, "logpmf")
    logs = frozen.logpmf if counts else frozen.logpdf
    return UnivariateDistribution(frozen.cdf, frozen.sf, frozen.ppf, frozen.isf, logs, frozen.support(), counts)


def _kumaraswamy(concentration1: float, concentration0: float) -> UnivariateDistribution:
    a, b = concentration1, concentration0
    return UnivariateDistribution(
        lambda x: -np.expm1(b * np.log1p(-(x**a))),
        lambda x: (1 - x**a) ** b,
        lambda level: (-np.expm1(np.log1p(-level) / b)) ** (1 / a),
        lambda level: (-np.expm1(np.log(level) / b)) ** (1 / a),
        lambda x: np.log(a * b) + (a - 1) * np.log(x) + (b - 1) * np.log1p(-(x**a)),
        (0.0, 1.0),
        False,
    )


def _continuous_bernoulli(probs: float) -> UnivariateDistribution:
    slope = float(special.logit(probs))
    up, down = np.expm1(slope), np.expm1(-slope)
    return UnivariateDistribution(
        lambda x: np.expm1(slope * np.clip(x, 0, 1)) / up,
        lambda x: np.expm1(slope * (np.clip(x, 0, 1) - 1)) / down,
        lambda level: np.log1p(level * up) / slope,
        lambda level: 1 + np.log1p(level * down) / slope,
        lambda x: slope * x - np.log(up / slope),
        (0.0, 1.0),
        False,
    )


def _zipf(exponent: float) -> UnivariateDistribution:
    whole = special.zeta(exponent)
    plain = _of_scipy(stats.zipf(exponent))

    def sf(k: Any) -> Any:
        return special.zeta(exponent, np.asarray(k) + 1) / whole

    # SciPy computes these by slow sums, and by 1 minus such a sum.
    return plain._replace(sf=sf, cdf=lambda k: 1 - sf(k))


_DISTRIBUTIONS: dict[type, Callable[..., Any]] = {
    f.Normal: stats.norm,
    f.Laplace: stats.laplace,
    f.Cauchy: stats.cauchy,
    f.Logistic: stats.logistic,
    f.Gumbel: stats.gumbel_r,
    f.StudentT: stats.t,
    f.TanhNormal: stats.norm,  # in terms of artanh of the value, because floats are too coarse near 1
    f.Exponential: lambda rate: stats.expon(scale=1 / rate),
    f.Gamma: lambda concentration, rate: stats.gamma(concentration, scale=1 / rate),
    f.ChiSquared: stats.chi2,
    f.InverseGamma: lambda concentration, rate: stats.invgamma(concentration, scale=rate),
    f.Weibull: lambda scale, concentration: stats.weibull_min(concentration, scale=scale),
    f.Rayleigh: lambda scale: stats.rayleigh(scale=scale),
    f.Maxwell: lambda scale: stats.maxwell(scale=scale),
    f.HalfNormal: lambda scale: stats.halfnorm(scale=scale),
    f.HalfCauchy: lambda scale: stats.halfcauchy(scale=scale),
    f.LogNormal: lambda loc, scale: stats.lognorm(scale, scale=np.exp(loc)),
    f.InverseGaussian: lambda mean, shape: stats.invgauss(mean / shape, scale=shape),
    f.Pareto: lambda scale, alpha: stats.pareto(alpha, scale=scale),
    f.TruncatedNormal: lambda loc, scale, low, high: stats.truncnorm(
        (low - loc) / scale, (high - loc) / scale, loc, scale
    ),
    f.Uniform: lambda low, high: stats.uniform(low, high - low),
    f.Beta: lambda concentration1, concentration0: stats.beta(concentration1, concentration0),
    f.Kumaraswamy: _kumaraswamy,
    f.ContinuousBernoulli: _continuous_bernoulli,
    f.Bernoulli: stats.bernoulli,
    f.Binomial: stats.binom,
    f.Geometric: lambda probs: stats.geom(probs, loc=-1),
    f.NegativeBinomial: lambda total_count, probs: stats.nbinom(total_count, 1 - probs),
    f.Poisson: stats.poisson,
    f.Zipf: _zipf,
    f.Zipfian: lambda exponent, total_count: stats.zipfian(exponent, int(total_count)),
    f.Hypergeometric: lambda population, successes, draws: stats.hypergeom(int(population), int(successes), int(draws)),
}


def distribution_of(record: Any) -> UnivariateDistribution:
    """The oracle for a distribution of kullback.families; the factories take the parameters in their order."""
    distribution = _DISTRIBUTIONS[type(record)](*(value for value in vars(record).values() if value is not None))
    return distribution if isinstance(distribution, UnivariateDistribution) else _of_scipy(distribution)


def edges_between(*distributions: UnivariateDistribution) -> np.ndarray:
    """Edges between which the densities of all distributions are smooth, over all tails; or the counts."""
    if distributions[0].counts:
        return _counts(distributions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns about levels that round to 1
        nodes = np.concatenate(
            [np.ravel([distribution.ppf(_LEVELS), distribution.isf(_LEVELS)]) for distribution in distributions]
        )
    nodes = np.unique(nodes[np.isfinite(nodes)])
    # Intervals between neighbouring floats are too narrow to be accurate.
    return nodes[np.diff(nodes, prepend=-np.inf) > 1e-9 * abs(nodes)]


def resolved_edges(distribution: UnivariateDistribution, edges: np.ndarray) -> np.ndarray:
    """The edges between which the probability masses of the distribution are accurate and do not underflow."""
    with np.errstate(all="ignore"):
        tail = np.minimum(distribution.cdf(edges), distribution.sf(edges))
    edges, tail = edges[tail > 1e-280], tail[tail > 1e-280]
    return edges[masses(distribution, edges)[:-1] > 1e-9 * tail]


def _counts(distributions: Sequence[UnivariateDistribution]) -> np.ndarray:
    """All counts with non-negligible probability."""
    low, last = min(distribution.support[0] for distribution in distributions), 32.0
    while last < 2**14 and max(distribution.sf(last) for distribution in distributions) > 1e-17:
        last *= 2
    return np.arange(low, last + 1)


def masses(distribution: UnivariateDistribution, edges: np.ndarray) -> np.ndarray:
    """The probabilities of the bins between the edges, including both tails, each computed from the nearer tail."""
    with np.errstate(all="ignore"):
        below, above = distribution.cdf(edges), distribution.sf(edges)
    return np.concatenate([below[:1], np.where(below[1:] < 0.5, np.diff(below), -np.diff(above)), above[-1:]])


def nodes_and_weights(
    distributions: Sequence[UnivariateDistribution], kinks: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature nodes and weights for functions of these distributions; for counts, the counts with weight 1."""
    if distributions[0].counts:
        nodes = _counts(distributions)
        return nodes, np.ones(nodes.size)
    ends = [end for distribution in distributions for end in distribution.support if np.isfinite(end)]
    edges = np.unique([*edges_between(*distributions), *kinks, *ends])
    half = np.diff(edges) / 2
    nodes = (edges[:-1] + half)[:, None] + half[:, None] * _NODES
    return nodes.ravel(), (half[:, None] * _WEIGHTS).ravel()


def log_densities(distributions: Sequence[UnivariateDistribution], x: np.ndarray) -> np.ndarray:
    """The log-densities at x, one row for each distribution."""
    with np.errstate(all="ignore"):
        rows = [
            np.where(
                (x >= distribution.support[0]) & (x <= distribution.support[1]), distribution.log_density(x), -np.inf
            )
            for distribution in distributions
        ]
    return np.asarray(rows)
