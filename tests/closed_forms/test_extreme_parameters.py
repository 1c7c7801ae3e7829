"""Closed forms where one term is much larger than the result, or overflows, against extended precision."""

import math

import jax
import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from kullback import families as f
from kullback.distributions import kl


def relative_error(got, truth):
    return abs(float((mpf(float(got)) - truth) / truth))


def dirichlet(a, b):
    sum_a, sum_b = mpmath.fsum(a), mpmath.fsum(b)
    normalizers = mpmath.loggamma(sum_a) - mpmath.loggamma(sum_b)
    slopes = [mpmath.digamma(x) - mpmath.digamma(sum_a) for x in a]
    logs = [mpmath.loggamma(y) - mpmath.loggamma(x) + (x - y) * s for x, y, s in zip(a, b, slopes, strict=True)]
    return normalizers + mpmath.fsum(logs)


DOMINATED = [
    ([1e-6, 12.0], [1e-6, 12.5]),
    ([1.5e-7, 0.83], [1.5e-7, 0.86]),
    ([0.035, 3.5e-6], [1.9e-4, 3.5e-6]),
    ([17.5, 5e-7, 1e-9], [0.2, 5e-7, 2e-9]),
    ([1e-4, 3.3e-6], [1e-4 * (1 + 1e-3), 3.3e-6]),
    ([162.0, 5.5e-7], [162.0 * (1 + 1e-5), 5.5e-7 * (1 + 1e-9)]),
]


@pytest.mark.parametrize(("a", "b"), DOMINATED)
def test_dirichlets_with_one_dominant_category(a, b):
    with mpmath.workdps(60):
        truth = dirichlet([mpf(x) for x in a], [mpf(x) for x in b])
        change = max(abs(y / x - 1) for x, y in zip(a, b, strict=True))
        tolerance = 1e-13 + 4e-16 / min(change, 1.0)
        assert relative_error(kl(f.Dirichlet(concentration=a), f.Dirichlet(concentration=b)), truth) < tolerance
        half = [np.float32(side) for side in (a, b)]
        truth = dirichlet(*([mpf(float(x)) for x in side] for side in half))
        if change > 0.01:
            got = kl(*(f.Dirichlet(concentration=side) for side in half))
            assert relative_error(got, truth) < 1e-5 + 4e-7 / min(change, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), DOMINATED[:2])
def test_gradients_of_dirichlets_with_one_dominant_category(a, b):
    with mpmath.workdps(60):
        sides = [[mpf(x) for x in side] for side in (a, b)]
        truth = [
            mpmath.diff(lambda x, s=s, k=k: dirichlet(*replaced(sides, s, k, x)), sides[s][k])
            for s in (0, 1)
            for k in range(len(a))
        ]
    leaves = [torch.tensor(side, dtype=torch.float64, requires_grad=True) for side in (a, b)]
    by_torch = torch.autograd.grad(kl(*(f.Dirichlet(concentration=leaf) for leaf in leaves)), leaves)
    with jax.enable_x64(True):
        slopes = jax.grad(lambda x, y: kl(f.Dirichlet(concentration=x), f.Dirichlet(concentration=y)), argnums=(0, 1))
        by_jax = jax.jit(slopes)(*(jax.numpy.asarray(side) for side in (a, b)))
    for slopes in (by_torch, by_jax):
        np.testing.assert_allclose(np.concatenate(slopes), np.asarray(truth, float), rtol=1e-9, atol=1e-13)


def replaced(sides, side, place, value):
    sides = [list(entries) for entries in sides]
    sides[side][place] = value
    return sides


@pytest.mark.parametrize(
    ("concentration", "power"), [(2.7e-6, 7.5e-6), (1.2e-6, 5.7e-7), (1.2e-4, 2.5e-4), (1e-9, 0.3), (0.3, 0.31)]
)
def test_gamma_to_weibull_with_a_pole_at_0(concentration, power):
    p, q = f.Gamma(concentration=concentration, rate=0.8), f.Weibull(scale=46.0, concentration=power)
    with mpmath.workdps(50):
        k, c, log_scale = mpf(concentration), mpf(power), -mpmath.log(mpf(0.8) * 46)
        mean_log = mpmath.digamma(k) + log_scale  # of x/scale
        mean_power = mpmath.exp(c * log_scale) * mpmath.gamma(k + c) / mpmath.gamma(k)
        truth = -mpmath.loggamma(k) + k * mpmath.digamma(k) - k - mpmath.log(c) - c * mean_log + mean_power
    assert relative_error(kl(p, q), truth) < 1e-13


@pytest.mark.parametrize("rate", [1e-9, 0.3, 1.0, 800.0, 1e5])
def test_bernoulli_to_poisson_at_any_rate(rate):
    for probs in (1e-9, 0.4, 1.0):
        with mpmath.workdps(40):
            one, none = mpf(probs), 1 - mpf(probs)
            truth = one * (mpmath.log(one / mpf(rate)) + mpf(rate)) + (none * (mpmath.log(none) + rate) if none else 0)
        assert relative_error(kl(f.Bernoulli(probs=probs), f.Poisson(rate=rate)), truth) < 1e-13
    leaf = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
    kl(f.Bernoulli(probs=torch.tensor(0.4, dtype=torch.float64)), f.Poisson(rate=leaf)).backward()
    assert leaf.grad is not None
    assert math.isclose(leaf.grad.item(), 1 - 0.4 / rate, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("scale", "loc"), [(1e-3, -50.0), (1e-8, -50.0), (1e-12, -100.0), (0.3, 1.0), (0.6, 1.0), (0.999, 0.0)]
)
def test_gradient_of_a_narrow_laplace_distribution_below_the_mode_of_a_gumbel_distribution(scale, loc):
    leaf = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(kl(f.Laplace(loc=loc, scale=leaf), f.Gumbel(loc=0.0, scale=1.0)), leaf)
    with mpmath.workdps(40):
        r = mpf(scale)
        truth = mpmath.exp(-mpf(loc)) * 2 * r / (1 - r**2) ** 2 - 1 / r
    assert relative_error(slope, truth) < 1e-14


@pytest.mark.parametrize(("mean1", "mean2"), [(1e-310, 1e-310), (1e-310, 2e-310), (3e-300, 1e-310), (1e-200, 1e-210)])
def test_inverse_gaussians_with_tiny_means(mean1, mean2):
    with mpmath.workdps(50):
        a, b = mpf(mean1), mpf(mean2)
        truth = 2 * (a - b) ** 2 / (2 * a * b**2) + (1 - mpmath.log(2)) / 2
    got = float(kl(f.InverseGaussian(mean=mean1, shape=1.0), f.InverseGaussian(mean=mean2, shape=2.0)))
    assert got == pytest.approx(float(truth), rel=1e-12)
    same = f.InverseGaussian(mean=mean1, shape=1.0)
    assert float(kl(same, same)) == 0
