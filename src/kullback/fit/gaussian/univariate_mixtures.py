"""Starting points of mixtures of univariate normals: clusters, and fits of fewer components with a component split."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from kullback.families import NormalMixture
from kullback.numerics.arrays import Array, as_numpy

__all__ = ["starts_of_increasing_size"]

_MAX_POINTS = 10_000  # the number of points in the fits of fewer components
_SHORT_RUN, _LONG_RUN = 30, 300  # steps of expectation-maximisation, to compare candidates and to refine the best
_LEAST_GAIN = 1e-9  # nats per step, below which expectation-maximisation ends
_REFINED = 3  # candidates
_KMEANS_STEPS = 100


class _Mixture(NamedTuple):
    """Weights, means and standard deviations, each of shape (k,)."""

    weights: Array
    locs: Array
    scales: Array


def starts_of_increasing_size(
    x: Array,
    mass: Array,
    count: int,
    other_starts: Callable[[int], list[NormalMixture]],
    fit: Callable[[list[NormalMixture]], NormalMixture | None],
) -> list[NormalMixture]:
    """Starting mixtures of `count` normals for a forward fit to weighted points.

    The likelihood of a mixture has many local maxima. The starts are clusters of the points, and the fit of one
    component less with one component split; both are refined by expectation-maximisation. A further start is the fit of
    one component less with one component twice. Its likelihood is equal, so that more components are never worse.

    Args:
        x: The points, shape (n,).
        mass: Their weights, shape (n,), with sum 1.
        count: The number of components.
        other_starts: Returns further starts of a number of components.
        fit: The best member found from starts of fewer components; None if there is none.

    Returns:
        The starts, followed by the further starts.

    References:
        Verbeek, Vlassis and Kröse (2003), "Efficient Greedy Learning of Gaussian Mixture Models", section 3.
    """
    if len(x) > _MAX_POINTS:
        chosen = np.random.default_rng(0).choice(len(x), _MAX_POINTS, replace=False)
        x, mass = x[chosen], mass[chosen] / mass[chosen].sum()
    # Expectation-maximisation squares distances, which overflow or underflow in some units.
    center = float(np.median(x))
    unit = float(np.abs(x - center).max())
    z = (x - center) / unit
    starts: list[NormalMixture] = []
    fewer: NormalMixture | None = None
    for size in range(1, count + 1):
        known = None if fewer is None else _standardised(fewer, center, unit)
        candidates = _cluster_candidates(z, mass, size) + ([] if known is None else _split_candidates(known))
        refined = _refine(candidates, z, mass)
        if known is not None:
            refined.append(_with_component_twice(known))
        starts = [
            NormalMixture(weights=one.weights, locs=center + unit * one.locs, scales=unit * one.scales)
            for one in refined
        ]
        starts += other_starts(size)
        fewer = fit(starts) if size < count and starts else None
    return starts


def _standardised(mixture: NormalMixture, center: float, unit: float) -> _Mixture:
    weights, locs, scales = (as_numpy(part, np.float64) for part in (mixture.weights, mixture.locs, mixture.scales))
    return _Mixture(weights, (locs - center) / unit, scales / unit)


def _cluster_candidates(z: Array, mass: Array, count: int) -> list[_Mixture]:
    """Mixtures with the moments of the clusters of k-means, from quantiles and from k-means++."""
    order = np.argsort(z, kind="stable")
    cumulative = np.cumsum(mass[order]) - mass[order] / 2
    quantiles = np.interp((np.arange(count) + 0.5) / count, cumulative, z[order])
    candidates = []
    for centres in (quantiles, _spread_centres(z, mass, count)):
        labels = np.zeros(len(z), int)
        for _ in range(_KMEANS_STEPS):
            former, centres = labels, np.sort(centres)
            labels = np.searchsorted((centres[1:] + centres[:-1]) / 2, z)
            weights = np.bincount(labels, mass, count)
            if weights.min() <= 0 or (labels == former).all():
                break
            centres = np.bincount(labels, mass * z, count) / weights
        responsibilities = (labels == np.arange(count)[:, None]).astype(float)
        if (mixture := _maximisation(responsibilities, z, mass)) is not None:
            candidates.append(mixture)
    return candidates


def _spread_centres(z: Array, mass: Array, count: int) -> Array:
    """The seeds of k-means++: points drawn with probabilities in proportion to the squared distance to the others."""
    rng = np.random.default_rng(0)
    centres = [float(rng.choice(z, p=mass))]
    while len(centres) < count:
        distances = np.min([(z - centre) ** 2 for centre in centres], axis=0) * mass
        total = distances.sum()
        centres.append(float(rng.choice(z, p=distances / total if total > 0 else mass)))
    return np.asarray(centres)


def _split_candidates(mixture: _Mixture) -> list[_Mixture]:
    """Mixtures of which one component is two components of equal weight with its mean and variance.

    The two components have different means, or different scales.
    """
    return [
        _replace_component(mixture, k, np.asarray(shifts), np.asarray(factors))
        for k in range(len(mixture.weights))
        for shifts, factors in (((-0.7, 0.7), (0.51**0.5, 0.51**0.5)), ((0.0, 0.0), (0.5, 1.75**0.5)))
    ]


def _with_component_twice(mixture: _Mixture) -> _Mixture:
    """The same distribution with its component of largest weight as two components."""
    return _replace_component(mixture, int(mixture.weights.argmax()), np.zeros(2), np.ones(2))


def _replace_component(mixture: _Mixture, k: int, shifts: Array, factors: Array) -> _Mixture:
    """The mixture with component k replaced by two components of equal weight, in units of its scale."""
    weight, loc, scale = (part[k] for part in mixture)
    parts = np.full(2, weight / 2), loc + scale * shifts, scale * factors
    return _Mixture(*(np.append(np.delete(part, k), pair) for part, pair in zip(mixture, parts, strict=True)))


def _refine(candidates: list[_Mixture], z: Array, mass: Array) -> list[_Mixture]:
    """The most likely candidates after expectation-maximisation, the most likely first."""
    for steps in (_SHORT_RUN, _LONG_RUN):
        runs = [run for one in candidates if (run := _expectation_maximisation(one, z, mass, steps)) is not None]
        runs.sort(key=lambda run: run[0])
        candidates = [mixture for _, mixture in runs[:_REFINED]]
    return candidates


def _expectation_maximisation(mixture: _Mixture, z: Array, mass: Array, steps: int) -> tuple[float, _Mixture] | None:
    """The cross-entropy up to a constant, and the mixture, after steps of expectation-maximisation.

    Returns:
        None where a component contains no point, or only points that are equal.
    """
    value = np.inf
    for _ in range(steps):
        log_joint = _log_joint(mixture, z)
        log_density = special.logsumexp(log_joint, axis=0)
        former, value = value, -float(log_density @ mass)
        if former - value < _LEAST_GAIN:
            break
        following = _maximisation(np.exp(log_joint - log_density), z, mass)
        if following is None:
            return None
        mixture = following
    return value, mixture


def _log_joint(mixture: _Mixture, z: Array) -> Array:
    """log(w_k N(z; m_k, s_k)) up to a constant, shape (k, n)."""
    weights, locs, scales = (part[:, None] for part in mixture)
    return np.log(weights) - np.log(scales) - ((z - locs) / scales) ** 2 / 2


def _maximisation(responsibilities: Array, z: Array, mass: Array) -> _Mixture | None:
    """The mixture with the moments of the responsibilities, shape (k, n); None where a variance is not positive."""
    shares = responsibilities * mass
    weights = shares.sum(axis=1)
    with np.errstate(all="ignore"):
        locs = shares @ z / weights
        variances = (shares * (z - locs[:, None]) ** 2).sum(axis=1) / weights
    # Below this variance, in units of the largest distance, squares of differences are rounding errors.
    is_resolved = (weights > 0) & (variances > (4e-16 * np.abs(locs)) ** 2) & (variances > 0)
    return _Mixture(weights / weights.sum(), locs, np.sqrt(variances)) if is_resolved.all() else None
