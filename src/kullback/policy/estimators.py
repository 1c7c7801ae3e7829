"""What one sampled token says of a KL, and the derivative that a loss made of it must have.

With a policy p, a reference q and samples from a sampler s (the policy itself, or an older one): w = p/s, v = q/s and
L = log p/q at the sampled token; `Terms` holds their logarithms. The estimators are those of [schulman2020]: k1 = L,
k2 = L^2/2, k3 = phi(-L), each times w for KL(p || q); for KL(q || p) k1 = -L, k2 = L^2/2, k3 = phi(L), each times v.
"""

from math import inf
from typing import NamedTuple

import torch
from array_api_compat import torch as xp
from torch import Tensor

from kullback.numerics.arrays import with_gradient
from kullback.numerics.phi import phi

__all__ = ["Terms", "make_terms", "sampled_kl", "slope", "straight_through", "sum_after", "times"]


class Terms(NamedTuple):
    """Logarithms at every position, shape (batch, time), without gradient; 0 where the mask is false.

    Args:
        log_ratio: log p/q of the token.
        policy: log w of the token, with those of the prefix where the horizon is the sequence.
        reference: log v, likewise.
        prefix: log of what the prefix alone weighs; 0 where it is held fixed.
    """

    log_ratio: Tensor
    policy: Tensor
    reference: Tensor
    prefix: Tensor


def make_terms(log_prob: Tensor, ref_log_prob: Tensor, old_log_prob: Tensor | None, prefixes: str | None) -> Terms:
    """The terms of masked log-probabilities; `prefixes` says whose visits count: "policy", "reference", or as made."""
    log_prob, ref_log_prob = log_prob.detach(), ref_log_prob.detach()
    old_log_prob = log_prob if old_log_prob is None else old_log_prob.detach()
    policy, reference = _difference(log_prob, old_log_prob), _difference(ref_log_prob, old_log_prob)
    steps = {"policy": policy, "reference": reference, None: torch.zeros_like(policy)}[prefixes]
    prefix = _shift(steps, 1).cumsum(-1)
    return Terms(_difference(log_prob, ref_log_prob), prefix + policy, prefix + reference, prefix)


def sampled_kl(terms: Terms, direction: str, estimator: str, bound: float = inf) -> Tensor:
    """The estimate at each position: of KL(p || q) for "reverse", of KL(q || p) for "forward".

    Its mean over the sampler is the KL (k2: to second order). No ratio exceeds e^bound.
    """
    log_a, log_b, log_ratio = terms.policy, terms.reference, terms.log_ratio
    if direction == "forward":
        log_a, log_b, log_ratio = log_b, log_a, -log_ratio
    if estimator == "k3":
        return _weighted_phi(log_a, log_b, -log_ratio, bound)
    return times(weight(log_a, bound), log_ratio if estimator == "k1" else log_ratio**2 / 2)


def slope(terms: Terms, direction: str, estimator: str, *, weighted: bool, bound: float) -> Tensor:
    """The derivative, by the token's log-probability, of the loss that the estimator makes.

    On the policy's own samples that is the estimator's own derivative. `weighted`: the ratio w is differentiated with
    it (k1: w(L + 1), k2: w(L^2/2 + L), k3: w L), but held fixed in the forward direction of k3 (w - v). Beyond the
    bound the ratios stay at e^bound, and what they weigh keeps its derivative: none is dead.
    """
    w, log_ratio = weight(terms.policy, bound), terms.log_ratio
    if estimator == "k3" and not (weighted and direction == "reverse"):
        near = log_ratio.abs() < 1
        return torch.where(
            near, -w * torch.expm1(-torch.where(near, log_ratio, 0.0)), w - weight(terms.reference, bound)
        )
    own = torch.ones_like(log_ratio) if estimator == "k1" else log_ratio
    if weighted and estimator != "k3":
        own = own + (log_ratio if estimator == "k1" else log_ratio**2 / 2)
    return times(w, own)


def weight(log_weight: Tensor, bound: float = inf) -> Tensor:
    """e^log_weight, held at e^bound."""
    return torch.exp(log_weight.clamp(max=bound))


def sum_after(values: Tensor) -> Tensor:
    """At each position the sum of the values at later ones."""
    return _shift(values, -1).flip(-1).cumsum(-1).flip(-1)


def straight_through(log_prob: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """`value`, with `slope` for its derivative by `log_prob`."""
    return _straight_through(xp, log_prob, value.detach(), slope.detach())


_straight_through = with_gradient(
    lambda _xp, _log_prob, value, _slope: value.clone(),
    lambda _xp, gradient, _output, _log_prob, _value, slope: gradient * slope,
    lambda _xp, *_: None,
    lambda _xp, *_: None,
)


def _weighted_phi(log_a: Tensor, log_b: Tensor, d: Tensor, bound: float) -> Tensor:
    """a phi(log b/a) = b - a - a log(b/a), given d = log b/a: where it is large e^d may overflow though b does not."""
    if bound < inf:
        over = (log_a - bound).clamp(min=0)
        log_a, log_b = log_a - over, log_b - over
        most = bound + log_a.clamp(min=0)
        log_b, d = torch.minimum(log_b, most), torch.where(log_b > most, most - log_a, d)
    a, b = weight(log_a), weight(log_b)
    near = d < 1
    far = torch.where(b == inf, inf, b - a - times(a, d))
    return torch.where(near, times(a, phi(torch.where(near, d, 0.0))), far)


def times(weights: Tensor, values: Tensor) -> Tensor:
    """0 where the weight or the value is: one may have overflowed where the product does not."""
    return torch.where((weights == 0) | (values == 0), 0.0, weights * values)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b of log-probabilities; 0 where both are -inf."""
    return torch.where(torch.maximum(a, b) == -inf, 0.0, a - b)


def _shift(values: Tensor, by: int) -> Tensor:
    """The values moved along time, with 0 where none comes from."""
    nothing = torch.zeros_like(values[..., :1])
    return torch.cat([nothing, values[..., :-1]], -1) if by > 0 else torch.cat([values[..., 1:], nothing], -1)
