"""NumPyro: every class as a family, with KL and gradients under jit, vmap and grad."""

import math
from importlib.util import find_spec

import jax
import mpmath
import numpy as np
import numpyro.distributions as d
import pytest
from jax import numpy as jnp
from numpyro.distributions import transforms as t
from scipy import special, stats

from kullback import families as f
from kullback.densities.resolve import as_family
from kullback.distributions import kl
from kullback.errors import MissingDependencyError, NoClosedFormError, ParameterError, ShapeError
from kullback.measure import measure

from ..oracles import families as oracle
from ..oracles.reference_cases import cases, record_class, relative_error, tolerance

FROM_NAMES = {
    "beta": d.Beta,
    "binomial": lambda total_count, probs: d.Binomial(total_count, probs=probs),
    "cauchy": d.Cauchy,
    "dirichlet": d.Dirichlet,
    "exponential": d.Exponential,
    "gamma": d.Gamma,
    "geometric": lambda probs: d.Geometric(probs=probs),
    "gumbel": d.Gumbel,
    "half_normal": d.HalfNormal,
    "inverse_gamma": d.InverseGamma,
    "kumaraswamy": d.Kumaraswamy,
    "laplace": d.Laplace,
    "log_normal": d.LogNormal,
    "logistic": d.Logistic,
    "multivariate_normal": d.MultivariateNormal,
    "negative_binomial": d.NegativeBinomialProbs,
    "normal": d.Normal,
    "pareto": d.Pareto,
    "poisson": d.Poisson,
    "student_t": d.StudentT,
    "uniform": d.Uniform,
    "von_mises": d.VonMises,
    "weibull": d.Weibull,
    "wishart": lambda df, covariance_matrix: d.Wishart(df, scale_matrix=covariance_matrix),
}


@pytest.fixture(autouse=True)
def _in_double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("p_family", "q_family", "p", "q", "truth", "delta"), cases(FROM_NAMES))
def test_reference_values(p_family, q_family, p, q, truth, delta):
    has_form = oracle.has_closed_form(record_class(p_family), record_class(q_family), p, q)
    p, q = (
        FROM_NAMES[family](**{name: jnp.asarray(value) for name, value in side.items()})
        for family, side in ((p_family, p), (q_family, q))
    )
    if not has_form:
        with pytest.raises(NoClosedFormError, match="measure"):
            kl(p, q)
        return
    got = kl(p, q)
    assert isinstance(got, jax.Array)
    assert relative_error(got, truth) < tolerance(delta)


DENSITIES = {
    "BernoulliLogits": lambda: d.Bernoulli(logits=0.7),
    "BetaProportion": lambda: d.BetaProportion(0.3, 5.0),
    "BinomialLogits": lambda: d.Binomial(7, logits=0.7),
    "Chi2": lambda: d.Chi2(3.0),
    "GammaPoisson": lambda: d.GammaPoisson(2.5, 0.7),
    "GeometricLogits": lambda: d.Geometric(logits=0.7),
    "HalfCauchy": lambda: d.HalfCauchy(2.0),
    "InverseGamma": lambda: d.InverseGamma(2.5, 2.0),
    "NegativeBinomial2": lambda: d.NegativeBinomial2(2.5, 0.7),
    "NegativeBinomialLogits": lambda: d.NegativeBinomialLogits(2.5, 0.7),
    "Pareto": lambda: d.Pareto(0.3, 2.5),
    "exp of a normal": lambda: d.TransformedDistribution(d.Normal(0.5, 2.0), t.ExpTransform()),
    "Normal of numbers": lambda: d.Normal(),
    "Weibull": lambda: d.Weibull(2.0, 1.5),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_record_has_the_same_density(name):
    distribution = DENSITIES[name]()
    record = as_family(distribution)
    family = oracle.FAMILIES[type(record)]
    counts = (0, 1) if isinstance(record, f.Bernoulli) else (0, 1, 2, 3)
    for x in counts if family.kind == "counts" else (0.37, 0.61, 0.93):
        with mpmath.workdps(30):
            parameters = {name: mpmath.mpf(float(v)) for name, v in vars(record).items() if v is not None}
            if "logits" in parameters:
                parameters["probs"] = 1 / (1 + mpmath.exp(-parameters.pop("logits")))
            truth = float(family.log_density(mpmath.mpf(x), **parameters))
        assert float(distribution.log_prob(jnp.asarray(x))) == pytest.approx(truth, rel=1e-9)


COV = np.asarray([[2.0, 0.5, 0.1], [0.5, 1.0, -0.2], [0.1, -0.2, 3.0]])
PAIRS = {
    "Normal": lambda x: (d.Normal(x, 1.5), d.Normal(0.3, 2.0)),
    "Gamma": lambda x: (d.Gamma(x, 1.5), d.Gamma(2.0, 0.7)),
    "Dirichlet": lambda x: (d.Dirichlet(jnp.stack([x, 1.5 * x])), d.Dirichlet(jnp.asarray([1.0, 0.7]))),
    "MultivariateNormal": lambda x: (
        d.MultivariateNormal(x * jnp.ones(3), x * COV),
        d.MultivariateNormal(jnp.zeros(3), COV + jnp.eye(3)),
    ),
    "Independent": lambda x: (d.Normal(x * jnp.ones(3), 1.0).to_event(1), d.Normal(jnp.zeros(3), 2.0).to_event(1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_match_numpyro(name):
    def both(x):
        return kl(*PAIRS[name](x)), d.kl_divergence(*PAIRS[name](x))

    (ours, theirs), slopes = jax.jit(lambda x: (both(x), jax.jacfwd(both)(x)))(jnp.asarray(1.3))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-10)
    assert float(slopes[0]) == pytest.approx(float(slopes[1]), rel=1e-8)


@pytest.mark.parametrize("name", ["Normal", "Gamma"])
def test_jit_vmap_and_both_gradient_modes(name):
    def ours(x):
        return kl(*PAIRS[name](x))

    x = jnp.asarray(1.3)
    assert float(jax.jit(ours)(x)) == pytest.approx(float(ours(x)), rel=1e-13)
    backward, forward = jax.jit(jax.grad(ours))(x), jax.jit(jax.jacfwd(ours))(x)
    assert float(forward) == pytest.approx(float(backward), rel=1e-12)
    many = jax.jit(jax.vmap(ours))(jnp.asarray([1.3, 1.7]))
    np.testing.assert_allclose(many, [ours(jnp.asarray(v)) for v in (1.3, 1.7)], rtol=1e-13)


@pytest.mark.slow
def test_distributions_are_accepted_by_jit_and_vmap():
    p, q = d.Normal(jnp.zeros(2), jnp.ones(2)), d.Normal(jnp.ones(2), 2 * jnp.ones(2))
    truth = [math.log(2) - 0.25] * 2
    np.testing.assert_allclose(jax.jit(kl)(p, q), truth, rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(kl)(p, q), truth, rtol=1e-14)
    p, q = d.MultivariateNormal(jnp.zeros(3), COV), d.MultivariateNormal(jnp.zeros(3), scale_tril=jnp.eye(3))
    np.testing.assert_allclose(jax.jit(kl)(p, q), kl(p, q), rtol=1e-13)


def test_masked_logits_have_no_gradient():
    def ours(logits):
        # NumPyro's validation rejects -inf.
        p, q = (d.Categorical(logits=x, validate_args=False) for x in (logits, jnp.asarray([1.0, 1.0, -jnp.inf])))
        return kl(p, q)

    logits = jnp.asarray([0.0, 1.0, -jnp.inf])
    gradient = jax.grad(ours)(logits)
    assert gradient[2] == 0
    assert bool(jnp.all(jnp.isfinite(gradient)))
    one = 1 / (1 + math.exp(-1))
    truth = math.log(2) + one * math.log(one) + (1 - one) * math.log(1 - one)
    assert float(ours(logits)) == pytest.approx(truth, rel=1e-13)


def test_extreme_probabilities():
    half = d.Categorical(probs=jnp.asarray([0.5, 0.5]))
    assert float(kl(half, d.Categorical(probs=jnp.asarray([1e-30, 1.0])))) == pytest.approx(
        (30 * math.log(10) - math.log(4)) / 2, rel=1e-13
    )
    assert float(kl(half, d.Categorical(logits=jnp.asarray([-200.0, 0.0])))) == pytest.approx(
        (200 - math.log(4)) / 2, rel=1e-13
    )


@pytest.mark.slow
def test_dtypes():
    assert kl(d.Normal(0.0, 1.0), d.Normal(1.0, 1.0)).dtype == jnp.float64
    one = jnp.ones((), jnp.float32)
    assert kl(d.Normal(0 * one, one), d.Normal(one, one)).dtype == jnp.float32
    assert kl(d.Normal(0 * one, 1.0), d.Normal(one, 2.0)).dtype == jnp.float32
    large = jax.jit(kl)(*(d.Dirichlet(jnp.full(100, each, jnp.float32)) for each in (1e4, 1.01e4)))
    assert large.dtype == jnp.float32
    assert float(large) == pytest.approx(0.00245870526818, rel=2e-6)


# Shapes.


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (lambda: d.Normal(0.0, 1.0).expand([2, 3]), (2, 3)),
        (lambda: d.Normal(jnp.zeros((3, 1)), 1.0).expand([2, 3, 4]), (2, 3, 4)),
        (lambda: d.Normal(jnp.zeros(3), 1.0).to_event(1).expand([2]), (2,)),
        (lambda: d.Normal(jnp.zeros(3), 1.0).expand([2, 3]).to_event(1), (2,)),
        (lambda: d.MultivariateNormal(jnp.zeros(3), COV).expand([2]), (2,)),
        (lambda: d.MultivariateNormal(0.0, COV), ()),
        (lambda: d.LowRankMultivariateNormal(jnp.zeros(3), COV[:, :2], jnp.ones(3)).expand([2]), (2,)),
        (lambda: d.Dirichlet(jnp.ones(3)).expand([2]), (2,)),
        (lambda: d.Categorical(logits=jnp.zeros(3)).expand([2]), (2,)),
        (lambda: d.Multinomial(3, probs=jnp.ones(2) / 2).expand([4]), (4,)),
        (lambda: d.Wishart(5.0, scale_matrix=COV).expand([2]), (2,)),
        (lambda: d.InverseWishart(5.0, scale_matrix=COV).expand([2]), (2,)),
        (lambda: d.MatrixNormal(jnp.zeros((3, 2)), jnp.eye(3), jnp.eye(2)).expand([2]), (2,)),
        (lambda: d.TransformedDistribution(d.Normal(jnp.zeros(3), 1.0), t.SigmoidTransform()).expand([2, 3]), (2, 3)),
        (lambda: d.LogNormal(0.0, 1.0).expand([2]), (2,)),
        (
            lambda: d.TransformedDistribution(d.Normal(jnp.zeros(3), 1.0).to_event(1), t.SigmoidTransform()).expand(
                [2]
            ),
            (2,),
        ),
        (lambda: d.TransformedDistribution(d.Normal(jnp.zeros(3), 1.0), t.StickBreakingTransform()).expand([2]), (2,)),
    ],
)
def test_batch_shapes(make, batch):
    assert make().batch_shape == batch
    assert jax.eval_shape(lambda: kl(make(), make())).shape == batch


@pytest.mark.slow
def test_matrix_normals():
    row, column = jnp.linalg.cholesky(COV), jnp.asarray([[1.0, 0.0], [0.5, 2.0]])
    p, q = d.MatrixNormal(jnp.ones((3, 2)), row, column), d.MatrixNormal(jnp.zeros((3, 2)), jnp.eye(3), jnp.eye(2))
    kronecker = np.kron(COV, column @ column.T)
    normals = d.MultivariateNormal(jnp.ones(6), kronecker), d.MultivariateNormal(jnp.zeros(6), jnp.eye(6))
    assert float(kl(p, q)) == pytest.approx(float(d.kl_divergence(*normals)), rel=1e-12)


@pytest.mark.slow
def test_wishart_matches_numpyro():
    # The mean of log p - log q over samples of p, within five standard errors.
    for kind in (d.Wishart, d.InverseWishart):
        p, q = kind(6.0, scale_matrix=COV), kind(7.0, scale_matrix=jnp.eye(3))
        x = jax.jit(lambda key, p=p: p.sample(key, (4000,)))(jax.random.PRNGKey(0))
        ratios = np.asarray(jax.jit(lambda x, p=p, q=q: p.log_prob(x) - q.log_prob(x))(x))
        assert float(kl(p, q)) == pytest.approx(ratios.mean(), abs=5 * ratios.std() / math.sqrt(ratios.size))


def test_different_event_shapes_raise():
    p, q = (d.Normal(jnp.zeros(size), 1.0).to_event(1) for size in (1, 3))
    with pytest.raises(ShapeError, match="expected equal event shapes"):
        kl(p, q)


# Transformed distributions.

ONCE = [
    t.ExpTransform(),
    t.SigmoidTransform(),
    t.SoftplusTransform(),
    t.AffineTransform(1.0, -3.0),
    t.ComposeTransform([t.AffineTransform(1.0, 2.0), t.SigmoidTransform()]),
    t.IndependentTransform(t.ExpTransform(), 1),
    t.IdentityTransform(),
    [t.ExpTransform(), t.PowerTransform(2.0), t.AffineTransform(0.0, 2.0)],
    t.OrderedTransform(),
    t.StickBreakingTransform(),
    t.LowerCholeskyAffine(jnp.zeros(2), jnp.eye(2)),
    [t.ExpTransform(), t.ExpTransform().inv],
]


@pytest.mark.parametrize("transform", ONCE, ids=lambda transform: type(transform).__name__)
def test_kl_is_invariant_under_invertible_transforms(transform):
    bases = [d.Normal(jnp.asarray([loc, loc]), scale) for loc, scale in ((0.3, 1.0), (-0.5, 2.0))]
    got = kl(*(d.TransformedDistribution(base, transform) for base in bases))
    parts = d.kl_divergence(*bases)
    np.testing.assert_allclose(got, parts if got.ndim else parts.sum(), rtol=1e-14)


@pytest.mark.parametrize(
    "transform",
    [
        t.AbsTransform(),
        t.PowerTransform(2.0),
        [t.AffineTransform(0.0, 1.0), t.PowerTransform(2.0)],
        t.AffineTransform(0.0, 0.0),
        t.L1BallTransform(),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_non_injective_transforms_raise(transform):
    p, q = (d.Normal(jnp.asarray([loc, 0.0]), 1.0) for loc in (1.0, -1.0))
    with pytest.raises(NoClosedFormError, match=r"invertible transform.*kullback\.measure"):
        kl(d.TransformedDistribution(p, transform), d.TransformedDistribution(q, transform))


def test_folded_normals_raise():
    with pytest.raises(NoClosedFormError, match="invertible"):
        kl(d.FoldedDistribution(d.Normal(1.0, 1.0)), d.FoldedDistribution(d.Normal(-1.0, 1.0)))


def test_different_transforms_raise():
    images = [d.TransformedDistribution(d.Normal(), t.AffineTransform(0.0, scale)) for scale in (2.0, 3.0)]
    with pytest.raises(NoClosedFormError, match="expected equal transforms"):
        kl(*images)


def test_named_and_transformed_distributions_agree():
    image = d.TransformedDistribution(d.Laplace(0.0, 1.5), t.ExpTransform())
    assert kl(d.LogNormal(0.2, 1.0), image) == kl(d.Normal(0.2, 1.0), d.Laplace(0.0, 1.5))
    assert float(kl(d.LogUniform(1.0, 2.0), d.LogUniform(0.5, 3.0))) == pytest.approx(
        math.log(math.log(6) / math.log(2)), rel=1e-13
    )


def test_mixture_of_normals_has_a_record():
    mixture = d.MixtureSameFamily(d.Categorical(logits=jnp.zeros(2)), d.Normal(jnp.asarray([0.0, 20.0]), 2.0))
    record = as_family(mixture)
    assert isinstance(record, f.NormalMixture)
    assert record.weights.tolist() == [0.5, 0.5]
    with pytest.raises(NoClosedFormError, match="MixtureSameFamily"):
        as_family(d.MixtureSameFamily(d.Categorical(logits=jnp.zeros(2)), d.Poisson(jnp.ones(2))))


# Errors, and other libraries.


@pytest.mark.parametrize(
    "make",
    [
        lambda: d.Delta(0.0),
        lambda: d.TruncatedCauchy(0.0, 1.0, low=0.0),
        lambda: d.ZeroInflatedPoisson(0.5, 2.0),
    ],
)
def test_distributions_without_a_record_raise(make):
    with pytest.raises(NoClosedFormError, match=r"kullback\.measure"):
        kl(make(), make())


def test_kl_and_measure_give_one_advice_for_masked_distributions():
    for function in (kl, measure):
        with pytest.raises(NoClosedFormError, match="measure its base_dist"):
            function(d.MaskedDistribution(d.Normal(), True), d.Normal())


def test_invalid_arguments_raise():
    with pytest.raises(ParameterError, match="scale to be > 0"):
        kl(d.Normal(0.0, -1.0, validate_args=False), d.Normal())
    with pytest.raises(TypeError, match="expected a distribution"):
        kl(jnp.ones(2) / 2, jnp.ones(2) / 2)


def test_mixed_libraries():
    got = kl(d.Normal(0.0, 1.0), f.Normal(loc=1.0, scale=1.0))
    assert isinstance(got, jax.Array)
    assert got == 0.5
    assert kl(f.Poisson(rate=2.0), d.Poisson(2.0)) == 0


class Mine(d.Normal):
    """A user-defined class."""


def test_user_defined_classes():
    assert kl(Mine(0.0, 1.0), d.Normal(1.0, 1.0)) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "q", "scipy_p", "scipy_q"),
    [
        (
            d.AsymmetricLaplace(0.0, 1.0, 2.0),
            d.Normal(0.0, 3.0),
            stats.laplace_asymmetric(2.0, scale=1.0),
            stats.norm(0, 3),
        ),
        (
            d.MixtureGeneral(d.Categorical(jnp.asarray([0.5, 0.5])), [d.Normal(0.0, 1.0), d.Laplace(0.0, 1.0)]),
            d.StudentT(3.0, 0.0, 1.0),
            stats.Mixture([stats.Normal(), stats.make_distribution(stats.laplace)()], weights=[0.5, 0.5]),
            stats.t(3),
        ),
    ],
)
def test_distributions_without_a_record_are_measured_by_density(p, q, scipy_p, scipy_q):
    found, other = measure(p, q), measure(scipy_p, scipy_q, method="quadrature")
    assert found.status == "bounded"
    assert abs(found.value - other.value) <= found.error + other.error + 1e-15


@pytest.mark.slow
def test_discrete_distributions_without_a_record():
    inflated = measure(d.ZeroInflatedPoisson(0.5, 2.0), d.Poisson(2.0))
    k = np.arange(60)
    mass, plain = 0.5 * (k == 0) + 0.5 * stats.poisson(2).pmf(k), stats.poisson(2).pmf(k)
    assert inflated.method == "summation"
    assert abs(inflated.value - np.sum(special.rel_entr(mass, plain))) <= inflated.error + 1e-14
    with pytest.raises(NoClosedFormError, match="no closed form, no univariate densities and no samplers"):
        measure(d.ImproperUniform(d.constraints.real, (), ()), d.Normal(0.0, 1.0))
    with pytest.raises(ShapeError, match="batch shape"):
        measure(d.AsymmetricLaplace(jnp.zeros(2), 1.0, 2.0), d.Normal(0.0, 1.0))


@pytest.mark.parametrize("bounds", [{"low": -1.0}, {"high": 2.0}, {"low": -1.0, "high": 2.0}])
def test_truncated_normals_in_batches_with_numbers_as_bounds(bounds):
    """NumPyro stores such bounds as arrays of NumPy beside arrays of JAX."""
    p = d.TruncatedNormal(jnp.zeros(3), jnp.ones(3), **bounds)
    q = d.TruncatedNormal(jnp.zeros(3), 2 * jnp.ones(3), **bounds)
    low, high = bounds.get("low", -np.inf), bounds.get("high", np.inf)
    expected = measure(stats.truncnorm(low, high), stats.truncnorm(low / 2, high / 2, scale=2.0)).value
    np.testing.assert_allclose(kl(p, q), [expected] * 3, rtol=1e-5)


def test_a_package_that_numpyro_lacks_is_an_error_of_the_package():
    truncated = d.TwoSidedTruncatedDistribution(d.StudentT(3.0), -1.0, 2.0)
    if find_spec("tensorflow_probability") is None:
        with pytest.raises(MissingDependencyError, match=r"without another package: .*tensorflow_probability"):
            measure(truncated, d.Normal(0.0, 1.0))
    else:
        assert measure(truncated, d.Normal(0.0, 1.0)).status == "bounded"
