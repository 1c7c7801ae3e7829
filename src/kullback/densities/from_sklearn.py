"""Adapter of scikit-learn, which is not imported: fitted Gaussian mixtures as mixtures of normal distributions."""

from typing import Any

import numpy as np

from kullback import families as f
from kullback.densities.gaussian_mixtures import Components, components
from kullback.errors import NoClosedFormError, ParameterError

__all__ = ["as_components", "as_family"]


def as_family(distribution: Any) -> f.Distribution:
    """The distribution of `kullback.families` that equals a fitted Gaussian mixture.

    Args:
        distribution: A fitted `sklearn.mixture.GaussianMixture`.

    Returns:
        A `NormalMixture` where the samples have one feature, and a `MultivariateNormal` where the mixture has one
        component.

    Raises:
        NoClosedFormError: The mixture has several components and several features.
        ParameterError: The mixture has not been fitted.
    """
    weights, locs, covariances = as_components(distribution)
    if locs.shape[1] == 1:
        return f.NormalMixture(weights=weights, locs=locs[:, 0], scales=np.sqrt(covariances[:, 0, 0]))
    if len(weights) == 1:
        return f.MultivariateNormal(loc=locs[0], covariance_matrix=covariances[0])
    raise NoClosedFormError(
        f"{type(distribution).__name__} has no closed form; kullback.measure(p, q) bounds or estimates the KL"
    )


def as_components(distribution: Any) -> Components:
    """The weights, the means and the covariance matrices of a fitted Gaussian mixture.

    Raises:
        ParameterError: The mixture has not been fitted.
    """
    if not hasattr(distribution, "covariances_"):
        raise ParameterError(
            f"expected a fitted {type(distribution).__name__}, got a mixture without parameters; call its fit(X) first"
        )
    locs, covariances = np.asarray(distribution.means_), np.asarray(distribution.covariances_)
    count, dimension = locs.shape
    match distribution.covariance_type:
        case "tied":
            covariances = np.broadcast_to(covariances, (count, dimension, dimension))
        case "diag" | "spherical":
            variances = covariances if covariances.ndim == 2 else covariances[:, None]
            covariances = variances[..., None] * np.eye(dimension)
    return components(distribution.weights_, locs, covariances)
