"""The free parameters of a family as a vector without bounds, and back."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy import special

from kullback import families
from kullback.errors import ParameterError
from kullback.families import Distribution
from kullback.numerics.arrays import Array, untracked

__all__ = ["Coordinates", "coordinates_of"]

Map = tuple[Callable[[Array], Array], Callable[[Array], Array]]

_SAME: Map = (lambda x: x, lambda x: x)
_LOG: Map = (np.log, np.exp)
_LOGIT: Map = (special.logit, special.expit)
_ABOVE_ONE: Map = (lambda x: np.log(x - 1), lambda x: 1 + np.exp(x))
_SIMPLEX: Map = (
    lambda p: (np.log(p) - np.log(p[..., -1:]))[..., :-1],
    lambda z: special.softmax(np.concatenate([z, np.zeros((*z.shape[:-1], 1))], axis=-1), axis=-1),
)
_BY_WORDS = {"finite": _SAME, "> 0 and finite": _LOG, ">= 0 and finite": _LOG, "in [0, 1]": _LOGIT}
_OF_FAMILY: dict[tuple[type, str], Map] = {
    (families.NormalMixture, "weights"): _SIMPLEX,
    (families.Categorical, "probs"): _SIMPLEX,
    (families.OneHotCategorical, "probs"): _SIMPLEX,
    (families.Multinomial, "probs"): _SIMPLEX,
    (families.Zipf, "exponent"): _ABOVE_ONE,
}
_COUNTS = "a whole number >= 0"


@dataclass(frozen=True)
class Coordinates:
    """A chart of a family.

    Args:
        kind: The family's record.
        fixed: Parameters that are not fitted, by name.
        free: The others: name, shape of its coordinates, and its map.
    """

    kind: type[Distribution]
    fixed: dict[str, Any]
    free: tuple[tuple[str, tuple[int, ...], Map], ...]

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for _, shape, _ in self.free)

    def vector(self, record: Distribution) -> Array:
        """Where a record of this family is."""
        record = _ordered(record)
        parts = [np.ravel(into(_parameter(record, name))) for name, _, (into, _) in self.free]
        return np.concatenate(parts) if parts else np.zeros(0)

    def record(self, vector: Array) -> Distribution:
        """The record that is there."""
        values, at = dict(self.fixed), 0
        for name, shape, (_, back) in self.free:
            count = int(np.prod(shape))
            value = back(np.reshape(vector[at : at + count], shape))
            values[name] = float(value) if value.ndim == 0 else value
            at += count
        return self.kind(**values)


def coordinates_of(kind: type[Distribution], like: Distribution, fixed: dict[str, Any]) -> Coordinates:
    """The chart around a record of the family.

    Raises:
        ParameterError: A count is not fixed.
    """
    free = []
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        if field.name in fixed or field.name == "logits":  # probs in their place
            continue
        words = [constraint.words for constraint in getattr(field.type, "__metadata__", ())]
        if _COUNTS in words:
            raise ParameterError(
                f"expected {kind.__name__}'s {field.name} to be fixed, for it is a count: pass "
                f"fixed={{{field.name!r}: ...}}"
            )
        if not words or words[0] not in _BY_WORDS or field.name.endswith("covariance"):
            raise ParameterError(f"expected a family that fits are known for, got {kind.__name__}")
        special_case = (kind, field.name)
        ways = _OF_FAMILY[special_case] if special_case in _OF_FAMILY else _BY_WORDS[words[0]]
        shape = np.shape(ways[0](_parameter(like, field.name)))
        free.append((field.name, shape, ways))
    return Coordinates(kind, fixed, tuple(free))


def _ordered(record: Distribution) -> Distribution:
    """A mixture with its components in the order of their places: any other order is the same distribution."""
    if not isinstance(record, families.NormalMixture):
        return record
    given = (record.weights, record.locs, record.scales)
    weights, locs, scales = (np.asarray(untracked(value), np.float64) for value in given)
    order = np.argsort(locs, kind="stable")
    return families.NormalMixture(weights=weights[order], locs=locs[order], scales=scales[order])


def _parameter(record: Distribution, name: str) -> Array:
    value = getattr(record, name)
    if value is None and name == "probs":
        logits = np.asarray(untracked(record.logits), np.float64)  # pyright: ignore[reportAttributeAccessIssue]
        return special.expit(logits) if logits.ndim == 0 else special.softmax(logits, axis=-1)
    return np.asarray(untracked(value), np.float64)
