"""KL(p || q) of two discrete distributions on the integers, by summation of the phi form, with an error bound."""

from math import inf, isfinite

import numpy as np

from kullback.densities.bounded_estimate import Integrals, bounded_estimate, infinite_kl, support_gap
from kullback.densities.density import Density, require_resolved_counts
from kullback.densities.integrand import terms
from kullback.densities.quadrature import integrals
from kullback.errors import SupportError
from kullback.numerics.arrays import Array
from kullback.result import Estimate

__all__ = ["exact_ranges", "gaps_between", "interpolated", "kl_summation"]

_EPS = float(np.finfo(np.float64).eps)
_EXACT_TERMS = 2**13  # integers beyond an end of the support, or beyond an anchor, that are summed term by term
_SMOOTH_WIDTH = 400.0  # width from which a log-probability is a parabola to rounding between adjacent integers
_MAX_EXACT_RANGE = 2**15  # largest range of integers that is summed term by term as a whole


def kl_summation(p: Density, q: Density, *, error: float = 1e-10) -> Estimate:
    """KL(p || q) of two discrete distributions on the integers by summation.

    KL(p || q) = sum_k p(k) phi(log q(k)/p(k)), phi(d) = e^d - 1 - d, with the term q(k) where p(k) is 0. Several
    thousand terms next to each end and each anchor are summed one by one. The other terms vary slowly with k, and their
    sum is the integral between half-integers minus the end terms f'/24 of the Euler-Maclaurin formula.

    Args:
        p: The probability mass function of p.
        q: The probability mass function of q.
        error: The acceptable error bound: in nats where KL is below 1, relative above 1.

    Returns:
        An `Estimate` in nats with status "bounded"; `inf` where p has mass outside the support of q, and where the
        terms decrease too slowly in a tail; "unreliable" if the error bound is larger than `error`.

    Raises:
        SupportError: A log-probability is nan, or adjacent counts are equal in float64.

    Example:
        >>> from kullback.densities.from_families import as_density
        >>> from kullback.families import Geometric, Poisson
        >>> p, q = Poisson(rate=2.0), Geometric(probs=0.3)
        >>> round(kl_summation(as_density(p), as_density(q)).value, 10)
        0.2124400483
    """
    if gap := support_gap(p, q):
        return infinite_kl(gap, "supports")
    require_resolved_counts(p, q)
    total = Integrals()
    with np.errstate(all="ignore"):
        exact = exact_ranges(p, q)
        for low, high in exact:
            total = total.plus(_sum_terms(p, q, np.arange(low, high + 1)))
            if total.kl == inf:
                return infinite_kl(total.warnings[-1], "supports")
        for low, high in gaps_between(exact, min(p.support[0], q.support[0]), max(p.support[1], q.support[1])):
            total = total.plus(_euler_maclaurin(p, q, low, high, error))
            if total.kl == inf:
                return bounded_estimate(total, error, "tails")
    return bounded_estimate(total, error, "summation")


def exact_ranges(p: Density, q: Density) -> list[tuple[float, float]]:
    """The ranges of integers, as inclusive pairs, that are summed term by term."""
    low, high = min(p.support[0], q.support[0]), max(p.support[1], q.support[1])
    if high - low <= _MAX_EXACT_RANGE:
        return [(low, high)]
    edges = [end for density in (p, q) for end in density.support if isfinite(end)]
    ranges = [(end - _exact_terms_beyond(p, q, end, -1), end + _exact_terms_beyond(p, q, end, 1)) for end in edges]
    for location, width in (*p.anchors, *q.anchors):
        first, last = (
            (float(np.floor(location - 40 * width)), float(np.ceil(location + 40 * width)))
            if width < _SMOOTH_WIDTH
            else (location - 64, location + 64)
        )
        ranges.append((first - _exact_terms_beyond(p, q, first, -1), last + _exact_terms_beyond(p, q, last, 1)))
    merged: list[tuple[float, float]] = []
    for first, last in sorted((max(first, low), min(last, high)) for first, last in ranges):
        if merged and first <= merged[-1][1] + 2:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _exact_terms_beyond(p: Density, q: Density, edge: float, step: int) -> int:
    """How many integers beyond an edge are summed term by term: few where both probabilities are negligible."""
    k = edge + step * np.asarray([1.0, 8.0, 64.0, 512.0])
    return _EXACT_TERMS if max(density.log_density(k, np.zeros(4)).max() for density in (p, q)) > -80 else 8


def gaps_between(exact: list[tuple[float, float]], low: float, high: float) -> list[tuple[float, float]]:
    """The first and the last integer of each gap between the ranges."""
    edges = [low - 1, *(edge for pair in exact for edge in pair), high + 1]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(first + 1, last - 1) for first, last in pairs if last - first > 1]


def _sum_terms(p: Density, q: Density, k: Array) -> Integrals:
    """The sums over the integers k, with the error bound from rounding of the log-probabilities."""
    log_p, log_q = _logs(p, q, k)
    values = terms(log_p, log_q)
    without_q = np.flatnonzero((log_q == -inf) & (log_p > -inf))
    mass_without_q = 0.0
    if without_q.size:
        near = log_q[max(without_q[0] - 1, 0) : without_q[-1] + 2]
        if not np.any((near > -inf) & (near < -600)):
            first = f"q is 0 where p is not: x = {k[without_q[0]]:.15g}"
            return Integrals(
                inf, warnings=(first if without_q.size == 1 else f"{first} and {without_q.size - 1} more",)
            )
        mass_without_q = float(values[1, without_q].sum())  # q underflows here
        values[0, without_q] = 0.0
    d = np.where(np.isfinite(log_q - log_p), log_q - log_p, 0.0)
    error_p, error_q = (np.where(np.isfinite(logs), 4 * _EPS * (1 + np.abs(logs)), 0.0) for logs in (log_p, log_q))
    by_p = np.where(d < 1, values[0], values[1] * d) * error_p
    error_d = error_p + error_q
    rounding = by_p + (np.abs(values[2] - values[1]) + values[2] * np.minimum(error_d, 1.0)) * error_d
    kl, mass_p, mass_q = values.sum(axis=1).tolist()
    return Integrals(kl, mass_p, mass_q, mass_without_q, float(rounding.sum()), 1e-15)


def _euler_maclaurin(p: Density, q: Density, low: float, high: float, error: float) -> Integrals:
    """The sums from low to high, as integrals between half-integers with end corrections."""
    inside = low - 0.5, high + 0.5
    total = integrals(interpolated(p, *inside), interpolated(q, *inside), error)
    for edge, sign in ((inside[0], 1), (inside[1], -1)):
        if isfinite(edge):
            log_p, log_q = _logs(p, q, np.asarray([edge - 0.5, edge + 0.5]))
            ends = sign * np.diff(terms(log_p, log_q), axis=1)[:, 0] / 24
            kl, mass_p, mass_q = np.where(np.isfinite(ends), ends, 0.0).tolist()
            total = total.plus(Integrals(kl, mass_p, mass_q, 0.0, 1e-3 * abs(kl), 1e-3 * (abs(mass_p) + abs(mass_q))))
    return total


def interpolated(density: Density, low: float, high: float) -> Density:
    """The density whose logarithm interpolates log-probabilities by the parabola through the nearest three integers."""

    def log_density(origin: Array, offset: Array) -> Array:
        x = origin + offset
        k = np.round(x)
        before, here, after = (density.log_density(k + step, np.zeros_like(k)) for step in (-1.0, 0.0, 1.0))
        u = x - k
        between = here + u * ((after - before) / 2 + u * ((after - here) - (here - before)) / 2)
        inside = (x >= low) & (x <= high)
        return np.where(inside, np.where(np.isfinite(between), between, here), -inf)

    return Density(log_density, (low, high), density.anchors, (low, high))


def _logs(p: Density, q: Density, k: Array) -> tuple[Array, Array]:
    log_p, log_q = (density.log_density(k, np.zeros_like(k)) for density in (p, q))
    bad = np.isnan(log_p) | np.isnan(log_q)
    if bad.any():
        raise SupportError(f"expected log-probabilities, got nan at {float(k[bad][0])!r}")
    return log_p, log_q
