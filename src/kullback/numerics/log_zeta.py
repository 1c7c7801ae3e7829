"""The Bregman residual of log zeta(s) for s > 1, where log zeta is the log-normaliser of the Zipf distribution."""

from typing import Any

import numpy as np
from array_api_compat import device
from scipy import special

from kullback.numerics.arrays import Array, broadcast_arrays, elementwise_with_gradient

__all__ = ["log_zeta_residual"]

_N = 12  # terms below this index are summed; the Euler-Maclaurin formula gives the remainder
_LAST = 1e4  # from here the three functions are 0 to rounding
_BERNOULLI = tuple(
    float(b / special.factorial(n)) for n, b in enumerate(special.bernoulli(18)) if n >= 2 and n % 2 == 0
)

_ROOTS, _WEIGHTS = special.roots_legendre(16)
_NODES, _WEIGHTS = (1 + _ROOTS) / 2, _WEIGHTS / 2


def log_zeta_residual(xp: Any, s: Array, t: Array) -> Array:
    """L(t) - L(s) - (t - s) L'(s) with L = log zeta: KL between two Zipf distributions with exponents s and t."""
    return _residual(xp, *broadcast_arrays(xp, s, t))


def _logs(xp: Any, s: Array) -> tuple[Array, Array, Array]:
    """L(s), its first derivative (minus the mean of log k) and its second derivative (the variance of log k)."""
    # Every term is 0 in float64 from s = 1100; s + 1, ..., s + 17 must not overflow.
    s = xp.where(s < _LAST, s, _LAST)
    logs = xp.asarray(np.log(np.arange(2.0, _N)), dtype=s.dtype, device=device(s))
    powers = xp.exp(-s[..., None] * logs)
    sums = [xp.sum(powers * logs**n, axis=-1) for n in range(3)]
    # The Euler-Maclaurin remainder, divided by N^-s: the integral of x^-s (log x)^n from N to infinity, half
    # the term at N, and the terms with derivatives at N.
    log, r = float(np.log(_N)), 1 / (s - 1)
    first = xp.exp(-s * log)
    remainder = [
        _N * r,
        _N * r * (log + r),
        _N * r * (log * log + 2 * r * (log + r)),
    ]
    remainder = [whole + log**n / 2 for n, whole in enumerate(remainder)]
    # s (s + 1) ... (s + 2j - 2) N^(1 - 2j), and its first two derivatives with respect to -s.
    rising = [s / _N, -xp.ones_like(s) / _N, xp.zeros_like(s)]
    for j, bernoulli in enumerate(_BERNOULLI):
        if j:
            for i in (2 * j - 1, 2 * j):
                value, slope, curvature = rising
                x = s + i
                rising = [
                    value * x / _N,
                    (slope * x - value) / _N,
                    (curvature * x - 2 * slope) / _N,
                ]
        value, slope, curvature = rising
        by_log = [value, value * log + slope, value * log * log + 2 * log * slope + curvature]
        remainder = [whole + bernoulli * part for whole, part in zip(remainder, by_log, strict=True)]
    excess, mean, square = (total + first * part for total, part in zip(sums, remainder, strict=True))
    mean, square = mean / (1 + excess), square / (1 + excess)
    return xp.log1p(excess), -mean, square - mean * mean


def _integral(xp: Any, s: Array, h: Array, weight: Any) -> Array:
    """The integral of weight(t) L''(s + t h) over 0 < t < 1, by Gauss-Legendre quadrature."""
    t, w = (xp.asarray(values, dtype=s.dtype, device=device(s)) for values in (_NODES, _WEIGHTS))
    return xp.sum(w * weight(t) * _logs(xp, s[..., None] + t * h[..., None])[2], axis=-1)


def _is_near(s: Array, h: Array) -> Array:
    """Whether h is small enough for the quadrature; otherwise the differences of L do not cancel."""
    return (abs(h) < (s - 1) / 2) & (abs(h) < 1)


def _residual_value(xp: Any, s: Array, t: Array) -> Array:
    h = t - s
    near = _is_near(s, h)
    close = h * h * _integral(xp, s, xp.where(near, h, 0.0), lambda t: 1 - t)
    (here, slope, _), (there, _, _) = _logs(xp, s), _logs(xp, t)
    return xp.where(near, close, (there - here) - h * slope)


def _slope_difference(xp: Any, s: Array, h: Array) -> Array:
    """L'(s + h) - L'(s)."""
    near = _is_near(s, h)
    close = h * _integral(xp, s, xp.where(near, h, 0.0), lambda _t: 1.0)
    return xp.where(near, close, _logs(xp, s + h)[1] - _logs(xp, s)[1])


_residual = elementwise_with_gradient(
    _residual_value,
    lambda xp, gradient, _output, s, t: -gradient * (t - s) * _logs(xp, s)[2],
    lambda xp, gradient, _output, s, t: gradient * _slope_difference(xp, s, t - s),
)
