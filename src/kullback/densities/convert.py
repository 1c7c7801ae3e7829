"""What quadrature, summation and Monte Carlo can know of a distribution, whichever library it comes from."""

from math import inf, isfinite
from typing import Any

import numpy as np

from kullback.densities.density import Density
from kullback.densities.from_families import of_record
from kullback.densities.from_numpyro import of_numpyro, sampler_of_numpyro
from kullback.densities.from_scipy import of_frozen, of_random_variable
from kullback.densities.from_torch import components_of_torch, of_torch, sampler_of_torch
from kullback.densities.gaussian_mixtures import Components, components_of_record, sampler_of_components
from kullback.families import Distribution, Transformed
from kullback.numerics.arrays import Array
from kullback.samples.monte_carlo import Sampler

__all__ = ["as_components", "as_density", "as_sampler"]


def as_density(distribution: Any) -> Density | None:
    """Its density on the line; None if it has none, or none that is known."""
    if isinstance(distribution, Transformed) and _is_absolute(distribution.transform):
        base = as_density(distribution.base)
        return None if base is None or base.discrete else _folded(base)
    if isinstance(distribution, Distribution):
        return of_record(distribution)
    if _is_torch(distribution):
        return of_torch(distribution)
    if _is_numpyro(distribution):
        return of_numpyro(distribution)
    if _is_scipy(distribution):
        if hasattr(distribution, "dist"):
            return of_frozen(distribution)
        if hasattr(distribution, "icdf"):
            return of_random_variable(distribution)
        if hasattr(distribution, "ppf") and distribution.numargs == 0:
            return of_frozen(distribution())
    return None


def _is_absolute(transform: Any) -> bool:
    """Whether it is |x|: by name, or PyTorch's."""
    parts = transform if isinstance(transform, tuple) else (transform,)
    return len(parts) == 1 and (parts[0] == "abs" or type(parts[0]).__name__ == "AbsTransform")


def _folded(base: Density) -> Density:
    """|x|, whose density is that of x and that of -x together."""
    low, high = base.support

    def log_density(origin: Array, offset: Array) -> Array:
        logs = np.logaddexp(base.log_density(origin, offset), base.log_density(-origin, -offset))
        return np.where(origin + offset >= 0, logs, -inf)

    ends = ((end, (high - low) / 4) for end in base.support if isfinite(high - low))
    anchors = tuple((abs(place), width) for place, width in (*base.anchors, *ends))
    sample = base.sample and (lambda count, rng: abs(base.sample(count, rng)))  # pyright: ignore[reportOptionalCall]
    return Density(log_density, (max(low, -high, 0.0), max(high, -low)), anchors, sample=sample)


def as_components(distribution: Any) -> Components | None:
    """Its parts, if it is a normal of vectors or a mixture of them."""
    if isinstance(distribution, Components):
        return distribution
    if isinstance(distribution, Distribution):
        return components_of_record(distribution)
    return components_of_torch(distribution) if _is_torch(distribution) else None


def as_sampler(distribution: Any) -> Sampler | None:
    """Its draws and its log-density, if it gives both."""
    if parts := as_components(distribution):
        return sampler_of_components(parts)
    if _is_torch(distribution):
        return sampler_of_torch(distribution)
    if _is_numpyro(distribution):
        return sampler_of_numpyro(distribution)
    density = as_density(distribution)
    if density is not None:
        return _of_density(density)
    if hasattr(distribution, "resample") and hasattr(distribution, "logpdf"):  # SciPy's kernel density estimate
        flat = distribution.d == 1
        return Sampler(
            lambda count, rng: distribution.resample(count, rng)[0 if flat else ...].T,
            lambda x: distribution.logpdf(np.asarray(x).T),
        )
    if hasattr(distribution, "rvs") and hasattr(distribution, "logpdf"):
        return Sampler(
            lambda count, rng: distribution.rvs(size=count, random_state=rng),
            lambda x: np.reshape(distribution.logpdf(x), np.shape(x)[:1]),  # of one place it is a number
        )
    if hasattr(distribution, "log_prob") and hasattr(distribution, "sample"):
        return Sampler(lambda count, _: distribution.sample(count), distribution.log_prob)
    return None


def _of_density(density: Density) -> Sampler | None:
    def log_density(x: Array) -> Array:
        return density.log_density(np.asarray(x, dtype=np.float64), np.zeros(np.shape(x)))

    return Sampler(density.sample, log_density) if density.sample else None


def _is_torch(distribution: Any) -> bool:
    return any(kind.__module__ == "torch.distributions.distribution" for kind in type(distribution).__mro__)


def _is_numpyro(distribution: Any) -> bool:
    return any(kind.__module__ == "numpyro.distributions.distribution" for kind in type(distribution).__mro__)


def _is_scipy(distribution: Any) -> bool:
    return any(kind.__module__.startswith("scipy.stats") for kind in type(distribution).__mro__)
