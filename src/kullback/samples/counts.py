"""Estimate of KL(p || q) from counts of events, with a confidence interval."""

from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from kullback.discrete.kl import kl_probs
from kullback.errors import ShapeError, SupportError
from kullback.numerics.arguments import as_float64
from kullback.numerics.arrays import ArrayLike
from kullback.numerics.labels import is_labelled, plain_arrays
from kullback.result import Estimate

__all__ = ["kl_counts"]

_SMALL_COUNT = 5  # the expected count below which the chi-square approximation is considered inaccurate (Cochran, 1954)
_LARGEST_SKEWNESS = 0.2  # of the estimate: 25 times the squared skewness of one observation, per observation


def kl_counts(p_counts: ArrayLike, q_counts: ArrayLike | None = None, *, q: ArrayLike | None = None) -> Estimate:
    """KL(p || q) estimated from the counts of events in two independent samples, or in one sample if q is known.

    With relative frequencies f and g from N and M observations, and S events that were observed, the estimate is
    max(0, KL(f || g) - (S - 1) / 2N - (sum f/g - 1) / 2M). The subtracted terms are the bias of KL(f || g) to first
    order. The variance is Var_f(log f/g) / N + Var_g(f/g) / M + (S - 1) (1/N + 1/M)^2 / 2; the last term is the
    variance at p = q, where the others vanish. The interval has a nominal coverage of 95%. It contains the normal
    interval of the estimate and, because KL is approximately a square near p = q, the normal interval of its square
    root, whose variance is (1/N + 1/M) / 2. Its upper end is at least the end for a noncentral chi-squared distribution
    of KL(f || g) divided by this variance, with S - 1 degrees of freedom, and the end for counts of q whose
    expectations are the lower limits of Poisson rates; its lower end is at least 0. If q is known, 1/M is 0.

    Args:
        p_counts: The number of observations of each event under p: whole numbers, shape (events,). Two arrays with
            labels are matched by label.
        q_counts: The number of observations of each event under q, with the same shape.
        q: The known probabilities of q, instead of `q_counts`.

    Returns:
        An `Estimate` in nats. Its value is `inf` if an event that was observed under p was not observed under q, or
        has probability 0: the status is then "unreliable" for counts of q, because q may be positive there, and the
        lower end of the interval is an estimate after such events were merged with others, which reduces KL, or 0 if
        more than a fifth of the merged events have counts below 5. The status is "unreliable", too, if more than a
        fifth of the events have counts below 5, if an event that is rare under p and much rarer under q could add more
        than the interval, and if the skewness of the estimate is above 0.2.

    Raises:
        ShapeError: The counts are not vectors of equal length.
        SupportError: A count is not a whole number >= 0, all counts are 0, or both or none of `q_counts` and `q` are
            given.
        NotNormalizedError: `q` is not a vector of probabilities.
        LabelError: The arrays have different labels; reindex an event that one of them lacks with a count of 0.

    References:
        Miller (1955), Note on the bias of information estimates.
        Cochran (1954), Some methods for strengthening the common chi-square tests, for the smallest counts.

    Example:
        >>> estimate = kl_counts([30, 50, 20], [45, 40, 15])
        >>> round(estimate.value, 6), estimate.status
        (0.026219, 'estimated')
        >>> [round(end, 3) for end in estimate.interval]
        [0.0, 0.157]
    """
    if (q_counts is None) == (q is None):
        raise SupportError("expected q_counts or q, and not both")
    if is_labelled(p_counts) and is_labelled(given := q if q_counts is None else q_counts):
        p_counts, aligned = plain_arrays(p_counts, given)
        q_counts, q = (None, aligned) if q_counts is None else (aligned, None)
    x = _require_counts("p_counts", p_counts)
    y = as_float64("q", q) if q_counts is None else _require_counts("q_counts", q_counts)
    if x.shape != y.shape:
        raise ShapeError(f"expected counts of the same events, got shapes {x.shape} and {y.shape}")
    if q_counts is None:
        kl_probs(y, y)  # refuses numbers that are not probabilities
    size_p, size_q = float(x.sum()), inf if q_counts is None else float(y.sum())
    count = int(size_p if q_counts is None else size_p + size_q)
    method = "counts, bias-corrected" if q_counts is not None else "counts of p, bias-corrected"
    missing = np.flatnonzero((x > 0) & (y == 0))
    if len(missing) and q_counts is None:
        return Estimate(inf, count=count, method=method, error=0.0, interval=(inf, inf), status="exact")
    if len(missing):
        warning = (
            f"the event {missing[0]} was observed {x[missing[0]]:.0f} times under p and not under q"
            + (f", and {len(missing) - 1} others" if len(missing) > 1 else "")
            + "; the estimate is inf, but q may be positive there"
        )
        merged = _merged(x, y)
        # With few counts for each event, the estimate of the merged events is far above their KL.
        low = 0.0 if _small_counts(*merged, size_q) else _estimate(*merged, size_p, size_q).low
        return Estimate(inf, count=count, method=method, interval=(low, inf), status="unreliable", warnings=(warning,))
    estimate = _estimate(x, y, size_p, size_q)
    warnings = _warnings(x, y, size_p, size_q, estimate)
    return Estimate(
        estimate.value,
        std_error=estimate.std_error,
        count=count,
        method=method,
        interval=(estimate.low, estimate.high),
        status="unreliable" if warnings else "estimated",
        warnings=warnings,
    )


def _require_counts(name: str, counts: ArrayLike) -> np.ndarray:
    values = as_float64(name, counts)
    if values.ndim != 1 or values.size == 0:
        raise ShapeError(f"expected {name} to be a vector, got shape {values.shape}")
    bad = np.flatnonzero(~((values >= 0) & (values < 2.0**53) & (values % 1 == 0)))
    if len(bad):
        raise SupportError(f"expected whole numbers from 0 to 2**53, but {name}[{bad[0]}] is {float(values[bad[0]])!r}")
    if not values.any():
        raise SupportError(f"expected at least one observation, but all {name} are 0")
    return values


def _merged(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The counts after the events with the smallest counts of q were merged until each has 5 or more."""
    order = np.argsort(y, kind="stable")
    merged = max(int((y == 0).sum()), int(np.searchsorted(np.cumsum(y[order]), _SMALL_COUNT)) + 1)
    first, rest = order[:merged], order[merged:]
    return np.append(x[rest], x[first].sum()), np.append(y[rest], y[first].sum())


class _CountEstimate(NamedTuple):
    """The estimate, its standard error, the ends of its interval, and its skewness."""

    value: float
    std_error: float
    low: float
    high: float
    skewness: float


def _small_counts(x: np.ndarray, y: np.ndarray, size_q: float) -> str:
    """A warning if more than a fifth of the observed events have small counts; empty otherwise."""
    counts = np.minimum(x, y if size_q < inf else inf)[(x > 0) | (y > 0)]
    small = int((counts < _SMALL_COUNT).sum())
    if 5 * small <= len(counts):
        return ""
    return f"{small} of {len(counts)} events have counts below {_SMALL_COUNT}; collect more observations"


def _warnings(x: np.ndarray, y: np.ndarray, size_p: float, size_q: float, estimate: _CountEstimate) -> tuple[str, ...]:
    """Reasons why the interval may not contain the KL in 95% of the cases; empty if none is known."""
    if warning := _small_counts(x, y, size_q):
        return (warning,)
    # An event that is rare under p, and much rarer under q, can have most of the KL.
    f, g = x / x.sum(), y / y.sum()
    largest = np.minimum(special.gammaincinv(x + 1, 0.975) / size_p, 1.0)  # of the share of each event
    rare = (x < _SMALL_COUNT) & (g > 0) & (g * size_p < 1) & (largest > g)
    with np.errstate(divide="ignore"):
        change = np.where(rare, special.xlogy(largest, largest) - special.xlogy(f, f) - (largest - f) * np.log(g), 0.0)
    if change.max() > estimate.high - estimate.value:
        event = int(change.argmax())
        return (
            f"the event {event} was observed {x[event]:.0f} times under p, and its probability under q is "
            f"{g[event]:.2g}: more observations could add {change[event]:.2g} nats; collect more observations",
        )
    if abs(estimate.skewness) > _LARGEST_SKEWNESS:
        return (
            f"the distribution of the estimate has a skewness of {estimate.skewness:.2g}; collect more observations",
        )
    return ()


def _upper_noncentrality(statistic: float, degrees: int) -> float:
    """The noncentrality for which a noncentral chi-squared variable is below the statistic with probability 0.025.

    0 if the probability is smaller for every noncentrality.
    """
    return float(special.chndtrinc(statistic, degrees, 0.025)) if special.chdtr(degrees, statistic) > 0.025 else 0.0


def _estimate(x: np.ndarray, y: np.ndarray, size_p: float, size_q: float) -> _CountEstimate:
    """The estimate, its standard error and the ends of its interval, for y > 0 where x > 0."""
    observed = (x > 0) | (y > 0)
    f, g = x[observed] / x.sum(), y[observed] / y.sum()
    positive = f > 0
    log_ratio = np.log(f[positive]) - np.log(g[positive])
    ratio = f / g
    events = len(f) - 1
    bias = events / (2 * size_p) + (float(ratio[positive].sum()) - 1) / (2 * size_q)
    deviation = log_ratio - (f[positive] * log_ratio).sum()
    spread_p = float((f[positive] * deviation**2).sum())
    spread_q = float((g * (ratio - 1) ** 2).sum())
    variance = spread_p / size_p + spread_q / size_q + events / 2 * (1 / size_p + 1 / size_q) ** 2
    plain, root_variance = float(kl_probs(f, g)), (1 / size_p + 1 / size_q) / 2
    corrected, std_error = plain - float(bias), sqrt(variance)
    value = max(0.0, corrected)
    root_error = 1.96 * sqrt(root_variance)
    low = min(corrected - 1.96 * std_error, max(0.0, sqrt(value) - root_error) ** 2)
    chi_squared_high = root_variance * _upper_noncentrality(plain / root_variance, events)
    # The logarithm of a small count is skewed: the count under q may be much larger than its expectation.
    smaller = f > g
    lowest = special.gammaincinv(y[observed][smaller], 0.025) / size_q  # of Poisson rates with larger counts
    changes = (f - g)[smaller] * np.log(g[smaller] / lowest) if size_q < inf else np.zeros(1)
    others = float((g * (ratio - 1) ** 2)[~smaller].sum()) / size_q
    skewed = 1.96**2 * (variance - spread_q / size_q + others) + float(np.square(changes).sum())
    high = max(
        corrected + sqrt(skewed), corrected + 1.96 * std_error, (sqrt(value) + root_error) ** 2, chi_squared_high
    )
    third = float((f[positive] * deviation**3).sum()) / size_p**2
    third -= float((g * (ratio - 1) ** 3).sum()) / size_q**2
    return _CountEstimate(value, std_error, max(0.0, low), high, third / variance**1.5 if variance > 0 else 0.0)
