"""KL for powers of gamma variables, their logarithms and their inverses.

A power of a gamma variable is x = a G^(1/c), where G has the distribution Gamma(k, 1). Its families are:

| family | shape k | power c | scale a |
| --- | --- | --- | --- |
| Exponential(rate) | 1 | 1 | 1/rate |
| Gamma(concentration, rate) | concentration | 1 | 1/rate |
| ChiSquared(df) | df/2 | 1 | 2 |
| Weibull(scale, concentration) | 1 | concentration | scale |
| Rayleigh(scale) | 1 | 2 | sqrt(2) scale |
| HalfNormal(scale) | 1/2 | 2 | sqrt(2) scale |
| Maxwell(scale) | 3/2 | 2 | sqrt(2) scale |
"""

import math
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from kullback import families as f
from kullback.closed_forms.normals import kl_to_normal
from kullback.closed_forms.registry import closed_form
from kullback.numerics.arrays import Array, holds
from kullback.numerics.log_gamma import (
    binet,
    binet_curvature,
    binet_slope,
    digamma,
    gamma_kl_equal_mean,
    log_gamma_bregman,
)
from kullback.numerics.phi import log1p_residual, log_ratio, phi, ratio_residual, scaled_mass_phi

GAMMA_POWERS: tuple[type, ...] = (
    f.ChiSquared,
    f.Exponential,
    f.Gamma,
    f.HalfNormal,
    f.Maxwell,
    f.Rayleigh,
    f.Weibull,
)


class _GammaPower(NamedTuple):
    """x = constant (numerator / denominator) G^(1/power), where G has the distribution Gamma(shape, 1).

    The numerator and the denominator of the scale are stored separately, so that ratios of scales are accurate. A shape
    or a power that the family fixes is a float; otherwise it is an array.
    """

    shape: Any
    power: Any
    numerator: Any
    denominator: Any
    constant: float


def _as_gamma_power(xp: Any, d: Any) -> _GammaPower:
    """The shape, the power and the scale of a distribution of the table above, or of the inverse of an InverseGamma."""

    def one(x: Array) -> Array:
        return xp.ones_like(x)

    match d:
        case f.Exponential():
            return _GammaPower(1.0, 1.0, one(d.rate), d.rate, 1.0)
        case f.Gamma() | f.InverseGamma():
            return _GammaPower(d.concentration, 1.0, one(d.rate), d.rate, 1.0)
        case f.ChiSquared():
            return _GammaPower(d.df / 2, 1.0, one(d.df), one(d.df), 2.0)
        case f.Weibull():
            return _GammaPower(1.0, d.concentration, d.scale, one(d.scale), 1.0)
        case _:
            shape = {f.HalfNormal: 0.5, f.Rayleigh: 1.0, f.Maxwell: 1.5}[type(d)]
            return _GammaPower(shape, 2.0, d.scale, one(d.scale), math.sqrt(2))


def _as_gamma_power_arrays(xp: Any, d: Any) -> _GammaPower:
    """`_as_gamma_power` with the shape and the power as arrays, also where the family fixes them."""
    power = _as_gamma_power(xp, d)
    return power._replace(
        shape=_as_array(xp, power.shape, power.numerator), power=_as_array(xp, power.power, power.numerator)
    )


def _log_scale_ratio(xp: Any, p: _GammaPower, q: _GammaPower) -> Array:
    """log(scale_p / scale_q)."""
    u, v = p.numerator * q.denominator, q.numerator * p.denominator
    least = float(xp.finfo(u.dtype).smallest_normal)
    fits = (u >= least) & (u < math.inf) & (v >= least) & (v < math.inf)
    ratio = log_ratio(xp, u, v)
    if not holds(xp.all(fits)):
        parts = log_ratio(xp, p.numerator, q.numerator) + log_ratio(xp, q.denominator, p.denominator)
        ratio = xp.where(fits, log_ratio(xp, xp.where(fits, u, 1.0), xp.where(fits, v, 1.0)), parts)
    return ratio + math.log(p.constant / q.constant)


def _log_scale(xp: Any, p: _GammaPower) -> Array:
    """log(scale)."""
    ratio = p.numerator / p.denominator
    fits = (ratio >= float(xp.finfo(ratio.dtype).smallest_normal)) & (ratio < math.inf)
    log = xp.where(fits, xp.log(xp.where(fits, ratio, 1.0)), xp.log(p.numerator) - xp.log(p.denominator))
    return log + math.log(p.constant)


@closed_form(*product(GAMMA_POWERS, GAMMA_POWERS), (f.InverseGamma, f.InverseGamma))
def kl_gamma_power_gamma_power(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P and Q = Gamma, Exponential, ChiSquared, Weibull, Rayleigh, HalfNormal or Maxwell.

    Each is the distribution of a G^(1/c), where G has the distribution Gamma(k, 1): Gamma(k, rate) has c = 1 and
    a = 1/rate; Exponential(rate) has k = 1, c = 1 and a = 1/rate; ChiSquared(df) has k = df/2, c = 1 and a = 2;
    Weibull(a, c) has k = 1; Rayleigh, HalfNormal and Maxwell(scale) have k = 1, 1/2 and 3/2, c = 2 and a = sqrt(2)
    scale. Two InverseGamma distributions have the KL of the two Gamma distributions with the same parameters.

    k2 phi(log(m/k2)) + D(k1, k2) + k2 R(k1 + 1, s) + s (k2/k1 - 1) + (s - log(1 + s)) with s = c2/c1 - 1 and
    m = E_P (x/a2)^c2 = (a1/a2)^c2 Gamma(k1 + c2/c1)/Gamma(k1), where phi(d) = e^d - 1 - d,
    R(a, h) = lgamma(a + h) - lgamma(a) - h digamma(a), and D(a, b) = R(a, b - a) - b phi(log(a/b)).

    For equal powers c1 = c2 = c the formula is k2 phi(c log(a1/a2) + log(k1/k2)) + D(k1, k2). For equal shapes the
    second and fourth terms are 0.
    """
    p, q = _as_gamma_power(xp, p), _as_gamma_power(xp, q)
    log_scales = q.power * _log_scale_ratio(xp, p, q)
    return _kl_gamma_powers(xp, (p.shape, q.shape), (q.power, p.power), log_scales)


def _kl_gamma_powers(xp: Any, shapes: tuple[Any, Any], t: tuple[Any, Any], log_scales: Array) -> Array:
    """The formula of `kl_gamma_power_gamma_power`.

    Args:
        xp: The array namespace.
        shapes: k1 and k2.
        t: The numerator and the denominator of c2/c1.
        log_scales: c2 log(a1/a2).
    """
    log_mean, log_factor, rest = log_scales, log_scales, 0.0
    k1, k2 = (_as_array(xp, shape, log_scales) for shape in shapes)
    if not _fixed_and_equal(*shapes):
        log_mean = log_mean + log_ratio(xp, k1, k2)
        rest = gamma_kl_equal_mean(xp, k1, k2)
    if not _fixed_and_equal(*t):
        numerator, denominator = (_as_array(xp, power, log_scales) for power in t)
        s = (numerator - denominator) / denominator
        # k1 + t and log(t) are computed from t itself, because s is close to -1 for a small t.
        residual = log_gamma_bregman(xp, k1 + 1, k1 + numerator / denominator, s)
        slope = s * digamma(xp, k1 + 1)
        log_mean, log_factor = log_mean + slope + residual, log_factor + slope + residual
        rest = rest + s * ((k2 - k1) / k1) + ratio_residual(xp, numerator, denominator)
        # For small k1 and t these terms cancel, because each of them has a pole at 0; functions of k1 + 1 have none.
        poles = (k1 < 0.5) & (k2 > 2 * k1) & (s < -0.5)
        if not holds(~xp.any(poles)):
            near, far = xp.where(poles, k1, 1.0), xp.where(poles, k2, 1.0)
            bregman = log_gamma_bregman(xp, near + 1, far + 1, far - near) - far * phi(log_ratio(xp, near, far))
            rest = xp.where(poles, bregman + ratio_residual(xp, far * numerator, near * denominator), rest)
        rest = rest + k2 * residual
        kl = scaled_mass_phi(xp, k2, k1, log_factor, log_mean) + rest
        # For very different powers, terms of the size of the larger shape cancel.
        ratio = numerator / denominator
        different = ((ratio < 0.1) | (ratio > 10)) & (k1 >= 0.5)
        if holds(~xp.any(different)):
            return kl
        far_k1, far_k2, far_ratio = (xp.where(different, value, 1.0) for value in (k1, k2, ratio))
        other = _kl_of_different_powers(xp, far_k1, far_k2, far_ratio, xp.where(different, log_scales, 0.0))
        return xp.where(different, other, kl)
    return scaled_mass_phi(xp, k2, k1, log_factor, log_mean) + rest


def _kl_of_different_powers(xp: Any, k1: Array, k2: Array, t: Array, log_scales: Array) -> Array:
    """KL(P || Q) from the entropy of log y and the mean of log q, for y = (x/a2)^c2 and t = c2/c1 far from 1.

    k2 phi(log(m/k2)) + k2 R(k1, t) + log(2 pi/k2)/2 + J(k2) - log(t) - log(2 pi/k1)/2 - J(k1) - 1/2 + k1 J'(k1) with
    the mean m of y and log(m) = log_scales + t digamma(k1) + R(k1, t).
    """
    residual = log_gamma_bregman(xp, k1, k1 + t, t)
    log_mean = log_scales + t * digamma(xp, k1) + residual
    mean_term = scaled_mass_phi(xp, k2, xp.ones_like(k2), log_mean, log_mean - xp.log(k2))
    entropy = xp.log(t) + 0.5 * xp.log(2 * np.pi / k1) + binet(xp, k1) + 0.5 - k1 * binet_slope(xp, k1)
    return mean_term + k2 * residual + 0.5 * xp.log(2 * np.pi / k2) + binet(xp, k2) - entropy


def _fixed_and_equal(left: Any, right: Any) -> bool:
    """Whether the families fix both values, to the same number."""
    return isinstance(left, float) and isinstance(right, float) and left == right


def _as_array(xp: Any, value: Any, like: Array) -> Array:
    """A float as an array with the shape of `like`; an array unchanged."""
    return value * xp.ones_like(like) if isinstance(value, float) else value


@closed_form((f.Gumbel, f.Gumbel))
def kl_gumbel_gumbel(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Gumbel(loc1, scale1) and Q = Gumbel(loc2, scale2).

    phi(log m) + R(2, s) + (s - log(1 + s)) with s = scale1/scale2 - 1 and
    log m = (loc2 - loc1)/scale2 + lgamma(1 + scale1/scale2), where phi(d) = e^d - 1 - d and
    R(a, h) = lgamma(a + h) - lgamma(a) - h digamma(a). It is KL between the Weibull distributions of e^-x.
    """
    return _kl_gamma_powers(xp, (1.0, 1.0), (p.scale, q.scale), (q.loc - p.loc) / q.scale)


# Logarithms of gamma variables and normal variables. The logarithm of an inverse-gamma variable is the negated
# logarithm of a gamma variable.


@closed_form(*product([*GAMMA_POWERS, f.InverseGamma], [f.LogNormal]))
def kl_gamma_power_log_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Gamma, Weibull, another power of a gamma variable or InverseGamma, and Q = LogNormal.

    Q = LogNormal(loc, scale), and P is the distribution of a G^(1/c), where G has the distribution Gamma(k, 1):
    Gamma(k, rate) has c = 1 and a = 1/rate; Exponential(rate) has k = 1, c = 1 and a = 1/rate; ChiSquared(df) has k =
    df/2, c = 1 and a = 2; Weibull(a, c) has k = 1; Rayleigh, HalfNormal and Maxwell(scale1) have k = 1, 1/2 and 3/2, c
    = 2 and a = sqrt(2) scale1.

    N + phi(log(v/scale^2))/2 + ((m - loc)/scale)^2/2 with the mean m = log(a) + digamma(k)/c and the variance
    v = trigamma(k)/c^2 of log x, and the negentropy N = log(k trigamma(k))/2 + k J'(k) - J(k), where phi(d) = e^d - 1 -
    d and J(k) = lgamma(k) - (k - 1/2) log(k) + k - log(2 pi)/2. For P = InverseGamma(k, rate), m = log(rate) -
    digamma(k).
    """
    sign = -1 if isinstance(p, f.InverseGamma) else 1
    p = _as_gamma_power_arrays(xp, p)
    mean = sign * (_log_scale(xp, p) + digamma(xp, p.shape) / p.power)
    return _kl_log_gamma_normal(xp, p.shape, mean, 1 / p.power, q)


@closed_form((f.Gumbel, f.Normal))
def kl_gumbel_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Gumbel(loc1, scale1) and Q = Normal(loc2, scale2).

    N + phi(log(v/scale2^2))/2 + ((m - loc2)/scale2)^2/2 with the mean m = loc1 + euler_gamma scale1, the variance
    v = pi^2 scale1^2/6 and the negentropy N = (log(2 pi e) + log(pi^2/6))/2 - 1 - euler_gamma, where
    phi(d) = e^d - 1 - d. It is the formula for the logarithm of a Gamma(1, 1) variable, negated and scaled.
    """
    return _kl_log_gamma_normal(xp, xp.ones_like(p.scale), p.loc + np.euler_gamma * p.scale, p.scale, q)


def _kl_log_gamma_normal(xp: Any, k: Array, mean: Array, scale: Array, q: Any) -> Array:
    """KL to the normal distribution q of scale log G + constant or its negative, with G ~ Gamma(k, 1) and this mean."""
    curvature = binet_curvature(xp, k)
    fits = curvature < math.inf
    curvature = xp.where(fits, curvature, 1.0)
    trigamma = 1 / k + 0.5 / xp.where(fits, k * k, 1.0) + curvature
    log = xp.where(fits, xp.log1p(0.5 / k + k * curvature), -xp.log(k))  # of k trigamma(k)
    negentropy = log / 2 + k * binet_slope(xp, k) - binet(xp, k)
    # For small k, trigamma(k) is 1/k^2 to rounding, which may overflow.
    variance, root = xp.where(fits, trigamma, math.inf), xp.where(fits, xp.sqrt(trigamma), 1 / k)
    return kl_to_normal(xp, mean, scale * scale * variance, negentropy, q, (scale, root))


@closed_form(*product([f.LogNormal], [*GAMMA_POWERS, f.InverseGamma]))
def kl_log_normal_gamma_power(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = LogNormal and Q = Gamma, Exponential, ChiSquared, Weibull, Rayleigh, HalfNormal or Maxwell.

    P = LogNormal(loc, scale), and Q is the distribution of a G^(1/c), where G has the distribution Gamma(k, 1):
    Gamma(k, rate) has c = 1 and a = 1/rate; Exponential(rate) has k = 1, c = 1 and a = 1/rate; ChiSquared(df) has
    k = df/2, c = 1 and a = 2; Weibull(a, c) has k = 1; Rayleigh, HalfNormal and Maxwell(scale2) have k = 1, 1/2 and
    3/2, c = 2 and a = sqrt(2) scale2.

    k phi(m + v/2 - log(k)) + phi(log(k v))/2 + J(k) with m = c (loc - log(a)) and v = (c scale)^2, where
    phi(d) = e^d - 1 - d and J(k) = lgamma(k) - (k - 1/2) log(k) + k - log(2 pi)/2. The same formula holds for
    Q = InverseGamma(k, rate), with m = log(rate) - loc and v = scale^2.
    """
    sign = -1 if isinstance(q, f.InverseGamma) else 1
    q = _as_gamma_power_arrays(xp, q)
    log_scale = xp.log(q.power) + xp.log(p.scale)
    loc = q.power * (sign * p.loc - _log_scale(xp, q))
    return _kl_normal_log_gamma(xp, q.shape, loc, q.power * p.scale, log_scale)


@closed_form((f.Normal, f.Gumbel))
def kl_normal_gumbel(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Normal(loc1, scale1) and Q = Gumbel(loc2, scale2).

    phi(m + v/2) + phi(log(v))/2 + 1 - log(2 pi)/2 with m = (loc2 - loc1)/scale2 and v = (scale1/scale2)^2, where
    phi(d) = e^d - 1 - d.
    """
    log_scale = log_ratio(xp, p.scale, q.scale)
    return _kl_normal_log_gamma(xp, xp.ones_like(q.scale), (q.loc - p.loc) / q.scale, p.scale / q.scale, log_scale)


def _kl_normal_log_gamma(xp: Any, k: Array, loc: Array, scale: Array, log_scale: Array) -> Array:
    """KL of Normal(loc, scale) to the distribution of log G, G ~ Gamma(k, 1).

    k phi(loc + scale^2/2 - log(k)) + phi(log(k scale^2))/2 + J(k), where J is Binet's function. `log_scale` is used
    where scale^2 overflows or underflows.
    """
    variance = scale * scale
    least = float(xp.finfo(variance.dtype).smallest_normal)
    fits = (variance >= least) & (k * variance >= least) & (k * variance < np.inf)
    ratio = ratio_residual(xp, xp.where(fits, k * variance, 1.0), xp.ones_like(k * variance))
    ratio = xp.where(fits, ratio, phi(xp.where(fits, 0.0, xp.log(k) + 2 * log_scale)))
    log_mean = loc + variance / 2
    mean_term = scaled_mass_phi(xp, k, xp.ones_like(k), log_mean, log_mean - xp.log(k))
    return mean_term + ratio / 2 + binet(xp, k)


@closed_form(
    *product([f.Pareto], GAMMA_POWERS),
    infinite=lambda xp, p, q: _as_gamma_power_arrays(xp, q).power >= p.alpha,
)
def kl_pareto_gamma_power(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Pareto and Q = Gamma, Exponential, ChiSquared, Weibull, Rayleigh, HalfNormal or Maxwell.

    P = Pareto(scale, alpha), and Q is the distribution of a G^(1/c), where G has the distribution Gamma(k, 1):
    Gamma(k, rate) has c = 1 and a = 1/rate; Exponential(rate) has k = 1, c = 1 and a = 1/rate; ChiSquared(df) has
    k = df/2, c = 1 and a = 2; Weibull(a, c) has k = 1; Rayleigh, HalfNormal and Maxwell(scale2) have k = 1, 1/2 and
    3/2, c = 2 and a = sqrt(2) scale2.

    k phi(log(m) - log(k)) + k (-t - log(1 - t)) + J(k) - (1 + log(t) - log(2 pi/k)/2) with t = c/alpha and
    m = E_P (x/a)^c = (scale/a)^c/(1 - t), where phi(d) = e^d - 1 - d and
    J(k) = lgamma(k) - (k - 1/2) log(k) + k - log(2 pi)/2. The result is `inf` for c >= alpha, where m is infinite.
    """
    q = _as_gamma_power_arrays(xp, q)
    t = q.power / p.alpha
    # The quotient is accurate near t = 1, and the difference has an accurate gradient for small t.
    tail = xp.where(t < 0.5, 1 - t, (p.alpha - q.power) / p.alpha)
    finite = tail > 0
    tail = xp.where(finite, tail, 1.0)
    k = q.shape
    log_mean = q.power * (xp.log(p.scale) - _log_scale(xp, q)) - xp.log(tail)
    log_mean = xp.where(finite, log_mean, 0.0)
    small = t < float(xp.finfo(t.dtype).smallest_normal)
    log_t = xp.where(small, log_ratio(xp, q.power, p.alpha), xp.log(xp.where(small, 1.0, t)))
    entropy = 1 + log_t - 0.5 * xp.log(2 * np.pi / k)
    mean_term = scaled_mass_phi(xp, k, xp.ones_like(k), log_mean, log_mean - xp.log(k))
    kl = mean_term + k * log1p_residual(-xp.where(finite, t, 0.0)) + binet(xp, k) - entropy
    return xp.where(finite, kl, np.inf)


@closed_form(*product([f.Gamma, f.Exponential, f.ChiSquared], [f.Gumbel]))
def kl_gamma_gumbel(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Gamma(k, rate) and Q = Gumbel(loc, scale).

    The formula also holds for P = Exponential(rate), with k = 1, and for P = ChiSquared(df), with k = df/2 and rate =
    1/2.

    exp(loc/scale - k log(1 + r)) + k r - loc/scale - H - log(r) with r = 1/(rate scale), where
    H = lgamma(k) + k + (1 - k) digamma(k) is the entropy of Gamma(k, 1).
    """
    p = _as_gamma_power_arrays(xp, p)
    scale = p.numerator * p.constant / p.denominator / q.scale
    k = p.shape
    fits = (scale >= float(xp.finfo(scale.dtype).smallest_normal)) & (scale < math.inf)
    safe = xp.where(fits, scale, 1.0)
    log_scale = xp.where(fits, xp.log(safe), _log_scale(xp, p) - xp.log(q.scale))
    # log(1 + r) is log(r) for a large r, and r is negligible beside its logarithm for a small r.
    log1p_scale = xp.where(fits, xp.log1p(safe), xp.maximum(log_scale, xp.zeros_like(log_scale)))
    mean = xp.where(fits, k * safe, k / p.denominator * p.numerator * p.constant / q.scale)
    tail = xp.exp(q.loc / q.scale - k * log1p_scale)
    kl = tail + mean - q.loc / q.scale - _gamma_entropy(xp, k) - log_scale
    return xp.where(tail < math.inf, kl, math.inf)


@closed_form(*product([f.Gamma, f.Exponential, f.ChiSquared], [f.Normal]))
def kl_gamma_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Gamma(k, rate) and Q = Normal(loc, scale).

    The formula also holds for P = Exponential(rate), with k = 1, and for P = ChiSquared(df), with k = df/2 and rate =
    1/2.

    N + phi(log(v/scale^2))/2 + ((m - loc)/scale)^2/2 with the mean m = k/rate and the variance v = k/rate^2, where
    phi(d) = e^d - 1 - d. With J(k) = lgamma(k) - (k - 1/2) log(k) + k - log(2 pi)/2, the negentropy is
    N = 1/(2k) - J(k) - (1 - k) J'(k).
    """
    p = _as_gamma_power_arrays(xp, p)
    k, scale = p.shape, p.numerator * p.constant / p.denominator
    negentropy = 0.5 / k - binet(xp, k) - (1 - k) * binet_slope(xp, k)
    return kl_to_normal(xp, k * scale, k * scale * scale, negentropy, q, (scale, xp.sqrt(k)))


def _gamma_entropy(xp: Any, k: Array) -> Array:
    """The entropy of Gamma(k, 1) in nats: lgamma(k) + k + (1 - k) digamma(k)."""
    fits = k < float(xp.finfo(k.dtype).max) / 8
    log_2_pi_k = xp.where(fits, xp.log(2 * np.pi * xp.where(fits, k, 1.0)), np.log(2 * np.pi) + xp.log(k))
    return log_2_pi_k / 2 + 0.5 - 0.5 / k + binet(xp, k) + (1 - k) * binet_slope(xp, k)
