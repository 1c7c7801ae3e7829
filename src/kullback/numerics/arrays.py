"""The array namespace (NumPy, PyTorch, JAX, ...), and the little that the array API lacks."""

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

__all__ = [
    "Array",
    "ArrayLike",
    "as_floats",
    "by_pieces",
    "by_rows",
    "cast",
    "holds",
    "is_positive",
    "log",
    "untracked",
    "with_gradient",
]

Array: TypeAlias = Any
ArrayLike: TypeAlias = Any


def as_floats(*values: ArrayLike) -> tuple[Any, list[Array], Any]:
    """The namespace, the values as floating arrays of one dtype fit for computing, and the dtype to return.

    Numbers and lists join the arrays beside them, and are NumPy arrays where there are none. Integers become the
    default floating dtype. float16 and bfloat16 are computed in float32.
    """
    arrays: list[Array] = [value for value in values if array_api_compat.is_array_api_obj(value)]
    try:
        xp = array_api_compat.array_namespace(*arrays) if arrays else array_api_compat.array_namespace(np.empty(0))
    except TypeError as error:
        libraries = {type(array).__module__.partition(".")[0].removesuffix("lib") for array in arrays}
        if len(libraries) < 2:
            raise
        given = " and ".join(sorted(libraries))
        raise TypeError(f"expected arrays of one library, got arrays of {given}; convert one of them") from error
    device = array_api_compat.device(arrays[0]) if arrays else None
    dtypes = [array.dtype for array in arrays if xp.isdtype(array.dtype, "real floating") or _is_half(array.dtype)]
    default = dtypes[0] if dtypes else xp.__array_namespace_info__().default_dtypes()["real floating"]
    floats = []
    for value in values:
        array: Array = value if array_api_compat.is_array_api_obj(value) else xp.asarray(value, device=device)
        if xp.isdtype(array.dtype, "complex floating"):
            raise TypeError(f"expected real numbers, got dtype {array.dtype}")
        if array is not value:
            # Read again: PyTorch reads 0.1 in float32, whatever stands beside it.
            array = xp.asarray(value, dtype=default, device=device)
        floats.append(xp.astype(array, default) if xp.isdtype(array.dtype, ("bool", "integral")) else array)
    dtype = xp.result_type(*floats)
    computing = xp.float32 if _is_half(dtype) else dtype
    return xp, [xp.astype(array, computing, copy=False) for array in floats], dtype


def by_rows(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function `function(xp, *arrays)` of rows, called for a few rows at a time.

    What it makes on its way then stays in a processor's cache, and is small beside the arrays. All but the last axis
    count rows; an array of fewer axes than the last has one entry a row.
    """

    def call(xp: Any, *arrays: Array) -> Array:
        if array_api_compat.is_jax_namespace(xp):  # XLA makes its own blocks, and would unroll ours
            return function(xp, *arrays)
        *lead, width = arrays[-1].shape
        count = math.prod(lead)
        # An accelerator has no such cache, and wants fewer and larger calls.
        entries = 2**20 if str(array_api_compat.device(arrays[-1])).startswith("cpu") else 2**25
        step = max(1, entries // width)
        if count <= step:
            return function(xp, *arrays)
        rows = [xp.reshape(array, (count, *array.shape[len(lead) :])) for array in arrays]
        pieces = [function(xp, *(array[k : k + step, ...] for array in rows)) for k in range(0, count, step)]
        whole = xp.concat(pieces, axis=0)
        return xp.reshape(whole, (*lead, *whole.shape[1:]))

    return call


def by_pieces(function: Callable[..., Array], size: int = 4096) -> Callable[..., Array]:
    """The function `function(xp, *arrays)` of entries of one shape, called for a few at a time, as `by_rows` is."""

    def call(xp: Any, *arrays: Array) -> Array:
        shape = arrays[0].shape
        count = math.prod(shape)
        on_cpu = str(array_api_compat.device(arrays[0])).startswith("cpu")
        if count <= size or not on_cpu or array_api_compat.is_jax_namespace(xp):
            return function(xp, *arrays)
        flat = [xp.reshape(array, (count,)) for array in arrays]
        pieces = [function(xp, *(array[k : k + size] for array in flat)) for k in range(0, count, size)]
        return xp.reshape(xp.concat(pieces), shape)

    return call


def cast(xp: Any, array: Array, dtype: Any) -> Array:
    """The array in `dtype`, where too large a number for float16 becomes inf without a warning."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        return xp.astype(array, dtype)


def untracked(array: Array) -> Array:
    """The same numbers, for looking at: no gradient is recorded."""
    if array_api_compat.is_torch_array(array):
        return array.detach()
    if array_api_compat.is_jax_array(array):
        import jax

        return jax.lax.stop_gradient(array)
    return array


def holds(flag: Array) -> bool:
    """Whether a flag is true, for a check that raises: False where tracing (jit, vmap, compile) hides its value."""
    if array_api_compat.is_torch_array(flag):
        import torch

        if torch.compiler.is_compiling():
            return False
    try:
        return bool(flag)
    except (TypeError, RuntimeError) as error:
        if type(error).__name__ == "TracerBoolConversionError" or "vmap" in str(error):
            return False
        raise


def is_positive(xp: Any, x: Array) -> Array:
    """x > 0 of what is not negative; in JAX too, whose comparisons take subnormal numbers for 0."""
    return _bits(xp, x) > 0 if array_api_compat.is_jax_namespace(xp) else x > 0


def log(xp: Any, x: Array) -> Array:
    """log(x) of what is positive; in JAX too, whose logarithm takes subnormal numbers for 0."""
    if not array_api_compat.is_jax_namespace(xp):
        return xp.log(x)
    bits, limits = _bits(xp, x), xp.finfo(x.dtype)
    least = xp.asarray(limits.smallest_normal, dtype=x.dtype)
    subnormal = bits < _bits(xp, least)
    # A subnormal number is as many times the least one as its bits count.
    small = xp.log(xp.astype(bits, x.dtype)) + math.log(limits.smallest_subnormal)
    return xp.where(subnormal, small, xp.log(xp.where(subnormal, least, x)))


def _bits(xp: Any, x: Array) -> Array:
    return x.view(xp.int32 if x.dtype == xp.float32 else xp.int64)


def _is_half(dtype: Any) -> bool:
    # By name: bfloat16 is outside the array API, and each library has its own.
    return "float16" in str(dtype)


def _is_differentiated(tensors: tuple[Array, ...]) -> bool:
    """Whether PyTorch may ask for a derivative: recording one that nobody asks for takes longer than most formulas."""
    torch = sys.modules["torch"]
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return True
    if any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors):
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def with_gradient(value: Callable[..., Array], *pullbacks: Callable[..., Array]) -> Callable[..., Array]:
    """The function `value(xp, *arrays)` with gradients that are written out rather than traced.

    A traced gradient keeps every intermediate array, and meets 0 * inf on the branch not taken.

    Args:
        value: Called as `value(xp, *arrays)`; returns one array.
        pullbacks: One for each array, called as `pullback(xp, gradient, output, *arrays)`; returns that array's
            gradient, linear in `gradient`. Made of differentiable operations, so that gradients of gradients follow;
            in JAX forward mode too.
    """

    @cache
    def torch_function() -> Any:
        import torch

        class Function(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(*arrays: Any) -> Any:
                return value(array_api_compat.array_namespace(arrays[0]), *arrays)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
                ctx.save_for_backward(output, *inputs)

            @staticmethod
            def backward(ctx: Any, *gradients: Any) -> Any:
                output, *arrays = ctx.saved_tensors
                xp = array_api_compat.array_namespace(output)
                return tuple(
                    pullback(xp, gradients[0], output, *arrays) if needed else None
                    for pullback, needed in zip(pullbacks, ctx.needs_input_grad, strict=True)
                )

        return Function

    @cache
    def jax_function() -> Any:
        import jax
        from jax.custom_derivatives import SymbolicZero

        @jax.custom_jvp
        def function(*arrays: Any) -> Any:
            return value(jax.numpy, *arrays)

        def forward(arrays: Any, tangents: Any) -> Any:
            output = function(*arrays)
            change = jax.numpy.zeros_like(output)
            for pullback, tangent in zip(pullbacks, tangents, strict=True):
                if type(tangent) is SymbolicZero:
                    continue

                def back(gradient: Any, pullback: Any = pullback) -> Any:
                    return pullback(jax.numpy, gradient, output, *arrays)

                # What the pullback does to gradients, transposed, is what the derivative does to changes.
                change += jax.linear_transpose(back, output)(tangent)[0]
            return output, change

        function.defjvp(forward, symbolic_zeros=True)
        return function

    def call(xp: Any, *arrays: Array) -> Array:
        if array_api_compat.is_torch_namespace(xp):
            return torch_function().apply(*arrays) if _is_differentiated(arrays) else value(xp, *arrays)
        if array_api_compat.is_jax_namespace(xp):
            return jax_function()(*arrays)
        # Both sides of a `where` are computed, so infinities and nans on the side not taken are expected.
        with np.errstate(all="ignore"):
            return value(xp, *arrays)

    return call
