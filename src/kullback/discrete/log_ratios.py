"""Normalised p and q with the log-ratio d = log q - log p of each event, computed without cancellation.

Events lie along the last axis. d is +inf where only p is 0, -inf where only q is 0, and 0 where both are 0.
"""

from math import inf
from typing import Any

from kullback.numerics.array_types import Bool, PerEvent, PerRow
from kullback.numerics.arrays import is_positive, log
from kullback.numerics.phi import phi

__all__ = [
    "kl_per_event",
    "log_ratio_quarters",
    "normalize_logits",
    "normalize_probs",
    "prob_difference",
    "q_probs_gradient",
    "sum_kl",
    "sum_kl_of_far_logits",
]


def normalize_probs(xp: Any, p: PerEvent, q: PerEvent) -> tuple[PerEvent, PerEvent, PerEvent]:
    """p and q divided by their sums, and d, from probabilities."""
    some_p, some_q = is_positive(xp, p), is_positive(xp, q)
    least = xp.finfo(p.dtype).smallest_normal
    safe_p = xp.where(some_p, p, 1.0)
    change, ratio = (q - safe_p) / safe_p, q / safe_p
    # q - p is exact where p and q differ by less than a factor of 2. Elsewhere the quotient is accurate, unless it
    # overflows or is subnormal.
    near = some_p & (change >= -0.5) & (change <= 1)
    middle = some_p & (ratio >= least) & (ratio < inf)
    logs = log(xp, xp.where(some_q, q, 1.0)) - log(xp, safe_p)
    d = xp.where(middle, xp.log(xp.where(middle, ratio, 1.0)), logs)
    d = xp.where(near, xp.log1p(xp.where(near, change, 0.0)), d)
    d = xp.where(some_p, xp.where(some_q, d, -inf), xp.where(some_q, inf, xp.zeros_like(p)))
    mass = xp.sum(p, axis=-1, keepdims=True)
    return _renormalize_q(xp, p / mass, q / mass, d)


def normalize_logits(xp: Any, p_logits: PerEvent, q_logits: PerEvent) -> tuple[PerEvent, PerEvent, PerEvent]:
    """p and q, the softmax of the logits, and d."""
    top_p = xp.max(p_logits, axis=-1, keepdims=True)
    top_q = xp.max(q_logits, axis=-1, keepdims=True)
    # Where the tops differ by much, the difference of the logits would round the log-ratios.
    far = abs(top_q - top_p) > 1024
    p_logits, q_logits = p_logits - xp.where(far, top_p, 0.0), q_logits - xp.where(far, top_q, 0.0)
    top_p, top_q = xp.where(far, 0.0, top_p), xp.where(far, 0.0, top_q)
    p, q = xp.exp(p_logits - top_p), xp.exp(q_logits - top_q)
    mass_p, mass_q = xp.sum(p, axis=-1, keepdims=True), xp.sum(q, axis=-1, keepdims=True)
    # Subtract logits rather than log-probabilities, because the difference of nearly equal logits is exact.
    d = (q_logits - p_logits) - ((top_q - top_p) + xp.log(mass_q / mass_p))
    # Where both logits are -inf the difference is nan and d is 0; a nan of the input is kept.
    d = xp.where(xp.maximum(p_logits, q_logits) == -inf, 0.0, d)
    return _renormalize_q(xp, p / mass_p, q / mass_q, d)


def _renormalize_q(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> tuple[PerEvent, PerEvent, PerEvent]:
    """p, q and d after normalising q once more: the mass of q is 1 + sum(q - p), computed without cancellation."""
    excess = xp.sum(prob_difference(xp, p, q, d), axis=-1, keepdims=True)
    return p, q / (1 + excess), d - xp.log1p(excess)


def prob_difference(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerEvent:
    """q - p from d, without cancellation where p and q are nearly equal."""
    near = d < 1
    return xp.where(near, p * xp.expm1(xp.where(near, d, 0.0)), q - p)


def sum_kl(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerRow:
    """KL(p || q) = sum_i p_i phi(d_i), shape (...)."""
    total = xp.sum(_phi_terms(xp, p, q, d), axis=-1)
    # d identifies infinite terms, because p may have underflowed to 0.
    return xp.where(xp.min(d, axis=-1) == -inf, inf, total)


def sum_kl_of_far_logits(xp: Any, p_logits: PerEvent, q_logits: PerEvent) -> PerRow:
    """KL(p || q) of logits whose differences may exceed the largest number of the dtype, shape (...).

    The result is `inf` where the KL is infinite or exceeds the largest number, and not where only a log-ratio does.
    """
    p, q, d = normalize_logits(xp, p_logits, q_logits)
    quarters, far = log_ratio_quarters(xp, p_logits, q_logits, d)
    near_total = sum_kl(xp, p, q, xp.where(far, 0.0, d))
    log_p = p_logits - xp.max(p_logits, axis=-1, keepdims=True)
    log_p = log_p - xp.log(xp.sum(xp.exp(log_p), axis=-1, keepdims=True))
    # p_i may be subnormal or 0 where p_i d_i is not.
    products = xp.where(p >= xp.finfo(p.dtype).smallest_normal, -p * quarters, xp.exp(log_p + xp.log(-quarters)))
    return near_total + 4 * xp.sum(xp.where(far, products, 0.0), axis=-1)


def log_ratio_quarters(
    xp: Any, p_logits: PerEvent, q_logits: PerEvent, d: PerEvent
) -> tuple[PerEvent, Bool[Any, "*batch n"]]:
    """d / 4 of the events whose d is below the least number of the dtype, and which events these are.

    The quarters of other events are -1.
    """
    far = (d == -inf) & (p_logits > -inf) & (q_logits > -inf)
    top_p, top_q = (xp.max(logits, axis=-1, keepdims=True) for logits in (p_logits, q_logits))
    quarters = (q_logits / 4 - top_q / 4) - (p_logits / 4 - top_p / 4)
    return xp.where(far, quarters, -1.0), far


def kl_per_event(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerEvent:
    """p_i log(p_i / q_i) - p_i + q_i >= 0 for each event; the sum is KL(p || q)."""
    return xp.where(d == -inf, inf, _phi_terms(xp, p, q, d))


def _phi_terms(xp: Any, p: PerEvent, q: PerEvent, d: PerEvent) -> PerEvent:
    """p_i phi(d_i), and q_i where p_i = 0."""
    # e^d may overflow although p e^d = q does not, and p may have underflowed although q has not.
    far = q - p - p * xp.where(d < inf, d, 0.0)
    return xp.where(d < 1, p * phi(d), far)


def q_probs_gradient(xp: Any, gradient: PerRow, _output: PerRow, p: PerEvent, q: PerEvent) -> PerEvent:
    """The vector-Jacobian product with respect to q of KL(p || q) and of the cross-entropy: (1 - p/q) / sum(q)."""
    slope = -xp.expm1(-normalize_probs(xp, p, q)[2]) / xp.sum(q, axis=-1, keepdims=True)
    return gradient[..., None] * slope
