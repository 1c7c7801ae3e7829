"""Advantage estimators: group-relative advantages, leave-one-out advantages and generalised advantage estimation."""

import kullback.tokens  # noqa: F401  first: raises MissingDependencyError where PyTorch is not installed

# isort: split
import torch
from torch import Tensor

from kullback.errors import ArrayTypeError, ShapeError, SupportError
from kullback.numerics.arguments import shown
from kullback.numerics.array_types import Float, Int, Shaped
from kullback.policy.aggregation import token_mask
from kullback.tokens.logits import is_scalar, require_tensors

__all__ = ["gae", "group_advantages", "leave_one_out"]


def group_advantages(
    rewards: Shaped[Tensor, " batch"], prompts: Shaped[Tensor, " batch"], *, scale: bool = True
) -> Float[Tensor, " batch"]:
    """Group-relative advantages, as in GRPO.

    A_i = (r_i - mean_g) / std_g over the completions of one prompt g, where std_g is the sample standard deviation with
    n - 1 in the denominator. With `scale=False`, A_i = r_i - mean_g, as in Dr. GRPO.

    Args:
        rewards: Shape (batch,), in units of reward; finite.
        prompts: Shape (batch,): the index of each completion's prompt. Completions with equal numbers form a group.
        scale: Whether to divide by the standard deviation of the group.

    Returns:
        Shape (batch,), in float32 or float64; dimensionless, or in units of reward with `scale=False`. Exactly 0 in a
        group whose rewards are all equal.

    Raises:
        ShapeError: The shapes differ, or a prompt has only one completion.
        SupportError: A reward is not finite.

    References:
        Shao et al. (2024), "DeepSeekMath", section 4.1.2 [shao2024].
        Liu et al. (2025), "Understanding R1-Zero-Like Training", for `scale=False` [liu2025].

    Example:
        >>> group_advantages(torch.tensor([1.0, 0.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1]))
        tensor([ 0.7071, -0.7071,  0.0000,  0.0000])
    """
    if not isinstance(scale, bool):
        raise ArrayTypeError(f"expected scale to be True or False, got {shown(scale)}")
    rewards, group, count = _groups(rewards, prompts)
    centered = _centered(rewards, group, count)
    if not scale:
        return centered
    # Relative to the largest of the group, so that the squares neither overflow nor underflow.
    largest = torch.zeros_like(count).scatter_reduce(0, group, centered.abs(), "amax")[group]
    relative = torch.where(largest > 0, centered / torch.where(largest > 0, largest, 1.0), 0.0)
    deviation = (_group_sums(relative**2, group, count) / (count - 1)).sqrt()[group]
    return torch.where(deviation > 0, relative / torch.where(deviation > 0, deviation, 1.0), 0.0)


def leave_one_out(rewards: Shaped[Tensor, " batch"], prompts: Shaped[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Leave-one-out advantages, as in RLOO: the reward minus the mean reward of the prompt's other completions.

        A_i = r_i - sum_{j != i} r_j / (n - 1) = (r_i - mean_g) n / (n - 1)

    The baseline does not depend on completion i, so the policy gradient stays unbiased.

    Args:
        rewards: Shape (batch,), in units of reward; finite.
        prompts: Shape (batch,): the index of each completion's prompt. Completions with equal numbers form a group.

    Returns:
        Shape (batch,), in units of reward, in float32 or float64.

    Raises:
        ShapeError: The shapes differ, or a prompt has only one completion.
        SupportError: A reward is not finite.

    References:
        Ahmadian et al. (2024), "Back to Basics: Revisiting REINFORCE Style Optimization" [ahmadian2024].

    Example:
        >>> leave_one_out(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([7, 7, 7]))
        tensor([ 3.0000, -1.5000, -1.5000])
    """
    rewards, group, count = _groups(rewards, prompts)
    return _centered(rewards, group, count) * (count / (count - 1))[group]


def gae(
    rewards: Shaped[Tensor, "batch time"],
    values: Shaped[Tensor, "batch time"],
    mask: Shaped[Tensor, "batch time"] | None = None,
    *,
    discount: float = 1.0,
    decay: float = 0.95,
) -> Float[Tensor, "batch time"]:
    """Generalised advantage estimation (GAE).

        A_t = delta_t + discount decay A_{t+1},   delta_t = r_t + discount V_{t+1} - V_t

    Here t + 1 is the next token where the mask is true. After the last such token, V and A are 0.

    Args:
        rewards: Shape (batch, time), in units of reward. A reward at a token where the mask is false is added to
            the reward of the last token before it where the mask is true.
        values: Shape (batch, time), in units of reward: the critic's estimates of the expected discounted return.
        mask: Shape (batch, time), true (or nonzero) for the tokens that count. None: all tokens count.
        discount: The discount factor gamma per token, in [0, 1].
        decay: The parameter lambda, in [0, 1]. At 0 the advantage is delta_t, at 1 the sampled return minus V_t.

    Returns:
        Shape (batch, time), in units of reward, 0 where the mask is false, without gradient.

    Raises:
        ArrayTypeError: An argument is not a tensor of real numbers.
        ShapeError: The shapes differ.
        SupportError: `discount` or `decay` is not a number from 0 to 1.

    References:
        Schulman et al. (2016), "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 16
        [schulman2016].

    Example:
        >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), decay=1.0)
        tensor([[0.5000, 0.5000]])
    """
    require_tensors(rewards=rewards, values=values)
    if rewards.shape != values.shape or rewards.ndim != 2:
        raise ShapeError(
            f"expected rewards and values of one shape (batch, time), got {tuple(rewards.shape)} and "
            f"{tuple(values.shape)}"
        )
    for name, value in (("discount", discount), ("decay", decay)):
        if not (is_scalar(value) and 0 <= value <= 1):
            raise SupportError(f"expected {name} to be a number from 0 to 1, got {shown(value)}")
    mask = token_mask(rewards, mask)
    dtype = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.get_default_dtype())
    rewards, values = rewards.detach().to(dtype), values.detach().to(dtype)
    next_advantage = next_value = masked_reward = torch.zeros_like(rewards[:, 0])
    advantages = torch.zeros_like(rewards)
    for step in range(rewards.shape[1] - 1, -1, -1):
        counts, reward = mask[:, step], masked_reward + rewards[:, step]
        advantage = reward + discount * next_value - values[:, step] + discount * decay * next_advantage
        advantages[:, step] = torch.where(counts, advantage, 0.0)
        next_advantage = torch.where(counts, advantage, next_advantage)
        next_value = torch.where(counts, values[:, step], next_value)
        masked_reward = torch.where(counts, 0.0, reward)
    return advantages


def _groups(
    rewards: Shaped[Tensor, " batch"], prompts: Shaped[Tensor, " batch"]
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"], Float[Tensor, " groups"]]:
    """The rewards in float32 or float64, the group index of each completion, and the size of each group.

    In 16 bits the squares of rewards would overflow, and sums of more than 256 rewards would not increase.
    """
    require_tensors(rewards=rewards, prompts=prompts)
    if rewards.ndim != 1 or rewards.shape != prompts.shape:
        raise ShapeError(
            f"expected rewards and prompts of one shape (batch,), got {tuple(rewards.shape)} and {tuple(prompts.shape)}"
        )
    indices, group, count = prompts.unique(return_inverse=True, return_counts=True)
    if (count < 2).any():
        raise ShapeError(
            f"expected at least two completions per prompt, but prompt {indices[count < 2][0].item()} has one; sample "
            "more completions or remove the prompt"
        )
    least = torch.float32 if rewards.is_floating_point() else torch.get_default_dtype()
    rewards = rewards.to(torch.promote_types(rewards.dtype, least))
    if (invalid := ~rewards.isfinite()).any():
        row = int(invalid.nonzero()[0, 0])
        raise SupportError(
            f"expected finite rewards, but rewards[{row}] is {rewards[row].item()!r}; check the reward function"
        )
    return rewards, group, count.to(rewards.dtype)


def _group_sums(
    values: Float[Tensor, " batch"], group: Int[Tensor, " batch"], count: Float[Tensor, " groups"]
) -> Float[Tensor, " groups"]:
    return torch.zeros(len(count), dtype=values.dtype, device=values.device).index_add(0, group, values)


def _centered(
    rewards: Float[Tensor, " batch"], group: Int[Tensor, " batch"], count: Float[Tensor, " groups"]
) -> Float[Tensor, " batch"]:
    """The rewards minus their group mean.

    The first reward of the group is subtracted before the mean is taken, so that equal rewards give exactly 0.
    """
    first = torch.full((len(count),), len(group), device=group.device)
    first = first.scatter_reduce(0, group, torch.arange(len(group), device=group.device), "amin")
    shifted = rewards - rewards[first][group]
    return shifted - (_group_sums(shifted, group, count) / count)[group]
