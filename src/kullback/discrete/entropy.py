"""Entropy and cross-entropy of discrete distributions."""

from math import inf
from typing import Any

from array_api_compat import device

from kullback.discrete.log_ratios import q_gradient
from kullback.discrete.validation import events_last, require_probs
from kullback.numerics.arrays import Array, ArrayLike, cast, is_positive, log, map_row_blocks, with_gradient

__all__ = ["cross_entropy", "entropy"]


def entropy(p: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    """The entropy H(p) of probabilities, in nats: what is left when KL(p || q) is taken from the cross-entropy.

    H(p) = -sum_i p_i log p_i, of p/P where rounding has left a mass P beside 1. Every term is added, none subtracted:
    a distribution that is all but certain keeps its digits.

    Args:
        p: Probabilities, shape (..., n), as in `kl_probs`.
        axis: The axis of events.
        where: True for the events that count, as in `kl_probs`.

    Returns:
        Shape (...), nats, in the input's kind and dtype: from 0 to log n. The gradient is 0 at p_i = 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or a sum is not 1.
        ShapeError: The shapes do not broadcast, or there are no events.

    Example:
        >>> float(entropy([0.5, 0.25, 0.25]))
        1.0397207708399179
    """
    xp, [probs], dtype = events_last(p, axis=axis, where=where, nothing=0.0)
    require_probs(xp, "p", p, probs, dtype, axis)
    return cast(xp, _entropy(xp, probs), dtype)


def cross_entropy(p: ArrayLike, q: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    """The cross-entropy H(p, q) = H(p) + KL(p || q) of probabilities, in nats.

    H(p, q) = -sum_i p_i log q_i, of p/P and q/Q where rounding has left masses P and Q beside 1: the mean length of a
    code for p that is made for q. Events with p_i = 0 add nothing, even where q_i = 0.

    Args:
        p: Probabilities, shape (..., n), as in `kl_probs`.
        q: The same, broadcast against `p`.
        axis: The axis of events.
        where: True for the events that count, as in `kl_probs`.

    Returns:
        Shape (...), nats, in the inputs' kind and dtype; `inf` where some p_i > 0 meets q_i = 0. The gradient is 0 by
        p at q_i = 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or a sum is not 1.
        ShapeError: The shapes do not broadcast, or there are no events.

    Example:
        >>> float(cross_entropy([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]))
        1.3862943611198906
    """
    xp, [probs_p, probs_q], dtype = events_last(p, q, axis=axis, where=where, nothing=0.0)
    require_probs(xp, "p", p, probs_p, dtype, axis)
    require_probs(xp, "q", q, probs_q, dtype, axis)
    return cast(xp, _cross_entropy(xp, probs_p, probs_q), dtype)


# Values and their gradients, of rows: events lie along the last axis.


def _surprise(xp: Any, q: Array) -> Array:
    """-log q_i/Q: `inf` at 0, and accurate where q_i is nearly all of Q."""
    largest = xp.max(q, axis=-1, keepdims=True)
    is_top = xp.arange(q.shape[-1], device=device(q)) == xp.argmax(q, axis=-1, keepdims=True)
    ratio, some = q / largest, is_positive(xp, q)
    # Subnormal quotients have lost digits.
    normal = ratio >= xp.finfo(q.dtype).smallest_normal
    logs = log(xp, xp.where(some, q, 1.0)) - xp.log(largest)
    logs = xp.where(normal, xp.log(xp.where(normal, ratio, 1.0)), logs)
    rest = xp.sum(xp.where(is_top, 0.0, ratio), axis=-1, keepdims=True)
    return xp.where(some, xp.log1p(rest) - logs, inf)


def _cross_entropy_value(xp: Any, p: Array, q: Array) -> Array:
    some, surprise = is_positive(xp, p), _surprise(xp, q)
    finite = some & (surprise < inf)
    total = xp.sum(xp.where(finite, p, 0.0) * xp.where(finite, surprise, 0.0), axis=-1) / xp.sum(p, axis=-1)
    return xp.where(xp.any(some & ~finite, axis=-1), inf, total)


def _p_gradient(xp: Any, gradient: Array, value: Array, p: Array, q: Array) -> Array:
    surprise = _surprise(xp, q)
    finite = surprise < inf
    slope = xp.where(finite, xp.where(finite, surprise, 0.0) - value[..., None], 0.0)
    return gradient[..., None] * slope / xp.sum(p, axis=-1, keepdims=True)


def _entropy_value(xp: Any, p: Array) -> Array:
    return _cross_entropy_value(xp, p, p)


def _entropy_gradient(xp: Any, gradient: Array, value: Array, p: Array) -> Array:
    return _p_gradient(xp, gradient, value, p, p)


_entropy = with_gradient(*map(map_row_blocks, (_entropy_value, _entropy_gradient)))
_cross_entropy = with_gradient(*map(map_row_blocks, (_cross_entropy_value, _p_gradient, q_gradient)))
