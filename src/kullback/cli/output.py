"""Output of the commands: plain-text tables, and JSON without infinities."""

import math
from typing import Any

__all__ = ["strict", "table"]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table with right-aligned columns, separated by two spaces.

    Example:
        >>> print(table(["step", "nats"], [["0", "0.25"], ["10", "0.1"]]))
        step  nats
           0  0.25
          10   0.1
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def strict(value: Any) -> Any:
    """Replace infinities and nan, which JSON does not have, by the strings "inf", "-inf" and "nan".

    Example:
        >>> strict({"kl": [0.5, math.inf]})
        {'kl': [0.5, 'inf']}
    """
    if isinstance(value, dict):
        return {key: strict(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [strict(element) for element in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
