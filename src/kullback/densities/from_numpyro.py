"""Densities and draws of NumPyro's distributions, for those that have no record; JAX is not imported by this."""

import sys
from math import ceil, inf, log
from typing import Any

import numpy as np

from kullback.densities.density import Density
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array
from kullback.samples.monte_carlo import Sampler

__all__ = ["of_numpyro", "sampler_of_numpyro"]

_LOOK = 4096  # draws to see where it lies; one number, since JAX compiles anew for each


def of_numpyro(distribution: Any) -> Density | None:
    """The density of a distribution of one number, or None for one of vectors, or that gives no draws.

    Raises:
        ShapeError: It is a batch.
    """
    sampler = sampler_of_numpyro(distribution)
    if distribution.event_shape or sampler is None:
        return None
    support = distribution.support
    low, high = _ends(support)
    discrete = bool(support.is_discrete)
    lower, middle, upper = np.quantile(sampler.sample(_LOOK, np.random.default_rng(0)), [0.25, 0.5, 0.75])
    width = float(upper - lower) / 2

    def log_density(origin: Array, offset: Array) -> Array:
        x = np.asarray(origin + offset, dtype=np.float64)
        inside = (x >= low) & (x <= high)
        seen = np.where(inside, x, middle)
        # JAX compiles anew for each shape: let there be few.
        flat = np.full(4 ** max(5, ceil(log(max(seen.size, 1), 4))), middle)
        flat[: seen.size] = seen.ravel()
        logs = sampler.log_density(flat.astype(np.int64) if discrete else flat)[: seen.size]
        return np.where(inside, logs.reshape(seen.shape), -inf)

    anchors = ((float(middle), width if width > 0 else 1.0),)
    return Density(log_density, (low, high), anchors, discrete=discrete, sample=sampler.sample)


def sampler_of_numpyro(distribution: Any) -> Sampler | None:
    """Its draws, as arrays, and their log-densities in float64; None if it does not know them."""
    if distribution.batch_shape:
        raise ShapeError(
            f"expected one distribution at a time, got {type(distribution).__name__} of batch shape "
            f"{tuple(distribution.batch_shape)}; measure each of them, or make it one event by to_event()"
        )
    jax = sys.modules["jax"]
    with jax.enable_x64(True):
        twin = jax.tree.map(lambda leaf: _double(leaf, jax.numpy), distribution)

    def sample(count: int, rng: Any) -> Array:
        with jax.enable_x64(True):
            return np.asarray(twin.sample(jax.random.PRNGKey(int(rng.integers(2**31))), (count,)))

    def log_density(x: Array) -> Array:
        with jax.enable_x64(True):
            return np.asarray(twin.log_prob(jax.numpy.asarray(x)), dtype=np.float64)

    try:
        log_density(sample(_LOOK, np.random.default_rng(0))[:1])
    except NotImplementedError:
        return None
    return Sampler(sample, log_density)


def _double(leaf: Any, jnp: Any) -> Any:
    array = jnp.asarray(leaf)
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else leaf


def _ends(support: Any) -> tuple[float, float]:
    """The interval that a constraint describes; the whole line where it describes none."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if type(support).__name__ == "_Boolean":
        return 0.0, 1.0
    low, high = getattr(support, "lower_bound", -inf), getattr(support, "upper_bound", inf)
    return float(np.min(np.asarray(low))), float(np.max(np.asarray(high)))
