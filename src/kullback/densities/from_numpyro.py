"""Adapter of NumPyro: its distributions as families, univariate densities and samplers."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from math import ceil, inf, log
from operator import attrgetter
from typing import Any

import jax
import numpy as np
import numpyro.distributions as d
from jax import numpy as jnp
from numpyro.distributions import transforms

from kullback import families as f
from kullback.closed_forms.compiled_forms import DIRECT, INDEPENDENT, Parameters
from kullback.densities.composites import (
    affine_image,
    constraint_bounds,
    merged_independent,
    mixture_density,
    overridden_method,
    require_methods_of_library,
    require_no_mask,
    support_interval,
)
from kullback.densities.density import Density
from kullback.densities.resolve import resolve
from kullback.errors import DistributionTypeError, MissingDependencyError, NoClosedFormError, ShapeError
from kullback.numerics.arrays import Array, holds
from kullback.samples.monte_carlo import Sampler

__all__ = [
    "FAMILIES",
    "as_density",
    "as_family",
    "as_independent",
    "as_sampler",
    "is_injective",
    "split_transforms",
    "with_transforms",
]

_PACKAGES = ("numpyro.",)  # the modules of classes whose methods are the library's own
_PROBE_DRAWS = 4096  # draws that locate a distribution; a single count, since JAX compiles a program for each shape


def as_family(distribution: Any) -> f.Distribution:
    """The distribution of `kullback.families` with the arrays of a distribution of NumPyro.

    Args:
        distribution: An instance of a class in `FAMILIES`, or of a subclass that does not override its density; also
            Independent, ExpandedDistribution, TransformedDistribution and MixtureSameFamily with normal components.

    Returns:
        The distribution. It holds the same arrays, so that gradients reach them; numbers are converted to JAX arrays.

    Raises:
        NoClosedFormError: `kullback.families` has no family for this class.
        DistributionTypeError: The object is not a distribution.

    Example:
        >>> as_family(d.Exponential(jnp.asarray([1.0, 2.0]))).rate.tolist()
        [1.0, 2.0]
    """
    require_methods_of_library(distribution, _PACKAGES)
    for kind in type(distribution).__mro__:
        if kind in FAMILIES:
            return FAMILIES[kind](distribution)
    match distribution:
        case d.ExpandedDistribution():
            return _from_expanded(distribution.base_dist, distribution.batch_shape)
        case d.Independent():
            return merged_independent(as_family(distribution.base_dist), distribution.reinterpreted_batch_ndims)
        case d.TransformedDistribution():
            return _from_transformed(distribution)
        case d.MixtureSameFamily():
            parts = as_family(distribution.component_distribution)
            if isinstance(parts, f.Normal):
                weights = distribution.mixing_distribution.probs  # pyright: ignore[reportAttributeAccessIssue]
                return f.NormalMixture(weights=weights, locs=parts.loc, scales=parts.scale)
    name = type(distribution).__name__
    if isinstance(distribution, d.Distribution):
        require_no_mask(distribution)
        raise NoClosedFormError(f"{name} has no closed form; kullback.measure(p, q) bounds or estimates the KL")
    raise DistributionTypeError(f"expected a distribution of NumPyro, got {name}")


def as_density(distribution: Any) -> Density | None:
    """The density or probability mass function of a univariate distribution; None for others and without a sampler.

    Raises:
        NoClosedFormError: A discrete distribution is mapped to values that are not integers.
        ShapeError: The distribution is a batch.
    """
    _require_single(distribution)
    if distribution.event_shape:
        return None
    overrides = overridden_method(type(distribution), _PACKAGES) is not None
    if not overrides and (composite := _composite_density(distribution)) is not None:
        return composite
    sampler = as_sampler(distribution)
    if sampler is None:
        return None
    low, high = _support_interval(distribution)
    discrete = bool(distribution.support.is_discrete)
    lower, middle, upper = np.quantile(sampler.sample(_PROBE_DRAWS, np.random.default_rng(0)), [0.25, 0.5, 0.75])  # pyright: ignore[reportOptionalCall]
    width = float(upper - lower) / 2

    def log_density(origin: Array, offset: Array) -> Array:
        x = np.asarray(origin + offset, dtype=np.float64)
        inside = (x >= low) & (x <= high)
        safe = np.where(inside, x, middle)
        # Padding to few different sizes, since JAX compiles a program for each shape.
        flat = np.full(4 ** max(5, ceil(log(max(safe.size, 1), 4))), middle)
        flat[: safe.size] = safe.ravel()
        logs = sampler.log_density(flat.astype(np.int64) if discrete else flat)[: safe.size]
        return np.where(inside, logs.reshape(safe.shape), -inf)

    anchors = ((float(middle), width if width > 0 else 1.0),)
    return Density(log_density, (low, high), anchors, discrete=discrete, sample=sampler.sample)


def as_sampler(distribution: Any) -> Sampler | None:
    """The sampler and log-density, in float64 and as NumPy arrays; None if one of them is not implemented.

    Raises:
        ShapeError: The distribution is a batch.
        MissingDependencyError: NumPyro needs a package that is not installed.
    """
    _require_single(distribution)
    with jax.enable_x64(True):
        twin = jax.tree.map(_in_float64, distribution)

    def sample(count: int, rng: Any) -> Array:
        with jax.enable_x64(True):
            return np.asarray(twin.sample(jax.random.PRNGKey(int(rng.integers(2**31))), (count,)))

    def log_density(x: Array) -> Array:
        with jax.enable_x64(True):
            return np.asarray(twin.log_prob(jnp.asarray(x)), dtype=np.float64)

    try:
        log_density(sample(_PROBE_DRAWS, np.random.default_rng(0))[:1])
    except NotImplementedError:
        return None
    except ImportError as error:
        raise MissingDependencyError(
            f"numpyro's {type(distribution).__name__} has no sampler without another package: {error}"
        ) from error
    return Sampler(sample, log_density)


def split_transforms(distribution: Any) -> tuple[Any, list[Any]]:
    """The base and the elementary transforms of a transformed distribution; other distributions without transforms."""
    parts: list[Any] = []
    while isinstance(distribution, d.TransformedDistribution | d.ExpandedDistribution):
        if overridden_method(type(distribution), _PACKAGES) is not None:
            break
        if isinstance(distribution, d.ExpandedDistribution):
            inner, found = split_transforms(distribution.base_dist)
            return (inner.expand(distribution.batch_shape), found + parts) if found else (distribution, parts)
        parts = [part for transform in distribution.transforms for part in _elementary_transforms(transform)] + parts
        distribution = distribution.base_dist
    return distribution, parts


def with_transforms(base: Any, parts: list[Any]) -> Any:
    """The distribution of the base under these transforms."""
    return d.TransformedDistribution(base, parts) if parts else base


def is_injective(distribution: Any, transform: Any) -> bool:
    """Whether a transform is injective on the support of the distribution."""
    return _is_invertible(distribution, [transform])


def as_independent(base: Any, count: int) -> Any:
    """`Independent` of a distribution."""
    return d.Independent(base, count)


def _require_single(distribution: Any) -> None:
    if distribution.batch_shape:
        raise ShapeError(
            f"expected one distribution at a time, got {type(distribution).__name__} of batch shape "
            f"{tuple(distribution.batch_shape)}; measure each distribution separately, or make the batch one event by "
            "to_event()"
        )


def _composite_density(distribution: Any) -> Density | None:
    """The density of an affine image, or of a mixture of components with different supports, by its parts."""
    if isinstance(distribution, d.TransformedDistribution):
        base, parts = split_transforms(distribution)
        if not (parts and isinstance(parts[-1], transforms.AffineTransform)) or base.batch_shape or base.event_shape:
            return None
        loc, scale = (float(jnp.reshape(x, ())) for x in (parts[-1].loc, parts[-1].scale))
        inner = resolve(with_transforms(base, parts[:-1])).density
        return None if inner is None or scale == 0 else affine_image(inner, loc, scale)
    if isinstance(distribution, d.MixtureGeneral):
        found = [resolve(part).density for part in distribution.component_distributions]
        parts = [part for part in found if part is not None]
        if len(parts) == len(found) and (len({part.support for part in parts}) > 1 or any(part.gaps for part in parts)):
            return mixture_density(np.asarray(distribution.mixing_distribution.probs, np.float64), parts)
    return None


def _support_interval(distribution: Any) -> tuple[float, float]:
    """The support of a univariate distribution; of a transformed distribution, the image of the support of its base."""
    declared = support_interval(distribution.support)
    base, parts = split_transforms(distribution)
    if not parts or not all(is_injective(with_transforms(base, parts[:i]), part) for i, part in enumerate(parts)):
        return declared
    with jax.enable_x64(True):
        ends = jnp.asarray(support_interval(base.support))
        for part in parts:
            # The sigmoid of NumPyro excludes 0 and 1.
            ends = jax.nn.sigmoid(ends) if type(part) is transforms.SigmoidTransform else part(ends)
        low, high = sorted(ends.tolist())
    return (low, high) if low < high else declared


def _in_float64(leaf: Any) -> Any:
    array = jnp.asarray(leaf)
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else leaf


def _by_parameters(kind: type, *names: str, **renamed: str) -> Callable[[Any], f.Distribution]:
    """A conversion that copies the parameters `names` and `renamed` (name in the family = name in NumPyro)."""

    def convert(distribution: Any) -> f.Distribution:
        sources = {name: name for name in names} | renamed
        return kind(**{name: jnp.asarray(getattr(distribution, source)) for name, source in sources.items()})

    return convert


def _given_matrix(distribution: Any) -> str:
    """The parameter that was given: it comes first among the attributes; NumPyro caches the others once derived."""
    alternatives = ("covariance_matrix", "precision_matrix", "scale_tril")
    return next(name for name, value in vars(distribution).items() if name in alternatives and value is not None)


def _multivariate_normal(distribution: Any) -> f.Distribution:
    given = _given_matrix(distribution)
    loc = jnp.broadcast_to(distribution.loc, distribution.batch_shape + distribution.event_shape)
    return f.MultivariateNormal(loc=loc, **{given: jnp.asarray(getattr(distribution, given))})


def _matrix_normal(distribution: Any) -> f.Distribution:
    row, column = (jnp.asarray(x) for x in (distribution.scale_tril_row, distribution.scale_tril_column))
    loc = jnp.broadcast_to(distribution.loc, distribution.batch_shape + distribution.event_shape)
    return f.MatrixNormal(loc=loc, row_scale_tril=row, column_scale_tril=column)


def _lkj(distribution: Any) -> f.Distribution:
    return f.LKJ(dim=int(distribution.dimension), concentration=distribution.concentration)


def _gamma_poisson(distribution: Any) -> f.Distribution:
    counts, rate = (jnp.asarray(x) for x in (distribution.concentration, distribution.rate))
    return f.NegativeBinomial(total_count=counts, logits=-jnp.log(rate))


def _truncated_normal(distribution: Any) -> f.Distribution:
    """The truncated normal; NoClosedFormError for other truncated distributions."""
    base = distribution.base_dist
    if not isinstance(base, d.Normal):
        raise NoClosedFormError(
            f"{type(distribution).__name__} of {type(base).__name__} has no closed form; kullback.measure(p, q) bounds "
            "or estimates the KL"
        )
    low, high = getattr(distribution, "low", -np.inf), getattr(distribution, "high", np.inf)
    # NumPyro broadcasts numbers to arrays of NumPy, beside arrays of JAX.
    loc, scale, low, high = (
        jnp.asarray(value) if isinstance(value, np.ndarray) else value for value in (base.loc, base.scale, low, high)
    )
    return f.TruncatedNormal(loc=loc, scale=scale, low=low, high=high)


# NumPyro's class -> conversion to a distribution of kullback.families.
FAMILIES: dict[type, Callable[[Any], f.Distribution]] = {
    d.BernoulliLogits: _by_parameters(f.Bernoulli, "logits"),
    d.BernoulliProbs: _by_parameters(f.Bernoulli, "probs"),
    d.Beta: _by_parameters(f.Beta, "concentration1", "concentration0"),
    d.BinomialLogits: _by_parameters(f.Binomial, "total_count", "logits"),
    d.BinomialProbs: _by_parameters(f.Binomial, "total_count", "probs"),
    d.CategoricalLogits: _by_parameters(f.Categorical, "logits"),
    d.CategoricalProbs: _by_parameters(f.Categorical, "probs"),
    d.Cauchy: _by_parameters(f.Cauchy, "loc", "scale"),
    d.Chi2: _by_parameters(f.ChiSquared, "df"),
    d.Dirichlet: _by_parameters(f.Dirichlet, "concentration"),
    d.Exponential: _by_parameters(f.Exponential, "rate"),
    d.Gamma: _by_parameters(f.Gamma, "concentration", "rate"),
    d.GammaPoisson: _gamma_poisson,
    d.GeometricLogits: _by_parameters(f.Geometric, "logits"),
    d.GeometricProbs: _by_parameters(f.Geometric, "probs"),
    d.Gumbel: _by_parameters(f.Gumbel, "loc", "scale"),
    d.HalfCauchy: _by_parameters(f.HalfCauchy, "scale"),
    d.HalfNormal: _by_parameters(f.HalfNormal, "scale"),
    d.InverseGamma: _by_parameters(f.InverseGamma, "concentration", "rate"),
    d.InverseWishart: _by_parameters(f.InverseWishart, df="concentration", scale_matrix="scale_matrix"),
    d.Kumaraswamy: _by_parameters(f.Kumaraswamy, "concentration1", "concentration0"),
    d.LKJ: _lkj,
    d.LKJCholesky: _lkj,
    d.Laplace: _by_parameters(f.Laplace, "loc", "scale"),
    d.Logistic: _by_parameters(f.Logistic, "loc", "scale"),
    d.LogNormal: _by_parameters(f.LogNormal, "loc", "scale"),
    d.LeftTruncatedDistribution: _truncated_normal,
    d.LowRankMultivariateNormal: _by_parameters(f.LowRankMultivariateNormal, "loc", "cov_factor", "cov_diag"),
    d.MatrixNormal: _matrix_normal,
    d.MultinomialLogits: _by_parameters(f.Multinomial, "total_count", "logits"),
    d.MultinomialProbs: _by_parameters(f.Multinomial, "total_count", "probs"),
    d.MultivariateNormal: _multivariate_normal,
    d.NegativeBinomialLogits: _by_parameters(f.NegativeBinomial, "total_count", "logits"),
    d.NegativeBinomialProbs: _by_parameters(f.NegativeBinomial, "total_count", "probs"),
    d.Normal: _by_parameters(f.Normal, "loc", "scale"),
    d.Pareto: _by_parameters(f.Pareto, "scale", "alpha"),
    d.Poisson: _by_parameters(f.Poisson, "rate"),
    d.RightTruncatedDistribution: _truncated_normal,
    d.StudentT: _by_parameters(f.StudentT, "df", "loc", "scale"),
    d.TwoSidedTruncatedDistribution: _truncated_normal,
    d.Uniform: _by_parameters(f.Uniform, "low", "high"),
    d.VonMises: _by_parameters(f.VonMises, "loc", "concentration"),
    d.Weibull: _by_parameters(f.Weibull, "scale", "concentration"),
    d.Wishart: _by_parameters(f.Wishart, df="concentration", scale_tril="scale_tril"),
}


def _direct(family: type, *names: str) -> Callable[[Any], Parameters | None]:
    """A reader of parameters with these names, for the compiled forms; numbers alone are converted to JAX arrays."""

    def read(distribution: Any) -> Parameters | None:
        values = tuple(getattr(distribution, name) for name in names)
        if not any(isinstance(value, jax.Array) for value in values):
            if not all(isinstance(value, float | int) for value in values):
                return None
            values = (jnp.asarray(values[0]), *values[1:])
        return family, values, names

    return read


def _binomial(name: str, distribution: Any) -> Parameters:
    """The counts, which may be a NumPy array of integers, and the probabilities or logits."""
    probs = jnp.asarray(getattr(distribution, name))
    counts = distribution.total_count
    counts = jnp.asarray(counts, probs.dtype) if isinstance(counts, np.ndarray | int) else counts
    return f.Binomial, (counts, probs), ("total_count", name)


def _matrix_parameters(distribution: Any) -> Parameters | None:
    """The mean, and the factor or the covariance matrix of a multivariate normal if it was given."""
    given = _given_matrix(distribution)
    if given == "precision_matrix":
        return None
    return f.MultivariateNormal, (distribution.loc, getattr(distribution, given)), ("loc", given)


# The compiled forms read the parameters of these classes directly; subclasses may compute them differently.
DIRECT.update(
    {
        d.BernoulliLogits: _direct(f.Bernoulli, "logits"),
        d.BernoulliProbs: _direct(f.Bernoulli, "probs"),
        d.Beta: _direct(f.Beta, "concentration1", "concentration0"),
        d.BinomialLogits: partial(_binomial, "logits"),
        d.BinomialProbs: partial(_binomial, "probs"),
        d.CategoricalLogits: _direct(f.Categorical, "logits"),
        d.CategoricalProbs: _direct(f.Categorical, "probs"),
        d.Cauchy: _direct(f.Cauchy, "loc", "scale"),
        d.Chi2: lambda x: (f.Gamma, (jnp.asarray(x.df) / 2, 0.5), ("concentration", "rate")),
        d.Dirichlet: _direct(f.Dirichlet, "concentration"),
        d.Exponential: _direct(f.Exponential, "rate"),
        d.Gamma: _direct(f.Gamma, "concentration", "rate"),
        d.GeometricProbs: _direct(f.Geometric, "probs"),
        d.Gumbel: _direct(f.Gumbel, "loc", "scale"),
        d.HalfNormal: _direct(f.HalfNormal, "scale"),
        d.InverseGamma: _direct(f.InverseGamma, "concentration", "rate"),
        d.Laplace: _direct(f.Laplace, "loc", "scale"),
        d.LogNormal: _direct(f.LogNormal, "loc", "scale"),
        d.LowRankMultivariateNormal: _direct(f.LowRankMultivariateNormal, "loc", "cov_factor", "cov_diag"),
        d.MultivariateNormal: _matrix_parameters,
        d.Normal: _direct(f.Normal, "loc", "scale"),
        d.Pareto: _direct(f.Pareto, "scale", "alpha"),
        d.Poisson: _direct(f.Poisson, "rate"),
        d.Uniform: _direct(f.Uniform, "low", "high"),
    }
)
INDEPENDENT[d.Independent] = attrgetter("base_dist", "reinterpreted_batch_ndims")

# The number of event axes of a family's first parameter; 0 for the families that are not listed.
_EVENT_AXES = {
    f.Categorical: 1,
    f.Dirichlet: 1,
    f.LowRankMultivariateNormal: 1,
    f.MatrixNormal: 2,
    f.MultivariateNormal: 1,
    f.NormalMixture: 1,
}


def _from_expanded(base: Any, batch_shape: tuple[int, ...]) -> f.Distribution:
    """The expanded distribution: its first parameter is broadcast, and the others broadcast against it."""
    if isinstance(base, d.Independent):
        part, count = base.base_dist, base.reinterpreted_batch_ndims
        shape = batch_shape + part.batch_shape[len(part.batch_shape) - count :]
        return merged_independent(_from_expanded(part, shape), count)
    family = as_family(base)
    if isinstance(family, f.Transformed | f.Independent):
        return as_family(d.TransformedDistribution(base.base_dist.expand(batch_shape), base.transforms))
    names = [field.name for field in fields(family)]  # pyright: ignore[reportArgumentType]
    name = next(name for name in names if getattr(family, name) is not None)
    value = getattr(family, name)
    axes = value.ndim - _EVENT_AXES.get(type(family), 0)
    return replace(family, **{name: jnp.broadcast_to(value, batch_shape + value.shape[axes:])})  # pyright: ignore[reportArgumentType]


def _from_transformed(distribution: Any) -> f.Distribution:
    parts = [part for transform in distribution.transforms for part in _elementary_transforms(transform)]
    family = as_family(distribution.base_dist)
    invertible = _is_invertible(distribution.base_dist, parts)
    if isinstance(family, f.Independent) and all(map(_is_elementwise, parts)):
        return merged_independent(_transformed_family(family.base, parts, invertible), family.event_dims)
    return _transformed_family(family, parts, invertible)


def _elementary_transforms(transform: Any) -> Iterator[Any]:
    """The transforms that a composition consists of. `IndependentTransform` changes event axes only and is dropped."""
    match transform:
        case transforms.ComposeTransform():
            for part in transform.parts:
                yield from _elementary_transforms(part)
        case transforms.IndependentTransform():
            yield from _elementary_transforms(transform.base_transform)
        case transforms.IdentityTransform():
            pass
        case _:
            yield transform


def _is_elementwise(transform: Any) -> bool:
    return transform.domain.event_dim == transform.codomain.event_dim == 0


# Injective transforms; NumPyro's transforms have no attribute that states it.
_INVERTIBLE = (
    transforms.AffineTransform,
    transforms.CholeskyTransform,
    transforms.CorrCholeskyTransform,
    transforms.DiscreteCosineTransform,
    transforms.ExpTransform,
    transforms.HaarTransform,
    transforms.LowerCholeskyAffine,
    transforms.LowerCholeskyTransform,
    transforms.OrderedTransform,
    transforms.PermuteTransform,
    transforms.PowerTransform,
    transforms.RecursiveLinearTransform,
    transforms.ReshapeTransform,
    transforms.SigmoidTransform,
    transforms.SimplexToOrderedTransform,
    transforms.SoftplusLowerCholeskyTransform,
    transforms.SoftplusTransform,
    transforms.StickBreakingTransform,
)


# The transforms of real numbers among them, each of which is monotone.
_MONOTONE = (
    transforms.AffineTransform,
    transforms.ExpTransform,
    transforms.PowerTransform,
    transforms.SigmoidTransform,
    transforms.SoftplusTransform,
)


def _is_invertible(base: Any, parts: list[Any]) -> bool:
    """Whether the composition is injective on the support of the base."""
    low, high = _bounds(base.support)
    for part in parts:
        lower, upper = _bounds(part.domain)
        if holds(jnp.any((low < lower) | (high > upper))):
            return False
        forward = getattr(part, "_inv", None) if type(part) is transforms._InverseTransform else part
        # A scale or an exponent of 0 maps all values to a single value.
        factor = getattr(forward, "scale", getattr(forward, "exponent", 1.0))
        if not isinstance(forward, _INVERTIBLE) or holds(jnp.any(jnp.asarray(factor) == 0)):
            return False
        low, high = _bounds(part.codomain)
    return True


def _bounds(constraint: Any) -> tuple[Any, Any]:
    low, high = constraint_bounds(constraint)
    return jnp.asarray(low), jnp.asarray(high)


def _transformed_family(base: f.Distribution, parts: list[Any], invertible: bool) -> f.Distribution:
    exponential = [isinstance(part, transforms.ExpTransform) for part in parts]
    if isinstance(base, f.Normal) and exponential == [True]:
        return f.LogNormal(loc=base.loc, scale=base.scale)
    names = tuple("exp" if exp else part for exp, part in zip(exponential, parts, strict=True))
    return f.Transformed(base=base, transform=names, invertible=invertible) if parts else base
