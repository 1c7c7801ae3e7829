"""The entropy floor of a sample: the smallest cross-entropy of any model, which splits it into entropy plus KL."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import fsum, inf, log

import numpy as np

from kullback.errors import ArrayTypeError
from kullback.numerics.arguments import is_index, shown
from kullback.numerics.labels import plain_arrays

__all__ = ["EmpiricalConditional", "EntropyFloor", "Prefixes"]


@dataclass(frozen=True)
class EntropyFloor:
    """The conditional entropy of the outcomes of a sample, given their contexts.

    Args:
        nats: The conditional entropy in nats per outcome, >= 0.
        count: The number of outcomes.
        seen_once: The fraction of outcomes whose context occurs once. These outcomes contribute 0 to the entropy
            regardless of the distribution of the data. If the fraction is close to 1, the floor carries little
            information about that distribution, and a small KL to the sample indicates memorisation.
    """

    nats: float
    count: int
    seen_once: float


class EmpiricalConditional:
    """The empirical conditional distribution of outcomes given contexts, from counts.

        H(outcome | context) = sum_{c,o} n(c, o) log(n(c) / n(c, o)) / N

    This entropy is the smallest cross-entropy on the sample of any model that is a function of the context. The
    cross-entropy of a model minus this entropy is KL(empirical || model).

    Example:
        >>> empirical = EmpiricalConditional()
        >>> for context, outcome in [("2+2=", "4"), ("2+2=", "4"), ("2+2=", "5"), ("1+1=", "2")]:
        ...     empirical.add(context, outcome)
        >>> floor = empirical.floor()
        >>> f"{floor.nats:.4f} nats, {floor.seen_once:.0%} of the outcomes have a context that occurs once"
        '0.4774 nats, 25% of the outcomes have a context that occurs once'
    """

    def __init__(self) -> None:
        self._contexts: Counter[Hashable] = Counter()
        self._pairs: Counter[tuple[Hashable, Hashable]] = Counter()

    def add(self, context: Hashable, outcome: Hashable) -> None:
        """Adds one observation.

        Args:
            context: The context, any hashable value.
            outcome: The outcome, any hashable value.

        Example:
            >>> empirical = EmpiricalConditional()
            >>> empirical.add("2+2=", "4")
            >>> empirical.floor().count
            1
        """
        _require_hashable(context, outcome)
        self._contexts[context] += 1
        self._pairs[context, outcome] += 1

    def surprise(self, context: Hashable, outcome: Hashable) -> float:
        """The surprisal of an outcome in its context under the empirical distribution.

            -log(n(context, outcome) / n(context))

        Args:
            context: The context, any hashable value.
            outcome: The outcome, any hashable value.

        Returns:
            Nats; `inf` if the outcome was never observed in this context.

        Example:
            >>> empirical = EmpiricalConditional()
            >>> empirical.add("2+2=", "4")
            >>> empirical.surprise("2+2=", "4"), empirical.surprise("2+2=", "5")
            (0.0, inf)
        """
        _require_hashable(context, outcome)
        count = self._pairs[context, outcome]
        return log(self._contexts[context] / count) if count else inf

    def floor(self) -> EntropyFloor:
        """The mean surprisal of the sample, which is its conditional entropy.

        Returns:
            An `EntropyFloor`, in nats per outcome; 0 nats for an empty sample.

        Example:
            >>> empirical = EmpiricalConditional()
            >>> for outcome in ("4", "5"):
            ...     empirical.add("2+2=", outcome)
            >>> round(empirical.floor().nats, 4)
            0.6931
        """
        total = self._contexts.total()
        nats = fsum(count * self.surprise(*pair) for pair, count in self._pairs.items()) / total if total else 0.0
        single = sum(count == 1 for count in self._contexts.values())
        return EntropyFloor(nats, total, single / total if total else 0.0)


class Prefixes:
    """Assigns an integer to every prefix of token sequences; two prefixes have the same integer only if they are equal.

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
        """The integer of the prefix before each token of a sequence.

        Args:
            ids: Token ids.

        Returns:
            One integer per token; 0 for the empty prefix.

        Raises:
            ArrayTypeError: The argument is not a list of whole numbers.

        Example:
            >>> Prefixes().along([7, 8, 9])
            [0, 1, 2]
        """
        tokens = ids if isinstance(ids, list) else np.asarray(plain_arrays(ids)[0]).tolist()
        if not isinstance(tokens, list):
            raise ArrayTypeError(f"expected a list of token ids, got {shown(ids)}")
        prefix, numbers = 0, []
        for token in tokens:
            if not is_index(token):
                raise ArrayTypeError(f"expected token ids that are whole numbers, got {shown(token)}")
            numbers.append(prefix)
            prefix = self._next.setdefault((prefix, token), len(self._next) + 1)
        return numbers


def _require_hashable(context: object, outcome: object) -> None:
    """Raise ArrayTypeError for a context or an outcome that cannot be counted, such as a list."""
    try:
        hash((context, outcome))
    except TypeError as error:
        raise ArrayTypeError(
            f"expected a hashable context and outcome, got {shown(context)} and {shown(outcome)}; pass tuples instead "
            "of lists"
        ) from error
