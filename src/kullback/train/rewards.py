"""Reward functions as TRL defines them, found by name and watched: one finite number a completion, or a clear error."""

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kullback.errors import InputError, RewardError

__all__ = ["Reward", "checked", "find_reward"]

Reward = Callable[..., Any]


def find_reward(name: str) -> Reward:
    """The function that "module:function" names; the module may lie in the working directory.

    Raises:
        InputError: The name has another form, the module does not import, or it has no such function.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InputError(f"--reward {name}: expected module:function, for example my_rewards:exact_match")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's, and may raise anything
        raise InputError(f"--reward {name}: module {module_name} does not import: {_named(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"--reward {name}: module {module_name} has no function {attribute}")
    return function


def checked(reward: Reward) -> Reward:
    """`reward`, with whatever goes wrong in it turned into one `RewardError` that names it.

    None, TRL's word for "does not apply to this completion", passes.

    Example:
        >>> def broken(completions, **_):
        ...     return [float("nan") for _ in completions]
        >>> checked(broken)(completions=["a"])
        Traceback (most recent call last):
        ...
        kullback.errors.RewardError: the reward broken gave nan for completion 0, 'a'; expected a finite number or None
    """
    name = getattr(reward, "__name__", type(reward).__name__)

    if inspect.iscoroutinefunction(reward):

        @functools.wraps(reward)
        async def asynchronous(**arguments: Any) -> list[float | None]:
            try:
                values = await reward(**arguments)
            except Exception as error:
                raise RewardError(f"the reward {name} raised {_named(error)}") from error
            return _numbers(name, values, arguments["completions"])

        return asynchronous

    @functools.wraps(reward)
    def synchronous(**arguments: Any) -> list[float | None]:
        try:
            values = reward(**arguments)
        except Exception as error:
            raise RewardError(f"the reward {name} raised {_named(error)}") from error
        return _numbers(name, values, arguments["completions"])

    synchronous.__name__ = name
    return synchronous


def _numbers(name: str, values: Any, completions: Sequence[Any]) -> list[float | None]:
    try:
        values = list(values)
    except TypeError as error:
        raise RewardError(f"the reward {name} returned {type(values).__name__}; expected a list of numbers") from error
    if len(values) != len(completions):
        raise RewardError(
            f"the reward {name} returned {len(values)} values for {len(completions)} completions; expected one each"
        )
    numbers: list[float | None] = []
    for index, value in enumerate(values):
        number = None if value is None else _number(value)
        if number is not None and not math.isfinite(number):
            shown = repr(completions[index])[:60]
            raise RewardError(
                f"the reward {name} gave {value!r} for completion {index}, {shown}; expected a finite number or None"
            )
        numbers.append(number)
    return numbers


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _named(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
