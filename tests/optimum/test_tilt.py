"""Tilted policies, budgets and frontiers: accuracy, limits, properties, contexts, gradients and errors."""

import json
import math
import warnings
from pathlib import Path

import array_api_strict
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from kullback.discrete.kl import kl_probs
from kullback.errors import BudgetError, NotNormalizedError, ShapeError, SupportError
from kullback.optimum.best_of_n import best_of_n_policy
from kullback.optimum.tilt import frontier, tilt, tilt_to_budget

REFERENCE = Path(__file__).parents[1] / "data" / "control.json"
inf, nan = math.inf, math.nan


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


LIBRARIES = {
    "numpy": np.asarray,
    "torch": lambda x: torch.tensor(np.asarray(x)),
    "jax": jnp.asarray,
    "strict": lambda x: array_api_strict.asarray(np.asarray(x)),
}
# JAX compiles each function for each shape.
library = pytest.mark.parametrize(
    "array",
    [pytest.param(array, id=name, marks=[pytest.mark.slow] * (name == "jax")) for name, array in LIBRARIES.items()],
)


def simplex(rng, *shape):
    probs = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])
    return probs / probs.sum(-1, keepdims=True)


def truth(ref, reward, beta):
    """Policy, KL, expected reward and objective of the given floats, with 80 digits."""
    with mpmath.workdps(80):
        ref = [mpmath.mpf(float(p)) for p in ref]
        mass = mpmath.fsum(ref)
        ref = [p / mass for p in ref]
        reward = [mpmath.mpf(float(r)) if p > 0 else mpmath.mpf(0) for p, r in zip(ref, reward, strict=True)]
        beta = mpmath.mpf(float(beta))
        top = max(r for p, r in zip(ref, reward, strict=True) if p > 0)
        weights = [p * mpmath.exp((r - top) / beta) if p > 0 else p for p, r in zip(ref, reward, strict=True)]
        total = mpmath.fsum(weights)
        policy = [w / total for w in weights]
        kl = mpmath.fsum(p * mpmath.log(p / q) for p, q in zip(policy, ref, strict=True) if p > 0)
        mean = mpmath.fsum(p * r for p, r in zip(policy, reward, strict=True))
        return policy, kl, mean, mean - beta * kl


def relative(got, exact):
    return abs(float((mpmath.mpf(float(got)) - exact) / exact)) if exact else abs(float(got))


# -- accuracy --


def reference_cases():
    return [
        pytest.param(case, id=f"{len(case['ref'])}-{'budget' if 'budget' in case else 'beta'}-{index}")
        for index, case in enumerate(json.loads(REFERENCE.read_text())["cases"])
    ]


@pytest.mark.parametrize("case", reference_cases())
@library
def test_reference_values(case, array):
    ref, reward = (array([float(value) for value in case[key]]) for key in ("ref", "reward"))
    if "budget" in case:
        best = tilt_to_budget(ref, reward, float(case["budget"]))
        exact = {**case, "kl": case["budget"]}
    else:
        best = tilt(ref, reward, float(case["beta"]))
        exact = case
    for key in ("beta", "kl", "expected_reward", "objective"):
        if key in exact:
            assert float(getattr(best, key)) == pytest.approx(float(exact[key]), rel=1e-13, abs=0), key
    assert np.asarray(best.policy) == pytest.approx([float(p) for p in exact["policy"]], rel=1e-12, abs=0)


def hard_task(kind, rng, size):
    ref, reward = simplex(rng, size), rng.normal(size=size)
    if kind == "far from zero":
        reward += 1e4
    if kind == "rare best reward":
        ref[0], reward[0] = 1e-30, 50.0
    if kind == "zero probability":
        ref[0], reward[0] = 0.0, nan
    if kind == "many scales":
        reward *= 10.0 ** rng.integers(-5, 5, size)
    if kind == "ties":
        reward = np.round(reward)
    if kind == "nearly certain":
        ref[1:] *= 1e-12
    return ref / ref.sum(), reward


@pytest.mark.parametrize(
    "kind", ["plain", "far from zero", "rare best reward", "zero probability", "many scales", "ties", "nearly certain"]
)
@pytest.mark.parametrize("size", [2, 7, 40])
def test_relative_accuracy_for_beta_from_1e_minus_8_to_1e8(kind, size):
    rng = np.random.default_rng(1)
    for beta in 10.0 ** np.arange(-8, 9):
        ref, reward = hard_task(kind, rng, size)
        best, (policy, kl, mean, objective) = tilt(ref, reward, beta), truth(ref, reward, beta)
        assert relative(best.kl, kl) < 1e-13, beta
        assert abs(float(best.expected_reward - mean)) <= 1e-13 * abs(np.nan_to_num(reward)).max(), beta
        assert abs(float(best.objective - objective)) <= 1e-13 * abs(np.nan_to_num(reward)).max(), beta
        # The relative error of e^d is the absolute error of d, which is proportional to |d|.
        pairs = [(got, exact) for got, exact in zip(best.policy, policy, strict=True) if exact > 1e-290]
        assert all(relative(got, exact) < 1e-15 * (50 - math.log(exact)) for got, exact in pairs), beta


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float16, 2e-3)])
def test_low_precision_dtypes(dtype, tolerance):
    ref, reward = np.asarray([0.5, 0.25, 0.25], dtype), np.asarray([0.0, 1.0, 2.0], dtype)
    for beta in (0.125, 1.0, 64.0):
        best = tilt(ref, reward, beta)
        assert best.policy.dtype == dtype
        assert type(best.kl) is np.float64
        assert dtype(best.kl) == best.kl
        assert relative(best.kl, truth(ref, reward, beta)[1]) < tolerance
    for budget in (1e-4, 0.1, 1.0):
        assert float(tilt_to_budget(ref, reward, budget).kl) == pytest.approx(budget, rel=tolerance)
    half = tilt(torch.tensor([0.5, 0.5], dtype=torch.bfloat16), torch.tensor([0.0, 1.0], dtype=torch.bfloat16), 1.0)
    assert half.policy.dtype == torch.bfloat16
    assert half.policy[1].item() == pytest.approx(1 / (1 + math.exp(-1)), rel=2**-8)


@pytest.mark.parametrize(
    "kind", ["plain", "far from zero", "rare best reward", "zero probability", "ties", "nearly certain"]
)
@pytest.mark.parametrize("size", [3, 20])
def test_budgets_are_met_to_rounding(kind, size):
    rng = np.random.default_rng(2)
    ref, reward = hard_task(kind, rng, size)
    largest = float(tilt(ref, reward, 0.0).kl)
    budgets = np.concatenate([10.0 ** np.arange(-24.0, 0.0), 1 - 10.0 ** -np.arange(1.0, 15.0)]) * largest
    best = tilt_to_budget(ref, reward, budgets)
    assert best.kl == pytest.approx(budgets, rel=1e-12, abs=0)
    assert not best.saturated.any()
    assert (np.diff(best.beta[np.argsort(budgets)]) < 0).all()
    for row in range(0, len(budgets), 5):
        # The KL at the returned beta, with 80 digits, is the budget.
        assert relative(budgets[row], truth(ref, reward, best.beta[row])[1]) < 1e-12


@pytest.mark.parametrize("reward", [[0.0, 1.0, 2.0], [0.0, 100.0, 200.0], [0.0, 0.0, 1.0], [-3.0, 1.9, 2.0]])
@pytest.mark.parametrize("digits", [6, 8, 10, 12, 14])
def test_budgets_close_to_the_largest_kl_are_met_to_rounding(digits, reward):
    ref = [0.5, 0.3, 0.2]
    budget = -math.log(0.2) * (1 - 10.0**-digits)
    best = tilt_to_budget(ref, reward, budget)
    assert float(best.kl) == pytest.approx(budget, rel=4e-15)
    assert not best.saturated
    with mpmath.workdps(50):

        def kl(beta):
            weights = [
                mpmath.mpf(p) * mpmath.exp((r - 2 if reward[2] == 2 else r) / beta)
                for p, r in zip(ref, reward, strict=True)
            ]
            total = mpmath.fsum(weights)
            return mpmath.fsum(
                w / total * mpmath.log(w / total / p) for w, p in zip(weights, map(mpmath.mpf, ref), strict=True)
            )

        # The rounding of the KL is a relative error 2e-16 * 10^digits of the remaining KL.
        beta = mpmath.mpf(float(best.beta))
        tolerance = 4e-16 * 10**digits
        remaining = budget * 10.0**-digits
        assert abs(kl(beta) - budget) <= tolerance * remaining + 1e-15


def test_rewards_that_differ_by_rounding_or_are_very_large():
    ref = [0.2, 0.3, 0.5]
    for reward in ([1.0, 1 + 1e-15, 0.0], [-1e300, 0.0, 1e300], [1e-300, 0.0, 2e-300]):
        for budget in (1e-6, 0.1, 0.5):
            best = tilt_to_budget(ref, reward, budget)
            assert float(best.kl) == pytest.approx(budget, rel=1e-12)
            assert np.isfinite(best.expected_reward)


# -- limits --


@library
def test_limits_of_beta_and_budget(array):
    ref, reward = array([0.5, 0.25, 0.25, 0.0]), array([0.0, 1.0, 1.0, 9.0])
    for best in (
        tilt(ref, reward, 0.0),
        tilt(ref, reward, 1e-8),
        tilt_to_budget(ref, reward, 0.7),
        tilt_to_budget(ref, reward, inf),
    ):
        assert np.asarray(best.policy) == pytest.approx([0, 0.5, 0.5, 0])
        assert float(best.kl) == pytest.approx(math.log(2), rel=1e-15)
        assert float(best.expected_reward) == 1
        assert float(best.objective) == pytest.approx(1, abs=1e-8)
    assert bool(tilt_to_budget(ref, reward, 0.7).saturated)
    for best in (tilt(ref, reward, inf), tilt_to_budget(ref, reward, 0.0)):
        assert np.asarray(best.policy) == pytest.approx([0.5, 0.25, 0.25, 0])
        assert float(best.kl) == 0
        assert float(best.beta) == inf
        assert float(best.objective) == float(best.expected_reward) == 0.5


def test_equal_rewards_give_the_reference():
    for budget in (0.0, 1e-9, 3.0):
        best = tilt_to_budget([0.3, 0.7, 0.0], [2.0, 2.0, 5.0], budget)
        assert best.policy == pytest.approx([0.3, 0.7, 0.0])
        assert (best.kl, best.expected_reward, best.saturated) == (0, 2, True)
    assert (frontier([1.0], [3.0]).expected_reward == 3).all()


def test_the_largest_kl_is_accurate_for_a_nearly_certain_event():
    best = tilt_to_budget([1e-12, 1 - 1e-12], [0.0, 1.0], 1.0)
    assert float(best.kl) == pytest.approx(-math.log1p(-1e-12), rel=1e-13, abs=0)


# -- comparison with a general constrained solver --


def test_the_budget_optimum_agrees_with_a_constrained_solver():
    rng = np.random.default_rng(3)
    for _ in range(4):
        ref, reward = simplex(rng, 4), rng.normal(size=4)
        best = tilt_to_budget(ref, reward, 0.2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = minimize(
                lambda p, reward=reward: -p @ reward,
                ref,
                method="SLSQP",
                bounds=[(1e-12, 1)] * 4,
                constraints=[
                    {"type": "eq", "fun": lambda p: p.sum() - 1},
                    {"type": "ineq", "fun": lambda p, ref=ref: 0.2 - (p * np.log(p / ref)).sum()},
                ],
                options={"ftol": 1e-12},
            )
        assert found.success
        assert -found.fun == pytest.approx(float(best.expected_reward), rel=1e-6)


# -- properties --

property_test = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def tasks(draw):
    size = draw(st.integers(2, 8))
    ref = np.asarray(draw(st.lists(st.floats(1e-6, 1) | st.just(0.0), min_size=size, max_size=size)))
    ref[draw(st.integers(0, size - 1))] = 1.0
    reward = np.asarray(draw(st.lists(st.floats(-10, 10) | st.integers(-2, 2), min_size=size, max_size=size)), float)
    return ref / ref.sum(), reward


@property_test
@given(tasks(), st.floats(-6, 6), st.floats(-6, 6))
def test_kl_and_reward_decrease_with_beta(task, first, second):
    low, high = (tilt(*task, 10.0**power) for power in sorted((first, second)))
    assert low.kl >= high.kl * (1 - 1e-12)
    assert low.expected_reward >= high.expected_reward - 1e-12
    assert low.objective >= high.objective - 1e-12


@property_test
@given(tasks(), st.floats(-6, 3), st.integers(0, 2**32 - 1))
def test_no_other_policy_has_a_larger_objective(task, power, seed):
    ref, reward = task
    beta, best = 10.0**power, tilt(*task, 10.0**power)
    rng = np.random.default_rng(seed)
    others = np.where(ref > 0, rng.dirichlet(np.ones(len(ref)), size=50), 0) + 1e-3 * ref
    others /= others.sum(-1, keepdims=True)
    others = np.concatenate([others, 0.99 * best.policy + 0.01 * others])
    kl = kl_probs(others, ref)
    assert (others @ reward - beta * kl <= best.objective + 1e-12 * (1 + abs(reward).max())).all()
    # The regret of a policy is beta times its KL from the optimum.
    regret = best.objective - (others @ reward - beta * kl)
    if best.policy[ref > 0].min() > 1e-200:
        assert regret == pytest.approx(beta * kl_probs(others, best.policy), rel=1e-9, abs=1e-12 * (1 + beta * 20))
    budget = tilt_to_budget(ref, reward, kl).expected_reward
    assert (others @ reward <= budget + 1e-10).all()


@property_test
@given(tasks())
def test_the_frontier_is_increasing_and_concave(task):
    curve = frontier(*task, points=33)
    assert (np.diff(curve.kl) >= 0).all()
    assert (np.diff(curve.expected_reward) >= -1e-12).all()
    if curve.kl[-1] > 1e-9:
        slopes = np.diff(curve.expected_reward) / np.diff(curve.kl)
        assert (np.diff(slopes) <= 1e-9 * (1 + abs(slopes[0]))).all()
        # beta is the slope of the frontier, so the slope of each chord is between the betas at its ends.
        assert (slopes <= curve.beta[:-1] * (1 + 1e-9) + 1e-9).all()
        assert (slopes >= curve.beta[1:] * (1 - 1e-9) - 1e-9).all()
    middle = curve.kl[16]
    assert curve.reward_at(middle) == pytest.approx(float(curve.expected_reward[16]), rel=1e-12, abs=1e-12)


@property_test
@given(tasks(), st.integers(1, 100))
def test_best_of_n_is_below_the_frontier(task, n):
    best = best_of_n_policy(*task, n)
    assert best.expected_reward <= tilt_to_budget(*task, best.kl).expected_reward + 1e-9


@property_test
@given(tasks(), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_shifts_of_the_reward_have_no_effect_and_scales_are_equivalent_to_scales_of_beta(task, shift, scale):
    ref, reward = task[0], np.round(task[1] * 2**20) / 2**20
    shift = round(shift * 2**20) / 2**20
    plain, shifted, scaled = (tilt(ref, r, b) for r, b in ((reward, 1), (reward + shift, 1), (reward * scale, scale)))
    assert shifted.kl == pytest.approx(float(plain.kl), rel=1e-12, abs=0)
    assert scaled.kl == pytest.approx(float(plain.kl), rel=1e-11, abs=1e-18)
    assert shifted.policy == pytest.approx(plain.policy, rel=1e-12)
    order = np.arange(len(ref))[::-1]
    assert tilt(ref[order], reward[order], 1).kl == pytest.approx(float(plain.kl), rel=1e-12, abs=1e-300)


# -- contexts --


@pytest.mark.slow
@library
def test_all_contexts_have_the_same_beta(array):
    rng = np.random.default_rng(4)
    ref, reward, context_probs = simplex(rng, 3, 5), rng.normal(size=(3, 5)) * [[1], [4], [0]], simplex(rng, 3)
    best = tilt_to_budget(array(ref), array(reward), 0.3, contexts=array(context_probs))
    rows = [tilt(ref[k], reward[k], float(best.beta)) for k in range(3)]
    assert best.kl.shape == ()
    assert best.policy.shape == (3, 5)
    assert np.asarray(best.policy) == pytest.approx(np.stack([row.policy for row in rows]), rel=1e-12)
    assert float(best.kl) == pytest.approx(0.3, rel=1e-13)
    assert float(best.kl) == pytest.approx(
        sum(c * row.kl for c, row in zip(context_probs, rows, strict=True)), rel=1e-12
    )
    mean = sum(c * row.expected_reward for c, row in zip(context_probs, rows, strict=True))
    assert float(best.expected_reward) == pytest.approx(mean, rel=1e-12)
    # An equal budget in every context gives a smaller expected reward.
    uniform = context_probs @ tilt_to_budget(ref, reward, 0.3).expected_reward
    assert float(best.expected_reward) > uniform + 0.01


def test_no_allocation_of_the_budget_to_contexts_has_a_larger_reward():
    # Random allocations have the same mean KL of 0.3.
    rng = np.random.default_rng(5)
    ref, reward, context_probs = simplex(rng, 3, 4), rng.normal(size=(3, 4)), simplex(rng, 3)
    best = tilt_to_budget(ref, reward, 0.3, contexts=context_probs)
    allocations = rng.dirichlet(np.ones(3), size=200) * 0.3 / context_probs
    others = tilt_to_budget(ref, reward, allocations).expected_reward @ context_probs
    assert (others <= best.expected_reward + 1e-12).all()


def test_frontiers_of_contexts_and_of_rows():
    rng = np.random.default_rng(6)
    ref, reward, context_probs = simplex(rng, 3, 4), rng.normal(size=(3, 4)), simplex(rng, 3)
    rows = frontier(ref, reward, points=9)
    assert rows.kl.shape == (3, 9)
    assert rows.expected_reward[1] == pytest.approx(frontier(ref[1], reward[1], points=9).expected_reward, rel=1e-12)
    whole = frontier(ref, reward, contexts=context_probs, points=9)
    assert whole.kl.shape == (9,)
    assert whole.kl[-1] == pytest.approx(float(-(context_probs * np.log(ref[np.arange(3), reward.argmax(-1)])).sum()))
    assert whole.expected_reward[[0, -1]] == pytest.approx(
        [context_probs @ (ref * reward).sum(-1), context_probs @ reward.max(-1)]
    )
    assert whole.reward_at(whole.kl) == pytest.approx(whole.expected_reward, rel=1e-12)
    assert (whole.beta[0], whole.beta[-1]) == (inf, 0)


def test_shapes_broadcast():
    ref, reward = np.full((2, 1, 3), 1 / 3), np.arange(12.0).reshape(4, 3)
    best = tilt(ref, reward, np.ones((5, 1, 1)))
    assert best.policy.shape == (5, 2, 4, 3)
    assert best.kl.shape == best.beta.shape == best.objective.shape == (5, 2, 4)
    assert tilt([1.0], [2.0], 3).policy.shape == (1,)


# -- gradients --


@pytest.mark.parametrize("beta", [0.03, 0.5, 30.0])
def test_gradients_of_a_tilt(beta):
    generator = torch.Generator().manual_seed(0)
    logits, reward = (torch.randn(3, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    beta_tensor = torch.full((3,), beta, dtype=torch.float64, requires_grad=True)

    def fields(logits, reward, beta_tensor):
        best = tilt(logits.softmax(-1), reward, beta_tensor)
        return best.policy, best.kl, best.expected_reward, best.objective

    assert torch.autograd.gradcheck(fields, (logits, reward, beta_tensor), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("contexts", [False, True])
@pytest.mark.parametrize("budget", [1e-3, 0.3])
def test_gradients_through_a_budget(budget, contexts):
    generator = torch.Generator().manual_seed(1)
    logits, reward = (torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    context_probs = torch.randn(3, dtype=torch.float64, generator=generator).requires_grad_()
    budget_tensor = torch.full(() if contexts else (3,), budget, dtype=torch.float64, requires_grad=True)

    def fields(logits, reward, budget_tensor, context_probs):
        best = tilt_to_budget(
            logits.softmax(-1), reward, budget_tensor, contexts=context_probs.softmax(-1) if contexts else None
        )
        return best.policy, best.kl, best.expected_reward, best.beta

    assert torch.autograd.gradcheck(fields, (logits, reward, budget_tensor, context_probs), rtol=1e-5, atol=1e-7)


def test_second_derivatives_through_a_budget():
    generator = torch.Generator().manual_seed(2)
    logits, reward = (torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    budget_tensor = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

    def expected_reward(logits, reward, budget_tensor):
        return tilt_to_budget(logits.softmax(-1), reward, budget_tensor).expected_reward

    assert torch.autograd.gradgradcheck(expected_reward, (logits, reward, budget_tensor), rtol=1e-4, atol=1e-6)


def test_gradients_are_accurate_for_small_tilts():
    rng = np.random.default_rng(7)
    ref, values = simplex(rng, 6), rng.normal(size=6)
    slopes = jax.jit(jax.grad(lambda r, b: tilt(jnp.asarray(ref), r, b).kl, (0, 1)))
    for beta in (1.0, 1e4, 1e8):
        best = tilt(ref, values, beta)
        deviation = values - best.policy @ values
        by_reward, by_beta = best.policy * deviation / beta**2, -(best.policy @ deviation**2) / beta**3
        reward, beta_tensor = (
            torch.tensor(values, requires_grad=True),
            torch.tensor(beta, requires_grad=True, dtype=torch.float64),
        )
        tilt(torch.from_numpy(ref), reward, beta_tensor).kl.backward()
        assert reward.grad.numpy() == pytest.approx(by_reward, rel=1e-13, abs=0)
        assert beta_tensor.grad.item() == pytest.approx(by_beta, rel=1e-13, abs=0)
        in_jax = slopes(jnp.asarray(values), beta)
        assert np.asarray(in_jax[0]) == pytest.approx(by_reward, rel=1e-13, abs=0)
        assert float(in_jax[1]) == pytest.approx(by_beta, rel=1e-13, abs=0)


@pytest.mark.parametrize("budget", [0.0, 1e-30, 0.1, 0.69, 2.0, inf])
def test_gradients_are_finite_at_the_limits(budget):
    ref = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 5.0], dtype=torch.float64, requires_grad=True)
    budget_tensor = torch.tensor(budget, dtype=torch.float64, requires_grad=True)
    best = tilt_to_budget(ref, reward, budget_tensor)
    (best.kl + best.expected_reward + best.objective + best.policy[0]).backward()
    assert all(torch.isfinite(x.grad).all() for x in (ref, reward, budget_tensor))
    assert reward.grad[2] == 0
    for beta in (0.0, 1e-8, 1.0, 1e8, inf):
        beta_tensor = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
        best = tilt(ref, reward, beta_tensor)
        gradients = torch.autograd.grad(best.kl + best.expected_reward + best.objective, (ref, reward, beta_tensor))
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_beta_is_the_derivative_of_the_reward_with_respect_to_the_budget():
    budget_tensor = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    best = tilt_to_budget(
        torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([0.0, 1.0, 2.0]).double(), budget_tensor
    )
    best.expected_reward.backward()
    assert budget_tensor.grad.item() == pytest.approx(best.beta.item(), rel=1e-12)


@pytest.mark.slow
def test_jax_transforms():
    rng = np.random.default_rng(8)
    logits, reward = (jnp.asarray(rng.normal(size=(3, 5))) for _ in range(2))
    budgets = jnp.asarray([1e-6, 0.1, 0.4])

    def expected_reward(logits, reward, budget):
        return tilt_to_budget(jax.nn.softmax(logits), reward, budget).expected_reward

    plain = jnp.stack([expected_reward(*row) for row in zip(logits, reward, budgets, strict=True)])
    assert np.asarray(jax.jit(jax.vmap(expected_reward))(logits, reward, budgets)) == pytest.approx(
        np.asarray(plain), rel=1e-13
    )
    by_reward = jax.jit(jax.vmap(jax.grad(expected_reward, 1)))(logits, reward, budgets)
    rows = [torch.tensor(np.asarray(array)) for array in (logits, reward, budgets)]
    rows[1].requires_grad_()
    tilt_to_budget(rows[0].softmax(-1), rows[1], rows[2]).expected_reward.sum().backward()
    assert np.asarray(by_reward) == pytest.approx(rows[1].grad.numpy(), rel=1e-10)
    traced = jax.jit(lambda r: (tilt([0.25] * 4, r, 0.5).kl, frontier([0.25] * 4, r, points=3).expected_reward))
    kl, curve = traced(jnp.arange(4.0))
    assert float(kl) == pytest.approx(float(tilt([0.25] * 4, np.arange(4.0), 0.5).kl), rel=1e-13)
    assert np.asarray(curve) == pytest.approx(frontier([0.25] * 4, np.arange(4.0), points=3).expected_reward)
    forward = jax.jit(jax.jacfwd(lambda b: expected_reward(logits[0], reward[0], b)))(0.1)
    assert float(forward) == pytest.approx(float(tilt_to_budget(jax.nn.softmax(logits[0]), reward[0], 0.1).beta))


# -- errors --


def test_invalid_probabilities_raise():
    with pytest.raises(NotNormalizedError, match=r"expected ref to sum to 1 .* sums to 1\.1"):
        tilt([0.5, 0.6], [0.0, 1.0], 1.0)
    with pytest.raises(NotNormalizedError, match=r"ref\[0\] is -0\.5"):
        tilt([-0.5, 1.5], [0.0, 1.0], 1.0)
    with pytest.raises(NotNormalizedError, match="contexts"):
        tilt([[0.5, 0.5]] * 2, [0.0, 1.0], 1.0, contexts=[0.5, 0.6])
    with pytest.raises(NotNormalizedError, match=r"row \(1,\)"):
        tilt([[0.5, 0.5], [0.5, 0.4]], [0.0, 1.0], 1.0)


def test_invalid_rewards_betas_and_budgets_raise():
    with pytest.raises(SupportError, match=r"reward\[1\] is nan; to exclude an event, set its ref to 0"):
        tilt([0.5, 0.5], [0.0, nan], 1.0)
    with pytest.raises(SupportError, match=r"reward\[1, 0\] is inf"):
        frontier([0.5, 0.5], [[0.0, 1.0], [inf, 0.0]])
    with pytest.raises(SupportError, match=r"beta is -1\.0"):
        tilt([0.5, 0.5], [0.0, 1.0], -1.0)
    with pytest.raises(BudgetError, match=r"budget\[1\] is -0\.1"):
        tilt_to_budget([0.5, 0.5], [0.0, 1.0], [0.1, -0.1])
    with pytest.raises(BudgetError, match="budget is nan"):
        tilt_to_budget([0.5, 0.5], [0.0, 1.0], nan)


def test_invalid_shapes_raise():
    with pytest.raises(ShapeError, match=r"equal numbers of events.*\(2,\) and \(3,\)"):
        tilt([0.5, 0.5], [0.0, 1.0, 2.0], 1.0)
    with pytest.raises(ShapeError, match="broadcast"):
        tilt([[0.5, 0.5]] * 2, [0.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(ShapeError, match="at least one event"):
        tilt([], [], 1.0)
    with pytest.raises(ShapeError, match="expected axis -1 to be an axis"):
        tilt(1.0, 0.0, 1.0)
    with pytest.raises(ShapeError, match="at least one event"):
        tilt([0.5, 0.5], [0.0, 1.0], 1.0, contexts=[1.0])
    with pytest.raises(ShapeError, match="2 points"):
        frontier([0.5, 0.5], [0.0, 1.0], points=1)


def test_a_budget_is_not_exceeded_where_beta_is_not_represented():
    with pytest.raises(SupportError, match="expected rewards that differ by at least"):
        tilt_to_budget([0.5, 0.5], [0.0, 1e-310], 0.1)
    with pytest.raises(SupportError, match="multiply the rewards by a constant"):
        tilt_to_budget(np.float32([0.5, 0.5]), np.float32([0.0, 1e-38]), 0.1)
    for budget in (1e-40, 1e-30, 1e-20, 1e-10):
        found = tilt_to_budget(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1e30]), budget)
        assert float(found.kl) <= 1.001 * budget
    assert float(tilt_to_budget([0.5, 0.5], [1e-310, 1e-310], 0.1).kl) == 0
    assert float(tilt_to_budget([0.5, 0.5], [0.0, 1e-300], 0.1).kl) == pytest.approx(0.1, rel=1e-12)
