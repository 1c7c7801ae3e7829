"""Bregman residuals of log-gamma without cancellation.

They are the part of KL that the normalisers of the gamma, beta, Dirichlet and Wishart families contribute. Stirling's
leading terms are separated, because they cancel exactly in these formulas, and Binet's function J is the remainder:

    lgamma(a) = (a - 1/2) log(a) - a + log(2 pi)/2 + J(a).
"""

from collections.abc import Callable
from math import inf
from typing import Any

from array_api_compat import device

from kullback.compiled import elementwise
from kullback.numerics.array_types import ArrayInput, ArrayT
from kullback.numerics.arrays import (
    Array,
    as_floats,
    broadcast_arrays,
    cast,
    elementwise_with_gradient,
    holds,
    map_blocks,
)
from kullback.numerics.phi import log1p_series, log_ratio, ratio_residual, scaled_mass_phi

__all__ = [
    "binet",
    "binet_curvature",
    "binet_slope",
    "binet_slope_difference",
    "digamma",
    "digamma_minus_log_difference",
    "gamma_kl_equal_mean",
    "gamma_kl_equal_mean_increment",
    "log_gamma_bregman",
    "log_gamma_residual",
]


def log_gamma_residual(a: ArrayInput[ArrayT], h: ArrayInput[ArrayT]) -> ArrayT:
    """The Bregman residual of log-gamma: R(a, h) = lgamma(a + h) - lgamma(a) - h digamma(a).

    R is the distance of log-gamma at a + h from its tangent at a. It is non-negative, and zero only at h = 0. It is the
    part of KL that the normalisers of the gamma, beta, Dirichlet and Wishart families contribute. The relative error is
    below 1e-13 in float64 and 1e-5 in float32 for every a and h.

    Args:
        a: Greater than 0, any shape: an array, a tensor, a number or a list.
        h: Greater than -a, broadcast against `a`.

    Returns:
        The broadcast shape, in nats, with the array type and dtype of the inputs; `inf` at h = -a.

    Example:
        >>> float(log_gamma_residual(3.0, 1e-10))  # trigamma(3) h^2 / 2
        1.974670334215447e-21
    """
    xp, [start, step], dtype = as_floats(a, h)
    end = start + step
    pole = (end == 0) & (start > 0)
    residual = log_gamma_bregman(xp, start, xp.where(pole, 1.0, end), step)
    return cast(xp, xp.where(pole, inf, residual), dtype)


def log_gamma_bregman(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """R(a, h) = lgamma(b) - lgamma(a) - h digamma(a) for arrays a, b > 0 and h = b - a.

    The three arguments are redundant, so that the caller can pass each of them with full accuracy.
    """
    a, b, h = broadcast_arrays(xp, a, b, h)
    # Stirling's leading terms contribute b log(b/a) - h = b phi(log(a/b)).
    stirling = scaled_mass_phi(xp, b, a, xp.zeros_like(b), -log_ratio(xp, b, a, h), -h)
    return stirling + _gamma_kl_equal_mean(xp, a, b, h)


def gamma_kl_equal_mean(xp: Any, a: Array, b: Array, h: Array | None = None) -> Array:
    """D(a, b): KL between two gamma distributions with equal means and the shape parameters a and b.

    D(a, b) = R(a, b - a) - b phi(log(a/b)), which is R without the contribution of Stirling's leading terms. Pass b - a
    as `h` if it is available with more accuracy than the subtraction gives.
    """
    a, b, h = broadcast_arrays(xp, a, b, b - a if h is None else h)
    return _gamma_kl_equal_mean(xp, a, b, h)


def gamma_kl_equal_mean_increment(xp: Any, a: Array, b: Array, h: Array, e: Array, f: Array, g: Array) -> Array:
    """D(a + e, b + f) - D(a, b) with D = `gamma_kl_equal_mean`, h = b - a and g = f - e, without cancellation.

    It is accurate to rounding for e < a/8 and f < b/8.
    """
    return _gamma_kl_equal_mean_increment(xp, *broadcast_arrays(xp, a, b, h, e, f, g))


def binet(xp: Any, a: Array) -> Array:
    """Binet's function J(a) = lgamma(a) - (a - 1/2) log(a) + a - log(2 pi)/2, for a > 0."""
    return _binet(xp, a)


def binet_slope(xp: Any, a: Array) -> Array:
    """The first derivative of Binet's function: J'(a) = digamma(a) - log(a) + 1/(2a), for a > 0."""
    return _binet_slope(xp, a)


def digamma(xp: Any, a: Array) -> Array:
    """digamma(a), the derivative of lgamma, for a > 0."""
    return xp.log(a) - 0.5 / a + _binet_slope(xp, a)


def binet_slope_difference(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """J'(b) - J'(a) for Binet's function J and a, b > 0, without cancellation, with h = b - a."""
    return _binet_slope_difference(xp, *broadcast_arrays(xp, a, b, h))


def digamma_minus_log_difference(xp: Any, a: Array, b: Array) -> Array:
    """digamma(b) - digamma(a) - log(b/a) for a, b > 0, without cancellation."""
    return _gamma_kl_equal_mean_slope(xp, *broadcast_arrays(xp, a, b, b - a))


# Gauss quadrature of Binet's integral, J(z) = sum w z / (z^2 + u) over the nodes u and weights w: accurate to rounding
# for z >= 5. For z < 5 the recurrence J(z) = J(z + 1) + (z + 1/2) log(1 + 1/z) - 1 is applied five times.
_GAUSS_FROM = 5
_GAUSS_NODES = (
    0.011634137702813867,
    0.26736940950685045,
    1.074005514404511,
    2.77898651883113,
    5.8808660678356635,
    11.163522741534404,
    20.054191737462645,
    36.00866792173704,
)
_GAUSS_WEIGHTS = (
    0.07718084665825808,
    0.005874843350625122,
    0.0002713667579757889,
    6.212543415270509e-06,
    6.377696802735569e-08,
    2.4584442082628637e-10,
    2.465985553853074e-13,
    2.4876063998771705e-17,
)


def _recurrence(xp: Any, step: Callable[..., Array], smallest: Array, *arrays: Array) -> tuple[Array, Array]:
    """The sum of the recurrence steps that raise the arguments to the region of the quadrature, and the shift (5 or 0).

    The sum is step(a, ...) + step(a + 1, ...) + ... + step(a + 4, ...) where `smallest` is below 5, and 0 elsewhere.
    """
    small = smallest < _GAUSS_FROM
    if holds(~xp.any(small)):
        return xp.zeros_like(smallest), xp.zeros_like(smallest)
    shifts = xp.arange(_GAUSS_FROM, dtype=smallest.dtype, device=device(smallest))
    shifts = xp.reshape(shifts, (-1, *[1] * smallest.ndim))
    steps = xp.sum(step(xp, *(array[None, ...] + shifts for array in arrays)), axis=0)
    return xp.where(small, steps, 0.0), xp.where(small, float(_GAUSS_FROM), 0.0)


def _over_nodes(xp: Any, term: Callable[..., Array], *inverses: Array) -> Array:
    """sum_u w term(u, 1/z, ...) over the quadrature nodes u, which lie along a new first axis."""
    like = inverses[0]
    u, w = (
        xp.reshape(xp.asarray(values, dtype=like.dtype, device=device(like)), (-1, *[1] * like.ndim))
        for values in (_GAUSS_NODES, _GAUSS_WEIGHTS)
    )
    return xp.sum(w * term(u, *(inverse[None, ...] for inverse in inverses)), axis=0)


def _gamma_kl_equal_mean_value(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """D(a, b) = phi(log(b/a))/2 + J(b) - J(a) - h J'(a) with h = b - a."""
    if (compiled := elementwise("equal_mean", a, b, h)) is not None:
        return compiled
    total = ratio_residual(xp, b, a, h) / 2
    # The difference of a + n and b + n is passed as h, because a + n and b + n are rounded.
    steps, shift = _recurrence(
        xp, lambda xp, a, b: _binet_step_residual(xp, a, b, h[None, ...]), xp.minimum(a, b), a, b
    )
    a, b = 1 / (a + shift), 1 / (b + shift)

    def residual(u: Array, a: Array, b: Array) -> Array:
        x, y = u * (a * a), u * (b * b)
        return (1 - u * (a * (a + 2 * b))) / ((1 + x) * (1 + x) * (1 + y))

    change, nodes = h * a, _over_nodes(xp, residual, a, b)
    square = change**2
    value = total + steps + xp.where(square < inf, square * (b * nodes), change * (change * b * nodes))
    # Every part of D is non-negative. Where two terms of a step overflow, with opposite signs, D overflows.
    return xp.where((total < inf) & (abs(steps) < inf), value, inf)


def _binet_step_residual(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """j(b) - j(a) - h j'(a) with j(a) = J(a) - J(a + 1) = (a + 1/2) log(1 + 1/a) - 1 and h = b - a."""
    y = h / b / (a + 1)  # log(1 + 1/b) - log(1 + 1/a) = log(1 - y)
    near = abs(y) < 0.5
    second_order = (h / a) * y / 2 - (b + 0.5) * log1p_series(xp, -xp.where(near, y, 0.0))
    if holds(xp.all(near)):
        return second_order
    product = a * (a + 1)
    slope = xp.where(product < inf, (a + 0.5) / product, 1 / a)
    return xp.where(near, second_order, (b + 0.5) * _log_step_ratio(xp, a, b) + h * slope)


def _log_step_ratio(xp: Any, a: Array, b: Array) -> Array:
    """log(1 + 1/b) - log(1 + 1/a)."""
    ratio = a / b * ((b + 1) / (a + 1))
    fits = (ratio >= xp.finfo(a.dtype).smallest_normal) & (ratio < inf)
    return xp.where(fits, xp.log(ratio), xp.log(a) - xp.log1p(a) + (xp.log1p(b) - xp.log(b)))


def _gamma_kl_equal_mean_slope(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """The derivative of D(a, b) with respect to b: digamma(b) - digamma(a) - log(b/a), with h = b - a."""
    if (compiled := elementwise("equal_mean", a, b, h, derivative=1)) is not None:
        return compiled
    return h / a / (2 * b) + _binet_slope_difference(xp, a, b, h)


def _binet_slope_difference(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """J'(b) - J'(a) for Binet's function J, with h = b - a."""
    steps, shift = _recurrence(xp, lambda xp, a, b: _binet_step_slope(xp, a, b, h[None, ...]), xp.minimum(a, b), a, b)
    a, b = 1 / (a + shift), 1 / (b + shift)

    def slope(u: Array, a: Array, b: Array) -> Array:
        x, y = u * (a * a), u * (b * b)
        return (1 - x - y - 3 * x * y) / ((1 + x) * (1 + x) * ((1 + y) * (1 + y)))

    return steps + h * (a * b * ((a + b) * _over_nodes(xp, slope, a, b)))


def _binet_step_slope(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """j'(b) - j'(a) with j(a) = J(a) - J(a + 1) and h = b - a."""
    y = h / b / (a + 1)
    near = abs(y) < 0.5
    change = xp.where(near, -y, 0.0)
    least = xp.finfo(a.dtype).smallest_normal
    product, other = a * b, (a + 1) * (b + 1)
    fits = (product >= least) & (abs(h * (1 + h)) < inf) & (product * other < inf)
    safe = xp.where(fits, product, 1.0)
    close = xp.where(fits, h * (1 + h) / (2 * safe * (a + 1) * (b + 1)), h / a / b * ((1 + h) / (a + 1) / (b + 1)) / 2)
    poles = xp.where(fits, h * (1 / safe + 1 / other) / 2, (h / a / b + h / (a + 1) / (b + 1)) / 2)
    return xp.where(near, close - log1p_series(xp, change), _log_step_ratio(xp, a, b) + poles)


def _gamma_kl_equal_mean_curvature(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """The derivative of D(a, b) when a and b change by equal amounts, for |h| < b/2 with h = b - a.

    It is f(b) - f(a) - h f'(a) with f(a) = digamma(a) - log(a).
    """
    total = -((h / a) ** 2) / (2 * b)
    steps, shift = _recurrence(
        xp, lambda xp, a, b: _binet_step_curvature(xp, a, b, h[None, ...]), xp.minimum(a, b), a, b
    )
    a, b = 1 / (a + shift), 1 / (b + shift)

    def curvature(u: Array, a: Array, b: Array) -> Array:
        # Up to powers of a and b: the real part of 1/(x^2 y^2) + 2/(x^3 y) with x = a + iv, y = b + iv and v^2 = u.
        x, y, z = 1 / (1 + u * (a * a)), 1 / (1 + u * (b * b)), 1 - u * (a * b)
        both = u * (a + b)
        return x * x * y * (b * y * (z * z - both * (a + b)) + 2 * a * x * ((1 - u * (a * a)) * z - 2 * a * both))

    return total + steps - (h * a) ** 2 * (b * _over_nodes(xp, curvature, a, b))


def _binet_step_curvature(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """j'(b) - j'(a) - h j''(a) with j(a) = J(a) - J(a + 1) and h = b - a."""
    relative = h / a / (a + 1)
    square = relative * relative * ((a * a - a - 1 - h) / (b + 1) / b) / 2
    return square - log1p_series(xp, -h / b / (a + 1))


# The nodes and weights of five-point Gauss-Legendre quadrature on (0, 1).
_SEGMENT_NODES = (
    (0.04691007703066802, 0.11846344252809464),
    (0.23076534494715845, 0.23931433524968315),
    (0.5, 0.28444444444444433),
    (0.7692346550528415, 0.23931433524968315),
    (0.9530899229693319, 0.11846344252809464),
)


def _gamma_kl_equal_mean_increment_value(xp: Any, a: Array, b: Array, h: Array, e: Array, f: Array, g: Array) -> Array:
    """The integral of the derivative of D along the segment from (a, b) to (a + e, b + f)."""
    total, near = xp.zeros_like(a), abs(h) < 0.4 * b
    for s, weight in _SEGMENT_NODES:
        at_a, at_b, at_h = a + s * e, b + s * f, h + s * g
        curvature = _gamma_kl_equal_mean_curvature(xp, xp.where(near, at_a, at_b), at_b, xp.where(near, at_h, 0.0))
        change = xp.where(near, e * curvature, e * _slope_by_a(xp, at_a, at_h))
        total = total + weight * (xp.where(near, g, f) * _gamma_kl_equal_mean_slope(xp, at_a, at_b, at_h) + change)
    return total


def _slope_by_a(xp: Any, a: Array, h: Array) -> Array:
    """The derivative of D(a, b) with respect to a, with h = b - a."""
    return -h * (0.5 / (a * a) + binet_curvature(xp, a))


def _binet_value(xp: Any, a: Array) -> Array:
    if (compiled := elementwise("binet", a)) is not None:
        return compiled
    steps, shift = _recurrence(xp, lambda xp, c: (c + 0.5) * xp.log1p(1 / c) - 1, a, a)
    a = 1 / (a + shift)
    return steps + a * _over_nodes(xp, lambda u, a: 1 / (1 + u * (a * a)), a)


def _binet_slope_value(xp: Any, a: Array) -> Array:
    if (compiled := elementwise("binet_slope", a)) is not None:
        return compiled
    steps, shift = _recurrence(xp, lambda xp, c: xp.log1p(1 / c) - (1 / c + 1 / (c + 1)) / 2, a, a)
    a = 1 / (a + shift)

    def slope(u: Array, a: Array) -> Array:
        x = u * (a * a)
        return (1 - x) / ((1 + x) * (1 + x))

    return steps - a * (a * _over_nodes(xp, slope, a))


def binet_curvature(xp: Any, a: Array) -> Array:
    """The second derivative of Binet's function: J''(a) = trigamma(a) - 1/a - 1/(2 a^2), for a > 0."""
    if (compiled := elementwise("binet_slope", a, derivative=0)) is not None:
        return compiled
    steps, shift = _recurrence(xp, lambda _xp, c: 0.5 / (c * (c + 1)) ** 2, a, a)
    a = 1 / (a + shift)

    def curvature(u: Array, a: Array) -> Array:
        x = u * (a * a)
        return (2 - 6 * x) / ((1 + x) * (1 + x) * (1 + x))

    return steps + a * a * (a * _over_nodes(xp, curvature, a))


_gamma_kl_equal_mean = elementwise_with_gradient(
    map_blocks(_gamma_kl_equal_mean_value),
    lambda xp, gradient, _output, a, _b, h: gradient * _slope_by_a(xp, a, h),
    lambda xp, gradient, _output, a, b, h: gradient * _gamma_kl_equal_mean_slope(xp, a, b, h),
    lambda xp, _gradient, _output, a, _b, _h: xp.zeros_like(a),
)
_gamma_kl_equal_mean_increment = elementwise_with_gradient(
    _gamma_kl_equal_mean_increment_value,
    lambda xp, gradient, _output, a, _b, h, e, _f, g: (
        gradient * (_slope_by_a(xp, a + e, h + g) - _slope_by_a(xp, a, h))
    ),
    lambda xp, gradient, _output, a, b, h, e, f, g: (
        gradient * (_gamma_kl_equal_mean_slope(xp, a + e, b + f, h + g) - _gamma_kl_equal_mean_slope(xp, a, b, h))
    ),
    lambda xp, _gradient, _output, a, *_: xp.zeros_like(a),
    lambda xp, gradient, _output, a, _b, h, e, _f, g: gradient * _slope_by_a(xp, a + e, h + g),
    lambda xp, gradient, _output, a, b, h, e, f, g: gradient * _gamma_kl_equal_mean_slope(xp, a + e, b + f, h + g),
    lambda xp, _gradient, _output, a, *_: xp.zeros_like(a),
)
_binet = elementwise_with_gradient(_binet_value, lambda xp, gradient, _output, a: gradient * _binet_slope(xp, a))
_binet_slope = elementwise_with_gradient(
    _binet_slope_value, lambda xp, gradient, _output, a: gradient * binet_curvature(xp, a)
)
