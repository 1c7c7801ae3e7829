"""The numbers of a run's rows, by key."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["Row", "kl_names", "late_half", "series"]

Row: TypeAlias = Mapping[str, Any]


def kl_names(rows: Iterable[Row]) -> list[str]:
    """The keys of KL(policy || reference) that occur, "kl" (TRL's sampled one) among them."""
    keys = {key for row in rows for key in row}
    return [
        name
        for name in (*(f"kl_policy_ref_per_{unit}" for unit in ("token", "sequence", "step", "reference_step")), "kl")
        if name in keys
    ]


def series(rows: Iterable[Row], key: str) -> list[tuple[int, float]]:
    """(step, value) of every row that has a finite number there."""
    kept = [(int(row.get("step") or 0), row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    return [(step, float(value)) for step, value in kept if math.isfinite(value)]


def late_half(values: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """The second half."""
    return values[len(values) // 2 :]
