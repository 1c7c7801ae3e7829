"""The supports of the univariate families, by which `kl` determines where KL is infinite.

KL(p || q) is infinite where p has mass outside the support of q.
"""

from math import inf
from typing import Any

from kullback.families import Distribution

__all__ = [
    "has_moving_support",
    "is_contained",
    "is_count_family",
    "is_univariate",
    "shared_support",
    "support",
    "support_parameters",
]


def is_univariate(distribution: Distribution) -> bool:
    """Whether the values of the distribution are real numbers or counts, rather than vectors or categories."""
    return type(distribution).support is not None


def is_count_family(family: type[Distribution]) -> bool:
    """Whether the family is a distribution of counts (integers)."""
    return family.support is not None and family.support.discrete


def has_moving_support(family: type[Distribution]) -> bool:
    """Whether the family is continuous and its support depends on the parameters."""
    return family.support is not None and not family.support.discrete and family.support.depends_on_parameters


def support_parameters(family: type[Distribution]) -> dict[str, int]:
    """The parameters of a continuous family that are an end of its support: 0 for the lower end, 1 for the upper."""
    if family.support is None or family.support.discrete:
        return {}
    return {end: side for side, end in enumerate((family.support.low, family.support.high)) if isinstance(end, str)}


def shared_support(family: type[Distribution]) -> tuple[float, float]:
    """The support of every member of a continuous family; (-inf, inf) for counts, and where it is not shared."""
    if family.support is None or family.support.discrete or family.support.depends_on_parameters:
        return (-inf, inf)
    return family.support.ends(None, None)


def support(xp: Any, distribution: Distribution) -> tuple[Any, Any]:
    """The smallest and the largest value of the support of a univariate distribution."""
    found = type(distribution).support
    assert found is not None
    return found.ends(xp, distribution)


def is_contained(xp: Any, p: Any, q: Any) -> Any:
    """Whether the support of q contains the support of p, for univariate p and q: an array, or a bool for the batch.

    It is False for a distribution of counts and a density, which have no common dominating measure.
    """
    if is_count_family(type(p)) != is_count_family(type(q)):
        return False
    (low_p, high_p), (low_q, high_q) = support(xp, p), support(xp, q)
    return (low_p >= low_q) & (high_p <= high_q)
