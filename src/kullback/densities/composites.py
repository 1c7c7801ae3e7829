"""Rules shared by the adapters: independent components, affine images, mixtures, and supports given by constraints."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import inf, isfinite, log
from typing import Any

import numpy as np

from kullback.densities.density import Density
from kullback.errors import NoClosedFormError
from kullback.families import Distribution, Independent
from kullback.numerics.arrays import Array

__all__ = [
    "affine_image",
    "constraint_bounds",
    "merged_independent",
    "mixture_density",
    "overridden_method",
    "require_methods_of_library",
    "require_no_mask",
    "support_interval",
]

# The methods and properties of a distribution's class that determine its density or are determined by it.
_METHODS = (
    *("log_prob", "sample", "rsample", "cdf", "icdf", "mean", "variance", "stddev", "support"),
    *("pdf", "logpdf", "pmf", "logpmf", "rvs", "ppf", "sf", "_pdf_formula", "_logpdf_formula", "_pmf_formula"),
)


@cache
def overridden_method(kind: type, packages: tuple[str, ...]) -> str | None:
    """The first method of the density that a subclass of a library's class overrides; None if it overrides none.

    A subclass that overrides the density of its parent is another distribution, to which the closed forms of the parent
    do not apply. A method that no class of the library implements, such as the mean of a transformed distribution, is
    added and not overridden.

    Args:
        kind: The class of a distribution.
        packages: The prefixes of the names of the library's modules.
    """
    own = [cls for cls in kind.__mro__ if not cls.__module__.startswith(packages)]
    theirs = [cls for cls in kind.__mro__ if cls.__module__.startswith(packages) and cls.__name__ != "Distribution"]
    defined = {name for cls in theirs for name in vars(cls)}
    return next((name for name in _METHODS if name in defined and any(name in vars(cls) for cls in own)), None)


def require_no_mask(distribution: Any) -> None:
    """Raise an error if a part of a distribution has a mask, by which its log_prob is not a log-density.

    Raises:
        NoClosedFormError: The distribution, or a distribution that it is built from, is masked.
    """
    name = type(distribution).__name__
    if name == "MaskedDistribution":
        raise NoClosedFormError(
            "expected a distribution without a mask, got a MaskedDistribution, whose log_prob is 0 where the mask is "
            "false and is not a log-density there; measure its base_dist, or the entries that the mask includes"
        )
    for part in ("base_dist", "component_distribution", "distribution"):
        inner = getattr(distribution, part, None)
        if inner is not None and hasattr(inner, "log_prob"):
            require_no_mask(inner)


def require_methods_of_library(distribution: Any, packages: tuple[str, ...]) -> None:
    """Raise NoClosedFormError if the class of a distribution overrides its density."""
    if (name := overridden_method(type(distribution), packages)) is not None:
        raise NoClosedFormError(
            f"{type(distribution).__name__} has no closed form, because it overrides {name} of its base class; "
            "kullback.measure(p, q) bounds or estimates the KL"
        )


def merged_independent(base: Distribution, event_dims: int) -> Distribution:
    """`Independent` of `base`, with nested `Independent` merged into one; `base` itself for 0 event dimensions."""
    if isinstance(base, Independent):
        base, event_dims = base.base, event_dims + base.event_dims
    return Independent(base=base, event_dims=event_dims) if event_dims else base


def constraint_bounds(constraint: Any) -> tuple[Any, Any]:
    """Lower and upper bound of a constraint object of PyTorch or NumPyro; -inf and inf where it has none."""
    constraint = _innermost(constraint)
    return getattr(constraint, "lower_bound", -inf), getattr(constraint, "upper_bound", inf)


def support_interval(constraint: Any) -> tuple[float, float]:
    """The interval that a support constraint of PyTorch or NumPyro describes; the real line if it has no bounds."""
    if type(_innermost(constraint)).__name__ == "_Boolean":
        return 0.0, 1.0
    low, high = constraint_bounds(constraint)
    return float(np.min(np.asarray(low))), float(np.max(np.asarray(high)))


def affine_image(base: Density, loc: float, scale: float) -> Density:
    """The density of loc + scale x, evaluated as the density of x, so that it keeps its accuracy near every end.

    Raises:
        NoClosedFormError: The base is discrete, and the image is not on the integers.
    """
    if base.discrete and not (abs(scale) == 1 and loc % 1 == 0):
        raise NoClosedFormError(
            f"expected a map of counts to whole numbers, got {loc:g} + {scale:g} x; measure the KL of the counts "
            "themselves"
        )

    def image_of(x: float) -> float:
        return loc + scale * x

    # The end that an origin is the image of; (origin - loc) / scale may be rounded across it.
    ends = {image_of(end): end for end in (*base.support, *base.fine_ends) if isfinite(end)}

    def log_density(origin: Array, offset: Array) -> Array:
        start = (origin - loc) / scale
        for image, end in ends.items():
            start = np.where(origin == image, end, start)
        return base.log_density(start, offset / scale) - log(abs(scale))

    low, high = sorted(map(image_of, base.support))
    draw = base.sample
    return replace(
        base,
        log_density=log_density,
        support=(low, high),
        anchors=tuple((image_of(location), abs(scale) * width) for location, width in base.anchors),
        fine_ends=tuple(map(image_of, base.fine_ends)),
        sample=None if draw is None else lambda count, rng: loc + scale * draw(count, rng),
        gaps=tuple(sorted((min(image_of(a), image_of(b)), max(image_of(a), image_of(b))) for a, b in base.gaps)),
    )


def mixture_density(weights: Array, parts: Sequence[Density]) -> Density:
    """The density of a mixture: sum_i weights_i parts_i, whose supports may differ and may leave gaps.

    Raises:
        NoClosedFormError: Some components are discrete and others are continuous.
    """
    given = np.asarray(weights, np.float64)
    chosen = [(weight, part) for weight, part in zip(given / given.sum(), parts, strict=True) if weight > 0]
    shares, parts = np.asarray([weight for weight, _ in chosen]), [part for _, part in chosen]
    if len({part.discrete for part in parts}) > 1:
        raise NoClosedFormError(
            "expected components that are all discrete or all continuous, got a mixture of both, which has no density"
        )

    def log_density(origin: Array, offset: Array) -> Array:
        logs = np.asarray([part.log_density(origin, offset) for part in parts])
        logs += np.log(shares).reshape(-1, *[1] * (logs.ndim - 1))
        largest = logs.max(axis=0)
        finite = np.abs(largest) < inf
        total = np.exp(logs - np.where(finite, largest, 0.0)).sum(axis=0)
        return np.where(finite, largest + np.log(np.where(finite, total, 1.0)), largest)

    def sample(count: int, rng: Any) -> Array:
        counts = rng.multinomial(count, shares)
        draws = [part.sample(int(size), rng) for part, size in zip(parts, counts, strict=True)]  # pyright: ignore
        return rng.permutation(np.concatenate(draws))

    intervals = sorted(interval for part in parts for interval in _positive_intervals(part))
    gaps, reach = [], intervals[0][1]
    for low, high in intervals[1:]:
        if low > reach:
            gaps.append((reach, low))
        reach = max(reach, high)
    support = intervals[0][0], reach
    inner = {end for interval in intervals for end in interval if isfinite(end)}
    narrowest = min(width for part in parts for _, width in part.anchors)
    return Density(
        log_density,
        support,
        (*(anchor for part in parts for anchor in part.anchors), *((end, narrowest) for end in sorted(inner))),
        tuple(end for end in support if all(end in part.fine_ends for part in parts if end in part.support)),
        discrete=parts[0].discrete,
        sample=sample if all(part.sample for part in parts) else None,
        gaps=() if parts[0].discrete else tuple(gaps),
        epsilon=max(part.epsilon for part in parts),
    )


def _positive_intervals(density: Density) -> list[tuple[float, float]]:
    """The intervals between the gaps of the support."""
    edges = [density.support[0], *(edge for gap in density.gaps for edge in gap), density.support[1]]
    return [(low, high) for low, high in list(pairwise(edges))[::2]]


def _innermost(constraint: Any) -> Any:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint
