"""Maximum likelihood where expectations are enough: the member of a family nearest to P by KL(P || member).

For an exponential family the nearest member has the expectations of P; each function here turns those into parameters.
"""

from collections.abc import Callable
from math import inf, log, nan
from typing import Any

import numpy as np
from scipy import optimize, special

from kullback import families
from kullback.errors import ParameterError
from kullback.families import Distribution
from kullback.numerics.arrays import Array

__all__ = ["Mean", "moments_of", "of_samples"]

# E_P of a function of x, by samples or by quadrature: `mean(f)`.
Mean = Callable[[Callable[[Array], Array]], Any]


def moments_of(kind: type[Distribution], mean: Mean, fixed: dict[str, Any]) -> Distribution | None:
    """The nearest member of a family, if its moments give it.

    Args:
        kind: The family's record.
        mean: E_P of a function of x.
        fixed: Parameters that are not fitted.

    Returns:
        The record; None where no such form is known, or P lacks the moments.
    """
    made = _FORMS.get(kind)
    if made is None:
        return None
    names, form = made
    if set(fixed) != set(names):
        return None
    with np.errstate(all="ignore"):
        values = form(mean, *(fixed[name] for name in names))
    if not all(np.isfinite(value).all() for value in values.values()):
        return None
    try:
        return kind(**fixed, **values)
    except ParameterError:  # P has mass outside the family's support
        return None


def of_samples(kind: type[Distribution], x: Array, shares: Array, fixed: dict[str, Any]) -> Distribution | None:
    """Maximum likelihood of the families whose best member is told by the order of the samples, or by their counts.

    Args:
        kind: The family's record.
        x: Samples, shape (n,).
        shares: What each counts, shape (n,), summing to 1.
        fixed: Parameters that are not fitted.

    Returns:
        The record; None of other families, or where it does not exist.
    """
    if x.ndim != 1 or fixed:
        return None
    if kind is families.Laplace:
        order = np.argsort(x, kind="stable")
        cumulative = np.cumsum(shares[order])
        after = int(np.searchsorted(cumulative, 0.5 - 1e-12))
        at_half = abs(cumulative[after] - 0.5) < 1e-12 and after + 1 < x.size
        loc = float((x[order][after] + x[order][after + 1]) / 2 if at_half else x[order][after])
        scale = float(np.abs(x - loc) @ shares)
        return families.Laplace(loc=loc, scale=scale) if scale > 0 else None
    if kind is families.Uniform and x.min() < x.max():
        return families.Uniform(low=float(x.min()), high=float(x.max()))
    if kind is families.Pareto and 0 < x.min() < x.max():
        scale = float(x.min())
        return families.Pareto(scale=scale, alpha=1 / float(np.log(x / scale) @ shares))
    if kind is families.Categorical and (x >= 0).all() and (x % 1 == 0).all():
        return families.Categorical(probs=np.bincount(x.astype(int), shares))
    return None


def _normal(mean: Mean) -> dict[str, Any]:
    loc = float(mean(lambda x: x))
    return {"loc": loc, "scale": float(mean(lambda x: (x - loc) ** 2)) ** 0.5 or nan}


def _log_normal(mean: Mean) -> dict[str, Any]:
    return _normal(lambda f: mean(lambda x: f(np.log(x))))


def _gamma(mean: Mean) -> dict[str, Any]:
    centre = float(mean(lambda x: x))
    # log of the mean less the mean of the logs, free of their cancellation
    gap = float(mean(lambda x: (x / centre - 1) - np.log(x / centre)))
    concentration = _solve(lambda a: log(a) - float(special.digamma(a)) - gap, 0.5 / gap if gap > 0 else nan)
    return {"concentration": concentration, "rate": concentration / centre}


def _inverse_gamma(mean: Mean) -> dict[str, Any]:
    return _gamma(lambda f: mean(lambda x: f(1 / x)))


def _chi_squared(mean: Mean) -> dict[str, Any]:
    target = float(mean(lambda x: np.log(x / 2)))
    return {"df": 2 * _solve(lambda a: target - float(special.digamma(a)), np.exp(target) + 0.5)}


def _inverse_gaussian(mean: Mean) -> dict[str, Any]:
    centre = float(mean(lambda x: x))
    return {"mean": centre, "shape": 1 / np.float64(mean(lambda x: (centre - x) ** 2 / (x * centre**2)))}


def _beta(mean: Mean) -> dict[str, Any]:
    return dict(
        zip(
            ("concentration1", "concentration0"),
            _dirichlet_of(np.asarray([mean(np.log), mean(lambda x: np.log1p(-x))], dtype=float)).tolist(),
            strict=True,
        )
    )


def _dirichlet(mean: Mean) -> dict[str, Any]:
    return {"concentration": _dirichlet_of(np.asarray(mean(np.log)))}


def _dirichlet_of(logs: Array) -> Array:
    """Concentrations a with digamma(a) - digamma(sum a) = E log x, by Newton's rule on log a."""
    if not np.isfinite(logs).all() or float(np.asarray(special.logsumexp(logs))) >= 0:
        return np.full_like(logs, nan)

    def excess(u: Array) -> Array:
        a = np.exp(u)
        return special.digamma(a) - special.digamma(a.sum()) - logs

    def slope(u: Array) -> Array:
        a = np.exp(u)
        return np.diag(special.polygamma(1, a) * a) - special.polygamma(1, a.sum()) * a[None, :]

    found = optimize.root(excess, np.zeros_like(logs), jac=slope, tol=1e-14)
    if np.abs(excess(found.x)).max() > 1e-9:
        found = optimize.root(excess, found.x, method="lm", jac=slope, tol=1e-14)
    return np.exp(found.x) if np.abs(excess(found.x)).max() < 1e-9 else np.full_like(logs, nan)


def _von_mises(mean: Mean) -> dict[str, Any]:
    sine, cosine = float(mean(np.sin)), float(mean(np.cos))
    length = float(np.hypot(sine, cosine))
    loc = float(np.arctan2(sine, cosine))
    lost = float(mean(lambda x: 2 * np.sin((x - loc) / 2) ** 2))  # 1 - length, without its cancellation

    def excess(k: float) -> float:
        return lost - float((special.i0e(k) - special.i1e(k)) / special.i0e(k))

    return {"loc": loc, "concentration": _solve(lambda k: -excess(k), max(2 * length, 0.5 / max(lost, 1e-300)))}


def _pareto(mean: Mean, scale: float) -> dict[str, Any]:
    return {"alpha": 1 / float(mean(lambda x: np.log(x / scale)))}


def _weibull(mean: Mean) -> dict[str, Any]:
    centre = float(np.exp(mean(np.log)))

    def excess(k: float) -> float:
        power = float(mean(lambda x: (x / centre) ** k))
        return float(mean(lambda x: (x / centre) ** k * np.log(x / centre))) / power - 1 / k

    concentration = _solve(excess, 1.0)
    return {
        "scale": centre * float(mean(lambda x: (x / centre) ** concentration)) ** (1 / concentration),
        "concentration": concentration,
    }


def _root_of_mean_square(count: float) -> Callable[[Mean], dict[str, Any]]:
    return lambda mean: {"scale": (float(mean(lambda x: x * x)) / count) ** 0.5}


def _solve(excess: Callable[[float], float], near: float) -> float:
    """The root of a function of a positive number that changes sign once."""
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


_FORMS: dict[type, tuple[tuple[str, ...], Callable[..., dict[str, Any]]]] = {
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
    families.Rayleigh: ((), _root_of_mean_square(2.0)),
    families.Maxwell: ((), _root_of_mean_square(3.0)),
    families.HalfNormal: ((), _root_of_mean_square(1.0)),
    families.Poisson: ((), lambda mean: {"rate": float(mean(lambda x: x))}),
    families.Bernoulli: ((), lambda mean: {"probs": float(mean(lambda x: x))}),
    families.Geometric: ((), lambda mean: {"probs": 1 / (1 + float(mean(lambda x: x)))}),
    families.Binomial: (("total_count",), lambda mean, count: {"probs": float(mean(lambda x: x)) / count}),
    families.NegativeBinomial: (
        ("total_count",),
        lambda mean, count: {"probs": (centre := float(mean(lambda x: x))) / (centre + count)},
    ),
    families.OneHotCategorical: ((), lambda mean: {"probs": np.asarray(mean(lambda x: x))}),
}
