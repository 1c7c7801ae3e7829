"""phi(d) = e^d - 1 - d, of which every KL divergence is a weighted sum, and related functions without cancellation."""

from math import inf, nan
from typing import Any

from kullback.numerics.array_types import ArrayInput, ArrayT
from kullback.numerics.arrays import Array, as_floats, broadcast_arrays, cast, elementwise_with_gradient

__all__ = [
    "log1p_residual",
    "log1p_series",
    "log_ratio",
    "mass_phi",
    "phi",
    "ratio_residual",
    "scaled_mass_phi",
]

# Coefficients of t(w), where d coth(d/2) = 2 + w t(w) with w = d^2: interpolation at the Chebyshev nodes of
# 0 <= w <= 1. The errors are 5e-19 in float64 and 4e-10 in float32.
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

# Coefficients of g(w), where 2 atanh(s) = 2s + s w g(w) with w = s^2: interpolation at the Chebyshev nodes of
# 0 <= w <= (0.64/1.36)^2. The errors are 4e-17 in float64 and 2e-8 in float32.
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


def phi(d: ArrayInput[ArrayT]) -> ArrayT:
    """phi(d) = e^d - 1 - d, so that KL(p || q) = sum_i p_i phi(log(q_i / p_i)) for normalised p and q.

    phi is non-negative, is zero only at d = 0, and has the derivative e^d - 1. The result is accurate to 4 units in the
    last place for every d.

    Args:
        d: Log-ratios in nats, any shape: an array, a tensor, a number or a list. float16 and bfloat16 are computed in
            float32.

    Returns:
        The shape, array type and dtype of `d`; `inf` where d is -inf, inf, or so large that e^d overflows; nan where d
        is nan.

    References:
        John Schulman (2020), "Approximating KL Divergence" [schulman2020]: phi(log(q(x) / p(x))) at samples x of p is
        the estimator k3.

    Example:
        >>> float(phi(1e-10))
        5.000000000166667e-21
    """
    xp, [log_ratios], dtype = as_floats(d)
    return cast(xp, _phi(xp, log_ratios), dtype)


def log1p_residual(x: ArrayInput[ArrayT]) -> ArrayT:
    """x - log(1 + x) = phi(log(1 + x)), the contribution of a change of total mass to a KL divergence.

    The function is non-negative, is zero only at x = 0, and has the derivative x / (1 + x). The result is accurate to 4
    units in the last place for every x.

    Args:
        x: Any shape: an array, a tensor, a number or a list. float16 and bfloat16 are computed in float32.

    Returns:
        The shape, array type and dtype of `x`; `inf` at x = -1 and x = inf; nan below -1 and where x is nan.

    Example:
        >>> float(log1p_residual(1e-10))
        4.999999999666667e-21
    """
    xp, [values], dtype = as_floats(x)
    return cast(xp, _log1p_residual(xp, values), dtype)


def log_ratio(xp: Any, u: Array, v: Array, difference: Array | None = None) -> Array:
    """log(u / v) for u, v >= 0, accurate where u and v are nearly equal.

    Pass u - v as `difference` if it is available with more accuracy than the subtraction gives.
    """
    return _log_ratio(xp, *broadcast_arrays(xp, u, v, u - v if difference is None else difference))


def ratio_residual(xp: Any, u: Array, v: Array, difference: Array | None = None) -> Array:
    """phi(log(u / v)) = u/v - 1 - log(u / v) for u, v > 0; `difference` is u - v, as in `log_ratio`."""
    return _ratio_residual(xp, *broadcast_arrays(xp, u, v, u - v if difference is None else difference))


def mass_phi(xp: Any, a: Array, b: Array) -> Array:
    """a phi(log(b / a)) = b - a - a log(b / a) for masses a, b >= 0: one term of KL(a || b).

    The gradient with respect to a is 0 at a = 0.
    """
    return _mass_phi(xp, *broadcast_arrays(xp, a, b))


def scaled_mass_phi(xp: Any, a: Array, b: Array, c: Array, d: Array, difference: Array | None = None) -> Array:
    """a phi(d) with d = log(b / a) + c, for a, b > 0: one term of KL(a || b e^c).

    The value is computed from `d`, so that the caller can pass it with full accuracy. Its derivative with respect to a
    is -d; automatic differentiation of a phi(d) would give it as phi(d) - expm1(d), which cancels for large d. Pass
    b - a as `difference` if it is available with more accuracy than the subtraction gives.
    """
    return _scaled_mass_phi(xp, *broadcast_arrays(xp, a, b, c, d, b - a if difference is None else difference))


def _phi_value(xp: Any, d: Array) -> Array:
    w = d * d
    # With u = d - w t, e^d - 1 = 2d / (d coth(d/2) - d) = 2d / (2 - u). The factor d is applied last, so that a
    # subnormal result is rounded only once.
    u = d - w * _polynomial(w, _COTH_FLOAT32 if d.dtype == xp.float32 else _COTH)
    near = d * (u / (2 - u))
    # Above 100, d is smaller than the rounding error of e^d; inf must not be subtracted from inf.
    far = xp.expm1(d) - xp.where(d > 100, 100.0, d)
    return xp.where(abs(d) < 1, near, far)


def _phi_gradient(xp: Any, gradient: Array, _output: Array, d: Array) -> Array:
    return gradient * xp.expm1(d)


def log1p_series(xp: Any, x: Array) -> Array:
    """x - log1p(x) for -0.64 < x < 1, by a series in s = x / (2 + x); no explicit gradient is attached."""
    s = x / (2 + x)
    g = _polynomial(s * s, _ATANH_FLOAT32 if x.dtype == xp.float32 else _ATANH)
    # log1p(x) = 2 atanh(s) and x - 2s = s x.
    return s * (x - s * (s * g))


def _log1p_residual_value(xp: Any, x: Array) -> Array:
    near = log1p_series(xp, x)
    far = xp.where(abs(x) == inf, x, x - xp.log1p(x))
    # Outside (-0.64, 1), log1p(x) is below twice the result, so the subtraction loses at most one bit.
    residual = xp.where((x > -0.64) & (x < 1), near, far)
    return xp.where(x < -1, nan, residual)


def _log1p_residual_gradient(xp: Any, gradient: Array, _output: Array, x: Array) -> Array:
    end = x == inf
    x = xp.where(end, 0.0, x)
    return gradient * xp.where(end, 1.0, x / (1 + x))


def _log_ratio_value(xp: Any, u: Array, v: Array, difference: Array) -> Array:
    change, ratio = difference / v, u / v
    near = abs(change) < 0.5
    # The quotient may overflow or become subnormal although its logarithm is an ordinary number.
    middle = (ratio >= xp.finfo(u.dtype).smallest_normal) & (ratio < inf)
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


def _times_phi(xp: Any, a: Array, d: Array) -> Array:
    """a phi(d) for a > 0, also where phi(d) overflows and the product does not."""
    factor = _phi(xp, d)
    far = (factor == inf) & (d > 0)
    return xp.where(far, xp.exp(xp.where(far, d, 0.0) + xp.log(xp.where(far, a, 1.0))), a * factor)


def _polynomial(w: Array, coefficients: tuple[float, ...]) -> Array:
    """The polynomial with these coefficients, in increasing order of powers, by Horner's rule."""
    total = w * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * w + coefficient
    return total


_phi = elementwise_with_gradient(_phi_value, _phi_gradient)
_log1p_residual = elementwise_with_gradient(_log1p_residual_value, _log1p_residual_gradient)
_log_ratio = elementwise_with_gradient(
    _log_ratio_value,
    lambda _xp, gradient, _output, u, _v, _difference: gradient / u,
    lambda _xp, gradient, _output, _u, v, _difference: -gradient / v,
    lambda xp, _gradient, _output, u, _v, _difference: xp.zeros_like(u),
)
_ratio_residual = elementwise_with_gradient(
    _ratio_residual_value,
    lambda _xp, gradient, _output, u, v, difference: gradient * (difference / v) / u,
    lambda _xp, gradient, _output, _u, v, difference: -gradient * (difference / v) / v,
    lambda xp, _gradient, _output, u, _v, _difference: xp.zeros_like(u),
)
_mass_phi = elementwise_with_gradient(
    _mass_phi_value,
    lambda xp, gradient, _output, a, b: gradient * -xp.where(a > 0, log_ratio(xp, b, xp.where(a > 0, a, 1.0)), 0.0),
    lambda xp, gradient, _output, a, b: gradient * xp.where(a == b, 0.0, (b - a) / xp.where(a == b, 1.0, b)),
)
_scaled_mass_phi = elementwise_with_gradient(
    lambda xp, a, _b, _c, d, _difference: _times_phi(xp, a, d),
    lambda xp, gradient, _output, a, b, c, _d, difference: -gradient * (c + log_ratio(xp, b, a, difference)),
    lambda xp, gradient, _output, a, b, c, _d, difference: (
        gradient * (a / b) * xp.expm1(c + log_ratio(xp, b, a, difference))
    ),
    lambda xp, gradient, _output, a, b, c, _d, difference: gradient * a * xp.expm1(c + log_ratio(xp, b, a, difference)),
    lambda xp, _gradient, _output, a, *_: xp.zeros_like(a),
    lambda xp, _gradient, _output, a, *_: xp.zeros_like(a),
)
