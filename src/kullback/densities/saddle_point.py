"""The terms of the saddle-point form of densities, whose large terms, of Stirling's formula, are removed.

Stirling's formula is log k! = (k + 1/2) log k - k + log(2 pi)/2 + s(k). In the log-probability of a count, and in the
log-density of a gamma or a beta distribution, its leading terms combine with the other terms to deviances
k phi(log(m/k)), so that no large terms cancel.

References:
    Loader (2000), Fast and accurate computation of binomial probabilities.
"""

from math import log, pi

import numpy as np
from scipy import special

from kullback.numerics.arrays import Array
from kullback.numerics.phi import phi

__all__ = ["deviance_of_change", "poisson_deviance", "stirling_remainder"]


def poisson_deviance(k: Array | float, mean: Array | float) -> Array:
    """The Poisson deviance k log(k / mean) - k + mean = k phi(log(mean / k)), for k > 0."""
    return deviance_of_change(k, (mean - k) / k, np.log(mean) - np.log(k))


def deviance_of_change(k: Array | float, change: Array, log_ratio: Array) -> Array:
    """The Poisson deviance k phi(log(m/k)) by the relative change m/k - 1 and, where it is large, by log(m/k)."""
    near = np.abs(change) < 0.5
    return k * phi(np.where(near, np.log1p(np.where(near, change, 0.0)), log_ratio))


def stirling_remainder(k: Array) -> Array:
    """The remainder of Stirling's formula, s(k) = log k! - (k + 1/2) log k + k - log(2 pi) / 2, for k > 0."""
    w = 1 / np.maximum(k, 15.0)
    v = w * w
    far = w * (1 / 12 - v * (1 / 360 - v * (1 / 1260 - v * (1 / 1680 - v * (1 / 1188 - v * (691 / 360360 - v / 156))))))
    return np.where(k > 15, far, special.gammaln(k + 1) - (k + 0.5) * np.log(k) + k - 0.5 * log(2 * pi))
