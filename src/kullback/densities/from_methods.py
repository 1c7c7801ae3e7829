"""Samplers of objects that are not distributions of a supported library, from the methods that the objects have."""

from typing import Any

import numpy as np

from kullback.samples.monte_carlo import Sampler

__all__ = ["as_sampler"]


def as_sampler(distribution: Any) -> Sampler | None:
    """The sampler of an object with `resample`, `rvs` or `sample` and a log-density; None without those methods.

    Three interfaces are supported: `resample` and `logpdf` of SciPy's kernel density estimates, `rvs` and `logpdf` of
    SciPy's distributions, and `sample(count)` with `log_prob(x)`.
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
    if hasattr(distribution, "rvs") and hasattr(distribution, "logpdf"):
        return Sampler(
            lambda count, rng: distribution.rvs(size=count, random_state=rng),
            lambda x: np.reshape(distribution.logpdf(x), np.shape(x)[:1]),  # a scalar for a single draw
        )
    if hasattr(distribution, "log_prob") and hasattr(distribution, "sample"):
        return Sampler(lambda count, _: distribution.sample(count), distribution.log_prob)
    return None
