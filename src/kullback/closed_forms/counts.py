"""Counts and categories."""

from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.registry import closed_form, where_equal
from kullback.discrete.kl import _from_logits, _from_probs
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array
from kullback.numerics.log_zeta import log_zeta_residual
from kullback.numerics.phi import log1p_residual, log_ratio, mass_phi, phi

__all__ = ["bernoulli", "failure", "log_probabilities", "success"]


@closed_form((f.Bernoulli, f.Bernoulli))
def bernoulli(xp: Any, p: Any, q: Any) -> Array:
    """p phi(log(q/p)) + (1 - p) phi(log((1 - q)/(1 - p)))."""
    if p.logits is None and q.logits is None:
        # 1 - p has been rounded, but p - q has not where they are nearly equal.
        change = (p.probs - q.probs) / xp.where(p.probs < 1, 1 - p.probs, 1.0)
        near = abs(change) < 0.5
        close = (1 - p.probs) * log1p_residual(xp.where(near, change, 0.0))
        apart = mass_phi(xp, 1 - p.probs, 1 - q.probs)
        return mass_phi(xp, p.probs, q.probs) + xp.where(near & (p.probs < 1), close, apart)
    logits = [xp.stack(log_probabilities(xp, d), axis=-1) for d in (p, q)]
    return _from_logits(xp, *xp.broadcast_arrays(*logits))


def log_probabilities(xp: Any, d: Any) -> list[Array]:
    """Of a one and of none, up to a constant."""
    if d.logits is None:
        return [xp.log(d.probs), xp.log1p(-d.probs)]
    return [d.logits, xp.zeros_like(d.logits)]


def success(xp: Any, d: Any) -> Array:
    return d.probs if d.logits is None else 1 / (1 + xp.exp(-d.logits))


def failure(xp: Any, d: Any) -> Array:
    return 1 - d.probs if d.logits is None else 1 / (1 + xp.exp(d.logits))


@closed_form((f.Geometric, f.Geometric))
def geometric(xp: Any, p: Any, q: Any) -> Array:
    """A Bernoulli's, times the mean number of draws."""
    return bernoulli(xp, p, q) / success(xp, p)


@closed_form((f.NegativeBinomial, f.NegativeBinomial))
def negative_binomial(xp: Any, p: Any, q: Any) -> Array:
    """A Bernoulli's, times the mean number of draws, for equal total_count."""
    kl = p.total_count * (bernoulli(xp, p, q) / failure(xp, p))
    return where_equal(xp, p, q, "total_count", kl)


@closed_form((f.Multinomial, f.Multinomial))
def multinomial(xp: Any, p: Any, q: Any) -> Array:
    """A Categorical's, times total_count; `inf` where the counts differ."""
    one = categorical(xp, p, q)
    kl = xp.where(p.total_count > 0, p.total_count * one, 0.0)
    return xp.where(p.total_count == q.total_count, kl, np.inf)


@closed_form((f.Categorical, f.Categorical), (f.OneHotCategorical, f.OneHotCategorical))
def categorical(xp: Any, p: Any, q: Any) -> Array:
    """sum p phi(log(q/p))."""
    values = [d.probs if d.logits is None else d.logits for d in (p, q)]
    sizes = [value.shape[-1] if value.ndim else 0 for value in values]
    if sizes[0] != sizes[1] or sizes[0] == 0:
        raise ShapeError(
            "expected as many categories along the last axis of p and of q, got shapes "
            f"{tuple(values[0].shape)} and {tuple(values[1].shape)}"
        )
    if p.logits is None and q.logits is None:
        return _from_probs(xp, *xp.broadcast_arrays(*values))
    logits = [xp.log(value) if d.logits is None else value for d, value in zip((p, q), values, strict=True)]
    return _from_logits(xp, *xp.broadcast_arrays(*logits))


@closed_form((f.Poisson, f.Poisson))
def poisson(xp: Any, p: Any, q: Any) -> Array:
    """rate1 phi(log(rate2/rate1))."""
    return mass_phi(xp, p.rate, q.rate)


@closed_form((f.Zipf, f.Zipf))
def zipf(xp: Any, p: Any, q: Any) -> Array:
    """The residual of log zeta about its tangent."""
    return log_zeta_residual(xp, p.exponent, q.exponent - p.exponent)


@closed_form((f.Bernoulli, f.Poisson))
def bernoulli_poisson(xp: Any, p: Any, q: Any) -> Array:
    """(1 - p) phi(log(e^-r / (1 - p))) + p phi(log(r e^-r / p)) + e^-r phi(r): none, one, and more."""
    one, none, rate = success(xp, p), failure(xp, p), q.rate
    some = none > 0
    log_none = rate - one - log1p_residual(-xp.where(some, one, 0.0))
    none = xp.where(some, none * phi(-log_none), xp.exp(-rate))
    safe = xp.where(one > 0, one, 1.0)
    one = xp.where(one > 0, one * phi(log_ratio(xp, rate, safe) - rate), rate * xp.exp(-rate))
    small = rate < 1
    more = xp.where(small, xp.exp(-rate) * phi(xp.where(small, rate, 0.0)), 1 - (1 + rate) * xp.exp(-rate))
    return none + one + more


@closed_form((f.Poisson, f.Bernoulli), (f.Poisson, f.Binomial))
def poisson_bernoulli(xp: Any, p: Any, q: Any) -> Array:
    """Finite at rate 0 alone, where p is certain of 0."""
    none = xp.log1p(-q.probs) if q.logits is None else -xp.log1p(xp.exp(q.logits))
    count = q.total_count if isinstance(q, f.Binomial) else 1
    return -count * none + xp.zeros_like(p.rate)
