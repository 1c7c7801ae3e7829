"""Tables in text files with one row in each line, whose delimiter, header and labels are recognised."""

import csv
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from kullback.cli.number_tables import (
    INDEX_NAMES,
    Table,
    assemble,
    label_column,
    not_rounded_to_zero,
    parse_number,
)
from kullback.errors import InputError

__all__ = ["DECIMAL_COMMA", "CellReader", "read_delimited"]

DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+")
_POINT_OF_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
_WHOLE = re.compile(r"[+-]?\d+")
_YEARS = range(1900, 2101)
_SPACE_BEFORE_QUOTE = re.compile(r'(^|[,;\t]) +(?=")')
_MISSING = ("", "na", "n/a", "nan", "null", "none", "-", "?")  # cells without a value, in lower case
_COMMENT_OR_LABEL = re.compile(r"#[^\s,;\t]*(?:[,;\t]\s*[-+\d.][^,;\t]*)+")
_QUOTED_MARK = '""""'  # a cell of CSV whose content is one quotation mark


def read_delimited(text: str, file: Iterable[str], name: str | None) -> Table:
    """The table in a text file with one row in each line, whose delimiter, header and labels are recognised."""
    lines = _Lines(text, file)
    try:
        sample = lines.sample(20)
    except csv.Error as error:
        raise InputError(f"{text}: line {lines.number}: {error}; is this a text file?") from error
    if not sample:
        raise InputError(f"{text}: expected a vector or a matrix of numbers, but the file is empty")
    delimiter = _delimiter(sample)
    # Tokens of a language model may begin or end with spaces, so that spaces of labels are kept.
    is_split_at_spaces = delimiter == " "
    stripped = (line.strip() if is_split_at_spaces else _SPACE_BEFORE_QUOTE.sub(r"\1", line) for line in lines)
    reader = csv.reader(stripped, delimiter=delimiter, skipinitialspace=is_split_at_spaces, strict=True)
    rows = ((lines.number, row) for row in reader if row)  # with the number of the last line of each row
    cells = CellReader(text, has_semicolons=delimiter == ";")
    try:
        number, first = next(rows)
        first = [cell.strip() for cell in _without_empty_end(first)]
        second = next(rows, None)
        has_header = _is_header(first, cells)
        header = first if has_header else None
        if delimiter == "," and has_header and len(first) == 1:
            _require_no_decimal_comma(text, sample[1:])
        data = chain(() if has_header else ((number, first),), () if second is None else (second,), rows)
        return _read_rows(text, header, _without_swallowed_rows(text, data, delimiter), cells, name)
    except csv.Error as error:
        advice = "is this a text file?"
        if "unexpected end of data" in str(error) or "expected after" in str(error):
            advice = f"a quotation mark that is a part of a label is written {_QUOTED_MARK}"
        raise InputError(f"{text}: line {lines.number}: {error}; {advice}") from error


def _without_swallowed_rows(
    text: str, data: Iterable[tuple[int, list[str]]], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """The rows; InputError for a cell that contains the ends of rows, where a quotation mark in a label has no pair."""
    end_of_row = re.compile(rf"{re.escape(delimiter)}\s*[-+.\d][^\n]*\n")
    for number, row in data:
        for cell in row:
            if "\n" in cell and end_of_row.search(cell):
                raise InputError(
                    f"{text}: line {number}: expected a label, got {cell.count(chr(10)) + 1} lines between two "
                    f"quotation marks; a quotation mark that is a part of a label is written {_QUOTED_MARK}"
                )
        yield number, row


class _Lines:
    """The lines of a file that are neither blank nor comments, with the number of the current line."""

    def __init__(self, text: str, file: Iterable[str]) -> None:
        self._text, self._file = text, enumerate(file, 1)
        self._sample: deque[tuple[int, str]] = deque()
        self._is_quoted = False  # whether the line continues a quoted cell
        self.number = 0

    def sample(self, count: int) -> list[str]:
        """The next lines, at most so many, which remain to be read."""
        found = [(self.number, line) for line in islice(self, count)]
        self._sample.extend(found)
        return [line for _, line in found]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._sample:
            self.number, line = self._sample.popleft()
            return line
        for number, line in self._file:
            self.number = number
            if "\0" in line:
                raise csv.Error("it contains a null character")
            content = line.strip()
            is_quoted, self._is_quoted = self._is_quoted, self._is_quoted != (line.count('"') % 2 == 1)
            if is_quoted or (content and not content.startswith("#")):
                return line
            self._is_quoted = False
            if _COMMENT_OR_LABEL.fullmatch(content):
                raise InputError(
                    f"{self._text}: line {number}: {content[:40]!r} can be a comment, or a row with a label; write the "
                    'label in quotes, as in "#",1, or write a space after the # of a comment'
                )
        raise StopIteration


def _delimiter(sample: Sequence[str]) -> str:
    unquoted = [re.sub(r'"[^"]*"', "", line) for line in sample]
    for delimiter in (";", "\t", ","):
        if any(delimiter in line for line in unquoted):
            # A number in each field of a text with spaces and decimal commas, such as "0,4 0,6".
            spaced = all(len(line.split()) > 1 for line in unquoted)
            if delimiter == "," and spaced and all(DECIMAL_COMMA.fullmatch(x) for s in unquoted for x in s.split()):
                return " "
            return delimiter
    return " "


def _without_empty_end(row: list[str]) -> list[str]:
    """A row without the empty cell after a delimiter at its end."""
    return row[:-1] if len(row) > 1 and not row[-1].strip() else row


class CellReader:
    """Reads numbers, whose decimal commas and points must be unambiguous.

    Args:
        text: The source, for messages.
        has_semicolons: Whether semicolons separate the cells, as in files of countries where a point separates
            thousands.
    """

    def __init__(self, text: str, *, has_semicolons: bool = False) -> None:
        self.text, self.has_semicolons = text, has_semicolons
        self.with_point, self.with_comma, self.ambiguous = "", "", ""
        self.with_decimal_point = False  # whether one point, at least, cannot separate thousands

    def number(self, cell: str) -> float | None:
        cell = cell.strip()
        value = parse_number(cell)
        if value is None and DECIMAL_COMMA.fullmatch(cell):
            return parse_number(cell.replace(",", "."))
        return value

    def convert(self, cell: str) -> float | None:
        """The number of a cell of data; None if the cell has no number."""
        try:
            value = float(cell)
        except ValueError:
            cell = cell.strip()
            value = self.number(cell)
            if value is not None and "," in cell:
                if _THOUSANDS.fullmatch(cell):
                    self.ambiguous = self.ambiguous or cell
                else:
                    self.with_comma = self.with_comma or cell
                return value
        if "_" in cell:
            return None
        if "." in cell and not self.with_decimal_point:
            self.with_point = self.with_point or cell.strip()
            self.with_decimal_point = not (self.has_semicolons and _POINT_OF_THOUSANDS.fullmatch(cell.strip()))
        return not_rounded_to_zero(cell, value, f"{self.text}: ")

    def finish(self) -> None:
        """Raise InputError if commas of the numbers can be decimal commas or separators of thousands."""
        comma = self.with_comma or self.ambiguous
        if comma and self.with_point:
            raise InputError(
                f"{self.text}: expected decimal points or decimal commas, got both: {self.with_point!r} and {comma!r}"
            )
        if self.ambiguous and not self.with_comma:
            raise InputError(
                f"{self.text}: the comma in {self.ambiguous!r} can be a decimal comma or a separator of thousands; "
                "write the numbers with decimal points"
            )
        if self.with_point and not self.with_decimal_point:
            raise InputError(
                f"{self.text}: the point in {self.with_point!r} can be a decimal point or a separator of thousands, "
                "since semicolons separate the cells; write the numbers without separators of thousands, or separate "
                "the cells by commas or tabs"
            )


def _is_header(first: Sequence[str], cells: CellReader) -> bool:
    """Whether the first line of a file has the names of the columns."""
    numbers = [cells.number(cell) for cell in first]
    if all(number is None for number in numbers):
        return True
    is_index = first[0].lower() in INDEX_NAMES and len(first) > 1
    return is_index and (first[0] == "" or _are_positions(first[1:]) or _are_years(first[1:]))


def _are_positions(cells: Sequence[str]) -> bool:
    """Whether cells are the numbers 0, 1, 2, ..., which pandas writes as the names of columns without names."""
    return list(cells) == [str(position) for position in range(len(cells))]


def _are_years(cells: Sequence[str]) -> bool:
    return all(_WHOLE.fullmatch(cell) and int(cell) in _YEARS for cell in cells)


class _FirstRow:
    """The first row of a file without a header, whose numbers can be names: years, or the positions of the columns.

    Args:
        label: The label of the row, or None.
        cells: The cells with numbers.
    """

    def __init__(self, label: str | None, cells: Sequence[str]) -> None:
        self.label, self.cells = label, [cell.strip() for cell in cells]
        self.are_years, self.are_positions = _are_years(self.cells), _are_positions(self.cells)

    @property
    def can_be_names(self) -> bool:
        return self.are_years or self.are_positions

    def compare(self, cells: Sequence[str]) -> None:
        """Compare it with another row: a year beside years is data, and so is `0,1` beside two whole numbers."""
        whole = [int(cell) for cell in map(str.strip, cells) if _WHOLE.fullmatch(cell)]
        self.are_years = self.are_years and not any(number in _YEARS for number in whole)
        self.are_positions = self.are_positions and (len(self.cells) != 2 or not whole)

    def require_data(self, text: str, values: np.ndarray) -> None:
        """Raise InputError if its numbers can be names, in a file of several rows.

        One column of probabilities that begins with 0 is the same distribution with and without its first row.
        """
        are_probabilities = self.cells == ["0"] and abs(values.sum() - 1) < 1e-6
        if len(values) > 1 and self.can_be_names and not are_probabilities:
            shown = ", ".join([*([] if self.label is None else [self.label]), *self.cells])
            raise InputError(
                f"{text}: the first line ({shown:.80}) can contain the names of the columns or data; write names that "
                "are not numbers, in its place if it contains names, and above it if it contains data"
            )


def _require_no_decimal_comma(text: str, sample: Sequence[str]) -> None:
    """Raise InputError for rows such as 1,5 under the name of one column: one number, or a label and a number."""
    content = [line.strip() for line in sample]
    if content and all(DECIMAL_COMMA.fullmatch(line) for line in content):
        raise InputError(
            f"{text}: the comma in {content[0]!r} can be a decimal comma, or a separator of a label and a number; "
            "write the numbers with decimal points, or name both columns"
        )


@dataclass(frozen=True)
class _Columns:
    """The columns of a file that are read.

    Args:
        width: The number of cells in each row.
        numbers: The columns of numbers.
        labels: The columns whose texts are the label of a row.
        names: The names of the columns of numbers, or None.
        is_label_named: Whether the name of the column of labels states that it contains labels.
    """

    width: int
    numbers: list[int]
    labels: list[int]
    names: list[str] | None
    is_label_named: bool


def _columns(
    text: str, number: int, header: Sequence[str] | None, row: Sequence[str], cells: CellReader, name: str | None
) -> _Columns:
    """The columns that are read, from the first row of data; of a named column, it and the columns of text."""
    if header is not None and len(header) == len(row) - 1:
        header = ["", *header]  # the header has no name for the column of labels
    if header is not None and len(header) != len(row):
        raise _wrong_width(text, number, len(header), len(row))
    is_number = [cells.number(cell) is not None for cell in row]
    if header is not None and name and list(header).count(name) == 1:
        numbers = [list(header).index(name)]
        is_text = [not is_number[i] and cell.strip().lower() not in _MISSING for i, cell in enumerate(row)]
        labels = [column for column in range(len(row)) if is_text[column] and column not in numbers]
        if not labels and 0 not in numbers and header[0].lower() in INDEX_NAMES:
            labels = [0]
    else:
        label = label_column(text, header, is_number)
        labels = [] if label is None else [label]
        numbers = [column for column in range(len(row)) if column != label]
    return _Columns(
        len(row),
        numbers,
        labels,
        None if header is None else [header[column] for column in numbers],
        header is not None and len(labels) == 1 and header[labels[0]].lower() in INDEX_NAMES,
    )


def _read_rows(
    text: str,
    header: list[str] | None,
    data: Iterable[tuple[int, list[str]]],
    cells: CellReader,
    name: str | None,
) -> Table:
    numbers, labels = array("d"), []
    columns: _Columns | None = None
    first_row: _FirstRow | None = None
    number = 0
    for number, row in data:
        if columns is None:
            row = _without_empty_end(row)
            columns = _columns(text, number, header, row, cells, name)
            if header is None:
                label = row[columns.labels[0]] if columns.labels else None
                first_row = _FirstRow(label, [row[column] for column in columns.numbers])
        elif len(row) != columns.width:
            row = _without_empty_end(row)
        if len(row) != columns.width:
            raise _wrong_width(text, number, columns.width, len(row))
        if columns.labels:
            label = ", ".join(row[column] for column in columns.labels)
            is_missing = bool(labels) and labels[0].strip().lower() in _MISSING and not columns.is_label_named
            if is_missing and cells.number(label) is not None:
                raise InputError(
                    f"{text}: column {columns.labels[0] + 1}: expected a number in the first row, got {labels[0]!r}, "
                    f"and {label!r} in line {number}; a column of labels is named label"
                )
            labels.append(label)
        for column in columns.numbers:
            value = cells.convert(row[column])
            if value is None:
                raise InputError(
                    f"{text}: line {number}, column {column + 1}: expected a number, got {row[column].strip()!r}"
                )
            numbers.append(value)
        if first_row is not None and first_row.can_be_names and len(numbers) > len(columns.numbers):
            first_row.compare([row[column] for column in columns.numbers])
    cells.finish()
    if columns is None:
        raise InputError(
            f"{text}: expected a vector or a matrix of numbers, got one line without numbers: "
            f"{', '.join(header or ())!r:.200}"
        )
    if header is None and columns.labels and len(labels) == 1:
        # In one row, a text is a number with a typing error rather than a label.
        raise InputError(
            f"{text}: line {number}: expected numbers, got {labels[0]!r} in column {columns.labels[0] + 1}"
        )
    values = np.frombuffer(numbers, np.float64).reshape(-1, len(columns.numbers))
    if first_row is not None:
        first_row.require_data(text, values)
    return assemble(text, values, columns.names, labels if columns.labels else None, name)


def _wrong_width(text: str, line: int, expected: int, got: int) -> InputError:
    return InputError(f"{text}: line {line}: expected {expected} cells, as in the first line, got {got}")
