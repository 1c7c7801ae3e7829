"""Policies of stable-baselines3 on disk: safetensors and JSON. Of its own zips the weights are read, and no pickle."""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kullback.errors import BudgetError, InputError, MissingDependencyError
from kullback.integrations.sb3_policies import require_same_shape
from kullback.runs.atomic_write import write_whole

try:
    import gymnasium
    import torch
    from safetensors.torch import load_file, save_file
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.preprocessing import is_image_space
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.ppo import PPO
except ModuleNotFoundError as error:
    if error.name not in ("safetensors", "gymnasium"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[rl]'") from error

from gymnasium import spaces

__all__ = [
    "ACTIVATIONS",
    "load_policy",
    "load_weights",
    "make_environments",
    "policy_kwargs",
    "policy_name",
    "save_policy",
    "save_weights",
]

ACTIVATIONS = ("Tanh", "ReLU", "ELU", "LeakyReLU", "SiLU", "GELU")

# What shapes a policy; the rest of policy_kwargs says how it is made and trained.
_SHAPING = ("net_arch", "activation_fn", "log_std_init", "use_sde")
_HARMLESS = (":type:", ":serialized:", "ortho_init", "optimizer_class", "optimizer_kwargs")


def make_environments(name: str, count: int) -> VecEnv:
    """So many environments of a kind that Gymnasium knows, side by side, as PPO takes them.

    Raises:
        InputError: There is none of that name, or it cannot be made; the message says why.
    """
    try:
        made = make_vec_env(name, count, env_kwargs={"render_mode": None})
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise InputError(f"--env {name}: {' '.join(str(error).split())}") from error
    return BaseAlgorithm._wrap_env(made)


def policy_name(space: spaces.Space[Any]) -> str:
    """The policy of stable-baselines3 for such observations.

    Example:
        >>> policy_name(spaces.Box(-1, 1, (3,)))
        'MlpPolicy'
    """
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def policy_kwargs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`policy_kwargs` of stable-baselines3 from settings in JSON types: net_arch, activation_fn, log_std_init.

    Example:
        >>> policy_kwargs({"net_arch": [32], "activation_fn": "ReLU", "use_sde": False})
        {'net_arch': [32], 'activation_fn': <class 'torch.nn.modules.activation.ReLU'>}
    """
    made = {key: settings[key] for key in ("net_arch", "activation_fn", "log_std_init") if key in settings}
    if "activation_fn" in made:
        if made["activation_fn"] not in ACTIVATIONS:
            raise InputError(f"expected activation_fn of {', '.join(ACTIVATIONS)}, got {made['activation_fn']!r}")
        made["activation_fn"] = getattr(torch.nn, made["activation_fn"])
    return made


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Tensors by name, as safetensors."""
    # Cloned: parts that several modules share may not be stored as shared.
    save_file({name: weight.detach().clone().contiguous() for name, weight in weights.items()}, path)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """What `save_weights` wrote.

    Raises:
        InputError: The file is not there, or damaged.
    """
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises a class of its own, which no stub names
        raise InputError(f"{path}: does not load: {' '.join(str(error).split())}") from error


def save_policy(policy: ActorCriticPolicy, directory: Path, *, environment: str, settings: Mapping[str, Any]) -> None:
    """Write model.safetensors and policy.json, which say all that `load_policy` needs."""
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(directory / "model.safetensors", policy.state_dict())
    shape = {key: settings[key] for key in _SHAPING if key in settings}
    write_whole(directory / "policy.json", json.dumps({"env": environment, "shape": shape}, indent=2) + "\n")


def load_policy(path: Path, env: VecEnv) -> tuple[ActorCriticPolicy, dict[str, Any]]:
    """A policy for these environments, and the settings of its shape.

    Args:
        path: A run directory of `kullback train ppo`, its model/, or a zip that stable-baselines3 has saved. Of a zip
            the weights are read by PyTorch with weights_only, and the shape from what its JSON says in plain text; the
            pickles inside, and observation statistics of a VecNormalize beside it, are left alone.
        env: The environments that the policy is for.

    Raises:
        InputError: It is none of these, damaged, of another environment's shape, or of modules of its own.
    """
    if not path.exists():
        raise InputError(f"--reference {path}: no such file or directory")
    weights, settings = _from_directory(path) if path.is_dir() else _from_zip(path)
    kwargs = policy_kwargs(settings)
    kind = PPO.policy_aliases[policy_name(env.observation_space)]
    with torch.random.fork_rng():
        policy = kind(
            env.observation_space,
            env.action_space,
            lambda _: 0.0,  # type: ignore[arg-type]
            use_sde=bool(settings.get("use_sde", False)),
            **kwargs,
        )
    try:
        require_same_shape(policy, weights)
    except BudgetError as error:
        raise InputError(f"--reference {path}: {error}") from error
    policy.load_state_dict(weights)
    return policy, settings  # type: ignore[return-value]


def _from_directory(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    directory = path / "model" if (path / "model").is_dir() else path
    try:
        told = json.loads((directory / "policy.json").read_text(encoding="utf-8"))
        shape = dict(told["shape"])
    except FileNotFoundError as error:
        raise InputError(f"--reference {path}: no policy here, expected model/policy.json of a finished run") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"--reference {path}: a policy.json that says nothing of the policy's shape") from error
    return load_weights(directory / "model.safetensors"), shape


def _from_zip(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            data, stored = json.loads(archive.read("data")), archive.read("policy.pth")
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"--reference {path}: no model that stable-baselines3 has saved") from error
    try:
        weights = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle's own error, and many others
        raise InputError(
            f"--reference {path}: its policy.pth is damaged or holds more than weights, which could run code"
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"--reference {path}: expected weights by name in its policy.pth")
    return dict(weights), {**_shape_in_words(path, data), "use_sde": data.get("use_sde") is True}


def _shape_in_words(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """policy_kwargs from the text that stable-baselines3 writes beside each pickle."""
    told = data.get("policy_kwargs") or {}
    unknown = [key for key in told if key not in (*_SHAPING, *_HARMLESS)]
    if unknown:
        raise InputError(
            f"--reference {path}: its policy_kwargs have {unknown[0]}, which cannot be read without unpickling; make "
            "the policy in Python and pass it to BudgetPPO as reference"
        )
    shape = {key: told[key] for key in ("net_arch", "log_std_init") if key in told}
    if "activation_fn" in told:
        shape["activation_fn"] = re.sub(r".*\.(\w+)'>$", r"\1", str(told["activation_fn"]))
    return shape
