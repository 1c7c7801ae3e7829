"""The law of every estimate, for distributions of every library: 0 <= lower <= value <= upper, with the true KL inside.

The truth is the closed form of two normals, two exponentials or two Bernoullis in 40 digits, from parameters that
float32 represents. Every adapter describes the same pair, also as mixtures and as images under an invertible map.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro import distributions as nd
from numpyro.distributions import transforms as nt
from scipy import stats
from torch import distributions as td

from kullback import families as f
from kullback.measure import measure


def numbers(low: float, high: float, step: float = 2.0**-10) -> Any:
    """Multiples of a power of 2, which float32 represents."""
    return st.integers(round(low / step), round(high / step)).map(lambda count: count * step)


def torch_mixture(loc: float, scale: float) -> Any:
    normals = td.Normal(torch.tensor([loc, loc]), torch.tensor([scale, scale]))
    return td.MixtureSameFamily(td.Categorical(torch.tensor([0.25, 0.75])), normals)


NORMALS: dict[str, Callable[[float, float], Any]] = {
    "kullback": lambda m, s: f.Normal(loc=m, scale=s),
    "mixture": lambda m, s: f.NormalMixture(weights=[0.25, 0.75], locs=[m, m], scales=[s, s]),
    "torch": lambda m, s: td.Normal(torch.tensor(m), torch.tensor(s)),
    "torch mixture": torch_mixture,
    "torch affine": lambda m, s: td.TransformedDistribution(td.Normal(0.0, 1.0), td.AffineTransform(m, s)),
    "scipy": stats.norm,
    "scipy variable": lambda m, s: stats.Normal(mu=m, sigma=s),
    "numpyro": nd.Normal,
    "numpyro affine": lambda m, s: nd.TransformedDistribution(nd.Normal(), nt.AffineTransform(m, s)),
    "kernel density": lambda m, s: kernel_density(m, s),
}


def kernel_density(loc: float, scale: float) -> Any:
    """A kernel density estimate of equal points, which has one normal as its density."""
    estimate = stats.gaussian_kde([loc - 1.0, loc + 1.0])
    estimate.dataset = np.asarray([[loc, loc]])
    estimate.covariance = np.asarray([[scale**2]])
    estimate.cho_cov = np.asarray([[scale]])
    return estimate


EXPONENTIALS: dict[str, Callable[[float], Any]] = {
    "kullback": lambda r: f.Exponential(rate=r),
    "torch": lambda r: td.Exponential(torch.tensor(r)),
    "torch affine": lambda r: td.TransformedDistribution(
        td.TransformedDistribution(td.Exponential(torch.tensor(r)), td.AffineTransform(2.0, -4.0)),
        td.AffineTransform(0.5, -0.25),
    ),
    "torch power": lambda r: td.TransformedDistribution(td.Weibull(torch.tensor(1 / r), torch.tensor(1.0)), []),
    "scipy": lambda r: stats.expon(scale=1 / r),
    "numpyro": nd.Exponential,
    "numpyro affine": lambda r: nd.TransformedDistribution(nd.Exponential(r), nt.AffineTransform(0.0, 1.0)),
}
BERNOULLIS: dict[str, Callable[[float], Any]] = {
    "kullback": lambda p: f.Bernoulli(probs=p),
    "categorical": lambda p: f.Categorical(probs=[1 - p, p]),
    "torch": lambda p: td.Bernoulli(probs=torch.tensor(p)),
    "torch mixture": lambda p: td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.5, 0.5])), td.Bernoulli(torch.tensor([p, p]))
    ),
    "scipy": stats.bernoulli,
    "scipy values": lambda p: stats.binom(1, p),
    "numpyro": lambda p: nd.BernoulliProbs(jnp.asarray(p)),
}


def assert_law(estimate: Any, truth: mpmath.mpf, rounding: float) -> None:
    """The interval holds up to the rounding of the parameters to the dtype of the library."""
    low, high = estimate.interval
    assert 0 <= low <= estimate.value <= high, estimate
    slack = rounding * truth + 1e-15 * truth
    assert low - slack <= truth <= high + slack, (estimate, truth)


LAW = settings(max_examples=4, deadline=None)
# SciPy's 1 / rate is rounded; 2 - 4 x and the like are exact.
ROUNDING = 1e-13


@pytest.mark.parametrize("second", NORMALS)
@pytest.mark.parametrize("first", NORMALS)
@LAW
@given(numbers(-4, 4), numbers(0.0625, 8), numbers(-4, 4), numbers(0.0625, 8))
def test_normals(first: str, second: str, m1: float, s1: float, m2: float, s2: float) -> None:
    with mpmath.workdps(40):
        d = 2 * mpmath.log(mpmath.mpf(s1) / s2)
        truth = (mpmath.expm1(d) - d) / 2 + ((mpmath.mpf(m1) - m2) / s2) ** 2 / 2
        assert_law(measure(NORMALS[first](m1, s1), NORMALS[second](m2, s2)), truth, ROUNDING)
        assert_law(measure(NORMALS[first](m1, s1), NORMALS[second](m1, s1)), mpmath.mpf(0), 0)


@pytest.mark.parametrize("second", EXPONENTIALS)
@pytest.mark.parametrize("first", EXPONENTIALS)
@LAW
@given(st.sampled_from([2.0**k for k in range(-6, 7)]), st.sampled_from([2.0**k for k in range(-6, 7)]))
def test_exponentials(first: str, second: str, rate: float, other: float) -> None:
    with mpmath.workdps(40):
        d = mpmath.log(mpmath.mpf(other) / rate)
        assert_law(measure(EXPONENTIALS[first](rate), EXPONENTIALS[second](other)), mpmath.expm1(d) - d, ROUNDING)


@pytest.mark.parametrize("second", BERNOULLIS)
@pytest.mark.parametrize("first", BERNOULLIS)
@LAW
@given(numbers(2.0**-6, 1 - 2.0**-6), numbers(2.0**-6, 1 - 2.0**-6))
def test_bernoullis(first: str, second: str, share: float, other: float) -> None:
    with mpmath.workdps(40):
        a, b = mpmath.mpf(share), mpmath.mpf(other)
        truth = a * mpmath.log(a / b) + (1 - a) * mpmath.log((1 - a) / (1 - b))
        # MixtureSameFamily and Bernoulli of PyTorch round log-probabilities in float32.
        rounding = 1e-5 if "torch mixture" in (first, second) else ROUNDING
        estimate = measure(BERNOULLIS[first](share), BERNOULLIS[second](other))
        if rounding == ROUNDING or truth > 1e-3:
            assert_law(estimate, truth, rounding)
