"""KL between LKJ distributions, against the normalising constant of Lewandowski, Kurowicka and Joe (2009)."""

import jax
import mpmath
import numpy as np
import numpyro.distributions as nd
import pytest
import torch
from torch import distributions as d

from kullback import kl
from kullback.errors import NoClosedFormError, ParameterError, ShapeError
from kullback.families import LKJ


def log_normaliser(dim, concentration):
    """The logarithm of the integral of |X|^(concentration - 1), theorem 5 of the paper."""
    total = mpmath.mpf(0)
    for k in range(1, dim):
        shape = concentration + mpmath.mpf(dim - 1 - k) / 2
        total += (2 * concentration - 2 + dim - k) * (dim - k) * mpmath.log(2)
        total += (dim - k) * (2 * mpmath.loggamma(shape) - mpmath.loggamma(2 * shape))
    return total


@pytest.mark.parametrize("dim", [2, 3, 5, 12])
@pytest.mark.parametrize(("first", "second"), [(2.0, 1.0), (0.3, 4.0), (1.5, 1.5 + 2.0**-20), (200.0, 1.0)])
def test_kl_equals_the_bregman_divergence_of_the_log_normaliser(dim, first, second):
    with mpmath.workdps(60):
        a, b = mpmath.mpf(first), mpmath.mpf(second)
        mean_log_det = mpmath.diff(lambda c: log_normaliser(dim, c), a)
        exact = log_normaliser(dim, b) - log_normaliser(dim, a) - (b - a) * mean_log_det
        value = kl(LKJ(dim=dim, concentration=first), LKJ(dim=dim, concentration=second))
        assert float(abs(value - exact) / exact) < 1e-13


@pytest.mark.slow
def test_objects_of_other_libraries():
    expected = kl(LKJ(dim=4, concentration=2.0), LKJ(dim=4, concentration=1.0))
    of_torch = [d.LKJCholesky(4, torch.tensor(value, dtype=torch.float64)) for value in (2.0, 1.0)]
    assert float(kl(*of_torch)) == pytest.approx(expected, rel=1e-14)
    with jax.enable_x64(True):
        for kind in (nd.LKJ, nd.LKJCholesky):
            assert float(kl(kind(4, 2.0), kind(4, 1.0))) == pytest.approx(expected, rel=1e-14)
        jitted = jax.jit(lambda c: kl(LKJ(dim=4, concentration=c), LKJ(dim=4, concentration=1.0)))
        assert float(jitted(2.0)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.slow
def test_kl_equals_the_mean_log_ratio_of_samples():
    # The samples of PyTorch 2.13 have another distribution: E[r^2] of the last two of 3 variables is 0.214, not 1/6.
    with jax.enable_x64(True):
        p, q = nd.LKJCholesky(3, 2.0), nd.LKJCholesky(3, 1.0)
        x = p.sample(jax.random.key(0), (20_000,))
        ratios = np.asarray(p.log_prob(x) - q.log_prob(x))
        assert abs(ratios.mean() - float(kl(p, q))) < 4 * ratios.std() / 20_000**0.5


def test_gradient_and_batch():
    c = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    value = kl(LKJ(dim=3, concentration=c), LKJ(dim=3, concentration=1.0))
    (gradient,) = torch.autograd.grad(value.sum(), c)
    h = 1e-5
    steps = [kl(LKJ(dim=3, concentration=c.detach().numpy() + s * h), LKJ(dim=3, concentration=1.0)) for s in (1, -1)]
    np.testing.assert_allclose(gradient.numpy(), (steps[0] - steps[1]) / (2 * h), rtol=1e-7, atol=1e-9)
    assert value[1] == 0
    assert kl(LKJ(dim=1, concentration=2.0), LKJ(dim=1, concentration=1.0)) == 0


def test_invalid_dimensions():
    with pytest.raises(ShapeError, match="dim=3 and dim=4"):
        kl(LKJ(dim=3, concentration=2.0), LKJ(dim=4, concentration=1.0))
    for dim, expected in ((2.5, "whole number"), (0, "integer >= 1"), ([3, 3], "integer >= 1")):
        with pytest.raises(ParameterError, match=expected):
            LKJ(dim=dim, concentration=1.0)


def test_float32_gradients_agree_with_float64():
    values = np.random.default_rng(0).uniform(0.3, 50, (2, 40))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        p, q = (torch.tensor(side, dtype=torch.float32).to(dtype).requires_grad_() for side in values)
        value = kl(LKJ(dim=4, concentration=p), LKJ(dim=4, concentration=q))
        gradients.append([g.double() for g in torch.autograd.grad(value.sum(), (p, q))])
    for narrow, wide in zip(*gradients, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [1e8, 1e308])
def test_a_kl_with_too_many_terms_is_refused(dim):
    with pytest.raises(NoClosedFormError, match="at most 10000000 rows"):
        kl(LKJ(dim=dim, concentration=1.0), LKJ(dim=dim, concentration=2.0))
