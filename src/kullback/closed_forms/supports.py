"""The supports of the univariate families.

KL(p || q) is infinite where p has mass outside the support of q.
"""

from collections.abc import Callable
from math import inf
from typing import Any

from kullback import families as f
from kullback.numerics.arrays import Array

__all__ = ["is_contained", "is_count_family", "is_univariate", "shared_support", "support"]


def _binary(d: Any) -> tuple[Array, Array]:
    """Whether the values 0 and 1 of a Bernoulli trial have positive probability."""
    if d.probs is None:
        return d.logits < inf, d.logits > -inf
    return d.probs < 1, d.probs > 0


def _binomial_interval(xp: Any, d: Any, count: Any) -> tuple[Any, Any]:
    """The smallest and the largest number of successes in `count` trials that has positive probability."""
    zero, one = _binary(d)
    return xp.where(zero, 0.0, count), xp.where(one, count, 0.0)


_REAL_LINE = (f.Normal, f.Laplace, f.Cauchy, f.Logistic, f.Gumbel, f.StudentT, f.NormalMixture)
_POSITIVE = (
    f.ChiSquared,
    f.Exponential,
    f.F,
    f.Gamma,
    f.HalfCauchy,
    f.HalfNormal,
    f.InverseGamma,
    f.InverseGaussian,
    f.LogNormal,
    f.Maxwell,
    f.Rayleigh,
    f.Weibull,
)
_UNIT = (f.Beta, f.ContinuousBernoulli, f.Kumaraswamy)

# The ends of the support of each family; the counts below include both ends.
_INTERVALS: dict[type, Callable[[Any, Any], tuple[Any, Any]]] = {
    **dict.fromkeys(_REAL_LINE, lambda _xp, _d: (-inf, inf)),
    **dict.fromkeys(_POSITIVE, lambda _xp, _d: (0.0, inf)),
    **dict.fromkeys(_UNIT, lambda _xp, _d: (0.0, 1.0)),
    f.TanhNormal: lambda _xp, _d: (-1.0, 1.0),
    f.Pareto: lambda _xp, d: (d.scale, inf),
    f.Uniform: lambda _xp, d: (d.low, d.high),
}
_COUNTS: dict[type, Callable[[Any, Any], tuple[Any, Any]]] = {
    f.Bernoulli: lambda xp, d: _binomial_interval(xp, d, 1.0),
    f.Binomial: lambda xp, d: _binomial_interval(xp, d, d.total_count),
    f.Geometric: lambda xp, d: (0.0, xp.where(_binary(d)[0], inf, 0.0)),
    f.NegativeBinomial: lambda xp, d: (0.0, xp.where(_binary(d)[1], inf, 0.0)),
    f.Poisson: lambda xp, d: (0.0, xp.where(d.rate > 0, inf, 0.0)),
    f.Zipf: lambda _xp, _d: (1.0, inf),
    f.Zipfian: lambda _xp, d: (1.0, d.total_count),
    f.Hypergeometric: lambda xp, d: (
        xp.maximum(xp.zeros_like(d.draws), d.draws + d.successes - d.population),
        xp.minimum(d.draws, d.successes),
    ),
}


def is_univariate(record: Any) -> bool:
    """Whether the values of the distribution are real numbers or counts, rather than vectors or categories."""
    return type(record) in _INTERVALS or type(record) in _COUNTS


def is_count_family(family: type) -> bool:
    """Whether the family is a distribution of counts (integers)."""
    return family in _COUNTS


def shared_support(family: type) -> tuple[float, float]:
    """The support of every member of the family; (-inf, inf) where the support depends on the parameters."""
    varies = family in (f.Pareto, f.Uniform) or family not in _INTERVALS
    return (-inf, inf) if varies else _INTERVALS[family](None, None)


def support(xp: Any, record: Any) -> tuple[Any, Any]:
    """The smallest and the largest value of the support of a univariate distribution."""
    return (_INTERVALS.get(type(record)) or _COUNTS[type(record)])(xp, record)


def is_contained(xp: Any, p: Any, q: Any) -> Any:
    """Whether the support of q contains the support of p, for univariate p and q: an array, or a bool for the batch.

    It is False for a distribution of counts and a density, which have no common dominating measure.
    """
    if (type(p) in _COUNTS) != (type(q) in _COUNTS):
        return False
    (low_p, high_p), (low_q, high_q) = support(xp, p), support(xp, q)
    return (low_p >= low_q) & (high_p <= high_q)
