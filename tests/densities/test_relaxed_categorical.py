"""Relaxed categorical distributions of one temperature against mpmath, and against draws."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro import distributions as numpyro_distributions
from torch import distributions as td

from kullback.densities.relaxed_categorical import kl_relaxed_categorical
from kullback.errors import ShapeError, SupportError
from kullback.measure import measure

HALF = math.cosh(0.5) / math.sinh(0.5) - 2  # of logits 1 and 0, at every temperature
LOGITS = st.lists(st.floats(-6, 6), min_size=2, max_size=5)


def by_mpmath(logits_p, logits_q):
    """n E[log sum_i w_i D_i] - sum_i log w_i for D uniform on the simplex, by the integral of (e^-t - e^-ut) / t."""
    with mpmath.workdps(40):
        logs = [mpmath.mpf(b) - mpmath.mpf(a) for a, b in zip(logits_p, logits_q, strict=True)]
        weights, count = [mpmath.exp(value) for value in logs], len(logs)

        def term(s):
            t = mpmath.exp(s)
            return (1 + t) ** -count - 1 / mpmath.fprod(1 + t * w for w in weights)

        return count * mpmath.quad(term, [-90, -30, -12, -6, -2, 0, 2, 6, 12, 30, 90]) - mpmath.fsum(logs)


@settings(max_examples=25, deadline=None)
@given(LOGITS, st.integers(0, 2**32 - 1), st.sampled_from([1e-8, 1e-3, 1.0, 8.0]))
def test_value_is_within_the_bound(logits, seed, size):
    other = (np.asarray(logits) + size * np.random.default_rng(seed).normal(size=len(logits))).tolist()
    estimate, truth = kl_relaxed_categorical(logits, other), by_mpmath(logits, other)
    assert estimate.status == "bounded"
    assert abs(mpmath.mpf(estimate.value) - truth) <= estimate.error + 1e-25
    assert 0 <= estimate.interval[0] <= estimate.value <= estimate.interval[1]


def test_equal_and_distant_logits():
    assert kl_relaxed_categorical([0.0, 3.0], [1.0, 4.0]).value == 0
    # sum log w + n log of the largest weight, up to terms that vanish: 3000 - 2.
    far = kl_relaxed_categorical([0.0, 0.0], [3000.0, 0.0])
    assert far.value == pytest.approx(2998.0, rel=1e-13)
    assert far.status == "bounded"


def test_invalid_logits_raise():
    with pytest.raises(ShapeError, match=r"one shape \(n,\), got shapes \(2,\) and \(3,\)"):
        kl_relaxed_categorical([0.0, 0.0], [0.0, 0.0, 0.0])
    with pytest.raises(SupportError, match="finite logits of q, got inf at index 1"):
        kl_relaxed_categorical([0.0, 0.0], [0.0, math.inf])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.3, 1.0, 5.0])
def test_value_is_the_same_at_every_temperature(temperature, dtype):
    temperature = torch.tensor(temperature, dtype=dtype)
    binary = [td.RelaxedBernoulli(temperature, logits=torch.tensor(x, dtype=dtype)) for x in (1.0, 0.0)]
    assert measure(*binary).value == pytest.approx(HALF, rel=1e-14)
    pair = [td.RelaxedOneHotCategorical(temperature, logits=torch.tensor([x, 0.0], dtype=dtype)) for x in (1.0, 0.0)]
    # PyTorch normalizes the logits in their dtype.
    assert measure(*pair).value == pytest.approx(HALF, rel=1e-14 if dtype == torch.float64 else 1e-6)
    assert measure(*pair).status == "bounded"
    theirs = [numpyro_distributions.RelaxedBernoulliLogits(temperature.item(), logits=x) for x in (1.0, 0.0)]
    assert measure(*theirs).value == pytest.approx(HALF, rel=1e-14)


def test_value_agrees_with_draws():
    temperature = torch.tensor(0.1)
    logits = [torch.tensor(values) for values in ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0])]
    p, q = (td.RelaxedOneHotCategorical(temperature, logits=each) for each in logits)
    exact, drawn = measure(p, q), measure(p, q, method="Monte Carlo")
    assert drawn.status == "estimated"
    assert abs(exact.value - drawn.value) < 5 * drawn.std_error


def test_different_temperatures():
    p, q = (td.RelaxedBernoulli(torch.tensor(t), logits=torch.tensor(x)) for t, x in ((0.25, 1.0), (0.5, 0.0)))
    with mpmath.workdps(30):

        def log_logistic(x, loc, scale):
            z = (x - loc) / scale
            return -z - mpmath.log(scale) - 2 * mpmath.log1p(mpmath.exp(-z))

        def term(x):
            log_p = log_logistic(x, mpmath.mpf(4), mpmath.mpf(4))
            return mpmath.exp(log_p) * (log_p - log_logistic(x, mpmath.mpf(0), mpmath.mpf(2)))

        truth = mpmath.quad(term, [-400, -100, -20, 0, 4, 20, 100, 400])
    estimate = measure(p, q)
    assert estimate.status == "bounded"
    assert abs(mpmath.mpf(estimate.value) - truth) <= estimate.error + 1e-15
    vectors = [
        td.RelaxedOneHotCategorical(torch.tensor(t), logits=torch.tensor([x, 0.0]))
        for t, x in ((0.25, 1.0), (0.5, 0.0))
    ]
    drawn = measure(*vectors)
    assert abs(drawn.value - float(truth)) < 5 * drawn.std_error
