"""What a policy descends: PPO's clipped surrogate and its kin, with a KL penalty whose gradient is a KL's."""

from math import inf
from typing import Literal

import kullback.tokens  # noqa: F401  first: where PyTorch is missing it says what to install

# isort: split
import torch
from torch import Tensor

from kullback.errors import PenaltyError, ShapeError
from kullback.policy.aggregation import Aggregate, aggregate_tokens, counted
from kullback.policy.estimators import straight_through, weight
from kullback.policy.penalty import KLPenalty

__all__ = ["Clip", "Ratio", "clipped_surrogate", "grpo_loss", "ppo_loss"]

Ratio = Literal["token", "sequence", "sequence_mean"]
Clip = float | tuple[float, float] | None

_BOUND = 20.0  # ratios above e^20 stay there, as weights of a derivative that goes on
_WEIGHTED_K3 = KLPenalty(estimator="k3", sampler="behaviour")


def ppo_loss(
    *,
    log_prob: Tensor,
    advantages: Tensor,
    old_log_prob: Tensor | None = None,
    ref_log_prob: Tensor | None = None,
    logits: Tensor | None = None,
    ref_logits: Tensor | None = None,
    mask: Tensor | None = None,
    clip: Clip = 0.2,
    ratio: Ratio = "token",
    beta: float | Tensor = 0.0,
    penalty: KLPenalty = _WEIGHTED_K3,
    aggregate: Aggregate = "token_mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """PPO's loss: the clipped surrogate, plus beta times a KL penalty.

    loss = mean over tokens of  -min(w A, clip(w, 1 - low, 1 + high) A) + beta penalty.loss,   w = policy/old.

    Args:
        log_prob: Shape (batch, time), nats: log-probability of each token under the policy; differentiated.
        advantages: Shape (batch, time), or (batch,) for one a sequence. Not differentiated.
        old_log_prob: Shape (batch, time), nats, under the policy that made the samples; None: the policy itself did.
        ref_log_prob: Shape (batch, time), nats, under what the penalty holds the policy to.
        logits: Shape (batch, time, V), for an exact penalty.
        ref_logits: Shape (batch, time, V), likewise.
        mask: Shape (batch, time), true (or not 0) for the tokens that count; the rest may hold anything.
        clip: How far w may leave 1 and still be pushed further: one number, (low, high), or None for no clip.
        ratio: What w is: "token", of each token; "sequence", of the whole sequence, as RLOO; "sequence_mean", the
            geometric mean of the sequence's, as GSPO.
        beta: Reward per nat: what the penalty weighs.
        penalty: Which KL, and how it is estimated. The default, w k3, descends KL(policy || ref) whoever sampled.
        aggregate: How tokens make one number: see `aggregate_tokens`.
        normalizer: As in `aggregate_tokens`.

    Returns:
        A number to minimise. Its gradient is finite at any log-ratio, and 0 only where the clip means it to be.

    Raises:
        PenaltyError: beta below 0 or without ref_log_prob, a penalty that belongs in the returns, or as
            `KLPenalty.loss`.
        ShapeError: The shapes differ.

    Source: [schulman2017], eq. 7 and 8.

    Example:
        >>> log_prob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> loss = ppo_loss(log_prob=log_prob, advantages=torch.tensor([1.0]), ref_log_prob=log_prob - 0.5, beta=0.1)
        >>> loss.backward()
        >>> log_prob.grad  # (-1 + 0.1 log policy/ref) / 2
        tensor([[-0.4750, -0.4750]])
    """
    loss = clipped_surrogate(
        log_prob=log_prob, advantages=advantages, old_log_prob=old_log_prob, mask=mask, clip=clip, ratio=ratio
    )
    if not isinstance(beta, Tensor) and not 0 <= beta < inf:
        raise PenaltyError(f"expected beta to be a finite number >= 0, got {beta!r}: below 0 it would reward the KL")
    if isinstance(beta, Tensor) or beta != 0:
        if penalty.placement == "reward":
            raise PenaltyError(
                "this penalty belongs in the returns: subtract beta * penalty.to_go(...) from them before they become "
                "advantages, and leave beta at 0 here"
            )
        if ref_log_prob is None:
            raise PenaltyError(f"beta={beta} needs ref_log_prob, which the penalty holds the policy to")
        needs_ratio = penalty.sampler == "behaviour" and old_log_prob is None
        loss = loss + beta * penalty.loss(
            log_prob=log_prob,
            ref_log_prob=ref_log_prob,
            old_log_prob=log_prob.detach() if needs_ratio else old_log_prob,
            logits=logits,
            ref_logits=ref_logits,
            mask=mask,
        )
    return aggregate_tokens(loss, mask, aggregate, normalizer=normalizer)


def grpo_loss(
    *,
    log_prob: Tensor,
    advantages: Tensor,
    old_log_prob: Tensor | None = None,
    ref_log_prob: Tensor | None = None,
    logits: Tensor | None = None,
    ref_logits: Tensor | None = None,
    mask: Tensor | None = None,
    clip: Clip = 0.2,
    ratio: Ratio = "token",
    beta: float | Tensor = 0.0,
    penalty: KLPenalty = _WEIGHTED_K3,
    aggregate: Aggregate = "sequence_mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """GRPO's loss: PPO's, with advantages relative to the group, and the mean over each sequence's tokens taken first.

    loss = mean over sequences of the mean over tokens of  -min(w A, clip(w, 1 - low, 1 + high) A) + beta penalty.loss.

    The paper's penalty is k3 without w, whose gradient on the policy's own samples is that of KL(ref || policy):
    `preset("deepseekmath")` has it. The default here descends KL(policy || ref). RLOO, Dr. GRPO, DAPO and GSPO are
    other choices of `ratio`, `clip`, `aggregate` and advantages: `preset` names them.

    Args:
        log_prob: As for `ppo_loss`, and so the others.
        advantages: Shape (batch,), as `group_advantages` makes them; or (batch, time).
        old_log_prob: As for `ppo_loss`.
        ref_log_prob: As for `ppo_loss`.
        logits: As for `ppo_loss`.
        ref_logits: As for `ppo_loss`.
        mask: As for `ppo_loss`.
        clip: As for `ppo_loss`.
        ratio: As for `ppo_loss`.
        beta: As for `ppo_loss`.
        penalty: As for `ppo_loss`.
        aggregate: As for `ppo_loss`.
        normalizer: As for `ppo_loss`.

    Returns:
        A number to minimise.

    Raises:
        PenaltyError: As for `ppo_loss`.
        ShapeError: As for `ppo_loss`.

    Source: [shao2024], eq. 3.

    Example:
        >>> log_prob = torch.tensor([[-1.0, -2.0], [-1.0, -9.0]], requires_grad=True)
        >>> mask = torch.tensor([[1, 1], [1, 0]])
        >>> grpo_loss(log_prob=log_prob, advantages=torch.tensor([1.0, -1.0]), mask=mask).backward()
        >>> log_prob.grad
        tensor([[-0.2500, -0.2500],
                [ 0.5000,  0.0000]])
    """
    return ppo_loss(
        log_prob=log_prob,
        advantages=advantages,
        old_log_prob=old_log_prob,
        ref_log_prob=ref_log_prob,
        logits=logits,
        ref_logits=ref_logits,
        mask=mask,
        clip=clip,
        ratio=ratio,
        beta=beta,
        penalty=penalty,
        aggregate=aggregate,
        normalizer=normalizer,
    )


def clipped_surrogate(
    *,
    log_prob: Tensor,
    advantages: Tensor,
    old_log_prob: Tensor | None = None,
    mask: Tensor | None = None,
    clip: Clip = 0.2,
    ratio: Ratio = "token",
) -> Tensor:
    """-min(w A, clip(w, 1 - low, 1 + high) A) at every token, shape (batch, time); 0 where the mask is false.

    Arguments, errors and source as for `ppo_loss`.

    Example:
        >>> old = torch.tensor([[-1.0, -1.0]])
        >>> clipped_surrogate(log_prob=old + 1, old_log_prob=old, advantages=torch.tensor([[1.0, -1.0]]))
        tensor([[-1.2000,  2.7183]])
    """
    shape, log_ratio, kept = _log_ratio(log_prob, old_log_prob, mask, ratio)
    if advantages.shape not in (shape, shape[:1]):
        raise ShapeError(f"expected advantages of shape {tuple(shape)} or {tuple(shape[:1])}, got {advantages.shape}")
    advantages = advantages.detach().to(log_ratio.dtype)
    advantages = advantages[:, None].expand(shape) if advantages.ndim == 1 else advantages
    advantages = torch.where(kept, advantages, 0.0)
    held = weight(log_ratio.detach(), _BOUND)
    w = straight_through(log_ratio, held, held)
    if clip is None:
        return -w * advantages
    sides = clip if isinstance(clip, tuple) else (clip, clip)
    if len(sides) != 2 or not all(side >= 0 for side in sides):
        raise PenaltyError(f"expected a clip of 0 or more, one number or (low, high), got {clip!r}")
    low, high = sides
    return -torch.minimum(w * advantages, w.clamp(1 - low, 1 + high) * advantages)


def _log_ratio(
    log_prob: Tensor, old_log_prob: Tensor | None, mask: Tensor | None, ratio: Ratio
) -> tuple[torch.Size, Tensor, Tensor]:
    shape = log_prob.shape
    old_log_prob = log_prob.detach() if old_log_prob is None else old_log_prob.detach()
    if len(shape) != 2 or old_log_prob.shape != shape:
        raise ShapeError(
            f"expected log_prob and old_log_prob of one shape (batch, time), got {tuple(shape)} and "
            f"{tuple(old_log_prob.shape)}"
        )
    kept = counted(log_prob, mask)
    dtype = torch.promote_types(torch.promote_types(log_prob.dtype, old_log_prob.dtype), torch.float32)
    log_prob, old_log_prob = (torch.where(kept, values.to(dtype), 0.0) for values in (log_prob, old_log_prob))
    log_ratio = log_prob - old_log_prob
    if ratio not in ("token", "sequence", "sequence_mean"):
        raise PenaltyError(f"expected ratio to be 'token', 'sequence' or 'sequence_mean', got {ratio!r}")
    if ratio != "token":
        log_ratio = log_ratio.sum(-1, keepdim=True)
        if ratio == "sequence_mean":
            log_ratio = log_ratio / kept.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = log_ratio.expand(shape)
    return shape, log_ratio, kept
