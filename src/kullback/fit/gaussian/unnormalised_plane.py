"""The modes of a log-density in the plane that is only a function."""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import inf, log, nan

import numpy as np
from scipy import optimize
from scipy.integrate import cubature

from kullback.densities.gaussian_mixtures import Components
from kullback.errors import SupportError
from kullback.numerics.arrays import Array

__all__ = ["log_evidence", "modes_in_the_plane"]


_EMPTY = 45.0  # nats below the top: 3e-20 of it
_WIDENINGS, _SUBDIVISIONS = 12, 4000
_ENOUGH = 1e-6  # relative error of an integral that is known


def log_evidence(log_prob: Callable[[Array], Array], modes: Components) -> tuple[float, float]:
    """The log of the integral of e^log_prob over the plane, and its error, in nats.

    Args:
        log_prob: Of places (n, 2).
        modes: Normals at its modes.

    Returns:
        nan and `inf` where it falls too slowly to be enclosed by a box, or is not resolved in it.
    """
    top = float(log_prob(modes.locs).max())
    widths = np.sqrt(np.diagonal(modes.covariances, axis1=1, axis2=2))
    box = _enclosing(log_prob, top, (modes.locs - 12 * widths).min(axis=0), (modes.locs + 12 * widths).max(axis=0))
    if box is None:
        return nan, inf
    # Cells around each mode, lest a narrow one be seen by no place of a wide cell.
    around = np.concatenate([modes.locs + reach * widths for reach in (-6, 0, 6)])
    lines = [
        np.unique(np.concatenate([[low, high], around[:, i]])) for i, (low, high) in enumerate(zip(*box, strict=True))
    ]
    largest = 2 * np.pi * float(np.sqrt(np.linalg.det(modes.covariances).max()))
    total, error = 0.0, 0.0
    for cell in product(*map(pairwise, lines)):
        low, high = zip(*cell, strict=True)
        found = cubature(
            lambda x: np.exp(log_prob(x) - top),
            low,
            high,
            rule="gk21",
            rtol=1e-11,
            atol=1e-13 * largest,  # pyright: ignore[reportArgumentType]  (SciPy's stub takes its default's type)
            max_subdivisions=_SUBDIVISIONS,
        )
        total, error = total + float(found.estimate), error + float(found.error)
    if not (0 < total < inf and error < _ENOUGH * total):
        return nan, inf
    return top + log(total), error / total


def _enclosing(log_prob: Callable[[Array], Array], top: float, low: Array, high: Array) -> tuple[Array, Array] | None:
    """The box, widened on each side until nothing is left on its rim; None if something always is."""
    for _ in range(_WIDENINGS):
        axes = [np.linspace(low[i], high[i], 257) for i in (0, 1)]
        mesh = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        values = log_prob(mesh.reshape(-1, 2)).reshape(mesh.shape[:2])
        full_low = np.asarray([values[0].max(), values[:, 0].max()]) > top - _EMPTY
        full_high = np.asarray([values[-1].max(), values[:, -1].max()]) > top - _EMPTY
        if not (full_low.any() or full_high.any()):
            return low, high
        size = high - low
        low, high = low - np.where(full_low, size / 2, 0.0), high + np.where(full_high, size / 2, 0.0)
    return None


def modes_in_the_plane(log_density: Callable[[Array], Array], given: Sequence[Array]) -> Components:
    """Normals at the modes, with the covariances and the weights that the curvatures and the heights there have.

    Args:
        log_density: Up to a constant, of places (n, 2).
        given: Places (2,) near which to look first.

    Raises:
        SupportError: None was found.
    """
    rng = np.random.default_rng(0)
    places = [*given, np.zeros(2), *(rng.normal(size=(12, 2)) * np.geomspace(0.3, 30, 12)[:, None])]
    found: list[tuple[Array, Array, float]] = []

    def height(x: Array) -> float:
        value = float(log_density(np.asarray(x)[None])[0])
        return -value if value > -inf else 1e300

    for place in places:
        if not log_density(np.asarray(place)[None])[0] > -inf:
            continue
        end = optimize.minimize(
            height, place, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000}
        )
        if all(np.linalg.norm(end.x - loc) > 1e-4 * (1 + np.linalg.norm(loc)) for loc, _, _ in found):
            covariance = _curvature(height, end.x)
            if covariance is not None:
                found.append((end.x, covariance, end.fun))
    if not found:
        raise SupportError("expected log_prob to have a mode within some hundred units of 0: pass start= near one")
    best = min(value for _, _, value in found)
    locs, covariances, values = (np.asarray(part) for part in zip(*found, strict=True))
    near = values < best + 30
    masses = np.exp(best - values[near]) * np.sqrt(np.linalg.det(covariances[near]))
    return Components(masses / masses.sum(), locs[near], covariances[near])


def _curvature(height: Callable[[Array], float], x: Array) -> Array | None:
    step = 1e-3
    for _ in range(30):
        moves = step * np.eye(2)
        hessian = np.asarray(
            [
                [height(x + a + b) - height(x + a - b) - height(x - a + b) + height(x - a - b) for b in moves]
                for a in moves
            ]
        ) / (4 * step * step)
        if np.isfinite(hessian).all() and np.linalg.eigvalsh(hessian)[0] > 0 and np.abs(hessian).max() < 1e200:
            rise = np.abs(hessian).max() * step * step
            if 1e-6 < rise < 0.1:
                return np.linalg.inv(hessian)
            step *= (1e-3 / max(rise, 1e-12)) ** 0.5
        else:
            step *= 2
    return None
