"""Gaussian mixtures of scikit-learn: KL by quadrature in one dimension, and by samples and bounds in several."""

import numpy as np
import pytest

from kullback import fit_reverse, kl, measure
from kullback.densities.gaussian_mixtures import log_density_of_components
from kullback.densities.resolve import resolve
from kullback.errors import NoClosedFormError, ParameterError
from kullback.families import MultivariateNormal, Normal, NormalMixture

mixture = pytest.importorskip("sklearn.mixture")


def samples(dimension):
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(60, dimension)), rng.normal(3.0, 0.5, size=(40, dimension))])


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_the_density_equals_score_samples(covariance_type):
    x = samples(2)
    fitted = mixture.GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(x)
    found = resolve(fitted).components
    roots = np.linalg.cholesky(found.covariances)
    log_density = log_density_of_components(np.log(found.weights), found.locs, roots, x)
    assert log_density == pytest.approx(fitted.score_samples(x), rel=1e-10)


def test_one_feature_is_measured_by_quadrature():
    fitted = mixture.GaussianMixture(2, random_state=0).fit(samples(1))
    estimate = measure(fitted, Normal(loc=1.0, scale=2.0))
    assert estimate.method == "quadrature"
    x = np.linspace(-30, 30, 200_001)
    log_p = fitted.score_samples(x[:, None])
    log_q = -(((x - 1) / 2) ** 2) / 2 - np.log(2 * np.sqrt(2 * np.pi))
    assert estimate.value == pytest.approx(np.trapezoid(np.exp(log_p) * (log_p - log_q), x), rel=1e-9)
    assert len(fit_reverse(Normal, target=fitted).minima) == len(
        fit_reverse(
            Normal,
            target=NormalMixture(
                weights=fitted.weights_, locs=fitted.means_[:, 0], scales=np.sqrt(fitted.covariances_[:, 0, 0])
            ),
        ).minima
    )


def test_several_features():
    x = samples(2)
    one = mixture.GaussianMixture(1, random_state=0).fit(x)
    normal = MultivariateNormal(loc=[0.0, 0.0], covariance_matrix=np.eye(2))
    assert kl(one, normal) == kl(MultivariateNormal(loc=one.means_[0], covariance_matrix=one.covariances_[0]), normal)
    two = mixture.GaussianMixture(2, random_state=0).fit(x)
    with pytest.raises(NoClosedFormError, match="measure"):
        kl(two, one)
    estimate = measure(two, one)
    assert estimate.interval[0] <= estimate.value <= estimate.interval[1]
    assert measure(one, one).value == 0


def test_a_mixture_that_is_not_fitted_is_refused():
    with pytest.raises(ParameterError, match=r"call its fit\(X\) first"):
        measure(mixture.GaussianMixture(2), Normal(loc=0.0, scale=1.0))
