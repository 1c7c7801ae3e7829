"""How far an end of the line must be followed, and whether KL(p || q) is finite there."""

from math import exp, inf, log
from typing import NamedTuple

import numpy as np

from kullback._arrays import Array
from kullback.densities.density import Density
from kullback.densities.terms import log_terms

__all__ = ["Tail", "follow"]

_NEGLIGIBLE = -75.0  # log of 3e-33, beside masses of one
_FARTHEST = 690.0  # log of 1e300: beyond, floats end


class Tail(NamedTuple):
    """An end of the line, in the coordinate s of x = origin + scale e^(growth s).

    Args:
        reach: Beyond this s nothing counts, or nothing can be seen.
        beyond: What KL has beyond it, by the law that it follows there; `inf` if it diverges.
        mass_p: What p has beyond it.
        mass_q: What q has beyond it.
        unclear: Why `beyond` cannot be told, if so.
    """

    reach: float
    beyond: float = 0.0
    mass_p: float = 0.0
    mass_q: float = 0.0
    unclear: str = ""


def follow(p: Density, q: Density, origin: float, scale: float, growth: int) -> Tail:
    """Follow both densities along a ray until neither counts, and judge what is left where floats end."""
    farthest = _FARTHEST - growth * log(abs(scale))
    if growth < 0 and not (_resolves(p, origin) and _resolves(q, origin)):
        farthest = min(farthest, log(abs(scale)) - log(1e3 * np.spacing(abs(origin))))
    if farthest < 4:
        return Tail(max(farthest, 1.0))
    s = np.linspace(0.0, farthest, 1 + round(2 * farthest))
    step = log(abs(scale)) + growth * s
    offset = scale * np.exp(growth * s)
    log_p, log_q = (density.log_density(np.full_like(s, origin), offset) + step for density in (p, q))
    # Where log q alone has overflowed, or was the log of a q that underflowed, there is nothing to be seen any more.
    blind = np.flatnonzero((log_q == -inf) & (log_p > -inf))
    seen = int(blind[0]) if blind.size else s.size
    if seen < 8:
        return Tail(40.0)
    s, log_p, log_q = s[:seen], log_p[:seen], log_q[:seen]
    height = log_terms(log_p, log_q)
    counts = np.flatnonzero(np.maximum(height, np.maximum(log_p, log_q)) > _NEGLIGIBLE)
    last = int(counts[-1]) + 1 if counts.size else 0
    if last < seen:
        return Tail(float(s[last]))
    masses = _mass_beyond(s, log_p), _mass_beyond(s, log_q)
    if log_q[-1] >= log_p[-1]:  # no more than the mass of q is left
        return Tail(float(s[-1]), _mass_beyond(s, height), *masses)
    beyond, unclear = _judge(s, height)
    return Tail(float(s[-1]), beyond, *masses, unclear)


def _resolves(density: Density, end: float) -> bool:
    """Whether the density can tell apart places nearer to this end than an ulp of it, or has no need to."""
    return end == 0 or end not in density.support or end in density.fine_ends


def _mass_beyond(s: Array, height: Array) -> float:
    """The integral of e^height beyond the last s, where the height falls as it fell last."""
    slope = (height[-7] - height[-1]) / (s[-1] - s[-7])
    return exp(height[-1]) / slope if slope > 0 else 0.0 if height[-1] == -inf else 1.0


def _judge(s: Array, height: Array) -> tuple[float, str]:
    """Whether the integral of e^height ds goes on to be finite, and how large it is."""
    reach, top = float(s[-1]), exp(min(float(height[-1]), 700.0))
    # By x = e^s, height - s = c - a x/x_last + k log x: densities that end in exponentials have an a.
    x = np.exp(s[[-1, -3, -5]] - reach)
    _, rate, _ = np.linalg.solve(np.stack([np.ones(3), -x, np.log(x)], axis=1), (height - s)[[-1, -3, -5]])
    if abs(rate) > 0.05:
        return (top / rate if rate > 0 else inf), ""
    # height = c - a s + k log s: a power of x, and a power of its logarithm.
    places = [s.size - 1, s.size // 2, s.size // 4]
    rows = np.stack([np.ones(3), -s[places], np.log(s[places])], axis=1)
    _, power, logs = np.linalg.solve(rows, height[places])
    sharp = reach > 100
    if abs(power) > (1e-3 if sharp else 0.2):
        return (top / max(power - logs / reach, 0.1 * power) if power > 0 else inf), ""
    if sharp and abs(logs) < 1e-3:  # a power alone: E|x|^power at the edge
        return (top / power if power > 1e-9 else inf), ""
    if sharp and abs(logs + 1) > 0.1:
        return (top * reach / (-1 - logs) if logs < -1 else inf), ""
    return top, "whether the integral of p log(p/q) is finite is too close to call"
