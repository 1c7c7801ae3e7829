"""The family that a caller requests: a class of `kullback.families` or `torch.distributions`, or a module."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import numpy as np

from kullback import families
from kullback.densities.gaussian_mixtures import Components
from kullback.densities.resolve import as_family, resolve
from kullback.errors import DistributionTypeError, ParameterError
from kullback.families import Distribution
from kullback.families.base import Constraint
from kullback.fit.gaussian.mixtures import MixtureParametrisation
from kullback.fit.gaussian.multivariate import NORMAL_FAMILIES
from kullback.fit.result import Fit, with_distributions
from kullback.fit.targets import is_multivariate
from kullback.numerics.arguments import shown
from kullback.numerics.arrays import as_numpy

__all__ = [
    "FamilyAdapter",
    "family_adapter",
    "is_module",
    "list_of_starts",
    "reject_options",
    "unexpected_option",
    "validate_components",
]


@dataclass(frozen=True)
class FamilyAdapter:
    """The family in which a fit is computed, with conversions from and to the class that the caller requests.

    Args:
        family: A class of `kullback.families`, or `Components` for mixtures of multivariate normals.
        to_requested: The conversion from a member of `family` to an instance of the requested class.
        independent: Whether the entries of a multivariate normal, or of each component, are independent.
    """

    family: type
    to_requested: Callable[[Any], Any]
    independent: bool = False

    def from_requested(self, member: Any) -> Any:
        """The member of `family` that equals an instance of the requested class.

        Raises:
            ParameterError: The instance belongs to another family.
        """
        found = resolve(member).components if self.family is Components else as_family(member)
        is_not_normal = self.family is families.Independent and resolve(found).components is None
        if type(found) is not self.family or is_not_normal:
            raise ParameterError(
                f"expected a start of the family {self.family.__name__}{' of normals' if is_not_normal else ''}, got "
                f"{type(member).__name__}"
            )
        return found

    def mixture_parametrisation(
        self, starts: Sequence[Any], components: int | None
    ) -> Callable[[int], MixtureParametrisation]:
        """The coordinates of a family of multivariate normals or of mixtures, given the number of dimensions.

        Raises:
            ParameterError: The number of components of a mixture is missing, or the starts and `components` disagree.
        """
        if self.family is not Components:
            return lambda size: MixtureParametrisation(1, size, self.independent)
        counts = {start.weights.size for start in starts} | ({components} if components is not None else set())
        if len(counts) != 1 or not min(counts) > 0:
            raise ParameterError(
                "expected one number of components of the mixture, 1 or more, got "
                f"{sorted(counts) or None}: pass components=, or starts with an equal number of components"
            )
        count = counts.pop()
        return lambda size: MixtureParametrisation(count, size, self.independent)

    def validate_fixed(self, fixed: Mapping[str, Any] | None) -> dict[str, Any]:
        """The parameters that are not fitted, by name.

        Raises:
            ParameterError: A name is not a parameter of the family, a value violates the constraint of its parameter,
                or the family has no parameter that can be fixed.
        """
        if fixed is None:
            return {}
        if not isinstance(fixed, Mapping):
            raise ParameterError(
                f"expected fixed to be a dictionary such as {{'loc': 0.0}}, got {type(fixed).__name__}"
            )
        is_gaussian = self.family in (Components, *NORMAL_FAMILIES)
        parameters = {} if is_gaussian else {field.name: field for field in fields(self.family)}  # pyright: ignore
        if unknown := [name for name in fixed if name not in parameters]:
            names = ", ".join(parameters) or "none of them can be fixed"
            raise ParameterError(
                f"expected fixed to name parameters of {self.family.__name__} ({names}), got {unknown}"
            )
        for name, value in fixed.items():
            _require_constraints(self.family, parameters[name], value)
        return dict(fixed)

    def fixed_member(self, fixed: Mapping[str, Any]) -> Distribution | None:
        """The member of the family whose parameters are all fixed; None if a parameter is not fixed.

        Raises:
            ParameterError: The parameters do not define a member.
        """
        if not fixed:
            return None
        required = {field.name for field in fields(self.family)} - fixed.keys()  # pyright: ignore
        alternatives = [{"probs", "logits"}, {"covariance_matrix", "precision_matrix", "scale_tril"}]
        for names in alternatives:
            required -= names if names & fixed.keys() else set()
        return None if required else self.family(**fixed)

    def convert_fit(self, fit: Fit) -> Fit:
        """The fit with every distribution as an instance of the requested class."""
        return with_distributions(fit, self.to_requested)


def _require_constraints(family: type, parameter: Field[Any], value: Any) -> None:
    """Raise ParameterError if a fixed value is not numeric, or violates the constraint of its parameter."""
    try:
        array = as_numpy(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ParameterError(
            f"expected fixed={{{parameter.name!r}: ...}} of {family.__name__} to be numeric, got {value!r}"
        ) from error
    for constraint in getattr(parameter.type, "__metadata__", ()):
        if isinstance(constraint, Constraint) and not np.all(constraint.contains(array)):
            raise ParameterError(
                f"expected fixed={{{parameter.name!r}: ...}} of {family.__name__} to be {constraint.words}, got "
                f"{value!r}"
            )


def list_of_starts(starts: Any) -> list[Any]:
    """The starting points as a list; ParameterError if they are not a sequence."""
    if isinstance(starts, str) or not isinstance(starts, Iterable) or getattr(starts, "ndim", None) == 0:
        raise ParameterError(f"expected starts to be a sequence of members of the family, got {shown(starts)}")
    return list(starts)


def reject_options(subject: str, **options: tuple[Any, Any]) -> None:
    """Raise ParameterError at the first option that differs from its default, because the fit does not use it.

    Args:
        subject: What the options do not apply to, such as "the family Normal".
        **options: The value and the default of each option.
    """
    for name, (value, default) in options.items():
        is_default = value is default or (type(value) is type(default) and value == default)
        if not is_default:
            raise ParameterError(
                f"expected no {name} for {subject}, which does not use it, got {value!r}; leave it out"
            )


def unexpected_option(function: str, unexpected: Iterable[str], allowed: Iterable[str]) -> TypeError:
    """The error for an option that a function does not have, with the most similar option."""
    name = next(iter(unexpected))
    nearest = get_close_matches(name, list(allowed), n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


def validate_components(family: type, components: Any) -> int | None:
    """The number of components of a mixture, or the rank of a low-rank normal; None if it is not given.

    Raises:
        ParameterError: The number is not a whole number above 0, or the family does not have components.
    """
    if components is None:
        return None
    if family not in (Components, families.NormalMixture, families.LowRankMultivariateNormal):
        reject_options(f"the family {family.__name__}", components=(components, None))
    if isinstance(components, bool) or not isinstance(components, (int, np.integer)) or components < 1:
        raise ParameterError(f"expected components to be a whole number, 1 or more, got {components!r}")
    return int(components)


def is_module(family: Any) -> bool:
    """Whether the argument is a `torch.nn.Module`, without an import of PyTorch."""
    return any(base.__module__ == "torch.nn.modules.module" for base in type(family).__mro__)


def family_adapter(family: Any, starts: Sequence[Any] = (), target: Any = None) -> FamilyAdapter:
    """The adapter of a class of distributions.

    Args:
        family: The requested class.
        starts: Instances of it. They determine whether a mixture is univariate or multivariate, and whether the
            components are independent.
        target: A distribution or samples, which determine whether a mixture is univariate if there are no starts.

    Raises:
        ParameterError: `kullback.families` has no family of this name.
        TypeError: The argument is not a class of distributions.
    """
    if isinstance(family, type) and issubclass(family, Distribution):
        return FamilyAdapter(family, lambda member: member, family is families.Independent)
    is_torch = isinstance(family, type) and any(
        base.__module__ == "torch.distributions.distribution" for base in family.__mro__
    )
    if not is_torch:
        raise DistributionTypeError(
            "expected a family: a class of kullback.families, a class of torch.distributions, or a torch.nn.Module "
            f"with log_prob and rsample, got {family!r}"
        )
    independent = family.__name__ == "Independent"
    if family.__name__ == "MixtureSameFamily":
        found = Components if is_multivariate(starts[0] if starts else target) else families.NormalMixture
        components = getattr(starts[0], "component_distribution", None) if starts else None
        independent = found is Components and type(components).__name__ == "Independent"
    else:
        # By name, because the classes of Pyro are subclasses of the same name.
        torch_families = import_module("kullback.densities.from_torch").FAMILIES
        by_name = {torch_class.__name__: found for torch_class, found in torch_families.items()}
        found = by_name.get(family.__name__) or getattr(families, family.__name__, None)
    if found is None or found is families.Transformed:
        raise ParameterError(
            f"expected a class of torch.distributions that kullback.families also has, got {family.__name__}; to fit "
            "another family, pass a torch.nn.Module with log_prob and rsample"
        )

    def to_requested(member: Any) -> Any:
        return import_module("kullback.fit.stochastic").to_torch_distribution(family, member, independent)

    return FamilyAdapter(found, to_requested, independent)
