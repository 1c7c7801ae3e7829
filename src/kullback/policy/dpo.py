"""Direct preference optimisation (DPO): learning from preferences under an implicit KL regularisation."""

import kullback.tokens  # noqa: F401  first: raises MissingDependencyError where PyTorch is not installed

# isort: split
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kullback.errors import PenaltyError, ShapeError
from kullback.numerics.arguments import shown
from kullback.numerics.array_types import Float, Shaped
from kullback.policy.aggregation import token_mask
from kullback.tokens.logits import as_scalar, is_scalar, require_tensors

__all__ = ["dpo_loss", "implicit_reward"]


def dpo_loss(
    *,
    chosen_log_prob: Float[Tensor, "batch chosen_time"],
    rejected_log_prob: Float[Tensor, "batch rejected_time"],
    ref_chosen_log_prob: Float[Tensor, "batch chosen_time"],
    ref_rejected_log_prob: Float[Tensor, "batch rejected_time"],
    chosen_mask: Shaped[Tensor, "batch chosen_time"] | None = None,
    rejected_mask: Shaped[Tensor, "batch rejected_time"] | None = None,
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """The DPO loss, whose minimiser is the optimum of E[reward] - beta KL(policy || ref).

        loss = mean of -log sigmoid(R(chosen) - R(rejected)),   R = beta sum_t log(policy/ref)

    The loss contains no KL term and its gradient is not the gradient of a KL. The link to KL(policy || ref) is the
    minimiser: if preferences follow the Bradley-Terry model of a reward r, the expected gradient vanishes at
    policy = ref e^(r/beta) / Z, which maximises E[r] - beta KL(policy || ref).

    Args:
        chosen_log_prob: Shape (batch, time), nats: log-probabilities of the tokens of the preferred completions under
            the policy; differentiated.
        rejected_log_prob: Shape (batch, time'), nats: log-probabilities of the tokens of the rejected completions under
            the policy; differentiated.
        ref_chosen_log_prob: Shape (batch, time), nats: as `chosen_log_prob`, under the reference.
        ref_rejected_log_prob: Shape (batch, time'), nats: as `rejected_log_prob`, under the reference.
        chosen_mask: Shape (batch, time), true (or nonzero) for the tokens that count. None: all tokens count.
        rejected_mask: Shape (batch, time'), true (or nonzero) for the tokens that count. None: all tokens count.
        beta: Weight of the KL in units of reward per nat, > 0.

    Returns:
        A scalar to minimise, in nats per pair.

    Raises:
        ArrayTypeError: An argument is not a tensor.
        ShapeError: The shapes differ, or the batch is empty.
        PenaltyError: `beta` is not a positive number.

    References:
        Rafailov et al. (2023), "Direct Preference Optimization", eq. 7 [rafailov2023].

    Example:
        >>> pair = {"chosen_log_prob": torch.tensor([[-1.0]]), "rejected_log_prob": torch.tensor([[-1.0]])}
        >>> loss = dpo_loss(**pair, ref_chosen_log_prob=torch.tensor([[-2.0]]), ref_rejected_log_prob=-torch.ones(1, 1))
        >>> f"{loss:.4f}"
        '0.6444'
    """
    chosen = implicit_reward(chosen_log_prob, ref_chosen_log_prob, chosen_mask, beta=beta)
    rejected = implicit_reward(rejected_log_prob, ref_rejected_log_prob, rejected_mask, beta=beta)
    if chosen.shape != rejected.shape:
        raise ShapeError(
            f"expected equal numbers of chosen and rejected completions, got {len(chosen)} and {len(rejected)}"
        )
    if len(chosen) == 0:
        raise ShapeError("expected at least one pair of completions, got an empty batch")
    return -logsigmoid(chosen - rejected).mean()


def implicit_reward(
    log_prob: Float[Tensor, "batch time"],
    ref_log_prob: Float[Tensor, "batch time"],
    mask: Shaped[Tensor, "batch time"] | None = None,
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """The reward for which the policy is the KL-regularised optimum, up to a constant for each prompt.

        R = beta sum_t log(policy/ref)

    Its mean over samples of the policy is beta KL(policy || ref) of the sequences.

    Args:
        log_prob: Shape (batch, time), nats: log-probability of each token under the policy; differentiated.
        ref_log_prob: Shape (batch, time), nats: log-probability of each token under the reference.
        mask: Shape (batch, time), true (or nonzero) for the tokens that count. None: all tokens count.
        beta: Weight of the KL in units of reward per nat, > 0.

    Returns:
        Shape (batch,), in units of reward. `inf` where the reference has probability 0 for a token of positive policy
        probability.

    Raises:
        ArrayTypeError: An argument is not a tensor.
        ShapeError: The shapes differ.
        PenaltyError: `beta` is not a positive number.

    References:
        Rafailov et al. (2023), "Direct Preference Optimization", eq. 5 [rafailov2023].

    Example:
        >>> implicit_reward(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -1.5]]), beta=0.5)
        tensor([0.7500])
    """
    require_tensors(log_prob=log_prob, ref_log_prob=ref_log_prob)
    if not (is_scalar(beta) and 0 < beta < float("inf")):
        raise PenaltyError(f"expected beta to be a positive finite number, got {shown(beta)}")
    if log_prob.ndim != 2 or log_prob.shape != ref_log_prob.shape:
        raise ShapeError(
            f"expected log_prob and ref_log_prob of one shape (batch, time), got {tuple(log_prob.shape)} and "
            f"{tuple(ref_log_prob.shape)}"
        )
    mask = token_mask(log_prob, mask)
    dtype = torch.promote_types(torch.promote_types(log_prob.dtype, ref_log_prob.dtype), torch.float32)
    log_prob, ref_log_prob = (torch.where(mask, values.to(dtype), 0.0) for values in (log_prob, ref_log_prob.detach()))
    return as_scalar(beta) * (log_prob - ref_log_prob).sum(-1)
