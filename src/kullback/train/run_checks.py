"""Checks of the numbers that all recipes take, which import no library of machine learning."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from kullback.errors import InputError, MissingDependencyError
from kullback.runs.run_directory import RunDirectory

__all__ = [
    "DEMO_RUNS",
    "messages_for",
    "require_at_least",
    "require_budget",
    "require_new_runs",
    "require_packages",
    "require_seed",
]

DEMO_RUNS = ("reference", "unconstrained", "budget")
"""The names of the runs of `kullback train demo`."""

_MIN_BUDGET = 1e-10  # nats


@contextmanager
def messages_for(option: str, *, prefix: str = "") -> Iterator[None]:
    """A context manager in which the messages of InputError name another option than --model.

    Args:
        option: The option that replaces "--model".
        prefix: A text before the message.

    Example:
        >>> with messages_for("--teacher"):
        ...     raise InputError("--model here: no such directory")
        Traceback (most recent call last):
        ...
        kullback.errors.InputError: --teacher here: no such directory
    """
    try:
        yield
    except InputError as error:
        raise InputError(prefix + str(error).replace("--model", option)) from error


def require_at_least(option: str, value: int, minimum: int) -> None:
    """Check an integer.

    Args:
        option: The option that gave the value, for the message.
        value: The value.
        minimum: The smallest valid value.

    Raises:
        InputError: The value is smaller.
    """
    if value < minimum:
        raise InputError(f"{option}: expected {minimum} or more, got {value}")


def require_budget(option: str, nats: float) -> None:
    """Check a KL budget of a training run.

    Args:
        option: The option that gave the value, for the message.
        nats: The budget.

    Raises:
        InputError: The budget is not finite, or it is smaller than 1e-10 nats. The KL of models in float32 has rounding
            errors of about 1e-8 nats, so that a smaller budget can be neither measured nor held.
    """
    if not 0 < nats < math.inf:
        raise InputError(f"{option}: expected a KL budget that is a finite number of nats > 0, got {nats}")
    if nats < _MIN_BUDGET:
        raise InputError(
            f"{option}: expected a KL budget of {_MIN_BUDGET:g} nats or more, got {nats}: the rounding errors of a "
            "KL in float32 are larger"
        )


def require_seed(seed: int) -> None:
    """Check a seed.

    Args:
        seed: The seed, which NumPy and PyTorch both have to accept.

    Raises:
        InputError: The seed is not an integer from 0 to 2**32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed: expected an integer from 0 to 2**32 - 1, got {seed}")


def require_new_runs(output: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Check that the run directories of a command that trains several runs do not exist, or may be replaced.

    Args:
        output: The directory that contains the run directories.
        names: Their names.
        overwrite: Whether earlier runs may be replaced.

    Raises:
        InputError: A directory exists and may not be replaced, or contains anything else than a training run.
    """
    for directory in (output / name for name in names):
        if directory.exists() and not overwrite:
            raise InputError(
                f"--output {output}: {directory.name} already exists; choose another directory, or replace a run by "
                "--overwrite"
            )
        RunDirectory(directory).check_output(resume=False, overwrite=overwrite)


def require_packages(names: Sequence[str], *, extra: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        names: The names by which the packages are imported.
        extra: The extra of this package that installs them.

    Raises:
        MissingDependencyError: A package is not installed.
    """
    for name in names:
        try:
            found = find_spec(name) is not None
        except (ModuleNotFoundError, ValueError):  # an import hook refuses it, or it is a module without a spec
            found = False
        if not found:
            raise MissingDependencyError(f"{name} is missing: pip install 'kullback[{extra}]'")
