"""Mixtures of normals in the plane near a density on it, by the trapezoid rule, which converges exponentially there."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log

import numpy as np

from kullback._arrays import Array
from kullback.densities.mixtures import Components, log_density_of_components
from kullback.densities.terms import terms
from kullback.errors import SupportError
from kullback.fit.descent import Local
from kullback.fit.mixtures import MixtureChart

__all__ = ["OnPlane", "log_evidence", "nodes"]

_REACH = 8.6  # standard deviations; beyond lies 1e-17 of a normal
_STEPS = (12, 24, 48, 96, 192, 384)  # to each side


@dataclass(frozen=True)
class OnPlane:
    """KL(member || target), or KL(target || member), over mixtures of normals in the plane.

    Args:
        chart: Of two dimensions.
        log_prob: The target's, normalised, of places (n, 2).
        target: The target as logarithms of weights, means and Cholesky factors, for KL(target || member).
    """

    chart: MixtureChart
    log_prob: Callable[[Array], Array]
    target: tuple[Array, Array, Array] | None = None

    def near(self, vector: Array) -> Local:
        value, last = inf, None
        for steps in _STEPS:
            x, log_weight = nodes(*(self.target or self.chart.parts(vector)), steps)
            log_target = self.log_prob(x) + log_weight
            found = float(self._kl(self.chart.log_density(vector, x) + log_weight, log_target))
            # Where twice as many say the same, so many do.
            settled = abs(found - value) < 1e-12 * max(1.0, found)
            if last is None or not settled:
                value, last = found, (x, log_weight, log_target)
            if settled or not found < inf:
                break
        assert last is not None
        x, log_weight, log_target = last

        def log_prob(vectors: Array) -> Array:
            return self.chart.log_density(vectors, x) + log_weight

        def value_at(vectors: Array) -> Array:
            return self._kl(log_prob(vectors), log_target)

        return Local(value_at, log_prob, np.exp(log_prob(vector)))

    @np.errstate(all="ignore")
    def _kl(self, mine: Array, log_target: Array) -> Array:
        """Of masses on nodes, shape (..., nodes); what lies beyond them is the rest of 1."""
        log_target = np.broadcast_to(log_target, mine.shape)
        term, p, q = terms(*((log_target, mine) if self.target else (mine, log_target))).sum(axis=-1)
        return term + (1 - q) - (1 - p)


def nodes(log_weights: Array, locs: Array, roots: Array, steps: int) -> tuple[Array, Array]:
    """Places around each component of a mixture (n, 2), and the logarithms of what integrals weigh them by.

    A component's places count by its share of the density there, so that all of them together are one integral.
    """
    axis = np.linspace(-_REACH, _REACH, 2 * steps + 1)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    z = z[(z * z).sum(axis=1) <= _REACH**2]
    area = 2 * log(axis[1] - axis[0])
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


def log_evidence(log_prob: Callable[[Array], Array], modes: Components) -> float:
    """The log of the integral of e^log_prob over the plane, from a box around normals near its modes.

    Raises:
        SupportError: The grid does not resolve it.
    """
    spread = 12 * np.sqrt(np.diagonal(modes.covariances, axis1=1, axis2=2))
    low, high = (modes.locs - spread).min(axis=0), (modes.locs + spread).max(axis=0)
    finest = float(np.sqrt(np.linalg.eigvalsh(modes.covariances).min()))
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
