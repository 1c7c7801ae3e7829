"""Gaussian mixtures: bounds, densities and draws, and the published example of a negative approximation."""

import math

import numpy as np
import pytest
from scipy import stats

from kullback.densities.from_families import as_density
from kullback.densities.gaussian_mixtures import components, mixture_bounds, sampler_of_components
from kullback.densities.quadrature import kl_quadrature
from kullback.errors import ShapeError
from kullback.families import NormalMixture


def on_the_line(weights, locs, scales):
    return components(weights, np.asarray(locs)[:, None], np.asarray(scales)[:, None, None] ** 2)


def in_space(rng, count, size):
    roots = rng.normal(size=(count, size, size))
    covariances = roots @ roots.transpose(0, 2, 1) / size + 0.3 * np.eye(size)
    return components(rng.dirichlet(np.ones(count)), 2 * rng.normal(size=(count, size)), covariances)


def test_variational_approximation_can_be_negative():
    modes, wide = on_the_line([0.5, 0.5], [-1.0, 1.0], [1.0, 1.0]), on_the_line([1.0], [0.0], [math.sqrt(2)])
    bounds = mixture_bounds(modes, wide)
    assert bounds.variational == pytest.approx(-0.2196, abs=1e-4)
    assert bounds.upper == pytest.approx(0.3466, abs=1e-4)
    record = NormalMixture(weights=[0.5, 0.5], locs=[-1.0, 1.0], scales=[1.0, 1.0])
    truth = kl_quadrature(
        as_density(record), as_density(NormalMixture(weights=[1.0], locs=[0.0], scales=[math.sqrt(2)]))
    )
    assert truth.value == pytest.approx(0.009743, abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_upper_bound_is_above_the_kl(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))
    weights = rng.dirichlet(np.ones(count), size=2)
    locs, scales = 3 * rng.normal(size=(2, count)), np.exp(rng.normal(size=(2, count)))
    p, q = (NormalMixture(weights=w, locs=m, scales=s) for w, m, s in zip(weights, locs, scales, strict=True))
    truth = kl_quadrature(as_density(p), as_density(q)).value
    bounds = mixture_bounds(*(on_the_line(w, m, s) for w, m, s in zip(weights, locs, scales, strict=True)))
    assert bounds.upper >= truth - 1e-12
    # The bound is a minimum over pairings of components; pairing by order is an upper bound of the minimum.
    if count == 1:
        assert bounds.upper == pytest.approx(truth, rel=1e-10)
        assert bounds.variational == pytest.approx(truth, rel=1e-10)


def test_bounds_of_equal_mixtures_are_zero():
    rng = np.random.default_rng(1)
    mixture = in_space(rng, 4, 3)
    bounds = mixture_bounds(mixture, mixture)
    assert bounds.variational == pytest.approx(0.0, abs=1e-12)
    assert bounds.upper == pytest.approx(0.0, abs=1e-6)


def test_density_and_draws_of_a_mixture():
    rng = np.random.default_rng(2)
    mixture = in_space(rng, 3, 4)
    sampler = sampler_of_components(mixture)
    x = sampler.sample(50_000, rng)
    truth = np.zeros(100)
    for weight, loc, covariance in zip(*mixture, strict=True):
        truth += weight * stats.multivariate_normal(loc, covariance).pdf(x[:100])
    np.testing.assert_allclose(sampler.log_density(x[:100]), np.log(truth), rtol=1e-12)
    mean = mixture.weights @ mixture.locs
    assert np.abs(x.mean(axis=0) - mean).max() < 0.05


def test_components_of_weight_zero_are_dropped():
    kept = on_the_line([1.0], [0.0], [1.0])
    more = on_the_line([1.0, 0.0], [0.0, 50.0], [1.0, 1.0])
    assert mixture_bounds(more, kept) == mixture_bounds(kept, kept)


def test_inconsistent_shapes_raise():
    with pytest.raises(ShapeError, match=r"got shapes \(2,\), \(2, 3\), \(2, 3\)"):
        components([0.5, 0.5], np.zeros((2, 3)), np.zeros((2, 3)))
