"""Gymnasium environments as Markov decision processes: exact optima, and returns of simulated episodes."""

import gymnasium
import numpy as np
import pytest

from kullback.errors import InputError, SupportError
from kullback.integrations.gymnasium import mdp_from_gymnasium
from kullback.optimum.soft_value_iteration import soft_value_iteration
from kullback.optimum.trajectory_kl import policy_objective, trajectory_kl

TAXI = max(name for name in gymnasium.registry if name.startswith("Taxi-v"))  # v3 in Gymnasium 1.2, v4 in 1.4
ENVIRONMENTS = {"FrozenLake-v1": {}, "CliffWalking-v1": {"horizon": 100}, TAXI: {}}


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("beta", [0.01, 1.0])
@pytest.mark.parametrize("kind", ["KL", "entropy"])
def test_the_regret_equals_beta_times_the_kl(name, beta, kind):
    mdp = mdp_from_gymnasium(gymnasium.make(name), **ENVIRONMENTS[name])
    rng = np.random.default_rng(0)
    ref = rng.dirichlet(np.ones(mdp.rewards.shape[1])) if kind == "KL" else None
    policy = rng.dirichlet(np.ones(mdp.rewards.shape[1]), size=len(mdp.rewards))
    best = soft_value_iteration(mdp, beta, ref)
    regret = best.objective - policy_objective(mdp, policy, beta, ref)
    kl = trajectory_kl(mdp, policy, log_ref=best.log_policy)
    assert regret == pytest.approx(beta * kl, rel=1e-11, abs=1e-12 * abs(best.objective))


def test_known_optima():
    # The shortest path along the cliff has 13 steps; the lake is crossed within its limit of 100 steps.
    cliff = mdp_from_gymnasium(gymnasium.make("CliffWalking-v1"), horizon=100)
    assert soft_value_iteration(cliff, 0.0).objective == pytest.approx(-13, rel=1e-12)
    lake = mdp_from_gymnasium(gymnasium.make("FrozenLake-v1", is_slippery=False))
    assert soft_value_iteration(lake, 0.0).objective == pytest.approx(1, rel=1e-12)
    assert lake.horizon == 100
    taxi = mdp_from_gymnasium(gymnasium.make(TAXI), discount=0.99)
    assert taxi.horizon is None
    assert soft_value_iteration(taxi, 0.0).error < 1e-9


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_simulated_returns_match_the_objective(name):
    env = gymnasium.make(name)
    mdp = mdp_from_gymnasium(env, **ENVIRONMENTS[name])
    best = soft_value_iteration(mdp, 0.1, np.full(mdp.rewards.shape[1], 1 / mdp.rewards.shape[1]))
    expected = policy_objective(mdp, best.policy, 0.0)
    rng = np.random.default_rng(1)
    returns = []
    for episode in range(300):
        state, _ = env.reset(seed=episode)
        total = 0.0
        for step in range(mdp.horizon):
            action = int(rng.choice(mdp.rewards.shape[1], p=best.policy[step, state]))
            state, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        returns.append(total)
    assert np.mean(returns) == pytest.approx(expected, abs=4 * np.std(returns) / np.sqrt(len(returns)) + 1e-3)


def test_unsupported_environments_are_rejected():
    with pytest.raises(InputError, match="lists its transitions"):
        mdp_from_gymnasium(gymnasium.make("CartPole-v1"))
    with pytest.raises(SupportError, match="a horizon, or a discount"):
        mdp_from_gymnasium(gymnasium.make("CliffWalking-v1"))
