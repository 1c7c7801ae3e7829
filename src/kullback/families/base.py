"""What every record of parameters shares: it is frozen, keeps what it is given, and refuses what is outside its set."""

import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, TypeAlias, dataclass_transform

import array_api_compat
import numpy as np

from kullback.errors import NotNormalizedError, ParameterError, ShapeError
from kullback.numerics.arrays import Array, ArrayLike, as_floats, untracked

__all__ = [
    "Constraint",
    "Count",
    "Distribution",
    "Logits",
    "Nonnegative",
    "Positive",
    "Probability",
    "Real",
    "first_offender",
    "is_traced",
    "record",
    "require",
    "require_mass_one",
    "require_one_of",
    "require_order",
    "require_unit_length",
]


@dataclass(frozen=True)
class Constraint:
    """The set that a parameter lies in, in words and as a test of each entry."""

    words: str
    holds: Callable[[Any], Any]


Real: TypeAlias = Annotated[ArrayLike, Constraint("finite", lambda x: abs(x) < np.inf)]
Positive: TypeAlias = Annotated[ArrayLike, Constraint("> 0 and finite", lambda x: (x > 0) & (x < np.inf))]
Nonnegative: TypeAlias = Annotated[ArrayLike, Constraint(">= 0 and finite", lambda x: (x >= 0) & (x < np.inf))]
Probability: TypeAlias = Annotated[ArrayLike, Constraint("in [0, 1]", lambda x: (x >= 0) & (x <= 1))]
Logits: TypeAlias = Annotated[ArrayLike, Constraint("below inf and not nan", lambda x: x < np.inf)]
Count: TypeAlias = Annotated[ArrayLike, Constraint("a whole number >= 0", lambda x: (x >= 0) & (x % 1 == 0))]


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
def record(kind: type) -> Any:
    """Makes a frozen, keyword-only dataclass; equality is identity, since arrays have none."""
    return dataclass(frozen=True, kw_only=True, eq=False)(kind)


class Distribution:
    """A distribution as its parameters, kept as they are given: numbers, lists, or arrays of any library.

    Entries outside their set raise ParameterError when the record is made. Parameters that JAX or torch.func is
    tracing have no values yet, and are not looked at.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            for constraint in getattr(field.type, "__metadata__", ()):
                if value is not None or field.default is MISSING:
                    require(self, field.name, value, constraint)
        self._check()

    def _check(self) -> None:
        """What one parameter asks of another."""


def require(owner: Distribution, name: str, value: ArrayLike, constraint: Constraint) -> None:
    """Raise ParameterError at the first entry that is outside the set."""
    array = value if array_api_compat.is_array_api_obj(value) else _as_numbers(owner, name, value)
    if not is_traced(array):
        array = untracked(array)
        with np.errstate(invalid="ignore"):
            _refuse(owner, name, array, ~constraint.holds(array), constraint.words)


def _as_numbers(owner: Distribution, name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"expected {type(owner).__name__}'s {name} to be numbers, got {value!r}")
    return array


def require_order(owner: Distribution, name: str, other: str, *, strict: bool = True) -> None:
    """Parameter `name` is above `other`, or may equal it."""
    given = getattr(owner, name), getattr(owner, other)
    if not any(is_traced(value) for value in given):
        xp, [high, low], _ = as_floats(*map(untracked, given))
        high, low = xp.broadcast_arrays(high, low)
        _refuse(owner, name, high, ~((high > low) if strict else (high >= low)), f"above {other}")


def require_one_of(owner: Distribution, *names: str) -> None:
    """Just one of these parameters is given."""
    given = [name for name in names if getattr(owner, name) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ParameterError(f"expected {type(owner).__name__} to be given one of {', '.join(names)}, got {got}")


def require_mass_one(owner: Distribution, name: str) -> None:
    """Along the last axis the entries sum to one, but for rounding."""
    value = getattr(owner, name)
    if value is None or is_traced(value):
        return
    xp, [probs], dtype = as_floats(untracked(value))
    if probs.ndim == 0:
        raise ShapeError(f"expected {type(owner).__name__}'s {name} to have an axis of categories, got a number")
    sums = xp.sum(probs, axis=-1)
    if offender := first_offender(f"the sum of {name}", sums, ~(abs(sums - 1) <= _tolerance(dtype))):
        raise NotNormalizedError(
            f"expected {type(owner).__name__}'s {name} to sum to 1, but {offender}; divide by the sum"
        )


def require_unit_length(owner: Distribution, name: str) -> None:
    """Along the last axis the entries are a vector of length one, but for rounding."""
    value = getattr(owner, name)
    if is_traced(value):
        return
    xp, [vectors], dtype = as_floats(untracked(value))
    if vectors.ndim == 0:
        raise ShapeError(f"expected {type(owner).__name__}'s {name} to be a vector, got a number")
    lengths = xp.linalg.vector_norm(vectors, axis=-1)
    if offender := first_offender(f"the length of {name}", lengths, ~(abs(lengths - 1) <= _tolerance(dtype))):
        raise ParameterError(f"expected {type(owner).__name__}'s {name} to have length 1, but {offender}; divide by it")


def _tolerance(dtype: Any) -> float:
    return 1e-9 if "64" in str(dtype) else 1e-5 if "32" in str(dtype) else 2.0**-5


def _refuse(owner: Distribution, name: str, array: Array, bad: Array, words: str) -> None:
    if offender := first_offender(name, array, bad):
        raise ParameterError(f"expected {type(owner).__name__}'s {name} to be {words}, but {offender}")


def first_offender(name: str, array: Array, bad: Array) -> str:
    """The first bad entry and its value in words, or nothing."""
    xp = array_api_compat.array_namespace(array)
    if not xp.any(bad):
        return ""
    if bad.ndim == 0:
        return f"it is {float(array)!r}"
    index = tuple(int(along[0]) for along in xp.nonzero(bad))
    return f"{name}[{', '.join(map(str, index))}] is {float(array[index])!r}"


def is_traced(array: Array) -> bool:
    """Whether the array stands for numbers that are not there yet."""
    if array_api_compat.is_torch_array(array):
        torch = sys.modules["torch"]
        return torch._C._functorch.is_functorch_wrapped_tensor(array) and not _has_values(array)
    return "jax" in sys.modules and isinstance(array, sys.modules["jax"].core.Tracer)


def _has_values(tensor: Array) -> bool:
    """Under torch.func.grad a tensor still has its numbers; under vmap it has not."""
    functorch = sys.modules["torch"]._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return False
        tensor = functorch.get_unwrapped(tensor)
    return True
