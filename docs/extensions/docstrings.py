"""Turns the package's docstrings, which are plain text with Google sections, into reStructuredText."""

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["SECTIONS", "escape", "paragraphs", "to_rst"]

SECTIONS = ("Args:", "Returns:", "Raises:", "References:", "Example:", "Attributes:", "Yields:")
_CODE = re.compile(r"``[^`]*``|`[^`]*`")


def setup(app: Any) -> dict[str, bool]:
    """Process docstrings before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _process(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(lines)


def to_rst(lines: list[str]) -> list[str]:
    """Escape the markup characters of plain text, and show indented formulas as literal blocks."""
    return list(_convert(lines))


def _convert(lines: list[str]) -> Iterator[str]:
    section = ""
    example = literal = False
    for line in lines:
        if line in SECTIONS:
            section, literal = line, False
            yield from ("", line)
            continue
        if line and not line.startswith(" "):
            section = ""
        if line.lstrip().startswith(">>> "):
            example = True
        elif not line.strip():
            example = False
        if example or not line.strip():
            yield line
            continue
        indented = line.startswith("    ") and not section
        if indented and not literal:
            yield from ("::", "")
        if literal and not indented:
            yield ""
        literal = indented
        yield line if literal else escape(line)


def escape(text: str) -> str:
    """The line as reStructuredText that shows the same characters; `code` in backticks stays code."""
    parts, end = [], 0
    for match in _CODE.finditer(text):
        parts += [_escape_plain(text[end : match.start()]), f"``{match[0].strip('`')}``"]
        end = match.end()
    return "".join([*parts, _escape_plain(text[end:])])


def _escape_plain(text: str) -> str:
    text = re.sub(r"([\\*|`])", r"\\\1", text)
    return re.sub(r"(\w)_(?!\w)", r"\1\\_", text)


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a docstring before its first section."""
    lines = []
    for line in docstring.splitlines():
        if line.strip() in SECTIONS:
            break
        lines.append(line)
    return [part for part in re.split(r"\n\s*\n", "\n".join(lines)) if part.strip()]
