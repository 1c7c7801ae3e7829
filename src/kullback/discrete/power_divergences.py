"""The divergences that are functions of sum p^a q^(1-a): alpha, Tsallis, Renyi, Hellinger, chi-squared, Bhattacharyya.

Each divergence is a tuple of three functions of normalised p, q and d = log q - log p, as `log_ratios` computes them:

- the value, called as value(xp, p, q, d), shape (...);
- the derivative with respect to p, called as by_p(xp, value, p, q, d) with value of shape (..., 1), shape (..., n);
- the derivative with respect to q, called as by_q(xp, value, p, q, d), shape (..., n).
"""

from collections.abc import Callable
from math import inf
from typing import Any, TypeAlias

from kullback.errors import SupportError
from kullback.numerics.array_types import Column, PerEvent, PerRow
from kullback.numerics.arrays import Array
from kullback.numerics.phi import phi

__all__ = [
    "ValueAndGradients",
    "alpha_family",
    "bhattacharyya",
    "chi_squared",
    "hellinger",
    "hellinger_squared",
    "renyi",
    "scaled_expm1",
    "tsallis",
]

ValueAndGradients: TypeAlias = tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]


def alpha_family(alpha: float) -> ValueAndGradients:
    """(1 - sum p^a q^(1-a)) / (a (1 - a)); KL(p || q) at a = 1, KL(q || p) at a = 0."""
    if not abs(alpha) < inf:
        raise SupportError(f"expected a finite alpha, got {alpha!r}; alpha = 1 is KL(p || q), alpha = 0 KL(q || p)")

    def value(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerRow:
        # The terms are written relative to the distribution with the larger exponent, so that they do not cancel.
        if alpha < 0.5:
            return xp.sum(_power_terms(xp, q, p, -d, 1 - alpha, alpha), axis=-1) / (1 - alpha)
        return xp.sum(_power_terms(xp, p, q, d, alpha, 1 - alpha), axis=-1) / alpha

    def by_p(xp: Any, _value: Column, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
        return -scaled_expm1(xp, d, 1 - alpha)

    def by_q(xp: Any, _value: Column, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
        return scaled_expm1(xp, d, -alpha)

    return value, by_p, by_q


def chi_squared() -> ValueAndGradients:
    """sum (p - q)^2 / q, which is 2 times the alpha divergence with alpha = 2."""
    return _scaled(2.0, alpha_family(2.0))


def hellinger_squared() -> ValueAndGradients:
    """1 - sum sqrt(p q), which is 1/4 of the alpha divergence with alpha = 1/2."""
    return _scaled(0.25, alpha_family(0.5))


def hellinger() -> ValueAndGradients:
    """sqrt(1 - sum sqrt(p q))."""
    value, by_p, by_q = hellinger_squared()

    def root(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerRow:
        return xp.sqrt(value(xp, p, q, d))

    def slope_of_root(slope: Callable[..., Array]) -> Callable[..., Array]:
        def call(xp: Any, value: Column, p: PerEvent, q: PerEvent, d: PerEvent) -> PerEvent:
            twice = xp.where(value > 0, 2 * value, 1.0)
            # The minimum, at p = q, has a kink: 0 is a subgradient.
            return xp.where(value > 0, slope(xp, value, p, q, d) / twice, 0.0)

        return call

    return root, slope_of_root(by_p), slope_of_root(by_q)


def tsallis(order: float) -> ValueAndGradients:
    """(sum p^a q^(1-a) - 1) / (a - 1); KL(p || q) at a = 1."""
    if not 0 <= order < inf:
        raise SupportError(f"expected an order from 0 to below infinity, got {order!r}; order 1 is KL(p || q)")
    if order > 0:
        return _scaled(order, alpha_family(order))
    return (
        lambda xp, _p, q, d: xp.sum(xp.where(d == inf, q, 0.0), axis=-1),
        lambda xp, _value, _p, _q, d: xp.zeros_like(d),
        lambda xp, _value, _p, _q, d: xp.where(d == inf, xp.ones_like(d), 0.0),
    )


def bhattacharyya() -> ValueAndGradients:
    """-log(sum sqrt(p q)), which is half of the Renyi divergence of order 1/2."""
    return _scaled(0.5, renyi(0.5))


def renyi(order: float) -> ValueAndGradients:
    """log(sum p^a q^(1-a)) / (a - 1); KL(p || q) at a = 1."""
    if not order >= 0:
        raise SupportError(f"expected an order from 0 to infinity, got {order!r}; order 1 is KL(p || q)")
    if order == 0:
        return _renyi_zero, lambda xp, _value, _p, _q, d: xp.zeros_like(d), _renyi_zero_by_q
    if order == 1:
        return alpha_family(1.0)
    if order > 1e30:  # equal to the limit to rounding
        return _renyi_max, _renyi_max_by_p, _renyi_max_by_q
    power_sum = alpha_family(order)[0]

    def value(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerRow:
        excess = order * (order - 1) * power_sum(xp, p, q, d)
        plain = (excess > -0.5) & (excess < inf)
        log_sum = xp.where(
            plain, xp.log1p(xp.where(plain, excess, 0.0)), _log_power_sum(xp, p, xp.where(d < inf, d, 0.0), order)
        )
        result = log_sum / (order - 1)
        return xp.where(xp.min(d, axis=-1) == -inf, inf, result) if order > 1 else result

    # The derivatives of the logarithm minus their means, so that the terms do not cancel near p = q.
    def by_p(xp: Any, value: Column, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
        return -order * scaled_expm1(xp, d + xp.where(value < inf, value, 0.0), 1 - order)

    def by_q(xp: Any, value: Column, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
        return order * scaled_expm1(xp, d + (order - 1) / order * xp.where(value < inf, value, 0.0), -order)

    return value, by_p, by_q


def _log_power_sum(xp: Any, p: PerEvent, d: PerEvent, order: float) -> PerRow:
    """log(sum p^a q^(1-a)) by log-sum-exp, for a result far from 0, where the sum may overflow or underflow."""
    kept = (p > 0) & (d > -inf)
    logs = xp.log(xp.where(kept, p, 1.0)) + (1 - order) * xp.where(kept, d, 0.0)
    logs = xp.where(kept, logs, -inf)
    top = xp.max(logs, axis=-1, keepdims=True)
    top = xp.where(top > -inf, top, 0.0)
    return xp.log(xp.sum(xp.exp(logs - top), axis=-1)) + top[..., 0]


def _renyi_zero(xp: Any, _p: PerEvent, q: PerEvent, d: PerEvent) -> PerRow:
    """The Renyi divergence of order 0: -log of the mass of q where p > 0."""
    outside, inside = (xp.sum(xp.where(side, q, 0.0), axis=-1) for side in (d == inf, d < inf))
    small = outside < 0.5
    return -xp.where(small, xp.log1p(-xp.where(small, outside, 0.0)), xp.log(inside))


def _renyi_zero_by_q(xp: Any, value: Column, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
    """The derivative with respect to q, up to a constant."""
    return xp.where(d < inf, -xp.expm1(xp.where(value < inf, value, 0.0)), 1.0)


def _renyi_max(xp: Any, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerRow:
    """The Renyi divergence of order inf: max log(p/q), which is at least 0."""
    return xp.max(xp.where(d < 0, -d, 0.0), axis=-1)


def _renyi_max_by_p(xp: Any, value: Column, p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
    return _max_ratio_weights(xp, value, p, d) - 1


def _renyi_max_by_q(xp: Any, value: Column, p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
    return 1 - _max_ratio_weights(xp, value, p, d) * xp.exp(xp.where(value < inf, value, 0.0))


def _max_ratio_weights(xp: Any, value: Column, p: PerEvent, d: PerEvent) -> PerEvent:
    """1 / (mass of p on the events with the largest p/q) at these events; 0 elsewhere."""
    largest = -d == value
    mass = xp.sum(xp.where(largest, p, 0.0), axis=-1, keepdims=True)
    return xp.where(largest & (mass > 0), 1 / xp.where(mass > 0, mass, 1.0), 0.0)


def scaled_expm1(xp: Any, d: PerEvent, k: float) -> PerEvent:
    """(e^(k d) - 1) / k, and its limit d for k = 0."""
    finite = abs(d) < inf
    safe = xp.where(finite, d, 0.0)
    limit = d if k == 0 else xp.where(k * d < 0, -1 / k, d)
    return xp.where(finite, safe if k == 0 else xp.expm1(k * safe) / k, limit)


def _power_terms(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent, b: float, c: float) -> PerEvent:
    """(b p + c q - p^b q^c) / c >= 0 with b + c = 1 and b >= 1/2; its limit p log(p/q) - p + q for c = 0."""
    near = abs(d) < 1
    x = xp.where(near, d, 0.0)
    close = p * (phi(x) - phi(c * x) / c) if c else p * phi(x)
    finite = ~near & (abs(d) < inf)
    x = xp.where(finite, d, 1.0)
    drop = -_power_difference(xp, p, q, x, c) / c if c else -p * x
    limit = xp.where(d > 0, q, p * (b / c) if c > 0 else inf)
    return xp.where(near, close, xp.where(finite, drop - p + q, limit))


def _power_difference(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent, c: float) -> PerEvent:
    """p (q/p)^c - p, without cancellation."""
    least = xp.finfo(p.dtype).smallest_normal
    normal = (p >= least) & (q >= least)
    ratio = xp.where(normal, q, 1.0) / xp.where(normal, p, 1.0)
    normal = normal & (ratio >= least) & (ratio < inf)
    power = xp.where(normal, ratio, 1.0) ** c
    # The quotient is rounded once; the relative error of e^(c d) is proportional to |d|.
    normal = normal & (power < inf)
    logs = xp.log(xp.where(p > 0, p, 1.0)) + c * d
    far = xp.where(normal, p * power, xp.where(p > 0, xp.exp(logs), 0.0)) - p
    return xp.where(abs(c * d) < 1, p * xp.expm1(xp.where(abs(c * d) < 1, c * d, 0.0)), far)


def _scaled(factor: float, divergence: ValueAndGradients) -> ValueAndGradients:
    """A divergence multiplied by a constant factor."""
    value, by_p, by_q = divergence
    return (
        lambda xp, p, q, d: factor * value(xp, p, q, d),
        lambda xp, value, p, q, d: factor * by_p(xp, value / factor, p, q, d),
        lambda xp, value, p, q, d: factor * by_q(xp, value / factor, p, q, d),
    )
