"""What an estimate is: a value in nats, how sure it is, and how it came about."""

from dataclasses import dataclass

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A number that is not exact, with what is known of its error.

    Args:
        value: The estimate, in `unit`.
        std_error: Its standard error, in `unit`; nan where the method gives none.
        count: How many independent draws it rests on.
        unit: What the value counts, "nats" unless said otherwise.
        method: How it was made, in a word or two.

    Example:
        >>> Estimate(0.05, std_error=0.002, count=512, unit="nats per token", method="exact at sampled positions")
        Estimate(value=0.05, std_error=0.002, count=512, unit='nats per token', method='exact at sampled positions')
    """

    value: float
    std_error: float
    count: int
    unit: str = "nats"
    method: str = ""

    def __float__(self) -> float:
        return float(self.value)
