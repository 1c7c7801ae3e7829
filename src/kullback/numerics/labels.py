"""Conversion of tables, labelled arrays, masked arrays and lists to plain arrays, with entries matched by label.

The functions recognise a library by the attributes of its objects, so that no library is imported.
"""

import math
import sys
from array import array as TypedArray
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal
from numbers import Real
from typing import Any

import array_api_compat
import numpy as np

from kullback.errors import ArrayTypeError, LabelError, ShapeError

__all__ = ["is_labelled", "plain_arrays", "require_unlabelled"]

_NUMBERS = (float, int, bool, np.floating, np.integer, np.bool)
_HALF_TYPES = ("bfloat16", "float8_e")  # dtypes of ml_dtypes, which are no dtypes of NumPy


def plain_arrays(*values: Any) -> list[Any]:
    """Convert values to numbers and plain arrays, with the entries of labelled arrays in one order.

    Arrays of NumPy, PyTorch, JAX and other array API libraries are returned unchanged, and other values become NumPy
    arrays. Labels are the index and the columns of pandas objects, the coordinates of xarray, and the names of the
    columns of polars and Arrow tables. Axes are counted from the last axis, as in broadcasting. Where two values have
    labels along the same axis, the entries of the later value are put into the order of the earlier value. Values
    without labels are matched by position.

    Args:
        values: Numbers, lists, arrays, or objects of pandas, polars, xarray and other libraries.

    Returns:
        The values in the given order: numbers and arrays.

    Raises:
        ArrayTypeError: A value is not an array of real numbers, or is sparse, or has masked or missing entries.
        LabelError: Two values have different sets of labels along one axis.
        ShapeError: The rows of a list have different lengths.

    Example:
        >>> plain_arrays([0.25, 0.75], 1.0)
        [array([0.25, 0.75]), 1.0]
    """
    arrays, axes = zip(*map(_plain, values), strict=True)
    return list(_aligned(arrays, axes)) if any(axes) else list(arrays)


def is_labelled(value: Any) -> bool:
    """Whether the value is a table or a labelled array: an object with an index, columns or dimensions."""
    if isinstance(value, float | int | list | type | np.ndarray | np.generic) or array_api_compat.is_array_api_obj(
        value
    ):
        return False
    return _offers(value, "__array__") and any(
        _offers(value, name) and not callable(getattr(value, name)) for name in ("index", "columns", "dims")
    )


def require_unlabelled(name: str, value: Any) -> None:
    """Raise ArrayTypeError for an argument with labels where labels cannot be matched with another argument."""
    if is_labelled(value):
        raise ArrayTypeError(
            f"expected {name} without labels, got a {type(value).__name__}, whose labels cannot be matched; put its "
            "entries in order and pass its to_numpy()"
        )


def _offers(value: Any, name: str) -> bool:
    """Whether the class of the value has an attribute: a table has attributes for its columns, of any name."""
    return hasattr(type(value), name)


def _plain(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """The value as a number or a plain array, and (name, labels) or None for each axis; () without labels."""
    kind = type(value)
    if kind is float or (kind is np.ndarray and value.dtype.kind in "biufc"):
        return value, ()
    if kind is int:
        return (value if -(2**63) <= value < 2**63 else _as_float(value)), ()
    if isinstance(value, np.generic | np.ndarray):
        return _plain_numpy(value), ()
    if array_api_compat.is_array_api_obj(value):
        _require_dense(value)
        return value, ()
    if isinstance(value, list | tuple):
        return _plain_list(value), ()
    if isinstance(value, str | bytes | Mapping | Set) or value is None or not _converts(value):
        raise ArrayTypeError(f"expected an array of numbers, got {_shown(value)}{_remedy(value)}")
    array = _plain_numpy(np.asarray(_values(value)))
    if isinstance(array, np.ndarray) and is_labelled(value):
        return array, _axis_labels(value, array.ndim)
    return array, ()


def _as_float(value: int) -> float:
    """An integer beyond the range of 64 bits in float64."""
    try:
        return float(value)
    except OverflowError as error:
        digits = int(math.log10(abs(value))) + 1
        raise ArrayTypeError(
            f"expected numbers within the range of float64, got an integer of about {digits} digits; pass its "
            "logarithm where the function takes logarithms"
        ) from error


def _converts(value: Any) -> bool:
    """Whether NumPy can read the value as an array or a number."""
    if any(_offers(value, name) for name in ("toarray", "todense", "collect", "data_vars", "compute")):
        return _offers(value, "dims") and not _offers(value, "data_vars")  # a DataArray of xarray has `compute`
    readable = any(_offers(value, name) for name in ("__array__", "__array_interface__", "__float__"))
    return readable or isinstance(value, Sequence | memoryview | TypedArray)


def _remedy(value: Any) -> str:
    """What to pass instead of a value that is not an array."""
    if isinstance(value, Mapping) and not _offers(value, "data_vars"):
        return "; pass list(values.values()) in one order of the keys, or a pandas Series, which has labels"
    for name, remedy in (
        ("data_vars", "pass one of its variables"),
        ("toarray", "pass its toarray()"),
        ("todense", "pass its todense()"),
        ("collect", "pass its collect()"),
        ("compute", "pass its compute()"),
    ):
        if _offers(value, name):
            return f"; {remedy}"
    return "; pass a list of its values" if _offers(value, "__iter__") and not isinstance(value, str | bytes) else ""


def _values(value: Any) -> Any:
    """The values of a table or a labelled array as NumPy reads them; missing entries are nan or None."""
    if _offers(value, "to_numpy"):
        try:
            return value.to_numpy()
        except (TypeError, ValueError):  # an Arrow array with missing entries
            return np.asarray(value, dtype=object)
    return value


def _plain_numpy(value: Any) -> Any:
    """A NumPy array or scalar as a plain array of real or complex numbers."""
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(value)
        if mask.any():
            index = ", ".join(str(int(indices[0])) for indices in np.nonzero(mask))
            raise ArrayTypeError(
                f"expected an array without masked entries, but entry [{index}] is masked; pass its filled(value) or "
                "compressed(), or pass its data with where=~mask where the function takes where="
            )
        value = value.data
    array = np.asarray(value)
    if array.dtype.kind in "biufc":
        return array
    if array.dtype.kind == "O":
        return _from_objects(array)
    if array.dtype.name.startswith(_HALF_TYPES):
        return array.astype(np.float32)
    raise ArrayTypeError(f"expected an array of numbers, got dtype {array.dtype}{_first_entry(array)}")


def _first_entry(array: np.ndarray) -> str:
    return f"; the first entry is {array.ravel()[0]!r}" if array.size else ""


def _from_objects(array: np.ndarray) -> np.ndarray:
    """The numbers of an array of Python objects, such as fractions, in float64."""
    for index, entry in np.ndenumerate(array):
        if not isinstance(entry, Real | Decimal | np.bool) and not (array.ndim == 0 and _offers(entry, "__float__")):
            position = f"entry [{', '.join(map(str, index))}]" if index else "it"
            raise ArrayTypeError(f"expected an array of numbers, but {position} is {_shown(entry)}")
    try:
        return array.astype(np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ArrayTypeError(f"expected numbers within the range of float64: {error}") from error


def _shown(value: Any) -> str:
    """The value, or the name of its class where the value is long."""
    text = repr(value) if value is None or isinstance(value, str | bytes | complex) else ""
    return text if text and len(text) <= 40 else f"an object of class {type(value).__name__}"


def _require_dense(array: Any) -> None:
    """Raise ArrayTypeError for a sparse, nested or quantised array."""
    if array_api_compat.is_torch_array(array):
        if array.is_nested:
            raise ArrayTypeError("expected rows of one length, got a nested tensor; pass its rows separately")
        if array.layout is not sys.modules["torch"].strided:
            raise ArrayTypeError(f"expected a dense tensor, got layout {array.layout}; pass its to_dense()")
        if array.is_quantized:
            raise ArrayTypeError("expected a tensor of numbers, got a quantised tensor; pass its dequantize()")
        if array.is_floating_point() and array.element_size() == 1:
            raise ArrayTypeError(f"expected a dtype with arithmetic, got {array.dtype}; pass the tensor's float()")
        if array.is_meta:
            raise ArrayTypeError("expected a tensor with values, got a tensor on the device meta")
    elif _offers(array, "todense"):
        raise ArrayTypeError("expected a dense array, got a sparse array; pass its todense()")


def _plain_list(values: Sequence[Any]) -> Any:
    """A list as a NumPy array; a list that contains arrays of other libraries unchanged."""
    if not values:
        return np.empty(0)
    if _holds_tensors(values):
        return values
    try:
        array = np.asarray(values)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise ArrayTypeError(f"expected a list of numbers: {error}") from error
        lengths = sorted({len(row) if hasattr(row, "__len__") else 0 for row in values})
        rows = (
            f"rows of lengths {' and '.join(map(str, lengths[:2]))}" if len(lengths) > 1 else "rows of different shapes"
        )
        raise ShapeError(f"expected a list whose rows have one length, got {rows}") from error
    except (OverflowError, RuntimeError, TypeError) as error:
        raise ArrayTypeError(f"expected a list of numbers: {error}") from error
    if array.dtype.kind in "SU":
        raise ArrayTypeError(f"expected an array of numbers, got a list with the string {_first_string(values)!r}")
    return _plain_numpy(array)


def _first_string(values: Any) -> Any:
    for value in values:
        if isinstance(value, str | bytes):
            return value
        if isinstance(value, list | tuple) and (found := _first_string(value)) is not None:
            return found
    return None


def _holds_tensors(values: Sequence[Any]) -> bool:
    """Whether a nested list holds tensors or JAX arrays; ArrayTypeError if it holds tables or masked arrays."""
    if isinstance(values[0], _NUMBERS):
        return False
    found = False
    for value in values:
        if isinstance(value, list | tuple):
            found = found or (bool(value) and _holds_tensors(value))
        elif isinstance(value, np.ma.MaskedArray) or is_labelled(value):
            raise ArrayTypeError(
                f"expected a list of numbers or of plain arrays, got a list with a {type(value).__name__}; combine the "
                "entries by the library's own function, such as pandas.concat, or pass their to_numpy()"
            )
        elif not isinstance(value, np.ndarray | np.generic) and array_api_compat.is_array_api_obj(value):
            found = True
    return found


# Labels of axes.


def _axis_labels(value: Any, ndim: int) -> tuple[Any, ...]:
    """(name of the axis, labels or None) for each axis of a labelled object, or None for an axis without both."""
    if _offers(value, "dims"):  # xarray
        indexes = getattr(value, "indexes", {})
        return tuple((name, indexes.get(name)) for name in value.dims)
    rows = (None, value.index) if _offers(value, "index") and not callable(value.index) else None
    if ndim == 1:
        return (rows,)
    # The columns of an Arrow table are arrays, and its `column_names` are labels.
    return rows, (None, value.column_names if _offers(value, "column_names") else value.columns)


def _aligned(arrays: Sequence[Any], axes: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The arrays with the entries of later arrays in the order of the labels of earlier arrays."""
    names: dict[int, Any] = {}
    labels: dict[int, Any] = {}
    aligned = []
    for array, own in zip(arrays, axes, strict=True):
        for axis in range(-len(own), 0):
            name, found = own[axis] or (None, None)
            if name is not None and names.setdefault(axis, name) != name:
                raise LabelError(
                    f"expected the same dimensions in the same order, but axis {axis} is {names[axis]!r} and {name!r}; "
                    "transpose or rename one of the arrays"
                )
            if found is None:
                continue
            first = labels.get(axis)
            if first is None or (len(first) == 1 < len(found)):
                labels[axis] = found
            elif not (len(found) == 1 < len(first)) and not _same(first, found):
                array = np.take(array, _positions(first, found, axis), axis=axis)
        aligned.append(array)
    return aligned


def _same(first: Any, second: Any) -> bool:
    """Whether two sequences of labels are equal, in the same order."""
    if first is second:
        return True
    if hasattr(first, "equals") and type(first) is type(second):
        return bool(first.equals(second))
    return list(first) == list(second)


def _positions(first: Any, second: Any, axis: int) -> list[int]:
    """The position in `second` of each label of `first`; LabelError if the sets of labels differ.

    A missing label, which pandas writes as nan or None, is one label.
    """
    ours, theirs = ([None if label != label else label for label in labels] for labels in (first, second))
    where = "" if axis == -1 else f" along axis {axis}"
    remedy = "select the same labels in both, or pass to_numpy() to match the entries by position"
    place = {label: position for position, label in enumerate(theirs)}
    known = set(ours)
    for labels, others, number in ((ours, place, "second"), (theirs, known, "first")):
        for label in labels:
            if label not in others:
                raise LabelError(
                    f"expected equal sets of labels, but label {label!r}{where} is missing from the {number} array; "
                    f"{remedy}"
                )
    if len(known) < len(ours) or len(place) < len(theirs):
        twice = next(label for labels in (ours, theirs) for label in labels if labels.count(label) > 1)
        raise LabelError(
            f"expected unique labels in arrays of different order, but label {twice!r}{where} repeats; {remedy}"
        )
    return [place[label] for label in ours]
