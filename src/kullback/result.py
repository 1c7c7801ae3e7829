"""What an estimate is: a value in nats, how sure it is, and how it came about."""

from dataclasses import dataclass, fields
from math import log, nan
from typing import Literal, TypeAlias

from kullback.numerics.arrays import Array, ArrayLike, as_floats, cast

__all__ = ["Estimate", "Status", "nats_to_bits"]

Status: TypeAlias = Literal["exact", "bounded", "estimated", "unreliable"]


@dataclass(frozen=True, repr=False)
class Estimate:
    """A number with what is known of its error; nan or None stands for what its method does not give.

    Args:
        value: The estimate, in `unit`.
        std_error: Its standard error, in `unit`.
        count: How many independent draws it rests on; 0 where nothing was drawn.
        unit: What the value counts, "nats" unless said otherwise.
        method: How it was made, in a word or two.
        error: A bound on |value - truth|, in `unit`; 0 where nothing but rounding is lost.
        interval: Where the truth lies: the bound's, or the confidence interval of draws.
        status: "exact" (a formula, to rounding), "bounded" (within `error`, as small as was asked for), "estimated"
            (from draws), or "unreliable": do not build on it before reading `warnings`.
        warnings: What the reader should know: where q misses what p can do, what could not be reached, and why.

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
        told = [f"value={self.value!r}"]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            # nan differs from itself.
            if field.name == "unit" or (value == value and value != field.default):
                told.append(f"{field.name}={value!r}")
        return f"Estimate({', '.join(told)})"


def nats_to_bits(x: ArrayLike) -> Array:
    """Nats as bits: x / log 2. Everything in this package is in nats until it is shown.

    Args:
        x: Nats, any shape: array, tensor, number or list.

    Returns:
        Bits, in the same shape, kind and dtype.

    Example:
        >>> float(nats_to_bits(0.6931471805599453))
        1.0
    """
    xp, [x], dtype = as_floats(x)
    return cast(xp, x / log(2), dtype)
