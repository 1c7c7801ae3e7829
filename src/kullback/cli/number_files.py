"""Files of numbers as tables: CSV, TSV, text, JSON, JSON Lines, Parquet and NumPy files, and standard input.

Nothing in a file is evaluated as code or unpickled.
"""

import io
import json
import os
import re
import stat
import sys
import warnings
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kullback.cli.delimited_text import read_delimited
from kullback.cli.number_tables import Table, assemble, label_column, not_rounded_to_zero, unknown_name
from kullback.errors import InputError, MissingDependencyError

__all__ = ["FORMATS", "byte_counts", "parse_json", "read_file", "split_name"]

FORMATS = {
    ".csv": "text",
    ".tsv": "text",
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".npy": "npy",
    ".npz": "npz",
    ".parquet": "parquet",
}
_MAGIC = {b"\x93NUMPY": "npy", b"PK\x03\x04": "npz", b"PAR1": "parquet"}
_CHUNK = 1 << 20


def read_file(text: str) -> Table:
    """Read a file of numbers.

    Args:
        text: The path of the file; or PATH:NAME, where NAME is an array of a .npz file, or a column, a row or a member
            of another file; or `-` for standard input, whose format is recognised from its content.

    Returns:
        The table.

    Raises:
        InputError: The file cannot be read, or does not contain a vector or a matrix of numbers.
        MissingDependencyError: The file is a Parquet file, and no library that reads Parquet is installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "dice.csv"
        ...     _ = path.write_text("side,probability\\none,0.5\\nsix,0.5\\n")
        ...     read_file(str(path)).events
        ('one', 'six')
    """
    path, name = split_name(text)
    try:
        if path == "-":
            return _read_stream(text, _standard_input(), None, name)
        kind = FORMATS.get(Path(path).suffix.lower())
        with _open(Path(path)) as stream:
            if kind is None and stat.S_ISREG(Path(path).stat().st_mode):
                raise InputError(
                    f"{path}: expected a file whose name ends in {', '.join(FORMATS)}; rename the file, or pass it "
                    f"as standard input (-); bytes:{path} is the distribution of its bytes"
                )
            return _read_stream(text, stream, kind, name)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{text}: expected text in UTF-8, got byte 0x{error.object[error.start]:02x}, which is not UTF-8; convert "
            "a text file of another encoding by iconv -f latin1 -t utf-8; is this a binary file?"
        ) from error
    except RecursionError as error:
        raise InputError(f"{text}: expected a vector or a matrix of numbers, got lists nested too deeply") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def byte_counts(path: str) -> Table:
    """The number of occurrences of each of the 256 byte values in a file, which is read in chunks.

    Args:
        path: The path of the file, or `-` for standard input.

    Returns:
        The counts, shape (256,); the labels of the events are the bytes.

    Raises:
        InputError: The file cannot be read, or is empty.
    """
    if not path:
        raise InputError("bytes:: expected the path of a file after bytes:, as in bytes:book.txt")
    counts = np.zeros(256, np.int64)
    try:
        stream = _standard_input() if path == "-" else _open(Path(path))
        with stream:
            while chunk := stream.read(_CHUNK):
                counts += np.bincount(np.frombuffer(chunk, np.uint8), minlength=256)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not counts.any():
        raise InputError(f"bytes:{path}: expected at least one byte, but the file is empty")
    events = tuple(repr(bytes([value]))[1:] for value in range(256))
    return Table(counts.astype(np.float64), events, is_file=True)


def split_name(text: str) -> tuple[str, str | None]:
    """The path and the name in PATH:NAME, where both can have colons; the name is None if the text is a path.

    Of several ways to split the text, the one whose path exists is right; if none exists, the one of the longest path.
    """
    if ":" not in text or Path(text).exists():
        return text, None
    colons = [colon.start() for colon in re.finditer(":", text) if text[colon.end() :]]
    splits = [(text[:colon], text[colon + 1 :]) for colon in reversed(colons)]
    splits = [(path, name) for path, name in splits if path == "-" or Path(path).suffix.lower() in FORMATS]
    existing = [(path, name) for path, name in splits if path == "-" or Path(path).exists()]
    return (existing or splits or [(text, None)])[0]


def _standard_input() -> BinaryIO:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        text = sys.stdin.read() if sys.stdin is not None else ""
        return io.BytesIO(text.encode())
    return io.BufferedReader(_NotClosed(stream))  # type: ignore[arg-type]


class _NotClosed(io.RawIOBase):
    """A reader of a stream, which stays open when the reader is closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _open(path: Path) -> BinaryIO:
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: expected a path without null characters")
    if path.is_dir():
        raise InputError(f"{path}: expected a file, got a directory")
    stream = path.open("rb")
    if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode) and not stream.isatty() and stream.read(1):
        stream.close()
        raise InputError(f"{path}: expected a file, got a device, which may have no end; use head -c to copy a part")
    return stream


def _read_stream(text: str, stream: BinaryIO, kind: str | None, name: str | None) -> Table:
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[arg-type]
    start = buffered.peek(64)[:64]
    if not start or (len(start) < 64 and not start.strip()):
        raise InputError(f"{text}: expected a vector or a matrix of numbers, but the file is empty")
    if kind is None:
        kind = next((found for magic, found in _MAGIC.items() if start.startswith(magic)), None)
        kind = kind or ("json" if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[") else "text")
    if kind in ("npy", "npz"):
        return _read_numpy(text, buffered, kind, name)
    if kind == "parquet":
        return _read_parquet(text, buffered, name)
    utf16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    with io.TextIOWrapper(buffered, encoding="utf-16" if utf16 else "utf-8-sig", newline="") as lines:
        if kind == "json":
            return _read_json(text, lines.read(), name)
        return read_delimited(text, lines, name)


# JSON.


def parse_json(text: str, content: str, name: str | None = None) -> Table:
    """The table in a JSON document: an array, an object from label to number, or an array of objects.

    Args:
        text: The source, for messages.
        content: The document.
        name: The member of an object, or the column of an array of objects.

    Returns:
        The table.

    Raises:
        InputError: The document is not JSON, or does not have one of these forms.
    """
    try:
        return _table_of(text, _parsed(content), name)
    except json.JSONDecodeError as error:
        raise InputError(f"{text}: expected JSON: {error}") from error
    except (ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{text}: expected a vector or a matrix of numbers: {error}") from error


def _parsed(content: str) -> Any:
    """The value of a JSON text, without objects that contain a key twice, of which JSON would keep the last."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            seen = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise ValueError(f"expected distinct keys in each object, got {twice!r} twice")
        return entries

    return json.loads(
        content, object_pairs_hook=distinct, parse_float=lambda cell: not_rounded_to_zero(cell, float(cell))
    )


def _read_json(text: str, content: str, name: str | None) -> Table:
    """The table in a JSON or JSON Lines file."""
    if not content.strip():
        raise InputError(f"{text}: expected a vector or a matrix of numbers, but the file is empty")
    # Other characters that end a line, such as U+2028, are allowed in the texts of JSON.
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    try:
        json.loads(lines[0][1])
        is_lines = len(lines) > 1
    except (ValueError, RecursionError):
        is_lines = Path(split_name(text)[0]).suffix.lower() in (".jsonl", ".ndjson")
    if not is_lines:
        return parse_json(text, content, name)
    values = []
    for number, line in lines:
        try:
            values.append(_parsed(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{text}: line {number}: expected JSON: {error}") from error
        except ValueError as error:
            raise InputError(f"{text}: line {number}: {error}") from error
    return _table_of(text, values[0] if len(values) == 1 else values, name)


def _table_of(text: str, value: Any, name: str | None) -> Table:
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return _table_of_records(text, value, name)
    if isinstance(value, dict) and value:
        is_number = [_is_number(entry) for entry in value.values()]
        if all(is_number) and name is None:
            return Table(_as_values(text, list(value.values())), tuple(value), is_file=True)
        if any(is_number) and name is not None and name not in value:
            raise unknown_name(text, name, list(value))
        if any(is_number):
            wrong = next((key for key, number in zip(value, is_number, strict=True) if not number), name)
            raise InputError(f"{text}: expected a number for each label, got {value.get(wrong)!r:.80} for {wrong!r}")
        if name is None and len(value) > 1:
            members = ", ".join(map(repr, list(value)[:20]))
            raise InputError(f"{text}: expected one distribution, got {len(value)}: {members}; pass FILE:NAME")
        if name is not None and name not in value:
            raise unknown_name(text, name, list(value))
        return _table_of(text, value[name or next(iter(value))], None)
    if name is not None:
        raise InputError(f"{text}: expected an object with the member {name!r}, got an array of numbers")
    values = _as_values(text, value)
    return Table(values[0] if values.ndim == 2 and len(values) == 1 else values, is_file=True)


def _table_of_records(text: str, records: list[dict[str, Any]], name: str | None) -> Table:
    header = list(records[0])
    for index, record in enumerate(records):
        if list(record) != header and set(record) != set(header):
            raise InputError(
                f"{text}: expected the keys {', '.join(header)} in each object, got others in object {index}"
            )
    label = label_column(text, header, [_is_number(records[0][key]) for key in header], name)
    keys = [key for column, key in enumerate(header) if column != label]
    for index, record in enumerate(records):
        for key in keys:
            if not _is_number(record[key]):
                raise InputError(f"{text}: object {index}: expected a number for {key!r}, got {record[key]!r:.80}")
    values = np.array([[float(record[key]) for key in keys] for record in records])
    labels = None if label is None else [str(record[header[label]]) for record in records]
    return assemble(text, values, keys, labels, name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_values(text: str, value: Any) -> np.ndarray:
    """A vector or a matrix of floating-point numbers."""
    problem = f"{text}: expected a vector or a matrix of numbers"
    if isinstance(value, list):
        rows = value if value and isinstance(value[0], list) else [value]
        lengths = {len(row) if isinstance(row, list) else None for row in rows}
        if len(lengths) > 1:
            raise InputError(f"{problem}, got rows of different lengths")
        for index, entry in enumerate(chain.from_iterable(rows)):
            if not _is_number(entry) and not isinstance(entry, list):
                raise InputError(f"{problem}, got {json.dumps(entry):.80} at position {index}")
    elif not isinstance(value, np.ndarray):
        raise InputError(f"{problem}, got {json.dumps(value):.80}")
    numbers = np.asarray(value)
    if numbers.dtype.kind == "O":  # integers that exceed 64 bits
        numbers = np.asarray(value, np.float64)
    if numbers.dtype.kind not in "fiu":
        raise InputError(f"{problem}, got entries of dtype {numbers.dtype}")
    if numbers.ndim not in (1, 2) or numbers.size == 0:
        raise InputError(f"{problem}, got shape {numbers.shape}")
    is_native_float = numbers.dtype.kind == "f" and numbers.dtype.itemsize <= 8 and numbers.dtype.isnative
    return numbers if is_native_float else numbers.astype(np.float64)


# Binary formats.


def _read_numpy(text: str, stream: BinaryIO, kind: str, name: str | None) -> Table:
    import zipfile
    import zlib

    if not stream.seekable():
        stream = io.BytesIO(stream.read())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "npy":
                if name is not None:
                    raise InputError(f"{text}: a .npy file contains one array without a name; remove :{name}")
                return Table(_as_values(text, np.lib.format.read_array(stream, allow_pickle=False)), is_file=True)
            with zipfile.ZipFile(stream):
                stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                if name is None and len(archive.files) != 1:
                    arrays = ", ".join(archive.files[:20]) or "no arrays"
                    raise InputError(f"{text}: expected one array, got {arrays}; pass FILE:NAME with the name of one")
                if name is not None and name not in archive.files:
                    raise unknown_name(text, name, archive.files)
                return Table(_as_values(text, archive[name or archive.files[0]]), is_file=True)
    except InputError:
        raise
    except (
        ValueError,
        EOFError,
        TypeError,
        KeyError,
        OverflowError,
        MemoryError,
        SyntaxError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(
            f"{text}: expected a vector or a matrix of numbers in a NumPy file (.{kind}): "
            f"{error or type(error).__name__}"
        ) from error


def _is_label(kind: Any, types: Any) -> bool:
    """Whether a column of this type of Arrow has labels: texts, categories or times."""
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return is_text or types.is_dictionary(kind) or (types.is_temporal(kind) and not types.is_duration(kind))


def _is_readable(kind: Any, types: Any) -> bool:
    """Whether a column of this type of Arrow has numbers, arrays of numbers, or labels."""
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_number or is_list or _is_label(kind, types)


def _read_parquet(text: str, stream: BinaryIO, name: str | None) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f"{text}: reading Parquet files requires pyarrow: pip install pyarrow") from error
    try:
        source = stream if stream.seekable() else io.BytesIO(stream.read())
        table = pyarrow.parquet.read_table(source, use_threads=False, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{text}: expected a Parquet file: {error}") from error
    index = [one for one in (table.schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(one, str)]
    columns = {column: table.column(column) for column in table.column_names}
    if name in columns and name not in index:
        kept = {name, *index, *(key for key, column in columns.items() if _is_label(column.type, pyarrow.types))}
        columns = {key: column for key, column in columns.items() if key in kept}
    if table.num_rows == 0 or not columns:
        raise InputError(f"{text}: expected a vector or a matrix of numbers, but the file has no rows")
    types = pyarrow.types
    for key, column in columns.items():
        if column.null_count:
            what = "a label" if _is_label(column.type, types) else "a number"
            raise InputError(f"{text}: expected {what} in each row, got {column.null_count} missing in column {key!r}")
        if not _is_readable(column.type, types):
            raise InputError(f"{text}: expected columns of numbers and of labels, but {key!r} is of type {column.type}")
    lists = [key for key, column in columns.items() if types.is_nested(column.type)]
    if lists:
        if len(lists) > 1 and name is None:
            raise InputError(f"{text}: expected one column of arrays, got {', '.join(lists)}; pass FILE:NAME")
        table_of_arrays = _table_of(text, columns[name or lists[0]].to_pylist(), None)
        label_columns = [key for key, column in columns.items() if _is_label(column.type, types) or key in index]
        if len(label_columns) != 1 or table_of_arrays.values.ndim != 2:
            return table_of_arrays
        labels = tuple(str(value) for value in columns[label_columns[0]].to_pylist())
        return Table(table_of_arrays.values, None, labels, is_file=True)
    numeric = [
        types.is_integer(c.type) or types.is_floating(c.type) or types.is_decimal(c.type) for c in columns.values()
    ]
    header = list(columns)
    is_number = [number and key not in index for key, number in zip(header, numeric, strict=True)]
    label = label_column(text, header, is_number)
    keys = [key for column, key in enumerate(header) if column != label]
    # The sum of probabilities in float32 may differ from 1 by their rounding, so that floating-point types are kept.
    kept_types = {key: None if types.is_floating(columns[key].type) else np.float64 for key in keys}
    values = np.column_stack([np.asarray(columns[key].to_numpy(), kept_types[key]) for key in keys])
    labels = None if label is None else [str(value) for value in columns[header[label]].to_pylist()]
    return assemble(text, values, keys, labels, name)
