"""Normals in the plane near a density on it, by the trapezoid rule, which for them converges exponentially."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log, pi
from typing import Any

import numpy as np

from kullback._arrays import Array
from kullback.densities.terms import terms
from kullback.errors import SupportError
from kullback.fit.coordinates import Coordinates
from kullback.fit.descent import Local

__all__ = ["OnPlane", "log_evidence"]

_REACH = 8.6  # standard deviations; beyond lies 1e-17 of a normal
_STEPS = (24, 48, 96, 192, 384)  # to each side


@dataclass(frozen=True)
class OnPlane:
    """KL(member || target) over normals in the plane.

    Args:
        chart: Of `MultivariateNormal`, two-dimensional.
        log_prob: The target's, normalised, of places (n, 2).
    """

    chart: Coordinates
    log_prob: Callable[[Array], Array]

    def near(self, vector: Array) -> Local:
        loc, root = _parts(self.chart, vector)
        value, last = inf, _NOTHING
        for steps in _STEPS:
            x, log_weight = _grid(loc, root, steps)
            log_target = self.log_prob(x) + log_weight
            mine = _log_normal(x, loc, root) + log_weight
            with np.errstate(all="ignore"):
                found = float(_kl(mine, log_target))
            last = x, log_weight, log_target
            if not found < inf or abs(found - value) < 1e-12 * max(1.0, found):
                break
            value = found
        x, log_weight, log_target = last

        def log_prob(vectors: Array) -> Array:
            return np.stack([_log_normal(x, *_parts(self.chart, one)) + log_weight for one in vectors])

        def value_at(vectors: Array) -> Array:
            with np.errstate(all="ignore"):
                return np.asarray([_kl(log_prob(one[None])[0], log_target) for one in vectors])

        return Local(value_at, log_prob, np.exp(log_prob(vector[None])[0]))


_NOTHING: tuple[Array, Array, Array] = (np.zeros((0, 2)), np.zeros(0), np.zeros(0))


def log_evidence(log_prob: Callable[[Array], Array], normals: list[tuple[Array, Array]]) -> float:
    """The log of the integral of e^log_prob over the plane, from a box around normals (loc, covariance) near its modes.

    Raises:
        SupportError: The grid does not resolve it.
    """
    spread = np.asarray([12 * np.sqrt(np.diag(covariance)) for _, covariance in normals])
    places = np.asarray([loc for loc, _ in normals])
    low, high = (places - spread).min(axis=0), (places + spread).max(axis=0)
    finest = min(float(np.sqrt(np.linalg.eigvalsh(covariance)[0])) for _, covariance in normals)
    for _ in range(8):  # until its edges are empty
        edges = [np.linspace(low[i], high[i], 257) for i in (0, 1)]
        mesh = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1)
        values = log_prob(mesh.reshape(-1, 2)).reshape(mesh.shape[:2])
        rim = max(values[0].max(), values[-1].max(), values[:, 0].max(), values[:, -1].max())
        if rim < values.max() - 45:
            break
        low, high = low - (high - low) / 2, high + (high - low) / 2
    else:
        raise SupportError("expected log_prob to fall towards infinity on all sides, but its mass was not enclosed")
    last = inf
    count = int(min(4096, max(256, 4 * float((high - low).max()) / finest)))
    while count <= 8192:
        total, top = 0.0, float(values.max())
        first = np.linspace(low[0], high[0], count)
        second = np.linspace(low[1], high[1], count)
        for rows in np.array_split(first, max(1, count * count // 2**20)):
            mesh = np.stack(np.meshgrid(rows, second, indexing="ij"), axis=-1).reshape(-1, 2)
            total += float(np.exp(log_prob(mesh) - top).sum())
        area = (first[1] - first[0]) * (second[1] - second[0])
        found = top + log(total * area)
        if abs(found - last) < 1e-11:
            return found
        last, count = found, 3 * count // 2
    raise SupportError(f"expected a density that {count} x {count} places resolve; its integral still moves")


def _kl(mine: Array, log_target: Array) -> float:
    """KL of masses on nodes; what the target has beyond them is the rest of 1."""
    term, member, target = terms(mine, log_target).sum(axis=1)
    return term + (1 - target) - (1 - member)


def _parts(chart: Coordinates, vector: Array) -> tuple[Array, Array]:
    record: Any = chart.record(vector)
    return np.asarray(record.loc), np.linalg.cholesky(record.covariance_matrix)


def _grid(loc: Array, root: Array, steps: int) -> tuple[Array, Array]:
    axis = np.linspace(-_REACH, _REACH, 2 * steps + 1)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    z = z[(z * z).sum(axis=1) <= _REACH**2]
    weight = 2 * log(axis[1] - axis[0]) + float(np.log(np.diag(root)).sum())
    return loc + z @ root.T, np.full(len(z), weight)


def _log_normal(x: Array, loc: Array, root: Array) -> Array:
    z = np.linalg.solve(root, (x - loc).T)
    return -0.5 * (z * z).sum(axis=0) - float(np.log(np.diag(root)).sum()) - log(2 * pi)
