"""Conversion of Gymnasium environments with known transition probabilities to Markov decision processes."""

from typing import Any

import numpy as np
from scipy import sparse

from kullback.errors import InputError, MissingDependencyError
from kullback.optimum.mdp import MDP

try:
    import gymnasium
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
    raise MissingDependencyError("gymnasium is missing: pip install gymnasium") from error

__all__ = ["mdp_from_gymnasium"]


def mdp_from_gymnasium(env: gymnasium.Env[Any, Any], *, discount: float = 1.0, horizon: int | None = None) -> MDP:
    """The Markov decision process of an environment that lists its transitions, such as FrozenLake or Taxi.

    Such an environment has a table `env.unwrapped.P[state][action]` with lists of tuples (probability, next state,
    reward, terminated). The reward of a terminating transition counts.

    Args:
        env: The environment, as `gymnasium.make` returns it.
        discount: The discount factor of rewards per step, in [0, 1].
        horizon: The maximum number of steps of an episode. If it is None and the discount is 1, the environment's own
            limit is used.

    Returns:
        An `MDP` with sparse transitions and the initial state distribution of the environment.

    Raises:
        InputError: The environment does not list its transitions.
        SupportError: The discount is 1 and the number of steps is not limited.

    Example:
        >>> mdp = mdp_from_gymnasium(gymnasium.make("FrozenLake-v1"))
        >>> mdp.rewards.shape, mdp.horizon
        ((16, 4), 100)
    """
    table, initial = (getattr(env.unwrapped, name, None) for name in ("P", "initial_state_distrib"))
    if table is None or initial is None:
        raise InputError(
            f"expected an environment that lists its transitions (env.unwrapped.P), got {env}; FrozenLake, "
            "CliffWalking and Taxi do; construct an `MDP` from arrays for other environments"
        )
    if horizon is None and discount == 1 and env.spec is not None:
        horizon = env.spec.max_episode_steps
    states, actions = len(table), len(table[0])
    rewards, ends = np.zeros((states, actions)), np.zeros((states, actions))
    rows, columns, probabilities = [], [], []
    for state in range(states):
        for action in range(actions):
            for probability, next_state, reward, terminated in table[state][action]:
                rewards[state, action] += probability * reward
                if terminated:
                    ends[state, action] += probability
                else:
                    rows.append(state * actions + action)
                    columns.append(int(next_state))
                    probabilities.append(probability)
    transitions = sparse.coo_array((probabilities, (rows, columns)), shape=(states * actions, states))
    return MDP(transitions, rewards, ends=ends, discount=discount, horizon=horizon, initial=initial)
