"""Array namespaces of NumPy, PyTorch, JAX and other libraries, and operations that the array API does not define."""

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache, reduce
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from kullback.errors import ArrayTypeError
from kullback.numerics.labels import plain_arrays

__all__ = [
    "Array",
    "ArrayLike",
    "as_floats",
    "as_numpy",
    "broadcast_arrays",
    "cast",
    "elementwise_with_gradient",
    "from_numpy",
    "has_values",
    "holds",
    "is_compiling",
    "is_jax_tracer",
    "is_positive",
    "is_traced",
    "is_transformed",
    "log",
    "map_blocks",
    "map_row_blocks",
    "numpy_views",
    "require_concrete",
    "require_untransformed",
    "sign",
    "untracked",
    "with_gradient",
]

Array: TypeAlias = Any
ArrayLike: TypeAlias = Any

_NUMPY = array_api_compat.array_namespace(np.empty(0))
_FLOATS = (np.dtype(np.float64), np.dtype(np.float32))


def as_floats(*values: ArrayLike) -> tuple[Any, list[Array], Any]:
    """Convert values to floating-point arrays of one library and one dtype.

    Numbers, lists, tables and labelled arrays become arrays of the library of the other values, or NumPy arrays if no
    value is an array. The entries of tables and labelled arrays are matched by label, as `plain_arrays` describes.
    Integers and booleans become the default floating dtype. float16 and bfloat16 are converted to float32.

    Args:
        values: Arrays of one library, numbers, lists of numbers, tables or labelled arrays.

    Returns:
        The array namespace, the arrays in the dtype to compute in, and the dtype in which to return the result.

    Raises:
        ArrayTypeError: The arrays belong to different libraries, or a value is not an array of real numbers.
        LabelError: Two values have different sets of labels.
        ShapeError: The rows of a list have different lengths.
    """
    dtype = next((value.dtype for value in values if type(value) is np.ndarray), _FLOATS[0])
    if dtype in _FLOATS and all(
        value.dtype == dtype if type(value) is np.ndarray else type(value) is float for value in values
    ):
        return _NUMPY, [np.asarray(value, dtype) for value in values], dtype
    given = plain_arrays(*values)
    is_array = [array_api_compat.is_array_api_obj(value) for value in values]
    arrays: list[Array] = [value for value, array in zip(given, is_array, strict=True) if array]
    try:
        xp = array_api_compat.array_namespace(*arrays) if arrays else array_api_compat.array_namespace(np.empty(0))
    except TypeError as error:
        libraries = {type(array).__module__.partition(".")[0].removesuffix("lib") for array in arrays}
        if len(libraries) < 2:
            raise
        found = " and ".join(sorted(libraries))
        raise ArrayTypeError(f"expected arrays of one library, got arrays of {found}; convert one of them") from error
    device = array_api_compat.device(arrays[0]) if arrays else None
    dtypes = [array.dtype for array in arrays if xp.isdtype(array.dtype, "real floating") or _is_half(array.dtype)]
    default = dtypes[0] if dtypes else xp.__array_namespace_info__().default_dtypes()["real floating"]
    floats = []
    for value, array in zip(given, is_array, strict=True):
        if not array:
            floats.append(_in_dtype(xp, value, default, device))
        elif xp.isdtype(value.dtype, "complex floating"):
            raise ArrayTypeError(f"expected real numbers, got dtype {value.dtype}")
        else:
            floats.append(xp.astype(value, default) if xp.isdtype(value.dtype, ("bool", "integral")) else value)
    if array_api_compat.is_torch_namespace(xp):
        # Of tensors without axes, `result_type` would return the first dtype. Every dtype counts, as in NumPy.
        dtype = reduce(sys.modules["torch"].promote_types, [array.dtype for array in floats])
    else:
        dtype = xp.result_type(*floats)
    computing = xp.float32 if _is_half(dtype) else dtype
    return xp, [xp.astype(array, computing, copy=False) for array in floats], dtype


def _in_dtype(xp: Any, value: Any, dtype: Any, device: Any) -> Array:
    """A number, a NumPy array, or a list of arrays of `xp`, as a floating-point array of `xp`."""
    if getattr(value, "dtype", np.dtype(float)).kind == "c" or isinstance(value, complex):
        raise ArrayTypeError(f"expected real numbers, got {getattr(value, 'dtype', value)}")
    if isinstance(value, np.ndarray) and not value.flags.writeable and not array_api_compat.is_numpy_namespace(xp):
        value = value.copy()  # PyTorch warns of memory that cannot be written
    try:
        return xp.asarray(value, dtype=dtype, device=device)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ArrayTypeError("expected an array of numbers, got a list of tensors; pass torch.stack(list)") from error


def broadcast_arrays(xp: Any, *arrays: Array) -> Sequence[Array]:
    """`xp.broadcast_arrays(*arrays)`, without the time that it takes for arrays of one shape."""
    shape = arrays[0].shape
    return arrays if all(array.shape == shape for array in arrays) else xp.broadcast_arrays(*arrays)


def map_row_blocks(function: Callable[..., Array]) -> Callable[..., Array]:
    """Wrap a function of rows, `function(xp, *arrays)`, so that it processes blocks of rows.

    The intermediate arrays then fit into the processor's cache and use little memory. The last axis of the last array
    holds the entries of a row; its other axes index the rows. An array with fewer axes has one entry per row.
    """

    def call(xp: Any, *arrays: Array) -> Array:
        if array_api_compat.is_jax_namespace(xp):  # XLA blocks loops itself, and would unroll this one
            return function(xp, *arrays)
        *lead, width = arrays[-1].shape
        count = math.prod(lead)
        # Accelerators are faster with fewer and larger calls.
        entries = 2**20 if str(array_api_compat.device(arrays[-1])).startswith("cpu") else 2**25
        step = max(1, entries // width)
        if count <= step:
            return function(xp, *arrays)
        rows = [xp.reshape(array, (count, *array.shape[len(lead) :])) for array in arrays]
        blocks = [function(xp, *(array[k : k + step, ...] for array in rows)) for k in range(0, count, step)]
        whole = xp.concat(blocks, axis=0)
        return xp.reshape(whole, (*lead, *whole.shape[1:]))

    return call


def map_blocks(function: Callable[..., Array], size: int = 4096) -> Callable[..., Array]:
    """Wrap an elementwise function, `function(xp, *arrays)` of arrays of one shape, so that it processes blocks.

    On a CPU the intermediate arrays then fit into the processor's cache.
    """

    def call(xp: Any, *arrays: Array) -> Array:
        shape = arrays[0].shape
        count = math.prod(shape)
        if count <= size:
            return function(xp, *arrays)
        on_cpu = str(array_api_compat.device(arrays[0])).startswith("cpu")
        if not on_cpu or array_api_compat.is_jax_namespace(xp):
            return function(xp, *arrays)
        flat = [xp.reshape(array, (count,)) for array in arrays]
        blocks = [function(xp, *(array[k : k + size] for array in flat)) for k in range(0, count, size)]
        return xp.reshape(xp.concat(blocks), shape)

    return call


def cast(xp: Any, array: Array, dtype: Any) -> Array:
    """Convert a result to `dtype`; a value beyond the range of `dtype` becomes inf without a warning.

    A NumPy result without axes becomes `numpy.float64`, a subclass of Python's `float`, for every `dtype`.
    """
    if array.dtype != dtype:
        with np.errstate(over="ignore"):
            array = xp.astype(array, dtype)
    return np.float64(array) if array.ndim == 0 and isinstance(array, np.ndarray | np.generic) else array


def is_compiling() -> bool:
    """Whether torch.compile is tracing the call, so that tensors have no values."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def has_values(tensor: Array) -> bool:
    """Whether a tensor has concrete values: True under torch.func.grad, False under vmap and inside torch.compile."""
    torch = sys.modules["torch"]
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return False
        tensor = functorch.get_unwrapped(tensor)
    return not torch.compiler.is_compiling() and type(tensor).__name__ not in ("FakeTensor", "FunctionalTensor")


def is_traced(array: Array) -> bool:
    """Whether JAX or torch.func is tracing the array, so that its values are not available."""
    if array_api_compat.is_torch_array(array):
        return not has_values(array)
    return is_jax_tracer(array)


def is_transformed(torch: Any) -> bool:
    """Whether PyTorch compiles, differentiates in forward mode, maps or traces the operations of the call."""
    return (
        torch.compiler.is_compiling()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def require_untransformed(function: str, *arrays: Array) -> None:
    """Raise ArrayTypeError if a tensor is inside a transformation of torch.func, for a function without a rule for it.

    Args:
        function: The name of the function, for the message.
        *arrays: Its arrays, of any library.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    if any(is_wrapped(array) for array in arrays if isinstance(array, torch.Tensor)):
        raise ArrayTypeError(
            f"expected tensors outside of torch.func.vmap, grad and similar, got a tensor inside of one: {function} "
            "takes a whole batch, and torch.autograd differentiates it; kl_logits and kl_probs can be transformed"
        )


def numpy_views(values: Sequence[ArrayLike], *, differentiable: bool = False) -> list[ArrayLike] | None:
    """The values with their tensors, or their JAX arrays, as NumPy arrays of the same memory.

    NumPy takes less time than PyTorch and JAX for an operation on a small array, and works in blocks on a large one.

    Args:
        values: Tensors or JAX arrays of one dtype, and numbers.
        differentiable: Whether the operations must be recorded for tensors that require a gradient.

    Returns:
        The values, or None where the operations of the library are required: arrays of other libraries or on other
        devices, several dtypes, values that are traced, and tensors that require a gradient if `differentiable`.
    """
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    dtype, views = None, []
    for value in values:
        kind = type(value)
        if kind is float or kind is int:
            views.append(value)
            continue
        if torch is not None and (kind is torch.Tensor or kind is torch.nn.Parameter):
            if not value.is_cpu or value.layout is not torch.strided:
                return None
            if differentiable and value.requires_grad and torch.is_grad_enabled():
                return None
            if dtype is None and is_transformed(torch):
                return None
            view = value.detach().numpy() if value.is_floating_point() and value.element_size() >= 4 else None
        elif jax is None or not _is_on_cpu(jax, value):
            return None
        else:
            view = np.asarray(value)
        if view is None or view.dtype not in _FLOATS or (dtype is not None and view.dtype != dtype):
            return None
        dtype = view.dtype
        views.append(view)
    return None if dtype is None else views


def _is_on_cpu(jax: Any, value: Any) -> bool:
    """Whether the value is a JAX array on one CPU, which is not traced."""
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
        return False
    return [device.platform for device in value.devices()] == ["cpu"]


def from_numpy(array: np.ndarray, like: Sequence[ArrayLike]) -> Array:
    """A NumPy array as an array of the library of the first tensor or JAX array of `like`."""
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(value, torch.Tensor) for value in like):
        return torch.from_numpy(np.require(array, requirements=["A", "W", "O"]))
    return sys.modules["jax"].numpy.asarray(array)


def untracked(array: Array) -> Array:
    """The array detached from automatic differentiation (detach in PyTorch, stop_gradient in JAX)."""
    if array_api_compat.is_torch_array(array):
        return array.detach()
    if array_api_compat.is_jax_array(array):
        import jax

        return jax.lax.stop_gradient(array)
    return array


def holds(flag: Array) -> bool:
    """Whether a boolean scalar array is True; False where tracing (jit, vmap, compile) makes its value unavailable.

    Use it in checks that raise an error, which tracing must skip.
    """
    if array_api_compat.is_torch_array(flag) and not has_values(flag):
        return False
    try:
        return bool(flag)
    except (TypeError, RuntimeError) as error:
        if type(error).__name__ == "TracerBoolConversionError" or "vmap" in str(error):
            return False
        raise


def is_jax_tracer(array: Array) -> bool:
    """Whether JAX is tracing the array, so that its values are not available."""
    return "jax" in sys.modules and isinstance(array, sys.modules["jax"].core.Tracer)


def require_concrete(array: Array) -> None:
    """Raise ArrayTypeError if an array is traced by JAX or transformed by torch.func, so that it has no values."""
    if array_api_compat.is_torch_array(array):
        inside = "torch.func.grad, vmap and similar"
        is_transformed = sys.modules["torch"]._C._functorch.is_functorch_wrapped_tensor(array)
    else:
        inside = "jax.jit, grad and vmap"
        is_transformed = is_jax_tracer(array)
    if is_transformed:
        raise ArrayTypeError(
            f"expected an array outside of {inside}, got an array inside of one, whose values are not known; estimates "
            "and fits need values; kullback.kl and functions of arrays such as kl_probs can be transformed"
        )


def as_numpy(array: Array, dtype: Any = None) -> np.ndarray:
    """The values of an array as a NumPy array, without automatic differentiation; bfloat16 becomes float32.

    Raises:
        ArrayTypeError: The array is inside a transformation such as jax.jit or torch.func.vmap.
    """
    require_concrete(array)
    if array_api_compat.is_torch_array(array):
        array = array.detach().cpu()
        array = array.float() if "bfloat16" in str(array.dtype) else array
    values = np.asarray(array)
    return values.astype(dtype or np.float32, copy=False) if dtype or values.dtype.name == "bfloat16" else values


def is_positive(xp: Any, x: Array) -> Array:
    """x > 0 for x >= 0, including subnormal numbers, which comparisons in JAX treat as 0."""
    return _bits(xp, x) > 0 if array_api_compat.is_jax_namespace(xp) else x > 0


def sign(xp: Any, x: Array) -> Array:
    """-1, 0 or 1, or nan for nan; array_api_compat's function for PyTorch cannot be mapped by torch.func.vmap."""
    return xp.where(x > 0, 1.0, xp.where(x < 0, -1.0, x))


def log(xp: Any, x: Array) -> Array:
    """log(x) for x > 0, including subnormal numbers, which the logarithm of JAX treats as 0."""
    if not array_api_compat.is_jax_namespace(xp):
        return xp.log(x)
    bits, limits = _bits(xp, x), xp.finfo(x.dtype)
    smallest_normal = xp.asarray(limits.smallest_normal, dtype=x.dtype)
    subnormal = bits < _bits(xp, smallest_normal)
    # A subnormal number is its bit pattern, read as an integer, times the smallest subnormal number.
    small = xp.log(xp.astype(bits, x.dtype)) + math.log(limits.smallest_subnormal)
    return xp.where(subnormal, small, xp.log(xp.where(subnormal, smallest_normal, x)))


def _bits(xp: Any, x: Array) -> Array:
    """The bit pattern of each entry, as an integer of the same width."""
    return x.view(xp.int32 if x.dtype == xp.float32 else xp.int64)


def _is_half(dtype: Any) -> bool:
    # Compare names: the array API does not define bfloat16, and each library has its own type.
    return "float16" in str(dtype)


_SMALL = 2**14  # entries of a tensor for which operations of NumPy take less time


def _without_recording(
    functions: Sequence[Callable[..., Array] | None], tensors: Sequence[Array], by_numpy: bool
) -> list[Array | None]:
    """`function(xp, *tensors)` for each function, by NumPy where that takes less time; None for None.

    No operation is recorded for a gradient. Large tensors are left to PyTorch, which uses several threads.
    """
    small = by_numpy and all(tensor.numel() <= _SMALL for tensor in tensors)
    views = numpy_views(tensors) if small else None
    if views is None:
        xp = array_api_compat.array_namespace(*tensors)
        return [None if function is None else function(xp, *tensors) for function in functions]
    with np.errstate(all="ignore"):
        results = [None if function is None else function(_NUMPY, *views) for function in functions]
    dtype = views[0].dtype
    return [None if result is None else from_numpy(np.asarray(result, dtype), tensors) for result in results]


def _backward(
    pullbacks: Sequence[Callable[..., Array]], by_numpy: bool, zero_if_unused: bool
) -> Callable[..., tuple[Array | None, ...]]:
    """The method `backward` of a function of PyTorch, which has saved its output and its inputs."""

    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        arrays = gradients[0], *ctx.saved_tensors
        needed = [pullback if need else None for pullback, need in zip(pullbacks, ctx.needs_input_grad, strict=True)]
        if not sys.modules["torch"].is_grad_enabled():
            found = _without_recording(needed, arrays, by_numpy)
        else:
            xp = array_api_compat.array_namespace(*arrays)  # a graph of the gradient is requested
            found = [None if pullback is None else pullback(xp, *arrays) for pullback in needed]
        if zero_if_unused and arrays[0].device.type != "cpu":
            return tuple(found)
        return tuple(None if part is None else _without_unused(part, *arrays[:2]) for part in found)

    return backward


def _without_unused(part: Array, gradient: Array, output: Array) -> Array:
    """A gradient with 0 where the output is infinite and its own gradient is 0, instead of 0 * inf = nan.

    Such a gradient comes from a loss that leaves out infinite values, by `torch.where` or by a mask.
    """
    unused = gradient == 0
    if part.shape[: unused.ndim] != unused.shape:
        return part
    if unused.device.type == "cpu" and has_values(unused) and not bool(unused.any()):
        return part
    unused = unused & (output == math.inf)
    return sys.modules["torch"].where(unused[(...,) + (None,) * (part.ndim - unused.ndim)], 0.0, part)


def elementwise_with_gradient(value: Callable[..., Array], *pullbacks: Callable[..., Array]) -> Callable[..., Array]:
    """`with_gradient` for an elementwise function, which NumPy evaluates for small tensors on a CPU."""
    return with_gradient(value, *pullbacks, by_numpy=True)


def with_gradient(
    value: Callable[..., Array],
    *pullbacks: Callable[..., Array],
    by_numpy: bool = False,
    zero_if_unused: bool = False,
) -> Callable[..., Array]:
    """Attach explicit gradients to a function, for PyTorch and JAX.

    Automatic differentiation of the value would store every intermediate array, and would compute 0 * inf = nan on the
    branch of a `where` that is not selected.

    Args:
        value: Called as `value(xp, *arrays)`; returns one array.
        pullbacks: One function for each array, called as `pullback(xp, gradient, output, *arrays)`. It returns the
            gradient with respect to its array (a vector-Jacobian product, linear in `gradient`). It must consist of
            differentiable operations, so that higher derivatives and forward mode are available.
        by_numpy: Whether the functions may receive the NumPy arrays of small tensors.
        zero_if_unused: Whether the pullbacks are 0 for a gradient of 0 of an infinite output, so that an accelerator
            does not read the gradients again to set them to 0.

    Returns:
        A function that is called as `value` is.
    """

    @cache
    def torch_function() -> Any:
        """The function for ordinary calls, which take less time without the support for transformations."""
        import torch

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *arrays: Any) -> Any:
                [output] = _without_recording([value], arrays, by_numpy)
                ctx.save_for_backward(output, *arrays)
                return output

            backward = staticmethod(_backward(pullbacks, by_numpy, zero_if_unused))

        return Function

    @cache
    def transformed_torch_function() -> Any:
        """The function for torch.func, forward mode and torch.compile."""
        import torch

        class Function(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(*arrays: Any) -> Any:
                return value(array_api_compat.array_namespace(arrays[0]), *arrays)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
                ctx.save_for_backward(output, *inputs)
                ctx.save_for_forward(output, *inputs)

            @staticmethod
            def jvp(ctx: Any, *tangents: Any) -> Any:
                # An outer level of forward mode would receive zero tangents from PyTorch, without an error.
                functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
                keys = [level.key() for level in functorch.get_interpreter_stack() or ()]
                if keys.count(functorch.TransformType.Jvp) > 1:
                    raise NotImplementedError(
                        "expected at most one level of forward mode, got jvp or jacfwd inside jvp or jacfwd, for which "
                        "PyTorch loses derivatives; use torch.func.hessian, which is jacfwd of jacrev"
                    )
                # Without their own tangents, which would make the pullbacks compute derivatives of every order.
                output, *arrays = (torch.autograd.forward_ad.unpack_dual(saved).primal for saved in ctx.saved_tensors)
                xp = array_api_compat.array_namespace(output)

                def pulled_back(gradient: Any) -> Any:
                    terms = zip(pullbacks, arrays, tangents, strict=True)
                    return sum(
                        (pullback(xp, gradient, output, *arrays) * tangent).sum()
                        for pullback, _, tangent in terms
                        if tangent is not None
                    )

                # The Jacobian-vector product is the gradient of <pullback(gradient), tangent>, linear in `gradient`.
                transpose: Any = torch.func.vjp(pulled_back, torch.ones_like(output))[1]
                return transpose(torch.ones((), dtype=output.dtype, device=output.device))[0]

            backward = staticmethod(_backward(pullbacks, by_numpy, zero_if_unused))

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
            for pullback, array, tangent in zip(pullbacks, arrays, tangents, strict=True):
                if type(tangent) is SymbolicZero:
                    continue

                def back(gradient: Any, pullback: Any = pullback, dtype: Any = array.dtype) -> Any:
                    # With 64 bits enabled, constants in float64 would make the gradient of a float32 array float64.
                    return pullback(jax.numpy, gradient, output, *arrays).astype(dtype)

                # The Jacobian-vector product is the transpose of the pullback.
                change += jax.linear_transpose(back, output)(tangent)[0]
            return output, change

        function.defjvp(forward, symbolic_zeros=True)
        return function

    def call(xp: Any, *arrays: Array) -> Array:
        # Both branches of a `where` are computed, so infinities and nans in the unselected branch are expected.
        if xp is _NUMPY:
            with np.errstate(all="ignore"):
                return value(xp, *arrays)
        if array_api_compat.is_torch_namespace(xp):
            torch = sys.modules["torch"]
            if is_transformed(torch) or any(torch._C._functorch.is_functorch_wrapped_tensor(array) for array in arrays):
                return transformed_torch_function().apply(*arrays)
            if torch.is_grad_enabled() and any(array.requires_grad for array in arrays):
                return torch_function().apply(*arrays)
            return value(xp, *arrays)
        if array_api_compat.is_jax_namespace(xp):
            return jax_function()(*arrays)
        with np.errstate(all="ignore"):
            return value(xp, *arrays)

    return call
