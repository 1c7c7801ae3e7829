"""The sums over rows of logits and their gradients by Triton kernels on a GPU; see `rows` for the equations.

One program computes one row, a block of tokens at a time. The sums of the lanes of a block are kept in float32, and are
added in float64 at the end.
"""

# The functions of Triton are called in other ways than their signatures state.
# pyright: reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from kullback.numerics.array_types import Float

__all__ = ["applies", "gradients", "normalizers", "sums"]

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_BLOCK = 1024
_WARPS = 8


def applies(*logits: Tensor) -> bool:
    """Whether the kernels accept these logits: contiguous, in float32, on a GPU."""
    return all(
        z.dtype == torch.float32 and z.is_contiguous() and (z.is_cuda or _INTERPRETED) and z.shape[1] > 0
        for z in logits
    )


def normalizers(
    z: Float[Tensor, "rows vocab"], added: Float[Tensor, "rows vocab"] | None = None
) -> Float[Tensor, "rows 3"]:
    """max z, log sum exp(z - max z) and the index of max z of each row."""
    result = torch.empty(len(z), 3, dtype=torch.float64, device=z.device)
    if len(z):
        _normalizers[(len(z),)](
            z,
            z if added is None else added,
            result,
            z.shape[1],
            ADDED=added is not None,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return result


def sums(
    p: Float[Tensor, "rows vocab"],
    q: Float[Tensor, "rows vocab"],
    given: Float[Tensor, "rows 4"],
    *,
    middles: bool,
    difference: bool = False,
) -> Float[Tensor, "rows 10"]:
    """The sums of each pair of rows."""
    result = torch.zeros(len(p), 10, dtype=torch.float64, device=p.device)
    if len(p):
        grid = (len(p),)
        _sums[grid](
            p,
            q,
            given.contiguous(),
            result,
            p.shape[1],
            MIDDLES=middles,
            DIFFERENCE=difference,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return result


def gradients(
    p: Float[Tensor, "rows vocab"],
    q: Float[Tensor, "rows vocab"],
    given: Float[Tensor, "rows 4"],
    of_p: Float[Tensor, "rows 7"] | None,
    of_q: Float[Tensor, "rows 7"] | None,
    *,
    difference: bool = False,
) -> None:
    """Overwrite the logits with their gradients, unless the coefficients of a side are None."""
    if not len(p):
        return
    sides = [None if of is None else of.contiguous() for of in (of_p, of_q)]
    unused = given.new_empty(1)
    _gradients[(len(p),)](
        p,
        q,
        given.contiguous(),
        *(unused if of is None else of for of in sides),
        p.shape[1],
        OF_P=of_p is not None,
        OF_Q=of_q is not None,
        DIFFERENCE=difference,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


inf = tl.constexpr(float("inf"))
LOG2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _finite(top):
    """The maximum of a row, or 0 where all tokens are impossible."""
    return tl.where(top > -inf, top, 0.0)


@triton.jit
def _near(c):
    """phi(c) and e^c - 1 for |c| < 1, by Taylor's series."""
    series = 1 / 3628800 + c * (1 / 39916800)
    series = 1 / 362880 + c * series
    series = 1 / 40320 + c * series
    series = 1 / 5040 + c * series
    series = 1 / 720 + c * series
    series = 1 / 120 + c * series
    series = 1 / 24 + c * series
    series = 1 / 6 + c * series
    phi = c * c * (0.5 + c * series)
    return phi, c + phi


@triton.jit
def _row(given, row):
    """The scalars of a row: maxima, factors of the exponentials, and log(Z_q/Z_p) as a sum of two parts."""
    top_p, log_z_p = _finite(tl.load(given + 4 * row)), tl.load(given + 4 * row + 1)
    top_q, log_z_q = _finite(tl.load(given + 4 * row + 2)), tl.load(given + 4 * row + 3)
    difference = log_z_q - log_z_p
    shift = difference.to(tl.float32)
    rest = (difference - shift.to(tl.float64)).to(tl.float32)
    factor_p = tl.exp(top_p - log_z_p).to(tl.float32)
    factor_q = tl.exp(top_q - log_z_q).to(tl.float32)
    return top_p.to(tl.float32), top_q.to(tl.float32), factor_p, factor_q, shift, rest


@triton.jit
def _terms(a, b, top_p, top_q, factor_p, factor_q, shift, rest, DIFFERENCE: tl.constexpr):
    """z_q, d, p, q, q - p and p phi(d), where phi(d) is right for |d| < 1."""
    if DIFFERENCE:
        d = (b - shift) - rest
        b = a + b
    else:
        d = ((b - a) - shift) - rest
    weight = tl.exp(a - top_p) * factor_p
    weight_q = tl.exp(b - top_q) * factor_q
    close = tl.abs(d) < 1.0
    phi, e = _near(tl.where(close, d, 0.0))
    excess = tl.where(close, weight * e, weight_q - weight)
    weight_q = tl.where(close, weight + excess, weight_q)
    return b, d, weight, weight_q, excess, weight * phi, close


@triton.jit
def _middle(d, possible_p, possible_q):
    """g, log(p/m) and log(q/m)."""
    both = possible_p & possible_q
    d = tl.where(both, d, 0.0)
    u = d * 0.5
    size = tl.abs(u)
    _, e = _near(tl.where(size < 0.5, d, 0.0))
    y = tl.exp(-2.0 * size)
    t = tl.where(size < 0.5, e / (e + 2.0), tl.where(u > 0, 1.0, -1.0) * (1.0 - y) / (1.0 + y))
    square = t * t
    series = 0.00910581417243113318 + square * 0.0138421045833923778
    series = 0.0181347099342122213 + square * series
    series = 0.0333164194142644323 + square * series
    series = 0.0833337046136074376 + square * series
    near = square * (0.499999998694392537 + square * series)
    log1p_y = tl.log(1.0 + y)
    far = LOG2 - log1p_y - size * (1.0 - tl.abs(t))
    small = square <= 0.25
    g = tl.where(small, near, far)
    log_cosh = tl.where(small, u * t - near, size + (log1p_y - LOG2))
    single = possible_p ^ possible_q
    return (
        tl.where(single, LOG2, g),
        tl.where(single, LOG2, -u - log_cosh),
        tl.where(single, LOG2, u - log_cosh),
    )


@triton.jit
def _normalizers(z, added, out, n, ADDED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    z += row * n
    added += row * n
    lanes = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), -inf, tl.float32)
    index = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, n, BLOCK):
        a = tl.load(z + start + lanes, mask=start + lanes < n, other=-inf)
        if ADDED:
            a += tl.load(added + start + lanes, mask=start + lanes < n, other=0.0)
        larger = (a > top) | (a != a)
        top = tl.where(larger, a, top)
        index = tl.where(larger, start + lanes, index)
    largest = tl.max(top, 0)
    first = tl.min(tl.where(top == largest, index, n), 0)
    base = _finite(largest)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        a = tl.load(z + start + lanes, mask=start + lanes < n, other=-inf)
        if ADDED:
            a += tl.load(added + start + lanes, mask=start + lanes < n, other=0.0)
        total += tl.exp(a - base)
    tl.store(out + 3 * row, largest.to(tl.float64))
    tl.store(out + 3 * row + 1, tl.log(tl.sum(total.to(tl.float64), 0)))
    tl.store(out + 3 * row + 2, first.to(tl.float64))


@triton.jit
def _sums(p, q, given, out, n, MIDDLES: tl.constexpr, DIFFERENCE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    p += row * n
    q += row * n
    out += 10 * row
    top_p, top_q, factor_p, factor_q, shift, rest = _row(given, row)
    lanes = tl.arange(0, BLOCK)
    mass = tl.zeros((BLOCK,), tl.float32)
    phi_sum, excess_sum, reverse_sum, absolute = mass, mass, mass, mass
    logits_p, logits_q, js, middle_p, middle_q = mass, mass, mass, mass, mass
    for start in range(0, n, BLOCK):
        inside = start + lanes < n
        a = tl.load(p + start + lanes, mask=inside, other=-inf)
        b = tl.load(q + start + lanes, mask=inside, other=-inf)
        b, d, weight, weight_q, excess, phi, close = _terms(
            a, b, top_p, top_q, factor_p, factor_q, shift, rest, DIFFERENCE
        )
        possible_p, possible_q = a != -inf, b != -inf
        both = possible_p & possible_q
        gap = tl.where(both, d, 0.0)
        phi = tl.where(close, phi, excess - weight * gap)
        reverse = tl.where(both, gap * excess - phi, tl.where(possible_q, inf, weight))
        phi = tl.where(both, phi, tl.where(possible_p, inf, weight_q))
        mass += weight
        phi_sum += phi
        excess_sum += excess
        reverse_sum += reverse
        absolute += tl.abs(excess)
        logits_p += weight * tl.where(possible_p, a - top_p, 0.0)
        logits_q += weight_q * tl.where(possible_q, b - top_q, 0.0)
        if MIDDLES:
            g, log_p_m, log_q_m = _middle(d, possible_p, possible_q)
            js += (weight + weight_q) * g
            middle_p += weight * log_p_m
            middle_q += weight_q * log_q_m
    tl.store(out, tl.sum(mass.to(tl.float64), 0))
    tl.store(out + 1, tl.sum(phi_sum.to(tl.float64), 0))
    tl.store(out + 2, tl.sum(excess_sum.to(tl.float64), 0))
    tl.store(out + 3, tl.sum(reverse_sum.to(tl.float64), 0))
    tl.store(out + 4, tl.sum(absolute.to(tl.float64), 0))
    tl.store(out + 5, tl.sum(logits_p.to(tl.float64), 0))
    tl.store(out + 6, tl.sum(logits_q.to(tl.float64), 0))
    if MIDDLES:
        tl.store(out + 7, tl.sum(js.to(tl.float64), 0) / 2)
        tl.store(out + 8, tl.sum(middle_p.to(tl.float64), 0))
        tl.store(out + 9, tl.sum(middle_q.to(tl.float64), 0))


@triton.jit
def _side(of, z, top, prob, excess, ratio, middle, possible):
    """The gradient of a side from its seven coefficients."""
    constant, by_ratio = tl.load(of).to(tl.float32), tl.load(of + 1).to(tl.float32)
    difference, by_middle = tl.load(of + 2).to(tl.float32), tl.load(of + 3).to(tl.float32)
    by_logits, scale = tl.load(of + 4).to(tl.float32), tl.load(of + 5).to(tl.float32)
    curvature = tl.load(of + 6).to(tl.float32)
    inner = constant + tl.where(by_ratio != 0, by_ratio * ratio, 0.0)
    inner += tl.where(by_middle != 0, by_middle * middle, 0.0)
    inner += tl.where(by_logits != 0, by_logits * (z - top), 0.0)
    gradient = tl.where(possible, prob * inner, 0.0) + difference * excess
    shape = tl.where(possible, z, 0.0)
    gradient = gradient * (scale - curvature * shape * shape)
    return tl.where(z == z, gradient, z)


@triton.jit
def _gradients(
    p,
    q,
    given,
    of_p,
    of_q,
    n,
    OF_P: tl.constexpr,
    OF_Q: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    p += row * n
    q += row * n
    top_p, top_q, factor_p, factor_q, shift, rest = _row(given, row)
    lanes = tl.arange(0, BLOCK)
    for start in range(0, n, BLOCK):
        inside = start + lanes < n
        a = tl.load(p + start + lanes, mask=inside, other=-inf)
        b = tl.load(q + start + lanes, mask=inside, other=-inf)
        b, d, weight, weight_q, excess, _, _ = _terms(a, b, top_p, top_q, factor_p, factor_q, shift, rest, DIFFERENCE)
        possible_p, possible_q = a != -inf, b != -inf
        ratio = tl.where(possible_p & possible_q, d, d * inf)
        _, log_p_m, log_q_m = _middle(d, possible_p, possible_q)
        if OF_P:
            by_p = _side(of_p + 7 * row, a, top_p, weight, excess, ratio, -log_p_m, possible_p)
            tl.store(p + start + lanes, by_p, mask=inside)
        if OF_Q:
            by_q = _side(of_q + 7 * row, b, top_q, weight_q, excess, ratio, log_q_m, possible_q)
            tl.store(q + start + lanes, by_q, mask=inside)
