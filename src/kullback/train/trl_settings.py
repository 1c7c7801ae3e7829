"""TRL's GRPOConfig, or another of its configs, from `key=value` words, every key of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

import torch
from transformers import HfArgumentParser
from trl import GRPOConfig

from kullback.errors import InputError, KullbackError
from kullback.runs.key_value import read_words

__all__ = ["make_config", "parse_settings"]

Config = TypeVar("Config")

_OURS = {
    "beta": "see --budget: it sets the price of a nat itself",
    "disable_tqdm": "the progress line is kullback's own",
    "logging_steps": "every step is logged",
    "max_steps": "see --steps",
    "output_dir": "see --output",
    "reward_weights": "see --reward and --watch: rewards count 1, watched ones 0",
    "seed": "see --seed",
}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"--set: {' '.join(message.split())}")


def parse_settings(words: Sequence[str], config: type[Any] = GRPOConfig) -> dict[str, Any]:
    """The values that `--set key=value` words give the fields of TRL's config, in the fields' types.

    Raises:
        InputError: A word has no "=", a key is not the config's (the message names the nearest) or has an option of its
            own, or a value is not of the field's type.

    Example:
        >>> parse_settings(["learning_rate=1e-5", "num_generations=4"])
        {'learning_rate': 1e-05, 'num_generations': 4}
    """
    known = {field.name for field in fields(config) if field.init}
    pairs = [(key, value) for _, key, value in read_words(words, known, _OURS, owner=config.__name__)]
    arguments = [f"--{key}={value}" for key, value in pairs]
    # The parsed words alone, not a GRPOConfig: making one asks the machine for its devices.
    parsed = vars(_Parser(config, allow_abbrev=False).parse_args(arguments))  # type: ignore[arg-type]
    return {key: _object(key, parsed[key]) for key, _ in pairs}


def make_config(kind: type[Config], settings: Mapping[str, Any], **fixed: Any) -> Config:
    """One of TRL's configs for a run: our defaults, what the user set, and what is not free here.

    Raises:
        InputError: TRL refuses the settings; the message says which and why.
    """
    defaults: dict[str, Any] = {"save_steps": 50, "save_total_limit": 2, "report_to": "none"}
    if not torch.cuda.is_available():
        defaults |= {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}
    try:
        return kind(**{**defaults, **settings, **fixed, "logging_steps": 1, "disable_tqdm": True})
    except (ValueError, TypeError) as error:
        if isinstance(error, KullbackError):
            raise
        raise InputError(f"{kind.__name__} refuses these settings: {' '.join(str(error).split())}") from error


def _object(key: str, value: Any) -> Any:
    """Fields that hold a dictionary are written as JSON, and the parser leaves them as text."""
    if not (isinstance(value, str) and value.startswith("{")):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise InputError(f"--set {key}={value}: not JSON: {error.msg} at column {error.colno}") from error
