"""The entropy of a univariate distribution by quadrature or summation, with an error bound."""

from math import exp, inf, isfinite, log
from typing import NamedTuple

import numpy as np

from kullback.densities.density import Density, require_resolved_counts
from kullback.densities.panels import Panels, Ray, assemble, integrate, partition
from kullback.densities.quadrature import perturbed
from kullback.densities.summation import exact_ranges, gaps_between, interpolated
from kullback.densities.tails import Tail, analyse_tail
from kullback.errors import SupportError
from kullback.numerics.arrays import Array
from kullback.result import Estimate

__all__ = ["entropy_of"]

_EPS = float(np.finfo(np.float64).eps)


class _Sums(NamedTuple):
    """Integrals or sums over a part of the support, with the bounds on their errors.

    Args:
        surprisal: The integral of -p log p, without the tails.
        mass: The integral of p, without the tails.
        error: The error bound of `surprisal`.
        mass_error: The error bound of `mass`.
        tail: The extrapolated integral of -p log p beyond the points that can be evaluated.
        tail_error: The error bound of `tail`.
        tail_mass: The extrapolated mass of p there.
    """

    surprisal: float = 0.0
    mass: float = 0.0
    error: float = 0.0
    mass_error: float = 0.0
    tail: float = 0.0
    tail_error: float = 0.0
    tail_mass: float = 0.0

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def entropy_of(density: Density, *, error: float = 1e-10) -> Estimate:
    """H(p) of a univariate density or probability mass function by quadrature or summation.

    H(p) = -E_p[log p(x)]: the differential entropy of a continuous distribution, or the entropy of a discrete
    distribution. With the integral P of the density, which is 1 up to rounding, the value is H(p/P).

    Args:
        density: The density or probability mass function.
        error: The acceptable error bound: in nats where |H(p)| is below 1, relative above 1.

    Returns:
        An `Estimate` in nats with status "bounded". A differential entropy may be negative. The status is "unreliable"
        if the error bound is larger than `error`, if the density does not integrate to 1, or if the tails decrease so
        slowly that the entropy may be infinite.

    Raises:
        SupportError: A log-density is nan or inf.

    Example:
        >>> from kullback.densities.from_families import as_density
        >>> from kullback.families import Normal
        >>> estimate = entropy_of(as_density(Normal(loc=3.0, scale=1.0)))
        >>> round(estimate.value, 9), estimate.status
        (1.418938533, 'bounded')
    """
    if density.discrete:
        require_resolved_counts(density)
    with np.errstate(all="ignore"):
        sums = _counts(density, error) if density.discrete else _line(density, error)
    mass, warnings = sums.mass + sums.tail_mass, []
    value = (sums.surprisal + sums.tail) / mass + log(mass) if mass > 0 else inf
    missing = abs(mass - 1)
    bound = sums.error + sums.tail_error + sums.mass_error * (1 + abs(value))
    if missing > 1e-12 + sums.mass_error:
        bound += missing * (1 + abs(value))
    if not missing <= 1e-6 + sums.tail_mass + sums.mass_error:
        warnings.append(
            f"p integrates to {mass:.9g}, not 1: the quadrature missed a part of it, or it is not normalized"
        )
    if not (isfinite(value) and isfinite(sums.tail_error)):
        warnings.append("the tails of p decrease so slowly that the entropy may be infinite")
    if warnings:
        bound = inf
    acceptable = error * max(1.0, abs(value))
    if not bound <= acceptable and not warnings:
        warnings.append(f"the error bound {bound:.2g} is above the acceptable error {acceptable:.2g}")
    low = max(0.0, value - bound) if density.discrete else value - bound
    return Estimate(
        value,
        error=bound,
        interval=(low, value + bound),
        method="summation" if density.discrete else "quadrature",
        status="unreliable" if warnings else "bounded",
        warnings=tuple(warnings),
    )


def _line(p: Density, error: float) -> _Sums:
    """The integrals over the support of a density."""
    intervals, rays = partition(p, p)
    tails = [analyse_tail(p, p, *ray) for ray in rays]
    panels = assemble(intervals, rays, [tail.reach for tail in tails])
    rounding = _rounding(p, panels)

    def excess_of(total: Array, bound: Array) -> Array:
        return bound / np.asarray([max(0.01 * error * max(1.0, abs(total[0])), rounding), 1e-12])

    totals, bounds = integrate(lambda *u: _integrand(p, *u), panels, excess_of)
    sums = _Sums(float(totals[0]), float(totals[1]), float(bounds[0]) + rounding, float(bounds[1]))
    for ray, tail in zip(rays, tails, strict=True):
        sums = sums.plus(_tail(p, ray, tail))
    return sums


def _integrand(p: Density, panels: Panels, u: Array) -> Array:
    """-p log p and p, times |dx/du|."""
    origin, offset, step = panels.at(u)
    logs = p.log_density(origin, offset)
    bad = ~(logs < inf)
    if bad.any():
        raise SupportError(
            f"expected log-densities below inf, got {logs[bad][0]} at x = {float((origin + offset)[bad][0])!r}"
        )
    return np.stack([_surprisals(logs, step), np.exp(logs + step)])


def _surprisals(logs: Array, step: Array) -> Array:
    """-p log p times |dx/du|, which is 0 where p is 0."""
    mass = np.exp(logs + step)
    return np.where(mass > 0, -mass * np.where(mass > 0, logs, 0.0), 0.0)


def _rounding(p: Density, panels: Panels) -> float:
    """The error of the entropy from rounding of the log-density, estimated by moving x by one ulp."""
    nodes, weights = np.polynomial.legendre.leggauss(15)
    half = (panels.high - panels.low) / 2
    u = (panels.low + half)[:, None] + half[:, None] * nodes
    origin, offset, step = panels.at(u)
    logs, up, down = (p.log_density(origin, shifted) for shifted in perturbed(offset, p.epsilon))
    error = np.abs((up - logs) + (down - logs)) + p.epsilon * (1 + np.abs(logs))
    change = np.exp(logs + step) * (1 + np.abs(logs)) * error
    return float(((np.where(np.isfinite(change), change, 0.0) @ weights) * half).sum())


def _tail(p: Density, ray: Ray, tail: Tail) -> _Sums:
    """The integrals beyond the reach of a ray, extrapolated with the last slopes of both logarithms in s."""
    if tail.mass_p <= 0:
        return _Sums()
    s = tail.reach - np.asarray([0.0, 1.0, 2.0])
    logs = p.log_density(np.full(3, ray.origin), ray.scale * np.exp(ray.growth * s))
    masses = logs + log(abs(ray.scale)) + ray.growth * s
    if not np.isfinite(masses).all():
        return _Sums(tail_error=inf)
    decay, change = np.diff(masses), np.diff(logs)  # the decrease of each logarithm from s - 1 to s
    if not decay[0] > 1e-3:
        return _Sums(tail_error=inf)
    mass = exp(masses[0]) / float(decay[0])
    value = float(mass * (-logs[0] + change[0] / decay[0]))
    drift = float(abs(decay[1] - decay[0]) / decay[0])
    return _Sums(tail=value, tail_error=abs(value) * min(1.0, 1e-9 + 10 * tail.reach * drift), tail_mass=mass)


def _counts(p: Density, error: float) -> _Sums:
    """The sums over the integers: term by term near the anchors, and as integrals between half-integers elsewhere."""
    exact, sums = exact_ranges(p, p), _Sums()
    for low, high in exact:
        logs = _log_masses(p, np.arange(low, high + 1))
        mass = np.exp(logs)
        terms = _surprisals(logs, np.zeros_like(logs))
        finite = np.where(mass > 0, np.abs(logs), 0.0)
        rounding = 4 * _EPS * float((mass * (1 + finite) ** 2).sum())
        sums = sums.plus(_Sums(float(terms.sum()), float(mass.sum()), rounding, 1e-15))
    for low, high in gaps_between(exact, p.support[0], p.support[1]):
        inside = low - 0.5, high + 0.5
        sums = sums.plus(_line(interpolated(p, *inside), error))
        for edge, sign in ((inside[0], 1), (inside[1], -1)):
            if isfinite(edge):
                logs = _log_masses(p, np.asarray([edge - 0.5, edge + 0.5]))
                ends = sign * np.diff([_surprisals(logs, np.zeros(2)), np.exp(logs)], axis=1)[:, 0] / 24
                value, mass = ends.tolist()
                sums = sums.plus(_Sums(value, mass, 1e-3 * abs(value), 1e-3 * abs(mass)))
    return sums


def _log_masses(p: Density, k: Array) -> Array:
    logs = p.log_density(k, np.zeros_like(k))
    bad = ~(logs < inf)
    if bad.any():
        raise SupportError(f"expected log-probabilities, got {logs[bad][0]} at {float(k[bad][0])!r}")
    return logs
