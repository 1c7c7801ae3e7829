"""Exact KL divergence between discrete distributions, held as probabilities, log-probabilities or logits."""

from math import inf
from typing import Any

from kullback.discrete.kernels.dispatch import (
    quick_log_probs,
    quick_logits,
    quick_p_slopes,
    quick_probs,
    quick_q_slopes,
    quick_tensor_logits,
)
from kullback.discrete.log_ratios import difference, kl_events, logit_events, prob_events, q_gradient, sum_kl
from kullback.discrete.validation import events_last, require_log_probs, require_logits, require_probs
from kullback.numerics.arrays import Array, ArrayLike, cast, is_positive, map_row_blocks, with_gradient

__all__ = ["kl_log_probs", "kl_logits", "kl_probs", "kl_terms"]


def kl_probs(p: ArrayLike, q: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    """KL(p || q) of probabilities, in nats.

    KL(p || q) = sum_i p_i phi(log q_i/p_i), where phi(d) = e^d - 1 - d; the term of p_i = 0 is q_i. What rounding has
    left of each mass beside 1 is taken out, as KL(p/P || q/Q). Nothing is clamped or floored.

    Args:
        p: Probabilities, shape (..., n): each >= 0, with sum 1 along `axis` to within 1e-9 in float64, 1e-5 in
            float32, 2^-5 in float16 and bfloat16 (computed in float32).
        q: The same, broadcast against `p`.
        axis: The axis of events.
        where: True for the events that count, broadcast against `p`. The rest contribute nothing to either side,
            whatever they hold; `p` and `q` must each sum to 1 over those kept.

    Returns:
        Shape (...), nats, in the inputs' kind and dtype; `inf` where some p_i > 0 meets q_i = 0. The gradient is that
        of KL(p/P || q/Q), and is 0 by p_i at p_i = 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or a sum is not 1.
        ShapeError: The shapes do not broadcast, or there are no events.

    Example:
        >>> float(kl_probs([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]))
        0.6931471805599453
    """
    if where is None and (kl := quick_probs(p, q, axis)) is not None:
        return kl
    xp, [probs_p, probs_q], dtype = events_last(p, q, axis=axis, where=where, nothing=0.0)
    require_probs(xp, "p", p, probs_p, dtype, axis)
    require_probs(xp, "q", q, probs_q, dtype, axis)
    return cast(xp, _from_probs(xp, probs_p, probs_q), dtype)


def kl_log_probs(log_p: ArrayLike, log_q: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    """KL(p || q) of log-probabilities, in nats.

    KL(p || q) = sum_i p_i phi(log q_i - log p_i), where phi(d) = e^d - 1 - d; the term of p_i = 0 is q_i. What rounding
    has left of each mass beside 1 is taken out, as KL(p/P || q/Q).

    Args:
        log_p: Log-probabilities, shape (..., n), nats: -inf for an impossible event; the sum of exp(log_p) along
            `axis` is 1 to within 1e-9 in float64, 1e-5 in float32, 2^-5 in float16 and bfloat16.
        log_q: The same, broadcast against `log_p`.
        axis: The axis of events.
        where: True for the events that count, as in `kl_probs`.

    Returns:
        Shape (...), nats, in the inputs' kind and dtype; `inf` where log_q is -inf and log_p is not.

    Raises:
        NotNormalizedError: An entry is nan or far above 0, or a sum is not 1.
        ShapeError: The shapes do not broadcast, or there are no events.

    Example:
        >>> from math import log
        >>> float(kl_log_probs([log(0.5), log(0.5), -inf], [log(0.25), log(0.25), log(0.5)]))
        0.6931471805599453
    """
    if where is None and (kl := quick_log_probs(log_p, log_q, axis)) is not None:
        return kl
    xp, [logs_p, logs_q], dtype = events_last(log_p, log_q, axis=axis, where=where, nothing=-inf)
    require_log_probs(xp, "log_p", log_p, logs_p, dtype, axis)
    require_log_probs(xp, "log_q", log_q, logs_q, dtype, axis)
    return cast(xp, _from_logits(xp, logs_p, logs_q), dtype)


def kl_logits(p_logits: ArrayLike, q_logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    """KL(p || q) of p = softmax(p_logits) and q = softmax(q_logits), in nats.

    KL(p || q) = sum_i p_i phi(d_i), where phi(d) = e^d - 1 - d and d = q_logits - p_logits - log(Z_q / Z_p).

    Args:
        p_logits: Unnormalised log-probabilities, shape (..., n), nats: -inf for an impossible event.
        q_logits: The same, broadcast against `p_logits`.
        axis: The axis of events.
        where: True for the events that count; the rest are impossible under both, whatever they hold.

    Returns:
        Shape (...), nats, in the inputs' kind and dtype (float16 and bfloat16 are computed in float32); `inf` where
        q_logits is -inf and p_logits is not.

    Raises:
        SupportError: A logit is nan or +inf, or every logit of a row is -inf.
        ShapeError: The shapes do not broadcast, or there are no events.

    Example:
        >>> float(kl_logits([1.0, 1.0, -inf], [3.0, 3.0, -inf]))
        0.0
    """
    if where is None and (kl := quick_logits(p_logits, q_logits, axis)) is not None:
        return kl
    xp, [p_logits, q_logits], dtype = events_last(p_logits, q_logits, axis=axis, where=where, nothing=-inf)
    require_logits(xp, "p_logits", p_logits, axis)
    require_logits(xp, "q_logits", q_logits, axis)
    return cast(xp, _from_logits(xp, p_logits, q_logits), dtype)


def kl_terms(p: ArrayLike, q: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    """What each event contributes to KL(p || q): never negative, and the KL in sum.

    p_i phi(log q_i/p_i) = p_i log(p_i/q_i) - p_i + q_i, where phi(d) = e^d - 1 - d; q_i where p_i = 0. (The usual
    p_i log(p_i/q_i) has the same sum, but its terms take both signs.) The masses are as in `kl_probs`.

    Args:
        p: Probabilities, shape (..., n), as in `kl_probs`.
        q: The same, broadcast against `p`.
        axis: The axis of events.
        where: True for the events that count; the rest contribute 0.

    Returns:
        The shape of `p` and `q` broadcast, nats, in the inputs' kind and dtype; `inf` where p_i > 0 meets q_i = 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or a sum is not 1.
        ShapeError: The shapes do not broadcast, or there are no events.

    Example:
        >>> [round(float(term), 6) for term in kl_terms([0.5, 0.5, 0.0], [0.25, 0.5, 0.25])]
        [0.096574, 0.0, 0.25]
    """
    xp, [probs_p, probs_q], dtype = events_last(p, q, axis=axis, where=where, nothing=0.0)
    require_probs(xp, "p", p, probs_p, dtype, axis)
    require_probs(xp, "q", q, probs_q, dtype, axis)
    terms = _terms_from_probs(xp, probs_p, probs_q)
    return cast(xp, xp.moveaxis(terms, -1, axis) if terms.ndim > 1 else terms, dtype)


# Values and their gradients, of rows: events lie along the last axis.


def _log_p_gradient(xp: Any, kl: Array, p: Array, d: Array) -> Array:
    finite = (abs(d) < inf) & (p > 0)
    return p * xp.where(finite, -xp.where(finite, d, 0.0) - kl[..., None], 0.0)


def _logits_value(xp: Any, p_logits: Array, q_logits: Array) -> Array:
    kl = quick_tensor_logits(p_logits, q_logits)
    return _general_value(xp, p_logits, q_logits) if kl is None else kl


def _p_logits_gradient(xp: Any, gradient: Array, kl: Array, p_logits: Array, q_logits: Array) -> Array:
    slopes = quick_p_slopes(gradient, p_logits, q_logits)
    return _general_p_gradient(xp, gradient, kl, p_logits, q_logits) if slopes is None else slopes


def _q_logits_gradient(xp: Any, gradient: Array, _kl: Array, p_logits: Array, q_logits: Array) -> Array:
    slopes = quick_q_slopes(gradient, p_logits, q_logits)
    return _general_q_gradient(xp, gradient, p_logits, q_logits) if slopes is None else slopes


@map_row_blocks
def _general_value(xp: Any, p_logits: Array, q_logits: Array) -> Array:
    return sum_kl(xp, *logit_events(xp, p_logits, q_logits))


@map_row_blocks
def _general_p_gradient(xp: Any, gradient: Array, kl: Array, p_logits: Array, q_logits: Array) -> Array:
    p, _, d = logit_events(xp, p_logits, q_logits)
    return gradient[..., None] * _log_p_gradient(xp, kl, p, d)


@map_row_blocks
def _general_q_gradient(xp: Any, gradient: Array, p_logits: Array, q_logits: Array) -> Array:
    return gradient[..., None] * difference(xp, *logit_events(xp, p_logits, q_logits))


def _probs_value(xp: Any, p: Array, q: Array) -> Array:
    return sum_kl(xp, *prob_events(xp, p, q))


def _p_gradient(xp: Any, gradient: Array, kl: Array, p: Array, q: Array) -> Array:
    d = prob_events(xp, p, q)[2]
    slope = _log_p_gradient(xp, kl, xp.where(is_positive(xp, p), xp.ones_like(p), 0.0), d)
    return gradient[..., None] * slope / xp.sum(p, axis=-1, keepdims=True)


def _terms_value(xp: Any, p: Array, q: Array) -> Array:
    return kl_events(xp, *prob_events(xp, p, q))


def _terms_p_gradient(xp: Any, gradient: Array, _terms: Array, p: Array, q: Array) -> Array:
    normal, _, d = prob_events(xp, p, q)
    kept = is_positive(xp, p) & is_positive(xp, q)
    slope = -gradient * xp.where(kept, d, 0.0)
    shift = xp.sum(normal * slope, axis=-1, keepdims=True)
    return xp.where(kept, slope - shift, 0.0) / xp.sum(p, axis=-1, keepdims=True)


def _terms_q_gradient(xp: Any, gradient: Array, _terms: Array, p: Array, q: Array) -> Array:
    _, normal, d = prob_events(xp, p, q)
    kept = is_positive(xp, q)
    slope = -gradient * xp.expm1(-xp.where(kept, d, 0.0))
    shift = xp.sum(normal * slope, axis=-1, keepdims=True)
    return xp.where(kept, slope - shift, 0.0) / xp.sum(q, axis=-1, keepdims=True)


_from_logits = with_gradient(_logits_value, _p_logits_gradient, _q_logits_gradient)
_from_probs = with_gradient(*map(map_row_blocks, (_probs_value, _p_gradient, q_gradient)))
_terms_from_probs = with_gradient(*map(map_row_blocks, (_terms_value, _terms_p_gradient, _terms_q_gradient)))
