"""log zeta(s), the log-normaliser of a Zipf variable, from s = 1 on."""

from typing import Any

import numpy as np
from array_api_compat import device
from scipy import special

from kullback.numerics.arrays import Array, with_gradient

__all__ = ["log_zeta_residual"]

_FROM = 12  # terms up to here are added; the rest is Euler and Maclaurin's
_BERNOULLI = tuple(
    float(b / special.factorial(n)) for n, b in enumerate(special.bernoulli(18)) if n >= 2 and n % 2 == 0
)

_ROOTS, _WEIGHTS = special.roots_legendre(16)
_NODES, _WEIGHTS = (1 + _ROOTS) / 2, _WEIGHTS / 2


def log_zeta_residual(xp: Any, s: Array, h: Array) -> Array:
    """L(s + h) - L(s) - h L'(s), L = log zeta: the KL of two Zipf variables."""
    return _residual(xp, *xp.broadcast_arrays(s, h))


def _logs(xp: Any, s: Array) -> tuple[Array, Array, Array]:
    """L(s), and its first and second derivatives: minus the mean of log k, and its variance."""
    logs = xp.asarray(np.log(np.arange(2.0, _FROM)), dtype=s.dtype, device=device(s))
    powers = xp.exp(-s[..., None] * logs)
    sums = [xp.sum(powers * logs**n, axis=-1) for n in range(3)]
    # The integral from N on of x^-s (log x)^n, half the first term, and the derivatives there: all times N^-s.
    log, r = float(np.log(_FROM)), 1 / (s - 1)
    first = xp.exp(-s * log)
    rest = [_FROM * r, _FROM * r * (log + r), _FROM * r * (log * log + 2 * r * (log + r))]
    rest = [whole + log**n / 2 for n, whole in enumerate(rest)]
    # s (s + 1) ... (s + 2j - 2) N^(1 - 2j), and its derivatives by -s.
    rising = [s / _FROM, -xp.ones_like(s) / _FROM, xp.zeros_like(s)]
    for j, bernoulli in enumerate(_BERNOULLI):
        if j:
            for i in (2 * j - 1, 2 * j):
                value, slope, curvature = rising
                x = s + i
                rising = [value * x / _FROM, (slope * x - value) / _FROM, (curvature * x - 2 * slope) / _FROM]
        value, slope, curvature = rising
        by_log = [value, value * log + slope, value * log * log + 2 * log * slope + curvature]
        rest = [whole + bernoulli * part for whole, part in zip(rest, by_log, strict=True)]
    excess, mean, square = (total + first * part for total, part in zip(sums, rest, strict=True))
    mean, square = mean / (1 + excess), square / (1 + excess)
    return xp.log1p(excess), -mean, square - mean * mean


def _integral(xp: Any, s: Array, h: Array, weight: Any) -> Array:
    """Of weight(t) L''(s + t h), 0 < t < 1."""
    t, w = (xp.asarray(values, dtype=s.dtype, device=device(s)) for values in (_NODES, _WEIGHTS))
    return xp.sum(w * weight(t) * _logs(xp, s[..., None] + t * h[..., None])[2], axis=-1)


def _is_near(s: Array, h: Array) -> Array:
    return (abs(h) < (s - 1) / 2) & (abs(h) < 1)


def _residual_value(xp: Any, s: Array, h: Array) -> Array:
    near = _is_near(s, h)
    close = h * h * _integral(xp, s, xp.where(near, h, 0.0), lambda t: 1 - t)
    (here, slope, _), (there, _, _) = _logs(xp, s), _logs(xp, s + h)
    return xp.where(near, close, (there - here) - h * slope)


def _slope_difference(xp: Any, s: Array, h: Array) -> Array:
    near = _is_near(s, h)
    close = h * _integral(xp, s, xp.where(near, h, 0.0), lambda _t: 1.0)
    return xp.where(near, close, _logs(xp, s + h)[1] - _logs(xp, s)[1])


_residual = with_gradient(
    _residual_value,
    lambda xp, gradient, _output, s, h: gradient * (_slope_difference(xp, s, h) - h * _logs(xp, s)[2]),
    lambda xp, gradient, _output, s, h: gradient * _slope_difference(xp, s, h),
)
