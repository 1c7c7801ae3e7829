"""Checks of arguments that are numbers, names or arrays: what a caller passes may be any object."""

import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

import array_api_compat
import numpy as np

from kullback.errors import ArrayTypeError, ShapeError
from kullback.numerics.arrays import Array, ArrayLike, as_numpy, holds, untracked
from kullback.numerics.labels import plain_arrays

__all__ = ["as_float64", "as_real_array", "boolean_mask", "is_index", "is_name", "is_number", "shown"]


def is_number(value: Any) -> bool:
    """Whether a value is a real number, infinities and nan included, that float64 represents, and no boolean.

    An array or a tensor without axes counts as a number.
    """
    if type(value) is float:
        return True
    if isinstance(value, bool | np.bool) or "bool" in str(getattr(value, "dtype", "")):
        return False
    if not isinstance(value, Real) and getattr(value, "ndim", None) != 0:
        return False
    try:
        float(value)
    except (NotImplementedError, OverflowError, RuntimeError, TypeError, ValueError):
        return False
    return "complex" not in str(getattr(value, "dtype", "")) and not isinstance(value, np.datetime64 | np.timedelta64)


def is_index(value: Any) -> bool:
    """Whether a value is one whole number that Python accepts as an index, and no boolean."""
    if type(value) is int:
        return True
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return not isinstance(value, np.timedelta64)


def is_name(value: Any, names: Iterable[str]) -> bool:
    """Whether a value is one of the names of an option."""
    return isinstance(value, str) and value in names


def as_float64(name: str, values: ArrayLike) -> np.ndarray:
    """`as_real_array`, converted to float64."""
    return as_real_array(name, values).astype(np.float64)


def as_real_array(name: str, values: ArrayLike) -> np.ndarray:
    """Numbers, a list, an array or a table as a NumPy array of real numbers or booleans, without labels and gradients.

    Raises:
        ArrayTypeError: The values are not real numbers; `name` is their name in the message.
        ShapeError: The rows of a list have different lengths.
    """
    try:
        array = as_numpy(plain_arrays(values)[0])
    except ShapeError:
        raise
    except ArrayTypeError as error:
        raise ArrayTypeError(f"{name}: {error}") from error
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ArrayTypeError(f"expected {name} to be an array of numbers, got {shown(values)}") from error
    if array.dtype.kind not in "biuf":
        raise ArrayTypeError(f"expected {name} to be an array of real numbers, got dtype {array.dtype}")
    return array


def boolean_mask(mask: Array) -> Array:
    """A mask as booleans: booleans themselves, nonzero integers, and the floats 0 and 1.

    Raises:
        ArrayTypeError: The mask has another float, such as a weight or nan, or its entries are not real numbers.
    """
    dtype = str(mask.dtype)
    if "bool" in dtype:
        return mask
    if not ("int" in dtype or "float" in dtype):
        raise ArrayTypeError(f"expected a mask of booleans, got dtype {dtype}")
    if "float" in dtype:
        xp, values = array_api_compat.array_namespace(mask), untracked(mask)
        others = (values != 0) & (values != 1)
        if holds(xp.any(others)):
            raise ArrayTypeError(
                f"expected a mask of booleans or of the numbers 0 and 1, got {float(values[others][0]):g}; "
                "multiply by weights after the call"
            )
    return mask != 0


def shown(value: Any) -> str:
    """A value for a message on one line: its `repr`, or the name of its class where that is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"an object of class {type(value).__name__}"
