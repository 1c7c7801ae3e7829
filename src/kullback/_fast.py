"""Kernels in Numba for KL(p || q) of probabilities: one pass, one division and no logarithm an event.

log(p/q) = k log 2 + 2 atanh(s), s = (f - q) / (f + q), where f = p 2^-k is the multiple of p nearest to q: it comes of
the bits, since the difference of two floats' bits is about the logarithm of their ratio, base 2.
"""

from math import inf, log, nan
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.extending import intrinsic as _intrinsic

from kullback import _blocks

__all__ = ["BLOCK", "THREADS", "compiled", "horner", "instructions", "kl_of_sums", "prob_rows", "prob_sums", "probs"]

THREADS: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
instructions: Any = _intrinsic  # typed Any, for its callers do not pass the first argument
BLOCK = 2048  # events summed in the inputs' own precision, within the first cache, before float64 takes over

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
    """(k log 2, p 2^-k) with k such that p 2^-k lies within a factor of 1.5 of q."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        wide = p == types.float64
        integer, mantissa = context.get_value_type(types.int64 if wide else types.int32), 52 if wide else 23
        real = context.get_value_type(p)
        bits_p, bits_q = (b.bitcast(argument, integer) for argument in arguments)
        k = b.ashr(b.add(b.sub(bits_p, bits_q), integer(1 << (mantissa - 1))), integer(mantissa))
        near = b.bitcast(b.sub(bits_p, b.shl(k, integer(mantissa))), real)
        return context.make_tuple(b, signature.return_type, [b.fmul(b.sitofp(k, real), real(log(2))), near])

    return types.UniTuple(p, 2)(p, q), generate


@instructions
def _atanh_tail(_typing: Any, w: Any) -> Any:
    def generate(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        return horner(b, arguments[0], _ATANH if w == types.float64 else _ATANH_FLOAT32)

    return w(w), generate


@instructions
def _least(_typing: Any, like: Any) -> Any:
    """The least number that goes the quick way: far enough above the subnormal ones."""

    def generate(context: Any, _b: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_value_type(like)(2.0**-960 if like == types.float64 else 2.0**-120)

    return like(like), generate


# Not "reassoc": the order of these operations is what keeps the digits.
@compiled(fast=("contract", "nsz"))
def _term(p, q):
    """p log(p/q) - p + q = p phi(log q/p), without cancellation where p and q are nearly equal; and p - q."""
    shift, f = _fold(p, q)
    apart = p - f  # 0 where p and q lie within a factor of 1.5, and s ((p - q) + p w g) is left
    s = (f - q) / (f + q)
    w = s * s
    excess = p - q
    return s * (excess + apart) - apart + p * (shift + s * (w * _atanh_tail(w))), excess


@compiled(fast=("reassoc", "contract", "nsz"))
def _block(p, q):
    """The sums of p phi, p and p - q over a block, and whether an entry is not for the quick way."""
    zero = p.dtype.type(0)
    total, mass, excess, special = zero, zero, zero, False
    for i in range(p.shape[0]):
        a, b = p[i], q[i]
        special |= not ((a >= _least(a)) & (b >= _least(b)))
        term, apart = _term(a, b)
        total += term
        mass += a
        excess += apart
    return total, mass, excess, special


@compiled()
def _special_block(p, q, spare_p, spare_q):
    """The same over a block with zeros, subnormal numbers, or what is no probability (nan)."""
    total, mass, excess = 0.0, 0.0, 0.0
    for i in range(p.shape[0]):
        a, b = p[i], q[i]
        least = _least(a)
        quick = a >= least and b >= least
        spare_p[i], spare_q[i] = a if quick else least, b if quick else least
        if not quick:
            a, b = np.float64(a), np.float64(b)
            mass, excess = mass + a, excess + (a - b)
            if not (a >= 0 and b >= 0):
                total = nan
            elif a == 0 or b == 0:
                total += b if a == 0 else inf
            else:  # 2^200 brings the subnormal ones up, and nothing that sums to 1 out of range
                total += 2.0**-200 * _term(2.0**200 * a, 2.0**200 * b)[0]
    n = p.shape[0]
    quick_total, quick_mass, quick_excess, _ = _block(spare_p[:n], spare_q[:n])
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
    for start in range(0, p.shape[0], BLOCK):
        block_p, block_q = p[start : start + BLOCK], q[start : start + BLOCK]
        narrow_total, narrow_mass, narrow_excess, special = _block(block_p, block_q)
        block_total, block_mass, block_excess = (
            np.float64(narrow_total),
            np.float64(narrow_mass),
            np.float64(narrow_excess),
        )
        if special:
            spare = np.empty((2, BLOCK), p.dtype)
            block_total, block_mass, block_excess = _special_block(block_p, block_q, spare[0], spare[1])
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
