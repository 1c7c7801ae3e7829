"""Fits of normals of vectors and of their mixtures: by the target's moments, or by quadrature in the plane."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Any

import numpy as np
from scipy import linalg, optimize
from scipy.cluster.vq import ClusterError, kmeans2

from kullback import families
from kullback.densities.gaussian_mixtures import Components, sampler_of_components
from kullback.densities.resolve import resolve
from kullback.errors import ParameterError, SupportError
from kullback.families import Distribution
from kullback.fit.gaussian.mixtures import MixtureChart, around, starts_of_mixtures
from kullback.fit.gaussian.plane_quadrature import MixtureLikelihood, OnPlane
from kullback.fit.gaussian.unnormalised_plane import log_evidence, modes_in_the_plane
from kullback.fit.result import Fit, Minimum, Step, without_entropy
from kullback.fit.samples import mean_and_covariance
from kullback.fit.solver.multistart import search
from kullback.measure import measure
from kullback.numerics.arrays import Array
from kullback.result import Estimate

__all__ = [
    "NORMALS",
    "forward_of_mixture",
    "forward_of_normal",
    "likelihood_of_mixture",
    "member_of",
    "nearest_normal",
    "require_rank",
    "require_spread",
    "reverse_in_the_plane",
    "starts_of_draws",
]


NORMALS = (families.Independent, families.LowRankMultivariateNormal, families.MultivariateNormal)


def nearest_normal(kind: type[Distribution], loc: Array, covariance: Array, rank: int | None) -> Distribution:
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


_DRAWS = 65_536


def forward_of_normal(kind: type, target: Any, rank: int | None) -> Fit:
    """The normal with the target's mean and covariance: exact for mixtures of normals, else from draws."""
    parts, diagnostics = resolve(target).components, {}
    if parts is None:
        x = _draws(target)
        parts = Components(np.ones(1), x.mean(axis=0)[None], np.cov(x.T, bias=True)[None])
        diagnostics = {"method": "moments of draws", "warnings": (f"mean and covariance are those of {_DRAWS} draws",)}
    whole = around(parts)
    made = nearest_normal(kind, whole.locs[0], whole.covariances[0], rank)
    estimate = measure(target, made)
    return Fit(
        made,
        estimate.value,
        estimate,
        (Step(made, estimate.value),),
        (Minimum(made, estimate.value, (made,)),),
        True,
        {"method": "closed form"} | diagnostics,
    )


def forward_of_mixture(chart: Callable[[int], MixtureChart], target: Any, begin: Sequence[Components]) -> Fit:
    """The nearest mixtures by KL(target || mixture): by quadrature if the target is one in the plane, else from draws.

    Args:
        chart: Of so many dimensions.
        target: A distribution of vectors.
        begin: Where descents begin, besides those matched to the target.
    """
    parts = resolve(target).components
    if parts is None or parts.locs.shape[1] != 2:
        x = _draws(target)
        fit = likelihood_of_mixture(chart(x.shape[1]), x, np.full(len(x), 1 / len(x)), begin)
        estimate, warning = measure(target, fit.distribution), f"the likelihood is that of {_DRAWS} draws"
        told = {"method": "likelihood of draws", "warnings": (warning,)}
        return replace(fit, kl=estimate.value, estimate=estimate, diagnostics=told)
    plane = chart(2)
    log_density = sampler_of_components(parts).log_density
    problem = OnPlane(plane, log_density, (np.log(parts.weights), parts.locs, np.linalg.cholesky(parts.covariances)))
    return _by_quadrature(problem, [*begin, *starts_of_mixtures(plane.count, parts)])


def likelihood_of_mixture(chart: MixtureChart, x: Array, shares: Array, begin: Sequence[Components]) -> Fit:
    """The greatest likelihood of samples (n, d), each of which counts for its share."""
    require_spread(mean_and_covariance(x, shares)[1], chart.independent)
    starts = [*begin, *_clusters(x, shares, chart.count)]
    found = search(chart, MixtureLikelihood(chart, x, shares), starts)
    if not found.minima:
        raise SupportError(f"expected a finite likelihood at a start, but none of {len(starts)} has one: pass start=")
    value = found.minima[0].kl
    told = {"method": "Newton", "cross_entropy": value}
    return Fit(
        found.minima[0].distribution, nan, without_entropy(value), found.path, found.minima, found.converged, told
    )


def reverse_in_the_plane(
    chart: MixtureChart, target: Any, log_prob: Callable[[Array], Array] | None, begin: Sequence[Components]
) -> tuple[Fit, Callable[[Array], Array]]:
    """Every mixture in the plane at which KL(mixture || target) is least around; and the target's log-density."""
    if log_prob is None:
        resolved = resolve(target)
        assert resolved.native_sampler is not None
        log_density, parts = resolved.native_sampler.log_density, resolved.components
    else:
        log_density, parts = log_prob, None
    pieces = parts or _pieces(log_density, begin, target)
    starts = [*begin, *starts_of_mixtures(chart.count, pieces)]
    if log_prob is None:
        return _by_quadrature(OnPlane(chart, log_density), starts), log_density
    evidence, error = log_evidence(log_density, pieces)
    # More than it can be where it is not known, so that what is descended stays above 0.
    shift = _more_than_all(log_density, pieces) if isnan(evidence) else evidence

    def normalised(x: Array) -> Array:
        return log_density(x) - shift

    fit = _by_quadrature(OnPlane(chart, normalised), starts, error)
    told = {"log_evidence": evidence, "evidence_bound": shift - fit.kl}
    fit = replace(fit, diagnostics=fit.diagnostics | told)
    return (_without_evidence(fit, shift) if isnan(evidence) else fit), normalised


def _pieces(log_density: Callable[[Array], Array], begin: Sequence[Components], target: Any) -> Components:
    """Normals at the modes; where a target has none, as a box has, the one of its draws."""
    try:
        return modes_in_the_plane(log_density, [loc for one in begin for loc in one.locs])
    except SupportError:
        if target is None:
            raise
        return starts_of_draws(target, 1)[0]


def _more_than_all(log_density: Callable[[Array], Array], modes: Components) -> float:
    """The log of the integral of normals at the modes, and 50 nats more."""
    sizes = 2 * np.pi * np.sqrt(np.linalg.det(modes.covariances))
    return 50 + float(np.logaddexp.reduce(log_density(modes.locs) + np.log(sizes)))


def _without_evidence(fit: Fit, shift: float) -> Fit:
    """A fit to a density whose integral is not known: what was descended is the bound, and KL is nan."""
    unknown = Estimate(
        nan,
        method="quadrature",
        status="unreliable",
        warnings=("KL(q || p) = log of p's integral - evidence bound, and that integral could not be taken",),
    )
    return replace(
        fit,
        kl=nan,
        estimate=unknown,
        path=tuple(replace(step, kl=step.kl - shift) for step in fit.path),
        minima=tuple(replace(one, kl=nan) for one in fit.minima),
    )


def starts_of_draws(target: Any, count: int) -> list[Components]:
    """Mixtures of so many normals, one for each of some clusterings of the target's draws."""
    x = _draws(target)
    return _clusters(x, np.full(len(x), 1 / len(x)), count)


def _by_quadrature(problem: OnPlane, starts: Sequence[Components], known_to: float = 0.0) -> Fit:
    found = search(problem.chart, problem, starts)
    if not found.minima:
        raise SupportError("expected KL between member and target to be finite at a start, but it is inf at each")
    best = found.minima[0]
    error = known_to + problem.error(problem.chart.vector(best.distribution))
    interval = max(0.0, best.kl - error), best.kl + error
    estimate = Estimate(best.kl, error=error, interval=interval, method="quadrature", status="bounded")
    told = {"method": "quadrature"}
    return Fit(best.distribution, best.kl, estimate, found.path, found.minima, found.converged, told)


def _clusters(x: Array, shares: Array, count: int) -> list[Components]:
    """Mixtures of the normals of clusters, as three runs of k-means part the samples."""
    if count == 1:
        return [_of_clusters(x, shares, np.zeros(len(x), int), 1)]
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(x), min(len(x), 4096), replace=False)
    made = []
    for _ in range(3):
        try:
            centres, _ = kmeans2(x[drawn], count, minit="++", missing="raise", rng=rng)
        except ClusterError:
            continue
        which = ((x[:, None, :] - centres) ** 2).sum(axis=-1).argmin(axis=1)
        if np.bincount(which, shares, count).min() > 0:
            made.append(_of_clusters(x, shares, which, count))
    return made


def _of_clusters(x: Array, shares: Array, which: Array, count: int) -> Components:
    weights, whole = np.bincount(which, shares, count), mean_and_covariance(x, shares)[1]
    moments = [mean_and_covariance(x[which == k], shares[which == k] / weights[k]) for k in range(count)]
    # A little of the whole, for a cluster that lies on a line.
    covariances = [covariance + 1e-3 * whole for _, covariance in moments]
    return Components(weights, np.asarray([loc for loc, _ in moments]), np.asarray(covariances))


def _draws(target: Any) -> Array:
    sampler = resolve(target).native_sampler
    x = None if sampler is None else np.asarray(sampler.sample(_DRAWS, np.random.default_rng(0)), np.float64)
    if x is None or x.ndim != 2:
        raise SupportError(
            f"expected a target with draws that are vectors, got {type(target).__name__}: pass samples of it, or an "
            "object with log_prob(x) and sample(count)"
        )
    return x
