"""Point masses, distributions with a mask, and spaces on which two distributions have no common density."""

from math import inf
from typing import Any

import numpy as np

from kullback.densities.bounded_estimate import infinite_kl
from kullback.densities.resolve import ResolvedDistribution
from kullback.errors import NoClosedFormError, ShapeError
from kullback.families import (
    Categorical,
    Dirichlet,
    InverseWishart,
    LowRankMultivariateNormal,
    MatrixNormal,
    Multinomial,
    MultivariateNormal,
    OneHotCategorical,
    VonMisesFisher,
    Wishart,
)
from kullback.numerics.arrays import as_numpy, untracked
from kullback.result import Estimate

__all__ = ["kl_of_point_masses", "kl_without_common_density"]

# Where the values lie, by the name of the constraint object of PyTorch or NumPyro that describes the support.
_SPACES = {
    "simplex": "the simplex",
    "corr_cholesky": "Cholesky factors of correlation matrices",
    "corr_matrix": "correlation matrices",
    "lower_cholesky": "triangular matrices",
    "positive_definite": "symmetric matrices",
    "sphere": "the sphere",
}
_ALL = "the whole space"
_FAMILY_SPACES = {
    MatrixNormal: _ALL,
    Dirichlet: "the simplex",
    InverseWishart: "symmetric matrices",
    VonMisesFisher: "the sphere",
    Wishart: "symmetric matrices",
}
# The parameter, or the alternative parameters, that have the shape of one value.
_SHAPE_PARAMETERS = {
    Dirichlet: ("concentration",),
    InverseWishart: ("scale_matrix",),
    LowRankMultivariateNormal: ("loc",),
    MatrixNormal: ("loc",),
    Multinomial: ("probs", "logits"),
    MultivariateNormal: ("loc",),
    OneHotCategorical: ("probs", "logits"),
    VonMisesFisher: ("mean_direction",),
    Wishart: ("covariance_matrix",),
}
_DISCRETE_FAMILIES = (Categorical, Multinomial, OneHotCategorical)


def kl_of_point_masses(p: ResolvedDistribution, q: ResolvedDistribution) -> Estimate | None:
    """KL(p || q) where p or q is a point mass (Delta, Deterministic); None where neither is.

    KL of a point mass at v is -log q(v) for discrete q, 0 for the point mass at v, and `inf` for every other q.

    Raises:
        NoClosedFormError: A point mass has a log_density other than 0, or q has no probability mass function.
        ShapeError: A point mass is a batch, or the two points differ in shape.
    """
    points = [_point(side.given) for side in (p, q)]
    if points[0] is None and points[1] is None:
        return None
    if points[0] is not None and points[1] is not None:
        if points[0].shape != points[1].shape:
            raise ShapeError(f"expected points of one shape, got {points[0].shape} of p and {points[1].shape} of q")
        equal = bool((points[0] == points[1]).all())
        return _exact(0.0) if equal else infinite_kl("p and q are point masses at different points", "supports")
    point, other = (points[0], q) if points[0] is not None else (points[1], p)
    assert point is not None
    log_mass = _log_mass(other, point)
    if points[0] is None:
        return _exact(0.0) if log_mass == 0 else infinite_kl("q is a point mass and p is not", "supports")
    if log_mass == -inf:
        return infinite_kl("q has no probability mass at the point to which p is restricted", "supports")
    return _exact(-log_mass)


def kl_without_common_density(p: ResolvedDistribution, q: ResolvedDistribution) -> Estimate | None:
    """KL = inf of distributions whose log-densities refer to different measures; None where they refer to one measure.

    A discrete and a continuous distribution are an example, and a distribution on the simplex and one on all vectors.

    Raises:
        ShapeError: The values of p and q are arrays of different shapes.
    """
    shapes = _event_shape(p), _event_shape(q)
    if None not in shapes and shapes[0] != shapes[1]:
        names = [type(side.given).__name__ for side in (p, q)]
        raise ShapeError(
            f"expected distributions on one space, got values of shape {shapes[0]} of p ({names[0]}) and "
            f"{shapes[1]} of q ({names[1]})"
        )
    discrete = _is_discrete(p), _is_discrete(q)
    if None not in discrete and discrete[0] != discrete[1]:
        kinds = ["discrete" if side else "continuous" for side in discrete]
        return infinite_kl(f"p is {kinds[0]} and q is {kinds[1]}: q is 0 where p is not", "supports")
    if not discrete[0] and not discrete[1]:
        spaces = [_space(side) for side in (p, q)]
        if None not in spaces and spaces[0] != spaces[1]:
            return infinite_kl(f"the values of p lie on {spaces[0]} and the values of q on {spaces[1]}", "supports")
    return None


def _exact(value: float) -> Estimate:
    return Estimate(value, error=0.0, interval=(value, value), method="closed form", status="exact")


def _point(distribution: Any) -> Any:
    """The point of a point mass, as an array; None for other distributions."""
    name = type(distribution).__name__
    if name == "Delta" and hasattr(distribution, "v") and hasattr(distribution, "log_density"):
        value, log_density = distribution.v, as_numpy(distribution.log_density)
        if np.any(log_density != 0):
            raise NoClosedFormError(
                f"expected a point mass with log_density 0, got {log_density.tolist()}: it is not normalized"
            )
    elif name in ("Deterministic", "VectorDeterministic") and hasattr(distribution, "loc"):
        value = distribution.loc
    else:
        return None
    if tuple(distribution.batch_shape):
        raise ShapeError(
            f"expected one distribution at a time, got {name} of batch shape {tuple(distribution.batch_shape)}; "
            "measure each distribution separately"
        )
    return as_numpy(value)


def _log_mass(distribution: ResolvedDistribution, point: Any) -> float:
    """The log-probability of a point; -inf under a continuous distribution."""
    density = distribution.density
    if density is not None:
        if point.ndim:
            raise ShapeError(f"expected points of one shape, got {point.shape} and a univariate distribution")
        at = np.asarray([float(point)])
        if not density.discrete or at[0] % 1:
            return -inf
        with np.errstate(all="ignore"):
            return float(density.log_density(at, np.zeros(1))[0])
    if _is_discrete(distribution) is False:
        return -inf
    if not _is_discrete(distribution) or distribution.sampler is None:
        raise NoClosedFormError(
            f"expected a probability mass function for KL with a point mass, got {type(distribution.given).__name__}"
        )
    return float(as_numpy(distribution.sampler.log_density(point[None]))[0])


def _event_shape(distribution: ResolvedDistribution) -> tuple[int, ...] | None:
    """The shape of one value; None if it is not known."""
    shape = getattr(distribution.given, "event_shape", None)
    if isinstance(shape, tuple):
        return tuple(shape)
    if distribution.density is not None:
        return ()
    if distribution.components is not None:
        return distribution.components.locs.shape[1:]
    family = distribution.family
    parameter = _SHAPE_PARAMETERS.get(type(family))
    if parameter is None:
        return None
    given = next(value for name in parameter if (value := getattr(family, name)) is not None)
    axes = 2 if isinstance(family, Wishart | InverseWishart | MatrixNormal) else 1
    return np.shape(untracked(given))[-axes:]


def _is_discrete(distribution: ResolvedDistribution) -> bool | None:
    """Whether the distribution is discrete; None if that is not known."""
    if distribution.density is not None:
        return distribution.density.discrete
    if isinstance(distribution.family, _DISCRETE_FAMILIES):
        return True
    support = _support(distribution.given)
    if hasattr(support, "is_discrete"):
        return bool(support.is_discrete)
    return None if distribution.components is None and type(distribution.family) not in _FAMILY_SPACES else False


def _space(distribution: ResolvedDistribution) -> str | None:
    """The space of the values of a continuous distribution; None if it is not known."""
    if type(distribution.family) in _FAMILY_SPACES:
        return _FAMILY_SPACES[type(distribution.family)]
    if distribution.components is not None or distribution.density is not None:
        return _ALL
    support = _support(distribution.given)
    if support is None:
        return None
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    name = type(support).__name__.strip("_").lower()
    plain = {key.replace("_", ""): space for key, space in _SPACES.items()}
    if name.replace("_", "") in plain:
        return plain[name.replace("_", "")]
    return _ALL if name in ("real", "realvector", "real_vector") else None


def _support(distribution: Any) -> Any:
    """The constraint object that describes the support; None if there is none."""
    try:
        support = getattr(distribution, "support", None)
    except NotImplementedError:
        return None
    return None if callable(support) and not hasattr(support, "is_discrete") else support
