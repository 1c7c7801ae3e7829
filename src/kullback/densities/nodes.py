"""Quadrature nodes and weights that resolve two densities, for repeated sums over members of a family near them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from kullback.densities.density import Density, require_resolved_counts
from kullback.densities.integrand import terms
from kullback.densities.panels import Panels, Ray, assemble, partition
from kullback.densities.summation import exact_ranges, gaps_between, interpolated
from kullback.densities.tails import Tail, analyse_tail
from kullback.numerics.arrays import Array

__all__ = ["Nodes", "line_nodes", "mean_of"]

_U, _W = np.polynomial.legendre.leggauss(15)
_MANY_PANELS, _ROUNDING_ERROR = 200, 1e-9
_MAX_COUNTS = 2**16  # integers that serve as nodes


@dataclass(frozen=True)
class Nodes:
    """Quadrature nodes x = origin + offset on the real line, or integers.

    Args:
        origin: The point from which each node is measured, shape (n,).
        offset: The distance from the origin, with its sign, shape (n,).
        log_weight: The logarithm of the quadrature weight of each node, shape (n,). It is 0 for single integers; nodes
            with other weights, which need not be integers, stand for many integers.
        kl_beyond: The extrapolated part of KL(p || q), in nats, that is beyond the nodes of p and q; `inf` if it
            diverges.
    """

    origin: Array
    offset: Array
    log_weight: Array
    kl_beyond: float = 0.0

    @property
    def x(self) -> Array:
        return self.origin + self.offset

    def log_mass(self, density: Density) -> Array:
        """The log-density at each node plus the log of the node's weight; between integers, it is interpolated."""
        with np.errstate(all="ignore"):
            if density.discrete and (self.log_weight != 0).any():
                density = interpolated(density, *density.support)
            return density.log_density(self.origin, self.offset) + self.log_weight


def line_nodes(p: Density, q: Density) -> Nodes:
    """Nodes that resolve p, q and the integrand of KL(p || q) to about the accuracy of float64."""
    if p.discrete:
        return _counts(p, q)
    with np.errstate(all="ignore"):
        intervals, rays = partition(p, q)
        tails = [analyse_tail(p, q, *ray) for ray in rays]
        panels = assemble(intervals, rays, [tail.reach for tail in tails])
        whole, kept = _rule(p, q, panels), []
        last_error = inf
        for _ in range(12):
            halves = panels.halve()
            parts = _rule(p, q, halves)
            count = panels.low.size
            error = np.abs(parts[:, :count] + parts[:, count:] - whole)
            again = (error > 1e-15 * np.maximum(1.0, np.abs(whole))).any(axis=0)
            kept.append(halves.pick(np.concatenate([~again, ~again])))
            if not again.any():
                break
            both = np.concatenate([again, again])
            panels, whole = halves.pick(both), parts[:, both]
            remaining_error = float(error[:, again].sum())
            # Halving reduces the error of a smooth integrand by a large factor, and rounding errors by about 2.
            is_rounding = again.sum() > _MANY_PANELS and last_error / 8 < remaining_error < _ROUNDING_ERROR
            if again.sum() > 2000 or is_rounding:
                kept.append(panels)
                break
            last_error = remaining_error
        else:
            kept.append(panels)
        table = Panels(*(np.concatenate(parts) for parts in zip(*kept, strict=True)))
        half = (table.high - table.low) / 2
        u = (table.low + half)[:, None] + half[:, None] * _U
        origin, offset, step = table.at(u)
        logs = step + np.log(half)[:, None] + np.log(_W)
        far = _tail_nodes(p, rays, tails)
    parts = zip((origin, offset, logs), far, strict=True)
    return Nodes(
        *(np.concatenate([np.ravel(part), more]) for part, more in parts), kl_beyond=sum(tail.kl for tail in tails)
    )


def _tail_nodes(p: Density, rays: list[Ray], tails: list[Tail]) -> Array:
    """Origin, offset and log-weight of a node for each tail towards an end, with the mass of p beyond the reach.

    Those points are nearer to the end than float64 resolves.
    """
    ends = [
        (ray.origin, ray.scale * np.exp(-tail.reach), tail.mass_p)
        for ray, tail in zip(rays, tails, strict=True)
        if ray.growth < 0 and tail.mass_error is not None and tail.mass_p > 0
    ]
    if not ends:
        return np.zeros((3, 0))
    origin, offset, mass = np.asarray(ends).T
    return np.stack([origin, offset, np.log(mass) - p.log_density(origin, offset)])


def mean_of(density: Density, nodes: Nodes) -> Callable[[Callable[[Array], Array]], Any]:
    """The expectation operator of a density: a function that maps f to E[f(x)], by quadrature or summation."""
    mass = np.exp(nodes.log_mass(density))
    positive = mass > 0
    x, mass = nodes.x[positive], mass[positive] / mass[positive].sum()
    return lambda f: f(x) @ mass


def _rule(p: Density, q: Density, panels: Panels) -> Array:
    """The integrals of p phi(log q/p), p and q over each panel, shape (3, panels)."""
    half = (panels.high - panels.low) / 2
    u = (panels.low + half)[:, None] + half[:, None] * _U
    origin, offset, step = panels.at(u)
    values = terms(p.log_density(origin, offset) + step, q.log_density(origin, offset) + step)
    return (np.where(np.isfinite(values), values, 0.0) @ _W) * half


def _counts(p: Density, q: Density) -> Nodes:
    """The integers of both supports; of supports with more than 2^16 integers, those around the anchors.

    Where these are more than 2^16, nodes between the integers stand for many of them.
    """
    require_resolved_counts(p, q)
    low, high = min(p.support[0], q.support[0]), max(p.support[1], q.support[1])
    if high - low > _MAX_COUNTS:
        ranges = [(at - 60 * width - 60, at + 60 * width + 60) for at, width in (*p.anchors, *q.anchors)]
        low = max(low, float(np.floor(min(first for first, _ in ranges))))
        high = min(high, float(np.ceil(max(last for _, last in ranges))))
        top = min(p.support[1], q.support[1])
        # heavy tails are extended until both probabilities are negligible
        while high < top and high - low <= _MAX_COUNTS and _is_not_negligible(p, q, high):
            high = min(top, low + 2 * (high - low))
    if high - low > _MAX_COUNTS:
        return _spaced_counts(p, q)
    k = np.arange(low, high + 1.0)
    return Nodes(k, np.zeros_like(k), np.zeros_like(k))


def _spaced_counts(p: Density, q: Density) -> Nodes:
    """The integers near ends and anchors, and quadrature nodes between them, where the probabilities are smooth."""
    low, high = min(p.support[0], q.support[0]), max(p.support[1], q.support[1])
    exact = exact_ranges(p, q)
    integers = np.concatenate([np.arange(first, last + 1.0) for first, last in exact])
    parts = [Nodes(integers, np.zeros_like(integers), np.zeros_like(integers))]
    for first, last in gaps_between(exact, low, high):
        parts.append(line_nodes(*(interpolated(density, first - 0.5, last + 0.5) for density in (p, q))))
    columns = ((part.origin, part.offset, part.log_weight) for part in parts)
    return Nodes(
        *(np.concatenate(column) for column in zip(*columns, strict=True)),
        kl_beyond=sum(part.kl_beyond for part in parts),
    )


def _is_not_negligible(p: Density, q: Density, k: float) -> bool:
    at, zero = np.asarray([k]), np.zeros(1)
    return max(float(p.log_density(at, zero)[0]), float(q.log_density(at, zero)[0])) > -75
