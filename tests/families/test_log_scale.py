"""Normal distributions that are given by the logarithm of their scale."""

import copy
import pickle

import jax
import mpmath
import numpy as np
import pytest
import torch

from kullback import kl, measure
from kullback.errors import ParameterError
from kullback.families import Independent, Laplace, Normal, StudentT


def truth(loc1, log1, loc2, log2):
    with mpmath.workdps(60):
        loc1, log1, loc2, log2 = map(mpmath.mpf, (loc1, log1, loc2, log2))
        d = 2 * (log1 - log2)
        return (mpmath.expm1(d) - d + ((loc1 - loc2) * mpmath.exp(-log2)) ** 2) / 2


@pytest.mark.parametrize("difference", [1.0, 1e-4, 1e-9])
def test_nearly_equal_scales_keep_their_digits(difference):
    of_p, of_q = (0.25, 3.0), (0.25 + difference, 3.0 + difference)
    value = kl(Normal(loc=of_p[0], log_scale=of_p[1]), Normal(loc=of_q[0], log_scale=of_q[1]))
    assert value == pytest.approx(float(truth(*of_p, *of_q)), rel=1e-13)
    with mpmath.workdps(60):
        exact = truth(0.25, 0.0, 0.25, difference)
    for p, q in [
        (Normal(loc=0.25, scale=1.0), Normal(loc=0.25, log_scale=difference)),
        (Normal(loc=0.25, log_scale=0.0), Normal(loc=0.25, log_scale=difference)),
    ]:
        assert kl(p, q) == pytest.approx(float(exact), rel=1e-13)


@pytest.mark.parametrize("log_scale", [-300.0, -90.0, 90.0, 300.0])
def test_scales_outside_the_range_of_the_compiled_form(log_scale):
    value = kl(Normal(loc=0.0, log_scale=log_scale), Normal(loc=0.0, log_scale=log_scale + 0.5))
    assert value == pytest.approx(float(truth(0, log_scale, 0, log_scale + 0.5)), rel=1e-13)


def test_the_term_of_a_variational_autoencoder():
    generator = torch.Generator().manual_seed(0)
    loc, log_scale = (torch.randn(64, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    for side in (loc, log_scale):
        side.requires_grad_()
    posterior = Independent(base=Normal(loc=loc, log_scale=log_scale), event_dims=1)
    prior = Independent(base=Normal(loc=torch.zeros(8, dtype=torch.float64), scale=1.0), event_dims=1)
    value = kl(posterior, prior)
    value.sum().backward()
    naive = (torch.exp(2 * log_scale) - 1 - 2 * log_scale + loc**2).sum(-1) / 2
    torch.testing.assert_close(value, naive, rtol=1e-12, atol=0)
    torch.testing.assert_close(loc.grad, loc.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(log_scale.grad, torch.expm1(2 * log_scale.detach()), rtol=1e-11, atol=1e-14)


def test_jax():
    def value(log_scale):
        return kl(Normal(loc=0.0, log_scale=log_scale), Normal(loc=0.0, scale=1.0))

    with jax.enable_x64(True):
        assert float(jax.jit(value)(0.3)) == pytest.approx(float(truth(0, 0.3, 0, 0)), rel=1e-13)
        assert float(jax.grad(value)(0.3)) == pytest.approx(np.expm1(0.6), rel=1e-13)


@pytest.mark.usefixtures("unchecked_shapes")
def test_torch_compile():
    def value(log_scale):
        return kl(Normal(loc=0.0, log_scale=log_scale), Normal(loc=0.0, scale=1.0))

    log_scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    result = torch.compile(value, fullgraph=True, backend="eager")(log_scale)
    result.backward()
    assert float(result.detach()) == pytest.approx(float(truth(0, 0.3, 0, 0)), rel=1e-13)
    assert float(log_scale.grad) == pytest.approx(np.expm1(0.6), rel=1e-13)


def test_other_families_and_measure_use_the_scale():
    p, same = Normal(loc=0.5, log_scale=0.3), Normal(loc=0.5, scale=np.exp(0.3))
    for q in (Laplace(loc=0.0, scale=1.0), StudentT(df=5.0, loc=0.0, scale=1.0)):
        assert float(measure(p, q)) == pytest.approx(float(measure(same, q)), rel=1e-14)
    assert kl(Laplace(loc=0.0, scale=1.0), p) == pytest.approx(kl(Laplace(loc=0.0, scale=1.0), same), rel=1e-14)


def test_equality_copies_and_text():
    normal = Normal(loc=0.0, log_scale=0.0)
    assert normal == Normal(loc=0.0, scale=1.0)
    assert hash(normal) == hash(Normal(loc=0.0, scale=1.0))
    assert repr(normal) == "Normal(loc=0.0, scale=1.0)"
    for other in (copy.deepcopy(normal), pickle.loads(pickle.dumps(normal))):  # noqa: S301
        assert other == normal
        assert other.log_scale == 0.0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "expected Normal to receive scale or log_scale"),
        ({"scale": 1.0, "log_scale": 0.0}, "exactly one of scale, log_scale, got scale and log_scale"),
        ({"log_scale": np.nan}, "log_scale to be the logarithm of a number > 0 and finite in its dtype, but it is nan"),
        (
            {"log_scale": 800.0},
            "log_scale to be the logarithm of a number > 0 and finite in its dtype, but it is 800.0",
        ),
        ({"log_scale": [0.0, -np.inf]}, r"log_scale\[1\] is -inf"),
        ({"log_scale": "1"}, "log_scale to be numbers"),
    ],
)
def test_errors(parameters, message):
    with pytest.raises((ParameterError, TypeError), match=message):
        Normal(loc=0.0, **parameters)
