"""PPO's settings from `key=value` words, each of its own type."""

import json
import math
from collections.abc import Sequence
from typing import Any

from kullback.errors import InputError
from kullback.runs.key_value import read_words

__all__ = ["PPO_SETTINGS", "parse_ppo_settings"]

PPO_SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "n_envs": 1,
    "n_steps": 2048,
    "batch_size": 64,
    "n_epochs": 10,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "normalize_advantage": True,
    "use_sde": False,
    "sde_sample_freq": -1,
    "device": "cpu",
    "net_arch": [64, 64],
    "activation_fn": "Tanh",
    "log_std_init": 0.0,
    "save_every": 10,
}
"""The settings and their defaults: PPO's own, its policy's, and after how many updates a checkpoint is written."""

_OURS = {
    "clip_range": "see --clip",
    "target_kl": "see --budget",
    "seed": "see --seed",
    "total_timesteps": "see --steps",
}


def parse_ppo_settings(words: Sequence[str]) -> dict[str, Any]:
    """The values that `--set key=value` words give PPO's settings, in their types.

    Raises:
        InputError: A word has no "=", a key is not a setting (the message names the nearest) or has an option of its
            own, or a value is not of its type.

    Example:
        >>> parse_ppo_settings(["learning_rate=1e-3", "net_arch=[32, 32]", "use_sde=true"])
        {'learning_rate': 0.001, 'net_arch': [32, 32], 'use_sde': True}
    """
    return {
        key: _read(word, value, PPO_SETTINGS[key])
        for word, key, value in read_words(words, PPO_SETTINGS, _OURS, owner="PPO")
    }


def _read(word: str, text: str, like: Any) -> Any:
    if isinstance(like, str):
        return text
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    fits = type(value) is type(like) and not (isinstance(value, float) and not math.isfinite(value))
    if isinstance(value, list):
        fits = fits and all(type(one) is int and one > 0 for one in value)
    if not fits:
        raise InputError(f"--set {word}: expected a value like {json.dumps(like)}, got {text}")
    return value
