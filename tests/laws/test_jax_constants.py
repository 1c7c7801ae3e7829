"""Constants under jax.jit, whose values are known although JAX traces every operation on them."""

import math

import jax
import numpy as np
import numpyro.distributions as numpyro
import pytest

from kullback import families as f
from kullback.discrete.kl import kl_logits
from kullback.distributions import kl
from kullback.errors import ParameterError
from kullback.tokens import token_kl

from ..oracles import families as oracle
from .test_registered_pairs import UNIVARIATE, name_of, parameters

MATRIX = [[2.0, 0.5], [0.5, 1.0]]
FACTOR = [[2.0, 0.0], [0.5, 1.0]]
MULTIVARIATE = [
    f.Categorical(probs=[0.5, 0.5]),
    f.Categorical(logits=[0.5, 0.0]),
    f.Dirichlet(concentration=[1.0, 2.0]),
    f.LKJ(dim=3, concentration=2.0),
    f.LowRankMultivariateNormal(loc=[0.0, 1.0], cov_factor=[[1.0], [0.5]], cov_diag=[1.0, 2.0]),
    f.Multinomial(total_count=3, probs=[0.5, 0.5]),
    f.MultivariateNormal(loc=[0.0, 1.0], covariance_matrix=MATRIX),
    f.MultivariateNormal(loc=[0.0, 1.0], scale_tril=FACTOR),
    f.VonMisesFisher(mean_direction=[1.0, 0.0, 0.0], concentration=2.0),
    f.Wishart(df=3.0, covariance_matrix=MATRIX),
    f.Wishart(df=3.0, scale_tril=FACTOR),
]


def as_constants(member):
    """The parameters as arrays of JAX; counts are integers."""
    values = parameters(member)
    dtypes = {"dim": np.int32, "total_count": np.int32}
    return {
        name: int(value) if name == "dim" else jax.numpy.asarray(np.asarray(value, dtypes.get(name, np.float64)))
        for name, value in values.items()
    }


@pytest.mark.parametrize("pair", UNIVARIATE, ids=name_of)
def test_distributions_of_constants_are_constructed_and_compared_inside_jit(pair):
    p, q = oracle.draw(*pair, np.random.default_rng(5))
    with jax.enable_x64(True):
        given = [as_constants(side) for side in (p, q)]

        def value(x):
            return x + kl(*(type(side)(**constants) for side, constants in zip((p, q), given, strict=True)))

        assert jax.eval_shape(value, 0.0).shape == ()


@pytest.mark.parametrize(
    "member", MULTIVARIATE, ids=lambda member: f"{type(member).__name__}-{list(parameters(member))[-1]}"
)
def test_vectors_and_matrices_of_constants_are_constructed_and_compared_inside_jit(member):
    with jax.enable_x64(True):
        given = as_constants(member)
        assert jax.eval_shape(lambda x: x + kl(type(member)(**given), type(member)(**given)), 0.0).shape == ()


def test_the_kl_of_constant_counts_that_differ_is_computed_inside_jit():
    with jax.enable_x64(True):
        p, q = (f.Binomial(total_count=jax.numpy.asarray(n), probs=jax.numpy.asarray(0.25)) for n in (2.0, 3.0))
        truth = float(kl(f.Binomial(total_count=2, probs=0.25), f.Binomial(total_count=3, probs=0.25)))
        assert float(jax.jit(lambda x: x + kl(p, q))(0.0)) == pytest.approx(truth, rel=1e-12)


@pytest.mark.slow
def test_numpyro_binomials_inside_jit_and_grad():
    counts, probs, other = jax.numpy.asarray([10, 3, 7]), jax.numpy.asarray([0.3, 0.5, 0.9]), jax.numpy.asarray(0.4)
    for total_count in (counts, 10):
        for name in ("probs", "logits"):

            def value(x, total_count=total_count, name=name):
                return kl(*(numpyro.Binomial(total_count, **{name: side}) for side in (x, other))).sum()

            by_kind = {"probs": f.Bernoulli(probs=np.asarray(probs)), "logits": f.Bernoulli(logits=np.asarray(probs))}
            bernoulli = kl(by_kind[name], type(by_kind[name])(**{name: np.float32(0.4)}))
            truth = math.fsum(np.asarray(total_count) * np.asarray(bernoulli))
            assert float(value(probs)) == pytest.approx(truth, rel=1e-5)
            assert float(jax.jit(value)(probs)) == pytest.approx(truth, rel=1e-5)
            slopes = jax.grad(value)(probs)
            np.testing.assert_allclose(jax.jit(jax.grad(value))(probs), slopes, rtol=1e-4)


def test_invalid_constants_are_refused_inside_jit():
    minus_one = jax.numpy.asarray(-1)
    cases = [
        (lambda: f.Binomial(total_count=minus_one, probs=0.5), "total_count"),
        (lambda: f.Normal(loc=0.0, scale=minus_one), "scale"),
    ]
    for make, message in cases:
        with pytest.raises(ParameterError, match=message):
            jax.jit(lambda x, make=make: x + kl(make(), make()))(0.0)


@pytest.mark.slow
def test_a_second_call_compiles_nothing():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _seconds, **_: compiled.append(name) if "compile" in name else None
    )
    p, q = jax.numpy.asarray([[0.5, 1.0, -2.0]]), jax.numpy.asarray([[0.25, 1.0, 2.0]])
    calls = [
        lambda: kl_logits(p, q),
        lambda: token_kl(p, q),
        lambda: jax.grad(lambda logits: kl_logits(logits, q).sum())(p),
        lambda: jax.grad(lambda logits: kl_logits(p, logits).sum())(q),
        lambda: kl(f.Categorical(logits=p), f.Categorical(logits=q)),
    ]
    for call in calls:
        call()
        compiled.clear()
        call()
        assert compiled == []
