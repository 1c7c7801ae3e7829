"""Unnormalised two-dimensional log-densities: their modes, and their integral by adaptive cubature."""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import inf, log, nan

import numpy as np
from scipy import optimize
from scipy.integrate import cubature

from kullback.densities.gaussian_mixtures import Components
from kullback.errors import SupportError
from kullback.numerics.arrays import Array

__all__ = ["find_modes", "log_evidence"]

# The search for modes
_MODE_TOLERANCE = 1e-4  # relative distance below which two modes are the same
_MAX_NATS_BELOW_MODE = 30  # lower modes are ignored

# The integral
_NEGLIGIBLE_NATS = 45.0  # below the largest log-density: a ratio of densities of 3e-20
_MAX_BOX_EXPANSIONS, _MAX_SUBDIVISIONS = 12, 4000
_MAX_RELATIVE_ERROR = 1e-6


def find_modes(log_prob: Callable[[Array], Array], starts: Sequence[Array]) -> Components:
    """The Laplace approximation at each mode: a mixture of normals with the heights and curvatures of the modes.

    Args:
        log_prob: The log-density up to a constant, at points of shape (n, 2).
        starts: Points of shape (2,) from which the search begins, in addition to points around 0.

    Raises:
        SupportError: The search finds no mode.
    """
    rng = np.random.default_rng(0)
    points = [*starts, np.zeros(2), *(rng.normal(size=(12, 2)) * np.geomspace(0.3, 30, 12)[:, None])]
    modes: list[tuple[Array, Array, float]] = []

    def energy(x: Array) -> float:
        value = float(log_prob(np.asarray(x)[None])[0])
        return -value if value > -inf else 1e300

    for point in points:
        if not log_prob(np.asarray(point)[None])[0] > -inf:
            continue
        end = optimize.minimize(
            energy, point, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000}
        )
        if all(np.linalg.norm(end.x - loc) > _MODE_TOLERANCE * (1 + np.linalg.norm(loc)) for loc, _, _ in modes):
            covariance = _inverse_hessian(energy, end.x)
            if covariance is not None:
                modes.append((end.x, covariance, end.fun))
    if not modes:
        raise SupportError(
            f"expected log_prob to have a mode within about 100 units of 0 or near a start, but the search from "
            f"{len(points)} points found none: pass start=, a member near a mode"
        )
    lowest = min(value for _, _, value in modes)
    locs, covariances, values = (np.asarray(part) for part in zip(*modes, strict=True))
    is_high = values < lowest + _MAX_NATS_BELOW_MODE
    masses = np.exp(lowest - values[is_high]) * np.sqrt(np.linalg.det(covariances[is_high]))
    return Components(masses / masses.sum(), locs[is_high], covariances[is_high])


def _inverse_hessian(energy: Callable[[Array], float], x: Array) -> Array | None:
    """The inverse Hessian of a function of two variables at its minimum, by differences with an adaptive step."""
    step = 1e-3
    for _ in range(30):
        steps = step * np.eye(2)
        hessian = np.asarray(
            [
                [energy(x + a + b) - energy(x + a - b) - energy(x - a + b) + energy(x - a - b) for b in steps]
                for a in steps
            ]
        ) / (4 * step * step)
        if np.isfinite(hessian).all() and np.linalg.eigvalsh(hessian)[0] > 0 and np.abs(hessian).max() < 1e200:
            change = np.abs(hessian).max() * step * step
            if 1e-6 < change < 0.1:
                return np.linalg.inv(hessian)
            step *= (1e-3 / max(change, 1e-12)) ** 0.5
        else:
            step *= 2
    return None


def log_evidence(log_prob: Callable[[Array], Array], modes: Components) -> tuple[float, float]:
    """The logarithm of the integral of exp(log_prob) over the plane, and its error.

    Args:
        log_prob: The log-density up to a constant, at points of shape (n, 2).
        modes: Normals at its modes.

    Returns:
        The logarithm of the integral and the error of that logarithm, in nats. They are nan and `inf` where the density
        decreases too slowly to be enclosed by a box, or where the cubature does not converge in the box.
    """
    top = float(log_prob(modes.locs).max())
    widths = np.sqrt(np.diagonal(modes.covariances, axis1=1, axis2=2))
    box = _enclosing_box(log_prob, top, (modes.locs - 12 * widths).min(axis=0), (modes.locs + 12 * widths).max(axis=0))
    if box is None:
        return nan, inf
    # Cells around each mode, so that no narrow mode falls between the nodes of a wide cell.
    edges = np.concatenate([modes.locs + reach * widths for reach in (-6, 0, 6)])
    grid = [
        np.unique(np.concatenate([[low, high], edges[:, i]])) for i, (low, high) in enumerate(zip(*box, strict=True))
    ]
    largest = 2 * np.pi * float(np.sqrt(np.linalg.det(modes.covariances).max()))
    total, error = 0.0, 0.0
    for cell in product(*map(pairwise, grid)):
        low, high = zip(*cell, strict=True)
        integral = cubature(
            lambda x: np.exp(log_prob(x) - top),
            low,
            high,
            rule="gk21",
            rtol=1e-11,
            atol=1e-13 * largest,  # pyright: ignore[reportArgumentType]  (SciPy's stub infers the type from the default)
            max_subdivisions=_MAX_SUBDIVISIONS,
        )
        total, error = total + float(integral.estimate), error + float(integral.error)
    if not (0 < total < inf and error < _MAX_RELATIVE_ERROR * total):
        return nan, inf
    return top + log(total), error / total


def _enclosing_box(
    log_prob: Callable[[Array], Array], top: float, low: Array, high: Array
) -> tuple[Array, Array] | None:
    """A box whose boundary has negligible density, expanded from `low` and `high`; None if the box grows too large."""
    for _ in range(_MAX_BOX_EXPANSIONS):
        axes = [np.linspace(low[i], high[i], 257) for i in (0, 1)]
        mesh = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        values = log_prob(mesh.reshape(-1, 2)).reshape(mesh.shape[:2])
        expand_low = np.asarray([values[0].max(), values[:, 0].max()]) > top - _NEGLIGIBLE_NATS
        expand_high = np.asarray([values[-1].max(), values[:, -1].max()]) > top - _NEGLIGIBLE_NATS
        if not (expand_low.any() or expand_high.any()):
            return low, high
        size = high - low
        low, high = low - np.where(expand_low, size / 2, 0.0), high + np.where(expand_high, size / 2, 0.0)
    return None
