"""A family is added by one class statement: its support and its density are class attributes, which `kl`, `measure`
and the fits read. The families of this file are defined here, and no module of the package names them.
"""

from importlib import import_module
from math import inf
from pathlib import Path

import mpmath
import numpy as np
import pytest

from kullback import families, fit_forward, fit_reverse, kl, measure, register_kl
from kullback.closed_forms import FORMS
from kullback.closed_forms.supports import is_count_family, shared_support, support, support_parameters
from kullback.densities.from_families import as_density, in_float64
from kullback.errors import NoClosedFormError, ParameterError
from kullback.families.base import POSITIVE_REALS, Distribution, Positive, Probability, Real, ScipyForm, Support, record

from ..oracles import families as oracle


@record
class Lomax(Distribution):
    """Density: (alpha / scale) (1 + x / scale)^(-alpha - 1) for x >= 0."""

    support = POSITIVE_REALS
    scipy_form = ScipyForm("lomax", lambda d: {"c": d.alpha, "scale": d.scale})

    scale: Positive
    alpha: Positive


@record
class ShiftedExponential(Distribution):
    """Density: rate exp(-rate (x - loc)) for x >= loc."""

    support = Support("loc", inf)
    scipy_form = ScipyForm("expon", lambda d: {"loc": d.loc, "scale": 1 / d.rate})

    loc: Real
    rate: Positive


@record
class LogSeries(Distribution):
    """Mass: -probs^k / (k log(1 - probs)) for k = 1, 2, ..."""

    support = Support(1.0, inf, discrete=True)
    scipy_form = ScipyForm("logser", lambda d: {"p": d.probs})

    probs: Probability


P, Q = Lomax(scale=1.5, alpha=3.0), Lomax(scale=0.8, alpha=2.2)


def log_lomax(x, scale, alpha):
    return mpmath.log(alpha / scale) - (alpha + 1) * mpmath.log1p(x / scale)


def test_measure_integrates_the_density():
    with mpmath.workdps(30):
        p, q = ([mpmath.mpf(d.scale), mpmath.mpf(d.alpha)] for d in (P, Q))
        points = [0, 1, 10, 100, 10**4, mpmath.inf]
        expected = mpmath.quad(lambda x: mpmath.exp(log_lomax(x, *p)) * (log_lomax(x, *p) - log_lomax(x, *q)), points)
    estimate = measure(P, Q)
    assert estimate.method == "quadrature"
    assert estimate.status == "bounded"
    assert estimate.value == pytest.approx(float(expected), rel=1e-11)
    assert measure(P, P).value == pytest.approx(0, abs=1e-15)


def test_measure_sums_the_mass_function():
    p, q = LogSeries(probs=0.6), LogSeries(probs=0.3)
    mean = -0.6 / (0.4 * np.log(0.4))
    expected = np.log(np.log(0.7) / np.log(0.4)) + mean * np.log(0.6 / 0.3)
    assert measure(p, q).value == pytest.approx(expected, rel=1e-11)
    assert measure(families.Poisson(rate=1.0), p).value == inf  # the mass of p at 0 is 0


def test_measure_against_the_families_of_the_package():
    assert measure(P, families.HalfCauchy(scale=1.0)).status == "bounded"
    assert measure(P, families.Exponential(rate=1.0)).value < inf
    assert measure(P, families.Weibull(scale=1.0, concentration=4.0)).value == inf  # the tail of p is too heavy


def test_kl_is_infinite_where_the_support_is_smaller():
    beta, pareto = families.Beta(concentration1=2.0, concentration0=2.0), families.Pareto(scale=[0.5, 1.0], alpha=2.0)
    assert kl(P, beta) == inf
    np.testing.assert_array_equal(kl(P, pareto), [inf, inf])
    assert kl(families.Normal(loc=0.0, scale=1.0), P) == inf
    assert kl(P, LogSeries(probs=0.5)) == inf
    late, early = ShiftedExponential(loc=2.0, rate=1.0), ShiftedExponential(loc=1.0, rate=1.0)
    assert kl(early, late) == inf
    assert kl(late, families.Uniform(low=0.0, high=9.0)) == inf
    for p, q in ((beta, P), (P, Q), (late, early)):
        with pytest.raises(NoClosedFormError, match=r"no closed form; kullback.measure\(p, q\)"):
            kl(p, q)


def test_a_closed_form_can_be_registered(monkeypatch):
    monkeypatch.setitem(FORMS, (Lomax, Lomax), None)  # removed after the test
    register_kl(Lomax, Lomax)(lambda p, q: np.log(p.alpha / q.alpha) + q.alpha / p.alpha - 1)  # for equal scales
    p, q = Lomax(scale=2.0, alpha=3.0), Lomax(scale=2.0, alpha=2.0)
    assert measure(p, q).method == "closed form"
    assert measure(p, q).value == kl(p, q)
    assert kl(p, q) == pytest.approx(measure(p, q, method="quadrature").value, rel=1e-11)


def test_parameters_are_validated():
    with pytest.raises(ParameterError, match=r"expected Lomax's alpha to be > 0 and finite, but it is -1\.0"):
        Lomax(scale=1.0, alpha=-1.0)


def test_a_forward_fit_recovers_the_target():
    target = families.InverseGamma(concentration=3.0, rate=2.0)
    fit = fit_forward(Lomax, target=P, start=Lomax(scale=1.0, alpha=2.0))
    assert fit.converged
    assert (fit.distribution.scale, fit.distribution.alpha) == pytest.approx((P.scale, P.alpha), rel=1e-4)
    assert fit_forward(Lomax, target=target, start=P).kl < measure(target, P).value


def test_a_reverse_fit_finds_a_minimum_at_the_end_of_the_target():
    target, start = families.Exponential(rate=2.0), ShiftedExponential(loc=0.5, rate=1.0)
    fit = fit_reverse(ShiftedExponential, target=target, start=start)
    assert fit.converged
    assert fit.distribution.loc == 0
    assert fit.distribution.rate == pytest.approx(2.0, rel=1e-6)


def test_the_support_of_a_family():
    assert shared_support(Lomax) == (0.0, inf)
    assert shared_support(ShiftedExponential) == (-inf, inf)
    assert support_parameters(ShiftedExponential) == {"loc": 0}
    assert is_count_family(LogSeries)
    assert not is_count_family(families.Dirichlet)
    assert support(np, families.Uniform(low=1.0, high=2.0)) == (1.0, 2.0)


@pytest.mark.parametrize("family", oracle.FAMILIES, ids=lambda family: family.__name__)
def test_the_support_is_the_support_of_the_density(family):
    member = in_float64(family(**oracle.FAMILIES[family].parameters(np.random.default_rng(0))))
    density = as_density(member)
    assert density is not None
    assert tuple(map(float, support(np, member))) == density.support
    assert is_count_family(family) == density.discrete


def test_the_public_families_are_the_families_of_the_modules():
    files = Path(families.__file__).parent.glob("[!_]*.py")
    modules = [import_module(f"kullback.families.{path.stem}") for path in files if path.stem != "base"]
    names = [name for module in modules for name in module.__all__]
    assert sorted(families.__all__) == sorted([*names, "Distribution"])
    for module in modules:
        assert all(getattr(families, name) is getattr(module, name) for name in module.__all__)
        classes = {value.__name__ for value in vars(module).values() if _is_defined_in(value, module)}
        assert classes == set(module.__all__)


def _is_defined_in(value, module):
    return isinstance(value, type) and issubclass(value, Distribution) and value.__module__ == module.__name__
