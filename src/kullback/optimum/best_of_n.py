"""Best-of-n sampling: the distribution of the best of n samples from a reference, and its exact KL."""

from dataclasses import dataclass
from math import inf
from typing import Any, Generic

import numpy as np

from kullback.discrete.kl import kl_logits
from kullback.discrete.validation import require_equal_events, require_probs
from kullback.errors import ShapeError, SupportError
from kullback.numerics.array_types import ArrayInput, ArrayT
from kullback.numerics.arrays import Array, as_floats, cast, holds, is_positive, log, untracked
from kullback.numerics.labels import require_unlabelled
from kullback.numerics.phi import phi
from kullback.numerics.records import EqualByValue

__all__ = ["BestOfN", "best_of_n_kl_bound", "best_of_n_policy"]


@dataclass(frozen=True, eq=False)
class BestOfN(EqualByValue, Generic[ArrayT]):
    """The best-of-n policy with its KL and its expected reward.

    Args:
        policy: Probabilities, shape (..., k).
        kl: KL(policy || ref), nats, shape (...): at most `best_of_n_kl_bound(n)`.
        expected_reward: The mean reward of the policy, shape (...).
    """

    policy: ArrayT
    kl: ArrayT
    expected_reward: ArrayT


def best_of_n_kl_bound(n: ArrayInput[ArrayT]) -> ArrayT:
    """An upper bound on KL(best of n || ref) that holds for every reference and reward.

        bound = log n - (n - 1)/n = phi(-log n), where phi(d) = e^d - 1 - d

    The bound is attained if `ref` is continuous and no two rewards are equal.

    Args:
        n: The number of samples, >= 1, any shape.

    Returns:
        Same shape as `n`, nats; 0 at n = 1, finite for finite n.

    Raises:
        SupportError: n is less than 1 or nan.

    References:
        Beirami et al. (2024), "Theoretical guarantees on the best-of-n alignment policy", theorem 1 [beirami2024].

    Example:
        >>> [round(float(best_of_n_kl_bound(n)), 3) for n in (1, 2, 4, 16, 64, 1000)]
        [0.0, 0.193, 0.636, 1.835, 3.175, 5.909]
    """
    xp, [count], _ = as_floats(n)
    _require_sample_count(xp, count)
    return phi(-log(xp, count))


def best_of_n_policy(ref: ArrayInput[ArrayT], reward: ArrayInput[ArrayT], n: ArrayInput[ArrayT]) -> BestOfN[ArrayT]:
    """The distribution of the best of n samples from `ref`, and its exact KL(policy || ref).

        policy_i = ref_i (F^n - G^n) / (F - G),   F = P_ref(reward <= reward_i),   G = P_ref(reward < reward_i)

    Ties between the best samples are broken uniformly at random.

    Args:
        ref: Probabilities, shape (..., k): each >= 0, with sum 1 up to rounding. The sum is divided out.
        reward: Rewards, broadcast against `ref`; finite where ref > 0, ignored where ref is 0.
        n: The number of samples, >= 1, broadcast against shape (...).

    Returns:
        A `BestOfN`: arrays of the inputs' library and dtype; `kl` in nats. The KL is never `inf`.

    Raises:
        NotNormalizedError: An entry of `ref` is negative or nan, or a sum is not 1.
        SupportError: A reward is not finite where ref > 0, or n is less than 1, infinite or nan.
        ShapeError: The shapes do not broadcast, or the last axis is empty.

    References:
        Beirami et al. (2024), "Theoretical guarantees on the best-of-n alignment policy", lemma 1 [beirami2024].

    Example:
        >>> best = best_of_n_policy([0.5, 0.25, 0.25], [0.0, 1.0, 1.0], 2)
        >>> best.policy, float(best.kl.round(4)), float(best.expected_reward)
        (array([0.25 , 0.375, 0.375]), 0.1308, 0.75)
    """
    require_unlabelled("n", n)
    xp, [probs, values, count], dtype = as_floats(ref, reward, n)
    shapes = f"{tuple(probs.shape)}, {tuple(values.shape)} and {tuple(count.shape)}"
    _require_sample_count(xp, count)
    if holds(xp.any(untracked(count) == inf)):
        raise SupportError("expected a finite n, the number of samples, got inf; for the limit, pass a large n")
    require_equal_events([tuple(probs.shape), tuple(values.shape)], -1)
    try:
        probs, values, count = xp.broadcast_arrays(probs, values, count[..., None])
    except (ValueError, RuntimeError) as error:
        raise ShapeError(f"expected shapes that broadcast, got {shapes}") from error
    if probs.ndim == 0 or probs.shape[-1] == 0:
        raise ShapeError(f"expected at least one event along the last axis, got shapes {shapes}")
    require_probs(xp, "ref", ref, probs, dtype, -1)
    possible = is_positive(xp, probs)
    if holds(xp.any(possible & ~(abs(untracked(values)) < inf))):
        raise SupportError("expected a finite reward wherever ref > 0; to exclude an event, set its ref to 0")
    with np.errstate(all="ignore"):
        probs = probs / xp.sum(probs, axis=-1, keepdims=True)
        values = xp.where(possible, values, -inf)
        log_ratio = _log_ratio(xp, probs, untracked(values), count)
        policy = xp.where(possible, probs * xp.exp(log_ratio), 0.0)
        logs = xp.where(possible, log(xp, xp.where(possible, probs, 1.0)), -inf)
        kl = kl_logits(xp.where(possible, logs + log_ratio, -inf), logs)
        mean = xp.sum(policy * xp.where(possible, values, 0.0), axis=-1)
    return BestOfN(cast(xp, policy, dtype), cast(xp, kl, dtype), cast(xp, mean, dtype))


def _log_ratio(xp: Any, probs: Array, values: Array, n: Array) -> Array:
    """log(policy/ref) = (n - 1) log F + log((1 - y^n) / (1 - y)), where y = G / F.

    F, G and their complements are cumulative sums over rewards in increasing order.
    """
    order = xp.argsort(values, axis=-1)
    probs, values = (xp.take_along_axis(array, order, axis=-1) for array in (probs, values))
    first, last = _ties(xp, values)
    zero = xp.zeros_like(probs[..., :1])
    below = xp.concat([zero, xp.cumulative_sum(probs, axis=-1)], axis=-1)
    above = xp.flip(xp.concat([zero, xp.cumulative_sum(xp.flip(probs, axis=-1), axis=-1)], axis=-1), axis=-1)
    at_most, less, greater, at_least = (
        xp.take_along_axis(sums, index, axis=-1)
        for sums, index in ((below, last), (below, first), (above, last), (above, first))
    )
    at_most = xp.where(at_most > 0, at_most, 1.0)
    # The smaller of two complementary sums has the smaller rounding error.
    upper = greater < 0.5
    log_at_most = xp.where(upper, xp.log1p(-xp.where(upper, greater, 0.0)), xp.log(at_most))
    # (1 - y^n) / (1 - y) = 1 + y (1 - y^(n - 1)) / (1 - y), which is 1 for n = 1 and n for x = 1 - y = 0.
    x = xp.where(upper, at_least - greater, at_most - less) / at_most
    near, equal = x < 0.5, x == 0
    x = xp.where(near & ~equal, x, 0.25)
    y = xp.where(near | (less == 0), 0.5, less / at_most)
    of_x = (1 - x) * -xp.expm1((n - 1) * xp.log1p(-x)) / x
    of_y = y * -xp.expm1((n - 1) * xp.log(y)) / (1 - y)
    more = xp.where(near, xp.where(equal, n - 1, of_x), xp.where(less == 0, 0.0, of_y))
    return xp.take_along_axis((n - 1) * log_at_most + xp.log1p(more), xp.argsort(order, axis=-1), axis=-1)


def _ties(xp: Any, values: Array) -> tuple[Array, Array]:
    """The start and the exclusive end of the run of equal values that contains each value, along sorted rows."""
    *lead, width = values.shape
    rises = xp.astype(values[..., 1:] != values[..., :-1], xp.int64)
    rank = xp.concat([xp.zeros_like(values[..., :1], dtype=xp.int64), xp.cumulative_sum(rises, axis=-1)], axis=-1)
    # An offset of `width` per row makes the ranks of all rows one increasing sequence, which one search can process.
    rank = xp.reshape(rank, (-1, width))
    row = (xp.cumulative_sum(xp.ones_like(rank[:, :1]), axis=0) - 1) * width
    flat = xp.reshape(rank + row, (-1,))
    ends = (xp.reshape(xp.searchsorted(flat, flat, side=side), (-1, width)) - row for side in ("left", "right"))
    first, last = (xp.reshape(end, (*lead, width)) for end in ends)
    return first, last


def _require_sample_count(xp: Any, count: Array) -> None:
    """Raises SupportError unless every number of samples is at least 1."""
    invalid = ~(untracked(count) >= 1)
    if holds(xp.any(invalid)):
        index = tuple(int(axis[0]) for axis in xp.nonzero(invalid)) if invalid.ndim else ()
        position = f"[{', '.join(map(str, index))}]" if index else ""
        raise SupportError(f"expected n >= 1, the number of samples, but n{position} is {float(count[index])!r}")
