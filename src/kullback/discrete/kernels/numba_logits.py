"""Numba kernels for KL(p || q) of logits: one pass, with two exponentials per event, in the first-level cache.

The naive equation is KL(p || q) = sum_i p_i (log p_i - log q_i) with p = softmax(p_logits) and q = softmax(q_logits).
Here g = q_logits - p_logits, c is any shift near log(Z_q / Z_p), and expectations are under p: with F = E[phi(g - c)],
G = E[g - c] and x = F + G, KL(p || q) = F - (x - log1p(x)), where phi(d) = e^d - 1 - d.
"""

from math import exp, inf, log, log1p, nan
from typing import Any

import numpy as np
from numba import types

from kullback.discrete.kernels.numba_probs import BLOCK, THREADS, compiled, horner, instructions

__all__ = ["THREADS", "kl_logits_grad_p_rows", "kl_logits_grad_q_rows", "kl_logits_rows"]

# Coefficients of phi(r) / r^2: interpolation at the Chebyshev nodes of |r| <= log(2)/2. The errors are 3e-18 in float64
# and 3e-9 in float32.
_PHI = (
    0.5,
    0.1666666666666667,
    0.04166666666666667,
    0.008333333333326136,
    0.001388888888888375,
    0.00019841269874815834,
    2.480158732554432e-05,
    2.7557255406285044e-06,
    2.7557273647451087e-07,
    2.5105214474751413e-08,
    2.0914685161418067e-09,
)
_PHI_FLOAT32 = (
    0.5000000013463886,
    0.16666666681621095,
    0.041666464944505696,
    0.008333310927615311,
    0.0013933647862928863,
    0.00019890988455544567,
)
# Constants in the narrowest type, because wider constants would widen float32 arithmetic. The fast path accepts
# _MIN_D < d < _MAX_D.
_ZERO, _ONE, _MAX_D, _MIN_D = np.float32(0), np.float32(1), np.float32(20), np.float32(-80)


@instructions
def _split_exponent(_typing: Any, d: Any) -> Any:
    """(r, 2^k, phi(r)) with d = r + k log(2) and |r| <= log(2)/2."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        [value], real = arguments, context.get_value_type(d)
        wide = d == types.float64
        integer, mantissa = context.get_value_type(types.int64 if wide else types.int32), 52 if wide else 23
        # Adding 1.5 * 2^mantissa rounds to an integer, which the smallest bits of the sum contain.
        magic = real(1.5 * 2.0**mantissa)
        shifted = b.fadd(b.fmul(value, real(1 / log(2))), magic)
        k, power = b.fsub(shifted, magic), b.shl(b.bitcast(shifted, integer), integer(mantissa))
        power = b.bitcast(b.add(power, b.bitcast(real(1.0), integer)), real)
        r = b.fsub(value, b.fmul(k, real(log(2)), flags=["contract"]), flags=["contract"])
        tail = b.fmul(b.fmul(r, r), horner(b, r, _PHI if wide else _PHI_FLOAT32))
        return context.make_tuple(b, signature.return_type, [r, power, tail])

    return types.UniTuple(d, 3)(d), generate


@instructions
def _smallest_exponent(_typing: Any, like: Any) -> Any:
    """The argument below which e^a is treated as 0."""

    def generate(context: Any, _b: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_value_type(like)(-700.0 if like == types.float64 else -87.0)

    return like(like), generate


@instructions
def _sort_key(_typing: Any, value: Any) -> Any:
    """An integer that increases with the number; LLVM vectorises a maximum of integers."""
    out: Any = types.int64 if value == types.float64 else types.int32

    def generate(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        integer = context.get_value_type(out)
        bits = b.bitcast(arguments[0], integer)
        return b.xor(bits, b.lshr(b.ashr(bits, integer(out.bitwidth - 1)), integer(1)))

    return out(value), generate


# "reassoc" is not allowed here: the accuracy depends on the order of the operations.
@compiled(fast=("contract", "nsz"))
def _exp(a):
    """e^a for an a that is not large and positive."""
    smallest = _smallest_exponent(a)
    r, power, tail = _split_exponent(a if a > smallest else smallest)
    return power + power * (r + tail) if a > smallest else smallest * _ZERO


@compiled(fast=("contract", "nsz"))
def _event_terms(p, q, top, shift):
    """w = exp(p - top), w phi(d) and w d with d = q - p - shift, and whether d is in the range of the fast path."""
    weight, d = _exp(p - top), (q - p) - shift
    r, power, tail = _split_exponent(d)
    phi = ((power - _ONE) - d) + power * r + power * tail  # for small d this is phi(r)
    return weight, weight * phi, weight * d, (d < _MAX_D) & (d > _MIN_D)


@compiled(fast=("reassoc", "contract", "nsz"))
def _block(p, q, top, shift):
    """The sums of w, w phi(d) and w d over a block, and whether an event requires `_special_block`."""
    weights, phi_sum, mean, special = top * _ZERO, top * _ZERO, top * _ZERO, False
    for i in range(p.shape[0]):
        weight, w_phi, w_d, fast = _event_terms(p[i], q[i], top, shift)
        special |= not fast
        weights += weight
        phi_sum += w_phi
        mean += w_d
    return weights, phi_sum, mean, special


@compiled()
def _special_block(p, q, top, shift, buffer_p, buffer_q):
    """The sums of w, w phi(d) and w d over a block with impossible events, q far above p, or invalid logits (nan).

    The last result is whether an event that is possible under p is impossible under q; the second sum then omits its
    infinite term.
    """
    weights, phi_sum, mean, fast, infinite = 0.0, 0.0, 0.0, 0, False
    for i in range(p.shape[0]):
        d = (q[i] - p[i]) - shift
        if d < _MAX_D and d > _MIN_D:
            buffer_p[fast], buffer_q[fast] = p[i], q[i]
            fast += 1
            continue
        weight_q = exp(np.float64(q[i]) - shift - top)
        if p[i] == -inf:
            phi_sum += weight_q  # the term of p = 0; it is 0 where both are impossible
            continue
        weight = exp(np.float64(p[i]) - top)
        weights += weight
        if q[i] == -inf:
            infinite = True
            phi_sum -= weight
        else:
            gap = np.float64(q[i]) - np.float64(p[i]) - shift
            mean += weight * gap
            phi_sum += weight_q - weight - weight * gap
    fast_weights, fast_phi_sum, fast_mean, _ = _block(buffer_p[:fast], buffer_q[:fast], top, shift)
    return weights + fast_weights, phi_sum + fast_phi_sum, mean + fast_mean, infinite


@compiled()
def _sums(p, q, top, shift):
    """The sums of w, w phi(d) and w d over a row, and whether KL is infinite."""
    weights, phi_sum, mean, infinite = 0.0, 0.0, 0.0, False
    for start in range(0, p.shape[0], BLOCK):
        block_p, block_q = p[start : start + BLOCK], q[start : start + BLOCK]
        narrow_weights, narrow_phi_sum, narrow_mean, special = _block(block_p, block_q, top, shift)
        if special:
            buffer = np.empty((2, BLOCK), p.dtype)
            sums = _special_block(block_p, block_q, top, shift, buffer[0], buffer[1])
            weights, phi_sum, mean, infinite = weights + sums[0], phi_sum + sums[1], mean + sums[2], infinite or sums[3]
        else:
            weights, phi_sum, mean = weights + narrow_weights, phi_sum + narrow_phi_sum, mean + narrow_mean
    return weights, phi_sum, mean, infinite


@compiled()
def _max_key(p):
    """The largest `_sort_key` of a block."""
    top = _sort_key(p[0])
    for i in range(p.shape[0]):
        key = _sort_key(p[i])
        top = key if key > top else top
    return top


@compiled()
def _argmax(p):
    """The index of the largest entry, or of a nan."""
    top, at = _max_key(p[:BLOCK]), 0
    for start in range(BLOCK, p.shape[0], BLOCK):
        block_key = _max_key(p[start : start + BLOCK])
        if block_key > top:
            top, at = block_key, start
    while _sort_key(p[at]) != top:
        at += 1
    return at


@compiled()
def _log1p_residual(x):
    """x - log1p(x)."""
    if abs(x) < 0.01:
        return (
            x * x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6 - x * (1 / 7 - x * (1 / 8 - x / 9)))))))
        )
    return x - log1p(x)


@compiled()
def _kl_and_normalizers(p, q):
    """KL(p || q), max(p), sum(exp(p - max(p))), and log(Z_q / Z_p) as a shift and a remainder."""
    largest = _argmax(p)
    top = p[largest]
    # The first shift is q - p at the most probable event. Where the sums show that it is inaccurate, they give a better
    # one.
    shift = q[largest] - top
    if not abs(shift) < inf:
        shift = top * _ZERO
    for _ in range(4 if abs(top) < inf else 0):
        weights, phi_sum, mean, infinite = _sums(p, q, top, shift)
        x = (phi_sum + mean) / weights
        kl = phi_sum / weights - _log1p_residual(x) if x < 1 else log1p(x) - mean / weights
        kl = inf if infinite else kl
        # The rounding error of the sums is negligible relative to kl.
        if x < inf and phi_sum / weights <= 8 * kl * (1 + x):
            return kl, top, weights, shift, log1p(x)
        if log1p(x) < inf:
            shift += p.dtype.type(log1p(x))
    return nan, top, nan, shift, nan


@compiled()
def _kl(p, q, tolerance):
    """KL(p || q) of one row; nan where a mass deviates from 1 by more than the tolerance, or the fast path fails."""
    kl, top, weights, shift, rest = _kl_and_normalizers(p, q)
    if tolerance < inf:
        log_mass = log(weights) + top
        if not (abs(exp(log_mass) - 1) <= tolerance and abs(exp(log_mass + shift + rest) - 1) <= tolerance):
            return nan
    return kl


@compiled(fast=("contract", "nsz"))
def _p_gradient(p, q, top, shift, rest, kl, factor, out):
    """The gradient with respect to the logits of p, factor exp(p - top) (log(p/q) - kl); 0 for impossible events."""
    for i in range(p.shape[0]):
        d = ((q[i] - p[i]) - shift) - rest
        derivative = factor * _exp(p[i] - top) * (-d - kl)
        out[i] = derivative if abs(d) < np.float32(inf) else factor * _ZERO


@compiled(fast=("contract", "nsz"))
def _q_gradient(p, q, top, shift, rest, factor, out):
    """The gradient with respect to the logits of q, factor (exp(q - shift - rest - top) - exp(p - top)).

    It is computed from the difference of the exponents where they are nearly equal.
    """
    for i in range(p.shape[0]):
        d = ((q[i] - p[i]) - shift) - rest
        weight = _exp(p[i] - top)
        r, power, tail = _split_exponent(d if abs(d) < _ONE else d * _ZERO)
        near = weight * ((power - _ONE) + power * (r + tail))
        far = _exp(((q[i] - shift) - rest) - top) - weight
        out[i] = factor * (near if abs(d) < _ONE else far)


_NUMBERS = (types.float64, types.float32, types.uint16)
_ROWS64, _ROWS32, _ROWS16 = (types.Array(number, 2, "C", readonly=True) for number in _NUMBERS)
_OUT = types.Array(types.float64, 1, "C")


@instructions
def _widen(_typing: Any, half: Any) -> Any:
    """The float32 value of a bfloat16 number that is passed as its bits."""

    def generate(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        integer, real = (context.get_value_type(number) for number in (types.int32, types.float32))
        return b.bitcast(b.shl(b.zext(arguments[0], integer), integer(16)), real)

    return types.float32(half), generate


@compiled()
def _widen_row(half, row):
    """Convert a row of bfloat16 bits to float32."""
    for i in range(row.shape[0]):
        row[i] = _widen(half[i])


@compiled([types.void(rows, rows, types.float64, _OUT) for rows in (_ROWS64, _ROWS32)])
def _float_rows(p, q, tolerance, out):
    """KL of each pair of rows in float64 or float32."""
    for i in range(out.shape[0]):
        out[i] = _kl(p[i % p.shape[0]], q[i % q.shape[0]], tolerance)


@compiled([types.void(_ROWS16, _ROWS16, types.float64, _OUT)])
def _bfloat16_rows(p, q, tolerance, out):
    """KL of each pair of rows of bfloat16 bits, computed in float32."""
    wide = np.empty((2, p.shape[1]), np.float32)
    for i in range(out.shape[0]):
        _widen_row(p[i % p.shape[0]], wide[0])
        _widen_row(q[i % q.shape[0]], wide[1])
        out[i] = _kl(wide[0], wide[1], tolerance)


_OUT64, _OUT32 = (types.Array(number, 2, "C") for number in _NUMBERS[:2])
_GRADIENT_SIGNATURES = [types.void(rows, rows, _OUT, out) for rows, out in ((_ROWS64, _OUT64), (_ROWS32, _OUT32))]


@compiled(_GRADIENT_SIGNATURES)
def kl_logits_grad_p_rows(p, q, gradient, out):
    """gradient * p (log(p/q) - KL), the vector-Jacobian product for the logits of p; nan as in `kl_logits_rows`."""
    number = p.dtype.type
    for i in range(p.shape[0]):
        kl, top, weights, shift, rest = _kl_and_normalizers(p[i], q[i])
        factor = gradient[i] / weights if kl < inf else nan
        _p_gradient(p[i], q[i], top, shift, number(rest), number(kl), number(factor), out[i])


@compiled(_GRADIENT_SIGNATURES)
def kl_logits_grad_q_rows(p, q, gradient, out):
    """gradient * (q - p), the vector-Jacobian product for the logits of q; nan as in `kl_logits_rows`."""
    number = p.dtype.type
    for i in range(p.shape[0]):
        kl, top, weights, shift, rest = _kl_and_normalizers(p[i], q[i])
        factor = gradient[i] / weights if kl == kl else nan
        _q_gradient(p[i], q[i], top, shift, number(rest), number(factor), out[i])


def kl_logits_rows(p: np.ndarray, q: np.ndarray, tolerance: float, out: np.ndarray) -> None:
    """KL(p || q) of each pair of rows of logits, where p or q may be a single row.

    An array of uint16 contains the bits of bfloat16 numbers. The naive equation is KL(p || q) = sum_i p_i (log p_i -
    log q_i). The result is nan for invalid logits, where a mass deviates from 1 by more than the tolerance, and where
    the general implementation is required.
    """
    (_bfloat16_rows if p.dtype == np.uint16 else _float_rows)(p, q, tolerance, out)
