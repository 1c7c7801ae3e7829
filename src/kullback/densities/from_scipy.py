"""Densities of SciPy's families and of its frozen distributions."""

from math import isfinite, log
from typing import Any

import numpy as np

from kullback.densities.density import Density
from kullback.errors import ParameterError, ShapeError
from kullback.numerics.arrays import Array

__all__ = ["of_continuous", "of_discrete", "of_frozen", "of_random_variable"]


def of_continuous(family: Any, *shapes: float, loc: float = 0.0, scale: float = 1.0) -> Density:
    """A continuous family, met in its standard form: origin - loc is exact near loc."""
    low, high = (float(end) for end in family.support(*shapes))
    lower, middle, upper = family.ppf([0.25, 0.5, 0.75], *shapes)
    width = _width(upper - lower)
    places = {float(middle), *((0.0,) if low < 0 < high else ())}

    def log_density(origin: Array, offset: Array) -> Array:
        return family.logpdf(((origin - loc) + offset) / scale, *shapes) - log(scale)

    return Density(
        log_density,
        (loc + scale * low, loc + scale * high),
        tuple((loc + scale * place, scale * width) for place in places),
        (loc,) if low == 0 else (),
        sample=lambda count, rng: family.rvs(*shapes, loc=loc, scale=scale, size=count, random_state=rng),
    )


def of_discrete(family: Any, *shapes: float, loc: float = 0.0) -> Density:
    """A discrete family."""
    low, high = (float(end) for end in family.support(*shapes, loc))
    lower, middle, upper = family.ppf([0.25, 0.5, 0.75], *shapes, loc)
    return Density(
        lambda origin, offset: family.logpmf(origin + offset, *shapes, loc),
        (low, high),
        ((float(middle), _width(upper - lower)),),
        discrete=True,
        sample=lambda count, rng: family.rvs(*shapes, loc=loc, size=count, random_state=rng),
    )


def of_frozen(frozen: Any) -> Density:
    """A frozen classic distribution, such as scipy.stats.norm(0, 1).

    Raises:
        ShapeError: Its parameters are a batch.
        ParameterError: Its parameters are outside what SciPy allows.
    """
    family = frozen.dist
    given = dict(zip([*_shape_names(family), "loc", "scale"], frozen.args, strict=False)) | frozen.kwds
    for name, value in given.items():
        if np.size(value) != 1:
            raise ShapeError(
                f"expected numbers, one distribution at a time, but {family.name}'s {name} has shape "
                f"{np.shape(value)}; measure each of them"
            )
    given = {name: float(np.asarray(value).reshape(())) for name, value in given.items()}
    shapes = [given[name] for name in _shape_names(family)]
    loc, scale = given.get("loc", 0.0), given.get("scale", 1.0)
    if not (scale > 0 and isfinite(loc)) or np.isnan(family.support(*shapes)).any():
        raise ParameterError(f"expected parameters that scipy.stats.{family.name} allows, got {given}")
    if hasattr(family, "logpmf"):
        return of_discrete(family, *shapes, loc=loc)
    return of_continuous(family, *shapes, loc=loc, scale=scale)


def of_random_variable(variable: Any) -> Density:
    """A distribution of SciPy's new kind, such as scipy.stats.Normal(mu=0, sigma=1)."""
    low, high = (np.asarray(end) for end in variable.support())
    if low.size != 1:
        raise ShapeError(f"expected one distribution at a time, got a batch of shape {low.shape}; measure each of them")
    discrete = any(kind.__name__ == "DiscreteDistribution" for kind in type(variable).__mro__)
    log_density = variable.logpmf if discrete else variable.logpdf
    anchors = []
    for part in getattr(variable, "components", [variable]):
        lower, middle, upper = (float(part.icdf(level)) for level in (0.25, 0.5, 0.75))
        anchors.append((middle, _width(upper - lower)))
    return Density(
        lambda origin, offset: log_density(origin + offset),
        (float(low), float(high)),
        tuple(anchors),
        discrete=discrete,
        sample=lambda count, rng: variable.sample(count, rng=rng),
    )


def _shape_names(family: Any) -> list[str]:
    return [name.strip() for name in (family.shapes or "").split(",") if name.strip()]


def _width(range_of_half: float) -> float:
    """Half the range that holds half the mass; 1 where that is no length."""
    width = float(range_of_half) / 2
    return width if width > 0 and isfinite(width) else 1.0
