"""Saving and loading policies of stable-baselines3 without pickles.

Kullback saves a policy as safetensors and JSON. Only weights and JSON are read from zip files of stable-baselines3.
"""

import io
import json
import re
import sys
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kullback.errors import BudgetError, InputError, MissingDependencyError
from kullback.integrations.sb3_policies import require_plain_policy_of, require_same_shape
from kullback.runs.atomic_write import write_atomically

try:
    import gymnasium
    import safetensors  # noqa: F401  required by runs.checkpoint
    import torch
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

from kullback.runs.checkpoint import load_weights, save_weights

__all__ = [
    "ACTIVATIONS",
    "load_policy",
    "make_environments",
    "policy_kwargs",
    "policy_name",
    "save_policy",
]

ACTIVATIONS = ("Tanh", "ReLU", "ELU", "LeakyReLU", "SiLU", "GELU")

# The arguments that determine the weights' shapes and the distribution; the others affect initialisation and training.
_ARCHITECTURE = ("net_arch", "activation_fn", "log_std_init", "use_sde")
_IGNORED = (":type:", ":serialized:", "ortho_init", "optimizer_class", "optimizer_kwargs")


def make_environments(name: str, count: int) -> VecEnv:
    """Create a vectorised environment with the wrappers that PPO adds.

    Args:
        name: The name of the environment in Gymnasium, or MODULE:NAME, where MODULE registers the environment; it may
            be a file in the working directory.
        count: The number of copies.

    Raises:
        InputError: Gymnasium has no environment of this name, or its constructor fails. The message quotes the error.
    """
    if ":" in name and (working_directory := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, working_directory)
    try:
        environments = make_vec_env(partial(gymnasium.make, name), count)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise InputError(f"--env {name or repr(name)}: {' '.join(str(error).split())}") from error
    except (Exception, SystemExit) as error:  # the module and the constructor are user code
        raise InputError(
            f"--env {name}: the environment raised {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    return BaseAlgorithm._wrap_env(environments)


def policy_name(space: spaces.Space[Any]) -> str:
    """The name of the policy class of stable-baselines3 for an observation space.

    Example:
        >>> policy_name(spaces.Box(-1, 1, (3,)))
        'MlpPolicy'
    """
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def policy_kwargs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The argument `policy_kwargs` of stable-baselines3 from settings of JSON types.

    Args:
        settings: Settings, of which net_arch, activation_fn, log_std_init and ortho_init are used.

    Raises:
        InputError: activation_fn is not one of `ACTIVATIONS`.

    Example:
        >>> policy_kwargs({"net_arch": [32], "activation_fn": "ReLU", "use_sde": False})
        {'net_arch': [32], 'activation_fn': <class 'torch.nn.modules.activation.ReLU'>}
    """
    names = ("net_arch", "activation_fn", "log_std_init", "ortho_init")
    kwargs = {key: settings[key] for key in names if key in settings}
    if "activation_fn" in kwargs:
        if kwargs["activation_fn"] not in ACTIVATIONS:
            raise InputError(f"expected activation_fn of {', '.join(ACTIVATIONS)}, got {kwargs['activation_fn']!r}")
        kwargs["activation_fn"] = getattr(torch.nn, kwargs["activation_fn"])
    return kwargs


def save_policy(policy: ActorCriticPolicy, directory: Path, *, environment: str, settings: Mapping[str, Any]) -> None:
    """Write a policy to model.safetensors and policy.json, which `load_policy` reads.

    Args:
        policy: The policy.
        directory: The directory to write to, which is created if necessary.
        environment: The name of the environment.
        settings: The settings of the policy's architecture.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(directory / "model.safetensors", policy.state_dict())
    architecture = {key: settings[key] for key in _ARCHITECTURE if key in settings}
    write_atomically(
        directory / "policy.json", json.dumps({"env": environment, "shape": architecture}, indent=2) + "\n"
    )


def load_policy(path: Path, env: VecEnv) -> tuple[ActorCriticPolicy, dict[str, Any]]:
    """Load a saved policy.

    Args:
        path: A run directory of `kullback train ppo`, its subdirectory model/, or a zip file of stable-baselines3. The
            weights of a zip file are read by PyTorch with weights_only, and the architecture is read from plain text
            in its JSON. Pickles in the zip file and observation statistics of a VecNormalize are ignored.
        env: The environments that the policy acts in.

    Returns:
        The policy and the settings of its architecture.

    Raises:
        InputError: The path is none of these or is damaged, or the policy is for other spaces or has custom modules.
    """
    if not path.exists():
        raise InputError(f"--reference {path}: no such file or directory")
    weights, settings = _from_directory(path) if path.is_dir() else _from_zip(path)
    kwargs = policy_kwargs(settings)
    policy_class = PPO.policy_aliases[policy_name(env.observation_space)]
    use_sde = bool(settings.get("use_sde", False))
    if use_sde and not isinstance(env.action_space, spaces.Box):
        raise InputError(
            f"--reference {path}: expected an environment with continuous actions, since the policy explores depending "
            f"on the state (use_sde), got the action space {env.action_space}"
        )
    with torch.random.fork_rng():
        policy = policy_class(
            env.observation_space,
            env.action_space,
            lambda _: 0.0,  # type: ignore[arg-type]
            use_sde=use_sde,
            **kwargs,
        )
    try:
        require_same_shape(policy, weights)
    except BudgetError as error:
        raise InputError(f"--reference {path}: {error}") from error
    policy.load_state_dict(weights)
    return policy, settings  # type: ignore[return-value]


def _from_directory(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the architecture of a policy that `save_policy` wrote."""
    directory = path / "model" if (path / "model").is_dir() else path
    try:
        architecture = dict(json.loads((directory / "policy.json").read_text(encoding="utf-8"))["shape"])
    except FileNotFoundError as error:
        raise InputError(f"--reference {path}: expected model/policy.json of a finished run, found none") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f'--reference {path}: expected an object "shape" in its policy.json') from error
    return load_weights(directory / "model.safetensors"), architecture


def _from_zip(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the architecture of a policy that stable-baselines3 saved."""
    try:
        with zipfile.ZipFile(path) as archive:
            data, stored = json.loads(archive.read("data")), archive.read("policy.pth")
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"--reference {path}: expected a model saved by stable-baselines3") from error
    policy_class = data.get("policy_class") if isinstance(data, dict) else None
    module = policy_class.get("__module__") if isinstance(policy_class, dict) else None
    try:
        require_plain_policy_of(str(module), "reference")
    except BudgetError as error:
        raise InputError(f"--reference {path}: {error}") from error
    try:
        weights = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError and many other exceptions
        raise InputError(
            f"--reference {path}: its policy.pth is damaged or contains more than weights, which could run code"
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"--reference {path}: expected named tensors in its policy.pth")
    return dict(weights), {**_architecture_in_json(path, data), "use_sde": data.get("use_sde") is True}


def _architecture_in_json(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture from the plain text that stable-baselines3 writes next to each pickle."""
    kwargs = data.get("policy_kwargs") or {}
    unsupported = [key for key in kwargs if key not in (*_ARCHITECTURE, *_IGNORED)]
    if unsupported:
        raise InputError(
            f"--reference {path}: its policy_kwargs have {unsupported[0]}, which cannot be read without unpickling; "
            "load the policy in Python and pass it to BudgetPPO as reference"
        )
    architecture = {key: kwargs[key] for key in ("net_arch", "log_std_init") if key in kwargs}
    if "activation_fn" in kwargs:
        architecture["activation_fn"] = re.sub(r".*\.(\w+)'>$", r"\1", str(kwargs["activation_fn"]))
    return architecture
