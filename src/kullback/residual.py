"""The one careful kernel: every KL divergence is a sum of phi(d) = e^d - 1 - d."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

from array_api_compat import device

from kullback._arrays import Array, ArrayLike, as_floats, by_pieces, cast, holds, with_gradient

__all__ = [
    "binet",
    "binet_curvature",
    "binet_slope",
    "digamma",
    "digamma_rise",
    "dispersion",
    "log1p_residual",
    "log_gamma_residual",
    "log_gamma_rise",
    "log_ratio",
    "mass_phi",
    "phi",
    "ratio_residual",
]

# t(w) of d coth(d/2) = 2 + w t(w), w = d^2, at the Chebyshev nodes of 0 <= w <= 1: errors 5e-19 and 4e-10.
_COTH = (
    0.16666666666666666,
    -0.002777777777777717,
    6.613756613629047e-05,
    -1.653439143213831e-06,
    4.175347367276074e-08,
    -1.0567515797272753e-09,
    2.666192398240283e-11,
    -6.131944508238831e-13,
)
_COTH_FLOAT32 = (0.16666666635642216, -0.002777767842100783, 6.608767553666836e-05, -1.5727537911742662e-06)

# g(w) of 2 atanh(s) = 2s + s w g(w), w = s^2, at the Chebyshev nodes of 0 <= w <= (0.64/1.36)^2: 4e-17 and 2e-8.
_ATANH = (
    0.6666666666666667,
    0.39999999999995794,
    0.28571428572488355,
    0.2222222211754375,
    0.18181823536930808,
    0.1538445296391628,
    0.13336480214480168,
    0.11724112319153504,
    0.10881473827275012,
    0.07419982512897697,
    0.16914361996583852,
    -0.11780369362017949,
    0.32019697979333783,
)
_ATANH_FLOAT32 = (
    0.6666666521256966,
    0.4000047146866723,
    0.28546942064877906,
    0.2268028631975083,
    0.1441044504068194,
    0.2880506462331221,
)


def phi(d: ArrayLike) -> Array:
    """The KL divergence's own function of a log-ratio: KL(p || q) = sum p phi(log q/p) for normalised p and q.

    phi(d) = e^d - 1 - d: never negative, zero only at d = 0, with phi' = e^d - 1. Accurate to 4 ulp everywhere.

    Args:
        d: Log-ratios, any shape: array, tensor, number or list. float16 and bfloat16 are computed in float32.

    Returns:
        Same shape, kind and dtype; `inf` where d is -inf, inf, or large enough to overflow; nan where d is nan.

    Source: [schulman2020], where phi(log q/p) at samples of p is the estimator k3.

    Example:
        >>> float(phi(1e-10))
        5.000000000166667e-21
    """
    xp, [d], dtype = as_floats(d)
    return cast(xp, _phi(xp, d), dtype)


def log1p_residual(x: ArrayLike) -> Array:
    """What log(1 + x) falls short of x by: x - log1p(x) = phi(log1p(x)), the part of a KL that its masses make.

    Never negative, zero only at x = 0, with derivative x / (1 + x). Accurate to 4 ulp everywhere.

    Args:
        x: Any shape: array, tensor, number or list. float16 and bfloat16 are computed in float32.

    Returns:
        Same shape, kind and dtype; `inf` at x = -1 and at inf; nan below -1 and where x is nan.

    Example:
        >>> float(log1p_residual(1e-10))
        4.999999999666667e-21
    """
    xp, [x], dtype = as_floats(x)
    return cast(xp, _log1p_residual(xp, x), dtype)


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
    return b * _phi(xp, -_log_ratio(xp, b, a, h)) + _dispersion(xp, a, b, h)


def log_ratio(xp: Any, u: Array, v: Array, difference: Array | None = None) -> Array:
    """log(u/v) of u, v >= 0, that keeps its digits where u and v are nearly equal.

    `difference` is u - v, where the caller knows more of its digits.
    """
    return _log_ratio(xp, *xp.broadcast_arrays(u, v, u - v if difference is None else difference))


def ratio_residual(xp: Any, u: Array, v: Array) -> Array:
    """phi(log(u/v)) = u/v - 1 - log(u/v) of u, v > 0."""
    u, v = xp.broadcast_arrays(u, v)
    return _ratio_residual(xp, u, v, u - v)


def mass_phi(xp: Any, a: Array, b: Array) -> Array:
    """a phi(log(b/a)) = b - a - a log(b/a) of masses a, b >= 0: one term of a KL. Without slope at a = 0."""
    return _mass_phi(xp, *xp.broadcast_arrays(a, b))


def dispersion(xp: Any, a: Array, b: Array, h: Array | None = None) -> Array:
    """KL of gammas of one mean: R(a, b - a) - b phi(log(a/b)), what the leading terms of Stirling leave of R.

    `h` is b - a, where the caller knows more of its digits.
    """
    a, b, h = xp.broadcast_arrays(a, b, b - a if h is None else h)
    return _dispersion(xp, a, b, h)


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
    return _dispersion_slope(xp, *xp.broadcast_arrays(a, b, b - a))


def _phi_value(xp: Any, d: Array) -> Array:
    w = d * d
    # With u = d - w t: e^d - 1 = 2d / (d coth(d/2) - d) = 2d / (2 - u). The factor d comes last, so that a subnormal
    # result is rounded once.
    u = d - w * _polynomial(w, _COTH_FLOAT32 if d.dtype == xp.float32 else _COTH)
    near = d * (u / (2 - u))
    # Beyond 100 d is lost in e^d, and at d = inf it must not be subtracted.
    far = xp.expm1(d) - xp.where(d < 100, d, 100.0)
    return xp.where(abs(d) < 1, near, far)


def _phi_gradient(xp: Any, gradient: Array, _output: Array, d: Array) -> Array:
    return gradient * xp.expm1(d)


def _log1p_series(xp: Any, x: Array) -> Array:
    """x - log1p(x) for -0.64 < x < 1."""
    s = x / (2 + x)
    g = _polynomial(s * s, _ATANH_FLOAT32 if x.dtype == xp.float32 else _ATANH)
    # log1p(x) = 2 atanh(s) and x - 2s = s x.
    return s * (x - s * (s * g))


def _log1p_residual_value(xp: Any, x: Array) -> Array:
    near = _log1p_series(xp, x)
    far = xp.where(abs(x) == inf, x, x - xp.log1p(x))
    # log1p(x) stays below twice the result outside (-0.64, 1), so the subtraction costs one bit.
    residual = xp.where((x > -0.64) & (x < 1), near, far)
    return xp.where(x < -1, nan, residual)


def _log1p_residual_gradient(xp: Any, gradient: Array, _output: Array, x: Array) -> Array:
    end = x == inf
    x = xp.where(end, 0.0, x)
    return gradient * xp.where(end, 1.0, x / (1 + x))


def _log_ratio_value(xp: Any, u: Array, v: Array, difference: Array) -> Array:
    change, ratio = difference / v, u / v
    near = abs(change) < 0.5
    # The quotient may leave the range of floats where its log does not.
    middle = (ratio > 0) & (ratio < inf)
    far = xp.where(middle, xp.log(ratio), xp.log(u) - xp.log(v))
    return xp.where(near, xp.log1p(xp.where(near, change, 0.0)), far)


def _ratio_residual_value(xp: Any, u: Array, v: Array, difference: Array) -> Array:
    change = difference / v
    near = change > -0.5
    far = change - _log_ratio(xp, u, v, difference)
    return xp.where(near, _log1p_residual(xp, xp.where(near, change, 0.0)), far)


def _mass_phi_value(xp: Any, a: Array, b: Array) -> Array:
    near = (a > 0) & (b < 2 * a)
    safe = xp.where(a > 0, a, 1.0)
    far = xp.where(a > 0, b - a - a * _log_ratio(xp, b, safe, b - safe), b)
    return xp.where(near, a * _ratio_residual(xp, b, safe, b - safe), far)


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


def _dispersion_value(xp: Any, a: Array, b: Array, h: Array) -> Array:
    """h^2/(4 a^2) at first, as ratio_residual/2, and the residual of J about its tangent at a."""
    total = _ratio_residual(xp, b, a, h) / 2
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
    second_order = (h / a) * y / 2 - (b + 0.5) * _log1p_series(xp, -xp.where(near, y, 0.0))
    if holds(xp.all(near)):
        return second_order
    log = xp.log(a / b * ((b + 1) / (a + 1)))
    return xp.where(near, second_order, (b + 0.5) * log + h * ((a + 0.5) / (a * (a + 1))))


def _dispersion_slope(xp: Any, a: Array, b: Array, h: Array) -> Array:
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
    close = h * (1 + h) / (2 * a * b * (a + 1) * (b + 1)) - _log1p_series(xp, -xp.where(near, y, 0.0))
    log = xp.log(a / b * ((b + 1) / (a + 1)))
    return xp.where(near, close, log + h * (1 / (a * b) + 1 / ((a + 1) * (b + 1))) / 2)


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


def _polynomial(w: Array, coefficients: tuple[float, ...]) -> Array:
    total = w * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * w + coefficient
    return total


_phi = with_gradient(_phi_value, _phi_gradient)
_log1p_residual = with_gradient(_log1p_residual_value, _log1p_residual_gradient)
_log_ratio = with_gradient(
    _log_ratio_value,
    lambda _xp, gradient, _output, u, _v, _difference: gradient / u,
    lambda _xp, gradient, _output, _u, v, _difference: -gradient / v,
    lambda xp, _gradient, _output, u, _v, _difference: xp.zeros_like(u),
)
_ratio_residual = with_gradient(
    _ratio_residual_value,
    lambda _xp, gradient, _output, u, v, difference: gradient * (difference / v) / u,
    lambda _xp, gradient, _output, _u, v, difference: -gradient * (difference / v) / v,
    lambda xp, _gradient, _output, u, _v, _difference: xp.zeros_like(u),
)
_mass_phi = with_gradient(
    _mass_phi_value,
    lambda xp, gradient, _output, a, b: gradient * -xp.where(a > 0, log_ratio(xp, b, xp.where(a > 0, a, 1.0)), 0.0),
    lambda xp, gradient, _output, a, b: gradient * xp.where(a == b, 0.0, (b - a) / xp.where(a == b, 1.0, b)),
)
_dispersion = with_gradient(
    by_pieces(_dispersion_value),
    lambda xp, gradient, _output, a, _b, h: -gradient * h * (0.5 / (a * a) + binet_curvature(xp, a)),
    lambda xp, gradient, _output, a, b, h: gradient * _dispersion_slope(xp, a, b, h),
    lambda xp, _gradient, _output, a, _b, _h: xp.zeros_like(a),
)
_binet = with_gradient(_binet_value, lambda xp, gradient, _output, a: gradient * _binet_slope(xp, a))
_binet_slope = with_gradient(_binet_slope_value, lambda xp, gradient, _output, a: gradient * binet_curvature(xp, a))
