"""Newton's method in a trust region whose radius bounds the KL between successive members of the family."""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple, Protocol

import numpy as np
from scipy import optimize

from kullback.errors import ParameterError
from kullback.numerics.arrays import Array

__all__ = ["Descent", "Objective", "QuadraticModel", "fisher_basis", "infinite_model", "minimise"]

# Lengths in the Fisher metric: the KL between two members at a small distance r is about r^2 / 2 nats.
_MAX_RADIUS = 1.0
_MIN_RADIUS = 1e-10
_MIN_RADIUS_NEAR_INFINITY = 1e-2  # closer to a point of infinite value, finite differences are not available
_SAME_MINIMUM_RADIUS = 0.1  # 0.005 nats
_LEAST_CURVATURE = 1e-8  # relative to the largest; the finite differences have errors of about 1e-10


class QuadraticModel(NamedTuple):
    """A second-order Taylor model of the objective at one parameter vector, in a basis of Fisher-normalised steps.

    Args:
        value: The objective at the vector, in nats; `inf` where the objective cannot be minimised.
        gradient: The gradient in the basis, shape (k,).
        hessian: The Hessian in the basis, shape (k, k).
        basis: The basis vectors as columns, shape (k, k). A step along one of them changes the member by half a nat,
            to second order.
        evaluations: The number of log-densities that the model was computed from.
    """

    value: float
    gradient: Array
    hessian: Array
    basis: Array
    evaluations: int = 0


class Objective(Protocol):
    """A divergence over a family, as a function of an unconstrained parameter vector."""

    def quadratic_model(self, vector: Array) -> QuadraticModel:
        """The second-order model of the objective at a vector.

        Raises:
            ParameterError: The member at the vector, or a neighbour, is not representable in floating point.
        """
        ...


class Descent(NamedTuple):
    """The iterates of one minimisation.

    Args:
        vectors: The parameter vectors, the starting point first.
        values: The objective at each vector, in nats.
        converged: Whether the last iterate has a vanishing gradient and a positive definite Hessian.
        evaluations: The number of log-densities that were computed.
    """

    vectors: list[Array]
    values: list[float]
    converged: bool
    evaluations: int = 0


def minimise(
    objective: Objective,
    start: Array,
    *,
    max_steps: int = 300,
    max_evaluations: float = inf,
    known_minima: Sequence[Descent] = (),
) -> Descent:
    """Minimise an objective from one starting point, with steps too short to leave the basin of attraction.

    Args:
        objective: The objective.
        start: The starting vector, shape (k,).
        max_steps: The largest number of steps.
        max_evaluations: The number of log-densities after which the descent ends.
        known_minima: Descents to minima that are known. The descent returns one of them as soon as an iterate of
            positive curvature lies close to it.

    Returns:
        The iterates, or the known descent to the same minimum with the evaluations of this descent.
    """
    vector, radius = np.asarray(start, np.float64), _MAX_RADIUS / 2
    model = _model_or_infinite(objective, vector)
    if not np.isfinite(model.value):
        return Descent([vector], [model.value], False, model.evaluations)
    vectors, values, steps_without_gain, evaluations = [vector], [model.value], 0, model.evaluations
    for _ in range(max_steps):
        step, expected = _trust_region_step(model.gradient, model.hessian, radius)
        length = float(np.linalg.norm(step))
        candidate = vector + model.basis @ step
        is_convex = _is_positive_definite(model.hessian)
        for descent in known_minima if is_convex else ():
            with np.errstate(over="ignore"):
                distance = np.linalg.norm(np.linalg.solve(model.basis, descent.vectors[-1] - vector))
            if distance < _SAME_MINIMUM_RADIUS:
                return descent._replace(evaluations=evaluations)
        # Only a step that the radius does not shorten measures the distance to the minimum.
        is_newton_step = is_convex and length < 0.9 * radius
        if is_newton_step and length < 0.1 and (length < 1e-9 or expected < 1e-18 * max(1.0, abs(model.value))):
            return Descent([*vectors, candidate], [*values, model.value], True, evaluations)
        if evaluations >= max_evaluations:
            break
        new_model = _model_or_infinite(objective, candidate)
        evaluations += new_model.evaluations
        decrease = model.value - new_model.value
        rounding = 1e-14 * max(1.0, abs(model.value))
        if np.isfinite(new_model.value) and (decrease > 0.1 * expected or (length < 1e-3 and decrease > -rounding)):
            steps_without_gain = steps_without_gain + 1 if decrease < rounding else 0
            if decrease > 0.7 * expected and length > 0.9 * radius:
                radius = min(_MAX_RADIUS, 2 * radius)
            vector, model = candidate, new_model
            vectors.append(vector)
            values.append(model.value)
            if steps_without_gain >= 4:  # the remaining changes are rounding errors
                break
        else:
            radius = length / 4
            if radius < (_MIN_RADIUS if np.isfinite(new_model.value) else _MIN_RADIUS_NEAR_INFINITY):
                break
    return Descent(vectors, values, _is_minimum(model), evaluations)


def _is_minimum(model: QuadraticModel) -> bool:
    """Whether the Hessian is positive definite and the full Newton step is negligible in length and in decrease.

    The decrease is relative to values above 1, because finite differences of a value v have errors in proportion to v.
    """
    if not _is_positive_definite(model.hessian):
        return False
    step = np.linalg.solve(model.hessian, model.gradient)
    return bool(np.linalg.norm(step) < 1e-3 and model.gradient @ step < 1e-12 * max(1.0, abs(model.value)))


def _is_positive_definite(hessian: Array) -> bool:
    """Whether every eigenvalue is positive, and larger than the errors of finite differences.

    In the Fisher-normalised basis the eigenvalues are about 1 near a minimum, unless the members near it are equal.
    """
    values = np.linalg.eigvalsh(hessian)
    return bool(values[0] > _LEAST_CURVATURE * max(1.0, values[-1]))


def _model_or_infinite(objective: Objective, vector: Array) -> QuadraticModel:
    try:
        return objective.quadratic_model(vector)
    except ParameterError:
        return infinite_model(vector.size)


def infinite_model(size: int) -> QuadraticModel:
    """The model at a vector of k = size entries where the objective is infinite or not defined."""
    return QuadraticModel(inf, np.zeros(size), np.eye(size), np.eye(size))


def fisher_basis(metric: Array) -> Array:
    """Vectors that are orthogonal in a Fisher metric, scaled so that each changes the member by half a nat.

    The metric is first brought to a diagonal of ones, so that the vectors do not depend on the units of
    the coordinates. Where it is then nearly singular, the vectors are shorter.

    Args:
        metric: The Fisher information matrix, shape (k, k).

    Returns:
        The basis vectors as columns, shape (k, k).

    Raises:
        ParameterError: The metric is not finite.
    """
    if not np.isfinite(metric).all():
        raise ParameterError(
            "expected a finite Fisher metric, got one with infinite or nan entries: the member or a neighbour is not "
            "representable in floating point"
        )
    scales = np.sqrt(np.diag(metric))
    scales = np.where(scales > 0, scales, scales.max(initial=0.0) or 1.0)
    values, vectors = np.linalg.eigh(metric / scales / scales[:, None])
    largest = values[-1] if values[-1] > 0 else 1.0
    return vectors / np.sqrt(np.maximum(values, 1e-8 * largest)) / scales[:, None]


@np.errstate(over="ignore", invalid="ignore")  # members near the limits of floating point
def _trust_region_step(gradient: Array, hessian: Array, radius: float) -> tuple[Array, float]:
    """The minimiser of the quadratic model within the radius, and the decrease of the model.

    The step is -(H + shift I)^-1 g with the smallest shift >= 0 that makes H + shift I positive definite and the step
    no longer than the radius.
    """
    values, vectors = np.linalg.eigh(hessian)
    g = vectors.T @ gradient
    if values[0] > 0 and np.linalg.norm(g / values) <= radius:
        step = -g / values
    else:
        if abs(g[0]) < 1e-10 * max(1.0, np.abs(g).max()) and values[0] <= 0:
            g[0] = 1e-10 * max(1.0, float(np.abs(g).max()))  # leave a saddle point along the negative curvature
        smallest_shift = max(0.0, -float(values[0]))

        def excess_length(shift: float) -> float:
            return float(np.linalg.norm(g / (values + smallest_shift + shift))) / radius - 1

        top = float(np.linalg.norm(g)) / radius + float(np.abs(values).max()) + 1e-300
        bottom = 1e-16 * top
        shift = (
            optimize.brentq(excess_length, bottom, 2 * top, xtol=1e-12 * top) if excess_length(bottom) > 0 else bottom
        )
        step = -g / (values + smallest_shift + shift)  # pyright: ignore[reportOperatorIssue]
    expected = -float(g @ step + 0.5 * (values * step) @ step)
    return vectors @ step, expected
