"""Which family is asked for: a record class, a class of torch.distributions, or a module."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any

from kullback import families
from kullback.distributions import as_record
from kullback.errors import ParameterError
from kullback.families import Record
from kullback.fit.fits import Fit, Minimum, Step

__all__ = ["Kind", "is_module", "kind_of"]

_TORCH_NAMES = {"Chi2": "ChiSquared", "FisherSnedecor": "F"}


@dataclass(frozen=True)
class Kind:
    """A family as its records, and how its members are given back.

    Args:
        record_class: Of `kullback.families`.
        made: From a record to what the caller asked for.
    """

    record_class: type[Record]
    made: Callable[[Record], Any]

    def record(self, member: Any) -> Record:
        """A member as a record."""
        found = as_record(member)
        if type(found) is not self.record_class:
            raise ParameterError(
                f"expected a start of the family {self.record_class.__name__}, got {type(member).__name__}"
            )
        return found

    def fixed(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """Parameters that are not fitted.

        Raises:
            ParameterError: One of them is no parameter of this family.
        """
        names = [field.name for field in fields(self.record_class)]  # pyright: ignore[reportArgumentType]
        if unknown := [name for name in given or {} if name not in names]:
            raise ParameterError(
                f"expected fixed to name parameters of {self.record_class.__name__} ({', '.join(names)}), got {unknown}"
            )
        return given or {}

    def returned(self, fit: Fit) -> Fit:
        """The fit in the caller's kind of distributions."""
        return replace(
            fit,
            distribution=self.made(fit.distribution),
            path=tuple(Step(self.made(step.distribution), step.kl) for step in fit.path),
            minima=tuple(
                Minimum(self.made(one.distribution), one.kl, tuple(map(self.made, one.basin))) for one in fit.minima
            ),
        )


def is_module(family: Any) -> bool:
    """Whether it is a module of PyTorch, by its name alone."""
    return any(one.__module__ == "torch.nn.modules.module" for one in type(family).__mro__)


def kind_of(family: Any) -> Kind:
    """The kind of a class.

    Raises:
        ParameterError: No family here goes by that name.
        TypeError: It is no class of distributions.
    """
    if isinstance(family, type) and issubclass(family, Record):
        return Kind(family, lambda record: record)
    is_torch = isinstance(family, type) and any(
        one.__module__ == "torch.distributions.distribution" for one in family.__mro__
    )
    if not is_torch:
        raise TypeError(
            "expected a family: a record class of kullback.families, a class of torch.distributions, or a "
            f"torch.nn.Module with log_prob and rsample, got {family!r}"
        )
    name = _TORCH_NAMES.get(family.__name__, family.__name__)
    found = getattr(families, name, None)
    if found is None or name in ("Independent", "Transformed"):
        raise ParameterError(
            f"expected a class of distributions that kullback.families has too, got {family.__name__}; a "
            "torch.nn.Module with log_prob and rsample fits any other"
        )
    return Kind(found, lambda record: import_module("kullback.integrations.torch_fit").made(family, record))
