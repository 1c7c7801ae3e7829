"""Settings of PPO: their defaults, and a parser of `key=value` arguments."""

import json
import math
from collections.abc import Sequence
from typing import Any

from kullback.errors import InputError
from kullback.runs.key_value import parse_key_values

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
"""The settings and their default values.

They are the arguments of stable-baselines3's PPO and of its policy, the number of environments `n_envs`, and
`save_every`, the number of updates between two checkpoints.
"""

_OTHER_OPTIONS = {
    "clip_range": "see --clip",
    "target_kl": "see --budget",
    "seed": "see --seed",
    "total_timesteps": "see --steps",
}


def parse_ppo_settings(words: Sequence[str]) -> dict[str, Any]:
    """Parse the `key=value` arguments of `--set` into settings of PPO.

    Args:
        words: Arguments such as "learning_rate=1e-3". The valid keys are the keys of `PPO_SETTINGS`.

    Returns:
        The values by key. Each value has the type of the default value.

    Raises:
        InputError: A word has no "=", a key is not a setting (the message gives the most similar setting) or is set by
            another command-line option, or a value has the wrong type.

    Example:
        >>> parse_ppo_settings(["learning_rate=1e-3", "net_arch=[32, 32]", "use_sde=true"])
        {'learning_rate': 0.001, 'net_arch': [32, 32], 'use_sde': True}
    """
    return {
        key: _parse_value(word, value, PPO_SETTINGS[key])
        for word, key, value in parse_key_values(words, PPO_SETTINGS, _OTHER_OPTIONS, owner="PPO")
    }


def _parse_value(word: str, text: str, default: Any) -> Any:
    """The value that `text` stands for, in the type of the default value; `word` is quoted in the error message."""
    if isinstance(default, str):
        return text
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    valid = type(value) is type(default) and not (isinstance(value, float) and not math.isfinite(value))
    if isinstance(value, list):
        valid = valid and all(type(width) is int and width > 0 for width in value)
    if not valid:
        raise InputError(f"--set {word}: expected a value like {json.dumps(default)}, got {text}")
    return value
