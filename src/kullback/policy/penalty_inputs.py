"""What a KL penalty sees: log-probabilities of sampled tokens, and the logits they came from, checked and masked."""

from typing import NamedTuple, NotRequired, Required, TypedDict

import torch
from torch import Tensor

from kullback.errors import PenaltyError, ShapeError
from kullback.policy.aggregation import counted
from kullback.policy.estimators import Terms, make_terms
from kullback.tokens.logits import token_kl

__all__ = ["Batch", "PenaltyInputs", "read_batch"]

_SAME = 0.01  # nats by which log-probabilities of one policy may differ: rounding, or another engine's kernels


class PenaltyInputs(TypedDict):
    """What the methods of `KLPenalty` take; `KLPenalty.loss` says what each is."""

    log_prob: Required[Tensor]
    ref_log_prob: Required[Tensor]
    old_log_prob: NotRequired[Tensor | None]
    logits: NotRequired[Tensor | None]
    ref_logits: NotRequired[Tensor | None]
    mask: NotRequired[Tensor | None]


class Batch(NamedTuple):
    """The same, in float32 or float64, and 0 wherever the mask is false."""

    log_prob: Tensor  # differentiated
    terms: Terms
    kl: Tensor | None  # exact, at each position; differentiated
    mask: Tensor
    is_weighted: bool  # by policy/old


def read_batch(
    *,
    direction: str,
    exact: bool,
    prefixes: str | None,
    sampler: str | None,
    log_prob: Tensor,
    ref_log_prob: Tensor,
    old_log_prob: Tensor | None = None,
    logits: Tensor | None = None,
    ref_logits: Tensor | None = None,
    mask: Tensor | None = None,
) -> Batch:
    """The arguments checked, masked, and in a dtype fit for computing. `sampler`: None asks for no ratio."""
    shape = log_prob.shape
    for name, other in (("ref_log_prob", ref_log_prob), ("old_log_prob", old_log_prob)):
        if len(shape) != 2 or (other is not None and other.shape != shape):
            raise ShapeError(
                f"expected log_prob and {name} of one shape (batch, time), got {tuple(shape)} and "
                f"{None if other is None else tuple(other.shape)}"
            )
    kept = counted(log_prob, mask)
    given = [log_prob, ref_log_prob] if old_log_prob is None else [log_prob, ref_log_prob, old_log_prob]
    dtype = torch.float64 if any(values.dtype == torch.float64 for values in given) else torch.float32
    log_prob, ref_log_prob, *rest = (torch.where(kept, values.to(dtype), 0.0) for values in given)
    old_log_prob = rest[0] if rest else None
    kl = _exact(direction, shape, logits, ref_logits, kept) if exact else None
    if sampler == "behaviour" and old_log_prob is None:
        raise PenaltyError("samples of another policy need their ratio: pass old_log_prob, under which they came")
    if sampler == "policy" and old_log_prob is not None:
        _require_own(log_prob.detach(), old_log_prob)
        old_log_prob = None
    return Batch(
        log_prob, make_terms(log_prob, ref_log_prob, old_log_prob, prefixes), kl, kept, old_log_prob is not None
    )


def _require_own(log_prob: Tensor, old_log_prob: Tensor) -> None:
    apart = (log_prob - old_log_prob).abs() > _SAME
    if apart.any():
        row, step = (int(index) for index in torch.nonzero(apart)[0])
        raise PenaltyError(
            f"expected samples of the policy itself, but old_log_prob[{row}, {step}] is "
            f"{float(old_log_prob[row, step])!r} where log_prob is {float(log_prob[row, step])!r}: take "
            "sampler='behaviour', which weighs them by policy/old"
        )


def _exact(direction: str, shape: torch.Size, logits: Tensor | None, ref_logits: Tensor | None, mask: Tensor) -> Tensor:
    if logits is None or ref_logits is None:
        raise PenaltyError("the exact KL needs logits and ref_logits, both (batch, time, V); or take an estimator")
    if logits.shape[:-1] != shape:
        raise ShapeError(f"expected logits of shape {(*shape, 'V')}, as log_prob has, got {tuple(logits.shape)}")
    p, q = (logits, ref_logits) if direction == "reverse" else (ref_logits, logits)
    return token_kl(p, q, mask=mask)
