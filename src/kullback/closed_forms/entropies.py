"""Closed forms of the entropy H(p) = -E_p[log p(x)] of the families, in nats."""

from collections.abc import Callable
from math import e, lgamma, log, pi
from typing import Any

from array_api_compat import device

from kullback import families as f
from kullback.closed_forms._cholesky import factor_of, require_square
from kullback.closed_forms.counts import log_probs_up_to_constant
from kullback.closed_forms.multivariate import covariance_of
from kullback.closed_forms.von_mises import kl_von_mises_fisher_von_mises_fisher, kl_von_mises_von_mises
from kullback.closed_forms.wisharts import require_degrees
from kullback.discrete.entropy import differentiable_entropy
from kullback.errors import ShapeError, SupportError
from kullback.families.base import with_parameters
from kullback.numerics.arrays import Array, broadcast_arrays, holds, untracked
from kullback.numerics.log_gamma import binet, binet_slope, digamma_minus_log_difference
from kullback.numerics.normal_interval import normal_interval
from kullback.numerics.special import digamma

__all__ = ["ENTROPIES"]

_EULER_GAMMA = 0.57721566490153286


def _binet_terms(xp: Any, a: Array) -> Array:
    """J(a) - (a - 1) J'(a) - 1/(2a) for Binet's function J: lgamma(a) - (a - 1) digamma(a) without Stirling's terms.

    lgamma(a) - (a - 1) digamma(a) = log(a)/2 - a + (1 + log(2 pi))/2 + this. The terms that grow with a are separated,
    because they cancel in an entropy.
    """
    return binet(xp, a) - (a - 1) * binet_slope(xp, a) - 0.5 / a


def _gamma(xp: Any, shape: Array, rate: Array) -> Array:
    """a - log(rate) + log Gamma(a) + (1 - a) digamma(a)."""
    return xp.log(shape) / 2 + (1 + log(2 * pi)) / 2 + _binet_terms(xp, shape) - xp.log(rate)


def _inverse_gamma(xp: Any, p: Any) -> Array:
    """a + log(rate) + log Gamma(a) - (1 + a) digamma(a)."""
    a = p.concentration
    slope = (1 + a) * binet_slope(xp, a)
    return (1 + log(2 * pi)) / 2 - 1.5 * xp.log(a) + 0.5 / a + binet(xp, a) - slope + xp.log(p.rate)


def _dirichlet(xp: Any, p: Any) -> Array:
    """log B(a) + (sum(a) - n) digamma(sum(a)) - sum (a_i - 1) digamma(a_i)."""
    return _dirichlet_entropy(xp, p.concentration)


def _dirichlet_entropy(xp: Any, a: Array) -> Array:
    """The entropy of a Dirichlet distribution, whose parameters lie along the last axis."""
    total, n = xp.sum(a, axis=-1), a.shape[-1]
    parts = xp.sum(xp.log(a) / 2 + 0.5 + _binet_terms(xp, a), axis=-1) + (n - 1) / 2 * log(2 * pi)
    rest = binet(xp, total) - (total - n) * binet_slope(xp, total) - 0.5 * n / total
    return parts - (n - 0.5) * xp.log(total) - 0.5 - rest


def _beta(xp: Any, p: Any) -> Array:
    """log B(a, b) - (a - 1) digamma(a) - (b - 1) digamma(b) + (a + b - 2) digamma(a + b)."""
    return _dirichlet_entropy(xp, xp.stack(broadcast_arrays(xp, p.concentration1, p.concentration0), axis=-1))


def _student_t(xp: Any, p: Any) -> Array:
    """(df + 1)/2 (digamma((df + 1)/2) - digamma(df/2)) + log(sqrt(df) B(df/2, 1/2)) + log(scale)."""
    half = p.df / 2
    log_ratio = xp.log1p(0.5 / half)  # log((half + 1/2) / half), the leading term of the difference of digamma
    slope = (half + 0.5) * digamma_minus_log_difference(xp, half, half + 0.5)
    remainder = binet(xp, half) - binet(xp, half + 0.5)
    return log_ratio / 2 + slope + remainder + (1 + log(2 * pi)) / 2 + xp.log(p.scale) + 0 * p.loc


def _weibull(xp: Any, p: Any) -> Array:
    """gamma (1 - 1/k) + log(scale/k) + 1."""
    return _EULER_GAMMA * (1 - 1 / p.concentration) + xp.log(p.scale) - xp.log(p.concentration) + 1


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
    if not p.loc.ndim:
        raise ShapeError("expected loc to be a vector, got shape ()")
    n = p.loc.shape[-1]
    if isinstance(p, f.LowRankMultivariateNormal):
        logs = _log_diagonal(xp, n, "covariance_matrix", covariance_of(xp, p), None)
    elif p.precision_matrix is not None:
        logs = -_log_diagonal(xp, n, "precision_matrix", p.precision_matrix, None)
    else:
        logs = _log_diagonal(xp, n, "covariance_matrix", p.covariance_matrix, p.scale_tril)
    return n / 2 * log(2 * pi * e) + xp.sum(logs + 0 * p.loc, axis=-1)


def _matrix_normal(xp: Any, p: Any) -> Array:
    """m n/2 log(2 pi e) + n/2 log|U| + m/2 log|V|."""
    if p.loc.ndim < 2:
        raise ShapeError(f"expected loc to be a matrix, got shape {tuple(p.loc.shape)}")
    m, n = p.loc.shape[-2:]
    rows = xp.sum(_log_diagonal(xp, m, "row_covariance", p.row_covariance, p.row_scale_tril), axis=-1)
    columns = xp.sum(_log_diagonal(xp, n, "column_covariance", p.column_covariance, p.column_scale_tril), axis=-1)
    return m * n / 2 * log(2 * pi * e) + n * rows + m * columns + 0 * xp.sum(p.loc, axis=(-2, -1))


def _log_diagonal(xp: Any, size: int, name: str, matrix: Array | None, factor: Array | None) -> Array:
    """The logarithms of the diagonal of the Cholesky factor of a positive definite matrix, given or factored."""
    require_square(name, matrix if factor is None else factor, size)
    names = name, name.replace("covariance_matrix", "scale_tril").replace("covariance", "scale_tril")
    return xp.log(xp.linalg.diagonal(factor_of(xp, matrix, factor, names)))


def _truncated_normal(xp: Any, p: Any) -> Array:
    """log(Z) + E[z (y + z/2)], with z = (x - mode)/scale, y = (mode - loc)/scale and Z relative to the mode."""
    nodes = normal_interval(xp, *broadcast_arrays(xp, p.loc, p.scale, p.low, p.high))
    total = xp.sum(nodes.weight, axis=-1)
    exponent = nodes.offset * (nodes.slope[..., None] + nodes.offset / 2)
    return xp.log(total) + xp.sum(nodes.weight * exponent, axis=-1) / total


def _von_mises(xp: Any, p: Any) -> Array:
    """log(2 pi) - KL(p || the uniform distribution)."""
    uniform = with_parameters(f.VonMises, {"loc": p.loc, "concentration": xp.zeros_like(p.concentration)})
    return log(2 * pi) - kl_von_mises_von_mises(xp, p, uniform)


def _von_mises_fisher(xp: Any, p: Any) -> Array:
    """log S - KL(p || the uniform distribution), where S = 2 pi^(n/2) / Gamma(n/2) is the area of the sphere."""
    given = {"mean_direction": p.mean_direction, "concentration": xp.zeros_like(p.concentration)}
    kl = kl_von_mises_fisher_von_mises_fisher(xp, p, with_parameters(f.VonMisesFisher, given))
    n = p.mean_direction.shape[-1]
    return log(2) + n / 2 * log(pi) - lgamma(n / 2) - kl


def _lkj(xp: Any, p: Any) -> Array:
    """sum_k (n - k) (H(Beta(a_k, a_k)) + (n - k) log 2 + (n - 1 - k) (digamma(a_k) - digamma(2 a_k))).

    a_k = c + (n - 1 - k)/2 for k = 1 ... n - 1, as in the KL of two LKJ distributions.
    """
    size = int(p.dim)
    order = xp.arange(1, size, dtype=p.concentration.dtype, device=device(p.concentration))
    a = p.concentration[..., None] + (size - 1 - order) / 2
    betas = _dirichlet_entropy(xp, xp.stack([a, a], axis=-1))
    slopes = (size - 1 - order) * (digamma(xp, a) - digamma(xp, 2 * a))
    return xp.sum((size - order) * (betas + (size - order) * log(2) + slopes), axis=-1)


def _wishart(xp: Any, df: Array, log_determinant: Array, size: int) -> Array:
    """The entropy of a Wishart distribution, where `log_determinant` is the one of its covariance matrix V.

    (n + 1)/2 log|V| + n (n + 1)/2 log 2 + log Gamma_n(df/2) - (df - n - 1)/2 digamma_n(df/2) + n df/2, where Gamma_n
    and digamma_n are multivariate. With a_i = (df - i)/2 for i = 0 ... n - 1, the terms that grow with df are removed.
    """
    require_degrees(df, size)
    i = xp.arange(0, size, dtype=df.dtype, device=device(df))
    a = (df[..., None] - i) / 2
    gammas = xp.log(a) / 2 + (1 + log(2 * pi)) / 2 + _binet_terms(xp, a) + (size - 1 - i) / 2 * digamma(xp, a)
    constant = size * (size + 1) / 2 * log(2) + size * (size - 1) / 4 * (1 + log(pi))
    return (size + 1) / 2 * log_determinant + constant + xp.sum(gammas, axis=-1)


def _wishart_of_covariance(xp: Any, p: Any) -> Array:
    size = (p.covariance_matrix if p.scale_tril is None else p.scale_tril).shape[-1]
    logs = _log_diagonal(xp, size, "covariance_matrix", p.covariance_matrix, p.scale_tril)
    return _wishart(xp, p.df, 2 * xp.sum(logs, axis=-1), size)


def _inverse_wishart(xp: Any, p: Any) -> Array:
    """H(W) - (n + 1) E log|W|, where W is the inverse, which has a Wishart distribution."""
    size = p.scale_matrix.shape[-1]
    log_determinant = -2 * xp.sum(_log_diagonal(xp, size, "scale_matrix", p.scale_matrix, None), axis=-1)
    a = (p.df[..., None] - xp.arange(0, size, dtype=p.df.dtype, device=device(p.df))) / 2
    of_inverse = _wishart(xp, p.df, log_determinant, size)
    return of_inverse - (size + 1) * (size * log(2) + log_determinant + xp.sum(digamma(xp, a), axis=-1))


ENTROPIES: dict[type, Callable[..., Array]] = {
    f.Bernoulli: _bernoulli,
    f.Beta: _beta,
    f.Categorical: _categorical,
    f.Cauchy: lambda xp, p: xp.log(p.scale) + log(4 * pi) + 0 * p.loc,
    f.ChiSquared: lambda xp, p: _gamma(xp, p.df / 2, xp.full_like(p.df, 0.5)),
    f.Dirichlet: _dirichlet,
    f.Exponential: lambda xp, p: 1 - xp.log(p.rate),
    f.Gamma: lambda xp, p: _gamma(xp, p.concentration, p.rate),
    f.Geometric: _geometric,
    f.Gumbel: lambda xp, p: xp.log(p.scale) + _EULER_GAMMA + 1 + 0 * p.loc,
    f.HalfCauchy: lambda xp, p: xp.log(p.scale) + log(2 * pi),
    f.HalfNormal: lambda xp, p: xp.log(p.scale) + (log(pi / 2) + 1) / 2,
    f.InverseGamma: _inverse_gamma,
    f.Kumaraswamy: lambda xp, p: (
        (1 - 1 / p.concentration0)
        + (1 - 1 / p.concentration1) * (digamma(xp, p.concentration0 + 1) + _EULER_GAMMA)
        - xp.log(p.concentration1)
        - xp.log(p.concentration0)
    ),
    f.InverseWishart: _inverse_wishart,
    f.LKJ: _lkj,
    f.Laplace: lambda xp, p: 1 + log(2) + xp.log(p.scale) + 0 * p.loc,
    f.LogNormal: lambda xp, p: xp.log(p.scale) + (log(2 * pi) + 1) / 2 + p.loc,
    f.Logistic: lambda xp, p: xp.log(p.scale) + 2 + 0 * p.loc,
    f.Maxwell: lambda xp, p: xp.log(p.scale) + log(2 * pi) / 2 + _EULER_GAMMA - 0.5,
    f.LowRankMultivariateNormal: _multivariate_normal,
    f.MatrixNormal: _matrix_normal,
    f.MultivariateNormal: _multivariate_normal,
    f.Normal: lambda xp, p: xp.log(p.scale) + (log(2 * pi) + 1) / 2 + 0 * p.loc,
    f.OneHotCategorical: _categorical,
    f.Pareto: lambda xp, p: xp.log(p.scale) - xp.log(p.alpha) + 1 + 1 / p.alpha,
    f.Rayleigh: lambda xp, p: xp.log(p.scale) - log(2) / 2 + 1 + _EULER_GAMMA / 2,
    f.StudentT: _student_t,
    f.TruncatedNormal: _truncated_normal,
    f.Uniform: lambda xp, p: xp.log(p.high / 2 - p.low / 2) + log(2),
    f.VonMises: _von_mises,
    f.VonMisesFisher: _von_mises_fisher,
    f.Weibull: _weibull,
    f.Wishart: _wishart_of_covariance,
}
