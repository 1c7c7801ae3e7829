"""The fields of TRL's configurations and the values that they can have, without an import of TRL.

The import of TRL takes several seconds. The names of the fields are read from its source instead, so that a misspelt
or invalid setting is refused at once.
"""

import ast
import functools
import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kullback.errors import InputError
from kullback.runs.key_value import parse_key_values

__all__ = ["check_settings", "field_types", "options_instead", "require_valid_values"]

_EVERY_STEP = "every step is logged"
_EVALUATION = "see --evaluate-every and --evaluate"
_NO_EFFECT = "it has no effect on a run of this command"
_OTHER_OPTIONS = {
    "disable_tqdm": "kullback prints its own progress line",
    "do_eval": _NO_EFFECT,
    "do_predict": _NO_EFFECT,
    "do_train": _NO_EFFECT,
    "eval_delay": _EVALUATION,
    "eval_on_start": _EVALUATION,
    "eval_steps": _EVALUATION,
    "eval_strategy": _EVALUATION,
    "ignore_data_skip": "a resumed run continues with the data that follow",
    "load_best_model_at_end": "the model of the last step is saved",
    "local_rank": "the launcher of the processes sets it",
    "logging_first_step": _EVERY_STEP,
    "logging_nan_inf_filter": "training stops at the first loss that is not finite",
    "logging_steps": _EVERY_STEP,
    "logging_strategy": _EVERY_STEP,
    "max_steps": "see --steps",
    "model_init_kwargs": "see --model: the model is loaded in float32",
    "num_train_epochs": "see --steps",
    "output_dir": "see --output",
    "resume_from_checkpoint": "see --resume",
    "save_only_model": "--resume requires the state of the optimizer",
    "seed": "see --seed",
    "trust_remote_code": "models are loaded without code of their own",
}
_OF_POLICIES = {
    "beta": "see --budget: the controller sets beta",
    "ref_model_mixup_alpha": "the reference of the KL does not change",
    "ref_model_sync_steps": "the reference of the KL does not change",
    "sync_ref_model": "the reference of the KL does not change",
    "torch_compile": "the KL is computed from the output layer of the model, which is called without its decoder",
    "torch_compile_backend": "see torch_compile, which this command does not support",
    "torch_compile_mode": "see torch_compile, which this command does not support",
}
_OTHER_OPTIONS_OF = {
    "GRPOConfig": _OF_POLICIES,
    "RLOOConfig": _OF_POLICIES,
    "DistillationConfig": {
        "beta": "see --divergence and --weight",
        "remove_unused_columns": "the recipe selects the columns",
        "teacher_model_init_kwargs": "see --teacher: the model is loaded in float32",
        "teacher_model_name_or_path": "see --teacher",
        "teacher_model_revision": "see --teacher",
        "torch_compile": "the loss is computed from the output layers, which are called without their decoders",
        "torch_compile_backend": "see torch_compile, which this command does not support",
        "torch_compile_mode": "see torch_compile, which this command does not support",
    },
    "SFTConfig": {
        "assistant_only_loss": "the loss counts the tokens of the completion",
        "completion_only_loss": "the loss counts the tokens of the completion",
        "dataset_kwargs": "the examples are prepared by the recipe",
        "dataset_text_field": "each row has a prompt and a completion, or a text",
        "packing": "examples are not packed, so that the KL of each example is measured",
    },
}

# The interval of the valid values of each field; a round bracket excludes the end of the interval.
_RANGES: Mapping[str, str] = {
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_epsilon": "(0, inf)",
    "dataloader_num_workers": "[0, inf)",
    "delta": "(0, inf)",
    "epsilon": "[0, inf)",
    "epsilon_high": "[0, inf)",
    "generation_batch_size": "[1, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "label_smoothing_factor": "[0, 1]",
    "learning_rate": "[0, inf)",
    "max_completion_length": "[1, inf)",
    "max_grad_norm": "[0, inf)",
    "max_length": "[1, inf)",
    "min_p": "[0, 1]",
    "num_generations": "[2, inf)",
    "num_iterations": "[1, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "per_device_train_batch_size": "[1, inf)",
    "repetition_penalty": "(0, inf)",
    "save_steps": "(0, inf)",
    "save_total_limit": "[1, inf)",
    "steps_per_generation": "[1, inf)",
    "temperature": "(0, inf)",
    "top_entropy_quantile": "[0, 1]",
    "top_k": "[0, inf)",
    "top_p": "(0, 1]",
    "warmup_steps": "[0, inf)",
    "weight_decay": "[0, inf)",
}
_BOOLEANS = ("true", "false", "yes", "no", "t", "f", "y", "n", "1", "0")
_TRACKERS = {"comet_ml", "mlflow", "neptune", "swanlab", "tensorboard", "trackio", "wandb"}
_PACKAGES = {"use_vllm": "vllm", "use_liger_kernel": "liger_kernel"}


def options_instead(config: str) -> dict[str, str]:
    """The fields of a configuration that `--set` does not take, each with the option to use or the reason.

    Args:
        config: The name of the class, "GRPOConfig", "RLOOConfig" or "SFTConfig".
    """
    return {**_OTHER_OPTIONS, **_OTHER_OPTIONS_OF[config]}


@functools.cache
def field_types(config: str) -> dict[str, str]:
    """The fields of a configuration and the text of their annotations, from the source of TRL and transformers.

    Args:
        config: The name of the class, "GRPOConfig", "RLOOConfig" or "SFTConfig".

    Returns:
        The annotations by field, in the order of definition; empty if the source is not available.
    """
    classes = {
        node.name: node
        for path in _sources(config)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    types: dict[str, str] = {}
    names = [config]
    while names:
        node = classes.get(names.pop())
        if node is None:
            continue
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                types.setdefault(statement.target.id, ast.unparse(statement.annotation))
        names += [base.id for base in node.bases if isinstance(base, ast.Name)]
    return {name: annotation for name, annotation in types.items() if not name.startswith("_")}


def _sources(config: str) -> list[Path]:
    """The files that define a configuration and its base classes."""
    file = f"{config.removesuffix('Config').lower()}_config.py"
    found = []
    for package, names in (
        ("trl", (f"trainer/{file}", "trainer/base_config.py")),
        ("transformers", ("training_args.py",)),
    ):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found += [path for name in names if (path := Path(folder) / name).is_file()]
    return found


def check_settings(words: Sequence[str], config: str) -> None:
    """Check the `key=value` arguments of `--set` without an import of TRL, which `parse_settings` completes.

    Args:
        words: Arguments such as "learning_rate=1e-5".
        config: The name of the class, "GRPOConfig", "RLOOConfig" or "SFTConfig".

    Raises:
        InputError: A word has no "=", a key is not a field (the message gives the most similar field) or is set by
            another option, a value has the wrong type or is out of range, or requires a package that is not installed.

    Example:
        >>> check_settings(["learning_rate=1e-5"], "GRPOConfig")
        >>> check_settings(["temperature=0"], "GRPOConfig")
        Traceback (most recent call last):
        ...
        kullback.errors.InputError: --set temperature=0.0: expected a number in (0, inf), got 0.0
    """
    types = field_types(config)
    if not types:  # without the source, `parse_settings` checks everything
        return
    for word, key, value in parse_key_values(words, types, options_instead(config), owner=config):
        require_valid_values({key: _parse_scalar(word, value, types[key])})


def _parse_scalar(word: str, value: str, annotation: str) -> Any:
    """The value of a field that is a single number or a boolean; the text for all other fields."""
    kinds = {kind.strip() for kind in annotation.replace("Optional[", "").replace("]", "").split("|")}
    if "None" in kinds and "str" not in kinds and value.lower() in ("none", "null"):
        return None
    for kind, convert, name in (("int", int, "an integer"), ("float", float, "a number")):
        if kinds - {"None"} == {kind}:
            try:
                return convert(value)
            except ValueError:
                raise InputError(f"--set {word}: expected {name}, got {value!r}") from None
    if kinds - {"None"} == {"bool"}:
        if value.lower() not in _BOOLEANS:
            raise InputError(f"--set {word}: expected true or false, got {value!r}")
        return value.lower() in ("true", "yes", "t", "y", "1")
    return value


def require_valid_values(settings: Mapping[str, Any]) -> None:
    """Check values of fields against their ranges, and the packages that some values require.

    Args:
        settings: Values by field.

    Raises:
        InputError: A number is nan or out of range, or a package is not installed.
    """
    for key, value in settings.items():
        if isinstance(value, float) and math.isnan(value):
            raise InputError(f"--set {key}={value}: expected a number, got nan")
        if key in _RANGES and isinstance(value, int | float) and not _is_inside(value, _RANGES[key]):
            raise InputError(f"--set {key}={value}: expected a number in {_RANGES[key]}, got {value}")
        if key == "reward_clip_range" and value is not None:
            _require_interval(key, value)
        for package in _required_packages(key, value):
            if find_spec(package) is None:
                raise InputError(f"--set {key}={value}: expected the package {package}, which is not installed")


def _require_interval(key: str, value: Any) -> None:
    """Raise InputError unless a value, or its text in JSON, is two numbers of which the second is larger."""
    try:
        low, high = json.loads(value) if isinstance(value, str) else value
        is_interval = float(low) < float(high)
    except (ValueError, TypeError):
        is_interval = False
    if not is_interval:
        raise InputError(f"--set {key}={value}: expected an interval [low, high] with low < high, got {value}")


def _is_inside(value: float, interval: str) -> bool:
    """Whether a number is in an interval such as "[0, 1)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _required_packages(key: str, value: Any) -> list[str]:
    """The packages that a value of a field requires."""
    if key == "report_to" and value is not None:
        names = value if isinstance(value, list) else [value]
        return [name for name in names if name in _TRACKERS]
    return [_PACKAGES[key]] if key in _PACKAGES and value is True else []
