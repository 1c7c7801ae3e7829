"""What quadrature and summation add up beside KL(p || q), and what it says of the answer."""

from math import inf, isnan, log
from typing import NamedTuple

from kullback.densities.density import Density
from kullback.numerics.phi import phi
from kullback.result import Estimate

__all__ = ["Sums", "conclude", "infinite_kl", "support_gap"]


class Sums(NamedTuple):
    """Integrals over part of the line, or sums.

    Args:
        kl: Of p phi(log q/p).
        mass_p: Of p.
        mass_q: Of q.
        blind: Of p where log q is -inf, inside what q says its support is.
        kl_bound: What the quadrature and the rounding of the log-densities leave open of `kl`.
        mass_bound: What the quadrature leaves open of the masses.
        doubt: How far what lies beyond all that can be seen, which `kl` holds too, may be off.
        beyond: How much of p lies there.
        beyond_q: How much of q.
        warnings: What could not be told.
    """

    kl: float = 0.0
    mass_p: float = 0.0
    mass_q: float = 0.0
    blind: float = 0.0
    kl_bound: float = 0.0
    mass_bound: float = 0.0
    doubt: float = 0.0
    beyond: float = 0.0
    beyond_q: float = 0.0
    warnings: tuple[str, ...] = ()

    def plus(self, other: "Sums") -> "Sums":
        """Both together."""
        return Sums._make(mine + theirs for mine, theirs in zip(self, other, strict=True))  # pyright: ignore


def conclude(sums: Sums, error: float, method: str) -> Estimate:
    """The estimate, unless the masses or what could not be seen forbid one."""
    value, bound, warnings = sums.kl, sums.kl_bound + sums.doubt, list(sums.warnings)
    if value == inf:
        return infinite_kl("; ".join(warnings), method)
    if sums.doubt > 0.01 * value:
        warnings.append("part of it lies nearer to an end than floats reach")
    for name, mass, beyond in (("p", sums.mass_p, sums.beyond), ("q", sums.mass_q, sums.beyond_q)):
        missing = abs(mass - 1)
        if missing > 1e-12 + sums.mass_bound:
            bound += missing
        if not missing <= 1e-6 + beyond + sums.mass_bound:
            warnings.append(f"{name} adds up to {mass:.9g}, not 1: part of it was missed, or it is no density")
    if sums.blind > 1e-15:
        warnings.append(f"log q is -inf where p has {sums.blind:.3g} of its mass, inside what q says its support is")
    if warnings:
        bound = inf
    else:  # what rounding has left of each mass: KL(p/P || q/Q), exactly
        value = value / sums.mass_p - float(phi(log(sums.mass_q / sums.mass_p)))
        bound += value * (sums.mass_bound + sums.beyond)
    allowed = error * max(1.0, value)
    if bound > allowed and not warnings:
        warnings.append(f"the error bound {bound:.2g} is above the {allowed:.2g} asked for")
    return Estimate(
        value,
        error=inf if isnan(bound) else bound,
        interval=(max(0.0, value - bound), value + bound),
        method=method,
        status="unreliable" if warnings else "bounded",
        warnings=tuple(warnings),
    )


def infinite_kl(reason: str, method: str) -> Estimate:
    """KL(p || q) = inf, and why."""
    return Estimate(inf, error=0.0, interval=(inf, inf), method=method, status="exact", warnings=(reason,))


def support_gap(p: Density, q: Density) -> str:
    """Where p has mass outside the support of q, in words, or nothing."""
    (low_p, high_p), (low_q, high_q) = p.support, q.support
    step, sign = (1, "<=") if p.discrete else (0, "<")
    words = []
    if low_p < low_q:
        words.append(f"{low_p:.6g} {sign} x {sign} {min(high_p, low_q - step):.6g}")
    if high_q < high_p:
        words.append(f"{max(low_p, high_q + step):.6g} {sign} x {sign} {high_p:.6g}")
    return f"q is 0 where p is not: {' and '.join(words)}" if words else ""
