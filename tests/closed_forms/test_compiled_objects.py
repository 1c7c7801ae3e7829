"""Distributions of SciPy, NumPyro and JAX, and parameters that broadcast, in the compiled closed forms."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import numpyro.distributions as numpyro
import pytest
import torch
from scipy import stats

from kullback import families as f
from kullback import kl
from kullback.closed_forms import compiled_forms
from kullback.closed_forms.compiled_forms import compiled_kl
from kullback.closed_forms.registry import FORMS
from kullback.compiled import kernels
from kullback.densities import from_numpyro, from_scipy, from_torch
from kullback.densities.resolve import as_family
from kullback.errors import ParameterError, ShapeError

pytestmark = pytest.mark.skipif(kernels is None, reason="the package was installed without a compiler")
# The adapters add the classes of their libraries when they are imported, which `kl` does at its first call.
ADAPTERS = (from_numpyro, from_scipy, from_torch)
d = torch.distributions

SCIPY = {
    "norm": (stats.norm(0.5, 2.0), stats.norm(loc=1, scale=3)),
    "norm of arrays": (stats.norm(np.zeros(3), 2.0), stats.norm([1.0, 2.0, 3.0], np.ones(3))),
    "cauchy": (stats.cauchy(0.5, 2.0), stats.cauchy(1.0)),
    "gumbel": (stats.gumbel_r(0.5, 2.0), stats.gumbel_r(1.0, 1.5)),
    "laplace": (stats.laplace(0.5, 2.0), stats.laplace(1.0, 1.5)),
    "expon": (stats.expon(scale=2.0), stats.expon()),
    "gamma": (stats.gamma(2.0, scale=2.0), stats.gamma(3)),
    "invgamma": (stats.invgamma(2.0, scale=2.0), stats.invgamma(3.0)),
    "beta": (stats.beta(2.0, 0.5), stats.beta(1.0, 3.0)),
    "lognorm": (stats.lognorm(0.5, scale=2.0), stats.lognorm(1.0)),
    "halfnorm": (stats.halfnorm(scale=0.5), stats.halfnorm()),
    "pareto": (stats.pareto(2.0, scale=2.0), stats.pareto(3.0)),
    "uniform": (stats.uniform(0.5, 1.0), stats.uniform(0.0, 2.0)),
    "poisson": (stats.poisson(2.0), stats.poisson(3)),
    "binom": (stats.binom(10, 0.2), stats.binom(10, 0.5)),
    "bernoulli": (stats.bernoulli(0.2), stats.bernoulli(0.5)),
    "Normal": (stats.Normal(mu=0.5, sigma=2.0), stats.Normal(mu=1.0, sigma=3.0)),
    "dirichlet": (stats.dirichlet([1.0, 2.0]), stats.dirichlet([3.0, 0.5])),
    "multivariate_normal": (stats.multivariate_normal([0, 1], np.eye(2)), stats.multivariate_normal([0, 0], 2.0)),
}


def general(p, q):
    """The closed form of the families that the distributions equal, by array operations of NumPy in float64."""
    families = [as_family(side) for side in (p, q)]
    for side in families:
        for name, value in vars(side).items():
            object.__setattr__(side, name, None if value is None else np.asarray(value, float))
    return FORMS[type(families[0]), type(families[1])](*families)


@pytest.mark.parametrize("name", SCIPY)
def test_objects_of_scipy(name):
    p, q = SCIPY[name]
    value = compiled_kl(p, q)
    assert isinstance(value, np.float64 if np.ndim(value) == 0 else np.ndarray)
    np.testing.assert_allclose(value, general(p, q), rtol=1e-13)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (stats.gamma(2.0, loc=1.0), stats.gamma(2.0)),
        (stats.norm(), stats.laplace()),
        (stats.geom(0.5), stats.geom(0.25)),
        (stats.beta(1.0, 1.0, scale=2.0), stats.beta(1.0, 1.0)),
        (stats.norm(0, -1), stats.norm()),
        (stats.expon(scale=0.0), stats.expon()),
        (stats.binom(10, 0.5), stats.binom(11, 0.5)),
    ],
)
def test_objects_of_scipy_without_a_compiled_form(p, q):
    assert compiled_kl(p, q) is None


def test_invalid_objects_of_scipy():
    for bad in (stats.norm(0, -1), stats.norm(math.nan, 1.0)):
        with pytest.raises(ParameterError):
            kl(bad, stats.norm())
    with pytest.raises(ParameterError):
        kl(stats.expon(scale=-1.0), stats.expon())


def x(*values):
    return jnp.asarray(values, dtype=jnp.float32)


NUMPYRO = {
    "Normal": lambda: (numpyro.Normal(x(0, 1), x(1, 2)), numpyro.Normal(0.5, 2.0)),
    "numbers": lambda: (numpyro.Normal(0.0, 1.0), numpyro.Normal(0.5, 2)),
    "LogNormal": lambda: (numpyro.LogNormal(x(0, 1), x(1, 2)), numpyro.LogNormal(0.5, 2.0)),
    "Laplace": lambda: (numpyro.Laplace(x(0, 1), x(1, 2)), numpyro.Laplace(0.5, 2.0)),
    "Cauchy": lambda: (numpyro.Cauchy(x(0, 1), x(1, 2)), numpyro.Cauchy(0.5, 2.0)),
    "Gumbel": lambda: (numpyro.Gumbel(x(0, 1), x(1, 2)), numpyro.Gumbel(0.5, 2.0)),
    "Uniform": lambda: (numpyro.Uniform(x(0, 1), x(1, 2)), numpyro.Uniform(-1.0, 3.0)),
    "Exponential": lambda: (numpyro.Exponential(x(1, 2)), numpyro.Exponential(x(3, 1))),
    "Poisson": lambda: (numpyro.Poisson(x(1, 2)), numpyro.Poisson(x(3, 1))),
    "HalfNormal": lambda: (numpyro.HalfNormal(x(1, 2)), numpyro.HalfNormal(x(3, 1))),
    "Pareto": lambda: (numpyro.Pareto(x(1, 2), x(1, 2)), numpyro.Pareto(x(1, 1), x(3, 1))),
    "Gamma": lambda: (numpyro.Gamma(x(1, 2), x(1, 2)), numpyro.Gamma(x(1, 1), x(3, 1))),
    "InverseGamma": lambda: (numpyro.InverseGamma(x(1, 2), x(1, 2)), numpyro.InverseGamma(x(1, 1), x(3, 1))),
    "Chi2": lambda: (numpyro.Chi2(x(1, 2)), numpyro.Chi2(x(3, 1))),
    "LowRankMultivariateNormal": lambda: (
        numpyro.LowRankMultivariateNormal(x(0, 1), x(1, 2)[:, None], x(1, 2)),
        numpyro.LowRankMultivariateNormal(x(1, 1), x(2, 1)[:, None], x(2, 1)),
    ),
    "Beta": lambda: (numpyro.Beta(x(1, 2), x(1, 2)), numpyro.Beta(x(1, 1), x(3, 1))),
    "Dirichlet": lambda: (numpyro.Dirichlet(x(1, 2, 3)), numpyro.Dirichlet(x(1, 1, 1))),
    "Bernoulli": lambda: (numpyro.BernoulliProbs(x(0.2, 0.5)), numpyro.BernoulliProbs(x(0.3, 0.1))),
    "Bernoulli by logits": lambda: (numpyro.BernoulliLogits(x(0.2, 0.5)), numpyro.BernoulliLogits(x(0.3, 0.1))),
    "Geometric": lambda: (numpyro.GeometricProbs(x(0.2, 0.5)), numpyro.GeometricProbs(x(0.3, 0.1))),
    "Categorical": lambda: (numpyro.CategoricalProbs(x(0.25, 0.75)), numpyro.CategoricalProbs(x(0.5, 0.5))),
    "Categorical by logits": lambda: (numpyro.CategoricalLogits(x(1, 2)), numpyro.CategoricalLogits(x(0.5, 0.5))),
    "Independent": lambda: (numpyro.Normal(x(0, 1), x(1, 2)).to_event(1), numpyro.Normal(x(1, 1), x(1, 1)).to_event(1)),
    "MultivariateNormal": lambda: (
        numpyro.MultivariateNormal(x(0, 1), scale_tril=jnp.eye(2)),
        numpyro.MultivariateNormal(x(0, 2), scale_tril=2 * jnp.eye(2)),
    ),
}


@pytest.mark.parametrize("name", NUMPYRO)
def test_objects_of_numpyro(name):
    p, q = NUMPYRO[name]()
    value = compiled_kl(p, q)
    assert isinstance(value, jax.Array)
    assert value.dtype == jnp.float32
    expected = general(p.base_dist, q.base_dist).sum(-1) if name == "Independent" else general(p, q)
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=3e-6)


def test_traced_values_use_operations_of_jax():
    def value(loc):
        pair = numpyro.Normal(loc, 1.0), numpyro.Normal(0.0, 1.0)
        assert compiled_kl(*pair) is None
        return kl(*pair)

    assert float(jax.jit(jax.grad(value))(1.5)) == 1.5


def test_a_subclass_is_not_read_by_the_attributes_of_its_base():
    class Shifted(numpyro.Normal):
        pass

    class ShiftedScipy(type(stats.norm)):
        pass

    assert compiled_kl(Shifted(0.0, 1.0), Shifted(1.0, 1.0)) is None
    made = ShiftedScipy(name="norm")
    assert compiled_kl(made(0.0, 1.0), made(1.0, 1.0)) is None


def test_records_of_jax_arrays():
    p, q = f.Gamma(concentration=x(1, 2), rate=1.0), f.Gamma(concentration=x(2, 2), rate=x(1, 3))
    value = compiled_kl(p, q)
    assert isinstance(value, jax.Array)
    np.testing.assert_allclose(value, general(p, q), rtol=3e-6)


def test_parameters_that_broadcast_and_their_gradients():
    values = [torch.randn(3, 1), torch.rand(4) + 0.5, torch.randn(2, 1, 1), torch.rand(()) + 0.5]
    tensors = [value.double().requires_grad_() for value in values]
    pair = f.Gumbel(loc=tensors[0], scale=tensors[1]), f.Gumbel(loc=tensors[2], scale=tensors[3])
    results = [compiled_kl(*pair), FORMS[f.Gumbel, f.Gumbel](*pair)]
    assert results[0].shape == (2, 3, 4)
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)
    slopes = [torch.autograd.grad(result.sum(), tensors) for result in results]
    for slope, other in zip(*slopes, strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("distance", [708.9, 709.0, 709.5, 709.78])
def test_a_gumbel_kl_near_the_largest_number(distance):
    loc = torch.tensor([-distance, 0.0], dtype=torch.float64, requires_grad=True)
    one = torch.ones((), dtype=torch.float64)
    value = compiled_kl(f.Gumbel(loc=loc, scale=one), f.Gumbel(loc=0 * one, scale=one))
    with mpmath.workdps(30):
        exact = float(mpmath.exp(mpmath.mpf(distance)) - distance - 1)
    np.testing.assert_allclose(value.detach().numpy(), [exact, 0.0], rtol=3e-13)
    assert math.isfinite(exact)


def test_a_gumbel_kl_above_the_largest_number_is_inf():
    locs, scales = np.array([0.0, -90.0], np.float32), np.ones(2, np.float32)
    p, q = f.Gumbel(loc=locs, scale=scales), f.Gumbel(loc=0 * locs, scale=scales)
    value = compiled_kl(p, q)
    assert value.tolist() == [0.0, math.inf]
    assert np.array_equal(value, FORMS[f.Gumbel, f.Gumbel](p, q))
    wide = [f.Gumbel(loc=loc, scale=1.0) for loc in (-800.0, 0.0)]
    assert compiled_kl(*wide) == math.inf
    loc = torch.tensor(-800.0, dtype=torch.double, requires_grad=True)
    kl(d.Gumbel(loc, 1.0 + 0 * loc.detach()), d.Gumbel(0 * loc.detach(), 1.0 + 0 * loc.detach())).backward()
    assert float(loc.grad) == -math.inf


@pytest.mark.parametrize("count", [2.5, -1.0, 3.0])
def test_counts_that_differ_or_are_not_counts(count):
    p = d.Binomial(2, torch.tensor([0.5]))
    q = d.Binomial(2, torch.tensor([0.25]))
    q.total_count = torch.tensor([count])
    assert compiled_kl(p, q) is None


def to_normal(entropy, mean, variance, loc, scale):
    log_density = mpmath.log(2 * mpmath.pi * scale**2) / 2 + (variance + (mean - loc) ** 2) / (2 * scale**2)
    return log_density - entropy


def gamma(k1, r1, k2, r2):
    constants = mpmath.loggamma(k2) - mpmath.loggamma(k1) + k2 * mpmath.log(r1 / r2)
    return (k1 - k2) * mpmath.digamma(k1) + constants + k1 * (r2 / r1 - 1)


# For each pair: KL in extended precision, and how the parameters are drawn: "r" real, "p" positive, "a" above the last.
PAIRS = {
    (f.Exponential, f.Gamma): (lambda r1, k2, r2: gamma(1, r1, k2, r2), "ppp"),
    (f.Gamma, f.Exponential): (lambda k1, r1, r2: gamma(k1, r1, 1, r2), "ppp"),
    (f.Exponential, f.Normal): (lambda r, m, s: to_normal(1 - mpmath.log(r), 1 / r, 1 / r**2, m, s), "prp"),
    (f.Gumbel, f.Normal): (
        lambda a, b, m, s: to_normal(
            mpmath.log(b) + mpmath.euler + 1, a + mpmath.euler * b, (mpmath.pi * b) ** 2 / 6, m, s
        ),
        "rprp",
    ),
    (f.Laplace, f.Normal): (lambda a, b, m, s: to_normal(mpmath.log(2 * b) + 1, a, 2 * b**2, m, s), "rprp"),
    (f.Uniform, f.Normal): (
        lambda a, b, m, s: to_normal(mpmath.log(b - a), (a + b) / 2, (b - a) ** 2 / 12, m, s),
        "rarp",
    ),
}


def members(pair, values):
    """The two distributions with these parameters."""
    scale = compiled_forms._ALTERNATIVES[f.Normal]["scale"]
    names = [(scale if family is f.Normal else compiled_forms._FAMILIES[family])[1] for family in pair]
    first = len(names[0])
    sides = values[:first], values[first:]
    return [family(**dict(zip(name, side, strict=True))) for family, name, side in zip(pair, names, sides, strict=True)]


@pytest.mark.parametrize("instructions", kernels.instruction_sets() if kernels else ())
@pytest.mark.parametrize(("dtype", "epsilon"), [(np.float64, 1e-15), (np.float32, 3e-7)])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " ".join(family.__name__ for family in pair))
def test_pairs_of_different_families(pair, dtype, epsilon, instructions):
    rng = np.random.default_rng(4)
    truth, kinds = PAIRS[pair]
    values = []
    for kind in kinds:
        drawn = rng.normal(size=5)
        values.append(drawn if kind == "r" else np.exp(drawn) + (values[-1] if kind == "a" else 0))
    tensors = [torch.tensor(value.astype(dtype), requires_grad=True) for value in values]
    kernels.use_instruction_set(instructions)
    try:
        value = compiled_kl(*members(pair, tensors))
        slopes = torch.autograd.grad(value.sum(), tensors)
    finally:
        kernels.use_instruction_set(kernels.instruction_sets()[-1])
    with mpmath.workdps(40):
        for i in range(5):
            at = [mpmath.mpf(float(tensor[i].detach())) for tensor in tensors]
            assert float(value[i].detach()) == pytest.approx(float(truth(*at)), rel=20 * epsilon)
            exact = [
                float(mpmath.diff(lambda x, k=k, at=at: truth(*at[:k], x, *at[k + 1 :]), at[k])) for k in range(len(at))
            ]
            largest = max(map(abs, exact))
            for slope, number in zip(slopes, exact, strict=True):
                assert abs(float(slope[i]) - number) <= 60 * epsilon * largest


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " ".join(family.__name__ for family in pair))
def test_second_derivatives_of_pairs(pair):
    values = [0.3, 1.5, -0.2, 0.7] if len(PAIRS[pair][1]) == 4 else [0.8, 1.2, 0.7]
    tensors = [torch.tensor(value, dtype=torch.double, requires_grad=True) for value in values]
    assert torch.autograd.gradcheck(lambda *given: compiled_kl(*members(pair, given)), tensors)
    assert torch.autograd.gradgradcheck(lambda *given: kl(*members(pair, given)), tensors)


def test_equal_maps_of_transformed_distributions():
    def squashed(loc, *maps):
        return d.TransformedDistribution(d.Normal(torch.tensor([loc, 1.0]), torch.ones(2)), list(maps))

    p, q = squashed(0.0, d.TanhTransform()), squashed(1.0, d.TanhTransform())
    assert torch.equal(compiled_kl(p, q), torch.tensor([0.5, 0.0]))
    assert torch.equal(kl(p, q), compiled_kl(p, q))
    assert compiled_kl(p, squashed(1.0, d.ExpTransform())) is None
    assert compiled_kl(p, squashed(1.0)) is None
    folded = squashed(0.0, d.AbsTransform()), squashed(1.0, d.AbsTransform())
    assert compiled_kl(*folded) is None


def test_event_axes_do_not_broadcast():
    sides = [d.Independent(d.Normal(torch.zeros(size), torch.ones(size)), 1) for size in (1, 3)]
    assert compiled_kl(*sides) is None
    with pytest.raises(ShapeError):
        kl(*sides)
