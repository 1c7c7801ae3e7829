"""Divergences other than KL(p || q), between discrete distributions held as probabilities."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from inspect import signature
from math import inf
from numbers import Real
from typing import Any

from kullback.discrete.f_divergence import f_divergence
from kullback.discrete.log_ratios import difference, kl_events, prob_events
from kullback.discrete.power_divergences import (
    Triple,
    alpha_family,
    bhattacharyya,
    chi_squared,
    expm1_over,
    hellinger,
    hellinger_squared,
    renyi,
    tsallis,
)
from kullback.discrete.validation import events_last, require_probs
from kullback.errors import SupportError
from kullback.numerics.arrays import Array, ArrayLike, cast, is_positive, map_row_blocks, with_gradient

__all__ = ["divergence"]


def divergence(
    p: ArrayLike,
    q: ArrayLike,
    name: str | Callable[[Array], Array],
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    **parameters: float,
) -> Array:
    """A divergence D(p || q) other than KL(p || q), of probabilities: in nats where it is a logarithm.

    | name | D(p || q) | parameters |
    | --- | --- | --- |
    | "js" | w KL(p || m) + (1-w) KL(q || m), m = w p + (1-w) q (its root is SciPy's distance) | weight w = 1/2 |
    | "jeffreys" | KL(p || q) + KL(q || p) | |
    | "renyi" | log(sum p^a q^(1-a)) / (a-1); a = 1: KL(p || q), 0: -log q(p > 0), inf: max log p/q | order a >= 0 |
    | "tsallis" | (sum p^a q^(1-a) - 1) / (a-1); a = 1: KL(p || q) | order a >= 0 |
    | "alpha" | (1 - sum p^a q^(1-a)) / (a (1-a)); a = 1: KL(p || q), 0: KL(q || p) | alpha a |
    | "hellinger" | sqrt(1 - sum sqrt(p q)), the distance, from 0 to 1 | |
    | "hellinger_squared" | 1 - sum sqrt(p q) | |
    | "bhattacharyya" | -log(sum sqrt(p q)) | |
    | "chi_squared" | sum (p-q)^2 / q | |
    | "total_variation" | sum abs(p-q) / 2, from 0 to 1 | |
    | a function f | sum q f(p/q), for a convex f of arrays with f(1) = 0 | at_zero, at_infinity |

    "alpha" is in the convention of Zhu and Rohwer, and of Minka; Amari's alpha is 1 - 2a, with the same values. A
    function's limits are f(0), which counts where p_i = 0, and lim f(t)/t, which counts where q_i = 0: they are found
    by evaluating f far out, unless passed. What rounding has left of each mass beside 1 is taken out, as in `kl_probs`,
    and nearly equal p and q keep their digits; of a function, as far as its own rounding near 1 allows, which may leave
    -1e-16 for 0.

    Args:
        p: Probabilities, shape (..., n), as in `kl_probs`.
        q: The same, broadcast against `p`.
        name: One of the names above, or a convex function with f(1) = 0, made of differentiable operations.
        axis: The axis of events.
        where: True for the events that count, as in `kl_probs`.
        parameters: Numbers by name, as above.

    Returns:
        Shape (...), in the inputs' kind and dtype. `inf` where some p_i > 0 meets q_i = 0 in "jeffreys",
        "chi_squared" and orders or alpha >= 1; where p_i = 0 meets q_i > 0 in "jeffreys" and alpha <= 0; and for
        disjoint p and q in "renyi" and "bhattacharyya". The gradient is 0 where it would be infinite, where
        p = q, and, of a function, by p at p_i = 0 and by q at q_i = 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or a sum is not 1.
        ShapeError: The shapes do not broadcast, or there are no events.
        SupportError: The name is unknown, a parameter is out of its range, or the function is not convex with f(1) = 0.
        TypeError: A parameter is missing or is not this divergence's.

    Source: [zhu1995], [minka2005], [vanerven2014]; any f: [csiszar1967].

    Example:
        >>> round(float(divergence([0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.3, 0.1], "total_variation")), 12)
        0.1
        >>> float(divergence([0.5, 0.5, 0.0], [0.25, 0.25, 0.5], "renyi", order=2))
        0.6931471805599453
    """
    if not callable(name) and (not isinstance(name, str) or name not in _NAMED):
        near = get_close_matches(str(name), _NAMED, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"KL is kl_probs; the names are {', '.join(_NAMED)}"
        raise SupportError(f"expected the name of a divergence or a function, got {name!r}; {hint}")
    builder, skipped = (f_divergence, 4) if callable(name) else (_NAMED[name], 0)
    try:
        signature(builder).bind(*[None] * skipped, **parameters)
    except TypeError as error:
        wanted = ", ".join(f"{key}=" for key in list(signature(builder).parameters)[skipped:]) or "no parameters"
        given = ", ".join(f"{key}={value!r}" for key, value in parameters.items()) or "none"
        raise TypeError(f"the divergence {name!r} takes {wanted}; got {given}") from error
    for key, value in parameters.items():
        is_number = isinstance(value, Real) or getattr(value, "ndim", 1) == 0
        if not (is_number or (value is None and callable(name))):
            raise TypeError(f"expected {key} to be a number, got {value!r}; call divergence for each of several")
    xp, [probs_p, probs_q], dtype = events_last(p, q, axis=axis, where=where, nothing=0.0)
    require_probs(xp, "p", p, probs_p, dtype, axis)
    require_probs(xp, "q", q, probs_q, dtype, axis)
    if callable(name):
        return cast(xp, f_divergence(xp, probs_p, probs_q, name, **parameters), dtype)
    numbers = tuple((key, float(value)) for key, value in parameters.items())
    return cast(xp, _differentiable(name, numbers)(xp, probs_p, probs_q), dtype)


def _js(weight: float = 0.5) -> Triple:
    if not 0 < weight < 1:
        raise SupportError(f"expected a weight between 0 and 1, got {weight!r}; it is the share of p in the mixture")
    rest = 1 - weight

    def value(xp: Any, p: Array, q: Array, d: Array) -> Array:
        mean = weight * p + rest * q
        from_p = kl_events(xp, p, mean, _log_mix(xp, d, weight))
        return xp.sum(weight * from_p + rest * kl_events(xp, q, mean, _log_mix(xp, -d, rest)), axis=-1)

    def by_p(xp: Any, _value: Array, _p: Array, _q: Array, d: Array) -> Array:
        return -weight * _log_mix(xp, d, weight)

    def by_q(xp: Any, _value: Array, _p: Array, _q: Array, d: Array) -> Array:
        return -rest * _log_mix(xp, -d, rest)

    return value, by_p, by_q


def _log_mix(xp: Any, d: Array, weight: float) -> Array:
    """log(w + (1-w) e^d)."""
    large = d > 50
    x = xp.where(large, 0.0, d)
    change = (1 - weight) * xp.expm1(x)
    near = change > -0.5
    mixed = xp.where(near, xp.log1p(xp.where(near, change, 0.0)), xp.log(weight + (1 - weight) * xp.exp(x)))
    return xp.where(large, d + xp.log((1 - weight) + weight * xp.exp(-xp.where(large, d, 0.0))), mixed)


def _jeffreys() -> Triple:
    def value(xp: Any, p: Array, q: Array, d: Array) -> Array:
        return xp.sum(difference(xp, p, q, d) * d, axis=-1)

    def by_p(xp: Any, _value: Array, _p: Array, _q: Array, d: Array) -> Array:
        return -d - expm1_over(xp, d, 1.0)

    def by_q(xp: Any, _value: Array, _p: Array, _q: Array, d: Array) -> Array:
        return d + expm1_over(xp, d, -1.0)

    return value, by_p, by_q


def _total_variation() -> Triple:
    def value(xp: Any, p: Array, q: Array, d: Array) -> Array:
        return xp.sum(abs(difference(xp, p, q, d)), axis=-1) / 2

    return (
        value,
        lambda xp, _value, _p, _q, d: -xp.sign(d) / 2,
        lambda xp, _value, _p, _q, d: xp.sign(d) / 2,
    )


_NAMED: dict[str, Callable[..., Triple]] = {
    "alpha": alpha_family,
    "bhattacharyya": bhattacharyya,
    "chi_squared": chi_squared,
    "hellinger": hellinger,
    "hellinger_squared": hellinger_squared,
    "jeffreys": _jeffreys,
    "js": _js,
    "renyi": renyi,
    "total_variation": _total_variation,
    "tsallis": tsallis,
}


@lru_cache(maxsize=128)
def _differentiable(name: str, parameters: tuple[tuple[str, float], ...]) -> Callable[..., Array]:
    value, by_p, by_q = _NAMED[name](**dict(parameters))

    def from_probs(xp: Any, p: Array, q: Array) -> Array:
        return value(xp, *prob_events(xp, p, q))

    def p_gradient(xp: Any, gradient: Array, output: Array, p: Array, q: Array) -> Array:
        events = prob_events(xp, p, q)
        slope = _of_unnormalised(xp, by_p(xp, output[..., None], *events), events[0], p, p, q)
        return gradient[..., None] * slope

    def q_gradient(xp: Any, gradient: Array, output: Array, p: Array, q: Array) -> Array:
        events = prob_events(xp, p, q)
        slope = _of_unnormalised(xp, by_q(xp, output[..., None], *events), events[1], q, p, q)
        return gradient[..., None] * slope

    return with_gradient(*map(map_row_blocks, (from_probs, p_gradient, q_gradient)))


def _of_unnormalised(xp: Any, slope: Array, normal: Array, given: Array, p: Array, q: Array) -> Array:
    """The derivative by what was given, from that by the same divided by its sum."""
    kept = (is_positive(xp, p) | is_positive(xp, q)) & (abs(slope) < inf)
    slope = xp.where(kept, slope, 0.0)
    mean = xp.sum(normal * slope, axis=-1, keepdims=True)
    return xp.where(kept, slope - mean, 0.0) / xp.sum(given, axis=-1, keepdims=True)
