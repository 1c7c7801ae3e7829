"""A partition of the real line into panels on which two densities are smooth, and adaptive composite quadrature.

Each panel is integrated by the Gauss-Legendre rule with 15 nodes.
"""

from collections.abc import Callable
from itertools import pairwise
from math import ceil, inf, isfinite, log
from typing import NamedTuple

import numpy as np

from kullback.densities.density import Density
from kullback.errors import SupportError
from kullback.numerics.arrays import Array

__all__ = ["Interval", "Panels", "Ray", "assemble", "integrate", "partition"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(15)
# Two further points, inside the panel at its ends. The values there are compared with the polynomial through the values
# at the nodes, because no node is between the last node and the end, at the distance _GAP of the half-length.
_GAP = 1 - _NODES[-1]
_POINTS = np.asarray([-1 + 1e-9, *_NODES, 1 - 1e-9])
_MAX_PANELS = 4_000  # panels that are halved in one step


class Panels(NamedTuple):
    """Panels low <= u <= high of the coordinate u, where x = origin + offset(u).

    Args:
        origin: The point from which offsets are measured: an end of a support, or an anchor near the panel.
        scale: The signed length of the coordinate.
        growth: 0 for offset = scale u; otherwise offset = scale e^(growth u), which tends to infinity (1) or 0 (-1).
        low: The lower limits of u.
        high: The upper limits of u.
    """

    origin: Array
    scale: Array
    growth: Array
    low: Array
    high: Array

    def at(self, u: Array) -> tuple[Array, Array, Array]:
        """Origin, offset and the log of |dx/du| at u of shape (panels, nodes)."""
        origin, scale, growth = (np.broadcast_to(part[:, None], u.shape) for part in self[:3])
        exponent = growth * u
        linear = growth == 0
        offset = scale * np.where(linear, u, np.exp(exponent))
        return origin, offset, np.log(np.abs(scale)) + np.where(linear, 0.0, exponent)

    def pick(self, which: Array) -> "Panels":
        """The panels that a boolean mask selects."""
        return Panels(*(part[which] for part in self))

    def halve(self) -> "Panels":
        """All lower halves, followed by all upper halves."""
        middle = (self.low + self.high) / 2
        low, high = np.concatenate([self.low, middle]), np.concatenate([middle, self.high])
        origin, scale, growth = (np.tile(part, 2) for part in self[:3])
        return Panels(origin, scale, growth, low, high)


def integrate(
    integrand: Callable[[Panels, Array], Array], panels: Panels, excess_of: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """The integrals of several functions over all panels, and a bound on the error of each, by adaptive quadrature.

    The rule is applied to each panel and to its two halves. The difference of the two results bounds the error of the
    second by a large factor once the function is resolved. Panels with too large a difference are halved again.

    Both results miss a kink or a jump between the last node and an end of the panel. There, the value at the end
    differs from the polynomial through the nodes, by as much for the half as for the whole panel, where the difference
    for a smooth function decreases by several powers of 2. This difference times the distance of the node from the end
    bounds what is missed.

    Args:
        integrand: Called as `integrand(panels, u)` with u of shape (panels, nodes); returns an array of shape
            (functions, panels, nodes).
        panels: The initial panels.
        excess_of: Called with the integrals and their error bounds, each of shape (functions,); returns the ratio of
            each error bound to its tolerance. The iteration ends when all are at most 1.

    Returns:
        The integrals and their error bounds, each of shape (functions,).
    """
    whole, ends = _rule(integrand, panels)
    total = total_error = np.zeros(len(whole))
    history: list[float] = []
    done, done_error = np.zeros(len(whole)), np.zeros(len(whole))
    for _ in range(60):
        halves = panels.halve()
        parts, part_ends = _rule(integrand, halves)
        count = panels.low.size
        sums = parts[:, :count] + parts[:, count:]
        outer = np.stack([part_ends[0, :, :count], part_ends[1, :, count:]])
        missed = np.where(outer > ends / 16, outer, 0.0).sum(axis=0) * (panels.high - panels.low) * _GAP / 4
        error = np.abs(sums - whole) + missed
        total, total_error = done + sums.sum(axis=1), done_error + error.sum(axis=1)
        excess = excess_of(total, total_error)
        if excess.max() <= 1:
            break
        # A panel is accepted if the tolerance would be met with this error on every panel.
        share = 0.1 * total_error / np.maximum(excess, 1e-300) / count
        refined = ((error > share[:, None]) & (excess > 1)[:, None]).any(axis=0)
        # If halving no longer reduces the error, the error is rounding.
        history.append(float(excess.max()))
        stagnant = len(history) > 7 and history[-1] > 0.9 * history[-6]
        if refined.sum() > _MAX_PANELS or not refined.any() or stagnant:
            break
        done += sums[:, ~refined].sum(axis=1)
        done_error += error[:, ~refined].sum(axis=1)
        selected = np.concatenate([refined, refined])
        panels, whole, ends = halves.pick(selected), parts[:, selected], part_ends[:, :, selected]
    return total, total_error


def _functionals() -> Array:
    """Three functionals of the values at `_POINTS`, shape (points, 3): the integral over (-1, 1), and at both ends the
    difference between the value and the polynomial through the values at the nodes."""
    factors = (_POINTS[0] - _NODES[None, :]) / (_NODES[:, None] - _NODES[None, :] + np.eye(_NODES.size))
    np.fill_diagonal(factors, 1.0)
    at_first = np.asarray([1.0, *-factors.prod(axis=1), 0.0])
    return np.stack([np.asarray([0.0, *_WEIGHTS, 0.0]), at_first, at_first[::-1]], axis=1)


_FUNCTIONALS = _functionals()


def _rule(integrand: Callable[[Panels, Array], Array], panels: Panels) -> tuple[Array, Array]:
    """The integrals, and the differences at both ends between the value and the polynomial, (2, functions, panels)."""
    half = (panels.high - panels.low) / 2
    u = (panels.low + half)[:, None] + half[:, None] * _POINTS
    values = integrand(panels, u) @ _FUNCTIONALS
    return values[..., 0] * half, np.abs(np.moveaxis(values[..., 1:], -1, 0))


class Interval(NamedTuple):
    """The interval from origin + low to origin + high."""

    origin: float
    low: float
    high: float


class Ray(NamedTuple):
    """The points x = origin + scale e^(growth s), s >= 0: towards an end of a support (-1) or to infinity (1)."""

    origin: float
    scale: float
    growth: int


def partition(p: Density, q: Density) -> tuple[list[Interval], list[Ray]]:
    """Intervals between the anchors of both densities, and rays towards infinity, ends of supports and poles.

    The intervals around an anchor widen by a factor of 4, so that densities of any widths and distances are resolved,
    and offsets are measured from the nearest anchor or end. On a ray, powers and logarithms of the distance are smooth.
    """
    anchors = [*p.anchors, *q.anchors]
    locations = np.unique([location for location, _ in anchors])
    widest = max(width for _, width in anchors)
    with np.errstate(over="ignore", invalid="ignore"):
        reach = float(np.ptp(locations)) + 16 * widest
    if not isfinite(reach):
        raise SupportError(
            f"expected distributions whose values span less than 1.8e308, got locations from {locations[0]:.3g} to "
            f"{locations[-1]:.3g} and widths up to {widest:.3g}; divide the values of both distributions by one "
            "number, which does not change KL"
        )
    if not min(width for _, width in anchors) > 0:
        raise SupportError(
            "expected distributions with values inside the range of float64, but the quartiles of one distribution "
            f"are equal in float64, near {next(location for location, width in anchors if not width > 0):.3g}; measure "
            "other units of x, or log x"
        )
    for end in filter(isfinite, {*p.support, *q.support}):  # up to an end that is farther than the anchors reach
        reach = max(reach, float(np.abs(end - locations).max()))
    steps = np.concatenate([location + _widening(width, reach) for location, width in anchors])
    zeros = np.zeros_like(locations)
    poles = locations[(p.log_density(locations, zeros) == inf) | (q.log_density(locations, zeros) == inf)]
    ends = sorted({*p.support, *q.support, *poles.tolist()})
    origins = np.asarray([*locations, *filter(isfinite, ends)])
    intervals: list[Interval] = []
    rays: list[Ray] = []
    for low, high in pairwise(ends):
        edges = np.unique(steps[(steps > low) & (steps < high)])
        if np.nextafter(low, high) == high:
            intervals.append(Interval(low, 0.0, high - low))  # adjacent floats
            continue
        if edges.size == 0:
            middle = (low + high) / 2
            edges = np.asarray([middle if isfinite(middle) else high - widest if low == -inf else low + widest])
        for end, nearest in ((low, edges[0]), (high, edges[-1])):
            if isfinite(end):  # at most an eighth of the length, to keep away from the other end
                edges = np.union1d(edges, end + _widening(nearest - end, min(reach, (high - low) / 8)))
        edges = edges[(edges > low) & (edges < high)]
        for left, right in pairwise(edges.tolist()):
            nearest = float(origins[np.argmin(np.abs(origins - (left + right) / 2))])
            intervals.append(Interval(nearest, left - nearest, right - nearest))
        for end, last in ((low, float(edges[0])), (high, float(edges[-1]))):
            origin = end if isfinite(end) else float(locations[np.argmax(np.abs(locations - last))])
            if origin == last:
                origin = last - float(np.sign(end)) * widest
            if origin == last:
                raise SupportError(
                    f"expected a width above the distance {np.spacing(abs(last)):.3g} of the float64 numbers near "
                    f"{last:.6g}, got widths up to {widest:.3g}; subtract one number from the values of both "
                    "distributions, which does not change KL"
                )
            rays.append(Ray(origin, last - origin, -1 if isfinite(end) else 1))
    return intervals, rays


def assemble(intervals: list[Interval], rays: list[Ray], reaches: list[float]) -> Panels:
    """The panels of all intervals and rays. Along a ray, up to its reach, the panels widen by a factor of 2."""
    rows = [(origin, 1.0, 0, low, high) for origin, low, high in intervals]
    for ray, reach in zip(rays, reaches, strict=True):
        edges = [0.0, *(2.0**k - 1 for k in range(1, 10) if 2.0**k - 1 < reach), reach]
        rows += [(*ray, low, high) for low, high in pairwise(edges)]
    return Panels(*np.asarray(rows).T)


def _widening(width: float, reach: float) -> Array:
    """0 and points on both sides of it, at distances width * 4^k up to the reach."""
    count = max(0, ceil((log(reach) - log(abs(width))) / log(4)) + 1)
    steps = width * 4.0 ** np.arange(count)
    return np.concatenate([-steps[::-1], [0.0], steps])
