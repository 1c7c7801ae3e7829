"""Entropies and cross-entropies of every distribution that `measure` takes, against SciPy, PyTorch, mpmath and sums."""

import math
from math import inf

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributions as td
from scipy import special, stats

from kullback import families as f
from kullback import measure, measure_cross_entropy, measure_entropy
from kullback.densities.gaussian_mixtures import components
from kullback.errors import DistributionTypeError, KullbackError, NoClosedFormError, ShapeError, SupportError

MATRIX = [[2.0, 0.5], [0.5, 1.0]]
# Each distribution with its entropy by an independent implementation.
BOUNDED = {
    "inverse Gaussian": (f.InverseGaussian(mean=2.0, shape=3.0), stats.invgauss(2 / 3, scale=3.0).entropy()),
    "F": (f.F(df1=3.0, df2=5.0), stats.f(3.0, 5.0).entropy()),
    "binomial": (f.Binomial(total_count=40, probs=0.3), stats.binom(40, 0.3).entropy()),
    "negative binomial": (f.NegativeBinomial(total_count=3.0, probs=0.3), stats.nbinom(3.0, 0.7).entropy()),
    "hypergeometric": (stats.hypergeom(20, 7, 12), stats.hypergeom(20, 7, 12).entropy()),
    "Poisson": (stats.poisson(4.0), stats.poisson(4.0).entropy()),
    "skew normal": (stats.skewnorm(3.0), stats.skewnorm(3.0).entropy()),
    "generalised normal": (stats.gennorm(1.5), stats.gennorm(1.5).entropy()),
    "triangular": (stats.triang(0.3), stats.triang(0.3).entropy()),
    "continuous Bernoulli": (
        td.ContinuousBernoulli(torch.tensor(0.3, dtype=torch.float64)),
        float(td.ContinuousBernoulli(torch.tensor(0.3, dtype=torch.float64)).entropy()),
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_univariate_entropies_have_a_bound(name):
    p, truth = BOUNDED[name]
    estimate = measure_entropy(p)
    assert estimate.value == pytest.approx(float(truth), rel=1e-7, abs=1e-8)
    assert (estimate.status, estimate.error < 1e-8) == ("bounded", True)
    assert estimate.interval[0] <= estimate.value <= estimate.interval[1]


@pytest.mark.parametrize("exponent", [1.01, 1.5, 4.0])
def test_sums_with_heavy_tails_are_not_cut(exponent):
    with mpmath.workdps(30):
        zeta = mpmath.zeta(exponent)
        truth = mpmath.log(zeta) - exponent * mpmath.zeta(exponent, derivative=1) / zeta
    estimate = measure_entropy(f.Zipf(exponent=exponent))
    assert abs(estimate.value - float(truth)) <= estimate.error + 1e-14 * float(truth)
    assert estimate.status == "bounded"


EXACT = {
    "normal": (f.Normal(loc=0.0, scale=2.0), stats.norm(0.0, 2.0).entropy()),
    "vector": (
        f.MultivariateNormal(loc=[0.0, 1.0], covariance_matrix=MATRIX),
        stats.multivariate_normal([0, 1], MATRIX).entropy(),
    ),
    "low rank": (
        f.LowRankMultivariateNormal(loc=[0.0, 1.0], cov_factor=[[1.0], [0.5]], cov_diag=[1.0, 0.75]),
        stats.multivariate_normal([0, 1], MATRIX).entropy(),
    ),
    "matrix": (
        f.MatrixNormal(loc=np.zeros((3, 2)), row_covariance=np.diag([1.0, 2.0, 3.0]), column_covariance=MATRIX),
        stats.matrix_normal(np.zeros((3, 2)), np.diag([1.0, 2.0, 3.0]), MATRIX).entropy(),
    ),
    "Dirichlet": (stats.dirichlet([0.5, 2.0]), stats.dirichlet([0.5, 2.0]).entropy()),
    "von Mises": (f.VonMises(loc=0.3, concentration=2.0), stats.vonmises(2.0, 0.3).entropy()),
    "Wishart of families": (f.Wishart(df=5.0, covariance_matrix=MATRIX), stats.wishart(5, MATRIX).entropy()),
    # log Gamma_2(5/2) + 5 + 3/2 log|V/2| - 4 (digamma(5/2) + digamma(2)); SciPy 1.17 returns another value.
    "inverse Wishart": (
        f.InverseWishart(df=5.0, scale_matrix=MATRIX),
        special.multigammaln(2.5, 2) + 5 + 1.5 * math.log(1.75 / 4) - 4 * special.digamma([2.5, 2.0]).sum(),
    ),
    "Wishart": (stats.wishart(5, MATRIX), stats.wishart(5, MATRIX).entropy()),
    "sphere of families": (
        f.VonMisesFisher(mean_direction=[1.0, 0.0, 0.0], concentration=3.0),
        stats.vonmises_fisher([1.0, 0.0, 0.0], 3.0).entropy(),
    ),
    "sphere": (stats.vonmises_fisher([1.0, 0.0, 0.0], 3.0), stats.vonmises_fisher([1.0, 0.0, 0.0], 3.0).entropy()),
    # The volume of the 3 x 3 correlation matrices is pi^2/2.
    "correlation matrices": (f.LKJ(dim=3, concentration=1.0), math.log(math.pi**2 / 2)),
    "one correlation": (f.LKJ(dim=2, concentration=2.5), stats.beta(2.5, 2.5).entropy() + math.log(2)),
    "product": (
        td.Independent(td.Laplace(torch.zeros(3).double(), torch.tensor([1.0, 2.0, 3.0]).double()), 1),
        3 + math.log(48),
    ),
    "list": ([0.5, 0.25, 0.25], 1.5 * math.log(2)),
    "array": (np.asarray([0.5, 0.25, 0.25]), 1.5 * math.log(2)),
    "Series": (pd.Series([0.5, 0.25, 0.25], index=list("abc")), 1.5 * math.log(2)),
}


@pytest.mark.parametrize("name", EXACT)
def test_closed_forms_are_exact(name):
    p, truth = EXACT[name]
    estimate = measure_entropy(p)
    assert estimate.value == pytest.approx(float(truth), rel=1e-12)
    assert (estimate.status, estimate.error) == ("exact", 0.0)


def test_the_entropy_of_correlation_matrices_equals_an_integral():
    """Of 3 x 3 matrices with the density |R|^1.5 / Z, by uniform draws in the cube of the correlations."""
    a, b, c = np.random.default_rng(0).uniform(-1, 1, (3, 400_000))
    determinant = np.maximum(1 + 2 * a * b * c - a**2 - b**2 - c**2, 1e-300)
    weights = determinant**1.5
    truth = math.log(8 * weights.mean()) - 1.5 * (weights * np.log(determinant)).sum() / weights.sum()
    assert measure_entropy(f.LKJ(dim=3, concentration=2.5)).value == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize("df", [2.5, 40.0, 1e8])
@pytest.mark.parametrize("inverse", [False, True])
def test_entropies_of_wishart_distributions_keep_their_digits(df, inverse):
    with mpmath.workdps(40):
        half, log_v = mpmath.mpf(df) / 2, mpmath.log(mpmath.mpf("1.75"))
        log_v = -log_v if inverse else log_v
        log_gamma = mpmath.log(mpmath.pi) / 2 + mpmath.loggamma(half) + mpmath.loggamma(half - 0.5)
        slope = mpmath.digamma(half) + mpmath.digamma(half - 0.5)
        truth = 1.5 * log_v + 3 * mpmath.log(2) + log_gamma - (half - 1.5) * slope + 2 * half
        truth -= 3 * (slope + 2 * mpmath.log(2) + log_v) if inverse else 0
    p = f.InverseWishart(df=df, scale_matrix=MATRIX) if inverse else f.Wishart(df=df, covariance_matrix=MATRIX)
    assert measure_entropy(p).value == pytest.approx(float(truth), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("concentration", [0.0, 1e-8, 3.0, 1e6])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_entropies_on_spheres_equal_those_by_bessel_functions(n, concentration):
    with mpmath.workdps(40):
        k, order = mpmath.mpf(concentration) or mpmath.mpf("1e-15"), mpmath.mpf(n) / 2 - 1
        bessel = mpmath.besseli(order, k)
        log_normaliser = n / mpmath.mpf(2) * mpmath.log(2 * mpmath.pi) + mpmath.log(bessel) - order * mpmath.log(k)
        truth = float(log_normaliser - k * mpmath.besseli(order + 1, k) / bessel)
    p = f.VonMisesFisher(mean_direction=[1.0] + [0.0] * (n - 1), concentration=concentration)
    assert measure_entropy(p).value == pytest.approx(truth, rel=1e-12, abs=1e-12)
    if n == 2:
        assert measure_entropy(f.VonMises(loc=1.0, concentration=concentration)).value == pytest.approx(
            truth, rel=1e-12
        )


def test_products_of_univariate_distributions_are_sums():
    base = f.InverseGaussian(mean=[1.0, 2.0], shape=[2.0, 5.0])
    truth = sum(float(stats.invgauss(m / s, scale=s).entropy()) for m, s in ((1.0, 2.0), (2.0, 5.0)))
    estimate = measure_entropy(f.Independent(base=base, event_dims=1))
    assert estimate.value == pytest.approx(truth, abs=1e-10)
    assert estimate.status == "bounded"


DRAWS = {
    "multinomial of families": (
        f.Multinomial(total_count=5, logits=np.log([0.4, 0.6, 1.0])),
        stats.multinomial(5, [0.2, 0.3, 0.5]).entropy(),
    ),
    "multinomial": (stats.multinomial(5, [0.2, 0.3, 0.5]), stats.multinomial(5, [0.2, 0.3, 0.5]).entropy()),
    "Student": (stats.multivariate_t([0.0, 0.0], MATRIX, 5), stats.multivariate_t([0.0, 0.0], MATRIX, 5).entropy()),
    "mixture": (components([0.5, 0.5], [[0.0, 0.0], [1e3, 0.0]], [np.eye(2)] * 2), math.log(2 * math.pi * math.e * 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_vectors_without_a_closed_form_are_estimated(name):
    p, truth = DRAWS[name]
    estimate = measure_entropy(p, seed=3)
    assert estimate.status == "estimated"
    assert abs(estimate.value - float(truth)) < 4 * estimate.std_error
    assert measure_entropy(p, seed=3) == estimate
    same = measure_cross_entropy(p, p, seed=3)
    assert abs(same.value - float(truth)) < 4 * estimate.std_error


def test_draws_of_an_infinite_cross_entropy_are_unreliable():
    """-log q is quadratic in x, whose variance under p is infinite."""
    p, q = stats.multivariate_t([0.0, 0.0], MATRIX, 1.0), stats.multivariate_normal([0.0, 0.0], MATRIX)
    assert measure_cross_entropy(p, q).status == "unreliable"
    bounded = stats.multinomial(5, [0.2, 0.8]), stats.multinomial(5, [0.3, 0.7])
    estimate = measure_cross_entropy(*bounded)
    outcomes = np.asarray([[k, 5 - k] for k in range(6)])
    truth = -(bounded[0].pmf(outcomes) * bounded[1].logpmf(outcomes)).sum()
    assert estimate.status == "estimated"
    assert abs(estimate.value - truth) < 4 * estimate.std_error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "q"),
    [
        (stats.dirichlet([0.5, 2.0, 3.0]), stats.dirichlet([1.0, 2.0, 3.0])),
        (stats.invwishart(5, MATRIX), stats.invwishart(6, MATRIX)),
        (stats.wishart(5, 2.0), stats.wishart(6, 2.0)),
        (stats.wishart(5, MATRIX), stats.wishart(6, MATRIX)),
    ],
    ids=lambda p: type(p).__name__,
)
def test_vectors_of_scipy_are_measured_from_draws(p, q):
    estimate = measure(p, q, method="Monte Carlo")
    assert abs(estimate.value - measure(p, q).value) < 4 * estimate.std_error


def test_intervals_of_estimates_cover_the_entropy():
    p = stats.multivariate_t([0.0, 0.0], MATRIX, 5)
    truth = float(p.entropy())
    covered = 0
    for seed in range(100):
        low, high = measure_entropy(p, draws=400, seed=seed, confidence=0.9).interval
        covered += low <= truth <= high
    assert 81 <= covered <= 98


def test_point_masses_have_no_entropy():
    from numpyro.distributions import Delta

    assert measure_entropy(Delta(2.0)).value == 0
    assert measure_cross_entropy(Delta(2.0), stats.poisson(3.0)).value == pytest.approx(-stats.poisson(3.0).logpmf(2))


PAIRS = {
    "closed form": (stats.norm(0.0, 1.0), stats.norm(1.0, 2.0)),
    "quadrature": (stats.skewnorm(2.0), stats.t(5.0)),
    "summation": (stats.poisson(4.0), stats.nbinom(3.0, 0.4)),
    "narrow": (stats.norm(0.0, 1e-12), stats.cauchy()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_cross_entropies_against_expectations(name):
    p, q = PAIRS[name]
    if hasattr(p, "logpmf"):
        k = np.arange(400)
        truth = -(p.pmf(k) * q.logpmf(k)).sum()
    else:
        low, high = p.ppf([1e-17, 0.5]).tolist()[0], p.isf(1e-17)
        x = np.linspace(low, high, 400_001)
        truth = -(p.pdf(x) * q.logpdf(x)).sum() * (x[1] - x[0])
    estimate = measure_cross_entropy(p, q)
    assert estimate.value == pytest.approx(truth, rel=1e-9)
    assert estimate.status in ("exact", "bounded")
    assert estimate.interval[0] <= estimate.value <= estimate.interval[1]


def test_cross_entropies_of_probabilities_are_exact():
    p, q = [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]
    estimate = measure_cross_entropy(p, q)
    assert (estimate.value, estimate.status) == (pytest.approx(math.log(4)), "exact")
    assert measure_cross_entropy(q, p).value == inf


def test_a_cross_entropy_is_infinite_where_the_kl_is():
    estimate = measure_cross_entropy(stats.norm(), stats.uniform())
    assert (estimate.value, estimate.status) == (inf, "exact")
    assert "q is 0 where p is not" in estimate.warnings[0]
    assert measure_cross_entropy(stats.cauchy(), stats.norm()).value == inf


def test_cross_entropy_with_an_entropy_in_closed_form_and_a_divergence_by_draws():
    torch.manual_seed(0)
    p = td.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    q = components([0.5, 0.5], [[0.0, 0.0], [0.25, 0.0]], [np.eye(2)] * 2)
    estimate = measure_cross_entropy(p, q)
    x = np.random.default_rng(1).normal(size=(400_000, 2))
    logs = np.logaddexp(-(x**2).sum(1) / 2, -((x - [0.25, 0.0]) ** 2).sum(1) / 2) - math.log(4 * math.pi)
    assert estimate.status == "estimated"
    assert abs(estimate.value + logs.mean()) < 5 * (estimate.std_error + logs.std() / np.sqrt(400_000))


@pytest.mark.parametrize("bad", [None, "normal(0, 1)", 3, f.Normal, object(), {}])
def test_other_objects_are_refused_in_one_line(bad):
    for call in (lambda: measure_entropy(bad), lambda: measure_cross_entropy(bad, stats.norm())):
        with pytest.raises(DistributionTypeError, match="expected a distribution, got") as found:
            call()
        assert "\n" not in str(found.value)


def test_batches_and_invalid_options_are_refused():
    with pytest.raises(ShapeError, match="batch of shape"):
        measure_entropy(f.Normal(loc=[0.0, 1.0], scale=1.0))
    with pytest.raises(ShapeError, match="kl_probs"):
        measure_entropy([[0.5, 0.5]])
    with pytest.raises(SupportError, match="error > 0"):
        measure_entropy(stats.norm(), error=0.0)
    with pytest.raises(SupportError, match="draws"):
        measure_entropy(stats.multivariate_t([0.0, 0.0], MATRIX, 5), draws=1)
    with pytest.raises(NoClosedFormError, match="no sampler"):
        measure_entropy(type("Density", (), {"log_prob": lambda self, x: x})())
    with pytest.raises(KullbackError):
        measure_cross_entropy([0.5, 0.5], stats.norm())
