"""Gymnasium's environments of known transitions, as Markov decision processes."""

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
    """The exact process of an environment that lists its transitions: FrozenLake, CliffWalking, Taxi and their kin.

    Such an environment has `env.unwrapped.P[state][action]`, a list of (probability, next state, reward, terminated). A
    transition that terminates goes to `ends`, and its reward counts.

    Args:
        env: The environment, as `gymnasium.make` returns it.
        discount: What a reward one step later counts, in [0, 1].
        horizon: How many steps an episode has at most; where there is no discount and none is given, the environment's
            own limit.

    Returns:
        `MDP` of sparse transitions, which starts as the environment does.

    Raises:
        InputError: The environment does not list its transitions.
        SupportError: There is neither a discount nor a limit of steps.

    Example:
        >>> mdp = mdp_from_gymnasium(gymnasium.make("FrozenLake-v1"))
        >>> mdp.rewards.shape, mdp.horizon
        ((16, 4), 100)
    """
    table, first = (getattr(env.unwrapped, name, None) for name in ("P", "initial_state_distrib"))
    if table is None or first is None:
        raise InputError(
            f"expected an environment that lists its transitions (env.unwrapped.P), got {env}; FrozenLake, "
            "CliffWalking and Taxi do; build an MDP from yours by hand"
        )
    if horizon is None and discount == 1 and env.spec is not None:
        horizon = env.spec.max_episode_steps
    states, actions = len(table), len(table[0])
    rewards, ends = np.zeros((states, actions)), np.zeros((states, actions))
    rows, columns, chances = [], [], []
    for state in range(states):
        for action in range(actions):
            for chance, following, reward, terminated in table[state][action]:
                rewards[state, action] += chance * reward
                if terminated:
                    ends[state, action] += chance
                else:
                    rows.append(state * actions + action)
                    columns.append(int(following))
                    chances.append(chance)
    transitions = sparse.coo_array((chances, (rows, columns)), shape=(states * actions, states))
    return MDP(transitions, rewards, ends=ends, discount=discount, horizon=horizon, initial=first)
