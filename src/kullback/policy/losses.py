"""Policy-gradient losses: the clipped surrogate of PPO, and the PPO and GRPO losses with a KL penalty."""

from math import inf
from typing import Literal, get_args

import kullback.tokens  # noqa: F401  first: raises MissingDependencyError where PyTorch is not installed

# isort: split
import torch
from torch import Tensor

from kullback.errors import PenaltyError, ShapeError
from kullback.numerics.arguments import is_name, shown
from kullback.numerics.array_types import Bool, Float, Shaped
from kullback.policy.aggregation import Aggregate, aggregate_tokens, token_mask
from kullback.policy.estimators import bounded_exp, straight_through
from kullback.policy.penalty import KLPenalty
from kullback.tokens.logits import as_scalar, can_be_checked, is_scalar, require_tensors

__all__ = ["Clip", "Ratio", "clipped_surrogate", "grpo_loss", "ppo_loss"]

Ratio = Literal["token", "sequence", "sequence_mean"]
Clip = float | tuple[float, float] | None

_BOUND = 20.0  # ratios above e^20 are replaced by e^20, and keep a nonzero derivative
_WEIGHTED_K3 = KLPenalty(estimator="k3", sampler="behaviour")


def ppo_loss(
    *,
    log_prob: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"] | Float[Tensor, " batch"],
    old_log_prob: Float[Tensor, "batch time"] | None = None,
    ref_log_prob: Float[Tensor, "batch time"] | None = None,
    logits: Float[Tensor, "batch time vocab"] | None = None,
    ref_logits: Float[Tensor, "batch time vocab"] | None = None,
    mask: Shaped[Tensor, "batch time"] | None = None,
    clip: Clip = 0.2,
    ratio: Ratio = "token",
    beta: float | Tensor = 0.0,
    penalty: KLPenalty = _WEIGHTED_K3,
    aggregate: Aggregate = "token_mean",
    normalizer: float | Tensor | None = None,
) -> Float[Tensor, ""]:
    """The PPO loss: the clipped surrogate plus beta times a KL penalty.

        loss = mean over tokens of  -min(w A, clip(w, 1 - low, 1 + high) A) + beta penalty.loss,   w = policy/old

    The KL whose gradient the loss descends is the KL that `penalty` names. The default penalty, w k3, descends
    KL(policy || ref) of the next token at the visited prefixes, for samples of any policy.

    Args:
        log_prob: Shape (batch, time), nats: log-probability of each token under the policy; differentiated.
        advantages: Shape (batch, time), or (batch,) for one advantage per sequence; not differentiated.
        old_log_prob: Shape (batch, time), nats: log-probability of each token under the policy that generated the
            samples. None: the differentiated policy generated them.
        ref_log_prob: Shape (batch, time), nats: log-probability of each token under the reference of the penalty.
        logits: Shape (batch, time, V): logits of the policy, for a penalty with estimator="exact"; differentiated.
        ref_logits: Shape (batch, time, V): logits of the reference, for a penalty with estimator="exact".
        mask: Shape (batch, time), true (or nonzero) for the tokens that count. Values at other tokens are ignored, nan
            included. None: all tokens count.
        clip: The range [1 - low, 1 + high] of w outside which the surrogate is clipped: one number for both sides,
            (low, high), or None for no clipping.
        ratio: The probabilities that w compares: "token", the token's probability; "sequence", the product over the
            sequence, as in RLOO; "sequence_mean", the geometric mean over the sequence, as in GSPO.
        beta: The coefficient of the penalty, in units of reward per nat, >= 0.
        penalty: Which KL is penalised and how it is estimated.
        aggregate: How token losses are averaged: "token_mean", "sequence_mean" or "sequence_sum"; see
            `aggregate_tokens`.
        normalizer: Replaces the denominator of the average; see `aggregate_tokens`.

    Returns:
        A scalar to minimise. Its gradient is finite for any log-ratio, and 0 only where the surrogate is clipped. `inf`
        where the penalty is `inf`, because the reference has probability 0 for a sampled token.

    Raises:
        PenaltyError: `beta` is negative, infinite or nan; `beta` is positive without `ref_log_prob`; the penalty has
            placement="reward"; an option is unknown; or `KLPenalty.loss` raises it.
        ShapeError: The shapes differ.

    References:
        Schulman et al. (2017), "Proximal Policy Optimization Algorithms", eq. 7 and 8 [schulman2017].

    Example:
        >>> log_prob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> loss = ppo_loss(log_prob=log_prob, advantages=torch.tensor([1.0]), ref_log_prob=log_prob - 0.5, beta=0.1)
        >>> loss.backward()
        >>> log_prob.grad  # (-1 + 0.1 log(policy/ref)) / 2
        tensor([[-0.4750, -0.4750]])
    """
    loss = clipped_surrogate(
        log_prob=log_prob, advantages=advantages, old_log_prob=old_log_prob, mask=mask, clip=clip, ratio=ratio
    )
    if isinstance(beta, Tensor):
        require_tensors(beta=beta)
        if len(beta.shape) > 2 or any(
            n not in (1, m) for n, m in zip(beta.shape[::-1], loss.shape[::-1], strict=False)
        ):
            raise ShapeError(
                f"expected beta without axes, or of a shape that broadcasts to {tuple(loss.shape)}, got "
                f"{tuple(beta.shape)}"
            )
        if can_be_checked(beta) and not bool(((beta >= 0) & (beta < inf)).all()):
            raise PenaltyError(
                f"expected finite values of beta >= 0, got {shown(beta)}; a negative beta would reward divergence"
            )
    elif not (is_scalar(beta) and 0 <= beta < inf):
        raise PenaltyError(
            f"expected beta to be a finite number >= 0, got {beta!r}; a negative beta would reward divergence"
        )
    if isinstance(beta, Tensor) or beta != 0:
        if not isinstance(penalty, KLPenalty):
            raise PenaltyError(f"expected penalty to be a KLPenalty, got {shown(penalty)}")
        if penalty.placement == "reward":
            raise PenaltyError(
                "expected a penalty with placement='loss', got placement='reward'; subtract beta * penalty.to_go(...) "
                "from the returns before computing advantages, and pass beta=0 here"
            )
        if ref_log_prob is None:
            raise PenaltyError(
                f"expected ref_log_prob, got None: beta={beta} needs ref_log_prob, the log-probabilities under the "
                "reference; pass it or set beta=0"
            )
        needs_ratio = penalty.sampler == "behaviour" and old_log_prob is None
        loss = loss + as_scalar(beta) * penalty.loss(
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
    log_prob: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"] | Float[Tensor, " batch"],
    old_log_prob: Float[Tensor, "batch time"] | None = None,
    ref_log_prob: Float[Tensor, "batch time"] | None = None,
    logits: Float[Tensor, "batch time vocab"] | None = None,
    ref_logits: Float[Tensor, "batch time vocab"] | None = None,
    mask: Shaped[Tensor, "batch time"] | None = None,
    clip: Clip = 0.2,
    ratio: Ratio = "token",
    beta: float | Tensor = 0.0,
    penalty: KLPenalty = _WEIGHTED_K3,
    aggregate: Aggregate = "sequence_mean",
    normalizer: float | Tensor | None = None,
) -> Float[Tensor, ""]:
    """The GRPO loss: the clipped surrogate with group-relative advantages, averaged within each sequence first.

        loss = mean over sequences of mean over tokens of  -min(w A, clip(w, 1 - low, 1 + high) A) + beta penalty.loss

    The KL whose gradient the loss descends is the KL that `penalty` names. The default penalty, w k3, descends
    KL(policy || ref) of the next token at the visited prefixes. The penalty of the paper is k3 without w, which on the
    policy's own samples descends KL(ref || policy); `preset("deepseekmath")` reproduces it. RLOO, Dr. GRPO, DAPO and
    GSPO are other choices of `ratio`, `clip`, `aggregate` and advantages; `preset` has their constants.

    Args:
        log_prob: Shape (batch, time), nats: log-probability of each token under the policy; differentiated.
        advantages: Shape (batch,), from `group_advantages`, or (batch, time); not differentiated.
        old_log_prob: Shape (batch, time), nats: log-probability of each token under the policy that generated the
            samples. None: the differentiated policy generated them.
        ref_log_prob: Shape (batch, time), nats: log-probability of each token under the reference of the penalty.
        logits: Shape (batch, time, V): logits of the policy, for a penalty with estimator="exact"; differentiated.
        ref_logits: Shape (batch, time, V): logits of the reference, for a penalty with estimator="exact".
        mask: Shape (batch, time), true (or nonzero) for the tokens that count. Values at other tokens are ignored, nan
            included. None: all tokens count.
        clip: The range [1 - low, 1 + high] of w outside which the surrogate is clipped: one number for both sides,
            (low, high), or None for no clipping.
        ratio: The probabilities that w = policy/old compares: "token", "sequence" or "sequence_mean"; see `ppo_loss`.
        beta: The coefficient of the penalty, in units of reward per nat, >= 0.
        penalty: Which KL is penalised and how it is estimated.
        aggregate: How token losses are averaged: "token_mean", "sequence_mean" or "sequence_sum"; see
            `aggregate_tokens`.
        normalizer: Replaces the denominator of the average; see `aggregate_tokens`.

    Returns:
        A scalar to minimise. `inf` where the penalty is `inf`, because the reference has probability 0 for a sampled
        token.

    Raises:
        PenaltyError: `beta` is negative, infinite or nan; `beta` is positive without `ref_log_prob`; the penalty has
            placement="reward"; an option is unknown; or `KLPenalty.loss` raises it.
        ShapeError: The shapes differ.

    References:
        Shao et al. (2024), "DeepSeekMath", eq. 3 [shao2024].

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
    log_prob: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"] | Float[Tensor, " batch"],
    old_log_prob: Float[Tensor, "batch time"] | None = None,
    mask: Shaped[Tensor, "batch time"] | None = None,
    clip: Clip = 0.2,
    ratio: Ratio = "token",
) -> Float[Tensor, "batch time"]:
    """The clipped surrogate of PPO at every token.

        -min(w A, clip(w, 1 - low, 1 + high) A),   w = policy/old

    Args:
        log_prob: Shape (batch, time), nats: log-probability of each token under the policy; differentiated.
        advantages: Shape (batch, time), or (batch,) for one advantage per sequence; not differentiated.
        old_log_prob: Shape (batch, time), nats: log-probability of each token under the policy that generated the
            samples. None: the differentiated policy generated them.
        mask: Shape (batch, time), true (or nonzero) for the tokens that count. None: all tokens count.
        clip: The range [1 - low, 1 + high] of w outside which the surrogate is clipped: one number for both sides,
            (low, high), or None for no clipping.
        ratio: The probabilities that w compares: "token", "sequence" or "sequence_mean"; see `ppo_loss`.

    Returns:
        Shape (batch, time), in the unit of `advantages`; 0 where the mask is false. Finite for any log-ratio.

    Raises:
        ArrayTypeError: An argument is not a tensor.
        PenaltyError: `clip` or `ratio` is invalid.
        ShapeError: The shapes differ.

    References:
        Schulman et al. (2017), "Proximal Policy Optimization Algorithms", eq. 7 [schulman2017].

    Example:
        >>> old = torch.tensor([[-1.0, -1.0]])
        >>> clipped_surrogate(log_prob=old + 1, old_log_prob=old, advantages=torch.tensor([[1.0, -1.0]]))
        tensor([[-1.2000,  2.7183]])
    """
    require_tensors(log_prob=log_prob, advantages=advantages)
    require_tensors(**{n: v for n, v in (("old_log_prob", old_log_prob), ("mask", mask)) if v is not None})
    shape, log_ratio, mask = _log_ratio(log_prob, old_log_prob, mask, ratio)
    if advantages.shape not in (shape, shape[:1]):
        raise ShapeError(
            f"expected advantages of shape {tuple(shape)} or {tuple(shape[:1])}, got {tuple(advantages.shape)}"
        )
    advantages = advantages.detach().to(log_ratio.dtype)
    advantages = advantages[:, None].expand(shape) if advantages.ndim == 1 else advantages
    advantages = torch.where(mask, advantages, 0.0)
    bounded_ratio = bounded_exp(log_ratio.detach(), _BOUND)
    w = straight_through(log_ratio, bounded_ratio, bounded_ratio)
    if clip is None:
        return -w * advantages
    sides = clip if isinstance(clip, tuple) else (clip, clip)
    if len(sides) != 2 or not all(is_scalar(side) and side >= 0 for side in sides):
        raise PenaltyError(f"expected clip to be a number >= 0, a pair (low, high) of them, or None, got {clip!r}")
    # A side beyond the range of the dtype, which `clamp` refuses, disables clipping on that side.
    low, high = (inf if side > torch.finfo(w.dtype).max else as_scalar(side) for side in sides)
    return -torch.minimum(w * advantages, w.clamp(1 - low, 1 + high) * advantages)


def _log_ratio(
    log_prob: Float[Tensor, "batch time"],
    old_log_prob: Float[Tensor, "batch time"] | None,
    mask: Shaped[Tensor, "batch time"] | None,
    ratio: Ratio,
) -> tuple[torch.Size, Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """The shape (batch, time), log w at every token, and the boolean mask."""
    shape = log_prob.shape
    old_log_prob = log_prob.detach() if old_log_prob is None else old_log_prob.detach()
    if len(shape) != 2 or old_log_prob.shape != shape:
        raise ShapeError(
            f"expected log_prob and old_log_prob of one shape (batch, time), got {tuple(shape)} and "
            f"{tuple(old_log_prob.shape)}"
        )
    mask = token_mask(log_prob, mask)
    dtype = torch.promote_types(torch.promote_types(log_prob.dtype, old_log_prob.dtype), torch.float32)
    log_prob, old_log_prob = (torch.where(mask, values.to(dtype), 0.0) for values in (log_prob, old_log_prob))
    log_ratio = log_prob - old_log_prob
    if not is_name(ratio, get_args(Ratio)):
        raise PenaltyError(f"expected ratio to be 'token', 'sequence' or 'sequence_mean', got {ratio!r}")
    if ratio != "token":
        log_ratio = log_ratio.sum(-1, keepdim=True)
        if ratio == "sequence_mean":
            log_ratio = log_ratio / mask.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = log_ratio.expand(shape)
    return shape, log_ratio, mask
