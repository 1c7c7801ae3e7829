"""The sampled KL estimators k1, k2 and k3: their values, and the derivatives that a loss built from them must have.

Notation: p is the policy, q the reference, and s the sampler, which is the policy itself or an older policy. At a
sampled token, w = p/s, v = q/s and L = log(p/q). The estimators of Schulman (2020) [schulman2020], with importance
weights, are:

    KL(p || q):  k1 = w L,   k2 = w L^2/2,  k3 = w phi(-L)
    KL(q || p):  k1 = -v L,  k2 = v L^2/2,  k3 = v phi(L)       where phi(d) = e^d - 1 - d
"""

from math import inf
from typing import NamedTuple

import torch
from array_api_compat import torch as xp
from torch import Tensor

from kullback.errors import ArrayTypeError, PenaltyError, ShapeError
from kullback.numerics.arguments import is_name, is_number, shown
from kullback.numerics.array_types import Float
from kullback.numerics.arrays import with_gradient
from kullback.numerics.phi import phi
from kullback.tokens.logits import require_tensors

__all__ = [
    "LogRatios",
    "bounded_exp",
    "compute_log_ratios",
    "loss_derivative",
    "safe_product",
    "sampled_kl",
    "straight_through",
    "sum_after",
]


class LogRatios(NamedTuple):
    """Logarithms of probability ratios at every position, shape (batch, time), without gradient.

    All are 0 where the mask is false.

    Args:
        policy_ref: L = log(p/q) of the token.
        policy_sampler: log w of the token, plus `prefix`.
        ref_sampler: log v of the token, plus `prefix`.
        prefix: The log importance weight of the tokens before this position; 0 where prefixes are held fixed.
    """

    policy_ref: Float[Tensor, "batch time"]
    policy_sampler: Float[Tensor, "batch time"]
    ref_sampler: Float[Tensor, "batch time"]
    prefix: Float[Tensor, "batch time"]


def compute_log_ratios(
    log_prob: Float[Tensor, "batch time"],
    ref_log_prob: Float[Tensor, "batch time"],
    old_log_prob: Float[Tensor, "batch time"] | None,
    prefix_distribution: str | None,
) -> LogRatios:
    """The log-ratios of masked log-probabilities.

    `prefix_distribution` is the distribution to which the sampled prefixes are reweighted: "policy", "reference", or
    None to leave them as sampled.
    """
    given = {"log_prob": log_prob, "ref_log_prob": ref_log_prob}
    _require_one_shape(**given if old_log_prob is None else {**given, "old_log_prob": old_log_prob})
    if prefix_distribution is not None and not is_name(prefix_distribution, ("policy", "reference")):
        raise PenaltyError(
            f"expected prefix_distribution to be 'policy', 'reference' or None, got {shown(prefix_distribution)}"
        )
    log_prob, ref_log_prob = log_prob.detach(), ref_log_prob.detach()
    old_log_prob = log_prob if old_log_prob is None else old_log_prob.detach()
    policy, reference = _difference(log_prob, old_log_prob), _difference(ref_log_prob, old_log_prob)
    steps = {"policy": policy, "reference": reference, None: torch.zeros_like(policy)}[prefix_distribution]
    prefix = _shift(steps, 1).cumsum(-1)
    return LogRatios(_difference(log_prob, ref_log_prob), prefix + policy, prefix + reference, prefix)


def sampled_kl(
    log_ratios: LogRatios, direction: str, estimator: str, bound: float = inf
) -> Float[Tensor, "batch time"]:
    """The estimate at each position of KL(p || q) for "reverse" or of KL(q || p) for "forward".

    Its mean over the sampler is the KL; for k2 it is the KL to second order in L. Ratios above e^bound are replaced by
    e^bound.
    """
    _require_estimator(log_ratios, direction, estimator)
    bound = _bound_in(log_ratios.policy_ref, bound)
    log_a, log_b, log_ratio = log_ratios.policy_sampler, log_ratios.ref_sampler, log_ratios.policy_ref
    if direction == "forward":
        log_a, log_b, log_ratio = log_b, log_a, -log_ratio
    if estimator == "k3":
        return _weighted_phi(log_a, log_b, -log_ratio, bound)
    return _safe_product(_bounded_exp(log_a, bound), log_ratio if estimator == "k1" else log_ratio**2 / 2)


def loss_derivative(
    log_ratios: LogRatios, direction: str, estimator: str, *, weighted: bool, bound: float
) -> Float[Tensor, "batch time"]:
    """The derivative of the estimator's loss with respect to the token's log-probability.

    Without `weighted`, it is the derivative of the estimator on the policy's own samples. With `weighted`, the ratio w
    is differentiated too:

        k1: w (L + 1),   k2: w (L^2/2 + L),   k3: w L,   forward k3: w - v

    Ratios above e^bound are replaced by e^bound, and the factors that they multiply keep their derivatives, so that no
    derivative becomes 0 beyond the bound.
    """
    _require_estimator(log_ratios, direction, estimator)
    if not isinstance(weighted, bool):
        raise PenaltyError(f"expected weighted to be True or False, got {shown(weighted)}")
    bound = _bound_in(log_ratios.policy_ref, bound)
    w, log_ratio = _bounded_exp(log_ratios.policy_sampler, bound), log_ratios.policy_ref
    if estimator == "k3" and not (weighted and direction == "reverse"):
        near = log_ratio.abs() < 1
        return torch.where(
            near,
            -w * torch.expm1(-torch.where(near, log_ratio, 0.0)),
            w - _bounded_exp(log_ratios.ref_sampler, bound),
        )
    factor = torch.ones_like(log_ratio) if estimator == "k1" else log_ratio
    if weighted and estimator != "k3":
        factor = factor + (log_ratio if estimator == "k1" else log_ratio**2 / 2)
    return _safe_product(w, factor)


def bounded_exp(log_weight: Float[Tensor, "*shape"], bound: float = inf) -> Float[Tensor, "*shape"]:
    """min(e^log_weight, e^bound)."""
    require_tensors(log_weight=log_weight)
    return _bounded_exp(log_weight, _bound_in(log_weight, bound))


def sum_after(values: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """At each position, the sum of the values at later positions."""
    require_tensors(values=values)
    if values.ndim == 0:
        raise ShapeError("expected values of shape (batch, time), got shape ()")
    return _shift(values, -1).flip(-1).cumsum(-1).flip(-1)


def straight_through(
    log_prob: Float[Tensor, "batch time"], value: Float[Tensor, "batch time"], slope: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """A tensor equal to `value` whose derivative with respect to `log_prob` is `slope`."""
    _require_one_shape(log_prob=log_prob, value=value, slope=slope)
    return _straight_through(xp, log_prob, value.detach(), slope.detach())


_straight_through = with_gradient(
    lambda _xp, _log_prob, value, _slope: value.clone(),
    lambda _xp, gradient, _output, _log_prob, _value, slope: gradient * slope,
    lambda _xp, *_: None,
    lambda _xp, *_: None,
)


def _weighted_phi(
    log_a: Float[Tensor, "batch time"], log_b: Float[Tensor, "batch time"], d: Float[Tensor, "batch time"], bound: float
) -> Float[Tensor, "batch time"]:
    """a phi(d) = b - a - a d with d = log(b/a), also where e^d overflows although b is finite."""
    if bound < inf:
        excess = (log_a - bound).clamp(min=0)
        log_a, log_b = log_a - excess, log_b - excess
        largest = bound + log_a.clamp(min=0)
        log_b, d = torch.minimum(log_b, largest), torch.where(log_b > largest, largest - log_a, d)
    a, b = torch.exp(log_a), torch.exp(log_b)
    near = d < 1
    far = torch.where(b == inf, inf, b - a - _safe_product(a, d))
    return torch.where(near, _safe_product(a, phi(torch.where(near, d, 0.0))), far)


def safe_product(weights: Float[Tensor, "*shape"], values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The product, with 0 where either factor is 0, even if the other factor has overflowed to infinity."""
    _require_one_shape(weights=weights, values=values)
    return _safe_product(weights, values)


def _bounded_exp(log_weight: Float[Tensor, "*shape"], bound: float) -> Float[Tensor, "*shape"]:
    return torch.exp(log_weight.clamp(max=bound))


def _safe_product(weights: Float[Tensor, "*shape"], values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return torch.where((weights == 0) | (values == 0), 0.0, weights * values)


def _require_one_shape(**tensors: Tensor) -> None:
    """Raise an error unless the arguments, passed by their names, are tensors of one shape."""
    require_tensors(**tensors)
    first, *others = tensors.values()
    if any(tensor.shape != first.shape for tensor in others):
        got = " and ".join(str(tuple(tensor.shape)) for tensor in tensors.values())
        raise ShapeError(f"expected {', '.join(tensors)} of one shape, got {got}")


def _require_estimator(log_ratios: LogRatios, direction: str, estimator: str) -> None:
    """Raise an error for log-ratios and names of a wrong kind."""
    if not isinstance(log_ratios, LogRatios):
        raise ArrayTypeError(f"expected LogRatios from compute_log_ratios, got {shown(log_ratios)}")
    _require_one_shape(**log_ratios._asdict())
    if not is_name(direction, ("reverse", "forward")):
        raise PenaltyError(f"expected direction to be 'reverse' or 'forward', got {shown(direction)}")
    if not is_name(estimator, ("k1", "k2", "k3")):
        raise PenaltyError(f"expected estimator to be 'k1', 'k2' or 'k3', got {shown(estimator)}")


def _bound_in(values: Tensor, bound: float) -> float:
    """The bound; inf where it is beyond the range of the dtype of the values."""
    if not is_number(bound) or bound != bound:
        raise PenaltyError(f"expected bound to be a number of nats, got {shown(bound)}")
    return inf if values.is_floating_point() and bound > torch.finfo(values.dtype).max else float(bound)


def _difference(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """a - b of log-probabilities; 0 where both are -inf."""
    return torch.where(torch.maximum(a, b) == -inf, 0.0, a - b)


def _shift(values: Float[Tensor, "batch time"], by: int) -> Float[Tensor, "batch time"]:
    """The values moved by one position along time (later if `by` > 0, else earlier), padded with 0."""
    zeros = torch.zeros_like(values[..., :1])
    return torch.cat([zeros, values[..., :-1]], -1) if by > 0 else torch.cat([values[..., 1:], zeros], -1)
