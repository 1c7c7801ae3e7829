"""Mixtures of multivariate normals: their unconstrained coordinates, derivatives and starting points."""

from dataclasses import dataclass
from itertools import combinations, islice
from math import inf

import numpy as np
from scipy import special, stats

from kullback.densities.gaussian_mixtures import Components, log_density_of_components
from kullback.numerics.arrays import Array

__all__ = ["MixtureParametrisation", "mixture_starts", "moment_matched_normal"]

_MAX_SUBSETS = 10


@dataclass(frozen=True)
class MixtureParametrisation:
    """Unconstrained coordinates of mixtures of multivariate normals.

    The coordinates are the k - 1 log-ratios of the weights to the last weight, the k means, and the entries of the k
    Cholesky factors, with the logarithms of their diagonals.

    Args:
        count: The number k of components; 1 for normals.
        size: The number d of dimensions.
        independent: Whether the covariances are diagonal; the off-diagonal entries of a given covariance are dropped.
    """

    count: int
    size: int
    independent: bool = False

    @property
    def periods(self) -> float:
        """The period of every coordinate: `inf`, because none is an angle."""
        return inf

    def to_vector(self, mixture: Components) -> Array:
        """The coordinates of a mixture, which do not depend on the order of its components."""
        order = np.lexsort(mixture.locs.T[::-1])
        weights, locs, covariances = (part[order] for part in mixture)
        if self.independent:
            covariances = covariances * np.eye(self.size)
        factors, (rows, columns) = np.linalg.cholesky(covariances), self._free_entries()
        entries = factors[:, rows, columns]
        entries[:, rows == columns] = np.log(entries[:, rows == columns])
        logits = np.log(weights) - np.log(weights[-1])
        return np.concatenate([logits[:-1], locs.ravel(), entries.ravel()])

    def to_log_weights_locs_factors(self, vector: Array) -> tuple[Array, Array, Array]:
        """The log-weights, means and Cholesky factors at a vector: shapes (k,), (k, d) and (k, d, d)."""
        rows, columns = self._free_entries()
        logits, locs, entries = np.split(vector, [self.count - 1, self.count * (1 + self.size) - 1])
        entries = entries.reshape(self.count, len(rows))
        factors = np.zeros((self.count, self.size, self.size))
        factors[:, rows, columns] = np.where(rows == columns, np.exp(np.where(rows == columns, entries, 0.0)), entries)
        return special.log_softmax(np.append(logits, 0.0)), locs.reshape(self.count, self.size), factors

    def to_distribution(self, vector: Array) -> Components:
        """The mixture at a vector."""
        log_weights, locs, factors = self.to_log_weights_locs_factors(vector)
        return Components(np.exp(log_weights), locs, factors @ factors.transpose(0, 2, 1))

    def log_density(self, vector: Array, x: Array) -> Array:
        """The log-density of the mixture at a vector, at points x of shape (n, d)."""
        return log_density_of_components(*self.to_log_weights_locs_factors(vector), x)

    def expansion(self, vector: Array, x: Array, slope: Array, weight: Array) -> tuple[Array, Array, Array]:
        """The gradient and Hessian of a sum over points that depends on the density q, and the Fisher metric.

        The sum S has the differentials dS = sum slope dq/q and d2S = sum slope d2q/q + weight (dq/q)^2. For KL(q || p)
        they are slope = q log(q/p) and weight = q; for KL(p || q), slope = q - p and weight = p; for the cross-entropy
        -sum_n w_n log q(x_n), slope = -w and weight = w.

        Args:
            vector: The coordinates of the mixture, shape (parameters,).
            x: The points, shape (n, d).
            slope: The first-order coefficient of each point, shape (n,).
            weight: The second-order coefficient of each point, shape (n,), which is also its weight in the metric.

        Returns:
            The gradient, shape (parameters,), the Hessian, shape (parameters, parameters), and the weighted mean of
            (d log q)(d log q)^T, shape (parameters, parameters).
        """
        log_weights, locs, factors = self.to_log_weights_locs_factors(vector)
        weights, logits = np.exp(log_weights), self.count - 1
        components = zip(log_weights[:, None], locs[:, None], factors[:, None], strict=True)
        log_joint = np.stack([log_density_of_components(*component, x) for component in components])
        responsibilities = special.softmax(log_joint, axis=0)
        scores = np.empty((len(x), vector.size))
        hessian = np.zeros((vector.size, vector.size))
        for k in range(self.count):
            responsibility = responsibilities[k]
            normal = _NormalDerivatives(factors[k], (x - locs[k]), self._free_entries())
            columns, normal_scores = self._columns_of(k), normal.scores()
            scores[:, columns] = responsibility[:, None] * normal_scores
            if k < logits:
                scores[:, k] = responsibility - weights[k]
            # d log(w_k N_k): the derivatives by the logits do not depend on x.
            by_logits, coefficients = (np.arange(logits) == k) - weights[:logits], slope * responsibility
            mixed = np.outer(by_logits, coefficients @ normal_scores)
            hessian[:logits, :logits] += coefficients.sum() * np.outer(by_logits, by_logits)
            hessian[:logits, columns] += mixed
            hessian[columns, :logits] += mixed.T
            hessian[np.ix_(columns, columns)] += (
                normal_scores * coefficients[:, None]
            ).T @ normal_scores + normal.curvature(coefficients)
        hessian[:logits, :logits] -= slope.sum() * (
            np.diag(weights[:logits]) - np.outer(weights[:logits], weights[:logits])
        )
        score_products = (scores * weight[:, None]).T @ scores
        return scores.T @ slope, hessian + score_products, score_products / float(weight.sum())

    def _columns_of(self, k: int) -> Array:
        """The positions of the mean and of the Cholesky factor of component k in a vector."""
        entries, first_loc = len(self._free_entries()[0]), self.count - 1 + k * self.size
        first_entry = self.count * (1 + self.size) - 1 + k * entries
        return np.concatenate(
            [np.arange(first_loc, first_loc + self.size), np.arange(first_entry, first_entry + entries)]
        )

    def _free_entries(self) -> tuple[Array, Array]:
        """The rows and columns of the free entries of a Cholesky factor."""
        if self.independent:
            return np.arange(self.size), np.arange(self.size)
        return np.tril_indices(self.size)


class _NormalDerivatives:
    """First and second derivatives of log N(x; m, L L^T) by m and by L, with the diagonal of L in logarithms.

    With z = L^-1 (x - m), the change by (dm, dL) is z^T A z + a^T z - tr A, where (a, A) = L^-1 (dm, dL).

    Args:
        factor: The Cholesky factor L, shape (d, d).
        deviations: x - m, shape (n, d).
        entries: The rows and columns of the free entries of L.
    """

    def __init__(self, factor: Array, deviations: Array, entries: tuple[Array, Array]) -> None:
        size, (rows, columns) = len(factor), entries
        inverse = np.linalg.inv(factor)
        self.z = deviations @ inverse.T
        scale = np.where(rows == columns, factor[rows, columns], 1.0)
        self.matrices = np.zeros((size + len(rows), size, size))  # A of each parameter
        self.matrices[np.arange(size, size + len(rows)), :, columns] = (inverse[:, rows] * scale).T
        self.shifts = np.concatenate([inverse.T, np.zeros((len(rows), size))])  # a of each parameter
        # The second derivative of exp equals the first: d2L = dL for the logarithms of the diagonal.
        self.is_log_diagonal = np.concatenate([np.zeros(size), rows == columns])

    def scores(self) -> Array:
        """The first derivatives at each point, shape (n, parameters)."""
        products = np.einsum("ni,aij->naj", self.z, self.matrices, optimize=True)
        quadratic = np.einsum("naj,nj->na", products, self.z, optimize=True)
        return quadratic + self.z @ self.shifts.T - np.trace(self.matrices, axis1=1, axis2=2)

    def curvature(self, coefficients: Array) -> Array:
        """The sum over points of coefficients, shape (n,), times the second derivatives: (parameters, parameters)."""
        total, first = coefficients.sum(), coefficients @ self.z
        second = (self.z * coefficients[:, None]).T @ self.z
        a, b = self.matrices, self.shifts
        # dz = -(A z + a), and d2z = A B z + B A z + A b + B a - L^-1 d2L z.
        products = np.einsum("pij,qjk,ki->pq", a, a, second, optimize=True)
        shifted_products = np.einsum("pij,qj,i->pq", a, b, first, optimize=True)
        gram = np.einsum("pij,qik,kj->pq", a, a, second, optimize=True)
        mixed = np.einsum("pij,qi,j->pq", a, b, first, optimize=True)
        log_diagonal = np.diag(self.is_log_diagonal * np.einsum("pij,ji->p", a, second))
        return (
            log_diagonal
            - gram
            - mixed
            - mixed.T
            - total * b @ b.T
            - products
            - products.T
            - shifted_products
            - shifted_products.T
        )


def mixture_starts(count: int, components: Components) -> list[Components]:
    """Starting mixtures of `count` normals that approximate a mixture of normals.

    They are subsets of its components, in decreasing order of their weights, and the normal with its moments cut into
    `count` slices.
    """
    order = np.argsort(-components.weights, kind="stable")
    starts = []
    for subset in islice(combinations(order, count), _MAX_SUBSETS):
        weights, locs, covariances = (part[list(subset)] for part in components)
        starts.append(Components(weights / weights.sum(), locs, covariances))
    normal = moment_matched_normal(components)
    return [*starts, normal] if count == 1 else [*starts, _slice_normal(normal, count)]


def moment_matched_normal(mixture: Components) -> Components:
    """The normal with the mean and covariance of a mixture."""
    loc = mixture.weights @ mixture.locs
    deviations = mixture.locs - loc
    covariance = np.einsum("k,kij->ij", mixture.weights, mixture.covariances)
    covariance += np.einsum("k,ki,kj->ij", mixture.weights, deviations, deviations)
    return Components(np.ones(1), loc[None], covariance[None])


def _slice_normal(normal: Components, count: int) -> Components:
    """A mixture of `count` normals of equal weight along the longest axis of a normal."""
    variances, axes = np.linalg.eigh(normal.covariances[0])
    quantiles = stats.norm.ppf((np.arange(count) + 0.5) / count)
    longest = np.sqrt(variances[-1]) * axes[:, -1]
    covariance = normal.covariances[0] - (1 - 1 / count**2) * np.outer(longest, longest)
    return Components(
        np.full(count, 1 / count),
        normal.locs[0] + quantiles[:, None] * longest,
        np.broadcast_to(covariance, (count, *covariance.shape)),
    )
