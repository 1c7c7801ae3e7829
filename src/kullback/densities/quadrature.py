"""KL(p || q) of two univariate densities by adaptive quadrature of the phi form, with an error bound."""

from math import inf

import numpy as np

from kullback.densities.bounded_estimate import Integrals, bounded_estimate, infinite_kl, support_gap
from kullback.densities.density import Density
from kullback.densities.integrand import terms
from kullback.densities.panels import Panels, assemble, integrate, partition
from kullback.densities.tails import analyse_tail, mass_beyond_reach
from kullback.errors import SupportError
from kullback.numerics.arrays import Array
from kullback.result import Estimate

__all__ = ["integrals", "kl_quadrature", "perturbed"]

# The largest distance of the float64 numbers at an anchor that the panels resolve, as a multiple of its width.
_MOST_SPACING = 64.0
_WIDTHS = 16.0  # the length of a part that panels do not resolve, as a multiple of the width of its anchor


def kl_quadrature(p: Density, q: Density, *, error: float = 1e-10) -> Estimate:
    """KL(p || q) of two univariate densities by quadrature.

    KL(p || q) = integral of p phi(log q/p), phi(d) = e^d - 1 - d, with the integrand q where p is 0. The integrand is
    non-negative and has no cancellation. The masses of p and q are integrated too, so that a missed mode is detected.

    Args:
        p: The density of p.
        q: The density of q.
        error: The acceptable error bound: in nats where KL is below 1, relative above 1.

    Returns:
        An `Estimate` in nats with status "bounded". Its `error` is the sum of the error bounds of the quadrature, of
        the rounding of the log-densities, of the extrapolated tails and of the masses. The value is `inf` where p has
        mass outside the support of q, and where the integrand decreases too slowly in a tail. The status is
        "unreliable" if the bound is larger than `error`.

    Raises:
        SupportError: A log-density is nan or inf.

    Example:
        >>> from kullback.densities.from_families import as_density
        >>> from kullback.families import Logistic, Normal
        >>> p, q = Normal(loc=0.0, scale=1.0), Logistic(loc=0.0, scale=1.0)
        >>> round(kl_quadrature(as_density(p), as_density(q)).value, 10)
        0.1931798335
    """
    if gap := support_gap(p, q):
        return infinite_kl(gap, "supports")
    found = integrals(p, q, error)
    return bounded_estimate(found, error, "tails" if found.kl == inf else "quadrature")


def integrals(p: Density, q: Density, error: float) -> Integrals:
    """The integrals of the phi form and of both densities over their supports, with the extrapolated tails."""
    with np.errstate(all="ignore"):
        intervals, rays = partition(p, q)
        tails = [analyse_tail(p, q, *ray) for ray in rays]
        for ray, tail in zip(rays, tails, strict=True):
            if tail.kl == inf:
                end = f"{ray.scale * inf:+}" if ray.growth > 0 else f"{ray.origin:.6g}"
                if not mass_beyond_reach(p, *ray)[0] <= 1:
                    warning = f"p integrates to more than 1 as x approaches {end}: its density is wrong there"
                    return Integrals(inf, kl_error=inf, warnings=(warning,))
                return Integrals(inf, warnings=(f"the integral of p log(p/q) diverges to +inf as x approaches {end}",))
        panels = assemble(intervals, rays, [tail.reach for tail in tails])
        rounding = _rounding(p, q, panels)

        def excess_of(total: Array, bound: Array) -> Array:
            wanted = max(0.01 * error * min(total[0], 1.0), rounding, 1e-6 * error)
            return bound / np.asarray([wanted, 1e-12, 1e-12, 1e-12])

        totals, bounds = integrate(lambda *u: _integrand(p, q, *u), panels, excess_of)
    (kl, mass_p, mass_q, mass_without_q), bounds = totals.tolist(), bounds.tolist()
    tail_mass_p, tail_mass_q = sum(tail.mass_p for tail in tails), sum(tail.mass_q for tail in tails)
    estimated = [tail for tail in tails if tail.mass_error is None]
    return Integrals(
        kl=kl + sum(tail.kl for tail in tails),
        mass_p=mass_p + tail_mass_p,
        mass_q=mass_q + tail_mass_q,
        mass_without_q=mass_without_q,
        kl_error=bounds[0] + rounding + _between_floats(p, q),
        mass_error=max(bounds[1:]) + sum(tail.mass_error or 0.0 for tail in tails),
        tail_error=sum(tail.error for tail in tails),
        tail_mass_p=sum(tail.mass_p for tail in estimated),
        tail_mass_q=sum(tail.mass_q for tail in estimated),
        warnings=tuple(tail.warning for tail in tails if tail.warning),
    )


def _between_floats(p: Density, q: Density) -> float:
    """A bound of the integral over parts that are narrower than the distance of the float64 numbers at their place.

    The panels cannot resolve such a part, as of a mixture with a component that is far from the others. The integrand
    at its centre, times several widths, bounds its integral. The panels beside it may have included the integrand at
    its centre over the distance of two float64 numbers.
    """
    anchors = np.asarray([anchor for density in (p, q) for anchor in density.anchors])
    x, width = anchors[np.spacing(np.abs(anchors[:, 0])) > _MOST_SPACING * anchors[:, 1]].T
    # Near an end of a support, offsets from the end resolve the density.
    inside = ~np.isin(x, [*p.support, *q.support])
    x, width = x[inside], width[inside]
    if x.size == 0:  # a log-density given by the user may refuse an empty array
        return 0.0
    with np.errstate(all="ignore"):
        kl = terms(p.log_density(x, np.zeros_like(x)), q.log_density(x, np.zeros_like(x)))[0]
    return float(((_WIDTHS * width + 4 * np.spacing(np.abs(x))) * kl).sum())


def _log_pair(p: Density, q: Density, panels: Panels, u: Array) -> tuple[Array, Array, Array]:
    """Both log-densities at u, and the log of |dx/du|."""
    origin, offset, step = panels.at(u)
    log_p, log_q = p.log_density(origin, offset), q.log_density(origin, offset)
    bad = ~((log_p < inf) & (log_q < inf))
    if bad.any():
        which = "nan" if np.isnan(log_p[bad][0] + log_q[bad][0]) else "inf"
        raise SupportError(f"expected log-densities below inf, got {which} at x = {float((origin + offset)[bad][0])!r}")
    return log_p, log_q, step


def _integrand(p: Density, q: Density, panels: Panels, u: Array) -> Array:
    """p phi(log q/p), p, q, and p where only q is 0, each times |dx/du|; the first is 0 where only q is 0."""
    log_p, log_q, step = _log_pair(p, q, panels, u)
    values = terms(log_p + step, log_q + step)
    without_q = (log_q == -inf) & (log_p > -inf)
    values[0] = np.where(without_q, 0.0, values[0])
    return np.concatenate([values, np.where(without_q, values[1], 0.0)[None]])


def _rounding(p: Density, q: Density, panels: Panels) -> float:
    """The error of KL from rounding of the log-densities, estimated by moving x by one ulp in both directions."""
    nodes, weights = np.polynomial.legendre.leggauss(15)
    half = (panels.high - panels.low) / 2
    u = (panels.low + half)[:, None] + half[:, None] * nodes
    origin, offset, step = panels.at(u)
    epsilon = max(p.epsilon, q.epsilon)
    log_p, up_p, down_p = (p.log_density(origin, shifted) for shifted in perturbed(offset, epsilon))
    log_q, up_q, down_q = (q.log_density(origin, shifted) for shifted in perturbed(offset, epsilon))
    d = log_q - log_p
    error_p, error_q = (up_p - log_p) + (down_p - log_p), (up_q - log_q) + (down_q - log_q)
    error_d = np.where(d < 1, np.abs(error_q - error_p), np.abs(error_q)) + epsilon * (1 + np.abs(log_q))
    error_p = np.abs(error_p) + epsilon * (1 + np.abs(log_p))
    # The derivatives of p phi(d) with respect to log p and d; where d is large, with respect to log p and log q.
    kl, mass_p, mass_q = terms(log_p + step, log_q + step)
    by_p = np.where(d < 1, kl, mass_p * d) * error_p
    by_d = (np.abs(mass_q - mass_p) + mass_q * np.minimum(error_d, 1.0)) * error_d
    change = np.where(np.isfinite(by_p), by_p, 0.0) + np.where(np.isfinite(by_d), by_d, 0.0)
    return float(((change @ weights) * half).sum())


def perturbed(offset: Array, epsilon: float) -> tuple[Array, Array, Array]:
    return offset, offset * (1 + 2 * epsilon), offset * (1 - 2 * epsilon)
