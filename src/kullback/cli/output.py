"""What commands print: tables in plain text, and JSON without infinities."""

import math
from typing import Any

__all__ = ["strict", "table"]


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns set to the right, a blank between them."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def strict(value: Any) -> Any:
    """The same for JSON, which has no infinity: "inf" stands for it."""
    if isinstance(value, dict):
        return {key: strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [strict(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
