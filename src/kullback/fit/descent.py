"""Newton's rule within a trust region measured in KL: each step moves the member by a bounded number of nats."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy import optimize

from kullback._arrays import Array
from kullback.errors import ParameterError

__all__ = ["Descent", "Local", "Problem", "descend"]

_STEP = 1e-3  # of the differences, in units of the members' own scale
_WALL = 1e-2  # so near a place that is inf no difference can be taken
_OVERFLOW = 1e150  # a sum that was on its way to inf
_BOWL = 0.1  # in the same units: 0.005 nats
_RADIUS = 1.0  # the longest step: KL of successive members is about half its square


class Local(NamedTuple):
    """What is descended near one member, on nodes that resolve it.

    Args:
        value: Called with vectors (m, k); the values there, nats, shape (m,).
        log_prob: Called with vectors (m, k); the members' log-densities at some places, (m, places).
        mass: What each place weighs in the members' own metric, (places,).
    """

    value: Callable[[Array], Array]
    log_prob: Callable[[Array], Array]
    mass: Array


class Problem(Protocol):
    """KL over a family, in coordinates without bounds."""

    def near(self, vector: Array) -> Local:
        """What is descended, near there."""
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


class _Model(NamedTuple):
    value: float
    gradient: Array
    hessian: Array
    basis: Array  # columns: unit steps of the members


def descend(problem: Problem, start: Array, *, most: int = 300, known: Sequence[Descent] = ()) -> Descent:
    """From a start downhill to a local minimum, by steps that no basin is left with.

    Args:
        problem: What is descended.
        start: Where from.
        most: How many steps.
        known: Minima that are known: close to one of them, in its bowl, the descent ends there.
    """
    vector, radius = np.asarray(start, np.float64), _RADIUS / 2
    model = _model(problem, vector)
    if not np.isfinite(model.value):
        return Descent([vector], [model.value], False)
    vectors, values, flat = [vector], [model.value], 0
    for _ in range(most):
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


def _settled(model: _Model) -> bool:
    """Whether all curvature is upward, and Newton's whole step would gain nothing and go nowhere."""
    if not np.linalg.eigvalsh(model.hessian)[0] > 0:
        return False
    step = np.linalg.solve(model.hessian, model.gradient)
    return bool(np.linalg.norm(step) < 1e-3 and model.gradient @ step < 1e-12)


def _model(problem: Problem, vector: Array) -> _Model:
    """Value, gradient and Hessian by central differences of fourth and second order, in the members' own units."""
    size = vector.size
    try:
        local = problem.near(vector)
        basis = _units(local, vector)
        values = _around(local, vector, basis)
    except ParameterError:  # beyond what floats hold
        return _Model(float("inf"), np.zeros(size), np.eye(size), np.eye(size))
    pairs = _pairs(size)
    if not (np.abs(values) < _OVERFLOW).all():
        return _Model(float("inf"), np.zeros(size), np.eye(size), basis)
    here, single = values[0], values[1 : 1 + 4 * size].reshape(size, 4)
    gradient = (8 * (single[:, 0] - single[:, 1]) - (single[:, 2] - single[:, 3])) / (12 * _STEP)
    second = (16 * (single[:, 0] + single[:, 1] - 2 * here) - (single[:, 2] + single[:, 3] - 2 * here)) / (
        12 * _STEP**2
    )
    hessian = np.diag(second)
    for (i, j), four in zip(pairs, values[1 + 4 * size :].reshape(-1, 4), strict=True):
        hessian[i, j] = hessian[j, i] = (four[0] - four[1] - four[2] + four[3]) / (4 * _STEP**2)
    return _Model(float(here), gradient, hessian, basis)


def _pairs(size: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(size) for j in range(i)]


def _around(local: Local, vector: Array, basis: Array) -> Array:
    """The values here, at four places along each axis, and at four for each pair of axes."""
    axes = _STEP * basis.T
    moves = [np.zeros(vector.size)]
    for axis in axes:
        moves += [axis, -axis, 2 * axis, -2 * axis]
    for i, j in _pairs(vector.size):
        moves += [axes[i] + axes[j], axes[i] - axes[j], axes[j] - axes[i], -axes[i] - axes[j]]
    with np.errstate(all="ignore"):
        return local.value(vector + np.asarray(moves))


def _units(local: Local, vector: Array) -> Array:
    """Steps that each change the member by half a nat, to second order: the Fisher metric's."""
    size, h = vector.size, 1e-5
    moves = h * np.eye(size)
    with np.errstate(all="ignore"):
        logs = local.log_prob(np.concatenate([vector + moves, vector - moves]))
        scores = (logs[:size] - logs[size:]) / (2 * h)
        scores = np.where(np.isfinite(scores) & (local.mass > 0), scores, 0.0)
        metric = (scores * local.mass) @ scores.T / float(local.mass.sum())
    if not np.isfinite(metric).all():
        raise ParameterError("expected a member that floats hold, and its neighbours too")
    values, vectors = np.linalg.eigh(metric)
    top = values[-1] if values[-1] > 0 else 1.0
    return vectors / np.sqrt(np.maximum(values, 1e-8 * top))


@np.errstate(over="ignore", invalid="ignore")  # of members at the edge of what floats hold
def _trusted(gradient: Array, hessian: Array, radius: float) -> tuple[Array, float]:
    """The step of at most this length that a parabola falls by most along, and by how much it falls."""
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
