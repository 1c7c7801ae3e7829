"""Readers of prompts and supervised examples in JSON Lines files."""

import json
from pathlib import Path
from typing import Any

from kullback.errors import InputError

__all__ = ["read_examples", "read_prompts"]


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Read prompts from a JSON Lines file.

    Args:
        path: The file. Each line is an object with a "prompt", which is text or a list of chat messages, and all
            objects have the same keys. Empty lines are skipped.

    Returns:
        One dictionary for each line.

    Raises:
        InputError: The file is absent, empty or not UTF-8, a line is not such an object, or the keys of a line differ
            from the keys of the first line. The message gives the line number.
    """
    return _read(path, "--prompts", ("prompt",))


def read_examples(path: Path, option: str = "--data") -> list[dict[str, Any]]:
    """Read prompts with the completions to learn from a JSON Lines file.

    Args:
        path: The file. Each line is an object with a "prompt" and a "completion", each of which is text or a list of
            chat messages, and all objects have the same keys. Empty lines are skipped.
        option: The command-line option that the path came from, for error messages.

    Returns:
        One dictionary for each line.

    Raises:
        InputError: The file is absent, empty or not UTF-8, a line is not such an object, or the keys of a line differ
            from the keys of the first line. The message gives the line number.
    """
    return _read(path, option, ("prompt", "completion"))


def _read(path: Path, option: str, required: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, each of which has the required keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{option} {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path}: cannot be read as UTF-8 text: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_parse_row(line, f"{option} {path}, line {number}", required))
            if different := rows[0].keys() ^ rows[-1].keys():
                names = ", ".join(sorted(different))
                raise InputError(
                    f"{option} {path}, line {number}: expected the keys of the first row; the keys differ in {names}"
                )
    if not rows:
        example = ", ".join(
            f'"{name}": "{text}"' for name, text in zip((*required, "answer"), ("2+2=", "4"), strict=False)
        )
        raise InputError(f"{option} {path}: no rows; expected lines such as {{{example}}}")
    return rows


def _parse_row(line: str, location: str, required: tuple[str, ...]) -> dict[str, Any]:
    """The object on one line; `location` begins the error messages."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{location}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise InputError(f"{location}: expected an object, got {type(row).__name__}")
    for name in required:
        if name not in row:
            keys = ", ".join(map(repr, row)) or "no keys"
            raise InputError(f'{location}: expected a "{name}", got {keys}')
        if not (_is_text(row[name]) or _is_chat(row[name])):
            shown = json.dumps(row[name])[:60]
            raise InputError(
                f'{location}: expected "{name}" to be text, or a list of messages with "role" and "content", '
                f"got {shown}"
            )
    return row


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of messages with "role" and "content"."""
    messages = value if isinstance(value, list) and value else [None]
    return all(
        isinstance(message, dict) and _is_text(message.get("role")) and _is_text(message.get("content"))
        for message in messages
    )
