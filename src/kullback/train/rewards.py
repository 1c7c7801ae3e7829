"""Reward functions in TRL's format: import by name, and validation of the values that they return."""

import functools
import importlib
import inspect
import math
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from types import ModuleType
from typing import Any

from kullback.errors import InputError, RewardError

__all__ = ["Reward", "find_reward", "reward_name", "with_output_check"]

Reward = Callable[..., Any]

_MAX = 3.4028234663852886e38  # the largest number in float32, in which TRL stores rewards


def find_reward(name: str, option: str = "--reward") -> Reward:
    """Import a reward function by its name "module:function".

    Args:
        name: The module and the function, separated by a colon. The module may be in the working directory, which is
            added to `sys.path`. Instead of a function, the name may be a lambda function, a `functools.partial`, an
            instance with the method `__call__`, or an attribute of one, such as "module:instance.method".
        option: The command-line option that the name came from, for error messages.

    Returns:
        The function, which has the name of the attribute if it has no name itself.

    Raises:
        InputError: The name has another form, the import of the module fails, or the module has no such function.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InputError(f"{option} {name}: expected module:function, for example my_rewards:exact_match")
    if module_name.endswith(".py") or "/" in module_name:
        raise InputError(
            f"{option} {name}: expected the name of a module, such as my_rewards:exact_match for the file my_rewards.py"
        )
    try:
        module = _import_from_working_directory(module_name)
    except (Exception, SystemExit) as error:  # the module is user code, which may raise any exception
        raise InputError(f"{option} {name}: module {module_name} does not import: {_describe(error)}") from error
    function: Any = module
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if function is None or not callable(function):
        file = getattr(module, "__file__", None)
        place = "a module of Python itself" if file is None else Path(os.path.relpath(file))
        raise InputError(f"{option} {name}: module {module_name} ({place}) has no function {attribute}")
    if isinstance(function, type):
        raise InputError(f"{option} {name}: expected a function or an instance, got the class {attribute}")
    if not _has_name(function):
        function = _with_name(function, attribute.rpartition(".")[2])
    return function


def _import_from_working_directory(name: str) -> ModuleType:
    """Import a module, first from the working directory.

    Afterwards the directory is the last place that is searched, so that its files do not replace modules that libraries
    import later.
    """
    directory = str(Path.cwd())
    if directory in sys.path or "" in sys.path:
        return importlib.import_module(name)
    sys.path.insert(0, directory)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(directory)
        sys.path.append(directory)


def reward_name(reward: Reward) -> str:
    """The name of a reward in metrics and messages.

    Args:
        reward: A function, a `functools.partial` or an instance with the method `__call__`.

    Returns:
        The name of the function, or of the class of an instance.

    Example:
        >>> reward_name(functools.partial(max, default=0))
        'max'
    """
    if isinstance(reward, functools.partial):
        return reward_name(reward.func)
    return reward.__name__ if isinstance(getattr(reward, "__name__", None), str) else type(reward).__name__


def _has_name(function: Any) -> bool:
    return isinstance(getattr(function, "__name__", None), str) and function.__name__ != "<lambda>"


def _is_asynchronous(function: Any) -> bool:
    """Whether a call returns a coroutine; the method of an instance is considered too."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _with_name(function: Any, name: str) -> Reward:
    """A function of the given name that calls a lambda function, a partial function or an instance."""
    if _is_asynchronous(function):

        async def named_coroutine(**arguments: Any) -> Any:
            return await function(**arguments)

        named_coroutine.__name__ = name
        return named_coroutine

    def named(**arguments: Any) -> Any:
        return function(**arguments)

    named.__name__ = name
    return named


def with_output_check(reward: Reward) -> Reward:
    """Wrap a reward function such that every failure becomes a `RewardError` that names the function.

    Args:
        reward: A function or a coroutine function in TRL's format, a `functools.partial` or an instance of one.

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
    name = reward_name(reward)

    if _is_asynchronous(reward):

        async def checked_coroutine(**arguments: Any) -> list[float | None]:
            try:
                values = await reward(**arguments)
            except (Exception, SystemExit) as error:
                raise RewardError(f"the reward {name} raised {_describe(error)}") from error
            return _validate_values(name, values, arguments["completions"])

        checked_coroutine.__name__ = name
        return checked_coroutine

    def checked(**arguments: Any) -> list[float | None]:
        try:
            values = reward(**arguments)
        except (Exception, SystemExit) as error:
            raise RewardError(f"the reward {name} raised {_describe(error)}") from error
        return _validate_values(name, values, arguments["completions"])

    checked.__name__ = name
    return checked


def _validate_values(name: str, values: Any, completions: Sequence[Any]) -> list[float | None]:
    """The values as floats; a `RewardError` unless there is one finite number or None for each completion."""
    try:
        given = None if isinstance(values, str | bytes | Mapping | Set) else list(values)
    except TypeError:
        given = None
    if given is None:
        raise RewardError(f"the reward {name} returned {type(values).__name__}; expected a list of numbers")
    if len(given) != len(completions):
        raise RewardError(
            f"the reward {name} returned {len(given)} values for {len(completions)} completions; expected one "
            "value for each completion"
        )
    numbers: list[float | None] = []
    for index, value in enumerate(given):
        number = None if value is None else _to_float(value)
        if number is not None and not abs(number) <= _MAX:
            shown = " ".join(repr(completions[index])[:60].split())
            gave = " ".join(repr(value)[:60].split())
            expected = f"a number from {-_MAX:.2g} to {_MAX:.2g}" if math.isfinite(number) else "a finite number"
            raise RewardError(
                f"the reward {name} gave {gave} for completion {index}, {shown}; expected {expected} or None"
            )
        numbers.append(number)
    return numbers


def _to_float(value: Any) -> float:
    """The value as a float; nan if it is not a number. Text is not a number, even if it can be read as one."""
    if isinstance(value, str | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def _describe(error: BaseException) -> str:
    """The type and the message of an exception on one line, with the file and the line of the code that raised it."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    message = message if len(message) <= 300 else f"{message[:297]}..."
    if isinstance(error, SyntaxError):
        return message  # its message has the place
    if place := _place(error):
        return f"{message} ({place})"
    return f"{message}; a reward takes completions and **kwargs" if isinstance(error, TypeError) else message


def _place(error: BaseException) -> str | None:
    """The file and the line of the innermost code that belongs to no library, in a call by this module."""
    libraries = (str(Path(os.__file__).parent), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith(libraries)]
    if not own:
        return None
    path = Path(own[-1].filename)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}, line {own[-1].lineno}"
