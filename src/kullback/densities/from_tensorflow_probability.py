"""Adapter of TensorFlow Probability on JAX: its distributions as families, by the names of their classes."""

from typing import Any

from jax import numpy as jnp

from kullback import families as f
from kullback.densities.composites import merged_independent
from kullback.errors import DistributionTypeError, NoClosedFormError

__all__ = ["FAMILIES", "as_family"]

_LOCATION_SCALE = {"loc": "loc", "scale": "scale"}
_BINARY = {"probs": "probs", "logits": "logits"}
_CONCENTRATIONS = {"concentration1": "concentration1", "concentration0": "concentration0"}

# Class name of TensorFlow Probability -> family, and parameter of the family -> parameter of the class.
FAMILIES: dict[str, tuple[type, dict[str, str]]] = {
    "Bernoulli": (f.Bernoulli, _BINARY),
    "Beta": (f.Beta, _CONCENTRATIONS),
    "Binomial": (f.Binomial, {"total_count": "total_count", **_BINARY}),
    "Categorical": (f.Categorical, _BINARY),
    "Cauchy": (f.Cauchy, _LOCATION_SCALE),
    "Chi2": (f.ChiSquared, {"df": "df"}),
    "ContinuousBernoulli": (f.ContinuousBernoulli, _BINARY),
    "Dirichlet": (f.Dirichlet, {"concentration": "concentration"}),
    "Exponential": (f.Exponential, {"rate": "rate"}),
    "Gamma": (f.Gamma, {"concentration": "concentration", "rate": "rate"}),
    "Geometric": (f.Geometric, _BINARY),
    "Gumbel": (f.Gumbel, _LOCATION_SCALE),
    "HalfNormal": (f.HalfNormal, {"scale": "scale"}),
    "InverseGamma": (f.InverseGamma, {"concentration": "concentration", "rate": "scale"}),
    "InverseGaussian": (f.InverseGaussian, {"mean": "loc", "shape": "concentration"}),
    "Kumaraswamy": (f.Kumaraswamy, _CONCENTRATIONS),
    "Laplace": (f.Laplace, _LOCATION_SCALE),
    "LogNormal": (f.LogNormal, _LOCATION_SCALE),
    "Logistic": (f.Logistic, _LOCATION_SCALE),
    "Multinomial": (f.Multinomial, {"total_count": "total_count", **_BINARY}),
    "MultivariateNormalFullCovariance": (
        f.MultivariateNormal,
        {"loc": "loc", "covariance_matrix": "covariance_matrix"},
    ),
    "MultivariateNormalTriL": (f.MultivariateNormal, {"loc": "loc", "scale_tril": "scale_tril"}),
    "NegativeBinomial": (f.NegativeBinomial, {"total_count": "total_count", **_BINARY}),
    "Normal": (f.Normal, _LOCATION_SCALE),
    "OneHotCategorical": (f.OneHotCategorical, _BINARY),
    "Pareto": (f.Pareto, {"alpha": "concentration", "scale": "scale"}),
    "Poisson": (f.Poisson, {"rate": "rate"}),
    "StudentT": (f.StudentT, {"df": "df", **_LOCATION_SCALE}),
    "Uniform": (f.Uniform, {"low": "low", "high": "high"}),
    "VonMises": (f.VonMises, {"loc": "loc", "concentration": "concentration"}),
    "VonMisesFisher": (f.VonMisesFisher, {"mean_direction": "mean_direction", "concentration": "concentration"}),
    "Weibull": (f.Weibull, {"concentration": "concentration", "scale": "scale"}),
    "Zipf": (f.Zipf, {"exponent": "power"}),
}


def as_family(distribution: Any) -> f.Distribution:
    """The distribution of `kullback.families` that equals a distribution of tensorflow_probability.substrates.jax.

    Args:
        distribution: An instance of a class in `FAMILIES`, an `Independent` of one, or its image under the bijectors
            `Exp` and `Tanh`.

    Returns:
        The distribution, with the given parameters as JAX arrays.

    Raises:
        NoClosedFormError: `kullback.families` has no family for this class, or for the parameters that were given.
        DistributionTypeError: The object is not a distribution, or belongs to another substrate than JAX.
    """
    name = type(distribution).__name__
    if ".substrates.jax." not in type(distribution).__module__ or not hasattr(distribution, "parameters"):
        raise DistributionTypeError(f"expected a distribution of tensorflow_probability.substrates.jax, got {name}")
    given = distribution.parameters
    if name == "Independent":
        return merged_independent(as_family(distribution.distribution), int(distribution.reinterpreted_batch_ndims))
    bijector = {"Exp": "exp", "Tanh": "tanh"}.get(type(given.get("bijector")).__name__)
    if name == "TransformedDistribution" and bijector:
        return f.Transformed(base=as_family(distribution.distribution), transform=(bijector,), invertible=True)
    kind, names = FAMILIES.get(name, (None, {}))
    values = {ours: jnp.asarray(given[theirs]) for ours, theirs in names.items() if given.get(theirs) is not None}
    if kind is None or len(values) < len(names) - (names.items() >= _BINARY.items()):
        passed = ", ".join(sorted(key for key, value in given.items() if value is not None))
        raise NoClosedFormError(
            f"{name} with the parameters {passed} has no closed form; kullback.measure(p, q) bounds or estimates the KL"
        )
    return kind(**values)
