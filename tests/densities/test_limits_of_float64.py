"""Parameters at the limits of float64: a right value, an estimate whose status states the doubt, or a clear refusal."""

import math
from contextlib import suppress

import pytest
import torch
from scipy import stats
from torch import distributions

from kullback import families as f
from kullback import measure, measure_entropy
from kullback.densities.entropy import entropy_of
from kullback.densities.from_families import as_density
from kullback.errors import KullbackError, ParameterError, SupportError
from kullback.fit import fit_forward

BEYOND = {
    "infinite quartiles": (f.InverseGamma(concentration=1e-300, rate=1e300), f.Gamma(concentration=1.0, rate=1.0)),
    "nan quartiles": (f.Gamma(concentration=1e-300, rate=3.0), f.F(df1=1e300, df2=3.0)),
}


@pytest.mark.parametrize("name", BEYOND)
def test_densities_beyond_float64_are_refused(name):
    with pytest.raises(SupportError, match=r"float64|1\.8e308"):
        measure(*BEYOND[name])


def test_a_finite_kl_of_values_above_float64_overflows():
    estimate = measure(f.LogNormal(loc=1e6, scale=3.0), f.Exponential(rate=1.0))
    assert (estimate.value, estimate.status) == (math.inf, "overflow")


def test_the_closed_form_of_log_normals_beyond_float64_remains():
    p, q = f.LogNormal(loc=1e6, scale=3.0), f.LogNormal(loc=1e6, scale=2.0)
    assert measure(p, q).value == pytest.approx(math.log(2 / 3) + 9 / 8 - 0.5, rel=1e-14)


@pytest.mark.parametrize(
    "record",
    [
        f.Logistic(loc=1e300, scale=0.5),
        f.Logistic(loc=1.0, scale=1e-300),
        f.Gumbel(loc=2.0, scale=1e-300),
        f.LogNormal(loc=-1e6, scale=3.0),
    ],
    ids=repr,
)
def test_an_entropy_below_the_resolution_of_float64_is_right_or_refused(record):
    exact = {f.Logistic: 2.0, f.Gumbel: 1.5772156649015329}.get(type(record))
    try:
        estimate = entropy_of(as_density(record))
    except SupportError:
        return
    if estimate.status == "unreliable":
        return
    assert exact is not None
    assert estimate.value == pytest.approx(math.log(record.scale) + exact, rel=1e-9)


def test_the_entropy_of_counts_that_float64_does_not_distinguish_is_refused():
    with pytest.raises(SupportError, match="counts that float64 distinguishes"):
        entropy_of(as_density(f.Poisson(rate=1e300)))


def test_an_integral_that_overflows_is_not_stated_to_be_infinite():
    # KL(Beta(a, a) || Kumaraswamy(a, 1)) is about a log 2 for large a.
    p, q = f.Beta(concentration1=1e300, concentration0=1e300), f.Kumaraswamy(concentration1=1e300, concentration0=1.0)
    for pair in ((p, q), (q, p)):
        try:
            estimate = measure(*pair)
        except SupportError:
            continue
        assert estimate.status != "exact"
        assert all(estimate.warnings)


def test_a_fit_to_values_beyond_float64_is_refused():
    for loc in (1e6, -1e6):
        with pytest.raises(SupportError, match="float64"):
            fit_forward(f.Gamma, target=f.LogNormal(loc=loc, scale=3.0))


@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize(
    ("weight", "loc"), [(1e-20, 1e10), (1e-33, 1e17), (1e-36, 1e19), (1e-40, 1e21), (1e-60, 1e31), (1e-100, 1e51)]
)
def test_a_light_component_that_is_far_away_is_within_the_error_bound(kind, weight, loc):
    if kind == "normal":
        p = f.NormalMixture(weights=[1.0, weight], locs=[0.0, loc], scales=[1.0, 1.0])
        q, truth = f.Normal(loc=0.0, scale=1.0), weight * (loc**2 / 2 + math.log(weight))
    else:
        locs, ones = torch.tensor([0.0, loc], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        weights = distributions.Categorical(torch.tensor([1.0, weight], dtype=torch.float64))
        p = distributions.MixtureSameFamily(weights, distributions.Laplace(locs, ones))
        q, truth = distributions.Laplace(locs[0], ones[0]), weight * (loc + math.log(weight))
    estimate = measure(p, q)
    low, high = estimate.interval
    assert low - 1e-12 * truth <= truth <= high * (1 + 1e-12)
    assert estimate.status == "unreliable" or estimate.error < 1e-10 * max(1.0, truth)


@pytest.mark.parametrize(
    "make",
    [
        lambda df: f.ChiSquared(df=df),
        lambda df: f.Gamma(concentration=df, rate=1.0),
        lambda df: f.InverseGamma(concentration=df, rate=1.0),
        lambda df: f.F(df1=df, df2=3.0),
        lambda df: f.F(df1=3.0, df2=df),
        lambda mean: f.InverseGaussian(mean=mean, shape=1.0),
        lambda mean: f.Wishart(df=3.0, covariance_matrix=[[mean]]),
    ],
)
@pytest.mark.parametrize("value", [5e-324, 1e-310])
def test_subnormal_parameters_give_a_kl_or_a_refusal(make, value):
    member = make(value)
    with suppress(KullbackError):
        assert measure(member, member).value == 0
    for p, q in ((member, make(3.0)), (make(3.0), member), (member, f.Normal(loc=0.0, scale=1.0))):
        with suppress(KullbackError):
            assert measure(p, q).value >= 0


@pytest.mark.parametrize(
    "member",
    [
        stats.invgauss(1e-310),
        stats.nchypergeom_wallenius(140, 80, 60, 5e-324),
        stats.nchypergeom_fisher(140, 80, 60, 1e200),
    ],
    ids=lambda member: member.dist.name,
)
def test_parameters_at_which_scipy_ends_the_process_are_refused(member):
    for p, q in ((member, f.Poisson(rate=1.0)), (f.Poisson(rate=1.0), member)):
        with pytest.raises(ParameterError, match="SciPy's functions end the process"):
            measure(p, q)


@pytest.mark.parametrize("count", [2.0**52, 1e16, 1e17, 1e20, 1e300])
def test_negative_binomials_with_counts_at_which_scipy_ends_the_process(count):
    p, q = f.NegativeBinomial(total_count=count, probs=0.3), f.NegativeBinomial(total_count=3.0, probs=0.3)
    for first, second in ((p, q), (q, p), (stats.nbinom(count, 0.7), q), (p, f.Poisson(rate=1.0))):
        with suppress(KullbackError):
            assert measure(first, second).value >= 0
    with suppress(KullbackError):
        assert measure_entropy(p).value >= 0
    assert measure(p, p).value == 0
