"""Numba kernels for KL(p || q) of probabilities: one pass, with one division and no logarithm per event.

The naive equation is KL(p || q) = sum_i p_i log(p_i / q_i). Here log(p/q) = k log(2) + 2 atanh(s) with
s = (f - q) / (f + q), where f = p 2^-k and the integer k is chosen so that f is close to q. k is the difference of the
bit patterns of p and q, which approximates the base-2 logarithm of their ratio.
"""

from math import inf, log, nan
from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_features
from numba import carray, config, njit, types
from numba.extending import intrinsic as _intrinsic

from kullback.discrete.kernels import numpy_probs

__all__ = [
    "BLOCK",
    "THREADS",
    "compiled",
    "horner",
    "instructions",
    "kl_of_sums",
    "kl_probs_row",
    "kl_probs_rows",
    "prob_sums",
]

THREADS: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
instructions: Any = _intrinsic  # typed Any, because callers of an intrinsic do not pass its first argument
BLOCK = 2048  # events that are summed in the dtype of the input, in the first-level cache, before a sum in float64
_LOG2 = log(2)
# The dependency chain of one term is longer than the processor's reorder window. Without AVX-512, two loops that each
# compute a part of the term are 1.4 times as fast as one; with AVX-512, one loop is 1.25 times as fast as two.
_ONE_LOOP = bool(get_host_cpu_features().get("avx512f"))
_BLOCK = BLOCK if _ONE_LOOP else 1024  # the results of the first loop share the first-level cache

# Coefficients of g(w), where 2 atanh(s) = 2s + s w g(w) with w = s^2: interpolation at the Chebyshev nodes of
# 0 <= w <= 0.04. The errors are 4e-15 in float64 and 6e-9 in float32, and s w g is at most 1.4% of the logarithm.
_ATANH = (
    0.6666666666666694,
    0.39999999999341623,
    0.2857142883402187,
    0.22222183019460265,
    0.1818459724682636,
    0.1528402127843849,
    0.1511560315350166,
)
_ATANH_FLOAT32 = (0.6666666627560318, 0.4000031220679577, 0.2853266492817339, 0.23748943314264234)


def compiled(signatures: Any = None, *, fast: tuple[str, ...] = ()) -> Any:
    """`njit` with the options of all kernels.

    Functions with explicit signatures are cached on disk, if a writable cache directory exists.
    """
    options: Any = {"error_model": "numpy", "fastmath": set(fast), "nogil": True}

    def compile_it(function: Any) -> Any:
        try:
            return njit(signatures, cache=signatures is not None, **options)(function)
        except RuntimeError:
            return njit(signatures, **options)(function)

    return compile_it


def horner(b: Any, w: Any, coefficients: tuple[float, ...]) -> Any:
    """LLVM instructions for the polynomial in w by Horner's rule, in the type of w, with fused multiply-add allowed."""
    total = w.type(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = b.fadd(b.fmul(total, w, flags=["contract"]), w.type(coefficient), flags=["contract"])
    return total


# The following functions emit LLVM instructions in the width of the type; Numba would widen every integer to 64 bits.


@instructions
def _scale_near(_typing: Any, p: Any, q: Any) -> Any:
    """(k, p 2^-k) with an integer k such that p 2^-k is within a factor of 1.5 of q."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        wide = p == types.float64
        integer, mantissa = context.get_value_type(types.int64 if wide else types.int32), 52 if wide else 23
        real = context.get_value_type(p)
        bits_p, bits_q = (b.bitcast(argument, integer) for argument in arguments)
        k = b.ashr(b.add(b.sub(bits_p, bits_q), integer(1 << (mantissa - 1))), integer(mantissa))
        near = b.bitcast(b.sub(bits_p, b.shl(k, integer(mantissa))), real)
        return context.make_tuple(b, signature.return_type, [b.sitofp(k, real), near])

    return types.UniTuple(p, 2)(p, q), generate


@instructions
def _minimum(_typing: Any, a: Any, other: Any) -> Any:
    """min(a, other), in the form that LLVM vectorises in a reduction; either of the two where one is nan."""

    def generate(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        flags = ["nnan", "nsz"]
        return b.select(b.fcmp_ordered("<", *arguments, flags=flags), *arguments, flags=flags)

    return a(a, other), generate


@instructions
def _atanh_tail(_typing: Any, w: Any) -> Any:
    """g(w) in 2 atanh(s) = 2s + s w g(w)."""

    def generate(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        return horner(b, arguments[0], _ATANH if w == types.float64 else _ATANH_FLOAT32)

    return w(w), generate


@instructions
def _stack_buffer(_typing: Any, like: Any) -> Any:
    """A buffer for one block on the stack, valid until the calling function returns."""

    def generate(context: Any, b: Any, _signature: Any, _arguments: Any) -> Any:
        with b.goto_entry_block():
            return b.alloca(context.get_value_type(like), size=_BLOCK)

    return types.CPointer(like)(like), generate


@instructions
def _smallest_fast(_typing: Any, like: Any) -> Any:
    """The smallest probability that the fast path accepts, which keeps its intermediate results normal numbers."""

    def generate(context: Any, _b: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_value_type(like)(2.0**-960 if like == types.float64 else 2.0**-120)

    return like(like), generate


# "reassoc" is not allowed here: the accuracy depends on the order of the operations.
@compiled(fast=("contract", "nsz"))
def _phi_head(p, q):
    """s, p phi(log(q/p)) without its parts k p log(2) and `_phi_tail`, k p, and p - q.

    p phi(log(q/p)) = p log(p/q) - p + q. Where p and q are within a factor of 1.5, k and `gap` are 0 and the term is
    s ((p - q) + p w g(w)), so that the terms do not cancel.
    """
    k, f = _scale_near(p, q)
    gap = p - f
    s = (f - q) / (f + q)
    excess = p - q
    return s, s * (excess + gap) - gap, p * k, excess


@compiled(fast=("contract", "nsz"))
def _phi_tail(p, s):
    """p s w g(w) with w = s^2: the part of p phi(log(q/p)) that contains the polynomial."""
    w = s * s
    return p * (s * (w * _atanh_tail(w)))


@compiled(fast=("reassoc", "contract", "nsz"))
def _sum_heads(p, q, s):
    """The sums of `_phi_head`, k p, p and p - q over a block, and the smallest entry of the block.

    With one loop the first sum includes `_phi_tail`; with two loops s is stored for the second loop.
    """
    zero = p.dtype.type(0)
    total, k_p_sum, mass, excess, smallest = zero, zero, zero, zero, p.dtype.type(1)
    for i in range(p.shape[0]):
        a, b = p[i], q[i]
        smallest = _minimum(_minimum(a, b), smallest)
        ratio, head, k_p, gap = _phi_head(a, b)
        if _ONE_LOOP:
            total += head + _phi_tail(a, ratio)
        else:
            total += head
            s[i] = ratio
        k_p_sum += k_p
        mass += a
        excess += gap
    return total, k_p_sum, mass, excess, smallest


@compiled(fast=("reassoc", "contract", "nsz"))
def _sum_tails(p, s):
    """The sum of `_phi_tail` over a block, where the first loop does not include it."""
    total = p.dtype.type(0)
    if not _ONE_LOOP:
        for i in range(p.shape[0]):
            total += _phi_tail(p[i], s[i])
    return total


@compiled()
def _block(p, q, s):
    """The sums of p phi(log(q/p)), p and p - q over a block, and whether an entry requires `_special_block`."""
    heads, k_p_sum, mass, excess, smallest = _sum_heads(p, q, s)
    total = np.float64(heads) + (_LOG2 * k_p_sum + _sum_tails(p, s))
    # An invalid entry makes the total nan.
    return total, np.float64(mass), np.float64(excess), not (smallest >= _smallest_fast(smallest) and total == total)


@compiled()
def _special_block(p, q, buffer):
    """The sums of p phi(log(q/p)), p and p - q over a block with zeros, subnormal numbers or invalid entries (nan)."""
    total, mass, excess = 0.0, 0.0, 0.0
    for i in range(p.shape[0]):
        a, b = p[i], q[i]
        smallest = _smallest_fast(a)
        fast = a >= smallest and b >= smallest
        buffer[0, i], buffer[1, i] = a if fast else smallest, b if fast else smallest
        if not fast:
            a, b = np.float64(a), np.float64(b)
            mass, excess = mass + a, excess + (a - b)
            if not (a >= 0 and b >= 0):
                total = nan
            elif a == 0 or b == 0:
                total += b if a == 0 else inf
            else:  # a factor of 2^200 makes subnormal numbers normal, and does not overflow for probabilities
                s, head, k_p, _ = _phi_head(2.0**200 * a, 2.0**200 * b)
                total += 2.0**-200 * (head + (_LOG2 * k_p + _phi_tail(2.0**200 * a, s)))
    n = p.shape[0]
    fast_total, fast_mass, fast_excess, _ = _block(buffer[0, :n], buffer[1, :n], buffer[2])
    return total + fast_total, mass + fast_mass, excess + fast_excess


@compiled()
def _compensated_add(total, lost, value):
    """total + value, and the accumulated rounding error of the sum, by Knuth's TwoSum (compensated summation)."""
    after = total + value
    added = after - total
    return after, lost + ((total - (after - added)) + (value - added))


@compiled()
def _sums(p, q):
    """The sums of p phi(log(q/p)), p and p - q over a row, by compensated summation over blocks."""
    total, total_lost, mass, mass_lost, excess, infinite = 0.0, 0.0, 0.0, 0.0, 0.0, False
    s = carray(_stack_buffer(p.dtype.type(0)), _BLOCK)
    for start in range(0, p.shape[0], _BLOCK):
        block_p, block_q = p[start : start + _BLOCK], q[start : start + _BLOCK]
        block_total, block_mass, block_excess, special = _block(block_p, block_q, s)
        if special:
            block_total, block_mass, block_excess = _special_block(block_p, block_q, np.empty((3, _BLOCK), p.dtype))
            if block_total == inf:  # the compensation would compute inf - inf
                infinite, block_total = True, 0.0
        total, total_lost = _compensated_add(total, total_lost, block_total)
        mass, mass_lost = _compensated_add(mass, mass_lost, block_mass)
        excess += block_excess
    return inf if infinite and total == total else total + total_lost, mass + mass_lost, excess


kl_of_sums = compiled([types.float64(types.float64, types.float64, types.float64, types.float64)])(
    numpy_probs.kl_of_sums
)

# Compiled for read-only arrays; Numba accepts writable arrays for them.
_ROW64, _ROW32 = (types.Array(number, 1, "C", readonly=True) for number in (types.float64, types.float32))
_ROWS64, _ROWS32 = (types.Array(number, 2, "C", readonly=True) for number in (types.float64, types.float32))
_OUT = types.Array(types.float64, 1, "C")


@compiled([types.UniTuple(types.float64, 3)(row, row) for row in (_ROW64, _ROW32)])
def prob_sums(p, q):
    """The sums over a row of p phi(log(q/p)), p and p - q; the first is nan where an entry is negative or nan."""
    return _sums(p, q)


@compiled([types.float64(row, row, types.float64) for row in (_ROW64, _ROW32)])
def kl_probs_row(p, q, tolerance):
    """KL(p || q) = sum_i p_i log(p_i / q_i) of two rows; nan for invalid input and where the masses would cancel."""
    total, mass, excess = _sums(p, q)
    return kl_of_sums(total, mass, excess, tolerance)


@compiled([types.void(rows, rows, types.float64, _OUT) for rows in (_ROWS64, _ROWS32)])
def kl_probs_rows(p, q, tolerance, out):
    """KL(p || q) of each pair of rows, where p or q may be a single row; nan as in `kl_probs_row`."""
    for i in range(out.shape[0]):
        total, mass, excess = _sums(p[i % p.shape[0]], q[i % q.shape[0]])
        out[i] = kl_of_sums(total, mass, excess, tolerance)
