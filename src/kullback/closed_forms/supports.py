"""Where distributions on the line live: outside q's support p must have no mass, or KL(p || q) is inf."""

from collections.abc import Callable
from math import inf
from typing import Any

from kullback import families as f
from kullback.numerics.arrays import Array

__all__ = ["is_contained", "is_of_counts", "lies_on_the_line", "shared_support", "support"]


def _binary(d: Any) -> tuple[Array, Array]:
    """Whether a zero can come up, and whether a one can."""
    if d.probs is None:
        return d.logits < inf, d.logits > -inf
    return d.probs < 1, d.probs > 0


def _binomial(xp: Any, d: Any, count: Any) -> tuple[Any, Any]:
    zero, one = _binary(d)
    return xp.where(zero, 0.0, count), xp.where(one, count, 0.0)


_LINE = (f.Normal, f.Laplace, f.Cauchy, f.Logistic, f.Gumbel, f.StudentT, f.NormalMixture)
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

# The least and the greatest value that can come up.
_INTERVALS: dict[type, Callable[[Any, Any], tuple[Any, Any]]] = {
    **dict.fromkeys(_LINE, lambda _xp, _d: (-inf, inf)),
    **dict.fromkeys(_POSITIVE, lambda _xp, _d: (0.0, inf)),
    **dict.fromkeys(_UNIT, lambda _xp, _d: (0.0, 1.0)),
    f.TanhNormal: lambda _xp, _d: (-1.0, 1.0),
    f.Pareto: lambda _xp, d: (d.scale, inf),
    f.Uniform: lambda _xp, d: (d.low, d.high),
}
_COUNTS: dict[type, Callable[[Any, Any], tuple[Any, Any]]] = {
    f.Bernoulli: lambda xp, d: _binomial(xp, d, 1.0),
    f.Binomial: lambda xp, d: _binomial(xp, d, d.total_count),
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


def lies_on_the_line(record: Any) -> bool:
    """Whether the distribution is of real numbers or of counts."""
    return type(record) in _INTERVALS or type(record) in _COUNTS


def is_of_counts(kind: type) -> bool:
    """Whether the records of a class are of whole numbers."""
    return kind in _COUNTS


def shared_support(kind: type) -> tuple[float, float]:
    """The support that all densities of a class have; the whole line where parameters move it."""
    moved = kind in (f.Pareto, f.Uniform) or kind not in _INTERVALS
    return (-inf, inf) if moved else _INTERVALS[kind](None, None)


def support(xp: Any, record: Any) -> tuple[Any, Any]:
    """The least and the greatest value that can come up."""
    return (_INTERVALS.get(type(record)) or _COUNTS[type(record)])(xp, record)


def is_contained(xp: Any, p: Any, q: Any) -> Any:
    """Where the support of q holds that of p: an array, or one bool for all of a batch.

    Both lie on the line; counts and densities never hold one another.
    """
    if (type(p) in _COUNTS) != (type(q) in _COUNTS):
        return False
    (low_p, high_p), (low_q, high_q) = support(xp, p), support(xp, q)
    return (low_p >= low_q) & (high_p <= high_q)
