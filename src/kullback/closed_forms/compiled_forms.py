"""KL of the commonest pairs by the compiled closed forms, for NumPy arrays, CPU tensors and JAX arrays on a CPU.

`kullback.compiled` evaluates a formula and its gradient in one pass. `compiled_kl` returns None wherever the general
implementation is required: other array types, other devices, traced values, and parameters outside the range of the
compiled forms. The choice depends on the arguments alone, so that equal arguments give equal bits.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from operator import attrgetter
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from kullback import families as f
from kullback.closed_forms.low_rank import low_rank_gradients, low_rank_kl
from kullback.closed_forms.registry import FORMS
from kullback.compiled import FORM_INDEX, kernels
from kullback.discrete.kl import kl_logits, kl_probs
from kullback.discrete.validation import mass_tolerance
from kullback.families.base import with_parameters
from kullback.numerics.arrays import Array, is_transformed

__all__ = ["DIRECT", "INDEPENDENT", "TRANSFORMED", "Parameters", "compiled_kl"]

# For each family: the compiled form of KL between two members, and the names of the parameters.
_FAMILIES: dict[type, tuple[str, tuple[str, ...]]] = {
    f.Beta: ("beta", ("concentration1", "concentration0")),
    f.Cauchy: ("cauchy", ("loc", "scale")),
    f.Dirichlet: ("dirichlet", ("concentration",)),
    f.Exponential: ("exponential", ("rate",)),
    f.Gamma: ("gamma", ("concentration", "rate")),
    f.Geometric: ("geometric", ("probs",)),
    f.Gumbel: ("gumbel", ("loc", "scale")),
    f.HalfNormal: ("half_normal", ("scale",)),
    f.InverseGamma: ("gamma", ("concentration", "rate")),
    f.Laplace: ("laplace", ("loc", "scale")),
    f.LogNormal: ("normal", ("loc", "scale")),
    f.LowRankMultivariateNormal: ("low_rank", ("loc", "cov_factor", "cov_diag")),
    f.Pareto: ("pareto", ("scale", "alpha")),
    f.Poisson: ("poisson", ("rate",)),
    f.TanhNormal: ("normal", ("loc", "scale")),
    f.Uniform: ("uniform", ("low", "high")),
}
# The families with alternative parameters, by the last name of the parameters.
_ALTERNATIVES: dict[type, dict[str, tuple[str, tuple[str, ...]]]] = {
    f.Bernoulli: {"probs": ("bernoulli", ("probs",)), "logits": ("bernoulli_logits", ("logits",))},
    f.Binomial: {
        "probs": ("binomial", ("total_count", "probs")),
        "logits": ("binomial_logits", ("total_count", "logits")),
    },
    f.Categorical: {"probs": ("probs", ("probs",)), "logits": ("logits", ("logits",))},
    f.MultivariateNormal: {
        "covariance_matrix": ("covariances", ("loc", "covariance_matrix")),
        "scale_tril": ("factors", ("loc", "scale_tril")),
    },
    f.Normal: {"log_scale": ("normal_log_scale", ("loc", "log_scale")), "scale": ("normal", ("loc", "scale"))},
    f.OneHotCategorical: {"probs": ("probs", ("probs",)), "logits": ("logits", ("logits",))},
}

# The compiled forms of pairs of different families.
_PAIRS: dict[tuple[type, type], str] = {
    (f.Exponential, f.Gamma): "exponential_gamma",
    (f.Exponential, f.Normal): "exponential_normal",
    (f.Gamma, f.Exponential): "gamma_exponential",
    (f.Gumbel, f.Normal): "gumbel_normal",
    (f.Laplace, f.Normal): "laplace_normal",
    (f.Uniform, f.Normal): "uniform_normal",
}

# The family of a distribution, the values of its parameters and their names.
Parameters = tuple[type, tuple[Any, ...], tuple[str, ...]]

# Classes of other libraries, and how their parameters are read without a conversion to a family; None where they cannot
# be read. An adapter adds its classes.
DIRECT: dict[type, Callable[[Any], Parameters | None]] = {f.ChiSquared: lambda member: _chi_squared(member)}

# Classes of independent components: the names of the attributes for the base and for the number of event axes.
INDEPENDENT: dict[type, Callable[[Any], tuple[Any, int]]] = {f.Independent: attrgetter("base", "event_dims")}

# Classes of transformed distributions: a function of two of them that returns their bases if the transforms are equal
# and invertible, and None otherwise.
TRANSFORMED: dict[type, Callable[[Any, Any], tuple[Any, Any] | None]] = {}

_NUMBERS = (float, int, np.float64)
_FLOATS = (np.dtype(np.float64), np.dtype(np.float32))
_MOST_COMPONENTS = 2048  # of multivariate normal distributions; blocked linear algebra is faster for more
_FEWEST_COMPONENTS = 64  # of a low-rank distribution whose covariance matrix is not formed
_MOST_ENTRIES = 2**20  # of categories; larger arrays are computed in threads


def compiled_kl(p: Any, q: Any) -> Array | None:
    """KL(p || q) of two distributions by the compiled form of the pair; None if there is none for these arguments."""
    if kernels is None:
        return None
    kind = type(p)
    if kind is type(q):
        if kind in INDEPENDENT:
            if getattr(p, "event_shape", None) != getattr(q, "event_shape", None):  # event axes do not broadcast
                return None
            return _of_independent(*INDEPENDENT[kind](p), *INDEPENDENT[kind](q))
        if kind in TRANSFORMED:
            bases = TRANSFORMED[kind](p, q)
            return None if bases is None else compiled_kl(*bases)
    of_p, of_q = DIRECT.get(kind, _parameters)(p), DIRECT.get(type(q), _parameters)(q)
    if of_p is None or of_q is None:
        return None
    family, values, names = of_p
    if family is not of_q[0]:
        form = None if of_q[2][-1] == "log_scale" else _PAIRS.get((family, of_q[0]))
    elif family is f.Normal and names != of_q[2]:
        form, values, of_q = "normal_log_scale", _by_log_scale(of_p), (family, _by_log_scale(of_q), names)
    elif names == of_q[2]:
        form = (_ALTERNATIVES[family][names[-1]] if family in _ALTERNATIVES else _FAMILIES[family])[0]
    else:
        form = None
    if form is None:
        return None
    values = (*values, *of_q[1])
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(values[0], torch.Tensor):
        value = _of_tensors(torch, form, (family, of_q[0]), (names, of_q[2]), values)
        return _ROW_FUNCTIONS[form](*values) if value is None and form in _ROW_FUNCTIONS else value
    if jax is not None and any(isinstance(value, jax.Array) for value in values):
        return _of_jax_arrays(jax, form, values)
    return _of_arrays(form, values)


def _parameters(distribution: Any) -> Parameters | None:
    """The family and the parameters of a distribution of `kullback.families`; None without a compiled form."""
    family = type(distribution)
    if family in _ALTERNATIVES:
        given = (names for names in _ALTERNATIVES[family] if getattr(distribution, names) is not None)
        found = _ALTERNATIVES[family].get(next(given, ""))
    else:
        found = _FAMILIES.get(family)
    return None if found is None else (family, tuple(getattr(distribution, name) for name in found[1]), found[1])


def _chi_squared(distribution: Any) -> Parameters | None:
    """A chi-squared distribution as a gamma distribution with the concentration df/2 and the rate 1/2."""
    df = np.asarray(distribution.df) if type(distribution.df) is list else distribution.df
    rate = df.new_full((), 0.5) if array_api_compat.is_torch_array(df) else 0.5
    shape = np.asarray(df / 2) if isinstance(df, np.ndarray) else df / 2
    return f.Gamma, (shape, rate), ("concentration", "rate")


def _by_log_scale(normal: Parameters) -> tuple[Any, Any]:
    """The mean and the logarithm of the scale of a normal distribution."""
    _, (loc, scale), names = normal
    if names[-1] == "log_scale":
        return loc, scale
    array = scale if array_api_compat.is_array_api_obj(scale) else np.asarray(scale, np.float64)
    return loc, array_api_compat.array_namespace(array).log(array)


def _of_independent(p: Any, p_dims: int, q: Any, q_dims: int) -> Array | None:
    """The sum over the event axes of the compiled KL of the components."""
    components = compiled_kl(p, q) if p_dims == q_dims else None
    if components is None or components.ndim < p_dims:
        return None
    total = components.sum(tuple(range(-p_dims, 0))) if p_dims else components
    return np.float64(total) if isinstance(total, np.generic) else total


# The kinds of forms.


class _Kind(NamedTuple):
    """A kind of forms.

    Args:
        event_axes: The number of event axes of each parameter of one distribution; None if all are elementwise. The
            first event axes have one size.
        value: Called as `value(form, arrays, batch)`, where the batch axes of each array are `batch`, or have one
            entry. Returns KL, or None where the general implementation is required.
        gradients: Called as `gradients(form, arrays, upstream, needed)`; returns the vector-Jacobian products of the
            inputs that need one, with the batch axes of `upstream`, or None.
        square: Whether all event axes have one size.
    """

    event_axes: tuple[int, ...] | None
    value: Callable[..., np.ndarray | None]
    gradients: Callable[..., list[np.ndarray | None] | None]
    square: bool = True


def _elementwise_value(form: str, arrays: list[np.ndarray], batch: tuple[int, ...]) -> np.ndarray | None:
    assert kernels is not None
    out = np.empty(batch, arrays[0].dtype)
    return out if kernels.form_value(FORM_INDEX[form], *arrays, out) else None


def _elementwise_gradients(
    form: str, arrays: list[np.ndarray], upstream: np.ndarray, needed: Sequence[bool]
) -> list[np.ndarray | None]:
    assert kernels is not None
    outs = [np.empty(upstream.shape, upstream.dtype) if need else None for need in needed]
    kernels.form_gradient(FORM_INDEX[form], *arrays, upstream, *outs)
    return outs


def _rows(array: np.ndarray) -> np.ndarray:
    """The rows of an array, whose last axis holds the entries of a row."""
    return array.reshape(-1, array.shape[-1])


def _row_value(form: str, arrays: list[np.ndarray], batch: tuple[int, ...]) -> np.ndarray | None:
    assert kernels is not None
    (p, q), dtype, out = map(_rows, arrays), arrays[0].dtype, np.empty(prod(batch))
    if form == "dirichlet":
        valid = kernels.dirichlet_rows(p, q, out)
    elif not 0 < p.shape[-1] * len(out) <= _MOST_ENTRIES:
        return None
    else:
        if form == "probs":
            kernels.kl_probs_rows(p, q, mass_tolerance(dtype, p.shape[-1]), out)
        else:
            kernels.kl_logits_rows(p, q, np.inf, out)
        valid = not np.isnan(out).any()
    return out.astype(dtype).reshape(batch) if valid else None


def _row_gradients(
    form: str, arrays: list[np.ndarray], upstream: np.ndarray, needed: Sequence[bool]
) -> list[np.ndarray | None] | None:
    assert kernels is not None
    (p, q), factors = map(_rows, arrays), upstream.astype(np.float64).reshape(-1)
    shape = (len(factors), p.shape[-1])
    outs = [np.empty(shape, p.dtype) if need else None for need in needed]
    if form == "dirichlet":
        kernels.dirichlet_gradient_rows(p, q, factors, *outs)
    elif form == "probs":
        if not kernels.kl_probs_gradient_rows(p, q, factors, *outs):
            return None
    else:
        p, q = (np.ascontiguousarray(np.broadcast_to(side, shape)) for side in (p, q))
        for out, kernel in zip(outs, (kernels.kl_logits_grad_p_rows, kernels.kl_logits_grad_q_rows), strict=True):
            if out is not None:
                kernel(p, q, factors, out)
                if np.isnan(out[:, 0]).any():
                    return None
    return [None if out is None else out.reshape(*upstream.shape, shape[1]) for out in outs]


def _multivariate_value(form: str, arrays: list[np.ndarray], batch: tuple[int, ...]) -> np.ndarray | None:
    assert kernels is not None
    out = np.empty(batch)
    if arrays[0].shape[-1] > _MOST_COMPONENTS or not kernels.multivariate_rows(form == "factors", *arrays, out):
        return None
    return out.astype(arrays[0].dtype)


def _multivariate_gradients(
    form: str, arrays: list[np.ndarray], upstream: np.ndarray, needed: Sequence[bool]
) -> list[np.ndarray | None] | None:
    assert kernels is not None
    n, dtype = arrays[0].shape[-1], arrays[0].dtype
    shapes = (upstream.shape + (n,) * (1 + k % 2) for k in range(4))
    outs = [np.empty(shape, dtype) if need else None for shape, need in zip(shapes, needed, strict=True)]
    valid = kernels.multivariate_gradient_rows(form == "factors", *arrays, upstream.astype(np.float64), *outs)
    return outs if valid else None


def _covariances(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The means and the covariance matrices, in float64, of two distributions with low-rank parts."""
    loc1, factor1, diagonal1, loc2, factor2, diagonal2 = (array.astype(np.float64, "C") for array in arrays)
    matrices = []
    for factor, diagonal in ((factor1, diagonal1), (factor2, diagonal2)):
        products = factor @ factor.swapaxes(-1, -2)
        shape = np.broadcast_shapes(products.shape, (*diagonal.shape, 1))
        matrix = products if products.shape == shape else np.array(np.broadcast_to(products, shape), order="C")
        np.einsum("...ii->...i", matrix)[...] += diagonal
        matrices.append(matrix)
    return [loc1, matrices[0], loc2, matrices[1]]


def _low_rank_value(form: str, arrays: list[np.ndarray], batch: tuple[int, ...]) -> np.ndarray | None:
    if not all((diagonal > 0).all() for diagonal in (arrays[2], arrays[5])):
        return None
    if (found := _low_rank_of_many(arrays)) is not None:
        value = np.broadcast_to(found, batch).astype(arrays[0].dtype)
        return value if np.isfinite(value).all() else None
    value = _multivariate_value(form, _covariances(arrays), batch)
    return None if value is None else value.astype(arrays[0].dtype)


def _low_rank_of_many(arrays: list[np.ndarray]) -> np.ndarray | None:
    """KL without the covariance matrices; None where forming them is faster or more accurate."""
    if (
        arrays[0].shape[-1] < _FEWEST_COMPONENTS
        or max(arrays[1].shape[-1], arrays[4].shape[-1]) > arrays[0].shape[-1] / 4
    ):
        return None
    tolerance = 1e-13 if arrays[0].dtype == np.float64 else 2e-8
    with np.errstate(all="ignore"):
        return low_rank_kl([array.astype(np.float64) for array in arrays], tolerance)


def _low_rank_gradients(
    form: str, arrays: list[np.ndarray], upstream: np.ndarray, needed: Sequence[bool]
) -> list[np.ndarray | None] | None:
    dtype = arrays[0].dtype
    if _low_rank_of_many(arrays) is not None:
        found = low_rank_gradients([array.astype(np.float64) for array in arrays], upstream.astype(np.float64))
        return [out.astype(dtype) if need else None for out, need in zip(found, needed, strict=True)]
    of_matrices = [needed[0], needed[1] or needed[2], needed[3], needed[4] or needed[5]]
    found = _multivariate_gradients(form, _covariances(arrays), upstream, of_matrices)
    if found is None:
        return None
    outs: list[np.ndarray | None] = []
    for side in (0, 1):
        by_loc, by_matrix = found[2 * side : 2 * side + 2]
        needs_factor, needs_diagonal = needed[3 * side + 1 : 3 * side + 3]
        outs += [by_loc, None, None]
        if by_matrix is not None and needs_factor:
            outs[-2] = 2 * (by_matrix @ arrays[3 * side + 1])
        if by_matrix is not None and needs_diagonal:
            outs[-1] = np.diagonal(by_matrix, axis1=-2, axis2=-1)
    return [None if out is None else np.array(out, dtype) for out in outs]


_ELEMENTWISE = _Kind(None, _elementwise_value, _elementwise_gradients)
_KINDS = {
    **dict.fromkeys(("dirichlet", "probs", "logits"), _Kind((1,), _row_value, _row_gradients)),
    **dict.fromkeys(("covariances", "factors"), _Kind((1, 2), _multivariate_value, _multivariate_gradients)),
    "low_rank": _Kind((1, 2, 1), _low_rank_value, _low_rank_gradients, square=False),
}
# The functions of arrays that replace a form of rows where the compiled form does not apply.
_ROW_FUNCTIONS = {"probs": kl_probs, "logits": kl_logits}


def _batch_of(kind: _Kind, shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The batch shape of the result; None where the shapes do not fit to each other."""
    if kind.event_axes is not None:
        axes = (*kind.event_axes, *kind.event_axes)
        events = [shape[len(shape) - count :] for shape, count in zip(shapes, axes, strict=True)]
        half = len(kind.event_axes)
        if any(len(e) < n for e, n in zip(events, axes, strict=True)):
            return None
        if kind.square and events[:half] != events[half:]:
            return None
        sizes = {size for event in events for size in (event if kind.square else event[:1])}
        if len(sizes) != 1 or 0 in sizes:
            return None
        shapes = [shape[: len(shape) - count] for shape, count in zip(shapes, axes, strict=True)]
    several = {shape for shape in shapes if shape}
    if len(several) < 2:
        return several.pop() if several else ()
    try:
        return np.broadcast_shapes(*several)
    except ValueError:
        return None


def _fitted(kind: _Kind, arrays: list[np.ndarray], batch: tuple[int, ...]) -> list[np.ndarray]:
    """The arrays with the batch axes `batch`, unless these have one entry."""
    axes = kind.event_axes and (*kind.event_axes, *kind.event_axes)
    size, largest, fitted = prod(batch), 0, []
    for k, array in enumerate(arrays):
        event = array.shape[array.ndim - axes[k] :] if axes else ()
        count = array.size // max(1, prod(event)) if axes else array.size
        if count not in (1, size):
            array = np.ascontiguousarray(np.broadcast_to(array, batch + event))
            count = size
        largest = max(largest, count)
        fitted.append(array)
    if largest < size:
        event = fitted[0].shape[fitted[0].ndim - axes[0] :] if axes else ()
        fitted[0] = np.ascontiguousarray(np.broadcast_to(fitted[0], batch + event))
    return fitted


# Arrays of each library.


def _of_arrays(form: str, values: tuple[Any, ...]) -> Array | None:
    """The value for NumPy arrays of one dtype and numbers."""
    dtype = None
    values = tuple(np.asarray(value) if type(value) is list else value for value in values)
    for value in values:
        if type(value) is np.ndarray:
            if dtype is not None and value.dtype != dtype:
                return None
            dtype = value.dtype
        elif type(value) not in _NUMBERS:
            return None
    dtype = _FLOATS[0] if dtype is None else dtype
    if dtype not in _FLOATS:
        return None
    out = _value(form, [np.require(value, dtype, ["C", "A"]) for value in values])
    return out if out is None or out.shape else np.float64(out)


def _of_jax_arrays(jax: Any, form: str, values: tuple[Any, ...]) -> Array | None:
    """The value for JAX arrays of one dtype on one CPU, and numbers; None where JAX traces a value."""
    dtype = None
    for value in values:
        if type(value) is float or type(value) is int:
            continue
        if isinstance(value, jax.core.Tracer) or not isinstance(value, jax.Array):
            return None
        if (dtype is not None and value.dtype != dtype) or len(value.devices()) != 1:
            return None
        dtype = value.dtype
    if dtype not in _FLOATS or jax.default_backend() != "cpu":
        return None
    out = _value(form, [np.require(value, dtype, ["C", "A"]) for value in values])
    return None if out is None else jax.numpy.asarray(out)


def _of_tensors(
    torch: Any, form: str, families: tuple[type, type], names: tuple[tuple[str, ...], ...], values: tuple[Any, ...]
) -> Array | None:
    """The value for CPU tensors of one dtype, differentiable."""
    dtype, tracked = values[0].dtype, False
    if dtype is not torch.float32 and dtype is not torch.float64:
        return None
    for value in values:
        kind = type(value)
        if (kind is not torch.Tensor and kind is not torch.nn.Parameter) or value.dtype is not dtype:
            return None
        if value.device.type != "cpu" or value.layout is not torch.strided:
            return None
        tracked = tracked or value.requires_grad
    if is_transformed(torch):
        return None
    out = _value(form, [_array(value) for value in values])
    if out is None:
        return None
    result = torch.from_numpy(out)
    if tracked and torch.is_grad_enabled():
        return _differentiable(form, families, names).apply(result, *values)
    return result


def _array(tensor: Any) -> np.ndarray:
    """The values of a CPU tensor as a contiguous, aligned array, without a copy if the tensor is both."""
    array = tensor.detach().contiguous().numpy()
    return array if array.flags.aligned else array.copy()


def _value(form: str, arrays: list[np.ndarray]) -> np.ndarray | None:
    """KL by a compiled form; None where the general implementation is required."""
    kind = _KINDS.get(form, _ELEMENTWISE)
    batch = _batch_of(kind, [array.shape for array in arrays])
    return None if batch is None else kind.value(form, _fitted(kind, arrays, batch), batch)


@cache
def _differentiable(form: str, families: tuple[type, type], names: tuple[tuple[str, ...], ...]) -> Any:
    """The form as an autograd function of its value and its inputs.

    The gradient is compiled. Where a graph of the gradient is requested, the general implementation is differentiated.
    """
    import torch

    kind = _KINDS.get(form, _ELEMENTWISE)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Any, *inputs: Any) -> Any:
            ctx.save_for_backward(*inputs)
            return value.view_as(value)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            inputs, needed, graph = ctx.saved_tensors, ctx.needs_input_grad[1:], torch.is_grad_enabled()
            if not graph:
                upstream = _array(gradients[0])
                arrays = _fitted(kind, [_array(value) for value in inputs], upstream.shape)
                outs = kind.gradients(form, arrays, upstream, needed)
                if outs is not None:
                    pairs = zip(outs, inputs, strict=True)
                    return None, *(
                        None if out is None else torch.from_numpy(out).sum_to_size(value.shape) for out, value in pairs
                    )
            first = len(names[0])
            with torch.enable_grad():
                # Views, because one input may be another, or may depend on another: the derivative is the partial one.
                views = [value.view_as(value) for value in inputs]
                sides = views[:first], views[first:]
                p, q = (_member(*side) for side in zip(families, names, sides, strict=True))
                wanted = [view for view, need in zip(views, needed, strict=True) if need]
                value = FORMS[families](p, q)
            found = iter(torch.autograd.grad(value, wanted, gradients[0], create_graph=graph))
            return None, *(next(found) if need else None for need in needed)

    return Function


def _member(family: type, names: tuple[str, ...], values: Any) -> Any:
    """A member of the family with parameters that were checked before."""
    given = dict(zip(names, values, strict=True))
    return family(**given) if "log_scale" in given else with_parameters(family, given)
