"""Dirichlet and beta variables."""

from typing import Any

from array_api_compat import device

from kullback import families as f
from kullback.closed_forms.registry import closed_form
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array, holds
from kullback.numerics.log_gamma import gamma_kl_equal_mean, gamma_kl_equal_mean_increment
from kullback.numerics.phi import log_ratio, phi

__all__ = ["betas"]


@closed_form((f.Dirichlet, f.Dirichlet))
def dirichlet(xp: Any, p: Any, q: Any) -> Array:
    """sum_i R(a_i, b_i - a_i) - R(A, B - A), with A = sum a and B = sum b, less what Stirling's leading terms cancel:

    B KL(b/B || a/A) + sum_i D(a_i, b_i) - D(A, B), D being the KL of gammas of one mean.
    """
    if p.concentration.shape[-1:] != q.concentration.shape[-1:] or p.concentration.ndim == 0:
        raise ShapeError(
            "expected Dirichlet concentrations with as many categories along the last axis, got shapes "
            f"{tuple(p.concentration.shape)} and {tuple(q.concentration.shape)}"
        )
    return _dirichlet(xp, p.concentration, q.concentration)


@closed_form((f.Beta, f.Beta))
def beta(xp: Any, p: Any, q: Any) -> Array:
    """That of Dirichlets of two categories."""
    return betas(xp, p.concentration1, p.concentration0, q.concentration1, q.concentration0)


def betas(xp: Any, a1: Array, a0: Array, b1: Array, b0: Array) -> Array:
    """KL(Beta(a1, a0) || Beta(b1, b0))."""
    a = xp.stack(xp.broadcast_arrays(a1, a0), axis=-1)
    return _dirichlet(xp, a, xp.stack(xp.broadcast_arrays(b1, b0), axis=-1))


def _dirichlet(xp: Any, a: Array, b: Array) -> Array:
    a, b = xp.broadcast_arrays(a, b)
    h = b - a
    sum_a, sum_b, sum_h = (xp.sum(x, axis=-1) for x in (a, b, h))
    d = log_ratio(xp, a, b) - log_ratio(xp, sum_a, sum_b)[..., None]
    each, whole = gamma_kl_equal_mean(xp, a, b, h), gamma_kl_equal_mean(xp, sum_a, sum_b, sum_h)
    # The largest's D may all but cancel that of the sums.
    is_top = xp.arange(a.shape[-1], device=device(a)) == xp.argmax(a, axis=-1, keepdims=True)
    top_a, top_b, top_h, top = (xp.sum(xp.where(is_top, x, 0.0), axis=-1) for x in (a, b, h, each))
    rest_a, rest_b, rest_h, rest = (xp.sum(xp.where(is_top, 0.0, x), axis=-1) for x in (a, b, h, each))
    near, change = (rest_a < top_a / 8) & (rest_b < top_b / 8), whole - top
    if not holds(~xp.any(near)):
        rest_a, rest_b, rest_h = (xp.where(near, x, 0.0) for x in (rest_a, rest_b, rest_h))
        change = xp.where(near, gamma_kl_equal_mean_increment(xp, top_a, top_b, top_h, rest_a, rest_b, rest_h), change)
    return xp.sum(b * phi(d), axis=-1) + rest - change
