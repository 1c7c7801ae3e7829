"""Fits of multivariate normals and of their mixtures, in both directions, in closed form or by Newton's method."""

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
from kullback.fit.gaussian.mixtures import MixtureParametrisation, mixture_starts, moment_matched_normal
from kullback.fit.gaussian.plane_quadrature import MixtureCrossEntropy, TwoDimensionalKL
from kullback.fit.gaussian.unnormalised_plane import find_modes, log_evidence
from kullback.fit.result import Fit, closed_form_fit, renamed, unknown_kl_from_samples
from kullback.fit.samples import mean_and_covariance
from kullback.fit.solver.multistart import minimise_from_starts
from kullback.fit.target_moments import fit_by_measure, match_moments_of_target
from kullback.measure import components_of, measure
from kullback.numerics.arrays import Array
from kullback.result import Estimate

__all__ = [
    "NORMAL_FAMILIES",
    "convert_to_family",
    "fit_independent_reverse",
    "fit_mixture_forward",
    "fit_mixture_to_samples",
    "fit_normal_forward",
    "fit_two_dimensional_reverse",
    "is_normal",
    "nearest_normal",
    "require_rank",
    "starts_from_target_samples",
]

NORMAL_FAMILIES = (families.Independent, families.LowRankMultivariateNormal, families.MultivariateNormal)
_TARGET_SAMPLES = 65_536
_LEAST_VARIANCE = 1e-290  # below which the products of variances lose digits
_SAMPLES_FOR_KMEANS = 4096


# The nearest normal to a mean and a covariance


def nearest_normal(family: type[Distribution], loc: Array, covariance: Array, rank: int | None) -> Distribution:
    """The normal q of a family that minimises KL(p || q), for any p with this mean and covariance.

    Args:
        family: A member of `NORMAL_FAMILIES`.
        loc: The mean of p, shape (d,).
        covariance: The covariance of p, shape (d, d).
        rank: The rank of the factor of a `LowRankMultivariateNormal`.

    Raises:
        ParameterError: The family is not a family of normals, or the rank is not between 1 and d.
        SupportError: The covariance is singular, so that KL(p || q) has no minimum.
    """
    _require_normal_family(family)
    _require_nonsingular(covariance, is_diagonal=family is families.Independent)
    if family is families.LowRankMultivariateNormal:
        return _factor_analysis(loc, covariance, rank)
    if family is families.Independent:
        return _independent_normal(loc, covariance)
    return families.MultivariateNormal(loc=loc, covariance_matrix=covariance)


def _require_normal_family(family: type) -> None:
    if family not in NORMAL_FAMILIES:
        raise ParameterError(
            f"expected a univariate family and a univariate target, or a family of multivariate normals, got "
            f"{family.__name__}; draw samples from the target and fit the family to them"
        )


def convert_to_family(family: type, mixture: Components, rank: int | None) -> Any:
    """A mixture that was fitted, as a member of the family that was requested, without a change of the distribution."""
    if family is Components:
        return mixture
    loc, covariance = mixture.locs[0], mixture.covariances[0]
    if family is families.LowRankMultivariateNormal:
        return _two_dimensional_low_rank(loc, covariance, rank)
    if family is families.Independent:
        return _independent_normal(loc, covariance)
    return families.MultivariateNormal(loc=loc, covariance_matrix=covariance)


def _independent_normal(loc: Array, covariance: Array) -> families.Independent:
    return families.Independent(base=families.Normal(loc=loc, scale=np.sqrt(np.diag(covariance))), event_dims=1)


def _factor_analysis(loc: Array, covariance: Array, rank: int | None) -> families.LowRankMultivariateNormal:
    """The nearest normal whose covariance is a diagonal plus a matrix of the given rank, by L-BFGS.

    It minimises KL(N(loc, covariance) || N(loc, S)) = (log det S + tr(S^-1 covariance)) / 2 + const, where
    S = F F^T + D.
    """
    size, rank = len(loc), require_rank(rank, len(loc))
    scales = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(scales, scales)
    values, vectors = np.linalg.eigh(correlation)
    factor = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0.1) * 0.7)
    start = np.concatenate([factor.ravel(), np.log(np.maximum(1 - (factor**2).sum(axis=1), 0.1))])

    def half_deviance(z: Array) -> tuple[float, Array]:
        f, d = z[: size * rank].reshape(size, rank), np.exp(z[size * rank :])
        root = linalg.cho_factor(f @ f.T + np.diag(d), lower=True)
        inverse = linalg.cho_solve(root, np.eye(size))
        slope = inverse - inverse @ correlation @ inverse
        value = float(np.log(np.diag(root[0])).sum()) + 0.5 * float((inverse * correlation).sum())
        return value, np.concatenate([(slope @ f).ravel(), 0.5 * np.diag(slope) * d])

    found = optimize.minimize(
        half_deviance, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    )
    f, d = found.x[: size * rank].reshape(size, rank), np.exp(found.x[size * rank :])
    return families.LowRankMultivariateNormal(loc=loc, cov_factor=f * scales[:, None], cov_diag=d * scales**2)


def _two_dimensional_low_rank(loc: Array, covariance: Array, rank: int | None) -> families.LowRankMultivariateNormal:
    """A two-dimensional normal as a factor of rank one plus a diagonal; every covariance has this form.

    The factor holds the share |correlation| of each variance, and the diagonal holds the remainder.
    """
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
    """The rank of a factor in d = size dimensions.

    Raises:
        ParameterError: The rank is missing or not between 1 and d.
    """
    if rank is None or not 0 < rank <= size:
        raise ParameterError(f"expected components, the rank of the factor, from 1 to {size}, got {rank!r}")
    return rank


def _require_nonsingular(covariance: Array, *, is_diagonal: bool) -> None:
    """Raise SupportError where a distribution with this covariance, or its diagonal, has no density."""
    variances = np.diag(covariance)
    for i in np.flatnonzero(~((variances > _LEAST_VARIANCE) & (variances < np.inf)) & (variances != 0))[:1].tolist():
        raise SupportError(
            f"expected variances inside the range of float64, but the variance of entry {i} is {variances[i]:g}; "
            "change the unit of the entry"
        )
    if not (variances > 0).all():
        raise _singular_error("an entry of the vectors is constant")
    if is_diagonal:
        return
    # Correlations do not depend on the units of the entries.
    deviations = np.sqrt(variances)
    eigenvalues = np.linalg.eigvalsh(covariance / deviations / deviations[:, None])
    if not eigenvalues[0] > 1e-15 * len(variances) * eigenvalues[-1]:
        raise _singular_error("the vectors lie in a hyperplane (within rounding)")


def require_varying_entries(x: Array) -> None:
    """Raise SupportError if an entry of samples (n, d) is constant: the rounding of its mean is not a variance."""
    if len(x) == 1:
        raise SupportError(
            "expected two or more samples, got one sample, whose covariance is 0: the likelihood has no maximum; pass "
            "more samples"
        )
    if (x.min(axis=0) == x.max(axis=0)).any():
        raise _singular_error("an entry of the vectors is constant")


def _singular_error(reason: str) -> SupportError:
    return SupportError(
        f"expected a nonsingular covariance, but {reason}: the likelihood has no maximum; leave out the constant or "
        "dependent entries"
    )


# Forward fits


def fit_normal_forward(family: type, target: Any, rank: int | None) -> Fit:
    """Minimise KL(target || q) over normals q, by the target's mean and covariance.

    The moments are exact if the target is a mixture of normals or has independent entries, and otherwise estimated from
    samples of it.

    Args:
        family: A member of `NORMAL_FAMILIES`.
        target: A multivariate distribution.
        rank: The rank of the factor of a `LowRankMultivariateNormal`.
    """
    _require_normal_family(family)
    mixture, diagnostics = resolve(target).components, {}
    independent = _independent_moments(target) if mixture is None else None
    mixture = mixture or independent
    if mixture is None:
        x = _sample_target(target)
        mixture = Components(np.ones(1), x.mean(axis=0)[None], np.cov(x.T, bias=True)[None])
        warning = f"the mean and covariance are estimated from {_TARGET_SAMPLES} samples of the target"
        diagnostics = {"method": "moments of samples", "warnings": (warning,)}
    moments = moment_matched_normal(mixture)
    normal = nearest_normal(family, moments.locs[0], moments.covariances[0], rank)
    # A covariance without correlations: KL is then a sum over the entries.
    is_diagonal = independent is not None and family is families.MultivariateNormal
    equal = (
        nearest_normal(families.Independent, moments.locs[0], moments.covariances[0], None) if is_diagonal else normal
    )
    return closed_form_fit(normal, measure(target, equal), {"method": "closed form"} | diagnostics)


def _independent_moments(target: Any) -> Components | None:
    """The mean and the covariance of a target with independent entries, by quadrature; None for other targets."""
    independent = resolve(target).family
    if not isinstance(independent, families.Independent):
        return None
    normals: list[Any] = []
    for component in components_of(independent):
        density = component.density
        matched = density and match_moments_of_target(families.Normal, density, {})
        if density is None or matched is None:
            return None
        if matched.is_resolved:
            normals.append(matched.member)
        else:
            normals.append(fit_by_measure(matched.member, density, component.given, {}).distribution)
    loc, scale = (np.array([float(getattr(normal, name)) for normal in normals]) for name in ("loc", "scale"))
    return Components(np.ones(1), loc[None], np.diag(scale**2)[None])


def is_normal(target: Any) -> bool:
    """Whether a distribution is one multivariate normal."""
    mixture = resolve(target).components
    return mixture is not None and len(mixture.weights) == 1


def fit_independent_reverse(target: Any) -> Fit:
    """The independent normal q that minimises KL(q || target) for one multivariate normal as target.

    With the precision matrix L of the target, q has its means and the variances 1 / L_ii.
    """
    mixture = resolve(target).components
    assert mixture is not None
    variances = 1 / np.diag(np.linalg.inv(mixture.covariances[0]))
    normal = nearest_normal(families.Independent, mixture.locs[0], np.diag(variances), None)
    return closed_form_fit(normal, measure(normal, target), {"method": "closed form"})


def fit_mixture_forward(
    parametrisation_of_size: Callable[[int], MixtureParametrisation], target: Any, starts: Sequence[Components]
) -> Fit:
    """Minimise KL(target || q) over mixtures q of normals.

    KL is computed by quadrature if the target is a two-dimensional mixture of normals. Otherwise the likelihood of
    samples of the target is maximised.

    Args:
        parametrisation_of_size: The coordinates of the mixtures, given the number of dimensions.
        target: A multivariate distribution.
        starts: Starting points, in addition to those that are matched to the target.
    """
    components = resolve(target).components
    if components is None or components.locs.shape[1] != 2:
        x = _sample_target(target)
        fit = fit_mixture_to_samples(parametrisation_of_size(x.shape[1]), x, np.full(len(x), 1 / len(x)), starts)
        estimate = measure(target, fit.distribution)
        warning = f"the likelihood is estimated from {_TARGET_SAMPLES} samples of the target"
        diagnostics = {"method": "likelihood of samples", "warnings": (warning,)}
        return replace(fit, kl=estimate.value, estimate=estimate, diagnostics=diagnostics)
    parametrisation = parametrisation_of_size(2)
    log_density = sampler_of_components(components).log_density
    factors = np.linalg.cholesky(components.covariances)
    objective = TwoDimensionalKL(parametrisation, log_density, (np.log(components.weights), components.locs, factors))
    return _fit_by_quadrature(objective, [*starts, *mixture_starts(parametrisation.count, components)])


def fit_mixture_to_samples(
    parametrisation: MixtureParametrisation, x: Array, weights: Array, starts: Sequence[Components]
) -> Fit:
    """Maximise the likelihood of weighted samples over mixtures of normals.

    Args:
        parametrisation: The coordinates of the mixtures.
        x: The samples, shape (n, d).
        weights: The weights of the samples, shape (n,), with sum 1.
        starts: Starting points, in addition to those from k-means.
    """
    require_varying_entries(x)
    _require_nonsingular(mean_and_covariance(x, weights)[1], is_diagonal=parametrisation.independent)
    starts = [*starts, *_kmeans_starts(x, weights, parametrisation.count)]
    found = minimise_from_starts(parametrisation, MixtureCrossEntropy(parametrisation, x, weights), starts)
    if not found.minima:
        raise SupportError(
            f"expected a finite likelihood at a start, but it is not finite at any of {len(starts)}: pass start=, a "
            "member with a positive density at every sample"
        )
    best = found.minima[0]
    diagnostics = {"method": "Newton", "cross_entropy": best.kl}
    estimate = unknown_kl_from_samples(best.kl)
    path, minima = renamed(found.path, "cross_entropy"), renamed(found.minima, "cross_entropy")
    return Fit(best.distribution, nan, estimate, path, minima, found.converged, diagnostics)


# Reverse fits in two dimensions


def fit_two_dimensional_reverse(
    parametrisation: MixtureParametrisation,
    target: Any,
    log_prob: Callable[[Array], Array] | None,
    starts: Sequence[Components],
) -> tuple[Fit, Callable[[Array], Array]]:
    """Minimise KL(q || target) over mixtures q of two-dimensional normals, by quadrature.

    Args:
        parametrisation: The coordinates of the mixtures.
        target: A distribution, used where log_prob is None.
        log_prob: The log-density of the target up to a constant, at points of shape (n, 2).
        starts: Starting points, in addition to those that are matched to the target.

    Returns:
        The fit and the target's log-density, normalised if its integral is known.
    """
    if log_prob is None:
        resolved = resolve(target)
        assert resolved.native_sampler is not None
        log_density, components = resolved.native_sampler.log_density, resolved.components
    else:
        log_density, components = log_prob, None
    components = components or _approximate_components(log_density, starts, target)
    starts = [*starts, *mixture_starts(parametrisation.count, components)]
    if log_prob is None:
        return _fit_by_quadrature(TwoDimensionalKL(parametrisation, log_density), starts), log_density
    evidence, error = log_evidence(log_density, components)
    # Where the integral is unknown, an upper bound keeps the objective positive.
    log_normalizer = _bound_log_evidence(log_density, components) if isnan(evidence) else evidence

    def normalised(x: Array) -> Array:
        return log_density(x) - log_normalizer

    fit = _fit_by_quadrature(TwoDimensionalKL(parametrisation, normalised), starts, error)
    evidence_diagnostics = {"log_evidence": evidence, "evidence_bound": log_normalizer - fit.kl}
    fit = replace(fit, diagnostics=fit.diagnostics | evidence_diagnostics)
    return (_with_unknown_evidence(fit, log_normalizer) if isnan(evidence) else fit), normalised


def _approximate_components(
    log_density: Callable[[Array], Array], starts: Sequence[Components], target: Any
) -> Components:
    """Normals at the modes of a density, or one normal with the moments of samples where no mode is found."""
    try:
        return find_modes(log_density, [loc for start in starts for loc in start.locs])
    except SupportError:
        if target is None:
            raise
        return starts_from_target_samples(target, 1)[0]


def _bound_log_evidence(log_density: Callable[[Array], Array], modes: Components) -> float:
    """An upper bound on the log-evidence: 50 nats above the Laplace approximation."""
    volumes = 2 * np.pi * np.sqrt(np.linalg.det(modes.covariances))
    return 50 + float(np.logaddexp.reduce(log_density(modes.locs) + np.log(volumes)))


def _with_unknown_evidence(fit: Fit, log_normalizer: float) -> Fit:
    """A fit to a density with an unknown integral: KL is nan, and the path has the evidence bound."""
    unknown = Estimate(
        nan,
        method="quadrature",
        status="unreliable",
        warnings=("KL(q || p) = log of the integral of p - evidence bound, and the integral could not be computed",),
    )
    return replace(
        fit,
        kl=nan,
        estimate=unknown,
        path=tuple(replace(step, kl=nan, evidence_bound=log_normalizer - step.kl) for step in fit.path),
        minima=tuple(replace(minimum, kl=nan, evidence_bound=log_normalizer - minimum.kl) for minimum in fit.minima),
    )


def _fit_by_quadrature(objective: TwoDimensionalKL, starts: Sequence[Components], normalizer_error: float = 0.0) -> Fit:
    """Minimise KL from several starts; the error is the quadrature error plus the error of the log-normaliser."""
    found = minimise_from_starts(objective.parametrisation, objective, starts)
    if not found.minima:
        raise SupportError(
            f"expected KL between member and target to be finite at a start, but it is inf at each of {len(starts)}: "
            "the family or the target has mass where the other has none, or its tails are too heavy"
        )
    best = found.minima[0]
    error = normalizer_error + objective.error(objective.parametrisation.to_vector(best.distribution))
    interval = max(0.0, best.kl - error), best.kl + error
    estimate = Estimate(best.kl, error=error, interval=interval, method="quadrature", status="bounded")
    diagnostics = {"method": "quadrature"}
    return Fit(best.distribution, best.kl, estimate, found.path, found.minima, found.converged, diagnostics)


# Starting points from samples


def starts_from_target_samples(target: Any, count: int) -> list[Components]:
    """Starting mixtures of `count` normals from k-means clusterings of samples of the target."""
    x = _sample_target(target)
    return _kmeans_starts(x, np.full(len(x), 1 / len(x)), count)


def _sample_target(target: Any) -> Array:
    """Samples of a multivariate target, shape (65536, d)."""
    sampler = resolve(target).native_sampler
    x = None
    if sampler is not None and sampler.sample is not None:
        x = np.asarray(sampler.sample(_TARGET_SAMPLES, np.random.default_rng(0)), np.float64)
    if x is None or x.ndim != 2:
        raise SupportError(
            f"expected a multivariate target that can be sampled, got {type(target).__name__}: pass samples of the "
            "target, or an object with log_prob(x) and sample(count)"
        )
    return x


def _kmeans_starts(x: Array, weights: Array, count: int) -> list[Components]:
    """Mixtures with the moments of the clusters of three runs of k-means."""
    if count == 1:
        return [_mixture_of_clusters(x, weights, np.zeros(len(x), int), 1)]
    rng = np.random.default_rng(0)
    subset = rng.choice(len(x), min(len(x), _SAMPLES_FOR_KMEANS), replace=False)
    starts = []
    for _ in range(3):
        try:
            centres, _ = kmeans2(x[subset], count, minit="++", missing="raise", rng=rng)
        except ClusterError:
            continue
        labels = ((x[:, None, :] - centres) ** 2).sum(axis=-1).argmin(axis=1)
        if np.bincount(labels, weights, count).min() > 0:
            starts.append(_mixture_of_clusters(x, weights, labels, count))
    return starts


def _mixture_of_clusters(x: Array, weights: Array, labels: Array, count: int) -> Components:
    """The mixture with the weight, mean and covariance of each cluster of weighted samples."""
    cluster_weights, covariance = np.bincount(labels, weights, count), mean_and_covariance(x, weights)[1]
    moments = [mean_and_covariance(x[labels == k], weights[labels == k] / cluster_weights[k]) for k in range(count)]
    # A small share of the total covariance keeps the covariance of a degenerate cluster nonsingular.
    covariances = [within + 1e-3 * covariance for _, within in moments]
    return Components(cluster_weights, np.asarray([loc for loc, _ in moments]), np.asarray(covariances))
