"""The second-order model of divergences over mixtures of univariate normals, from derivatives in closed form."""

from typing import Any

import numpy as np

from kullback.fit.solver.parametrisation import FamilyParametrisation, scale_of
from kullback.numerics.arrays import Array

__all__ = ["mixture_derivatives"]


@np.errstate(all="ignore")  # members near the limits of floating point
def mixture_derivatives(
    parametrisation: FamilyParametrisation,
    vector: Array,
    points: tuple[Array, Array],
    slope: Array,
    curvature: Array,
    weight: Array,
) -> tuple[Array, Array, Array]:
    """The gradient and Hessian of a sum over points that depends on the density q of a normal mixture, and a metric.

    The sum has the differentials sum slope d(log q) and sum slope d2(log q) + curvature d(log q)^2, where

    d(log q) = sum_k r_k d(a_k)
    d2(log q) = sum_k r_k d2(a_k) + the covariance of d(a_k) under the probabilities r_k

    with a_k = log w_k + log N(x; m_k, s_k) and the responsibilities r_k = exp(a_k) / q. The covariance is computed
    without the difference of E[d(a)^2] and E[d(a)]^2, which cancel at points in the tails.

    Args:
        parametrisation: The coordinates of the family.
        vector: The coordinates of the member.
        points: The origins and offsets of the points, each of shape (n,).
        slope: The first-order coefficient of each point, shape (n,).
        curvature: The second-order coefficient of each point, shape (n,).
        weight: The weight of each point in the Fisher metric, shape (n,).

    Returns:
        The gradient, shape (size,), the Hessian, shape (size, size), and the Fisher metric, shape (size, size), by the
        coordinates divided by their scales. They are not finite where a scale overflows or underflows.
    """
    member: Any = parametrisation.to_distribution(vector)
    parts = (np.asarray(part, np.float64) for part in (member.weights, member.locs, member.scales))
    weights, locs, scales = (part[:, None] for part in np.broadcast_arrays(*parts))
    count = len(weights)
    z = ((points[0] - locs) + points[1]) / scales
    log_joint = np.log(weights) - np.log(scales) - z * z / 2
    largest = log_joint.max(axis=0)
    is_positive = np.isfinite(largest)  # the density does not underflow
    z, r = np.where(is_positive, z, 0.0), np.exp(log_joint - np.where(is_positive, largest, 0.0))
    r = np.where(is_positive, r / r.sum(axis=0), 0.0)
    slope, curvature, weight = (np.where(is_positive, part, 0.0) for part in (slope, curvature, weight))
    scale_of_loc = scale_of(member) / scales
    by_component = np.stack([np.ones_like(z), scale_of_loc * z, z * z - 1])  # d(a_k) by log w_k, m_k and log s_k
    scores = r * by_component
    hessian = -np.einsum("ukn,vln->ukvl", scores * slope, scores, optimize=True)
    for k in range(count):
        others = np.delete(r, k, axis=0).sum(axis=0)
        hessian[:, k, :, k] = (scores[:, k] * (slope * others)) @ by_component[:, k].T
        coefficients, c = slope * r[k], scale_of_loc[k, 0]
        mixed = -2 * c * float(coefficients @ z[k])
        second = [[-c * c * coefficients.sum(), mixed], [mixed, -2 * float(coefficients @ z[k] ** 2)]]
        hessian[1:, k, 1:, k] += second
    hessian[0, :, 0, :] -= slope.sum() * (np.diag(weights[:, 0]) - weights * weights[:, 0])
    scores[0] -= weights
    first = {"weights": 0, "locs": count, "scales": 2 * count}
    free = np.concatenate([first[one.name] + np.arange(np.prod(one.shape)) for one in parametrisation.free]).astype(int)
    scores = scores.reshape(3 * count, -1)[free]
    hessian = hessian.reshape(3 * count, 3 * count)[np.ix_(free, free)] + (scores * curvature) @ scores.T
    return scores @ slope, hessian, (scores * weight) @ scores.T / float(weight.sum())
