"""Variables on an interval: uniform, beta and continuous Bernoulli; and what else is measured by their means."""

from itertools import product
from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.dirichlets import betas
from kullback.closed_forms.normals import against_normal
from kullback.closed_forms.registry import closed_form, where_equal
from kullback.numerics.arrays import Array
from kullback.numerics.log_gamma import binet, binet_slope, gamma_kl_equal_mean
from kullback.numerics.log_sinhc import log_sinhc, log_sinhc_curvature, log_sinhc_residual, log_sinhc_slope
from kullback.numerics.phi import log1p_residual, log_ratio, phi, ratio_residual

__all__: list[str] = []

_LOG_2_PI_E = np.log(2 * np.pi) + 1
_GAMMAS = (f.ChiSquared, f.Exponential, f.Gamma)


@closed_form((f.Pareto, f.Pareto))
def pareto(xp: Any, p: Any, q: Any) -> Array:
    """phi(log(alpha2/alpha1)) + alpha2 log(scale1/scale2)."""
    return ratio_residual(xp, q.alpha, p.alpha) + q.alpha * log_ratio(xp, p.scale, q.scale)


@closed_form((f.Uniform, f.Uniform))
def uniform(xp: Any, p: Any, q: Any) -> Array:
    """log(width2/width1), as the log of 1 and what q has outside p, over width1."""
    outside = (p.low - q.low) + (q.high - p.high)
    return xp.log1p(outside / (p.high - p.low))


@closed_form((f.Uniform, f.Pareto))
def uniform_pareto(xp: Any, p: Any, q: Any) -> Array:
    log_width = xp.log(p.high - p.low)
    return (
        q.alpha * (_log_mean(xp, p.low, p.high) - xp.log(q.scale))
        - log_width
        + (_log_mean(xp, p.low, p.high) - xp.log(q.alpha))
    )


@closed_form(*product([f.Uniform], _GAMMAS))
def uniform_gamma(xp: Any, p: Any, q: Any) -> Array:
    """By the means of x and log x."""
    shape, rate = _shape_and_rate(xp, q)
    width = p.high - p.low
    log_normalizer = (
        xp.log(shape * (2 * np.pi)) / 2 + shape * (xp.log(shape / rate) - 1) - xp.log(shape) + binet(xp, shape)
    )
    return log_normalizer + rate * (p.low + width / 2) - (shape - 1) * _log_mean(xp, p.low, p.high) - xp.log(width)


@closed_form((f.Uniform, f.Gumbel))
def uniform_gumbel(xp: Any, p: Any, q: Any) -> Array:
    """By the means of x and exp(-x/scale)."""
    width, middle = (p.high - p.low) / q.scale, ((p.low - q.loc) / q.scale + (p.high - q.loc) / q.scale) / 2
    return middle + xp.exp(log_sinhc(xp, width / 2) - middle) - xp.log(width)


@closed_form((f.Uniform, f.Beta))
def uniform_beta(xp: Any, p: Any, q: Any) -> Array:
    """From the whole unit interval, a beta itself, to this part of it: by the means of log x and log(1 - x)."""
    one = xp.ones_like(p.low)
    whole = betas(xp, one, one, q.concentration1, q.concentration0)
    ups = (q.concentration1 - 1) * (_log_mean(xp, p.low, p.high) + 1)
    downs = (q.concentration0 - 1) * (_log_mean(xp, one - p.high, one - p.low) + 1)
    return whole - ups - downs - xp.log(p.high - p.low)


@closed_form((f.Uniform, f.ContinuousBernoulli))
def uniform_continuous_bernoulli(xp: Any, p: Any, q: Any) -> Array:
    u = _half_logit(xp, q)
    middle = p.low + (p.high - p.low) / 2
    return log_sinhc(xp, u) - 2 * u * (middle - 0.5) - xp.log(p.high - p.low)


@closed_form((f.Kumaraswamy, f.Kumaraswamy))
def kumaraswamy(xp: Any, p: Any, q: Any) -> Array:
    """phi(log(b2/b1)) for equal concentration1, as -log(1 - x^a) is exponential; others have no closed form."""
    kl = ratio_residual(xp, q.concentration0, p.concentration0)
    return where_equal(xp, p, q, "concentration1", kl)


@closed_form((f.Beta, f.Uniform))
def beta_uniform(xp: Any, p: Any, q: Any) -> Array:
    return _beta_negative_entropy(xp, p) + xp.log(q.high - q.low)


@closed_form((f.Beta, f.ContinuousBernoulli))
def beta_continuous_bernoulli(xp: Any, p: Any, q: Any) -> Array:
    """By the mean of x."""
    u = _half_logit(xp, q)
    a, b = p.concentration1, p.concentration0
    return _beta_negative_entropy(xp, p) + log_sinhc(xp, u) - u * ((a - b) / (a + b))


@closed_form((f.Beta, f.Normal))
def beta_normal(xp: Any, p: Any, q: Any) -> Array:
    a, b = p.concentration1, p.concentration0
    c = a + b
    negentropy = (
        -xp.log1p(1 / c) / 2
        + (0.5 / a + 0.5 / b - 1 / c)
        - (_binet_excess(xp, a, 1) + _binet_excess(xp, b, 1) - _binet_excess(xp, c, 2))
    )
    return against_normal(xp, a / c, a / c * (b / c) / (c + 1), negentropy, q)


def _beta_negative_entropy(xp: Any, d: Any) -> Array:
    """KL to the uniform distribution on the unit interval, which is Beta(1, 1)."""
    one = xp.ones_like(d.concentration1)
    return betas(xp, d.concentration1, d.concentration0, one, one)


def _binet_excess(xp: Any, a: Array, k: int) -> Array:
    return binet(xp, a) - (a - k) * binet_slope(xp, a)


@closed_form(*product([f.Beta], _GAMMAS))
def beta_gamma(xp: Any, p: Any, q: Any) -> Array:
    """By the means of x and log x; nearly zero where b is large, and put together so that digits remain."""
    shape, rate = _shape_and_rate(xp, q)
    a, b = p.concentration1, p.concentration0
    c = a + b
    kl = gamma_kl_equal_mean(xp, a, shape) + shape * phi(xp.log(rate / c) + log_ratio(xp, a, shape))
    normalizer = xp.log1p(a / b) / 2 + a / b / c / 2 + _binet_excess(xp, c, 1) - _binet_excess(xp, b, 1)
    return kl + normalizer + shape * (binet_slope(xp, c) - 0.5 / c)


@closed_form((f.ContinuousBernoulli, f.ContinuousBernoulli))
def continuous_bernoulli(xp: Any, p: Any, q: Any) -> Array:
    """The residual of log(sinh(u)/u) about its tangent, u being half a logit."""
    if p.logits is None and q.logits is None:
        # The difference of logits, as the logs of two ratios, keeps its digits.
        h = (log_ratio(xp, q.probs, p.probs) - log_ratio(xp, 1 - q.probs, 1 - p.probs, p.probs - q.probs)) / 2
    else:
        h = _half_logit(xp, q) - _half_logit(xp, p)
    return log_sinhc_residual(xp, *xp.broadcast_arrays(_half_logit(xp, p), h))


@closed_form((f.ContinuousBernoulli, f.Uniform))
def continuous_bernoulli_uniform(xp: Any, p: Any, q: Any) -> Array:
    """By p's own mean; the uniform on the unit interval is a continuous Bernoulli of logit 0."""
    u = _half_logit(xp, p)
    return log_sinhc_residual(xp, u, -u) + xp.log(q.high - q.low)


@closed_form((f.ContinuousBernoulli, f.Exponential))
def continuous_bernoulli_exponential(xp: Any, p: Any, q: Any) -> Array:
    mean, negative_entropy = _mean_and_negative_entropy(xp, p)
    return negative_entropy - xp.log(q.rate) + q.rate * mean


@closed_form((f.ContinuousBernoulli, f.Normal))
def continuous_bernoulli_normal(xp: Any, p: Any, q: Any) -> Array:
    u = _half_logit(xp, p)
    mean, negative_entropy = _mean_and_negative_entropy(xp, p)
    variance = log_sinhc_curvature(xp, u) / 4
    return against_normal(xp, mean, variance, (_LOG_2_PI_E + xp.log(variance)) / 2 + negative_entropy, q)


def _mean_and_negative_entropy(xp: Any, p: Any) -> tuple[Array, Array]:
    u = _half_logit(xp, p)
    return (1 + log_sinhc_slope(xp, u)) / 2, log_sinhc_residual(xp, u, -u)


def _half_logit(xp: Any, d: Any) -> Array:
    return log_ratio(xp, d.probs, 1 - d.probs) / 2 if d.logits is None else d.logits / 2


def _shape_and_rate(xp: Any, d: Any) -> tuple[Array, Array]:
    match d:
        case f.Gamma():
            return d.concentration, d.rate
        case f.Exponential():
            return xp.ones_like(d.rate), d.rate
        case _:
            return d.df / 2, 0.5 * xp.ones_like(d.df)


def _log_mean(xp: Any, low: Array, high: Array) -> Array:
    """The mean of log x over low < x < high: log(high) - (r - log(1 + r))/r with r = (high - low)/low."""
    positive = low > 0
    r = (high - low) / xp.where(positive, low, 1.0)
    return xp.log(high) - xp.where(positive, log1p_residual(r) / r, 1.0)
