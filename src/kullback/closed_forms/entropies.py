"""Closed forms of the entropy H(p) = -E_p[log p(x)] of the families, in nats."""

from collections.abc import Callable
from math import e, log, pi
from typing import Any

from kullback import families as f
from kullback.closed_forms._cholesky import cholesky
from kullback.closed_forms.counts import log_probs_up_to_constant
from kullback.discrete.entropy import differentiable_entropy
from kullback.errors import SupportError
from kullback.numerics.arrays import Array, holds, untracked
from kullback.numerics.special import digamma, log_gamma

__all__ = ["ENTROPIES"]

_EULER_GAMMA = 0.57721566490153286


def _log_beta(xp: Any, a: Array, b: Array) -> Array:
    """log B(a, b), the logarithm of the beta function."""
    return log_gamma(xp, a) + log_gamma(xp, b) - log_gamma(xp, a + b)


def _gamma(xp: Any, shape: Array, rate: Array) -> Array:
    """a - log(rate) + log Gamma(a) + (1 - a) digamma(a)."""
    return shape - xp.log(rate) + log_gamma(xp, shape) + (1 - shape) * digamma(xp, shape)


def _beta(xp: Any, p: Any) -> Array:
    """log B(a, b) - (a - 1) digamma(a) - (b - 1) digamma(b) + (a + b - 2) digamma(a + b)."""
    a, b = p.concentration1, p.concentration0
    return _log_beta(xp, a, b) - (a - 1) * digamma(xp, a) - (b - 1) * digamma(xp, b) + (a + b - 2) * digamma(xp, a + b)


def _dirichlet(xp: Any, p: Any) -> Array:
    """log B(a) + (sum(a) - n) digamma(sum(a)) - sum (a_i - 1) digamma(a_i)."""
    a = p.concentration
    total = xp.sum(a, axis=-1)
    log_beta = xp.sum(log_gamma(xp, a), axis=-1) - log_gamma(xp, total)
    return log_beta + (total - a.shape[-1]) * digamma(xp, total) - xp.sum((a - 1) * digamma(xp, a), axis=-1)


def _student_t(xp: Any, p: Any) -> Array:
    """(df + 1)/2 (digamma((df + 1)/2) - digamma(df/2)) + log(sqrt(df) B(df/2, 1/2)) + log(scale)."""
    half = p.df / 2
    slope = digamma(xp, half + 0.5) - digamma(xp, half)
    log_beta = log_gamma(xp, half) + log(pi) / 2 - log_gamma(xp, half + 0.5)
    return (half + 0.5) * slope + xp.log(p.df) / 2 + log_beta + xp.log(p.scale) + 0 * p.loc


def _weibull(xp: Any, p: Any) -> Array:
    """gamma (1 - 1/k) + log(scale/k) + 1."""
    return _EULER_GAMMA * (1 - 1 / p.concentration) + xp.log(p.scale / p.concentration) + 1


def _categorical(xp: Any, p: Any) -> Array:
    """-sum p_i log p_i."""
    if p.logits is None:
        return differentiable_entropy(xp, p.probs)
    logits = p.logits - xp.max(p.logits, axis=-1, keepdims=True)
    weights = xp.exp(logits)
    return differentiable_entropy(xp, weights / xp.sum(weights, axis=-1, keepdims=True))


def _bernoulli(xp: Any, p: Any) -> Array:
    """-p log p - (1 - p) log(1 - p)."""
    if p.logits is None:
        return differentiable_entropy(xp, xp.stack([p.probs, 1 - p.probs], axis=-1))
    logits = xp.stack(log_probs_up_to_constant(xp, p), axis=-1)
    weights = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return differentiable_entropy(xp, weights / xp.sum(weights, axis=-1, keepdims=True))


def _geometric(xp: Any, p: Any) -> Array:
    """(-p log p - (1 - p) log(1 - p)) / p."""
    probs = p.probs if p.logits is None else 1 / (1 + xp.exp(-p.logits))
    if holds(xp.any(untracked(probs) == 0)):
        raise SupportError("expected a geometric distribution with probs > 0, got 0, where the entropy is infinite")
    return _bernoulli(xp, p) / probs


def _multivariate_normal(xp: Any, p: Any) -> Array:
    """n/2 log(2 pi e) + log|S|/2."""
    if p.scale_tril is not None:
        logs = xp.log(xp.linalg.diagonal(p.scale_tril))
    elif p.covariance_matrix is not None:
        logs = xp.log(xp.linalg.diagonal(cholesky(xp, p.covariance_matrix, "covariance_matrix")))
    else:
        logs = -xp.log(xp.linalg.diagonal(cholesky(xp, p.precision_matrix, "precision_matrix")))
    return p.loc.shape[-1] / 2 * log(2 * pi * e) + xp.sum(logs + 0 * p.loc, axis=-1)


ENTROPIES: dict[type, Callable[..., Array]] = {
    f.Bernoulli: _bernoulli,
    f.Beta: _beta,
    f.Categorical: _categorical,
    f.Cauchy: lambda xp, p: xp.log(4 * pi * p.scale) + 0 * p.loc,
    f.ChiSquared: lambda xp, p: _gamma(xp, p.df / 2, xp.full_like(p.df, 0.5)),
    f.Dirichlet: _dirichlet,
    f.Exponential: lambda xp, p: 1 - xp.log(p.rate),
    f.Gamma: lambda xp, p: _gamma(xp, p.concentration, p.rate),
    f.Geometric: _geometric,
    f.Gumbel: lambda xp, p: xp.log(p.scale) + _EULER_GAMMA + 1 + 0 * p.loc,
    f.HalfCauchy: lambda xp, p: xp.log(2 * pi * p.scale),
    f.HalfNormal: lambda xp, p: xp.log(p.scale) + (log(pi / 2) + 1) / 2,
    f.InverseGamma: lambda xp, p: (
        p.concentration
        + xp.log(p.rate)
        + log_gamma(xp, p.concentration)
        - (1 + p.concentration) * digamma(xp, p.concentration)
    ),
    f.Kumaraswamy: lambda xp, p: (
        (1 - 1 / p.concentration0)
        + (1 - 1 / p.concentration1) * (digamma(xp, p.concentration0 + 1) + _EULER_GAMMA)
        - xp.log(p.concentration1)
        - xp.log(p.concentration0)
    ),
    f.Laplace: lambda xp, p: 1 + xp.log(2 * p.scale) + 0 * p.loc,
    f.LogNormal: lambda xp, p: xp.log(p.scale) + (log(2 * pi) + 1) / 2 + p.loc,
    f.Logistic: lambda xp, p: xp.log(p.scale) + 2 + 0 * p.loc,
    f.Maxwell: lambda xp, p: xp.log(p.scale) + log(2 * pi) / 2 + _EULER_GAMMA - 0.5,
    f.MultivariateNormal: _multivariate_normal,
    f.Normal: lambda xp, p: xp.log(p.scale) + (log(2 * pi) + 1) / 2 + 0 * p.loc,
    f.OneHotCategorical: _categorical,
    f.Pareto: lambda xp, p: xp.log(p.scale / p.alpha) + 1 + 1 / p.alpha,
    f.Rayleigh: lambda xp, p: xp.log(p.scale) - log(2) / 2 + 1 + _EULER_GAMMA / 2,
    f.StudentT: _student_t,
    f.Uniform: lambda xp, p: xp.log(p.high - p.low),
    f.Weibull: _weibull,
}
