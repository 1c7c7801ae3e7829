"""Tables of numbers: a vector of events, or a matrix with one distribution in each row, with labels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kullback.errors import InputError

__all__ = ["INDEX_NAMES", "Table", "assemble", "label_column", "not_rounded_to_zero", "parse_number", "unknown_name"]

# A column with one of these names contains labels even if the labels are numbers.
INDEX_NAMES = {"", "index", "unnamed: 0", "__index_level_0__", "id", "event", "label", "token", "token_id", "word"}
INDEX_NAMES |= {"symbol", "outcome", "category", "class", "key", "bin", "byte", "name"}
_NOT_ZERO = re.compile(r"\s*[-+]?[0.]*[1-9]")  # the start of a number with a digit other than 0 before the exponent
_FRACTION = re.compile(r"([+-]?[\d.]+)\s*/\s*([\d.]+)")


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers with labels.

    Args:
        values: Shape (events,) or (rows, events).
        events: The labels of the events, or None.
        rows: The labels of the rows of a matrix, or None.
        is_file: Whether the numbers are the contents of a file or of standard input.
    """

    values: np.ndarray
    events: tuple[str, ...] | None = None
    rows: tuple[str, ...] | None = None
    is_file: bool = False


def parse_number(cell: str) -> float | None:
    """The number that a text denotes, such as 0.25, 1e-3, 1/3 or nan; None if it denotes none.

    Raises:
        InputError: The number is not 0, and is 0 in float64.

    Example:
        >>> parse_number("1/4"), parse_number("x")
        (0.25, None)
    """
    try:
        value = None if "_" in cell else float(cell)
    except ValueError:
        match = _FRACTION.fullmatch(cell.strip())
        try:
            value = float(match[1]) / float(match[2]) if match else None
        except (ValueError, ZeroDivisionError):
            return None
    return not_rounded_to_zero(cell, value)


def not_rounded_to_zero(cell: str, value: float | None, source: str = "") -> float | None:
    """The value of a text; InputError if it is 0 in float64, and the number in the text is not 0."""
    if value == 0 and _NOT_ZERO.match(cell):
        raise InputError(
            f"{source}expected numbers that float64 can represent, but {cell.strip()} would become 0; pass the "
            "logarithms of the probabilities, with --logits"
        )
    return value


def label_column(
    text: str, header: Sequence[str] | None, is_number: Sequence[bool], name: str | None = None
) -> int | None:
    """The column with the labels of the rows, or None; `name` is the column that the user selects, if any."""
    texts = [column for column, number in enumerate(is_number) if not number]
    if len(is_number) == len(texts) or len(texts) > 1:
        names = [repr(header[column]) if header else str(column + 1) for column in texts]
        raise InputError(
            f"{text}: expected a vector or a matrix of numbers, with at most one column of labels, but the columns "
            f"{' and '.join(names[:3])} contain text"
        )
    if texts:
        if header and not name and texts[0] != 0 and header[0].strip().lower() in ("", "unnamed: 0"):
            raise InputError(
                f"{text}: the first column has no name beside the labels in column {texts[0] + 1}, as an index of "
                "pandas; leave it out, name it if it contains numbers of events, or select a column by FILE:NAME"
            )
        return texts[0]
    return 0 if header and len(header) > 1 and header[0].lower() in INDEX_NAMES else None


def assemble(
    text: str,
    values: np.ndarray,
    header: Sequence[str] | None,
    labels: Sequence[str] | None,
    name: str | None,
) -> Table:
    """The table of a matrix whose columns and rows can have names; `name` selects a column or a row."""
    count, columns = values.shape
    if labels is None and count > 2 and columns > 1:
        first = values[:, 0]
        if first[0] in (0, 1) and np.array_equal(first, np.arange(count) + first[0]):
            raise InputError(
                f"{text}: the first column contains {first[0]:.0f}, {first[1]:.0f}, {first[2]:.0f}, ..., which is an "
                "index of the rows; remove it, or give the columns a header in which its name is index"
            )
    events = None if header is None else tuple(header)
    rows = None if labels is None else tuple(labels)
    if name is not None:
        if (header or ()).count(name) + (rows or ()).count(name) > 1:
            raise InputError(f"{text}: expected one column or row of the name {name!r}, got several; rename them")
        if header is not None and name in header:
            return Table(np.ascontiguousarray(values[:, list(header).index(name)]), rows, is_file=True)
        if rows is not None and name in rows:
            return Table(values[rows.index(name)], events, is_file=True)
        raise unknown_name(text, name, [*(header or ()), *(rows or ())[:20]])
    if columns == 1:
        return Table(values[:, 0], rows, is_file=True)
    if count == 1:
        return Table(values[0], events, is_file=True)
    return Table(values, events, rows, is_file=True)


def unknown_name(text: str, name: str, known: Sequence[str]) -> InputError:
    from kullback.cli.parser import nearest

    names = ", ".join(repr(one) for one in known[:20]) if known else "no names"
    return InputError(f"{text}: expected one of its names ({names}), got {name!r}{nearest(name, known)}")
