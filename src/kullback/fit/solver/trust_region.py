"""Newton's rule within a trust region measured in KL: each step moves the member by a bounded number of nats."""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple, Protocol

import numpy as np
from scipy import optimize

from kullback.errors import ParameterError
from kullback.numerics.arrays import Array

__all__ = ["Descent", "Model", "Problem", "descend", "nowhere", "units"]

_WALL = 1e-2  # so near a place that is inf no difference can be taken
_BOWL = 0.1  # in the same units: 0.005 nats
_RADIUS = 1.0  # the longest step: KL of successive members is about half its square


class Model(NamedTuple):
    """What is descended near one member, to second order; steps are in units of the members' own scale.

    Args:
        value: There, nats; `inf` where it cannot be descended.
        gradient: Along the units, (k,).
        hessian: The same, (k, k).
        basis: The units, as columns (k, k): each changes the member by half a nat, to second order.
    """

    value: float
    gradient: Array
    hessian: Array
    basis: Array


class Problem(Protocol):
    """KL over a family, in coordinates without bounds."""

    def model(self, vector: Array) -> Model:
        """What is descended, near there.

        Raises:
            ParameterError: There is beyond what floats hold.
        """
        ...


class Descent(NamedTuple):
    """Where a descent went.

    Args:
        vectors: Each place, the start first.
        values: What was descended, at each.
        converged: Whether it came to where the gradient vanishes and all curvature is upward.
    """

    vectors: list[Array]
    values: list[float]
    converged: bool


def descend(problem: Problem, start: Array, *, max_steps: int = 300, known: Sequence[Descent] = ()) -> Descent:
    """From a start downhill to a local minimum, by steps that no basin is left with.

    Args:
        problem: What is descended.
        start: Where from.
        max_steps: How many steps.
        known: Minima that are known: close to one of them, in its bowl, the descent ends there.
    """
    vector, radius = np.asarray(start, np.float64), _RADIUS / 2
    model = _model(problem, vector)
    if not np.isfinite(model.value):
        return Descent([vector], [model.value], False)
    vectors, values, flat = [vector], [model.value], 0
    for _ in range(max_steps):
        step, expected = _trusted(model.gradient, model.hessian, radius)
        length = float(np.linalg.norm(step))
        candidate = vector + model.basis @ step
        curved = np.linalg.eigvalsh(model.hessian)[0] > 0
        for end in known if curved else ():
            if np.linalg.norm(np.linalg.solve(model.basis, end.vectors[-1] - vector)) < _BOWL:
                return end
        # A step that the radius cut short says nothing of how far the minimum is.
        whole = curved and length < 0.9 * radius
        if whole and length < 0.1 and (length < 1e-9 or expected < 1e-18 * max(1.0, abs(model.value))):
            return Descent([*vectors, candidate], [*values, model.value], True)
        there = _model(problem, candidate)
        gained = model.value - there.value
        noise = 1e-14 * max(1.0, abs(model.value))
        if np.isfinite(there.value) and (gained > 0.1 * expected or (length < 1e-3 and gained > -noise)):
            flat = flat + 1 if gained < noise else 0
            if gained > 0.7 * expected and length > 0.9 * radius:
                radius = min(_RADIUS, 2 * radius)
            vector, model = candidate, there
            vectors.append(vector)
            values.append(model.value)
            if flat >= 4:  # nothing but rounding moves it
                break
        else:
            radius = length / 4
            if radius < (1e-10 if np.isfinite(there.value) else _WALL):
                break
    return Descent(vectors, values, _settled(model))


def _settled(model: Model) -> bool:
    """Whether all curvature is upward, and Newton's whole step would gain nothing and go nowhere."""
    if not np.linalg.eigvalsh(model.hessian)[0] > 0:
        return False
    step = np.linalg.solve(model.hessian, model.gradient)
    return bool(np.linalg.norm(step) < 1e-3 and model.gradient @ step < 1e-12)


def _model(problem: Problem, vector: Array) -> Model:
    try:
        return problem.model(vector)
    except ParameterError:
        return nowhere(vector.size)


def nowhere(size: int) -> Model:
    """Where nothing can be descended."""
    return Model(inf, np.zeros(size), np.eye(size), np.eye(size))


def units(metric: Array) -> Array:
    """A basis of steps that each change the member by half a nat, from the Fisher metric.

    Raises:
        ParameterError: The metric is not finite.
    """
    if not np.isfinite(metric).all():
        raise ParameterError("expected a member that floats hold, and its neighbours too")
    values, vectors = np.linalg.eigh(metric)
    top = values[-1] if values[-1] > 0 else 1.0
    return vectors / np.sqrt(np.maximum(values, 1e-8 * top))


@np.errstate(over="ignore", invalid="ignore")  # of members at the edge of what floats hold
def _trusted(gradient: Array, hessian: Array, radius: float) -> tuple[Array, float]:
    """The step of at max_steps this length that a parabola falls by max_steps along, and by how much it falls."""
    values, vectors = np.linalg.eigh(hessian)
    g = vectors.T @ gradient
    if values[0] > 0 and np.linalg.norm(g / values) <= radius:
        step = -g / values
    else:
        if abs(g[0]) < 1e-10 * max(1.0, np.abs(g).max()) and values[0] <= 0:
            g[0] = 1e-10 * max(1.0, float(np.abs(g).max()))  # off a ridge
        low = max(0.0, -float(values[0]))

        def excess(shift: float) -> float:
            return float(np.linalg.norm(g / (values + low + shift))) / radius - 1

        top = float(np.linalg.norm(g)) / radius + float(np.abs(values).max()) + 1e-300
        bottom = 1e-16 * top
        shift = optimize.brentq(excess, bottom, 2 * top, xtol=1e-12 * top) if excess(bottom) > 0 else bottom
        step = -g / (values + low + shift)  # pyright: ignore[reportOperatorIssue]
    expected = -float(g @ step + 0.5 * (values * step) @ step)
    return vectors @ step, expected
