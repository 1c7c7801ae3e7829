"""Fits of normals to distributions of vectors: by the target's moments, and in the plane by quadrature."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np
from scipy import linalg, optimize

from kullback import families
from kullback._arrays import Array
from kullback.densities.mixtures import Components
from kullback.densities.of_objects import as_components, as_sampler
from kullback.distributions import as_record
from kullback.errors import KullbackError, ParameterError, SupportError
from kullback.families import MultivariateNormal, Record
from kullback.fit.coordinates import coordinates_of
from kullback.fit.fits import Fit, Minimum, Step
from kullback.fit.plane import OnPlane, log_evidence
from kullback.fit.search import search
from kullback.measures import measure
from kullback.result import Estimate

__all__ = ["forward_of_vectors", "low_rank", "low_rank_in_the_plane", "require_rank", "reverse_in_the_plane"]

_DRAWS = 65_536


def forward_of_vectors(kind: type[Record], target: Any, rank: int | None) -> Fit:
    """The normal with the target's mean and covariance: exact for mixtures of normals, else from draws."""
    normals = (families.MultivariateNormal, families.LowRankMultivariateNormal)
    if kind not in normals:
        raise ParameterError(
            f"expected a family and a target on the line, or normals of vectors, got {kind.__name__} for "
            f"{type(target).__name__}; draw samples of the target and fit those"
        )
    parts = _components(target)
    if parts is not None:
        loc, covariance = parts.weights @ parts.locs, _covariance(parts)
        method, warnings = "closed form", ()
    else:
        sampler = as_sampler(target)
        if sampler is None:
            raise SupportError(
                f"expected a target with draws, got {type(target).__name__}: pass samples of it, or an object with "
                "log_prob(x) and sample(count)"
            )
        x = np.asarray(sampler.sample(_DRAWS, np.random.default_rng(0)), np.float64)
        loc, covariance = x.mean(axis=0), np.cov(x.T, bias=True)
        method, warnings = "moments of draws", (f"mean and covariance are those of {_DRAWS} draws",)
    made = MultivariateNormal(loc=loc, covariance_matrix=covariance)
    if kind is families.LowRankMultivariateNormal:
        made = low_rank(loc, covariance, rank)
    estimate = measure(target, made)
    diagnostics = {"method": method} | ({"warnings": warnings} if warnings else {})
    return Fit(
        made,
        estimate.value,
        estimate,
        (Step(made, estimate.value),),
        (Minimum(made, estimate.value, (made,)),),
        True,
        diagnostics,
    )


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


def low_rank_in_the_plane(normal: Record, rank: int | None) -> families.LowRankMultivariateNormal:
    """The same normal: in the plane each is of rank 1, and shares its variances as its correlation says."""
    rank = require_rank(rank, 2)
    covariance = np.asarray(normal.covariance_matrix)  # pyright: ignore[reportAttributeAccessIssue]
    variances = np.diag(covariance)
    correlation = float(covariance[0, 1] / np.sqrt(variances[0] * variances[1]))
    factor = np.zeros((2, rank))
    factor[:, 0] = np.sqrt(abs(correlation) * variances) * [1.0, np.sign(correlation)]
    return families.LowRankMultivariateNormal(
        loc=normal.loc,  # pyright: ignore[reportAttributeAccessIssue]
        cov_factor=factor,
        cov_diag=(1 - abs(correlation)) * variances,
    )


def require_rank(rank: int | None, size: int) -> int:
    """The rank, or ParameterError."""
    if rank is None or not 0 < rank <= size:
        raise ParameterError(f"expected components, the rank of the factor, from 1 to {size}, got {rank!r}")
    return rank


def reverse_in_the_plane(
    target: Any, log_prob: Callable[[Array], Array] | None, begin: Sequence[Record]
) -> tuple[Fit, Callable[[Array], Array]]:
    """Every normal in the plane at which KL(normal || target) is least around; and the target's log-density."""
    normals = [(np.asarray(one.loc), np.asarray(one.covariance_matrix)) for one in begin]  # pyright: ignore
    evidence = 0.0
    diagnostics: dict[str, Any] = {"method": "quadrature"}
    if log_prob is None:
        sampler = as_sampler(target)
        assert sampler is not None
        log_density, parts = sampler.log_density, _components(target)
    else:
        log_density, parts = log_prob, None
    if parts is not None:
        pieces = list(zip(parts.locs, parts.covariances, strict=True))
        whole = (parts.weights @ parts.locs, _covariance(parts))
    else:
        pieces = _modes(log_density, [loc for loc, _ in normals])
        whole = None
    if log_prob is not None:
        evidence = log_evidence(log_density, pieces)
        diagnostics["log_evidence"] = evidence
    starts = [*begin]
    for loc, covariance in [*([whole] if whole else []), *pieces, *([] if whole else [_around(pieces)])]:
        starts.append(MultivariateNormal(loc=loc, covariance_matrix=covariance))
    chart = coordinates_of(MultivariateNormal, starts[0], {})

    def normalised(x: Array) -> Array:
        return log_density(x) - evidence

    found = search(chart, OnPlane(chart, normalised), starts)
    if not found.minima:
        raise SupportError("expected KL(member || target) to be finite at a start, but it is inf at each")
    best = found.minima[0]
    estimate = Estimate(
        best.kl, error=1e-10, interval=(best.kl - 1e-10, best.kl + 1e-10), method="quadrature", status="bounded"
    )
    if log_prob is not None:
        diagnostics["evidence_bound"] = evidence - best.kl
    fit = Fit(best.distribution, best.kl, estimate, found.path, found.minima, found.converged, diagnostics)
    return fit, normalised


def _components(target: Any) -> Components | None:
    try:
        known = as_record(target)
    except (KullbackError, TypeError):
        known = target
    return as_components(known) or as_components(target)


def _covariance(parts: Components) -> Array:
    away = parts.locs - parts.weights @ parts.locs
    return np.einsum("k,kij->ij", parts.weights, parts.covariances) + np.einsum(
        "k,ki,kj->ij", parts.weights, away, away
    )


def _modes(log_density: Callable[[Array], Array], given: list[Array]) -> list[tuple[Array, Array]]:
    """Modes with the covariance that the curvature there has."""
    rng = np.random.default_rng(0)
    places = [*given, np.zeros(2), *(rng.normal(size=(12, 2)) * np.geomspace(0.3, 30, 12)[:, None])]
    found: list[tuple[Array, Array, float]] = []

    def height(x: Array) -> float:
        value = float(log_density(np.asarray(x)[None])[0])
        return -value if value > -inf else 1e300

    for place in places:
        if not log_density(np.asarray(place)[None])[0] > -inf:
            continue
        end = optimize.minimize(
            height, place, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000}
        )
        if all(np.linalg.norm(end.x - loc) > 1e-4 * (1 + np.linalg.norm(loc)) for loc, _, _ in found):
            covariance = _curvature(height, end.x)
            if covariance is not None:
                found.append((end.x, covariance, end.fun))
    if not found:
        raise SupportError("expected log_prob to have a mode within some hundred units of 0: pass start= near one")
    best = min(value for _, _, value in found)
    return [(loc, covariance) for loc, covariance, value in found if value < best + 30]


def _curvature(height: Callable[[Array], float], x: Array) -> Array | None:
    step = 1e-3
    for _ in range(30):
        moves = step * np.eye(2)
        hessian = np.asarray(
            [
                [height(x + a + b) - height(x + a - b) - height(x - a + b) + height(x - a - b) for b in moves]
                for a in moves
            ]
        ) / (4 * step * step)
        if np.isfinite(hessian).all() and np.linalg.eigvalsh(hessian)[0] > 0 and np.abs(hessian).max() < 1e200:
            rise = np.abs(hessian).max() * step * step
            if 1e-6 < rise < 0.1:
                return np.linalg.inv(hessian)
            step *= (1e-3 / max(rise, 1e-12)) ** 0.5
        else:
            step *= 2
    return None


def _around(pieces: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """One normal around all of them, with equal weights."""
    count = len(pieces)
    parts = Components(
        np.full(count, 1 / count), np.asarray([loc for loc, _ in pieces]), np.asarray([one for _, one in pieces])
    )
    return parts.weights @ parts.locs, _covariance(parts)
