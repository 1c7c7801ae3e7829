"""Places and weights that resolve densities, so that nearby members of a family are compared by one sum."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Any

import numpy as np

from kullback.densities.density import Density
from kullback.densities.integrand import terms
from kullback.densities.panels import Panels, cut, join
from kullback.densities.tails import follow
from kullback.numerics.arrays import Array

__all__ = ["Nodes", "line_nodes", "mean_of"]

_U, _W = np.polynomial.legendre.leggauss(15)
_WIDE = 2**16  # counts that are taken one by one


@dataclass(frozen=True)
class Nodes:
    """Places on the line, or counts.

    Args:
        origin: A place near each.
        offset: The rest of it.
        log_weight: The logarithm of the length that it stands for.
    """

    origin: Array
    offset: Array
    log_weight: Array

    @property
    def x(self) -> Array:
        return self.origin + self.offset

    def log_mass(self, density: Density) -> Array:
        """The logarithm of the probability that each node stands for."""
        with np.errstate(all="ignore"):
            return density.log_density(self.origin, self.offset) + self.log_weight


def line_nodes(p: Density, q: Density) -> Nodes:
    """Nodes that resolve p, q and the terms of KL(p || q), as far as floats do."""
    if p.discrete:
        return _counts(p, q)
    with np.errstate(all="ignore"):
        straight, rays = cut(p, q)
        panels = join(straight, rays, [follow(p, q, *ray).reach for ray in rays])
        whole, kept = _rule(p, q, panels), []
        for _ in range(12):
            halves = panels.halve()
            parts = _rule(p, q, halves)
            count = panels.low.size
            error = np.abs(parts[:, :count] + parts[:, count:] - whole)
            again = (error > 1e-15 * np.maximum(1.0, np.abs(whole))).any(axis=0)
            kept.append(halves.pick(np.concatenate([~again, ~again])))
            if not again.any() or again.sum() > 2000:
                break
            both = np.concatenate([again, again])
            panels, whole = halves.pick(both), parts[:, both]
        else:
            kept.append(panels)
        table = Panels(*(np.concatenate(parts) for parts in zip(*kept, strict=True)))
        half = (table.high - table.low) / 2
        u = (table.low + half)[:, None] + half[:, None] * _U
        origin, offset, step = table.at(u)
        logs = step + np.log(half)[:, None] + np.log(_W)
    return Nodes(np.ravel(origin), np.ravel(offset), np.ravel(logs))


def mean_of(density: Density) -> Callable[[Callable[[Array], Array]], Any]:
    """E of a function of x under a density."""
    nodes = line_nodes(density, density)
    mass = np.exp(nodes.log_mass(density))
    seen = mass > 0
    x, mass = nodes.x[seen], mass[seen] / mass[seen].sum()
    return lambda f: f(x) @ mass


def _rule(p: Density, q: Density, panels: Panels) -> Array:
    half = (panels.high - panels.low) / 2
    u = (panels.low + half)[:, None] + half[:, None] * _U
    origin, offset, step = panels.at(u)
    values = terms(p.log_density(origin, offset) + step, q.log_density(origin, offset) + step)
    return (np.where(np.isfinite(values), values, 0.0) @ _W) * half


def _counts(p: Density, q: Density) -> Nodes:
    low, high = min(p.support[0], q.support[0]), max(p.support[1], q.support[1])
    if high - low > _WIDE:
        places = [(place - 60 * width - 60, place + 60 * width + 60) for place, width in (*p.anchors, *q.anchors)]
        low, high = max(low, floor(min(first for first, _ in places))), min(high, ceil(max(last for _, last in places)))
        if high - low > _WIDE:
            high = low + _WIDE
        # far tails of slow laws: out to where neither counts
        while high < min(p.support[1], q.support[1], low + _WIDE) and _counts_at(p, q, high):
            high = min(low + _WIDE, low + 2 * (high - low))
    k = np.arange(low, high + 1.0) if high < inf else np.arange(low, low + _WIDE)
    return Nodes(k, np.zeros_like(k), np.zeros_like(k))


def _counts_at(p: Density, q: Density, k: float) -> bool:
    at, zero = np.asarray([k]), np.zeros(1)
    return max(float(p.log_density(at, zero)[0]), float(q.log_density(at, zero)[0])) > -75
