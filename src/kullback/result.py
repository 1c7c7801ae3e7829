"""The result of a measurement: a value with its unit, its uncertainty and the method that produced it."""

from dataclasses import dataclass, fields
from math import log, nan
from typing import Literal, TypeAlias

from kullback.numerics.array_types import ArrayInput, ArrayT
from kullback.numerics.arrays import as_floats, cast

__all__ = ["Estimate", "Status", "nats_to_bits"]

Status: TypeAlias = Literal["exact", "bounded", "estimated", "overflow", "unreliable"]


@dataclass(frozen=True, repr=False)
class Estimate:
    """A value with its uncertainty; a field that the method does not provide is nan or None.

    `repr` omits the fields that have their default value.

    Args:
        value: The estimate, in `unit`.
        std_error: The standard error of `value`, in `unit`.
        count: The number of independent samples from which the estimate is computed; 0 without samples.
        unit: The unit of `value`; "nats" by default.
        method: The method in a few words, such as "closed form".
        error: A bound on |value - true value|, in `unit`; 0 where rounding is the only error.
        interval: The interval that contains the true value: a rigorous bound, or a confidence interval from samples.
        status: "exact" (a formula, accurate to rounding), "bounded" (accurate to within `error`, which meets the
            requested tolerance), "estimated" (from samples), "overflow" (the true value is finite, but above the
            largest floating-point number, so that `value` is inf), or "unreliable" (read `warnings` before
            using the value).
        warnings: Sentences that describe limitations, such as a region where p has probability mass and q has none.

    Example:
        >>> Estimate(0.05, std_error=0.002, count=512, unit="nats per token", method="exact at sampled positions")
        Estimate(value=0.05, std_error=0.002, count=512, unit='nats per token', method='exact at sampled positions')
    """

    value: float
    std_error: float = nan
    count: int = 0
    unit: str = "nats"
    method: str = ""
    error: float = nan
    interval: tuple[float, float] | None = None
    status: Status = "estimated"
    warnings: tuple[str, ...] = ()

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        shown = [f"value={self.value!r}"]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            # value == value is False for nan.
            if field.name == "unit" or (value == value and value != field.default):
                shown.append(f"{field.name}={value!r}")
        return f"Estimate({', '.join(shown)})"


def nats_to_bits(x: ArrayInput[ArrayT]) -> ArrayT:
    """Convert nats to bits: x / log 2.

    Every function of this package returns nats.

    Args:
        x: Values in nats, any shape: an array, a tensor, a number or a list.

    Returns:
        Values in bits, with the shape, array type and dtype of `x`.

    Example:
        >>> float(nats_to_bits(0.6931471805599453))
        1.0
    """
    xp, [nats], dtype = as_floats(x)
    return cast(xp, nats / log(2), dtype)
