"""Closed-form maximum likelihood: the member q that minimises KL(p || q), from expectations under p.

For an exponential family the minimiser has the same expected sufficient statistics as p. Each function converts those
expectations to parameters.
"""

from collections.abc import Callable
from math import frexp, inf, ldexp, nan
from typing import Any

import numpy as np
from scipy import optimize, special

from kullback import families
from kullback.errors import ParameterError, SupportError
from kullback.families import Distribution
from kullback.numerics.arrays import Array
from kullback.numerics.log_gamma import binet_slope
from kullback.numerics.phi import log_ratio, phi

__all__ = ["Expectation", "closed_form_mle", "match_moments"]

# The expectation of a function under p, by samples or by quadrature: `mean(f)` is E_p[f(x)].
Expectation = Callable[[Callable[[Array], Array]], Any]

_LARGEST_CATEGORY = 2**24
_NEWTON_STEPS = 30


def match_moments(family: type[Distribution], mean: Expectation, fixed: dict[str, Any]) -> Distribution | None:
    """The member that minimises KL(p || q), from expectations under p.

    Args:
        family: The class of the family.
        mean: The expectation of a function under p.
        fixed: The parameters that are not fitted, by name.

    Returns:
        The member; None where no closed form exists, where p lacks a moment, or where p has mass outside the support.
    """
    if family not in _CLOSED_FORMS:
        return None
    names, closed_form = _CLOSED_FORMS[family]
    if set(fixed) != set(names):
        return None
    try:
        with np.errstate(all="ignore"):
            values = closed_form(mean, *(fixed[name] for name in names))
    except ArithmeticError:  # a mean of 0, or a moment beyond the largest number
        return None
    if not all(np.isfinite(value).all() for value in values.values()):
        return None
    try:
        return family(**fixed, **values)
    except ParameterError:
        return None


def closed_form_mle(family: type[Distribution], x: Array, weights: Array, fixed: dict[str, Any]) -> Distribution | None:
    """Maximum likelihood of the families whose estimate depends on the order or the counts of the samples.

    Args:
        family: The class of the family.
        x: The samples, shape (n,).
        weights: The weights of the samples, shape (n,), with sum 1.
        fixed: The parameters that are not fitted, by name.

    Returns:
        The member; None for other families, or where the likelihood has no maximum.
    """
    if x.ndim == 1 and family is families.Uniform:
        return _narrowest_uniform(x, fixed)
    if x.ndim == 1 and family is families.Pareto and x.min() > 0:
        return _pareto_of_samples(x, weights, fixed)
    if x.ndim != 1 or fixed:
        return None
    if family is families.Laplace:
        order = np.argsort(x, kind="stable")
        cumulative = np.cumsum(weights[order])
        median = int(np.searchsorted(cumulative, 0.5 - 1e-12))
        is_between_samples = abs(cumulative[median] - 0.5) < 1e-12 and median + 1 < x.size
        loc = float((x[order][median] + x[order][median + 1]) / 2 if is_between_samples else x[order][median])
        scale = float(np.abs(x - loc) @ weights)
        return families.Laplace(loc=loc, scale=scale) if scale > 0 else None
    if family is families.Categorical:
        for i in np.flatnonzero((x < 0) | (x % 1 != 0) | (x > _LARGEST_CATEGORY))[:1].tolist():
            raise SupportError(
                f"expected samples of Categorical to be whole numbers from 0 to {_LARGEST_CATEGORY}, the indices of "
                f"its probabilities, but samples[{i}] is {float(x[i])!r}; number the categories from 0"
            )
        return families.Categorical(probs=np.bincount(x.astype(int), weights))
    return None


def _narrowest_uniform(x: Array, fixed: dict[str, Any]) -> families.Uniform | None:
    """The narrowest Uniform that contains the samples and has the fixed ends; None if it has no width.

    Raises:
        SupportError: A sample is outside of a fixed end.
    """
    low, high = (float(fixed.get(name, end)) for name, end in (("low", x.min()), ("high", x.max())))
    for i in np.flatnonzero((x < low) | (x > high))[:1].tolist():
        raise SupportError(
            f"expected samples between the ends {low!r} and {high!r} of Uniform, of which {', '.join(fixed)} is fixed, "
            f"but samples[{i}] is {float(x[i])!r}, which makes KL(p || q) inf for every member"
        )
    return families.Uniform(low=low, high=high) if low < high else None


def _pareto_of_samples(x: Array, weights: Array, fixed: dict[str, Any]) -> families.Pareto | None:
    """The Pareto of the largest likelihood, whose scale is at most the smallest sample; None if all are the scale.

    Raises:
        SupportError: A sample is below a fixed scale.
    """
    scale = float(fixed.get("scale", x.min()))
    for i in np.flatnonzero(x < scale)[:1].tolist():
        raise SupportError(
            f"expected samples from the fixed scale {scale!r} of Pareto on, but samples[{i}] is {float(x[i])!r}, which "
            "makes KL(p || q) inf for every member"
        )
    with np.errstate(all="ignore"):
        rate = float(log_ratio(np, x, np.asarray(scale)) @ weights)
    alpha = fixed.get("alpha", 1 / rate if rate > 0 else None)
    return None if alpha is None else families.Pareto(scale=scale, alpha=float(alpha))


def _normal(mean: Expectation) -> dict[str, Any]:
    loc = float(mean(lambda x: x))
    return {"loc": loc, "scale": _root_of_mean_square(lambda f: mean(lambda x: f(x - loc))) or nan}


def _root_of_mean_square(mean: Expectation) -> float:
    """E[x^2]^(1/2), without overflow or underflow of the squares."""
    size = float(mean(np.abs))
    if not 0 < size < inf:
        return size
    unit = ldexp(1.0, frexp(size)[1] - 1)
    return unit * float(mean(lambda x: (x / unit) ** 2)) ** 0.5


def _log_normal(mean: Expectation) -> dict[str, Any]:
    return _normal(lambda f: mean(lambda x: f(np.log(x))))


def _gamma(mean: Expectation) -> dict[str, Any]:
    center, gap = _mean_and_log_gap(mean)
    concentration = _positive_root(lambda a: float(_log_minus_digamma(a) - gap), 0.5 / gap if gap > 0 else nan)
    return {"concentration": concentration, "rate": concentration / float(center)}


def _mean_and_log_gap(mean: Expectation) -> tuple[Any, Any]:
    """E[x] and log E[x] - E[log x] >= 0, without the cancellation of the two logarithms."""
    center = np.asarray(mean(lambda x: x))
    return center, mean(lambda x: phi(log_ratio(np, x, center)))


def _log_minus_digamma(a: Any) -> Any:
    """log(a) - digamma(a) > 0, without the cancellation of large logarithms."""
    return 0.5 / a - binet_slope(np, np.asarray(a))


def _inverse_gamma(mean: Expectation) -> dict[str, Any]:
    return _gamma(lambda f: mean(lambda x: f(1 / x)))


def _chi_squared(mean: Expectation) -> dict[str, Any]:
    mean_log = float(mean(lambda x: np.log(x / 2)))
    return {"df": 2 * _positive_root(lambda a: mean_log - float(special.digamma(a)), np.exp(mean_log) + 0.5)}


def _inverse_gaussian(mean: Expectation) -> dict[str, Any]:
    center = float(mean(lambda x: x))
    ratio = mean(lambda x: (1 - x / center) ** 2 / (x / center))
    return {"mean": center, "shape": center / np.float64(ratio)}


def _beta(mean: Expectation) -> dict[str, Any]:
    ends = _mean_and_log_gap(mean), _mean_and_log_gap(lambda f: mean(lambda x: f(1 - x)))
    concentration = _dirichlet_concentration(*(np.asarray(pair, float) for pair in zip(*ends, strict=True)))
    return dict(zip(("concentration1", "concentration0"), concentration.tolist(), strict=True))


def _dirichlet(mean: Expectation) -> dict[str, Any]:
    return {"concentration": _dirichlet_concentration(*_mean_and_log_gap(mean))}


def _dirichlet_concentration(center: Array, gap: Array) -> Array:
    """The solution a of digamma(a) - digamma(sum a) = E[log x], from E[x] and the gaps g = log E[x] - E[log x].

    The coordinates are A = sum a and v = log(a / (A E[x])). With h(a) = log a - digamma(a), v - h(a) + h(A) + g = 0.
    For a given A, the left side increases with v, and A is the root of sum E[x] (e^v - 1) = 0.

    Args:
        center: E[x], shape (n,).
        gap: The gaps g, shape (n,).

    Returns:
        The solution, shape (n,); nan if there is none.
    """
    total = float(center @ gap)
    if not (np.isfinite(gap).all() and total > 0):
        return np.full_like(gap, nan)

    def log_ratios(a: float) -> Array:
        """The coordinates v for the sum A = a, by Newton's method; the start is close for large and small entries."""
        digamma = np.log(center) - gap + float(special.digamma(a))
        start = np.where(digamma > -2.22, np.exp(digamma) + 0.5, -1 / (digamma + np.euler_gamma))
        v = np.log(start) - np.log(a * center)
        for _ in range(_NEWTON_STEPS):
            entries = a * center * np.exp(v)
            excess = v - _log_minus_digamma(entries) + _log_minus_digamma(a) + gap
            step = excess / (entries * special.polygamma(1, entries))
            v = v - step
            if (np.abs(step) <= 1e-15 * np.abs(v)).all():
                break
        return v

    near = (len(center) - 1) / (2 * total)
    size = _positive_root(lambda a: float(center @ np.expm1(log_ratios(a))), near)
    return size * center * np.exp(log_ratios(size)) if size > 0 else np.full_like(gap, nan)


def _von_mises(mean: Expectation) -> dict[str, Any]:
    sine, cosine = float(mean(np.sin)), float(mean(np.cos))
    length = float(np.hypot(sine, cosine))
    loc = float(np.arctan2(sine, cosine))
    circular_variance = float(mean(lambda x: 2 * np.sin((x - loc) / 2) ** 2))  # 1 - length, without cancellation

    def excess(k: float) -> float:
        return float((special.i0e(k) - special.i1e(k)) / special.i0e(k)) - circular_variance

    return {
        "loc": loc,
        "concentration": _positive_root(excess, max(2 * length, 0.5 / max(circular_variance, 1e-300))),
    }


def _pareto(mean: Expectation, scale: float) -> dict[str, Any]:
    return {"alpha": 1 / float(mean(lambda x: np.log(x / scale)))}


def _weibull(mean: Expectation) -> dict[str, Any]:
    center = np.exp(np.asarray(mean(np.log)))

    def mean_of_logs(function: Callable[[Array], Array]) -> float:
        return float(mean(lambda x: function(log_ratio(np, x, center))))

    shift = mean_of_logs(lambda z: z)  # the rounding of the center

    def excess(k: float) -> float:
        return mean_of_logs(lambda z: np.exp(k * z) * (z - shift)) / mean_of_logs(lambda z: np.exp(k * z)) - 1 / k

    concentration = _positive_root(excess, 1.0)
    power = mean_of_logs(lambda z: np.exp(concentration * z))
    return {"scale": float(center) * power ** (1 / concentration), "concentration": concentration}


def _root_mean_square(degrees: float) -> Callable[[Expectation], dict[str, Any]]:
    """The closed form of a scale with scale^2 = E[x^2] / degrees."""
    return lambda mean: {"scale": _root_of_mean_square(mean) / degrees**0.5}


def _positive_root(excess: Callable[[float], float], near: float) -> float:
    """The root of a function on the positive numbers that changes sign once; nan if no bracket is found."""
    if not 0 < near < inf:
        return nan
    low = high = near
    sign = np.sign(excess(near))
    for _ in range(200):
        low, high = low / 2, high * 2
        for end in (low, high):
            value = excess(end)
            if np.isfinite(value) and np.sign(value) != sign:
                a, b = (end, end * 2) if end == low else (end / 2, end)
                return float(optimize.brentq(excess, a, b, xtol=1e-300, rtol=1e-15))  # pyright: ignore
    return nan


# The parameters that must be fixed, and the closed form of the others given E_p and the fixed parameters.
_CLOSED_FORMS: dict[type, tuple[tuple[str, ...], Callable[..., dict[str, Any]]]] = {
    families.Normal: ((), _normal),
    families.LogNormal: ((), _log_normal),
    families.TanhNormal: ((), lambda mean: _normal(lambda f: mean(lambda x: f(np.arctanh(x))))),
    families.Exponential: ((), lambda mean: {"rate": 1 / float(mean(lambda x: x))}),
    families.Gamma: ((), _gamma),
    families.InverseGamma: ((), _inverse_gamma),
    families.ChiSquared: ((), _chi_squared),
    families.InverseGaussian: ((), _inverse_gaussian),
    families.Weibull: ((), _weibull),
    families.Beta: ((), _beta),
    families.Dirichlet: ((), _dirichlet),
    families.VonMises: ((), _von_mises),
    families.Pareto: (("scale",), _pareto),
    families.Rayleigh: ((), _root_mean_square(2.0)),
    families.Maxwell: ((), _root_mean_square(3.0)),
    families.HalfNormal: ((), _root_mean_square(1.0)),
    families.Poisson: ((), lambda mean: {"rate": float(mean(lambda x: x))}),
    families.Bernoulli: ((), lambda mean: {"probs": float(mean(lambda x: x))}),
    families.Geometric: ((), lambda mean: {"probs": 1 / (1 + float(mean(lambda x: x)))}),
    families.Binomial: (("total_count",), lambda mean, count: {"probs": float(mean(lambda x: x)) / count}),
    families.NegativeBinomial: (
        ("total_count",),
        lambda mean, count: {"probs": (center := float(mean(lambda x: x))) / (center + count)},
    ),
    families.OneHotCategorical: ((), lambda mean: {"probs": np.asarray(mean(lambda x: x))}),
}
