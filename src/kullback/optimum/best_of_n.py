"""Best of n: the policy that draws n times from its reference and keeps the best, and its exact KL."""

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from kullback.discrete.kl import kl_logits
from kullback.discrete.validation import require_probs
from kullback.errors import ShapeError, SupportError
from kullback.numerics.arrays import Array, ArrayLike, as_floats, cast, holds, is_positive, log, untracked
from kullback.numerics.phi import phi

__all__ = ["BestOfN", "best_of_n_kl_bound", "best_of_n_policy"]


@dataclass(frozen=True)
class BestOfN:
    """The best-of-n policy, what it costs and what it earns.

    Args:
        policy: Probabilities, shape (..., k).
        kl: KL(policy || ref), nats, shape (...): at most `best_of_n_kl_bound(n)`.
        expected_reward: The policy's mean reward, shape (...).
    """

    policy: Array
    kl: Array
    expected_reward: Array


def best_of_n_kl_bound(n: ArrayLike) -> Array:
    """The bound on KL(best of n || ref), in nats, that holds for any `ref` and reward: log n - (n - 1)/n.

    It is phi(-log n), where phi(d) = e^d - 1 - d, and is met where `ref` is continuous and no two rewards are equal.

    Args:
        n: How many draws, >= 1, any shape.

    Returns:
        Same shape, nats; 0 at n = 1.

    Raises:
        SupportError: n is below 1 or nan.

    Source: [beirami2024], theorem 1.

    Example:
        >>> [round(float(best_of_n_kl_bound(n)), 3) for n in (1, 2, 4, 16, 64, 1000)]
        [0.0, 0.193, 0.636, 1.835, 3.175, 5.909]
    """
    xp, [count], _ = as_floats(n)
    _require_draws(xp, count)
    return phi(-log(xp, count))


def best_of_n_policy(ref: ArrayLike, reward: ArrayLike, n: ArrayLike) -> BestOfN:
    """What the best of n draws from `ref` is distributed as, and its exact KL(policy || ref).

    policy_i = ref_i (F^n - G^n) / (F - G), where F and G are the probabilities under `ref` of a reward at most, and
    below, reward_i: among the draws that tie for the best, any is kept with equal chance.

    Args:
        ref: Probabilities, shape (..., k): each >= 0, with sum 1 to rounding, which is taken out.
        reward: Rewards, broadcast against `ref`; finite where ref > 0, of no account where ref is 0.
        n: How many draws, >= 1, broadcast against shape (...).

    Returns:
        `BestOfN`: arrays of the inputs' kind and dtype. Nothing is infinite.

    Raises:
        NotNormalizedError: An entry of `ref` is negative or nan, or a sum is not 1.
        SupportError: A reward that counts is not finite, or n is below 1 or nan.
        ShapeError: The shapes do not broadcast, or there is nothing to choose from.

    Source: [beirami2024], lemma 1.

    Example:
        >>> best = best_of_n_policy([0.5, 0.25, 0.25], [0.0, 1.0, 1.0], 2)
        >>> best.policy, float(best.kl.round(4)), float(best.expected_reward)
        (array([0.25 , 0.375, 0.375]), 0.1308, 0.75)
    """
    xp, [probs, values, count], dtype = as_floats(ref, reward, n)
    shapes = f"{tuple(probs.shape)}, {tuple(values.shape)} and {tuple(count.shape)}"
    _require_draws(xp, count)
    try:
        probs, values, count = xp.broadcast_arrays(probs, values, count[..., None])
    except (ValueError, RuntimeError) as error:
        raise ShapeError(f"expected shapes that broadcast, got {shapes}") from error
    if probs.ndim == 0 or probs.shape[-1] == 0:
        raise ShapeError(f"expected something to choose from along the last axis, got shapes {shapes}")
    require_probs(xp, "ref", ref, probs, dtype, -1)
    possible = is_positive(xp, probs)
    if holds(xp.any(possible & ~(abs(untracked(values)) < inf))):
        raise SupportError("expected a finite reward wherever ref > 0; where a choice is forbidden, give ref 0")
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
    """log policy/ref = (n - 1) log F + log (1 - y^n) / (1 - y), where y = G / F."""
    order = xp.argsort(values, axis=-1)
    probs, values = (xp.take_along_axis(array, order, axis=-1) for array in (probs, values))
    first, last = _ties(xp, values)
    none = xp.zeros_like(probs[..., :1])
    below = xp.concat([none, xp.cumulative_sum(probs, axis=-1)], axis=-1)
    above = xp.flip(xp.concat([none, xp.cumulative_sum(xp.flip(probs, axis=-1), axis=-1)], axis=-1), axis=-1)
    up_to, less, more, rest = (
        xp.take_along_axis(sums, index, axis=-1)
        for sums, index in ((below, last), (below, first), (above, last), (above, first))
    )
    up_to = xp.where(up_to > 0, up_to, 1.0)
    # From the sums that are small, and keep their digits.
    upper = more < 0.5
    log_up_to = xp.where(upper, xp.log1p(-xp.where(upper, more, 0.0)), xp.log(up_to))
    # (1 - y^n) / (1 - y) is smooth in x = 1 - y, and n at x = 0.
    x = xp.where(upper, rest - more, up_to - less) / up_to
    near = x < 0.5
    small = xp.where(near & (x != 0), x, 0.25)
    smooth = -xp.expm1(n * xp.log1p(-small)) / small
    lower = xp.where(near | (less == 0), 0.0, less / up_to)
    power = xp.where(lower > 0, xp.exp(n * xp.log(xp.where(lower > 0, lower, 1.0))), 0.0)
    share = xp.where(near, xp.where(x == 0, n, smooth), (1 - power) / xp.where(near, 1.0, 1 - lower))
    return xp.take_along_axis((n - 1) * log_up_to + xp.log(share), xp.argsort(order, axis=-1), axis=-1)


def _ties(xp: Any, values: Array) -> tuple[Array, Array]:
    """Where the values equal to each begin and end, along sorted rows."""
    *lead, width = values.shape
    rises = xp.astype(values[..., 1:] != values[..., :-1], xp.int64)
    level = xp.concat([xp.zeros_like(values[..., :1], dtype=xp.int64), xp.cumulative_sum(rises, axis=-1)], axis=-1)
    # All rows in one: the levels of a row lie above those of the row before.
    level = xp.reshape(level, (-1, width))
    row = (xp.cumulative_sum(xp.ones_like(level[:, :1]), axis=0) - 1) * width
    flat = xp.reshape(level + row, (-1,))
    ends = (xp.reshape(xp.searchsorted(flat, flat, side=side), (-1, width)) - row for side in ("left", "right"))
    first, last = (xp.reshape(end, (*lead, width)) for end in ends)
    return first, last


def _require_draws(xp: Any, count: Array) -> None:
    bad = ~(untracked(count) >= 1)
    if holds(xp.any(bad)):
        index = tuple(int(axis[0]) for axis in xp.nonzero(bad)) if bad.ndim else ()
        raise SupportError(f"expected n >= 1 draws, got {float(count[index])!r}")
