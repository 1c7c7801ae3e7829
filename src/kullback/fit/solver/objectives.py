"""What a descent descends: KL between a target and a family's members, either way or between, or a cross-entropy."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from typing import NamedTuple

import numpy as np

from kullback import families
from kullback.densities.density import Density
from kullback.densities.from_families import as_density
from kullback.densities.integrand import terms
from kullback.densities.nodes import Nodes, line_nodes
from kullback.densities.quadrature import kl_quadrature
from kullback.densities.summation import kl_summation
from kullback.discrete.power_divergences import alpha_family
from kullback.errors import ParameterError
from kullback.fit.solver.parametrisation import Coordinates
from kullback.fit.solver.trust_region import Model, Problem, nowhere, units
from kullback.numerics.arrays import Array

__all__ = ["Likelihood", "LocalObjective", "by_differences", "divergence_of", "problem_on_the_line"]


_STEP = 1e-3  # in units of the members' own scale
_OVERFLOW = 1e150  # a sum that was on its way to inf


class LocalObjective(NamedTuple):
    """What is descended near one member, on nodes that resolve it.

    Args:
        value: Called with vectors (m, k); the values there, nats, shape (m,).
        log_prob: Called with vectors (m, k); the members' log-densities at some places, (m, places).
        mass: What each place weighs in the members' own metric, (places,).
    """

    value: Callable[[Array], Array]
    log_prob: Callable[[Array], Array]
    mass: Array


def by_differences(local: LocalObjective, vector: Array) -> Model:
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


def _around(local: LocalObjective, vector: Array, basis: Array) -> Array:
    """The values here, at four places along each axis, and at four for each pair of axes."""
    axes = _STEP * basis.T
    moves = [np.zeros(vector.size)]
    for axis in axes:
        moves += [axis, -axis, 2 * axis, -2 * axis]
    for i, j in _pairs(vector.size):
        moves += [axes[i] + axes[j], axes[i] - axes[j], axes[j] - axes[i], -axes[i] - axes[j]]
    with np.errstate(all="ignore"):
        return local.value(vector + np.asarray(moves))


def _metric(local: LocalObjective, vector: Array) -> Array:
    """The Fisher metric."""
    size, h = vector.size, 1e-5
    moves = h * np.eye(size)
    with np.errstate(all="ignore"):
        logs = local.log_prob(np.concatenate([vector + moves, vector - moves]))
        scores = (logs[:size] - logs[size:]) / (2 * h)
        scores = np.where(np.isfinite(scores) & (local.mass > 0), scores, 0.0)
        return (scores * local.mass) @ scores.T / float(local.mass.sum())


# Their kinks and ends move with their parameters, off any nodes.
_MOVING = (families.Laplace, families.Pareto, families.Uniform)
_UNSEEN = 1e-13  # of the mass


def problem_on_the_line(chart: Coordinates, target: Density, *, alpha: float) -> Problem:
    """The alpha-divergence of target and member: KL(target || member) at alpha = 1, KL(member || target) at 0."""
    return (_RemeshedObjective if issubclass(chart.kind, _MOVING) else _OnNodes)(chart, target, alpha)


def member(chart: Coordinates, vector: Array) -> Density:
    """The density of the member that is there."""
    with np.errstate(all="ignore"):
        density = as_density(chart.record(vector))
    if density is not None and not all(isfinite(part) for anchor in density.anchors for part in anchor):
        raise ParameterError(f"expected parameters that floats hold, got {chart.kind.__name__} at {vector.tolist()}")
    if density is None:
        raise ParameterError(f"expected a family on the line, got {chart.kind.__name__}; its samples can be fitted")
    return density


@dataclass(frozen=True)
class _OnNodes:
    chart: Coordinates
    target: Density
    alpha: float

    def model(self, vector: Array) -> Model:
        here = member(self.chart, vector)
        nodes = line_nodes(*((self.target, here) if self.alpha > 0 else (here, self.target)))
        log_target = nodes.log_mass(self.target)

        def log_prob(vectors: Array) -> Array:
            return np.stack([nodes.log_mass(member(self.chart, one)) for one in vectors])

        def value(vectors: Array) -> Array:
            return divergence_of(log_target, log_prob(vectors), self.alpha)

        return by_differences(LocalObjective(value, log_prob, np.exp(nodes.log_mass(here))), vector)


def divergence_of(log_p: Array, log_q: Array, alpha: float) -> Array:
    """The alpha-divergence of masses on nodes, shape (..., nodes), in nats."""
    if alpha == 1:
        return _sums(log_p, log_q)
    if alpha == 0:
        return _sums(log_q, log_p)
    with np.errstate(all="ignore"):
        log_p, log_q = np.broadcast_arrays(log_p, log_q)
        d = np.where((log_p == -inf) & (log_q == -inf), 0.0, log_q - log_p)
        return alpha_family(alpha)[0](np, np.exp(log_p), np.exp(log_q), d)


def _sums(log_p: Array, log_q: Array) -> Array:
    """KL(p || q) of masses on nodes; a q that underflowed where p is nothing to speak of is no infinity."""
    with np.errstate(all="ignore"):
        log_p, log_q = np.broadcast_arrays(log_p, log_q)
        blind = (log_q == -inf) & (log_p > -inf)
        values, mass_p, _ = terms(log_p, log_q)
        lost = np.where(blind, mass_p, 0.0).sum(axis=-1)
        return np.where(lost > _UNSEEN, inf, np.where(blind, 0.0, values).sum(axis=-1))


@dataclass(frozen=True)
class _RemeshedObjective:
    """The same, with new nodes for every member."""

    chart: Coordinates
    target: Density
    alpha: float

    def model(self, vector: Array) -> Model:
        here = member(self.chart, vector)
        low, high = here.support
        nodes = line_nodes(here, here)
        inside = (nodes.x > low) & (nodes.x < high)
        nodes = Nodes(*(part[inside] for part in (nodes.origin, nodes.offset, nodes.log_weight)))

        def value(vectors: Array) -> Array:
            return np.asarray([self._kl(member(self.chart, one)) for one in vectors])

        def log_prob(vectors: Array) -> Array:
            return np.stack([nodes.log_mass(_smooth(self.chart, one)) for one in vectors])

        return by_differences(LocalObjective(value, log_prob, np.exp(nodes.log_mass(here))), vector)

    def _kl(self, here: Density) -> float:
        pair = (self.target, here) if self.alpha > 0 else (here, self.target)
        if 0 < self.alpha < 1:
            nodes = line_nodes(*pair)
            return float(divergence_of(nodes.log_mass(self.target), nodes.log_mass(here), self.alpha))
        return (kl_summation if here.discrete else kl_quadrature)(*pair, error=1e-13).value


def _smooth(chart: Coordinates, vector: Array) -> Density:
    """The member; of a uniform, whose ends no score sees, the normal of its mean and width."""
    record = chart.record(vector)
    if not isinstance(record, families.Uniform):
        return member(chart, vector)
    low, high = float(record.low), float(record.high)  # pyright: ignore[reportArgumentType]
    density = as_density(families.Normal(loc=low / 2 + high / 2, scale=(high - low) / 12**0.5))
    assert density is not None
    return density


@dataclass(frozen=True)
class Likelihood:
    """The cross-entropy of samples: -mean log q(x), which is KL(samples' law || q) but for a constant.

    Args:
        chart: The family.
        x: Samples on the line, shape (n,).
        weights: What each counts, shape (n,), summing to 1.
    """

    chart: Coordinates
    x: Array
    weights: Array

    def model(self, vector: Array) -> Model:
        zeros = np.zeros_like(self.x)

        def log_prob(vectors: Array) -> Array:
            return np.stack([member(self.chart, one).log_density(self.x, zeros) for one in vectors])

        def value(vectors: Array) -> Array:
            return -(log_prob(vectors) @ self.weights)

        return by_differences(LocalObjective(value, log_prob, self.weights), vector)
