"""Mixtures of normals of vectors: their chart, and where descents to them begin."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import special, stats

from kullback._arrays import Array
from kullback.densities.mixtures import Components, log_density_of_components

__all__ = ["MixtureChart", "around", "starts_of_mixtures"]

_MOST = 10  # choices of pieces


@dataclass(frozen=True)
class MixtureChart:
    """Mixtures as vectors without bounds: logits of the weights, means, Cholesky factors with diagonals in logarithms.

    Args:
        count: How many components; one makes it the chart of normals.
        size: How many dimensions.
        independent: Whether the entries of each component are; what others are given for is their variances alone.
    """

    count: int
    size: int
    independent: bool = False

    def vector(self, parts: Components) -> Array:
        """Where a mixture is, whichever order its components come in."""
        order = np.lexsort(parts.locs.T[::-1])
        weights, locs, covariances = (part[order] for part in parts)
        if self.independent:
            covariances = covariances * np.eye(self.size)
        roots, (rows, columns) = np.linalg.cholesky(covariances), self._entries()
        entries = roots[:, rows, columns]
        entries[:, rows == columns] = np.log(entries[:, rows == columns])
        logits = np.log(weights) - np.log(weights[-1])
        return np.concatenate([logits[:-1], locs.ravel(), entries.ravel()])

    def parts(self, vectors: Array) -> tuple[Array, Array, Array]:
        """Logarithms of weights, means and Cholesky factors, of one vector or of many: shapes (..., k), ..."""
        lead, (rows, columns) = vectors.shape[:-1], self._entries()
        logits, locs, entries = np.split(vectors, [self.count - 1, self.count * (1 + self.size) - 1], axis=-1)
        entries = entries.reshape(*lead, self.count, len(rows))
        roots = np.zeros((*lead, self.count, self.size, self.size))
        roots[..., rows, columns] = np.where(rows == columns, np.exp(np.where(rows == columns, entries, 0.0)), entries)
        log_weights = special.log_softmax(np.concatenate([logits, np.zeros((*lead, 1))], axis=-1), axis=-1)
        return log_weights, locs.reshape(*lead, self.count, self.size), roots

    def record(self, vector: Array) -> Components:
        """The mixture that is there."""
        log_weights, locs, roots = self.parts(vector)
        return Components(np.exp(log_weights), locs, roots @ roots.transpose(0, 2, 1))

    def log_density(self, vectors: Array, x: Array) -> Array:
        """Of the mixtures at vectors (..., parameters), at x (n, d): shape (..., n)."""
        return log_density_of_components(*self.parts(vectors), x)

    def _entries(self) -> tuple[Array, Array]:
        """The places of a factor's entries that are free."""
        if self.independent:
            return np.arange(self.size), np.arange(self.size)
        return np.tril_indices(self.size)


def starts_of_mixtures(count: int, pieces: Components) -> list[Components]:
    """Mixtures of so many normals: some of the target's pieces, heavy ones first, and all of it cut into slices."""
    order = np.argsort(-pieces.weights, kind="stable")
    chosen = [list(some) for some in combinations(order, count)][:_MOST]
    made = [
        Components(pieces.weights[some] / pieces.weights[some].sum(), *(p[some] for p in pieces[1:])) for some in chosen
    ]
    whole = around(pieces)
    return [*made, whole] if count == 1 else [*made, _slices(whole, count)]


def around(parts: Components) -> Components:
    """The one normal of the same mean and covariance."""
    loc = parts.weights @ parts.locs
    away = parts.locs - loc
    covariance = np.einsum("k,kij->ij", parts.weights, parts.covariances)
    covariance += np.einsum("k,ki,kj->ij", parts.weights, away, away)
    return Components(np.ones(1), loc[None], covariance[None])


def _slices(normal: Components, count: int) -> Components:
    """Equal slices of a normal, side by side along its longest axis."""
    variances, axes = np.linalg.eigh(normal.covariances[0])
    places = stats.norm.ppf((np.arange(count) + 0.5) / count)
    along = np.sqrt(variances[-1]) * axes[:, -1]
    narrow = normal.covariances[0] - (1 - 1 / count**2) * np.outer(along, along)
    return Components(
        np.full(count, 1 / count),
        normal.locs[0] + places[:, None] * along,
        np.broadcast_to(narrow, (count, *narrow.shape)),
    )
