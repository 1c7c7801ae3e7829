"""Equality and hashes of records, some of whose fields are arrays."""

import numbers
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import array_api_compat
import numpy as np

from kullback.errors import ArrayTypeError, ShapeError
from kullback.numerics.arrays import is_traced
from kullback.numerics.labels import plain_arrays

__all__ = ["EqualByValue", "comparison_key"]


class EqualByValue:
    """The base class of dataclasses that are equal if they have one class and equal fields.

    Arrays and tensors are compared as numbers, whatever their dtype, library or device, and nan equals nan. The
    dataclass is declared with eq=False. The hash is computed from the present values, which must not be modified.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Pair(EqualByValue):
        ...     values: np.ndarray
        >>> first, second = Pair(np.array([1.0, 2.0])), Pair(np.array([1.0, 2.0]))
        >>> first == second, hash(first) == hash(second)
        (True, True)
    """

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return _keys(self) == _keys(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *_keys(self)))


def _keys(record: Any) -> list[Any]:
    return [comparison_key(getattr(record, field.name)) for field in fields(record)]


def comparison_key(value: Any) -> Any:
    """A value for comparison: the shape and the numbers of an array, or the value itself; nan equals nan.

    Args:
        value: A number, an array of any library, a list, a tuple, a mapping, or another value.

    Returns:
        A value that is hashable for numbers, arrays of numbers, and mappings and tuples of these.

    Example:
        >>> comparison_key(np.array([1.0, 2.0])) == comparison_key([1, 2])
        True
    """
    if is_traced(value):
        return ("traced", id(value))
    if isinstance(value, Mapping):
        return tuple((name, comparison_key(entry)) for name, entry in value.items())
    if isinstance(value, list | tuple) or array_api_compat.is_array_api_obj(value):
        try:
            array: Any = np.asarray(plain_arrays(value)[0]) if isinstance(value, list | tuple) else value
            flat = array.reshape(-1).tolist()
        except (ArrayTypeError, ShapeError):
            return tuple(map(comparison_key, value)) if isinstance(value, tuple) else value
        return tuple(map(int, array.shape)), tuple("nan" if number != number else number for number in flat)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return (), ("nan" if value != value else value,)
    return value
