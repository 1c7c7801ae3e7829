"""Checks of the arguments of the functions that compare language models, which have one meaning for each name."""

import functools
import inspect
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from kullback.compare.sources import DTYPES
from kullback.errors import InputError
from kullback.numerics.arguments import is_index, is_number, shown

__all__ = ["checked_arguments"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_NAMES = {"bos": ("auto", "always", "never"), "form": ("text", "jsonl", "chat"), "dtype": DTYPES}
_PATHS = ("base", "path", "output", "against", "tokenizer")
_LISTS = ("models", "floor", "adapters", "attention", "kv_cache_dtype")
_COUNTS = (
    *("context", "stride", "batch_size", "generate", "prompts", "prompt_tokens", "continuations", "seed"),
    *("top", "sampled_positions"),
)
_FLAGS = ("one_at_a_time", "resume", "overwrite")
_OF_GENERATE = ("prompts", "prompt_tokens", "continuations", "seed")


def checked_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wrap a function that compares models, so that it refuses arguments of a wrong kind, and arguments without effect.

    Whole numbers of other libraries become integers. An argument may be None where None is its default.

    Args:
        function: The function. The kind of an argument follows from its name.

    Returns:
        The function, which raises InputError for such arguments.

    Example:
        >>> @checked_arguments
        ... def count(base, *, generate=None):
        ...     return generate
        >>> count("base", generate=2.5)
        Traceback (most recent call last):
        kullback.errors.InputError: generate: expected a whole number or None, got 2.5
    """
    signature = inspect.signature(function)
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if not (value is None and defaults[name] is None):
                bound.arguments[name] = _checked(name, value, or_none=" or None" if defaults[name] is None else "")
        bound.apply_defaults()
        _require_effect(function.__name__, bound.arguments, defaults)
        return function(*bound.args, **bound.kwargs)

    return call


def _checked(name: str, value: Any, *, or_none: str) -> Any:
    """The value of an argument; raises InputError for a wrong kind."""
    for one in value if isinstance(value, list | tuple) and name in _LISTS else [value]:
        if isinstance(one, str | Path) and "\0" in str(one):
            raise InputError(f"{name}: expected a text without null characters, got {shown(str(one))}")
    if name in _COUNTS and is_index(value):
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    if name in _FLAGS and (isinstance(value, bool | np.bool) or (is_index(value) and value in (0, 1))):
        return bool(value)
    if name == "text" and isinstance(value, list | tuple):
        if wrong := [number for number, one in enumerate(value) if not isinstance(one, str)]:
            got = shown(value[wrong[0]])
            raise InputError(f"text: expected a path or a list of texts, got {got} at index {wrong[0]}")
        return value
    if name in _LISTS and isinstance(value, list | tuple):
        if wrong := [number for number, one in enumerate(value) if not isinstance(one, str | Path)]:
            raise InputError(f"{name}: expected names or paths, got {shown(value[wrong[0]])} at index {wrong[0]}")
        return [str(one) for one in value]
    if name in _LISTS and isinstance(value, str | Path):
        return [str(value)]
    expected, fits = "", True
    if name in _NAMES:
        expected, fits = f"one of {', '.join(_NAMES[name])}", isinstance(value, str) and value in _NAMES[name]
    elif name == "by_module":
        expected, fits = "layer, part", isinstance(value, str)  # the names are checked with the other settings
    elif name == "text":
        expected, fits = "a path, the name of a data set, or a list of texts", isinstance(value, str | Path)
    elif name in _PATHS:
        expected, fits = "a path or a name", isinstance(value, str | Path)
    elif name in _LISTS:
        expected, fits = "a name or a list of names", False
    elif name in _COUNTS:
        expected, fits = "a whole number", False
    elif name in _FLAGS:
        expected, fits = "True or False", False
    elif name == "timeout":
        expected, fits = "a number of seconds", is_number(value)
    elif name == "device":
        expected, fits = "the name of a device such as cpu or cuda:0", isinstance(value, str)
    elif name == "progress":
        expected, fits = "a function", callable(value)
    if not fits:
        raise InputError(f"{name}: expected {expected}{or_none}, got {shown(value)}")
    return str(value) if name in ("base", "tokenizer") else value


def _require_effect(function: str, given: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise InputError at an argument that would be ignored."""
    if "generate" in given and given["generate"] is None:
        for name in _OF_GENERATE:
            if given[name] != defaults[name]:
                raise InputError(f"{name}: expected generate too, the length of the continuations, got none")
    if "output" in given and given["output"] is None:
        for name in ("resume", "overwrite"):
            if given[name]:
                raise InputError(f"{name}: expected output too, the run directory, got none")
    if given.get("resume") and given.get("overwrite"):
        raise InputError(f"{function}: expected resume or overwrite, got both; leave one out")
