"""Best-of-n policies: enumeration of all samples, the KL bound, properties, gradients and errors."""

import itertools
import math

import array_api_strict
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.errors import NotNormalizedError, ShapeError, SupportError
from kullback.optimum.best_of_n import best_of_n_kl_bound, best_of_n_policy

LIBRARIES = {
    "numpy": np.asarray,
    "torch": lambda x: torch.tensor(np.asarray(x)),
    "jax": jnp.asarray,
    "strict": lambda x: array_api_strict.asarray(np.asarray(x)),
}


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def enumerated(ref, reward, n):
    """The distribution of the best of n samples, by enumeration; ties are broken uniformly at random."""
    policy = np.zeros(len(ref))
    for samples in itertools.product(range(len(ref)), repeat=n):
        best = max(reward[i] for i in samples)
        kept = [i for i in samples if reward[i] == best]
        for i in kept:
            policy[i] += math.prod(ref[j] for j in samples) / len(kept)
    return policy


def high_precision(ref, reward, n):
    """The policy and its KL by their definitions, with 60 digits."""
    with mpmath.workdps(60):
        ref = [mpmath.mpf(float(p)) for p in ref]
        mass = mpmath.fsum(ref)
        ref, policy = [p / mass for p in ref], []
        for p, r in zip(ref, reward, strict=True):
            upto = mpmath.fsum(q for q, s in zip(ref, reward, strict=True) if s <= r)
            below = mpmath.fsum(q for q, s in zip(ref, reward, strict=True) if s < r)
            policy.append(p * (upto**n - below**n) / (upto - below))
        return policy, mpmath.fsum(p * mpmath.log(p / q) for p, q in zip(policy, ref, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("array", LIBRARIES.values(), ids=LIBRARIES)
def test_policy_agrees_with_the_enumeration_of_all_samples(n, array):
    ref = np.asarray([[0.1, 0.2, 0.3, 0.4], [0.4, 0.0, 0.25, 0.35]])
    reward = np.asarray([1.0, 7.0, 1.0, -0.5])
    best = best_of_n_policy(array(ref), array(reward), n)
    truth = np.stack([enumerated(row, reward, n) for row in ref])
    assert np.asarray(best.policy) == pytest.approx(truth, rel=1e-12)
    with np.errstate(all="ignore"):
        kl = np.where(truth > 0, truth * np.log(truth / ref), 0).sum(-1)
    assert np.asarray(best.kl) == pytest.approx(kl, rel=1e-12, abs=1e-15)
    assert np.asarray(best.expected_reward) == pytest.approx(truth @ reward, rel=1e-12)


@pytest.mark.parametrize("n", [2, 16, 1000, 10**6])
@pytest.mark.parametrize("task", ["plain", "ties", "rare best reward", "nearly certain"])
def test_policy_and_kl_keep_their_relative_accuracy(n, task):
    rng = np.random.default_rng(0)
    ref, reward = rng.dirichlet(np.ones(20)), rng.normal(size=20)
    if task == "ties":
        reward = np.round(reward)
    if task == "rare best reward":
        ref[reward.argmax()] = 1e-12
    if task == "nearly certain":
        ref[reward.argmin()] = 1e9
    ref /= ref.sum()
    best, (policy, kl) = best_of_n_policy(ref, reward, n), high_precision(ref, reward, n)
    assert float(best.kl) == pytest.approx(float(kl), rel=1e-13)
    assert best.policy == pytest.approx([float(p) for p in policy], rel=1e-12, abs=1e-200)


def test_the_bound_agrees_with_its_formula():
    for n, known in ((1, 0), (2, 0.193), (4, 0.636), (16, 1.835), (64, 3.1745), (1000, 5.909)):
        assert float(best_of_n_kl_bound(n)) == pytest.approx(known, abs=6e-4)
        with mpmath.workdps(40):
            exact = float(mpmath.log(n) - mpmath.mpf(n - 1) / n)
        assert float(best_of_n_kl_bound(n)) == pytest.approx(exact, rel=1e-15)
    assert best_of_n_kl_bound(np.asarray([[1.0, 2.0]])).shape == (1, 2)


def test_the_bound_is_attained_by_nearly_continuous_references_only():
    rng = np.random.default_rng(1)
    for n in (2, 4, 16, 64, 1000):
        fine = best_of_n_policy(np.full(100_000, 1e-5), rng.normal(size=100_000), n)
        assert float(fine.kl) == pytest.approx(float(best_of_n_kl_bound(n)), rel=1e-4)
        assert fine.policy.sum() == pytest.approx(1, rel=1e-11)
        coarse = best_of_n_policy(np.full(4, 0.25), np.arange(4.0), n)
        assert float(coarse.kl) <= min(math.log(4), float(best_of_n_kl_bound(n)) - 0.005)


property_test = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def tasks(draw):
    size = draw(st.integers(1, 8))
    ref = np.asarray(draw(st.lists(st.floats(1e-9, 1) | st.just(0.0), min_size=size, max_size=size)))
    ref[draw(st.integers(0, size - 1))] = 1.0
    reward = np.asarray(draw(st.lists(st.floats(-10, 10) | st.integers(-2, 2), min_size=size, max_size=size)), float)
    return ref / ref.sum(), reward


@property_test
@given(tasks(), st.integers(1, 10_000))
def test_the_kl_is_below_the_bound_and_the_reward_increases_with_n(task, n):
    best, more = best_of_n_policy(*task, n), best_of_n_policy(*task, n + 1)
    assert -1e-15 <= best.kl <= best_of_n_kl_bound(n) + 1e-12
    assert best.policy.sum() == pytest.approx(1, abs=1e-11)
    assert (best.policy[task[0] == 0] == 0).all()
    assert more.expected_reward >= best.expected_reward - 1e-9
    assert more.kl >= best.kl - 1e-9


@property_test
@given(tasks(), st.integers(1, 100))
def test_the_policy_depends_only_on_the_order_of_rewards(task, n):
    ref, reward = task
    _, rank = np.unique(reward, return_inverse=True)
    assert best_of_n_policy(ref, reward, n).policy == pytest.approx(best_of_n_policy(ref, rank, n).policy, rel=1e-13)


def test_shapes_and_dtypes():
    best = best_of_n_policy(np.full((2, 1, 3), 1 / 3), np.arange(12.0).reshape(4, 3), np.asarray([[1], [2]]))
    assert best.policy.shape == (2, 4, 3)
    assert best.kl.shape == (2, 4)
    many = best_of_n_policy([0.5, 0.5], [0.0, 1.0], [1, 2, 3])
    assert many.policy[:, 1] == pytest.approx([0.5, 0.75, 0.875])
    narrow = best_of_n_policy(np.full(1000, 1e-3, np.float32), np.arange(1000, dtype=np.float32), 1000)
    assert type(narrow.kl) is np.float64
    assert narrow.policy.dtype == np.float32
    assert float(narrow.kl) == pytest.approx(5.868, abs=1e-3)
    assert best_of_n_policy([0.0, 1.0], [math.nan, 1.0], 3).policy.tolist() == [0, 1]


def test_gradients():
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reward = torch.tensor([1.0, 0.0, 1.0, 0.5, 2.0], dtype=torch.float64)

    def fields(logits):
        best = best_of_n_policy(logits.softmax(-1), reward, 4)
        return best.policy, best.kl, best.expected_reward

    assert torch.autograd.gradcheck(fields, (logits,))
    ref = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    best = best_of_n_policy(ref, torch.tensor([1.0, 1.0, 5.0]), 3)
    (best.kl + best.expected_reward).backward()
    assert torch.isfinite(ref.grad).all()
    expected_reward = jax.jit(lambda r: best_of_n_policy(jnp.full(4, 0.25), r, 2).expected_reward)
    assert np.asarray(jax.grad(expected_reward)(jnp.arange(4.0))) == pytest.approx([1 / 16, 3 / 16, 5 / 16, 7 / 16])


def test_invalid_arguments_raise():
    for n in (0, 0.5, math.nan, [2, -1]):
        with pytest.raises(SupportError, match="n >= 1"):
            best_of_n_kl_bound(n)
        with pytest.raises(SupportError, match="n >= 1"):
            best_of_n_policy([1.0], [1.0], n)
    with pytest.raises(NotNormalizedError, match="sum to 1"):
        best_of_n_policy([0.5, 0.6], [0.0, 1.0], 2)
    with pytest.raises(SupportError, match="finite reward"):
        best_of_n_policy([0.5, 0.5], [0.0, math.inf], 2)
    with pytest.raises(ShapeError, match="broadcast"):
        best_of_n_policy([0.5, 0.5], [0.0, 1.0, 2.0], 2)
    with pytest.raises(ShapeError, match="at least one event"):
        best_of_n_policy([], [], 2)


@pytest.mark.parametrize("n", [1.0, 1 + 1e-4, 1.5])
def test_a_number_of_samples_near_1_keeps_its_digits(n):
    rng = np.random.default_rng(0)
    for _ in range(20):
        ref = rng.dirichlet(np.full(7, 0.5))
        reward = np.round(rng.normal(size=7), 1)
        best = best_of_n_policy(ref, reward, n)
        policy, kl = high_precision(ref, reward, n)
        np.testing.assert_allclose(best.policy, np.asarray(policy, float), rtol=1e-13)
        assert abs(best.kl - float(kl)) <= 1e-9 * float(kl) if n > 1 else best.kl == 0
