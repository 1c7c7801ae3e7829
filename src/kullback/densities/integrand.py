"""The integrand of KL(p || q) = integral of p phi(log q/p), where the term of p = 0 is q, from two log-densities."""

from typing import Any

import numpy as np

from kullback.numerics.arrays import Array
from kullback.numerics.phi import phi

__all__ = ["log_terms", "terms"]


def terms(log_p: Array, log_q: Array) -> Array:
    """p phi(log q - log p), p and q, stacked along a new first axis; the first is `inf` where only q is 0."""
    p, q, d = np.exp(log_p), np.exp(log_q), _log_ratio(log_p, log_q)
    near = d < 1
    # For d << 0, p may underflow where p |d| does not; for d >> 0, e^d may overflow where p e^d does not.
    close = p * phi(np.where(near & (d > -50), d, 0.0))
    far_below = np.exp(log_p + np.log(-1 - np.minimum(d, -2.0)))
    far_above = q - p - p * np.where(d < np.inf, d, 0.0)
    out = np.empty((3, *p.shape))
    out[0], out[1], out[2] = np.where(near, np.where(d > -50, close, far_below), far_above), p, q
    return out


def log_terms(log_p: Array, log_q: Array) -> Array:
    """log(p phi(log q - log p)), computed without overflow and underflow of p, q and their ratio."""
    d = _log_ratio(log_p, log_q)
    near = log_p + np.log(phi(np.clip(d, -50.0, 1.0)))
    below = log_p + np.log(-1 - np.minimum(d, -2.0))
    finite = np.where(d < np.inf, d, 0.0)
    above = log_q + np.where(d < np.inf, np.log1p(-(1 + finite) * np.exp(-finite)), 0.0)
    return np.where(d < 1, np.where(d > -50, near, below), above)


def _log_ratio(log_p: Array, log_q: Array) -> Any:
    """log q - log p; 0 where both are -inf."""
    return np.where((log_p == -np.inf) & (log_q == -np.inf), 0.0, log_q - log_p)
