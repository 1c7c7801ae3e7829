"""Normal variables, and whatever is measured against one."""

from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.registry import closed_form
from kullback.numerics.arrays import Array
from kullback.numerics.log_gamma import binet, binet_slope
from kullback.numerics.phi import log_ratio, phi, ratio_residual

__all__ = ["against_normal"]

_LOG_2_PI_E = np.log(2 * np.pi) + 1


@closed_form((f.Normal, f.Normal), (f.LogNormal, f.LogNormal), (f.TanhNormal, f.TanhNormal))
def normal(xp: Any, p: Any, q: Any) -> Array:
    """phi(2 log(s1/s2))/2 + ((m1 - m2)/s2)^2/2; invertible maps change nothing."""
    return (phi(2 * log_ratio(xp, p.scale, q.scale)) + ((p.loc - q.loc) / q.scale) ** 2) / 2


def against_normal(xp: Any, mean: Array, variance: Array, negentropy: Array | float, q: Any) -> Array:
    """KL of anything to a normal: its negentropy, which is its KL to a normal of its own moments, and that one's KL."""
    moments = ratio_residual(xp, variance, q.scale * q.scale) + ((mean - q.loc) / q.scale) ** 2
    # Infinite moments leave inf - inf behind.
    return xp.where(variance < np.inf, negentropy + moments / 2, np.inf)


@closed_form((f.Laplace, f.Normal))
def laplace_normal(xp: Any, p: Any, q: Any) -> Array:
    return against_normal(xp, p.loc, 2 * p.scale * p.scale, (_LOG_2_PI_E - np.log(2)) / 2 - 1, q)


@closed_form((f.Logistic, f.Normal))
def logistic_normal(xp: Any, p: Any, q: Any) -> Array:
    negentropy = (_LOG_2_PI_E + np.log(np.pi**2 / 3)) / 2 - 2
    return against_normal(xp, p.loc, (np.pi * p.scale) ** 2 / 3, negentropy, q)


@closed_form((f.Uniform, f.Normal))
def uniform_normal(xp: Any, p: Any, q: Any) -> Array:
    width = p.high - p.low
    return against_normal(xp, p.low + width / 2, width * width / 12, (_LOG_2_PI_E - np.log(12)) / 2, q)


@closed_form((f.StudentT, f.Normal))
def student_t_normal(xp: Any, p: Any, q: Any) -> Array:
    """`inf` where df <= 2: the variance is."""
    has_variance = p.df > 2
    a = xp.where(has_variance, p.df, 3.0) / 2
    b = a + 0.5
    negentropy = (
        -(xp.log1p(-1 / a) + xp.log1p(0.5 / a)) / 2
        - 0.25 / a
        - b * (binet_slope(xp, b) - binet_slope(xp, a))
        + (binet(xp, b) - binet(xp, a))
    )
    variance = xp.where(has_variance, p.scale * p.scale * (a / (a - 1)), np.inf)
    return against_normal(xp, p.loc, variance, negentropy, q)


@closed_form((f.Pareto, f.Normal))
def pareto_normal(xp: Any, p: Any, q: Any) -> Array:
    """`inf` where alpha <= 2: the variance is."""
    has_variance = p.alpha > 2
    alpha = xp.where(has_variance, p.alpha, 3.0)
    shape = alpha / ((alpha - 1) ** 2 * (alpha - 2))
    negentropy = (_LOG_2_PI_E + xp.log(shape)) / 2 - 1 - 1 / alpha + xp.log(alpha)
    variance = xp.where(has_variance, p.scale * p.scale * shape, np.inf)
    return against_normal(xp, p.scale * (alpha / (alpha - 1)), variance, negentropy, q)


@closed_form((f.Pareto, f.LogNormal))
def pareto_log_normal(xp: Any, p: Any, q: Any) -> Array:
    """As log x is log(scale) and an exponential."""
    return against_normal(xp, xp.log(p.scale) + 1 / p.alpha, 1 / p.alpha**2, (_LOG_2_PI_E - 2) / 2, q)
