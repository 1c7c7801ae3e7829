"""The modes of a log-density in the plane that is only a function."""

from collections.abc import Callable, Sequence
from math import inf

import numpy as np
from scipy import optimize

from kullback._arrays import Array
from kullback.densities.mixtures import Components
from kullback.errors import SupportError

__all__ = ["modes_in_the_plane"]


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
