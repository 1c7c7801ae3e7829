"""Objectives over mixtures of normals: KL to a two-dimensional target by the trapezoidal rule, and cross-entropy.

The trapezoidal rule converges exponentially for smooth integrands that vanish at the ends of the grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, log

import numpy as np

from kullback.densities.gaussian_mixtures import log_density_of_components
from kullback.densities.integrand import terms
from kullback.fit.gaussian.mixtures import MixtureParametrisation
from kullback.fit.solver.trust_region import QuadraticModel, fisher_basis, infinite_model
from kullback.numerics.arrays import Array

__all__ = ["MixtureCrossEntropy", "TwoDimensionalKL"]

_GRID_RADIUS = 8.6  # standard deviations; the mass of a normal beyond it is below 1e-16
_MIN_STEPS, _MAX_STEPS = 12, 384  # from the centre of the grid to one side
Steps = tuple[int, ...]  # for each axis of the Cholesky factor of a component


@dataclass(frozen=True)
class TwoDimensionalKL:
    """KL(member || target), or KL(target || member), over mixtures of two-dimensional normals, in nats.

    Args:
        parametrisation: The coordinates of two-dimensional mixtures.
        log_prob: The normalised log-density of the target at points of shape (n, 2).
        target: The log-weights, means and Cholesky factors of the target, for KL(target || member); None for
            KL(member || target).
        target_nodes: A cache of the nodes around the target, by the number of steps.
    """

    parametrisation: MixtureParametrisation
    log_prob: Callable[[Array], Array]
    target: tuple[Array, Array, Array] | None = None
    target_nodes: dict[Steps, tuple[Array, Array, Array]] = field(default_factory=dict)

    def quadratic_model(self, vector: Array) -> QuadraticModel:
        """The second-order model of KL at a vector."""
        value, _, x, log_member, log_target = self._refine(vector)
        if not value < inf:
            return infinite_model(vector.size)
        # The integrands are q log(q/p) - q + p and p log(p/q) - p + q, which vanish at each node where p = q.
        weight = np.exp(log_target if self.target else log_member)
        slope = (
            np.exp(log_member) - weight if self.target else weight * np.where(weight > 0, log_member - log_target, 0.0)
        )
        return _in_fisher_basis(value, *self.parametrisation.expansion(vector, x, slope, weight))

    def error(self, vector: Array) -> float:
        """A bound on the quadrature error of KL at a vector, in nats.

        The bound is twice the change of KL when the number of steps is doubled: where the target has kinks the error
        is four thirds of the change, and for smooth targets it is close to the change.
        """
        value, steps, *_ = self._refine(vector)
        doubled = steps[0] * 2, steps[1] * 2
        return 2 * abs(self._kl(*self._log_masses(vector, doubled)[1:]) - value) + 1e-13 * (1 + value)

    def _refine(self, vector: Array) -> tuple[float, Steps, Array, Array, Array]:
        """KL at a vector on a grid that is refined until KL converges.

        Returns:
            KL, the number of steps, the nodes, and the log-masses of the member and of the target at the nodes.
        """
        steps, masses = (_MIN_STEPS, _MIN_STEPS), self._log_masses(vector, (_MIN_STEPS, _MIN_STEPS))
        value, unconverged_axes = self._kl(*masses[1:]), [0, 1]
        while unconverged_axes and value < inf:
            for axis in list(unconverged_axes):
                steps = tuple(count * 2 if i == axis else count for i, count in enumerate(steps))
                masses = self._log_masses(vector, steps)
                before, value = value, self._kl(*masses[1:])
                # The error is squared when the number of steps is doubled.
                if abs(before - value) < 1e-8 * max(1.0, value) or max(steps) >= _MAX_STEPS:
                    unconverged_axes.remove(axis)
        return value, steps, *masses

    def _log_masses(self, vector: Array, steps: Steps) -> tuple[Array, Array, Array]:
        """The nodes, and the log-masses of the member and of the target at the nodes."""
        x, log_weight, log_target = self._target_nodes(steps) if self.target else self._member_nodes(vector, steps)
        return x, self.parametrisation.log_density(vector, x) + log_weight, log_target

    def _member_nodes(self, vector: Array, steps: Steps) -> tuple[Array, Array, Array]:
        x, log_weight = _nodes(*self.parametrisation.to_log_weights_locs_factors(vector), steps)
        return x, log_weight, self.log_prob(x) + log_weight

    def _target_nodes(self, steps: Steps) -> tuple[Array, Array, Array]:
        assert self.target is not None
        if steps not in self.target_nodes:
            x, log_weight = _nodes(*self.target, steps)
            self.target_nodes[steps] = x, log_weight, self.log_prob(x) + log_weight
        return self.target_nodes[steps]

    @np.errstate(all="ignore")
    def _kl(self, log_member: Array, log_target: Array) -> float:
        """KL of log-masses on nodes; the mass beyond the grid is 1 minus the mass on it."""
        pair = (log_target, log_member) if self.target else (log_member, log_target)
        term, p, q = terms(*pair).sum(axis=-1)
        return max(0.0, float(term + (1 - q) - (1 - p)))  # rounding errors may make the sum negative


@dataclass(frozen=True)
class MixtureCrossEntropy:
    """The cross-entropy -sum_n w_n log q(x_n) of samples over mixtures of multivariate normals, in nats.

    Args:
        parametrisation: The coordinates of the mixtures.
        x: The samples, shape (n, d).
        weights: The weights of the samples, shape (n,), with sum 1.
    """

    parametrisation: MixtureParametrisation
    x: Array
    weights: Array

    def quadratic_model(self, vector: Array) -> QuadraticModel:
        """The second-order model of the cross-entropy at a vector."""
        value = -float(self.parametrisation.log_density(vector, self.x) @ self.weights)
        return _in_fisher_basis(value, *self.parametrisation.expansion(vector, self.x, -self.weights, self.weights))


def _in_fisher_basis(value: float, gradient: Array, hessian: Array, metric: Array) -> QuadraticModel:
    """The second-order model with gradient and Hessian transformed from the coordinates to the Fisher basis."""
    basis = fisher_basis(metric)
    return QuadraticModel(value, basis.T @ gradient, basis.T @ hessian @ basis, basis)


def _nodes(log_weights: Array, locs: Array, factors: Array, steps: Steps) -> tuple[Array, Array]:
    """Nodes around each component of a mixture, shape (n, 2), and the logarithms of their quadrature weights.

    The nodes of a component are weighted by its responsibility, so that the sum over all nodes is one integral.
    """
    axes = [np.linspace(-_GRID_RADIUS, _GRID_RADIUS, 2 * count + 1) for count in steps]
    z = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    z = z[(z * z).sum(axis=1) <= _GRID_RADIUS**2]
    log_area = sum(log(axis[1] - axis[0]) for axis in axes)
    nodes, log_node_weights = [], []
    for k in range(len(locs)):
        x = locs[k] + z @ factors[k].T
        log_weight = np.full(len(z), log_area + float(np.log(np.diag(factors[k])).sum()))
        if len(locs) > 1:
            log_joint = log_density_of_components(log_weights[k : k + 1], locs[k : k + 1], factors[k : k + 1], x)
            log_weight += log_joint - log_density_of_components(log_weights, locs, factors, x)
        nodes.append(x)
        log_node_weights.append(log_weight)
    return np.concatenate(nodes), np.concatenate(log_node_weights)
