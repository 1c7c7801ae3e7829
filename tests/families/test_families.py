"""The distributions of kullback.families: what they store, and which parameters they reject."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from kullback import families
from kullback.errors import KullbackError, NotNormalizedError, ParameterError, ParameterNameError

FAMILIES = [getattr(families, name) for name in families.__all__ if name != "Distribution"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_documented_and_keyword_only(family):
    assert family.__doc__.strip()
    assert issubclass(family, families.Distribution)
    with pytest.raises(TypeError) as caught:
        family(1.0, 2.0)
    assert isinstance(caught.value, KullbackError)
    names = ", ".join(f"{field.name}=..." for field in dataclasses.fields(family))
    assert str(caught.value).endswith(f"got 2 arguments by position; write {family.__name__}({names})")


@pytest.mark.parametrize(
    ("family", "parameters", "message"),
    [
        (families.Normal, {"loc": 0, "sigma": 1}, "loc, scale of Normal, got sigma; did you mean scale?"),
        (families.Gamma, {"concentraton": 1, "rate": 1}, "got concentraton; did you mean concentration?"),
        (families.Bernoulli, {"p": 0.5}, "probs, logits of Bernoulli, got p; did you mean probs?"),
        (families.Poisson, {"lam": 1}, "got lam; did you mean rate?"),
        (families.Normal, {"loc": 0, "scale": 1, "validate_args": False}, "loc, scale of Normal, got validate_args"),
        (families.Exponential, {"scale": 2}, "rate of Exponential, got scale"),
        (
            families.Normal,
            {"loc": 0},
            "expected Normal to receive scale or log_scale; write Normal(loc=",
        ),
        (families.MultivariateNormal, {}, "expected MultivariateNormal to receive loc; write"),
    ],
)
def test_names_of_parameters_are_checked(family, parameters, message):
    with pytest.raises(ParameterNameError) as caught:
        family(**parameters)
    assert message in str(caught.value)
    assert isinstance(caught.value, TypeError)
    if "mean" not in message:
        assert "did you mean" not in str(caught.value)


def test_a_type_error_of_a_parameter_is_not_replaced():
    class Broken:
        def __array__(self, *_):
            raise TypeError("the array is broken")

    with pytest.raises(TypeError, match="the array is broken"):
        families.Normal(loc=0.0, scale=Broken())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_docstring_has_a_density_arguments_and_an_example(family):
    text = family.__doc__
    assert "Density" in text or "Mass:" in text
    assert "Args:" in text
    assert ">>> " in text.partition("Example:")[2]
    for field in dataclasses.fields(family):
        assert f"        {field.name}: " in text


def test_parameters_are_stored_as_given():
    loc, scale = torch.zeros(3), [1.0, 2.0, 3.0]
    distribution = families.Normal(loc=loc, scale=scale)
    assert distribution.loc is loc
    assert distribution.scale is scale
    with pytest.raises(dataclasses.FrozenInstanceError):
        distribution.loc = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("library", [np.asarray, torch.tensor, jax.numpy.asarray, list])
def test_the_error_names_the_first_invalid_entry(library):
    with pytest.raises(ParameterError, match=r"Normal's scale to be > 0 and finite, but scale\[1\] is -1.0"):
        families.Normal(loc=0.0, scale=library([1.0, -1.0, -2.0]))
    with pytest.raises(ParameterError, match=r"loc\[1, 0\] is nan"):
        families.Cauchy(loc=library([[1.0], [np.nan]]), scale=1.0)


@pytest.mark.parametrize(
    ("family", "parameters", "message"),
    [
        (families.Uniform, {"low": 1.0, "high": 1.0}, "Uniform's high to be above low, but it is 1.0"),
        (families.Hypergeometric, {"population": 5, "successes": 6, "draws": 1}, "population to be at least successes"),
        (families.Binomial, {"total_count": 2.5, "probs": 0.5}, "a whole number"),
        (families.Bernoulli, {"probs": 0.5, "logits": 0.0}, "one of probs, logits, got probs and logits"),
        (families.Bernoulli, {}, "got none"),
        (families.Zipf, {"exponent": 1.0}, "above 1"),
        (families.Zipfian, {"exponent": 1.0, "total_count": 0}, "1 or more, but it is 0"),
        (
            families.ContinuousBernoulli,
            {"probs": [0.5, 1.0]},
            r"strictly between 0 and 1, but probs\[1\]",
        ),
        (families.MultivariateNormal, {"loc": [0.0]}, "one of covariance_matrix, precision_matrix, scale_tril"),
        (families.VonMises, {"loc": 0.0, "concentration": -1.0}, "concentration to be >= 0"),
        (families.Gamma, {"concentration": 1.0, "rate": np.inf}, "rate to be > 0 and finite, but it is inf"),
    ],
)
def test_invalid_parameters_are_rejected(family, parameters, message):
    with pytest.raises(ParameterError, match=message):
        family(**parameters)


def test_probabilities_must_sum_to_one():
    families.Categorical(probs=np.full(3, 1 / 3, np.float32))
    with pytest.raises(NotNormalizedError, match=r"the sum of probs\[1\] is 0.75"):
        families.Categorical(probs=[[0.5, 0.5], [0.5, 0.25]])
    with pytest.raises(NotNormalizedError, match="weights to sum to 1, but it is 2"):
        families.NormalMixture(weights=[1.0, 1.0], locs=[0.0, 1.0], scales=[1.0, 1.0])


def test_traced_parameters_are_not_checked():
    jax.jit(lambda scale: families.Normal(loc=0.0, scale=scale).scale)(-1.0)
    torch.func.vmap(lambda scale: families.Normal(loc=0.0, scale=scale).scale)(torch.ones(3))
    with pytest.raises(ParameterError):
        torch.func.grad(lambda scale: families.Normal(loc=0.0, scale=scale).scale)(torch.tensor(-1.0))


@pytest.mark.parametrize("value", [None, "0.5", [[1.0], [1.0, 2.0]], {}])
def test_parameters_that_are_not_numbers_are_rejected(value):
    with pytest.raises(TypeError, match="expected Normal's loc to be numbers, got"):
        families.Normal(loc=value, scale=1.0)
