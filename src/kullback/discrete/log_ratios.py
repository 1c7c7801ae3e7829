"""The formula, written once: p and q normalised, and d = log q - log p without cancellation, event by event.

Events lie along the last axis. d is +inf where only p is 0, -inf where only q is, 0 where both are.
"""

from math import inf
from typing import Any

from kullback.numerics.arrays import Array, is_positive, log
from kullback.numerics.phi import phi

__all__ = ["difference", "kl_events", "logit_events", "prob_events", "q_gradient", "sum_kl"]


def prob_events(xp: Any, p: Array, q: Array) -> tuple[Array, Array, Array]:
    """p and q divided by their sums, and d, of probabilities."""
    some_p, some_q = is_positive(xp, p), is_positive(xp, q)
    least = xp.finfo(p.dtype).smallest_normal
    safe_p = xp.where(some_p, p, 1.0)
    change, ratio = (q - safe_p) / safe_p, q / safe_p
    # Within a factor of two q - p is exact; beyond, the quotient is, unless it leaves the range of normal numbers.
    near = some_p & (change >= -0.5) & (change <= 1)
    middle = some_p & (ratio >= least) & (ratio < inf)
    logs = log(xp, xp.where(some_q, q, 1.0)) - log(xp, safe_p)
    d = xp.where(middle, xp.log(xp.where(middle, ratio, 1.0)), logs)
    d = xp.where(near, xp.log1p(xp.where(near, change, 0.0)), d)
    d = xp.where(some_p, xp.where(some_q, d, -inf), xp.where(some_q, inf, xp.zeros_like(p)))
    mass = xp.sum(p, axis=-1, keepdims=True)
    return _centre(xp, p / mass, q / mass, d)


def logit_events(xp: Any, p_logits: Array, q_logits: Array) -> tuple[Array, Array, Array]:
    """p and q, the softmaxes of the logits, and d."""
    top_p = xp.max(p_logits, axis=-1, keepdims=True)
    top_q = xp.max(q_logits, axis=-1, keepdims=True)
    p, q = xp.exp(p_logits - top_p), xp.exp(q_logits - top_q)
    mass_p, mass_q = xp.sum(p, axis=-1, keepdims=True), xp.sum(q, axis=-1, keepdims=True)
    # Differences of logits, not of log-probabilities: nearby numbers subtract exactly.
    d = (q_logits - p_logits) - ((top_q - top_p) + xp.log(mass_q / mass_p))
    # Where both are impossible, -inf - -inf; a nan that was given stays.
    d = xp.where(xp.maximum(p_logits, q_logits) == -inf, 0.0, d)
    return _centre(xp, p / mass_p, q / mass_q, d)


def _centre(xp: Any, p: Array, q: Array, d: Array) -> tuple[Array, Array, Array]:
    """The same with q normalised, exactly: log of q's mass, as a sum of differences, comes off d."""
    excess = xp.sum(difference(xp, p, q, d), axis=-1, keepdims=True)
    return p, q / (1 + excess), d - xp.log1p(excess)


def difference(xp: Any, p: Array, q: Array, d: Array) -> Array:
    """q - p, without cancellation where they are nearly equal."""
    near = d < 1
    return xp.where(near, p * xp.expm1(xp.where(near, d, 0.0)), q - p)


def sum_kl(xp: Any, p: Array, q: Array, d: Array) -> Array:
    """KL(p || q): shape (...)."""
    total = xp.sum(_phi_terms(xp, p, q, d), axis=-1)
    # By d, since p may have underflowed.
    return xp.where(xp.min(d, axis=-1) == -inf, inf, total)


def kl_events(xp: Any, p: Array, q: Array, d: Array) -> Array:
    """p log(p/q) - p + q of each event: >= 0, and KL(p || q) in sum."""
    return xp.where(d == -inf, inf, _phi_terms(xp, p, q, d))


def _phi_terms(xp: Any, p: Array, q: Array, d: Array) -> Array:
    # e^d may overflow where p e^d does not, and p may have underflowed where q has not.
    far = q - p - p * xp.where(d < inf, d, 0.0)
    return xp.where(d < 1, p * phi(d), far)


def q_gradient(xp: Any, gradient: Array, _output: Array, p: Array, q: Array) -> Array:
    """The pullback by q of KL(p || q), and of the cross-entropy: 1 - p/q."""
    slope = -xp.expm1(-prob_events(xp, p, q)[2]) / xp.sum(q, axis=-1, keepdims=True)
    return gradient[..., None] * slope
