"""How heavy the tail of importance weights is: the shape k of the generalised Pareto law of the largest."""

from math import ceil, inf

import numpy as np

from kullback.numerics.arrays import Array

__all__ = ["pareto_k"]


def pareto_k(log_weights: Array) -> float:
    """The shape k of the tail of importance weights p(x)/q(x), x drawn from q.

    The largest min(n/5, 3 sqrt(n)) weights are taken for excesses over a generalised Pareto law of shape k, fitted by
    Zhang and Stephens' posterior mean and drawn towards 0.5 as in Pareto smoothing. Weights have 1/k moments.

    Args:
        log_weights: Logarithms of the weights, up to a constant, shape (n,), n at least 25.

    Returns:
        k: below 0.5 the weights' variance is finite; above 0.7 draws of q cannot be reweighted to p; `inf` where p
        is 0 at all but a few draws.

    Source: [vehtari2024], appendix; [zhang2009].

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).exponential(size=20_000)  # q; p = exponential of rate 0.5: weights x^...
        >>> 0.3 < pareto_k(0.5 * x) < 0.7
        True
    """
    logs = np.sort(np.asarray(log_weights, np.float64).ravel())
    count = ceil(min(0.2 * logs.size, 3 * logs.size**0.5))
    if logs[-count - 1] == -inf:
        return inf
    if logs[-1] - logs[-count - 1] < 1e-9:
        return 0.0  # the largest are all alike
    tail, cutoff = np.exp(logs[-count:] - logs[-1]), np.exp(logs[-count - 1] - logs[-1])
    excess = tail - cutoff
    excess = excess[excess > 0]
    if excess.size < 5:
        return 0.0  # the largest are all alike
    n = excess.size
    trials = 30 + int(n**0.5)
    b = 1 / excess[-1] + (1 - np.sqrt(trials / (np.arange(1, trials + 1) - 0.5))) / (3 * excess[int(n / 4 + 0.5) - 1])
    k = np.log1p(-b[:, None] * excess).mean(axis=1)
    score = n * (np.log(-b / k) - k - 1)
    weights = np.exp(score - score.max())
    weights /= weights.sum()
    best = float(np.log1p(-float(b @ weights) * excess).mean())
    return (n * best + 5) / (n + 10)
