"""KL between Dirichlet distributions and between beta distributions."""

from typing import Any

import numpy as np
from array_api_compat import device

from kullback import families as f
from kullback.closed_forms.registry import closed_form
from kullback.compiled import elementwise
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array, broadcast_arrays, holds
from kullback.numerics.log_gamma import binet, binet_slope, gamma_kl_equal_mean, gamma_kl_equal_mean_increment
from kullback.numerics.phi import log_ratio, phi, ratio_residual

__all__ = ["kl_beta_parameters"]


@closed_form((f.Dirichlet, f.Dirichlet))
def kl_dirichlet_dirichlet(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Dirichlet(a) and Q = Dirichlet(b), where a and b are vectors of n concentrations.

    B KL(b/B || a/A) + sum_i D(a_i, b_i) - D(A, B) with A = sum_i a_i, B = sum_i b_i and
    B KL(b/B || a/A) = sum_i b_i phi(log(a_i/b_i) - log(A/B)), where phi(d) = e^d - 1 - d. Here
    D(a, b) = lgamma(b) - lgamma(a) - (b - a) digamma(a) - b phi(log(a/b)) is KL between two gamma distributions with
    equal means and the shape parameters a and b.

    It equals sum_i R(a_i, b_i - a_i) - R(A, B - A) with R(a, h) = lgamma(a + h) - lgamma(a) - h digamma(a); Stirling's
    leading terms, which cancel in this difference, are removed.
    """
    if p.concentration.shape[-1:] != q.concentration.shape[-1:] or p.concentration.ndim == 0:
        raise ShapeError(
            "expected p and q to have the same number of concentrations along the last axis, got shapes "
            f"{tuple(p.concentration.shape)} and {tuple(q.concentration.shape)}"
        )
    return _kl_concentrations(xp, p.concentration, q.concentration)


@closed_form((f.Beta, f.Beta))
def kl_beta_beta(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Beta(a1, a0) and Q = Beta(b1, b0), where 1 and 0 index concentration1 and concentration0.

    B KL(b/B || a/A) + D(a1, b1) + D(a0, b0) - D(A, B) with A = a1 + a0 and B = b1 + b0: the formula for two Dirichlet
    distributions with two categories. Here B KL(b/B || a/A) = sum_i b_i phi(log(a_i/b_i) - log(A/B)), where
    phi(d) = e^d - 1 - d, and D(a, b) = lgamma(b) - lgamma(a) - (b - a) digamma(a) - b phi(log(a/b)).
    """
    return kl_beta_parameters(xp, p.concentration1, p.concentration0, q.concentration1, q.concentration0)


def kl_beta_parameters(xp: Any, a1: Array, a0: Array, b1: Array, b0: Array) -> Array:
    """KL(Beta(a1, a0) || Beta(b1, b0)) from arrays of concentrations."""
    a1, a0, b1, b0 = broadcast_arrays(xp, a1, a0, b1, b0)
    if (compiled := elementwise("beta", a1, a0, b1, b0)) is not None:
        return compiled
    return _kl_concentrations(xp, xp.stack([a1, a0], axis=-1), xp.stack([b1, b0], axis=-1))


def _kl_concentrations(xp: Any, a: Array, b: Array) -> Array:
    """KL(Dirichlet(a) || Dirichlet(b)) from arrays of concentrations, by the formula of `kl_dirichlet_dirichlet`."""
    a, b = broadcast_arrays(xp, a, b)
    fits = (xp.sum(a, axis=-1) < np.inf) & (xp.sum(b, axis=-1) < np.inf)
    if holds(xp.all(fits)):
        return _kl_of_ordinary_sums(xp, a, b)
    near = _kl_of_ordinary_sums(xp, *(xp.where(fits[..., None], x, 1.0) for x in (a, b)))
    return xp.where(fits, near, _kl_of_large_sums(xp, *(xp.where(fits[..., None], 1.0, x) for x in (a, b))))


def _kl_of_ordinary_sums(xp: Any, a: Array, b: Array) -> Array:
    """The formula of `kl_dirichlet_dirichlet` where neither sum of concentrations overflows."""
    h = b - a
    sum_a, sum_b, sum_h = (xp.sum(x, axis=-1) for x in (a, b, h))
    d = log_ratio(xp, a, b) - log_ratio(xp, sum_a, sum_b)[..., None]
    each, whole = gamma_kl_equal_mean(xp, a, b, h), gamma_kl_equal_mean(xp, sum_a, sum_b, sum_h)
    # D of the largest concentration may nearly cancel D of the sums, so their difference is computed as an increment.
    is_top = xp.arange(a.shape[-1], device=device(a)) == xp.argmax(a, axis=-1, keepdims=True)
    top_a, top_b, top_h, top = (xp.sum(xp.where(is_top, x, 0.0), axis=-1) for x in (a, b, h, each))
    rest_a, rest_b, rest_h, rest = (xp.sum(xp.where(is_top, 0.0, x), axis=-1) for x in (a, b, h, each))
    near, change = (rest_a < top_a / 8) & (rest_b < top_b / 8), whole - top
    if not holds(~xp.any(near)):
        rest_a, rest_b, rest_h = (xp.where(near, x, 0.0) for x in (rest_a, rest_b, rest_h))
        change = xp.where(near, gamma_kl_equal_mean_increment(xp, top_a, top_b, top_h, rest_a, rest_b, rest_h), change)
    factors = phi(d)
    if holds(xp.all(factors < np.inf)):
        spread = b * factors
    else:  # a_i B/A - b_i (1 + d_i), where b_i is small
        far = factors == np.inf
        ratio = (sum_b / sum_a)[..., None]
        spread = xp.where(far, a * ratio - b * (1 + d), b * xp.where(far, 0.0, factors))
    return xp.sum(spread, axis=-1) + rest - change


def _kl_of_large_sums(xp: Any, a: Array, b: Array) -> Array:
    """The formula of `kl_dirichlet_dirichlet` where a sum of concentrations overflows.

    Each term is multiplied by 2^-64. D(A, B) of the sums is phi(log(B/A))/2 + J(B) - J(A) - (B - A) J'(A), where J is
    Binet's function; these terms do not cancel, because A and B are very different or J is 0 to rounding.
    """
    unit = 2.0**-64
    h = b - a
    sum_a, sum_b, sum_h = (xp.sum(x * unit, axis=-1) for x in (a, b, h))
    d = log_ratio(xp, a, b) - log_ratio(xp, sum_a, sum_b)[..., None]
    each = gamma_kl_equal_mean(xp, a, b, h)
    whole = ratio_residual(xp, sum_b, sum_a, sum_h) / 2 + binet(xp, sum_b / unit) - binet(xp, sum_a / unit)
    whole = whole * unit - sum_h * binet_slope(xp, sum_a / unit)
    total = (xp.sum(b * unit * phi(d), axis=-1) + xp.sum(each * unit, axis=-1) - whole) / unit
    # D(a_i, b_i) overflows only if b_i is large and a_i is small, and then the KL overflows.
    return xp.where(xp.any(each == np.inf, axis=-1), np.inf, total)
