"""Validation of samples and of their weights, and their weighted moments."""

from math import inf
from typing import Any

import numpy as np

from kullback import families
from kullback.closed_forms.supports import has_moving_support, shared_support
from kullback.densities.from_families import as_density
from kullback.discrete.validation import MASS_TOLERANCES
from kullback.errors import ArrayTypeError, ShapeError, SupportError
from kullback.families import Distribution
from kullback.numerics.arrays import Array, ArrayLike, as_numpy
from kullback.numerics.labels import is_labelled, plain_arrays, require_unlabelled

__all__ = [
    "WRAPPED",
    "as_samples",
    "matched_weights",
    "mean_and_covariance",
    "normalised_weights",
    "require_samples_between_ends",
    "require_samples_in_support",
    "vectors_in_support",
]

WRAPPED = "(x + pi) % (2 * pi) - pi"  # angles in (-pi, pi], for messages
_LARGEST_WEIGHT = 1e290


def as_samples(samples: ArrayLike) -> Array:
    """Finite samples of shape (n,) or (n, d) as float64.

    Raises:
        ArrayTypeError: The samples are complex.
        ShapeError: The samples have another shape, or there are none.
        SupportError: A sample is infinite or nan.
    """
    given = as_numpy(plain_arrays(samples)[0])
    if given.dtype.kind == "c":
        raise ArrayTypeError(f"expected real samples, got dtype {given.dtype}; pass the real part, or the modulus")
    x = given.astype(np.float64)
    if x.ndim not in (1, 2) or x.size == 0:
        raise ShapeError(f"expected samples of shape (n,) or (n, d) with n > 0 and d > 0, got shape {x.shape}")
    if not np.isfinite(x).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise SupportError(
            f"expected finite samples, but samples[{', '.join(map(str, index))}] is {float(x[index])!r}; leave the "
            "sample out"
        )
    return x


def matched_weights(samples: Any, weights: Any) -> Any:
    """The weights, without labels; weights with labels are put into the order of the samples.

    Raises:
        ArrayTypeError: The weights have labels, and the samples have none.
        LabelError: Samples and weights have different labels.
    """
    if weights is None or not is_labelled(weights):
        return weights
    if not is_labelled(samples):
        require_unlabelled("weights", weights)
    return plain_arrays(samples.T if samples.ndim == 2 else samples, weights)[1]


def normalised_weights(weights: ArrayLike | None, count: int) -> Array:
    """The weights of `count` samples, scaled to sum 1; equal weights if `weights` is None.

    Raises:
        ShapeError: The weights are not of shape (count,).
        SupportError: A weight is negative, infinite or nan, or all are zero.
    """
    if weights is None:
        return np.full(count, 1 / count)
    w = as_numpy(plain_arrays(weights)[0], np.float64)
    if w.shape != (count,):
        raise ShapeError(f"expected weights of shape ({count},), one for each sample, got shape {w.shape}")
    if not ((w >= 0).all() and 0 < w.max() < inf):
        raise SupportError(
            f"expected finite weights >= 0, of which one is above 0, got a minimum of {float(w.min())!r} and a maximum "
            f"of {float(w.max())!r}"
        )
    total = w.sum() if w.max() < _LARGEST_WEIGHT else inf
    if total == inf:  # the sum overflows
        w = w / w.max()
        total = w.sum()
    return w / total


def mean_and_covariance(x: Array, weights: Array) -> tuple[Array, Array]:
    """The mean, shape (d,), and covariance, shape (d, d), of samples (n, d) with weights (n,) of sum 1."""
    loc = weights @ x
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses covariances that are not finite
        return loc, (weights[:, None] * (x - loc)).T @ (x - loc)


def require_samples_between_ends(family: type[Distribution], x: Array) -> None:
    """Raise SupportError at the first sample outside the support that all members share, or at its end."""
    low, high = shared_support(family)
    for i in np.flatnonzero((x <= low) | (x >= high))[:1].tolist():
        place = "outside" if x[i] < low or x[i] > high else "at an end, where the likelihood has no maximum"
        raise SupportError(
            f"expected samples between the ends of {family.__name__}'s support {(low, high)}, but samples[{i}] is "
            f"{float(x[i])!r}, {place}; remove the sample, or fit a family of wider support"
        )


def vectors_in_support(family: type[Distribution], x: Array) -> Array:
    """Samples (n, d) of a family of vectors. Sums that are 1 up to the rounding of float32 become 1.

    Raises:
        SupportError: A vector is not one-hot for `OneHotCategorical`, or its entries are not positive with sum 1 for
            `Dirichlet`.
    """
    given, sums = x, x.sum(1)
    if family is families.OneHotCategorical:
        outside, words = ~np.isin(x, (0.0, 1.0)).all(1) | (sums != 1), "vectors of one 1 and otherwise 0"
    elif family is families.Dirichlet:
        outside, words = ~((x > 0).all(1) & (np.abs(sums - 1) <= MASS_TOLERANCES["float32"])), "positive with sum 1"
        x = x / sums[:, None]
    else:
        return x
    for i in np.flatnonzero(outside)[:1].tolist():
        raise SupportError(
            f"expected samples of {family.__name__} to be {words}, but samples[{i}] is {given[i].tolist()} with sum "
            f"{float(sums[i]):.9g}; remove the sample"
        )
    return x


def require_samples_in_support(family: type[Distribution], member: Distribution, x: Array) -> None:
    """Raise SupportError at the first sample outside the support of the family, which makes KL infinite.

    A support that depends on the parameters is fitted, so that no sample is outside.
    """
    density = as_density(member)
    assert density is not None
    with np.errstate(all="ignore"):
        log_density = density.log_density(x, np.zeros_like(x))
    outside = np.flatnonzero((log_density == -inf) & ~((x >= density.support[0]) & (x <= density.support[1])))
    if density.discrete:
        outside = np.union1d(outside, np.flatnonzero(x % 1 != 0))
    if outside.size and not has_moving_support(family):
        i = int(outside[0])
        raise SupportError(
            f"expected samples inside {family.__name__}'s support {density.support}"
            f"{' of whole numbers' if density.discrete else ''}, but samples[{i}] is {float(x[i])!r}, which makes "
            f"KL(p || q) inf for every member; {remedy_outside_support(family)}"
        )


def remedy_outside_support(family: type[Distribution]) -> str:
    """What to do where the support of a family does not contain the samples or the target."""
    if family is families.VonMises:
        return f"wrap the angles into (-pi, pi], by {WRAPPED}"
    return "remove the sample, or fit a family of wider support"
