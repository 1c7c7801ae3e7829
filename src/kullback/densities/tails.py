"""The tails of the integrand of KL(p || q): where they become negligible, extrapolation, and divergence."""

from math import exp, inf, log
from typing import NamedTuple

import numpy as np

from kullback.densities.density import Density
from kullback.densities.integrand import log_terms
from kullback.numerics.arrays import Array

__all__ = ["Tail", "analyse_tail", "mass_beyond_reach"]

_LOG_NEGLIGIBLE = -75.0  # log of 3e-33, which is negligible relative to a mass of 1
_LOG_MAX = 690.0  # log of 1e300, close to the largest float64
_UNDETERMINED = "it cannot be determined whether the integral of p log(p/q) is finite"
_BEYOND_FLOAT64 = "the tail of the integral of p log(p/q) exceeds the float64 range or is infinite"
_NOT_EVALUATED = "a density cannot be evaluated in a tail, where the integral of p log(p/q) is about {kl:.2g}"
_NEGLIGIBLE_TAIL = 1e-11  # nats
_LOG_MAX_QUARTIC = 172.0  # log of 5e74, whose fourth power is a float64


class Tail(NamedTuple):
    """The tail of the integrand along a ray x = origin + scale e^(growth s), split at s = reach.

    Args:
        reach: The s beyond which the integrand is negligible, or beyond which it cannot be evaluated.
        kl: The extrapolated integral of p phi(log q/p) beyond the reach; `inf` if it diverges.
        error: The error bound of `kl`.
        mass_p: The extrapolated mass of p beyond the reach.
        mass_q: The extrapolated mass of q beyond the reach.
        warning: The reason why `kl` cannot be determined; empty otherwise.
        mass_error: The error bound of both masses; None if it is not known.
    """

    reach: float
    kl: float = 0.0
    error: float = 0.0
    mass_p: float = 0.0
    mass_q: float = 0.0
    warning: str = ""
    mass_error: float | None = None


def analyse_tail(p: Density, q: Density, origin: float, scale: float, growth: int) -> Tail:
    """Where the integrand becomes negligible along a ray; if that is beyond float64, the extrapolated integral."""
    farthest = _farthest(p, q, origin, scale, growth)
    if farthest < 4:
        return Tail(max(farthest, 1.0))
    s, log_p, log_q = _evaluate_ray(p, q, (origin, scale, growth), farthest)
    if s.size < 2:
        # q underflows where the ray begins: start closer to the origin.
        nearer = analyse_tail(p, q, origin, scale / 8, growth) if growth > 0 and abs(scale) > 1e-300 else Tail(40.0)
        if nearer.kl == inf:
            return Tail(40.0, inf)
        return Tail(40.0, error=nearer.kl + nearer.error, warning=nearer.warning)
    height = log_terms(log_p, log_q)
    last = _first_negligible(np.maximum(height, np.maximum(log_p, log_q)))
    if last < s.size:
        return Tail(float(s[last]))
    if (tail := _power_tail(s, log_p, log_q)) is not None:
        return tail
    masses = _mass_beyond(s, log_p), _mass_beyond(s, log_q)
    if log_q[-1] >= log_p[-1]:  # the integrand is at most q
        kl = _mass_beyond(s, height)
        return Tail(float(s[-1]), kl, kl, *masses)
    kl, error, warning = _extrapolate(s, height)
    if kl == inf and growth < 0 and s[-1] < 100 and height[-1] - height[-7] < 0.1:
        # Distances below one ulp of the end are not available, and the integrand does not grow up to there.
        return Tail(float(s[-1]), exp(min(float(height[-1]), 700.0)), inf, *masses, _UNDETERMINED)
    if growth > 0 and s[-1] < 100 and (kl == inf or error == inf):
        log_p_beyond, log_ratio_beyond = _beyond(p, origin, scale, s, height - log_p, farthest)
        beyond = log_p_beyond + log_ratio_beyond
        if error == inf and log_ratio_beyond[0] > 1 and beyond[-1] > 1e3 and (np.diff(beyond) > 0).all():
            kl, error, warning = inf, 0.0, ""
        elif kl == inf and (beyond < 0.01 * log_p_beyond).any():  # p decays faster where q cannot be evaluated
            kl, error, warning = exp(min(float(height[-1]), _LOG_MAX)), inf, _BEYOND_FLOAT64
    if s[-1] < 100 and error < inf and kl < inf and max(kl, error) > _NEGLIGIBLE_TAIL:
        # Nothing bounds the integral where a density cannot be evaluated.
        error, warning = inf, _NOT_EVALUATED.format(kl=kl)
    return Tail(float(s[-1]), kl, error, *masses, warning)


def mass_beyond_reach(density: Density, origin: float, scale: float, growth: int) -> tuple[float, float]:
    """The mass of a density beyond the reach of its tail along a ray, which its quadrature nodes omit, and its error.

    Args:
        density: The density, which need not be normalised.
        origin: The origin of the ray x = origin + scale e^(growth s).
        scale: The scale of the ray, with its sign.
        growth: 1 for a ray to infinity, -1 for a ray to the origin.

    Returns:
        The extrapolated mass and its error bound. The mass is `inf` if the integral diverges, and the error is `inf` if
        the values of the density do not determine the mass.

    Example:
        >>> from kullback.densities.from_families import as_density
        >>> from kullback.families import Cauchy
        >>> mass_beyond_reach(as_density(Cauchy(loc=0.0, scale=1.0)), 0.0, 1.0, 1)
        (0.0, 0.0)
    """
    farthest = _farthest(density, density, origin, scale, growth)
    if farthest < 4:
        return 0.0, 0.0
    s, log_p, log_q = _evaluate_ray(density, density, (origin, scale, growth), farthest)
    if _first_negligible(log_p) < s.size:
        return 0.0, 0.0
    if s.size < 8:
        return 0.0, 0.0 if s.size and log_p[-1] == -inf else inf
    if growth < 0 and (tail := _power_tail(s, log_p, log_q)) is not None:
        return 0.0, tail.mass_error or 0.0  # a quadrature node has this mass
    mass, error, _ = _extrapolate(s, log_p)
    return mass, error


def _farthest(p: Density, q: Density, origin: float, scale: float, growth: int) -> float:
    """The largest s at which both densities can be evaluated on a ray."""
    farthest = _LOG_MAX - growth * log(abs(scale))
    if growth < 0 and not (_resolves(p, origin) and _resolves(q, origin)):
        farthest = min(farthest, log(abs(scale)) - log(1e3 * np.spacing(abs(origin))))
    return farthest


def _first_negligible(height: Array) -> int:
    """The index after the last value that is not negligible."""
    counts = np.flatnonzero(height > _LOG_NEGLIGIBLE)
    return int(counts[-1]) + 1 if counts.size else 0


def _evaluate_ray(p: Density, q: Density, ray: tuple[float, float, int], farthest: float) -> tuple[Array, Array, Array]:
    """A grid of s and the log of each density times |dx/ds| on it, up to the first point that cannot be evaluated."""
    origin, scale, growth = ray
    s = np.linspace(0.0, farthest, max(400, 1 + round(2 * farthest)))
    offset, step = scale * np.exp(growth * s), log(abs(scale)) + growth * s
    log_p, log_q = (density.log_density(np.full_like(s, origin), offset) + step for density in (p, q))
    # The densities cannot be evaluated where only log q is -inf, by overflow or as the log of a q that underflows;
    # where log p drops to -inf in one step at a distance that suggests overflow; and where a density is inf.
    invalid = (log_q == -inf) & (log_p > -inf)
    invalid[1:] |= (np.abs(offset[1:]) > 1e75) & (log_p[1:] == -inf) & (log_p[:-1] > -1e4)
    invalid |= (log_p == inf) | (log_q == inf)
    count = int(np.append(np.flatnonzero(invalid), s.size)[0])
    if 0 < count < s.size and log_q[count - 1] - step[count - 1] > -746:
        # log q is the log of a q that underflows, and q is subnormal, with fewer digits, before that.
        count = min(count, int(np.append(np.flatnonzero(log_q - step < -690), count)[0]))
    if 0 < count < 50 and farthest > 1e-3:
        return _evaluate_ray(p, q, ray, float(s[count]))
    return s[:count], log_p[:count], log_q[:count]


def _beyond(
    p: Density, origin: float, scale: float, s: Array, log_ratio: Array, farthest: float
) -> tuple[Array, Array]:
    """log p |dx/ds| at points where q is not known, and log log(p/q) if log(p/q) keeps growing as e^(r x)."""
    step = min(round(1 / (s[1] - s[0])), (s.size - 1) // 2)
    last = [-1, -1 - step]
    x = np.exp(s[last] - s[-1])
    rate = (log_ratio[last[0]] - log_ratio[last[1]]) / (x[0] - x[1])
    far = np.linspace(s[-1], min(farthest, _LOG_MAX_QUARTIC - log(abs(scale))), 100)
    log_p = p.log_density(np.full_like(far, origin), scale * np.exp(far)) + log(abs(scale)) + far
    return log_p, rate * np.exp(far - s[-1])


def _resolves(density: Density, end: float) -> bool:
    """Whether the density is accurate at distances below one ulp of `end`; true if its support does not end there."""
    return end == 0 or end not in density.support or end in density.fine_ends


def _power_tail(s: Array, log_p: Array, log_q: Array) -> Tail | None:
    """The tail where both densities are powers of the distance, by its closed form; None for others.

    With the densities P e^(-a t) and Q e^(-b t) times |dx/dt|, t = s - reach, the integral of p phi(log q/p) beyond the
    reach is Q/b - P/a + P/a (log(P/Q) + b/a - 1), and the masses are P/a and Q/b.
    """
    reach, last = float(s[-1]), s.size - 1
    if reach < 100:
        return None
    middle, quarter = last // 2, 3 * last // 4
    slopes, errors = [], []
    for logs in (log_p, log_q):
        if not np.isfinite(logs[middle:]).all():
            return None
        slope = float(logs[middle] - logs[last]) / (reach - float(s[middle]))
        near = float(logs[quarter] - logs[last]) / (reach - float(s[quarter]))
        error = 1e-15 * float(np.abs(logs[middle:]).max() + reach) / (reach - float(s[quarter]))
        if not (slope > 8 * error and abs(slope - near) <= 8 * error):
            return None
        slopes.append(slope)
        errors.append(error / slope)
    a, b = slopes
    mass_p, mass_q = float(np.exp(log_p[-1])) / a, float(np.exp(log_q[-1])) / b
    kl = mass_q - mass_p + mass_p * (float(log_p[-1] - log_q[-1]) + b / a - 1)
    error = 3 * (errors[0] + errors[1]) * (mass_q + mass_p * (1 + abs(float(log_p[-1] - log_q[-1])) + b / a))
    mass_error = 2 * max(mass_p * errors[0], mass_q * errors[1])
    return Tail(reach, max(kl, 0.0), error, mass_p, mass_q, mass_error=mass_error)


def _mass_beyond(s: Array, height: Array) -> float:
    """The integral of e^height beyond the last s, extrapolated with the last slope of the height."""
    slope = float((height[-7] - height[-1]) / (s[-1] - s[-7]))
    return float(np.exp(height[-1])) / slope if slope > 0 else 0.0 if height[-1] == -inf else 1.0


def _extrapolate(s: Array, height: Array) -> tuple[float, float, str]:
    """The integral of e^height ds beyond the last s, its error bound, and why it cannot be determined, if so."""
    reach, top = float(s[-1]), exp(min(float(height[-1]), 700.0))
    # Fit of height - s = c - a x/x_last + k log x with x = e^s; a is not 0 for densities with exponential tails.
    step = min(round(1 / (s[1] - s[0])), (s.size - 1) // 2)
    last = [-1, -1 - step, -1 - 2 * step]
    x = np.exp(s[last] - reach)
    rate = float(np.linalg.solve(np.stack([np.ones(3), -x, np.log(x)], axis=1), (height - s)[last])[1])
    if abs(rate) > 0.05 and height[-1] > 600:
        return top, inf, _BEYOND_FLOAT64
    if abs(rate) > 0.05:
        return (top / rate, top / rate, "") if rate > 0 else (inf, 0.0, "")
    power = float((height[last[1]] - height[-1]) / (s[-1] - s[last[1]]))
    if reach < 100:
        if abs(power) > 0.1:
            return (top / power, top / power, "") if power > 0 else (inf, 0.0, "")
        return top, inf, _UNDETERMINED
    # Fit of height = c - a s + k log s: a power of x times a power of log x.
    (power, logs), (other, _) = (
        _fit_of_powers(s, height, [s.size - 1, s.size // a, s.size // b]) for a, b in ((2, 4), (3, 5))
    )
    if abs(power - other) > 0.1 * abs(power) + 1e-9:  # neither decay nor growth is established
        return top, inf, _UNDETERMINED
    if abs(logs) < 1e-3:  # a power of x without a power of log x
        return (top / power, top / power * (abs(logs) + 1e-12 / power), "") if power > 1e-9 else (inf, 0.0, "")
    if abs(power) > 1e-3:
        tail = top / max(power - logs / reach, 0.1 * power)
        return (tail, tail, "") if power > 0 else (inf, 0.0, "")
    if abs(logs + 1) > 0.1:
        return (top * reach / (-1 - logs), top * reach / (-1 - logs), "") if logs < -1 else (inf, 0.0, "")
    return top, inf, _UNDETERMINED


def _fit_of_powers(s: Array, height: Array, points: list[int]) -> tuple[float, float]:
    """The a and k of height = c - a s + k log s through three points."""
    rows = np.stack([np.ones(3), -s[points], np.log(s[points])], axis=1)
    _, power, logs = np.linalg.solve(rows, height[points])
    return float(power), float(logs)
