"""How far an end of the line must be followed, and whether KL(p || q) is finite there."""

from math import exp, inf, log
from typing import NamedTuple

import numpy as np

from kullback.densities.density import Density
from kullback.densities.integrand import log_terms
from kullback.numerics.arrays import Array

__all__ = ["Tail", "follow"]

_NEGLIGIBLE = -75.0  # log of 3e-33, beside masses of one
_FARTHEST = 690.0  # log of 1e300: beyond, floats end
_SQUARED = 172.0  # log of 5e74, whose fourth power is a float


class Tail(NamedTuple):
    """An end of the line, in the coordinate s of x = origin + scale e^(growth s).

    Args:
        reach: Beyond this s nothing counts, or nothing can be seen.
        beyond: What KL has beyond it, by the law that it follows there; `inf` if it diverges.
        doubt: How far `beyond` may be off.
        mass_p: What p has beyond it.
        mass_q: What q has beyond it.
        unclear: Why `beyond` cannot be told, if so.
    """

    reach: float
    beyond: float = 0.0
    doubt: float = 0.0
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
    s, log_p, log_q = _search_tail(p, q, (origin, scale, growth), farthest)
    if s.size < 2:
        # q has underflowed before the ray begins: look nearer.
        nearer = follow(p, q, origin, scale / 8, growth) if growth > 0 and abs(scale) > 1e-300 else Tail(40.0)
        return Tail(40.0, nearer.beyond if nearer.beyond == inf else 0.0)
    height = log_terms(log_p, log_q)
    counts = np.flatnonzero(np.maximum(height, np.maximum(log_p, log_q)) > _NEGLIGIBLE)
    last = int(counts[-1]) + 1 if counts.size else 0
    if last < s.size:
        return Tail(float(s[last]))
    masses = _mass_beyond(s, log_p), _mass_beyond(s, log_q)
    if log_q[-1] >= log_p[-1]:  # no more than the mass of q is left
        beyond = _mass_beyond(s, height)
        return Tail(float(s[-1]), beyond, beyond, *masses)
    beyond, doubt, unclear = _judge(s, height)
    if doubt == inf and growth > 0 and _outgrows(p, origin, scale, s, height - log_p, farthest):
        beyond, doubt, unclear = inf, 0.0, ""
    return Tail(float(s[-1]), beyond, doubt, *masses, unclear)


def _search_tail(p: Density, q: Density, ray: tuple[float, float, int], farthest: float) -> tuple[Array, Array, Array]:
    """s, and the logs of both densities by s, for as far as there is something to be seen."""
    origin, scale, growth = ray
    s = np.linspace(0.0, farthest, max(400, 1 + round(2 * farthest)))
    offset, step = scale * np.exp(growth * s), log(abs(scale)) + growth * s
    log_p, log_q = (density.log_density(np.full_like(s, origin), offset) + step for density in (p, q))
    # Where log q alone has overflowed, or was the log of a q that underflowed, there is nothing to be seen any more;
    # nor where log p is gone at a stroke, so far out that it must have overflowed, or where a density is inf itself.
    blind = (log_q == -inf) & (log_p > -inf)
    blind[1:] |= (np.abs(offset[1:]) > 1e75) & (log_p[1:] == -inf) & (log_p[:-1] > -1e4)
    blind |= (log_p == inf) | (log_q == inf)
    seen = int(np.append(np.flatnonzero(blind), s.size)[0])
    if 0 < seen < s.size and log_q[seen - 1] - step[seen - 1] > -746:
        # The log of a q that underflowed: it lost digits before it was gone.
        seen = min(seen, int(np.append(np.flatnonzero(log_q - step < -690), seen)[0]))
    if 0 < seen < 50 and farthest > 1e-3:
        return _search_tail(p, q, ray, float(s[seen]))
    return s[:seen], log_p[:seen], log_q[:seen]


def _outgrows(p: Density, origin: float, scale: float, s: Array, log_ratio: Array, farthest: float) -> bool:
    """Whether log(p/q), if it goes on growing as e^x, grows sooner than p falls: p is seen farther out than log q."""
    step = min(round(1 / (s[1] - s[0])), (s.size - 1) // 2)
    last = [-1, -1 - step]
    x = np.exp(s[last] - s[-1])
    rate = (log_ratio[last[0]] - log_ratio[last[1]]) / (x[0] - x[1])
    far = np.linspace(s[-1], min(farthest, _SQUARED - log(abs(scale))), 100)
    log_p = p.log_density(np.full_like(far, origin), scale * np.exp(far)) + log(abs(scale)) + far
    height = log_p + rate * np.exp(far - s[-1])
    return bool(rate > 1 and (np.diff(height) > 0).all() and height[-1] > 1e3)


def _resolves(density: Density, end: float) -> bool:
    """Whether the density can tell apart places nearer to this end than an ulp of it, or has no need to."""
    return end == 0 or end not in density.support or end in density.fine_ends


def _mass_beyond(s: Array, height: Array) -> float:
    """The integral of e^height beyond the last s, where the height falls as it fell last."""
    slope = float((height[-7] - height[-1]) / (s[-1] - s[-7]))
    return float(exp(height[-1]) / slope) if slope > 0 else 0.0 if height[-1] == -inf else 1.0


def _judge(s: Array, height: Array) -> tuple[float, float, str]:
    """The integral of e^height ds beyond the last s, how far that may be off, and why it cannot be told."""
    reach, top = float(s[-1]), exp(min(float(height[-1]), 700.0))
    # With x = e^s, height - s = c - a x/x_last + k log x: densities that end in exponentials have an a.
    step = min(round(1 / (s[1] - s[0])), (s.size - 1) // 2)
    last = [-1, -1 - step, -1 - 2 * step]
    x = np.exp(s[last] - reach)
    _, rate, _ = np.linalg.solve(np.stack([np.ones(3), -x, np.log(x)], axis=1), (height - s)[last])
    if abs(rate) > 0.05 and height[-1] > 600:
        return top, inf, "it is larger than floats hold, or infinite"
    if abs(rate) > 0.05:
        return (top / rate, top / rate, "") if rate > 0 else (inf, 0.0, "")
    power = float((height[last[1]] - height[-1]) / (s[-1] - s[last[1]]))
    if reach < 100:
        if abs(power) > 0.1:
            return (top / power, top / power, "") if power > 0 else (inf, 0.0, "")
        return top, inf, "whether the integral of p log(p/q) is finite is too close to call"
    # height = c - a s + k log s: a power of x, and a power of its logarithm.
    places = [s.size - 1, s.size // 2, s.size // 4]
    rows = np.stack([np.ones(3), -s[places], np.log(s[places])], axis=1)
    _, power, logs = (float(value) for value in np.linalg.solve(rows, height[places]))
    if abs(logs) < 1e-3:  # a power alone
        return (top / power, top / power * (abs(logs) + 1e-12 / power), "") if power > 1e-9 else (inf, 0.0, "")
    if abs(power) > 1e-3:
        beyond = top / max(power - logs / reach, 0.1 * power)
        return (beyond, beyond, "") if power > 0 else (inf, 0.0, "")
    if abs(logs + 1) > 0.1:
        return (top * reach / (-1 - logs), top * reach / (-1 - logs), "") if logs < -1 else (inf, 0.0, "")
    return top, inf, "whether the integral of p log(p/q) is finite is too close to call"
