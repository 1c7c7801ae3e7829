"""What samples can be fitted to, and what each of them counts."""

from math import inf

import numpy as np

from kullback import families
from kullback.densities.from_families import as_density
from kullback.errors import ShapeError, SupportError
from kullback.families import Distribution
from kullback.numerics.arrays import Array, ArrayLike, untracked

__all__ = ["draws_of", "mean_and_covariance", "require_inside", "shares_of"]


def draws_of(samples: ArrayLike) -> Array:
    """Samples (n,) or (n, d), all finite."""
    x = np.asarray(untracked(samples), np.float64)
    if x.ndim not in (1, 2) or x.shape[0] == 0:
        raise ShapeError(f"expected samples of shape (n,) or (n, d), n > 0, got {x.shape}")
    if not np.isfinite(x).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise SupportError(
            f"expected finite samples, but samples[{', '.join(map(str, at))}] is {float(x[at])!r}; leave it out"
        )
    return x


def shares_of(weights: ArrayLike | None, count: int) -> Array:
    """What each sample counts, in sum 1."""
    if weights is None:
        return np.full(count, 1 / count)
    w = np.asarray(untracked(weights), np.float64)
    if w.shape != (count,):
        raise ShapeError(f"expected weights of shape ({count},), as many as samples, got {w.shape}")
    if not ((w >= 0).all() and 0 < w.sum() < inf):
        raise SupportError("expected weights >= 0 with a finite sum above 0")
    return w / w.sum()


def mean_and_covariance(x: Array, shares: Array) -> tuple[Array, Array]:
    """Of samples (n, d), each of which counts for its share."""
    loc = shares @ x
    return loc, (shares[:, None] * (x - loc)).T @ (x - loc)


def require_inside(kind: type[Distribution], record: Distribution, x: Array) -> None:
    """SupportError where a sample lies outside the family's support, which makes KL infinite for every member."""
    density = as_density(record)
    assert density is not None
    with np.errstate(all="ignore"):
        logs = density.log_density(x, np.zeros_like(x))
    outside = np.flatnonzero((logs == -inf) & ~((x >= density.support[0]) & (x <= density.support[1])))
    if density.discrete:
        outside = np.union1d(outside, np.flatnonzero(x % 1 != 0))
    if outside.size and kind not in (families.Uniform, families.Pareto):
        i = int(outside[0])
        raise SupportError(
            f"expected samples inside {kind.__name__}'s support {density.support}"
            f"{' of whole numbers' if density.discrete else ''}, but samples[{i}] is {float(x[i])!r}, which makes "
            "KL(p || q) inf for every member"
        )
