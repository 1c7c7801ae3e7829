"""The result of a measurement: a value with its unit, its uncertainty and the method that produced it."""

from dataclasses import dataclass, fields
from math import isfinite, log, nan
from numbers import Real
from typing import Any, Literal, TypeAlias

from kullback.numerics.array_types import ArrayInput, ArrayT
from kullback.numerics.arrays import as_floats, cast

__all__ = ["Estimate", "Status", "nats_to_bits"]

Status: TypeAlias = Literal["exact", "bounded", "estimated", "overflow", "unreliable"]


@dataclass(frozen=True, repr=False, eq=False)
class Estimate:
    """A value with its uncertainty; a field that the method does not provide is nan or None.

    `repr` omits the fields other than `unit` and `status` that have their default value. A format specification, as in
    `f"{estimate:.3f}"`, applies to the value and its uncertainty, followed by unit and status. `float`, `round` and the
    comparisons <, <=, > and >= use the value. `==` compares with a number by value, and with an `Estimate` by all
    fields, where nan equals nan.

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
        >>> estimate = Estimate(0.05, std_error=0.002, count=512, method="Monte Carlo")
        >>> estimate
        Estimate(value=0.05, std_error=0.002, count=512, unit='nats', method='Monte Carlo', status='estimated')
        >>> f"{estimate:.3f}", round(estimate, 1), estimate < 0.1
        ('0.050 ± 0.002 nats (estimated)', 0.1, True)
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

    def __round__(self, digits: int | None = None) -> float:
        return round(float(self.value), digits)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Estimate):
            return all(_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return float(self.value) == other if isinstance(other, Real) else NotImplemented

    def __hash__(self) -> int:
        # The hash of a number, because an estimate equals a number of the same value.
        return 0 if self.value != self.value else hash(float(self.value))

    def __lt__(self, other: object) -> bool:
        return float(self.value) < float(other) if isinstance(other, Estimate | Real) else NotImplemented

    def __le__(self, other: object) -> bool:
        return float(self.value) <= float(other) if isinstance(other, Estimate | Real) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return float(self.value) > float(other) if isinstance(other, Estimate | Real) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return float(self.value) >= float(other) if isinstance(other, Estimate | Real) else NotImplemented

    def __format__(self, specification: str) -> str:
        if not specification:
            return repr(self)
        uncertainty = float(self.std_error if self.std_error == self.std_error else self.error)
        shown = format(uncertainty, specification).strip()
        if uncertainty and not any(character in shown for character in "123456789n"):
            shown = f"{uncertainty:.1g}"  # the specification has too few digits, and would display 0
        return f"{format(float(self.value), specification)} ± {shown} {self.unit} ({self.status})"

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dictionary that JSON can store.

        Returns:
            The fields by name. Infinities and nan, which JSON does not have, are the strings "inf", "-inf" and "nan",
            which `float` converts back; tuples are lists.

        Example:
            >>> Estimate(float("inf"), method="supports", status="exact").to_dict()["value"]
            'inf'
        """
        return {field.name: _for_json(getattr(self, field.name)) for field in fields(self)}

    def __repr__(self) -> str:
        shown = [f"value={self.value!r}"]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            # value == value is False for nan.
            if field.name in ("unit", "status") or (value == value and value != field.default):
                shown.append(f"{field.name}={value!r}")
        return f"Estimate({', '.join(shown)})"


def _equal(first: Any, second: Any) -> bool:
    """Equality of two values of a field, where nan equals nan."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second) or bool(first != first and second != second)


def _for_json(value: Any) -> Any:
    """A value of a field with numbers of Python, and with non-finite numbers as strings."""
    if isinstance(value, tuple):
        return [_for_json(entry) for entry in value]
    if isinstance(value, Real) and not isinstance(value, int):
        return float(value) if isfinite(value) else str(float(value))
    return value


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
