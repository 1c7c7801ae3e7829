"""KL(p || q) of two densities on the line, by adaptive quadrature of the phi form, with a bound on its error."""

from math import inf

import numpy as np

from kullback._arrays import Array
from kullback.densities.density import Density
from kullback.densities.panels import Panels, cut, integrate, join
from kullback.densities.tails import follow
from kullback.densities.terms import terms
from kullback.errors import SupportError
from kullback.residual import phi
from kullback.result import Estimate

__all__ = ["infinite", "kl_quadrature", "support_gap"]

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
        SupportError: A log-density is nan.
    """
    if gap := support_gap(p, q):
        return infinite(gap, "supports")
    with np.errstate(all="ignore"):
        straight, rays = cut(p, q)
        tails = [follow(p, q, *ray) for ray in rays]
        for ray, tail in zip(rays, tails, strict=True):
            if tail.beyond == inf:
                end = f"{ray.scale * inf:+}" if ray.growth > 0 else f"{ray.origin:.6g}"
                return infinite(f"the integral of p log(p/q) diverges towards {end}, by the power it follows", "tails")
        panels = join(straight, rays, [tail.reach for tail in tails])
        rounding = _rounding(p, q, panels)

        def is_enough(total: Array, bound: Array) -> Array:
            wanted = max(0.01 * error * min(total[0], 1.0), rounding, 1e-6 * error)
            return bound / np.asarray([wanted, 1e-12, 1e-12, 1e-12])

        totals, bounds = integrate(lambda *u: _integrand(p, q, *u), panels, is_enough)
    (value, *masses, blind), bounds = totals.tolist(), bounds.tolist()
    beyond = sum(tail.beyond for tail in tails)
    doubt = sum(tail.doubt for tail in tails)
    value, bound = float(value + beyond), float(bounds[0] + rounding + doubt)
    warnings = [tail.unclear for tail in tails if tail.unclear]
    if doubt > 0.01 * value:
        warnings.append(f"{beyond / value:.0%} of it lies nearer to an end than floats reach")
    mass_p = float(masses[0]) + sum(tail.mass_p for tail in tails)
    mass_q = float(masses[1]) + sum(tail.mass_q for tail in tails)
    for name, mass, seen, mass_bound in zip("pq", (mass_p, mass_q), masses, bounds[1:], strict=False):
        missing = abs(mass - 1)
        if missing > 1e-12 + mass_bound:
            bound += missing
        if missing > 1e-6 + mass - seen + mass_bound:
            warnings.append(f"{name} integrates to {mass:.9g}, not 1: part of it was missed, or it is no density")
    if blind > 1e-15:
        warnings.append(f"log q is -inf where p has {blind:.3g} of its mass, inside what q says its support is")
    if warnings:
        bound = inf
    else:  # what rounding has left of each mass: KL(p/P || q/Q), exactly
        value = value / mass_p - float(phi(np.log(mass_q / mass_p)))
        bound += value * (bounds[1] + mass_p - masses[0])
    allowed = error * max(1.0, value)
    if bound > allowed and not warnings:
        warnings.append(f"the error bound {bound:.2g} is above the {allowed:.2g} asked for")
    return Estimate(
        value,
        error=bound,
        interval=(max(0.0, value - bound), value + bound),
        method="quadrature",
        status="bounded" if bound <= allowed and not warnings else "unreliable",
        warnings=tuple(warnings),
    )


def support_gap(p: Density, q: Density) -> str:
    """Where p has mass outside the support of q, in words, or nothing."""
    (low_p, high_p), (low_q, high_q) = p.support, q.support
    gaps = [(low_p, min(high_p, low_q)), (max(low_p, high_q), high_p)]
    words = [f"{low:.6g} < x < {high:.6g}" for low, high in gaps if low < high]
    return f"q is 0 where p is not: {' and '.join(words)}" if words else ""


def infinite(reason: str, method: str) -> Estimate:
    """KL(p || q) = inf, and why."""
    return Estimate(inf, error=0.0, interval=(inf, inf), method=method, status="exact", warnings=(reason,))


def _log_pair(p: Density, q: Density, panels: Panels, u: Array) -> tuple[Array, Array, Array]:
    origin, offset, step = panels.at(u)
    log_p, log_q = p.log_density(origin, offset), q.log_density(origin, offset)
    bad = np.isnan(log_p) | np.isnan(log_q)
    if bad.any():
        raise SupportError(f"expected log-densities, but one is nan at x = {(origin + offset)[bad][0]!r}")
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
    by_d = np.abs(mass_q - mass_p) * noise_d
    change = np.where(np.isfinite(by_p), by_p, 0.0) + np.where(np.isfinite(by_d), by_d, 0.0)
    return float(((change @ weights) * half).sum())


def _moved(offset: Array) -> tuple[Array, Array, Array]:
    return offset, offset * (1 + 2 * _EPS), offset * (1 - 2 * _EPS)
