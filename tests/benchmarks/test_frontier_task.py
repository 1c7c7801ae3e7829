"""The task that every trainer is held against: its truth by other ways, and trainers that come near it."""

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

from frontier_task import LONGEST, Gradient, Task, make_reference, make_tokenizer, rested, reward, successors  # noqa: E402
from frontier_trainers import train, written  # noqa: E402


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(make_reference(0))


def moved(size: float) -> Any:
    policy = make_reference(0)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(size * weight.std() * torch.randn_like(weight))
    return policy


def test_all_completions_are_listed_and_paid(task: Task) -> None:
    count = sum(4**length for length in range(LONGEST)) + 4**LONGEST
    assert [len(found.lengths) for found in task.found] == [count] * 4
    np.testing.assert_allclose(task.ref.sum(axis=1), 1.0, rtol=1e-12)
    assert successors([2, 3, 4, 1, 2], prompt=1) == 1.0
    assert successors([2, 2, 3, 0], prompt=1) == 2 / 5  # the second 2 does not follow a 2
    assert successors([0], prompt=4) == 0.0
    assert reward(["a", "d"], [[2, 0], [1, 2, 3, 4, 1]]) == [0.2, 1.0]
    assert make_tokenizer()("dab")["input_ids"] == [4, 1, 2]


def test_a_policy_is_judged_as_by_its_own_enumeration_and_never_passes_the_frontier(task: Task) -> None:
    for size in (0.02, 0.1, 0.5):
        policy = moved(size)
        exact = moved(size).double()
        kl, earned = [], []
        for prompt, found in enumerate(task.found, start=1):

            @torch.no_grad()
            def asked(prefixes: np.ndarray, prompt: int = prompt, exact: Any = exact) -> np.ndarray:
                ids = torch.cat([torch.full((len(prefixes), 1), prompt), torch.from_numpy(prefixes)], dim=1)
                return exact(input_ids=ids).logits[:, -1].numpy()

            own = enumerate_sequences(asked, max_tokens=LONGEST, end=0)
            np.testing.assert_array_equal(own.tokens, found.tokens)
            kl.append(np.exp(own.log_probs) @ (own.log_probs - found.log_probs))
            rows = zip(own.tokens, own.lengths, strict=True)
            paid = [successors(row[:length].tolist(), prompt) for row, length in rows]
            earned.append(np.exp(own.log_probs) @ paid)
        seen = task.judged(policy)
        assert seen == pytest.approx((np.mean(kl), np.mean(earned)), rel=1e-5)  # Llama's norms are in float32
        assert seen[1] < float(task.frontier.reward_at(seen[0]))
    stands = task.judged(task.reference)
    assert stands[0] == pytest.approx(0.0, abs=1e-12)
    assert stands[1] == pytest.approx(task.base, rel=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.03])
def test_the_sequence_gradient_rests_at_the_optimum(task: Task, beta: float) -> None:
    best = tilt(task.ref, task.rewards, beta, contexts=task.contexts)
    assert task.rest(beta, "sequence") == pytest.approx((float(best.kl), float(best.expected_reward)), rel=1e-12)


PENALTIES: dict[Gradient, KLPenalty] = {
    "sequence": KLPenalty(estimator="exact", placement="reward", horizon="sequence"),
    "token": KLPenalty(estimator="exact", placement="loss", horizon="token"),
    "k3": KLPenalty(estimator="k3", placement="loss", horizon="token", unsafe=True),
}


@pytest.mark.parametrize("gradient", PENALTIES)
@pytest.mark.parametrize("beta", [2.0, 0.5])
def test_a_gradient_rests_where_its_expectation_over_all_sequences_is_zero(gradient: Gradient, beta: float) -> None:
    """Two tokens of three, a policy with its own logits at each of the four prefixes."""
    rng = np.random.default_rng(0)
    table = torch.from_numpy(rng.normal(size=(4, 3)))
    found = enumerate_sequences(
        lambda prefixes: table.numpy()[prefixes @ [1] + 1 if prefixes.size else [0]], max_tokens=2
    )
    earned = rng.uniform(size=len(found.tokens))
    tokens = torch.from_numpy(found.tokens)
    places = torch.stack([torch.zeros(len(tokens), dtype=torch.long), tokens[:, 0] + 1], dim=1)

    def seen(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        both = {"logits": logits[places], "ref_logits": table[places]}
        logs = [each.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] for each in both.values()]
        return {**both, "log_prob": logs[0], "ref_log_prob": logs[1]}

    def whole(flat: np.ndarray) -> torch.Tensor:
        """Logits of which the first is 0, as only differences count."""
        return torch.from_numpy(np.pad(flat.reshape(4, 2), ((0, 0), (1, 0))))

    def slope(flat: np.ndarray) -> np.ndarray:
        logits = whole(flat).requires_grad_()
        given = seen(logits)
        cost = PENALTIES[gradient].loss(**given).sum(dim=1)
        chance = given["log_prob"].detach().sum(dim=1).exp()
        surrogate = torch.from_numpy(earned) * given["log_prob"].sum(dim=1) - beta * cost
        (chance * surrogate).sum().backward()
        assert logits.grad is not None
        return logits.grad[:, 1:].numpy().ravel()

    start = (table - table[:, :1])[:, 1:].numpy().ravel()
    for _ in range(100):  # up the slope first: it is also 0 where a policy never goes
        start = start + slope(start)
    end = root(slope, start, tol=1e-13)
    assert np.abs(end.fun).max() < 1e-10
    given = seen(whole(end.x))
    log_probs, log_refs = given["log_prob"].sum(dim=1).numpy(), given["ref_log_prob"].sum(dim=1).numpy()
    probs = np.exp(log_probs)
    expected = (probs @ earned, probs @ (log_probs - log_refs))
    assert rested(found, earned, beta, gradient) == pytest.approx(expected, rel=1e-7)


def test_what_is_written_ends_at_the_end(task: Task) -> None:
    torch.manual_seed(0)
    ids, mask = written(task.reference, torch.arange(1, 5).repeat(16)[:, None])
    assert ids.shape == (64, 1 + LONGEST)
    for row, counts in zip(ids[:, 1:].tolist(), mask.tolist(), strict=True):
        length = row.index(0) + 1 if 0 in row else LONGEST
        assert counts == [1] * length + [0] * (LONGEST - length)
        assert not any(row[length:])


@pytest.mark.parametrize("kind", ["budget", "exact with KL-to-go", "PPO, k1 in the reward"])
def test_a_short_run_earns_most_of_what_its_kl_can_buy(task: Task, kind: str) -> None:
    kl, earned = task.judged(train(task, kind, 0.5 if kind == "budget" else 0.15, steps=60, seed=0))
    best = float(task.frontier.reward_at(kl))
    assert kl > 0.1
    assert task.base + 0.7 * (best - task.base) < earned < best
