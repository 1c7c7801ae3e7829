"""Prompts from a file: one JSON object a line, with "prompt" and whatever else the reward function takes."""

import json
from pathlib import Path
from typing import Any

from kullback.errors import InputError

__all__ = ["read_prompts"]


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file of prompts.

    Args:
        path: Each line an object with a "prompt", text or a list of chat messages; every row has the same keys.

    Raises:
        InputError: The file is absent, empty or not UTF-8, a line is not such an object, or its keys differ from the
            first row's; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"--prompts {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {path}: cannot be read as UTF-8 text: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_row(line, f"--prompts {path}, line {number}"))
            if missing := rows[0].keys() ^ rows[-1].keys():
                names = ", ".join(sorted(missing))
                raise InputError(f"--prompts {path}, line {number}: expected the keys of the first row, not {names}")
    if not rows:
        raise InputError(f'--prompts {path}: no rows; expected lines such as {{"prompt": "2+2=", "answer": "4"}}')
    return rows


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, got {type(row).__name__}")
    if "prompt" not in row:
        keys = ", ".join(map(repr, row)) or "no keys"
        raise InputError(f'{place}: expected a "prompt", got {keys}')
    if not (_is_text(row["prompt"]) or _is_chat(row["prompt"])):
        shown = json.dumps(row["prompt"])[:60]
        raise InputError(
            f'{place}: expected "prompt" to be text, or a list of messages with "role" and "content", got {shown}'
        )
    return row


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str) and bool(prompt)


def _is_chat(prompt: Any) -> bool:
    messages = prompt if isinstance(prompt, list) and prompt else [None]
    return all(isinstance(one, dict) and _is_text(one.get("role")) and _is_text(one.get("content")) for one in messages)
