"""L(u) = log(sinh(u) / u), its derivatives and its Bregman residual.

The density proportional to exp(2 u x) on 0 < x < 1 (the continuous Bernoulli distribution with logit 2u) has the
normaliser e^u sinh(u) / u, whose logarithm is u + L(u).
"""

from math import pi
from typing import Any

from array_api_compat import device
from scipy import special

from kullback.numerics.arrays import Array, broadcast_arrays, elementwise_with_gradient

__all__ = ["log_sinhc", "log_sinhc_curvature", "log_sinhc_residual", "log_sinhc_slope"]

# The series L(u) = sum_n (-1)^(n+1) zeta(2n)/n (u/pi)^(2n), valid for |u| < pi, and its derivatives.
_TERMS = range(1, 18)
_SERIES = tuple(float((-1) ** (n + 1) * special.zeta(2 * n) / n / pi ** (2 * n)) for n in _TERMS)
_SLOPE = tuple(2 * n * c for n, c in zip(_TERMS, _SERIES, strict=True))
_CURVATURE = tuple((2 * n - 1) * c for n, c in zip(_TERMS, _SLOPE, strict=True))

_ROOTS, _WEIGHTS = special.roots_legendre(16)
_NODES, _WEIGHTS = (1 + _ROOTS) / 2, _WEIGHTS / 2


def log_sinhc(xp: Any, u: Array) -> Array:
    """L(u) = log(sinh(u) / u) >= 0."""
    return _log_sinhc(xp, u)


def log_sinhc_slope(xp: Any, u: Array) -> Array:
    """L'(u) = coth(u) - 1/u."""
    return _slope(xp, u)


def log_sinhc_curvature(xp: Any, u: Array) -> Array:
    """L''(u) = 1/u^2 - 1/sinh(u)^2."""
    near, safe = _split(xp, u)
    w = xp.where(near, u * u, 0.0)
    # (1/u - 1/sinh u)(1/u + 1/sinh u), written with exp(-|u|), which does not overflow.
    e = xp.exp(-abs(safe))
    inverse = 2 * e / (1 - e * e)
    far = (1 / abs(safe) - inverse) * (1 / abs(safe) + inverse)
    return xp.where(near, _series(w, _CURVATURE), far)


def log_sinhc_residual(xp: Any, u: Array, h: Array, v: Array) -> Array:
    """L(v) - L(u) - h L'(u) for h = v - u: KL between two continuous Bernoulli distributions with logits 2u and 2v.

    The arguments are redundant, so that the caller can pass each of them with full accuracy.
    """
    return _residual(xp, *broadcast_arrays(xp, u, h, v))


def _series(w: Array, coefficients: tuple[float, ...]) -> Array:
    """The polynomial with these coefficients, in increasing order of powers, by Horner's rule."""
    total = w * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * w + coefficient
    return total


def _split(xp: Any, u: Array) -> tuple[Array, Array]:
    """Whether the series applies, and u with its entries in the range of the series replaced by a safe value."""
    near = abs(u) < 1
    return near, xp.where(near, 2.0, u)


def _value(xp: Any, u: Array) -> Array:
    near, safe = _split(xp, u)
    w = xp.where(near, u * u, 0.0)
    a = abs(safe)
    return xp.where(near, w * _series(w, _SERIES), a + xp.log1p(-xp.exp(-2 * a)) - xp.log(2 * a))


def _slope_value(xp: Any, u: Array) -> Array:
    near, safe = _split(xp, u)
    w = xp.where(near, u * u, 0.0)
    return xp.where(near, u * _series(w, _SLOPE), 1 / xp.tanh(safe) - 1 / safe)


def _integral(xp: Any, u: Array, h: Array, weight: Any) -> Array:
    """The integral of weight(t) L''(u + t h) over 0 < t < 1, by Gauss-Legendre quadrature."""
    t, w = (
        xp.reshape(xp.asarray(values, dtype=u.dtype, device=device(u)), (-1, *[1] * u.ndim))
        for values in (_NODES, _WEIGHTS)
    )
    return xp.sum(w * weight(t) * log_sinhc_curvature(xp, u[None, ...] + t * h[None, ...]), axis=0)


def _is_near(u: Array, h: Array) -> Array:
    """Whether h is small enough for the quadrature; otherwise the differences of L do not cancel."""
    return (abs(h) <= 1) | (abs(h) <= abs(u) / 2)


def _residual_value(xp: Any, u: Array, h: Array, v: Array) -> Array:
    near = h * h * _integral(xp, u, h, lambda t: 1 - t)
    # For large h: L is even, so u is taken to be negative. Adding the linear function u to L does not change the
    # residual, and keeps the terms small.
    u, h, v = -abs(u), xp.where(u > 0, -h, h), xp.where(u > 0, -v, v)
    slope = 1 / abs(u) - 2 / xp.expm1(2 * abs(u))
    far = _value_plus(xp, v) - _value_plus(xp, u) - h * xp.where(abs(u) < 1, _slope_value(xp, u) + 1, slope)
    return xp.where(_is_near(u, h), near, far)


def _value_plus(xp: Any, u: Array) -> Array:
    """L(u) + u, whose terms of size |u| cancel for u < 0."""
    far = u < -16
    return xp.where(far, -xp.log(-2 * xp.where(far, u, -16.0)), _value(xp, u) + u)


def _slope_difference(xp: Any, u: Array, h: Array, v: Array) -> Array:
    """L'(v) - L'(u) for h = v - u."""
    near = _is_near(u, h)
    return xp.where(near, h * _integral(xp, u, h, lambda _t: 1.0), _slope(xp, v) - _slope(xp, u))


_slope = elementwise_with_gradient(_slope_value, lambda xp, gradient, _output, u: gradient * log_sinhc_curvature(xp, u))
_log_sinhc = elementwise_with_gradient(_value, lambda xp, gradient, _output, u: gradient * _slope(xp, u))
_residual = elementwise_with_gradient(
    _residual_value,
    lambda xp, gradient, _output, u, h, _v: -gradient * h * log_sinhc_curvature(xp, u),
    lambda xp, _gradient, _output, u, *_: xp.zeros_like(u),
    lambda xp, gradient, _output, u, h, v: gradient * _slope_difference(xp, u, h, v),
)
