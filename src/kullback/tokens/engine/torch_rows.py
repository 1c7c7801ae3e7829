"""The sums over rows of logits and their gradients, by PyTorch's operations; see `rows` for the equations."""

from math import factorial, log

import torch
from torch import Tensor

from kullback.numerics.array_types import Float

__all__ = ["gradients", "normalizers", "sums"]

# The entries of a block of rows, whose temporary tensors are a small part of the memory of a chunk.
_BLOCK_ENTRIES = 2**20

# Tokens with |d| below this bound use phi, without cancellation; the others use exponentials of both sides.
_CLOSE = 1.0

# The coefficients of g / t^2 as a series in t^2, with t = tanh(d/2): 1 / (2 k (2 k - 1)).
_SERIES = [1 / (2 * k * (2 * k - 1)) for k in range(1, 17)]

# The coefficients of phi(d) / d^2 as a series in d.
_PHI_SERIES = [1 / factorial(k) for k in range(2, 13)]


def normalizers(
    z: Float[Tensor, "rows vocab"], added: Float[Tensor, "rows vocab"] | None = None
) -> Float[Tensor, "rows 3"]:
    """max z, log sum exp(z - max z) and the index of max z of each row, in float64; z is the sum of both arguments."""
    if z.shape[1] == 0:  # a part of a vocabulary without tokens
        return torch.tensor([-torch.inf, -torch.inf, 0.0], dtype=torch.float64, device=z.device).repeat(len(z), 1)
    result = torch.empty(len(z), 3, dtype=torch.float64, device=z.device)
    for rows in _blocks(z):
        block = z[rows] if added is None else z[rows] + added[rows]
        top, index = block.max(dim=-1)
        finite = torch.where(top > -torch.inf, top, 0.0)
        result[rows, 1] = (block - finite[:, None]).exp().sum(-1, dtype=torch.float64).log()
        result[rows, 0], result[rows, 2] = top.double(), index.double()
    return result


def sums(
    p: Float[Tensor, "rows vocab"],
    q: Float[Tensor, "rows vocab"],
    given: Float[Tensor, "rows 4"],
    *,
    middles: bool,
    difference: bool = False,
) -> Float[Tensor, "rows 10"]:
    """The sums of each pair of rows, in float64."""
    result = torch.zeros(len(p), 10, dtype=torch.float64, device=p.device)
    for rows in _blocks(p):
        a, b, d, weight, weight_q, excess = _row_terms(p[rows], q[rows], given[rows], difference)
        possible_p, possible_q = a != -torch.inf, b != -torch.inf
        both = possible_p & possible_q
        bounded = d.clamp(-_CLOSE, _CLOSE)
        near = bounded.expm1() - bounded
        # A series for the smallest d, where the difference has no digits.
        small = bounded.abs() < 0.1
        series = bounded.square() * _polynomial(bounded, _PHI_SERIES)
        gap = torch.where(both, d, 0.0)
        phi = torch.where(d.abs() < _CLOSE, weight * torch.where(small, series, near), excess - weight * gap)
        reverse = gap * excess - phi
        phi = torch.where(both, phi, torch.where(possible_p, torch.inf, weight_q))
        reverse = torch.where(both, reverse, torch.where(possible_q, torch.inf, weight))
        above_p = torch.where(possible_p, a - _finite(given[rows, 0:1]).to(a.dtype), 0.0)
        above_q = torch.where(possible_q, b - _finite(given[rows, 2:3]).to(b.dtype), 0.0)
        columns = [weight, phi, excess, reverse, excess.abs(), weight * above_p, weight_q * above_q]
        if middles:
            g, log_p_m, log_q_m = _middle_terms(d, possible_p, possible_q)
            columns += [(weight + weight_q) * g / 2, weight * log_p_m, weight_q * log_q_m]
        for column, values in enumerate(columns):
            result[rows, column] = values.sum(-1, dtype=torch.float64)
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
    for rows in _blocks(p):
        z_p, z_q, d, weight, weight_q, excess = _row_terms(p[rows], q[rows], given[rows], difference)
        possible_p, possible_q = z_p != -torch.inf, z_q != -torch.inf
        ratio = torch.where(possible_p & possible_q, d, d * torch.inf)
        _, log_p_m, log_q_m = _middle_terms(d, possible_p, possible_q)
        for out, of, z, top, prob, middle, possible in (
            (p, of_p, z_p, given[rows, 0:1], weight, -log_p_m, possible_p),
            (q, of_q, z_q, given[rows, 2:3], weight_q, log_q_m, possible_q),
        ):
            if of is None:
                continue
            constant, by_ratio, by_excess, by_middle, by_logits, scale, curvature = (
                of[rows].to(z.dtype).unsqueeze(-1).unbind(1)
            )
            inner = constant + torch.where(by_ratio != 0, by_ratio * ratio, 0.0)
            inner = inner + torch.where(by_middle != 0, by_middle * middle, 0.0)
            inner = inner + torch.where(by_logits != 0, by_logits * (z - _finite(top).to(z.dtype)), 0.0)
            gradient = torch.where(possible, prob * inner, 0.0) + by_excess * excess
            gradient = gradient * torch.where(
                possible, scale - curvature * torch.where(possible, z, 0.0).square(), scale
            )
            out[rows] = torch.where(z.isnan(), z, gradient)


def _blocks(z: Float[Tensor, "rows vocab"]) -> list[slice]:
    size = max(1, _BLOCK_ENTRIES // max(1, z.shape[1]))
    return [slice(start, start + size) for start in range(0, len(z), size)]


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _finite(top: Float[Tensor, "rows 1"]) -> Float[Tensor, "rows 1"]:
    return torch.where(top > -torch.inf, top, 0.0)


def _row_terms(
    p: Tensor, q: Tensor, given: Tensor, is_difference: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The logits, d = log q - log p, p, q and q - p of a block of rows."""
    difference = given[:, 3:4] - given[:, 1:2]
    shift = difference.to(p.dtype)
    rest = (difference - shift).to(p.dtype)
    d = ((q if is_difference else q - p) - shift) - rest
    q = p + q if is_difference else q
    top_p, top_q = _finite(given[:, 0:1]), _finite(given[:, 2:3])
    weight = (p - top_p.to(p.dtype)).exp() * (top_p - given[:, 1:2]).exp().to(p.dtype)
    weight_q = (q - top_q.to(q.dtype)).exp() * (top_q - given[:, 3:4]).exp().to(q.dtype)
    excess = torch.where(d.abs() < _CLOSE, weight * d.clamp(-_CLOSE, _CLOSE).expm1(), weight_q - weight)
    weight_q = torch.where(d.abs() < _CLOSE, weight + excess, weight_q)
    return p, q, d, weight, weight_q, excess


def _middle_terms(d: Tensor, possible_p: Tensor, possible_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """g, log(p/m) and log(q/m), with m = (p + q)/2."""
    u = torch.where(possible_p & possible_q, d, 0.0) / 2
    size = u.abs()
    t = u.tanh()
    square = t.square()
    near = square * _polynomial(square, _SERIES)
    log1p_y = (-2 * size).exp().log1p()
    far = log(2) - log1p_y - size * (1 - t.abs())
    small = square <= 0.1
    g = torch.where(small, near, far)
    log_cosh = torch.where(small, u * t - near, size + (log1p_y - log(2)))
    single = possible_p ^ possible_q
    g = torch.where(single, log(2), g)
    return g, torch.where(single, log(2), -u - log_cosh), torch.where(single, log(2), u - log_cosh)
