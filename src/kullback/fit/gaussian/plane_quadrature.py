"""Mixtures of normals in the plane near a density on it, by the trapezoid rule, which converges exponentially there."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, log

import numpy as np

from kullback.densities.gaussian_mixtures import log_density_of_components
from kullback.densities.integrand import terms
from kullback.fit.gaussian.mixtures import MixtureChart
from kullback.fit.solver.trust_region import Model, nowhere, units
from kullback.numerics.arrays import Array

__all__ = ["MixtureLikelihood", "OnPlane"]


_REACH = 8.6  # standard deviations; beyond lies 1e-17 of a normal
_FEW, _MANY = 12, 384  # steps to each side
Steps = tuple[int, ...]  # along the axes of a component's Cholesky factor


@dataclass(frozen=True)
class OnPlane:
    """KL(member || target), or KL(target || member), over mixtures of normals in the plane.

    Args:
        chart: Of two dimensions.
        log_prob: The target's, normalised, of places (n, 2).
        target: The target as logarithms of weights, means and Cholesky factors, for KL(target || member).
        known: The places around it, by their number, once they were needed.
    """

    chart: MixtureChart
    log_prob: Callable[[Array], Array]
    target: tuple[Array, Array, Array] | None = None
    known: dict[Steps, tuple[Array, Array, Array]] = field(default_factory=dict)

    def model(self, vector: Array) -> Model:
        value, _, x, mine, log_target = self._resolved(vector)
        if not value < inf:
            return nowhere(vector.size)
        # Of q log(q/p) - q + p, or p log(p/q) - p + q: nothing is left of either where p is q, on however few places.
        weight = np.exp(log_target if self.target else mine)
        slope = np.exp(mine) - weight if self.target else weight * np.where(weight > 0, mine - log_target, 0.0)
        return _model(value, *self.chart.expansion(vector, x, slope, weight))

    def error(self, vector: Array) -> float:
        """Twice what twice as many places move KL by there: at a target's kinks the error is four thirds of that."""
        value, steps, *_ = self._resolved(vector)
        finer = steps[0] * 2, steps[1] * 2
        return 2 * abs(self._kl(*self._masses(vector, finer)[1:]) - value) + 1e-13 * (1 + value)

    def _resolved(self, vector: Array) -> tuple[float, Steps, Array, Array, Array]:
        """KL there, the steps that it takes, and places with the masses of member and target, in logarithms."""
        steps, masses = (_FEW, _FEW), self._masses(vector, (_FEW, _FEW))
        value, growing = self._kl(*masses[1:]), [0, 1]
        while growing and value < inf:
            for axis in list(growing):
                steps = tuple(count * 2 if i == axis else count for i, count in enumerate(steps))
                masses = self._masses(vector, steps)
                before, value = value, self._kl(*masses[1:])
                # Twice as many places square the error.
                if abs(before - value) < 1e-8 * max(1.0, value) or max(steps) >= _MANY:
                    growing.remove(axis)
        return value, steps, *masses

    def _masses(self, vector: Array, steps: Steps) -> tuple[Array, Array, Array]:
        x, log_weight, log_target = self._of_target(steps) if self.target else self._around(vector, steps)
        return x, self.chart.log_density(vector, x) + log_weight, log_target

    def _around(self, vector: Array, steps: Steps) -> tuple[Array, Array, Array]:
        x, log_weight = _nodes(*self.chart.parts(vector), steps)
        return x, log_weight, self.log_prob(x) + log_weight

    def _of_target(self, steps: Steps) -> tuple[Array, Array, Array]:
        assert self.target is not None
        if steps not in self.known:
            x, log_weight = _nodes(*self.target, steps)
            self.known[steps] = x, log_weight, self.log_prob(x) + log_weight
        return self.known[steps]

    @np.errstate(all="ignore")
    def _kl(self, mine: Array, log_target: Array) -> float:
        """Of masses on nodes; what lies beyond them is the rest of 1."""
        term, p, q = terms(*((log_target, mine) if self.target else (mine, log_target))).sum(axis=-1)
        return max(0.0, float(term + (1 - q) - (1 - p)))  # the error of the sums may lie below


@dataclass(frozen=True)
class MixtureLikelihood:
    """The cross-entropy of samples over mixtures of normals, in any number of dimensions.

    Args:
        chart: The family.
        x: Samples, shape (n, d).
        weights: What each counts, shape (n,), summing to 1.
    """

    chart: MixtureChart
    x: Array
    weights: Array

    def model(self, vector: Array) -> Model:
        value = -float(self.chart.log_density(vector, self.x) @ self.weights)
        return _model(value, *self.chart.expansion(vector, self.x, -self.weights, self.weights))


def _model(value: float, gradient: Array, hessian: Array, metric: Array) -> Model:
    basis = units(metric)
    return Model(value, basis.T @ gradient, basis.T @ hessian @ basis, basis)


def _nodes(log_weights: Array, locs: Array, roots: Array, steps: Steps) -> tuple[Array, Array]:
    """Places around each component of a mixture (n, 2), and the logarithms of what integrals weigh them by.

    A component's places count by its share of the density there, so that all of them together are one integral.
    """
    axes = [np.linspace(-_REACH, _REACH, 2 * count + 1) for count in steps]
    z = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    z = z[(z * z).sum(axis=1) <= _REACH**2]
    area = sum(log(axis[1] - axis[0]) for axis in axes)
    xs, logs = [], []
    for k in range(len(locs)):
        x = locs[k] + z @ roots[k].T
        weight = np.full(len(z), area + float(np.log(np.diag(roots[k])).sum()))
        if len(locs) > 1:
            mine = log_density_of_components(log_weights[k : k + 1], locs[k : k + 1], roots[k : k + 1], x)
            weight += mine - log_density_of_components(log_weights, locs, roots, x)
        xs.append(x)
        logs.append(weight)
    return np.concatenate(xs), np.concatenate(logs)
