"""Laplace, Cauchy and Gumbel variables, and their kin."""

from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.registry import closed_form, where_equal
from kullback.numerics.arrays import Array
from kullback.numerics.log_sinhc import log_sinhc_slope
from kullback.numerics.phi import log_ratio, phi, ratio_residual
from kullback.numerics.special import erf

__all__: list[str] = []


@closed_form((f.Laplace, f.Laplace))
def laplace(xp: Any, p: Any, q: Any) -> Array:
    """phi(log(b1/b2)) + (b1/b2) phi(-|m1 - m2|/b1)."""
    return ratio_residual(xp, p.scale, q.scale) + p.scale / q.scale * phi(-abs(p.loc - q.loc) / p.scale)


@closed_form((f.Cauchy, f.Cauchy))
def cauchy(xp: Any, p: Any, q: Any) -> Array:
    """log(1 + ((s1 - s2)^2 + (m1 - m2)^2) / (4 s1 s2)).

    Source: [chyzak2019], theorem 1.
    """
    difference, distance = p.scale - q.scale, p.loc - q.loc
    return xp.log1p((difference / p.scale * (difference / q.scale) + distance / p.scale * (distance / q.scale)) / 4)


@closed_form((f.HalfCauchy, f.HalfCauchy))
def half_cauchy(xp: Any, p: Any, q: Any) -> Array:
    """That of the Cauchy variables about 0, which are alike on both sides."""
    difference = p.scale - q.scale
    return xp.log1p(difference / p.scale * (difference / q.scale) / 4)


@closed_form((f.Logistic, f.Logistic))
def logistic(xp: Any, p: Any, q: Any) -> Array:
    """d coth(d/2) - 2 with d = (m1 - m2)/s, for equal scales; others have no closed form."""
    d = (p.loc - q.loc) / q.scale
    return where_equal(xp, p, q, "scale", d * log_sinhc_slope(xp, d / 2))


@closed_form((f.Normal, f.Laplace))
def normal_laplace(xp: Any, p: Any, q: Any) -> Array:
    """By the mean of |x - m2|."""
    z = (p.loc - q.loc) / p.scale
    deviation = np.sqrt(2 / np.pi) * xp.exp(-z * z / 2) + z * erf(xp, z / np.sqrt(2))
    return p.scale / q.scale * deviation + log_ratio(xp, q.scale, p.scale) + 0.5 * (np.log(2 / np.pi) - 1)


@closed_form((f.Uniform, f.Laplace))
def uniform_laplace(xp: Any, p: Any, q: Any) -> Array:
    """By the mean of |x - m2|."""
    width = p.high - p.low
    below, above = (q.loc - p.low) / width, (p.high - q.loc) / width
    inside = (below >= 0) & (above >= 0)
    deviation = xp.where(inside, (below * below + above * above) / 2, abs(below - above) / 2)
    return width / q.scale * deviation + np.log(2) - log_ratio(xp, width, q.scale)


@closed_form((f.Laplace, f.Gumbel))
def laplace_gumbel(xp: Any, p: Any, q: Any) -> Array:
    """By the mean of exp(-x/scale), which is infinite where p's scale is q's or larger."""
    ratio, z = p.scale / q.scale, (p.loc - q.loc) / q.scale
    finite = ratio < 1
    tail = xp.where(finite, (1 - ratio) * (1 + ratio), 1.0)
    return xp.where(finite, z + xp.exp(-z) / tail - 1 - np.log(2) - xp.log(ratio), np.inf)
