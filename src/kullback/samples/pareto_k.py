"""The Pareto k diagnostic of importance weights: the shape of a generalised Pareto distribution fitted to the tail."""

from math import ceil, inf

import numpy as np

from kullback.errors import ShapeError, SupportError
from kullback.numerics.arguments import as_float64
from kullback.numerics.arrays import Array

__all__ = ["pareto_k"]


def pareto_k(log_weights: Array) -> float:
    """The tail shape k of importance weights p(x)/q(x), x drawn from q.

    A generalised Pareto distribution of shape k is fitted to the excesses of the largest min(n/5, 3 sqrt(n)) weights
    over the next smaller weight, by the posterior mean of Zhang and Stephens with shrinkage towards 0.5. Moments of
    order below 1/k are finite.

    Args:
        log_weights: The logarithms of the weights, up to an additive constant, shape (n,), n at least 25.

    Returns:
        k, without unit. Below 0.5 the variance of the weights is finite; above 0.7 importance sampling from q is
        unreliable; `inf` if all but a few weights are 0, or a
        weight is `inf`.

    Raises:
        ShapeError: There are fewer than 25 weights.
        SupportError: A log-weight is nan.

    References:
        Vehtari et al. (2024), Pareto smoothed importance sampling, appendix.
        Zhang and Stephens (2009), for the fit.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).exponential(size=20_000)
        >>> 0.3 < pareto_k(0.5 * x) < 0.7
        True
    """
    logs = np.sort(as_float64("log_weights", log_weights).ravel())
    if logs.size < 25:
        raise ShapeError(f"expected at least 25 log-weights, from which a tail can be fitted, got {logs.size}")
    if np.isnan(logs[-1]):  # nan is sorted to the end
        raise SupportError("expected log-weights, got nan: a log-density is nan at a draw")
    if logs[-1] == inf:
        return inf
    count = ceil(min(0.2 * logs.size, 3 * logs.size**0.5))
    if logs[-count - 1] == -inf:
        return inf
    if logs[-1] - logs[-count - 1] < 1e-9:
        return 0.0  # the largest weights are equal
    tail, cutoff = np.exp(logs[-count:] - logs[-1]), np.exp(logs[-count - 1] - logs[-1])
    excess = tail - cutoff
    excess = excess[excess > 0]
    if excess.size < 5:
        return 0.0  # the largest weights are equal
    n = excess.size
    trials = 30 + int(n**0.5)
    b = 1 / excess[-1] + (1 - np.sqrt(trials / (np.arange(1, trials + 1) - 0.5))) / (3 * excess[int(n / 4 + 0.5) - 1])
    k = np.log1p(-b[:, None] * excess).mean(axis=1)
    score = n * (np.log(-b / k) - k - 1)
    weights = np.exp(score - score.max())
    weights /= weights.sum()
    best = float(np.log1p(-float(b @ weights) * excess).mean())
    return (n * best + 5) / (n + 10)
