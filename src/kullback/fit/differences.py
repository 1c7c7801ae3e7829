"""Gradients and curvatures by central differences, for members that are told by their log-densities alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kullback._arrays import Array
from kullback.fit.descent import Model, nowhere, units

__all__ = ["Local", "by_differences"]

_STEP = 1e-3  # in units of the members' own scale
_OVERFLOW = 1e150  # a sum that was on its way to inf


class Local(NamedTuple):
    """What is descended near one member, on nodes that resolve it.

    Args:
        value: Called with vectors (m, k); the values there, nats, shape (m,).
        log_prob: Called with vectors (m, k); the members' log-densities at some places, (m, places).
        mass: What each place weighs in the members' own metric, (places,).
    """

    value: Callable[[Array], Array]
    log_prob: Callable[[Array], Array]
    mass: Array


def by_differences(local: Local, vector: Array) -> Model:
    """Value, gradient and Hessian by central differences of fourth and second order, in the members' own units.

    Raises:
        ParameterError: A neighbour is beyond what floats hold.
    """
    size, basis = vector.size, units(_metric(local, vector))
    values = _around(local, vector, basis)
    if not (np.abs(values) < _OVERFLOW).all():
        return nowhere(size)
    here, single = values[0], values[1 : 1 + 4 * size].reshape(size, 4)
    gradient = (8 * (single[:, 0] - single[:, 1]) - (single[:, 2] - single[:, 3])) / (12 * _STEP)
    second = (16 * (single[:, 0] + single[:, 1] - 2 * here) - (single[:, 2] + single[:, 3] - 2 * here)) / (
        12 * _STEP**2
    )
    hessian = np.diag(second)
    for (i, j), four in zip(_pairs(size), values[1 + 4 * size :].reshape(-1, 4), strict=True):
        hessian[i, j] = hessian[j, i] = (four[0] - four[1] - four[2] + four[3]) / (4 * _STEP**2)
    return Model(float(here), gradient, hessian, basis)


def _pairs(size: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(size) for j in range(i)]


def _around(local: Local, vector: Array, basis: Array) -> Array:
    """The values here, at four places along each axis, and at four for each pair of axes."""
    axes = _STEP * basis.T
    moves = [np.zeros(vector.size)]
    for axis in axes:
        moves += [axis, -axis, 2 * axis, -2 * axis]
    for i, j in _pairs(vector.size):
        moves += [axes[i] + axes[j], axes[i] - axes[j], axes[j] - axes[i], -axes[i] - axes[j]]
    with np.errstate(all="ignore"):
        return local.value(vector + np.asarray(moves))


def _metric(local: Local, vector: Array) -> Array:
    """The Fisher metric."""
    size, h = vector.size, 1e-5
    moves = h * np.eye(size)
    with np.errstate(all="ignore"):
        logs = local.log_prob(np.concatenate([vector + moves, vector - moves]))
        scores = (logs[:size] - logs[size:]) / (2 * h)
        scores = np.where(np.isfinite(scores) & (local.mass > 0), scores, 0.0)
        return (scores * local.mass) @ scores.T / float(local.mass.sum())
