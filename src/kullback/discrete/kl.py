"""Exact KL divergence between discrete distributions, from probabilities, log-probabilities or logits."""

from collections.abc import Callable
from importlib import import_module
from math import inf
from typing import Any

from array_api_compat import is_jax_namespace, is_torch_namespace

from kullback.discrete.kernels.dispatch import (
    fast_kl_log_probs,
    fast_kl_logits,
    fast_kl_logits_autograd,
    fast_kl_logits_grad_p,
    fast_kl_logits_grad_q,
    fast_kl_probs,
)
from kullback.discrete.log_ratios import (
    kl_per_event,
    log_ratio_quarters,
    normalize_logits,
    normalize_probs,
    prob_difference,
    q_probs_gradient,
    sum_kl,
    sum_kl_of_far_logits,
)
from kullback.discrete.validation import events_last, require_log_probs, require_logits, require_probs
from kullback.numerics.array_types import ArrayInput, ArrayT, Float, PerEvent, PerRow
from kullback.numerics.arrays import (
    Array,
    ArrayLike,
    cast,
    holds,
    is_compiling,
    is_positive,
    map_row_blocks,
    with_gradient,
)

__all__ = ["kl_log_probs", "kl_logits", "kl_probs", "kl_terms"]

_OF_LOGITS = "pass logarithms to kl_log_probs or kl_logits"  # a remedy, for messages


def kl_probs(
    p: ArrayInput[ArrayT], q: ArrayInput[ArrayT], *, axis: int = -1, where: ArrayLike | None = None
) -> Float[ArrayT, "..."]:
    """KL(p || q) of probabilities, in nats.

    KL(p || q) = sum_i p_i phi(log(q_i / p_i)), where phi(d) = e^d - 1 - d and the term of p_i = 0 is q_i. The terms are
    non-negative and do not cancel. If rounding leaves the sums P and Q slightly different from 1, the result is
    KL(p/P || q/Q). Probabilities are neither clamped nor smoothed.

    Args:
        p: Probabilities, shape (..., n); >= 0, with sum 1 along `axis`. The tolerance of the sum is 1e-9 in float64,
            max(1e-5, 2^-20 sqrt(n)) in float32, 2^-10 + 2^-25 n in float16 and 2^-7 in bfloat16, which are computed in
            float32.
        q: Probabilities with the same constraints, broadcast against `p`.
        axis: The axis that indexes the events.
        where: Boolean mask, True for the events that are included, broadcast against `p`. Excluded events contribute
            nothing, regardless of their values; `p` and `q` must each sum to 1 over the included events.

    Returns:
        The KL divergence in nats, shape (...), with the array type and dtype of the inputs; `inf` where q_i = 0 for
        some p_i > 0. The gradient is the gradient of KL(p/P || q/Q); its component for p_i is 0 at p_i = 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or the probabilities do not sum to 1.
        ShapeError: The shapes do not broadcast, or `axis` has no events.

    Example:
        >>> float(kl_probs([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]))
        0.6931471805599453
    """
    if is_compiling():
        from kullback.numerics.torch_graph import call_in_graph

        return call_in_graph(__name__, "_kl_probs", p, q, axis, where)
    return _kl_probs(p, q, axis, where)


def _kl_probs(p: Any, q: Any, axis: int, where: ArrayLike | None) -> Any:
    if where is None and (kl := fast_kl_probs(p, q, axis)) is not None:
        return kl
    xp, [probs_p, probs_q], dtype = events_last(p, q, axis=axis, where=where, fill=0.0)
    require_probs(xp, "p", p, probs_p, dtype, axis, of_logits=_OF_LOGITS)
    require_probs(xp, "q", q, probs_q, dtype, axis, of_logits=_OF_LOGITS)
    return cast(xp, differentiable_kl_probs(xp, probs_p, probs_q), dtype)


def kl_log_probs(
    log_p: ArrayInput[ArrayT], log_q: ArrayInput[ArrayT], *, axis: int = -1, where: ArrayLike | None = None
) -> Float[ArrayT, "..."]:
    """KL(p || q) of log-probabilities, in nats.

    KL(p || q) = sum_i p_i phi(log q_i - log p_i), where phi(d) = e^d - 1 - d and the term of p_i = 0 is q_i. If
    rounding leaves the sums P and Q of the probabilities slightly different from 1, the result is KL(p/P || q/Q).

    Args:
        log_p: Log-probabilities in nats, shape (..., n); -inf for an impossible event. exp(log_p) must sum to 1 along
            `axis`; the tolerance is 1e-9 in float64, max(1e-5, 2^-20 sqrt(n)) in float32, 2^-11 (2 + log n) in float16
            and 2^-8 (2 + log n) in bfloat16.
        log_q: Log-probabilities with the same constraints, broadcast against `log_p`.
        axis: The axis that indexes the events.
        where: Boolean mask, True for the events that are included, broadcast against `log_p`. Excluded events
            contribute nothing, regardless of their values.

    Returns:
        The KL divergence in nats, shape (...), with the array type and dtype of the inputs; `inf` where log_q is -inf
        for some finite log_p.

    Raises:
        NotNormalizedError: An entry is nan or far above 0, or the probabilities do not sum to 1.
        ShapeError: The shapes do not broadcast, or `axis` has no events.

    Example:
        >>> from math import log
        >>> float(kl_log_probs([log(0.5), log(0.5), -inf], [log(0.25), log(0.25), log(0.5)]))
        0.6931471805599453
    """
    if is_compiling():
        from kullback.numerics.torch_graph import call_in_graph

        return call_in_graph(__name__, "_kl_log_probs", log_p, log_q, axis, where)
    return _kl_log_probs(log_p, log_q, axis, where)


def _kl_log_probs(log_p: Any, log_q: Any, axis: int, where: ArrayLike | None) -> Any:
    if where is None and (kl := fast_kl_log_probs(log_p, log_q, axis)) is not None:
        return kl
    xp, [logs_p, logs_q], dtype = events_last(log_p, log_q, axis=axis, where=where, fill=-inf)
    require_log_probs(xp, "log_p", log_p, logs_p, dtype, axis)
    require_log_probs(xp, "log_q", log_q, logs_q, dtype, axis)
    return cast(xp, differentiable_kl_logits(xp, logs_p, logs_q), dtype)


def kl_logits(
    p_logits: ArrayInput[ArrayT], q_logits: ArrayInput[ArrayT], *, axis: int = -1, where: ArrayLike | None = None
) -> Float[ArrayT, "..."]:
    """KL(p || q) of p = softmax(p_logits) and q = softmax(q_logits), in nats.

    KL(p || q) = sum_i p_i phi(d_i) with d_i = q_logits_i - p_logits_i - log(Z_q / Z_p), where phi(d) = e^d - 1 - d and
    Z = sum_i exp(logits_i).

    Args:
        p_logits: Unnormalised log-probabilities in nats, shape (..., n); -inf for an impossible event.
        q_logits: Unnormalised log-probabilities in nats, broadcast against `p_logits`.
        axis: The axis that indexes the events.
        where: Boolean mask, True for the events that are included, broadcast against `p_logits`. Excluded events are
            impossible under both distributions, regardless of their values.

    Returns:
        The KL divergence in nats, shape (...), with the array type and dtype of the inputs; `inf` where q_logits is
        -inf for some finite p_logits, or where the KL exceeds the largest number of the dtype. float16 and bfloat16 are
        computed in float32.

    Raises:
        SupportError: A logit is nan or +inf, or every logit of a row is -inf.
        ShapeError: The shapes do not broadcast, or `axis` has no events.

    Example:
        >>> float(kl_logits([1.0, 1.0, -inf], [3.0, 3.0, -inf]))
        0.0
    """
    if is_compiling():
        from kullback.numerics.torch_graph import call_in_graph

        return call_in_graph(__name__, "_kl_logits", p_logits, q_logits, axis, where)
    return _kl_logits(p_logits, q_logits, axis, where)


def _kl_logits(p_logits: Any, q_logits: Any, axis: int, where: ArrayLike | None) -> Any:
    if where is None and (kl := fast_kl_logits(p_logits, q_logits, axis)) is not None and _is_finite(kl):
        return kl
    xp, [logits_p, logits_q], dtype = events_last(p_logits, q_logits, axis=axis, where=where, fill=-inf)
    require_logits(xp, "p_logits", logits_p, axis)
    require_logits(xp, "q_logits", logits_q, axis)
    return cast(xp, differentiable_kl_logits(xp, logits_p, logits_q), dtype)


def kl_terms(
    p: ArrayInput[ArrayT], q: ArrayInput[ArrayT], *, axis: int = -1, where: ArrayLike | None = None
) -> Float[ArrayT, "..."]:
    """The non-negative contribution of each event to KL(p || q); the contributions sum to KL(p || q).

    The contribution is p_i phi(log(q_i / p_i)) = p_i log(p_i / q_i) - p_i + q_i, where phi(d) = e^d - 1 - d; it is q_i
    for p_i = 0. The usual terms p_i log(p_i / q_i) have the same sum, but they take both signs.

    Args:
        p: Probabilities, shape (..., n); >= 0, with sum 1 along `axis`. The tolerance of the sum is 1e-9 in float64,
            max(1e-5, 2^-20 sqrt(n)) in float32, 2^-10 + 2^-25 n in float16 and 2^-7 in bfloat16, which are computed in
            float32.
        q: Probabilities with the same constraints, broadcast against `p`.
        axis: The axis that indexes the events.
        where: Boolean mask, True for the events that are included, broadcast against `p`. The contribution of an
            excluded event is 0.

    Returns:
        The contributions in nats, with the broadcast shape of `p` and `q` and the array type and dtype of the inputs;
        `inf` where q_i = 0 for some p_i > 0.

    Raises:
        NotNormalizedError: An entry is negative or nan, or the probabilities do not sum to 1.
        ShapeError: The shapes do not broadcast, or `axis` has no events.

    Example:
        >>> [round(float(term), 6) for term in kl_terms([0.5, 0.5, 0.0], [0.25, 0.5, 0.25])]
        [0.096574, 0.0, 0.25]
    """
    xp, [probs_p, probs_q], dtype = events_last(p, q, axis=axis, where=where, fill=0.0)
    require_probs(xp, "p", p, probs_p, dtype, axis, of_logits=_OF_LOGITS)
    require_probs(xp, "q", q, probs_q, dtype, axis, of_logits=_OF_LOGITS)
    terms = _differentiable_kl_terms(xp, probs_p, probs_q)
    return cast(xp, xp.moveaxis(terms, -1, axis) if terms.ndim > 1 else terms, dtype)


def _is_finite(kl: Any) -> bool:
    """Whether the values of an array or of a tensor in memory are finite."""
    return bool(kl < inf if isinstance(kl, float) else (kl < inf).all())


# Values and gradients for rows of events: the events lie along the last axis.


def _log_p_gradient(xp: Any, kl: PerRow, p: PerEvent, d: PerEvent) -> PerEvent:
    """The gradient with respect to log p, p_i (log(p_i / q_i) - KL), from d = log q - log p."""
    finite = (abs(d) < inf) & (p > 0)
    return p * xp.where(finite, -xp.where(finite, d, 0.0) - kl[..., None], 0.0)


def _logits_value(xp: Any, p_logits: PerEvent, q_logits: PerEvent) -> PerRow:
    kl = fast_kl_logits_autograd(p_logits, q_logits)
    kl = _general_value(xp, p_logits, q_logits) if kl is None else kl
    far = kl == inf

    def with_far_rows() -> PerRow:
        if kl.ndim == 0 or is_jax_namespace(xp):
            return xp.where(far, sum_kl_of_far_logits(xp, p_logits, q_logits), kl)
        kl[far] = _far_value(xp, p_logits[far], q_logits[far])
        return kl

    return _if_any(xp, far, with_far_rows, kl)


def _p_logits_gradient(xp: Any, gradient: PerRow, kl: PerRow, p_logits: PerEvent, q_logits: PerEvent) -> PerEvent:
    if is_torch_namespace(xp):  # the gradient of a loss that leaves out an infinite KL: 0 * inf would be nan
        kl = xp.where((kl == inf) & (gradient == 0), 0.0, kl)
    gradients = fast_kl_logits_grad_p(gradient, p_logits, q_logits)
    gradients = _general_p_gradient(xp, gradient, kl, p_logits, q_logits) if gradients is None else gradients
    far = (kl > xp.finfo(kl.dtype).max / 256) & (kl < inf)

    def with_far_rows() -> PerEvent:
        return xp.where(far[..., None], _far_p_gradient(xp, gradient, kl, p_logits, q_logits), gradients)

    return _if_any(xp, far, with_far_rows, gradients)


def _if_any(xp: Any, flags: Any, changed: Callable[[], Array], unchanged: Array) -> Array:
    """`changed()` if a flag is True, otherwise `unchanged`.

    It is `unchanged` for tensors on an accelerator, for whose flags the processor would wait, and a conditional of JAX
    for flags that JAX traces, which a call that is not compiled would compile each time.
    """
    flag = xp.any(flags)
    if is_jax_namespace(xp):
        jax = import_module("jax")
        if isinstance(flag, jax.core.Tracer):
            return jax.lax.cond(flag, changed, lambda: unchanged)
    is_known = not is_torch_namespace(xp) or flag.device.type == "cpu"
    return changed() if is_known and holds(flag) else unchanged


def _q_logits_gradient(xp: Any, gradient: PerRow, _kl: PerRow, p_logits: PerEvent, q_logits: PerEvent) -> PerEvent:
    gradients = fast_kl_logits_grad_q(gradient, p_logits, q_logits)
    return _general_q_gradient(xp, gradient, p_logits, q_logits) if gradients is None else gradients


@map_row_blocks
def _general_value(xp: Any, p_logits: PerEvent, q_logits: PerEvent) -> PerRow:
    return sum_kl(xp, *normalize_logits(xp, p_logits, q_logits))


@map_row_blocks
def _far_value(xp: Any, p_logits: PerEvent, q_logits: PerEvent) -> PerRow:
    return sum_kl_of_far_logits(xp, p_logits, q_logits)


@map_row_blocks
def _far_p_gradient(xp: Any, gradient: PerRow, kl: PerRow, p_logits: PerEvent, q_logits: PerEvent) -> PerEvent:
    p, _, d = normalize_logits(xp, p_logits, q_logits)
    quarters, far = log_ratio_quarters(xp, p_logits, q_logits, d)
    slopes = p * (xp.where(far, -quarters, -xp.where(abs(d) < inf, d, 0.0) / 4) - kl[..., None] / 4)
    return gradient[..., None] * xp.where(p > 0, slopes, 0.0) * 4


@map_row_blocks
def _general_p_gradient(xp: Any, gradient: PerRow, kl: PerRow, p_logits: PerEvent, q_logits: PerEvent) -> PerEvent:
    p, _, d = normalize_logits(xp, p_logits, q_logits)
    return gradient[..., None] * _log_p_gradient(xp, kl, p, d)


@map_row_blocks
def _general_q_gradient(xp: Any, gradient: PerRow, p_logits: PerEvent, q_logits: PerEvent) -> PerEvent:
    return gradient[..., None] * prob_difference(xp, *normalize_logits(xp, p_logits, q_logits))


def _probs_value(xp: Any, p: PerEvent, q: PerEvent) -> PerRow:
    kl = fast_kl_probs(p, q, -1)
    return _general_probs_value(xp, p, q) if kl is None else kl


@map_row_blocks
def _general_probs_value(xp: Any, p: PerEvent, q: PerEvent) -> PerRow:
    return sum_kl(xp, *normalize_probs(xp, p, q))


def _p_gradient(xp: Any, gradient: PerRow, kl: PerRow, p: PerEvent, q: PerEvent) -> PerEvent:
    d = normalize_probs(xp, p, q)[2]
    slope = _log_p_gradient(xp, kl, xp.where(is_positive(xp, p), xp.ones_like(p), 0.0), d)
    return gradient[..., None] * slope / xp.sum(p, axis=-1, keepdims=True)


def _terms_value(xp: Any, p: PerEvent, q: PerEvent) -> PerEvent:
    return kl_per_event(xp, *normalize_probs(xp, p, q))


def _terms_p_gradient(xp: Any, gradient: PerEvent, _terms: PerEvent, p: PerEvent, q: PerEvent) -> PerEvent:
    normal, _, d = normalize_probs(xp, p, q)
    kept = is_positive(xp, p) & is_positive(xp, q)
    slope = -gradient * xp.where(kept, d, 0.0)
    shift = xp.sum(normal * slope, axis=-1, keepdims=True)
    return xp.where(kept, slope - shift, 0.0) / xp.sum(p, axis=-1, keepdims=True)


def _terms_q_gradient(xp: Any, gradient: PerEvent, _terms: PerEvent, p: PerEvent, q: PerEvent) -> PerEvent:
    _, normal, d = normalize_probs(xp, p, q)
    kept = is_positive(xp, q)
    slope = -gradient * xp.expm1(-xp.where(kept, d, 0.0))
    shift = xp.sum(normal * slope, axis=-1, keepdims=True)
    return xp.where(kept, slope - shift, 0.0) / xp.sum(q, axis=-1, keepdims=True)


differentiable_kl_logits = with_gradient(_logits_value, _p_logits_gradient, _q_logits_gradient, zero_if_unused=True)
differentiable_kl_probs = with_gradient(_probs_value, *map(map_row_blocks, (_p_gradient, q_probs_gradient)))
_differentiable_kl_terms = with_gradient(*map(map_row_blocks, (_terms_value, _terms_p_gradient, _terms_q_gradient)))
