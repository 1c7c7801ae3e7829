"""Exact KL divergence between distributions: records of parameters, and other libraries' objects."""

from collections.abc import Callable
from importlib import import_module
from itertools import product
from typing import Any

import array_api_compat
import numpy as np

from kullback.closed_forms import FORMS, Form, is_contained, is_univariate
from kullback.closed_forms.registry import evaluate_form
from kullback.errors import NoClosedFormError, ShapeError
from kullback.families import (
    Distribution,
    Independent,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TanhNormal,
    Transformed,
)
from kullback.numerics.arrays import Array, as_floats

__all__ = ["as_record", "kl", "register_kl", "shared_bases"]

# Where an object of each library is turned into a record, by the root of its class's module.
_ADAPTERS = {
    "numpyro": "kullback.integrations.numpyro",
    "scipy": "kullback.integrations.scipy",
    "tensorflow_probability": "kullback.integrations.tensorflow_probability",
    "torch": "kullback.integrations.torch",
}

_OURS = frozenset(FORMS)


def kl(p: Any, q: Any) -> Array:
    """KL(p || q) of two distributions, exact, in nats.

    KL(p || q) = E_p[log p(x) - log q(x)], by the pair's closed form; each is written so that nearly equal and very
    large parameters keep their digits. One family seen as a case of another (an exponential as a gamma) is known.

    Args:
        p: A record of `kullback.families`, an object of `torch.distributions`, a frozen distribution of `scipy.stats`,
            an object of NumPyro or TensorFlow Probability, or of a class given to `register_kl`.
        q: Another, of parameters that broadcast against p's.

    Returns:
        The batch shape, nats, an array of the parameters' kind and dtype (float64 of NumPy for plain numbers),
        differentiable in PyTorch and JAX; `inf` where p has mass outside q's support, or tails too heavy for q.

    Raises:
        NoClosedFormError: No closed form is known; `kullback.measure` bounds or estimates it.
        ParameterError: A parameter lies outside its set.
        ShapeError: The parameters do not broadcast.

    Example:
        >>> from kullback.families import Gamma, Normal
        >>> float(kl(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=2.0)))
        0.4431471805599453
        >>> kl(Gamma(concentration=1e4, rate=[1.0, 1.000001]), Gamma(concentration=1e4, rate=1.0))
        array([0.00000000e+00, 4.99999333e-09])
    """
    form = _form(type(p), type(q))
    if form is None:
        _require_one_event_shape(p, q)
        p, q = as_record(p), as_record(q)
        form = _form(type(p), type(q))
    if form is not None:
        return form(p, q)
    if isinstance(p, Independent) or isinstance(q, Independent):
        return _independent(p, q)
    if bases := shared_bases(p, q):
        return kl(*bases)
    if is_univariate(p) and is_univariate(q):
        return evaluate_form(_outside, p, q)
    raise _no_closed_form(p, q)


def register_kl(p_class: type, q_class: type) -> Callable[[Form], Form]:
    """Register KL(p || q) for two classes of your own, or for one of them and a record of `kullback.families`.

    Args:
        p_class: The class of p; its subclasses count too, unless a nearer pair is registered.
        q_class: The class of q.

    Returns:
        A decorator for the function `f(p, q)`, which `kl` will call with the objects as they are given.

    Raises:
        TypeError: Something other than a class of distributions, such as a number or `int`.
        ValueError: Kullback has this pair already.

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
            raise TypeError(f"expected two classes of distributions, got {kind!r}, which is no class")
        if kind.__module__ == "builtins" or issubclass(kind, np.generic | np.ndarray):
            raise TypeError(f"expected two classes of distributions, got {kind.__name__}, whose objects are none")
    if (p_class, q_class) in _OURS:
        raise ValueError(
            f"expected a new pair, but KL({p_class.__name__} || {q_class.__name__}) has a closed form here already"
        )

    def register(function: Form) -> Form:
        FORMS[p_class, q_class] = function
        return function

    return register


def as_record(distribution: Any) -> Any:
    """The record of another library's distribution; a record as it is.

    Raises:
        TypeError: It is no distribution that is known here.
    """
    if isinstance(distribution, Distribution):
        return distribution
    # A user's class may inherit from a library's.
    roots = (kind.__module__.partition(".")[0] for kind in type(distribution).__mro__)
    root = next((root for root in roots if root in _ADAPTERS), None)
    if isinstance(distribution, list | tuple) or array_api_compat.is_array_api_obj(distribution):
        raise TypeError(
            f"expected a distribution, got {type(distribution).__name__}; for arrays see kl_probs, kl_log_probs and "
            "kl_logits, or make a kullback.families.Categorical of them"
        )
    if root is None:
        raise TypeError(
            f"expected a distribution, got {type(distribution).__name__}: pass a record of kullback.families or a "
            "distribution of PyTorch, SciPy, NumPyro or TensorFlow Probability, or give its class to register_kl"
        )
    return import_module(_ADAPTERS[root]).as_record(distribution)


def _require_one_event_shape(p: Any, q: Any) -> None:
    """Where other libraries say it: one value of 3 numbers does not broadcast against one of 1."""
    shapes = [tuple(d.event_shape) for d in (p, q) if hasattr(d, "event_shape")]
    if len(set(shapes)) > 1:
        raise ShapeError(f"expected events of one shape, got p's {shapes[0]} and q's {shapes[1]}")


def _form(p_class: type, q_class: type) -> Form | None:
    """The form of these classes, or of their nearest ancestors."""
    if found := FORMS.get((p_class, q_class)):
        return found
    ancestors = product(enumerate(p_class.__mro__), enumerate(q_class.__mro__))
    pairs = sorted(ancestors, key=lambda pair: pair[0][0] + pair[1][0])
    return next((FORMS[p, q] for (_, p), (_, q) in pairs if (p, q) in FORMS), None)


def _independent(p: Any, q: Any) -> Array:
    """The sum of the parts'."""
    if any(isinstance(d, MultivariateNormal | LowRankMultivariateNormal) for d in (p, q)):
        return _of_vectors(p, q)
    if not (isinstance(p, Independent) and isinstance(q, Independent) and p.event_dims == q.event_dims):
        raise _no_closed_form(p, q)
    parts = kl(p.base, q.base)
    if p.event_dims == 0:
        return parts
    if parts.ndim < p.event_dims:
        raise ShapeError(f"expected {p.event_dims} batch axes or more to make one event of, got shape {parts.shape}")
    xp = array_api_compat.array_namespace(parts)
    return xp.sum(parts, axis=tuple(range(-p.event_dims, 0)))


def _of_vectors(p: Any, q: Any) -> Array:
    """Independent normals are a normal vector."""
    vectors = [_as_vector(d) for d in (p, q)]
    form = _form(*map(type, vectors))
    if form is None:
        raise _no_closed_form(p, q)
    return form(*vectors)


def _as_vector(d: Any) -> Any:
    if not (isinstance(d, Independent) and isinstance(d.base, Normal) and d.event_dims == 1):
        return d
    xp, [loc, scale], _ = as_floats(d.base.loc, d.base.scale)
    loc, scale = xp.broadcast_arrays(loc, scale)
    if not scale.ndim:
        raise ShapeError("expected a batch axis or more to make one event of, got shape ()")
    eye = xp.eye(scale.shape[-1], dtype=scale.dtype, device=array_api_compat.device(scale))
    return MultivariateNormal(loc=loc, scale_tril=scale[..., None] * eye)


def shared_bases(p: Any, q: Any) -> tuple[Any, Any] | None:
    """What two images are images of, which is as far apart: an invertible map changes nothing. None of what are none.

    Raises:
        NoClosedFormError: The maps differ, or are not invertible: any other may lower KL.
    """
    if isinstance(p, Transformed) or isinstance(q, Transformed):
        p, q = _unfolded(p), _unfolded(q)
    if not (isinstance(p, Transformed) and isinstance(q, Transformed)):
        return None
    if not (p.transform is q.transform or bool(p.transform == q.transform)):
        raise NoClosedFormError(
            f"expected one transform, got {p.transform!r} and {q.transform!r}; call kullback.measure"
        )
    if not ((p.invertible and q.invertible) or getattr(p.transform, "bijective", False) is True):
        raise NoClosedFormError(
            f"expected an invertible transform, got {p.transform!r}: where several values become one, KL may be "
            "lower than that of the bases; call kullback.measure"
        )
    return p.base, q.base


def _unfolded(d: Any) -> Any:
    """A family that is the image of normal variables, as that image."""
    name = {LogNormal: "exp", TanhNormal: "tanh"}.get(type(d))
    if name is None:
        return d
    return Transformed(base=Normal(loc=d.loc, scale=d.scale), transform=(name,), invertible=True)


def _outside(xp: Any, p: Any, q: Any) -> Array:
    """Infinite, if q's support holds p's nowhere in the batch."""
    held = is_contained(xp, p, q)
    if held is True or (held is not False and xp.any(held)):
        raise _no_closed_form(p, q)
    shapes = [value.shape for d in (p, q) for value in vars(d).values() if value is not None]
    return xp.full(np.broadcast_shapes(*map(tuple, shapes)), np.inf)


def _no_closed_form(p: Any, q: Any) -> NoClosedFormError:
    names = f"{type(p).__name__} || {type(q).__name__}"
    return NoClosedFormError(f"KL({names}) has no closed form here; kullback.measure(p, q) bounds or estimates it")
