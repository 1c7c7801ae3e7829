"""KL for the uniform, beta, Kumaraswamy, continuous Bernoulli and Pareto distributions."""

from itertools import product
from math import inf
from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.dirichlets import kl_beta_parameters
from kullback.closed_forms.normals import kl_to_normal
from kullback.closed_forms.registry import closed_form, where_equal
from kullback.numerics.arrays import Array, broadcast_arrays, elementwise_with_gradient, holds
from kullback.numerics.log_gamma import binet, binet_slope, binet_slope_difference, gamma_kl_equal_mean
from kullback.numerics.log_sinhc import log_sinhc, log_sinhc_curvature, log_sinhc_residual, log_sinhc_slope
from kullback.numerics.phi import log1p_residual, log_ratio, mass_phi, ratio_residual, scaled_mass_phi

__all__: list[str] = []

_LARGE = 1e3  # concentrations from which KL(Beta(1, 1) || Q) would be nearly equal to the terms subtracted from it
_LOG_2_PI_E = np.log(2 * np.pi) + 1
_GAMMAS = (f.ChiSquared, f.Exponential, f.Gamma)


@closed_form((f.Pareto, f.Pareto))
def kl_pareto_pareto(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Pareto(scale1, alpha1) and Q = Pareto(scale2, alpha2).

    phi(log(alpha2/alpha1)) + alpha2 log(scale1/scale2), where phi(d) = e^d - 1 - d. The result is `inf` for
    scale1 < scale2.
    """
    return ratio_residual(xp, q.alpha, p.alpha) + q.alpha * log_ratio(xp, p.scale, q.scale)


@closed_form((f.Uniform, f.Uniform))
def kl_uniform_uniform(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Uniform(low1, high1) and Q = Uniform(low2, high2).

    log((high2 - low2)/(high1 - low1)), where the difference of the widths is (low1 - low2) + (high2 - high1). The
    result is `inf` where the interval of P is not inside the interval of Q.
    """
    scale = xp.where(q.high - q.low < inf, 1.0, 0.25)  # a width can overflow although the bounds do not
    low1, high1, low2, high2 = (scale * bound for bound in (p.low, p.high, q.low, q.high))
    return log_ratio(xp, high2 - low2, high1 - low1, (low1 - low2) + (high2 - high1))


@closed_form((f.Uniform, f.Pareto))
def kl_uniform_pareto(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Uniform(low, high) and Q = Pareto(scale, alpha).

    alpha (log(low/scale) + e) - log(high - low) + (m - log(alpha)), where m = E_P log(x) = log(high) - (r - log(1 +
    r))/r and e = E_P log(x/low) = log(1 + r) - (r - log(1 + r))/r with r = (high - low)/low. The result is `inf` for
    low < scale.
    """
    log_width = xp.log(p.high - p.low)
    return (
        q.alpha * _mean_log_above(xp, p.low, p.high, q.scale)
        - log_width
        + (_mean_log(xp, p.low, p.high) - xp.log(q.alpha))
    )


@closed_form(*product([f.Uniform], _GAMMAS))
def kl_uniform_gamma(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Uniform(low, high) and Q = Gamma(k, rate).

    The formula also holds for Q = Exponential(rate), with k = 1, and for Q = ChiSquared(df), with k = df/2 and rate =
    1/2.

    A + rate (low + w/2) - (k - 1) m - log(w) with w = high - low and A = lgamma(k) - k log(rate), where
    m = E_P log(x) = log(high) - (r - log(1 + r))/r with r = w/low, and m = log(high) - 1 for low = 0. The result is
    `inf` for low < 0.
    """
    shape, rate = _shape_and_rate(xp, q)
    width = p.high - p.low
    fits = shape < float(xp.finfo(shape.dtype).max) / 8
    log_2_pi_k = xp.where(
        fits, xp.log(xp.where(fits, shape, 1.0) * (2 * np.pi)), xp.log(shape) + float(np.log(2 * np.pi))
    )
    log_normalizer = log_2_pi_k / 2 + shape * (xp.log(shape / rate) - 1) - xp.log(shape) + binet(xp, shape)
    return log_normalizer + rate * (p.low + width / 2) - (shape - 1) * _mean_log(xp, p.low, p.high) - xp.log(width)


@closed_form((f.Uniform, f.Gumbel))
def kl_uniform_gumbel(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Uniform(low, high) and Q = Gumbel(loc, scale).

    m + exp(L(w/2) - m) - log(w) with w = (high - low)/scale and m = ((low - loc) + (high - loc))/(2 scale), where
    L(u) = log(sinh(u)/u).
    """
    low, width = (p.low - q.loc) / q.scale, (p.high - p.low) / q.scale
    middle = (low + (p.high - q.loc) / q.scale) / 2
    # L(w/2) and m are of the size of w, and L(w/2) - w/2 = log((1 - e^-w)/w).
    wide = width > 2
    near = log_sinhc(xp, xp.where(wide, 1.0, width) / 2) - middle
    far = xp.log(-xp.expm1(-width) / xp.where(wide, width, 1.0)) - low
    return middle + xp.exp(xp.where(wide, far, near)) - xp.log(width)


@closed_form((f.Uniform, f.Beta))
def kl_uniform_beta(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Uniform(low, high) and Q = Beta(concentration1, concentration0).

    KL(Beta(1, 1) || Q) - (concentration1 - 1) (m1 + 1) - (concentration0 - 1) (m0 + 1) - log(high - low), where
    m1 = E_P log(x) and m0 = E_P log(1 - x). Both means are -1 for the interval from 0 to 1, where P is Beta(1, 1). The
    result is `inf` where the interval of P is not inside the unit interval.
    """
    one, a, b = xp.ones_like(p.low), q.concentration1, q.concentration0
    mean_1, mean_0 = _mean_log(xp, p.low, p.high), _mean_log_of_complement(xp, p.low, p.high)
    large = (a > _LARGE) | (b > _LARGE)
    safe_a, safe_b = (xp.where(large, 1.0, x) for x in (a, b))
    unit_interval = kl_beta_parameters(xp, one, one, safe_a, safe_b)
    near = unit_interval - (safe_a - 1) * (mean_1 + 1) - (safe_b - 1) * (mean_0 + 1)
    if holds(~xp.any(large)):
        return near - xp.log(p.high - p.low)
    # KL(Beta(1, 1) || Q) would cancel. By Stirling's formula, with c = a + b, log B(a, b) is
    # a log(a/c) + b log(b/c) + (log(2 pi) - log(a) - log(b) + log(c))/2 + J(a) + J(b) - J(c).
    c = a + b
    log_a, log_b = log_ratio(xp, a, c, -b), log_ratio(xp, b, c, -a)
    halves = (np.log(2 * np.pi) - xp.log(a) - xp.log(b) + xp.log(c)) / 2
    normalizer = halves + binet(xp, a) + binet(xp, b) - binet(xp, c)
    far = a * (log_a - mean_1) + b * (log_b - mean_0) + (mean_1 + mean_0) + normalizer
    return xp.where(large, far, near) - xp.log(p.high - p.low)


@closed_form((f.Uniform, f.ContinuousBernoulli))
def kl_uniform_continuous_bernoulli(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Uniform(low, high) and Q = ContinuousBernoulli(probs).

    L(u) - 2 u (m - 1/2) - log(high - low) with u = log(probs/(1 - probs))/2 and the midpoint m = (low + high)/2, where
    L(u) = log(sinh(u)/u). The result is `inf` where the interval of P is not inside the unit interval.
    """
    u = _half_logit(xp, q)
    middle = p.low + (p.high - p.low) / 2
    return log_sinhc(xp, u) - 2 * u * (middle - 0.5) - xp.log(p.high - p.low)


@closed_form((f.Kumaraswamy, f.Kumaraswamy))
def kl_kumaraswamy_kumaraswamy(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Kumaraswamy(a, b1) and Q = Kumaraswamy(a, b2), with equal concentration1 = a.

    phi(log(b2/b1)), where phi(d) = e^d - 1 - d: the variable -log(1 - x^a) is exponential, with the rates b1 and b2.
    No closed form is known for unequal concentration1.
    """
    kl = ratio_residual(xp, q.concentration0, p.concentration0)
    return where_equal(xp, p, q, "concentration1", kl)


@closed_form((f.Beta, f.Uniform))
def kl_beta_uniform(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Beta(a, b) and Q = Uniform(low, high), where a is concentration1 and b is concentration0.

    KL(Beta(a, b) || Beta(1, 1)) + log(high - low). The result is `inf` where the unit interval is not inside the
    interval of Q.
    """
    return _beta_negative_entropy(xp, p) + xp.log(q.high - q.low)


@closed_form((f.Beta, f.ContinuousBernoulli))
def kl_beta_continuous_bernoulli(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Beta(a, b) and Q = ContinuousBernoulli(probs), with a = concentration1 and b = concentration0.

    KL(Beta(a, b) || Beta(1, 1)) + L(u) - u (a - b)/(a + b) with u = log(probs/(1 - probs))/2, where
    L(u) = log(sinh(u)/u).
    """
    u = _half_logit(xp, q)
    a, b = p.concentration1, p.concentration0
    return _beta_negative_entropy(xp, p) + log_sinhc(xp, u) - u * ((a - b) / (a + b))


@closed_form((f.Beta, f.Normal))
def kl_beta_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Beta(a, b) and Q = Normal(loc, scale), where a is concentration1 and b is concentration0.

    N + phi(log(v/scale^2))/2 + ((m - loc)/scale)^2/2 with the mean m = a/c and the variance v = a b/(c^2 (c + 1)) for
    c = a + b, where phi(d) = e^d - 1 - d. The negentropy is
    N = -log(1 + 1/c)/2 + (1/(2a) + 1/(2b) - 1/c) - (E_1(a) + E_1(b) - E_2(c)) with E_n(x) = J(x) - (x - n) J'(x) and
    J(x) = lgamma(x) - (x - 1/2) log(x) + x - log(2 pi)/2.
    """
    a, b = p.concentration1, p.concentration0
    c = a + b
    negentropy = (
        -xp.log1p(1 / c) / 2
        + (0.5 / a + 0.5 / b - 1 / c)
        - (_binet_excess(xp, a, 1) + _binet_excess(xp, b, 1) - _binet_excess(xp, c, 2))
    )
    deviation = xp.sqrt(a / c), xp.sqrt(b / c) / xp.sqrt(c + 1)
    return kl_to_normal(xp, a / c, a / c * (b / c) / (c + 1), negentropy, q, deviation)


def _beta_negative_entropy(xp: Any, d: Any) -> Array:
    """The negative entropy of a beta distribution: its KL to the uniform distribution on (0, 1), that is Beta(1, 1)."""
    one = xp.ones_like(d.concentration1)
    return kl_beta_parameters(xp, d.concentration1, d.concentration0, one, one)


def _binet_excess(xp: Any, a: Array, k: int) -> Array:
    """J(a) - (a - k) J'(a) for Binet's function J."""
    return binet(xp, a) - (a - k) * binet_slope(xp, a)


@closed_form(*product([f.Beta], _GAMMAS))
def kl_beta_gamma(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Beta(a, b) and Q = Gamma(k, rate), where a is concentration1 and b is concentration0.

    The formula also holds for Q = Exponential(rate), with k = 1, and for Q = ChiSquared(df), with k = df/2 and rate =
    1/2.

    D(a, k) + k phi(log(rate/c) + log(a/k)) + phi(log(b/c)) - D(c, b) + (a + a/b - k)/(2c) + k J'(c)
    - (b - 1) (J'(c) - J'(b)) with c = a + b, where phi(d) = e^d - 1 - d,
    D(a, k) = lgamma(k) - lgamma(a) - (k - a) digamma(a) - k phi(log(a/k)) and
    J(x) = lgamma(x) - (x - 1/2) log(x) + x - log(2 pi)/2.
    """
    shape, rate = _shape_and_rate(xp, q)
    a, b = p.concentration1, p.concentration0
    c = a + b
    log_rate = log_ratio(xp, rate, c)
    mean_term = scaled_mass_phi(xp, shape, a, log_rate, log_rate + log_ratio(xp, a, shape))
    kl = gamma_kl_equal_mean(xp, a, shape) + mean_term
    # Each difference between c and b has a relative accuracy, because the KL may be as small as a.
    normalizer = ratio_residual(xp, b, c, -a) - gamma_kl_equal_mean(xp, c, b, -a)
    change = (a - shape) / c / 2 + a / c / b / 2 + shape * binet_slope(xp, c)
    return kl + normalizer + change - (b - 1) * binet_slope_difference(xp, b, c, a)


@closed_form((f.ContinuousBernoulli, f.ContinuousBernoulli))
def kl_continuous_bernoulli_continuous_bernoulli(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = ContinuousBernoulli(probs1) and Q = ContinuousBernoulli(probs2).

    L(u2) - L(u1) - (u2 - u1) L'(u1) with u = log(probs/(1 - probs))/2, where L(u) = log(sinh(u)/u).
    """
    if p.logits is None and q.logits is None:
        # The difference of the logits is accurate as a sum of two log-ratios.
        h = (log_ratio(xp, q.probs, p.probs) - log_ratio(xp, 1 - q.probs, 1 - p.probs, p.probs - q.probs)) / 2
    else:
        h = _half_logit(xp, q) - _half_logit(xp, p)
    return log_sinhc_residual(xp, _half_logit(xp, p), h, _half_logit(xp, q))


@closed_form((f.ContinuousBernoulli, f.Uniform))
def kl_continuous_bernoulli_uniform(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = ContinuousBernoulli(probs) and Q = Uniform(low, high).

    u L'(u) - L(u) + log(high - low) with u = log(probs/(1 - probs))/2, where L(u) = log(sinh(u)/u). The first two terms
    are KL to the uniform distribution on the unit interval. The result is `inf` where the unit interval is not inside
    the interval of Q.
    """
    u = _half_logit(xp, p)
    return log_sinhc_residual(xp, u, -u, xp.zeros_like(u)) + xp.log(q.high - q.low)


@closed_form((f.ContinuousBernoulli, f.Exponential))
def kl_continuous_bernoulli_exponential(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = ContinuousBernoulli(probs) and Q = Exponential(rate).

    u L'(u) - L(u) - log(rate) + rate m with the mean m = (1 + L'(u))/2 and u = log(probs/(1 - probs))/2, where
    L(u) = log(sinh(u)/u).
    """
    mean, negative_entropy = _mean_and_negative_entropy(xp, p)
    return negative_entropy - xp.log(q.rate) + q.rate * mean


@closed_form((f.ContinuousBernoulli, f.Normal))
def kl_continuous_bernoulli_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = ContinuousBernoulli(probs) and Q = Normal(loc, scale).

    N + phi(log(v/scale^2))/2 + ((m - loc)/scale)^2/2 with the mean m = (1 + L'(u))/2, the variance v = L''(u)/4 and the
    negentropy N = (log(2 pi e) + log(v))/2 + u L'(u) - L(u) for u = log(probs/(1 - probs))/2, where phi(d) = e^d - 1 -
    d and L(u) = log(sinh(u)/u).
    """
    u = _half_logit(xp, p)
    mean, negative_entropy = _mean_and_negative_entropy(xp, p)
    variance = log_sinhc_curvature(xp, u) / 4
    fits = variance >= float(xp.finfo(variance.dtype).smallest_normal)
    # For large |u| the variance is 1/(4 u^2), which may underflow.
    deviation = xp.where(fits, xp.sqrt(xp.where(fits, variance, 1.0)), 0.5 / abs(xp.where(fits, 1.0, u)))
    log_variance = xp.where(fits, xp.log(xp.where(fits, variance, 1.0)), 2 * xp.log(deviation))
    return kl_to_normal(xp, mean, variance, (_LOG_2_PI_E + log_variance) / 2 + negative_entropy, q, (deviation, 1.0))


def _mean_and_negative_entropy(xp: Any, p: Any) -> tuple[Array, Array]:
    """The mean and the negative entropy of a continuous Bernoulli distribution."""
    u = _half_logit(xp, p)
    return (1 + log_sinhc_slope(xp, u)) / 2, log_sinhc_residual(xp, u, -u, xp.zeros_like(u))


def _half_logit(xp: Any, d: Any) -> Array:
    """log(probs / (1 - probs)) / 2."""
    return log_ratio(xp, d.probs, 1 - d.probs) / 2 if d.logits is None else d.logits / 2


def _shape_and_rate(xp: Any, d: Any) -> tuple[Array, Array]:
    """The concentration and the rate of a gamma, exponential or chi-squared distribution."""
    match d:
        case f.Gamma():
            return d.concentration, d.rate
        case f.Exponential():
            return xp.ones_like(d.rate), d.rate
        case _:
            return d.df / 2, 0.5 * xp.ones_like(d.df)


def _mean_log(xp: Any, low: Array, high: Array) -> Array:
    """The mean of log x for x uniform on (low, high): log(high) - (r - log(1 + r))/r with r = (high - low)/low."""
    low, high = _above(xp, low, high, 0.0)
    return _mean_log_of_ends(xp, *broadcast_arrays(xp, low, high, high - low, xp.log(high)))


def _mean_log_of_complement(xp: Any, low: Array, high: Array) -> Array:
    """The mean of log(1 - x) for x uniform on (low, high), also where high is so small that 1 - high is rounded."""
    inside = high <= 1
    low, high = xp.where(inside, low, 0.25), xp.where(inside, high, 0.5)
    return _mean_log_of_ends(xp, *broadcast_arrays(xp, 1 - high, 1 - low, high - low, xp.log1p(-low)))


def _mean_log_above(xp: Any, low: Array, high: Array, scale: Array) -> Array:
    """The mean of log(x/scale) for x uniform on (low, high), accurate where low, high and scale are nearly equal."""
    low, high = _above(xp, low, high, scale)
    return _mean_log_above_scale(xp, *broadcast_arrays(xp, low, high, scale))


def _above(xp: Any, low: Array, high: Array, smallest: Array | float) -> tuple[Array, Array]:
    """The ends of an interval, or of another one where low < smallest, where the KL is infinite.

    The derivative of such an entry is then finite, and 0 times it is 0, while the values of JAX are traced too.
    """
    inside = low >= smallest
    return xp.where(inside, low, smallest + 1.0), xp.where(inside, high, smallest + 2.0)


def _mean_log_above_value(xp: Any, low: Array, high: Array, scale: Array) -> Array:
    low = xp.where(low > 0, low, scale)
    return log_ratio(xp, low, scale) + (xp.log1p((high - low) / low) - _mean_log_below(xp, high - low, low))


def _mean_log_below(xp: Any, width: Array, low: Array) -> Array:
    """The mean of log(high/x) for x uniform on (low, high): (r - log(1 + r))/r with r = width/low; 1 for low = 0."""
    r = width / xp.where(low > 0, low, 1.0)
    regular = (low > 0) & (r > float(xp.finfo(r.dtype).eps)) & (r < np.inf)
    safe = xp.where(regular, r, 1.0)
    # For small r it is r/2 to rounding, and the square of r may underflow.
    return xp.where(regular, log1p_residual(safe) / safe, xp.where((low > 0) & (r < 1), r / 2, 1.0))


def _mean_log_value(xp: Any, low: Array, _high: Array, width: Array, log_high: Array) -> Array:
    return log_high - _mean_log_below(xp, width, low)


def _mean_log_by_low(
    xp: Any, gradient: Array, _output: Array, low: Array, high: Array, width: Array, _log: Array
) -> Array:
    positive = low > 0
    # The derivative at low = 0 is inf, which is 0 * inf = nan for a factor of 0; it is replaced by 0.
    return gradient * xp.where(positive, mass_phi(xp, high, xp.where(positive, low, high)) / (width * width), 0.0)


def _mean_log_by_high(
    xp: Any, gradient: Array, _output: Array, low: Array, high: Array, width: Array, _log: Array
) -> Array:
    positive = low > 0
    return gradient * xp.where(positive, mass_phi(xp, xp.where(positive, low, high), high) / (width * width), 1 / high)


def _zero_gradient(xp: Any, _gradient: Array, _output: Array, low: Array, *_: Array) -> Array:
    return xp.zeros_like(low)


_mean_log_of_ends = elementwise_with_gradient(
    _mean_log_value, _mean_log_by_low, _mean_log_by_high, _zero_gradient, _zero_gradient
)
_mean_log_above_scale = elementwise_with_gradient(
    _mean_log_above_value,
    lambda xp, gradient, output, low, high, _scale: _mean_log_by_low(xp, gradient, output, low, high, high - low, low),
    lambda xp, gradient, output, low, high, _scale: _mean_log_by_high(xp, gradient, output, low, high, high - low, low),
    lambda _xp, gradient, _output, _low, _high, scale: -gradient / scale,
)
