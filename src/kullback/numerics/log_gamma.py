"""Log-gamma without cancellation: what the normalisers of gamma, beta, Dirichlet and Wishart families leave of a KL."""

from collections.abc import Callable
from typing import Any

from array_api_compat import device

from kullback.numerics.arrays import Array, ArrayLike, as_floats, by_pieces, cast, holds, with_gradient
from kullback.numerics.phi import log1p_series, log_ratio, phi, ratio_residual

__all__ = [
    "binet",
    "binet_curvature",
    "binet_slope",
    "digamma",
    "digamma_rise",
    "gamma_kl_equal_mean",
    "gamma_kl_equal_mean_increment",
    "log_gamma_residual",
    "log_gamma_rise",
]


def log_gamma_residual(a: ArrayLike, h: ArrayLike) -> Array:
    """What log-gamma rises above its tangent at a: the part of a KL that gamma, beta and Wishart normalisers make.

    R(a, h) = lgamma(a + h) - lgamma(a) - h digamma(a): never negative, zero only at h = 0. Relative error below 1e-13
    in float64 and 1e-5 in float32, however large a or near zero h.

    Args:
        a: Above 0, any shape.
        h: Above -a, broadcast against `a`.

    Returns:
        The broadcast shape, and the inputs' kind and dtype; `inf` at h = -a.

    Example:
        >>> float(log_gamma_residual(3.0, 1e-10))  # trigamma(3) h^2 / 2
        1.974670334215447e-21
    """
    xp, [a, h], dtype = as_floats(a, h)
    return cast(xp, log_gamma_rise(xp, a, a + h, h), dtype)


def log_gamma_rise(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """R(a, h) by a, b and h = b - a, where the caller knows more of their digits."""
    a, b, h = xp.broadcast_arrays(a, b, h)
    # Stirling's leading terms, b log(b/a) - h, are a phi by themselves.
    return b * phi(-log_ratio(xp, b, a, h)) + _dispersion(xp, a, b, h)


def gamma_kl_equal_mean(xp: Any, a: Array, b: Array, h: Array | None = None) -> Array:
    """KL of gammas of one mean: R(a, b - a) - b phi(log(a/b)), what the leading terms of Stirling leave of R.

    `h` is b - a, where the caller knows more of its digits.
    """
    a, b, h = xp.broadcast_arrays(a, b, b - a if h is None else h)
    return _dispersion(xp, a, b, h)


def gamma_kl_equal_mean_increment(xp: Any, a: Array, b: Array, h: Array, e: Array, f: Array, g: Array) -> Array:
    """D(a + e, b + f) - D(a, b), D being `gamma_kl_equal_mean`, h = b - a and g = f - e: where D itself is much larger.

    Below e = a/8 and f = b/8 nothing but rounding is lost.
    """
    return _dispersion_rise(xp, *xp.broadcast_arrays(a, b, h, e, f, g))


def binet(xp: Any, a: Array) -> Array:
    """J(a) = lgamma(a) - (a - 1/2) log(a) + a - log(2 pi)/2."""
    return _binet(xp, a)


def binet_slope(xp: Any, a: Array) -> Array:
    """J'(a) = digamma(a) - log(a) + 1/(2a)."""
    return _binet_slope(xp, a)


def digamma(xp: Any, a: Array) -> Array:
    """The slope of lgamma at a."""
    return xp.log(a) - 0.5 / a + _binet_slope(xp, a)


def digamma_rise(xp: Any, a: Array, b: Array) -> Array:
    """digamma(b) - digamma(a) - log(b/a)."""
    return _gamma_kl_equal_mean_slope(xp, *xp.broadcast_arrays(a, b, b - a))


# Binet's integral, J(z) = sum w z / (z^2 + u) over Gauss nodes u: right to the last digit from z = 5 on.
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


def _lifted(xp: Any, step: Callable[..., Array], least: Array, *arrays: Array) -> tuple[Array, Array]:
    """The sum of step(a, ...), step(a + 1, ...), ... up to the nodes' region, and how far that lifts each entry."""
    small = least < _GAUSS_FROM
    if holds(~xp.any(small)):
        return xp.zeros_like(least), xp.zeros_like(least)
    rungs = xp.arange(_GAUSS_FROM, dtype=least.dtype, device=device(least))
    steps = xp.sum(step(xp, *(array[..., None] + rungs for array in arrays)), axis=-1)
    return xp.where(small, steps, 0.0), xp.where(small, float(_GAUSS_FROM), 0.0)


def _over_nodes(xp: Any, term: Callable[..., Array], *inverses: Array) -> Array:
    """sum w term(u, 1/z, ...), the nodes lying along a new last axis."""
    like = inverses[0]
    u, w = (xp.asarray(values, dtype=like.dtype, device=device(like)) for values in (_GAUSS_NODES, _GAUSS_WEIGHTS))
    return xp.sum(w * term(u, *(inverse[..., None] for inverse in inverses)), axis=-1)


def _gamma_kl_equal_mean_value(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """h^2/(4 a^2) at first, as ratio_residual/2, and the residual of J about its tangent at a."""
    total = ratio_residual(xp, b, a, h) / 2
    # The difference of a + n and b + n stays h, whose digits they may have lost.
    steps, shift = _lifted(xp, lambda xp, a, b: _binet_step_residual(xp, a, b, h[..., None]), xp.minimum(a, b), a, b)
    a, b = 1 / (a + shift), 1 / (b + shift)

    def residual(u: Array, a: Array, b: Array) -> Array:
        x, y = u * (a * a), u * (b * b)
        return (1 - u * (a * (a + 2 * b))) / ((1 + x) * (1 + x) * (1 + y))

    return total + steps + (h * a) ** 2 * (b * _over_nodes(xp, residual, a, b))


def _binet_step_residual(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """The residual of j(a) = J(a) - J(a + 1) = (a + 1/2) log(1 + 1/a) - 1 about its tangent at a."""
    y = h / b / (a + 1)  # log(1 + 1/b) - log(1 + 1/a) = log(1 - y)
    near = abs(y) < 0.5
    second_order = (h / a) * y / 2 - (b + 0.5) * log1p_series(xp, -xp.where(near, y, 0.0))
    if holds(xp.all(near)):
        return second_order
    log = xp.log(a / b * ((b + 1) / (a + 1)))
    return xp.where(near, second_order, (b + 0.5) * log + h * ((a + 0.5) / (a * (a + 1))))


def _gamma_kl_equal_mean_slope(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """digamma(b) - digamma(a) - log(b/a)."""
    total = h / a / (2 * b)
    steps, shift = _lifted(xp, lambda xp, a, b: _binet_step_slope(xp, a, b, h[..., None]), xp.minimum(a, b), a, b)
    a, b = 1 / (a + shift), 1 / (b + shift)

    def slope(u: Array, a: Array, b: Array) -> Array:
        x, y = u * (a * a), u * (b * b)
        return (1 - x - y - 3 * x * y) / ((1 + x) * (1 + x) * ((1 + y) * (1 + y)))

    return total + steps + h * (a * b * ((a + b) * _over_nodes(xp, slope, a, b)))


def _binet_step_slope(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """j'(b) - j'(a)."""
    y = h / b / (a + 1)
    near = abs(y) < 0.5
    close = h * (1 + h) / (2 * a * b * (a + 1) * (b + 1)) - log1p_series(xp, -xp.where(near, y, 0.0))
    log = xp.log(a / b * ((b + 1) / (a + 1)))
    return xp.where(near, close, log + h * (1 / (a * b) + 1 / ((a + 1) * (b + 1))) / 2)


def _gamma_kl_equal_mean_curvature(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """digamma(b) - log(b) less its tangent at a, for abs(h) < b/2: how D changes where a and b move as one."""
    total = -((h / a) ** 2) / (2 * b)
    steps, shift = _lifted(xp, lambda xp, a, b: _binet_step_bend(xp, a, b, h[..., None]), xp.minimum(a, b), a, b)
    a, b = 1 / (a + shift), 1 / (b + shift)

    def bend(u: Array, a: Array, b: Array) -> Array:
        # The real part of 1/(x^2 y^2) + 2/(x^3 y), x and y being a + iv and b + iv, v^2 = u, but for powers of a and b.
        x, y, z = 1 / (1 + u * (a * a)), 1 / (1 + u * (b * b)), 1 - u * (a * b)
        both = u * (a + b)
        return x * x * y * (b * y * (z * z - both * (a + b)) + 2 * a * x * ((1 - u * (a * a)) * z - 2 * a * both))

    return total + steps - (h * a) ** 2 * (b * _over_nodes(xp, bend, a, b))


def _binet_step_bend(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """j'(b) - j'(a) - h j''(a)."""
    relative = h / a / (a + 1)
    square = relative * relative * ((a * a - a - 1 - h) / (b + 1) / b) / 2
    return square - log1p_series(xp, -h / b / (a + 1))


# Gauss's five nodes of (0, 1).
_PATH = (
    (0.04691007703066802, 0.11846344252809464),
    (0.23076534494715845, 0.23931433524968315),
    (0.5, 0.28444444444444433),
    (0.7692346550528415, 0.23931433524968315),
    (0.9530899229693319, 0.11846344252809464),
)


def _gamma_kl_equal_mean_increment_value(xp: Any, a: Array, b: Array, h: Array, e: Array, f: Array, g: Array) -> Array:
    """The integral of D's derivative along the way."""
    total, near = xp.zeros_like(a), abs(h) < 0.4 * b
    for s, weight in _PATH:
        at_a, at_b, at_h = a + s * e, b + s * f, h + s * g
        bend = _gamma_kl_equal_mean_curvature(xp, xp.where(near, at_a, at_b), at_b, xp.where(near, at_h, 0.0))
        change = xp.where(near, e * bend, e * _slope_by_a(xp, at_a, at_h))
        total = total + weight * (xp.where(near, g, f) * _gamma_kl_equal_mean_slope(xp, at_a, at_b, at_h) + change)
    return total


def _slope_by_a(xp: Any, a: Array, h: Array) -> Array:
    return -h * (0.5 / (a * a) + binet_curvature(xp, a))


def _binet_value(xp: Any, a: Array) -> Array:
    steps, shift = _lifted(xp, lambda xp, c: (c + 0.5) * xp.log1p(1 / c) - 1, a, a)
    a = 1 / (a + shift)
    return steps + a * _over_nodes(xp, lambda u, a: 1 / (1 + u * (a * a)), a)


def _binet_slope_value(xp: Any, a: Array) -> Array:
    steps, shift = _lifted(xp, lambda xp, c: xp.log1p(1 / c) - (1 / c + 1 / (c + 1)) / 2, a, a)
    a = 1 / (a + shift)

    def slope(u: Array, a: Array) -> Array:
        x = u * (a * a)
        return (1 - x) / ((1 + x) * (1 + x))

    return steps - a * (a * _over_nodes(xp, slope, a))


def binet_curvature(xp: Any, a: Array) -> Array:
    """J''(a) = trigamma(a) - 1/a - 1/(2 a^2)."""
    steps, shift = _lifted(xp, lambda _xp, c: 0.5 / (c * (c + 1)) ** 2, a, a)
    a = 1 / (a + shift)

    def curvature(u: Array, a: Array) -> Array:
        x = u * (a * a)
        return (2 - 6 * x) / ((1 + x) * (1 + x) * (1 + x))

    return steps + a * a * (a * _over_nodes(xp, curvature, a))


_dispersion = with_gradient(
    by_pieces(_gamma_kl_equal_mean_value),
    lambda xp, gradient, _output, a, _b, h: gradient * _slope_by_a(xp, a, h),
    lambda xp, gradient, _output, a, b, h: gradient * _gamma_kl_equal_mean_slope(xp, a, b, h),
    lambda xp, _gradient, _output, a, _b, _h: xp.zeros_like(a),
)
_dispersion_rise = with_gradient(
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
_binet = with_gradient(_binet_value, lambda xp, gradient, _output, a: gradient * _binet_slope(xp, a))
_binet_slope = with_gradient(_binet_slope_value, lambda xp, gradient, _output, a: gradient * binet_curvature(xp, a))
