"""KL(p || q) of two distributions of counts, by summation of the phi form, with a bound on its error."""

from math import ceil, floor, inf, isfinite

import numpy as np

from kullback.densities.density import Density
from kullback.densities.integrand import terms
from kullback.densities.quadrature import integrals
from kullback.densities.verdict import Sums, conclude, infinite_kl, support_gap
from kullback.errors import SupportError
from kullback.numerics.arrays import Array
from kullback.result import Estimate

__all__ = ["kl_summation"]

_EPS = float(np.finfo(np.float64).eps)
_SHORE = 2**13  # how far from an end, or from where a distribution changes at once, counts are taken one by one
_WIDE = 400.0  # by then the logarithm of a probability is a parabola from count to count
_AT_ONCE = 2**15


def kl_summation(p: Density, q: Density, *, error: float = 1e-10) -> Estimate:
    """KL(p || q) of distributions of whole numbers, in nats.

    KL(p || q) = sum of p phi(log q/p), where phi(d) = e^d - 1 - d, and of q where p is 0. Up to some thousands of
    terms from every end they are added one by one. Beyond, where the probabilities hardly change from one count to the
    next, a sum is the integral between the half-integers around it, but for its end terms f'/24 (Euler and Maclaurin).

    Args:
        p: Probabilities of whole numbers, with their support.
        q: The same.
        error: As in `kl_quadrature`.

    Returns:
        An `Estimate` as `kl_quadrature` makes it.

    Raises:
        SupportError: A log-probability is nan.
    """
    if gap := support_gap(p, q):
        return infinite_kl(gap, "supports")
    total = Sums()
    with np.errstate(all="ignore"):
        exact = _one_by_one(p, q)
        for low, high in exact:
            total = total.plus(_add(p, q, np.arange(low, high + 1)))
            if total.kl == inf:
                return infinite_kl(total.warnings[-1], "supports")
        for low, high in _between(exact, min(p.support[0], q.support[0]), max(p.support[1], q.support[1])):
            total = total.plus(_smooth(p, q, low, high, error))
            if total.kl == inf:
                return infinite_kl(total.warnings[-1], "tails")
    return conclude(total, error, "summation")


def _one_by_one(p: Density, q: Density) -> list[tuple[float, float]]:
    """The stretches of counts, ends included, that are added one by one."""
    low, high = min(p.support[0], q.support[0]), max(p.support[1], q.support[1])
    if high - low <= _AT_ONCE:
        return [(low, high)]
    edges = [end for density in (p, q) for end in density.support if isfinite(end)]
    stretches = [(end - _support_edge(p, q, end, -1), end + _support_edge(p, q, end, 1)) for end in edges]
    for place, width in (*p.anchors, *q.anchors):
        first, last = (
            (floor(place - 40 * width), ceil(place + 40 * width)) if width < _WIDE else (place - 64, place + 64)
        )
        stretches.append((first - _support_edge(p, q, first, -1), last + _support_edge(p, q, last, 1)))
    merged: list[tuple[float, float]] = []
    for first, last in sorted((max(first, low), min(last, high)) for first, last in stretches):
        if merged and first <= merged[-1][1] + 2:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _support_edge(p: Density, q: Density, edge: float, step: int) -> int:
    """How many more are to be added one by one from here: none to speak of where nothing is left."""
    k = edge + step * np.asarray([1.0, 8.0, 64.0, 512.0])
    return _SHORE if max(density.log_density(k, np.zeros(4)).max() for density in (p, q)) > -80 else 8


def _between(exact: list[tuple[float, float]], low: float, high: float) -> list[tuple[float, float]]:
    """The first and the last count of each gap that is left."""
    edges = [low - 1, *(edge for stretch in exact for edge in stretch), high + 1]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(first + 1, last - 1) for first, last in pairs if last - first > 1]


def _add(p: Density, q: Density, k: Array) -> Sums:
    log_p, log_q = _logs(p, q, k)
    values = terms(log_p, log_q)
    bare = np.flatnonzero((log_q == -inf) & (log_p > -inf))
    blind = 0.0
    if bare.size:
        near = log_q[max(bare[0] - 1, 0) : bare[-1] + 2]
        if not np.any((near > -inf) & (near < -600)):
            words = f"q is 0 where p is not: x = {k[bare[0]]:.15g}"
            return Sums(inf, warnings=(words if bare.size == 1 else f"{words} and {bare.size - 1} more",))
        blind = float(values[1, bare].sum())  # q has underflowed
        values[0, bare] = 0.0
    d = np.where(np.isfinite(log_q - log_p), log_q - log_p, 0.0)
    noise_p, noise_q = (np.where(np.isfinite(logs), 4 * _EPS * (1 + np.abs(logs)), 0.0) for logs in (log_p, log_q))
    by_p = np.where(d < 1, values[0], values[1] * d) * noise_p
    noise_d = noise_p + noise_q
    rounding = by_p + (np.abs(values[2] - values[1]) + values[2] * np.minimum(noise_d, 1.0)) * noise_d
    kl, mass_p, mass_q = values.sum(axis=1).tolist()
    return Sums(kl, mass_p, mass_q, blind, float(rounding.sum()), 1e-15)


def _smooth(p: Density, q: Density, low: float, high: float, error: float) -> Sums:
    """The sum from low to high, as an integral."""
    inside = low - 0.5, high + 0.5
    total = integrals(_between_counts(p, *inside), _between_counts(q, *inside), error)
    for edge, sign in ((inside[0], 1), (inside[1], -1)):
        if isfinite(edge):
            log_p, log_q = _logs(p, q, np.asarray([edge - 0.5, edge + 0.5]))
            ends = sign * np.diff(terms(log_p, log_q), axis=1)[:, 0] / 24
            kl, mass_p, mass_q = np.where(np.isfinite(ends), ends, 0.0).tolist()
            total = total.plus(Sums(kl, mass_p, mass_q, 0.0, 1e-3 * abs(kl), 1e-3 * (abs(mass_p) + abs(mass_q))))
    return total


def _between_counts(density: Density, low: float, high: float) -> Density:
    """The logarithm carried between the counts by the parabola through the nearest three."""

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
        raise SupportError(f"expected log-probabilities, but one is nan at {float(k[bad][0])!r}")
    return log_p, log_q
