"""Rules shared by the adapters for independent components and for the supports that constraints describe."""

from math import inf
from typing import Any

import numpy as np

from kullback.families import Distribution, Independent

__all__ = ["constraint_bounds", "merged_independent", "support_interval"]


def merged_independent(base: Distribution, event_dims: int) -> Distribution:
    """`Independent` of `base`, with nested `Independent` merged into one; `base` itself for 0 event dimensions."""
    if isinstance(base, Independent):
        base, event_dims = base.base, event_dims + base.event_dims
    return Independent(base=base, event_dims=event_dims) if event_dims else base


def constraint_bounds(constraint: Any) -> tuple[Any, Any]:
    """Lower and upper bound of a constraint object of PyTorch or NumPyro; -inf and inf where it has none."""
    constraint = _innermost(constraint)
    return getattr(constraint, "lower_bound", -inf), getattr(constraint, "upper_bound", inf)


def support_interval(constraint: Any) -> tuple[float, float]:
    """The interval that a support constraint of PyTorch or NumPyro describes; the real line if it has no bounds."""
    if type(_innermost(constraint)).__name__ == "_Boolean":
        return 0.0, 1.0
    low, high = constraint_bounds(constraint)
    return float(np.min(np.asarray(low))), float(np.max(np.asarray(high)))


def _innermost(constraint: Any) -> Any:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint
