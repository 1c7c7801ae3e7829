"""Kernels in Numba for KL(p || q) of probabilities: one pass, one division and no logarithm an event.

log(p/q) = k log 2 + 2 atanh(s), s = (f - q) / (f + q), where f = p 2^-k is the multiple of p nearest to q: it comes of
the bits, since the difference of two floats' bits is about the logarithm of their ratio, base 2.
"""

from math import inf, log, nan
from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_features
from numba import carray, config, njit, types
from numba.extending import intrinsic as _intrinsic

from kullback.discrete.kernels import numpy_probs as _blocks

__all__ = ["BLOCK", "THREADS", "compiled", "horner", "instructions", "kl_of_sums", "prob_rows", "prob_sums", "probs"]

THREADS: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
instructions: Any = _intrinsic  # typed Any, for its callers do not pass the first argument
BLOCK = 2048  # events summed in the inputs' own precision, within the first cache, before float64 takes over
_LOG2 = log(2)
# One term's chain of operations is longer than a processor looks ahead: with vectors of half the length, two loops that
# each do a part of it are 1.4 times as fast; with whole ones, one loop is, 1.25 times.
_ONE_LOOP = bool(get_host_cpu_features().get("avx512f"))
_BLOCK = BLOCK if _ONE_LOOP else 1024  # what the first loop leaves for the second shares that cache

# g(w) of 2 atanh(s) = 2s + s w g(w), w = s^2, at the Chebyshev nodes of 0 <= w <= 0.04: errors 4e-15 and 6e-9, and
# g makes at most 1.4% of the logarithm.
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
    """`njit` with what all kernels share. What has signatures is kept on disk, if a folder takes it."""
    options: Any = {"error_model": "numpy", "fastmath": set(fast), "nogil": True}

    def compile_it(function: Any) -> Any:
        try:
            return njit(signatures, cache=signatures is not None, **options)(function)
        except RuntimeError:
            return njit(signatures, **options)(function)

    return compile_it


def horner(b: Any, w: Any, coefficients: tuple[float, ...]) -> Any:
    """The polynomial in w, as instructions of w's type that may be fused."""
    total = w.type(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = b.fadd(b.fmul(total, w, flags=["contract"]), w.type(coefficient), flags=["contract"])
    return total


# In the width of the type: Numba's own arithmetic would make every integer 64 bits wide.


@instructions
def _fold(_typing: Any, p: Any, q: Any) -> Any:
    """(k, p 2^-k) with k such that p 2^-k lies within a factor of 1.5 of q."""

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
def _lower(_typing: Any, a: Any, least: Any) -> Any:
    """The lower one, in the one form that sums over a loop as vectors; any of the two where one is nan."""

    def generate(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        flags = ["nnan", "nsz"]
        return b.select(b.fcmp_ordered("<", *arguments, flags=flags), *arguments, flags=flags)

    return a(a, least), generate


@instructions
def _atanh_tail(_typing: Any, w: Any) -> Any:
    def generate(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        return horner(b, arguments[0], _ATANH if w == types.float64 else _ATANH_FLOAT32)

    return w(w), generate


@instructions
def _stack(_typing: Any, like: Any) -> Any:
    """Room for a block on the stack, which costs no call; gone when the function that asks returns."""

    def generate(context: Any, b: Any, _signature: Any, _arguments: Any) -> Any:
        with b.goto_entry_block():
            return b.alloca(context.get_value_type(like), size=_BLOCK)

    return types.CPointer(like)(like), generate


@instructions
def _least(_typing: Any, like: Any) -> Any:
    """The least number that goes the quick way: far enough above the subnormal ones."""

    def generate(context: Any, _b: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_value_type(like)(2.0**-960 if like == types.float64 else 2.0**-120)

    return like(like), generate


# Not "reassoc": the order of these operations is what keeps the digits.
@compiled(fast=("contract", "nsz"))
def _beginning(p, q):
    """s, p phi(log q/p) without its parts k p log 2 and `_end`, k p, and p - q.

    p phi = p log(p/q) - p + q, without cancellation where p and q are nearly equal: where they lie within a factor of
    1.5, apart and k are 0, and s ((p - q) + p w g) is left.
    """
    k, f = _fold(p, q)
    apart = p - f
    s = (f - q) / (f + q)
    excess = p - q
    return s, s * (excess + apart) - apart, p * k, excess


@compiled(fast=("contract", "nsz"))
def _end(p, s):
    w = s * s
    return p * (s * (w * _atanh_tail(w)))


@compiled(fast=("reassoc", "contract", "nsz"))
def _beginnings(p, q, s):
    """The sums of the beginnings, of k p, p and p - q over a block, and its least entry.

    The ends are in the first sum, too, if one loop does all; else s is filled.
    """
    zero = p.dtype.type(0)
    total, doublings, mass, excess, lowest = zero, zero, zero, zero, p.dtype.type(1)
    for i in range(p.shape[0]):
        a, b = p[i], q[i]
        lowest = _lower(_lower(a, b), lowest)
        ratio, beginning, doubled, apart = _beginning(a, b)
        if _ONE_LOOP:
            total += beginning + _end(a, ratio)
        else:
            total += beginning
            s[i] = ratio
        doublings += doubled
        mass += a
        excess += apart
    return total, doublings, mass, excess, lowest


@compiled(fast=("reassoc", "contract", "nsz"))
def _ends(p, s):
    total = p.dtype.type(0)
    if not _ONE_LOOP:
        for i in range(p.shape[0]):
            total += _end(p[i], s[i])
    return total


@compiled()
def _block(p, q, s):
    """The sums of p phi, p and p - q over a block, and whether an entry is not for the quick way."""
    beginnings, doublings, mass, excess, lowest = _beginnings(p, q, s)
    total = np.float64(beginnings) + (_LOG2 * doublings + _ends(p, s))
    # What is no number makes one of the total.
    return total, np.float64(mass), np.float64(excess), not (lowest >= _least(lowest) and total == total)


@compiled()
def _special_block(p, q, spare):
    """The same over a block with zeros, subnormal numbers, or what is no probability (nan)."""
    total, mass, excess = 0.0, 0.0, 0.0
    for i in range(p.shape[0]):
        a, b = p[i], q[i]
        least = _least(a)
        quick = a >= least and b >= least
        spare[0, i], spare[1, i] = a if quick else least, b if quick else least
        if not quick:
            a, b = np.float64(a), np.float64(b)
            mass, excess = mass + a, excess + (a - b)
            if not (a >= 0 and b >= 0):
                total = nan
            elif a == 0 or b == 0:
                total += b if a == 0 else inf
            else:  # 2^200 brings the subnormal ones up, and nothing that sums to 1 out of range
                s, beginning, doubled, _ = _beginning(2.0**200 * a, 2.0**200 * b)
                total += 2.0**-200 * (beginning + (_LOG2 * doubled + _end(2.0**200 * a, s)))
    n = p.shape[0]
    quick_total, quick_mass, quick_excess, _ = _block(spare[0, :n], spare[1, :n], spare[2])
    return total + quick_total, mass + quick_mass, excess + quick_excess


@compiled()
def _add(total, lost, value):
    """total + value, and what its rounding has lost so far [knuth1997]."""
    after = total + value
    taken = after - total
    return after, lost + ((total - (after - taken)) + (value - taken))


@compiled()
def _sums(p, q):
    total, total_lost, mass, mass_lost, excess, infinite = 0.0, 0.0, 0.0, 0.0, 0.0, False
    s = carray(_stack(p.dtype.type(0)), _BLOCK)
    for start in range(0, p.shape[0], _BLOCK):
        block_p, block_q = p[start : start + _BLOCK], q[start : start + _BLOCK]
        block_total, block_mass, block_excess, special = _block(block_p, block_q, s)
        if special:
            block_total, block_mass, block_excess = _special_block(block_p, block_q, np.empty((3, _BLOCK), p.dtype))
            if block_total == inf:  # inf - inf would follow
                infinite, block_total = True, 0.0
        total, total_lost = _add(total, total_lost, block_total)
        mass, mass_lost = _add(mass, mass_lost, block_mass)
        excess += block_excess
    return inf if infinite and total == total else total + total_lost, mass + mass_lost, excess


kl_of_sums = compiled([types.float64(types.float64, types.float64, types.float64, types.float64)])(_blocks.kl_of_sums)

# Compiled for read-only arrays, which writable ones may be taken for.
_ROW64, _ROW32 = (types.Array(number, 1, "C", readonly=True) for number in (types.float64, types.float32))
_ROWS64, _ROWS32 = (types.Array(number, 2, "C", readonly=True) for number in (types.float64, types.float32))
_OUT = types.Array(types.float64, 1, "C")


@compiled([types.UniTuple(types.float64, 3)(row, row) for row in (_ROW64, _ROW32)])
def prob_sums(p, q):
    """The sums of p phi(log q/p), p and p - q; the first is nan where an entry is negative or nan."""
    return _sums(p, q)


@compiled([types.float64(row, row, types.float64) for row in (_ROW64, _ROW32)])
def probs(p, q, tolerance):
    """KL(p || q) of two rows; nan where they are no probabilities, or where the rounding of masses would show."""
    total, mass, excess = _sums(p, q)
    return kl_of_sums(total, mass, excess, tolerance)


@compiled([types.void(rows, rows, types.float64, _OUT) for rows in (_ROWS64, _ROWS32)])
def prob_rows(p, q, tolerance, out):
    """The same of rows with rows, or with one row."""
    for i in range(out.shape[0]):
        total, mass, excess = _sums(p[i % p.shape[0]], q[i % q.shape[0]])
        out[i] = kl_of_sums(total, mass, excess, tolerance)
