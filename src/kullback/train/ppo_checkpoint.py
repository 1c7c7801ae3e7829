"""Checkpoints of PPO runs: the policy, the optimizer state and the controllers of the KL."""

from pathlib import Path

import numpy as np
from stable_baselines3.common.utils import set_random_seed

from kullback.budget.controllers import controller_from_dict, controller_to_dict
from kullback.integrations.sb3 import BudgetPPO
from kullback.runs.checkpoint import load_checkpoint, save_checkpoint

__all__ = ["derived_seed", "reset_and_reseed", "restore_ppo_checkpoint", "save_ppo_checkpoint"]

_WEIGHTS_FILE = "policy.safetensors"


def save_ppo_checkpoint(model: BudgetPPO, checkpoints: Path) -> None:
    """Write a checkpoint of the algorithm's current state below the directory `checkpoints`."""
    controllers = {name: getattr(model, name) for name in ("budget", "old_budget")}
    state = {
        "updates": model._n_updates,
        **{
            name: None if controller is None else controller_to_dict(controller)
            for name, controller in controllers.items()
        },
    }
    save_checkpoint(
        checkpoints, model.num_timesteps, model.policy, model.policy.optimizer, state, weights_file=_WEIGHTS_FILE
    )


def restore_ppo_checkpoint(model: BudgetPPO, checkpoint: Path) -> int:
    """Put the algorithm into the state of a checkpoint, and return the number of environment steps taken by then."""
    state = load_checkpoint(checkpoint, model.policy, model.policy.optimizer, weights_file=_WEIGHTS_FILE)
    model.num_timesteps, model._n_updates = state["step"], state["updates"]
    for name in ("budget", "old_budget"):
        if state[name] is not None:
            setattr(model, name, controller_from_dict(state[name]))
    return state["step"]


def reset_and_reseed(model: BudgetPPO, seed: int) -> None:
    """Start new episodes, and seed all random number generators from `seed` and the number of steps so far.

    A run that continues from a checkpoint therefore draws the same random numbers as an uninterrupted run.
    """
    derived = derived_seed(seed, model.num_timesteps)
    set_random_seed(derived)
    env = model.get_env()
    assert env is not None
    env.seed(derived)
    model._last_obs = env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones((env.num_envs,), dtype=bool)
    if model.use_sde:
        model.policy.reset_noise(env.num_envs)


def derived_seed(seed: int, step: int) -> int:
    """A seed below 2**31 that depends on the seed of the run and the step."""
    return int(np.random.SeedSequence([seed, step + 1]).generate_state(1)[0] >> 1)
