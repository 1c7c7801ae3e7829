"""KL between distributions of bounded counts (binomial, hypergeometric, Zipfian): finite sums of p phi(log(q/p))."""

import math
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from kullback import families as f
from kullback.closed_forms.counts import (
    failure_prob,
    kl_bernoulli_bernoulli,
    log_probs_up_to_constant,
    success_prob,
)
from kullback.closed_forms.registry import closed_form
from kullback.discrete.kl import differentiable_kl_logits
from kullback.errors import NoClosedFormError
from kullback.families.base import values_of
from kullback.numerics.arrays import Array, broadcast_arrays, is_traced, untracked
from kullback.numerics.log_gamma import digamma, digamma_minus_log_difference, log_gamma_residual
from kullback.numerics.phi import log_ratio, phi

__all__ = ["MAX_TERMS"]

MAX_TERMS = 1e7  # the arrays of 1e7 terms take several gigabytes


@closed_form((f.Binomial, f.Binomial), (f.Bernoulli, f.Binomial), (f.Binomial, f.Bernoulli))
def kl_binomial_binomial(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Binomial(n1, probs1) and Q = Binomial(n2, probs2); Bernoulli(probs) is Binomial(1, probs).

    n1 KL(Bernoulli(probs1) || Bernoulli(probs2)) for n1 = n2. For n1 < n2 it is the finite sum
    sum_k p_k phi(log(q_k/p_k)) over k = 0, ..., n2, where phi(d) = e^d - 1 - d and the term of p_k = 0 is q_k. The
    result is `inf` for n1 > n2, unless P has no mass above n2. It is nan where n1 and n2 differ and JAX or torch.func
    traces them, or their conversion to floating-point numbers.
    """
    counts = _total_count(xp, p), _total_count(xp, q)
    count_p, count_q = broadcast_arrays(xp, *counts)
    kl = xp.where(count_p == count_q, count_p * kl_bernoulli_bernoulli(xp, p, q), nan)
    # A sum over traced counts has no fixed length: the result is nan where they differ.
    if any(map(is_traced, counts)) or bool((values_of(counts[0]) == values_of(counts[1])).all()):
        return kl
    k = _count_grid(xp, *counts)
    one, none = success_prob(xp, p), failure_prob(xp, p)
    ref = xp.floor((count_p + 1) * one) if p.logits is None else xp.floor((count_p + 1) / (1 + none / one))
    logits = _logits(xp, p), _logits(xp, q)
    pmfs = [_binomial_pmf(xp, count, logit, k) for count, logit in ((count_p, logits[0]), (count_q, logits[1]))]
    return xp.where(count_p == count_q, kl, _kl_finite_sum(xp, k, xp.minimum(ref, count_p), *pmfs))


def _logits(xp: Any, d: Any) -> Array:
    """log(probs / (1 - probs))."""
    one, none = log_probs_up_to_constant(xp, d)
    return one - none


def _total_count(xp: Any, d: Any) -> Array:
    """The number of trials, which is 1 for a Bernoulli distribution."""
    if isinstance(d, f.Binomial):
        return d.total_count
    return xp.asarray(1.0)


def _binomial_pmf(xp: Any, count: Array, logit: Array, k: Array) -> "_LogPmf":
    """The log-mass of a binomial distribution on the counts k."""
    count, logit = broadcast_arrays(xp, count, logit)
    count, logit = count[..., None], logit[..., None]
    # For probs = 0 or probs = 1 the support is a single count.
    inside = (k <= count) & ((k == 0) | (logit > -inf)) & ((k == count) | (logit < inf))
    return _LogPmf(xp.where(abs(logit) < inf, logit, 0.0), (xp.ones_like(count), count + 1), (1, -1), inside)


@closed_form((f.Hypergeometric, f.Hypergeometric))
def kl_hypergeometric_hypergeometric(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P and Q = Hypergeometric(population, successes, draws), each with its own parameters.

    The finite sum sum_k p_k phi(log(q_k/p_k)) over the counts k of both supports, where phi(d) = e^d - 1 - d and the
    term of p_k = 0 is q_k. The result is `inf` where P has mass outside the support of Q.
    """
    p, q = (broadcast_arrays(xp, d.population, d.successes, d.draws) for d in (p, q))
    largest = [xp.minimum(successes, draws) for _, successes, draws in (p, q)]
    k = _count_grid(xp, *largest)
    population, successes, draws = p
    mode = xp.floor((draws + 1) * ((successes + 1) / (population + 2)))
    mode = xp.minimum(xp.maximum(mode, draws + successes - population), largest[0])
    return _kl_finite_sum(xp, k, mode, *(_hypergeometric_pmf(xp, d, k) for d in (p, q)))


def _hypergeometric_pmf(xp: Any, numbers: list[Array], k: Array) -> "_LogPmf":
    """The log-mass of a hypergeometric distribution on the counts k."""
    population, successes, draws = numbers
    failures, successes, draws = ((x + 1)[..., None] for x in (population - successes - draws, successes, draws))
    inside = (failures + k >= 1) & (k < successes) & (k < draws)
    return _LogPmf(
        xp.zeros_like(failures), (xp.ones_like(failures), failures, successes, draws), (1, 1, -1, -1), inside
    )


@closed_form((f.Zipfian, f.Zipfian))
def kl_zipfian_zipfian(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Zipfian(exponent1, n1) and Q = Zipfian(exponent2, n2), where n is total_count.

    The finite sum sum_k p_k phi(log(q_k/p_k)) over k = 1, ..., max(n1, n2), where phi(d) = e^d - 1 - d, the logits of
    p_k are -exponent1 log(k), and the term of p_k = 0 is q_k. The result is `inf` for n1 > n2.
    """
    k = _count_grid(xp, p.total_count, q.total_count)
    logs = (xp.where(k >= 1, -d.exponent[..., None] * xp.log(xp.where(k >= 1, k, 1.0)), -inf) for d in (p, q))
    counts = (d.total_count[..., None] for d in (p, q))
    logs = [xp.where(k <= count, log, -inf) for log, count in zip(logs, counts, strict=True)]
    return differentiable_kl_logits(xp, *broadcast_arrays(xp, *logs))


def _count_grid(xp: Any, *counts: Array) -> Array:
    """The counts 0, 1, ..., up to the largest entry of `counts`."""
    if any(map(is_traced, counts)):
        raise NoClosedFormError(
            "expected concrete counts, got counts that JAX or torch.func is tracing: the sum over the counts needs a "
            "fixed length; pass the counts as constants"
        )
    last = max((float(values_of(count).max()) for count in counts if 0 not in count.shape), default=0.0)
    if last * math.prod(np.broadcast_shapes(*(tuple(count.shape) for count in counts))) > MAX_TERMS:
        raise NoClosedFormError(
            f"expected counts for which the KL is a sum of at most {MAX_TERMS:.0e} terms over the batch, got counts "
            f"up to {last:.15g}; kullback.measure bounds the KL of one pair"
        )
    return xp.arange(int(last) + 1, dtype=counts[0].dtype, device=device(counts[0]))


class _LogPmf(NamedTuple):
    """log p(k) = slope k - sum_i lgamma(offset_i + sign_i k) + constant, where k is inside the support."""

    slope: Array
    offsets: tuple[Array, ...]
    signs: tuple[int, ...]
    inside: Array


def _kl_finite_sum(xp: Any, k: Array, ref: Array, p: _LogPmf, q: _LogPmf) -> Array:
    """log(1 + E_p phi(g - E_p g) + Q'), where g is log(q/p) up to a constant.

    Q' is the mass of q outside the support of p, in the same normalisation. Every logarithm is taken relative to the
    count `ref`, which is in the support of p, so that large factorials do not cancel.
    """
    step, ref = k - ref[..., None], ref[..., None]
    log_p, log_q = _relative_log_pmf(xp, step, ref, p), _relative_log_pmf(xp, step, ref, q)
    both = p.inside & q.inside
    g = (q.slope - p.slope) * step
    for a, b, sign in zip(p.offsets, q.offsets, p.signs, strict=True):
        r, h, m = broadcast_arrays(xp, a + sign * ref, xp.where(both, b - a, 0.0), xp.where(both, sign * step, 0.0))
        # The mixed difference lgamma(r + h + m) - lgamma(r + m) - lgamma(r + h) + lgamma(r), by tangents in the
        # direction of h or of m.
        y = r + m
        digamma_difference = log_ratio(xp, y, r) + digamma_minus_log_difference(xp, r, y)
        by_h = log_gamma_residual(y, h) - log_gamma_residual(r, h) + h * digamma_difference
        by_m = log_gamma_residual(r + h, m) - log_gamma_residual(r, m) + m * (digamma(xp, r + h) - digamma(xp, r))
        g = g - xp.where(abs(h) < r / 2, by_h, by_m)
    log_p = xp.where(p.inside, log_p, -inf)
    log_q = xp.where(both, log_p + g, xp.where(q.inside, log_q, -inf))
    log_mass = _log_sum_exp(xp, log_p)
    weights = xp.exp(log_p - log_mass)
    mean = xp.sum(xp.where(both, weights * g, 0.0), axis=-1, keepdims=True)
    # Where a term overflows, the sum is not used; its exponent is then replaced, because 0 * inf is nan.
    inner_exponent, outer_exponent = xp.where(both, g - mean, 0.0), xp.where(p.inside, -inf, log_q - log_mass - mean)
    small = xp.sum(untracked(weights) * phi(untracked(inner_exponent)) + xp.exp(untracked(outer_exponent)), axis=-1)
    near = small < 1
    inner = weights * phi(xp.where(near[..., None] & (weights > 0), inner_exponent, 0.0))
    outer = xp.exp(xp.where(near[..., None], outer_exponent, -inf))
    small = xp.sum(inner + outer, axis=-1)
    return xp.where(near, xp.log1p(xp.where(near, small, 0.0)), (_log_sum_exp(xp, log_q) - log_mass - mean)[..., 0])


def _relative_log_pmf(xp: Any, step: Array, ref: Array, pmf: _LogPmf) -> Array:
    """log p(ref + step) - log p(ref)."""
    logs = pmf.slope * step
    for offset, sign in zip(pmf.offsets, pmf.signs, strict=True):
        r = xp.where(offset + sign * ref > 0, offset + sign * ref, 1.0)
        r, h = broadcast_arrays(xp, r, xp.where(pmf.inside, sign * step, 0.0))
        logs = logs - h * digamma(xp, r) - log_gamma_residual(r, h)
    return logs


def _log_sum_exp(xp: Any, logs: Array) -> Array:
    """log(sum(exp(logs))) along the last axis, which is kept."""
    top = xp.max(logs, axis=-1, keepdims=True)
    return xp.log(xp.sum(xp.exp(logs - top), axis=-1, keepdims=True)) + top
