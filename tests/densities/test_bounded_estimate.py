"""Estimates with an error bound: a value >= 0 inside its own interval, also where p and q are equal up to rounding."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.densities.bounded_estimate import Integrals, bounded_estimate
from kullback.densities.gaussian_mixtures import components, mixture_bounds
from kullback.families import Normal, NormalMixture
from kullback.measure import measure

EXPONENTS = st.floats(-3, 3)


def split_normal(loc, scale, weights):
    """A normal distribution as a mixture of equal components."""
    return NormalMixture(weights=weights, locs=[loc] * len(weights), scales=[scale] * len(weights))


def assert_honest(estimate, truth):
    low, high = estimate.interval
    assert 0 <= low <= estimate.value <= high
    assert low <= truth <= high


def test_equal_distributions_are_not_negative():
    assert_honest(measure(split_normal(0.0, 1.0, [0.5, 0.5]), Normal(loc=0.0, scale=1.0)), 0)


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 3), EXPONENTS, st.lists(st.floats(0.05, 1), min_size=2, max_size=4))
def test_equal_mixtures_of_any_scale(shift, exponent, weights):
    loc, scale = shift * 10.0**exponent, 10.0 ** (-exponent)
    weights = (np.asarray(weights) / sum(weights)).tolist()
    p, q = split_normal(loc, scale, weights), Normal(loc=loc, scale=scale)
    for estimate in (measure(p, q), measure(q, p)):
        assert_honest(estimate, 0)
        assert estimate.value < 1e-28


@settings(max_examples=40, deadline=None)
@given(st.floats(-17, -10), st.floats(-1, 1), st.floats(-1, 1))
def test_mixtures_that_are_equal_up_to_rounding(exponent, shift, stretch):
    loc, scale = 0.25 + 10.0**exponent * shift, 1.5 * (1 + 10.0**exponent * stretch)
    with mpmath.workdps(50):
        d = mpmath.log(mpmath.mpf(1.5) / scale)
        truth = (mpmath.expm1(2 * d) - 2 * d) / 2 + ((mpmath.mpf(0.25) - loc) / scale) ** 2 / 2
    assert_honest(measure(split_normal(0.25, 1.5, [0.5, 0.5]), Normal(loc=loc, scale=scale)), truth)


def test_masses_that_differ_more_than_the_densities_add_to_the_bound():
    """The rounding of the masses contributes phi(log(Q / P)) = 5e-31, which is more than the integral."""
    estimate = bounded_estimate(Integrals(kl=1e-31, mass_p=1.0, mass_q=1 + 1e-15, kl_error=1e-32), 1e-10, "quadrature")
    assert_honest(estimate, 0)
    assert estimate.error >= 5e-31


def test_upper_bound_of_equal_mixtures_is_not_negative():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(1, 5))
        weights = rng.dirichlet(np.ones(count))
        locs, roots = rng.normal(size=(count, 2)), rng.normal(size=(count, 2, 2))
        mixture = components(weights, locs, roots @ np.swapaxes(roots, 1, 2) + np.eye(2))
        assert 0 <= mixture_bounds(mixture, mixture).upper < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_an_estimate_above_the_bound_of_the_mixtures_is_inside_its_interval(seed):
    p = components([0.5, 0.5], [[0.0, 0.0], [0.0, 0.0]], [np.eye(2)] * 2)
    q = components([1.0], [[1e-3, 0.0]], [np.eye(2)])
    estimate = measure(p, q, draws=100, seed=seed)
    assert estimate.interval[0] <= estimate.value <= estimate.interval[1]
    assert math.isfinite(estimate.value)
