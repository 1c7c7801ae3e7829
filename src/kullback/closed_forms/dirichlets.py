"""Dirichlet and beta variables."""

from typing import Any

from kullback import families as f
from kullback._arrays import Array
from kullback.closed_forms._registry import closed_form
from kullback.errors import ShapeError
from kullback.log_gamma import dispersion
from kullback.residual import log_ratio, phi

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
    sum_a, sum_h = xp.sum(a, axis=-1, keepdims=True), xp.sum(h, axis=-1, keepdims=True)
    sum_b = xp.sum(b, axis=-1, keepdims=True)
    d = log_ratio(xp, a, b) - log_ratio(xp, sum_a, sum_b)
    terms = b * phi(d) + dispersion(xp, a, b, h)
    return xp.sum(terms, axis=-1) - dispersion(xp, sum_a, sum_b, sum_h)[..., 0]
