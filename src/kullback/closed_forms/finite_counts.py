"""Counts that have a greatest value: their KL is a finite sum of p phi(log(q/p))."""

from math import inf, nan
from typing import Any, NamedTuple

from array_api_compat import device

from kullback import families as f
from kullback.closed_forms.counts import bernoulli, failure, log_probabilities, success
from kullback.closed_forms.registry import closed_form
from kullback.discrete.kl import _from_logits
from kullback.errors import NoClosedFormError
from kullback.families.base import is_traced
from kullback.numerics.arrays import Array, untracked
from kullback.numerics.log_gamma import digamma, digamma_minus_log_difference, log_gamma_residual
from kullback.numerics.phi import log_ratio, phi

__all__: list[str] = []


@closed_form((f.Binomial, f.Binomial), (f.Bernoulli, f.Binomial), (f.Binomial, f.Bernoulli))
def binomial(xp: Any, p: Any, q: Any) -> Array:
    """A Bernoulli's, times total_count; where the counts differ, the sum."""
    count_p, count_q = xp.broadcast_arrays(_count(xp, p), _count(xp, q))
    kl = xp.where(count_p == count_q, count_p * bernoulli(xp, p, q), nan)
    # Counts that are traced cannot be summed over: nan says so where they differ.
    if is_traced(count_p) or is_traced(count_q) or xp.all(untracked(count_p == count_q)):
        return kl
    k = _events(xp, count_p, count_q)
    one, none = success(xp, p), failure(xp, p)
    ref = xp.floor((count_p + 1) * one) if p.logits is None else xp.floor((count_p + 1) / (1 + none / one))
    logits = _logits(xp, p), _logits(xp, q)
    sides = [_binomial_side(xp, count, logit, k) for count, logit in ((count_p, logits[0]), (count_q, logits[1]))]
    return xp.where(count_p == count_q, kl, _sum(xp, k, xp.minimum(ref, count_p), *sides))


def _logits(xp: Any, d: Any) -> Array:
    one, none = log_probabilities(xp, d)
    return one - none


def _count(xp: Any, d: Any) -> Array:
    if isinstance(d, f.Binomial):
        return d.total_count
    return xp.ones_like(d.probs if d.logits is None else d.logits)


def _binomial_side(xp: Any, count: Array, logit: Array, k: Array) -> "_Side":
    count, logit = xp.broadcast_arrays(count, logit)
    count, logit = count[..., None], logit[..., None]
    # Certain draws leave one event.
    inside = (k <= count) & ((k == 0) | (logit > -inf)) & ((k == count) | (logit < inf))
    return _Side(xp.where(abs(logit) < inf, logit, 0.0), (xp.ones_like(count), count + 1), (1, -1), inside)


@closed_form((f.Hypergeometric, f.Hypergeometric))
def hypergeometric(xp: Any, p: Any, q: Any) -> Array:
    """The sum over what both can draw."""
    p, q = (xp.broadcast_arrays(d.population, d.successes, d.draws) for d in (p, q))
    most = [xp.minimum(successes, draws) for _, successes, draws in (p, q)]
    k = _events(xp, *most)
    population, successes, draws = p
    mode = xp.floor((draws + 1) * ((successes + 1) / (population + 2)))
    mode = xp.minimum(xp.maximum(mode, draws + successes - population), most[0])
    return _sum(xp, k, mode, *(_hypergeometric_side(xp, d, k) for d in (p, q)))


def _hypergeometric_side(xp: Any, numbers: list[Array], k: Array) -> "_Side":
    population, successes, draws = numbers
    left, successes, draws = ((x + 1)[..., None] for x in (population - successes - draws, successes, draws))
    inside = (left + k >= 1) & (k < successes) & (k < draws)
    return _Side(xp.zeros_like(left), (xp.ones_like(left), left, successes, draws), (1, 1, -1, -1), inside)


@closed_form((f.Zipfian, f.Zipfian))
def zipfian(xp: Any, p: Any, q: Any) -> Array:
    """The sum over the ranks, whose logits are -exponent log(rank)."""
    k = _events(xp, p.total_count, q.total_count)
    logs = (xp.where(k >= 1, -d.exponent[..., None] * xp.log(xp.where(k >= 1, k, 1.0)), -inf) for d in (p, q))
    counts = (d.total_count[..., None] for d in (p, q))
    logs = [xp.where(k <= count, log, -inf) for log, count in zip(logs, counts, strict=True)]
    return _from_logits(xp, *xp.broadcast_arrays(*logs))


def _events(xp: Any, *counts: Array) -> Array:
    """0, 1, ... up to the greatest count."""
    if any(map(is_traced, counts)):
        raise NoClosedFormError(
            "expected counts that are known, got traced ones: the sum over them has no fixed length"
        )
    last = max(float(xp.max(untracked(count))) for count in counts)
    return xp.arange(int(last) + 1, dtype=counts[0].dtype, device=device(counts[0]))


class _Side(NamedTuple):
    """log p(k) = slope k - sum lgamma(offset + sign k) and a constant, where k is inside the support."""

    slope: Array
    offsets: tuple[Array, ...]
    signs: tuple[int, ...]
    inside: Array


def _sum(xp: Any, k: Array, ref: Array, p: _Side, q: _Side) -> Array:
    """log(1 + E_p phi(g - E_p g) + what q has outside p), g being log(q/p) but for a constant.

    Every logarithm is taken relative to `ref`, an event that p holds: large factorials keep their digits.
    """
    step, ref = k - ref[..., None], ref[..., None]
    log_p, log_q = _relative_logs(xp, step, ref, p), _relative_logs(xp, step, ref, q)
    both = p.inside & q.inside
    g = (q.slope - p.slope) * step
    for a, b, sign in zip(p.offsets, q.offsets, p.signs, strict=True):
        r, h, m = xp.broadcast_arrays(a + sign * ref, xp.where(both, b - a, 0.0), xp.where(both, sign * step, 0.0))
        # What lgamma rises from r to r + m and to r + h, together: by its tangents over h, or over m.
        y = r + m
        by_h = (
            log_gamma_residual(y, h)
            - log_gamma_residual(r, h)
            + h * (log_ratio(xp, y, r) + digamma_minus_log_difference(xp, r, y))
        )
        by_m = log_gamma_residual(r + h, m) - log_gamma_residual(r, m) + m * (digamma(xp, r + h) - digamma(xp, r))
        g = g - xp.where(abs(h) < r / 2, by_h, by_m)
    log_p = xp.where(p.inside, log_p, -inf)
    log_q = xp.where(both, log_p + g, xp.where(q.inside, log_q, -inf))
    mass = _log_sum(xp, log_p)
    weights = xp.exp(log_p - mass)
    mean = xp.sum(xp.where(both, weights * g, 0.0), axis=-1, keepdims=True)
    inner = xp.where(both, weights * phi(xp.where(both, g - mean, 0.0)), 0.0)
    outer = xp.where(p.inside, 0.0, xp.exp(log_q - mass - mean))
    small = xp.sum(inner + outer, axis=-1)
    near = small < 1
    return xp.where(near, xp.log1p(xp.where(near, small, 0.0)), (_log_sum(xp, log_q) - mass - mean)[..., 0])


def _relative_logs(xp: Any, step: Array, ref: Array, side: _Side) -> Array:
    """log p(k) - log p(ref)."""
    logs = side.slope * step
    for offset, sign in zip(side.offsets, side.signs, strict=True):
        r = xp.where(offset + sign * ref > 0, offset + sign * ref, 1.0)
        r, h = xp.broadcast_arrays(r, xp.where(side.inside, sign * step, 0.0))
        logs = logs - h * digamma(xp, r) - log_gamma_residual(r, h)
    return logs


def _log_sum(xp: Any, logs: Array) -> Array:
    top = xp.max(logs, axis=-1, keepdims=True)
    return xp.log(xp.sum(xp.exp(logs - top), axis=-1, keepdims=True)) + top
