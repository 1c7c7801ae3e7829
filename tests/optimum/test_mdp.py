"""KL-regularised control: soft value iteration, its error bound, and the KL between trajectory distributions."""

import itertools
import math

import mpmath
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from kullback.errors import ArrayTypeError, NotNormalizedError, ShapeError, SupportError
from kullback.optimum.mdp import MDP
from kullback.optimum.soft_value_iteration import soft_value_iteration
from kullback.optimum.tilt import tilt
from kullback.optimum.trajectory_kl import policy_objective, trajectory_kl


def make_mdp(rng, states, actions, *, ending=False, **options):
    transitions = rng.dirichlet(np.full(states, 0.3), size=(states, actions))
    ends = rng.uniform(0, 0.5, (states, actions)) if ending else np.zeros((states, actions))
    initial = rng.dirichlet(np.ones(states))
    rewards = rng.normal(size=(states, actions))
    return MDP(transitions * (1 - ends)[..., None], rewards, ends=ends, initial=initial, **options)


def policies(rng, *shape):
    return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])


def trajectories(mdp, horizon):
    """All trajectories: states and actions, with the product of the transition probabilities."""
    dense = mdp.transitions.toarray().reshape(*mdp.rewards.shape, -1)
    states, actions = range(mdp.rewards.shape[0]), range(mdp.rewards.shape[1])
    for first in states:
        stack = [([(first, action)], mdp.initial[first]) for action in actions]
        while stack:
            steps, chance = stack.pop()
            if chance == 0:
                continue
            if len(steps) == horizon:
                yield steps, chance
                continue
            state, action = steps[-1]
            if mdp.ends[state, action] > 0:
                yield steps, chance * mdp.ends[state, action]
            for following, choice in itertools.product(states, actions):
                stack.append(([*steps, (following, choice)], chance * dense[state, action, following]))


@pytest.mark.parametrize("ending", [False, True])
def test_kl_objective_and_optimum_agree_with_enumeration(ending):
    rng = np.random.default_rng(0)
    mdp = make_mdp(rng, 3, 2, ending=ending, horizon=3)
    policy, ref = policies(rng, 3, 3, 2), policies(rng, 3, 2)
    listed = list(trajectories(mdp, 3))

    def chances(policy, time):
        step = policy if time else np.broadcast_to(policy, (3, *policy.shape))
        return np.asarray([c * math.prod(step[t, s, a] for t, (s, a) in enumerate(steps)) for steps, c in listed])

    p, q = chances(policy, True), chances(ref, False)
    rewards = np.asarray([sum(mdp.rewards[s, a] for s, a in steps) for steps, _ in listed])
    assert p.sum() == pytest.approx(1, rel=1e-12)
    kl = (p * np.log(p / q)).sum()
    assert trajectory_kl(mdp, policy, ref) == pytest.approx(kl, rel=1e-12)
    assert policy_objective(mdp, policy, 0.7, ref) == pytest.approx(p @ rewards - 0.7 * kl, rel=1e-12)
    best = soft_value_iteration(mdp, 0.7, ref)
    o = chances(best.policy, True)
    assert best.objective == pytest.approx(o @ rewards - 0.7 * (o * np.log(o / q)).sum(), rel=1e-12)
    # The regret of a policy is beta times its KL from the optimum.
    assert best.objective - (p @ rewards - 0.7 * kl) == pytest.approx(0.7 * (p * np.log(p / o)).sum(), rel=1e-11)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("kind", ["KL", "entropy"])
@pytest.mark.parametrize("options", [{"horizon": 20}, {"horizon": 20, "discount": 0.9}, {"discount": 0.95}])
@pytest.mark.parametrize("ending", [False, True])
def test_the_regret_is_beta_times_the_trajectory_kl_from_the_optimum(beta, kind, options, ending):
    rng = np.random.default_rng(1)
    mdp = make_mdp(rng, 12, 3, ending=ending, **options)
    ref = policies(rng, 12, 3) if kind == "KL" else None
    best = soft_value_iteration(mdp, beta, ref)
    for policy in (policies(rng, 12, 3), np.asarray([1.0, 0.0, 0.0]), best.policy):
        regret = best.objective - policy_objective(mdp, policy, beta, ref)
        kl = trajectory_kl(mdp, policy, log_ref=best.log_policy)
        assert regret == pytest.approx(beta * kl, rel=1e-10, abs=2 * best.error + 1e-13 * abs(best.objective))
    assert best.objective == pytest.approx(policy_objective(mdp, best.policy, beta, ref), abs=2 * best.error)


def high_precision_value(mdp, beta, ref, start):
    """The fixed point of the soft Bellman equation, by Newton's method with 40 digits."""
    with mpmath.workdps(40):
        states, actions = mdp.rewards.shape
        moves = mpmath.matrix(mdp.transitions.toarray().tolist())
        rewards, discount = mpmath.matrix(mdp.rewards.ravel().tolist()), mpmath.mpf(mdp.discount)
        value = mpmath.matrix(start.tolist())
        for _ in range(6):
            q = rewards + discount * (moves * value)
            weights = [mpmath.mpf(float(w)) * mpmath.exp(x / beta) for w, x in zip(ref.ravel(), q, strict=True)]
            sums = [mpmath.fsum(weights[s * actions : (s + 1) * actions]) for s in range(states)]
            change = mpmath.matrix([beta * mpmath.log(total) for total in sums]) - value
            if max(abs(x) for x in change) < mpmath.mpf(10) ** -28:
                return value
            system = mpmath.eye(states)
            for s, a, k in itertools.product(range(states), range(actions), range(states)):
                system[s, k] -= discount * weights[s * actions + a] / sums[s] * moves[s * actions + a, k]
            value += mpmath.lu_solve(system, change)
        raise AssertionError("Newton's method did not converge")


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("ending", [False, True])
def test_the_error_bound_holds(discount, ending):
    rng = np.random.default_rng(2)
    mdp, ref, beta = make_mdp(rng, 10, 3, ending=ending, discount=discount), policies(rng, 10, 3), 0.25
    best = soft_value_iteration(mdp, beta, ref)
    exact = high_precision_value(mdp, beta, ref, best.value)

    def max_error(value):
        return max(abs(float(got - x)) for got, x in zip(value, exact, strict=True))

    size = abs(best.value).max()
    assert max_error(best.value) <= best.error
    assert best.error < 1e-9 + 1e-13 * size / (1 - discount)
    q = mdp.rewards + discount * (mdp.transitions @ best.value).reshape(10, 3)
    assert best.log_policy == pytest.approx(np.log(ref) + (q - best.value[:, None]) / beta, abs=4 * best.error / beta)
    # The bound also holds if the iteration stops early.
    for options in [{"tolerance": 1.0}, {"tolerance": 1e-3}, {"max_iterations": 1}, {"max_iterations": 2}]:
        rough = soft_value_iteration(mdp, beta, ref, **options)
        assert max_error(rough.value) <= rough.error
        assert rough.error <= options.get("tolerance", math.inf)
        assert rough.iterations <= options.get("max_iterations", 10_000)


def test_one_step_is_a_tilt_and_a_long_horizon_agrees_with_no_horizon():
    rng = np.random.default_rng(3)
    mdp, ref = make_mdp(rng, 5, 3, horizon=1), policies(rng, 5, 3)
    best, one = soft_value_iteration(mdp, 0.4, ref), tilt(ref, mdp.rewards, 0.4)
    assert best.policy[0] == pytest.approx(one.policy, rel=1e-13)
    assert best.value[0] == pytest.approx(one.objective, rel=1e-13)
    assert best.policy.shape == (1, 5, 3)
    assert best.value.shape == (2, 5)
    unbounded = MDP(mdp.transitions, mdp.rewards, discount=0.8)
    finite = MDP(mdp.transitions, mdp.rewards, discount=0.8, horizon=200)
    assert soft_value_iteration(finite, 0.4, ref).value[0] == pytest.approx(
        soft_value_iteration(unbounded, 0.4, ref).value, rel=1e-9
    )


def test_with_beta_zero_the_policy_is_optimal_for_the_reward():
    rng = np.random.default_rng(4)
    mdp = make_mdp(rng, 6, 2, discount=0.9)
    best = soft_value_iteration(mdp, 0.0)
    each = [np.eye(2)[list(choice)] for choice in itertools.product(range(2), repeat=6)]
    objectives = [policy_objective(mdp, policy, 0.0) for policy in each]
    assert best.objective == pytest.approx(max(objectives), rel=1e-12)
    assert (best.policy == each[int(np.argmax(objectives))]).all()
    # Ties are broken in proportion to the reference.
    equal_rewards = MDP(mdp.transitions, np.zeros((6, 2)), discount=0.9)
    assert soft_value_iteration(equal_rewards, 0.0, [0.3, 0.7]).policy == pytest.approx(np.tile([0.3, 0.7], (6, 1)))


def test_dense_and_sparse_transitions_agree():
    rng = np.random.default_rng(5)
    dense = make_mdp(rng, 7, 3, discount=0.9)
    for kind in (sparse.csr_array, sparse.coo_array, sparse.csc_matrix):
        other = MDP(kind(dense.transitions), dense.rewards, discount=0.9, initial=dense.initial)
        assert soft_value_iteration(other, 0.2).value == pytest.approx(
            soft_value_iteration(dense, 0.2).value, rel=1e-12
        )


def make_sparse_mdp(states, rng, **options):
    """A sparse MDP with many states and three random next states for each action."""
    columns, weights = rng.integers(0, states, (4 * states, 3)), rng.dirichlet(np.ones(3), 4 * states)
    starts = np.arange(0, 12 * states + 1, 3)
    transitions = sparse.csr_array((weights.ravel(), columns.ravel(), starts), shape=(4 * states, states))
    return MDP(transitions, rng.normal(size=(states, 4)), **options)


def test_many_states():
    rng = np.random.default_rng(6)
    mdp = make_sparse_mdp(20_000, rng, discount=0.99)
    best = soft_value_iteration(mdp, 0.1, np.full(4, 0.25))
    assert best.error < 1e-9
    policy = policies(rng, 20_000, 4)
    regret = best.objective - policy_objective(mdp, policy, 0.1, np.full(4, 0.25))
    assert 0.1 * trajectory_kl(mdp, policy, log_ref=best.log_policy) == pytest.approx(regret, rel=1e-10)


def test_unreachable_states_do_not_contribute():
    # State 1 is unreachable from state 0, and there the policy takes an action of reference probability 0.
    stay = np.eye(2)[:, None, :].repeat(2, axis=1)
    policy, ref = np.asarray([[0.5, 0.5], [1.0, 0.0]]), np.asarray([[0.25, 0.75], [0.0, 1.0]])
    for options, steps in (({"discount": 0.5}, 2), ({"horizon": 3}, 3), ({"discount": 0.0}, 1)):
        mdp = MDP(stay, np.zeros((2, 2)), initial=[1.0, 0.0], **options)
        step_kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        assert trajectory_kl(mdp, policy, ref) == pytest.approx(steps * step_kl, rel=1e-12)
        everywhere = MDP(stay, np.zeros((2, 2)), **options)
        assert trajectory_kl(everywhere, policy, ref) == math.inf
        assert policy_objective(everywhere, policy, 1.0, ref) == -math.inf


def test_log_policy_represents_probabilities_that_underflow():
    mdp = MDP(np.ones((1, 2, 1)), [[0.0, 1.0]], horizon=1)
    best = soft_value_iteration(mdp, 1e-4, [0.5, 0.5])
    assert best.policy[0, 0, 0] == 0
    assert trajectory_kl(mdp, [1.0, 0.0], best.policy) == math.inf
    assert trajectory_kl(mdp, [1.0, 0.0], log_ref=best.log_policy) == pytest.approx(1e4, rel=1e-12)


property_test = settings(max_examples=30, deadline=None, derandomize=True)


@property_test
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.booleans(), st.sampled_from([{"horizon": 4}, {"discount": 0.8}]))
def test_no_policy_has_a_larger_objective_and_the_kl_decreases_with_beta(seed, power, ending, options):
    rng = np.random.default_rng(seed)
    mdp, ref, beta = make_mdp(rng, 4, 3, ending=ending, **options), policies(rng, 4, 3), 10.0**power
    best = soft_value_iteration(mdp, beta, ref)
    for policy in policies(rng, 5, 4, 3):
        assert policy_objective(mdp, policy, beta, ref) <= best.objective + best.error + 1e-12 * abs(best.objective)
    larger_beta = soft_value_iteration(mdp, 2 * beta, ref)
    assert trajectory_kl(mdp, larger_beta.policy, ref) <= trajectory_kl(mdp, best.policy, ref) + 1e-9
    assert policy_objective(mdp, larger_beta.policy, 0) <= policy_objective(mdp, best.policy, 0) + 1e-9


# -- errors --


def test_invalid_processes_raise():
    stay, none = np.ones((1, 2, 1)), [[0.0, 0.0]]
    for error, match, arguments, options in (
        (ShapeError, r"transitions of shape \(1, 2, 1\)", (np.ones((2, 2, 2)), none), {"horizon": 1}),
        (ShapeError, "rewards of shape", (stay, [0.0, 0.0]), {"horizon": 1}),
        (ShapeError, "ends of shape", (stay, none), {"horizon": 1, "ends": [0.0]}),
        (ShapeError, "initial of shape", (stay, none), {"horizon": 1, "initial": [0.5, 0.5]}),
        (NotNormalizedError, "state 0, action 1 they sum to 0.5", (stay * [[1], [0.5]], none), {"horizon": 1}),
        (NotNormalizedError, "contains -1.0", (-stay, none), {"horizon": 1}),
        (NotNormalizedError, "contains nan", (stay * math.nan, none), {"horizon": 1}),
        (NotNormalizedError, "initial to sum to 1", (stay, none), {"horizon": 1, "initial": [0.5]}),
        (SupportError, r"rewards\[0, 1\] is inf", (stay, [[0.0, math.inf]]), {"horizon": 1}),
        (SupportError, "a discount in", (stay, none), {"discount": 1.5}),
        (SupportError, "a discount in", (stay, none), {"discount": math.nan}),
        (SupportError, "a horizon of at least 1 step", (stay, none), {"horizon": 0}),
        (SupportError, "a horizon, or a discount", (stay, none), {}),
    ):
        with pytest.raises(error, match=match):
            MDP(*arguments, **options)


def test_invalid_policies_and_betas_raise():
    mdp = MDP(np.ones((1, 2, 1)), [[0.0, 1.0]], horizon=3)
    for beta in (-1.0, math.nan, math.inf):
        with pytest.raises(SupportError, match="beta"):
            soft_value_iteration(mdp, beta)
    with pytest.raises(ShapeError, match=r"ref of shape \(1, 2\) or \(3, 1, 2\), got \(3,\)"):
        soft_value_iteration(mdp, 1.0, [0.2, 0.3, 0.5])
    with pytest.raises(ShapeError, match="policy of shape"):
        trajectory_kl(mdp, np.full((2, 1, 2), 0.5), [0.5, 0.5])
    with pytest.raises(NotNormalizedError, match="policy to sum to 1"):
        policy_objective(mdp, [0.5, 0.6], 1.0)
    with pytest.raises(ShapeError, match="one of ref and log_ref"):
        trajectory_kl(mdp, [0.5, 0.5])
    with pytest.raises(NotNormalizedError, match="log_q"):
        trajectory_kl(mdp, [0.5, 0.5], log_ref=[0.0, 0.0])


def test_the_labels_of_two_arrays_are_not_matched_by_position():
    transitions = np.full((2, 2, 2), 0.5)
    rewards = pd.DataFrame([[1.0, 0.0], [0.0, 2.0]], index=["a", "b"])
    assert MDP(transitions, rewards, discount=0.9).rewards.tolist() == [[1.0, 0.0], [0.0, 2.0]]
    for name, value in (("initial", pd.Series({"b": 0.25, "a": 0.75})), ("ends", rewards * 0)):
        with pytest.raises(ArrayTypeError, match=f"expected {name} without labels"):
            MDP(transitions, rewards, discount=0.9, **{name: value})
        assert MDP(transitions, rewards.to_numpy(), discount=0.9, **{name: value}).rewards.shape == (2, 2)
