"""Kernels in Numba for KL(p || q) of logits: one pass, two exponentials an event, kept in the processor's first cache.

With g = q_logits - p_logits, any shift c near log(Z_q / Z_p), and means over p: F = E[phi(g - c)], G = E[g - c] and
x = F + G give KL(p || q) = F - (x - log1p(x)).
"""

from math import exp, inf, log, log1p, nan
from typing import Any

import numpy as np
from numba import types

from kullback.discrete.kernels.numba_probs import BLOCK, THREADS, compiled, horner, instructions

__all__ = ["THREADS", "logit_rows", "p_slope_rows", "q_slope_rows"]

# phi(r) / r^2 at the Chebyshev nodes of |r| <= log(2)/2: errors 3e-18 and 3e-9.
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
# Of the narrowest type, or float32 would be widened to meet them.
_ZERO, _ONE, _MOST, _LEAST = np.float32(0), np.float32(1), np.float32(20), np.float32(-80)


@instructions
def _split(_typing: Any, d: Any) -> Any:
    """(r, 2^k, r^2 times phi's polynomial) with d = r + k log 2, |r| <= log(2)/2."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        [value], real = arguments, context.get_value_type(d)
        wide = d == types.float64
        integer, mantissa = context.get_value_type(types.int64 if wide else types.int32), 52 if wide else 23
        # Adding 1.5 * 2^mantissa rounds to an integer, which the lowest bits then hold.
        magic = real(1.5 * 2.0**mantissa)
        shifted = b.fadd(b.fmul(value, real(1 / log(2))), magic)
        k, power = b.fsub(shifted, magic), b.shl(b.bitcast(shifted, integer), integer(mantissa))
        power = b.bitcast(b.add(power, b.bitcast(real(1.0), integer)), real)
        r = b.fsub(value, b.fmul(k, real(log(2)), flags=["contract"]), flags=["contract"])
        tail = b.fmul(b.fmul(r, r), horner(b, r, _PHI if wide else _PHI_FLOAT32))
        return context.make_tuple(b, signature.return_type, [r, power, tail])

    return types.UniTuple(d, 3)(d), generate


@instructions
def _lowest(_typing: Any, like: Any) -> Any:
    """Below this e^a is taken for 0, which it has all but reached."""

    def generate(context: Any, _b: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_value_type(like)(-700.0 if like == types.float64 else -87.0)

    return like(like), generate


@instructions
def _order(_typing: Any, value: Any) -> Any:
    """An integer that is the larger the larger the number: for those, a loop that seeks the largest runs in vectors."""
    out: Any = types.int64 if value == types.float64 else types.int32

    def generate(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        integer = context.get_value_type(out)
        bits = b.bitcast(arguments[0], integer)
        return b.xor(bits, b.lshr(b.ashr(bits, integer(out.bitwidth - 1)), integer(1)))

    return out(value), generate


# Not "reassoc": the order of these operations is what keeps the digits.
@compiled(fast=("contract", "nsz"))
def _exp(a):
    """e^a of what is not large."""
    lowest = _lowest(a)
    r, power, tail = _split(a if a > lowest else lowest)
    return power + power * (r + tail) if a > lowest else lowest * _ZERO


@compiled(fast=("contract", "nsz"))
def _weigh(p, q, top, shift):
    """w = exp(p - top), w phi(d) and w d, d = q - p - shift, and whether d lets them be computed this way."""
    weight, d = _exp(p - top), (q - p) - shift
    r, power, tail = _split(d)
    phi = ((power - _ONE) - d) + power * r + power * tail  # r^2 times the polynomial alone where d is small
    return weight, weight * phi, weight * d, (d < _MOST) & (d > _LEAST)


@compiled(fast=("reassoc", "contract", "nsz"))
def _block(p, q, top, shift):
    """The sums of w, w phi(d) and w d over a block, and whether an event is not for the quick way."""
    weights, far, mean, special = top * _ZERO, top * _ZERO, top * _ZERO, False
    for i in range(p.shape[0]):
        weight, w_phi, w_d, quick = _weigh(p[i], q[i], top, shift)
        special |= not quick
        weights += weight
        far += w_phi
        mean += w_d
    return weights, far, mean, special


@compiled()
def _special_block(p, q, top, shift, spare_p, spare_q):
    """The same over a block with impossible events, or q far above p, or what is no logit (nan).

    The last is whether an event possible under p is impossible under q; far then leaves its infinite term out.
    """
    weights, far, mean, quick, infinite = 0.0, 0.0, 0.0, 0, False
    for i in range(p.shape[0]):
        d = (q[i] - p[i]) - shift
        if d < _MOST and d > _LEAST:
            spare_p[quick], spare_q[quick] = p[i], q[i]
            quick += 1
            continue
        weight_q = exp(np.float64(q[i]) - shift - top)
        if p[i] == -inf:
            far += weight_q  # phi's term of p = 0; it is 0 where both are impossible
            continue
        weight = exp(np.float64(p[i]) - top)
        weights += weight
        if q[i] == -inf:
            infinite = True
            far -= weight
        else:
            gap = np.float64(q[i]) - np.float64(p[i]) - shift
            mean += weight * gap
            far += weight_q - weight - weight * gap
    quick_weights, quick_far, quick_mean, _ = _block(spare_p[:quick], spare_q[:quick], top, shift)
    return weights + quick_weights, far + quick_far, mean + quick_mean, infinite


@compiled()
def _sums(p, q, top, shift):
    weights, far, mean, infinite = 0.0, 0.0, 0.0, False
    for start in range(0, p.shape[0], BLOCK):
        block_p, block_q = p[start : start + BLOCK], q[start : start + BLOCK]
        narrow_weights, narrow_far, narrow_mean, special = _block(block_p, block_q, top, shift)
        if special:
            spare = np.empty((2, BLOCK), p.dtype)
            sums = _special_block(block_p, block_q, top, shift, spare[0], spare[1])
            weights, far, mean, infinite = weights + sums[0], far + sums[1], mean + sums[2], infinite or sums[3]
        else:
            weights, far, mean = weights + narrow_weights, far + narrow_far, mean + narrow_mean
    return weights, far, mean, infinite


@compiled()
def _highest(p):
    top = _order(p[0])
    for i in range(p.shape[0]):
        order = _order(p[i])
        top = order if order > top else top
    return top


@compiled()
def _likeliest(p):
    """Where p's largest entry is, or a nan."""
    top, at = _highest(p[:BLOCK]), 0
    for start in range(BLOCK, p.shape[0], BLOCK):
        highest = _highest(p[start : start + BLOCK])
        if highest > top:
            top, at = highest, start
    while _order(p[at]) != top:
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
def _solve(p, q):
    """KL(p || q), and what it comes of: top, sum of exp(p - top), and log(Z_q / Z_p) as a shift and the rest of it."""
    likeliest = _likeliest(p)
    top = p[likeliest]
    # The first shift is the gap at the likeliest event; where that is a poor guess, the sums tell a better one.
    shift = q[likeliest] - top
    if not abs(shift) < inf:
        shift = top * _ZERO
    for _ in range(4 if abs(top) < inf else 0):
        weights, far, mean, infinite = _sums(p, q, top, shift)
        x = (far + mean) / weights
        kl = far / weights - _log1p_residual(x) if x < 1 else log1p(x) - mean / weights
        kl = inf if infinite else kl
        # What the sums have lost to rounding does not show in kl.
        if x < inf and far / weights <= 8 * kl * (1 + x):
            return kl, top, weights, shift, log1p(x)
        if log1p(x) < inf:
            shift += p.dtype.type(log1p(x))
    return nan, top, nan, shift, nan


@compiled()
def _kl(p, q, tolerance):
    kl, top, weights, shift, rest = _solve(p, q)
    if tolerance < inf:
        log_mass = log(weights) + top
        if not (abs(exp(log_mass) - 1) <= tolerance and abs(exp(log_mass + shift + rest) - 1) <= tolerance):
            return nan
    return kl


@compiled(fast=("contract", "nsz"))
def _p_slopes(p, q, top, shift, rest, kl, factor, out):
    """factor exp(p - top) (log p/q - kl), 0 where p or q is impossible."""
    for i in range(p.shape[0]):
        d = ((q[i] - p[i]) - shift) - rest
        slope = factor * _exp(p[i] - top) * (-d - kl)
        out[i] = slope if abs(d) < np.float32(inf) else factor * _ZERO


@compiled(fast=("contract", "nsz"))
def _q_slopes(p, q, top, shift, rest, factor, out):
    """factor (exp(q - shift - rest - top) - exp(p - top)), from the difference where they are nearly equal."""
    for i in range(p.shape[0]):
        d = ((q[i] - p[i]) - shift) - rest
        weight = _exp(p[i] - top)
        r, power, tail = _split(d if abs(d) < _ONE else d * _ZERO)
        near = weight * ((power - _ONE) + power * (r + tail))
        far = _exp(((q[i] - shift) - rest) - top) - weight
        out[i] = factor * (near if abs(d) < _ONE else far)


_NUMBERS = (types.float64, types.float32, types.uint16)
_ROWS64, _ROWS32, _ROWS16 = (types.Array(number, 2, "C", readonly=True) for number in _NUMBERS)
_OUT = types.Array(types.float64, 1, "C")


@instructions
def _widen(_typing: Any, half: Any) -> Any:
    """bfloat16, given as its bits, in float32."""

    def generate(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        integer, real = (context.get_value_type(number) for number in (types.int32, types.float32))
        return b.bitcast(b.shl(b.zext(arguments[0], integer), integer(16)), real)

    return types.float32(half), generate


@compiled()
def _widen_row(half, row):
    for i in range(row.shape[0]):
        row[i] = _widen(half[i])


@compiled([types.void(rows, rows, types.float64, _OUT) for rows in (_ROWS64, _ROWS32)])
def _float_rows(p, q, tolerance, out):
    for i in range(out.shape[0]):
        out[i] = _kl(p[i % p.shape[0]], q[i % q.shape[0]], tolerance)


@compiled([types.void(_ROWS16, _ROWS16, types.float64, _OUT)])
def _bfloat16_rows(p, q, tolerance, out):
    wide = np.empty((2, p.shape[1]), np.float32)
    for i in range(out.shape[0]):
        _widen_row(p[i % p.shape[0]], wide[0])
        _widen_row(q[i % q.shape[0]], wide[1])
        out[i] = _kl(wide[0], wide[1], tolerance)


_OUT64, _OUT32 = (types.Array(number, 2, "C") for number in _NUMBERS[:2])
_SLOPES = [types.void(rows, rows, _OUT, out) for rows, out in ((_ROWS64, _OUT64), (_ROWS32, _OUT32))]


@compiled(_SLOPES)
def p_slope_rows(p, q, gradient, out):
    """gradient times p (log p/q - KL), the gradient of KL(p || q) by p's logits, of rows; nan as in `logit_rows`."""
    number = p.dtype.type
    for i in range(p.shape[0]):
        kl, top, weights, shift, rest = _solve(p[i], q[i])
        factor = gradient[i] / weights if kl < inf else nan
        _p_slopes(p[i], q[i], top, shift, number(rest), number(kl), number(factor), out[i])


@compiled(_SLOPES)
def q_slope_rows(p, q, gradient, out):
    """The same by the logits of q, q - p."""
    number = p.dtype.type
    for i in range(p.shape[0]):
        kl, top, weights, shift, rest = _solve(p[i], q[i])
        factor = gradient[i] / weights if kl == kl else nan
        _q_slopes(p[i], q[i], top, shift, number(rest), number(factor), out[i])


def logit_rows(p: np.ndarray, q: np.ndarray, tolerance: float, out: np.ndarray) -> None:
    """KL(p || q) of rows of logits with rows, or with one row; uint16 holds the bits of bfloat16.

    nan where they are no logits, or a mass is not 1 to within the tolerance, or the general way must judge.
    """
    (_bfloat16_rows if p.dtype == np.uint16 else _float_rows)(p, q, tolerance, out)
