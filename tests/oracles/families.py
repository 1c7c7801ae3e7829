"""KL between distributions from its definition: mpmath integrals or sums of log-densities, independent of the package.

Each family has a log-density, random parameters, and a change of variable that makes the integrand smooth and rapidly
decaying.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import numpy as np
from mpmath import mpf

from kullback import families as f
from kullback.closed_forms import FORMS

DIGITS = 30


class Family(NamedTuple):
    log_density: Callable[..., Any]
    parameters: Callable[[np.random.Generator], dict[str, float]]
    kind: str  # the domain, which determines the change of variable


def _positive(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(-0.7, 0.9)))


def _named(**ranges: str) -> Callable[[np.random.Generator], dict[str, float]]:
    draws: dict[str, Callable[[np.random.Generator], float]] = {
        "real": lambda rng: float(rng.normal()),
        "positive": _positive,
        "shape": lambda rng: float(np.exp(rng.uniform(0.2, 1.2))),
        "large": lambda rng: float(rng.uniform(3, 6)),
        "prob": lambda rng: float(rng.uniform(0.1, 0.9)),
        "count": lambda rng: float(rng.integers(3, 12)),
    }
    return lambda rng: {name: draws[kind](rng) for name, kind in ranges.items()}


def _log_beta(a: Any, b: Any) -> Any:
    return mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)


def _power_of_gamma(x: Any, shape: Any, power: Any, scale: Any) -> Any:
    z = mpmath.log(x / scale) * power
    return shape * z - mpmath.exp(z) - mpmath.loggamma(shape) + mpmath.log(power) - mpmath.log(x)


def _normal(x: Any, loc: Any, scale: Any) -> Any:
    return -(((x - loc) / scale) ** 2) / 2 - mpmath.log(scale) - mpmath.log(2 * mpmath.pi) / 2


def _student(x: Any, df: Any, loc: Any, scale: Any) -> Any:
    z = (x - loc) / scale
    return (
        -(df + 1) / 2 * mpmath.log1p(z * z / df)
        - _log_beta(df / 2, mpf(1) / 2)
        - mpmath.log(df) / 2
        - mpmath.log(scale)
    )


def _log_choose(n: Any, k: Any) -> Any:
    return mpmath.loggamma(n + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)


def _count_times_log(x: Any, count: Any) -> Any:
    """count log x, and 0 for count = 0."""
    return mpf(0) if count == 0 else count * mpmath.log(x)


def _continuous_bernoulli(x: Any, probs: Any) -> Any:
    logit = mpmath.log(probs / (1 - probs))
    return logit * x - mpmath.log(mpmath.expm1(logit) / logit)


def _logistic(x: Any, loc: Any, scale: Any) -> Any:
    z = (x - loc) / scale
    return -z - 2 * mpmath.log1p(mpmath.exp(-z)) - mpmath.log(scale)


def _gumbel(x: Any, loc: Any, scale: Any) -> Any:
    z = (x - loc) / scale
    return -z - mpmath.exp(min(-z, mpf(1e5))) - mpmath.log(scale)


def _uniform_parameters(rng: np.random.Generator) -> dict[str, float]:
    low = float(rng.uniform(0.05, 0.4))
    return {"low": low, "high": low + float(rng.uniform(0.1, 0.5))}


def _truncated_normal(x: Any, loc: Any, scale: Any, low: Any, high: Any) -> Any:
    a, b = (low - loc) / scale, (high - loc) / scale
    if a > 0:  # erfc is accurate in the upper tail
        a, b = -b, -a
    return _normal(x, loc, scale) - mpmath.log(
        (mpmath.erfc(-b / mpmath.sqrt(2)) - mpmath.erfc(-a / mpmath.sqrt(2))) / 2
    )


def _truncated_normal_parameters(rng: np.random.Generator) -> dict[str, float]:
    low = float(rng.normal())
    return {**LOCATION(rng), "low": low, "high": low + _positive(rng)}


LOCATION = _named(loc="real", scale="positive")
FAMILIES: dict[type, Family] = {
    f.Normal: Family(_normal, LOCATION, "line"),
    f.Laplace: Family(lambda x, loc, scale: -abs(x - loc) / scale - mpmath.log(2 * scale), LOCATION, "line"),
    f.Cauchy: Family(lambda x, loc, scale: _student(x, mpf(1), loc, scale), LOCATION, "line"),
    f.Logistic: Family(_logistic, LOCATION, "line"),
    f.Gumbel: Family(_gumbel, LOCATION, "line"),
    f.StudentT: Family(_student, _named(df="large", loc="real", scale="positive"), "line"),
    f.TanhNormal: Family(
        lambda x, loc, scale: _normal(mpmath.atanh(x), loc, scale) - mpmath.log1p(-x * x), LOCATION, "tanh"
    ),
    f.Exponential: Family(lambda x, rate: mpmath.log(rate) - rate * x, _named(rate="positive"), "positive"),
    f.Gamma: Family(
        lambda x, concentration, rate: _power_of_gamma(x, concentration, 1, 1 / rate),
        _named(concentration="shape", rate="positive"),
        "positive",
    ),
    f.ChiSquared: Family(lambda x, df: _power_of_gamma(x, df / 2, 1, 2), _named(df="large"), "positive"),
    f.InverseGamma: Family(
        lambda x, concentration, rate: _power_of_gamma(1 / x, concentration, 1, 1 / rate) - 2 * mpmath.log(x),
        _named(concentration="shape", rate="positive"),
        "positive",
    ),
    f.Weibull: Family(
        lambda x, scale, concentration: _power_of_gamma(x, 1, concentration, scale),
        _named(scale="positive", concentration="shape"),
        "positive",
    ),
    f.Rayleigh: Family(
        lambda x, scale: mpmath.log(x / scale**2) - (x / scale) ** 2 / 2, _named(scale="positive"), "positive"
    ),
    f.Maxwell: Family(
        lambda x, scale: mpmath.log(x**2 / scale**3) + mpmath.log(2 / mpmath.pi) / 2 - (x / scale) ** 2 / 2,
        _named(scale="positive"),
        "positive",
    ),
    f.HalfNormal: Family(lambda x, scale: _normal(x, 0, scale) + mpmath.log(2), _named(scale="positive"), "positive"),
    f.HalfCauchy: Family(
        lambda x, scale: _student(x, mpf(1), 0, scale) + mpmath.log(2), _named(scale="positive"), "positive"
    ),
    f.LogNormal: Family(lambda x, loc, scale: _normal(mpmath.log(x), loc, scale) - mpmath.log(x), LOCATION, "positive"),
    f.InverseGaussian: Family(
        lambda x, mean, shape: (
            mpmath.log(shape / (2 * mpmath.pi * x**3)) / 2 - shape * (x - mean) ** 2 / (2 * mean**2 * x)
        ),
        _named(mean="positive", shape="positive"),
        "positive",
    ),
    f.Pareto: Family(
        lambda x, scale, alpha: mpmath.log(alpha / x) + alpha * mpmath.log(scale / x),
        _named(scale="positive", alpha="large"),
        "from",
    ),
    f.TruncatedNormal: Family(_truncated_normal, _truncated_normal_parameters, "interval"),
    f.Uniform: Family(lambda x, low, high: -mpmath.log(high - low), _uniform_parameters, "interval"),
    f.Beta: Family(
        lambda x, concentration1, concentration0: (
            (concentration1 - 1) * mpmath.log(x)
            + (concentration0 - 1) * mpmath.log1p(-x)
            - _log_beta(concentration1, concentration0)
        ),
        _named(concentration1="shape", concentration0="shape"),
        "unit",
    ),
    f.Kumaraswamy: Family(
        lambda x, concentration1, concentration0: (
            mpmath.log(concentration1 * concentration0)
            + (concentration1 - 1) * mpmath.log(x)
            + (concentration0 - 1) * mpmath.log1p(-(x**concentration1))
        ),
        _named(concentration1="shape", concentration0="shape"),
        "unit",
    ),
    f.ContinuousBernoulli: Family(_continuous_bernoulli, _named(probs="prob"), "unit"),
    f.Bernoulli: Family(
        lambda k, probs: _count_times_log(probs, k) + _count_times_log(1 - probs, 1 - k), _named(probs="prob"), "counts"
    ),
    f.Binomial: Family(
        lambda k, total_count, probs: (
            _log_choose(total_count, k) + _count_times_log(probs, k) + _count_times_log(1 - probs, total_count - k)
        ),
        _named(total_count="count", probs="prob"),
        "counts",
    ),
    f.Geometric: Family(
        lambda k, probs: mpmath.log(probs) + _count_times_log(1 - probs, k), _named(probs="prob"), "counts"
    ),
    f.NegativeBinomial: Family(
        lambda k, total_count, probs: (
            mpmath.loggamma(total_count + k)
            - mpmath.loggamma(total_count)
            - mpmath.loggamma(k + 1)
            + total_count * mpmath.log1p(-probs)
            + _count_times_log(probs, k)
        ),
        lambda rng: {"total_count": 2.5, "probs": float(rng.uniform(0.1, 0.8))},
        "counts",
    ),
    f.Poisson: Family(
        lambda k, rate: _count_times_log(rate, k) - rate - mpmath.loggamma(k + 1), _named(rate="positive"), "counts"
    ),
}


# The parameters that two members of a family must share for a closed form, or for a fast oracle.
SHARED = {
    f.Binomial: ["total_count"],
    f.NegativeBinomial: ["total_count"],
    f.Logistic: ["scale"],
    f.Kumaraswamy: ["concentration1"],
}


def has_closed_form(p_class: type, q_class: type, p: dict[str, float], q: dict[str, float]) -> bool:
    """Whether a closed form is registered, and holds for these parameters."""
    shared = SHARED.get(p_class, []) if p_class is q_class else []
    return (p_class, q_class) in FORMS and all(p[name] == q[name] for name in shared if name != "total_count")


def draw(p_class: type, q_class: type, rng: np.random.Generator) -> tuple[Any, Any]:
    """Random p and q such that the support of q contains the support of p."""
    p, q = FAMILIES[p_class].parameters(rng), FAMILIES[q_class].parameters(rng)
    if q_class is f.Uniform:
        q = {"low": -float(rng.uniform(0, 1)), "high": 1 + float(rng.uniform(0, 1))}
    if q_class is f.TruncatedNormal:
        q |= {
            "low": p.get("low", 0.0) - float(rng.uniform(0, 1)),
            "high": p.get("high", 1.0) + float(rng.uniform(0, 1)),
        }
    if q_class is f.Pareto:
        q["scale"] = 0.9 * p.get("low", p.get("scale"))
    if p_class is f.Laplace and q_class is f.Gumbel:
        q["scale"] = p["scale"] + 0.5
    if p_class is f.Poisson and q_class is not f.Poisson:
        p["rate"] = 0.0
    if p_class is f.Binomial and q_class is f.Bernoulli:
        p["total_count"] = 1
    for name in SHARED.get(p_class, ()) if p_class is q_class else ():
        q[name] = p[name]
    return p_class(**p), q_class(**q)


def exact(record: Any) -> dict[str, Any]:
    """The parameters as mpmath numbers, without rounding."""
    return {name: mpf(float(value)) for name, value in vars(record).items() if value is not None}


def kl(p: Any, q: Any) -> Any:
    """KL(p || q) = E_p[log p(x) - log q(x)]."""
    with mpmath.workdps(DIGITS):
        given_p, given_q = exact(p), exact(q)
        family_p, family_q = FAMILIES[type(p)], FAMILIES[type(q)]

        def term(x: Any) -> Any:
            log_p = family_p.log_density(x, **given_p)
            if log_p < -1000:
                return mpf(0)
            log_q = family_q.log_density(x, **given_q)
            return mpmath.exp(log_p) * (log_p - log_q)

        if family_p.kind == "counts":
            return _sum(term, {f.Bernoulli: 1, f.Binomial: given_p.get("total_count")}.get(type(p), mpmath.inf))
        kinks = [d["loc"] for d in (given_p, given_q) if "loc" in d]
        return _integral(term, family_p.kind, given_p, kinks)


def _sum(term: Callable[[Any], Any], last: float) -> Any:
    total, k = mpf(0), 0
    while k <= last:
        step = term(mpf(k))
        total += step
        if k > 60 and abs(step) < mpf(10) ** (-DIGITS):
            return total
        k += 1
    return total


def _integral(term: Callable[[Any], Any], kind: str, parameters: dict[str, Any], kinks: list[Any]) -> Any:
    if kind == "interval":
        low, high = parameters["low"], parameters["high"]
        return mpmath.quad(term, sorted({low, high, *(x for x in kinks if low < x < high)}))
    loc, scale = parameters.get("loc", mpf(0)), parameters.get("scale", mpf(1))
    to_x, to_t, slope, points = {
        "line": (
            lambda t: loc + scale * mpmath.sinh(t),
            lambda x: mpmath.asinh((x - loc) / scale),
            lambda t: scale * mpmath.cosh(t),
            [-70, -20, -5, -2, 0, 2, 5, 20, 70],
        ),
        "from": (
            lambda t: scale * mpmath.exp(t),
            None,
            lambda t: scale * mpmath.exp(t),
            [0, 1, 5, 20, 60],
        ),
        "unit": (
            lambda t: 1 / (1 + mpmath.exp(-t)),
            None,
            lambda t: 1 / (2 + 2 * mpmath.cosh(t)),
            [-80, -20, -5, 0, 5, 20, 80],
        ),
        "positive": (mpmath.exp, None, mpmath.exp, [-90, -30, -8, -3, 0, 3, 8, 30, 90]),
        # The nodes stay away from the ends of the interval, where 1 - |x| underflows the working precision.
        "tanh": (mpmath.tanh, None, lambda t: mpmath.sech(t) ** 2, [-25, -8, -3, 0, 3, 8, 25]),
    }[kind]
    if to_t:
        points = sorted({*map(mpf, points), *map(to_t, kinks)})
    return mpmath.quad(lambda t: term(to_x(t)) * slope(t), points)
