"""What a run of PPO goes on from: weights, moments and controllers, as safetensors and JSON."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.utils import set_random_seed

from kullback.budget.controllers import controller_from_dict, controller_to_dict
from kullback.integrations.sb3 import BudgetPPO
from kullback.integrations.sb3_saved import load_weights, save_weights
from kullback.runs.atomic_write import write_whole

__all__ = ["derived_seed", "draw_anew", "restore_checkpoint", "save_checkpoint"]

Row = dict[str, Any]
_KEPT = 2


def save_checkpoint(model: BudgetPPO, checkpoints: Path) -> None:
    """A checkpoint; trainer_state.json comes last and says that it is whole."""
    path = checkpoints / f"checkpoint-{model.num_timesteps}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    save_weights(path / "policy.safetensors", model.policy.state_dict())
    moments = model.policy.optimizer.state_dict()["state"]
    save_weights(
        path / "optimizer.safetensors", {f"{i}.{name}": v for i, one in moments.items() for name, v in one.items()}
    )
    controllers = {name: getattr(model, name) for name in ("budget", "old_budget")}
    state = {
        "step": model.num_timesteps,
        "updates": model._n_updates,
        **{name: None if one is None else controller_to_dict(one) for name, one in controllers.items()},
    }
    write_whole(path / "trainer_state.json", json.dumps(state, indent=2) + "\n")
    for old in sorted(checkpoints.glob("checkpoint-*"), key=_step)[:-_KEPT]:
        shutil.rmtree(old)


def restore_checkpoint(model: BudgetPPO, checkpoint: Path) -> int:
    """The algorithm as it was when the checkpoint was written; at which step."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    model.policy.load_state_dict(load_weights(checkpoint / "policy.safetensors"))
    moments: dict[int, Row] = {}
    for key, value in load_weights(checkpoint / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    groups = model.policy.optimizer.state_dict()["param_groups"]
    model.policy.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    model.num_timesteps, model._n_updates = state["step"], state["updates"]
    for name in ("budget", "old_budget"):
        if state[name] is not None:
            setattr(model, name, controller_from_dict(state[name]))
    return state["step"]


def draw_anew(model: BudgetPPO, seed: int) -> None:
    """Begin new episodes, with random numbers that only the seed and the step decide."""
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
    return int(np.random.SeedSequence([seed, step + 1]).generate_state(1)[0] >> 1)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
