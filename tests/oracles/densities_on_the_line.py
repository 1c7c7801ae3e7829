"""What SciPy knows of the families on the line: cumulative probabilities, quantiles and log-densities, for the laws."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from kullback import families as f

# As far out as tails that are powers count, where squares are expected.
_LEVELS = special.expit(np.concatenate([np.arange(-150.0, -34.0, 2.0), np.linspace(-34, 34, 160)]))
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)


class Line(NamedTuple):
    """A distribution of one number."""

    cdf: Callable[[Any], Any]
    sf: Callable[[Any], Any]
    ppf: Callable[[Any], Any]
    isf: Callable[[Any], Any]
    log_density: Callable[[Any], Any]
    support: tuple[float, float]
    counts: bool


def _of_scipy(frozen: Any) -> Line:
    counts = hasattr(frozen.dist, "logpmf")
    logs = frozen.logpmf if counts else frozen.logpdf
    return Line(frozen.cdf, frozen.sf, frozen.ppf, frozen.isf, logs, frozen.support(), counts)


def _kumaraswamy(concentration1: float, concentration0: float) -> Line:
    a, b = concentration1, concentration0
    return Line(
        lambda x: -np.expm1(b * np.log1p(-(x**a))),
        lambda x: (1 - x**a) ** b,
        lambda level: (-np.expm1(np.log1p(-level) / b)) ** (1 / a),
        lambda level: (-np.expm1(np.log(level) / b)) ** (1 / a),
        lambda x: np.log(a * b) + (a - 1) * np.log(x) + (b - 1) * np.log1p(-(x**a)),
        (0.0, 1.0),
        False,
    )


def _continuous_bernoulli(probs: float) -> Line:
    slope = float(special.logit(probs))
    up, down = np.expm1(slope), np.expm1(-slope)
    return Line(
        lambda x: np.expm1(slope * np.clip(x, 0, 1)) / up,
        lambda x: np.expm1(slope * (np.clip(x, 0, 1) - 1)) / down,
        lambda level: np.log1p(level * up) / slope,
        lambda level: 1 + np.log1p(level * down) / slope,
        lambda x: slope * x - np.log(up / slope),
        (0.0, 1.0),
        False,
    )


def _zipf(exponent: float) -> Line:
    whole = special.zeta(exponent)
    plain = _of_scipy(stats.zipf(exponent))

    def sf(k: Any) -> Any:
        return special.zeta(exponent, np.asarray(k) + 1) / whole

    # SciPy's own are slow sums, and 1 less them.
    return plain._replace(sf=sf, cdf=lambda k: 1 - sf(k))


_LINES: dict[type, Callable[..., Any]] = {
    f.Normal: stats.norm,
    f.Laplace: stats.laplace,
    f.Cauchy: stats.cauchy,
    f.Logistic: stats.logistic,
    f.Gumbel: stats.gumbel_r,
    f.StudentT: stats.t,
    f.TanhNormal: stats.norm,  # each value told by its artanh, for floats end near 1
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


def line_of(record: Any) -> Line:
    """What SciPy knows of a record's distribution; its families take their parameters in the same order."""
    made = _LINES[type(record)](*(value for value in vars(record).values() if value is not None))
    return made if isinstance(made, Line) else _of_scipy(made)


def edges_between(*lines: Line) -> np.ndarray:
    """From the farthest tails of them all inwards, such that between two edges the densities are smooth; or counts."""
    if lines[0].counts:
        return _counts(lines)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of levels so near to 1 that SciPy finds no end to them
        places = np.concatenate([np.ravel([line.ppf(_LEVELS), line.isf(_LEVELS)]) for line in lines])
    places = np.unique(places[np.isfinite(places)])
    # What lies between two floats next to each other has no digits.
    return places[np.diff(places, prepend=-np.inf) > 1e-9 * abs(places)]


def resolved(line: Line, edges: np.ndarray) -> np.ndarray:
    """The edges between which the line has masses that it can tell, and that are above the least float."""
    with np.errstate(all="ignore"):
        tail = np.minimum(line.cdf(edges), line.sf(edges))
    edges, tail = edges[tail > 1e-280], tail[tail > 1e-280]
    return edges[masses(line, edges)[:-1] > 1e-9 * tail]


def _counts(lines: Sequence[Line]) -> np.ndarray:
    """All the counts that count."""
    low, last = min(line.support[0] for line in lines), 32.0
    while last < 2**14 and max(line.sf(last) for line in lines) > 1e-17:
        last *= 2
    return np.arange(low, last + 1)


def masses(line: Line, edges: np.ndarray) -> np.ndarray:
    """The probabilities of the bins that the edges make of the line, each from the nearer tail."""
    with np.errstate(all="ignore"):
        below, above = line.cdf(edges), line.sf(edges)
    return np.concatenate([below[:1], np.where(below[1:] < 0.5, np.diff(below), -np.diff(above)), above[-1:]])


def places_and_weights(lines: Sequence[Line], kinks: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Where to evaluate functions of these distributions, so that the weighted sum is the integral, or the sum."""
    if lines[0].counts:
        places = _counts(lines)
        return places, np.ones(places.size)
    ends = [end for line in lines for end in line.support if np.isfinite(end)]
    edges = np.unique([*edges_between(*lines), *kinks, *ends])
    half = np.diff(edges) / 2
    places = (edges[:-1] + half)[:, None] + half[:, None] * _NODES
    return places.ravel(), (half[:, None] * _WEIGHTS).ravel()


def log_densities(lines: Sequence[Line], x: np.ndarray) -> np.ndarray:
    """A row for each of them."""
    with np.errstate(all="ignore"):
        rows = [
            np.where((x >= line.support[0]) & (x <= line.support[1]), line.log_density(x), -np.inf) for line in lines
        ]
    return np.asarray(rows)
