"""Unconstrained parameter vectors of a family: each constrained parameter is transformed to real coordinates."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf, pi
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
from scipy import special

from kullback import families
from kullback.errors import ParameterError
from kullback.families import Distribution
from kullback.families.base import Constraint, Count, Nonnegative, Positive, Probability, Real
from kullback.numerics.arrays import Array, as_numpy

__all__ = ["FamilyParametrisation", "Parametrisation", "count_parameters", "parametrise", "scale_of"]


class Parametrisation(Protocol):
    """A bijection between the members of a family and unconstrained vectors.

    The members at vectors that differ by a period of a coordinate are equal.
    """

    @property
    def periods(self) -> Any:
        """The periods of the coordinates, shape (size,) or a number for all; `inf` for coordinates without a period."""
        ...

    def to_vector(self, distribution: Any, /) -> Array:
        """The coordinates of a member."""
        ...

    def to_distribution(self, vector: Array, /) -> Any:
        """The member at a vector of coordinates."""
        ...


class _Transform(NamedTuple):
    """A bijection between the values of one parameter and real coordinates."""

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    is_location: bool = False
    period: float = inf


def _wrapped(angle: Array) -> Array:
    """The angle in (-pi, pi] that differs by a multiple of 2 pi."""
    return np.where((angle > -pi) & (angle <= pi), angle, pi - (pi - angle) % (2 * pi))


_ANGLE = _Transform(lambda x: x, _wrapped, period=2 * pi)
_IDENTITY = _Transform(lambda x: x, lambda x: x)
_LOG = _Transform(np.log, np.exp)
_LOGIT = _Transform(special.logit, special.expit)
_LOG_EXCESS_OVER_ONE = _Transform(lambda x: np.log(x - 1), lambda x: 1 + np.exp(x))
_LOG_RATIOS_TO_LAST = _Transform(
    lambda p: (np.log(p) - np.log(p[..., -1:]))[..., :-1],
    lambda z: special.softmax(np.concatenate([z, np.zeros((*z.shape[:-1], 1))], axis=-1), axis=-1),
)


def _constraint(parameter_type: Any) -> Constraint:
    """The constraint of a parameter type such as `Positive`."""
    return get_args(parameter_type)[1]


_COUNT = _constraint(Count)
_TRANSFORM_OF_CONSTRAINT = {
    _constraint(Real): _IDENTITY,
    _constraint(Positive): _LOG,
    _constraint(Nonnegative): _LOG,
    _constraint(Probability): _LOGIT,
}
# Parameters with a further constraint, which their family checks itself.
_TRANSFORM_OF_PARAMETER: dict[tuple[type, str], _Transform] = {
    (families.NormalMixture, "weights"): _LOG_RATIOS_TO_LAST,
    (families.Categorical, "probs"): _LOG_RATIOS_TO_LAST,
    (families.OneHotCategorical, "probs"): _LOG_RATIOS_TO_LAST,
    (families.Multinomial, "probs"): _LOG_RATIOS_TO_LAST,
    (families.VonMises, "loc"): _ANGLE,
    (families.Zipf, "exponent"): _LOG_EXCESS_OVER_ONE,
}


class _FreeParameter(NamedTuple):
    """A parameter that is fitted, with the shape and, for a location, the unit of its coordinates."""

    name: str
    shape: tuple[int, ...]
    transform: _Transform
    unit: float


@dataclass(frozen=True)
class FamilyParametrisation:
    """The parametrisation of a family of `kullback.families`.

    Args:
        family: The class of the family.
        fixed: The parameters that are not fitted, by name.
        free: The parameters that are fitted.
    """

    family: type[Distribution]
    fixed: dict[str, Any]
    free: tuple[_FreeParameter, ...]

    @property
    def size(self) -> int:
        """The number of coordinates."""
        return sum(int(np.prod(parameter.shape)) for parameter in self.free)

    @property
    def periods(self) -> Array:
        """The periods of the coordinates, shape (size,); `inf` for a coordinate without a period."""
        return np.concatenate([np.full(int(np.prod(one.shape)), one.transform.period) for one in self.free])

    def scales_of_coordinates(self, vector: Array) -> Array:
        """The change of each coordinate that changes the member at a vector by about its scale, shape (size,).

        It is 1 except for locations, whose coordinates have a unit that need not be near the scale of the member.
        """
        scale = scale_of(self.to_distribution(vector))
        scales = [
            np.full(int(np.prod(shape)), scale / unit if transform.is_location else 1.0)
            for _, shape, transform, unit in self.free
        ]
        return np.concatenate(scales) if scales else np.zeros(0)

    def to_vector(self, distribution: Distribution) -> Array:
        """The coordinates of a member of the family, shape (size,)."""
        distribution = _with_sorted_components(distribution)
        parts = [
            np.ravel(transform.forward(_parameter_value(distribution, name))) for name, _, transform, _ in self.free
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def to_distribution(self, vector: Array) -> Distribution:
        """The member of the family at coordinates of shape (size,)."""
        values, position = dict(self.fixed), 0
        for name, shape, transform, _ in self.free:
            count = int(np.prod(shape))
            with np.errstate(over="ignore"):  # the family refuses a parameter that is not finite
                value = transform.inverse(np.reshape(vector[position : position + count], shape))
            values[name] = float(value) if value.ndim == 0 else value
            position += count
        return self.family(**values)


def parametrise(family: type[Distribution], example: Distribution, fixed: dict[str, Any]) -> FamilyParametrisation:
    """The parametrisation of a family, with parameters of the same shapes as an example.

    Args:
        family: The class of the family.
        example: A member of the family.
        fixed: The parameters that are not fitted, by name.

    Raises:
        ParameterError: A count is not fixed, or the family has a parameter that cannot be transformed.
    """
    free = []
    for field in fields(family):  # pyright: ignore[reportArgumentType]
        if field.name in fixed or field.name == "logits":  # the equivalent probs are fitted
            continue
        constraints: tuple[Constraint, ...] = getattr(field.type, "__metadata__", ())
        if field.name in count_parameters(family):
            raise ParameterError(
                f"expected {family.__name__}'s {field.name} in fixed, because a count cannot be fitted: pass "
                f"fixed={{{field.name!r}: ...}}"
            )
        is_covariance = field.name.endswith("covariance")
        if not constraints or constraints[0] not in _TRANSFORM_OF_CONSTRAINT or is_covariance:
            raise ParameterError(
                f"expected a family whose parameters can be fitted by descent, got {family.__name__}, whose "
                f"{field.name} has no unconstrained parametrisation; fix it with fixed={{{field.name!r}: ...}}"
            )
        transform = _TRANSFORM_OF_PARAMETER.get((family, field.name)) or _TRANSFORM_OF_CONSTRAINT[constraints[0]]
        unit = scale_of(example) if transform is _IDENTITY else 1.0
        transform = _in_units_of(unit) if transform is _IDENTITY else transform
        shape = np.shape(transform.forward(_parameter_value(example, field.name)))
        free.append(_FreeParameter(field.name, shape, transform, unit))
    return FamilyParametrisation(family, fixed, tuple(free))


def count_parameters(family: type[Distribution]) -> list[str]:
    """The names of the parameters that are counts, which a descent cannot fit."""
    return [
        field.name
        for field in fields(family)  # pyright: ignore[reportArgumentType]
        if _COUNT in getattr(field.type, "__metadata__", ())
    ]


def scale_of(example: Distribution) -> float:
    """The power of 256 nearest to the scale of a member, or to the mean of its scales; 1 without a scale."""
    name = next((name for name in ("scale", "scales") if hasattr(example, name)), None)
    scale = 1.0 if name is None else float(np.mean(_parameter_value(example, name)))
    return float(np.ldexp(1.0, 8 * round(np.log2(scale) / 8))) if 0 < scale < np.inf else 1.0


def _in_units_of(unit: float) -> _Transform:
    """Locations as multiples of a unit, so that a descent takes the same steps in every unit of the samples."""
    ignore_overflow = np.errstate(over="ignore", under="ignore")  # the coordinates are then not finite
    return _Transform(ignore_overflow(lambda x: x / unit), ignore_overflow(lambda x: x * unit), True)


def _with_sorted_components(distribution: Distribution) -> Distribution:
    """A mixture with its components sorted by mean, because their order does not change the distribution."""
    if not isinstance(distribution, families.NormalMixture):
        return distribution
    parameters = (distribution.weights, distribution.locs, distribution.scales)
    weights, locs, scales = (as_numpy(value, np.float64) for value in parameters)
    order = np.argsort(locs, kind="stable")
    return families.NormalMixture(weights=weights[order], locs=locs[order], scales=scales[order])


def _parameter_value(distribution: Distribution, name: str) -> Array:
    """A parameter as float64; probs are computed from logits where the distribution has logits only."""
    value = getattr(distribution, name)
    if value is None and name == "probs":
        logits = as_numpy(distribution.logits, np.float64)  # pyright: ignore[reportAttributeAccessIssue]
        return special.expit(logits) if logits.ndim == 0 else special.softmax(logits, axis=-1)
    return as_numpy(value, np.float64)
