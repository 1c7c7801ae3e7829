"""KL between inverse Gaussian distributions."""

from math import inf
from typing import Any

from kullback import families as f
from kullback.closed_forms.registry import closed_form
from kullback.numerics.arrays import Array
from kullback.numerics.phi import ratio_residual

__all__: list[str] = []


@closed_form((f.InverseGaussian, f.InverseGaussian))
def kl_inverse_gaussian_inverse_gaussian(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = InverseGaussian(mean1, shape1) and Q = InverseGaussian(mean2, shape2).

    phi(log(shape2/shape1))/2 + shape2 (mean1 - mean2)^2 / (2 mean1 mean2^2), where phi(d) = e^d - 1 - d.
    """
    change = (p.mean - q.mean) / q.mean
    square, ratio = change * change, q.shape / p.mean
    # The quotient and the square may underflow or overflow although the product is an ordinary number.
    root = xp.sqrt(q.shape) / xp.sqrt(p.mean) * change
    fits = (square < inf) & (ratio > 0) & (ratio < inf)
    distance = xp.where(fits, xp.where(fits, ratio, 0.0) * xp.where(fits, square, 0.0), root * root)
    return (ratio_residual(xp, q.shape, p.shape) + distance) / 2
