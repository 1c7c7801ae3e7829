"""Settings of PPO: their defaults, and a parser of `key=value` arguments."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kullback.errors import InputError
from kullback.runs.key_value import parse_key_values

__all__ = ["POLICY_SETTINGS", "PPO_SETTINGS", "parse_ppo_settings", "require_valid_ppo_options"]

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
    "ortho_init": True,
    "save_every": 10,
}
"""The settings and their default values.

They are the arguments of stable-baselines3's PPO and of its policy, the number of environments `n_envs`, and
`save_every`, the number of updates between two checkpoints.
"""

POLICY_SETTINGS = ("net_arch", "activation_fn", "log_std_init", "ortho_init")
"""The settings that are arguments of the policy of stable-baselines3, its `policy_kwargs`."""

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
        >>> parse_ppo_settings(['policy_kwargs={"net_arch": {"pi": [32], "vf": [64]}}'])
        {'net_arch': {'pi': [32], 'vf': [64]}}
        >>> parse_ppo_settings(["policy_kwargs.ortho_init=false"])
        {'ortho_init': False}
    """
    words = [word for given in words for word in _without_policy_kwargs(given)]
    return {
        key: _parse_value(word, value, PPO_SETTINGS[key])
        for word, key, value in parse_key_values(words, PPO_SETTINGS, _OTHER_OPTIONS, owner="PPO")
    }


def _without_policy_kwargs(word: str) -> list[str]:
    """The settings of the policy that `policy_kwargs={...}` or `policy_kwargs.key=value` contains, as `key=value`."""
    key, _, value = word.partition("=")
    if key == "policy_kwargs":
        try:
            given = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"--set {word}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(given, dict):
            raise InputError(f'--set {word}: expected an object such as {{"net_arch": [64, 64]}}')
        inner = [
            f"{name}={element if isinstance(element, str) else json.dumps(element)}" for name, element in given.items()
        ]
    elif key.startswith("policy_kwargs."):
        inner = [word.removeprefix("policy_kwargs.")]
    else:
        return [word]
    parse_key_values(inner, POLICY_SETTINGS, {}, owner="policy_kwargs")
    return inner


def _parse_value(word: str, text: str, default: Any) -> Any:
    """The value that `text` stands for, in the type of the default value; `word` is quoted in the error message."""
    if isinstance(default, str):
        return text
    try:
        value: Any = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        value = {"True": True, "False": False}.get(text, text)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000:
        value = float(value)
    if isinstance(default, list):
        valid = _is_architecture(value)
    else:
        valid = type(value) is type(default) and not (isinstance(value, float) and not math.isfinite(value))
    if not valid:
        raise InputError(f"--set {word}: expected a value like {json.dumps(default)}, got {text}")
    return value


def _is_architecture(value: Any) -> bool:
    """Whether a value is a list of widths, or an object with a list for "pi" and a list for "vf"."""
    if isinstance(value, dict):
        return (
            value.keys() == {"pi", "vf"}
            and all(isinstance(part, list) for part in value.values())
            and all(map(_is_architecture, value.values()))
        )
    return isinstance(value, list) and all(type(width) is int and 0 < width < 2**31 for width in value)


def require_valid_ppo_options(
    settings: Mapping[str, Any], *, clip: float | None, constrain: str, states: str, has_reference: bool
) -> None:
    """Check the values of settings and of the options that concern them.

    Args:
        settings: Settings, with keys from `PPO_SETTINGS`.
        clip: The clipping range, or None.
        constrain: The KL that is constrained, see `PPOPlan`.
        states: The states at which it is constrained.
        has_reference: Whether the run starts from a saved policy.

    Raises:
        InputError: A value is out of range, or two of them are inconsistent.
    """
    values = {**PPO_SETTINGS, **settings}
    for key in ("n_envs", "n_steps", "batch_size", "n_epochs", "save_every"):
        if values[key] < 1:
            raise InputError(f"--set {key}: expected 1 or more, got {values[key]}")
    if clip is not None and not 0 < clip < math.inf:
        raise InputError(f"--clip: expected a finite number > 0, or none, got {clip}")
    for key in ("gamma", "gae_lambda"):
        if not 0 <= values[key] <= 1:
            raise InputError(f"--set {key}: expected a number from 0 to 1, got {values[key]}")
    for key in ("learning_rate", "vf_coef"):
        if not values[key] >= 0:
            raise InputError(f"--set {key}: expected a number >= 0, got {values[key]}")
    if not values["max_grad_norm"] > 0:
        raise InputError(f"--set max_grad_norm: expected a number > 0, got {values['max_grad_norm']}")
    if values["sde_sample_freq"] < 1 and values["sde_sample_freq"] != -1:
        raise InputError(f"--set sde_sample_freq: expected 1 or more, or -1, got {values['sde_sample_freq']}")
    rollout = values["n_steps"] * values["n_envs"]
    if rollout % values["batch_size"]:
        raise InputError(
            f"--set batch_size={values['batch_size']}: expected a divisor of n_steps * n_envs = {rollout}, so that all "
            "minibatches have the same size"
        )
    if rollout < 2:
        raise InputError(f"--set n_steps={values['n_steps']}: expected n_steps * n_envs >= 2, got {rollout}")
    if states == "reference" and constrain != "reference":
        raise InputError("--states reference: expected --constrain reference as well, whose KL these states are for")
    if constrain == "reference" and not has_reference:
        raise InputError(
            "--constrain reference: expected --reference with a run directory or a zip file of stable-baselines3"
        )
