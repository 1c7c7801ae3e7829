"""One view of a distribution of any supported library: family, density, sampler and Gaussian components."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any, TypeVar

import array_api_compat
import numpy as np

from kullback.densities import from_methods
from kullback.densities.density import Density
from kullback.densities.gaussian_mixtures import Components, components_of_family, sampler_of_components
from kullback.errors import DistributionTypeError, NoClosedFormError
from kullback.families import Distribution
from kullback.numerics.arrays import Array, as_numpy
from kullback.numerics.labels import is_labelled
from kullback.samples.monte_carlo import Sampler

__all__ = ["ResolvedDistribution", "adapter_of", "as_family", "not_a_distribution", "resolve"]

_View = TypeVar("_View", Density, Components, Sampler)

# The module, or the package, that defines a library's distributions, and the adapter of that library. An adapter is
# imported when the first distribution of its library is given, so that the library itself is imported already.
_ADAPTERS = {
    "numpyro.distributions.distribution": "kullback.densities.from_numpyro",
    "scipy.stats": "kullback.densities.from_scipy",
    "sklearn.mixture._gaussian_mixture": "kullback.densities.from_sklearn",
    "tensorflow_probability": "kullback.densities.from_tensorflow_probability",
    "torch.distributions.distribution": "kullback.densities.from_torch",
}


@dataclass(frozen=True, eq=False)
class ResolvedDistribution:
    """A distribution with its representations, each computed at its first use.

    A representation is derived from the equal distribution of `kullback.families` if there is one that allows it, and
    otherwise from the object as given.

    Args:
        given: The distribution as it was passed: a distribution of `kullback.families` or of a supported library,
            `Components`, or an object with `log_prob(x)` and `sample(count)`.
    """

    given: Any

    @cached_property
    def family(self) -> Distribution | None:
        """The equal distribution of `kullback.families`, or None if there is none."""
        try:
            return as_family(self.given)
        except (NoClosedFormError, TypeError):
            return None

    @property
    def family_in_float64(self) -> Any:
        """The equal distribution of `kullback.families`, in float64 if univariate; without one, the object as given."""
        return self.given if self.family is None else _families().in_float64(self.family)

    @cached_property
    def density(self) -> Density | None:
        """The univariate density or probability mass function, or None."""
        return self._first(_density)

    @cached_property
    def components(self) -> Components | None:
        """The weights, means and covariances of a multivariate normal or a mixture of them, or None."""
        return self._first(_components)

    @property
    def relaxed_categorical(self) -> tuple[float, Array] | None:
        """The temperature and the logits of a relaxed categorical distribution on log-probabilities, or None."""
        if type(self.given).__name__ not in ("ExpRelaxedCategorical", "ExpRelaxedOneHotCategorical"):
            return None
        temperature, logits = (as_numpy(x, np.float64) for x in (self.given.temperature, self.given.logits))
        return (float(temperature.reshape(())), logits) if temperature.size == 1 and logits.ndim == 1 else None

    @cached_property
    def sampler(self) -> Sampler | None:
        """The log-density, with the sampler if there is one, or None."""
        found = self._first(_sampler)
        if found is None and self.family is not None and (frozen := _families().scipy_vector(self.family)) is not None:
            sampler, log_density = from_methods.as_sampler(frozen), _families().vector_log_density(self.family)
            return sampler and (sampler if log_density is None else sampler._replace(log_density=log_density))
        return found

    @cached_property
    def native_sampler(self) -> Sampler | None:
        """The sampler of the object as given, which draws by the library's own generator, or None."""
        found = _sampler(self.given)
        return found if found is not None and found.sample is not None else None

    def _first(self, view: Callable[[Any], _View | None]) -> _View | None:
        found = view(self.family) if self.family is not None else None
        return view(self.given) if found is None and self.given is not self.family else found


def resolve(distribution: Any) -> ResolvedDistribution:
    """The representations of a distribution; a `ResolvedDistribution` is returned unchanged."""
    return distribution if isinstance(distribution, ResolvedDistribution) else ResolvedDistribution(distribution)


def as_family(distribution: Any) -> Distribution:
    """The distribution of `kullback.families` that equals a distribution of another library.

    Args:
        distribution: A distribution of PyTorch, SciPy, NumPyro or TensorFlow Probability, a fitted Gaussian mixture of
            scikit-learn, or a distribution of `kullback.families`, which is returned unchanged.

    Returns:
        The distribution of `kullback.families`, which holds the library's own arrays.

    Raises:
        NoClosedFormError: `kullback.families` has no family for this distribution.
        DistributionTypeError: The object is not a distribution of a supported library.
    """
    if isinstance(distribution, Distribution):
        return distribution
    if adapter := adapter_of(distribution):
        return adapter.as_family(distribution)
    raise not_a_distribution(distribution, "an object of a class passed to register_kl")


def not_a_distribution(given: Any, other: str) -> DistributionTypeError:
    """The error for an object that is not a distribution; `other` is what else the function accepts."""
    name = type(given).__name__
    came = f"{name} {given!r}" if isinstance(given, str | bool | int | float) else name
    came = "None" if given is None else came if len(came) <= 60 else name
    if isinstance(given, list | tuple) or array_api_compat.is_array_api_obj(given) or is_labelled(given):
        remedy = (
            "for arrays of probabilities see kullback.kl_probs, kl_log_probs and kl_logits, or construct a "
            "kullback.families.Categorical from them"
        )
        return DistributionTypeError(f"expected a distribution, got {came}; {remedy}")
    if isinstance(given, type):
        return DistributionTypeError(
            f"expected a distribution, got the class {given.__name__}; construct a distribution with its parameters"
        )
    return DistributionTypeError(
        f"expected a distribution, got {came}: pass a distribution of kullback.families, a distribution of PyTorch, "
        f"SciPy, NumPyro or TensorFlow Probability, or {other}"
    )


def adapter_of(distribution: Any) -> Any:
    """The adapter module of the library that the object's class, or a base class, comes from; None for others."""
    return _adapter_of_class(type(distribution))


@cache
def _adapter_of_class(cls: type) -> Any:
    for kind in cls.__mro__:
        for library, adapter in _ADAPTERS.items():
            if kind.__module__.startswith(library):
                return import_module(adapter)
    return None


def _families() -> Any:
    """The densities of the families, imported at first use since they load scipy.stats."""
    return import_module("kullback.densities.from_families")


def _density(distribution: Any) -> Density | None:
    if isinstance(distribution, Distribution):
        families = _families()
        if families.is_absolute_value(distribution):
            base = _density(distribution.base)  # pyright: ignore[reportAttributeAccessIssue]
            return None if base is None or base.discrete else families.absolute_value(base)
        return families.as_density(distribution)
    adapter = adapter_of(distribution)
    return adapter.as_density(distribution) if hasattr(adapter, "as_density") else None


def _components(distribution: Any) -> Components | None:
    if isinstance(distribution, Components):
        return distribution
    if isinstance(distribution, Distribution):
        return components_of_family(distribution)
    adapter = adapter_of(distribution)
    return adapter.as_components(distribution) if hasattr(adapter, "as_components") else None


def _sampler(distribution: Any) -> Sampler | None:
    components = _components(distribution)
    if components is not None:
        return sampler_of_components(components)
    adapter = adapter_of(distribution)
    if hasattr(adapter, "as_sampler"):
        return adapter.as_sampler(distribution)
    density = _density(distribution)
    return from_methods.as_sampler(distribution) if density is None else _sampler_of_density(density)


def _sampler_of_density(density: Density) -> Sampler | None:
    def log_density(x: Array) -> Array:
        return density.log_density(np.asarray(x, dtype=np.float64), np.zeros(np.shape(x)))

    return Sampler(density.sample, log_density)
