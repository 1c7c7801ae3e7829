"""Statistics of two next-token distributions at every position: divergences, entropies and agreement, in one pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup, ReduceOp, all_reduce

from kullback.errors import ArrayTypeError, ShapeError
from kullback.numerics.array_types import Bool, Float, Int
from kullback.numerics.arrays import require_untransformed
from kullback.numerics.phi import phi
from kullback.numerics.records import EqualByValue
from kullback.tokens import engine
from kullback.tokens.logits import as_logits, require_tensors

__all__ = ["TokenStats", "token_stats"]


@dataclass(frozen=True, eq=False)
class TokenStats(EqualByValue):
    """Statistics of p and q at every position; each field has the shape of the positions. Units are nats.

    Args:
        kl: KL(p || q) = sum_v p_v log(p_v/q_v), >= 0; `inf` where a token is possible under p alone.
        reverse_kl: KL(q || p), >= 0; `inf` where a token is possible under q alone.
        js: The Jensen-Shannon divergence (KL(p || m) + KL(q || m))/2 with m = (p + q)/2; between 0 and log 2.
        entropy_p: -sum_v p_v log p_v.
        entropy_q: -sum_v q_v log q_v.
        log_prob_p: log p of the target token; None without targets.
        log_prob_q: log q of the target token; None without targets.
        total_variation: sum_v |p_v - q_v|/2, a probability.
        expected_acceptance: sum_v min(p_v, q_v) = 1 - total_variation, the probability that speculative sampling
            accepts a token that is drawn from one model and verified by the other.
        top1_agreement: Whether the most probable token is the same; the first of several in a tie.
        top1_prob_p: max_v p_v, the confidence of p.
        top1_prob_q: max_v q_v.

    Example:
        >>> stats = token_stats(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
        >>> f"{stats.total_variation.item():.4f}, {stats.expected_acceptance.item():.4f}", stats.top1_agreement.item()
        ('0.4621, 0.5379', False)
    """

    kl: Float[Tensor, "..."]
    reverse_kl: Float[Tensor, "..."]
    js: Float[Tensor, "..."]
    entropy_p: Float[Tensor, "..."]
    entropy_q: Float[Tensor, "..."]
    log_prob_p: Float[Tensor, "..."] | None
    log_prob_q: Float[Tensor, "..."] | None
    total_variation: Float[Tensor, "..."]
    expected_acceptance: Float[Tensor, "..."]
    top1_agreement: Bool[Tensor, "..."]
    top1_prob_p: Float[Tensor, "..."]
    top1_prob_q: Float[Tensor, "..."]


# The statistics that have gradients, in the order of the columns of the engine's results.
DIFFERENTIABLE = ("kl", "reverse_kl", "js", "entropy_p", "entropy_q", "log_prob_p", "log_prob_q")
_COLUMNS = (*DIFFERENTIABLE, "middle_p", "middle_q", "total_variation", "top1_agreement", "top1_prob_p", "top1_prob_q")
COLUMNS = {name: column for column, name in enumerate(_COLUMNS)}

_MAX_LEVEL = 64.0  # the distance of the largest logits of p and of q up to which their differences keep their digits
_TILE = 4096  # the derivatives that are added in their own dtype


def token_stats(
    p_logits: Float[Tensor, "*batch vocab"],
    q_logits: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"] | None = None,
) -> TokenStats:
    """Statistics of p = softmax(p_logits) and q = softmax(q_logits) at every position, in one pass.

        KL(p || q) = sum_v p_v phi(log(q_v/p_v)), where phi(d) = e^d - 1 - d

    The divergences are sums of non-negative terms that do not cancel for nearly equal distributions. They, the
    entropies and the log-probabilities are differentiable once.

    Args:
        p_logits: Shape (..., V); -inf for a token of probability 0. float16 and bfloat16 are converted to float32.
        q_logits: Shape (..., V); -inf for a token of probability 0.
        targets: Token ids, shape (...), for `log_prob_p` and `log_prob_q`; None: they are None.

    Returns:
        The statistics, each of shape (...), float32 or float64 (`top1_agreement`: bool). nan where a logit is nan or
        +inf, or where all logits are -inf. Not defined where the difference of two float64 logits exceeds 1.8e308.

    Raises:
        ArrayTypeError: The logits are not tensors of real numbers, or the targets are not integers.
        ShapeError: The shapes differ, the vocabulary is empty, or a target is not the id of a token.

    Example:
        >>> p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> stats = token_stats(p, q)
        >>> [round(stats.kl.item(), 6), round(stats.reverse_kl.item(), 6), round(stats.total_variation.item(), 6)]
        [0.120115, 0.110944, 0.231059]
    """
    require_tensors(p_logits=p_logits, q_logits=q_logits)
    require_untransformed("token_stats", p_logits, q_logits)
    if p_logits.is_complex() or q_logits.is_complex():
        raise ArrayTypeError(f"expected real logits, got {p_logits.dtype} and {q_logits.dtype}")
    if p_logits.shape != q_logits.shape or p_logits.ndim == 0 or p_logits.shape[-1] == 0:
        raise ShapeError(
            f"expected p_logits and q_logits of one shape (..., V), got {tuple(p_logits.shape)} and "
            f"{tuple(q_logits.shape)}; the models must share a vocabulary and the same positions"
        )
    p, q = as_logits(p_logits, q_logits)
    *batch, vocabulary = p.shape
    rows = as_targets(targets, batch, vocabulary)
    values = _TokenStats.apply(p.reshape(-1, vocabulary), q.reshape(-1, vocabulary), rows)
    return as_stats(values, batch, has_targets=targets is not None)


class _TokenStats(torch.autograd.Function):
    """The differentiable columns of the statistics, and the others."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        p, q, table, given, tops = row_statistics(p, q, targets)
        ctx.save_for_backward(p, q, given, table, tops, targets)
        count = len(DIFFERENTIABLE)
        rest = table[:, count:].to(p.dtype)
        ctx.mark_non_differentiable(rest)
        return table[:, :count].to(p.dtype), rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        p, q, given, table, tops, targets = ctx.saved_tensors
        by_p, by_q = p.clone(memory_format=torch.contiguous_format), q.clone(memory_format=torch.contiguous_format)
        of_p, of_q = coefficients(upstream, table, given)
        needs_p, needs_q = ctx.needs_input_grad[:2]
        engine.gradients(by_p, by_q, given, of_p if needs_p else None, of_q if needs_q else None)
        for gradient, needed, side in ((by_p, needs_p, "p"), (by_q, needs_q, "q")):
            if needed:
                if targets is not None:
                    gradient.scatter_add_(1, targets[:, None], upstream[:, COLUMNS[f"log_prob_{side}"], None])
                balance_top(gradient, tops[:, "pq".index(side)], table[:, COLUMNS[f"top1_prob_{side}"]])
        return by_p if needs_p else None, by_q if needs_q else None, None


def as_stats(values: tuple[Tensor, Tensor], batch: list[int] | torch.Size, *, has_targets: bool) -> TokenStats:
    """The statistics from their columns."""
    columns = [column.reshape(batch) for table in values for column in table.unbind(1)]
    named = dict(zip(_COLUMNS, columns, strict=True))
    return TokenStats(
        **{name: named[name] for name in DIFFERENTIABLE[:5]},
        log_prob_p=named["log_prob_p"] if has_targets else None,
        log_prob_q=named["log_prob_q"] if has_targets else None,
        total_variation=named["total_variation"],
        expected_acceptance=1 - named["total_variation"],
        top1_agreement=named["top1_agreement"] != 0,
        top1_prob_p=named["top1_prob_p"],
        top1_prob_q=named["top1_prob_q"],
    )


def as_targets(
    targets: Tensor | None, batch: list[int] | torch.Size, vocabulary: int, kept: Tensor | None = None
) -> Tensor | None:
    """The targets of the kept positions as a row of int64; raises unless there is one token id for each position."""
    if targets is None:
        return None
    require_tensors(targets=targets)
    if targets.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise ArrayTypeError(f"expected targets of integers, got {targets.dtype}")
    if list(targets.shape) != list(batch):
        raise ShapeError(f"expected one target for each position, shape {tuple(batch)}, got {tuple(targets.shape)}")
    rows = targets.reshape(-1).long()
    rows = rows if kept is None else rows[kept]
    # A check on a GPU would synchronise it; there an id outside the vocabulary is an error of the gather.
    if rows.device.type == "cpu" and rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < vocabulary):
        raise ShapeError(
            f"expected targets from 0 to {vocabulary - 1}, got {int(rows.min())} to {int(rows.max())}; where a "
            "position does not count, exclude it by the mask of linear_token_kl, or replace the id by any token id"
        )
    return rows


@dataclass(frozen=True)
class Part:
    """The part of the vocabulary whose logits this process has.

    Args:
        group: The processes that have the other parts; None: the part is the whole vocabulary.
        offset: The id of the first token of the part.
    """

    group: ProcessGroup | None = None
    offset: int = 0

    def columns(self, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Whether the targets are in this part of so many tokens, and their columns in it."""
        columns = targets - self.offset
        return (columns >= 0) & (columns < size), columns

    def reduced(self, values: Tensor, operation: Any = ReduceOp.SUM) -> Tensor:
        """The sum (or another reduction) of the values over all parts."""
        if self.group is not None:
            values = values.contiguous()
            all_reduce(values, operation, group=self.group)
        return values


_WHOLE = Part()


def _normalizers(z: Tensor, part: Part, added: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """max z of the part, max z, log Z and the id of the most probable token of each row."""
    top, log_sum, index = engine.normalizers(z, added).unbind(1)
    if part.group is None:
        return top, top, top + log_sum, index
    largest = part.reduced(top.clone(), ReduceOp.MAX)
    base = torch.where(largest.isfinite(), largest, 0.0)
    # exp(top - base) is 0, not nan, for a part whose tokens are all impossible.
    log_z = base + part.reduced((top - base).exp() * torch.where(top > -torch.inf, log_sum, 0.0).exp()).log()
    index = torch.where(top == largest, index + part.offset, torch.inf)
    return top, largest, log_z, part.reduced(index, ReduceOp.MIN)


def _sums(p: Tensor, q: Tensor, given: Tensor, tops: tuple[Tensor, Tensor], part: Part, difference: bool) -> Tensor:
    """The sums of each pair of rows over the whole vocabulary, with the logits relative to their maxima `tops`."""
    sums = engine.sums(p, q, given, middles=True, difference=difference)
    if part.group is None:
        return sums
    for column, mass, own, top in (
        (5, sums[:, 0], given[:, 0], tops[0]),
        (6, sums[:, 0] + sums[:, 2], given[:, 2], tops[1]),
    ):
        sums[:, column] += torch.where(mass != 0, mass * (own - top), 0.0)
    return part.reduced(sums)


def row_statistics(
    p: Tensor,
    q: Tensor,
    targets: Tensor | None,
    part: Part = _WHOLE,
    *,
    difference: bool = False,
    keep_levels: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The logits, the statistics of each pair of rows, the normalisers of the engine's gradients, and the top ids.

    The logits are those that were given, except in rows whose maxima differ by much, where they are copies with the
    maxima 0 unless `keep_levels` (see `without_levels`). Statistics
    and normalisers are float64; the ids of the most probable tokens of p and of q have shape (rows, 2). With
    `difference`, `q` is the logits of q minus the logits of p.
    """
    top_p, largest_p, log_z_p, index_p = _normalizers(p, part)
    top_q, largest_q, log_z_q, index_q = _normalizers(p if difference else q, part, q if difference else None)
    far = (largest_p - largest_q).abs() > _MAX_LEVEL
    if not (difference or keep_levels) and bool(far.any()):
        p, q = without_levels(p, q, far)
        top_p, largest_p, log_z_p, index_p = _normalizers(p, part)
        top_q, largest_q, log_z_q, index_q = _normalizers(q, part)
    given = torch.stack([top_p, log_z_p, top_q, log_z_q], dim=1)
    tops = largest_p, largest_q
    sums = _sums(p, q, given, tops, part, difference)
    table = _statistics(sums, given, tops)
    rows = torch.ones(len(p), dtype=torch.bool, device=p.device)
    for _ in range(3):
        x = torch.where(rows, _mass_ratio(sums), 0.0)
        given[:, 3] += torch.where(x.isfinite(), x, 0.0)
        # Where the rounding of the normalisers exceeds the differences of the logits, the two parts of the KL cancel.
        rows = phi(x) > table[:, COLUMNS["kl"]] / 8
        if not bool(rows.any()):
            break
        chosen = largest_p[rows], largest_q[rows]
        sums[rows] = _sums(p[rows], q[rows], given[rows], chosen, part, difference)
        table[rows] = _statistics(sums[rows], given[rows], chosen)
    table[:, COLUMNS["top1_agreement"]] = (index_p == index_q).double()
    if targets is not None:
        inside, columns = part.columns(targets, p.shape[1])
        for name, logits, log_z in (("log_prob_p", p, given[:, 1]), ("log_prob_q", q, given[:, 3])):
            chosen = torch.zeros_like(log_z)
            chosen[inside] = logits[inside, columns[inside]].double()
            if difference and logits is q:
                chosen[inside] += p[inside, columns[inside]].double()
            table[:, COLUMNS[name]] = part.reduced(chosen) - log_z
    return p, q, table, given, torch.stack([index_p, index_q], dim=1).long()


def without_levels(p: Tensor, q: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of the logits whose maxima are 0 in some of the rows, which changes no probability.

    The difference of two logits loses the digits of the smaller where both sides are at different levels, such as the
    logits 1e7 and 0 of a teacher that is certain.

    Args:
        p: The logits of p, shape (rows, V).
        q: The logits of q.
        rows: Booleans, shape (rows,).
    """
    tops = [torch.where(rows, z.amax(1), 0.0) for z in (p, q)]
    return tuple(  # pyright: ignore[reportReturnType]
        z - torch.where(top.isfinite(), top, 0.0)[:, None] for z, top in zip((p, q), tops, strict=True)
    )


def balance_top(gradient: Tensor, tops: Tensor, probability: Tensor, part: Part = _WHOLE) -> None:
    """Set the derivative with respect to the largest logit to minus the sum of the others, where its token dominates.

    The derivatives of a function of a softmax with respect to the logits sum to 0. Where one token has more than half
    of the probability, its derivative is a small difference of large numbers, and the others have more digits.

    Args:
        gradient: The derivatives with respect to the logits of one side, which are changed in place.
        tops: The ids of the most probable tokens of that side.
        probability: Their probabilities.
        part: The part of the vocabulary that the columns of `gradient` are.
    """
    inside, columns = part.columns(tops, gradient.shape[1])
    at = inside.nonzero().squeeze(-1), columns[inside]
    top = gradient[at]
    gradient[at] = 0.0
    tiles = [tile.sum(1).double() for tile in gradient.split(_TILE, dim=1)]
    others = part.reduced(torch.stack(tiles).sum(0))
    dominates = ((probability > 0.5) & others.isfinite())[inside]
    gradient[at] = torch.where(dominates, -others[inside].to(top.dtype), top)


def _mass_ratio(sums: Tensor) -> Tensor:
    """log(Q/P), where P and Q are the sums of the computed probabilities, which are 1 up to rounding."""
    return torch.log1p(sums[:, 2] / sums[:, 0])


def _statistics(
    sums: Float[Tensor, "rows 10"], given: Float[Tensor, "rows 4"], tops: tuple[Tensor, Tensor]
) -> Float[Tensor, "rows 13"]:
    """The columns of the statistics from the sums over the whole vocabulary."""
    mass, mass_q, x = sums[:, 0], sums[:, 0] + sums[:, 2], _mass_ratio(sums)
    # Both parts of the divergences are of the second order in the rounding of the masses.
    kl = sums[:, 1] / mass - phi(x)
    reverse_kl = sums[:, 3] / mass_q - phi(-x)
    js = sums[:, 7] - x * x / 8
    entropy_p = (given[:, 1] - tops[0]) - sums[:, 5] / mass
    entropy_q = (given[:, 3] - tops[1]) - sums[:, 6] / mass_q
    empty = torch.zeros_like(kl)
    middle_p, middle_q = sums[:, 8] + x / 2, sums[:, 9] - x / 2
    top1_probs = [(top - log_z).exp() for top, log_z in ((tops[0], given[:, 1]), (tops[1], given[:, 3]))]
    columns = [kl, reverse_kl, js, entropy_p, entropy_q, empty, empty, middle_p, middle_q, sums[:, 4] / 2, empty]
    columns += top1_probs
    # False where a logit is nan or all logits are -inf.
    valid = (mass > 0) & (mass_q > 0)
    return torch.where(valid[:, None], torch.stack(columns, dim=1), torch.nan)


def coefficients(upstream: Tensor, table: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """The engine's coefficients of the gradients with respect to the logits of p and of q, without scale and cap."""
    w = dict(zip(DIFFERENTIABLE, upstream.double().unbind(1), strict=True))
    value = {name: table[:, column] for name, column in COLUMNS.items()}

    def times(weight: Tensor, factor: Tensor) -> Tensor:
        return torch.where(weight != 0, weight * factor, 0.0)

    # d entropy / dz_i = -p_i (log p_i + entropy), with log p_i = (z_i - max z) + (max z - log Z).
    constant_p = -times(w["kl"], value["kl"]) - times(w["js"], value["middle_p"]) / 2 - w["log_prob_p"]
    constant_p = constant_p - times(w["entropy_p"], given[:, 0] - given[:, 1] + value["entropy_p"])
    constant_q = -times(w["reverse_kl"], value["reverse_kl"]) - times(w["js"], value["middle_q"]) / 2 - w["log_prob_q"]
    constant_q = constant_q - times(w["entropy_q"], given[:, 2] - given[:, 3] + value["entropy_q"])
    one, zero = torch.ones_like(constant_p), torch.zeros_like(constant_p)
    of_p = [constant_p, -w["kl"], -w["reverse_kl"], -w["js"] / 2, -w["entropy_p"], one, zero]
    of_q = [constant_q, w["reverse_kl"], w["kl"], w["js"] / 2, -w["entropy_q"], one, zero]
    return torch.stack(of_p, dim=1), torch.stack(of_q, dim=1)


def as_weights(weights: Tensor | Mapping[str, Tensor] | None, shape: torch.Size) -> dict[str, Tensor]:
    """The known upstream weights by the name of the statistic; a tensor is the weights of `kl`."""
    if weights is None:
        return {}
    named = dict(weights) if isinstance(weights, Mapping) else {"kl": weights}
    require_tensors(**{f"the weights of {name}": weight for name, weight in named.items()})
    for name, weight in named.items():
        if weight.shape != shape:
            raise ShapeError(
                f"expected one weight for each position, shape {tuple(shape)}, got {tuple(weight.shape)} for {name}"
            )
        if name not in DIFFERENTIABLE:
            raise ArrayTypeError(f"expected weights of {', '.join(DIFFERENTIABLE)}, got weights of {name!r}")
    return named
