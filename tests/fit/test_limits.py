"""Fits whose infimum is a limit of the family: `converged` is false, and the limit is named."""

import numpy as np
import pytest
from scipy import stats

from kullback import families as f
from kullback import fit_forward, fit_reverse


def reason(fit):
    assert not fit.converged
    return fit.diagnostics["not_converged"]


@pytest.mark.parametrize("count", [5, pytest.param(20, marks=pytest.mark.slow), 50])
def test_negative_binomials_tend_to_the_poisson(count):
    """The infimum by enumeration: KL(Binomial(n, 0.3) || Poisson(0.3 n))."""
    target = f.Binomial(total_count=count, probs=0.3)
    k = np.arange(count + 1)
    p = stats.binom(count, 0.3).pmf(k)
    infimum = float(p @ (stats.binom(count, 0.3).logpmf(k) - stats.poisson(0.3 * count).logpmf(k)))
    start = f.NegativeBinomial(total_count=1e2 * count, probs=0.3 / (1e2 + 0.3))
    fit = fit_forward(f.NegativeBinomial, target=target, start=start)
    assert fit.kl >= infimum - 1e-12
    assert f"Poisson(rate={0.3 * count:g}) and has {infimum:.6g} nats; fit Poisson" in reason(fit)
    assert len(fit.minima) == 1


@pytest.mark.parametrize("weighted", [False, True])
def test_underdispersed_samples_tend_to_the_poisson(weighted):
    x = np.array([2.0, 3.0, 3.0, 4.0, 3.0, 2.0])
    weights = np.arange(1.0, 7.0) if weighted else None
    fit = fit_forward(f.NegativeBinomial, samples=x, weights=weights)
    rate = np.average(x, weights=weights)
    value = -np.average(stats.poisson(rate).logpmf(x), weights=weights)
    assert f"Poisson(rate={rate:.6g}) and has {value:.6g} nats" in reason(fit)


def test_student_t_distributions_tend_to_the_normal():
    x = np.linspace(-1, 1, 41)
    fit = fit_forward(f.StudentT, samples=x)
    value = stats.norm.entropy(scale=x.std())
    assert "df -> infinity, which is Normal(" in reason(fit)
    assert f"has {value:.6g} nats; fit Normal" in reason(fit)
    start = f.StudentT(df=100.0, loc=0.0, scale=1.0)
    fit = fit_forward(f.StudentT, target=f.Normal(loc=0.0, scale=1.0), start=start, fixed={"loc": 0.0})
    assert "which is Normal(loc=0, scale=1)" in reason(fit)


@pytest.mark.parametrize(
    ("start", "target", "fixed", "limit"),
    [
        (
            f.F(df1=5.0, df2=99.0),
            f.Gamma(concentration=2.5, rate=2.5),
            {},
            "df2 -> infinity, which is Gamma(concentration=2.5, rate=2.5)",
        ),
        (
            f.F(df1=99.0, df2=4.0),
            f.InverseGamma(concentration=2.0, rate=2.0),
            {},
            "df1 -> infinity, which is InverseGamma(",
        ),
        (
            f.TruncatedNormal(loc=0.4, scale=5.0, low=0.0, high=1.0),
            f.Uniform(low=0.0, high=1.0),
            {"low": 0.0, "high": 1.0},
            "which is Uniform(low=0, high=1)",
        ),
        (
            f.TruncatedNormal(loc=-80.0, scale=6.4, low=0.0, high=np.inf),
            f.Exponential(rate=2.0),
            {"low": 0.0, "high": np.inf},
            "which is Exponential(rate=2)",
        ),
    ],
)
def test_other_limits_are_named(start, target, fixed, limit):
    assert limit in reason(fit_forward(type(start), target=target, start=start, fixed=fixed))


@pytest.mark.slow
def test_an_inverse_gaussian_tends_to_a_levy_distribution():
    fit = fit_reverse(f.InverseGaussian, target=f.InverseGamma(concentration=0.5, rate=1.0))
    assert "mean -> infinity, which is InverseGamma(concentration=0.5, rate=1)" in reason(fit)


def test_superfluous_components_are_named():
    fit = fit_reverse(f.NormalMixture, target=f.Normal(loc=0.0, scale=1.0), components=2)
    assert reason(fit).endswith("is not unique, because fewer components attain it; fit 1 component")


@pytest.mark.parametrize(
    ("family", "target"),
    [
        (f.StudentT, f.StudentT(df=30.0, loc=0.0, scale=1.0)),
        (f.NegativeBinomial, f.NegativeBinomial(total_count=40.0, probs=0.1)),
        (f.F, f.F(df1=5.0, df2=7.0)),
    ],
)
def test_members_are_not_taken_for_limits(family, target):
    fit = fit_forward(family, target=target)
    assert fit.converged
    assert "not_converged" not in fit.diagnostics
    assert fit.kl == pytest.approx(0, abs=1e-12)
