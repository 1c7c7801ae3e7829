"""KL of the commonest pairs by the compiled closed forms, for NumPy arrays and CPU tensors.

`kullback.compiled` evaluates a formula and its gradient in one pass. `compiled_kl` returns None wherever the general
implementation is required: other array types, other devices, traced values, and parameters outside the range of the
compiled forms. The choice depends on the arguments alone, so that equal arguments give equal bits.
"""

import sys
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.registry import FORMS
from kullback.compiled import kernels
from kullback.discrete.kl import kl_logits, kl_probs
from kullback.numerics.arrays import Array

__all__ = ["DIRECT", "INDEPENDENT", "compiled_kl"]

_INDEX = {name: index for index, name in enumerate(kernels.form_names())} if kernels else {}

# For each family: the compiled form of KL between two members, and the names of the parameters. "dirichlet" is a form
# of rows of concentrations; the other forms are elementwise.
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
    f.Normal: ("normal", ("loc", "scale")),
    f.Pareto: ("pareto", ("scale", "alpha")),
    f.Poisson: ("poisson", ("rate",)),
    f.TanhNormal: ("normal", ("loc", "scale")),
    f.Uniform: ("uniform", ("low", "high")),
}
# The families with probs or logits as parameters, by the names of the parameters.
_TRIALS: dict[type, dict[str, tuple[str, tuple[str, ...]]]] = {
    f.Bernoulli: {"probs": ("bernoulli", ("probs",)), "logits": ("bernoulli_logits", ("logits",))},
    f.Binomial: {
        "probs": ("binomial", ("total_count", "probs")),
        "logits": ("binomial_logits", ("total_count", "logits")),
    },
}

# Classes of other libraries, and how their parameters are read without a conversion to a family: a function that
# returns the family, the values of the parameters and their names, or None. An adapter adds its classes.
DIRECT: dict[type, Callable[[Any], tuple[type, tuple[Any, ...], tuple[str, ...]] | None]] = {}

# Classes of independent components: the names of the attributes for the base and for the number of event axes.
INDEPENDENT: dict[type, Callable[[Any], tuple[Any, int]]] = {f.Independent: attrgetter("base", "event_dims")}

_NUMBERS = (float, int, np.float64)


def compiled_kl(p: Any, q: Any) -> Array | None:
    """KL(p || q) of two distributions of one class by its compiled form; None if there is none for these arguments."""
    kind = type(p)
    if type(q) is not kind or kernels is None:
        return None
    if kind in INDEPENDENT:
        return _of_independent(*INDEPENDENT[kind](p), *INDEPENDENT[kind](q))
    read = DIRECT.get(kind, _parameters)
    of_p, of_q = read(p), read(q)
    if of_p is None or of_q is None or of_p[2] != of_q[2]:
        return None
    family, values, names = of_p
    if family is f.Categorical:
        return (kl_probs if names[0] == "probs" else kl_logits)(values[0], of_q[1][0])
    form = (_TRIALS[family][names[-1]] if family in _TRIALS else _FAMILIES[family])[0]
    values = (*values, *of_q[1])
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values[0], torch.Tensor):
        return _of_tensors(torch, family, form, names, values)
    return _of_arrays(form, values)


def _parameters(distribution: Any) -> tuple[type, tuple[Any, ...], tuple[str, ...]] | None:
    """The family and the parameters of a distribution of `kullback.families`; None without a compiled form."""
    family = type(distribution)
    if family in _TRIALS:
        found = _TRIALS[family]["logits" if distribution.probs is None else "probs"]
    else:
        found = _FAMILIES.get(family)
    return None if found is None else (family, tuple(getattr(distribution, name) for name in found[1]), found[1])


def _of_independent(p: Any, p_dims: int, q: Any, q_dims: int) -> Array | None:
    """The sum over the event axes of the compiled KL of the components."""
    components = compiled_kl(p, q) if p_dims == q_dims else None
    if components is None or components.ndim < p_dims:
        return None
    total = components.sum(tuple(range(-p_dims, 0))) if p_dims else components
    return np.float64(total) if isinstance(total, np.generic) else total


def _result_shape(form: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of the result where every input has it or has one entry; None where the inputs must be broadcast."""
    if form == "dirichlet":
        a, b = shapes
        if not a or a[-1:] != b[-1:] or not a[-1] or (a[:-1] != b[:-1] and len(a) > 1 and len(b) > 1):
            return None
        return a[:-1] if len(a) >= len(b) else b[:-1]
    several = {shape for shape in shapes if shape}
    if not several:
        return ()
    if len(several) == 1:
        return several.pop()
    return None


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
    dtype = np.dtype(float) if dtype is None else dtype
    if dtype != np.float64 and dtype != np.float32:
        return None
    shape = _result_shape(form, [np.shape(value) for value in values])
    if shape is None:
        return None
    out = _value(form, [np.require(value, dtype, ["C", "A"]) for value in values], shape)
    return out if out is None or shape else np.float64(out)


def _of_tensors(torch: Any, family: type, form: str, names: tuple[str, ...], values: tuple[Any, ...]) -> Array | None:
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
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    shape = _result_shape(form, [tuple(value.shape) for value in values])
    if shape is None:
        return None
    out = _value(form, [_array(value) for value in values], shape)
    if out is None:
        return None
    result = torch.from_numpy(out)
    return (
        _differentiable(family, form, names).apply(result, *values) if tracked and torch.is_grad_enabled() else result
    )


def _array(tensor: Any) -> np.ndarray:
    """The values of a CPU tensor as a contiguous, aligned array, without a copy if the tensor is both."""
    array = tensor.detach().contiguous().numpy()
    return array if array.flags.aligned else array.copy()


def _value(form: str, arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """KL by a compiled form; None where the general implementation is required."""
    assert kernels is not None
    if form != "dirichlet":
        out = np.empty(shape, arrays[0].dtype)
        return out if kernels.form_value(_INDEX[form], *arrays, out) else None
    out = np.empty(int(np.prod(shape)))
    if not kernels.dirichlet_rows(_rows(arrays[0]), _rows(arrays[1]), out):
        return None
    return out.reshape(shape).astype(arrays[0].dtype)


def _gradients(
    form: str, arrays: list[np.ndarray], upstream: np.ndarray, needed: tuple[bool, ...]
) -> list[np.ndarray | None]:
    """The vector-Jacobian products of the inputs that need one."""
    assert kernels is not None
    dtype = arrays[0].dtype
    if form != "dirichlet":
        outs = [np.empty(upstream.shape, dtype) if need else None for need in needed]
        kernels.form_gradient(_INDEX[form], *arrays, upstream, *outs)
        return outs
    shape = (upstream.size, arrays[0].shape[-1])
    outs = [np.empty(shape, dtype) if need else None for need in needed]
    factors = upstream.astype(np.float64).reshape(-1)
    kernels.dirichlet_gradient_rows(_rows(arrays[0]), _rows(arrays[1]), factors, outs[0], outs[1])
    return [None if out is None else out.reshape(*upstream.shape, shape[1]) for out in outs]


def _rows(array: np.ndarray) -> np.ndarray:
    """The rows of an array, whose last axis holds the entries of a row."""
    return array.reshape(-1, array.shape[-1])


@cache
def _differentiable(family: type, form: str, names: tuple[str, ...]) -> Any:
    """The form as an autograd function of its value and its inputs.

    The gradient is compiled. Where a graph of the gradient is requested, the general implementation is differentiated.
    """
    import torch

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Any, *inputs: Any) -> Any:
            ctx.save_for_backward(*inputs)
            return value.view_as(value)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
            if not torch.is_grad_enabled():
                outs = _gradients(form, [_array(value) for value in inputs], _array(gradients[0]), needed)
                pairs = zip(outs, inputs, strict=True)
                return None, *(
                    None if out is None else torch.from_numpy(out).sum_to_size(value.shape) for out, value in pairs
                )
            half = len(names)
            # Views, because one input may be another, or may depend on another: the derivative is the partial one.
            views = [value.view_as(value) for value in inputs]
            p, q = (_unchecked(family, names, side) for side in (views[:half], views[half:]))
            wanted = [view for view, need in zip(views, needed, strict=True) if need]
            found = iter(torch.autograd.grad(FORMS[family, family](p, q), wanted, gradients[0], create_graph=True))
            return None, *(next(found) if need else None for need in needed)

    return Function


def _unchecked(family: type, names: tuple[str, ...], values: Any) -> Any:
    """A member of the family with parameters that were checked before."""
    member = object.__new__(family)
    for name in family.__dataclass_fields__:
        object.__setattr__(member, name, None)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(member, name, value)
    return member
