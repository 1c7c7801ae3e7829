"""Adapter of scipy.stats: its frozen distributions and random variables as families and univariate densities.

SciPy has two kinds of distributions: frozen distributions such as `scipy.stats.norm(0, 1)`, made by a family object
such as `scipy.stats.norm`, and random variables such as `scipy.stats.Normal(mu=0, sigma=1)`.
"""

from collections.abc import Callable
from functools import cache
from math import inf, isfinite, log
from typing import Any

import numpy as np
from scipy import stats

from kullback import families as f
from kullback.closed_forms.compiled_forms import DIRECT, Parameters
from kullback.densities.composites import affine_image, mixture_density, require_methods_of_library
from kullback.densities.density import Density
from kullback.errors import DistributionTypeError, NoClosedFormError, ParameterError, ShapeError
from kullback.families.base import ScipyForm
from kullback.numerics.arrays import Array, ArrayLike

__all__ = ["FAMILIES", "MULTIVARIATE_FAMILIES", "as_density", "as_family", "continuous_density", "density_of_form"]

_PACKAGES = ("scipy.",)  # the modules of classes whose methods are the library's own

# Called with the family's name, its shape parameters, loc and scale.
_Converter = Callable[[str, tuple[ArrayLike, ...], ArrayLike, ArrayLike], f.Distribution]


def as_family(distribution: Any) -> f.Distribution:
    """The distribution of `kullback.families` that equals a frozen distribution or a random variable of scipy.stats.

    Args:
        distribution: A frozen distribution or a random variable of a family in `FAMILIES` or
            `MULTIVARIATE_FAMILIES`; also shifted and scaled random variables, exp and log of random variables, and
            mixtures of normal random variables.

    Returns:
        The distribution, with the parameters as they were given.

    Raises:
        NoClosedFormError: `kullback.families` has no such distribution, for example no gamma with loc != 0.
        DistributionTypeError: The object is not a frozen distribution or a random variable.

    Example:
        >>> as_family(stats.lognorm(s=0.5, scale=1.0))
        LogNormal(loc=np.float64(0.0), scale=0.5)
        >>> as_family(stats.Normal(mu=1.0, sigma=2.0) + 1.0)
        Normal(loc=np.float64(2.0), scale=np.float64(2.0))
    """
    require_methods_of_library(distribution, _PACKAGES)
    if isinstance(distribution, stats.gaussian_kde):
        if distribution.d > 1:
            raise _no_family("gaussian_kde")
        scales = np.broadcast_to(np.sqrt(distribution.covariance[0]), distribution.n)
        return f.NormalMixture(weights=distribution.weights, locs=distribution.dataset[0], scales=scales)
    if hasattr(distribution, "dist"):
        family = distribution.dist
        shapes, loc, scale = family._parse_args(*distribution.args, **distribution.kwds)
        return _from_parameters(family, shapes, loc, scale)
    if convert := MULTIVARIATE_FAMILIES.get(type(getattr(distribution, "_dist", None))):
        return convert(distribution)
    if isinstance(distribution, stats.rv_continuous | stats.rv_discrete):
        if isinstance(distribution, stats.rv_histogram) or hasattr(distribution, "xk"):
            return _from_parameters(distribution, (), 0.0, 1.0)
        raise DistributionTypeError(
            f"expected a frozen distribution, got scipy.stats.{distribution.name} itself; "
            f"give it its parameters, scipy.stats.{distribution.name}(...)"
        )
    if hasattr(distribution, "logpdf") and hasattr(distribution, "support"):
        return _from_random_variable(distribution)
    name = type(distribution).__name__
    if hasattr(distribution, "logpdf") or hasattr(distribution, "logpmf"):
        raise _no_family(name)
    raise DistributionTypeError(
        f"expected a distribution of scipy.stats, got {name}; for arrays see kl_probs and kl_logits"
    )


def as_density(distribution: Any) -> Density | None:
    """The density or probability mass function of a univariate distribution of scipy.stats; None for other objects.

    Raises:
        ShapeError: The distribution is a batch.
        ParameterError: A parameter is outside its domain.
    """
    if hasattr(distribution, "dist"):
        return _frozen_density(distribution)
    if type(distribution).__name__ == "Mixture":
        found = [as_density(component) for component in distribution.components]
        parts = [part for part in found if part is not None]
        if len(parts) == len(found) and len({part.support for part in parts}) > 1:
            return mixture_density(distribution.weights, parts)
    if hasattr(distribution, "icdf"):
        return _random_variable_density(distribution)
    if hasattr(distribution, "ppf") and distribution.numargs == 0:
        return _frozen_density(distribution())
    return None


def _no_family(what: str) -> NoClosedFormError:
    return NoClosedFormError(f"{what} has no closed form; kullback.measure(p, q) bounds or estimates the KL")


def _from_parameters(family: Any, shapes: tuple[ArrayLike, ...], loc: ArrayLike, scale: ArrayLike) -> f.Distribution:
    """The distribution of loc + scale x for x from a family object with these shape parameters."""
    name, convert = f"scipy.stats.{family.name}", _converter(type(family))
    if convert is None and hasattr(family, "xk"):
        convert = _without_location_and_scale(lambda: _from_values(family))
    if convert is None:
        raise _no_family(name)
    return convert(name, shapes, loc, scale)


@cache
def _converter(kind: type) -> Any:
    """The entry of `FAMILIES` for a class of family objects, or for a subclass without methods of its own."""
    for cls in kind.__mro__:
        if cls in FAMILIES:
            return FAMILIES[cls]
        if cls.__module__.startswith(_PACKAGES) or any(callable(value) for value in vars(cls).values()):
            return None
    return None


def _require(value: ArrayLike, expected: float, otherwise: str) -> None:
    if np.any(np.asarray(value) != expected):
        raise _no_family(otherwise)


def _from_random_variable(variable: Any) -> f.Distribution:
    name = _class_name(variable)
    if name == "Mixture":
        return _from_mixture(variable)
    if name == "MonotonicTransformedDistribution":
        return _from_transformed(variable)
    base, loc, scale = variable, 0.0, 1.0
    if name == "ShiftedScaledDistribution":
        base, loc, scale = variable._dist, variable.loc, variable.scale
    if _class_name(base) == "Uniform":
        ends = loc + scale * base.a, loc + scale * base.b
        return f.Uniform(low=np.minimum(*ends), high=np.maximum(*ends))
    family, shapes, inner_loc, inner_scale = _family_object(base)
    loc, scale = loc + scale * inner_loc, scale * inner_scale
    if np.any(scale < 0):
        if type(family) not in _REFLECTIONS:
            raise _no_family(f"the negative of scipy.stats.{family.name}")
        family, scale = _REFLECTIONS[type(family)], np.negative(scale)
    return _from_parameters(family, shapes, loc, scale)


def _family_object(variable: Any) -> tuple[Any, tuple[ArrayLike, ...], ArrayLike, ArrayLike]:
    """The family object that a random variable corresponds to, with its shape parameters, loc and scale."""
    require_methods_of_library(variable, _PACKAGES)
    match _class_name(variable):
        case "Normal" | "StandardNormal":
            return stats.norm, (), variable.mu, variable.sigma
        case "Logistic":
            return stats.logistic, (), 0.0, 1.0
        case "Binomial":
            return stats.binom, (variable.n, variable.p), 0.0, 1.0
    # Classes made by scipy.stats.make_distribution hold bound methods of the family object.
    owners = (getattr(value, "__self__", None) for value in vars(type(variable)).values())
    family = next((owner for owner in owners if isinstance(owner, stats.rv_continuous | stats.rv_discrete)), None)
    if family is None:
        raise _no_family(type(variable).__name__)
    return family, tuple(getattr(variable, shape) for shape in _shape_names(family)), 0.0, 1.0


def _from_mixture(variable: Any) -> f.Distribution:
    parts = [as_family(component) for component in variable.components]
    if not all(isinstance(part, f.Normal) for part in parts):
        raise _no_family("a mixture with components other than normals")
    locs, scales = ([getattr(part, name) for part in parts] for name in ("loc", "scale"))
    return f.NormalMixture(weights=variable.weights, locs=np.stack(locs, -1), scales=np.stack(scales, -1))


def _from_transformed(variable: Any) -> f.Distribution:
    name = {np.exp: "exp", np.log: "log"}.get(variable._g)
    if name is None:
        raise _no_family(repr(variable))
    base = as_family(variable._dist)
    if name == "exp" and isinstance(base, f.Normal):
        return f.LogNormal(loc=base.loc, scale=base.scale)
    return f.Transformed(base=base, transform=(name,), invertible=True)


def _from_values(family: Any) -> f.Distribution:
    """The categorical distribution that equals scipy.stats.rv_discrete(values=(values, probabilities))."""
    return f.Transformed(
        base=f.Categorical(probs=family.pk), transform=("values", *family.xk.tolist()), invertible=True
    )


def _with_location_and_scale(build: Callable[..., f.Distribution]) -> _Converter:
    """A family that `build` makes from its shape parameters, loc and scale."""
    return lambda _name, shapes, loc, scale: build(*shapes, loc, scale)


def _with_scale(build: Callable[..., f.Distribution]) -> _Converter:
    """A family that `build` makes from its shape parameters and scale; loc must be 0."""

    def convert(name: str, shapes: tuple[ArrayLike, ...], loc: ArrayLike, scale: ArrayLike) -> f.Distribution:
        _require(loc, 0, f"{name} with loc other than 0")
        return build(*shapes, scale)

    return convert


def _without_location_and_scale(build: Callable[..., f.Distribution]) -> _Converter:
    """A family that `build` makes from its shape parameters; loc must be 0 and scale must be 1."""

    def convert(name: str, shapes: tuple[ArrayLike, ...], loc: ArrayLike, scale: ArrayLike) -> f.Distribution:
        _require(loc, 0, f"{name} with loc other than 0")
        _require(scale, 1, f"{name} with scale other than 1")
        return build(*shapes)

    return convert


def _location_scale(kind: type) -> _Converter:
    return _with_location_and_scale(lambda loc, scale: kind(loc=loc, scale=scale))


def _von_mises(name: str, shapes: tuple[ArrayLike, ...], loc: ArrayLike, scale: ArrayLike) -> f.Distribution:
    """vonmises is on the circle; vonmises_line, of the same class, is on the interval from loc - pi to loc + pi."""
    _require(scale, 1, f"{name} with scale other than 1")
    if name == "scipy.stats.vonmises_line":
        _require(loc, 0, f"{name} with loc other than 0")
    return f.VonMises(loc=loc, concentration=shapes[0])


def _gumbel_left(loc: ArrayLike, scale: ArrayLike) -> f.Distribution:
    right = f.Gumbel(loc=np.negative(loc), scale=scale)
    return f.Transformed(base=right, transform=("negative",), invertible=True)


def _geometric(p: ArrayLike, loc: ArrayLike, _scale: ArrayLike) -> f.Distribution:
    """SciPy counts the trials; `Geometric` counts the failures, which are one fewer."""
    failures = f.Geometric(probs=p)
    if np.all(np.asarray(loc) == -1):
        return failures
    _require(loc, 0, "scipy.stats.geom with loc other than 0 and -1")
    return f.Transformed(base=failures, transform=("add one",), invertible=True)


def _negative_binomial(n: ArrayLike, p: ArrayLike) -> f.Distribution:
    """SciPy's p is the probability of a failure. The logit is used where 1 - p would lose digits."""
    p = np.asarray(p)
    if np.all(p >= 0.5):
        return f.NegativeBinomial(total_count=n, probs=1 - p)
    with np.errstate(divide="ignore", invalid="ignore"):
        return f.NegativeBinomial(total_count=n, logits=np.log1p(-p) - np.log(p))


# Class of SciPy's family object -> conversion to a distribution of kullback.families.
FAMILIES: dict[type, _Converter] = {
    type(stats.cauchy): _location_scale(f.Cauchy),
    type(stats.geom): _with_location_and_scale(_geometric),
    type(stats.gumbel_l): _with_location_and_scale(_gumbel_left),
    type(stats.gumbel_r): _location_scale(f.Gumbel),
    type(stats.laplace): _location_scale(f.Laplace),
    type(stats.logistic): _location_scale(f.Logistic),
    type(stats.norm): _location_scale(f.Normal),
    type(stats.t): _with_location_and_scale(lambda df, loc, scale: f.StudentT(df=df, loc=loc, scale=scale)),
    type(stats.truncnorm): _with_location_and_scale(
        lambda a, b, loc, scale: f.TruncatedNormal(
            loc=loc, scale=scale, low=np.add(loc, np.multiply(a, scale)), high=np.add(loc, np.multiply(b, scale))
        )
    ),
    type(stats.uniform): _with_location_and_scale(lambda loc, scale: f.Uniform(low=loc, high=np.add(loc, scale))),
    type(stats.vonmises): _von_mises,
    type(stats.chi2): _with_scale(lambda df, s: f.Gamma(concentration=np.divide(df, 2), rate=np.divide(0.5, s))),
    type(stats.erlang): _with_scale(lambda a, scale: f.Gamma(concentration=a, rate=np.divide(1.0, scale))),
    type(stats.expon): _with_scale(lambda scale: f.Exponential(rate=np.divide(1.0, scale))),
    type(stats.gamma): _with_scale(lambda a, scale: f.Gamma(concentration=a, rate=np.divide(1.0, scale))),
    type(stats.halfcauchy): _with_scale(lambda scale: f.HalfCauchy(scale=scale)),
    type(stats.halfnorm): _with_scale(lambda scale: f.HalfNormal(scale=scale)),
    type(stats.invgamma): _with_scale(lambda a, scale: f.InverseGamma(concentration=a, rate=scale)),
    type(stats.invgauss): _with_scale(lambda mu, s: f.InverseGaussian(mean=np.multiply(mu, s), shape=s)),
    type(stats.levy): _with_scale(lambda scale: f.InverseGamma(concentration=0.5, rate=np.divide(scale, 2))),
    type(stats.lognorm): _with_scale(lambda s, scale: f.LogNormal(loc=np.log(scale), scale=s)),
    type(stats.maxwell): _with_scale(lambda scale: f.Maxwell(scale=scale)),
    type(stats.pareto): _with_scale(lambda b, scale: f.Pareto(scale=scale, alpha=b)),
    type(stats.rayleigh): _with_scale(lambda scale: f.Rayleigh(scale=scale)),
    type(stats.wald): _with_scale(lambda scale: f.InverseGaussian(mean=scale, shape=scale)),
    type(stats.weibull_min): _with_scale(lambda c, scale: f.Weibull(scale=scale, concentration=c)),
    type(stats.arcsine): _without_location_and_scale(lambda: f.Beta(concentration1=0.5, concentration0=0.5)),
    type(stats.bernoulli): _without_location_and_scale(lambda p: f.Bernoulli(probs=p)),
    type(stats.beta): _without_location_and_scale(lambda a, b: f.Beta(concentration1=a, concentration0=b)),
    type(stats.binom): _without_location_and_scale(lambda n, p: f.Binomial(total_count=n, probs=p)),
    type(stats.f): _without_location_and_scale(lambda dfn, dfd: f.F(df1=dfn, df2=dfd)),
    type(stats.hypergeom): _without_location_and_scale(
        lambda M, n, N: f.Hypergeometric(population=M, successes=n, draws=N)
    ),
    type(stats.nbinom): _without_location_and_scale(_negative_binomial),
    type(stats.poisson): _without_location_and_scale(lambda mu: f.Poisson(rate=mu)),
    type(stats.powerlaw): _without_location_and_scale(lambda a: f.Beta(concentration1=a, concentration0=1.0)),
    type(stats.zipf): _without_location_and_scale(lambda a: f.Zipf(exponent=a)),
    type(stats.zipfian): _without_location_and_scale(lambda a, n: f.Zipfian(exponent=a, total_count=n)),
}

# Class of SciPy's multivariate family object -> conversion of its frozen distribution.
MULTIVARIATE_FAMILIES: dict[type, Callable[[Any], f.Distribution]] = {
    type(stats.dirichlet): lambda x: f.Dirichlet(concentration=x.alpha),
    type(stats.invwishart): lambda x: f.InverseWishart(df=x.df, scale_matrix=x.scale),
    type(stats.matrix_normal): lambda x: f.MatrixNormal(
        loc=x.mean, row_covariance=x.rowcov, column_covariance=x.colcov
    ),
    type(stats.multinomial): lambda x: f.Multinomial(total_count=x.n, probs=x.p),
    type(stats.multivariate_normal): lambda x: f.MultivariateNormal(loc=x.mean, covariance_matrix=x.cov),
    type(stats.vonmises_fisher): lambda x: f.VonMisesFisher(mean_direction=x.mu, concentration=x.kappa),
    type(stats.wishart): lambda x: f.Wishart(df=x.df, covariance_matrix=x.scale),
}

# The compiled forms read the parameters of these classes directly. Class of SciPy's family object -> the family, the
# names of its parameters, and their values from the shape parameters and the scale; in _LOCATED also loc.
_LOCATED: dict[type, type] = {
    type(stats.cauchy): f.Cauchy,
    type(stats.gumbel_r): f.Gumbel,
    type(stats.laplace): f.Laplace,
    type(stats.norm): f.Normal,
}
_SCALED: dict[type, tuple[type, tuple[str, ...], Callable[..., tuple[Any, ...]]]] = {
    type(stats.beta): (f.Beta, ("concentration1", "concentration0"), lambda a, b, _: (a, b)),
    type(stats.bernoulli): (f.Bernoulli, ("probs",), lambda p, _: (p,)),
    type(stats.binom): (f.Binomial, ("total_count", "probs"), lambda n, p, _: (n, p)),
    type(stats.expon): (f.Exponential, ("rate",), lambda scale: (np.divide(1.0, scale),)),
    type(stats.gamma): (f.Gamma, ("concentration", "rate"), lambda a, scale: (a, np.divide(1.0, scale))),
    type(stats.halfnorm): (f.HalfNormal, ("scale",), lambda scale: (scale,)),
    type(stats.invgamma): (f.InverseGamma, ("concentration", "rate"), lambda a, scale: (a, scale)),
    type(stats.lognorm): (f.LogNormal, ("loc", "scale"), lambda s, scale: (np.log(scale), s)),
    type(stats.pareto): (f.Pareto, ("scale", "alpha"), lambda b, scale: (scale, b)),
    type(stats.poisson): (f.Poisson, ("rate",), lambda mu, _: (mu,)),
}
_UNSCALED = {type(stats.beta), type(stats.bernoulli), type(stats.binom), type(stats.poisson)}


def _frozen_parameters(distribution: Any) -> Parameters | None:
    """The parameters of a frozen distribution with loc = 0, or of a location-scale family."""
    family = distribution.dist
    kind = type(family)
    if (located := _LOCATED.get(kind)) is None and kind not in _SCALED and kind is not type(stats.uniform):
        return None
    shapes, loc, scale = family._parse_args(*distribution.args, **distribution.kwds)
    if located is not None:
        return located, (loc, scale), ("loc", "scale")
    if kind is type(stats.uniform):
        return f.Uniform, (loc, np.add(loc, scale)), ("low", "high")
    if not _is_number(loc, 0) or (kind in _UNSCALED and not _is_number(scale, 1)) or not _is_positive(scale):
        return None
    found, names, values = _SCALED[kind]
    return found, values(*shapes, scale), names


def _is_number(value: Any, expected: int) -> bool:
    return isinstance(value, int | float) and value == expected


def _is_positive(value: Any) -> bool:
    """Whether a scale can be inverted: a scale that is not positive is an error, which the conversion raises."""
    return bool(value > 0) if isinstance(value, int | float) else bool(np.all(np.asarray(value) > 0))


DIRECT.update(
    {
        type(stats.norm()): _frozen_parameters,
        type(stats.poisson(1.0)): _frozen_parameters,
        type(stats.multivariate_normal()): lambda x: (
            f.MultivariateNormal,
            (x.mean, x.cov),
            ("loc", "covariance_matrix"),
        ),
        type(stats.dirichlet([1.0])): lambda x: (f.Dirichlet, (x.alpha,), ("concentration",)),
        stats.Normal: lambda x: (f.Normal, (x.mu, x.sigma), ("loc", "scale")),
    }
)

# Class of a family object -> the family of -x.
_REFLECTIONS: dict[type, Any] = {
    **{type(family): family for family in (stats.cauchy, stats.laplace, stats.logistic, stats.norm, stats.t)},
    type(stats.gumbel_l): stats.gumbel_r,
    type(stats.gumbel_r): stats.gumbel_l,
}


# Outside these limits of parameters, an error of Boost, which SciPy does not handle, ends the process.
_LIMITS = {
    "invgauss": (float(np.finfo(np.float64).tiny), inf),
    "nchypergeom_fisher": (0.0, 1e100),
    "nchypergeom_wallenius": (float(np.finfo(np.float64).tiny), inf),
}


def _quartiles(family: Any, *arguments: float) -> Array:
    """The quartiles, for which SciPy searches if it has no formula; DistributionTypeError if it finds none."""
    smallest, largest = _LIMITS.get(family.name, (0.0, inf))
    if any(argument != 0 and not smallest <= abs(argument) <= largest for argument in arguments):
        raise ParameterError(
            f"scipy.stats.{family.name}: expected parameters from {smallest:.3g} to {largest:.3g}, got "
            f"{', '.join(f'{argument:.15g}' for argument in arguments)}; SciPy's functions end the process for these"
        )
    try:
        return family.ppf([0.25, 0.5, 0.75], *arguments)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise DistributionTypeError(
            f"scipy.stats.{family.name}: expected a distribution whose quartiles SciPy computes, but its ppf raised "
            f"{type(error).__name__}: {error}"
        ) from error


def continuous_density(family: Any, *shapes: float, loc: float = 0.0, scale: float = 1.0) -> Density:
    """The density of a continuous family object, evaluated in standard form: origin - loc is exact near loc."""
    low, high = (float(end) for end in family.support(*shapes))
    lower, middle, upper = _quartiles(family, *shapes)
    width = _half_width(upper - lower)
    locations = {float(middle), *((0.0,) if low < 0 < high else ())}

    def log_density(origin: Array, offset: Array) -> Array:
        return family.logpdf(((origin - loc) + offset) / scale, *shapes) - log(scale)

    return Density(
        log_density,
        (loc + scale * low, loc + scale * high),
        tuple((loc + scale * location, scale * width) for location in locations),
        (loc,) if low == 0 else (),
        sample=lambda count, rng: family.rvs(*shapes, loc=loc, scale=scale, size=count, random_state=rng),
    )


def density_of_form(form: ScipyForm, member: Any) -> Density:
    """The density or probability mass function of a member of `kullback.families` by its form in scipy.stats."""
    return _density_of_family_object(getattr(stats, form.name), form.arguments(member))


def _histogram_density(family: Any) -> Density:
    """The density of a histogram, which is constant in each bin and 0 in bins without counts."""
    edges, heights = np.asarray(family._hbins, np.float64), np.asarray(family._hpdf, np.float64)[1:-1]
    with np.errstate(divide="ignore"):
        logs = np.log(heights)
    positive = np.flatnonzero(heights > 0)
    low, high = float(edges[positive[0]]), float(edges[positive[-1] + 1])

    def log_density(origin: Array, offset: Array) -> Array:
        x = origin + offset
        inside = (x >= low) & (x <= high)
        bins = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, heights.size - 1)
        return np.where(inside, logs[bins], -inf)

    empty = [(float(edges[i]), float(edges[i + 1])) for i in range(positive[0], positive[-1]) if heights[i] == 0]
    gaps: list[tuple[float, float]] = []
    for first, last in empty:
        if gaps and gaps[-1][1] == first:
            gaps[-1] = (gaps[-1][0], last)
        else:
            gaps.append((first, last))
    return Density(
        log_density,
        (low, high),
        tuple(
            (float(edge), float(width))
            for edge, width in zip(edges, np.abs(np.diff(edges, append=edges[-2])), strict=True)
        ),
        sample=lambda count, rng: family.rvs(size=count, random_state=rng),
        gaps=tuple(gaps),
    )


def _discrete_density(family: Any, *shapes: float, loc: float = 0.0) -> Density:
    """The probability mass function of a discrete family object."""
    low, high = (float(end) for end in family.support(*shapes, loc))
    lower, middle, upper = _quartiles(family, *shapes, loc)
    return Density(
        lambda origin, offset: family.logpmf(origin + offset, *shapes, loc),
        (low, high),
        ((float(middle), _half_width(upper - lower)),),
        discrete=True,
        sample=lambda count, rng: family.rvs(*shapes, loc=loc, size=count, random_state=rng),
    )


def _frozen_density(frozen: Any) -> Density:
    """The density or probability mass function of a frozen distribution, such as scipy.stats.norm(0, 1)."""
    family = frozen.dist
    given = dict(zip([*_shape_names(family), "loc", "scale"], frozen.args, strict=False)) | frozen.kwds
    for name, value in given.items():
        if np.size(value) != 1:
            raise ShapeError(
                f"expected scalar parameters, one distribution at a time, but {family.name}'s {name} has shape "
                f"{np.shape(value)}; measure each distribution separately"
            )
    given = {name: float(np.asarray(value).reshape(())) for name, value in given.items()}
    shapes = [given[name] for name in _shape_names(family)]
    if not (given.get("scale", 1.0) > 0 and isfinite(given.get("loc", 0.0))) or np.isnan(family.support(*shapes)).any():
        raise ParameterError(f"expected parameters in the domain of scipy.stats.{family.name}, got {given}")
    if family.name == "vonmises" and given.get("scale", 1.0) != 1:
        raise ParameterError(
            f"expected scipy.stats.vonmises with scale 1, got {given['scale']}: its density is periodic on the whole "
            "line, and its integral is infinite; scipy.stats.vonmises_line has one period"
        )
    return _density_of_family_object(family, given)


def _density_of_family_object(family: Any, given: dict[str, float]) -> Density:
    """The density or probability mass function of a family object with these shape parameters, loc and scale."""
    shapes, loc = [given[name] for name in _shape_names(family)], given.get("loc", 0.0)
    if isinstance(family, stats.rv_histogram):
        return affine_image(_histogram_density(family), loc, given.get("scale", 1.0))
    if hasattr(family, "logpmf"):
        return _discrete_density(family, *shapes, loc=loc)
    return continuous_density(family, *shapes, loc=loc, scale=given.get("scale", 1.0))


def _random_variable_density(variable: Any) -> Density:
    """The density or probability mass function of a random variable, such as scipy.stats.Normal(mu=0, sigma=1)."""
    low, high = (np.asarray(end) for end in variable.support())
    if low.size != 1:
        raise ShapeError(
            f"expected one distribution at a time, got a batch of shape {low.shape}; measure each distribution "
            "separately"
        )
    discrete = any(kind.__name__ == "DiscreteDistribution" for kind in type(variable).__mro__)
    log_density = variable.logpmf if discrete else variable.logpdf
    anchors = []
    for part in getattr(variable, "components", [variable]):
        lower, middle, upper = (float(part.icdf(level)) for level in (0.25, 0.5, 0.75))
        anchors.append((middle, _half_width(upper - lower)))
    return Density(
        lambda origin, offset: log_density(origin + offset),
        (float(low), float(high)),
        tuple(anchors),
        discrete=discrete,
        sample=lambda count, rng: variable.sample(count, rng=rng),
    )


def _class_name(variable: Any) -> str:
    """The name of the class of SciPy that a random variable is an instance of."""
    kinds = type(variable).__mro__
    return next((kind.__name__ for kind in kinds if kind.__module__.startswith(_PACKAGES)), kinds[0].__name__)


def _shape_names(family: Any) -> list[str]:
    return [name.strip() for name in (family.shapes or "").split(",") if name.strip()]


def _half_width(interquartile_range: float) -> float:
    """Half of the interquartile range; 1 where that is not a positive finite length."""
    width = float(interquartile_range) / 2
    return width if width > 0 and isfinite(width) else 1.0
