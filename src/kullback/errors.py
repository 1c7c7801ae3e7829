"""The exceptions that Kullback raises: each says what was expected, what came, and what to do."""

__all__ = [
    "BudgetError",
    "InputError",
    "KullbackError",
    "MissingDependencyError",
    "NoClosedFormError",
    "NotNormalizedError",
    "ParameterError",
    "RewardError",
    "ShapeError",
    "SupportError",
]


class KullbackError(Exception):
    """Any error that Kullback raises on purpose."""


class ShapeError(KullbackError, ValueError):
    """The shapes of the arguments do not fit together."""


class NotNormalizedError(KullbackError, ValueError):
    """Numbers given as probabilities are negative, nan, or do not sum to one."""


class SupportError(KullbackError, ValueError):
    """A value lies outside the set that the function is defined on."""


class ParameterError(KullbackError, ValueError):
    """A distribution's parameter lies outside its set."""


class NoClosedFormError(KullbackError, NotImplementedError):
    """The KL of these two distributions has no closed form here; the message names what to call instead."""


class BudgetError(KullbackError, ValueError):
    """A KL budget, or what a controller was told, makes no sense."""


class RewardError(KullbackError, ValueError):
    """A reward function raised, or returned something other than one finite number for each completion."""


class InputError(KullbackError, ValueError):
    """A file, a directory or an option that the user named cannot be used."""


class MissingDependencyError(KullbackError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
