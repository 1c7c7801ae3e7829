"""Validation of the arguments of the exact functions: shapes, axes, probabilities, log-probabilities and logits.

Under tracing (jit, vmap, compile) values are not available, and only the shapes are checked.
"""

import operator
from collections.abc import Callable, Sequence
from math import inf, log, sqrt
from typing import Any

import array_api_compat
import numpy as np

from kullback.errors import ArrayTypeError, NotNormalizedError, ShapeError, SupportError
from kullback.numerics.arguments import boolean_mask, is_index
from kullback.numerics.arrays import Array, ArrayLike, as_floats, holds, untracked
from kullback.numerics.labels import is_labelled, plain_arrays

__all__ = [
    "MASS_TOLERANCES",
    "events_last",
    "log_mass_tolerance",
    "mass_tolerance",
    "require_equal_events",
    "require_log_probs",
    "require_logits",
    "require_probs",
]

# The relative error of rounding to nearest.
_UNIT_ROUNDOFFS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}

# The largest allowed deviation of a sum of a few probabilities from 1, by dtype. In float16 and bfloat16 it allows for
# the rounding of each probability and of the sum that it was divided by.
MASS_TOLERANCES = {"float64": 1e-9, "float32": 1e-5, **{name: 2 * unit for name, unit in _UNIT_ROUNDOFFS.items()}}

_NAN_REMEDY = "check the computation that produced it"


def mass_tolerance(dtype: Any, events: int) -> float:
    """The largest allowed deviation of a sum of probabilities from 1, for a dtype and a number of events.

    A softmax in float32 divides by a sum of `events` terms, which was rounded at each addition: the tolerance is
    8 eps sqrt(events) where that exceeds 1e-5. In float16 a probability below 2^-14 is rounded to a multiple of 2^-24.
    In float64 and bfloat16 the tolerance does not depend on the number of events.
    """
    name = _dtype_name(dtype)
    tolerance = MASS_TOLERANCES.get(name, 1e-9)
    if name == "float16":
        return tolerance + 2.0**-25 * events
    return max(tolerance, 2.0**-20 * sqrt(events)) if name == "float32" else tolerance


def _dtype_name(dtype: Any) -> str:
    """The name of a dtype of any library, such as float32, whatever its byte order is."""
    return str(getattr(dtype, "name", dtype)).split(".")[-1]


def log_mass_tolerance(dtype: Any, events: int) -> float:
    """The largest allowed deviation of a sum of exp(log-probabilities) from 1, for a dtype and a number of events.

    Rounding log p to float16 or bfloat16 changes p by its unit roundoff times |log p|, and the mean of |log p| is the
    entropy, at most log(events).
    """
    tolerance = mass_tolerance(dtype, events)
    unit = _UNIT_ROUNDOFFS.get(str(dtype).split(".")[-1])
    return tolerance if unit is None else 2 * unit + unit * log(max(events, 1))


def events_last(*values: ArrayLike, axis: int, where: ArrayLike | None, fill: float) -> tuple[Any, list[Array], Any]:
    """The array namespace, the broadcast arrays with the events along the last axis, and the dtype to return.

    Entries of the events that `where` excludes are replaced by `fill`.

    Raises:
        ArrayTypeError: A value is not an array of real numbers, or `axis` is not an integer.
        LabelError: Two values have different sets of labels.
        ShapeError: The shapes do not broadcast, or have different numbers of events, or `axis` has no events.
    """
    if not is_index(axis):
        raise ArrayTypeError(f"expected one axis of events, an integer, got {axis!r}; reshape several axes into one")
    axis = operator.index(axis)
    if where is not None:
        *given, where = _with_mask(*values, where)
        values = tuple(given)
    xp, arrays, dtype = as_floats(*values)
    shapes = [tuple(array.shape) for array in arrays]
    require_equal_events(shapes, axis)
    try:
        if where is None:
            arrays = list(xp.broadcast_arrays(*arrays))
        else:
            where = where.copy() if isinstance(where, np.ndarray) and not where.flags.writeable else where
            kept: Array = boolean_mask(xp.asarray(where, device=array_api_compat.device(arrays[0])))
            shapes.append(tuple(kept.shape))
            *arrays, kept = xp.broadcast_arrays(*arrays, kept)
            arrays = [xp.where(kept, array, fill) for array in arrays]
    except (ValueError, RuntimeError) as error:
        raise ShapeError(f"expected shapes that broadcast, got {' and '.join(map(str, shapes))}") from error
    shape = tuple(arrays[0].shape)
    if not -len(shape) <= axis < len(shape) or shape[axis] == 0:
        raise ShapeError(f"expected one event or more along axis {axis}, got shape {shape}; pass axis=")
    if axis not in (-1, len(shape) - 1):
        arrays = [xp.moveaxis(array, axis, -1) for array in arrays]
    return xp, arrays, dtype


def _with_mask(*values: ArrayLike) -> list[Any]:
    """Values and a mask with their labels matched; values without labels are returned unchanged."""
    *plain, mask = plain_arrays(*values) if any(map(is_labelled, values)) else (*values[:-1], *plain_arrays(values[-1]))
    return [*plain, mask]


def require_equal_events(shapes: Sequence[tuple[int, ...]], axis: int) -> None:
    """Raise ShapeError unless the shapes have one length along the axis of events of the broadcast shape.

    Other axes broadcast. An axis of events of length 1 is a distribution with one event, and is not repeated.
    """
    ndim = max(map(len, shapes))
    last = axis - ndim if axis >= 0 else axis
    if not -ndim <= last < 0:
        raise ShapeError(
            f"expected axis {axis} to be an axis of the shapes {' and '.join(map(str, shapes))}; pass axis="
        )
    # Symbolic lengths inside torch.compile are not hashable.
    first, *others = [shape[last] if len(shape) >= -last else -1 for shape in shapes]
    if any(length != first for length in others):
        raise ShapeError(
            f"expected equal numbers of events along axis {axis}, got shapes {' and '.join(map(str, shapes))}; the "
            "axis of events is not broadcast"
        )


def require_probs(
    xp: Any,
    name: str,
    original: ArrayLike,
    probs: Array,
    dtype: Any,
    axis: int,
    *,
    of_logits: str = "pass the softmax of logits",
) -> None:
    """Raise NotNormalizedError unless the entries are >= 0 and sum to 1 along the last axis.

    Args:
        xp: The array namespace.
        name: The name of the argument, for messages.
        original: The argument as the user passed it; its dtype determines the tolerance.
        probs: The converted argument, with the events along the last axis.
        dtype: The common dtype of the arguments.
        axis: The axis of events in the original argument, for messages.
        of_logits: What to do with logits, for messages.
    """
    probs = untracked(probs)
    if offender := _offender(xp, ~(probs >= 0), probs, name, axis):
        remedy = (
            _NAN_REMEDY if offender.endswith("nan") else f"if the values are log-probabilities or logits, {of_logits}"
        )
        raise NotNormalizedError(f"expected probabilities, >= 0, but {offender}; {remedy}")
    if offender := _offender(xp, xp.isinf(probs), probs, name, axis):
        raise NotNormalizedError(f"expected finite probabilities, but {offender}; check the computation of it")
    _require_mass(xp, probs, name, original, dtype, axis, f"divide by the sum, or {of_logits}")


def require_log_probs(xp: Any, name: str, original: ArrayLike, logs: Array, dtype: Any, axis: int) -> None:
    """Raise NotNormalizedError unless exp(logs) sums to 1 along the last axis; arguments as in `require_probs`."""
    logs, remedy = untracked(logs), "kl_probs takes probabilities, kl_logits takes unnormalised logits"
    # Rounding may leave an entry slightly above 0. The limit 1 prevents overflow of exp; the sum detects the rest.
    if offender := _offender(xp, ~(logs < 1), logs, name, axis):
        remedy = _NAN_REMEDY if offender.endswith("nan") else remedy
        raise NotNormalizedError(f"expected log-probabilities, <= 0, but {offender}; {remedy}")
    _require_mass(xp, xp.exp(logs), f"exp({name})", original, dtype, axis, remedy, log_mass_tolerance)


def require_logits(xp: Any, name: str, logits: Array, axis: int) -> None:
    """Raise SupportError where a logit is nan or +inf, or every logit of a row is -inf."""
    logits = untracked(logits)
    if offender := _offender(xp, ~(logits < inf), logits, name, axis):
        raise SupportError(f"expected logits below +inf, but {offender}; {_NAN_REMEDY}")
    empty = xp.all(logits == -inf, axis=-1)
    if holds(xp.any(empty)):
        raise SupportError(
            f"expected a finite logit in each row of {name}, but in {_row(xp, empty)} every logit is -inf; "
            "remove rows without a possible event"
        )


def _require_mass(
    xp: Any,
    probs: Array,
    name: str,
    original: ArrayLike,
    dtype: Any,
    axis: int,
    remedy: str,
    tolerance_of: Callable[[Any, int], float] = mass_tolerance,
) -> None:
    """Raise NotNormalizedError unless every row sums to 1 within the tolerance of the dtype."""
    with np.errstate(over="ignore"):  # a sum of inf is refused below
        sums = xp.sum(probs, axis=-1)
    own = getattr(original, "dtype", dtype)
    own = own if _dtype_name(own) in MASS_TOLERANCES else dtype
    tolerance = tolerance_of(own, probs.shape[-1])
    bad = ~(abs(sums - 1) <= tolerance)
    if holds(xp.any(bad)):
        raise NotNormalizedError(
            f"expected {name} to sum to 1 along axis {axis % probs.ndim} within {tolerance:.2g}, but "
            f"{_row(xp, bad)} sums to {float(sums[_first(xp, bad)])!r}; {remedy}"
        )


def _offender(xp: Any, bad: Array, values: Array, name: str, axis: int) -> str:
    """A clause such as "p[1] is -0.5" for the first entry where `bad` is True; "" if there is none."""
    if not holds(xp.any(bad)):
        return ""
    *lead, last = _first(xp, bad)
    lead.insert(axis % bad.ndim, last)
    value = float(values[_first(xp, bad)])
    return f"{name}[{', '.join(map(str, lead))}] is {value!r}"


def _first(xp: Any, bad: Array) -> tuple[int, ...]:
    """The index of the first True entry."""
    if bad.ndim == 0:
        return ()
    return tuple(int(axis_indices[0]) for axis_indices in xp.nonzero(bad))


def _row(xp: Any, bad: Array) -> str:
    """The first row where `bad` is True, for messages."""
    return f"row {_first(xp, bad)}" if bad.ndim else "it"
