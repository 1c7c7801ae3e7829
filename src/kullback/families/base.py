"""The base class of the distributions of `kullback.families`, and the checks of their parameters.

A distribution is an immutable dataclass of its parameters. It stores each parameter as it was given,
and raises an error when a parameter violates its constraint.
"""

import functools
import numbers
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal
from difflib import get_close_matches
from math import inf
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeAlias, dataclass_transform

import array_api_compat
import numpy as np

from kullback.discrete.validation import mass_tolerance
from kullback.errors import (
    ArrayTypeError,
    KullbackError,
    NotNormalizedError,
    ParameterError,
    ParameterNameError,
    ShapeError,
)
from kullback.numerics.arguments import shown
from kullback.numerics.arrays import (
    Array,
    ArrayLike,
    as_floats,
    as_numpy,
    holds,
    is_compiling,
    is_traced,
    numpy_views,
    untracked,
)
from kullback.numerics.labels import plain_arrays, require_unlabelled
from kullback.numerics.records import comparison_key

__all__ = [
    "POSITIVE_REALS",
    "REAL_LINE",
    "UNIT_INTERVAL",
    "Constraint",
    "Count",
    "Distribution",
    "Logits",
    "Nonnegative",
    "Positive",
    "Probability",
    "Real",
    "ScipyForm",
    "Support",
    "axes",
    "first_offender",
    "record",
    "require",
    "require_axes",
    "require_mass_one",
    "require_one_of",
    "require_order",
    "require_unit_length",
    "values_of",
    "with_parameters",
]


@dataclass(frozen=True)
class Constraint:
    """The set of allowed values of a parameter: a description for messages, and an elementwise test.

    Args:
        words: The description, which completes "expected scale to be ...".
        contains: Maps an array to booleans of the same shape; True for entries inside the set.
    """

    words: str
    contains: Callable[[Any], Any]


Real: TypeAlias = Annotated[ArrayLike, Constraint("finite", lambda x: abs(x) < np.inf)]
Positive: TypeAlias = Annotated[ArrayLike, Constraint("> 0 and finite", lambda x: (x > 0) & (x < np.inf))]
Nonnegative: TypeAlias = Annotated[ArrayLike, Constraint(">= 0 and finite", lambda x: (x >= 0) & (x < np.inf))]
Probability: TypeAlias = Annotated[ArrayLike, Constraint("in [0, 1]", lambda x: (x >= 0) & (x <= 1))]
Logits: TypeAlias = Annotated[ArrayLike, Constraint("below inf and not nan", lambda x: x < np.inf)]
Count: TypeAlias = Annotated[ArrayLike, Constraint("a whole number >= 0", lambda x: (x >= 0) & (x % 1 == 0))]


@dataclass(frozen=True)
class Support:
    """The support of a univariate family: an interval of real numbers, or the integers in it.

    Args:
        low: The smallest value: a number, the name of the parameter that it equals, or a function of
            (xp, distribution), where xp is the array namespace of the parameters.
        high: The largest value, given in one of the same three ways.
        discrete: Whether the values are integers.
    """

    low: float | str | Callable[[Any, Any], Any]
    high: float | str | Callable[[Any, Any], Any]
    discrete: bool = False

    @property
    def depends_on_parameters(self) -> bool:
        """Whether the members of the family have different supports."""
        return any(isinstance(end, str) or callable(end) for end in (self.low, self.high))

    def ends(self, xp: Any, distribution: Any) -> tuple[Any, Any]:
        """The smallest and the largest value of a member of the family."""
        return _end_value(self.low, xp, distribution), _end_value(self.high, xp, distribution)


def _end_value(end: Any, xp: Any, distribution: Any) -> Any:
    """The value of one end of a support."""
    if isinstance(end, str):
        return getattr(distribution, end)
    return end(xp, distribution) if callable(end) else end


REAL_LINE = Support(-inf, inf)
POSITIVE_REALS = Support(0.0, inf)
UNIT_INTERVAL = Support(0.0, 1.0)


@dataclass(frozen=True)
class ScipyForm:
    """A family as a distribution of scipy.stats, which computes its density.

    Args:
        name: The name of the distribution in scipy.stats, such as "gamma".
        arguments: Maps a member, with numbers as parameters, to the keyword arguments of that distribution: every shape
            parameter, and `loc` and `scale` where they are not 0 and 1.
    """

    name: str
    arguments: Callable[[Any], dict[str, float]]


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
def record(cls: type) -> Any:
    """Decorate a class as a frozen, keyword-only dataclass, whose instances `Distribution.__eq__` compares by value."""
    cls = dataclass(frozen=True, kw_only=True, eq=False)(cls)
    initialize = cls.__init__

    @functools.wraps(initialize)
    def __init__(self: Any, *args: Any, **given: Any) -> None:
        try:
            initialize(self, *args, **given)
        except TypeError as error:
            if isinstance(error, KullbackError):
                raise
            if message := _misnamed(type(self), args, given):
                raise ParameterNameError(message) from error
            raise

    cls.__init__ = __init__
    return cls


def _misnamed(cls: type, args: tuple[Any, ...], given: dict[str, Any]) -> str:
    """The message about parameters that are passed by position, not known or missing; "" if there are none."""
    taken = [field for field in fields(cls) if field.init]  # pyright: ignore[reportArgumentType]
    names = [field.name for field in taken]
    required = [field.name for field in taken if field.default is MISSING]
    call = f"{cls.__name__}({', '.join(f'{name}=...' for name in names)})"
    if args:
        count = f"{len(args)} argument{'s' * (len(args) > 1)}"
        return f"expected the parameters of {cls.__name__} by name, got {count} by position; write {call}"
    if unknown := [name for name in given if name not in names]:
        nearest = [name for name in _SYNONYMS.get(unknown[0], ()) if name in names]
        nearest = nearest or get_close_matches(unknown[0], [name for name in names if name not in given], 1, 0.6)
        meant = f"; did you mean {nearest[0]}?" if nearest else ""
        return f"expected the parameters {', '.join(names)} of {cls.__name__}, got {unknown[0]}{meant}"
    missing = [name for name in required if name not in given]
    return f"expected {cls.__name__} to receive {', '.join(missing)}; write {call}" if missing else ""


# Names of parameters in other libraries and in textbooks, whose spelling is far from the names here.
_SYNONYMS = {
    **dict.fromkeys(("mu", "mean", "location"), ("loc", "mean_direction")),
    **dict.fromkeys(("sigma", "std", "stddev", "sd", "b", "s", "gamma"), ("scale",)),
    **dict.fromkeys(("cov", "Sigma", "covariance"), ("covariance_matrix", "row_covariance", "scale_matrix")),
    **dict.fromkeys(("lam", "lambda_", "mu"), ("rate", "loc")),
    **dict.fromkeys(("p", "prob"), ("probs",)),
    "n": ("total_count",),
    "nu": ("df",),
    "kappa": ("concentration",),
    **dict.fromkeys(("alpha", "a", "shape", "k"), ("concentration", "concentration1")),
    "beta": ("rate", "concentration0"),
}


class Distribution:
    """Base class of the distributions: an immutable set of parameters, which are passed by keyword.

    Each parameter is stored as given: a number, a list, or an array of NumPy, PyTorch, JAX or another array API
    library. The shapes of the parameters broadcast to the batch shape. Constraints are checked when the object is
    created, except for parameters that JAX or torch.func is tracing, because they have no values yet.

    A univariate family has a class attribute `support`, by which `kl` determines where KL is `inf`. A class attribute
    `scipy_form` names the distribution of scipy.stats whose density `measure` integrates. The class attribute
    `event_axes` has the last axes of the parameters of vectors and matrices, such as "n, n".

    Raises:
        ParameterError: An entry of a parameter violates its constraint.
        ShapeError: The shapes of the parameters do not broadcast.
        ArrayTypeError: A parameter is not numeric, is sparse, or has labels or masked entries.
        ParameterNameError: A parameter is passed by position, is not a parameter of the family, or is missing.

    Example:
        >>> from kullback.families import Normal
        >>> issubclass(Normal, Distribution)
        True
    """

    support: ClassVar[Support | None] = None
    scipy_form: ClassVar[ScipyForm | None] = None
    event_axes: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __post_init__(self) -> None:
        if is_compiling():  # the values of tensors are not available in a graph
            return
        for name, constraints, required in _constraints(type(self)):
            value = getattr(self, name)
            if value is not None or required:
                for constraint in constraints:
                    require(self, name, value, constraint)
        _require_broadcast(self)
        self._check()

    def __eq__(self, other: object) -> bool:
        """Whether two distributions have one class and equal parameters: equal shapes, and equal numbers elementwise.

        Numbers, lists, arrays and tensors are compared as numbers, whatever their dtype, library or device: the
        float64 number 0.1 differs from the float32 number 0.1. Parameters that are traced have no values; they are
        equal if they are one object.
        """
        if self is other:
            return True
        if not isinstance(other, Distribution) or type(self) is not type(other):
            return NotImplemented
        names = [field.name for field in fields(self)]  # pyright: ignore[reportArgumentType]
        pairs = ((getattr(self, name), getattr(other, name)) for name in names)
        return all(mine is theirs or comparison_key(mine) == comparison_key(theirs) for mine, theirs in pairs)

    def __hash__(self) -> int:
        """The hash of the class and of the numbers, equal for equal distributions.

        It is computed from the present values. An array that is a parameter of a key of a dictionary must not be
        modified.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        for name, value in values.items():
            if is_traced(value):
                raise ArrayTypeError(
                    f"expected a {type(self).__name__} with values to compute its hash, but {name} is traced; use the "
                    "distribution as a key outside of the transformed function"
                )
        try:
            return hash((type(self), *map(comparison_key, values.values())))
        except TypeError as error:
            raise ArrayTypeError(
                f"expected a {type(self).__name__} with hashable parameters, but {error}; use another key"
            ) from error

    def _check(self) -> None:
        """Check the constraints that involve several parameters, or an alternative parametrisation."""


@functools.cache
def _constraints(family: type[Distribution]) -> tuple[tuple[str, tuple[Constraint, ...], bool], ...]:
    """For each parameter: its name, its constraints, and whether it must be passed."""
    return tuple(
        (field.name, getattr(field.type, "__metadata__", ()), field.default is MISSING)
        for field in fields(family)  # pyright: ignore[reportArgumentType]
    )


def with_parameters(family: type[Distribution], values: dict[str, Any]) -> Any:
    """A member of the family with parameters that were checked before; other parameters are None."""
    member = object.__new__(family)
    for name in family.__dataclass_fields__:  # pyright: ignore[reportAttributeAccessIssue]
        object.__setattr__(member, name, values.get(name))
    return member


def require(owner: Distribution, name: str, value: ArrayLike, constraint: Constraint) -> None:
    """Raise ParameterError that names the first entry of `value` outside the constraint."""
    if type(value) in (np.ndarray, np.float64) and value.dtype.kind == "f":
        array = value
    elif (views := numpy_views([value])) is not None:
        array = views[0]
    elif array_api_compat.is_array_api_obj(value):
        if getattr(getattr(value, "dtype", None), "kind", "") == "O":
            raise ArrayTypeError(
                f"expected {type(owner).__name__}'s {name} to be numbers, got an array of Python objects; pass its "
                "astype(float)"
            )
        array = plain_arrays(value)[0]
        if "complex" in str(array.dtype):
            raise ArrayTypeError(
                f"expected {type(owner).__name__}'s {name} to be real numbers, got dtype {array.dtype}"
            )
    else:
        array = _as_numbers(owner, name, value)
    if not is_traced(array):
        array = values_of(array)
        with np.errstate(all="ignore"):
            inside = constraint.contains(array)
        if not (isinstance(inside, np.ndarray | np.bool) and (inside.all() if inside.ndim else inside)):
            _raise_at_first(owner, name, array, ~inside, constraint.words)


def _as_numbers(owner: Distribution, name: str, value: Any) -> np.ndarray:
    """A number or a list as a NumPy array; ArrayTypeError if it is not numeric."""
    if type(value) not in (float, int):
        require_unlabelled(f"{type(owner).__name__}'s {name}", value)
    if type(value) is int:
        try:
            value = plain_arrays(value)[0]  # an integer beyond 64 bits as a float
        except ArrayTypeError as error:
            raise ArrayTypeError(f"{type(owner).__name__}'s {name}: {error}") from error
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        remedy = "; pass float(x) of it" if isinstance(value, numbers.Rational | Decimal) else ""
        remedy = remedy or ("; pass numpy.asarray(x, float)" if array.dtype.kind == "O" and array.ndim else "")
        raise ArrayTypeError(f"expected {type(owner).__name__}'s {name} to be numbers, got {shown(value)}{remedy}")
    return array


def require_axes(owner: Distribution, name: str, shape: str) -> None:
    """Raise ShapeError unless the parameter, if it was passed, has the axes of an event, such as "n, n"."""
    value = getattr(owner, name)
    if value is None:
        return
    ndim = np.ndim(value) if isinstance(value, list | tuple | float | int) else value.ndim
    if ndim <= shape.count(","):
        got = f"an array with {ndim} axis" if ndim else "a number without axes"
        raise ShapeError(f"expected {type(owner).__name__}'s {name} to have shape (..., {shape}), got {got}")


def axes(**names: str) -> Mapping[str, str]:
    """The `event_axes` of a family: the last axes of its parameters by name, such as loc="n", scale_tril="n, n"."""
    return MappingProxyType(names)


def _require_broadcast(owner: Distribution) -> None:
    """Raise ShapeError unless the shapes of the parameters broadcast; axes of an event with one letter have one length.

    An axis of length 1 fits every length. An axis of an event is not empty, except for the rank of a low-rank factor.
    """
    shapes = {}
    for name, constraints, _ in _constraints(type(owner)):
        value = getattr(owner, name)
        if type(value) is not float and constraints:
            shape = np.shape(value) if isinstance(value, list | tuple) else getattr(value, "shape", ())
            if shape:
                shapes[name] = tuple(shape)
    if len(shapes) < 2 and not owner.event_axes:
        return
    batches, lengths = [], {}
    for name, shape in shapes.items():
        letters = owner.event_axes[name].split(", ") if name in owner.event_axes else []
        batches.append(shape[: max(len(shape) - len(letters), 0)])
        for letter, length in zip(reversed(letters), reversed(shape), strict=False):
            lengths.setdefault(letter, set()).add(length)
    try:
        np.broadcast_shapes(*batches)
        fits = all(len(found - {1}) <= 1 for found in lengths.values())
    except ValueError:
        fits = False
    is_empty = any(0 in found for letter, found in lengths.items() if letter != "rank")
    if is_empty or not fits:
        wanted = "at least one entry" if is_empty else "shapes that broadcast"
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShapeError(f"expected {type(owner).__name__}'s parameters to have {wanted}, got {found}")


def require_order(owner: Distribution, name: str, other: str, *, strict: bool = True) -> None:
    """Raise ParameterError unless parameter `name` exceeds `other`, or equals it where `strict` is False."""
    given = getattr(owner, name), getattr(owner, other)
    if not any(is_traced(value) for value in given):
        xp, [high, low], _ = as_floats(*(numpy_views(given) or map(values_of, given)))
        high, low = xp.broadcast_arrays(high, low)
        bound = f"above {other}" if strict else f"at least {other}"
        _raise_at_first(owner, name, high, ~((high > low) if strict else (high >= low)), bound)


def require_one_of(owner: Distribution, *names: str) -> None:
    """Raise ParameterError unless exactly one of the named parameters was passed."""
    given = [name for name in names if getattr(owner, name) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ParameterError(f"expected {type(owner).__name__} to receive exactly one of {', '.join(names)}, got {got}")


def require_mass_one(owner: Distribution, name: str) -> None:
    """Raise NotNormalizedError unless the entries sum to 1 along the last axis, within the tolerance of the dtype."""
    value = getattr(owner, name)
    if value is None or is_traced(value):
        return
    xp, [probs], dtype = as_floats(values_of(value))
    if probs.ndim == 0:
        raise ShapeError(f"expected {type(owner).__name__}'s {name} to have shape (..., n), got a number without axes")
    sums = xp.sum(probs, axis=-1)
    if offender := first_offender(
        f"the sum of {name}", sums, ~(abs(sums - 1) <= mass_tolerance(dtype, probs.shape[-1]))
    ):
        raise NotNormalizedError(
            f"expected {type(owner).__name__}'s {name} to sum to 1, but {offender}; divide by the sum"
        )


def require_unit_length(owner: Distribution, name: str) -> None:
    """Raise ParameterError unless the vectors along the last axis have norm 1, within the tolerance of the dtype."""
    value = getattr(owner, name)
    if is_traced(value):
        return
    xp, [vectors], dtype = as_floats(values_of(value))
    if vectors.ndim == 0:
        raise ShapeError(f"expected {type(owner).__name__}'s {name} to be a vector of shape (..., n), got a number")
    lengths = xp.linalg.vector_norm(vectors, axis=-1)
    if offender := first_offender(
        f"the length of {name}", lengths, ~(abs(lengths - 1) <= mass_tolerance(dtype, vectors.shape[-1]))
    ):
        raise ParameterError(
            f"expected {type(owner).__name__}'s {name} to have length 1, but {offender}; divide by the length"
        )


def _raise_at_first(owner: Distribution, name: str, array: Array, bad: Array, words: str) -> None:
    """Raise ParameterError for the first entry of `array` where `bad` is True."""
    if offender := first_offender(name, array, bad):
        raise ParameterError(f"expected {type(owner).__name__}'s {name} to be {words}, but {offender}")


def first_offender(name: str, array: Array, bad: Array) -> str:
    """A clause such as "scale[1] is -1.0" for the first entry where `bad` is True; "" if there is none."""
    xp = array_api_compat.array_namespace(array)
    if not holds(xp.any(bad)):
        return ""
    if bad.ndim == 0:
        return f"it is {float(array)!r}"
    index = tuple(int(indices[0]) for indices in xp.nonzero(bad))
    return f"{name}[{', '.join(map(str, index))}] is {float(array[index])!r}"


def values_of(array: Array) -> Array:
    """The values of an array that is not traced, for a check, without automatic differentiation.

    They are a NumPy array for an array of JAX, because JAX traces the operations on constants inside jit.
    """
    return as_numpy(array) if array_api_compat.is_jax_array(array) else untracked(array)
