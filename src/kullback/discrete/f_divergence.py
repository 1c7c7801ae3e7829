"""The f-divergence for a convex function that the user passes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import inf, isfinite, isnan, log2
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from kullback.errors import ArrayTypeError, ShapeError, SupportError
from kullback.numerics.array_types import Bool, PerEvent, PerRow
from kullback.numerics.arrays import Array, holds, is_positive, untracked

__all__ = ["f_divergence"]

Generator: TypeAlias = Callable[[Array], Array]


def f_divergence(
    xp: Any, p: PerEvent, q: PerEvent, f: Generator, *, at_zero: float | None = None, at_infinity: float | None = None
) -> PerRow:
    """sum_i q_i f(p_i / q_i) for normalised p and q, shape (...).

    Args:
        xp: The array namespace.
        p: Probabilities with the events along the last axis.
        q: Probabilities with the events along the last axis.
        f: A convex function of arrays with f(1) = 0.
        at_zero: The limit of f(t) as t -> 0, which is the coefficient of q_i where p_i = 0; estimated if None.
        at_infinity: The limit of f(t)/t as t -> infinity, which is the coefficient of p_i where q_i = 0; estimated if
        None.
    """
    limits = xp.finfo(p.dtype)
    eps, least = float(limits.eps), float(limits.smallest_normal)

    def values(points: list[float]) -> list[float]:
        with _immediate_evaluation(xp):
            result = untracked(_call(f, xp.asarray(points, dtype=p.dtype, device=array_api_compat.device(p))))
            if tuple(np.shape(result)) != (len(points),):
                raise ShapeError(f"expected f to keep the shape ({len(points)},), got {tuple(np.shape(result))}")
            return [float(result[k]) for k in range(len(points))]

    # Both branches of a `where` are computed, and f may compute 0 * inf at its limits.
    with np.errstate(all="ignore"):
        _require_convex(values, eps)
        if at_zero is None:
            at_zero = values([0.0])[0]
            at_zero = _limit(lambda t: values([t])[0], "at_zero", eps, least) if isnan(at_zero) else at_zero
        if at_infinity is None:
            at_infinity = _limit(lambda t: t * values([1 / t])[0], "at_infinity", eps, least)
        # Subtracting a multiple of t - 1 from f does not change the divergence. The tangent at 1 is subtracted, because
        # its terms would otherwise cancel for p near q.
        step = 2.0 ** round(log2(eps) / 3)
        below, above = values([1 - step, 1 + step])
        slope = (above - below) / (2 * step)
        some_p, some_q = is_positive(xp, p), is_positive(xp, q)
        # f may not be differentiable at 0: the gradient at p_i = 0 and at q_i = 0 is 0.
        p, q = xp.where(some_p, p, 0.0), xp.where(some_q, q, 0.0)
        p, q = p / xp.sum(p, axis=-1, keepdims=True), q / xp.sum(q, axis=-1, keepdims=True)
        both = some_p & some_q
        ratio = xp.where(both, p, 1.0) / xp.where(both, q, 1.0)
        huge = ratio == inf
        if at_infinity == inf and holds(xp.any(huge)):
            raise SupportError(
                "p/q overflows for a q close to 0, where f cannot be evaluated; pass the name of a divergence instead"
            )
        ratio = xp.where(huge, 1.0, ratio)
        inner = q * (_call(f, ratio) - slope * (ratio - 1))
        only_p = _boundary_term(xp, p, (some_p & ~some_q) | huge, at_infinity - slope)
        only_q = _boundary_term(xp, q, some_q & ~some_p, at_zero + slope)
        return xp.sum(xp.where(both & ~huge, inner, only_p + only_q), axis=-1)


def _call(f: Generator, ratios: Array) -> Array:
    """f(ratios); SupportError if f raises an error."""
    try:
        values = f(ratios)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SupportError(
            f"expected {getattr(f, '__name__', repr(f))} to accept an array of ratios of shape {tuple(ratios.shape)}, "
            f"but it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    if "complex" in str(getattr(values, "dtype", type(values))):
        raise ArrayTypeError(f"expected real values of {getattr(f, '__name__', repr(f))}, got complex numbers")
    return values


def _boundary_term(xp: Any, mass: PerEvent, mask: Bool[Array, "*batch n"], rate: float) -> PerEvent:
    """mass * rate where `mask` is True, and 0 elsewhere."""
    if rate == inf:  # 0 * inf would be nan, also in the gradient
        return xp.where(mask, inf, xp.zeros_like(mass))
    return xp.where(mask, mass, 0.0) * rate


def _require_convex(values: Callable[[list[float]], list[float]], eps: float) -> None:
    """Raise SupportError unless f(1) = 0 and the difference quotients of f increase."""
    at_one = values([1.0])[0]
    if not abs(at_one) <= 16 * eps:
        raise SupportError(f"expected f(1) = 0, got {at_one!r}; subtract it from f")
    points = [2.0**k for k in range(-6, 7)]
    heights = values(points)
    slopes = [(heights[k + 1] - heights[k]) / (points[k + 1] - points[k]) for k in range(len(points) - 1)]
    slack = eps**0.5 * max(1.0, *map(abs, slopes))
    for k in range(1, len(slopes)):
        if not slopes[k] >= slopes[k - 1] - slack:
            raise SupportError(
                f"expected a convex f of ratios, but around t = {points[k]:g} its slope decreases "
                f"from {slopes[k - 1]:.6g} to {slopes[k]:.6g}; if f is concave, negate it"
            )


def _limit(g: Callable[[float], float], name: str, eps: float, least: float) -> float:
    """The limit of g(t) as t -> 0, for a function g that converges or diverges to inf."""
    third, second, first = (g(2.0 ** round(log2(least) * part)) for part in (0.5, 0.25, 0.125))
    if third == inf or (second < third and third - second >= 0.75 * (second - first) > 0):
        return inf
    if isfinite(third) and abs(third - second) <= eps**0.5 * max(1.0, abs(third)):
        return third
    what = "f(t) as t -> 0" if name == "at_zero" else "f(t)/t as t -> infinity"
    raise SupportError(
        f"expected {what} to converge, got the values {first:.6g}, {second:.6g}, {third:.6g}; pass {name}="
    )


def _immediate_evaluation(xp: Any) -> AbstractContextManager[Any]:
    """A context in which JAX evaluates functions of constants immediately, also while tracing."""
    if not array_api_compat.is_jax_namespace(xp):
        return nullcontext()
    import jax

    return jax.ensure_compile_time_eval()
