"""Gamma and its kin: powers of a gamma variable, their logarithms and their inverses.

Of x = scale G^(1/power), G being Gamma(shape, 1): exponential, gamma and chi-squared (power 1), Weibull (shape 1),
Rayleigh (shape 1, power 2), half-normal (shape 1/2, power 2) and Maxwell (shape 3/2, power 2).
"""

import math
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from kullback import families as f
from kullback.closed_forms.normals import against_normal
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
from kullback.numerics.phi import log1p_residual, log_ratio, phi, ratio_residual

POWERS_OF_GAMMA: tuple[type, ...] = (
    f.ChiSquared,
    f.Exponential,
    f.Gamma,
    f.HalfNormal,
    f.Maxwell,
    f.Rayleigh,
    f.Weibull,
)


class _Power(NamedTuple):
    """x = constant (over / under) G^(1/power); the scale's parts are apart, so that ratios of scales lose no digit.

    A shape or a power that the family fixes is a float, and an array otherwise.
    """

    shape: Any
    power: Any
    over: Any
    under: Any
    constant: float


def _power_of_gamma(xp: Any, d: Any) -> _Power:
    def one(x: Array) -> Array:
        return xp.ones_like(x)

    match d:
        case f.Exponential():
            return _Power(1.0, 1.0, one(d.rate), d.rate, 1.0)
        case f.Gamma() | f.InverseGamma():
            return _Power(d.concentration, 1.0, one(d.rate), d.rate, 1.0)
        case f.ChiSquared():
            return _Power(d.df / 2, 1.0, one(d.df), one(d.df), 2.0)
        case f.Weibull():
            return _Power(1.0, d.concentration, d.scale, one(d.scale), 1.0)
        case _:
            shape = {f.HalfNormal: 0.5, f.Rayleigh: 1.0, f.Maxwell: 1.5}[type(d)]
            return _Power(shape, 2.0, d.scale, one(d.scale), math.sqrt(2))


def _whole(xp: Any, d: Any) -> _Power:
    """With a fixed shape or power as an array too."""
    power = _power_of_gamma(xp, d)
    return power._replace(shape=_array(xp, power.shape, power.over), power=_array(xp, power.power, power.over))


def _log_scale_ratio(xp: Any, p: _Power, q: _Power) -> Array:
    return log_ratio(xp, p.over * q.under, q.over * p.under) + math.log(p.constant / q.constant)


def _log_scale(xp: Any, p: _Power) -> Array:
    return xp.log(p.over / p.under) + math.log(p.constant)


@closed_form(*product(POWERS_OF_GAMMA, POWERS_OF_GAMMA), (f.InverseGamma, f.InverseGamma))
def kl_gamma_powers(xp: Any, p: Any, q: Any) -> Array:
    """KL of the gamma variables' own: with t = power_q/power_p = 1 + s, and m the mean of (x / scale_q)^power_q,

    k2 phi(log(m/k2)) + D(k1, k2) + k2 R(k1 + 1, s) + s (k2/k1 - 1) + (s - log(1 + s)),

    D(k1, k2) being the KL of gammas of one mean. One power leaves the first two terms; one shape, all but the fourth.
    """
    p, q = _power_of_gamma(xp, p), _power_of_gamma(xp, q)
    return _powers(xp, (p.shape, q.shape), (q.power, p.power), q.power * _log_scale_ratio(xp, p, q))


def _powers(xp: Any, shapes: tuple[Any, Any], t: tuple[Any, Any], log_scales: Array) -> Array:
    """`t` is given as a quotient; `log_scales` is power_q log(scale_p / scale_q)."""
    log_mean, rest = log_scales, 0.0
    k1, k2 = (_array(xp, shape, log_scales) for shape in shapes)
    if not _fixed_and_equal(*shapes):
        log_mean = log_mean + log_ratio(xp, k1, k2)
        rest = gamma_kl_equal_mean(xp, k1, k2)
    if not _fixed_and_equal(*t):
        over, under = (_array(xp, power, log_scales) for power in t)
        s = (over - under) / under
        # k1 + t and log(t) keep their digits where t is tiny, and s nearly -1.
        residual = log_gamma_bregman(xp, k1 + 1, k1 + over / under, s)
        log_mean = log_mean + s * digamma(xp, k1 + 1) + residual
        rest = rest + s * ((k2 - k1) / k1) + ratio_residual(xp, over, under)
        # Where k1 and t are tiny, these cancel by the pole of each at 0, which k1 + 1 has not.
        poles = (k1 < 0.5) & (k2 > 2 * k1) & (s < -0.5)
        if not holds(~xp.any(poles)):
            near, far = xp.where(poles, k1, 1.0), xp.where(poles, k2, 1.0)
            rise = log_gamma_bregman(xp, near + 1, far + 1, far - near) - far * phi(log_ratio(xp, near, far))
            rest = xp.where(poles, rise + ratio_residual(xp, far * over, near * under), rest)
        rest = rest + k2 * residual
    return k2 * phi(log_mean) + rest


def _fixed_and_equal(left: Any, right: Any) -> bool:
    return isinstance(left, float) and isinstance(right, float) and left == right


def _array(xp: Any, value: Any, like: Array) -> Array:
    return value * xp.ones_like(like) if isinstance(value, float) else value


@closed_form((f.Gumbel, f.Gumbel))
def gumbel(xp: Any, p: Any, q: Any) -> Array:
    """Of the Weibull variables exp(-x), of powers 1/scale and scales exp(-loc)."""
    return _powers(xp, (1.0, 1.0), (p.scale, q.scale), (q.loc - p.loc) / q.scale)


# Between logarithms of gamma variables and normal ones. An inverse gamma's logarithm is a gamma's, negated.


@closed_form(*product([*POWERS_OF_GAMMA, f.InverseGamma], [f.LogNormal]))
def kl_gamma_power_log_normal(xp: Any, p: Any, q: Any) -> Array:
    """Of log x, by its mean, its variance and its negentropy."""
    sign = -1 if isinstance(p, f.InverseGamma) else 1
    p = _whole(xp, p)
    mean = sign * (_log_scale(xp, p) + digamma(xp, p.shape) / p.power)
    return _log_gamma_normal(xp, p.shape, mean, 1 / p.power, q)


@closed_form((f.Gumbel, f.Normal))
def gumbel_normal(xp: Any, p: Any, q: Any) -> Array:
    """As -x is loc + scale log G, G being exponential."""
    return _log_gamma_normal(xp, xp.ones_like(p.scale), p.loc + np.euler_gamma * p.scale, p.scale, q)


def _log_gamma_normal(xp: Any, k: Array, mean: Array, scale: Array, q: Any) -> Array:
    """Of a variable with this mean that is `scale` times the log of a Gamma(k, 1), or that negated."""
    curvature = binet_curvature(xp, k)
    trigamma = 1 / k + 0.5 / (k * k) + curvature
    negentropy = xp.log1p(0.5 / k + k * curvature) / 2 + k * binet_slope(xp, k) - binet(xp, k)
    return against_normal(xp, mean, scale * scale * trigamma, negentropy, q)


@closed_form(*product([f.LogNormal], [*POWERS_OF_GAMMA, f.InverseGamma]))
def log_normal_power_of_gamma(xp: Any, p: Any, q: Any) -> Array:
    sign = -1 if isinstance(q, f.InverseGamma) else 1
    q = _whole(xp, q)
    return _normal_log_gamma(xp, q.shape, q.power * (sign * p.loc - _log_scale(xp, q)), q.power * p.scale)


@closed_form((f.Normal, f.Gumbel))
def normal_gumbel(xp: Any, p: Any, q: Any) -> Array:
    return _normal_log_gamma(xp, xp.ones_like(q.scale), (q.loc - p.loc) / q.scale, p.scale / q.scale)


def _normal_log_gamma(xp: Any, k: Array, loc: Array, scale: Array) -> Array:
    """Normal(loc, scale) to the log of a Gamma(k, 1): k phi(loc + scale^2/2 - log k) + phi(log(k scale^2))/2 + J(k)."""
    variance = scale * scale
    ratio = ratio_residual(xp, k * variance, xp.ones_like(k * variance))
    return k * phi(loc + variance / 2 - xp.log(k)) + ratio / 2 + binet(xp, k)


@closed_form(*product([f.Pareto], POWERS_OF_GAMMA))
def pareto_power_of_gamma(xp: Any, p: Any, q: Any) -> Array:
    """As log x is log(scale) and an exponential; `inf` where the tail of p is too heavy for q."""
    q = _whole(xp, q)
    t = q.power / p.alpha
    tail = 1 - t
    finite = tail > 0
    tail = xp.where(finite, tail, 1.0)
    k = q.shape
    log_mean = q.power * (xp.log(p.scale) - _log_scale(xp, q)) - xp.log(tail)
    entropy = 1 + xp.log(t) - 0.5 * xp.log(2 * np.pi / k)
    kl = k * phi(log_mean - xp.log(k)) + k * log1p_residual(-xp.where(finite, t, 0.0)) + binet(xp, k) - entropy
    return xp.where(finite, kl, np.inf)


@closed_form(*product([f.Gamma, f.Exponential, f.ChiSquared], [f.Gumbel]))
def gamma_gumbel(xp: Any, p: Any, q: Any) -> Array:
    """By the mean of x and that of exp(-x/scale)."""
    p = _whole(xp, p)
    scale = p.over * p.constant / p.under / q.scale
    k = p.shape
    log_mean = q.loc / q.scale - k * xp.log1p(scale)
    return xp.exp(log_mean) + k * scale - q.loc / q.scale - _entropy(xp, k) - xp.log(scale)


@closed_form(*product([f.Gamma, f.Exponential, f.ChiSquared], [f.Normal]))
def gamma_normal(xp: Any, p: Any, q: Any) -> Array:
    p = _whole(xp, p)
    k, scale = p.shape, p.over * p.constant / p.under
    negentropy = 0.5 / k - binet(xp, k) - (1 - k) * binet_slope(xp, k)
    return against_normal(xp, k * scale, k * scale * scale, negentropy, q)


def _entropy(xp: Any, k: Array) -> Array:
    """That of a Gamma(k, 1), in nats."""
    return xp.log(2 * np.pi * k) / 2 + 0.5 - 0.5 / k + binet(xp, k) + (1 - k) * binet_slope(xp, k)
