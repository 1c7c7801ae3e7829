"""Which function gives the KL of which two classes, and how it is called."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import array_api_compat
import numpy as np

from kullback.closed_forms.supports import is_contained, lies_on_the_line
from kullback.errors import NoClosedFormError, ShapeError
from kullback.families import Distribution, NormalMixture
from kullback.families.base import first_offender, is_traced
from kullback.numerics.arrays import Array, as_floats, cast, untracked, with_gradient

__all__ = ["FORMS", "Form", "closed_form", "in_arrays", "where_equal"]

Form = Callable[[Any, Any], Array]
FORMS: dict[tuple[type, type], Form] = {}


def closed_form(*pairs: tuple[type, type]) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Register `function(xp, p, q)`, whose records hold arrays of one dtype, for these pairs of classes.

    It gives the KL wherever q's support holds p's; elsewhere the KL is `inf`, whatever it says.
    """

    def register(function: Callable[..., Array]) -> Callable[..., Array]:
        for pair in pairs:
            if pair in FORMS:
                raise ValueError(f"{pair[0].__name__} || {pair[1].__name__} is registered twice")
            FORMS[pair] = lambda p, q: in_arrays(function, p, q)
        return function

    return register


def in_arrays(function: Callable[..., Array], p: Distribution, q: Distribution) -> Array:
    """`function(xp, p, q)` with the parameters as arrays to compute in, and the result in the dtype to return."""
    given = [(record, field.name) for record in (p, q) for field in fields(record)]  # pyright: ignore[reportArgumentType]
    given = [(record, name) for record, name in given if getattr(record, name) is not None]
    values = [getattr(record, name) for record, name in given]
    try:
        xp, arrays, dtype = as_floats(*values)
    except TypeError as error:
        arrays = [value for value in values if array_api_compat.is_array_api_obj(value)]
        libraries = {type(array).__module__.partition(".")[0].removesuffix("lib") for array in arrays}
        if len(libraries) < 2:
            raise
        raise TypeError(
            f"expected the parameters of {type(p).__name__} and {type(q).__name__} to be arrays of one library, got "
            f"arrays of {' and '.join(sorted(libraries))}; convert one of them"
        ) from error
    on_the_line = lies_on_the_line(p) and lies_on_the_line(q)
    if on_the_line:
        shapes = [tuple(array.shape) for array in arrays]
        # A mixture's last axis is its components, of which two may have unlike counts.
        mixed = [isinstance(record, NormalMixture) for record, _ in given]
        _require_broadcasting(p, q, [s[:-1] if one else s for s, one in zip(shapes, mixed, strict=True)])
    bare = {id(record): object.__new__(type(record)) for record in (p, q)}
    for record in (p, q):
        for field in fields(record):  # pyright: ignore[reportArgumentType]
            object.__setattr__(bare[id(record)], field.name, None)
    for (record, name), array in zip(given, arrays, strict=True):
        object.__setattr__(bare[id(record)], name, array)
    p, q = bare[id(p)], bare[id(q)]
    # Infinite answers, and the sides of a `where` that are not taken, are expected.
    with np.errstate(all="ignore"):
        result = function(xp, p, q)
        held = is_contained(xp, p, q) if on_the_line else True
        if held is not True:
            result = xp.where(xp.asarray(held, device=array_api_compat.device(result)), result, np.inf)
        return cast(xp, result, dtype)


def where_equal(xp: Any, p: Any, q: Any, name: str, kl: Array) -> Array:
    """`kl`, whose formula holds where p and q share this parameter: nan where traced ones differ, or else an error.

    How KL changes where only one of the two moves the formula does not say: that gradient is nan.
    """
    mine, other = getattr(p, name), getattr(q, name)
    if not (is_traced(mine) or is_traced(other)):
        seen, compared = xp.broadcast_arrays(untracked(mine), untracked(other))
        if offender := first_offender(f"p's {name}", seen, seen != compared):
            raise NoClosedFormError(
                f"expected {type(p).__name__}s of equal {name}, but {offender} and q's is another; "
                "kullback.measure(p, q) bounds it"
            )
    return kl if mine is other else _where_equal(xp, *xp.broadcast_arrays(kl, mine, other))


_where_equal = with_gradient(
    lambda xp, kl, mine, other: xp.where(mine == other, kl, np.nan),
    lambda _xp, gradient, *_: gradient,
    lambda _xp, gradient, *_: gradient * np.nan,
    lambda _xp, gradient, *_: gradient * np.nan,
)


def _require_broadcasting(p: Distribution, q: Distribution, shapes: list[tuple[int, ...]]) -> None:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError as error:
        listed = " and ".join(map(str, dict.fromkeys(shapes)))
        raise ShapeError(
            f"expected the parameters of {type(p).__name__} and {type(q).__name__} to broadcast, got shapes {listed}"
        ) from error
