"""Prompts and examples from a file: one JSON object a line."""

import json
from pathlib import Path
from typing import Any

from kullback.errors import InputError

__all__ = ["read_examples", "read_prompts"]


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file of prompts.

    Args:
        path: Each line an object with a "prompt", text or a list of chat messages; every row has the same keys.

    Raises:
        InputError: The file is absent, empty or not UTF-8, a line is not such an object, or its keys differ from the
            first row's; the message names the line.
    """
    return _read(path, "--prompts", ("prompt",))


def read_examples(path: Path, option: str = "--data") -> list[dict[str, Any]]:
    """The rows of a JSON-lines file of prompts and the completions to learn.

    Args:
        path: Each line an object with a "prompt" and a "completion", each text or a list of chat messages.
        option: What the file was given as.

    Raises:
        InputError: As for `read_prompts`.
    """
    return _read(path, option, ("prompt", "completion"))


def _read(path: Path, option: str, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{option} {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path}: cannot be read as UTF-8 text: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_row(line, f"{option} {path}, line {number}", needed))
            if missing := rows[0].keys() ^ rows[-1].keys():
                names = ", ".join(sorted(missing))
                raise InputError(f"{option} {path}, line {number}: expected the keys of the first row, not {names}")
    if not rows:
        example = ", ".join(
            f'"{name}": "{text}"' for name, text in zip((*needed, "answer"), ("2+2=", "4"), strict=False)
        )
        raise InputError(f"{option} {path}: no rows; expected lines such as {{{example}}}")
    return rows


def _row(line: str, place: str, needed: tuple[str, ...]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, got {type(row).__name__}")
    for name in needed:
        if name not in row:
            keys = ", ".join(map(repr, row)) or "no keys"
            raise InputError(f'{place}: expected a "{name}", got {keys}')
        if not (_is_text(row[name]) or _is_chat(row[name])):
            shown = json.dumps(row[name])[:60]
            raise InputError(
                f'{place}: expected "{name}" to be text, or a list of messages with "role" and "content", got {shown}'
            )
    return row


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str) and bool(prompt)


def _is_chat(prompt: Any) -> bool:
    messages = prompt if isinstance(prompt, list) and prompt else [None]
    return all(isinstance(one, dict) and _is_text(one.get("role")) and _is_text(one.get("content")) for one in messages)
