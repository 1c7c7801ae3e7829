"""TRL's GRPOConfig, or another of its configs, from `key=value` words, every key of it."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from transformers import HfArgumentParser
from trl import GRPOConfig

from kullback.errors import InputError

__all__ = ["parse_settings"]

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
    arguments: list[str] = []
    keys: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"--set {word}: expected key=value, for example learning_rate=1e-5")
        if key in _OURS:
            raise InputError(f"--set {word}: {key} is not free here, {_OURS[key]}")
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise InputError(f"--set {word}: {config.__name__} has no {key}; the nearest is {nearest[0]}")
        arguments.append(f"--{key}={value}")
        keys.append(key)
    # The parsed words alone, not a GRPOConfig: making one asks the machine for its devices.
    parsed = vars(_Parser(config, allow_abbrev=False).parse_args(arguments))  # type: ignore[arg-type]
    return {key: _object(key, parsed[key]) for key in keys}


def _object(key: str, value: Any) -> Any:
    """Fields that hold a dictionary are written as JSON, and the parser leaves them as text."""
    if not (isinstance(value, str) and value.startswith("{")):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise InputError(f"--set {key}={value}: not JSON: {error.msg} at column {error.colno}") from error
