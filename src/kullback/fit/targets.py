"""What is fitted to: a distribution's density, or a log-density that is only a function, its places found first."""

from collections.abc import Callable
from importlib import import_module
from math import inf, isfinite
from typing import Any

import numpy as np

from kullback.densities.density import Density
from kullback.densities.nodes import line_nodes
from kullback.densities.resolve import resolve
from kullback.errors import SupportError
from kullback.numerics.arrays import Array

__all__ = ["called", "density_of", "dimensions", "is_of_vectors", "normalised"]

_MODES = 40  # at most


def density_of(target: Any) -> Density | None:
    """The density of a distribution on the line; None of any other."""
    return resolve(target).density


def dimensions(distribution: Any) -> int | None:
    """How many its draws have; 0 on the line, None of what gives no draws."""
    sampler = resolve(distribution).native_sampler
    if sampler is None:
        return None
    shape = np.shape(sampler.sample(2, np.random.default_rng(0)))  # SciPy's give one draw without its axis
    return shape[1] if len(shape) > 1 else 0


def is_of_vectors(example: Any) -> bool:
    """Whether samples, or a distribution's draws, are vectors."""
    return np.ndim(example) == 2 if isinstance(example, np.ndarray) else bool(dimensions(example))


def normalised(log_prob: Callable[[Array], Any], support: tuple[float, float]) -> tuple[Density, float]:
    """A log-density on the line, known up to a constant, as a density; and the log of its integral.

    Args:
        log_prob: Of an array of places, shape (n,); -inf outside the support.
        support: Its ends; either may be infinite.

    Raises:
        SupportError: It is nan somewhere, nowhere above -inf, or its integral is not finite.
    """

    def shifted(by: float) -> Callable[[Array, Array], Array]:
        def log_density(origin: Array, offset: Array) -> Array:
            x = origin + offset
            inside = (x > support[0]) & (x < support[1])
            safe = np.where(inside, x, _inside(support))
            return np.where(inside, called(log_prob, np.ravel(safe)).reshape(x.shape) - by, -inf)

        return log_density

    with np.errstate(all="ignore"):
        anchors, top = _places(shifted(0.0), support)
        raw = Density(shifted(top), support, anchors)
        mass = float(np.exp(line_nodes(raw, raw).log_mass(raw)).sum())
    edge = [
        raw.log_density(np.zeros(1), np.asarray([end]))[0]
        for end, bound in zip((-1e12, 1e12), support, strict=True)
        if not isfinite(bound)
    ]
    if not 0 < mass < inf or max(edge, default=-inf) > -27.0:
        raise SupportError(
            f"expected log_prob to be the log of something with a finite integral over {support}, but it is not, or "
            "its mass was not found: name its support, or pass a distribution as target"
        )
    log_evidence = top + float(np.log(mass))
    return Density(shifted(log_evidence), support, anchors), log_evidence


def called(log_prob: Callable[[Any], Any], x: Array) -> Array:
    """A log-density at places (n,) or (n, d), as an array (n,)."""
    try:
        values = np.asarray(log_prob(x), dtype=np.float64)
    except (TypeError, AttributeError, RuntimeError, ValueError):  # perhaps a function of tensors
        values = import_module("kullback.fit.stochastic").of_tensors(log_prob, x)
    if values.shape != x.shape[:1]:
        raise SupportError(
            f"expected log_prob to give one number for each of {len(x)} places, got shape {values.shape}"
        )
    if np.isnan(values).any():
        where = x[np.isnan(values)][0].tolist()
        raise SupportError(f"expected log_prob to be a number or -inf, but it is nan at {where!r}")
    return values


def _inside(support: tuple[float, float]) -> float:
    low, high = support
    if isfinite(low) and isfinite(high):
        return (low + high) / 2
    return low + 1 if isfinite(low) else high - 1 if isfinite(high) else 0.0


def _places(
    log_density: Callable[[Array, Array], Array], support: tuple[float, float]
) -> tuple[tuple[tuple[float, float], ...], float]:
    """Its modes with their widths, by ever finer grids around where it is high; and its greatest value."""
    low, high = support
    ruler = np.concatenate([-np.geomspace(1e-6, 1e6, 1500)[::-1], [0.0], np.geomspace(1e-6, 1e6, 1500)])
    fine = np.linspace(-1.0, 1.0, 4001)
    ruler = np.unique(np.concatenate([ruler, 100 * fine, fine * 1e3]))
    if isfinite(low) and isfinite(high):
        x = low + (high - low) * np.unique(
            np.concatenate(
                [np.linspace(0, 1, 4003)[1:-1], np.geomspace(1e-9, 0.5, 500), 1 - np.geomspace(1e-9, 0.5, 500)]
            )
        )
    elif isfinite(low):
        x = low + ruler[ruler > 0]
    elif isfinite(high):
        x = high - ruler[ruler > 0][::-1]
    else:
        x = ruler
    with np.errstate(all="ignore"):
        values = log_density(x, np.zeros_like(x))
        if not (values > -inf).any():
            raise SupportError(
                f"expected log_prob above -inf somewhere, but it is -inf at {x.size} places of {support}"
            )
        for _ in range(6):  # finer where it is high
            near = np.flatnonzero(values > values.max() - 40)
            first, last = max(near[0] - 1, 0), min(near[-1] + 1, x.size - 1)
            grid = np.linspace(x[first], x[last], 4001)
            peaks = _peaks(values)
            peaks = peaks[values[peaks] > values.max() - 40][:50]
            around = [np.linspace(x[max(i - 1, 0)], x[min(i + 1, x.size - 1)], 65) for i in peaks]
            more = np.setdiff1d(np.concatenate([grid, *around]), x)
            x = np.concatenate([x, more])
            values = np.concatenate([values, log_density(more, np.zeros_like(more))])
            order = np.argsort(x)
            x, values = x[order], values[order]
        if values.max() == inf:
            values = np.where(values == inf, np.finfo(float).max, values)
    top, anchors = float(values.max()), []
    for i in _apart(values):
        if values[i] > top - 40:
            lower = np.flatnonzero(values < values[i] - 0.5)
            reach = [abs(x[j] - x[i]) for j in (lower[lower < i][-1:].tolist() + lower[lower > i][:1].tolist())]
            anchors.append((float(x[i]), float(min(reach, default=1.0))))
    return tuple(anchors), top


def _apart(values: Array) -> list[int]:
    """The peaks, the highest first, with a valley between each two that is more than rounding: a round top is one."""
    ripple = 1e-9 * max(1.0, abs(float(values.max())))
    kept: list[int] = []
    for i in sorted(_peaks(values), key=lambda i: -values[i]):
        valleys = (values[min(i, j) : max(i, j) + 1].min() for j in kept)
        if all(valley < values[i] - ripple for valley in valleys):
            kept.append(int(i))
        if len(kept) == _MODES:
            break
    return kept


def _peaks(values: Array) -> Array:
    padded = np.concatenate([[-inf], values, [-inf]])
    return np.flatnonzero((values >= padded[:-2]) & (values > padded[2:]))
