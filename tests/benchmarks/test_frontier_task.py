"""The task of benchmarks/frontier.py: exact values by independent computations, and short runs near its frontier."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import root

from kullback.optimum.sequences import enumerate_sequences
from kullback.optimum.tilt import tilt
from kullback.policy.penalty import KLPenalty

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from frontier_task import (  # noqa: E402
    MAX_TOKENS,
    Gradient,
    Task,
    make_reference,
    make_tokenizer,
    reward,
    stationary_point,
    successors,
)
from frontier_trainers import generate, train  # noqa: E402


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(make_reference(0))


def perturbed_reference(size: float) -> Any:
    """The reference with normal noise of relative standard deviation `size` added to its weights."""
    policy = make_reference(0)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(size * weight.std() * torch.randn_like(weight))
    return policy


def test_all_completions_are_enumerated_with_their_rewards(task: Task) -> None:
    count = sum(4**length for length in range(MAX_TOKENS)) + 4**MAX_TOKENS
    assert [len(completions.lengths) for completions in task.completions] == [count] * 4
    np.testing.assert_allclose(task.ref.sum(axis=1), 1.0, rtol=1e-12)
    assert successors([2, 3, 4, 1, 2], prompt=1) == 1.0
    assert successors([2, 2, 3, 0], prompt=1) == 2 / 5  # the second 2 does not follow a 2
    assert successors([0], prompt=4) == 0.0
    assert reward(["a", "d"], [[2, 0], [1, 2, 3, 4, 1]]) == [0.2, 1.0]
    assert make_tokenizer()("dab")["input_ids"] == [4, 1, 2]


def test_evaluate_equals_enumeration_of_the_policy_and_is_below_the_frontier(task: Task) -> None:
    for size in (0.02, 0.1, 0.5):
        policy = perturbed_reference(size)
        exact = perturbed_reference(size).double()
        kls, expected_rewards = [], []
        for prompt, completions in enumerate(task.completions, start=1):

            @torch.no_grad()
            def next_logits(prefixes: np.ndarray, prompt: int = prompt, exact: Any = exact) -> np.ndarray:
                ids = torch.cat([torch.full((len(prefixes), 1), prompt), torch.from_numpy(prefixes)], dim=1)
                return exact(input_ids=ids).logits[:, -1].numpy()

            of_policy = enumerate_sequences(next_logits, max_tokens=MAX_TOKENS, end=0)
            np.testing.assert_array_equal(of_policy.tokens, completions.tokens)
            kls.append(np.exp(of_policy.log_probs) @ (of_policy.log_probs - completions.log_probs))
            rows = zip(of_policy.tokens, of_policy.lengths, strict=True)
            rewards = [successors(row[:length].tolist(), prompt) for row, length in rows]
            expected_rewards.append(np.exp(of_policy.log_probs) @ rewards)
        kl, expected_reward = task.evaluate(policy)
        # Llama's norms are in float32.
        assert (kl, expected_reward) == pytest.approx((np.mean(kls), np.mean(expected_rewards)), rel=1e-5)
        assert expected_reward < float(task.frontier.reward_at(kl))
    kl, expected_reward = task.evaluate(task.reference)
    assert kl == pytest.approx(0.0, abs=1e-12)
    assert expected_reward == pytest.approx(task.reference_reward, rel=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.03])
def test_stationary_point_of_sequence_gradient_is_the_optimum(task: Task, beta: float) -> None:
    best = tilt(task.ref, task.rewards, beta, contexts=task.contexts)
    expected = (float(best.kl), float(best.expected_reward))
    assert task.stationary_point(beta, "sequence") == pytest.approx(expected, rel=1e-12)


PENALTIES: dict[Gradient, KLPenalty] = {
    "sequence": KLPenalty(estimator="exact", placement="reward", horizon="sequence"),
    "token": KLPenalty(estimator="exact", placement="loss", horizon="token"),
    "k3": KLPenalty(estimator="k3", placement="loss", horizon="token", unsafe=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("gradient", PENALTIES)
@pytest.mark.parametrize("beta", [2.0, 0.5])
def test_expected_gradient_is_zero_at_the_stationary_point(gradient: Gradient, beta: float) -> None:
    """Completions of two tokens from a vocabulary of three; the policy has independent logits at each prefix."""
    rng = np.random.default_rng(0)
    table = torch.from_numpy(rng.normal(size=(4, 3)))
    completions = enumerate_sequences(
        lambda prefixes: table.numpy()[prefixes @ [1] + 1 if prefixes.size else [0]], max_tokens=2
    )
    rewards = rng.uniform(size=len(completions.tokens))
    tokens = torch.from_numpy(completions.tokens)
    prefix_indices = torch.stack([torch.zeros(len(tokens), dtype=torch.long), tokens[:, 0] + 1], dim=1)

    def penalty_inputs(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        both = {"logits": logits[prefix_indices], "ref_logits": table[prefix_indices]}
        log_probs = [side.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] for side in both.values()]
        return {**both, "log_prob": log_probs[0], "ref_log_prob": log_probs[1]}

    def with_zero_first(flat: np.ndarray) -> torch.Tensor:
        """Logits whose first entry is 0, because only differences matter."""
        return torch.from_numpy(np.pad(flat.reshape(4, 2), ((0, 0), (1, 0))))

    def expected_gradient(flat: np.ndarray) -> np.ndarray:
        logits = with_zero_first(flat).requires_grad_()
        inputs = penalty_inputs(logits)
        cost = PENALTIES[gradient].loss(**inputs).sum(dim=1)
        probs = inputs["log_prob"].detach().sum(dim=1).exp()
        surrogate = torch.from_numpy(rewards) * inputs["log_prob"].sum(dim=1) - beta * cost
        (probs * surrogate).sum().backward()
        assert logits.grad is not None
        return logits.grad[:, 1:].numpy().ravel()

    start = (table - table[:, :1])[:, 1:].numpy().ravel()
    for _ in range(100):  # gradient ascent first: the gradient also vanishes at prefixes of probability 0
        start = start + expected_gradient(start)
    solution = root(expected_gradient, start, tol=1e-13)
    assert np.abs(solution.fun).max() < 1e-10
    inputs = penalty_inputs(with_zero_first(solution.x))
    log_probs, ref_log_probs = inputs["log_prob"].sum(dim=1).numpy(), inputs["ref_log_prob"].sum(dim=1).numpy()
    probs = np.exp(log_probs)
    expected = (probs @ rewards, probs @ (log_probs - ref_log_probs))
    assert stationary_point(completions, rewards, beta, gradient) == pytest.approx(expected, rel=1e-7)


def test_generation_stops_at_the_end_token(task: Task) -> None:
    torch.manual_seed(0)
    ids, mask = generate(task.reference, torch.arange(1, 5).repeat(16)[:, None])
    assert ids.shape == (64, 1 + MAX_TOKENS)
    for row, counts in zip(ids[:, 1:].tolist(), mask.tolist(), strict=True):
        length = row.index(0) + 1 if 0 in row else MAX_TOKENS
        assert counts == [1] * length + [0] * (MAX_TOKENS - length)
        assert not any(row[length:])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["budget", "exact with KL-to-go", "PPO, k1 in the reward"])
def test_short_run_reaches_most_of_the_frontier_gain(task: Task, kind: str) -> None:
    kl, expected_reward = task.evaluate(train(task, kind, 0.5 if kind == "budget" else 0.15, steps=60, seed=0))
    best = float(task.frontier.reward_at(kl))
    assert kl > 0.1
    assert task.reference_reward + 0.7 * (best - task.reference_reward) < expected_reward < best
