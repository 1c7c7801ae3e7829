"""The exceptions that Kullback raises.

Each message states what was expected, which value was found and where, and what to do about it.
"""

__all__ = [
    "ArrayTypeError",
    "BudgetError",
    "DistributionTypeError",
    "InputError",
    "KullbackError",
    "LabelError",
    "MissingDependencyError",
    "NoClosedFormError",
    "NotNormalizedError",
    "ParameterError",
    "ParameterNameError",
    "PenaltyError",
    "RewardError",
    "ShapeError",
    "SupportError",
]


class KullbackError(Exception):
    """The base class of every exception that Kullback raises deliberately."""


class ShapeError(KullbackError, ValueError):
    """Raised when array shapes do not broadcast, or when an axis is missing or has the wrong length."""


class ArrayTypeError(KullbackError, TypeError):
    """Raised when an argument is not an array of real numbers, such as strings, complex numbers or a sparse matrix."""


class DistributionTypeError(KullbackError, TypeError):
    """Raised when an argument is not a distribution, such as an array, a class or a number."""


class LabelError(KullbackError, ValueError):
    """Raised when the labels of two arrays differ, so that their entries cannot be matched."""


class NotNormalizedError(KullbackError, ValueError):
    """Raised when probabilities are negative or nan, or do not sum to 1 within the tolerance of their dtype."""


class SupportError(KullbackError, ValueError):
    """Raised when an argument lies outside the domain of the function, such as a logit of nan or an order below 0."""


class ParameterError(KullbackError, ValueError):
    """Raised when a parameter of a distribution violates its constraint, such as a scale that is not positive."""


class ParameterNameError(ParameterError, TypeError):
    """Raised when a distribution receives a parameter that it does not have, by position, or lacks a parameter."""


class NoClosedFormError(KullbackError, NotImplementedError):
    """Raised when KL(p || q) has no closed form for the given pair; the message names the function to call instead."""


class BudgetError(KullbackError, ValueError):
    """Raised when a KL budget is invalid, or when a measurement passed to a budget controller is invalid."""


class PenaltyError(KullbackError, ValueError):
    """Raised when a KL penalty or a policy loss is configured inconsistently.

    It is raised when the expected gradient of the penalty differs from the gradient of the KL divergence that it names,
    when an option is unknown or out of range, and when a required array is missing.
    """


class RewardError(KullbackError, ValueError):
    """Raised when a reward function fails, or does not return one finite number for each completion."""


class InputError(KullbackError, ValueError):
    """Raised when a file, a directory or an option given by the user cannot be used."""


class MissingDependencyError(KullbackError, ImportError):
    """Raised when an optional dependency is not installed; the message names the extra to install."""
