"""Readers of prompts and supervised examples: JSON Lines, JSON, CSV, TSV and Parquet files, data sets of the hub."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kullback.errors import InputError, MissingDependencyError
from kullback.integrations.hub import dataset_rows, is_hub_dataset

__all__ = ["read_examples", "read_prompts"]

Row = dict[str, Any]

# TRL passes these names to every reward function itself, or reads columns of these names as images.
_RESERVED = (
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"),
    *("image", "images"),
)


def read_prompts(path: str | Path, option: str = "--prompts", *, column: str = "prompt") -> list[Row]:
    """Read prompts from a file or from a data set of the Hugging Face hub.

    The suffix of the file determines its format: `.csv` (with commas, semicolons or tabs), `.tsv` and `.parquet` are
    tables, `.json` may be an array of objects, and all other files are JSON Lines.

    Args:
        path: The file, or ORGANISATION/NAME[:CONFIGURATION[:SPLIT]] as in `kullback.integrations.hub.dataset_rows`; a
            local path takes precedence. Each row has a "prompt", which is text or a list of chat messages, or
            "messages" that end with a message of the user. All rows have the same columns, whose types do not change.
            Empty lines are skipped.
        option: The command-line option that the path came from, for error messages.
        column: The column that is the prompt.

    Returns:
        One dictionary for each row, with the key "prompt" and the other columns.

    Raises:
        InputError: The file is absent, empty or damaged, a row is not valid or differs from the first row in its
            columns or their types, or a column has a name that TRL reserves. The message gives the line or the row.
    """

    def convert(row: Row, place: str) -> Row:
        if column == "prompt" and "prompt" not in row and "messages" in row:
            messages = _require_value(row, "messages", place, chat=True)
            if messages[-1]["role"] == "assistant":
                raise InputError(
                    f'{place}: expected "messages" that end with a message of the user, got a last message of the '
                    "assistant, which is a completion"
                )
            row = {"prompt": messages, **{key: value for key, value in row.items() if key != "messages"}}
        prompt = _require_value(row, column, place, named_by="--prompt-column")
        others = {key: value for key, value in row.items() if key not in (column, "prompt")}
        if reserved := next((key for key in others if key in _RESERVED), None):
            raise InputError(f'{place}: expected no column "{reserved}", a name that TRL reserves; rename the column')
        return {"prompt": prompt, **others}

    return _read(path, option, convert, example='{"prompt": "2+2=", "answer": "4"}')


def read_examples(
    path: str | Path, option: str = "--data", *, prompt_column: str = "prompt", completion_column: str = "completion"
) -> list[Row]:
    """Read prompts with the completions to learn from a file, in the formats of `read_prompts`.

    Args:
        path: The file. Each row has a "prompt" and a "completion", which are text or lists of chat messages; or
            "messages", of which the last is the completion; or a "text", all of which is the completion.
        option: The command-line option that the path came from, for error messages.
        prompt_column: The column that is the prompt.
        completion_column: The column that is the completion.

    Returns:
        One dictionary for each row, with the keys "prompt" and "completion" and the other columns.

    Raises:
        InputError: As for `read_prompts`.
    """

    def convert(row: Row, place: str) -> Row:
        others = {key: value for key, value in row.items() if key not in (prompt_column, completion_column)}
        named = prompt_column in row or completion_column in row
        if not named and "messages" in row:
            messages = _require_value(row, "messages", place, chat=True)
            if len(messages) < 2 or messages[-1]["role"] != "assistant":
                raise InputError(
                    f'{place}: expected "messages" that end with a message of the assistant after another message, '
                    f"got {len(messages)} with a last message of the role {messages[-1]['role']}"
                )
            others.pop("messages")
            return {"prompt": messages[:-1], "completion": messages[-1:], **others}
        if not named and "text" in row:
            others.pop("text")
            return {"prompt": "", "completion": _require_value(row, "text", place), **others}
        prompt = _require_value(row, prompt_column, place, named_by="--prompt-column")
        completion = _require_value(row, completion_column, place, named_by="--completion-column")
        if isinstance(prompt, str) != isinstance(completion, str):
            raise InputError(f"{place}: expected the prompt and the completion to be both text or both messages")
        return {"prompt": prompt, "completion": completion, **others}

    return _read(path, option, convert, example='{"prompt": "2+2=", "completion": "4"}')


def _rows(source: str | Path, option: str) -> Iterator[tuple[str, Row]]:
    """The rows of a file or of a data set of the hub, with the place of each."""
    if is_hub_dataset(str(source)):
        yield from dataset_rows(str(source), option)
        return
    path, location = Path(source), f"{option} {source}"
    if path.is_dir():
        raise InputError(f"{location}: expected a file, got a directory")
    if not path.exists():
        raise InputError(
            f"{location}: no such file; expected a file, or a data set of the Hugging Face hub such as "
            "openai/gsm8k:main"
        )
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows, ".json": _json_rows}
    yield from readers.get(path.suffix.lower(), _json_lines)(path, location)


def _read(source: str | Path, option: str, convert: Callable[[Row, str], Row], *, example: str) -> list[Row]:
    """The converted rows of a file or of a data set, which all have the same columns of the same types."""
    location = f"{option} {source}"
    rows: list[Row] = []
    kinds: dict[str, tuple[str, str]] = {}
    try:
        for place, row in _rows(source, option):
            rows.append(convert(row, place))
            if different := rows[0].keys() ^ rows[-1].keys():
                names = ", ".join(sorted(different))
                raise InputError(f"{place}: expected the keys of the first row; the keys differ in {names}")
            _require_same_kinds(rows[-1], kinds, place)
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: cannot be read as UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise InputError(f"{location}: no rows; expected lines such as {example}")
    return rows


def _json_lines(path: Path, location: str) -> Iterator[tuple[str, Row]]:
    """The objects of a JSON Lines file, with the place of each; a byte order mark is skipped."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{location}, line {number}"
                yield place, _require_object(_parse_json(line.rstrip("\r\n"), place), place)


def _json_rows(path: Path, location: str) -> Iterator[tuple[str, Row]]:
    """The objects of a file with one array of objects, or of a JSON Lines file."""
    with path.open(encoding="utf-8-sig") as file:
        is_array = file.read(1000).lstrip().startswith("[")
    if not is_array:
        yield from _json_lines(path, location)
        return
    for number, element in enumerate(_parse_json(path.read_text(encoding="utf-8-sig"), location), start=1):
        place = f"{location}, row {number}"
        yield place, _require_object(element, place)


def _csv_rows(path: Path, location: str) -> Iterator[tuple[str, Row]]:
    """The rows of a table with a header, in which all values are text.

    The delimiter of a `.csv` file is the first of comma, semicolon and tab that its header contains.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        is_tsv = path.suffix.lower() == ".tsv"
        delimiter = "\t" if is_tsv else next((mark for mark in (",", ";", "\t") if mark in header), ",")
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            names = list(reader.fieldnames or [])
            if len(set(names)) < len(names):
                raise InputError(f"{location}: expected columns of different names, got {', '.join(names)}")
            for row in reader:
                place = f"{location}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(
                        f"{place}: expected {len(names)} values, as many as the header has, got another count"
                    )
                yield place, row
        except csv.Error as error:
            raise InputError(f"{location}, line {reader.line_num}: not a table: {error}") from error


def _parquet_rows(path: Path, location: str) -> Iterator[tuple[str, Row]]:
    """The rows of a Parquet file."""
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise MissingDependencyError("pyarrow is missing: pip install 'kullback[train]'") from error
    try:
        with ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{location}, row {number}", row
    except (ValueError, OSError) as error:  # pyarrow's errors are subclasses of these
        if isinstance(error, InputError):
            raise
        raise InputError(f"{location}: not a Parquet file: {' '.join(str(error).split())}") from error


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON that can be read: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def _require_object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected an object, got {type(value).__name__}")
    return value


def _require_value(row: Row, name: str, place: str, *, chat: bool = False, named_by: str = "") -> Any:
    """The text or the messages in a column, which the option `named_by` names; only messages with `chat`."""
    if name not in row:
        keys = ", ".join(map(repr, row)) or "no keys"
        similar = get_close_matches(name, row, n=1)
        hint = f'; did you mean "{similar[0]}"?' if similar else f"; name the column by {named_by}" if named_by else ""
        raise InputError(f'{place}: expected the column "{name}", got {keys}{hint}')
    value = row[name]
    if _is_chat(value) or (not chat and _is_text(value)):
        return value
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        number, problem = next(found for found in enumerate(map(_problem_of_message, value), 1) if found[1])
        raise InputError(f'{place}: message {number} of "{name}": expected {problem}')
    text = "" if chat else "text, or "
    shown = json.dumps(value, default=str)[:60]
    raise InputError(
        f'{place}: expected "{name}" to be {text}a list of messages with "role" and "content", got {shown}'
    )


def _is_text(value: Any) -> bool:
    """Whether a value is text that is not empty and can be encoded, which a lone surrogate cannot."""
    return isinstance(value, str) and bool(value) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of messages with "role" and "content"."""
    messages = value if isinstance(value, list) and value else [None]
    return all(isinstance(message, dict) and not _problem_of_message(message) for message in messages)


def _problem_of_message(message: Mapping[str, Any]) -> str:
    """What was expected of a chat message that cannot be used; empty if it can."""
    for key in ("role", "content"):
        value = message.get(key)
        if _is_text(value):
            continue
        if key == "content" and message.get("tool_calls"):
            return "content that is text, got a message with tool_calls alone; leave out or rewrite such conversations"
        return f"text that is not empty as {key}, got {json.dumps(value, default=str)[:60]}"
    return ""


def _require_same_kinds(row: Mapping[str, Any], kinds: dict[str, tuple[str, str]], place: str) -> None:
    """Raise InputError if the type of a column differs from the type in an earlier row, which `kinds` stores."""
    for key, value in row.items():
        if value is None:
            continue
        kind, earlier_place = kinds.setdefault(key, (_kind(value), place.rpartition(", ")[2]))
        if kind != _kind(value):
            raise InputError(f'{place}: expected "{key}" to be {kind} as in {earlier_place}, got {_kind(value)}')


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    names = {str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
