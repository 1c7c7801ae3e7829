"""The divergences that sum powers p^a q^(1-a): alpha, Tsallis, Renyi, Hellinger, chi-squared, Bhattacharyya.

Each is three functions of normalised events (see `_events`): its value, shape (...), from (xp, p, q, d), and its
derivatives by p and by q, shape (..., n), from (xp, value, p, q, d), value of shape (..., 1).
"""

from collections.abc import Callable
from math import inf
from typing import Any, TypeAlias

from kullback.errors import SupportError
from kullback.numerics.arrays import Array
from kullback.numerics.phi import phi

__all__ = [
    "Triple",
    "alpha_family",
    "bhattacharyya",
    "chi_squared",
    "expm1_over",
    "hellinger",
    "hellinger_squared",
    "renyi",
    "tsallis",
]

Triple: TypeAlias = tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]


def alpha_family(alpha: float) -> Triple:
    """(1 - sum p^a q^(1-a)) / (a (1 - a)); KL(p || q) at a = 1, KL(q || p) at a = 0."""
    if not abs(alpha) < inf:
        raise SupportError(f"expected a finite alpha, got {alpha!r}; alpha = 1 is KL(p || q), alpha = 0 KL(q || p)")

    def value(xp: Any, p: Array, q: Array, d: Array) -> Array:
        # The base is that of the larger power: then nothing cancels.
        if alpha < 0.5:
            return xp.sum(_gaps(xp, q, p, -d, 1 - alpha, alpha), axis=-1) / (1 - alpha)
        return xp.sum(_gaps(xp, p, q, d, alpha, 1 - alpha), axis=-1) / alpha

    def by_p(xp: Any, _value: Array, _p: Array, _q: Array, d: Array) -> Array:
        return -expm1_over(xp, d, 1 - alpha)

    def by_q(xp: Any, _value: Array, _p: Array, _q: Array, d: Array) -> Array:
        return expm1_over(xp, d, -alpha)

    return value, by_p, by_q


def chi_squared() -> Triple:
    return _scaled(2.0, alpha_family(2.0))


def hellinger_squared() -> Triple:
    return _scaled(0.25, alpha_family(0.5))


def hellinger() -> Triple:
    value, by_p, by_q = hellinger_squared()

    def root(xp: Any, p: Array, q: Array, d: Array) -> Array:
        return xp.sqrt(value(xp, p, q, d))

    def slope_of_root(slope: Callable[..., Array]) -> Callable[..., Array]:
        def call(xp: Any, value: Array, p: Array, q: Array, d: Array) -> Array:
            twice = xp.where(value > 0, 2 * value, 1.0)
            # At p = q, the least value: of the slopes there are, 0.
            return xp.where(value > 0, slope(xp, value, p, q, d) / twice, 0.0)

        return call

    return root, slope_of_root(by_p), slope_of_root(by_q)


def tsallis(order: float) -> Triple:
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


def bhattacharyya() -> Triple:
    return _scaled(0.5, renyi(0.5))


def renyi(order: float) -> Triple:
    """log(sum p^a q^(1-a)) / (a - 1); KL(p || q) at a = 1."""
    if not order >= 0:
        raise SupportError(f"expected an order from 0 to infinity, got {order!r}; order 1 is KL(p || q)")
    if order == 0:
        return _renyi_zero, lambda xp, _value, _p, _q, d: xp.zeros_like(d), _renyi_zero_by_q
    if order == 1:
        return alpha_family(1.0)
    if order > 1e30:  # the limit, to every digit
        return _renyi_max, _renyi_max_by_p, _renyi_max_by_q
    power_sum = alpha_family(order)[0]

    def value(xp: Any, p: Array, q: Array, d: Array) -> Array:
        excess = order * (order - 1) * power_sum(xp, p, q, d)
        plain = (excess > -0.5) & (excess < inf)
        log_sum = xp.where(
            plain, xp.log1p(xp.where(plain, excess, 0.0)), _log_power_sum(xp, p, xp.where(d < inf, d, 0.0), order)
        )
        result = log_sum / (order - 1)
        return xp.where(xp.min(d, axis=-1) == -inf, inf, result) if order > 1 else result

    # The derivatives of the log of the sum, less their means, so that near p = q nothing is left to cancel.
    def by_p(xp: Any, value: Array, _p: Array, _q: Array, d: Array) -> Array:
        return -order * expm1_over(xp, d + xp.where(value < inf, value, 0.0), 1 - order)

    def by_q(xp: Any, value: Array, _p: Array, _q: Array, d: Array) -> Array:
        return order * expm1_over(xp, d + (order - 1) / order * xp.where(value < inf, value, 0.0), -order)

    return value, by_p, by_q


def _log_power_sum(xp: Any, p: Array, d: Array, order: float) -> Array:
    """log(sum p^a q^(1-a)), far from 0, where the sum itself may overflow or all but vanish."""
    kept = (p > 0) & (d > -inf)
    logs = xp.log(xp.where(kept, p, 1.0)) + (1 - order) * xp.where(kept, d, 0.0)
    logs = xp.where(kept, logs, -inf)
    top = xp.max(logs, axis=-1, keepdims=True)
    top = xp.where(top > -inf, top, 0.0)
    return xp.log(xp.sum(xp.exp(logs - top), axis=-1)) + top[..., 0]


def _renyi_zero(xp: Any, _p: Array, q: Array, d: Array) -> Array:
    """-log of the mass of q where p is possible."""
    missed, met = (xp.sum(xp.where(side, q, 0.0), axis=-1) for side in (d == inf, d < inf))
    few = missed < 0.5
    return -xp.where(few, xp.log1p(-xp.where(few, missed, 0.0)), xp.log(met))


def _renyi_zero_by_q(xp: Any, value: Array, _p: Array, _q: Array, d: Array) -> Array:
    return xp.where(d < inf, -xp.expm1(xp.where(value < inf, value, 0.0)), 1.0)


def _renyi_max(xp: Any, _p: Array, _q: Array, d: Array) -> Array:
    """max log p/q: over sets of events, of which the set of all has ratio 1."""
    return xp.max(xp.where(d < 0, -d, 0.0), axis=-1)


def _renyi_max_by_p(xp: Any, value: Array, p: Array, _q: Array, d: Array) -> Array:
    return _shares(xp, value, p, d) - 1


def _renyi_max_by_q(xp: Any, value: Array, p: Array, _q: Array, d: Array) -> Array:
    return 1 - _shares(xp, value, p, d) * xp.exp(xp.where(value < inf, value, 0.0))


def _shares(xp: Any, value: Array, p: Array, d: Array) -> Array:
    """1 over the mass of p on the events of largest ratio, there; 0 elsewhere."""
    largest = -d == value
    mass = xp.sum(xp.where(largest, p, 0.0), axis=-1, keepdims=True)
    return xp.where(largest & (mass > 0), 1 / xp.where(mass > 0, mass, 1.0), 0.0)


def expm1_over(xp: Any, d: Array, k: float) -> Array:
    """(e^(k d) - 1) / k, which is d at k = 0."""
    finite = abs(d) < inf
    safe = xp.where(finite, d, 0.0)
    limit = d if k == 0 else xp.where(k * d < 0, -1 / k, d)
    return xp.where(finite, safe if k == 0 else xp.expm1(k * safe) / k, limit)


def _gaps(xp: Any, p: Array, q: Array, d: Array, b: float, c: float) -> Array:
    """(b p + c q - p^b q^c) / c, b + c = 1, for b >= 1/2: never negative; p log(p/q) - p + q at c = 0."""
    near = abs(d) < 1
    x = xp.where(near, d, 0.0)
    close = p * (phi(x) - phi(c * x) / c) if c else p * phi(x)
    finite = ~near & (abs(d) < inf)
    x = xp.where(finite, d, 1.0)
    drop = -_rise(xp, p, q, x, c) / c if c else -p * x
    limit = xp.where(d > 0, q, p * (b / c) if c > 0 else inf)
    return xp.where(near, close, xp.where(finite, drop - p + q, limit))


def _rise(xp: Any, p: Array, q: Array, d: Array, c: float) -> Array:
    """p (q/p)^c - p."""
    least = xp.finfo(p.dtype).smallest_normal
    normal = (p >= least) & (q >= least)
    ratio = xp.where(normal, q, 1.0) / xp.where(normal, p, 1.0)
    normal = normal & (ratio >= least) & (ratio < inf)
    power = xp.where(normal, ratio, 1.0) ** c
    # The quotient is rounded once, its logarithm d by as many units as it is large.
    normal = normal & (power < inf)
    logs = xp.log(xp.where(p > 0, p, 1.0)) + c * d
    far = xp.where(normal, p * power, xp.where(p > 0, xp.exp(logs), 0.0)) - p
    return xp.where(abs(c * d) < 1, p * xp.expm1(xp.where(abs(c * d) < 1, c * d, 0.0)), far)


def _scaled(factor: float, triple: Triple) -> Triple:
    value, by_p, by_q = triple
    return (
        lambda xp, p, q, d: factor * value(xp, p, q, d),
        lambda xp, value, p, q, d: factor * by_p(xp, value / factor, p, q, d),
        lambda xp, value, p, q, d: factor * by_q(xp, value / factor, p, q, d),
    )
