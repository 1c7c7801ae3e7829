"""Bounds on the sampling error of logged KL values, for the decision whether a deviation is evidence of a fault.

The KL of a single prompt is a skewed random variable: its median is often a tenth of its mean, and a few prompts
determine the mean. The functions in this file therefore use standard errors that were logged, or the variation of the
logarithms between rows. All probabilities are per comparison.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from scipy.special import stdtrit

__all__ = [
    "MAX_FALSE_POSITIVE_RATE",
    "exceeds",
    "log_noise",
    "mean_log_ratio_differs",
    "std_error_of_mean",
    "student_quantile",
    "upper_bound_of_mean",
]

MAX_FALSE_POSITIVE_RATE = 1e-6
"""The probability of a false positive of a comparison, if its assumptions hold."""

_MAX_RELATIVE_ERROR = 0.25
_STD_ERRORS = 5.0  # a normal variable exceeds its mean by more with probability 3e-7


def student_quantile(degrees: int, probability: float = MAX_FALSE_POSITIVE_RATE) -> float:
    """The value that a variable with Student's distribution exceeds with the given probability; inf without degrees.

    Example:
        >>> round(student_quantile(10, 1e-3), 2)
        4.14
    """
    return float(-stdtrit(degrees, probability)) if degrees > 0 else math.inf


def log_noise(values: Sequence[float]) -> float:
    """The standard deviation of log x around a slow trend, from successive differences of positive values.

    sigma^2 = mean (log x_{s+1} - log x_s)^2 / 2

    Args:
        values: Positive values, in the order of the steps.

    Returns:
        The standard deviation; inf for fewer than 2 values.

    Example:
        >>> round(log_noise([1.0, 2.0, 1.0, 2.0]), 3)
        0.49
    """
    if len(values) < 2:
        return math.inf
    logs = [math.log(value) for value in values]
    return math.sqrt(fmean((after - before) ** 2 for before, after in pairwise(logs)) / 2)


def std_error_of_mean(values: Sequence[float], std_errors: Sequence[float | None], *, shared: bool = False) -> float:
    """The standard error of the mean of logged values.

    Args:
        values: One value for each row, in the order of the steps.
        std_errors: Their standard errors; None or nan where none was logged.
        shared: Whether all rows were measured on the same prompts, so that their errors are equal rather than
            independent.

    Returns:
        The standard error: from the logged standard errors if all are finite, otherwise from the differences of
        successive rows. It is inf for a single row without a standard error.

    Example:
        >>> std_error_of_mean([0.3, 0.5], [0.1, 0.1], shared=True)
        0.1
        >>> round(std_error_of_mean([1.0, 3.0, 1.0, 3.0], [None] * 4), 3)
        0.707
    """
    logged = [error for error in std_errors if error is not None and math.isfinite(error)]
    if values and len(logged) == len(values):
        return fmean(logged) if shared else math.hypot(*logged) / len(logged)
    if len(values) < 2:
        return math.inf
    variance = fmean((after - before) ** 2 for before, after in pairwise(values)) / 2
    return math.sqrt(variance / len(values))


def exceeds(
    mean: float, bound: float, std_error: float, count: int, *, probability: float = MAX_FALSE_POSITIVE_RATE
) -> bool:
    """Whether a mean of `count` values is above a bound by more than sampling errors explain, by Student's test.

    The test is conservative for means of skewed positive values, because large values also enlarge the standard error.
    """
    return mean > bound and mean - bound >= student_quantile(count - 1, probability) * std_error


def mean_log_ratio_differs(ratios: Sequence[float], relative_error: float) -> bool:
    """Whether ratios of positive values, whose expectation should be 1, have another expectation.

    The mean of log r is at most 0 if E[r] = 1, by Jensen's inequality, for any distribution. A mean above 0 is
    therefore evidence of E[r] > 1. A mean below 0 is evidence of E[r] < 1 if it is below -sigma^2/2, which is the mean
    of log r for a lognormal variable of expectation 1, by more than its error.

    Args:
        ratios: The ratios, positive.
        relative_error: The relative standard error that all ratios share.

    Returns:
        Whether the deviation exceeds both the variation between the ratios and the shared error. It is false for fewer
        than 3 ratios, and where the shared error is above 0.25: a few prompts then determine the denominators.
    """
    count = len(ratios)
    if count < 3 or not relative_error <= _MAX_RELATIVE_ERROR:
        return False
    logs = [math.log(ratio) for ratio in ratios]
    mean = fmean(logs)
    variance = sum((value - mean) ** 2 for value in logs) / (count - 1)
    quantile = student_quantile(count - 1, 1e-4)
    if mean > 0:
        return mean > quantile * math.sqrt(variance / count) and mean > _STD_ERRORS * relative_error
    deviation = -mean - variance / 2
    error = math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    return deviation > quantile * error and deviation > _STD_ERRORS * relative_error


def upper_bound_of_mean(values: Sequence[float]) -> float:
    """An upper bound on the expectation of skewed positive values, by Cox's method for a lognormal variable.

    log E[x] <= m + s^2/2 + z sqrt(s^2/n + s^4/(2(n-1))), with m and s^2 the mean and variance of log x, and z = 4

    Args:
        values: The values. Values of 0 or less do not enter the variance.

    Returns:
        The bound; the largest value if fewer than 2 values are positive.

    References:
        Zhou and Gao (1997), "Confidence intervals for the log-normal mean".

    Example:
        >>> upper_bound_of_mean([0.01, 0.01, 0.01])
        0.01
        >>> upper_bound_of_mean([0.001, 0.01, 0.1]) > 0.1
        True
    """
    logs = [math.log(value) for value in values if value > 0]
    count = len(logs)
    if count < 2:
        return max(values, default=0.0)
    mean = fmean(logs)
    variance = sum((value - mean) ** 2 for value in logs) / (count - 1)
    if variance < 1e-20:
        return max(values)
    exponent = mean + variance / 2 + 4 * math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    return math.exp(min(exponent, 700.0))
