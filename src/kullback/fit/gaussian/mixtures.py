"""Mixtures of normals of vectors: their chart, and where descents to them begin."""

from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
from scipy import special, stats

from kullback.densities.gaussian_mixtures import Components, log_density_of_components
from kullback.numerics.arrays import Array

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

    def parts(self, vector: Array) -> tuple[Array, Array, Array]:
        """Logarithms of weights, means and Cholesky factors: shapes (k,), (k, d), (k, d, d)."""
        rows, columns = self._entries()
        logits, locs, entries = np.split(vector, [self.count - 1, self.count * (1 + self.size) - 1])
        entries = entries.reshape(self.count, len(rows))
        roots = np.zeros((self.count, self.size, self.size))
        roots[:, rows, columns] = np.where(rows == columns, np.exp(np.where(rows == columns, entries, 0.0)), entries)
        return special.log_softmax(np.append(logits, 0.0)), locs.reshape(self.count, self.size), roots

    def record(self, vector: Array) -> Components:
        """The mixture that is there."""
        log_weights, locs, roots = self.parts(vector)
        return Components(np.exp(log_weights), locs, roots @ roots.transpose(0, 2, 1))

    def log_density(self, vector: Array, x: Array) -> Array:
        """Of the mixture there, at x (n, d)."""
        return log_density_of_components(*self.parts(vector), x)

    def expansion(self, vector: Array, x: Array, slope: Array, weight: Array) -> tuple[Array, Array, Array]:
        """How a sum over places changes with the mixture, to second order; and the Fisher metric.

        The sum has the differentials sum slope dq/q and sum slope d2q/q + weight (dq/q)^2. Of KL(q || p) those are
        slope = q log(q/p) and weight = q; of KL(p || q), q - p and p; of -sum_n weight_n log q(x_n), slope = -weight.

        Args:
            vector: Where.
            x: The places (n, d).
            slope: Of each place, (n,).
            weight: Of each place, (n,); it also weighs the metric.

        Returns:
            Gradient (k,), Hessian (k, k), and the mean of (d log q)(d log q)^T, (k, k).
        """
        log_weights, locs, roots = self.parts(vector)
        shares, logits = np.exp(log_weights), self.count - 1
        each = zip(log_weights[:, None], locs[:, None], roots[:, None], strict=True)
        logs = np.stack([log_density_of_components(*one, x) for one in each])
        all_belong = special.softmax(logs, axis=0)
        scores = np.empty((len(x), vector.size))
        hessian = np.zeros((vector.size, vector.size))
        for k in range(self.count):
            belongs = all_belong[k]
            normal = _NormalSlopes(roots[k], (x - locs[k]), self._entries())
            columns, own = self._columns(k), normal.scores()
            scores[:, columns] = belongs[:, None] * own
            if k < logits:
                scores[:, k] = belongs - shares[k]
            # log(w_k N_k) has slopes by the logits, alike everywhere, and by its own parameters.
            by_logits, counts = (np.arange(logits) == k) - shares[:logits], slope * belongs
            across = np.outer(by_logits, counts @ own)
            hessian[:logits, :logits] += counts.sum() * np.outer(by_logits, by_logits)
            hessian[:logits, columns] += across
            hessian[columns, :logits] += across.T
            hessian[np.ix_(columns, columns)] += (own * counts[:, None]).T @ own + normal.curvature(counts)
        hessian[:logits, :logits] -= slope.sum() * (
            np.diag(shares[:logits]) - np.outer(shares[:logits], shares[:logits])
        )
        square = (scores * weight[:, None]).T @ scores
        return scores.T @ slope, hessian + square, square / float(weight.sum())

    def _columns(self, k: int) -> Array:
        """Where a component's own parameters are in a vector."""
        entries, locs = len(self._entries()[0]), self.count - 1 + k * self.size
        first = self.count * (1 + self.size) - 1 + k * entries
        return np.concatenate([np.arange(locs, locs + self.size), np.arange(first, first + entries)])

    def _entries(self) -> tuple[Array, Array]:
        """The places of a factor's entries that are free."""
        if self.independent:
            return np.arange(self.size), np.arange(self.size)
        return np.tril_indices(self.size)


class _NormalSlopes:
    """Derivatives of log N(x; m, L L^T) by m and by the entries of L, those of its diagonal in logarithms.

    With z = L^-1 (x - m), a step (a, A) = L^-1 (dm, dL) changes it by z^T A z + a^T z - tr A.
    """

    def __init__(self, root: Array, away: Array, entries: tuple[Array, Array]) -> None:
        size, (rows, columns) = len(root), entries
        inverse = np.linalg.inv(root)
        self.z = away @ inverse.T
        scale = np.where(rows == columns, root[rows, columns], 1.0)
        self.matrices = np.zeros((size + len(rows), size, size))
        self.matrices[np.arange(size, size + len(rows)), :, columns] = (inverse[:, rows] * scale).T
        self.shifts = np.concatenate([inverse.T, np.zeros((len(rows), size))])
        # d2 L is dL for an entry that is in logarithms, twice by itself.
        self.bent = np.concatenate([np.zeros(size), rows == columns])

    def scores(self) -> Array:
        """Shape (n, parameters)."""
        moved = np.einsum("ni,aij->naj", self.z, self.matrices, optimize=True)
        square = np.einsum("naj,nj->na", moved, self.z, optimize=True)
        return square + self.z @ self.shifts.T - np.trace(self.matrices, axis1=1, axis2=2)

    def curvature(self, counts: Array) -> Array:
        """The sum over places of counts (n,) times the second derivatives."""
        whole, first = counts.sum(), counts @ self.z
        second = (self.z * counts[:, None]).T @ self.z
        a, b = self.matrices, self.shifts
        # z moves by -(A z + a), and by A B z + B A z + A b + B a - d2L z a second time.
        products = np.einsum("pij,qjk,ki->pq", a, a, second, optimize=True)
        along = np.einsum("pij,qj,i->pq", a, b, first, optimize=True)
        gram = np.einsum("pij,qik,kj->pq", a, a, second, optimize=True)
        across = np.einsum("pij,qi,j->pq", a, b, first, optimize=True)
        bent = np.diag(self.bent * np.einsum("pij,ji->p", a, second))
        return bent - gram - across - across.T - whole * b @ b.T - products - products.T - along - along.T


def starts_of_mixtures(count: int, pieces: Components) -> list[Components]:
    """Mixtures of so many normals: some of the target's pieces, heavy ones first, and all of it cut into slices."""
    order = np.argsort(-pieces.weights, kind="stable")
    made = []
    for chosen in islice(combinations(order, count), _MOST):
        weights, locs, covariances = (part[list(chosen)] for part in pieces)
        made.append(Components(weights / weights.sum(), locs, covariances))
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
