"""KL(p || q) of two densities on the line, by adaptive quadrature of the phi form, with a bound on its error."""

from math import inf

import numpy as np

from kullback.densities.density import Density
from kullback.densities.integrand import terms
from kullback.densities.panels import Panels, cut, integrate, join
from kullback.densities.tails import follow
from kullback.densities.verdict import Sums, conclude, infinite_kl, support_gap
from kullback.errors import SupportError
from kullback.numerics.arrays import Array
from kullback.result import Estimate

__all__ = ["integrals", "kl_quadrature"]

_EPS = float(np.finfo(np.float64).eps)


def kl_quadrature(p: Density, q: Density, *, error: float = 1e-10) -> Estimate:
    """KL(p || q) of densities on the line, in nats.

    KL(p || q) = integral of p phi(log q/p), where phi(d) = e^d - 1 - d, and of q where p is 0: nowhere negative, and
    free of cancellation. The masses of p and q are integrated beside it, so that a mode that was missed is noticed.

    Args:
        p: A density with its support, and where it changes.
        q: The same.
        error: How large a bound on the error is good enough, in nats where KL is below 1, relative above.

    Returns:
        An `Estimate` with status "bounded", its `error` the sum of what the quadrature, the rounding of the
        log-densities, the ends that floats do not reach and the masses leave open; `inf` where p has mass and q none,
        or where the power by which the integral falls towards an end is too small; "unreliable" where the bound is
        above what was asked.

    Raises:
        SupportError: A log-density is nan or inf.
    """
    if gap := support_gap(p, q):
        return infinite_kl(gap, "supports")
    sums = integrals(p, q, error)
    return conclude(sums, error, "tails" if sums.kl == inf else "quadrature")


def integrals(p: Density, q: Density, error: float) -> Sums:
    """All that is added up beside KL, over the supports of both."""
    with np.errstate(all="ignore"):
        straight, rays = cut(p, q)
        tails = [follow(p, q, *ray) for ray in rays]
        for ray, tail in zip(rays, tails, strict=True):
            if tail.beyond == inf:
                end = f"{ray.scale * inf:+}" if ray.growth > 0 else f"{ray.origin:.6g}"
                return Sums(inf, warnings=(f"p log(p/q) adds up to inf towards {end}, by the law that it follows",))
        panels = join(straight, rays, [tail.reach for tail in tails])
        rounding = _rounding(p, q, panels)

        def is_enough(total: Array, bound: Array) -> Array:
            wanted = max(0.01 * error * min(total[0], 1.0), rounding, 1e-6 * error)
            return bound / np.asarray([wanted, 1e-12, 1e-12, 1e-12])

        totals, bounds = integrate(lambda *u: _integrand(p, q, *u), panels, is_enough)
    (kl, mass_p, mass_q, blind), bounds = totals.tolist(), bounds.tolist()
    beyond_p, beyond_q = sum(tail.mass_p for tail in tails), sum(tail.mass_q for tail in tails)
    return Sums(
        kl + sum(tail.beyond for tail in tails),
        mass_p + beyond_p,
        mass_q + beyond_q,
        blind,
        bounds[0] + rounding,
        max(bounds[1:]),
        sum(tail.doubt for tail in tails),
        beyond_p,
        beyond_q,
        tuple(tail.unclear for tail in tails if tail.unclear),
    )


def _log_pair(p: Density, q: Density, panels: Panels, u: Array) -> tuple[Array, Array, Array]:
    origin, offset, step = panels.at(u)
    log_p, log_q = p.log_density(origin, offset), q.log_density(origin, offset)
    bad = ~((log_p < inf) & (log_q < inf))
    if bad.any():
        which = "nan" if np.isnan(log_p[bad][0] + log_q[bad][0]) else "inf"
        raise SupportError(f"expected log-densities, but one is {which} at x = {float((origin + offset)[bad][0])!r}")
    return log_p, log_q, step


def _integrand(p: Density, q: Density, panels: Panels, u: Array) -> Array:
    log_p, log_q, step = _log_pair(p, q, panels, u)
    values = terms(log_p + step, log_q + step)
    blind = (log_q == -inf) & (log_p > -inf)
    values[0] = np.where(blind, 0.0, values[0])
    return np.concatenate([values, np.where(blind, values[1], 0.0)[None]])


def _rounding(p: Density, q: Density, panels: Panels) -> float:
    """What the rounding of log q - log p makes of KL, as found by moving x by an ulp both ways."""
    nodes, weights = np.polynomial.legendre.leggauss(15)
    half = (panels.high - panels.low) / 2
    u = (panels.low + half)[:, None] + half[:, None] * nodes
    origin, offset, step = panels.at(u)
    log_p, up_p, down_p = (p.log_density(origin, moved) for moved in _moved(offset))
    log_q, up_q, down_q = (q.log_density(origin, moved) for moved in _moved(offset))
    d = log_q - log_p
    noise_p, noise_q = (up_p - log_p) + (down_p - log_p), (up_q - log_q) + (down_q - log_q)
    noise_d = np.where(d < 1, np.abs(noise_q - noise_p), np.abs(noise_q)) + _EPS * (1 + np.abs(log_q))
    noise_p = np.abs(noise_p) + _EPS * (1 + np.abs(log_p))
    # Of p phi(d) by d, and by log p at that d; or by log q and log p, where d is large.
    kl, mass_p, mass_q = terms(log_p + step, log_q + step)
    by_p = np.where(d < 1, kl, mass_p * d) * noise_p
    by_d = (np.abs(mass_q - mass_p) + mass_q * np.minimum(noise_d, 1.0)) * noise_d
    change = np.where(np.isfinite(by_p), by_p, 0.0) + np.where(np.isfinite(by_d), by_d, 0.0)
    return float(((change @ weights) * half).sum())


def _moved(offset: Array) -> tuple[Array, Array, Array]:
    return offset, offset * (1 + 2 * _EPS), offset * (1 - 2 * _EPS)
