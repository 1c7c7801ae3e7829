"""KL between normal distributions that are truncated to intervals."""

from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.registry import closed_form
from kullback.numerics.arrays import Array, broadcast_arrays, holds
from kullback.numerics.normal_interval import NormalInterval, normal_interval
from kullback.numerics.phi import phi


@closed_form((f.TruncatedNormal, f.TruncatedNormal))
def kl_truncated_normal_truncated_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = TruncatedNormal(loc1, scale1, low1, high1) and Q = TruncatedNormal(loc2, scale2, low2, high2).

    KL(P || Q on I) - log Q(I), where I = [low1, high1] and Q on I is Q conditional on I. With g = log(q/p) up to a
    constant, a quadratic polynomial, KL(P || Q on I) = log(1 + E[phi(g - E[g])]) under P, where phi(d) = e^d - 1 - d.
    Where g varies by more than 10, KL(P || Q on I) = log E[e^g] - E[g], which is then large enough to lose no digits.
    The expectations are Gauss-Legendre sums that are exact to rounding.
    """
    given = (p.loc, p.scale, p.low, p.high, q.loc, q.scale, q.low, q.high)
    loc_p, scale_p, low_p, high_p, loc_q, scale_q, low_q, high_q = broadcast_arrays(xp, *given)
    of_p = normal_interval(xp, loc_p, scale_p, low_p, high_p)
    ratio, total = scale_p / scale_q, xp.sum(of_p.weight, axis=-1)
    curvature = ((scale_p - scale_q) / scale_q) * ((scale_p + scale_q) / scale_q)
    slope = of_p.slope * curvature + ratio * ((loc_p - loc_q) / scale_q)
    g = -of_p.offset * (slope[..., None] + of_p.offset * (curvature[..., None] / 2))
    mean = xp.sum(of_p.weight * g, axis=-1) / total
    deviation = g - mean[..., None]
    near = xp.max(abs(deviation), axis=-1) <= 10
    residual = of_p.weight * phi(xp.where(near[..., None], deviation, 0.0))
    close = xp.log1p(xp.sum(residual, axis=-1) / total)

    origin = of_p.mode
    inside = normal_interval(xp, loc_q, scale_q, low_p, high_p, origin)
    log_inside = inside.exponent + xp.log(xp.sum(inside.weight, axis=-1))
    of_q = of_p.distance / scale_q[..., None]
    exponent = of_p.offset * (of_p.slope[..., None] + of_p.offset / 2)
    log_ratio = exponent - of_q * (((origin - loc_q) / scale_q)[..., None] + of_q / 2)
    far = log_inside - xp.log(total) - xp.sum(of_p.weight * log_ratio, axis=-1) / total
    conditional = xp.where(near, close, far)

    # The parts of the support of q below and above the interval; empty where an end of the interval is infinite.
    has_low, has_high = low_p > -np.inf, high_p < np.inf
    ends = [
        (xp.where(has_low, xp.minimum(low_q, low_p), origin), xp.where(has_low, low_p, origin)),
        (xp.where(has_high, high_p, origin), xp.where(has_high, xp.maximum(high_q, high_p), origin)),
    ]
    parts = [normal_interval(xp, loc_q, scale_q, low, high, origin) for low, high in ends]
    return conditional + _log_one_plus_masses(xp, parts, log_inside)


@closed_form((f.TruncatedNormal, f.Normal))
def kl_truncated_normal_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = TruncatedNormal(loc1, scale1, low, high) and Q = Normal(loc2, scale2).

    The formula of two truncated normal distributions, of which Q has the ends -inf and inf.
    """
    end = xp.full_like(q.loc, np.inf)
    whole = f.TruncatedNormal.__new__(f.TruncatedNormal)
    for name, value in {"loc": q.loc, "scale": q.scale, "low": -end, "high": end}.items():
        object.__setattr__(whole, name, value)
    return kl_truncated_normal_truncated_normal(xp, p, whole)


def _log_one_plus_masses(xp: Any, parts: list[NormalInterval], log_inside: Array) -> Array:
    """log(1 + the masses of the parts relative to e^log_inside), which is -log Q(I)."""
    largest = float(np.log(xp.finfo(log_inside.dtype).max)) - 10
    masses = [xp.sum(part.weight, axis=-1) for part in parts]
    logs = [part.exponent - log_inside for part in parts]
    small = sum(mass * xp.exp(xp.clip(log, None, largest)) for mass, log in zip(masses, logs, strict=True))
    value = xp.log1p(small)
    large = (logs[0] > largest) | (logs[1] > largest)
    if holds(~xp.any(large)):
        return value
    below, above = (
        xp.where(mass > 0, log, -1e30) + xp.log(xp.where(mass > 0, mass, 1.0))
        for mass, log in zip(masses, logs, strict=True)
    )
    return xp.where(large, xp.logaddexp(below, above), value)
