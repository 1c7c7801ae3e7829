"""Samplers of objects that are not distributions of a supported library, from the methods that the objects have."""

from typing import Any

import numpy as np

from kullback.samples.monte_carlo import Sampler

__all__ = ["as_sampler"]


def as_sampler(distribution: Any) -> Sampler | None:
    """The log-density of an object, with its sampler if it has one; None for an object without a log-density.

    Three interfaces are supported: `resample` and `logpdf` of SciPy's kernel density estimates, `rvs` and `logpdf` of
    SciPy's distributions (or `logpmf`), and `sample(count)` with `log_prob(x)`. An object with a log-density alone can
    be q, but not p.
    """
    if hasattr(distribution, "resample") and hasattr(distribution, "logpdf"):
        univariate = distribution.d == 1
        return Sampler(
            lambda count, rng: distribution.resample(count, rng)[0 if univariate else ...].T,
            lambda x: distribution.logpdf(np.asarray(x).T),
        )
    if type(distribution).__name__ == "normal_inverse_gamma_frozen":  # its value is a pair of arrays, (x, s2)
        return Sampler(
            lambda count, rng: np.stack(distribution.rvs(size=count, random_state=rng), axis=-1),
            lambda x: distribution.logpdf(x[..., 0], x[..., 1]),
        )
    if type(distribution).__name__ in ("wishart_frozen", "invwishart_frozen"):  # logpdf reads draws along the last axis
        return Sampler(
            lambda count, rng: np.reshape(
                distribution.rvs(size=count, random_state=rng), (count, distribution.dim, distribution.dim)
            ),
            lambda x: np.reshape(distribution.logpdf(np.moveaxis(np.asarray(x), 0, -1)), np.shape(x)[:1]),
        )
    if type(distribution).__name__ == "dirichlet_frozen":
        return Sampler(
            lambda count, rng: distribution.rvs(size=count, random_state=rng),
            lambda x: np.reshape(distribution.logpdf(np.asarray(x).T), np.shape(x)[:1]),
        )
    log_density = next(
        (getattr(distribution, name) for name in ("logpdf", "logpmf", "log_prob") if hasattr(distribution, name)), None
    )
    if log_density is None:
        return None
    if hasattr(distribution, "rvs"):
        return Sampler(
            lambda count, rng: distribution.rvs(size=count, random_state=rng),
            lambda x: np.reshape(log_density(x), np.shape(x)[:1]),  # a scalar for a single draw
        )
    if hasattr(distribution, "sample"):
        return Sampler(lambda count, _: distribution.sample(count), log_density)
    return Sampler(None, log_density)
