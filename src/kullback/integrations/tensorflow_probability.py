"""TensorFlow Probability on JAX: its distributions as records, by the names of their classes."""

from typing import Any

from kullback import families as f
from kullback.errors import MissingDependencyError, NoClosedFormError

try:
    from jax import numpy as jnp
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise MissingDependencyError("jax is missing: pip install 'kullback[jax]'") from error

__all__ = ["as_record"]

_LOCATION = {"loc": "loc", "scale": "scale"}
_BINARY = {"probs": "probs", "logits": "logits"}
_SHAPES = {"concentration1": "concentration1", "concentration0": "concentration0"}

# What each record calls the parameters of each class, of those that were given.
_FAMILIES: dict[str, tuple[type, dict[str, str]]] = {
    "Bernoulli": (f.Bernoulli, _BINARY),
    "Beta": (f.Beta, _SHAPES),
    "Binomial": (f.Binomial, {"total_count": "total_count", **_BINARY}),
    "Categorical": (f.Categorical, _BINARY),
    "Cauchy": (f.Cauchy, _LOCATION),
    "Chi2": (f.ChiSquared, {"df": "df"}),
    "ContinuousBernoulli": (f.ContinuousBernoulli, _BINARY),
    "Dirichlet": (f.Dirichlet, {"concentration": "concentration"}),
    "Exponential": (f.Exponential, {"rate": "rate"}),
    "Gamma": (f.Gamma, {"concentration": "concentration", "rate": "rate"}),
    "Geometric": (f.Geometric, _BINARY),
    "Gumbel": (f.Gumbel, _LOCATION),
    "HalfNormal": (f.HalfNormal, {"scale": "scale"}),
    "InverseGamma": (f.InverseGamma, {"concentration": "concentration", "rate": "scale"}),
    "InverseGaussian": (f.InverseGaussian, {"mean": "loc", "shape": "concentration"}),
    "Kumaraswamy": (f.Kumaraswamy, _SHAPES),
    "Laplace": (f.Laplace, _LOCATION),
    "LogNormal": (f.LogNormal, _LOCATION),
    "Logistic": (f.Logistic, _LOCATION),
    "Multinomial": (f.Multinomial, {"total_count": "total_count", **_BINARY}),
    "MultivariateNormalFullCovariance": (
        f.MultivariateNormal,
        {"loc": "loc", "covariance_matrix": "covariance_matrix"},
    ),
    "MultivariateNormalTriL": (f.MultivariateNormal, {"loc": "loc", "scale_tril": "scale_tril"}),
    "NegativeBinomial": (f.NegativeBinomial, {"total_count": "total_count", **_BINARY}),
    "Normal": (f.Normal, _LOCATION),
    "OneHotCategorical": (f.OneHotCategorical, _BINARY),
    "Pareto": (f.Pareto, {"alpha": "concentration", "scale": "scale"}),
    "Poisson": (f.Poisson, {"rate": "rate"}),
    "StudentT": (f.StudentT, {"df": "df", **_LOCATION}),
    "Uniform": (f.Uniform, {"low": "low", "high": "high"}),
    "VonMises": (f.VonMises, {"loc": "loc", "concentration": "concentration"}),
    "VonMisesFisher": (f.VonMisesFisher, {"mean_direction": "mean_direction", "concentration": "concentration"}),
    "Weibull": (f.Weibull, {"concentration": "concentration", "scale": "scale"}),
    "Zipf": (f.Zipf, {"exponent": "power"}),
}


def as_record(distribution: Any) -> f.Distribution:
    """The record of a distribution of tensorflow_probability.substrates.jax.

    Args:
        distribution: Of any class that has a record here; Independent, and Exp and Tanh of one, are looked into.

    Returns:
        The record, of the parameters that were given, as JAX arrays.

    Raises:
        NoClosedFormError: There is no record of this class; `kullback.measure` needs none.
        TypeError: It is no distribution, or not one on JAX.
    """
    name = type(distribution).__name__
    if ".substrates.jax." not in type(distribution).__module__ or not hasattr(distribution, "parameters"):
        raise TypeError(f"expected a distribution of tensorflow_probability.substrates.jax, got {name}")
    given = distribution.parameters
    if name == "Independent":
        base, event_dims = as_record(distribution.distribution), int(distribution.reinterpreted_batch_ndims)
        if isinstance(base, f.Independent):
            base, event_dims = base.base, event_dims + base.event_dims
        return f.Independent(base=base, event_dims=event_dims) if event_dims else base
    bijector = {"Exp": "exp", "Tanh": "tanh"}.get(type(given.get("bijector")).__name__)
    if name == "TransformedDistribution" and bijector:
        return f.Transformed(base=as_record(distribution.distribution), transform=(bijector,), invertible=True)
    kind, names = _FAMILIES.get(name, (None, {}))
    values = {ours: jnp.asarray(given[theirs]) for ours, theirs in names.items() if given.get(theirs) is not None}
    if kind is None or len(values) < len(names) - (names.items() >= _BINARY.items()):
        raise NoClosedFormError(
            f"{name}, as it was made, has no closed form here; kullback.measure(p, q) bounds or estimates the KL"
        )
    return kind(**values)
