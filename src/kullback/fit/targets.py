"""Densities of targets: from a distribution, or from an unnormalised log-density on the real line."""

from collections.abc import Callable
from importlib import import_module
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from kullback.densities.density import Density
from kullback.densities.nodes import line_nodes
from kullback.densities.resolve import resolve
from kullback.errors import ArrayTypeError, KullbackError, SupportError
from kullback.numerics.arrays import Array

__all__ = [
    "Modes",
    "evaluate_log_prob",
    "find_modes",
    "is_multivariate",
    "normalise",
    "sample_dimension",
    "univariate_density",
]

# The errors of a user's log-density that are reported with its name.
_USER_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_MAX_MODES = 40
_NATS_BELOW_MODE = 40  # lower peaks are ignored
_NATS_BELOW_JUMP = 30  # a jump to 0 from a lower density is ignored
_REFINEMENTS = 6
_FAR = 1e12  # where the density of a target with infinite support must be negligible, in units of its extent or in 1
_LARGEST = 1e308
_MAX_LOG_DENSITY_FAR = -27.0  # 2e-12 of the largest density


def univariate_density(target: Any) -> Density | None:
    """The density of a univariate distribution; None for other distributions."""
    return resolve(target).density


def sample_dimension(distribution: Any) -> int | None:
    """The number of dimensions of a distribution's samples; 0 if univariate, None if it cannot be sampled."""
    sampler = resolve(distribution).native_sampler
    if sampler is None or sampler.sample is None:
        return None
    # SciPy's distributions drop the sample axis of a single sample.
    shape = np.shape(sampler.sample(2, np.random.default_rng(0)))
    return shape[1] if len(shape) > 1 else 0


def is_multivariate(example: Any) -> bool:
    """Whether an array of samples, or the samples of a distribution, are vectors."""
    return np.ndim(example) == 2 if isinstance(example, np.ndarray) else bool(sample_dimension(example))


class Modes(NamedTuple):
    """The modes of an unnormalised log-density.

    Args:
        anchors: The location and the width of each mode, the highest first.
        top: The largest value of the log-density.
    """

    anchors: tuple[tuple[float, float], ...]
    top: float


def normalise(
    log_prob: Callable[[Array], Any], support: tuple[float, float], modes: Modes | None = None
) -> tuple[Density, float]:
    """The density with an unnormalised log-density on the real line, and the logarithm of its integral.

    Args:
        log_prob: The log-density up to a constant, at points of shape (n,); -inf outside the support.
        support: The bounds of the support; either may be infinite.
        modes: The modes, if they have been found by `find_modes`.

    Returns:
        The normalised density and the log-evidence, in nats.

    Raises:
        SupportError: The log-density is nan at a point, is -inf everywhere, or has no finite integral.
    """

    def shifted(constant: float) -> Callable[[Array, Array], Array]:
        def log_density(origin: Array, offset: Array) -> Array:
            return _log_density_inside(log_prob, support, origin + offset) - constant

        return log_density

    support = _without_empty_ends(log_prob, support)
    anchors, top = find_modes(log_prob, support) if modes is None else modes
    with np.errstate(all="ignore"):
        log_width = float(np.log(anchors[0][1]))
        # The integral of the relative density is about 1 in every unit; the quadrature has an absolute tolerance.
        relative = Density(shifted(top + log_width), support, anchors)
        mass = float(np.exp(line_nodes(relative, relative).log_mass(relative)).sum())
        extent = _FAR * max([1.0, *(abs(location) + width for location, width in anchors)])
        far = [
            relative.log_density(np.zeros(1), np.asarray([np.clip(point, -_LARGEST, _LARGEST)]))[0] + log_width
            for point, bound in zip((-extent, extent), support, strict=True)
            if not isfinite(bound)
        ]
    if not 0 < mass < inf or max(far, default=-inf) > _MAX_LOG_DENSITY_FAR:
        location, width = anchors[0]
        reason = (
            f"the function does not vanish at infinity: it is e^{max(far):.3g} times its largest value at a distance "
            f"of {extent:.3g}"
            if 0 < mass < inf
            else f"the computed integral is {mass:g} times the largest value, which it has at {location:.3g}, times "
            f"the width {width:.3g} of its peak; where this is a matter of units, pass log_prob in other units of x"
        )
        raise SupportError(
            f"expected log_prob to be the logarithm of a function with a finite integral over {support}, but {reason}: "
            "pass support=, or pass a distribution as target"
        )
    log_evidence = top + log_width + float(np.log(mass))
    return Density(shifted(log_evidence), support, anchors), log_evidence


def _log_density_inside(log_prob: Callable[[Array], Any], support: tuple[float, float], x: Array) -> Array:
    """The log-density at points of any shape, with -inf outside the support."""
    inside = (x > support[0]) & (x < support[1])
    safe = np.where(inside, x, _interior_point(support))
    return np.where(inside, evaluate_log_prob(log_prob, np.ravel(safe)).reshape(x.shape), -inf)


def evaluate_log_prob(log_prob: Callable[[Any], Any], x: Array) -> Array:
    """A log-density at points of shape (n,) or (n, d), as an array of shape (n,).

    A function that does not accept arrays is called with a tensor.

    Raises:
        ArrayTypeError: The result is not an array of numbers.
        SupportError: `log_prob` is not a function, or its result has another shape, is complex, or is nan at a point.
    """
    if not callable(log_prob):
        raise SupportError(f"expected log_prob to be a function, got {log_prob!r:.80}")
    try:
        values = _as_floats(log_prob(x))
    except _USER_ERRORS:
        call_with_tensor = import_module("kullback.fit.stochastic").call_with_tensor
        try:
            values = _as_floats(call_with_tensor(log_prob, x))
        except KullbackError:
            raise
        except _USER_ERRORS as error:
            raise SupportError(
                f"expected log_prob to accept points of shape {x.shape}, but {getattr(log_prob, '__name__', 'it')} "
                f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error
    if values.shape != x.shape[:1]:
        raise SupportError(
            f"expected log_prob to return one value for each of {len(x)} points, shape {x.shape[:1]}, got shape "
            f"{values.shape}"
        )
    if np.isnan(values).any():
        point = x[np.isnan(values)][0].tolist()
        raise SupportError(f"expected log_prob to return numbers or -inf, but it is nan at {point!r}")
    return values


def _as_floats(result: Any) -> Array:
    if np.iscomplexobj(result):
        raise SupportError("expected log_prob to return real numbers, got complex numbers")
    try:
        return np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArrayTypeError(f"expected log_prob to return numbers, got {type(result).__name__}") from None


def _interior_point(support: tuple[float, float]) -> float:
    low, high = support
    if isfinite(low) and isfinite(high):
        return (low + high) / 2
    return low + 1 if isfinite(low) else high - 1 if isfinite(high) else 0.0


def _without_empty_ends(log_prob: Callable[[Array], Any], support: tuple[float, float]) -> tuple[float, float]:
    """The support, with an infinite end replaced by the point at which the density jumps to 0.

    The nodes of the quadrature must not cross such a jump. An end at which the density has already decayed is kept.
    """
    x = _initial_grid(support)
    with np.errstate(all="ignore"):
        values = _log_density_inside(log_prob, support, x)
        if np.count_nonzero(values > -inf) <= 1:
            x = np.union1d(x, _near_grid(support))
            values = _log_density_inside(log_prob, support, x)
    inside = np.flatnonzero(values > -inf)
    if not inside.size:
        return support
    ends = list(support)
    for end, first, step in ((0, inside[0], -1), (1, inside[-1], 1)):
        if isfinite(ends[end]) or not 0 <= first + step < x.size or values[first] < values.max() - _NATS_BELOW_JUMP:
            continue
        outer, inner = x[first + step], x[first]
        for _ in range(12):
            points = np.linspace(outer, inner, 65)
            with np.errstate(all="ignore"):
                is_inside = _log_density_inside(log_prob, support, points) > -inf
            last = int(np.flatnonzero(~is_inside)[-1])
            outer, inner = points[last], points[min(last + 1, 64)]
        ends[end] = float(outer)
    return ends[0], ends[1]


def find_modes(log_prob: Callable[[Array], Any], support: tuple[float, float]) -> Modes:
    """The modes of a log-density with their widths, on a grid that is refined near the peaks, and its largest value.

    The width of a mode is the distance to the nearest grid point at which the log-density is lower by half a nat.
    """

    support = _without_empty_ends(log_prob, support)

    def log_density(x: Array) -> Array:
        return _log_density_inside(log_prob, support, x)

    x = _initial_grid(support)
    with np.errstate(all="ignore"):
        values = log_density(x)
        if not isfinite(support[0] + support[1]):
            for nearest, farthest in ((1e6, 1e11), (1e11, 1e305)):
                if not _ends_are_near(values, support if nearest > 1e6 else (-inf, inf)):
                    break
                wider = np.union1d(x, _distant_grid(support, nearest, farthest))
                found = log_density(wider)
                # A function that does not decrease up to the largest numbers has no peak there.
                if farthest < 1e12 or not _ends_are_near(found, support):
                    x, values = wider, found
        top = int(np.nanargmax(values))
        neighbours = values[max(top - 1, 0) : top + 2]
        is_at_bound = (top == 0 and isfinite(support[0])) or (top == x.size - 1 and isfinite(support[1]))
        if is_at_bound or (neighbours >= values[top] - _NATS_BELOW_MODE).sum() == 1:
            x = np.union1d(x, _near_grid(support))  # the peak is narrower than the grid, or nearer to the bound
            values = log_density(x)
        if not (values > -inf).any():
            raise SupportError(
                f"expected log_prob above -inf at some point of {support}, but it is -inf at all {x.size} points of "
                "the grid: pass support=, or shift the argument so that the mass lies near 0"
            )
        for _ in range(_REFINEMENTS):
            is_near_top = np.flatnonzero(values >= values.max() - _NATS_BELOW_MODE)
            first, last = max(is_near_top[0] - 1, 0), min(is_near_top[-1] + 1, x.size - 1)
            grid = np.linspace(x[first], x[last], 4001)
            peaks = _local_maxima(values)
            peaks = peaks[values[peaks] >= values.max() - _NATS_BELOW_MODE][:50]
            near_peaks = [np.linspace(x[max(i - 1, 0)], x[min(i + 1, x.size - 1)], 65) for i in peaks]
            new = np.setdiff1d(np.concatenate([grid, *near_peaks]), x)
            x = np.concatenate([x, new])
            values = np.concatenate([values, log_density(new)])
            order = np.argsort(x)
            x, values = x[order], values[order]
        if values.max() == inf:
            values = np.where(values == inf, np.finfo(float).max, values)
    top, anchors = float(values.max()), []
    for i in _separated_peaks(values):
        if values[i] >= top - _NATS_BELOW_MODE:
            lower = np.flatnonzero(values < values[i] - 0.5)
            nearest = lower[lower < i][-1:].tolist() + lower[lower > i][:1].tolist()
            widths = [abs(x[j] - x[i]) for j in nearest]
            anchors.append((float(x[i]), float(min(widths, default=1.0))))
    return Modes(tuple(anchors), top)


def _ends_are_near(values: Array, support: tuple[float, float] = (-inf, inf)) -> bool:
    """Whether values on a grid differ by less than half a nat, or the largest is at an infinite end of the support."""
    top = np.nanargmax(values)
    is_at_end = (top == 0 and not isfinite(support[0])) or (top == values.size - 1 and not isfinite(support[1]))
    return bool(values.max() - values.min() < 0.5 or is_at_end)


def _initial_grid(support: tuple[float, float]) -> Array:
    """A grid over the support that is dense near 0, or near a finite bound, and reaches a distance of 1e6."""
    low, high = support
    if isfinite(low) and isfinite(high):
        near_bound = np.geomspace(1e-9, 0.5, 500)
        return low + (high - low) * np.unique(
            np.concatenate([np.linspace(0, 1, 4003)[1:-1], near_bound, 1 - near_bound])
        )
    geometric, uniform = np.geomspace(1e-6, 1e6, 1500), np.linspace(-1.0, 1.0, 4001)
    grid = np.unique(
        np.concatenate([np.concatenate([-geometric[::-1], [0.0], geometric]), 100 * uniform, uniform * 1e3])
    )
    if isfinite(low):
        return low + grid[grid > 0]
    if isfinite(high):
        return high - grid[grid > 0][::-1]
    return grid


def _distant_grid(support: tuple[float, float], nearest: float, farthest: float) -> Array:
    """A grid over a support with an infinite bound at distances between two bounds."""
    return _at_distances(support, np.geomspace(nearest, farthest, 1500 if farthest < 1e12 else 6000))


def _near_grid(support: tuple[float, float]) -> Array:
    """A grid inside the support at distances below 1e-6 from 0, or from a finite bound."""
    low, high = support
    distances = np.geomspace(1e-305, 1e-6, 6000)
    if isfinite(low) and isfinite(high):
        distances = np.geomspace(1e-305, 0.5, 6000) * (high - low)
        near = np.union1d(low + distances, high - distances)
    else:
        near = _at_distances(support, distances)
    rounding = [1e-9 * abs(bound) if isfinite(bound) else 0.0 for bound in support]
    return near[(near - low > rounding[0]) & (high - near > rounding[1])]


def _at_distances(support: tuple[float, float], distances: Array) -> Array:
    """The points at distances from the finite bound of a support, or from 0 in both directions."""
    low, high = support
    if isfinite(low):
        return low + distances
    return high - distances if isfinite(high) else np.concatenate([-distances, distances])


def _separated_peaks(values: Array) -> list[int]:
    """The indices of the peaks, the highest first, without those that only rounding separates from a higher peak."""
    rounding = 1e-9 * max(1.0, abs(float(values.max())))
    separated: list[int] = []
    for i in sorted(_local_maxima(values), key=lambda i: -values[i]):
        valleys = (values[min(i, j) : max(i, j) + 1].min() for j in separated)
        if all(valley < values[i] - rounding for valley in valleys):
            separated.append(int(i))
        if len(separated) == _MAX_MODES:
            break
    return separated


def _local_maxima(values: Array) -> Array:
    padded = np.concatenate([[-inf], values, [-inf]])
    return np.flatnonzero((values >= padded[:-2]) & (values > padded[2:]))
