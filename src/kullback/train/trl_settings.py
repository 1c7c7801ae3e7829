"""Configurations of TRL trainers from `key=value` arguments; every field of the configuration can be set."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

import torch
from transformers import GenerationConfig, HfArgumentParser
from trl import GRPOConfig

from kullback.errors import InputError, KullbackError
from kullback.runs.key_value import parse_key_values
from kullback.train.trl_fields import field_types, options_instead, require_valid_values

__all__ = ["make_config", "parse_settings"]

Config = TypeVar("Config")

# Every step is logged. With the filter, transformers would log a loss of 0 in place of nan.
_FIXED: Mapping[str, Any] = {
    "logging_steps": 1,
    "logging_strategy": "steps",
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
}


class _Parser(HfArgumentParser):
    """A parser that raises InputError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        if match := re.fullmatch(
            r"argument --(\w+)(?:/--[\w-]+)?: invalid choice: '(.*)' \(choose from (.*)\)", message
        ):
            key, value, listed = match.groups()
            choices = listed.replace("'", "").split(", ")
            nearest = difflib.get_close_matches(value, choices, n=3, cutoff=0.0)
            message = (
                f"--set {key}={value}: expected one of {len(choices)} values; the nearest are {', '.join(nearest)}"
            )
        raise InputError(message if message.startswith("--set") else message.replace("argument --", "--set ", 1))


def parse_settings(words: Sequence[str], config: type[Any] = GRPOConfig) -> dict[str, Any]:
    """Parse the `key=value` arguments of `--set` into fields of a TRL configuration.

    Args:
        words: Arguments such as "learning_rate=1e-5".
        config: The configuration class: `GRPOConfig`, `RLOOConfig` or `SFTConfig`.

    Returns:
        The values by field name. Each value has the type of the field.

    Raises:
        InputError: A word has no "=", a key is not a field (the message gives the most similar field) or is set by
            another command-line option, or a value has the wrong type.

    Example:
        >>> parse_settings(["learning_rate=1e-5", "num_generations=4"])
        {'learning_rate': 1e-05, 'num_generations': 4}
    """
    known = {field.name for field in fields(config) if field.init}
    owner = config.__name__
    pairs = [(key, value) for _, key, value in parse_key_values(words, known, options_instead(owner), owner=owner)]
    # The argument parser takes neither objects and arrays of JSON nor None.
    arguments = [f"--{key}={value}" for key, value in pairs if not _is_json(key, value, config)]
    # parse_args, not parse_args_into_dataclasses: the constructor of the configuration would query the devices.
    parsed = vars(_Parser(config, allow_abbrev=False).parse_args(arguments))  # type: ignore[arg-type]
    return {
        key: _parse_json(key, value) if _is_json(key, value, config) else parsed[key]
        for key, value in dict(pairs).items()
    }


def make_config(config: type[Config], settings: Mapping[str, Any], **fixed: Any) -> Config:
    """Build the TRL configuration of a run.

    Args:
        config: The configuration class.
        settings: Fields that the user set. They replace Kullback's defaults.
        **fixed: Fields that the recipe sets. They replace the user's settings.

    Returns:
        An instance of `config`.

    Raises:
        InputError: The constructor of the configuration rejects the settings. The message quotes its error.
    """
    defaults: dict[str, Any] = {"save_steps": 50, "save_total_limit": 2, "report_to": "none"}
    if not torch.cuda.is_available():
        defaults |= {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}
    require_valid_values(settings)
    _require_generation_settings(settings, config)
    try:
        built = config(**{**defaults, **settings, **fixed, **_FIXED})
    except (ValueError, TypeError, ImportError, RuntimeError, KeyError, AttributeError, OSError) as error:
        if isinstance(error, KullbackError):
            raise
        raise InputError(f"{config.__name__} rejects these settings: {' '.join(str(error).split())}") from error
    arguments: Any = built
    if arguments.save_total_limit:  # a damaged newest checkpoint requires an earlier checkpoint
        arguments.save_total_limit = max(2, arguments.save_total_limit)
    return built


def _require_generation_settings(settings: Mapping[str, Any], config: type[Any]) -> None:
    """Check the entries of `generation_kwargs`, of which transformers ignores unknown names.

    A setting that is a field of the configuration too, such as the temperature, must be set there: the KL and the
    evaluations use the field.
    """
    added = settings.get("generation_kwargs")
    if added is None or settings.get("use_vllm"):
        return
    if not isinstance(added, Mapping):
        raise InputError(
            f'--set generation_kwargs: expected an object of JSON, such as {{"use_cache": true}}, got {added!r:.60}'
        )
    fields_instead = {"max_new_tokens": "max_completion_length", "max_length": "max_completion_length"}
    fields_instead |= {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    known = vars(GenerationConfig())
    for key, value in added.items():
        if instead := fields_instead.get(key):
            raise InputError(
                f"--set generation_kwargs: expected no {key}, which is the field {instead} of {config.__name__}; use "
                f"--set {instead}={json.dumps(value)}"
            )
        if key not in known or key.startswith("_"):
            nearest = difflib.get_close_matches(key, [name for name in known if name[0] != "_"], n=1, cutoff=0.0)
            raise InputError(
                f"--set generation_kwargs: GenerationConfig of transformers has no {key}; the nearest is {nearest[0]}"
            )


def _is_json(key: str, value: str, config: type[Any]) -> bool:
    """Whether a value is an object or an array of JSON, or None for a field that is a number or a boolean or None."""
    # The source, because the argument parser of transformers changes the types of the class.
    annotation = field_types(config.__name__).get(key, "")
    is_none = value.lower() in ("none", "null") and "None" in annotation and "str" not in annotation
    return (
        is_none
        or value.startswith("{")
        or (value.startswith("[") and re.search("list|tuple", annotation.lower()) is not None)
    )


def _parse_json(key: str, value: str) -> Any:
    if value.lower() in ("none", "null"):
        return None
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise InputError(f"--set {key}={value}: not JSON: {error.msg} at column {error.colno}") from error
