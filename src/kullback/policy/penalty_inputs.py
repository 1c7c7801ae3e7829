"""The inputs of a KL penalty: log-probabilities of sampled tokens and the logits, validated and masked."""

from typing import NamedTuple, NotRequired, Required, TypedDict

import torch
from torch import Tensor

from kullback.errors import PenaltyError, ShapeError
from kullback.numerics.array_types import Bool, Float, Shaped
from kullback.policy.aggregation import token_mask
from kullback.policy.estimators import LogRatios, compute_log_ratios
from kullback.tokens.logits import require_tensors, token_kl

__all__ = ["Batch", "PenaltyInputs", "read_batch"]

# The difference in nats that rounding, or another inference engine, may cause between log-probabilities of one policy.
_LOG_PROB_TOLERANCE = 0.01


class PenaltyInputs(TypedDict):
    """The keyword arguments of the methods of `KLPenalty`, which `KLPenalty.loss` documents."""

    log_prob: Required[Float[Tensor, "batch time"]]
    ref_log_prob: Required[Float[Tensor, "batch time"]]
    old_log_prob: NotRequired[Float[Tensor, "batch time"] | None]
    logits: NotRequired[Float[Tensor, "batch time vocab"] | None]
    ref_logits: NotRequired[Float[Tensor, "batch time vocab"] | None]
    mask: NotRequired[Shaped[Tensor, "batch time"] | None]


class Batch(NamedTuple):
    """The validated inputs, in float32 or float64, and 0 where the mask is false.

    Args:
        log_prob: Log-probabilities under the policy, shape (batch, time); differentiated.
        log_ratios: The log-ratios of the estimators, without gradient.
        kl: The exact KL at each position, nats; differentiated. None unless the estimator is "exact".
        mask: Booleans, shape (batch, time).
        is_weighted: Whether samples are weighted by policy/old.
    """

    log_prob: Float[Tensor, "batch time"]
    log_ratios: LogRatios
    kl: Float[Tensor, "batch time"] | None
    mask: Bool[Tensor, "batch time"]
    is_weighted: bool


def read_batch(
    *,
    direction: str,
    exact: bool,
    prefix_distribution: str | None,
    sampler: str | None,
    log_prob: Float[Tensor, "batch time"],
    ref_log_prob: Float[Tensor, "batch time"],
    old_log_prob: Float[Tensor, "batch time"] | None = None,
    logits: Float[Tensor, "batch time vocab"] | None = None,
    ref_logits: Float[Tensor, "batch time vocab"] | None = None,
    mask: Shaped[Tensor, "batch time"] | None = None,
) -> Batch:
    """Validates and masks the inputs, and converts them to float32, or to float64 if one of them is float64.

    Without a `sampler`, neither the presence of `old_log_prob` nor its agreement with `log_prob` is checked.
    """
    given = {"log_prob": log_prob, "ref_log_prob": ref_log_prob, "old_log_prob": old_log_prob}
    require_tensors(**{name: values for name, values in given.items() if values is not None or name != "old_log_prob"})
    shape = log_prob.shape
    for name, other in (("ref_log_prob", ref_log_prob), ("old_log_prob", old_log_prob)):
        if len(shape) != 2 or (other is not None and other.shape != shape):
            raise ShapeError(
                f"expected log_prob and {name} of one shape (batch, time), got {tuple(shape)} and "
                f"{None if other is None else tuple(other.shape)}"
            )
    mask = token_mask(log_prob, mask)
    tensors = [values for values in given.values() if values is not None]
    dtype = torch.float64 if any(values.dtype == torch.float64 for values in tensors) else torch.float32
    log_prob, ref_log_prob, *optional = (torch.where(mask, values.to(dtype), 0.0) for values in tensors)
    old_log_prob = optional[0] if optional else None
    kl = _exact_kl(direction, shape, logits, ref_logits, mask) if exact else None
    if sampler == "behaviour" and old_log_prob is None:
        raise PenaltyError(
            "expected old_log_prob for sampler='behaviour', got None: pass old_log_prob, the log-probabilities under "
            "the policy that generated the samples"
        )
    if sampler == "policy" and old_log_prob is not None:
        _require_on_policy(log_prob.detach(), old_log_prob)
        old_log_prob = None
    return Batch(
        log_prob,
        compute_log_ratios(log_prob, ref_log_prob, old_log_prob, prefix_distribution),
        kl,
        mask,
        old_log_prob is not None,
    )


def _require_on_policy(log_prob: Float[Tensor, "batch time"], old_log_prob: Float[Tensor, "batch time"]) -> None:
    """Raises PenaltyError where the two log-probabilities differ by more than rounding."""
    differs = (log_prob - old_log_prob).abs() > _LOG_PROB_TOLERANCE
    if differs.any():
        row, step = (int(index) for index in torch.nonzero(differs)[0])
        raise PenaltyError(
            f"expected samples of the policy that is differentiated, but old_log_prob[{row}, {step}] is "
            f"{float(old_log_prob[row, step])!r} where log_prob is {float(log_prob[row, step])!r}: use "
            "sampler='behaviour', which weights the samples by policy/old"
        )


def _exact_kl(
    direction: str,
    shape: torch.Size,
    logits: Float[Tensor, "batch time vocab"] | None,
    ref_logits: Float[Tensor, "batch time vocab"] | None,
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """The exact KL at each position, in nats, from the logits."""
    if logits is None or ref_logits is None:
        missing = "logits" if logits is None else "ref_logits"
        raise PenaltyError(
            "expected logits and ref_logits of shape (batch, time, V) for estimator='exact', but "
            f"{missing} is None: pass both, or choose an estimator that uses sampled tokens only"
        )
    require_tensors(logits=logits, ref_logits=ref_logits)
    if logits.shape[:-1] != shape:
        raise ShapeError(f"expected logits of shape {(*shape, 'V')} to match log_prob, got {tuple(logits.shape)}")
    p, q = (logits, ref_logits) if direction == "reverse" else (ref_logits, logits)
    return token_kl(p, q, mask=mask)
