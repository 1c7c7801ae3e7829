"""Which family is asked for: a record class, a class of torch.distributions, or a module."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any

from kullback import families
from kullback.densities.gaussian_mixtures import Components
from kullback.densities.resolve import as_family, resolve
from kullback.errors import ParameterError
from kullback.families import Distribution
from kullback.fit.gaussian.mixtures import MixtureChart
from kullback.fit.gaussian.multivariate import NORMALS
from kullback.fit.result import Fit, Minimum, Step
from kullback.fit.targets import is_of_vectors

__all__ = ["FamilyAdapter", "family_adapter", "is_module"]


@dataclass(frozen=True)
class FamilyAdapter:
    """A family as its records, and how its members are given back.

    Args:
        record_class: Of `kullback.families`, or `Components` of mixtures of normals of vectors.
        to_torch_distribution: From a record to what the caller asked for.
        independent: Whether the entries of vectors are, within a component.
    """

    record_class: type
    to_torch_distribution: Callable[[Any], Any]
    independent: bool = False

    def record(self, member: Any) -> Any:
        """A member as a record.

        Raises:
            ParameterError: It is of another family.
        """
        found = resolve(member).components if self.record_class is Components else as_family(member)
        odd = self.record_class is families.Independent and resolve(found).components is None
        if type(found) is not self.record_class or odd:
            raise ParameterError(
                f"expected a start of the family {self.record_class.__name__}{' of normals' if odd else ''}, got "
                f"{type(member).__name__}"
            )
        return found

    def chart(self, begin: Sequence[Any], components: int | None) -> Callable[[int], MixtureChart]:
        """Of a family of normals of vectors, or of their mixtures: its chart in so many dimensions.

        Raises:
            ParameterError: How many components a mixture is to have is not said, or said twice.
        """
        if self.record_class is not Components:
            return lambda size: MixtureChart(1, size, self.independent)
        counts = {one.weights.size for one in begin} | ({components} if components is not None else set())
        if len(counts) != 1 or not min(counts) > 0:
            raise ParameterError(
                "expected how many components the mixture is to have, 1 or more: pass components=, or starts that all "
                f"have as many, got {sorted(counts) or None}"
            )
        count = counts.pop()
        return lambda size: MixtureChart(count, size, self.independent)

    def fixed(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """Parameters that are not fitted.

        Raises:
            ParameterError: One of them is no parameter of this family.
        """
        fixed, of_vectors = given or {}, self.record_class in (Components, *NORMALS)
        names = [] if of_vectors else [field.name for field in fields(self.record_class)]  # pyright: ignore
        if unknown := [name for name in fixed if name not in names]:
            known = f"parameters of {self.record_class.__name__} ({', '.join(names) or 'none can be'})"
            raise ParameterError(f"expected fixed to name {known}, got {unknown}")
        return fixed

    def returned(self, fit: Fit) -> Fit:
        """The fit in the caller's kind of distributions."""
        return replace(
            fit,
            distribution=self.to_torch_distribution(fit.distribution),
            path=tuple(Step(self.to_torch_distribution(step.distribution), step.kl) for step in fit.path),
            minima=tuple(
                Minimum(
                    self.to_torch_distribution(one.distribution),
                    one.kl,
                    tuple(map(self.to_torch_distribution, one.basin)),
                )
                for one in fit.minima
            ),
        )


def is_module(family: Any) -> bool:
    """Whether it is a module of PyTorch, by its name alone."""
    return any(one.__module__ == "torch.nn.modules.module" for one in type(family).__mro__)


def family_adapter(family: Any, members: Sequence[Any] = (), target: Any = None) -> FamilyAdapter:
    """The kind of a class.

    Args:
        family: The class.
        members: Starts, which tell mixtures on the line from those of vectors, and what their components are.
        target: A distribution or samples, which do the first of it where there is no start.

    Raises:
        ParameterError: No family here goes by that name.
        TypeError: It is no class of distributions.
    """
    if isinstance(family, type) and issubclass(family, Distribution):
        return FamilyAdapter(family, lambda record: record, family is families.Independent)
    is_torch = isinstance(family, type) and any(
        one.__module__ == "torch.distributions.distribution" for one in family.__mro__
    )
    if not is_torch:
        raise TypeError(
            "expected a family: a record class of kullback.families, a class of torch.distributions, or a "
            f"torch.nn.Module with log_prob and rsample, got {family!r}"
        )
    independent = family.__name__ == "Independent"
    if family.__name__ == "MixtureSameFamily":
        found = Components if is_of_vectors(members[0] if members else target) else families.NormalMixture
        parts = getattr(members[0], "component_distribution", None) if members else None
        independent = found is Components and type(parts).__name__ == "Independent"
    elif independent:
        found = families.Independent
    else:
        found = import_module("kullback.densities.from_torch").FAMILIES.get(family)
    if found is None:
        raise ParameterError(
            f"expected a class of distributions that kullback.families has too, got {family.__name__}; a "
            "torch.nn.Module with log_prob and rsample fits any other"
        )

    def to_torch_distribution(record: Any) -> Any:
        return import_module("kullback.fit.stochastic").to_torch_distribution(family, record, independent)

    return FamilyAdapter(found, to_torch_distribution, independent)
