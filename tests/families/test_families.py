"""The records of parameters: what they keep, and what they refuse."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from kullback import families
from kullback.errors import NotNormalizedError, ParameterError

RECORDS = [getattr(families, name) for name in families.__all__ if name != "Distribution"]


@pytest.mark.parametrize("kind", RECORDS)
def test_every_record_says_what_it_is(kind):
    assert kind.__doc__.strip()
    assert issubclass(kind, families.Distribution)
    with pytest.raises(TypeError):
        kind(1.0, 2.0)


def test_parameters_are_kept_as_they_are():
    loc, scale = torch.zeros(3), [1.0, 2.0, 3.0]
    record = families.Normal(loc=loc, scale=scale)
    assert record.loc is loc
    assert record.scale is scale
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.loc = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("library", [np.asarray, torch.tensor, jax.numpy.asarray, list])
def test_the_first_offender_is_named(library):
    with pytest.raises(ParameterError, match=r"Normal's scale to be > 0 and finite, but scale\[1\] is -1.0"):
        families.Normal(loc=0.0, scale=library([1.0, -1.0, -2.0]))
    with pytest.raises(ParameterError, match=r"loc\[1, 0\] is nan"):
        families.Cauchy(loc=library([[1.0], [np.nan]]), scale=1.0)


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (families.Uniform, {"low": 1.0, "high": 1.0}, "Uniform's high to be above low, but it is 1.0"),
        (families.Hypergeometric, {"population": 5, "successes": 6, "draws": 1}, "population"),
        (families.Binomial, {"total_count": 2.5, "probs": 0.5}, "a whole number"),
        (families.Bernoulli, {"probs": 0.5, "logits": 0.0}, "one of probs, logits, got probs and logits"),
        (families.Bernoulli, {}, "got none"),
        (families.Zipf, {"exponent": 1.0}, "above 1"),
        (families.Zipfian, {"exponent": 1.0, "total_count": 0}, "1 or more, but it is 0"),
        (
            families.ContinuousBernoulli,
            {"probs": [0.5, 1.0]},
            r"between 0 and 1, where it has a density, but probs\[1\]",
        ),
        (families.MultivariateNormal, {"loc": [0.0]}, "one of covariance_matrix, precision_matrix, scale_tril"),
        (families.VonMises, {"loc": 0.0, "concentration": -1.0}, "concentration to be >= 0"),
        (families.Gamma, {"concentration": 1.0, "rate": np.inf}, "rate to be > 0 and finite, but it is inf"),
    ],
)
def test_what_is_refused(kind, parameters, message):
    with pytest.raises(ParameterError, match=message):
        kind(**parameters)


def test_probabilities_sum_to_one():
    families.Categorical(probs=np.full(3, 1 / 3, np.float32))
    with pytest.raises(NotNormalizedError, match=r"the sum of probs\[1\] is 0.75"):
        families.Categorical(probs=[[0.5, 0.5], [0.5, 0.25]])
    with pytest.raises(NotNormalizedError, match="weights to sum to 1, but it is 2"):
        families.NormalMixture(weights=[1.0, 1.0], locs=[0.0, 1.0], scales=[1.0, 1.0])


def test_traced_parameters_are_not_looked_at():
    jax.jit(lambda scale: families.Normal(loc=0.0, scale=scale).scale)(-1.0)
    torch.func.vmap(lambda scale: families.Normal(loc=0.0, scale=scale).scale)(torch.ones(3))
    with pytest.raises(ParameterError):
        torch.func.grad(lambda scale: families.Normal(loc=0.0, scale=scale).scale)(torch.tensor(-1.0))


@pytest.mark.parametrize("value", [None, "0.5", [[1.0], [1.0, 2.0]], {}])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match="expected Normal's loc to be numbers, got"):
        families.Normal(loc=value, scale=1.0)
