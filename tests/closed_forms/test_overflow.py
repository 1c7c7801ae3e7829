"""KL between distributions whose scales or locations are near the ends of the range of floating-point numbers."""

from math import inf, log

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from kullback import families as f
from kullback.distributions import kl
from kullback.errors import SupportError
from kullback.measure import measure

LARGEST = np.finfo(np.float64).max


def normal_normal(loc1, scale1, loc2, scale2):
    with mpmath.workdps(60):
        loc1, scale1, loc2, scale2 = map(mpf, (loc1, scale1, loc2, scale2))
        return float(mpmath.log(scale2 / scale1) + (scale1**2 + (loc1 - loc2) ** 2) / (2 * scale2**2) - mpf(1) / 2)


@pytest.mark.parametrize(
    "parameters",
    [
        (1e308, 1e308, -1e308, 1e308),
        (0.0, 1e-300, 0.0, 1e300),
        (1e308, 1e300, -1e308, 1.5e308),
        (1e-308, 1e-308, -1e-308, 1e-308),
        (0.0, 1e300, 1e300, 1e200),
    ],
)
def test_normals_at_the_ends_of_floats(parameters):
    loc1, scale1, loc2, scale2 = parameters
    p, q = f.Normal(loc=loc1, scale=scale1), f.Normal(loc=loc2, scale=scale2)
    assert kl(p, q) == pytest.approx(normal_normal(*parameters), rel=1e-12)
    estimate = measure(p, q)
    assert estimate.status == "exact"
    assert estimate.value == kl(p, q)


OF_ONE_SCALE = [
    (lambda s: f.Laplace(loc=0.0, scale=s), lambda s: f.Normal(loc=s, scale=s)),
    (lambda s: f.Logistic(loc=s, scale=s), lambda s: f.Normal(loc=0.0, scale=s)),
    (lambda s: f.StudentT(df=3.0, loc=0.0, scale=s), lambda s: f.Normal(loc=0.0, scale=s)),
    (lambda s: f.Pareto(scale=s, alpha=3.0), lambda s: f.Normal(loc=0.0, scale=s)),
    (lambda s: f.Uniform(low=-s, high=s), lambda s: f.Normal(loc=0.0, scale=s)),
    (lambda s: f.Uniform(low=-s, high=s), lambda s: f.Laplace(loc=0.0, scale=s)),
    (lambda s: f.Gumbel(loc=0.0, scale=s), lambda s: f.Normal(loc=0.0, scale=s)),
    (lambda s: f.Gamma(concentration=2.0, rate=1 / s), lambda s: f.Normal(loc=0.0, scale=s)),
    (lambda s: f.Exponential(rate=1 / s), lambda s: f.Gamma(concentration=2.0, rate=1 / s)),
    (lambda s: f.InverseGaussian(mean=s, shape=s), lambda s: f.InverseGaussian(mean=2 * s, shape=s)),
    (lambda s: f.Cauchy(loc=s, scale=s), lambda s: f.Cauchy(loc=-s, scale=s)),
]


@pytest.mark.parametrize("exponent", [-1000, -600, 600, 1000])
@pytest.mark.parametrize("pair", OF_ONE_SCALE)
def test_kl_does_not_change_with_the_unit_of_x(pair, exponent):
    unit = 2.0**exponent
    assert kl(*(make(unit) for make in pair)) == pytest.approx(float(kl(*(make(1.0) for make in pair))), rel=1e-13)


def test_batches_and_float32_at_the_ends_of_floats():
    scales = np.asarray([1e200, 1.0, 1e-200])
    result = kl(f.Laplace(loc=0.0, scale=scales), f.Normal(loc=0.0, scale=scales))
    np.testing.assert_allclose(result, kl(f.Laplace(loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=1.0)), rtol=1e-13)
    leaf = torch.tensor(1e30, requires_grad=True)
    value = kl(f.Laplace(loc=0.0, scale=leaf), f.Normal(loc=0.0, scale=torch.tensor(1e30)))
    value.backward()
    assert float(value.detach()) == pytest.approx(0.2257913526, rel=1e-6)
    assert float(leaf.grad) == pytest.approx(1e-30, rel=1e-5)  # d/ds (-log s + s^2/1e60) at s = 1e30


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (f.Normal(loc=0.0, scale=1e300), f.Normal(loc=0.0, scale=1e-300)),
        (f.Gumbel(loc=0.0, scale=1.0), f.Gumbel(loc=1000.0, scale=1.0)),
        (f.Poisson(rate=1.7e308), f.Poisson(rate=1e-308)),
        (f.LogNormal(loc=0.0, scale=100.0), f.Exponential(rate=1.0)),
    ],
)
def test_a_finite_kl_above_the_largest_float_is_not_exact(p, q):
    estimate = measure(p, q)
    assert (kl(p, q), estimate.value, estimate.status, estimate.interval) == (inf, inf, "overflow", (LARGEST, inf))
    assert "largest number of float64" in estimate.warnings[0]


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (f.StudentT(df=1.5, loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=1.0)),
        (f.Pareto(scale=1.0, alpha=2.0), f.Normal(loc=0.0, scale=1.0)),
        (f.Pareto(scale=1.0, alpha=1.0), f.Exponential(rate=1.0)),
        (f.Laplace(loc=0.0, scale=2.0), f.Gumbel(loc=0.0, scale=1.0)),
        (f.Uniform(low=0.0, high=2.0), f.Uniform(low=0.0, high=1.0)),
        (f.Categorical(probs=[0.5, 0.5]), f.Categorical(probs=[1.0, 0.0])),
        (f.Bernoulli(probs=0.5), f.Bernoulli(probs=1.0)),
        (f.Poisson(rate=1.0), f.Binomial(total_count=5, probs=0.5)),
        (f.Multinomial(total_count=2, probs=[0.5, 0.5]), f.Multinomial(total_count=3, probs=[0.5, 0.5])),
    ],
)
def test_an_infinite_kl_is_exact(p, q):
    estimate = measure(p, q)
    assert (kl(p, q), estimate.value, estimate.status) == (inf, inf, "exact")


def test_an_impossible_success_with_a_large_logit():
    assert kl(f.Poisson(rate=0.0), f.Bernoulli(logits=800.0)) == 800.0


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (f.Normal(loc=1e308, scale=1e308), f.Cauchy(loc=1e308, scale=1e308)),
        (f.StudentT(df=3.0, loc=1e308, scale=1e308), f.StudentT(df=4.0, loc=1e308, scale=1e308)),
        (f.Logistic(loc=1e308, scale=1e308), f.Laplace(loc=1e308, scale=1e308)),
    ],
)
def test_an_integral_that_overflows_is_one_clear_error(p, q):
    with pytest.raises(SupportError, match="rescale both distributions"):
        measure(p, q)


def test_the_ratio_of_scales_at_the_ends_of_floats():
    assert kl(f.HalfCauchy(scale=1e-300), f.HalfCauchy(scale=1e300)) == pytest.approx(600 * log(10) - log(4), rel=1e-14)
