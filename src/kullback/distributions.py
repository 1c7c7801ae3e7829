"""Exact KL divergence between two distributions of `kullback.families` or of another library, by closed forms."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload

import array_api_compat
import numpy as np

from kullback.closed_forms import FORMS, Form, is_contained, is_univariate
from kullback.closed_forms.compiled_forms import compiled_kl
from kullback.closed_forms.entropies import ENTROPIES
from kullback.closed_forms.registry import evaluate_form
from kullback.densities.resolve import as_family
from kullback.discrete import entropy as arrays
from kullback.errors import DistributionTypeError, NoClosedFormError, ShapeError, SupportError
from kullback.families import (
    Distribution,
    Independent,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    NormalMixture,
    TanhNormal,
    Transformed,
)
from kullback.numerics.array_types import ArrayInput, ArrayT
from kullback.numerics.arrays import Array, ArrayLike, as_floats, cast, holds, is_compiling

if TYPE_CHECKING:
    import torch

__all__ = ["cross_entropy", "entropy", "kl", "register_kl", "shared_bases"]

_BUILT_IN_PAIRS = frozenset(FORMS)


@overload
def kl(p: "torch.distributions.Distribution", q: "torch.distributions.Distribution") -> "torch.Tensor": ...
@overload
def kl(p: Any, q: Any) -> Array: ...
def kl(p: Any, q: Any) -> Array:
    """KL(p || q) of two distributions by a closed form, in nats.

    KL(p || q) = E_p[log p(x) - log q(x)]. The closed form of the pair is written so that nearly equal parameters and
    very large parameters keep their relative accuracy. A family that is a special case of another family, as the
    exponential distribution is of the gamma distribution, uses the closed form of the more general family.

    A few forms require that p and q have an equal parameter, such as the scale of two logistic distributions. They do
    not determine the derivative with respect to the parameter of one side, which is nan; pass one array to both sides
    to differentiate along both. An infinite entry of a batch does not change the gradient of other entries.

    Inside `torch.compile`, KL of two distributions of PyTorch or of two families of tensors is one operation of the
    graph, and the constraints of the parameters are not checked.

    Args:
        p: A distribution of `kullback.families`, a distribution of `torch.distributions`, a frozen distribution or
            random variable of `scipy.stats`, a distribution of NumPyro or TensorFlow Probability, or an object of a
            class passed to `register_kl`.
        q: A distribution of one of the same types. The parameters of p and q broadcast.

    Returns:
        An array of the batch shape, in nats, of the parameters' array type and dtype, differentiable in PyTorch and
        JAX; without a batch shape, a `numpy.float64`, a subclass of `float`, for numbers and NumPy arrays. `inf` where
        p has mass outside the support of q, and where the tails of p are too heavy for q; also where the KL is larger
        than the largest number of the dtype, which `kullback.measure` reports as the status "overflow".

    Raises:
        NoClosedFormError: No closed form is implemented for this pair; `kullback.measure` bounds or estimates the KL.
        ParameterError: A parameter is outside its domain.
        ShapeError: The parameters do not broadcast, or the event shapes differ.
        DistributionTypeError: p or q is not a distribution.

    Example:
        >>> from kullback.families import Gamma, Normal
        >>> float(kl(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=2.0)))
        0.4431471805599453
        >>> kl(Gamma(concentration=1e4, rate=[1.0, 1.000001]), Gamma(concentration=1e4, rate=1.0))
        array([0.00000000e+00, 4.99999333e-09])
    """
    if is_compiling():
        from kullback.densities.torch_graph import call_outside_graph, kl_in_graph

        value = kl_in_graph(p, q)
        if value is None:
            return call_outside_graph(kl, p, q)  # pyright: ignore[reportCallIssue]
        return value
    if (value := compiled_kl(p, q)) is not None:
        return value
    form = FORMS.closest(type(p), type(q))
    if form is None:
        _require_one_event_shape(p, q)
        p, q = as_family(p), as_family(q)
        if (value := compiled_kl(p, q)) is not None:
            return value
        form = FORMS.closest(type(p), type(q))
    if form is not None:
        return form(p, q)
    if isinstance(p, Independent) or isinstance(q, Independent):
        return _kl_independent(p, q)
    if bases := shared_bases(p, q):
        return kl(*bases)
    if is_univariate(p) and is_univariate(q):
        return evaluate_form(_kl_if_supports_differ, p, q)
    raise _no_closed_form(p, q)


class _WithLogProb(Protocol):
    @property
    def log_prob(self) -> Callable[..., Any]: ...


class _WithLogPdf(Protocol):
    @property
    def logpdf(self) -> Callable[..., Any]: ...


class _WithLogPmf(Protocol):
    @property
    def logpmf(self) -> Callable[..., Any]: ...


_AnyDistribution: TypeAlias = Distribution | _WithLogProb | _WithLogPdf | _WithLogPmf


@overload
def entropy(p: ArrayInput[ArrayT], *, axis: int = -1, where: ArrayLike | None = None) -> ArrayT: ...
@overload
def entropy(p: "torch.distributions.Distribution") -> "torch.Tensor": ...
@overload
def entropy(p: _AnyDistribution) -> Array: ...
def entropy(p: Any, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    """The entropy H(p) of probabilities or of a distribution, in nats.

        H(p) = -sum_i p_i log p_i,   or H(p) = -E_p[log p(x)] of a distribution

    The entropy of a continuous distribution is its differential entropy, which may be negative.

    Args:
        p: Probabilities, shape (..., n), as in `kullback.discrete.entropy.entropy`; or a distribution of
            `kullback.families`, PyTorch, SciPy, NumPyro or TensorFlow Probability.
        axis: The axis that indexes the events of probabilities.
        where: Boolean mask of the events of probabilities that are included.

    Returns:
        The entropy in nats, with the array type and dtype of the probabilities or of the parameters, differentiable in
        PyTorch and JAX: shape (...) for probabilities, the batch shape for a distribution.

    Raises:
        NoClosedFormError: The entropy has no closed form; `kullback.measure_entropy` computes or estimates it.
        NotNormalizedError: An entry is negative or nan, or the probabilities do not sum to 1.
        ShapeError: The shapes do not broadcast, or `axis` has no events.
        SupportError: The entropy is infinite, or `axis` or `where` is passed with a distribution.

    Example:
        >>> from kullback.families import Normal
        >>> float(entropy([0.5, 0.25, 0.25])), round(float(entropy(Normal(loc=0.0, scale=1.0))), 12)
        (1.0397207708399179, 1.418938533205)
    """
    if not _is_distribution(p):
        return arrays.entropy(p, axis=axis, where=where)
    _require_no_axis(axis, where)
    family = as_family(p)
    if isinstance(family, Independent):
        components = entropy(family.base)
        if components.ndim < family.event_dims:
            raise ShapeError(
                f"expected at least {family.event_dims} batch axes, the event_dims of Independent, got shape "
                f"{tuple(components.shape)}"
            )
        if family.event_dims == 0:
            return components
        xp = array_api_compat.array_namespace(components)
        return cast(xp, xp.sum(components, axis=tuple(range(-family.event_dims, 0))), components.dtype)
    form = ENTROPIES.get(type(family))
    if form is None:
        raise NoClosedFormError(
            f"H({type(p).__name__}) has no closed form; kullback.measure_entropy computes or estimates it with a bound "
            "or an interval"
        )
    return evaluate_form(lambda xp, p, _q: form(xp, p), family, family)


@overload
def cross_entropy(
    p: ArrayInput[ArrayT], q: ArrayInput[ArrayT], *, axis: int = -1, where: ArrayLike | None = None
) -> ArrayT: ...
@overload
def cross_entropy(p: "torch.distributions.Distribution", q: "torch.distributions.Distribution") -> "torch.Tensor": ...
@overload
def cross_entropy(p: _AnyDistribution, q: _AnyDistribution) -> Array: ...
def cross_entropy(p: Any, q: Any, *, axis: int = -1, where: ArrayLike | None = None) -> Array:
    """The cross-entropy H(p, q) = H(p) + KL(p || q) of probabilities or of two distributions, in nats.

        H(p, q) = -sum_i p_i log q_i,   or H(p, q) = -E_p[log q(x)] of distributions

    Args:
        p: Probabilities, shape (..., n), as in `kullback.discrete.entropy.cross_entropy`; or a distribution, as in
            `entropy`.
        q: Probabilities or a distribution, as `p`.
        axis: The axis that indexes the events of probabilities.
        where: Boolean mask of the events of probabilities that are included.

    Returns:
        The cross-entropy in nats, with the array type and dtype of the probabilities or of the parameters: shape (...)
        for probabilities, the batch shape for distributions. `inf` where p has mass and q has none.

    Raises:
        NoClosedFormError: The entropy of p or KL(p || q) has no closed form; `kullback.measure_cross_entropy` computes
            or estimates the cross-entropy.
        NotNormalizedError: An entry is negative or nan, or the probabilities do not sum to 1.
        ShapeError: The shapes do not broadcast, or `axis` has no events.
        SupportError: The entropy of p is infinite, or `axis` or `where` is passed with distributions.
        TypeError: One argument is an array and the other is a distribution.

    Example:
        >>> from kullback.families import Normal
        >>> round(float(cross_entropy(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=1.0))), 12)
        1.918938533205
    """
    if not _is_distribution(p) and not _is_distribution(q):
        return arrays.cross_entropy(p, q, axis=axis, where=where)
    _require_no_axis(axis, where)
    divergence = kl(p, q)
    return entropy(p) + divergence


def _is_distribution(p: Any) -> bool:
    """Whether the object is a distribution rather than an array or a list."""
    return isinstance(p, Distribution) or any(hasattr(type(p), name) for name in ("log_prob", "logpdf", "logpmf"))


def _require_no_axis(axis: int, where: ArrayLike | None) -> None:
    """Raise SupportError where an argument of arrays is passed with a distribution."""
    if axis != -1 or where is not None:
        raise SupportError("expected axis= and where= with probabilities only, got a distribution; leave them out")


def register_kl(p_class: type, q_class: type) -> Callable[[Form], Form]:
    """Register a function that computes KL(p || q) for two classes of distributions.

    Args:
        p_class: The class of p: a class of your own or of another library, or a class of `kullback.families`. The
            function also applies to subclasses, unless a function is registered for a more specific pair.
        q_class: The class of q.

    Returns:
        A decorator for a function `f(p, q)`, which `kl` calls with the two objects unchanged. The decorator returns
        the function.

    Raises:
        DistributionTypeError: An argument is not a class of distributions, such as a number or `int`.
        SupportError: Kullback has a closed form for this pair.

    Example:
        >>> from kullback.families import Normal
        >>> class Point:
        ...     pass
        >>> @register_kl(Point, Normal)
        ... def point_normal(p, q):
        ...     return float("inf")
        >>> kl(Point(), Normal(loc=0.0, scale=1.0))
        inf
    """
    for kind in (p_class, q_class):
        if not isinstance(kind, type):
            raise DistributionTypeError(f"expected two classes of distributions, got {kind!r}, which is not a class")
        if kind.__module__ == "builtins" or issubclass(kind, np.generic | np.ndarray):
            raise DistributionTypeError(
                f"expected two classes of distributions, got {kind.__name__}, a class of numbers or built-ins"
            )
    if (p_class, q_class) in _BUILT_IN_PAIRS:
        raise SupportError(
            f"expected a pair without a closed form, but KL({p_class.__name__} || {q_class.__name__}) is built in"
        )

    def register(function: Form) -> Form:
        FORMS[p_class, q_class] = function
        return function

    return register


def _require_one_event_shape(p: Any, q: Any) -> None:
    """Raise ShapeError if p and q both have an `event_shape` and the two differ: event axes do not broadcast."""
    shapes = [tuple(d.event_shape) for d in (p, q) if hasattr(d, "event_shape") and not isinstance(d, type)]
    if len(set(shapes)) > 1:
        raise ShapeError(f"expected equal event shapes, got {shapes[0]} of p and {shapes[1]} of q")


def _kl_independent(p: Any, q: Any) -> Array:
    """KL of independent components: the sum over the components."""
    if any(isinstance(d, MultivariateNormal | LowRankMultivariateNormal) for d in (p, q)):
        return _kl_multivariate_normal(p, q)
    if not (isinstance(p, Independent) and isinstance(q, Independent) and p.event_dims == q.event_dims):
        raise _no_closed_form(p, q)
    components = kl(p.base, q.base)
    if p.event_dims == 0:
        return components
    if components.ndim < p.event_dims:
        raise ShapeError(
            f"expected at least {p.event_dims} batch axes, the event_dims of Independent, got shape {components.shape}"
        )
    xp = array_api_compat.array_namespace(components)
    return cast(xp, xp.sum(components, axis=tuple(range(-p.event_dims, 0))), components.dtype)


def _kl_multivariate_normal(p: Any, q: Any) -> Array:
    """KL where one distribution is a multivariate normal and the other may be an Independent of normals."""
    normals = _as_multivariate_normal(p), _as_multivariate_normal(q)
    form = FORMS.closest(*map(type, normals))
    if form is None:
        raise _no_closed_form(p, q)
    return form(*normals)


def _as_multivariate_normal(d: Any) -> Any:
    """An Independent of univariate normals as a multivariate normal; other distributions unchanged."""
    if not (isinstance(d, Independent) and isinstance(d.base, Normal) and d.event_dims == 1):
        return d
    xp, [loc, scale], _ = as_floats(d.base.loc, d.base.scale)
    loc, scale = xp.broadcast_arrays(loc, scale)
    if not scale.ndim:
        raise ShapeError("expected at least 1 batch axis, the event_dims of Independent, got shape ()")
    eye = xp.eye(scale.shape[-1], dtype=scale.dtype, device=array_api_compat.device(scale))
    return MultivariateNormal(loc=loc, scale_tril=scale[..., None] * eye)


def shared_bases(p: Any, q: Any) -> tuple[Any, Any] | None:
    """The bases of two distributions with the same invertible transform; None if p or q is not transformed.

    KL is invariant under invertible maps, so KL(p || q) is the KL of the bases.

    Raises:
        NoClosedFormError: The maps differ, or they are not invertible, so that KL may be less than the KL of the bases.
    """
    if isinstance(p, Transformed) or isinstance(q, Transformed):
        p, q = _as_transformed(p), _as_transformed(q)
    if not (isinstance(p, Transformed) and isinstance(q, Transformed)):
        return None
    if not (p.transform is q.transform or bool(p.transform == q.transform)):
        raise NoClosedFormError(
            f"expected equal transforms, got {p.transform!r} and {q.transform!r}; call kullback.measure"
        )
    if not ((p.invertible and q.invertible) or getattr(p.transform, "bijective", False) is True):
        raise NoClosedFormError(
            f"expected an invertible transform, got {p.transform!r}: a non-injective map may reduce the KL; call "
            "kullback.measure"
        )
    return p.base, q.base


def _as_transformed(d: Any) -> Any:
    """A log-normal or tanh-normal distribution as a transformed normal; other distributions unchanged."""
    name = {LogNormal: "exp", TanhNormal: "tanh"}.get(type(d))
    if name is None:
        return d
    return Transformed(base=Normal(loc=d.loc, scale=d.scale), transform=(name,), invertible=True)


def _kl_if_supports_differ(xp: Any, p: Any, q: Any) -> Array:
    """`inf` if the support of q contains the support of p in no member of the batch; otherwise NoClosedFormError.

    While values are traced, the result is nan where the support of q contains the support of p.
    """
    contained = is_contained(xp, p, q)
    if contained is True or (contained is not False and holds(xp.any(contained))):
        raise _no_closed_form(p, q)
    values = [(d, value) for d in (p, q) for value in vars(d).values() if value is not None]
    # The last axis of a mixture indexes its components.
    shapes = [tuple(value.shape[:-1] if isinstance(d, NormalMixture) else value.shape) for d, value in values]
    result = xp.full(np.broadcast_shapes(*shapes), np.inf, device=array_api_compat.device(values[0][1]))
    result = result if contained is False else xp.where(contained, np.nan, result)
    return cast(xp, result, result.dtype)


def _no_closed_form(p: Any, q: Any) -> NoClosedFormError:
    names = f"{type(p).__name__} || {type(q).__name__}"
    return NoClosedFormError(f"KL({names}) has no closed form; kullback.measure(p, q) bounds or estimates it")
