"""NumPyro: its distributions as records of JAX arrays."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from math import inf
from typing import Any

from kullback import families as f
from kullback.errors import MissingDependencyError, NoClosedFormError
from kullback.numerics.arrays import holds

try:
    import numpyro.distributions as d
except ModuleNotFoundError as error:
    if error.name not in ("jax", "numpyro"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install numpyro") from error

from jax import numpy as jnp
from numpyro.distributions import transforms

__all__ = ["as_record"]


def as_record(distribution: Any) -> f.Distribution:
    """The record of a distribution of NumPyro: its own arrays, so that gradients reach them.

    Args:
        distribution: Of any class that has a record here, or of a subclass; Independent, ExpandedDistribution,
            TransformedDistribution and a MixtureSameFamily of normals are looked into.

    Returns:
        The record, whose numbers have become JAX arrays.

    Raises:
        NoClosedFormError: There is no record of this class; `kullback.measure` needs none.
        TypeError: It is no distribution.

    Example:
        >>> as_record(d.Exponential(jnp.asarray([1.0, 2.0]))).rate.tolist()
        [1.0, 2.0]
    """
    for kind in type(distribution).__mro__:
        if kind in _MADE_OF:
            return _MADE_OF[kind](distribution)
    match distribution:
        case d.ExpandedDistribution():
            return _expanded(distribution.base_dist, distribution.batch_shape)
        case d.Independent():
            return _independent(as_record(distribution.base_dist), distribution.reinterpreted_batch_ndims)
        case d.TransformedDistribution():
            return _transformed(distribution)
        case d.MixtureSameFamily():
            parts = as_record(distribution.component_distribution)
            if isinstance(parts, f.Normal):
                weights = distribution.mixing_distribution.probs  # pyright: ignore[reportAttributeAccessIssue]
                return f.NormalMixture(weights=weights, locs=parts.loc, scales=parts.scale)
    name = type(distribution).__name__
    if isinstance(distribution, d.Distribution):
        raise NoClosedFormError(f"{name} has no closed form here; kullback.measure(p, q) bounds or estimates the KL")
    raise TypeError(f"expected a distribution of NumPyro, got {name}")


def _named(kind: type, *names: str, **renamed: str) -> Callable[[Any], f.Distribution]:
    def make(distribution: Any) -> f.Distribution:
        sources = {name: name for name in names} | renamed
        return kind(**{name: jnp.asarray(getattr(distribution, source)) for name, source in sources.items()})

    return make


def _multivariate_normal(distribution: Any) -> f.Distribution:
    # The covariance's form that was given comes first; others may have been derived, and kept, since.
    forms = ("covariance_matrix", "precision_matrix", "scale_tril")
    form = next(name for name, value in vars(distribution).items() if name in forms and value is not None)
    loc = jnp.broadcast_to(distribution.loc, distribution.batch_shape + distribution.event_shape)
    return f.MultivariateNormal(loc=loc, **{form: jnp.asarray(getattr(distribution, form))})


def _matrix_normal(distribution: Any) -> f.Distribution:
    row, column = (jnp.asarray(x) for x in (distribution.scale_tril_row, distribution.scale_tril_column))
    loc = jnp.broadcast_to(distribution.loc, distribution.batch_shape + distribution.event_shape)
    return f.MatrixNormal(loc=loc, row_covariance=row @ row.mT, column_covariance=column @ column.mT)


def _gamma_poisson(distribution: Any) -> f.Distribution:
    counts, rate = (jnp.asarray(x) for x in (distribution.concentration, distribution.rate))
    return f.NegativeBinomial(total_count=counts, logits=-jnp.log(rate))


_MADE_OF: dict[type, Callable[[Any], f.Distribution]] = {
    d.BernoulliLogits: _named(f.Bernoulli, "logits"),
    d.BernoulliProbs: _named(f.Bernoulli, "probs"),
    d.Beta: _named(f.Beta, "concentration1", "concentration0"),
    d.BinomialLogits: _named(f.Binomial, "total_count", "logits"),
    d.BinomialProbs: _named(f.Binomial, "total_count", "probs"),
    d.CategoricalLogits: _named(f.Categorical, "logits"),
    d.CategoricalProbs: _named(f.Categorical, "probs"),
    d.Cauchy: _named(f.Cauchy, "loc", "scale"),
    d.Chi2: _named(f.ChiSquared, "df"),
    d.Dirichlet: _named(f.Dirichlet, "concentration"),
    d.Exponential: _named(f.Exponential, "rate"),
    d.Gamma: _named(f.Gamma, "concentration", "rate"),
    d.GammaPoisson: _gamma_poisson,
    d.GeometricLogits: _named(f.Geometric, "logits"),
    d.GeometricProbs: _named(f.Geometric, "probs"),
    d.Gumbel: _named(f.Gumbel, "loc", "scale"),
    d.HalfCauchy: _named(f.HalfCauchy, "scale"),
    d.HalfNormal: _named(f.HalfNormal, "scale"),
    d.InverseGamma: _named(f.InverseGamma, "concentration", "rate"),
    d.InverseWishart: _named(f.InverseWishart, df="concentration", scale_matrix="scale_matrix"),
    d.Kumaraswamy: _named(f.Kumaraswamy, "concentration1", "concentration0"),
    d.Laplace: _named(f.Laplace, "loc", "scale"),
    d.Logistic: _named(f.Logistic, "loc", "scale"),
    d.LogNormal: _named(f.LogNormal, "loc", "scale"),
    d.LowRankMultivariateNormal: _named(f.LowRankMultivariateNormal, "loc", "cov_factor", "cov_diag"),
    d.MatrixNormal: _matrix_normal,
    d.MultinomialLogits: _named(f.Multinomial, "total_count", "logits"),
    d.MultinomialProbs: _named(f.Multinomial, "total_count", "probs"),
    d.MultivariateNormal: _multivariate_normal,
    d.NegativeBinomialLogits: _named(f.NegativeBinomial, "total_count", "logits"),
    d.NegativeBinomialProbs: _named(f.NegativeBinomial, "total_count", "probs"),
    d.Normal: _named(f.Normal, "loc", "scale"),
    d.Pareto: _named(f.Pareto, "scale", "alpha"),
    d.Poisson: _named(f.Poisson, "rate"),
    d.StudentT: _named(f.StudentT, "df", "loc", "scale"),
    d.Uniform: _named(f.Uniform, "low", "high"),
    d.VonMises: _named(f.VonMises, "loc", "concentration"),
    d.Weibull: _named(f.Weibull, "scale", "concentration"),
    d.Wishart: _named(f.Wishart, df="concentration", covariance_matrix="scale_matrix"),
}

# How many axes of a record's first parameter are the event's; 0 of the rest.
_EVENT_AXES = {
    f.Categorical: 1,
    f.Dirichlet: 1,
    f.LowRankMultivariateNormal: 1,
    f.MatrixNormal: 2,
    f.MultivariateNormal: 1,
    f.NormalMixture: 1,
}


def _independent(base: f.Distribution, event_dims: int) -> f.Distribution:
    """One Independent, however many there were."""
    if isinstance(base, f.Independent):
        base, event_dims = base.base, event_dims + base.event_dims
    return f.Independent(base=base, event_dims=event_dims) if event_dims else base


def _expanded(base: Any, batch_shape: tuple[int, ...]) -> f.Distribution:
    """One parameter of the whole batch shape makes the rest follow."""
    if isinstance(base, d.Independent):
        part, count = base.base_dist, base.reinterpreted_batch_ndims
        shape = batch_shape + part.batch_shape[len(part.batch_shape) - count :]
        return _independent(_expanded(part, shape), count)
    record = as_record(base)
    if isinstance(record, f.Transformed | f.Independent):
        return as_record(d.TransformedDistribution(base.base_dist.expand(batch_shape), base.transforms))
    names = [field.name for field in fields(record)]  # pyright: ignore[reportArgumentType]
    name = next(name for name in names if getattr(record, name) is not None)
    value = getattr(record, name)
    axes = value.ndim - _EVENT_AXES.get(type(record), 0)
    return replace(record, **{name: jnp.broadcast_to(value, batch_shape + value.shape[axes:])})  # pyright: ignore[reportArgumentType]


def _transformed(distribution: Any) -> f.Distribution:
    parts = [part for transform in distribution.transforms for part in _parts(transform)]
    record = as_record(distribution.base_dist)
    invertible = _is_invertible(distribution.base_dist, parts)
    if isinstance(record, f.Independent) and all(map(_is_elementwise, parts)):
        return _independent(_image(record.base, parts, invertible), record.event_dims)
    return _image(record, parts, invertible)


def _parts(transform: Any) -> Iterator[Any]:
    match transform:
        case transforms.ComposeTransform():
            for part in transform.parts:
                yield from _parts(part)
        case transforms.IndependentTransform():
            yield from _parts(transform.base_transform)
        case transforms.IdentityTransform():
            pass
        case _:
            yield transform


def _is_elementwise(transform: Any) -> bool:
    return transform.domain.event_dim == transform.codomain.event_dim == 0


# NumPyro's transforms do not say whether two values may become one.
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


def _is_invertible(base: Any, parts: list[Any]) -> bool:
    low, high = _bounds(base.support)
    for part in parts:
        least, greatest = _bounds(part.domain)
        if holds(jnp.any((low < least) | (high > greatest))):
            return False
        one = getattr(part, "_inv", None) if type(part) is transforms._InverseTransform else part
        # Of scale or exponent 0, all values become one.
        factor = getattr(one, "scale", getattr(one, "exponent", 1.0))
        if not isinstance(one, _INVERTIBLE) or holds(jnp.any(jnp.asarray(factor) == 0)):
            return False
        low, high = _bounds(part.codomain)
    return True


def _bounds(constraint: Any) -> tuple[Any, Any]:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    low, high = getattr(constraint, "lower_bound", -inf), getattr(constraint, "upper_bound", inf)
    return jnp.asarray(low), jnp.asarray(high)


def _image(base: f.Distribution, parts: list[Any], invertible: bool) -> f.Distribution:
    exponential = [isinstance(part, transforms.ExpTransform) for part in parts]
    if isinstance(base, f.Normal) and exponential == [True]:
        return f.LogNormal(loc=base.loc, scale=base.scale)
    names = tuple("exp" if exp else part for exp, part in zip(exponential, parts, strict=True))
    return f.Transformed(base=base, transform=names, invertible=invertible) if parts else base
