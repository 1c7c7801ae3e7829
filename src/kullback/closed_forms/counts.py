"""KL for the Bernoulli, categorical, multinomial, geometric, negative binomial, Poisson and Zipf distributions."""

from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.registry import closed_form, where_equal
from kullback.discrete.kl import differentiable_kl_logits, differentiable_kl_probs
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array, broadcast_arrays, holds
from kullback.numerics.log_zeta import log_zeta_residual
from kullback.numerics.phi import log1p_residual, log_ratio, mass_phi, phi

__all__ = ["failure_prob", "kl_bernoulli_bernoulli", "log_probs_up_to_constant", "success_prob"]


@closed_form((f.Bernoulli, f.Bernoulli))
def kl_bernoulli_bernoulli(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Bernoulli(probs1) and Q = Bernoulli(probs2).

    probs1 phi(log(probs2/probs1)) + (1 - probs1) phi(log((1 - probs2)/(1 - probs1))), where phi(d) = e^d - 1 - d.
    """
    if p.logits is None and q.logits is None:
        # 1 - probs is rounded, but the difference of nearly equal probabilities is exact.
        change = (p.probs - q.probs) / xp.where(p.probs < 1, 1 - p.probs, 1.0)
        near = abs(change) < 0.5
        close = (1 - p.probs) * log1p_residual(xp.where(near, change, 0.0))
        far = mass_phi(xp, 1 - p.probs, 1 - q.probs)
        return mass_phi(xp, p.probs, q.probs) + xp.where(near & (p.probs < 1), close, far)
    logits = [xp.stack(log_probs_up_to_constant(xp, d), axis=-1) for d in (p, q)]
    return differentiable_kl_logits(xp, *broadcast_arrays(xp, *logits))


def log_probs_up_to_constant(xp: Any, d: Any) -> list[Array]:
    """The log-probabilities of success and of failure, up to a common constant.

    Of logits, the less probable event has a logarithm below 0, so that its derivative, which is small and accurate, is
    the derivative with respect to the logit.
    """
    if d.logits is None:
        return [xp.log(d.probs), xp.log1p(-d.probs)]
    zero = xp.zeros_like(d.logits)
    return [xp.minimum(d.logits, zero), xp.minimum(-d.logits, zero)]


def success_prob(xp: Any, d: Any) -> Array:
    """The probability of success."""
    return d.probs if d.logits is None else 1 / (1 + xp.exp(-d.logits))


def failure_prob(xp: Any, d: Any) -> Array:
    """The probability of failure."""
    return 1 - d.probs if d.logits is None else 1 / (1 + xp.exp(d.logits))


@closed_form((f.Geometric, f.Geometric))
def kl_geometric_geometric(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Geometric(probs1) and Q = Geometric(probs2).

    KL(Bernoulli(probs1) || Bernoulli(probs2)) / probs1: KL of one trial times the mean number of trials under P. It
    is phi(log(probs2/probs1)) + phi(log((1 - probs2)/(1 - probs1))) (1 - probs1)/probs1 with phi(d) = e^d - 1 - d, and
    is computed from the logarithms where probs1 is so small that the KL of one trial underflows.
    """
    return _kl_until(xp, p, q, 1)


def _kl_until(xp: Any, p: Any, q: Any, sign: int) -> Array:
    """KL of one trial, divided by the probability under p of the event that ends the trials.

    The event is a success for `sign` = 1 and a failure for `sign` = -1.
    """
    kl = kl_bernoulli_bernoulli(xp, p, q)
    limit = np.log(float(xp.finfo(kl.dtype).smallest_normal)) / 3
    # 1 - probs is not rounded to a number below e^limit, except to 0.
    rare = sign * p.logits < limit if p.logits is not None else (sign == 1) & (p.probs < np.exp(limit))
    if holds(~xp.any(rare)):
        return kl / (success_prob if sign == 1 else failure_prob)(xp, p)
    rare = xp.broadcast_to(rare, kl.shape)

    def logit(d: Any, substitute: Any) -> Array:
        """The log-odds of the event, with entries that are not used replaced, because their derivatives may be nan."""
        if d.logits is not None:
            return sign * xp.where(substitute, 0.0, d.logits)
        probs = xp.where(substitute, 0.5, d.probs)
        return sign * (xp.log(probs) - xp.log1p(-probs))

    logit_p, logit_q = logit(p, ~rare), logit(q, ~rare)
    if p.logits is None:
        usual = success_prob(xp, p) if sign == 1 else failure_prob(xp, p)
    else:
        usual = 1 / (1 + xp.exp(-logit(p, rare)))
    log_none_q = -(xp.maximum(logit_q, xp.zeros_like(logit_q)) + xp.log1p(xp.exp(-abs(logit_q))))
    if sign == 1 and p.logits is None and q.logits is None:
        change = log_ratio(xp, q.probs, xp.where(rare, p.probs, 1.0))
    else:
        change = (logit_q - logit_p) + log_none_q
    # log(1 - prob) of p is 0 to rounding. The second term is negligible for a small probability under q.
    likely = logit_q > -40
    others = xp.exp(xp.where(likely, xp.log(phi(xp.where(likely, log_none_q, -1.0))) - logit_p, 0.0))
    tail = phi(xp.where(rare, change, 0.0)) + xp.where(likely, others, 0.0)
    return xp.where(rare, tail, kl / xp.where(rare, 1.0, usual))


@closed_form((f.NegativeBinomial, f.NegativeBinomial))
def kl_negative_binomial_negative_binomial(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = NegativeBinomial(total_count, probs1) and Q = NegativeBinomial(total_count, probs2).

    total_count KL(Bernoulli(probs1) || Bernoulli(probs2)) / (1 - probs1): KL of one trial times the mean number of
    trials under P. No closed form is known for unequal total_count.
    """
    kl = p.total_count * _kl_until(xp, p, q, -1)
    return where_equal(xp, p, q, "total_count", kl)


@closed_form((f.Multinomial, f.Multinomial), infinite=lambda xp, _p, _q: xp.asarray(True))
def kl_multinomial_multinomial(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Multinomial(total_count, probs1) and Q = Multinomial(total_count, probs2).

    total_count sum_i probs1_i phi(log(probs2_i/probs1_i)), where phi(d) = e^d - 1 - d. The result is `inf` where the
    two values of total_count differ.
    """
    per_draw = kl_categorical_categorical(xp, p, q)
    kl = xp.where(p.total_count > 0, p.total_count * per_draw, 0.0)
    return xp.where(p.total_count == q.total_count, kl, np.inf)


@closed_form(
    (f.Categorical, f.Categorical),
    (f.OneHotCategorical, f.OneHotCategorical),
    infinite=lambda xp, _p, _q: xp.asarray(True),
)
def kl_categorical_categorical(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Categorical(probs1) and Q = Categorical(probs2), or OneHotCategorical for both.

    sum_i probs1_i phi(log(probs2_i/probs1_i)), where phi(d) = e^d - 1 - d and the term of probs1_i = 0 is probs2_i. The
    result is `inf` where probs2_i = 0 for some probs1_i > 0.
    """
    values = [d.probs if d.logits is None else d.logits for d in (p, q)]
    sizes = [value.shape[-1] if value.ndim else 0 for value in values]
    if sizes[0] != sizes[1] or sizes[0] == 0:
        raise ShapeError(
            "expected p and q to have the same number of categories along the last axis, got shapes "
            f"{tuple(values[0].shape)} and {tuple(values[1].shape)}"
        )
    if p.logits is None and q.logits is None:
        return differentiable_kl_probs(xp, *broadcast_arrays(xp, *values))
    logits = [xp.log(value) if d.logits is None else value for d, value in zip((p, q), values, strict=True)]
    return differentiable_kl_logits(xp, *broadcast_arrays(xp, *logits))


@closed_form((f.Poisson, f.Poisson))
def kl_poisson_poisson(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Poisson(rate1) and Q = Poisson(rate2).

    rate1 phi(log(rate2/rate1)) = rate2 - rate1 - rate1 log(rate2/rate1), where phi(d) = e^d - 1 - d.
    """
    return mass_phi(xp, p.rate, q.rate)


@closed_form((f.Zipf, f.Zipf))
def kl_zipf_zipf(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Zipf(s1) and Q = Zipf(s2), where s1 and s2 are the exponents.

    L(s2) - L(s1) - (s2 - s1) L'(s1) with L(s) = log zeta(s).
    """
    return log_zeta_residual(xp, p.exponent, q.exponent)


@closed_form((f.Bernoulli, f.Poisson))
def kl_bernoulli_poisson(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Bernoulli(probs) and Q = Poisson(rate).

    (1 - probs) phi(log(e^-rate/(1 - probs))) + probs phi(log(rate e^-rate/probs)) + e^-rate phi(rate), where
    phi(d) = e^d - 1 - d. The terms belong to the counts 0, 1, and 2 or more.
    """
    one, none, rate = success_prob(xp, p), failure_prob(xp, p), q.rate
    some = none > 0
    log_none = rate - one - log1p_residual(-xp.where(some, one, 0.0))
    none = xp.where(some, none * phi(-log_none), xp.exp(-rate))
    safe = xp.where(one > 0, one, 1.0)
    one = xp.where(one > 0, one * phi(log_ratio(xp, rate, safe) - rate), rate * xp.exp(-rate))
    small = rate < 1
    more = xp.where(small, xp.exp(-rate) * phi(xp.where(small, rate, 0.0)), 1 - (1 + rate) * xp.exp(-rate))
    return none + one + more


@closed_form((f.Poisson, f.Bernoulli), (f.Poisson, f.Binomial))
def kl_poisson_binomial(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Poisson(rate) and Q = Binomial(total_count, probs), or Q = Bernoulli(probs), total_count = 1.

    -total_count log(1 - probs) for rate = 0, where P is the point mass at 0. The result is `inf` for rate > 0, because
    P then has mass above total_count.
    """
    none = (
        xp.log1p(-q.probs)
        if q.logits is None
        else -(xp.maximum(q.logits, xp.zeros_like(q.logits)) + xp.log1p(xp.exp(-abs(q.logits))))
    )
    count = q.total_count if isinstance(q, f.Binomial) else 1
    return -count * none + xp.zeros_like(p.rate)
