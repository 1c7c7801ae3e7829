"""Counts that have a greatest value: their KL is a finite sum of p phi(log(q/p))."""

from math import inf, nan
from typing import Any

from array_api_compat import device

from kullback import families as f
from kullback._arrays import Array, untracked
from kullback._special import gammaln
from kullback.closed_forms._registry import closed_form
from kullback.closed_forms.counts import bernoulli, log_probabilities
from kullback.discrete import _from_logits
from kullback.errors import NoClosedFormError
from kullback.families._record import is_traced

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
    logs = [_binomial_logs(xp, d, count, k) for d, count in ((p, count_p), (q, count_q))]
    return xp.where(count_p == count_q, kl, _sum(xp, *logs))


def _count(xp: Any, d: Any) -> Array:
    if isinstance(d, f.Binomial):
        return d.total_count
    return xp.ones_like(d.probs if d.logits is None else d.logits)


def _binomial_logs(xp: Any, d: Any, count: Array, k: Array) -> Array:
    log_one, log_none = (log[..., None] for log in log_probabilities(xp, d))
    count = count[..., None]
    return _log_choose(xp, count, k) + _times(xp, k, log_one) + _times(xp, count - k, log_none)


@closed_form((f.Hypergeometric, f.Hypergeometric))
def hypergeometric(xp: Any, p: Any, q: Any) -> Array:
    """The sum over what both can draw."""
    k = _events(xp, p.draws, q.draws)
    return _sum(xp, *(_hypergeometric_logs(xp, d, k) for d in (p, q)))


def _hypergeometric_logs(xp: Any, d: Any, k: Array) -> Array:
    successes, failures = d.successes[..., None], (d.population - d.successes)[..., None]
    draws = d.draws[..., None]
    return _log_choose(xp, successes, k) + _log_choose(xp, failures, draws - k)


@closed_form((f.Zipfian, f.Zipfian))
def zipfian(xp: Any, p: Any, q: Any) -> Array:
    """The sum over the ranks, whose logits are -exponent log(rank)."""
    k = _events(xp, p.total_count, q.total_count)
    logs = (xp.where(k >= 1, -d.exponent[..., None] * xp.log(xp.where(k >= 1, k, 1.0)), -inf) for d in (p, q))
    counts = (d.total_count[..., None] for d in (p, q))
    return _sum(xp, *(xp.where(k <= count, log, -inf) for log, count in zip(logs, counts, strict=True)))


def _events(xp: Any, *counts: Array) -> Array:
    """0, 1, ... up to the greatest count."""
    if any(map(is_traced, counts)):
        raise NoClosedFormError(
            "expected counts that are known, got traced ones: the sum over them has no fixed length"
        )
    last = max(float(xp.max(untracked(count))) for count in counts)
    return xp.arange(int(last) + 1, dtype=counts[0].dtype, device=device(counts[0]))


def _sum(xp: Any, log_p: Array, log_q: Array) -> Array:
    return _from_logits(xp, *xp.broadcast_arrays(log_p, log_q))


def _times(xp: Any, count: Array, log: Array) -> Array:
    """count log, where no count of the impossible is possible."""
    return xp.where(count == 0, 0.0, count * xp.where((count == 0) & (log == -inf), 0.0, log))


def _log_choose(xp: Any, n: Array, k: Array) -> Array:
    inside = (k >= 0) & (k <= n)
    k = xp.where(inside, k, 0.0)
    n = xp.broadcast_to(n, inside.shape)
    return xp.where(inside, gammaln(xp, n + 1) - gammaln(xp, k + 1) - gammaln(xp, n - k + 1), -inf)
