"""Entropies and cross-entropies of distributions against quadrature, SciPy, PyTorch and enumeration."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats as st
import torch

from kullback import cross_entropy, entropy, kl
from kullback import families as f
from kullback.closed_forms.entropies import ENTROPIES
from kullback.errors import KullbackError, NoClosedFormError, SupportError

# Each family with the distribution of SciPy, whose entropy is an independent implementation.
CASES = [
    (f.Bernoulli(probs=0.3), st.bernoulli(0.3)),
    (f.Bernoulli(logits=1.5), st.bernoulli(1 / (1 + np.exp(-1.5)))),
    (f.Beta(concentration1=2.5, concentration0=0.75), st.beta(2.5, 0.75)),
    (f.Cauchy(loc=3.0, scale=2.0), st.cauchy(3.0, 2.0)),
    (f.ChiSquared(df=3.5), st.chi2(3.5)),
    (f.Dirichlet(concentration=[0.5, 2.0, 3.0]), st.dirichlet([0.5, 2.0, 3.0])),
    (f.Exponential(rate=4.0), st.expon(scale=0.25)),
    (f.Gamma(concentration=2.5, rate=3.0), st.gamma(2.5, scale=1 / 3)),
    (f.Geometric(probs=0.25), st.geom(0.25)),
    (f.Geometric(logits=-1.0), st.geom(1 / (1 + np.exp(1.0)))),
    (f.Gumbel(loc=1.0, scale=2.0), st.gumbel_r(1.0, 2.0)),
    (f.HalfCauchy(scale=2.0), st.halfcauchy(scale=2.0)),
    (f.HalfNormal(scale=2.0), st.halfnorm(scale=2.0)),
    (f.InverseGamma(concentration=2.5, rate=3.0), st.invgamma(2.5, scale=3.0)),
    (f.Laplace(loc=1.0, scale=2.0), st.laplace(1.0, 2.0)),
    (f.LogNormal(loc=1.0, scale=0.5), st.lognorm(0.5, scale=np.e)),
    (f.Logistic(loc=1.0, scale=2.0), st.logistic(1.0, 2.0)),
    (
        f.LowRankMultivariateNormal(loc=[0.0, 1.0], cov_factor=[[1.0], [0.5]], cov_diag=[1.0, 0.75]),
        st.multivariate_normal([0.0, 1.0], [[2.0, 0.5], [0.5, 1.0]]),
    ),
    *(
        (
            f.MatrixNormal(loc=np.zeros((3, 2)), row_covariance=np.diag([1.0, 2.0, 3.0]), **{name: matrix}),
            st.matrix_normal(np.zeros((3, 2)), np.diag([1.0, 2.0, 3.0]), [[2.0, 0.5], [0.5, 1.0]]),
        )
        for name, matrix in {
            "column_covariance": [[2.0, 0.5], [0.5, 1.0]],
            "column_scale_tril": np.linalg.cholesky([[2.0, 0.5], [0.5, 1.0]]),
        }.items()
    ),
    (f.Maxwell(scale=2.0), st.maxwell(scale=2.0)),
    (f.Normal(loc=1.0, scale=2.0), st.norm(1.0, 2.0)),
    (f.Pareto(scale=2.0, alpha=3.0), st.pareto(3.0, scale=2.0)),
    (f.Rayleigh(scale=2.0), st.rayleigh(scale=2.0)),
    (f.StudentT(df=4.5, loc=1.0, scale=2.0), st.t(4.5, 1.0, 2.0)),
    (
        f.TruncatedNormal(loc=1.0, scale=2.0, low=-1.0, high=4.0),
        st.truncnorm(-1.0, 1.5, loc=1.0, scale=2.0),
    ),
    (f.Uniform(low=-1.0, high=3.0), st.uniform(-1.0, 4.0)),
    (f.VonMises(loc=0.3, concentration=2.0), st.vonmises(2.0, 0.3)),
    (
        f.VonMisesFisher(mean_direction=[0.0, 0.6, 0.8], concentration=3.0),
        st.vonmises_fisher([0.0, 0.6, 0.8], 3.0),
    ),
    (f.Weibull(scale=2.0, concentration=1.5), st.weibull_min(1.5, scale=2.0)),
    (f.Wishart(df=5.0, covariance_matrix=[[2.0, 0.5], [0.5, 1.0]]), st.wishart(5, [[2.0, 0.5], [0.5, 1.0]])),
    (
        f.Wishart(df=2.5, scale_tril=np.linalg.cholesky([[2.0, 0.5], [0.5, 1.0]])),
        st.wishart(2.5, [[2.0, 0.5], [0.5, 1.0]]),
    ),
    *(
        (
            f.MultivariateNormal(loc=[0.0, 1.0], **{name: matrix}),
            st.multivariate_normal([0.0, 1.0], [[2.0, 0.5], [0.5, 1.0]]),
        )
        for name, matrix in {
            "covariance_matrix": [[2.0, 0.5], [0.5, 1.0]],
            "precision_matrix": np.linalg.inv([[2.0, 0.5], [0.5, 1.0]]),
            "scale_tril": np.linalg.cholesky([[2.0, 0.5], [0.5, 1.0]]),
        }.items()
    ),
]


@pytest.mark.parametrize(("family", "scipy_distribution"), CASES, ids=lambda x: type(x).__name__)
def test_entropies_agree_with_scipy(family, scipy_distribution):
    got = entropy(family)
    assert type(got) is np.float64
    assert got == pytest.approx(float(scipy_distribution.entropy()), rel=1e-9, abs=1e-9)


def test_entropies_without_a_distribution_of_scipy():
    probs = np.asarray([0.2, 0.3, 0.5])
    truth = -(probs * np.log(probs)).sum()
    for family in (f.Categorical, f.OneHotCategorical):
        assert entropy(family(probs=probs)) == pytest.approx(truth, rel=1e-14)
        assert entropy(family(logits=np.log(probs) + 3)) == pytest.approx(truth, rel=1e-14)
    a, b = 2.5, 1.5
    x = (np.arange(2_000_000) + 0.5) / 2_000_000
    density = a * b * x ** (a - 1) * (1 - x**a) ** (b - 1)
    truth = -(density * np.log(density)).mean()
    assert entropy(f.Kumaraswamy(concentration1=a, concentration0=b)) == pytest.approx(truth, abs=1e-6)
    # The volume of the 3 x 3 correlation matrices is pi^2/2, and an inverse Wishart distribution with one row is an
    # inverse gamma distribution; SciPy 1.17 returns another entropy of inverse Wishart distributions.
    assert entropy(f.LKJ(dim=3, concentration=1.0)) == pytest.approx(np.log(np.pi**2 / 2), rel=1e-14)
    row = f.InverseWishart(df=5.0, scale_matrix=[[3.0]])
    assert entropy(row) == pytest.approx(float(st.invgamma(2.5, scale=1.5).entropy()), rel=1e-13)
    covered = {f.Categorical, f.OneHotCategorical, f.Kumaraswamy, f.LKJ, f.InverseWishart}
    assert covered | {type(family) for family, _ in CASES} == set(ENTROPIES)


def _log_beta(a, b):
    return mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)


# Each family as a function of its large parameter, with the published formula for mpmath.
LARGE = {
    "gamma": (
        lambda a: f.Gamma(concentration=a, rate=1.0),
        lambda a: a + mpmath.loggamma(a) + (1 - a) * mpmath.digamma(a),
    ),
    "chi squared": (
        lambda a: f.ChiSquared(df=2 * a),
        lambda a: a + mpmath.log(2) + mpmath.loggamma(a) + (1 - a) * mpmath.digamma(a),
    ),
    "inverse gamma": (
        lambda a: f.InverseGamma(concentration=a, rate=1.0),
        lambda a: a + mpmath.loggamma(a) - (1 + a) * mpmath.digamma(a),
    ),
    "beta": (
        lambda a: f.Beta(concentration1=a, concentration0=3.0),
        lambda a: (
            _log_beta(a, 3) - (a - 1) * mpmath.digamma(a) - 2 * mpmath.digamma(3) + (a + 1) * mpmath.digamma(a + 3)
        ),
    ),
    "Dirichlet": (
        lambda a: f.Dirichlet(concentration=[a, 2 * a]),
        lambda a: (
            _log_beta(a, 2 * a)
            - (a - 1) * mpmath.digamma(a)
            - (2 * a - 1) * mpmath.digamma(2 * a)
            + (3 * a - 2) * mpmath.digamma(3 * a)
        ),
    ),
    "Student": (
        lambda a: f.StudentT(df=2 * a, loc=0.0, scale=1.0),
        lambda a: (
            (a + 0.5) * (mpmath.digamma(a + 0.5) - mpmath.digamma(a))
            + mpmath.log(2 * a) / 2
            + _log_beta(a, mpmath.mpf(0.5))
        ),
    ),
}


@pytest.mark.parametrize("size", [1e-6, 0.3, 7.0, 1e3, 1e8, 1e15])
@pytest.mark.parametrize("name", LARGE)
def test_the_terms_that_grow_with_a_parameter_cancel_exactly(name, size):
    make, formula = LARGE[name]
    with mpmath.workdps(60):
        truth = float(formula(mpmath.mpf(size)))
    assert entropy(make(size)) == pytest.approx(truth, rel=1e-14, abs=2e-14)
    single = torch.tensor(size, dtype=torch.float32)
    with mpmath.workdps(60):
        truth = float(formula(mpmath.mpf(float(single))))
    assert float(entropy(make(single))) == pytest.approx(truth, rel=3e-6, abs=3e-6)


@pytest.mark.parametrize(
    ("family", "truth"),
    [
        (f.Uniform(low=-1e308, high=1e308), math.log(2) + 308 * math.log(10)),
        (f.Cauchy(loc=0.0, scale=1e308), math.log(4 * math.pi) + 308 * math.log(10)),
        (f.HalfCauchy(scale=1e308), math.log(2 * math.pi) + 308 * math.log(10)),
        (f.Laplace(loc=0.0, scale=1e308), 1 + math.log(2) + 308 * math.log(10)),
        (f.Pareto(scale=1e300, alpha=1e-10), 310 * math.log(10) + 1 + 1e10),
    ],
    ids=lambda x: type(x).__name__,
)
def test_entropies_at_the_ends_of_float64(family, truth):
    assert entropy(family) == pytest.approx(truth, rel=1e-14)


def test_factors_of_multivariate_normals_are_checked():
    for factor in ([[1.0, 5.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]):
        with pytest.raises(KullbackError, match="lower triangular"):
            entropy(f.MultivariateNormal(loc=[0.0, 0.0], scale_tril=factor))
    with pytest.raises(KullbackError, match="shape"):
        entropy(f.MultivariateNormal(loc=[0.0], scale_tril=np.eye(2)))


@pytest.mark.parametrize(
    "distribution",
    [
        torch.distributions.Normal(torch.tensor([0.0, 1.0], dtype=torch.float64), 2.0),
        torch.distributions.Gamma(torch.tensor(2.5, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)),
        torch.distributions.Categorical(logits=torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64)),
        torch.distributions.Independent(
            torch.distributions.Laplace(torch.zeros(3).double(), torch.ones(3).double()), 1
        ),
        torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double() * 2),
    ],
    ids=repr,
)
def test_entropies_agree_with_torch(distribution):
    torch.testing.assert_close(entropy(distribution), distribution.entropy(), rtol=1e-9, atol=1e-12)


def test_entropies_are_differentiable_and_keep_the_dtype():
    scale = torch.tensor([0.5, 2.0], requires_grad=True)
    values = entropy(torch.distributions.Normal(0.0, scale))
    values.sum().backward()
    assert values.dtype == torch.float32
    torch.testing.assert_close(scale.grad, 1 / scale.detach())


def test_scipy_distributions_and_cross_entropies():
    p, q = st.norm(0.0, 1.0), st.norm(1.0, 2.0)
    x = np.linspace(-12, 12, 200_001)
    truth = -(p.pdf(x) * q.logpdf(x)).sum() * (x[1] - x[0])
    assert cross_entropy(p, q) == pytest.approx(truth, rel=1e-9)
    assert cross_entropy(p, p) == pytest.approx(p.entropy(), rel=1e-12)
    bounded, line = f.Uniform(low=0.0, high=1.0), f.Normal(loc=0.0, scale=1.0)
    assert cross_entropy(line, bounded) == np.inf
    assert cross_entropy(bounded, line) == pytest.approx(entropy(bounded) + kl(bounded, line))


def test_arrays_are_probabilities_as_before():
    assert entropy([0.5, 0.5]) == np.log(2)
    assert cross_entropy([0.5, 0.5], [0.25, 0.75]) == pytest.approx(-np.log(0.25 * 0.75) / 2)
    assert entropy([[0.5, 0.5]], axis=1).shape == (1,)


def test_other_inputs_are_refused_in_one_line():
    with pytest.raises(NoClosedFormError, match=r"kullback\.measure_entropy"):
        entropy(f.NormalMixture(weights=[0.5, 0.5], locs=[0.0, 1.0], scales=[1.0, 1.0]))
    with pytest.raises(SupportError, match="axis="):
        entropy(f.Normal(loc=0.0, scale=1.0), axis=0)
    with pytest.raises(SupportError, match="infinite"):
        entropy(f.Geometric(probs=0.0))
    with pytest.raises(TypeError, match="expected a distribution"):
        cross_entropy([0.5, 0.5], f.Bernoulli(probs=0.5))
    with pytest.raises(KullbackError, match="class object"):
        entropy(object())
