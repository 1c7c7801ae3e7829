"""The least cross-entropy that any model can have on a sample, and what a model is above it: KL(sample || model)."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import fsum, inf, log

__all__ = ["EmpiricalConditional", "EntropyFloor", "Prefixes"]


@dataclass(frozen=True)
class EntropyFloor:
    """The entropy of a sample's outcomes, given their contexts.

    Args:
        nats: Nats an outcome, >= 0.
        count: How many outcomes there are.
        seen_once: The share of them whose context occurs once. They add 0 to the floor, whatever their truth is: where
            this is near 1, the floor says little of the source, and KL to the sample is memorising.
    """

    nats: float
    count: int
    seen_once: float


class EmpiricalConditional:
    """How often each outcome followed each context: the empirical distribution that cross-entropy trains towards.

    H(outcome | context) = sum n(c, o) log(n(c) / n(c, o)) / N is the least that a function of the context can come
    to in cross-entropy on this sample, and cross-entropy less that is KL(empirical || model).

    Example:
        >>> seen = EmpiricalConditional()
        >>> for context, outcome in [("2+2=", "4"), ("2+2=", "4"), ("2+2=", "5"), ("1+1=", "2")]:
        ...     seen.add(context, outcome)
        >>> floor = seen.floor()
        >>> f"{floor.nats:.4f} nats, {floor.seen_once:.0%} of contexts seen once"
        '0.4774 nats, 25% of contexts seen once'
    """

    def __init__(self) -> None:
        self._contexts: Counter[Hashable] = Counter()
        self._pairs: Counter[tuple[Hashable, Hashable]] = Counter()

    def add(self, context: Hashable, outcome: Hashable) -> None:
        """Count one outcome."""
        self._contexts[context] += 1
        self._pairs[context, outcome] += 1

    def surprise(self, context: Hashable, outcome: Hashable) -> float:
        """-log of the outcome's share after this context, nats; inf where it never followed."""
        count = self._pairs[context, outcome]
        return log(self._contexts[context] / count) if count else inf

    def floor(self) -> EntropyFloor:
        """Their mean over the sample."""
        total = self._contexts.total()
        nats = fsum(count * self.surprise(*pair) for pair, count in self._pairs.items()) / total if total else 0.0
        once = sum(count == 1 for count in self._contexts.values())
        return EntropyFloor(nats, total, once / total if total else 0.0)


class Prefixes:
    """Numbers for prefixes of token sequences: equal prefixes have equal numbers, and no others.

    Example:
        >>> prefixes = Prefixes()
        >>> prefixes.along([7, 8, 9]), prefixes.along([7, 8, 5])
        ([0, 1, 2], [0, 1, 2])
        >>> prefixes.along([7, 8, 5, 1])[3] == prefixes.along([7, 8, 9, 1])[3]
        False
    """

    def __init__(self) -> None:
        self._next: dict[tuple[int, int], int] = {}

    def along(self, ids: Sequence[int]) -> list[int]:
        """The number of what comes before each token."""
        here, found = 0, []
        for token in ids:
            found.append(here)
            here = self._next.setdefault((here, token), len(self._next) + 1)
        return found
