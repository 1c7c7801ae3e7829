"""Reward functions in TRL's format: import by name, and validation of the values that they return."""

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kullback.errors import InputError, RewardError

__all__ = ["Reward", "find_reward", "with_output_check"]

Reward = Callable[..., Any]


def find_reward(name: str) -> Reward:
    """Import a reward function by its name "module:function".

    Args:
        name: The module and the function, separated by a colon. The module may be in the working directory, which is
            added to `sys.path`.

    Returns:
        The function.

    Raises:
        InputError: The name has another form, the import of the module fails, or the module has no such function.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InputError(f"--reward {name}: expected module:function, for example my_rewards:exact_match")
    if (working_directory := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, working_directory)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is user code, which may raise any exception
        raise InputError(f"--reward {name}: module {module_name} does not import: {_describe(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"--reward {name}: module {module_name} has no function {attribute}")
    return function


def with_output_check(reward: Reward) -> Reward:
    """Wrap a reward function such that every failure becomes a `RewardError` that names the function.

    Args:
        reward: A function or a coroutine function in TRL's format.

    Returns:
        A function of the same kind and name. It returns a list with one finite number or None for each completion.
        None is TRL's value for a reward that does not apply to a completion.

    Raises:
        RewardError: The wrapper raises it if the reward raises an exception, or returns anything but one finite number
            or None for each completion.

    Example:
        >>> def broken(completions, **_):
        ...     return [float("nan") for _ in completions]
        >>> with_output_check(broken)(completions=["a"])
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
                raise RewardError(f"the reward {name} raised {_describe(error)}") from error
            return _validate_values(name, values, arguments["completions"])

        return asynchronous

    @functools.wraps(reward)
    def synchronous(**arguments: Any) -> list[float | None]:
        try:
            values = reward(**arguments)
        except Exception as error:
            raise RewardError(f"the reward {name} raised {_describe(error)}") from error
        return _validate_values(name, values, arguments["completions"])

    synchronous.__name__ = name
    return synchronous


def _validate_values(name: str, values: Any, completions: Sequence[Any]) -> list[float | None]:
    """The values as floats; a `RewardError` unless there is one finite number or None for each completion."""
    try:
        values = list(values)
    except TypeError as error:
        raise RewardError(f"the reward {name} returned {type(values).__name__}; expected a list of numbers") from error
    if len(values) != len(completions):
        raise RewardError(
            f"the reward {name} returned {len(values)} values for {len(completions)} completions; expected one value "
            "for each completion"
        )
    numbers: list[float | None] = []
    for index, value in enumerate(values):
        number = None if value is None else _to_float(value)
        if number is not None and not math.isfinite(number):
            shown = repr(completions[index])[:60]
            raise RewardError(
                f"the reward {name} gave {value!r} for completion {index}, {shown}; expected a finite number or None"
            )
        numbers.append(number)
    return numbers


def _to_float(value: Any) -> float:
    """The value as a float; nan if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _describe(error: Exception) -> str:
    """The type and the message of an exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
