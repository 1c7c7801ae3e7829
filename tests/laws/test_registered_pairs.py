"""Properties of every registered pair: non-negativity, zero at equality, correct gradients, dtypes and shapes."""

import math
from dataclasses import fields

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback import families as f
from kullback.closed_forms import FORMS
from kullback.distributions import kl

from ..oracles import families as oracle

UNIVARIATE = [pair for pair in FORMS if pair[0] in oracle.FAMILIES and pair[1] in oracle.FAMILIES]
SAME = [pair for pair in UNIVARIATE if pair[0] is pair[1]]
SEEDS = st.integers(0, 2**32 - 1)
COUNT_PARAMETERS = {"total_count"}


def is_free(pair, name):
    """Whether KL is differentiable in this parameter; a formula that requires equal values is not."""
    return name not in COUNT_PARAMETERS | set(oracle.SHARED.get(pair[0], ()) if pair[0] is pair[1] else ())


COMPILED = {
    (f.Bernoulli, f.Binomial),
    (f.Beta, f.Beta),
    (f.Cauchy, f.Cauchy),
    (f.ContinuousBernoulli, f.ContinuousBernoulli),
    (f.Gamma, f.Weibull),
    (f.LogNormal, f.InverseGamma),
    (f.NegativeBinomial, f.NegativeBinomial),
    (f.Normal, f.Gumbel),
    (f.Poisson, f.Poisson),
    (f.StudentT, f.Normal),
    (f.Uniform, f.Beta),
}


def name_of(pair):
    return f"{pair[0].__name__}-{pair[1].__name__}"


def parameters(record):
    given = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in given.items() if value is not None}


def in_library(record, library):
    return type(record)(**{name: library(value) for name, value in parameters(record).items()})


@pytest.mark.parametrize("pair", UNIVARIATE, ids=name_of)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_never_negative(pair, seed):
    assert kl(*oracle.draw(*pair, np.random.default_rng(seed))) >= 0


@pytest.mark.parametrize("pair", SAME, ids=name_of)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_zero_value_and_gradient_at_equality(pair, seed):
    p, _ = oracle.draw(*pair, np.random.default_rng(seed))
    if isinstance(p, f.Poisson) and p.rate == 0:
        return
    assert kl(p, p) == 0
    leaves = [in_library(p, lambda value: torch.tensor(value, dtype=torch.float64, requires_grad=True)) for _ in "pq"]
    result = kl(*leaves)
    names = [name for name in parameters(p) if is_free(pair, name)]
    wanted = [getattr(leaf, name) for leaf in leaves for name in names]
    for gradient in torch.autograd.grad(result, wanted, allow_unused=True):
        # The supports of these families end at a parameter, so that the gradient is not 0 there.
        if type(p) in (f.Uniform, f.Pareto, f.TruncatedNormal):
            assert gradient is None or math.isfinite(gradient)
        else:
            assert gradient is None or abs(gradient) < 1e-12


def finite_difference(function, values, index, step=1e-6):
    shifted = [list(values), list(values)]
    width = step * max(1.0, abs(values[index]))
    shifted[0][index] += width
    shifted[1][index] -= width
    return (function(shifted[0]) - function(shifted[1])) / (2 * width)


@pytest.mark.slow
@pytest.mark.parametrize("pair", UNIVARIATE, ids=name_of)
def test_gradients_in_torch_and_jax(pair):
    p, q = oracle.draw(*pair, np.random.default_rng(5))
    names = [(side, name) for side, record in enumerate((p, q)) for name in parameters(record)]
    names = [(side, name) for side, name in names if is_free(pair, name)]
    if isinstance(p, f.Poisson) and p.rate == 0:
        names = names[1:]
    values = [getattr((p, q)[side], name) for side, name in names]

    def value(shifted):
        changed = [parameters(p), parameters(q)]
        for (side, name), entry in zip(names, shifted, strict=True):
            changed[side][name] = entry
        return kl(pair[0](**changed[0]), pair[1](**changed[1]))

    leaves = [torch.tensor(entry, dtype=torch.float64, requires_grad=True) for entry in values]
    by_torch = torch.autograd.grad(value(leaves), leaves, allow_unused=True)
    by_torch = [0.0 if gradient is None else float(gradient) for gradient in by_torch]
    with jax.enable_x64(True):
        slopes = jax.value_and_grad(value)
        # Compilation takes a second, so that only a few pairs are compiled.
        slopes = jax.jit(slopes) if pair in COMPILED else slopes
        result, by_jax = slopes([jax.numpy.asarray(entry) for entry in values])
        if pair == (f.Bernoulli, f.Binomial):
            assert math.isnan(result)  # the counts differ and are traced
            return
        assert float(result) == pytest.approx(float(kl(p, q)), rel=1e-12)
        np.testing.assert_allclose(np.asarray(by_jax), by_torch, rtol=1e-9, atol=1e-12)
    for index, gradient in enumerate(by_torch):
        assert gradient == pytest.approx(finite_difference(value, values, index), rel=2e-5, abs=2e-7), names[index]


@pytest.mark.parametrize("pair", UNIVARIATE, ids=name_of)
def test_dtypes_and_shapes(pair):
    p, q = oracle.draw(*pair, np.random.default_rng(6))
    whole = kl(p, q)
    assert whole.dtype == np.float64
    assert whole.shape == ()
    for dtype, tolerance in ((np.float32, 2e-5), (np.float16, 5e-2)):

        def twice(value, dtype=dtype):
            return np.asarray([value, value], dtype)

        def rounded(value, dtype=dtype):
            return np.float64(dtype(value))

        got = kl(in_library(p, twice), in_library(q, twice))
        assert got.dtype == dtype
        assert got.shape == (2,)
        expected = float(kl(in_library(p, rounded), in_library(q, rounded)))
        np.testing.assert_allclose(np.float64(got), expected, rtol=tolerance, atol=1e-6)
    tensor = kl(*(in_library(record, lambda value: torch.tensor(value, dtype=torch.bfloat16)) for record in (p, q)))
    assert tensor.dtype == torch.bfloat16
    # Broadcast columns of p against rows of q.
    columns = in_library(p, lambda value: np.full((3, 1), value))
    rows = in_library(q, lambda value: np.full(2, value))
    np.testing.assert_allclose(kl(columns, rows), np.full((3, 2), whole), rtol=1e-14)


def test_traced_counts_that_differ_give_nan():
    def value(kind, count, other):
        return kl(kind(total_count=count, probs=0.3), kind(total_count=other, probs=0.4))

    for kind in (f.Binomial, f.NegativeBinomial):
        traced = jax.jit(value, static_argnums=0)
        assert float(traced(kind, 3.0, 3.0)) == pytest.approx(float(value(kind, 3.0, 3.0)), rel=1e-5)
        assert math.isnan(traced(kind, 3.0, 4.0))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, delta=st.sampled_from([1.0, 1e-3, 1e-6]))
def test_invertible_transforms_preserve_kl(seed, delta):
    rng = np.random.default_rng(seed)
    loc, scale = rng.normal(), np.exp(rng.normal())
    other, wider = loc + delta * rng.normal(), scale * np.exp(delta * rng.normal())
    plain = kl(f.Normal(loc=loc, scale=scale), f.Normal(loc=other, scale=wider))
    for kind in (f.LogNormal, f.TanhNormal):
        assert kl(kind(loc=loc, scale=scale), kind(loc=other, scale=wider)) == plain
    a, b = np.exp(rng.normal(size=2))
    c, d = np.asarray([a, b]) * np.exp(delta * rng.normal(size=2))
    # The transforms x -> 1/x and x -> 4x.
    gammas = kl(f.Gamma(concentration=a, rate=b), f.Gamma(concentration=c, rate=d))
    assert gammas == kl(f.InverseGamma(concentration=a, rate=b), f.InverseGamma(concentration=c, rate=d))
    scaled = kl(f.Gamma(concentration=a, rate=4 * b), f.Gamma(concentration=c, rate=4 * d))
    assert gammas == pytest.approx(scaled, rel=1e-12)
    # The transform x -> -log x.
    powers = kl(f.Weibull(scale=a, concentration=b), f.Weibull(scale=c, concentration=d))
    gumbels = kl(f.Gumbel(loc=-np.log(a), scale=1 / b), f.Gumbel(loc=-np.log(c), scale=1 / d))
    assert powers == pytest.approx(gumbels, rel=1e-9 / delta**0.5 + 4e-15 / delta)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_special_cases_of_other_families(seed):
    rng = np.random.default_rng(seed)
    rate, other, shape = np.exp(rng.normal(size=3))
    target = f.Gamma(concentration=shape, rate=other)
    expected = kl(f.Gamma(concentration=1.0, rate=rate), target)
    assert kl(f.Exponential(rate=rate), target) == pytest.approx(expected, rel=1e-14)
    assert kl(f.Weibull(scale=1 / rate, concentration=1.0), target) == pytest.approx(expected, rel=1e-13, abs=1e-15)
    chi = f.ChiSquared(df=2 * shape)
    assert kl(chi, target) == pytest.approx(kl(f.Gamma(concentration=shape, rate=0.5), target), rel=1e-13)
    p, q = rng.uniform(0.05, 0.95, 2)
    one = kl(f.Bernoulli(probs=p), f.Bernoulli(probs=q))
    two = kl(f.Categorical(probs=[p, 1 - p]), f.Categorical(probs=[q, 1 - q]))
    assert one == pytest.approx(two, rel=1e-12, abs=1e-17)
    assert kl(f.Binomial(total_count=1, probs=p), f.Bernoulli(probs=q)) == pytest.approx(one, rel=1e-14, abs=1e-17)
    geometric = kl(f.Geometric(probs=p), f.Geometric(probs=q))
    counts = (f.NegativeBinomial(total_count=1, probs=1 - value) for value in (p, q))
    assert geometric == pytest.approx(kl(*counts), rel=1e-12, abs=1e-17)
    a, b = np.exp(rng.normal(size=2))
    betas = kl(f.Beta(concentration1=a, concentration0=b), f.Beta(concentration1=b, concentration0=a))
    assert betas == kl(f.Dirichlet(concentration=[a, b]), f.Dirichlet(concentration=[b, a]))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_kl_of_independent_components_is_the_sum(seed):
    rng = np.random.default_rng(seed)
    p, q = (f.Normal(loc=rng.normal(size=(2, 3)), scale=np.exp(rng.normal(size=(2, 3)))) for _ in "pq")
    parts = kl(p, q)
    joint = kl(f.Independent(base=p, event_dims=1), f.Independent(base=q, event_dims=1))
    np.testing.assert_allclose(joint, parts.sum(-1), rtol=1e-14)
    # The same as KL of multivariate normal distributions.
    full = (f.MultivariateNormal(loc=d.loc, covariance_matrix=d.scale[..., None] ** 2 * np.eye(3)) for d in (p, q))
    np.testing.assert_allclose(joint, kl(*full), rtol=1e-11)


def test_a_formula_for_equal_scales_has_no_gradient_for_one_scale():
    loc, scale, other = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.0, 2.0, 2.0))
    q = f.Logistic(loc=0.0, scale=other)
    by_loc, by_scale = torch.autograd.grad(kl(f.Logistic(loc=loc, scale=scale), q), [loc, scale])
    assert by_loc > 0
    assert math.isnan(by_scale)
    both = kl(f.Logistic(loc=loc, scale=scale), f.Logistic(loc=0.0, scale=scale))
    (slope,) = torch.autograd.grad(both, scale)
    d = torch.tensor(0.5, dtype=torch.float64)
    assert slope == pytest.approx(float(-(1 / torch.tanh(d / 2) - d / 2 / torch.sinh(d / 2) ** 2) * d / 2), rel=1e-12)
