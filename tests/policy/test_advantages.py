"""Advantage estimators agree with their definitions, and with the policy gradient by enumeration."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.errors import ShapeError, SupportError
from kullback.policy.advantages import gae, group_advantages, leave_one_out
from kullback.policy.losses import grpo_loss

from ..oracles.enumeration import Language, weights


@given(st.lists(st.lists(st.floats(-10, 10), min_size=2, max_size=5), min_size=1, max_size=4), st.randoms())
@settings(deadline=None)
def test_groups_are_formed_by_prompt_in_any_order(groups: list[list[float]], random) -> None:
    rows = [(prompt, reward) for prompt, rewards in enumerate(groups) for reward in rewards]
    random.shuffle(rows)
    prompts = torch.tensor([prompt for prompt, _ in rows]) * 17 - 3
    rewards = torch.tensor([reward for _, reward in rows], dtype=torch.float64)
    for k, (prompt, reward) in enumerate(rows):
        others = list(groups[prompt])
        others.remove(reward)
        mean = math.fsum(groups[prompt]) / len(groups[prompt])
        expected_loo = reward - math.fsum(others) / len(others)
        assert leave_one_out(rewards, prompts)[k].item() == pytest.approx(expected_loo, abs=1e-12)
        assert group_advantages(rewards, prompts, scale=False)[k].item() == pytest.approx(reward - mean, abs=1e-12)
        deviation = torch.tensor(groups[prompt], dtype=torch.float64).std().item()
        if deviation > 1e-6:
            expected = (reward - mean) / deviation
            assert group_advantages(rewards, prompts)[k].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -7.7, 1e30])
def test_advantages_are_zero_if_all_rewards_of_a_group_are_equal(reward: float) -> None:
    rewards, prompts = torch.full((7,), reward), torch.zeros(7, dtype=torch.int64)
    for advantages in (group_advantages(rewards, prompts), leave_one_out(rewards, prompts)):
        assert (advantages == 0).all()


def test_leave_one_out_leaves_the_policy_gradient_unbiased() -> None:
    language, policy = Language(tools=True), weights(0).requires_grad_()
    rewards = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probabilities = language.probability(policy).detach()
    batch = {"log_prob": language.log_prob(policy), "mask": language.mask}
    expected = torch.zeros((), dtype=torch.float64)
    possible = torch.nonzero(probabilities)[:, 0].tolist()
    for i in possible:
        # The loss is linear in the advantages, so all pairs (i, j) are evaluated in one batch.
        j = torch.tensor(possible)
        pairs = torch.stack([torch.full_like(j, i), j], dim=1).flatten()
        prompts = torch.arange(len(j)).repeat_interleave(2)
        advantages = leave_one_out(rewards[pairs], prompts)
        both = probabilities[i] * probabilities[pairs.reshape(-1, 2)[:, 1]].repeat_interleave(2)
        pair = {name: values[pairs] for name, values in batch.items()}
        expected = expected + grpo_loss(**pair, advantages=both * advantages, aggregate="sequence_sum") * len(j)
    truth = -(language.probability(policy) * rewards).sum()
    got, true = (torch.autograd.grad(of, policy, retain_graph=True)[0] for of in (expected, truth))
    torch.testing.assert_close(got, true, rtol=0, atol=1e-12)


def test_group_advantages_agree_with_trl_up_to_its_epsilon() -> None:
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grouped = rewards.reshape(3, 4)
    theirs = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    got = group_advantages(rewards, torch.arange(3).repeat_interleave(4))
    torch.testing.assert_close(got, theirs.flatten(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0)])
def test_gae_is_the_discounted_sum_of_deltas(discount: float, decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64).unbind(0)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 2:4], mask[2, 4:], mask[3, 0] = False, False, False
    got = gae(rewards, values, mask, discount=discount, decay=decay)
    for row in range(4):
        steps = [t for t in range(6) if mask[row, t]]
        ends = [*steps[1:], 6]
        summed_rewards = [rewards[row, t:end].sum().item() for t, end in zip(steps, ends, strict=True)]
        critic = [values[row, t].item() for t in steps] + [0.0]
        deltas = [summed_rewards[k] + discount * critic[k + 1] - critic[k] for k in range(len(steps))]
        for k, t in enumerate(steps):
            truth = sum((discount * decay) ** (m - k) * deltas[m] for m in range(k, len(steps)))
            assert got[row, t].item() == pytest.approx(truth, abs=1e-12)
    assert (got[~mask] == 0).all()


def test_invalid_shapes_raise() -> None:
    for advantages in (group_advantages, leave_one_out):
        with pytest.raises(ShapeError, match="prompt 5 has one"):
            advantages(torch.ones(3), torch.tensor([1, 1, 5]))
        with pytest.raises(ShapeError, match=r"\(3,\) and \(2,\)"):
            advantages(torch.ones(3), torch.tensor([1, 1]))
    with pytest.raises(ShapeError, match=r"\(2, 3\) and \(2, 2\)"):
        gae(torch.ones(2, 3), torch.ones(2, 2))
    with pytest.raises(ShapeError, match=r"shape \(2, 3\), got \(2,\)"):
        gae(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_raises(value: float) -> None:
    for advantages in (group_advantages, leave_one_out):
        with pytest.raises(SupportError, match=rf"rewards\[2\] is {value}"):
            advantages(torch.tensor([1.0, 0.0, value, 1.0]), torch.tensor([0, 0, 1, 1]))


def test_integer_rewards_are_accepted() -> None:
    got = gae(torch.tensor([[0, 0, 1]]), torch.tensor([[1, 1, 1]]), decay=0.5)
    assert got.tolist() == [[0.0, 0.0, 0.0]]
    assert gae(torch.tensor([[1, 1, 1]]), torch.tensor([[1, 1, 1]]), decay=0.5).tolist() == [[1.5, 1.0, 0.0]]
    assert group_advantages(torch.tensor([1, 0]), torch.zeros(2), scale=False).tolist() == [0.5, -0.5]
    assert leave_one_out(torch.tensor([1, 0, 0]), torch.zeros(3)).tolist() == pytest.approx([1.0, -0.5, -0.5])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "rewards", [[512.0, 430.0, 120.0, 256.0, 64.0, 300.0, 480.0, 10.0], [1.0] * 1500 + [0.0] * 1500, [6e4, -6e4, 0.0]]
)
def test_rewards_of_16_bits_have_the_advantages_of_the_same_rewards_in_float64(
    dtype: torch.dtype, rewards: list[float]
) -> None:
    rounded, prompts = torch.tensor(rewards).to(dtype), torch.zeros(len(rewards))
    for advantages in (group_advantages, leave_one_out):
        got = advantages(rounded, prompts)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), advantages(rounded.double(), prompts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "sizes"), [(torch.float32, [1e-38, 1e-25, 1e20, 1e38]), (torch.float64, [1e-300, 1e-200, 1e200, 1e307])]
)
def test_squares_of_very_large_and_very_small_rewards_do_not_overflow(dtype: torch.dtype, sizes: list[float]) -> None:
    for size in sizes:
        got = group_advantages(torch.tensor([0.0, 0.0, 0.0, size], dtype=dtype), torch.zeros(4))
        torch.testing.assert_close(got, torch.tensor([-0.5, -0.5, -0.5, 1.5], dtype=dtype), rtol=1e-6, atol=1e-6)
