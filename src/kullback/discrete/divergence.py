"""Divergences other than KL(p || q) between discrete distributions, from probabilities."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from inspect import signature
from math import inf
from typing import Any

from kullback.discrete.f_divergence import f_divergence
from kullback.discrete.log_ratios import kl_per_event, normalize_probs, prob_difference
from kullback.discrete.power_divergences import (
    ValueAndGradients,
    alpha_family,
    bhattacharyya,
    chi_squared,
    hellinger,
    hellinger_squared,
    renyi,
    scaled_expm1,
    tsallis,
)
from kullback.discrete.validation import events_last, require_probs
from kullback.errors import ArrayTypeError, ParameterNameError, SupportError
from kullback.numerics.arguments import is_number
from kullback.numerics.array_types import ArrayInput, ArrayT, Column, Float, PerEvent, PerRow
from kullback.numerics.arrays import Array, ArrayLike, cast, is_positive, map_row_blocks, sign, with_gradient

__all__ = ["divergence"]


def divergence(
    p: ArrayInput[ArrayT],
    q: ArrayInput[ArrayT],
    name: str | Callable[[ArrayT], ArrayT],
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    **parameters: float,
) -> Float[ArrayT, "..."]:
    """A divergence D(p || q) other than KL(p || q), from probabilities.

    | name | D(p || q) | parameters |
    | --- | --- | --- |
    | "js" | w KL(p || m) + (1-w) KL(q || m), m = w p + (1-w) q (SciPy returns its square root) | weight w = 1/2 |
    | "jeffreys" | KL(p || q) + KL(q || p) | |
    | "renyi" | log(sum p^a q^(1-a)) / (a-1); a = 1: KL(p || q), 0: -log q(p > 0), inf: max log p/q | order a >= 0 |
    | "tsallis" | (sum p^a q^(1-a) - 1) / (a-1); a = 1: KL(p || q) | order a >= 0 |
    | "alpha" | (1 - sum p^a q^(1-a)) / (a (1-a)); a = 1: KL(p || q), 0: KL(q || p) | alpha a |
    | "hellinger" | sqrt(1 - sum sqrt(p q)), between 0 and 1 | |
    | "hellinger_squared" | 1 - sum sqrt(p q) | |
    | "bhattacharyya" | -log(sum sqrt(p q)) | |
    | "chi_squared" | sum (p-q)^2 / q | |
    | "total_variation" | sum abs(p-q) / 2, between 0 and 1 | |
    | a function f | sum q f(p/q), for a convex f of arrays with f(1) = 0 | at_zero, at_infinity |

    "alpha" follows Zhu and Rohwer, and Minka; Amari's alpha is 1 - 2a and gives the same values. For a function f,
    at_zero is f(0), the coefficient of q_i where p_i = 0, and at_infinity is the limit of f(t)/t, the coefficient of
    p_i where q_i = 0; both are estimated from values of f unless they are passed. If rounding leaves the sums P and Q
    slightly different from 1, the result is D(p/P || q/Q). The result is accurate for nearly equal p and q; for a
    function, the accuracy is limited by the rounding of f near 1, which may give -1e-16 instead of 0.

    Args:
        p: Probabilities, shape (..., n); >= 0, with sum 1 along `axis`. The tolerance of the sum is 1e-9 in float64,
            max(1e-5, 2^-20 sqrt(n)) in float32, 2^-10 + 2^-25 n in float16 and 2^-7 in bfloat16, which are computed in
            float32.
        q: Probabilities with the same constraints, broadcast against `p`.
        name: A name of the table, or a convex function f with f(1) = 0 that consists of differentiable operations.
        axis: The axis that indexes the events.
        where: Boolean mask, True for the events that are included, broadcast against `p`.
        parameters: The parameters of the divergence, numbers passed by the names of the table.

    Returns:
        The divergence, shape (...), with the array type and dtype of the inputs; in nats for "js", "jeffreys", "renyi"
        and "bhattacharyya". It is `inf` where q_i = 0 for some p_i > 0, for "jeffreys", "chi_squared" and an order or
        alpha >= 1; where p_i = 0 for some q_i > 0, for "jeffreys" and alpha <= 0; and for disjoint supports, for
        "renyi" and "bhattacharyya". The gradient is 0 where it would be infinite, and where p = q. For a function, the
        component for p_i is 0 at p_i = 0, and the component for q_i is 0 at q_i = 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or the probabilities do not sum to 1.
        ShapeError: The shapes do not broadcast, or `axis` has no events.
        SupportError: The name is unknown, a parameter is out of its range, or the function raises an error or is not
            convex with f(1) = 0.
        ParameterNameError: A parameter is missing or unknown.
        ArrayTypeError: A parameter is not a number, or the function returns complex numbers.

    References:
        Huaiyu Zhu and Richard Rohwer (1995), "Information geometric measurements of generalisation" [zhu1995].
        Thomas Minka (2005), "Divergence measures and message passing" [minka2005].
        Tim van Erven and Peter Harremoës (2014), "Rényi divergence and Kullback-Leibler divergence" [vanerven2014].
        Imre Csiszár (1967), "Information-type measures of difference of probability distributions and indirect
        observations" [csiszar1967], for a function f.

    Example:
        >>> round(float(divergence([0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.3, 0.1], "total_variation")), 12)
        0.1
        >>> float(divergence([0.5, 0.5, 0.0], [0.25, 0.25, 0.5], "renyi", order=2))
        0.6931471805599453
    """
    if not callable(name) and (not isinstance(name, str) or name not in _NAMED):
        near = get_close_matches(str(name), _NAMED, n=1, cutoff=0.4)
        known = f"for KL(p || q) call kl_probs; the names are {', '.join(_NAMED)}"
        hint = f"did you mean {near[0]!r}?" if near else known
        raise SupportError(f"expected the name of a divergence or a function, got {name!r}; {hint}")
    builder, skipped = (f_divergence, 4) if callable(name) else (_NAMED[name], 0)
    try:
        signature(builder).bind(*[None] * skipped, **parameters)
    except TypeError as error:
        accepted = ", ".join(f"{key}=" for key in list(signature(builder).parameters)[skipped:]) or "no parameters"
        passed = ", ".join(f"{key}={value!r}" for key, value in parameters.items()) or "none"
        raise ParameterNameError(f"the divergence {name!r} takes {accepted}; got {passed}") from error
    for key, value in parameters.items():
        if not (is_number(value) or (value is None and callable(name))):
            raise ArrayTypeError(f"expected {key} to be a number, got {value!r}; call divergence once for each value")
    xp, [probs_p, probs_q], dtype = events_last(p, q, axis=axis, where=where, fill=0.0)
    require_probs(xp, "p", p, probs_p, dtype, axis)
    require_probs(xp, "q", q, probs_q, dtype, axis)
    if callable(name):
        return cast(xp, f_divergence(xp, probs_p, probs_q, name, **parameters), dtype)
    numbers = tuple((key, float(value)) for key, value in parameters.items())
    return cast(xp, _differentiable(name, numbers)(xp, probs_p, probs_q), dtype)


def _js(weight: float = 0.5) -> ValueAndGradients:
    """w KL(p || m) + (1-w) KL(q || m) with m = w p + (1-w) q."""
    if not 0 < weight < 1:
        raise SupportError(f"expected a weight between 0 and 1, got {weight!r}; it is the weight of p in the mixture")
    complement = 1 - weight

    def value(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerRow:
        mean = weight * p + complement * q
        from_p = kl_per_event(xp, p, mean, _log_mix(xp, d, weight))
        return xp.sum(weight * from_p + complement * kl_per_event(xp, q, mean, _log_mix(xp, -d, complement)), axis=-1)

    def by_p(xp: Any, _value: Column, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
        return -weight * _log_mix(xp, d, weight)

    def by_q(xp: Any, _value: Column, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
        return -complement * _log_mix(xp, -d, complement)

    return value, by_p, by_q


def _log_mix(xp: Any, d: PerEvent, weight: float) -> PerEvent:
    """log(w + (1-w) e^d), accurate near d = 0 and without overflow."""
    large = d > 50
    x = xp.where(large, 0.0, d)
    change = (1 - weight) * xp.expm1(x)
    near = change > -0.5
    mixed = xp.where(near, xp.log1p(xp.where(near, change, 0.0)), xp.log(weight + (1 - weight) * xp.exp(x)))
    return xp.where(large, d + xp.log((1 - weight) + weight * xp.exp(-xp.where(large, d, 0.0))), mixed)


def _jeffreys() -> ValueAndGradients:
    """KL(p || q) + KL(q || p) = sum (q - p) (log q - log p)."""

    def value(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerRow:
        return xp.sum(prob_difference(xp, p, q, d) * d, axis=-1)

    def by_p(xp: Any, _value: Column, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
        return -d - scaled_expm1(xp, d, 1.0)

    def by_q(xp: Any, _value: Column, _p: PerEvent, _q: PerEvent, d: PerEvent) -> PerEvent:
        return d + scaled_expm1(xp, d, -1.0)

    return value, by_p, by_q


def _total_variation() -> ValueAndGradients:
    """sum |p - q| / 2."""

    def value(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerRow:
        return xp.sum(abs(prob_difference(xp, p, q, d)), axis=-1) / 2

    return (
        value,
        lambda xp, _value, _p, _q, d: -sign(xp, d) / 2,
        lambda xp, _value, _p, _q, d: sign(xp, d) / 2,
    )


_NAMED: dict[str, Callable[..., ValueAndGradients]] = {
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
    """The divergence as a function of probabilities, with explicit gradients."""
    value, by_p, by_q = _NAMED[name](**dict(parameters))

    def from_probs(xp: Any, p: PerEvent, q: PerEvent) -> PerRow:
        return value(xp, *normalize_probs(xp, p, q))

    def p_gradient(xp: Any, gradient: PerRow, output: PerRow, p: PerEvent, q: PerEvent) -> PerEvent:
        events = normalize_probs(xp, p, q)
        derivative = by_p(xp, output[..., None], *events)
        return gradient[..., None] * _gradient_of_normalized(xp, derivative, events[0], p, p, q)

    def q_gradient(xp: Any, gradient: PerRow, output: PerRow, p: PerEvent, q: PerEvent) -> PerEvent:
        events = normalize_probs(xp, p, q)
        derivative = by_q(xp, output[..., None], *events)
        return gradient[..., None] * _gradient_of_normalized(xp, derivative, events[1], q, p, q)

    return with_gradient(*map(map_row_blocks, (from_probs, p_gradient, q_gradient)))


def _gradient_of_normalized(
    xp: Any, derivative: PerEvent, normalized: PerEvent, argument: PerEvent, p: PerEvent, q: PerEvent
) -> PerEvent:
    """The gradient with respect to an argument, from the derivative with respect to the argument divided by its sum.

    Infinite derivatives are replaced by 0.
    """
    kept = (is_positive(xp, p) | is_positive(xp, q)) & (abs(derivative) < inf)
    derivative = xp.where(kept, derivative, 0.0)
    mean = xp.sum(normalized * derivative, axis=-1, keepdims=True)
    return xp.where(kept, derivative - mean, 0.0) / xp.sum(argument, axis=-1, keepdims=True)
