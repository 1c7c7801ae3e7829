"""Integrals over an interval weighted by a normal density, for every array library and without loss in far tails."""

from typing import Any, NamedTuple

import numpy as np

from kullback.numerics.arrays import Array, untracked

__all__ = ["NormalInterval", "normal_interval"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_NEGLIGIBLE = 120.0  # twice the exponent below the largest density of the interval, e^-60, at which the nodes end


class NormalInterval(NamedTuple):
    """Quadrature nodes for exp(-((x - loc)/scale)^2/2) on low <= x <= high.

    Args:
        mode: The point of the interval where the density is largest, shape (...).
        slope: y = (mode - loc)/scale, shape (...).
        distance: x - mode at each node, shape (..., nodes).
        offset: (x - mode)/scale at each node, shape (..., nodes).
        weight: The weight of each node times exp(-offset (y + offset/2)), shape (..., nodes). The sum is the integral
            relative to the density at the mode.
        exponent: The exponent at the mode minus the exponent at `origin`, shape (...).
    """

    mode: Array
    slope: Array
    distance: Array
    offset: Array
    weight: Array
    exponent: Array


def normal_interval(
    xp: Any, loc: Array, scale: Array, low: Array, high: Array, origin: Array | None = None
) -> NormalInterval:
    """Quadrature nodes for a normal density on an interval, whose ends may be infinite.

    The Gauss-Legendre rule with 64 nodes covers the points where the density is above e^-60 of its largest value in the
    interval. The rule is exact to rounding, because the exponent varies by at most 60.

    Args:
        xp: The array namespace.
        loc: The mean, shape (...), as all arguments.
        scale: The standard deviation.
        low: The lower end of the interval, or -inf.
        high: The upper end, or inf; at least `low`.
        origin: The point to which `exponent` is relative; the mode of the interval if None.
    """
    # The integrals do not depend on the point from which offsets are measured and on the end of the nodes, so these are
    # excluded from differentiation, except the ends of the interval.
    mode = xp.minimum(xp.maximum(untracked(loc), low), high)
    slope = (mode - loc) / scale
    steepness = untracked(slope)
    root = xp.full_like(steepness, _NEGLIGIBLE**0.5)
    reach = untracked(scale) * (_NEGLIGIBLE / (abs(steepness) + xp.hypot(steepness, root)))
    # The distance to an infinite end must not enter a derivative.
    has_low, has_high = low > -np.inf, high < np.inf
    down = xp.where(has_low, xp.minimum(mode - xp.where(has_low, low, mode), reach), reach)
    up = xp.where(has_high, xp.minimum(xp.where(has_high, high, mode) - mode, reach), reach)
    constants: dict[str, Any] = {"dtype": slope.dtype}
    if hasattr(slope, "device"):
        constants["device"] = slope.device
    nodes, weights = (xp.asarray(values, **constants) for values in ((_NODES + 1) / 2, _WEIGHTS / 2))
    length = (down + up)[..., None]
    distance = length * nodes - down[..., None]
    offset = distance / scale[..., None]
    weight = length * weights * xp.exp(-offset * (slope[..., None] + offset / 2))
    exponent = xp.zeros_like(slope)
    if origin is not None:
        exponent = -((mode - origin) / scale) * (((mode - loc) + (origin - loc)) / (2 * scale))
    return NormalInterval(mode, slope, distance, offset, weight, exponent)
