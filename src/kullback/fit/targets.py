"""Densities of targets: from a distribution, or from an unnormalised log-density on the real line."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from kullback.densities.density import Density
from kullback.densities.nodes import line_nodes
from kullback.densities.panels import partition
from kullback.densities.resolve import resolve
from kullback.densities.tails import mass_beyond_reach
from kullback.errors import ArrayTypeError, KullbackError, SupportError
from kullback.numerics.arrays import Array
from kullback.result import Estimate

__all__ = [
    "Modes",
    "NormalisedTarget",
    "evaluate_log_prob",
    "find_modes",
    "is_multivariate",
    "normalise",
    "power",
    "sample_dimension",
    "univariate_density",
]

# The errors of a user's log-density that are reported with its name.
_USER_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_MAX_MODES = 40
_NATS_BELOW_MODE = 40  # lower peaks are ignored
_NATS_BELOW_JUMP = 30  # a jump to 0 from a lower density is ignored
_REFINEMENTS = 6
_ACCEPTABLE_ERROR = 1e-10  # of KL: in nats where KL is below 1, relative above 1
_LOG_MASS_NEAR_ONE = 2.0
_MAX_RESCALINGS = 6


def univariate_density(target: Any) -> Density | None:
    """The density of a univariate distribution or a `Density`; None for other distributions."""
    return target if isinstance(target, Density) else resolve(target).density


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


class NormalisedTarget(NamedTuple):
    """A target with its integral.

    Args:
        density: The normalised density.
        log_evidence: The logarithm of the integral of the unnormalised density, in nats.
        error: The error bound of `log_evidence` from the tails of the density, in nats.
    """

    density: Density
    log_evidence: float
    error: float

    def with_error_of_evidence(self, estimate: Estimate) -> Estimate:
        """The estimate of KL(q || p), unreliable if the integral of the unnormalised p is not known accurately."""
        if self.error <= _ACCEPTABLE_ERROR * max(1.0, abs(estimate.value)):
            return estimate
        warning = (
            f"the error bound of the target's log-evidence is {self.error:.2g} nats, because much of the integral is "
            "at distances that float64 does not represent"
        )
        return replace(
            estimate,
            error=estimate.error + self.error,
            interval=(max(0.0, estimate.value - self.error), estimate.value + self.error),
            status="unreliable",
            warnings=(*estimate.warnings, warning),
        )


def normalise(
    log_prob: Callable[[Array], Any], support: tuple[float, float], modes: Modes | None = None
) -> NormalisedTarget:
    """The density with an unnormalised log-density on the real line, and the logarithm of its integral.

    Args:
        log_prob: The log-density up to a constant, at points of shape (n,); -inf outside the support.
        support: The bounds of the support; either may be infinite.
        modes: The modes, if they have been found by `find_modes`.

    Returns:
        The normalised density, the log-evidence and its error, in nats.

    Raises:
        SupportError: The log-density is nan at a point, is -inf everywhere, or has no finite integral.
    """
    support = _without_empty_ends(log_prob, support)
    anchors, top = find_modes(log_prob, support) if modes is None else modes

    def log_density(origin: Array, offset: Array) -> Array:
        return _log_density_inside(log_prob, support, origin + offset)

    with np.errstate(all="ignore"):
        log_width = float(np.log(anchors[0][1]))
    try:
        return _normalised(Density(log_density, support, anchors), top + log_width)
    except SupportError as error:
        raise SupportError(
            f"expected log_prob to be the logarithm of a function with a finite integral over {support}, but {error}: "
            "pass support=, or pass a distribution as target"
        ) from error


def power(target: Density, exponent: float) -> NormalisedTarget:
    """The density that is proportional to a power p^t of a density, and the logarithm of the integral of p^t.

    Args:
        target: The continuous density p.
        exponent: The exponent t > 0.

    Raises:
        SupportError: p^t has no finite integral.
    """

    def log_density(origin: Array, offset: Array) -> Array:
        return exponent * target.log_density(origin, offset)

    unnormalised = replace(target, log_density=log_density, sample=None)
    with np.errstate(all="ignore"):
        nodes = line_nodes(target, target)
        x, values = nodes.x, log_density(nodes.origin, nodes.offset)
        log_integral = float(logsumexp((values + nodes.log_weight)[np.isfinite(values)]))
        if exponent > 1:
            unnormalised = replace(unnormalised, anchors=(*target.anchors, *_narrow_modes(unnormalised, x, values)))
    try:
        return _normalised(unnormalised, log_integral)
    except SupportError as error:
        raise SupportError(f"expected p^t with a finite integral, t = {exponent:g}, but {error}") from error


def _narrow_modes(density: Density, x: Array, values: Array) -> list[tuple[float, float]]:
    """The location and the width of the modes that are much narrower than the nearest anchor of a density."""
    order = np.argsort(x, kind="stable")
    x, values = x[order], np.where(values[order] < inf, values[order], -inf)
    x, index = np.unique(x, return_index=True)
    x, values = _with_refined_peaks(lambda u: density.log_density(np.zeros_like(u), u), x, values[index])
    modes = []
    for location, width in _modes(x, values):
        _, nearest = min((abs(at - location), near) for at, near in density.anchors)
        if width < nearest / 4:
            modes.append((location, width))
    return modes


def _normalised(unnormalised: Density, log_constant: float) -> NormalisedTarget:
    """A density divided by its integral, of which the logarithm is known approximately.

    Raises:
        SupportError: The integral is infinite, or 0.
    """

    def relative_to(constant: float) -> Density:
        def log_density(origin: Array, offset: Array) -> Array:
            return unnormalised.log_density(origin, offset) - constant

        return replace(unnormalised, log_density=log_density)

    mass = error = 0.0
    with np.errstate(all="ignore"):
        for _ in range(_MAX_RESCALINGS):
            relative = relative_to(log_constant)
            mass, error = _mass(relative)
            # The tolerance of the quadrature is absolute: integrate a density of mass 1, approximately.
            if not 0 < mass < inf or abs(np.log(mass)) < _LOG_MASS_NEAR_ONE:
                break
            log_constant += float(np.log(mass))
    if not 0 < mass < inf:
        location, width = unnormalised.anchors[0]
        raise SupportError(
            f"the computed integral is {mass:g} times e^{log_constant:.3g}, for a function with a peak of width "
            f"{width:.3g} at {location:.3g}; where this is a matter of units, use other units of x"
        )
    log_evidence = log_constant + float(np.log(mass))
    return NormalisedTarget(relative_to(log_evidence), log_evidence, error / mass)


def _mass(density: Density) -> tuple[float, float]:
    """The integral of a density that need not be normalised, with the error bound of its tails.

    Raises:
        SupportError: The integral diverges in a tail or at an end of the support.
    """
    mass = error = 0.0
    for ray in partition(density, density)[1]:
        beyond, error_beyond = mass_beyond_reach(density, *ray)
        if beyond == inf:
            end = f"{ray.scale * inf:+}" if ray.growth > 0 else f"{ray.origin:.6g}"
            raise SupportError(f"its integral diverges as x approaches {end}")
        mass, error = mass + beyond, error + error_beyond
    return mass + float(np.exp(line_nodes(density, density).log_mass(density)).sum()), error


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
        raise SupportError(
            f"expected log_prob to return numbers or -inf, but it is nan at {point!r}; return -inf outside of the "
            "support, or pass support=(low, high)"
        )
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
            if x[-1] < 1e12 and x[0] > -1e12:  # far modes between these points are found by their flanks
                wider = _merged(x, values, more := _distant_grid(support, 1e6, 1e305), log_density(more))
                if not _ends_are_near(wider[1], support):
                    x, values = wider
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
        x, values = _with_low_peaks(log_density, x, values)
        x, values = _with_refined_peaks(log_density, x, values)
        if values.max() == inf:
            values = np.where(values == inf, np.finfo(float).max, values)
    return Modes(tuple(_modes(x, values)), float(values.max()))


def _modes(x: Array, values: Array) -> list[tuple[float, float]]:
    """The location and the width of each mode of a log-density on a grid, the highest first."""
    top, anchors = float(values.max()), []
    for i in _separated_peaks(values):
        if values[i] >= top - _NATS_BELOW_MODE:
            lower = np.flatnonzero(values < values[i] - 0.5)
            nearest = lower[lower < i][-1:].tolist() + lower[lower > i][:1].tolist()
            widths = [abs(x[j] - x[i]) for j in nearest]
            anchors.append((float(x[i]), float(min(widths, default=1.0))))
    return anchors


def _with_low_peaks(log_density: Callable[[Array], Array], x: Array, values: Array) -> tuple[Array, Array]:
    """A grid with the modes that lie between its points, of which the grid has only the flanks.

    The log-density of a narrow mode far from the others is low at every point of the grid, but has a local maximum.
    """
    low_peaks = [i for i in _separated_peaks(values) if -inf < values[i] < values.max() - _NATS_BELOW_MODE]
    if not low_peaks:
        return x, values
    left, right = x[np.maximum(np.asarray(low_peaks) - 1, 0)], x[np.minimum(np.asarray(low_peaks) + 1, x.size - 1)]
    columns, points, found = np.arange(left.size), np.zeros((0, left.size)), np.zeros((0, left.size))
    for _ in range(_REFINEMENTS):
        inner = np.linspace(left, right, 65)
        at_inner = log_density(inner.ravel()).reshape(inner.shape)
        points, found = np.concatenate([points, inner]), np.concatenate([found, at_inner])
        peak = at_inner.argmax(axis=0)
        left, right = inner[np.maximum(peak - 1, 0), columns], inner[np.minimum(peak + 1, 64), columns]
    heights = found.max(axis=0)
    is_mode = heights >= max(float(values.max()), float(heights.max())) - _NATS_BELOW_MODE
    return _merged(x, values, points[:, is_mode].ravel(), found[:, is_mode].ravel())


def _with_refined_peaks(log_density: Callable[[Array], Array], x: Array, values: Array) -> tuple[Array, Array]:
    """A grid that is refined near the peaks of a log-density."""
    for _ in range(_REFINEMENTS):
        is_near_top = np.flatnonzero(values >= values.max() - _NATS_BELOW_MODE)
        first, last = max(is_near_top[0] - 1, 0), min(is_near_top[-1] + 1, x.size - 1)
        grid = np.linspace(x[first], x[last], 4001)
        peaks = _local_maxima(values)
        peaks = peaks[values[peaks] >= values.max() - _NATS_BELOW_MODE][:50]
        near_peaks = [np.linspace(x[max(i - 1, 0)], x[min(i + 1, x.size - 1)], 65) for i in peaks]
        new = np.setdiff1d(np.concatenate([grid, *near_peaks]), x)
        x, values = _merged(x, values, new, log_density(new))
    return x, values


def _merged(x: Array, values: Array, more_x: Array, more_values: Array) -> tuple[Array, Array]:
    """The points of two grids in increasing order, without repetitions, with their values."""
    points, first = np.unique(np.concatenate([x, more_x]), return_index=True)
    return points, np.concatenate([values, more_values])[first]


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
