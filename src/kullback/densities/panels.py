"""The line cut into panels on which two densities are smooth, and adaptive Gauss-Legendre quadrature over them."""

from collections.abc import Callable
from itertools import pairwise
from math import ceil, inf, isfinite, log
from typing import NamedTuple

import numpy as np

from kullback.densities.density import Density
from kullback.numerics.arrays import Array

__all__ = ["Panels", "Ray", "Straight", "cut", "integrate", "join"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(15)
_MOST = 4_000  # panels alive at once


class Panels(NamedTuple):
    """Panels from u = low to u = high, x = origin + offset(u).

    Args:
        origin: Where each panel measures from: an end of a support, or a place near it.
        scale: The length, with its direction.
        growth: 0 for offset = scale u; else offset = scale e^(growth u), towards infinity or into an end.
        low: Where u begins.
        high: Where u ends.
    """

    origin: Array
    scale: Array
    growth: Array
    low: Array
    high: Array

    def at(self, u: Array) -> tuple[Array, Array, Array]:
        """Origin, offset, and the log of |dx/du|, of u with a row for each panel."""
        origin, scale, growth = (np.broadcast_to(part[:, None], u.shape) for part in self[:3])
        exponent = growth * u
        straight = growth == 0
        offset = scale * np.where(straight, u, np.exp(exponent))
        return origin, offset, np.log(np.abs(scale)) + np.where(straight, 0.0, exponent)

    def pick(self, which: Array) -> "Panels":
        return Panels(*(part[which] for part in self))

    def halve(self) -> "Panels":
        middle = (self.low + self.high) / 2
        low, high = np.concatenate([self.low, middle]), np.concatenate([middle, self.high])
        origin, scale, growth = (np.tile(part, 2) for part in self[:3])
        return Panels(origin, scale, growth, low, high)


def integrate(
    integrand: Callable[[Panels, Array], Array], panels: Panels, is_enough: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """The integrals of a stack of functions over all panels, and a bound on the error of each.

    Every panel is integrated whole and by halves. The difference bounds the error of the halves, many times over once
    the function is resolved. Panels where it is too large are halved, and so on.

    Args:
        integrand: Called as `integrand(panels, u)`, u of shape (panels, nodes); returns (functions, panels, nodes).
        panels: Where to integrate.
        is_enough: Called with the totals and the errors, (functions,) each; says by which factor each error is
            above what is wanted: at most 1 ends it.
    """
    whole = _rule(integrand, panels)
    total = total_error = np.zeros(len(whole))
    history: list[float] = []
    done, done_error = np.zeros(len(whole)), np.zeros(len(whole))
    for _ in range(60):
        halves = panels.halve()
        parts = _rule(integrand, halves)
        count = panels.low.size
        both = parts[:, :count] + parts[:, count:]
        error = np.abs(both - whole)
        total, total_error = done + both.sum(axis=1), done_error + error.sum(axis=1)
        excess = is_enough(total, total_error)
        if excess.max() <= 1:
            break
        # A panel stays if all such panels together would be good enough.
        fair = 0.1 * total_error / np.maximum(excess, 1e-300) / count
        again = ((error > fair[:, None]) & (excess > 1)[:, None]).any(axis=0)
        # Where halving no longer helps there is nothing left but rounding.
        history.append(float(excess.max()))
        stuck = len(history) > 7 and history[-1] > 0.9 * history[-6]
        if again.sum() > _MOST or not again.any() or stuck:
            break
        done += both[:, ~again].sum(axis=1)
        done_error += error[:, ~again].sum(axis=1)
        kept = np.concatenate([again, again])
        panels, whole = halves.pick(kept), parts[:, kept]
    return total, total_error


def _rule(integrand: Callable[[Panels, Array], Array], panels: Panels) -> Array:
    half = (panels.high - panels.low) / 2
    u = (panels.low + half)[:, None] + half[:, None] * _NODES
    return (integrand(panels, u) @ _WEIGHTS) * half


class Straight(NamedTuple):
    """From origin + low to origin + high."""

    origin: float
    low: float
    high: float


class Ray(NamedTuple):
    """A stretch x = origin + scale e^(growth s), s >= 0, into an end of a support (-1) or to infinity (1)."""

    origin: float
    scale: float
    growth: int


def cut(p: Density, q: Density) -> tuple[list[Straight], list[Ray]]:
    """Straight panels between the places where either density changes, and the rays beyond them.

    Around each place the panels widen fourfold, so that densities of any widths, however far apart, are each met at
    their own scale, and each panel measures from the place or end nearest to it. The ends of supports, and poles, are
    approached along rays, on which powers and logarithms of the distance are smooth.
    """
    anchors = [*p.anchors, *q.anchors]
    places = np.unique([place for place, _ in anchors])
    widest = max(width for _, width in anchors)
    reach = float(np.ptp(places)) + 16 * widest
    steps = np.concatenate([place + _widening(width, reach) for place, width in anchors])
    zeros = np.zeros_like(places)
    poles = places[(p.log_density(places, zeros) == inf) | (q.log_density(places, zeros) == inf)]
    ends = sorted({*p.support, *q.support, *poles.tolist()})
    origins = np.asarray([*places, *filter(isfinite, ends)])
    straight: list[Straight] = []
    rays: list[Ray] = []
    for low, high in pairwise(ends):
        edges = np.unique(steps[(steps > low) & (steps < high)])
        if np.nextafter(low, high) == high:
            straight.append(Straight(low, 0.0, high - low))  # no float lies between
            continue
        if edges.size == 0:
            middle = (low + high) / 2
            edges = np.asarray([middle if isfinite(middle) else high - widest if low == -inf else low + widest])
        for end, nearest in ((low, edges[0]), (high, edges[-1])):
            if isfinite(end):  # as far as the middle, so as not to come near the other end
                edges = np.union1d(edges, end + _widening(nearest - end, min(reach, (high - low) / 8)))
        edges = edges[(edges > low) & (edges < high)]
        for left, right in pairwise(edges.tolist()):
            nearest = float(origins[np.argmin(np.abs(origins - (left + right) / 2))])
            straight.append(Straight(nearest, left - nearest, right - nearest))
        for end, last in ((low, float(edges[0])), (high, float(edges[-1]))):
            origin = end if isfinite(end) else float(places[np.argmax(np.abs(places - last))])
            if origin == last:
                origin = last - float(np.sign(end)) * widest
            rays.append(Ray(origin, last - origin, -1 if isfinite(end) else 1))
    return straight, rays


def join(straight: list[Straight], rays: list[Ray], reaches: list[float]) -> Panels:
    """All of them as one table; along a ray the panels widen twofold."""
    rows = [(origin, 1.0, 0, low, high) for origin, low, high in straight]
    for ray, reach in zip(rays, reaches, strict=True):
        edges = [0.0, *(2.0**k - 1 for k in range(1, 10) if 2.0**k - 1 < reach), reach]
        rows += [(*ray, low, high) for low, high in pairwise(edges)]
    return Panels(*np.asarray(rows).T)


def _widening(width: float, reach: float) -> Array:
    """0, and steps on both sides from the width on, each four times the last, until the reach."""
    count = max(0, ceil((log(reach) - log(abs(width))) / log(4)) + 1)
    steps = width * 4.0 ** np.arange(count)
    return np.concatenate([-steps[::-1], [0.0], steps])
