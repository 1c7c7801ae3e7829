"""Advantages: how much better an action did than was expected of it."""

import kullback.tokens  # noqa: F401  first: where PyTorch is missing it says what to install

# isort: split
import torch
from torch import Tensor

from kullback.errors import ShapeError, SupportError
from kullback.policy.aggregation import counted

__all__ = ["gae", "group_advantages", "leave_one_out"]


def group_advantages(rewards: Tensor, prompts: Tensor, *, scale: bool = True) -> Tensor:
    """GRPO's advantages: the reward less the mean of the prompt's group, over the group's standard deviation.

    A = (r - mean_g) / std_g, with n - 1 in std_g; without the division for `scale=False`, as Dr. GRPO.

    Args:
        rewards: Shape (batch,), finite.
        prompts: Shape (batch,): equal numbers for completions of one prompt.
        scale: Whether to divide.

    Returns:
        Shape (batch,). Exactly 0 in a group whose rewards are all equal: nothing there was better than another.

    Raises:
        ShapeError: The shapes differ, or a prompt has one completion only.
        SupportError: A reward is not finite.

    Source: [shao2024], section 4.1.2; [liu2025] for scale=False.

    Example:
        >>> group_advantages(torch.tensor([1.0, 0.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1]))
        tensor([ 0.7071, -0.7071,  0.0000,  0.0000])
    """
    rewards, group, count = _groups(rewards, prompts)
    excess = _excess(rewards, group, count)
    if not scale:
        return excess
    deviation = (_sums(excess**2, group, count) / (count - 1)).sqrt()[group]
    return torch.where(deviation > 0, excess / torch.where(deviation > 0, deviation, 1.0), 0.0)


def leave_one_out(rewards: Tensor, prompts: Tensor) -> Tensor:
    """RLOO's advantages: the reward less the mean of the prompt's other completions.

    A_i = r_i - sum_{j != i} r_j / (n - 1) = (r_i - mean_g) n / (n - 1), which leaves the policy gradient unbiased.

    Args:
        rewards: Shape (batch,), finite.
        prompts: Shape (batch,): equal numbers for completions of one prompt.

    Returns:
        Shape (batch,).

    Raises:
        ShapeError: The shapes differ, or a prompt has one completion only.
        SupportError: A reward is not finite.

    Source: [ahmadian2024].

    Example:
        >>> leave_one_out(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([7, 7, 7]))
        tensor([ 3.0000, -1.5000, -1.5000])
    """
    rewards, group, count = _groups(rewards, prompts)
    return _excess(rewards, group, count) * (count / (count - 1))[group]


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor | None = None, *, discount: float = 1.0, decay: float = 0.95
) -> Tensor:
    """Generalised advantage estimation: A_t = delta_t + discount decay A_{t+1}.

    delta_t = r_t + discount V_{t+1} - V_t, t + 1 being the next token that counts; beyond the last one V and A are 0.

    Args:
        rewards: Shape (batch, time); a reward at a token that does not count belongs to the last one before that does.
        values: Shape (batch, time): the critic's expectation of what is still to come.
        mask: Shape (batch, time), true (or not 0) for the tokens that count.
        discount: What a step's delay leaves of a reward.
        decay: GAE's lambda: 0 trusts the critic, 1 the sampled return.

    Returns:
        Shape (batch, time), 0 where the mask is false, without gradient.

    Raises:
        ShapeError: The shapes differ.

    Source: [schulman2016], eq. 16.

    Example:
        >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), decay=1.0)
        tensor([[0.5000, 0.5000]])
    """
    if rewards.shape != values.shape or rewards.ndim != 2:
        raise ShapeError(
            f"expected rewards and values of one shape (batch, time), got {tuple(rewards.shape)} and "
            f"{tuple(values.shape)}"
        )
    kept = counted(rewards, mask)
    dtype = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.get_default_dtype())
    rewards, values = rewards.detach().to(dtype), values.detach().to(dtype)
    after = value_after = owed = torch.zeros_like(rewards[:, 0])
    advantages = torch.zeros_like(rewards)
    for step in range(rewards.shape[1] - 1, -1, -1):
        counts, owed = kept[:, step], owed + rewards[:, step]
        now = owed + discount * value_after - values[:, step] + discount * decay * after
        advantages[:, step] = torch.where(counts, now, 0.0)
        after, value_after = torch.where(counts, now, after), torch.where(counts, values[:, step], value_after)
        owed = torch.where(counts, 0.0, owed)
    return advantages


def _groups(rewards: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rewards as floating numbers, each completion's group, and each group's size in their dtype."""
    if rewards.ndim != 1 or rewards.shape != prompts.shape:
        raise ShapeError(
            f"expected rewards and prompts of one shape (batch,), got {tuple(rewards.shape)} and {tuple(prompts.shape)}"
        )
    names, group, count = prompts.unique(return_inverse=True, return_counts=True)
    if (count < 2).any():
        raise ShapeError(f"expected two completions or more of each prompt, got one of {names[count < 2][0].item()}")
    rewards = rewards if rewards.is_floating_point() else rewards.to(torch.get_default_dtype())
    if (odd := ~rewards.isfinite()).any():
        row = int(odd.nonzero()[0, 0])
        raise SupportError(f"expected finite rewards, but rewards[{row}] is {rewards[row].item()!r}: look at its maker")
    return rewards, group, count.to(rewards.dtype)


def _sums(values: Tensor, group: Tensor, count: Tensor) -> Tensor:
    return torch.zeros(len(count), dtype=values.dtype, device=values.device).index_add(0, group, values)


def _excess(rewards: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """Over the group's mean; taken over one of its own rewards first, so that equal ones give exactly 0."""
    first = torch.full((len(count),), len(group), device=group.device)
    first = first.scatter_reduce(0, group, torch.arange(len(group), device=group.device), "amin")
    above = rewards - rewards[first][group]
    return above - (_sums(above, group, count) / count)[group]
