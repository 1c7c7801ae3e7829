"""KL between von Mises distributions and between von Mises-Fisher distributions.

The normalisers are modified Bessel functions. PyTorch and JAX do not provide all the required orders, and differences
of their logarithms cancel. The integrals that define them are therefore computed by the trapezoidal rule in the
variable u with t = tanh(s) and s = s0 + a sinh(u), which is accurate to rounding for every concentration and dimension.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from array_api_compat import device

from kullback import families as f
from kullback.closed_forms.registry import closed_form
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array, broadcast_arrays, elementwise_with_gradient, untracked
from kullback.numerics.phi import phi

__all__: list[str] = []

_NODES = np.linspace(-5, 5, 201)


@closed_form((f.VonMises, f.VonMises))
def kl_von_mises_von_mises(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = VonMises(loc1, k1) and Q = VonMises(loc2, k2), where k1 and k2 are the concentrations.

    log Z(k2) - log Z(k1) - (k2 - k1) A(k1) + 2 k2 A(k1) sin^2((loc1 - loc2)/2), where Z(k) = 2 pi I_0(k) is the
    normaliser and A(k1) = E_P cos(x - loc1) is the mean resultant length.
    """
    residual, resultant = _residual_and_resultant(xp, p.concentration, q.concentration, 2)
    return residual + 2 * (q.concentration * resultant * _sin_half_difference(xp, p.loc, q.loc) ** 2)


def _sin_half_difference(xp: Any, a: Array, b: Array) -> Array:
    """sin((a - b)/2), also where the difference of the angles is rounded by much, because one of them is large."""
    difference = a - b
    other = untracked(a - difference)
    error = (untracked(a) - (untracked(difference) + other)) + (other - untracked(b))  # of the subtraction, exactly
    error = xp.where(xp.isfinite(error), error, 0.0)
    half = difference / 2
    return xp.sin(half) * xp.cos(error / 2) + xp.cos(half) * xp.sin(error / 2)


@closed_form((f.VonMisesFisher, f.VonMisesFisher))
def kl_von_mises_fisher_von_mises_fisher(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = VonMisesFisher(m1, k1) and Q = VonMisesFisher(m2, k2).

    m is mean_direction, and k is concentration.

    log Z(k2) - log Z(k1) - (k2 - k1) A(k1) + k2 A(k1) |m1 - m2|^2/2, where
    Z(k) = (2 pi)^(n/2) I_(n/2 - 1)(k)/k^(n/2 - 1) is the normaliser in n dimensions and A(k1) = E_P m1 . x is the mean
    resultant length.
    """
    sizes = [d.mean_direction.shape[-1] if d.mean_direction.ndim else 0 for d in (p, q)]
    if sizes[0] != sizes[1] or sizes[0] < 2:
        raise ShapeError(
            "expected mean_direction of p and q to be vectors of equal length, 2 or more, got shapes "
            f"{tuple(p.mean_direction.shape)} and {tuple(q.mean_direction.shape)}"
        )
    residual, resultant = _residual_and_resultant(xp, p.concentration, q.concentration, sizes[0])
    distance = xp.sum((p.mean_direction - q.mean_direction) ** 2, axis=-1)
    return residual + q.concentration * resultant * (distance / 2)


def _residual_and_resultant(xp: Any, k1: Array, k2: Array, dimension: int) -> tuple[Array, Array]:
    """log Z(k2) - log Z(k1) - (k2 - k1) A(k1), and A(k1).

    Z(k) is the integral of exp(k t) (1 - t^2)^((n - 3)/2) over -1 < t < 1 in n dimensions, and A(k) = (log Z)'(k).
    """
    return _residual(dimension)(xp, *broadcast_arrays(xp, k1, k2)), _resultant(dimension)(xp, k1)


# The derivatives are expectations under the same weights. Automatic differentiation of the nodes would give
# 0 * inf = nan in float32, where exp(2 s) overflows at the outer nodes.


@cache
def _residual(dimension: int) -> Callable[..., Array]:
    """R(k1, k2) = log Z(k2) - log Z(k1) - (k2 - k1) A(k1), with its gradient."""

    def value(xp: Any, k1: Array, k2: Array) -> Array:
        h = k2 - k1
        y, logs, weights = _weighted_nodes(xp, k1, dimension)
        mean = xp.sum(weights * y, axis=-1)
        # For a change h below one standard deviation, the residual is log E_p exp(d) with d = h (t - E_p t).
        near, d = _near_exponent(xp, k1, h, weights, mean[..., None] - y)
        close = xp.log1p(xp.sum(weights * phi(d), axis=-1))
        # exp(k t) is replaced by exp(-k (1 - t)), which does not change the residual.
        far = _log_sum_exp(xp, _nodes(xp, k2, dimension)[1]) - _log_sum_exp(xp, logs) + h * mean
        return xp.where(near, close, far)

    return elementwise_with_gradient(
        value,
        lambda xp, gradient, _output, k1, k2: -gradient * (k2 - k1) * _moment(dimension, 2)(xp, k1),
        lambda xp, gradient, _output, k1, k2: gradient * _resultant_difference(dimension)(xp, k1, k2),
    )


@cache
def _resultant(dimension: int) -> Callable[..., Array]:
    """A(k) = E t, computed as k/(n - 1) E(1 - t^2), which is accurate for small k."""

    def value(xp: Any, k: Array) -> Array:
        y, _, weights = _weighted_nodes(xp, k, dimension)
        return k / (dimension - 1) * xp.sum(weights * (y * (2 - y)), axis=-1)

    return elementwise_with_gradient(value, lambda xp, gradient, _output, k: gradient * _moment(dimension, 2)(xp, k))


@cache
def _resultant_difference(dimension: int) -> Callable[..., Array]:
    """A(k2) - A(k1), without cancellation for nearly equal k1 and k2."""

    def value(xp: Any, k1: Array, k2: Array) -> Array:
        h = k2 - k1
        y, _, weights = _weighted_nodes(xp, k1, dimension)
        shift = xp.sum(weights * y, axis=-1)[..., None] - y
        near, d = _near_exponent(xp, k1, h, weights, shift)
        tilted = weights * xp.expm1(d)
        close = xp.sum(tilted * shift, axis=-1) / (1 + xp.sum(weights * phi(d), axis=-1))
        return xp.where(near, close, _resultant(dimension)(xp, k2) - _resultant(dimension)(xp, k1))

    return elementwise_with_gradient(
        value,
        lambda xp, gradient, _output, k1, _k2: -gradient * _moment(dimension, 2)(xp, k1),
        lambda xp, gradient, _output, _k1, k2: gradient * _moment(dimension, 2)(xp, k2),
    )


@cache
def _moment(dimension: int, order: int) -> Callable[..., Array]:
    """m_n(k) = E (t - E t)^n, with m_n' = m_(n+1) - n m_2 m_(n-1)."""

    def value(xp: Any, k: Array) -> Array:
        y, _, weights = _weighted_nodes(xp, k, dimension)
        return xp.sum(weights * (xp.sum(weights * y, axis=-1)[..., None] - y) ** order, axis=-1)

    def pullback(xp: Any, gradient: Array, _output: Array, k: Array) -> Array:
        lower = order * _moment(dimension, 2)(xp, k) * _moment(dimension, order - 1)(xp, k) if order > 2 else 0.0
        return gradient * (_moment(dimension, order + 1)(xp, k) - lower)

    return elementwise_with_gradient(value, pullback)


def _near_exponent(xp: Any, k1: Array, h: Array, weights: Array, shift: Array) -> tuple[Array, Array]:
    """Whether the change h is below one standard deviation of t, and there the exponent d = h (t - E_p t)."""
    near = (xp.sum(weights * (h[..., None] * shift) ** 2, axis=-1) < 1) & ((abs(h) < k1 / 2) | (abs(h) < 40))
    # Where exp(-k1 y) underflows its contribution is negligible, but phi(d) may overflow.
    return near, xp.where(near[..., None] & (weights > 0), h[..., None] * shift, 0.0)


def _weighted_nodes(xp: Any, k: Array, dimension: int) -> tuple[Array, Array, Array]:
    """y = 1 - t at the quadrature nodes, the logarithms of the weights, and the weights with sum 1."""
    y, logs = _nodes(xp, k, dimension)
    weights = xp.exp(logs - xp.max(logs, axis=-1, keepdims=True))
    return y, logs, weights / xp.sum(weights, axis=-1, keepdims=True)


def _nodes(xp: Any, k: Array, dimension: int) -> tuple[Array, Array]:
    """y = 1 - t at the quadrature nodes around the mode s0, and the logarithms of exp(-k y) times the weights."""
    power, k = dimension - 1, k[..., None]
    # Far below the overflow of e^(2 s), y is proportional to 1/k to rounding: larger k are reduced to this limit.
    limit = float(xp.finfo(k.dtype).max) ** 0.8
    scale = xp.where(k > limit, limit / k, 1.0)
    k = xp.where(k > limit, limit, k)
    u = xp.asarray(_NODES, dtype=k.dtype, device=device(k))
    s = xp.asinh(2 * k / power) / 2 + xp.sinh(u) / power**0.5
    y = 2 / (1 + xp.exp(2 * s))
    sech = np.log(2) - abs(s) - xp.log1p(xp.exp(-2 * abs(s)))
    return y * scale, power * sech + xp.log(xp.cosh(u)) - k * y + power / 2 * xp.log(scale)


def _log_sum_exp(xp: Any, logs: Array) -> Array:
    """log(sum(exp(logs))) along the last axis."""
    top = xp.max(logs, axis=-1, keepdims=True)
    return xp.log(xp.sum(xp.exp(logs - top), axis=-1)) + top[..., 0]
