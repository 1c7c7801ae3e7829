"""The registry of closed forms: a function for each pair of families, and its evaluation on arrays."""

from collections.abc import Callable
from copy import copy
from itertools import product
from math import isfinite, prod
from typing import Any

import array_api_compat
import numpy as np

from kullback import families as f
from kullback.closed_forms.supports import is_contained, is_univariate
from kullback.errors import ArrayTypeError, NoClosedFormError, ShapeError
from kullback.families import Distribution, NormalMixture
from kullback.families.base import first_offender, values_of, with_parameters
from kullback.numerics.arrays import (
    Array,
    as_floats,
    as_numpy,
    broadcast_arrays,
    cast,
    elementwise_with_gradient,
    from_numpy,
    holds,
    is_traced,
    numpy_views,
    untracked,
)

__all__ = ["FORMS", "Form", "closed_form", "evaluate_form", "overflows", "where_equal"]

Form = Callable[[Any, Any], Array]


class _Forms(dict[tuple[type, type], Form]):
    """The closed forms by the class of p and the class of q."""

    def __init__(self) -> None:
        super().__init__()
        self._closest: dict[tuple[type, type], Form | None] = {}  # the results of `closest` until a form is added

    def __setitem__(self, pair: tuple[type, type], form: Form) -> None:
        super().__setitem__(pair, form)
        self._closest.clear()

    def __delitem__(self, pair: tuple[type, type]) -> None:
        super().__delitem__(pair)
        self._closest.clear()

    def closest(self, p_class: type, q_class: type) -> Form | None:
        """The form of two classes, or of their closest base classes that have one; None if none applies."""
        pair = p_class, q_class
        if pair not in self._closest:
            ancestors = product(enumerate(p_class.__mro__), enumerate(q_class.__mro__))
            pairs = sorted(ancestors, key=lambda found: found[0][0] + found[1][0])
            forms = (self.get((kind_p, kind_q)) for (_, kind_p), (_, kind_q) in pairs)
            self._closest[pair] = next((form for form in forms if form is not None), None)
        return self._closest[pair]


FORMS = _Forms()
# For each pair that has a built-in form: where KL is infinite inside the support of q, or None if it is finite there.
_INFINITE: dict[tuple[type, type], Callable[..., Array] | None] = {}

# The power of c by which each parameter changes when x is multiplied by c; KL does not change.
_LOCATION_SCALE = {"loc": 1, "scale": 1}
_SCALE = {"scale": 1}
_RESCALED: dict[type, dict[str, int]] = {
    **dict.fromkeys((f.Cauchy, f.Gumbel, f.Laplace, f.Logistic, f.Normal, f.StudentT), _LOCATION_SCALE),
    **dict.fromkeys((f.HalfCauchy, f.HalfNormal, f.Maxwell, f.Pareto, f.Rayleigh, f.Weibull), _SCALE),
    f.Exponential: {"rate": -1},
    f.Gamma: {"rate": -1},
    f.InverseGamma: {"rate": 1},
    f.InverseGaussian: {"mean": 1, "shape": 1},
    f.TruncatedNormal: {"loc": 1, "scale": 1, "low": 1, "high": 1},
    f.Uniform: {"low": 1, "high": 1},
}


def closed_form(
    *pairs: tuple[type, type], infinite: Callable[..., Array] | None = None
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Decorate `function(xp, p, q)` to register it as KL(p || q) for these pairs of classes.

    The function receives an array namespace `xp` and two distributions whose parameters are arrays of this namespace
    and of one dtype. Its result is used where the support of q contains the support of p; elsewhere the KL is `inf`.

    Args:
        *pairs: Pairs of subclasses of `Distribution`: the class of p and the class of q.
        infinite: Called as `infinite(xp, p, q)`; returns where the KL is infinite although the support of q contains
            the support of p. None if it is finite there.

    Returns:
        A decorator that returns the function itself. It raises a ValueError if a pair is registered already.

    Example:
        >>> from kullback import kl
        >>> from kullback.closed_forms import FORMS, closed_form
        >>> from kullback.families import HalfNormal, Uniform
        >>> @closed_form((Uniform, HalfNormal))
        ... def kl_uniform_half_normal(xp, p, q):
        ...     mean_square = (p.low**2 + p.low * p.high + p.high**2) / 3
        ...     log_normalizer = xp.log(q.scale) + np.log(np.pi / 2) / 2
        ...     return log_normalizer + mean_square / (2 * q.scale**2) - xp.log(p.high - p.low)
        >>> float(kl(Uniform(low=0.0, high=1.0), HalfNormal(scale=1.0)).round(4))
        0.3925
        >>> del FORMS[Uniform, HalfNormal]
    """

    def register(function: Callable[..., Array]) -> Callable[..., Array]:
        for pair in pairs:
            if pair in FORMS:
                raise ValueError(f"expected a pair without a closed form, got {pair[0].__name__} || {pair[1].__name__}")
            FORMS[pair] = lambda p, q: evaluate_form(function, p, q)
            _INFINITE[pair] = infinite
        return function

    return register


def evaluate_form(function: Callable[..., Array], p: Distribution, q: Distribution) -> Array:
    """`function(xp, p, q)` with the parameters converted to arrays, and the result in the dtype of the parameters.

    Raises:
        NoClosedFormError: The result is nan or -inf, because parts of the formula overflow or underflow.
        ShapeError: The parameters of two univariate distributions do not broadcast.
        ArrayTypeError: The parameters are arrays of different libraries.
    """
    passed = [(record, name) for record in (p, q) for name, value in vars(record).items() if value is not None]
    values = [getattr(record, name) for record, name in passed]
    univariate = is_univariate(p) and is_univariate(q)
    if univariate and (views := numpy_views(values, differentiable=True)) is not None:
        dtype = next(view.dtype for view in views if isinstance(view, np.ndarray))
        return from_numpy(np.asarray(_of_values(function, p, q, passed, views, univariate), dtype), values)
    return _of_values(function, p, q, passed, values, univariate)


def _of_values(
    function: Callable[..., Array], p: Any, q: Any, passed: list[tuple[Any, str]], values: list[Any], univariate: bool
) -> Array:
    """`function` with these values of the named parameters, in the dtype of the values."""
    try:
        xp, arrays, dtype = as_floats(*values)
    except TypeError as error:
        arrays = [value for value in values if array_api_compat.is_array_api_obj(value)]
        libraries = {type(array).__module__.partition(".")[0].removesuffix("lib") for array in arrays}
        if len(libraries) < 2:
            raise
        raise ArrayTypeError(
            f"expected the parameters of {type(p).__name__} and {type(q).__name__} to be arrays of one library, got "
            f"arrays of {' and '.join(sorted(libraries))}; convert one of them"
        ) from error
    first: dict[int, int] = {}  # a parameter that p and q share stays one array, which `where_equal` recognises
    arrays = [arrays[first.setdefault(id(value), k)] for k, value in enumerate(values)]
    shapes, mixtures = [tuple(array.shape) for array in arrays], []
    if univariate:
        # The last axis of a mixture indexes its components; p and q may have different numbers of components.
        mixtures = [isinstance(record, NormalMixture) for record, _ in passed]
        _require_broadcasting(p, q, [s[:-1] if mixture else s for s, mixture in zip(shapes, mixtures, strict=True)])
    p, q = _with_values(p, q, passed, arrays)
    # Infinite results are expected, and so are invalid values in unselected branches of `where`.
    with np.errstate(all="ignore"):
        result = None
        if univariate and array_api_compat.is_numpy_namespace(xp) and not any(mixtures):
            shape = np.broadcast_shapes(*shapes)
            result = _in_blocks(xp, function, p, q, shape) if prod(shape) > _BLOCK else None
        return cast(xp, _value(xp, function, p, q, univariate) if result is None else result, dtype)


_BLOCK = 16384  # entries of a block, whose intermediate arrays fit into the processor's cache


def _value(xp: Any, function: Callable[..., Array], p: Any, q: Any, univariate: bool) -> Array:
    """`function(xp, p, q)`, and `inf` where the support of q does not contain the support of p."""
    result = function(xp, p, q)
    finite = _is_finite(xp, result)
    contained = is_contained(xp, p, q) if univariate else True
    if finite and (contained is True or (contained is not False and holds(xp.all(contained)))):
        return result
    if is_traced(result) or is_traced(contained) or not univariate or NormalMixture in (type(p), type(q)):
        contained = xp.asarray(contained, device=array_api_compat.device(result))
        result = xp.where(contained, result, np.inf)
    else:
        result = _by_rows(xp, function, p, q, result, contained)
    if not finite:
        _require_no_nan(xp, p, q, result)
    return result


def _in_blocks(xp: Any, function: Callable[..., Array], p: Any, q: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """The value for NumPy arrays, computed for one block of entries after another; None where that is an error.

    The message of the error must name the index of an entry in the whole array.
    """
    size = prod(shape)
    sides = [_selected(xp, side, shape, slice(None)) for side in (p, q)]
    out = np.empty(size, next(value.dtype for value in vars(sides[0]).values() if value is not None))
    for start in range(0, size, _BLOCK):
        block = slice(start, start + _BLOCK)
        try:
            out[block] = _value(xp, function, *(_selected(xp, side, (size,), block) for side in sides), univariate=True)
        except NoClosedFormError:
            return None
    return out.reshape(shape)


def _selected(xp: Any, record: Any, shape: tuple[int, ...], entries: Any, known: dict[int, Array] | None = None) -> Any:
    """The record with entries of its parameters, each of which has this shape or no axes.

    A number of NumPy without axes stays one. A tensor without axes has one entry for each of `entries`, so that its
    gradient is 0, and not nan, if there are none.

    Args:
        xp: The array namespace of the parameters.
        record: A univariate distribution with arrays as parameters.
        shape: The shape to which the parameters broadcast.
        entries: A slice of the flattened arrays, or the indices of entries in them.
        known: The entries of other parameters by the identity of the parameter; the entries of this record are added.
    """
    chosen, known = with_parameters(type(record), {}), {} if known is None else known
    for name, value in vars(record).items():
        if value is not None and (value.ndim or not array_api_compat.is_numpy_namespace(xp)):
            if id(value) not in known:
                known[id(value)] = xp.reshape(xp.broadcast_to(value, shape), (-1,))[entries]
            value = known[id(value)]
        object.__setattr__(chosen, name, value)
    return chosen


def _with_values(p: Any, q: Any, passed: list[tuple[Any, str]], values: list[Any]) -> tuple[Any, Any]:
    """p and q with these values of the named parameters, which are not checked."""
    changed = {id(record): with_parameters(type(record), {}) for record in (p, q)}
    for (record, name), value in zip(passed, values, strict=True):
        object.__setattr__(changed[id(record)], name, value)
    return changed[id(p)], changed[id(q)]


def _is_finite(xp: Any, result: Array) -> bool:
    """Whether every entry is finite; True while the result is traced."""
    if result.ndim == 0 and isinstance(result, np.ndarray | np.generic):
        return isfinite(result)
    if isinstance(result, np.ndarray):
        return bool(np.isfinite(result).all())
    return is_traced(result) or bool(xp.all(xp.isfinite(untracked(result))))


def _require_no_nan(xp: Any, p: Distribution, q: Distribution, result: Array) -> None:
    """Raise NoClosedFormError if an entry of the result is nan or -inf."""
    result = untracked(result)
    if offender := first_offender("the result", result, xp.isnan(result) | (result == -np.inf)):
        names = " and ".join(dict.fromkeys(type(d).__name__ for d in (p, q)))
        raise NoClosedFormError(
            f"expected parameters of {names} for which the closed form can be computed in {result.dtype}, but a part "
            f"of it overflows or underflows: {offender}; use parameters of moderate size, or kullback.measure"
        )


def _by_rows(xp: Any, function: Callable[..., Array], p: Any, q: Any, result: Array, contained: Array | bool) -> Array:
    """`result`, computed again for c x, with a power of two c, where it is not finite.

    A square of a scale, or a difference of two locations, may overflow or underflow although the KL does not. The
    result is `inf` where it is infinite for every c, and where the support of q does not contain the support of p; it
    is 0 where p and q have equal parameters. The gradient of such an entry is 0. Every finite entry is computed from
    its own parameters, because 0 times an infinite partial derivative of another entry is nan.
    """
    shape, device = result.shape, array_api_compat.device(result)

    def compute(c: float, entries: Array) -> Array:
        known: dict[Any, Array] = {}  # p and q may share a parameter
        sides = [_selected(xp, side, shape, entries, known) for side in (p, q)]
        values = function(xp, *(sides if c == 1 else (_rescaled(side, c, known) for side in sides)))
        return xp.broadcast_to(values, entries.shape)

    values = xp.reshape(untracked(result), (-1,))
    contained = xp.reshape(xp.broadcast_to(xp.asarray(contained, device=device), shape), (-1,))
    finite = contained & xp.isfinite(values)
    entries = xp.nonzero(finite)[0]
    indices = [entries]
    results = [values[entries] if array_api_compat.is_numpy_namespace(xp) else compute(1.0, entries)]
    entries = xp.nonzero(contained & ~finite)[0]
    values = values[entries]
    if type(p) in _RESCALED and type(q) in _RESCALED:
        exponent = int(np.log2(float(xp.finfo(result.dtype).max)) * 0.6)
        for c in (2.0**-4, 2.0**-exponent, 2.0**exponent):
            if entries.shape[0] == 0:
                break
            values = untracked(compute(c, entries))
            finite = xp.isfinite(values)
            if xp.any(finite):
                indices.append(entries[finite])
                results.append(compute(c, entries[finite]))
            entries, values = entries[~finite], values[~finite]
        values = xp.where(xp.isnan(values), np.inf, values)
    if type(p) is type(q):
        equal = xp.broadcast_to(xp.asarray(_are_equal(p, q), device=device), shape)
        values = xp.where(xp.reshape(equal, (-1,))[entries], 0.0, values)
    indices += [entries, xp.nonzero(~contained)[0]]
    results += [values, xp.full(indices[-1].shape, np.inf, dtype=result.dtype, device=device)]
    return xp.reshape(xp.concat(results)[xp.argsort(xp.concat(indices))], shape)


def _are_equal(p: Any, q: Any) -> Array | bool:
    """Whether p and q, of one family, have equal parameters; False where one has probs and the other logits."""
    equal: Array | bool = True
    for name, of_p in vars(p).items():
        of_q = vars(q).get(name)
        if (of_p is None) != (of_q is None):
            return False
        if of_p is not None:
            equal = equal & (untracked(of_p) == untracked(of_q))
    return equal


def _rescaled(side: Any, c: float, known: dict[Any, Array]) -> Any:
    """The distribution of c x, for x from a distribution of one of the families of `_RESCALED`.

    `known` contains the changed parameters by their identity and their power of c.
    """
    changed = copy(side)
    changed.__dict__.pop("log_scale", None)
    for name, power in _RESCALED[type(side)].items():
        value = getattr(side, name)
        object.__setattr__(changed, name, known.setdefault((id(value), power), value * c**power))
    return changed


def overflows(p: Distribution, q: Distribution) -> bool:
    """Whether the KL of two families, for which `kl` is inf, is finite but above the largest floating-point number."""
    pair = type(p), type(q)
    if pair not in _INFINITE:
        return False
    infinite = _INFINITE[pair]

    def indicator(xp: Any, p: Any, q: Any) -> Array:
        return xp.where(infinite(xp, p, q), np.inf, 0.0) if infinite else xp.zeros(())

    return not bool(np.any(as_numpy(evaluate_form(indicator, p, q)) == np.inf))


def where_equal(xp: Any, p: Any, q: Any, name: str, kl: Array) -> Array:
    """`kl` for a formula that holds only where p and q have an equal value of the parameter `name`.

    The result is nan where the values differ and are traced. The gradient with respect to the parameter of one side
    alone is nan, because the formula does not determine it. Where p and q share the array, the formula is
    differentiated.

    Raises:
        NoClosedFormError: The values differ and are not traced.
    """
    of_p, of_q = getattr(p, name), getattr(q, name)
    if not (is_traced(of_p) or is_traced(of_q)):
        values_p, values_q = values_of(of_p), values_of(of_q)
        values_p, values_q = broadcast_arrays(array_api_compat.array_namespace(values_p), values_p, values_q)
        if offender := first_offender(f"p's {name}", values_p, values_p != values_q):
            raise NoClosedFormError(
                f"expected p and q = {type(p).__name__} with equal {name}, but {offender} and q's {name} differs; "
                "kullback.measure(p, q) bounds or estimates the KL"
            )
    if of_p is of_q:
        return kl + xp.zeros_like(of_p)  # with the shape to which all parameters broadcast
    return _where_equal(xp, *broadcast_arrays(xp, kl, of_p, of_q))


_where_equal = elementwise_with_gradient(
    lambda xp, kl, of_p, of_q: xp.where(of_p == of_q, kl, np.nan),
    lambda _xp, gradient, *_: gradient,
    lambda _xp, gradient, *_: gradient * np.nan,
    lambda _xp, gradient, *_: gradient * np.nan,
)


def _require_broadcasting(p: Distribution, q: Distribution, shapes: list[tuple[int, ...]]) -> None:
    """Raise ShapeError unless the shapes broadcast."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError as error:
        listed = " and ".join(map(str, dict.fromkeys(shapes)))
        raise ShapeError(
            f"expected the parameters of {type(p).__name__} and {type(q).__name__} to broadcast, got shapes {listed}"
        ) from error
