"""Objectives over univariate families: the alpha-divergence to a target, and the cross-entropy of samples.

Each objective gives its second-order model by finite differences in steps that the Fisher metric normalises.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from kullback import families
from kullback.closed_forms.supports import has_moving_support
from kullback.densities.density import Density
from kullback.densities.from_families import as_density
from kullback.densities.integral import kl_integral
from kullback.densities.integrand import terms
from kullback.densities.nodes import Nodes, line_nodes
from kullback.discrete.power_divergences import alpha_family
from kullback.errors import ParameterError, SupportError
from kullback.families import Distribution
from kullback.fit.solver.normal_mixtures import mixture_derivatives
from kullback.fit.solver.parametrisation import FamilyParametrisation
from kullback.fit.solver.trust_region import Objective, QuadraticModel, fisher_basis, infinite_model
from kullback.numerics.arrays import Array

__all__ = ["CrossEntropyObjective", "univariate_objective"]

_NEGLIGIBLE_MASS = 1e-13
_DIFFERENCE_STEP = 1e-3  # in the Fisher metric
_SCORE_STEP = 1e-5  # in the coordinates divided by their scales
_OVERFLOW = 1e150
_NEARLY_SINGULAR = 1e-4  # the smallest eigenvalue of a metric with a diagonal of ones
_LEAST_INFORMATION = 3e-3  # of a coordinate, relative to the largest, where the samples hardly depend on it
_NEGLIGIBLE_DENSITY = 3.0  # standard deviations from a normal that is fitted to one sample
_UNDERFLOW = 40.0  # standard deviations from a normal at which its density underflows in float64
_COST_OF_MEMBER = 2000  # the time to construct a member, in simple log-densities
_QUADRATURES = 100  # of an adaptive integral, relative to the sum over fixed nodes


# The alpha-divergence to a target


def univariate_objective(
    parametrisation: FamilyParametrisation,
    target: Density,
    *,
    alpha: float,
    divergence: Callable[[Distribution], float] | None = None,
) -> Objective:
    """The alpha-divergence between a target and the members of a univariate family.

    Args:
        parametrisation: The coordinates of the family.
        target: The density of the target.
        alpha: The order: KL(target || member) at 1, KL(member || target) at 0.
        divergence: The divergence of a member, which replaces sums over nodes that several members share; None for
            these sums.
    """
    family = parametrisation.family
    # The nodes of a member do not resolve the ends of the support, or the kink of the density, of another member.
    has_moving_singularities = has_moving_support(family) or issubclass(family, families.Laplace)
    if divergence is not None or has_moving_singularities:
        return _RemeshedObjective(parametrisation, target, alpha, divergence)
    if alpha in (0, 1) and family in _STANDARD_SCORES:
        return _LocationScaleObjective(parametrisation, target, alpha)
    return _SharedNodesObjective(parametrisation, target, alpha)


@dataclass(frozen=True)
class _SharedNodesObjective:
    """The alpha-divergence of smooth families: the nodes of one member also serve its neighbours."""

    parametrisation: FamilyParametrisation
    target: Density
    alpha: float

    def quadratic_model(self, vector: Array) -> QuadraticModel:
        center = _member_density(self.parametrisation, vector)
        nodes = line_nodes(*((self.target, center) if self.alpha > 0 else (center, self.target)))
        log_target = nodes.log_mass(self.target)
        if self.parametrisation.family is families.NormalMixture and self.alpha in (0, 1):
            log_member = nodes.log_mass(center)
            divergence = float(_alpha_divergence(log_target, log_member, self.alpha))
            p, q = np.exp(log_target), np.exp(log_member)
            with np.errstate(invalid="ignore"):
                log_ratio = np.where((p > 0) & (q > 0), log_member - log_target, 0.0)
            # The integrands are p log(p/q) - p + q and q log(q/p) - q + p, which vanish at each node where p = q.
            coefficients = (q - p, q, q) if self.alpha else (q * log_ratio, q * (log_ratio + 1), q)
            points = nodes.origin, nodes.offset
            return _model_of_mixture(self.parametrisation, vector, divergence, points, coefficients)

        def log_prob(vectors: Array) -> Array:
            return np.stack([nodes.log_mass(_member_density(self.parametrisation, v)) for v in vectors])

        def value(vectors: Array) -> Array:
            return _alpha_divergence(log_target, log_prob(vectors), self.alpha)

        scales = self.parametrisation.scales_of_coordinates(vector)
        return _finite_difference_model(
            _LocalObjective(value, log_prob, np.exp(nodes.log_mass(center)), scales), vector
        )


@dataclass(frozen=True)
class _RemeshedObjective:
    """The alpha-divergence of families with moving singularities: each neighbour is integrated on separate nodes.

    Args:
        parametrisation: The coordinates of the family.
        target: The density of the target.
        alpha: The order.
        given: The divergence of a member; None for integrals of the densities.
    """

    parametrisation: FamilyParametrisation
    target: Density
    alpha: float
    given: Callable[[Distribution], float] | None = None

    def quadratic_model(self, vector: Array) -> QuadraticModel:
        center = _member_density(self.parametrisation, vector)
        low, high = center.support
        nodes = line_nodes(center, center)
        inside = (nodes.x > low) & (nodes.x < high)
        nodes = Nodes(*(part[inside] for part in (nodes.origin, nodes.offset, nodes.log_weight)))

        def value(vectors: Array) -> Array:
            return np.asarray([self._divergence(v) for v in vectors])

        def log_prob(vectors: Array) -> Array:
            return np.stack([nodes.log_mass(_smooth_density(self.parametrisation, v)) for v in vectors])

        scales = self.parametrisation.scales_of_coordinates(vector)
        local = _LocalObjective(value, log_prob, np.exp(nodes.log_mass(center)), scales, _QUADRATURES)
        return _finite_difference_model(local, vector)

    def _divergence(self, vector: Array) -> float:
        if self.given is not None:
            return self.given(self.parametrisation.to_distribution(vector))
        member = _member_density(self.parametrisation, vector)
        pair = (self.target, member) if self.alpha > 0 else (member, self.target)
        if 0 < self.alpha < 1:
            nodes = line_nodes(*pair)
            return float(_alpha_divergence(nodes.log_mass(self.target), nodes.log_mass(member), self.alpha))
        try:
            estimate = kl_integral(*pair, error=1e-13)
        except SupportError:  # float64 does not resolve the member
            return inf
        # The value of an integral of which a part is missing can be far below the divergence.
        return estimate.value if isfinite(estimate.error) else inf


def _member_density(parametrisation: FamilyParametrisation, vector: Array) -> Density:
    """The density of the member at a vector.

    Raises:
        ParameterError: The parameters overflow, or the family is not univariate.
    """
    with np.errstate(all="ignore"):
        return _density_of(parametrisation.to_distribution(vector), vector)


def _density_of(member: Any, vector: Array) -> Density:
    """The density of a member, whose coordinates are for messages, as in `_member_density`."""
    family = type(member).__name__
    try:
        density = as_density(member)
    except SupportError as error:  # float64 does not represent the values of the member
        raise ParameterError(f"{error}, at the coordinates {vector.tolist()}") from error
    if density is not None and not all(isfinite(part) for anchor in density.anchors for part in anchor):
        raise ParameterError(f"expected finite parameters, got {family} at the coordinates {vector.tolist()}")
    if density is None:
        raise ParameterError(f"expected a univariate family, got {family}; fit it to samples instead")
    return density


def _smooth_density(parametrisation: FamilyParametrisation, vector: Array) -> Density:
    """The density of the member; for a uniform, whose score is zero almost everywhere, the normal of equal moments."""
    member = parametrisation.to_distribution(vector)
    if not isinstance(member, families.Uniform):
        return _member_density(parametrisation, vector)
    low, high = float(member.low), float(member.high)  # pyright: ignore[reportArgumentType]
    density = as_density(families.Normal(loc=low / 2 + high / 2, scale=(high - low) / 12**0.5))
    assert density is not None
    return density


def _alpha_divergence(log_p: Array, log_q: Array, alpha: float) -> Array:
    """The alpha-divergence of log-masses on common nodes, shape (..., nodes), in nats."""
    if alpha == 1:
        return _kl_on_nodes(log_p, log_q)
    if alpha == 0:
        return _kl_on_nodes(log_q, log_p)
    with np.errstate(all="ignore"):
        log_p, log_q = np.broadcast_arrays(log_p, log_q)
        d = np.where((log_p == -inf) & (log_q == -inf), 0.0, log_q - log_p)
        return alpha_family(alpha)[0](np, np.exp(log_p), np.exp(log_q), d)


def _kl_on_nodes(log_p: Array, log_q: Array) -> Array:
    """KL(p || q) of log-masses on common nodes, shape (..., nodes), in nats.

    The value is `inf` only if the mass of p where q is zero is not negligible, because q may have underflowed there.
    """
    with np.errstate(all="ignore"):
        log_p, log_q = np.broadcast_arrays(log_p, log_q)
        q_is_zero = (log_q == -inf) & (log_p > -inf)
        values, mass_p, _ = terms(log_p, log_q)
        mass_outside = np.where(q_is_zero, mass_p, 0.0).sum(axis=-1)
        return np.where(mass_outside > _NEGLIGIBLE_MASS, inf, np.where(q_is_zero, 0.0, values).sum(axis=-1))


# KL between a target and families of location and scale

_SHARED_NODES_RADIUS = 0.25  # the Fisher distance over which members share nodes: 0.03 nats
# The time of a model relative to one log-density per node, with new and with shared nodes.
_NEW_NODES, _SHARED_NODES = 24, 8
# For the log-density -log(scale) + g(z), z = (x - loc)/scale: the derivatives g'(z) and g''(z). The lognormal has
# z = (log x - loc)/scale.
_STANDARD_SCORES: dict[type, Callable[[Array], tuple[Array, Array]]] = {
    families.Cauchy: lambda z: (-2 * z / (1 + z * z), -2 * (1 - z * z) / (1 + z * z) ** 2),
    families.Gumbel: lambda z: (np.expm1(-z), -np.exp(-z)),
    families.Logistic: lambda z: (-np.tanh(z / 2), -0.5 / np.cosh(z / 2) ** 2),
    families.LogNormal: lambda z: (-z, np.full_like(z, -1.0)),
    families.Normal: lambda z: (-z, np.full_like(z, -1.0)),
}


class _NodesOfMember(NamedTuple):
    """The nodes that resolve a member and the target, for members at a small Fisher distance."""

    vector: Array
    inverse_basis: Array
    nodes: Nodes
    log_target: Array


@dataclass(frozen=True)
class _LocationScaleObjective:
    """KL(member || target) at alpha 0, or KL(target || member) at 1, by the derivatives of the member's log-density.

    With the score s, its derivative h and d = log(q/p) at the nodes, where q is the member and p the target, the
    derivatives of KL(q || p) are sum q s d and sum q (s s^T + s s^T d + h d); the derivatives of KL(p || q) are
    sum (q - p) s and sum (q s s^T + (q - p) h).
    """

    parametrisation: FamilyParametrisation
    target: Density
    alpha: float
    _known: list[_NodesOfMember] = field(default_factory=list)

    @np.errstate(all="ignore")
    def quadratic_model(self, vector: Array) -> QuadraticModel:
        record = self.parametrisation.to_distribution(vector)
        member = _density_of(record, vector)
        near = next((known for known in self._known if _is_near(known, vector)), None)
        if near is None:
            nodes = line_nodes(*((self.target, member) if self.alpha else (member, self.target)))
            log_target = nodes.log_mass(self.target)
        else:
            nodes, log_target = near.nodes, near.log_target
        evaluations = nodes.origin.size * (_SHARED_NODES if near else _NEW_NODES)
        log_member = nodes.log_mass(member)
        value = float(_alpha_divergence(log_target, log_member, self.alpha))
        score, second = _scores(self.parametrisation, record, nodes)
        p, q = np.exp(log_target), np.exp(log_member)
        metric = (score * q) @ score.T
        if not (abs(value) < _OVERFLOW and np.isfinite(metric).all()):
            return infinite_model(vector.size)._replace(evaluations=evaluations)
        log_ratio = log_member - log_target
        excess = q - p if self.alpha else q * np.where(np.isfinite(log_ratio), log_ratio, 0.0)
        gradient, hessian = score @ excess, metric + second @ excess
        if not self.alpha:
            hessian += (score * excess) @ score.T
        basis = fisher_basis(metric / float(q.sum()))
        scales = self._scales_of_coordinates(record)[:, None]
        if near is None:
            self._known.append(_NodesOfMember(vector, np.linalg.inv(basis) / scales.T, nodes, log_target))
        return QuadraticModel(value, gradient @ basis, basis.T @ hessian @ basis, scales * basis, evaluations)

    def _scales_of_coordinates(self, member: Any) -> Array:
        """The derivative of each coordinate by the variables of `_scores`, shape (k,)."""
        return np.asarray(
            [
                np.float64(member.scale) / parameter.unit if parameter.name == "loc" else 1.0
                for parameter in self.parametrisation.free
            ]
        )


def _is_near(known: _NodesOfMember, vector: Array) -> bool:
    """Whether the nodes of a member also resolve the member at a vector."""
    return bool(np.linalg.norm(known.inverse_basis @ (vector - known.vector)) < _SHARED_NODES_RADIUS)


def _scores(parametrisation: FamilyParametrisation, member: Any, nodes: Nodes) -> tuple[Array, Array]:
    """The derivatives of the log-density by loc / scale and log scale, of shapes (k, nodes) and (k, k, nodes).

    Both variables are free of units, so that no derivative overflows. The derivatives are 0 where the density is 0.
    """
    family = parametrisation.family
    loc, scale = float(member.loc), float(member.scale)
    distance = np.log(nodes.x) - loc if family is families.LogNormal else (nodes.origin - loc) + nodes.offset
    z = distance / scale
    first, second = _STANDARD_SCORES[family](z)
    by_loc, by_log_scale = -first, -1 - z * first
    mixed = first + z * second
    rows = ["loc", "scale"]
    free = [rows.index(parameter.name) for parameter in parametrisation.free]
    score = np.stack([by_loc, by_log_scale])[free]
    curvature = np.stack([second, mixed, mixed, z * mixed]).reshape(2, 2, -1)
    curvature = curvature[np.ix_(free, free)]
    return tuple(np.where(np.isfinite(part), part, 0.0) for part in (score, curvature))  # pyright: ignore[reportReturnType]


def _model_of_mixture(
    parametrisation: FamilyParametrisation,
    vector: Array,
    value: float,
    points: tuple[Array, Array],
    coefficients: tuple[Array, Array, Array],
    *,
    is_empirical: bool = False,
) -> QuadraticModel:
    """The second-order model of an objective over normal mixtures, from the arguments of `mixture_derivatives`."""
    evaluations = points[0].size * vector.size + _COST_OF_MEMBER
    gradient, hessian, metric = mixture_derivatives(parametrisation, vector, points, *coefficients)
    if not (abs(value) < _OVERFLOW and np.isfinite(metric).all() and np.isfinite(hessian).all()):
        return infinite_model(vector.size)._replace(evaluations=evaluations)
    basis = fisher_basis(_well_conditioned(metric) if is_empirical else metric)
    scales = parametrisation.scales_of_coordinates(vector)[:, None]
    return QuadraticModel(value, gradient @ basis, basis.T @ hessian @ basis, scales * basis, evaluations)


# The cross-entropy of samples


@dataclass(frozen=True)
class CrossEntropyObjective:
    """The cross-entropy -sum_n w_n log q(x_n) of samples, in nats: KL(p || q) plus the entropy of p.

    Args:
        parametrisation: The coordinates of the family.
        x: The samples, shape (n,).
        weights: The weights of the samples, shape (n,), with sum 1.
    """

    parametrisation: FamilyParametrisation
    x: Array
    weights: Array

    def quadratic_model(self, vector: Array) -> QuadraticModel:
        """The second-order model of the cross-entropy at a vector."""
        if self.only_sample_of_a_component(vector, _UNDERFLOW) is not None:
            return infinite_model(vector.size)
        zeros = np.zeros_like(self.x)
        if self.parametrisation.family is families.NormalMixture:
            return self._mixture_model(vector)

        def log_prob(vectors: Array) -> Array:
            return np.stack([_member_density(self.parametrisation, v).log_density(self.x, zeros) for v in vectors])

        def value(vectors: Array) -> Array:
            return -(log_prob(vectors) @ self.weights)

        def metric_of_member() -> Array | None:
            center = _member_density(self.parametrisation, vector)
            try:
                nodes = line_nodes(center, center)
            except SupportError:  # float64 does not resolve the member
                return None

            def log_mass(vectors: Array) -> Array:
                return np.stack([nodes.log_mass(_member_density(self.parametrisation, v)) for v in vectors])

            return _fisher_metric(log_mass, np.exp(nodes.log_mass(center)), scales, vector)

        scales = self.parametrisation.scales_of_coordinates(vector)
        # At a minimum, where the mean of the scores is 0, the scores of k values have at most k - 1 dimensions.
        metric = metric_of_member() if self._values.size <= vector.size else None
        local = _LocalObjective(value, log_prob, self.weights, scales, is_empirical=True, metric=metric)
        return _finite_difference_model(local, vector)

    def _mixture_model(self, vector: Array) -> QuadraticModel:
        """The second-order model of the cross-entropy of a normal mixture."""
        points = self.x, np.zeros_like(self.x)
        member = _member_density(self.parametrisation, vector)
        with np.errstate(all="ignore"):
            value = -float(member.log_density(*points) @ self.weights)
        coefficients = -self.weights, np.zeros_like(self.x), self.weights
        return _model_of_mixture(self.parametrisation, vector, value, points, coefficients, is_empirical=True)

    @cached_property
    def _values(self) -> Array:
        """The different samples, in increasing order."""
        return np.unique(self.x)

    def only_sample_of_a_component(self, vector: Array, deviations: float = _NEGLIGIBLE_DENSITY) -> float | None:
        """The only sample within so many standard deviations of a component of a normal mixture; None if there is none.

        Where the density of the component is negligible at all other samples, the likelihood increases without bound as
        the scale of the component decreases.
        """
        is_mixture = self.parametrisation.family is families.NormalMixture
        if not is_mixture or "scales" in self.parametrisation.fixed:
            return None
        with np.errstate(all="ignore"):
            mixture: Any = self.parametrisation.to_distribution(vector)
        values = self._values
        for loc, scale in zip(np.atleast_1d(mixture.locs), np.atleast_1d(mixture.scales), strict=True):
            covered = values[np.searchsorted(values, loc - deviations * scale) :]
            covered = covered[: np.searchsorted(covered, loc + deviations * scale, side="right")]
            if covered.size == 1:
                return float(covered[0])
        return None

    def is_unbounded(self, vector: Array) -> bool:
        """Whether the likelihood increases without bound as the scale of a component decreases."""
        return self.only_sample_of_a_component(vector) is not None


# The second-order model by finite differences


class _LocalObjective(NamedTuple):
    """An objective near one member.

    Args:
        value: The objective at vectors of shape (m, k), in nats, shape (m,).
        log_prob: The log-densities of the members at vectors of shape (m, k), at fixed points, shape (m, points).
        mass: The weights of the points in the Fisher metric, shape (points,).
        scales: The change of each coordinate that changes the member by about its scale, shape (k,).
        quadratures: How many quadratures, each about as large as the sum over the points, one value takes.
        is_empirical: Whether the points are samples, which may be fewer than the parameters.
        metric: The Fisher metric, shape (k, k); None for its expectation over the points.
    """

    value: Callable[[Array], Array]
    log_prob: Callable[[Array], Array]
    mass: Array
    scales: Array
    quadratures: int = 1
    is_empirical: bool = False
    metric: Array | None = None

    @property
    def evaluations_per_member(self) -> int:
        """The number of log-densities that one value of the objective takes, approximately."""
        return self.mass.size * self.quadratures + _COST_OF_MEMBER


def _finite_difference_model(local: _LocalObjective, vector: Array) -> QuadraticModel:
    """The value, gradient and Hessian at a vector, by central differences along the Fisher-normalised basis.

    The gradient and the diagonal of the Hessian are of fourth order in the step, the other second derivatives of
    second order.

    Raises:
        ParameterError: A neighbour of the member is not representable in floating point.
    """
    size, metric = vector.size, local.metric
    if metric is None:
        metric = _fisher_metric(local.log_prob, local.mass, local.scales, vector)
        metric = _well_conditioned(metric) if local.is_empirical else metric
    basis = local.scales[:, None] * fisher_basis(metric)
    values = _stencil_values(local, vector, basis)
    if not (np.abs(values) < _OVERFLOW).all():
        return infinite_model(size)._replace(evaluations=local.evaluations_per_member * values.size)
    center, along_axes = values[0], values[1 : 1 + 4 * size].reshape(size, 4)
    gradient = (8 * (along_axes[:, 0] - along_axes[:, 1]) - (along_axes[:, 2] - along_axes[:, 3])) / (
        12 * _DIFFERENCE_STEP
    )
    second = (
        16 * (along_axes[:, 0] + along_axes[:, 1] - 2 * center) - (along_axes[:, 2] + along_axes[:, 3] - 2 * center)
    ) / (12 * _DIFFERENCE_STEP**2)
    hessian = np.diag(second)
    for (i, j), diagonal in zip(_index_pairs(size), values[1 + 4 * size :].reshape(-1, 4), strict=True):
        hessian[i, j] = hessian[j, i] = (diagonal[0] - diagonal[1] - diagonal[2] + diagonal[3]) / (
            4 * _DIFFERENCE_STEP**2
        )
    return QuadraticModel(float(center), gradient, hessian, basis, local.evaluations_per_member * values.size)


def _well_conditioned(metric: Array) -> Array:
    """The empirical Fisher metric, plus a part of its diagonal where it is nearly singular.

    The metric of fewer samples than parameters is singular. Along its null space a step of unit length would be
    unbounded, and finite differences of such a step would be wrong.
    """
    information = np.diag(metric)
    largest = information.max(initial=0.0)
    scales = np.sqrt(np.maximum(information, _LEAST_INFORMATION * largest))
    if not (scales > 0).all() or not np.isfinite(scales).all():
        return metric
    if np.linalg.eigvalsh(metric / np.outer(scales, scales))[0] > _NEARLY_SINGULAR:
        return metric
    return metric + 10 * _NEARLY_SINGULAR * np.diag(scales**2)


def _stencil_values(local: _LocalObjective, vector: Array, basis: Array) -> Array:
    """The objective at the vector, at four points along each axis, and at four points for each pair of axes."""
    axes = _DIFFERENCE_STEP * basis.T
    steps = [np.zeros(vector.size)]
    for axis in axes:
        steps += [axis, -axis, 2 * axis, -2 * axis]
    for i, j in _index_pairs(vector.size):
        steps += [axes[i] + axes[j], axes[i] - axes[j], axes[j] - axes[i], -axes[i] - axes[j]]
    with np.errstate(all="ignore"):
        return local.value(vector + np.asarray(steps))


def _index_pairs(size: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(size) for j in range(i)]


def _fisher_metric(log_prob: Callable[[Array], Array], mass: Array, scales: Array, vector: Array) -> Array:
    """The Fisher information E[(d log q)(d log q)^T] in the coordinates divided by their scales, shape (k, k)."""
    size = vector.size
    steps = _SCORE_STEP * np.diag(scales)
    with np.errstate(all="ignore"):
        logs = log_prob(np.concatenate([vector + steps, vector - steps]))
        scores = (logs[:size] - logs[size:]) / (2 * _SCORE_STEP)
        scores = np.where(np.isfinite(scores) & (mass > 0), scores, 0.0)
        return (scores * mass) @ scores.T / float(mass.sum())
