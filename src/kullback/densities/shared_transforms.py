"""Removal of the invertible maps that two distributions of one library share, under which KL is invariant."""

from typing import Any

import array_api_compat
import numpy as np

from kullback.densities.resolve import adapter_of
from kullback.numerics.arrays import as_numpy

__all__ = ["same_transform", "without_shared_transforms"]


def without_shared_transforms(p: Any, q: Any) -> tuple[Any, Any] | None:
    """Two distributions without the outermost invertible maps that they share; None if they share none.

    KL(p || q) is unchanged by an invertible map, so it is the KL of the distributions before the map.

    Args:
        p: A distribution of PyTorch or NumPyro.
        q: A distribution of the same library.

    Example:
        >>> import torch.distributions as d
        >>> images = [d.TransformedDistribution(d.Normal(x, 1.0), d.ExpTransform()) for x in (0.0, 1.0)]
        >>> without_shared_transforms(*images)
        (Normal(loc: 0.0, scale: 1.0), Normal(loc: 1.0, scale: 1.0))
    """
    adapter = adapter_of(p)
    if adapter is None or adapter is not adapter_of(q) or not hasattr(adapter, "split_transforms"):
        return None
    if type(p).__name__ == type(q).__name__ == "Independent":
        count = p.reinterpreted_batch_ndims
        bases = without_shared_transforms(p.base_dist, q.base_dist) if count == q.reinterpreted_batch_ndims else None
        return bases and (adapter.as_independent(bases[0], count), adapter.as_independent(bases[1], count))
    (base_p, parts_p), (base_q, parts_q) = adapter.split_transforms(p), adapter.split_transforms(q)
    shared = 0
    while parts_p and parts_q and same_transform(parts_p[-1], parts_q[-1]):
        inner = adapter.with_transforms(base_p, parts_p[:-1]), adapter.with_transforms(base_q, parts_q[:-1])
        if not all(adapter.is_injective(each, parts_p[-1]) for each in inner):
            break
        parts_p, parts_q, shared = parts_p[:-1], parts_q[:-1], shared + 1
    if not shared:
        return None
    return adapter.with_transforms(base_p, parts_p), adapter.with_transforms(base_q, parts_q)


def same_transform(a: Any, b: Any) -> bool:
    """Whether two transforms of a library are the same map: equal by `==`, or of one class with equal attributes."""
    if a is b:
        return True
    try:
        if bool(a == b):
            return True
    except (RuntimeError, TypeError, ValueError):  # such as == of arrays of different shapes
        pass
    if type(a) is not type(b) or "Transform" not in type(a).__name__:
        return False
    attributes = [{name: v for name, v in vars(x).items() if not name.startswith("_cache")} for x in (a, b)]
    for one in attributes:
        if one.get("_inv") is None:  # a reference to the inverse, which refers back to this transform
            one.pop("_inv", None)
    if attributes[0].keys() != attributes[1].keys():
        return False
    return all(_same_value(attributes[0][name], attributes[1][name]) for name in attributes[0])


def _same_value(a: Any, b: Any) -> bool:
    if array_api_compat.is_array_api_obj(a) or array_api_compat.is_array_api_obj(b):
        return bool(np.array_equal(as_numpy(a), as_numpy(b)))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same_value, a, b))
    if isinstance(a, bool | int | float | str | type(None)):
        return a == b
    return same_transform(a, b)
