"""Learning from preferences with the KL budgeted implicitly: direct preference optimisation."""

import kullback.tokens  # noqa: F401  first: where PyTorch is missing it says what to install

# isort: split
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kullback.errors import PenaltyError, ShapeError
from kullback.policy.aggregation import counted

__all__ = ["dpo_loss", "implicit_reward"]


def dpo_loss(
    *,
    chosen_log_prob: Tensor,
    rejected_log_prob: Tensor,
    ref_chosen_log_prob: Tensor,
    ref_rejected_log_prob: Tensor,
    chosen_mask: Tensor | None = None,
    rejected_mask: Tensor | None = None,
    beta: float = 0.1,
) -> Tensor:
    """DPO's loss, whose minimiser over preferences by reward r is the optimum of E[r] - beta KL(policy || ref).

    loss = mean of -log sigmoid(R(chosen) - R(rejected)), R = beta sum_t log policy/ref. No KL is computed: where
    preferences follow Bradley and Terry, policy ~ ref e^(r/beta) is where the gradient vanishes.

    Args:
        chosen_log_prob: Shape (batch, time), nats, of the tokens of what was preferred; differentiated.
        rejected_log_prob: Shape (batch, time'), nats, of what was not; differentiated.
        ref_chosen_log_prob: Shape (batch, time), nats, under the reference.
        ref_rejected_log_prob: Shape (batch, time'), nats, under the reference.
        chosen_mask: Shape (batch, time), true (or not 0) for the tokens that count.
        rejected_mask: Shape (batch, time').
        beta: Reward per nat, > 0.

    Returns:
        A number to minimise.

    Raises:
        ShapeError: The shapes differ.
        PenaltyError: beta is not a positive number.

    Source: [rafailov2023], eq. 7.

    Example:
        >>> pair = {"chosen_log_prob": torch.tensor([[-1.0]]), "rejected_log_prob": torch.tensor([[-1.0]])}
        >>> loss = dpo_loss(**pair, ref_chosen_log_prob=torch.tensor([[-2.0]]), ref_rejected_log_prob=-torch.ones(1, 1))
        >>> f"{loss:.4f}"
        '0.6444'
    """
    chosen = implicit_reward(chosen_log_prob, ref_chosen_log_prob, chosen_mask, beta=beta)
    rejected = implicit_reward(rejected_log_prob, ref_rejected_log_prob, rejected_mask, beta=beta)
    if chosen.shape != rejected.shape:
        raise ShapeError(f"expected as many chosen as rejected, got {len(chosen)} and {len(rejected)}")
    return -logsigmoid(chosen - rejected).mean()


def implicit_reward(log_prob: Tensor, ref_log_prob: Tensor, mask: Tensor | None = None, *, beta: float = 0.1) -> Tensor:
    """The reward that a policy is the KL-regularised optimum of, up to a constant a prompt: beta sum_t log policy/ref.

    Args:
        log_prob: Shape (batch, time), nats; differentiated.
        ref_log_prob: Shape (batch, time), nats.
        mask: Shape (batch, time), true (or not 0) for the tokens that count.
        beta: Reward per nat, > 0.

    Returns:
        Shape (batch,), in units of reward; its mean over the policy's samples is beta KL(policy || ref).

    Raises:
        ShapeError: The shapes differ.
        PenaltyError: beta is not a positive number.

    Source: [rafailov2023], eq. 5.

    Example:
        >>> implicit_reward(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -1.5]]), beta=0.5)
        tensor([0.7500])
    """
    if not 0 < beta < float("inf"):
        raise PenaltyError(f"expected beta to be a positive number, got {beta!r}")
    if log_prob.ndim != 2 or log_prob.shape != ref_log_prob.shape:
        raise ShapeError(
            f"expected log-probabilities of one shape (batch, time), got {tuple(log_prob.shape)} and "
            f"{tuple(ref_log_prob.shape)}"
        )
    kept = counted(log_prob, mask)
    dtype = torch.promote_types(torch.promote_types(log_prob.dtype, ref_log_prob.dtype), torch.float32)
    log_prob, ref_log_prob = (torch.where(kept, values.to(dtype), 0.0) for values in (log_prob, ref_log_prob.detach()))
    return beta * (log_prob - ref_log_prob).sum(-1)
