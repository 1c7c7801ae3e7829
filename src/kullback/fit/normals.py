"""Normals of vectors of each kind, from a mean and a covariance."""

from typing import Any

import numpy as np
from scipy import linalg, optimize

from kullback import families
from kullback._arrays import Array
from kullback.densities.mixtures import Components
from kullback.errors import ParameterError, SupportError
from kullback.families import Record

__all__ = ["NORMALS", "member_of", "nearest_normal", "require_rank", "require_spread"]

NORMALS = (families.Independent, families.LowRankMultivariateNormal, families.MultivariateNormal)


def nearest_normal(kind: type[Record], loc: Array, covariance: Array, rank: int | None) -> Record:
    """The normal q of a kind with the least KL(p || q), for any p of this mean and covariance.

    Raises:
        ParameterError: The kind is none of normals.
        SupportError: p lies on a plane, where no such q is nearest.
    """
    if kind not in NORMALS:
        raise ParameterError(
            f"expected a family and a target on the line, or normals of vectors, got {kind.__name__}; draw samples of "
            "the target and fit those"
        )
    require_spread(covariance, kind is families.Independent)
    if kind is families.LowRankMultivariateNormal:
        return low_rank(loc, covariance, rank)
    if kind is families.Independent:
        return _independent(loc, covariance)
    return families.MultivariateNormal(loc=loc, covariance_matrix=covariance)


def require_spread(covariance: Array, independent: bool) -> None:
    """SupportError where vectors of this covariance have no density."""
    spread = np.sort(np.diag(covariance)) if independent else np.linalg.eigvalsh(covariance)
    if not spread[0] > (0.0 if independent else 1e-15 * len(spread) * spread[-1]):
        where = "an entry does not vary" if independent else "they lie on a plane"
        raise SupportError(f"expected vectors with a density, but {where}: narrower normals are nearer without end")


def member_of(kind: type, parts: Components, rank: int | None) -> Any:
    """What was found in the plane, as a member of the family that was asked for: the same distribution."""
    if kind is Components:
        return parts
    loc, covariance = parts.locs[0], parts.covariances[0]
    if kind is families.LowRankMultivariateNormal:
        return low_rank_in_the_plane(loc, covariance, rank)
    if kind is families.Independent:
        return _independent(loc, covariance)
    return families.MultivariateNormal(loc=loc, covariance_matrix=covariance)


def _independent(loc: Array, covariance: Array) -> families.Independent:
    return families.Independent(base=families.Normal(loc=loc, scale=np.sqrt(np.diag(covariance))), event_dims=1)


def low_rank(loc: Array, covariance: Array, rank: int | None) -> families.LowRankMultivariateNormal:
    """The nearest normal whose covariance is a diagonal and a matrix of this rank: factor analysis.

    Descends KL(N(loc, covariance) || N(loc, F F' + D)) = (log det Sigma + tr(Sigma^-1 covariance))/2 + const.
    """
    size, rank = len(loc), require_rank(rank, len(loc))
    widths = np.sqrt(np.diag(covariance))
    scaled = covariance / np.outer(widths, widths)
    values, vectors = np.linalg.eigh(scaled)
    factor = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0.1) * 0.7)
    start = np.concatenate([factor.ravel(), np.log(np.maximum(1 - (factor**2).sum(axis=1), 0.1))])

    def half_deviance(z: Array) -> tuple[float, Array]:
        f, d = z[: size * rank].reshape(size, rank), np.exp(z[size * rank :])
        root = linalg.cho_factor(f @ f.T + np.diag(d), lower=True)
        inverse = linalg.cho_solve(root, np.eye(size))
        slope = inverse - inverse @ scaled @ inverse
        value = float(np.log(np.diag(root[0])).sum()) + 0.5 * float((inverse * scaled).sum())
        return value, np.concatenate([(slope @ f).ravel(), 0.5 * np.diag(slope) * d])

    found = optimize.minimize(
        half_deviance, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    )
    f, d = found.x[: size * rank].reshape(size, rank), np.exp(found.x[size * rank :])
    return families.LowRankMultivariateNormal(loc=loc, cov_factor=f * widths[:, None], cov_diag=d * widths**2)


def low_rank_in_the_plane(loc: Array, covariance: Array, rank: int | None) -> families.LowRankMultivariateNormal:
    """The same normal: in the plane each is of rank 1, and shares its variances as its correlation says."""
    rank = require_rank(rank, 2)
    variances = np.diag(covariance)
    correlation = float(covariance[0, 1] / np.sqrt(variances[0] * variances[1]))
    factor = np.zeros((2, rank))
    factor[:, 0] = np.sqrt(abs(correlation) * variances) * [1.0, np.sign(correlation)]
    return families.LowRankMultivariateNormal(
        loc=loc,
        cov_factor=factor,
        cov_diag=(1 - abs(correlation)) * variances,
    )


def require_rank(rank: int | None, size: int) -> int:
    """The rank, or ParameterError."""
    if rank is None or not 0 < rank <= size:
        raise ParameterError(f"expected components, the rank of the factor, from 1 to {size}, got {rank!r}")
    return rank
