"""Dispatch of KL(p || q) to the fast kernels, for plain NumPy arrays and CPU tensors.

The kernels are compiled when the package is installed. Where there was no compiler, NumPy computes long rows of
probabilities in blocks. Each function returns None where no kernel applies, and where the input may be invalid: the
general implementation then computes the result or raises the error. The choice depends on the arguments alone.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf, prod
from typing import Any

import numpy as np

from kullback.compiled import kernels as compiled
from kullback.discrete.kernels.numpy_probs import Sums, kl_of_sums, prob_sums
from kullback.discrete.validation import MASS_TOLERANCES, log_mass_tolerance, mass_tolerance
from kullback.numerics.arrays import Array, ArrayLike

__all__ = [
    "THREADS",
    "compiled",
    "fast_kl_log_probs",
    "fast_kl_logits",
    "fast_kl_logits_autograd",
    "fast_kl_logits_grad_p",
    "fast_kl_logits_grad_q",
    "fast_kl_probs",
]

# The stand-in for bfloat16, which NumPy does not define.
_BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

# Keyed by dtype objects, because they are the fastest keys to look up.
_TOLERANCES = {np.dtype(name): MASS_TOLERANCES[name] for name in ("float64", "float32")}
_LOG_DTYPES = {*_TOLERANCES, _BFLOAT16}

_LAST = -1  # the default axis, which CPython stores once, so that an identity test recognises it
_FEW_EVENTS = 64  # the tolerances above hold for at most so many events

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # at most
_ENTRIES_PER_THREAD = 2**20  # entries for which an additional thread pays off


def fast_kl_probs(p: ArrayLike, q: ArrayLike, axis: int) -> Array | None:
    """KL(p || q) of probabilities, as `kl_probs` computes it without `where`; None if no kernel applies."""
    if type(p) is np.ndarray and type(q) is np.ndarray:
        return _probs(p, q, axis)
    return _as_arrays(_probs, p, q, axis)


def fast_kl_logits(p_logits: ArrayLike, q_logits: ArrayLike, axis: int) -> Array | None:
    """KL(p || q) of logits, as `kl_logits` computes it without `where`; None if no kernel applies."""
    if type(p_logits) is np.ndarray and type(q_logits) is np.ndarray:
        return _logits(p_logits, q_logits, axis)
    return _as_arrays(_logits, p_logits, q_logits, axis)


def fast_kl_log_probs(log_p: ArrayLike, log_q: ArrayLike, axis: int) -> Array | None:
    """KL(p || q) of log-probabilities, as `kl_log_probs` computes it without `where`; None if no kernel applies."""
    if type(log_p) is np.ndarray and type(log_q) is np.ndarray:
        return _log_probs(log_p, log_q, axis)
    return _as_arrays(_log_probs, log_p, log_q, axis)


def fast_kl_logits_autograd(p_logits: ArrayLike, q_logits: ArrayLike) -> Array | None:
    """KL(p || q) of rows of logits under automatic differentiation; None if no kernel applies."""
    return _as_arrays(_logits, p_logits, q_logits, -1)


def fast_kl_logits_grad_p(gradient: ArrayLike, p_logits: ArrayLike, q_logits: ArrayLike) -> Array | None:
    """The vector-Jacobian product of KL with respect to the logits of p; None if no kernel applies."""
    return _as_arrays(partial(_gradient_rows, "kl_logits_grad_p_rows"), p_logits, q_logits, gradient)


def fast_kl_logits_grad_q(gradient: ArrayLike, p_logits: ArrayLike, q_logits: ArrayLike) -> Array | None:
    """The vector-Jacobian product of KL with respect to the logits of q; None if no kernel applies."""
    return _as_arrays(partial(_gradient_rows, "kl_logits_grad_q_rows"), p_logits, q_logits, gradient)


def _as_arrays(function: Callable[..., Array | None], p: ArrayLike, q: ArrayLike, last: Any) -> Array | None:
    """Call the function with the NumPy arrays that share memory with memory maps, or with tensors without a gradient.

    `last` is an axis, or a third array with the type of the others. None if the arguments are not such arrays.
    """
    if isinstance(p, np.memmap) or isinstance(q, np.memmap):
        p, q = (np.asarray(side) if type(side) is np.memmap else side for side in (p, q))
        return function(p, q, last) if type(p) is type(q) is np.ndarray else None
    torch = sys.modules.get("torch")
    if torch is None or type(p) is not torch.Tensor or type(q) is not torch.Tensor or p.dtype != q.dtype:
        return None
    tensors = [p, q, last] if isinstance(last, torch.Tensor) else [p, q]
    tracked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if tracked or torch.compiler.is_compiling() or any(tensor.device.type != "cpu" for tensor in tensors):
        return None
    try:
        if any(torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
            return None
        arrays = [_as_array(tensor.detach()) for tensor in tensors]
    except (RuntimeError, TypeError):  # no concrete dense values: under vmap, or sparse, or of another type
        return None
    kl = function(*arrays[:2], arrays[2] if isinstance(last, torch.Tensor) else last, torch.get_num_threads())
    return None if kl is None else torch.as_tensor(kl).to(p.dtype)


def _as_array(tensor: Any) -> Array:
    """The NumPy array that shares memory with the tensor."""
    torch = sys.modules["torch"]
    return tensor.view(torch.uint16).numpy().view(_BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _probs(p: Array, q: Array, axis: int, threads: int = 0) -> Array | None:
    """KL of probabilities in NumPy arrays; None if no kernel applies."""
    dtype, shape = p.dtype, p.shape
    tolerance = _TOLERANCES.get(dtype)
    if tolerance is None or q.dtype != dtype or not p.size or (axis is not _LAST and not _is_last(axis, p, q)):
        return None
    if not shape:
        return None  # without an axis of events
    if shape[-1] > _FEW_EVENTS:
        tolerance = mass_tolerance(dtype, shape[-1])
    if len(shape) != 1 or q.shape != shape:
        if compiled:
            return _rows(compiled.kl_probs_rows, p, q, tolerance, threads or THREADS)
        return _rows(_numpy_rows, p, q, tolerance, 1) if shape and shape[-1] >= 4096 else None
    if not (p.flags.carray and q.flags.carray):
        p, q = np.require(p, requirements=["C", "A"]), np.require(q, requirements=["C", "A"])
    if not compiled:
        kl = kl_of_sums(*prob_sums(p, q), tolerance)
    elif shape[0] < 2 * _ENTRIES_PER_THREAD:
        kl = compiled.kl_probs_row(p, q, tolerance)
    else:
        sums = _in_threads(partial(_part_sums, p, q), shape[0], threads or THREADS)
        total, mass, excess = map(sum, zip(*sums, strict=True))
        kl = kl_of_sums(total, mass, excess, tolerance)
    return np.float64(dtype.type(kl)) if kl == kl else None


def _log_probs(p: Array, q: Array, axis: int, threads: int = 0) -> Array | None:
    """KL of log-probabilities in NumPy arrays; None if no kernel applies."""
    tolerance = _TOLERANCES.get(p.dtype, inf)
    if p.shape and p.dtype == _BFLOAT16:
        tolerance = log_mass_tolerance("bfloat16", p.shape[-1])
    elif p.shape and p.shape[-1] > _FEW_EVENTS and p.dtype in _TOLERANCES:
        tolerance = mass_tolerance(p.dtype, p.shape[-1])
    return _logits(p, q, axis, threads, tolerance)


def _logits(p: Array, q: Array, axis: int, threads: int = 0, tolerance: float = inf) -> Array | None:
    """KL of logits in NumPy arrays; None if no kernel applies, or a mass deviates from 1 by more than the tolerance."""
    if p.dtype not in _LOG_DTYPES or q.dtype != p.dtype or (axis is not _LAST and not _is_last(axis, p, q)):
        return None
    if compiled is None or not p.shape:  # the axis of events may be absent
        return None
    if p.dtype == _BFLOAT16:
        p, q = p.view(np.uint16), q.view(np.uint16)
    return _rows(compiled.kl_logits_rows, p, q, tolerance, threads or THREADS)


def _gradient_rows(kernel: str, p: Array, q: Array, gradient: Array, threads: int) -> Array | None:
    """The vector-Jacobian product by the named kernel; None if the kernel does not apply."""
    if (
        compiled is None
        or p.dtype not in _TOLERANCES
        or p.shape != q.shape
        or gradient.shape != p.shape[:-1]
        or not p.size
    ):
        return None
    p, q = (np.require(side, requirements=["C", "A"]).reshape(-1, p.shape[-1]) for side in (p, q))
    factors, out = gradient.astype(np.float64).reshape(-1), np.empty_like(p)

    def fill(part: slice) -> None:
        getattr(compiled, kernel)(p[part], q[part], factors[part], out[part])

    _in_threads(fill, len(out), min(threads, out.size // _ENTRIES_PER_THREAD))
    # The kernel writes nan to all entries of a row that it cannot process.
    return None if np.isnan(out[:, 0]).any() else out.reshape(*gradient.shape, -1)


def _is_last(axis: int, p: Array, q: Array) -> bool:
    """Whether an axis is the last axis of both arrays."""
    if type(axis) is not int and not isinstance(axis, np.integer):  # such as a boolean, which `events_last` refuses
        return False
    return bool(axis == -1 or (axis == p.ndim - 1 and p.shape == q.shape))


def _part_sums(p: Array, q: Array, part: slice) -> Sums:
    """The sums over a part of a row."""
    assert compiled is not None
    return compiled.prob_sums(p[part], q[part])


def _rows(kernel: Callable[..., None], p: Array, q: Array, tolerance: float, threads: int) -> Any:
    """The kernel's values for pairs of rows, where one side may be a single row; None for other shapes."""
    lead, events = p.shape[:-1] if p.ndim > q.ndim else q.shape[:-1], p.shape[-1:]
    if not prod(lead) or not prod(events) or any(side.shape not in ((*lead, *events), events) for side in (p, q)):
        return None
    dtype = p.dtype if p.dtype in _TOLERANCES else np.float32
    p, q = (np.require(side, requirements=["C", "A"]).reshape(-1, *events) for side in (p, q))
    out = np.empty(prod(lead))

    def fill(part: slice) -> None:
        kernel(*(side[part] if len(side) == len(out) else side for side in (p, q)), tolerance, out[part])

    _in_threads(fill, len(out), min(threads, out.size * p.shape[-1] // _ENTRIES_PER_THREAD))
    if np.isnan(out).any():
        return None
    return out.reshape(lead).astype(dtype) if lead else np.float64(out.astype(dtype)[0])


def _numpy_rows(p: Array, q: Array, tolerance: float, out: Array) -> None:
    """KL of rows of probabilities by the NumPy kernel."""
    for i in range(len(out)):
        out[i] = kl_of_sums(*prob_sums(p[i % len(p)], q[i % len(q)]), tolerance)


def _in_threads(function: Callable[[slice], Any], length: int, threads: int) -> list[Any]:
    """The function's values for slices of range(length), one slice per thread; the kernels release the GIL."""
    threads = max(1, min(threads, length))
    parts = [slice(length * k // threads, length * (k + 1) // threads) for k in range(threads)]
    if threads == 1:
        return [function(parts[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, parts))
