"""What the exact functions ask of the arrays they are given: shapes that fit, and numbers that are distributions.

Under tracing (jit, vmap, compile) there are no numbers to look at, and only the shapes are checked.
"""

from math import inf
from typing import Any

from kullback.errors import NotNormalizedError, ShapeError, SupportError
from kullback.numerics.arrays import Array, ArrayLike, as_floats, holds, untracked

__all__ = ["MASS_TOLERANCES", "events_last", "require_log_probs", "require_logits", "require_probs"]

# How far a sum may lie from 1: room for rounding in the numbers, and in the logs of small ones.
MASS_TOLERANCES = {"float64": 1e-9, "float32": 1e-5, "float16": 2.0**-5, "bfloat16": 2.0**-5}


def events_last(*given: ArrayLike, axis: int, where: ArrayLike | None, nothing: float) -> tuple[Any, list[Array], Any]:
    """The namespace, the arrays broadcast with events last, and the dtype to return.

    Events that do not count become `nothing` in each array.
    """
    if not hasattr(axis, "__index__"):
        raise TypeError(f"expected one axis of events, a whole number, got {axis!r}; reshape several into one")
    xp, arrays, dtype = as_floats(*given)
    shapes = [tuple(array.shape) for array in arrays]
    try:
        if where is None:
            arrays = list(xp.broadcast_arrays(*arrays))
        else:
            kept: Array = xp.asarray(where, dtype=xp.bool)
            shapes.append(tuple(kept.shape))
            *arrays, kept = xp.broadcast_arrays(*arrays, kept)
            arrays = [xp.where(kept, array, nothing) for array in arrays]
    except (ValueError, RuntimeError) as error:
        raise ShapeError(f"expected shapes that broadcast, got {' and '.join(map(str, shapes))}") from error
    shape = tuple(arrays[0].shape)
    if not -len(shape) <= axis < len(shape) or shape[axis] == 0:
        raise ShapeError(f"expected one event or more along axis {axis}, got shape {shape}; pass axis=")
    if axis not in (-1, len(shape) - 1):
        arrays = [xp.moveaxis(array, axis, -1) for array in arrays]
    return xp, arrays, dtype


def require_probs(xp: Any, name: str, given: ArrayLike, probs: Array, dtype: Any, axis: int) -> None:
    probs, remedy = untracked(probs), "divide by the sum, or pass logits to kl_logits"
    if offender := _offender(xp, ~(probs >= 0), probs, name, axis):
        raise NotNormalizedError(f"expected probabilities, >= 0, but {offender}; {remedy}")
    _require_mass(xp, probs, name, given, dtype, axis, remedy)


def require_log_probs(xp: Any, name: str, given: ArrayLike, logs: Array, dtype: Any, axis: int) -> None:
    logs, remedy = untracked(logs), "kl_probs takes probabilities, kl_logits anything unnormalised"
    # Only what is far above 0, for rounding: the sum says the rest, and exp cannot overflow.
    if offender := _offender(xp, ~(logs < 1), logs, name, axis):
        raise NotNormalizedError(f"expected log-probabilities, <= 0, but {offender}; {remedy}")
    _require_mass(xp, xp.exp(logs), f"exp({name})", given, dtype, axis, remedy)


def require_logits(xp: Any, name: str, logits: Array, axis: int) -> None:
    logits = untracked(logits)
    if offender := _offender(xp, ~(logits < inf), logits, name, axis):
        raise SupportError(f"expected logits below +inf, but {offender}; look for what made it")
    empty = xp.all(logits == -inf, axis=-1)
    if holds(xp.any(empty)):
        raise SupportError(
            f"expected a possible event in each row of {name}, but in {_row(xp, empty)} every logit is -inf; "
            "leave out rows that have no event"
        )


def _require_mass(xp: Any, probs: Array, name: str, given: ArrayLike, dtype: Any, axis: int, remedy: str) -> None:
    sums = xp.sum(probs, axis=-1)
    own, common = (str(kind).split(".")[-1] for kind in (getattr(given, "dtype", dtype), dtype))
    tolerance = MASS_TOLERANCES.get(own) or MASS_TOLERANCES.get(common, 1e-9)
    bad = ~(abs(sums - 1) <= tolerance)
    if holds(xp.any(bad)):
        raise NotNormalizedError(
            f"expected {name} to sum to 1 along axis {axis % probs.ndim} within {tolerance:.2g}, but "
            f"{_row(xp, bad)} sums to {float(sums[_first(xp, bad)])!r}; {remedy}"
        )


def _offender(xp: Any, bad: Array, given: Array, name: str, axis: int) -> str:
    """The first bad entry and its value in words, or nothing."""
    if not holds(xp.any(bad)):
        return ""
    *lead, last = _first(xp, bad)
    lead.insert(axis % bad.ndim, last)
    value = float(given[_first(xp, bad)])
    return f"{name}[{', '.join(map(str, lead))}] is {value!r}"


def _first(xp: Any, bad: Array) -> tuple[int, ...]:
    if bad.ndim == 0:
        return ()
    return tuple(int(axis_indices[0]) for axis_indices in xp.nonzero(bad))


def _row(xp: Any, bad: Array) -> str:
    return f"row {_first(xp, bad)}" if bad.ndim else "it"
