"""The integrals that quadrature and summation accumulate for KL(p || q), and the estimate that follows from them."""

from itertools import pairwise
from math import inf, isfinite, isnan, log
from typing import NamedTuple

from kullback.densities.density import Density
from kullback.numerics.phi import phi
from kullback.result import Estimate

__all__ = ["Integrals", "bounded_estimate", "infinite_kl", "support_gap"]


class Integrals(NamedTuple):
    """Integrals over a part of the real line, or sums over a range of integers, with bounds on their errors.

    Args:
        kl: The integral of p phi(log q/p), with the extrapolated tails.
        mass_p: The integral of p.
        mass_q: The integral of q.
        mass_without_q: The integral of p where log q is -inf inside the support of q.
        kl_error: The error bound of `kl` from quadrature and from rounding of the log-densities.
        mass_error: The error bound of the masses from quadrature.
        tail_error: The error bound of the extrapolated tails of `kl`.
        tail_mass_p: The mass of p in the extrapolated tails.
        tail_mass_q: The mass of q in the extrapolated tails.
        warnings: Reasons why `kl` may be wrong, or why it is infinite.
    """

    kl: float = 0.0
    mass_p: float = 0.0
    mass_q: float = 0.0
    mass_without_q: float = 0.0
    kl_error: float = 0.0
    mass_error: float = 0.0
    tail_error: float = 0.0
    tail_mass_p: float = 0.0
    tail_mass_q: float = 0.0
    warnings: tuple[str, ...] = ()

    def plus(self, other: "Integrals") -> "Integrals":
        """The integrals over the union of two disjoint parts."""
        return Integrals._make(mine + theirs for mine, theirs in zip(self, other, strict=True))  # pyright: ignore


def bounded_estimate(integrals: Integrals, error: float, method: str) -> Estimate:
    """The estimate of KL from the accumulated integrals; "unreliable" if the masses or the tails do not allow a bound.

    Args:
        integrals: The integrals over the supports of both distributions.
        error: The acceptable error bound: in nats where KL is below 1, relative above 1.
        method: The method that the estimate names.
    """
    value, bound = integrals.kl, integrals.kl_error + integrals.tail_error
    warnings = list(dict.fromkeys(integrals.warnings))
    if value == inf:
        if isfinite(bound) and warnings:
            return infinite_kl("; ".join(warnings), method)
        warnings = warnings or ["the integral exceeds the range of float64, or is infinite"]
        return Estimate(
            inf, error=inf, interval=(0.0, inf), method=method, status="unreliable", warnings=tuple(warnings)
        )
    if integrals.tail_error > max(0.01 * value, error) and not warnings:
        warnings.append("a part of the integral is closer to an end of the support than float64 resolves")
    masses = (("p", integrals.mass_p, integrals.tail_mass_p), ("q", integrals.mass_q, integrals.tail_mass_q))
    for name, mass, tail_mass in masses:
        missing = abs(mass - 1)
        if missing > 1e-12 + integrals.mass_error:
            bound += missing
        if not missing <= 1e-6 + tail_mass + integrals.mass_error:
            warnings.append(
                f"{name} integrates to {mass:.9g}, not 1: the quadrature missed a part of it, or it is not normalized"
            )
    if integrals.mass_without_q > 1e-15:
        warnings.append(f"log q is -inf inside the support of q, where p has a mass of {integrals.mass_without_q:.3g}")
    if warnings:
        bound = inf
    else:  # the identity for masses P and Q that are 1 up to rounding: KL(p/P || q/Q) = KL / P - phi(log(Q / P))
        change = log(integrals.mass_q / integrals.mass_p)
        correction = float(phi(change))
        if correction <= 0.5 * value:
            value = value / integrals.mass_p - correction
        else:  # p and q differ less than the rounding of their masses, so that the difference has no accurate digits
            value = value / integrals.mass_p
            bound += correction
        bound += value * (integrals.mass_error + integrals.tail_mass_p) + abs(change) * integrals.mass_error
    acceptable = error * max(1.0, value)
    if bound > acceptable and not warnings:
        warnings.append(f"the error bound {bound:.2g} is above the acceptable error {acceptable:.2g}")
    return Estimate(
        value,
        error=inf if isnan(bound) else bound,
        interval=(max(0.0, value - bound), value + bound),
        method=method,
        status="unreliable" if warnings else "bounded",
        warnings=tuple(warnings),
    )


def infinite_kl(reason: str, method: str) -> Estimate:
    """The estimate KL(p || q) = inf, with the reason as a warning."""
    return Estimate(inf, error=0.0, interval=(inf, inf), method=method, status="exact", warnings=(reason,))


def support_gap(p: Density, q: Density) -> str:
    """A description of where p has mass outside the support of q; the empty string if it has none."""
    (low_p, high_p), (low_q, high_q) = p.support, q.support
    step, sign, digits = (1, "<=", 17) if p.discrete else (0, "<", 6)
    gaps = []
    if low_p < low_q:
        gaps.append(f"{low_p:.{digits}g} {sign} x {sign} {min(high_p, low_q - step):.{digits}g}")
    for low, high in q.gaps:
        covered = [(max(low, low_p), max(low, low_p)), *p.gaps, (min(high, high_p), min(high, high_p))]
        for (_, first), (last, _) in pairwise(sorted(covered)):
            if max(first, low) < min(last, high):
                gaps.append(f"{max(first, low):.6g} < x < {min(last, high):.6g}")
    if high_q < high_p:
        gaps.append(f"{max(low_p, high_q + step):.{digits}g} {sign} x {sign} {high_p:.{digits}g}")
    return f"q is 0 where p is not: {' and '.join(gaps)}" if gaps else ""
