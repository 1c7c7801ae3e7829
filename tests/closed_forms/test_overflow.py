"""KL between distributions whose scales or locations are near the ends of the range of floating-point numbers."""

from math import inf, log

import jax
import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from kullback import families as f
from kullback.distributions import kl
from kullback.errors import KullbackError, NoClosedFormError, SupportError
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
    with pytest.raises(SupportError, match="divide the values of both distributions"):
        measure(p, q)


def test_the_ratio_of_scales_at_the_ends_of_floats():
    assert kl(f.HalfCauchy(scale=1e-300), f.HalfCauchy(scale=1e300)) == pytest.approx(600 * log(10) - log(4), rel=1e-14)


def geometric(logit1, logit2):
    with mpmath.workdps(2000):
        log_one, log_none = ([-mpmath.log1p(mpmath.exp(sign * mpf(x))) for x in (logit1, logit2)] for sign in (-1, 1))
        one = mpmath.exp(log_one[0])
        kl = one * (log_one[0] - log_one[1]) + (1 - one) * (log_none[0] - log_none[1])
        return float(kl / one)


RARE = [(-800.0, -700.0), (-700.0, -800.0), (-1e5, -1e5 + 3), (-720.0, -40.0), (-800.0, -100.0), (-300.0, -1.0)]
RARE += [(-800.0, -800.0 + 2.0**-20), (-400.0, 30.0), (-2000.0, -1300.0), (-240.0, -240.5)]


@pytest.mark.parametrize(("logit1", "logit2"), RARE)
def test_trials_until_an_event_of_tiny_probability(logit1, logit2):
    truth = geometric(logit1, logit2)
    assert kl(f.Geometric(logits=logit1), f.Geometric(logits=logit2)) == pytest.approx(truth, rel=1e-12)
    p, q = (f.NegativeBinomial(total_count=2.5, logits=-logit) for logit in (logit1, logit2))
    assert kl(p, q) == pytest.approx(2.5 * truth, rel=1e-12)
    leaf = torch.tensor(logit1, dtype=torch.float64, requires_grad=True)
    kl(f.Geometric(logits=leaf), f.Geometric(logits=torch.tensor(logit2, dtype=torch.float64))).backward()
    assert torch.isfinite(leaf.grad)


def test_trials_until_an_event_of_tiny_probability_in_other_forms():
    with jax.enable_x64(True):
        batch = jax.jit(lambda x, y: kl(f.Geometric(logits=x), f.Geometric(logits=y)))(*jax.numpy.asarray(RARE).T)
    np.testing.assert_allclose(batch, [geometric(*pair) for pair in RARE], rtol=1e-12)
    half = [np.float32(x) for x in (-90.0, -80.0)]
    assert kl(*(f.Geometric(logits=x) for x in half)) == pytest.approx(geometric(-90.0, -80.0), rel=1e-5)
    # For small probabilities, KL is phi(log(probs2/probs1)).
    ratio = 1.0 + 2.0**-20
    got = kl(f.Geometric(probs=1e-300), f.Geometric(probs=1e-300 * ratio))
    assert got == pytest.approx(float(2.0**-40 / 2), rel=1e-5)


LARGE = [
    (f.Binomial(total_count=1e15, probs=0.5), f.Binomial(total_count=2e15, probs=0.5)),
    (f.Hypergeometric(population=3e15, successes=1e15, draws=1e15),) * 2,
    (f.Zipfian(exponent=1.0, total_count=1e15), f.Zipfian(exponent=1.2, total_count=1e15)),
    (f.Binomial(total_count=[10.0, 1e6] * 50, probs=0.5), f.Binomial(total_count=[20.0, 2e6] * 50, probs=0.5)),
]


@pytest.mark.parametrize(("p", "q"), LARGE)
def test_sums_over_very_many_counts_are_refused(p, q):
    with pytest.raises(NoClosedFormError, match=r"at most 1e\+07 terms over the batch, got counts up to"):
        kl(p, q)


def test_measure_bounds_sums_over_very_many_counts():
    p, q = LARGE[0]
    # By Stirling's formula, with k = n/2 and log C(m, k) = m log m - k log k - (m - k) log(m - k) up to small terms.
    truth = 1e15 * (log(2) + (0.5 * log(0.5) + 1.5 * log(1.5) - 2 * log(2) + log(2)))
    estimate = measure(p, q)
    low, high = estimate.interval
    assert low <= truth * (1 + 1e-12)
    assert high >= truth * (1 - 1e-12)
    assert measure(*LARGE[1]).value == 0
    # The sums of k^-s and k^-s log k for 1 <= k <= n, by Hurwitz zeta functions.
    p, q = LARGE[2]
    with mpmath.workdps(40):
        n, s, t = mpf(10) ** 15, mpf(float(p.exponent)), mpf(float(q.exponent))
        harmonic = mpmath.digamma(n + 1) + mpmath.euler  # s is 1
        other = mpmath.zeta(t) - mpmath.zeta(t, n + 1)
        logs = mpmath.stieltjes(1) - mpmath.stieltjes(1, n + 1)
        truth = float((t - s) * logs / harmonic + mpmath.log(other / harmonic))
    estimate = measure(p, q)
    assert estimate.interval[0] <= truth * (1 + 1e-9)
    assert estimate.interval[1] >= truth * (1 - 1e-9)
    assert estimate.value == pytest.approx(truth, rel=1e-6)


UNRESOLVED = [
    (f.Beta(concentration1=1e-10, concentration0=0.5), f.Beta(concentration1=1e308, concentration0=1.7e308)),
    (f.Dirichlet(concentration=[1.0, 2.0]), f.Dirichlet(concentration=[1.5e308, 1.5e308])),
    (f.ChiSquared(df=1e-308), f.ChiSquared(df=1e100)),
    (f.Kumaraswamy(concentration1=1.0, concentration0=1e-308), f.Kumaraswamy(concentration1=1.0, concentration0=1e308)),
    (f.VonMises(loc=0.0, concentration=3.0), f.VonMises(loc=1.0, concentration=1.7e308)),
    (f.VonMises(loc=0.0, concentration=1.7e308), f.VonMises(loc=1.0, concentration=1.7e308)),
    (f.Zipf(exponent=1e300), f.Zipf(exponent=50.0)),
    (f.Zipf(exponent=1.7e308), f.Zipf(exponent=1.7e308)),
    (f.ContinuousBernoulli(logits=1e300), f.Normal(loc=0.0, scale=1.0)),
    (f.ContinuousBernoulli(logits=1e300), f.ContinuousBernoulli(logits=1.0)),
    (f.Beta(concentration1=3.0, concentration0=3.0), f.Normal(loc=0.0, scale=1e300)),
    (f.Pareto(scale=1.0, alpha=3.0), f.LogNormal(loc=0.0, scale=1e300)),
    (f.ChiSquared(df=1.7e308), f.Gumbel(loc=0.0, scale=1e100)),
    *(
        (f.MultivariateNormal(loc=[0.0, 0.0], **a), f.MultivariateNormal(loc=[0.0, 0.0], **b))
        for a, b in (
            ({"covariance_matrix": np.eye(2) * 1e300}, {"covariance_matrix": np.eye(2) * 1e-300}),
            ({"covariance_matrix": np.eye(2) * 1e-300}, {"covariance_matrix": np.eye(2) * 1e300}),
            ({"scale_tril": np.eye(2) * 1e300}, {"scale_tril": np.eye(2) * 1e-300}),
            ({"precision_matrix": np.eye(2) * 1e300}, {"covariance_matrix": np.eye(2) * 1e300}),
        )
    ),
]


@pytest.mark.parametrize(("p", "q"), UNRESOLVED)
def test_extreme_parameters_give_a_number_or_one_clear_error(p, q):
    try:
        value = kl(p, q)
    except KullbackError as error:
        assert "use parameters of moderate size" in str(error) or "positive definite" in str(error)  # noqa: PT017
    else:
        assert value >= 0


@pytest.mark.parametrize("probs", [1.0, 1e-200])
def test_the_gradient_of_geometric_distributions_is_one_value_with_and_without_tracing(probs):
    def value(x):
        return kl(f.Geometric(probs=x), f.Geometric(probs=0.5))

    with jax.enable_x64(True):
        slopes = [float(g(jax.numpy.asarray(probs))) for g in (jax.grad(value), jax.jit(jax.grad(value)))]
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-12)


def test_a_batch_names_the_entry_that_overflows():
    p = f.Beta(concentration1=np.asarray([1.0, 1e-10]), concentration0=0.5)
    with pytest.raises(NoClosedFormError, match=r"the result\[1\] is nan; use parameters of moderate size"):
        kl(p, f.Gamma(concentration=np.asarray([1.0, 1.7e308]), rate=1e-100))


@pytest.mark.parametrize("logits", [40.0, -1e8, 1e10, -1e300, 1.7e308])
def test_continuous_bernoulli_with_large_logits(logits):
    with mpmath.workdps(700):
        u = abs(mpf(logits)) / 2
        truth = u * (mpmath.coth(u) - 1 / u) - (u + mpmath.log1p(-mpmath.exp(-2 * u)) - mpmath.log(2 * u))
    p = f.ContinuousBernoulli(logits=logits)
    assert kl(p, f.Uniform(low=0.0, high=1.0)) == pytest.approx(float(truth), rel=1e-12)
    assert kl(p, f.ContinuousBernoulli(probs=0.5)) == pytest.approx(float(truth), rel=1e-12)
    assert kl(p, f.Uniform(low=0.0, high=2.0)) == pytest.approx(float(truth + mpmath.log(2)), rel=1e-12)


def to_normal(mean, variance, negentropy, loc, scale):
    mean, variance, negentropy, loc, scale = map(mpf, (mean, variance, negentropy, loc, scale))
    return negentropy + (variance / scale**2 - 1 - mpmath.log(variance / scale**2) + ((mean - loc) / scale) ** 2) / 2


@pytest.mark.parametrize("scale", [1e-170, 1e170, 1.7e308])
def test_normals_whose_variance_is_beyond_float64(scale):
    with mpmath.workdps(40):
        log_2_pi_e, trigamma = mpmath.log(2 * mpmath.pi * mpmath.e), mpmath.pi**2 / 6
        # KL to the normal of equal moments is log(2 pi e variance)/2 minus the entropy.
        exponential = to_normal(
            -mpmath.euler, trigamma, mpmath.log(trigamma) / 2 + log_2_pi_e / 2 - 1 - mpmath.euler, 0, scale
        )
        pareto = to_normal(mpf(1) / 3, mpf(1) / 9, log_2_pi_e / 2 - 1, 0, scale)
        uniform = to_normal(mpf(1) / 2, mpf(1) / 12, log_2_pi_e / 2 - mpmath.log(12) / 2, 0, scale)
    pairs = [
        (f.Exponential(rate=1.0), f.LogNormal(loc=0.0, scale=scale), exponential),
        (f.Pareto(scale=1.0, alpha=3.0), f.LogNormal(loc=0.0, scale=scale), pareto),
        (f.Beta(concentration1=1.0, concentration0=1.0), f.Normal(loc=0.0, scale=scale), uniform),
        (f.ContinuousBernoulli(logits=0.0), f.Normal(loc=0.0, scale=scale), uniform),
    ]
    for p, q, truth in pairs:
        assert kl(p, q) == pytest.approx(float(truth) if truth < LARGEST else inf, rel=1e-12)


def test_the_logarithm_of_a_variable_whose_variance_underflows():
    # log x has the standard deviation 1e-200 pi/sqrt(6) and the mean -1e-200 euler_gamma.
    got = kl(f.Weibull(scale=1.0, concentration=1e200), f.LogNormal(loc=0.0, scale=1.0))
    with mpmath.workdps(40):
        truth = mpmath.log(2 * mpmath.pi) / 2 + mpmath.log(mpf(1e200)) - 1 - mpmath.euler
    assert got == pytest.approx(float(truth), rel=1e-12)
