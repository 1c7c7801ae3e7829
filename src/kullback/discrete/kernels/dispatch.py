"""The quick ways to KL(p || q) of plain arrays in memory; None where the general way must judge, and say what is wrong.

They are Numba's kernels where Numba is installed, else NumPy block by block for probabilities.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from math import inf, prod
from typing import Any

import numpy as np

from kullback.discrete.kernels.numpy_probs import kl_of_sums, prob_sums
from kullback.discrete.validation import MASS_TOLERANCES
from kullback.numerics.arrays import Array, ArrayLike

__all__ = [
    "quick_log_probs",
    "quick_logits",
    "quick_p_slopes",
    "quick_probs",
    "quick_q_slopes",
    "quick_tensor_logits",
]

# How bfloat16 is passed on here: NumPy has no such type.
_BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

# By what is quickest to look up.
_TOLERANCES = {np.dtype(name): MASS_TOLERANCES[name] for name in ("float64", "float32")}
_LOG_TOLERANCES = {**_TOLERANCES, _BFLOAT16: MASS_TOLERANCES["bfloat16"]}

# Loading kernels takes 0.5 s, and some 10 s at the first time of all, to compile them. So it waits for an array of a
# million entries, or for a hundred small ones: what has been asked for so often will be again.
_asked = {"kullback.discrete.kernels.numba_probs": 0, "kullback.discrete.kernels.numba_logits": 0}
_CALL, _ENOUGH = 10_000, 1_000_000
_loaded: dict[str, Any] = {}  # None without Numba

# Tensors that may learn take the kernels from so many entries on, and below never, whatever came before: a run that is
# resumed is then, to the last digit, the run that was not stopped.
_STEADY = 2**18

_THREAD = 2**20  # entries that are worth the start of a thread


def quick_probs(p: ArrayLike, q: ArrayLike, axis: int) -> Array | None:
    """`kl_probs` without `where`."""
    if type(p) is np.ndarray and type(q) is np.ndarray:
        return _probs(p, q, axis)
    return _as_arrays(_probs, p, q, axis)


def quick_logits(p_logits: ArrayLike, q_logits: ArrayLike, axis: int) -> Array | None:
    """`kl_logits` without `where`."""
    if type(p_logits) is np.ndarray and type(q_logits) is np.ndarray:
        return _logits(p_logits, q_logits, axis)
    return _as_arrays(_logits, p_logits, q_logits, axis)


def quick_log_probs(log_p: ArrayLike, log_q: ArrayLike, axis: int) -> Array | None:
    """`kl_log_probs` without `where`."""
    if type(log_p) is np.ndarray and type(log_q) is np.ndarray:
        return _log_probs(log_p, log_q, axis)
    return _as_arrays(_log_probs, log_p, log_q, axis)


def quick_tensor_logits(p_logits: ArrayLike, q_logits: ArrayLike) -> Array | None:
    """KL of rows of logits where it may be learned from: large tensors alone."""
    return _steadily(_logits, p_logits, q_logits, -1)


def quick_p_slopes(gradient: ArrayLike, p_logits: ArrayLike, q_logits: ArrayLike) -> Array | None:
    """Its pullback by the logits of p."""
    return _steadily(partial(_slopes, "p_slope_rows"), p_logits, q_logits, gradient)


def quick_q_slopes(gradient: ArrayLike, p_logits: ArrayLike, q_logits: ArrayLike) -> Array | None:
    """The same by the logits of q."""
    return _steadily(partial(_slopes, "q_slope_rows"), p_logits, q_logits, gradient)


def _steadily(function: Callable[..., Array | None], p: Any, q: Any, last: Any) -> Array | None:
    if prod(p.shape) < _STEADY:
        return None
    _asked["kullback.discrete.kernels.numba_logits"] = _ENOUGH
    return _as_arrays(function, p, q, last)


def _as_arrays(function: Callable[..., Array | None], p: ArrayLike, q: ArrayLike, last: Any) -> Array | None:
    """The function of what lies in memory as NumPy's arrays do: memory maps, and tensors without a gradient.

    The last argument is the axis, or a tensor too.
    """
    if isinstance(p, np.memmap) or isinstance(q, np.memmap):
        p, q = (np.asarray(side) if type(side) is np.memmap else side for side in (p, q))
        return function(p, q, last) if type(p) is type(q) is np.ndarray else None
    torch = sys.modules.get("torch")
    if torch is None or type(p) is not torch.Tensor or type(q) is not torch.Tensor or p.dtype != q.dtype:
        return None
    tensors = [p, q] if isinstance(last, int) else [p, q, last]
    tracked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if tracked or torch.compiler.is_compiling() or any(tensor.device.type != "cpu" for tensor in tensors):
        return None
    if any(torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        return None
    try:
        arrays = [_as_array(tensor.detach()) for tensor in tensors]
    except (RuntimeError, TypeError):  # under vmap, or sparse, or of another type: there are no numbers to look at
        return None
    kl = function(*arrays[:2], last if isinstance(last, int) else arrays[2], torch.get_num_threads())
    return None if kl is None else torch.from_numpy(kl).to(p.dtype)


def _as_array(tensor: Any) -> Array:
    torch = sys.modules["torch"]
    return tensor.view(torch.uint16).numpy().view(_BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _probs(p: Array, q: Array, axis: int, threads: int = 0) -> Array | None:
    dtype, shape = p.dtype, p.shape
    tolerance = _TOLERANCES.get(dtype)
    if tolerance is None or q.dtype != dtype or not p.size or (axis != -1 and not _is_last(axis, p, q)):
        return None
    name = "kullback.discrete.kernels.numba_probs"
    kernels = _loaded[name] if name in _loaded else _load(name, p.size)
    if len(shape) != 1 or q.shape != shape:
        if kernels:
            return _rows(kernels.prob_rows, p, q, tolerance, threads or kernels.THREADS)
        return _rows(_block_rows, p, q, tolerance, 1) if shape and shape[-1] >= 4096 else None
    if not (p.flags.carray and q.flags.carray):
        p, q = np.require(p, requirements=["C", "A"]), np.require(q, requirements=["C", "A"])
    if not kernels:
        kl = kl_of_sums(*prob_sums(p, q), tolerance)
    elif shape[0] < 2 * _THREAD:
        kl = kernels.probs(p, q, tolerance)
    else:
        sums = _in_threads(lambda piece: kernels.prob_sums(p[piece], q[piece]), shape[0], threads or kernels.THREADS)
        kl = kernels.kl_of_sums(*map(sum, zip(*sums, strict=True)), tolerance)
    return np.asarray(kl, dtype) if kl == kl else None


def _log_probs(p: Array, q: Array, axis: int, threads: int = 0) -> Array | None:
    return _logits(p, q, axis, threads, _LOG_TOLERANCES.get(p.dtype, inf))


def _logits(p: Array, q: Array, axis: int, threads: int = 0, tolerance: float = inf) -> Array | None:
    name = "kullback.discrete.kernels.numba_logits"
    if p.dtype not in _LOG_TOLERANCES or q.dtype != p.dtype or (axis != -1 and not _is_last(axis, p, q)):
        return None
    kernels = _loaded[name] if name in _loaded else _load(name, p.size)
    if not kernels:
        return None
    if p.dtype == _BFLOAT16:
        p, q = p.view(np.uint16), q.view(np.uint16)
    return _rows(kernels.logit_rows, p, q, tolerance, threads or kernels.THREADS)


def _slopes(kernel: str, p: Array, q: Array, gradient: Array, threads: int) -> Array | None:
    name = "kullback.discrete.kernels.numba_logits"
    kernels = _loaded[name] if name in _loaded else _load(name, p.size)
    if not kernels or p.dtype not in _TOLERANCES or p.shape != q.shape or gradient.shape != p.shape[:-1] or not p.size:
        return None
    p, q = (np.require(side, requirements=["C", "A"]).reshape(-1, p.shape[-1]) for side in (p, q))
    factors, out = gradient.astype(np.float64).reshape(-1), np.empty_like(p)

    def fill(piece: slice) -> None:
        getattr(kernels, kernel)(p[piece], q[piece], factors[piece], out[piece])

    _in_threads(fill, len(out), min(threads, out.size // _THREAD))
    # One entry of a row tells whether the kernel took it.
    return None if np.isnan(out[:, 0]).any() else out.reshape(*gradient.shape, -1)


def _is_last(axis: int, p: Array, q: Array) -> bool:
    return axis == p.ndim - 1 and p.shape == q.shape


def _load(name: str, entries: int) -> Any:
    _asked[name] += entries + _CALL
    if _asked[name] < _ENOUGH:
        return None
    try:
        _loaded[name] = import_module(name)
    except ImportError:  # without Numba, or with one that refuses this NumPy
        _loaded[name] = None
    return _loaded[name]


def _rows(kernel: Callable[..., None], p: Array, q: Array, tolerance: float, threads: int) -> Any:
    """The kernel's values of rows with rows, or of rows with one row."""
    lead, events = p.shape[:-1] if p.ndim > q.ndim else q.shape[:-1], p.shape[-1:]
    if not prod(lead) or not prod(events) or any(side.shape not in ((*lead, *events), events) for side in (p, q)):
        return None
    dtype = p.dtype if p.dtype in _TOLERANCES else np.float32
    p, q = (np.require(side, requirements=["C", "A"]).reshape(-1, *events) for side in (p, q))
    out = np.empty(prod(lead))

    def fill(piece: slice) -> None:
        kernel(*(side[piece] if len(side) == len(out) else side for side in (p, q)), tolerance, out[piece])

    _in_threads(fill, len(out), min(threads, out.size * p.shape[-1] // _THREAD))
    return None if np.isnan(out).any() else out.reshape(lead).astype(dtype)


def _block_rows(p: Array, q: Array, tolerance: float, out: Array) -> None:
    for i in range(len(out)):
        out[i] = kl_of_sums(*prob_sums(p[i % len(p)], q[i % len(q)]), tolerance)


def _in_threads(function: Callable[[slice], Any], length: int, threads: int) -> list[Any]:
    """The function's values of slices that make up the length, one a thread: the kernels let go of Python's lock."""
    threads = max(1, min(threads, length))
    pieces = [slice(length * k // threads, length * (k + 1) // threads) for k in range(threads)]
    if threads == 1:
        return [function(pieces[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, pieces))
