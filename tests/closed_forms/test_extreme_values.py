"""KL of pairs with extreme parameters against values from textbook formulas in 1300 digits.

Each value is E_p[log p(x)] - E_p[log q(x)], computed by mpmath from the entropies and moments of the families, so that
no digit is lost and no term overflows.
"""

from math import inf

import jax
import numpy as np
import pytest
import torch

from kullback import families as f
from kullback.distributions import kl
from kullback.measure import measure

VALUES = [
    (
        f.Beta(concentration1=1e-300, concentration0=1e-10),
        f.Gamma(concentration=1e-300, rate=1.0),
        9.9999999989999995e-281,
    ),
    (
        f.Beta(concentration1=1e-300, concentration0=1.0),
        f.Gamma(concentration=1e-300, rate=1.0),
        4.2278433509846715e-301,
    ),
    (f.Beta(concentration1=1e-20, concentration0=1e3), f.Gamma(concentration=1e-20, rate=1e3), 2.5016670829997223e-27),
    (f.Beta(concentration1=1e-20, concentration0=1.0), f.Exponential(rate=1e-3), 1.0000000000000001e20),
    (f.Beta(concentration1=1e-20, concentration0=1.0), f.Gamma(concentration=1e-20, rate=1e-3), 6.3315396140806038e-20),
    (
        f.Beta(concentration1=1.7e308, concentration0=3.7),
        f.Gamma(concentration=1e100, rate=1e-308),
        9.3845471794157065e102,
    ),
    (
        f.Beta(concentration1=1e10, concentration0=1e-300),
        f.Gamma(concentration=1e4, rate=1e-50),
        9.9999999999999997e299,
    ),
    (
        f.Beta(concentration1=1e300, concentration0=1.7e308),
        f.Beta(concentration1=1.0, concentration0=0.1),
        365.22271950744017,
    ),
    (
        f.Beta(concentration1=1.7e308, concentration0=1.7e308),
        f.Beta(concentration1=2.0, concentration0=3.0),
        354.0787355761412,
    ),
    (
        f.Beta(concentration1=1.7e308, concentration0=1.7e308),
        f.Beta(concentration1=1e308, concentration0=1.1e308),
        2.3818530289501378e305,
    ),
    (
        f.Beta(concentration1=1.0, concentration0=1e300),
        f.Beta(concentration1=1e-50, concentration0=3.7),
        113.55203898480075,
    ),
    (
        f.Beta(concentration1=0.5, concentration0=10.0),
        f.Beta(concentration1=1e-308, concentration0=1e300),
        5.124844523096527e298,
    ),
    (f.Beta(concentration1=1e200, concentration0=1e-6), f.Uniform(low=0.0, high=1e4), 1000455.4890614328),
    (f.Beta(concentration1=1e300, concentration0=3.7), f.ContinuousBernoulli(probs=0.5), 688.7987701278244),
    (f.Beta(concentration1=1e50, concentration0=1.7e308), f.ContinuousBernoulli(probs=0.7), 651.1966560886179),
    (f.Laplace(loc=1e10, scale=1e-300), f.Normal(loc=10.0, scale=2.0), 1.2499999975000001e19),
    (f.Logistic(loc=1e20, scale=1e155), f.Normal(loc=-2.0, scale=1e8), 1.6449340668482265e294),
    (f.Logistic(loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=1e300), 689.69446643141838),
    (f.Uniform(low=0.0, high=0.001), f.Normal(loc=0.0, scale=1.7e308), 717.55353070541505),
    (f.StudentT(df=3.0, loc=0.0, scale=1e-200), f.Normal(loc=0.0, scale=1.0), 459.66247956015052),
    (f.Pareto(scale=1e-3, alpha=1.7e308), f.Normal(loc=-1e-100, scale=1e6), 730.36904126337932),
    (f.Pareto(scale=1e-300, alpha=1e20), f.Normal(loc=0.0, scale=1e-20), 690.69446643141838),
    (f.Pareto(scale=1e-308, alpha=1.7e308), f.Normal(loc=1e50, scale=1e4), 5.0000000000000008e91),
    (f.Pareto(scale=1.0, alpha=1e300), f.Weibull(scale=1e16, concentration=1e-100), 921.03403719761827),
    (f.Pareto(scale=1e6, alpha=10.0), f.Gamma(concentration=1e-10, rate=1e300), 1.1111111111111112e306),
    (f.Uniform(low=1e8, high=100000000.001), f.Pareto(scale=1e8, alpha=1e300), 5.0000101327729453e288),
    (f.Uniform(low=-1e4, high=1e155), f.Gumbel(loc=1e-20, scale=10.0), 1.970071114017047e280),
    (f.Uniform(low=1e-308, high=10.0), f.Gamma(concentration=1e-300, rate=1.0), 694.77552789821371),
    (f.Uniform(low=0.0, high=1e-200), f.Beta(concentration1=1e8, concentration0=1e6), 46146091699.294914),
    (f.Uniform(low=0.0, high=1e-155), f.Beta(concentration1=1e10, concentration0=1e300), 5.0000000000000003e144),
    (f.Uniform(low=0.0, high=1e-200), f.Beta(concentration1=0.1, concentration0=1.7e308), 8.4999999999999995e107),
    (f.Uniform(low=0.0, high=1e-16), f.Beta(concentration1=1.0, concentration0=1e16), 0.49999999999999998),
    (f.ContinuousBernoulli(logits=1e100), f.ContinuousBernoulli(probs=0.7), 228.86459649246284),
    (f.ContinuousBernoulli(logits=1e300), f.Normal(loc=0.0, scale=1.0), 691.19446643141838),
    (f.ContinuousBernoulli(logits=-10.0), f.Normal(loc=0.001, scale=1e-155), 9.8733042073851967e307),
    (f.Normal(loc=2.0, scale=1.0), f.Gumbel(loc=0.0, scale=1.7e308), 709.30789836002357),
    (f.Normal(loc=1e-6, scale=1e-308), f.Gumbel(loc=2.0, scale=1.0), 713.16631981883964),
    (f.Normal(loc=-1e50, scale=1e-308), f.Laplace(loc=0.0, scale=0.1), 1.0e51),
    (f.LogNormal(loc=0.0, scale=1e-300), f.Gamma(concentration=1.0, rate=1.0), 690.35658936500903),
    (f.InverseGaussian(mean=1e155, shape=1e-50), f.InverseGaussian(mean=3.7, shape=5e-51), 1.8261504747991233e103),
    (f.Laplace(loc=-1e6, scale=1e-308), f.Laplace(loc=-3.7, scale=1e-6), 999996300694.38074),
    (f.Laplace(loc=1e10, scale=1e100), f.Gumbel(loc=0.1, scale=1.0000000001e100), 4999997657.6252124),
    (f.Laplace(loc=-1e-100, scale=1e-308), f.Gumbel(loc=-3.7, scale=1e100), 938.76157076101069),
    (f.Gamma(concentration=0.5, rate=1.7e308), f.Weibull(scale=1e20, concentration=1e20), 7.5774204877913058e22),
    (f.Gamma(concentration=1e-155, rate=1e-10), f.LogNormal(loc=0.0, scale=1e6), 9.9999999999999997e297),
    (f.Gamma(concentration=0.1, rate=1e-308), f.Gumbel(loc=-1e300, scale=0.5), 2.0000002000000003e307),
    (f.Gamma(concentration=1e200, rate=1.0), f.Gamma(concentration=1.0, rate=1.0), 9.9999999999999997e199),
    (f.ChiSquared(df=1.7e308), f.Gumbel(loc=0.0, scale=1e100), 1.6999999999999999e208),
    (f.ChiSquared(df=1e-300), f.Normal(loc=0.0, scale=1e-300), 2.9999999999999999e300),
    (f.InverseGamma(concentration=1e-155, rate=2.0), f.LogNormal(loc=-3.7, scale=1e10), 9.9999999999999997e289),
    (f.Zipf(exponent=1e300), f.Zipf(exponent=50.0), 8.881784210930812e-16),
    (f.Zipf(exponent=2.0), f.Zipf(exponent=1.7e308), 9.6893368826070574e307),
    (f.VonMises(loc=0.0, concentration=3.0), f.VonMises(loc=1.0, concentration=1.7e308), 9.5601723252522994e307),
    (f.VonMises(loc=0.0, concentration=1.7e308), f.VonMises(loc=1.0, concentration=1.7e308), 7.8148608002416245e307),
    (f.VonMises(loc=0.0, concentration=1.7e308), f.VonMises(loc=0.0, concentration=3.0), 353.86766460163221),
    (f.VonMises(loc=100.0, concentration=1e155), f.VonMises(loc=-1e300, concentration=1.0), 180.01551120072427),
    (f.VonMises(loc=1e8, concentration=1e8), f.VonMises(loc=0.001, concentration=1e9), 1362453265.3277656),
]


@pytest.mark.parametrize(("p", "q", "truth"), VALUES)
def test_values_of_extreme_parameters(p, q, truth):
    assert kl(p, q) == pytest.approx(truth, rel=1e-12)


def test_an_estimate_of_extreme_parameters_is_exact():
    for p, q, truth in VALUES[:12]:
        estimate = measure(p, q)
        assert (estimate.value, estimate.status) == (pytest.approx(truth, rel=1e-12), "exact")


def test_batches_mix_extreme_and_ordinary_parameters():
    a, b = np.asarray([1.7e308, 2.0]), np.asarray([1.7e308, 3.0])
    got = kl(f.Beta(concentration1=a, concentration0=b), f.Beta(concentration1=2.0, concentration0=3.0))
    np.testing.assert_allclose(got, [354.0787355761412, 0.0], rtol=1e-12)
    scales = np.asarray([1e-300, 1.0])
    got = kl(f.Laplace(loc=0.0, scale=scales), f.Normal(loc=0.0, scale=1.0))
    # The batch is computed by array operations, and the single pair by a compiled kernel.
    single = kl(f.Laplace(loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=1.0))
    np.testing.assert_allclose(got[1], single, rtol=1e-14)
    assert got[0] == pytest.approx(300 * np.log(10) + np.log(2 * np.pi) / 2 - 1 - np.log(2), rel=1e-13)


@pytest.mark.slow
def test_traced_parameters_give_the_same_values_and_finite_gradients():
    with jax.enable_x64(True):
        dirichlets = jax.jit(lambda a, b: kl(f.Dirichlet(concentration=a), f.Dirichlet(concentration=b)))
        got = dirichlets(jax.numpy.ones(20), jax.numpy.full(20, 1.5e307))
        # The sum of b (digamma(20) - digamma(1)) over the categories, minus 20 b log(20).
        harmonic = sum(1 / n for n in range(1, 20))
        assert float(got) == pytest.approx(1.5e308 * (2 * (harmonic - np.log(20))), rel=1e-12)
    leaf = torch.tensor(1e-200, dtype=torch.float64, requires_grad=True)
    kl(f.Laplace(loc=0.0, scale=leaf), f.Normal(loc=0.0, scale=1.0)).backward()
    assert leaf.grad is not None
    assert float(leaf.grad) == pytest.approx(-1e200, rel=1e-12)


MATRICES = [
    ({"covariance_matrix": np.eye(2) * 1e300}, {"covariance_matrix": np.eye(2) * 1e-300}),
    ({"scale_tril": np.eye(2) * 1e300}, {"scale_tril": np.eye(2) * 1e-300}),
    ({"precision_matrix": np.eye(2) * 1e-300}, {"precision_matrix": np.eye(2) * 1e300}),
]


@pytest.mark.parametrize(("p", "q"), MATRICES)
def test_multivariate_normals_whose_kl_is_above_the_largest_float(p, q):
    p, q = (f.MultivariateNormal(loc=[0.0, 0.0], **matrix) for matrix in (p, q))
    assert kl(p, q) == inf
    estimate = measure(p, q)
    assert (estimate.value, estimate.status) == (inf, "overflow")


def test_a_batch_of_multivariate_normals_with_one_that_overflows():
    scales = np.stack([np.eye(2) * 1e300, np.eye(2)])
    p = f.MultivariateNormal(loc=np.zeros((2, 2)), scale_tril=scales)
    q = f.MultivariateNormal(loc=np.zeros((2, 2)), scale_tril=np.stack([np.eye(2) * 1e-300, 2 * np.eye(2)]))
    got = kl(p, q)
    assert got[0] == inf
    assert got[1] == pytest.approx(2 * np.log(2) - 0.75, rel=1e-14)
