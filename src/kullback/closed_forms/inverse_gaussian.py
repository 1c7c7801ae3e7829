"""Inverse Gaussian variables; and records made of others."""

from typing import Any

from kullback import families as f
from kullback.closed_forms.registry import closed_form
from kullback.numerics.arrays import Array
from kullback.numerics.phi import ratio_residual

__all__: list[str] = []


@closed_form((f.InverseGaussian, f.InverseGaussian))
def inverse_gaussian(xp: Any, p: Any, q: Any) -> Array:
    """phi(log(shape2/shape1))/2 + shape2 (mean1 - mean2)^2 / (2 mean1 mean2^2)."""
    change = (p.mean - q.mean) / q.mean
    return (ratio_residual(xp, q.shape, p.shape) + q.shape / p.mean * (change * change)) / 2
