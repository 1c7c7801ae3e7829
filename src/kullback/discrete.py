"""Exact KL divergence between discrete distributions, held as probabilities, log-probabilities or logits."""

from math import inf
from typing import Any

from kullback._arrays import Array, ArrayLike, as_floats, by_rows, cast, untracked, with_gradient
from kullback.errors import NotNormalizedError, ShapeError, SupportError
from kullback.residual import phi

__all__ = ["kl_log_probs", "kl_logits", "kl_probs"]


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
    xp, probs_p, probs_q, dtype, axis = _prepare(p, q, axis, where, 0.0)
    for name, given, probs in (("p", p, untracked(probs_p)), ("q", q, untracked(probs_q))):
        remedy = "divide by the sum, or pass logits to kl_logits"
        if offender := _offender(xp, ~(probs >= 0), probs, name, axis):
            raise NotNormalizedError(f"expected probabilities, >= 0, but {offender}; {remedy}")
        _require_mass(xp, probs, name, given, dtype, axis, remedy)
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
    xp, logs_p, logs_q, dtype, axis = _prepare(log_p, log_q, axis, where, -inf)
    for name, given, logs in (("log_p", log_p, untracked(logs_p)), ("log_q", log_q, untracked(logs_q))):
        remedy = "kl_probs takes probabilities, kl_logits anything unnormalised"
        # Only what is far above 0, for rounding: the sum says the rest, and exp cannot overflow.
        if offender := _offender(xp, ~(logs < 1), logs, name, axis):
            raise NotNormalizedError(f"expected log-probabilities, <= 0, but {offender}; {remedy}")
        _require_mass(xp, xp.exp(logs), f"exp({name})", given, dtype, axis, remedy)
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
    xp, p_logits, q_logits, dtype, axis = _prepare(p_logits, q_logits, axis, where, -inf)
    for name, logits in (("p_logits", untracked(p_logits)), ("q_logits", untracked(q_logits))):
        if offender := _offender(xp, ~(logits < inf), logits, name, axis):
            raise SupportError(f"expected logits below +inf, but {offender}; look for what made it")
        empty = xp.all(logits == -inf, axis=-1)
        if xp.any(empty):
            raise SupportError(
                f"expected a possible event in each row of {name}, but in {_row(xp, empty)} every logit is -inf; "
                "leave out rows that have no event"
            )
    return cast(xp, _from_logits(xp, p_logits, q_logits), dtype)


# The formula, written once. Events lie along the last axis; p is normalised; d = log q - log p, which is +inf where
# only p is 0, -inf where only q is, 0 where both are.


def _centre(xp: Any, p: Array, q: Array, d: Array) -> tuple[Array, Array, Array]:
    """The same with q normalised, exactly: log of q's mass, as a sum of differences, comes off d."""
    excess = xp.sum(_difference(xp, p, q, d), axis=-1, keepdims=True)
    return p, q / (1 + excess), d - xp.log1p(excess)


def _difference(xp: Any, p: Array, q: Array, d: Array) -> Array:
    """q - p, without cancellation where they are nearly equal."""
    near = d < 1
    return xp.where(near, p * xp.expm1(xp.where(near, d, 0.0)), q - p)


def _sum_phi(xp: Any, p: Array, q: Array, d: Array) -> Array:
    # e^d may overflow where p e^d does not, and p may have underflowed where q has not.
    far = q - p - p * xp.where(d < inf, d, 0.0)
    total = xp.sum(xp.where(d < 1, p * phi(d), far), axis=-1)
    # By d, since p may have underflowed here too.
    return xp.where(xp.min(d, axis=-1) == -inf, inf, total)


def _log_p_gradient(xp: Any, kl: Array, p: Array, d: Array) -> Array:
    finite = abs(d) < inf
    return p * xp.where(finite, -xp.where(finite, d, 0.0) - kl[..., None], 0.0)


def _logit_events(xp: Any, p_logits: Array, q_logits: Array) -> tuple[Array, Array, Array]:
    top_p = xp.max(p_logits, axis=-1, keepdims=True)
    top_q = xp.max(q_logits, axis=-1, keepdims=True)
    p, q = xp.exp(p_logits - top_p), xp.exp(q_logits - top_q)
    mass_p, mass_q = xp.sum(p, axis=-1, keepdims=True), xp.sum(q, axis=-1, keepdims=True)
    # Differences of logits, not of log-probabilities: nearby numbers subtract exactly.
    d = (q_logits - p_logits) - ((top_q - top_p) + xp.log(mass_q / mass_p))
    # Where both are impossible, -inf - -inf; a nan that was given stays.
    d = xp.where(xp.maximum(p_logits, q_logits) == -inf, 0.0, d)
    return _centre(xp, p / mass_p, q / mass_q, d)


def _logits_value(xp: Any, p_logits: Array, q_logits: Array) -> Array:
    return _sum_phi(xp, *_logit_events(xp, p_logits, q_logits))


def _p_logits_gradient(xp: Any, gradient: Array, kl: Array, p_logits: Array, q_logits: Array) -> Array:
    p, _, d = _logit_events(xp, p_logits, q_logits)
    return gradient[..., None] * _log_p_gradient(xp, kl, p, d)


def _q_logits_gradient(xp: Any, gradient: Array, _kl: Array, p_logits: Array, q_logits: Array) -> Array:
    return gradient[..., None] * _difference(xp, *_logit_events(xp, p_logits, q_logits))


def _prob_events(xp: Any, p: Array, q: Array) -> tuple[Array, Array, Array]:
    possible = (p > 0) | (q > 0)
    least = xp.finfo(p.dtype).smallest_normal
    safe_p = xp.where(p > 0, p, 1.0)
    change, ratio = (q - safe_p) / safe_p, q / safe_p
    # Within a factor of two q - p is exact; beyond, the quotient is, unless it leaves the range of normal numbers.
    near = (p > 0) & (change >= -0.5) & (change <= 1)
    middle = (p > 0) & (ratio >= least) & (ratio < inf)
    logs = xp.log(xp.where(q > 0, q, 1.0)) - xp.log(safe_p)
    d = xp.where(middle, xp.log(xp.where(middle, ratio, 1.0)), logs)
    d = xp.where(near, xp.log1p(xp.where(near, change, 0.0)), d)
    d = xp.where(p > 0, xp.where(q > 0, d, -inf), xp.where(possible, inf, xp.zeros_like(p)))
    mass = xp.sum(p, axis=-1, keepdims=True)
    return _centre(xp, p / mass, q / mass, d)


def _probs_value(xp: Any, p: Array, q: Array) -> Array:
    return _sum_phi(xp, *_prob_events(xp, p, q))


def _p_gradient(xp: Any, gradient: Array, kl: Array, p: Array, q: Array) -> Array:
    normal, _, d = _prob_events(xp, p, q)
    slope = _log_p_gradient(xp, kl, xp.where(normal > 0, 1.0, 0.0), d)
    return gradient[..., None] * slope / xp.sum(p, axis=-1, keepdims=True)


def _q_gradient(xp: Any, gradient: Array, _kl: Array, p: Array, q: Array) -> Array:
    slope = -xp.expm1(-_prob_events(xp, p, q)[2]) / xp.sum(q, axis=-1, keepdims=True)
    return gradient[..., None] * xp.where((p > 0) | (q > 0), slope, 0.0)


_from_logits = with_gradient(*map(by_rows, (_logits_value, _p_logits_gradient, _q_logits_gradient)))
_from_probs = with_gradient(*map(by_rows, (_probs_value, _p_gradient, _q_gradient)))


# What the public functions ask of their arguments.


def _prepare(p: ArrayLike, q: ArrayLike, axis: int, where: ArrayLike | None, nothing: float) -> Any:
    """The namespace, both arguments broadcast with events last, the dtype to return, and the axis as given."""
    xp, [p, q], dtype = as_floats(p, q)
    shapes = [tuple(p.shape), tuple(q.shape)]
    try:
        if where is None:
            p, q = xp.broadcast_arrays(p, q)
        else:
            kept: Array = xp.asarray(where, dtype=xp.bool)
            shapes.append(tuple(kept.shape))
            p, q, kept = xp.broadcast_arrays(p, q, kept)
            p, q = xp.where(kept, p, nothing), xp.where(kept, q, nothing)
    except (ValueError, RuntimeError) as error:
        raise ShapeError(f"expected shapes that broadcast, got {' and '.join(map(str, shapes))}") from error
    if not -p.ndim <= axis < p.ndim or p.shape[axis] == 0:
        raise ShapeError(f"expected one event or more along axis {axis}, got shape {tuple(p.shape)}; pass axis=")
    return xp, xp.moveaxis(p, axis, -1), xp.moveaxis(q, axis, -1), dtype, axis % p.ndim


# How far a sum may lie from 1: room for rounding in the numbers, and in the logs of small ones.
_TOLERANCES = {"float64": 1e-9, "float32": 1e-5, "float16": 2.0**-5, "bfloat16": 2.0**-5}


def _require_mass(xp: Any, probs: Array, name: str, given: ArrayLike, dtype: Any, axis: int, remedy: str) -> None:
    sums = xp.sum(probs, axis=-1)
    own, common = (str(kind).split(".")[-1] for kind in (getattr(given, "dtype", dtype), dtype))
    tolerance = _TOLERANCES.get(own) or _TOLERANCES.get(common, 1e-9)
    bad = ~(abs(sums - 1) <= tolerance)
    if xp.any(bad):
        raise NotNormalizedError(
            f"expected {name} to sum to 1 along axis {axis} within {tolerance:.2g}, but {_row(xp, bad)} sums to "
            f"{float(sums[_first(xp, bad)])!r}; {remedy}"
        )


def _offender(xp: Any, bad: Array, given: Array, name: str, axis: int) -> str:
    """The first bad entry and its value in words, or nothing."""
    if not xp.any(bad):
        return ""
    index = _first(xp, bad)
    position = ", ".join(map(str, (*index[:axis], index[-1], *index[axis:-1])))
    return f"{name}[{position}] is {float(given[index])!r}"


def _first(xp: Any, bad: Array) -> tuple[int, ...]:
    if bad.ndim == 0:
        return ()
    return tuple(int(axis_indices[0]) for axis_indices in xp.nonzero(bad))


def _row(xp: Any, bad: Array) -> str:
    return f"row {_first(xp, bad)}" if bad.ndim else "it"
