"""Entropy and cross-entropy of discrete distributions, from probabilities."""

from math import inf
from typing import Any

from array_api_compat import device

from kullback.discrete.log_ratios import q_probs_gradient
from kullback.discrete.validation import events_last, require_probs
from kullback.numerics.array_types import ArrayInput, ArrayT, Float, PerEvent, PerRow
from kullback.numerics.arrays import ArrayLike, cast, is_positive, log, map_row_blocks, with_gradient

__all__ = ["cross_entropy", "entropy"]


def entropy(p: ArrayInput[ArrayT], *, axis: int = -1, where: ArrayLike | None = None) -> Float[ArrayT, "..."]:
    """The entropy H(p) of probabilities, in nats.

    H(p) = -sum_i p_i log p_i, and H(p) = H(p, q) - KL(p || q) for the cross-entropy H(p, q). If rounding leaves the sum
    P slightly different from 1, the result is H(p/P). All terms are non-negative, so that the entropy is accurate for
    distributions with one probability close to 1.

    Args:
        p: Probabilities, shape (..., n); >= 0, with sum 1 along `axis`. The tolerance of the sum is 1e-9 in float64,
            max(1e-5, 2^-20 sqrt(n)) in float32, 2^-10 + 2^-25 n in float16 and 2^-7 in bfloat16, which are computed in
            float32.
        axis: The axis that indexes the events.
        where: Boolean mask, True for the events that are included, broadcast against `p`.

    Returns:
        The entropy in nats, between 0 and log n, shape (...), with the array type and dtype of the input. The component
        of the gradient for p_i is 0 at p_i = 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or the probabilities do not sum to 1.
        ShapeError: The shapes do not broadcast, or `axis` has no events.

    Example:
        >>> float(entropy([0.5, 0.25, 0.25]))
        1.0397207708399179
    """
    xp, [probs], dtype = events_last(p, axis=axis, where=where, fill=0.0)
    require_probs(xp, "p", p, probs, dtype, axis)
    return cast(xp, differentiable_entropy(xp, probs), dtype)


def cross_entropy(
    p: ArrayInput[ArrayT], q: ArrayInput[ArrayT], *, axis: int = -1, where: ArrayLike | None = None
) -> Float[ArrayT, "..."]:
    """The cross-entropy H(p, q) = H(p) + KL(p || q) of probabilities, in nats.

    H(p, q) = -sum_i p_i log q_i: the mean length, in nats, of a code that is optimal for q when the symbols are drawn
    from p. Events with p_i = 0 contribute 0, even where q_i = 0. If rounding leaves the sums P and Q slightly different
    from 1, the result is H(p/P, q/Q).

    Args:
        p: Probabilities, shape (..., n); >= 0, with sum 1 along `axis`. The tolerance of the sum is 1e-9 in float64,
            max(1e-5, 2^-20 sqrt(n)) in float32, 2^-10 + 2^-25 n in float16 and 2^-7 in bfloat16, which are computed in
            float32.
        q: Probabilities with the same constraints, broadcast against `p`.
        axis: The axis that indexes the events.
        where: Boolean mask, True for the events that are included, broadcast against `p`.

    Returns:
        The cross-entropy in nats, shape (...), with the array type and dtype of the inputs; `inf` where q_i = 0 for
        some p_i > 0. The component of the gradient for p_i is 0 at q_i = 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or the probabilities do not sum to 1.
        ShapeError: The shapes do not broadcast, or `axis` has no events.

    Example:
        >>> float(cross_entropy([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]))
        1.3862943611198906
    """
    xp, [probs_p, probs_q], dtype = events_last(p, q, axis=axis, where=where, fill=0.0)
    require_probs(xp, "p", p, probs_p, dtype, axis)
    require_probs(xp, "q", q, probs_q, dtype, axis)
    return cast(xp, _cross_entropy(xp, probs_p, probs_q), dtype)


# Values and gradients for rows of events: the events lie along the last axis.


def _surprisal(xp: Any, q: PerEvent) -> PerEvent:
    """-log(q_i / Q) with Q = sum(q): `inf` at q_i = 0, and accurate where q_i is close to Q."""
    largest = xp.max(q, axis=-1, keepdims=True)
    is_top = xp.arange(q.shape[-1], device=device(q)) == xp.argmax(q, axis=-1, keepdims=True)
    ratio, some = q / largest, is_positive(xp, q)
    # Subnormal quotients are inaccurate; use the difference of the logarithms instead.
    normal = ratio >= xp.finfo(q.dtype).smallest_normal
    logs = log(xp, xp.where(some, q, 1.0)) - xp.log(largest)
    logs = xp.where(normal, xp.log(xp.where(normal, ratio, 1.0)), logs)
    rest = xp.sum(xp.where(is_top, 0.0, ratio), axis=-1, keepdims=True)
    return xp.where(some, xp.log1p(rest) - logs, inf)


def _cross_entropy_value(xp: Any, p: PerEvent, q: PerEvent) -> PerRow:
    some, surprisal = is_positive(xp, p), _surprisal(xp, q)
    finite = some & (surprisal < inf)
    total = xp.sum(xp.where(finite, p, 0.0) * xp.where(finite, surprisal, 0.0), axis=-1) / xp.sum(p, axis=-1)
    return xp.where(xp.any(some & ~finite, axis=-1), inf, total)


def _p_gradient(xp: Any, gradient: PerRow, value: PerRow, p: PerEvent, q: PerEvent) -> PerEvent:
    surprisal = _surprisal(xp, q)
    finite = surprisal < inf
    slope = xp.where(finite, xp.where(finite, surprisal, 0.0) - value[..., None], 0.0)
    return gradient[..., None] * slope / xp.sum(p, axis=-1, keepdims=True)


def _entropy_value(xp: Any, p: PerEvent) -> PerRow:
    return _cross_entropy_value(xp, p, p)


def _entropy_gradient(xp: Any, gradient: PerRow, value: PerRow, p: PerEvent) -> PerEvent:
    return _p_gradient(xp, gradient, value, p, p)


differentiable_entropy = with_gradient(*map(map_row_blocks, (_entropy_value, _entropy_gradient)))
_cross_entropy = with_gradient(*map(map_row_blocks, (_cross_entropy_value, _p_gradient, q_probs_gradient)))
