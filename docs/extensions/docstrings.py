"""Turns the package's docstrings, which are plain text with Google sections, into reStructuredText."""

import itertools
import re
import textwrap
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
    """A docstring as reStructuredText: markup characters escaped, indented formulas as literal blocks."""
    converted: list[str] = []
    for section, body in _sections(lines):
        match section:
            case "":
                converted += _prelude(body)
            case "Returns:" | "Yields:":
                # As a field: napoleon would take the text before a colon for a type.
                first, *rest = _items(textwrap.dedent("\n".join(body)).strip().splitlines()) or [""]
                converted += ["", f":returns: {first}", *(f"    {line}" for line in rest), ""]
            case "References:":
                items = _items(textwrap.dedent("\n".join(body)).strip().splitlines())
                converted += ["", ".. rubric:: References", "", *items, ""]
            case _:
                converted += ["", section, *_with_examples(body), ""]
    return converted


def _sections(lines: list[str]) -> list[tuple[str, list[str]]]:
    """The docstring in parts: the name of each section and its lines; the name is empty outside of sections."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        if line in SECTIONS:
            parts.append((line, []))
        elif line and not line.startswith(" ") and parts[-1][0]:
            parts.append(("", [line]))
        else:
            parts[-1][1].append(line)
    return parts


def _prelude(lines: list[str]) -> Iterator[str]:
    """Text outside of sections; indented blocks are formulas or code."""
    example = literal = False
    for line in lines:
        example = bool(line.strip()) and (example or line.startswith(">>> "))
        if example or not line.strip():
            yield line
            continue
        indented = line.startswith("    ")
        if indented and not literal:
            yield from ("", "::", "")
        if literal and not indented:
            yield ""
        literal = indented
        yield line if literal else escape(line)


def _items(lines: list[str]) -> list[str]:
    """Text whose paragraphs with hanging indents become lists, one item for each line without indent."""
    converted: list[str] = []
    for paragraph in _split_at_empty_lines(lines):
        if any(line.startswith(" ") for line in paragraph):
            paragraph = [f"  {line.strip()}" if line.startswith(" ") else f"- {line}" for line in paragraph]
        converted += [*map(escape, paragraph), ""]
    return converted


def _split_at_empty_lines(lines: list[str]) -> Iterator[list[str]]:
    for nonempty, group in itertools.groupby(lines, lambda line: bool(line.strip())):
        if nonempty:
            yield list(group)


def _with_examples(lines: list[str]) -> Iterator[str]:
    """Escaped text, with doctests and their output unchanged."""
    example = False
    for line in lines:
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>> "))
        yield line if example else escape(line)


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
