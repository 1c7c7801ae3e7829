"""Limits of families at the boundary of their parameters, at which a fit has an infimum that no member attains."""

from collections.abc import Callable
from dataclasses import fields, replace
from math import exp, inf, isfinite, isnan
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from kullback import families
from kullback.errors import KullbackError
from kullback.families import Distribution
from kullback.fit.result import Fit
from kullback.numerics.arrays import as_numpy

__all__ = ["without_limit"]

_ROUNDING = 1e-12  # nats, relative above 1, by which the objective of a member and of its limit differ by rounding
_NEAR = 1e-2  # nats, relative above 1, by which the objective at an approximation of the limit may be larger
_FACTORS = 0.05  # the largest logarithm of the factor between the approximation of a limit and the limit


class _Limit(NamedTuple):
    """A limit of a family, or a boundary of its parameters that no descent reaches.

    Args:
        parameters: The parameters that change; the limit is not considered where one of them is fixed.
        words: The limit in words, such as "df -> infinity".
        curve: The distribution in the limit, as a function of a factor near 1 on its scale or rate.
        remedy: What to do, where a member of the family attains the minimum; None where no member does.
    """

    parameters: tuple[str, ...]
    words: str
    curve: Callable[[float], Distribution]
    remedy: str | None = None


def without_limit(fit: Fit, objective: Callable[[Distribution], float], fixed: dict[str, Any]) -> Fit:
    """The fit, with `converged` false and the reason in `diagnostics` where the infimum is a limit of the family.

    The infimum is a limit if the objective at the limit is not above the objective of the best member.

    Args:
        fit: The result of a descent.
        objective: The quantity that was minimised, for any distribution, in nats.
        fixed: The parameters that were not fitted, by name.
    """
    limits_of = _LIMITS.get(type(fit.distribution))
    if limits_of is None:
        return fit
    limits = [limit for limit in limits_of(fit.distribution) if not {*limit.parameters} & {*fixed}]
    value = _value(objective, lambda _: fit.distribution)
    found = [(lowest, limit) for limit in limits if (lowest := _lowest(limit, objective, value)) is not None]
    if not found:
        return fit
    (infimum, member), limit = min(found, key=lambda item: item[0][0])
    if limit.remedy is None:
        reason = (
            f"no member that was found is below the limit {limit.words}, which is {_as_text(member)} and has "
            f"{infimum:.6g} nats; fit {type(member).__name__}"
        )
    else:
        reason = f"the minimum, {infimum:.6g} nats, is {limit.words}; {limit.remedy}"
    return replace(fit, converged=False, diagnostics=fit.diagnostics | {"not_converged": reason})


def _lowest(
    limit: _Limit, objective: Callable[[Distribution], float], value: float
) -> tuple[float, Distribution] | None:
    """The lowest objective at the limit and its distribution; None if a value of the family is lower."""
    factor, lowest = 1.0, _value(objective, limit.curve)
    if not (isfinite(lowest) and lowest <= value + _NEAR * max(1.0, abs(value))):
        return None
    if limit.remedy is None:  # a member near the limit has nearly its parameters
        found = optimize.minimize_scalar(
            lambda log_factor: _value(objective, limit.curve, exp(log_factor)),
            bounds=(-_FACTORS, _FACTORS),
            method="bounded",
            options={"xatol": 1e-8},
        )
        factor, lowest = min((factor, lowest), (exp(found.x), float(found.fun)), key=lambda pair: pair[1])  # pyright: ignore
    return (lowest, limit.curve(factor)) if lowest <= value + _ROUNDING * max(1.0, abs(value)) else None


def _value(
    objective: Callable[[Distribution], float], curve: Callable[[float], Distribution], factor: float = 1.0
) -> float:
    """The objective at a point of a curve; `inf` where it is not known, or where the parameters overflow."""
    try:
        with np.errstate(all="ignore"):
            value = objective(curve(factor))
    except KullbackError:
        return inf
    return inf if isnan(value) else value


def _as_text(member: Distribution) -> str:
    values = ((field.name, getattr(member, field.name)) for field in fields(member))  # pyright: ignore[reportArgumentType]
    return f"{type(member).__name__}({', '.join(f'{name}={_rounded(value)}' for name, value in values)})"


def _rounded(value: Any) -> str:
    array = as_numpy(value, np.float64)
    return f"{array:.6g}" if array.ndim == 0 else str([float(f"{entry:.6g}") for entry in array])


def _student_t(member: Any) -> list[_Limit]:
    loc, scale = float(member.loc), float(member.scale)
    return [_Limit(("df",), "df -> infinity", lambda factor: families.Normal(loc=loc, scale=factor * scale))]


@np.errstate(all="ignore")  # the family refuses parameters that overflow
def _negative_binomial(member: Any) -> list[_Limit]:
    count, probs = np.float64(member.total_count), as_numpy(member.probs, np.float64)
    rate, words = float(count * probs / (1 - probs)), "total_count -> infinity with a constant mean"
    return [_Limit(("total_count", "probs"), words, lambda factor: families.Poisson(rate=factor * rate))]


def _f(member: Any) -> list[_Limit]:
    """F is the ratio of two chi-squared variables divided by their degrees of freedom, of which one tends to 1."""
    shapes = float(member.df1) / 2, float(member.df2) / 2
    gammas = families.Gamma, families.InverseGamma
    return [
        _Limit(
            (name,),
            f"{name} -> infinity",
            lambda factor, family=family, shape=shape: family(concentration=factor * shape, rate=factor * shape),
        )
        for name, family, shape in zip(("df2", "df1"), gammas, shapes, strict=True)
    ]


def _inverse_gaussian(member: Any) -> list[_Limit]:
    """The Levy distribution, with the density sqrt(shape / (2 pi x^3)) exp(-shape / (2x))."""
    rate = float(member.shape) / 2
    return [
        _Limit(
            ("mean",), "mean -> infinity", lambda factor: families.InverseGamma(concentration=0.5, rate=factor * rate)
        )
    ]


def _truncated_normal(member: Any) -> list[_Limit]:
    """The density is proportional to exp(-rate x - x^2 / (2 scale^2)) with rate = -loc / scale^2."""
    low, high = float(member.low), float(member.high)
    rate = -float(member.loc) / float(member.scale) / float(member.scale)
    limits = []
    if isfinite(low) and isfinite(high):
        limits.append(_Limit(("scale",), "scale -> infinity", lambda _: families.Uniform(low=low, high=high)))
    if low == 0 and high == inf and rate > 0:
        words = "loc -> -infinity and scale -> infinity with a constant loc / scale^2"
        limits.append(_Limit(("loc", "scale"), words, lambda factor: families.Exponential(rate=factor * rate)))
    return limits


@np.errstate(all="ignore")  # the family refuses parameters that overflow
def _normal_mixture(member: Any) -> list[_Limit]:
    """The mixtures without one component, and with two components of adjacent means replaced by one."""
    parts = (np.asarray(part, np.float64) for part in (member.weights, member.locs, member.scales))
    weights, locs, scales = np.broadcast_arrays(*parts)
    order, count = np.argsort(locs, kind="stable"), weights.size
    weights, locs, scales = weights[order], locs[order], scales[order]
    smaller = [[np.delete(part, k) for part in (weights, locs, scales)] for k in range(count if count > 1 else 0)]
    for k in range(count - 1):
        pair = slice(k, k + 2)
        total, unit = weights[pair].sum(), scales[pair].max()
        mean = weights[pair] @ locs[pair] / total
        squares = (scales[pair] / unit) ** 2 + ((locs[pair] - mean) / unit) ** 2
        deviation = unit * np.sqrt(weights[pair] @ squares / total)
        merged = zip((weights, locs, scales), (total, mean, deviation), strict=True)
        smaller.append([np.concatenate([part[:k], [one], part[k + 2 :]]) for part, one in merged])
    return [
        _Limit(
            ("weights", "locs", "scales"),
            "not unique, because fewer components attain it",
            lambda _, w=w, m=m, s=s: families.NormalMixture(weights=w / w.sum(), locs=m, scales=s),
            f"fit {count - 1} component{'s' if count > 2 else ''}",
        )
        for w, m, s in smaller
    ]


def _von_mises(member: Any) -> list[_Limit]:
    """The member of concentration 0, whose logarithm is the coordinate of the descent."""
    loc, words = float(member.loc), "at the boundary concentration = 0"
    uniform = families.VonMises(loc=loc, concentration=0.0)
    return [_Limit(("concentration",), words, lambda _: uniform, "fix concentration = 0")]


# The limits of a member with free parameters; other families have a limit at a boundary only if it is degenerate.
_LIMITS: dict[type, Callable[[Any], list[_Limit]]] = {
    families.F: _f,
    families.InverseGaussian: _inverse_gaussian,
    families.NegativeBinomial: _negative_binomial,
    families.NormalMixture: _normal_mixture,
    families.StudentT: _student_t,
    families.TruncatedNormal: _truncated_normal,
    families.VonMises: _von_mises,
}
