"""Statistics of next-token distributions from hidden states, without storing the logits of all positions."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from kullback.errors import ArrayTypeError, ShapeError, SupportError
from kullback.numerics.arguments import is_index, is_number, shown
from kullback.numerics.array_types import Float, Int, Shaped
from kullback.numerics.arrays import require_untransformed
from kullback.tokens import engine
from kullback.tokens.logits import as_logits, as_mask, logit_kl, require_temperature, require_tensors
from kullback.tokens.stats import (
    COLUMNS,
    DIFFERENTIABLE,
    Part,
    TokenStats,
    as_stats,
    as_targets,
    as_weights,
    balance_top,
    coefficients,
    row_statistics,
    without_levels,
)

__all__ = ["head_token_kl", "linear_token_kl"]

_HALF = (torch.float16, torch.bfloat16)
_TILE = 4096  # the rows of a head that are converted or subtracted at a time
_DISTANT = 0.5  # the relative distance from which the difference of the logits has no more digits than the logits
_CLOSE = 1 / 24  # the relative distance of two models below which rounded logits would lose digits of the gradient


def linear_token_kl(
    hidden_p: Float[Tensor, "*batch d"],
    weight_p: Float[Tensor, "vocab d"],
    hidden_q: Float[Tensor, "*batch e"],
    weight_q: Float[Tensor, "vocab e"],
    *,
    targets: Int[Tensor, "*batch"] | None = None,
    token_weights: Float[Tensor, "*batch"] | Mapping[str, Tensor] | None = None,
    bias_p: Float[Tensor, " vocab"] | None = None,
    bias_q: Float[Tensor, " vocab"] | None = None,
    temperature: float = 1.0,
    softcap_p: float | None = None,
    softcap_q: float | None = None,
    logit_scale_p: float = 1.0,
    logit_scale_q: float = 1.0,
    mask: Shaped[Tensor, "*batch"] | None = None,
    group: Any = None,
    chunk: int = 256,
) -> TokenStats:
    """KL(p || q) and other statistics of next-token distributions, from hidden states and linear output heads.

        token_stats(logits(hidden_p, weight_p) / temperature, logits(hidden_q, weight_q) / temperature), where
        logits(hidden, weight) = cap(logit_scale * (hidden @ weight.T + bias)), where cap(z) = c tanh(z/c)

    The logits are computed for one chunk of positions at a time, so that never all logits are in memory. A
    gradient needs four matrix products with `token_weights`, three if a head is frozen, and six without
    `token_weights`, because the logits are then computed again in the backward pass.

    Args:
        hidden_p: Shape (..., d): the inputs of p's output head, after the final normalisation.
        weight_p: Shape (V, d): p's output head.
        hidden_q: Shape (..., e): the inputs of q's output head at the same positions; e may differ from d.
        weight_q: Shape (V, e): q's output head over the same vocabulary. Where a head is padded beyond the tokens of
            the tokenizer, pass the rows of the tokens alone: padding takes part in the softmax.
        targets: Token ids, shape (...), for `log_prob_p` and `log_prob_q`; any numbers where the mask is false.
        token_weights: Shape (...): the derivative of the loss with respect to `kl` at each position, up to one factor
            for all positions. The gradient is then computed in the forward pass. A mapping from names to weights for
            other statistics: {"js": weights}. If the derivative differs, the gradient is computed again, correctly.
        bias_p: Shape (V,): the bias of p's output head; None for no bias.
        bias_q: Shape (V,): the bias of q's output head; None for no bias.
        temperature: The divisor of the logits, > 0.
        softcap_p: The bound c of p's capped logits; None for no cap.
        softcap_q: The bound c of q's capped logits; None for no cap.
        logit_scale_p: The factor of p's logits before the cap.
        logit_scale_q: The factor of q's logits before the cap.
        mask: Shape (...), true (or nonzero) for the positions that count. Other positions are not computed; their
            results and gradients are 0. None: all positions count.
        group: The process group whose processes each have a part of the rows of both heads and of the biases, in the
            order of their ranks, and the same hidden states and targets. The sums over the vocabulary are reduced over
            the group: results and gradients are exact. None: the heads are whole. A head that is a DTensor with rows
            in shards brings its group.
        chunk: The number of positions per chunk, >= 1.

    Returns:
        The statistics; see `TokenStats`. Nats per position, float32, or float64 if an input is float64. Divergences,
        entropies and log-probabilities have first derivatives with respect to hidden states, weights and biases.
        Products of float16 and bfloat16 are accumulated in float32 and not rounded to half precision. Under autocast,
        the products use the dtype of autocast. The gradients of two close models (heads and hidden states that differ
        by less than 1/24) are computed from the difference of their logits. Otherwise the rounding of the logits
        limits them: logits of 30 are rounded by 1e-6, which is an absolute error of the gradient by a logit.

    Raises:
        ArrayTypeError: A hidden state or a weight is not a tensor, or there are weights of an unknown statistic.
        ShapeError: The shapes do not match, or `chunk` is less than 1.
        SupportError: The temperature, a cap or a scale is not a positive finite number.

    Example:
        >>> hidden, head = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> linear_token_kl(hidden, head, hidden, head).kl
        tensor([0., 0.])
    """
    biases = {name: bias for name, bias in (("bias_p", bias_p), ("bias_q", bias_q)) if bias is not None}
    require_tensors(hidden_p=hidden_p, weight_p=weight_p, hidden_q=hidden_q, weight_q=weight_q, **biases)
    require_untransformed("linear_token_kl", hidden_p, weight_p, hidden_q, weight_q, *biases.values())
    weight_p, bias_p, part_p = _local_head("p", weight_p, bias_p, group)
    weight_q, bias_q, part_q = _local_head("q", weight_q, bias_q, group)
    group = part_p if part_p is not None else part_q
    if group is not None and not isinstance(group, torch.distributed.ProcessGroup):
        raise ArrayTypeError(f"expected group to be a process group of torch.distributed, got {shown(group)}")
    if part_p is not part_q:
        raise ShapeError("expected both heads in shards of one process group, got one in shards and one whole")
    require_heads(hidden_p, weight_p, bias_p, hidden_q, weight_q, bias_q)
    transforms = tuple(
        _Transform(
            require_positive(f"logit_scale_{side}", scale),
            None if cap is None else require_positive(f"softcap_{side}", cap),
        )
        for side, scale, cap in (("p", logit_scale_p, softcap_p), ("q", logit_scale_q, softcap_q))
    )
    shape = hidden_p.shape[:-1]
    rows_p, rows_q = hidden_p.reshape(-1, hidden_p.shape[-1]), hidden_q.reshape(-1, hidden_q.shape[-1])
    offset, vocabulary = _vocabulary_part(len(weight_p), group, weight_p.device)
    if vocabulary == 0:
        raise ShapeError("expected at least one token in the vocabulary, got heads without rows")
    if 0 in (hidden_p.shape[-1], hidden_q.shape[-1]):
        raise ShapeError("expected hidden states of at least one dimension, got a last axis of length 0")
    known = {name: weights.reshape(-1) for name, weights in as_weights(token_weights, shape).items()}
    kept = None
    temperature, chunk = require_settings(temperature, chunk)
    if mask is not None:
        kept = as_mask(mask, shape).reshape(-1).nonzero().squeeze(-1)
        rows_p, rows_q = rows_p[kept], rows_q[kept]
        known = {name: weights[kept] for name, weights in known.items()}
    ids = as_targets(targets, shape, vocabulary, kept)
    settings = _Settings(transforms, float(temperature), chunk, Part(group, offset), known)
    values = _LinearTokenStats.apply(*_autocast(rows_p, weight_p, bias_p, rows_q, weight_q, bias_q), ids, settings)
    if kept is not None:
        values = [table.new_zeros(shape.numel(), table.shape[1]).index_copy(0, kept, table) for table in values]
    return as_stats(tuple(values), shape, has_targets=targets is not None)


def head_token_kl(
    hidden_p: Float[Tensor, "*batch d"],
    head_p: Callable[[Tensor], Tensor],
    hidden_q: Float[Tensor, "*batch e"],
    head_q: Callable[[Tensor], Tensor],
    *,
    mask: Shaped[Tensor, "*batch"] | None = None,
    temperature: float = 1.0,
    chunk: int = 256,
) -> Float[Tensor, "*batch"]:
    """KL(p || q) of the next-token distributions at every position, for output heads that are any functions.

        KL = token_kl(head_p(hidden_p), head_q(hidden_q))

    The heads are called for one chunk of positions at a time, and again for the gradient, so that the logits of at most
    one chunk are in memory. `linear_token_kl` is the faster function for linear heads.

    Args:
        hidden_p: Shape (..., d): the inputs of p's output head.
        head_p: The output head of p, a function from shape (n, d) to logits of shape (n, V). It must act on each
            position alone. Parameters that it uses receive gradients.
        hidden_q: Shape (..., e): the inputs of q's output head at the same positions; e may differ from d.
        head_q: The output head of q over the same vocabulary.
        mask: Shape (...), true (or nonzero) for the positions that count. Other positions are not computed; their
            result and gradient are 0. None: all positions count.
        temperature: The divisor of the logits, > 0.
        chunk: The number of positions per chunk, >= 1.

    Returns:
        Shape (...), nats per position, float32 or float64. `inf` where a logit of q is -inf for a token and the logit
        of p is not; nan where a logit is nan or +inf.

    Raises:
        ArrayTypeError: A hidden state is not a tensor, or a head is not a function that returns tensors.
        ShapeError: The shapes do not match, or `chunk` is less than 1.
        SupportError: The temperature is not a positive finite number.

    Example:
        >>> hidden, head = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> head_token_kl(hidden, lambda h: torch.tanh(h @ head.T), hidden, lambda h: torch.tanh(h @ head.T))
        tensor([0., 0.])
    """
    require_tensors(hidden_p=hidden_p, hidden_q=hidden_q)
    for name, head in (("head_p", head_p), ("head_q", head_q)):
        if not callable(head):
            raise ArrayTypeError(f"expected {name} to be a function of hidden states, got {shown(head)}")
    _require_positions(hidden_p, hidden_q)
    temperature, chunk = require_settings(temperature, chunk)

    def chunk_kl(rows_p: Float[Tensor, "rows d"], rows_q: Float[Tensor, "rows e"]) -> Float[Tensor, " rows"]:
        if not len(rows_p):
            return rows_p.sum(dim=-1, dtype=torch.promote_types(rows_p.dtype, torch.float32))
        logits_p, logits_q = head_p(rows_p), head_q(rows_q)
        require_tensors(**{"the logits of head_p": logits_p, "the logits of head_q": logits_q})
        if logits_p.shape != logits_q.shape:
            raise ShapeError(
                f"expected one vocabulary, got logits of shapes {tuple(logits_p.shape)} and {tuple(logits_q.shape)}"
            )
        return logit_kl(*as_logits(logits_p, logits_q), temperature)

    return _chunked(chunk_kl, hidden_p, hidden_q, mask, chunk)


@dataclass(frozen=True)
class _Transform:
    """What is done to the logits of a head before the temperature: the scale, and then the cap."""

    scale: float
    cap: float | None

    def apply(self, logits: Tensor, temperature: float) -> None:
        """Replace the products by logits."""
        if self.cap is not None:
            logits.mul_(self.scale / self.cap).tanh_().mul_(self.cap / temperature)
        elif self.scale != temperature:
            logits.mul_(self.scale / temperature)

    def apply_to_change(self, changes: Tensor, products: Tensor, temperature: float) -> None:
        """Replace the changes of the products by the changes of the logits, of which `products` are those before.

        tanh(x + y) - tanh(x) = sinh(y) / (cosh(x) cosh(x + y)), which does not cancel. With |y| - |x| - |x + y| <= 0 as
        an exponent, it does not overflow, and has all digits where tanh(x) is 1 to rounding.
        """
        if self.cap is None:
            self.apply(changes, temperature)
            return
        for change, product in zip(changes.split(_TILE, dim=1), products.split(_TILE, dim=1), strict=True):
            y = change.mul_(self.scale / self.cap)
            x = product * (self.scale / self.cap)
            before, after, size = x.abs(), (x + y).abs(), y.abs()
            far = (size - before - after).exp() / (((-2 * before).exp() + 1) * ((-2 * after).exp() + 1))
            change.copy_(-2 * (-2 * size).expm1() * far * y.sign()).mul_(self.cap / temperature)

    def derivative(self, temperature: float) -> tuple[float, float]:
        """a and b of the derivative a - b z^2 of the logits z with respect to the products."""
        return self.scale / temperature, 0.0 if self.cap is None else self.scale * temperature / self.cap**2


@dataclass(frozen=True)
class _Settings:
    transforms: tuple[_Transform, ...]
    temperature: float
    chunk: int
    part: Part
    known: dict[str, Tensor]  # upstream weights by the name of the statistic


# hidden_p, weight_p, bias_p, hidden_q, weight_q and bias_q.
_Inputs: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]


class _LinearTokenStats(torch.autograd.Function):
    """The columns of the statistics from hidden states and heads, a chunk of positions at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_p: Tensor,
        weight_p: Tensor,
        bias_p: Tensor | None,
        hidden_q: Tensor,
        weight_q: Tensor,
        bias_q: Tensor | None,
        targets: Tensor | None,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        inputs = (hidden_p, weight_p, bias_p, hidden_q, weight_q, bias_q)
        run = _Chunks(inputs, targets, settings)
        upstream = None
        if settings.known and any(ctx.needs_input_grad[:6]):
            upstream = torch.zeros(len(hidden_p), len(DIFFERENTIABLE), dtype=torch.float64, device=hidden_p.device)
            for name, weights in settings.known.items():
                upstream[:, COLUMNS[name]] = weights
        table = torch.empty(len(hidden_p), len(COLUMNS), dtype=torch.float64, device=hidden_p.device)
        given = torch.empty(len(hidden_p), 4, dtype=torch.float64, device=hidden_p.device)
        tops = torch.empty(len(hidden_p), 2, dtype=torch.int64, device=hidden_p.device)
        gradients = run.new_gradients(ctx.needs_input_grad[:6]) if upstream is not None else None
        for rows in run.slices():
            p, q = run.logits(rows)
            p, q, table[rows], given[rows], tops[rows] = row_statistics(
                p,
                q,
                run.targets(rows),
                settings.part,
                difference=run.difference is not None,
                keep_levels=run.keeps_levels,
            )
            if gradients is not None and upstream is not None:
                run.add_gradients(gradients, rows, p, q, upstream[rows], table[rows], given[rows], tops[rows])
        if gradients is not None:
            run.reduce(gradients)
        ctx.save_for_backward(*inputs, targets, table, given, tops, upstream, *(gradients or ()))
        ctx.settings = settings
        count = len(DIFFERENTIABLE)
        rest = table[:, count:].to(run.dtype)
        ctx.mark_non_differentiable(rest)
        return table[:, :count].to(run.dtype), rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs: _Inputs = ctx.saved_tensors[:6]
        targets, table, given, tops, known = ctx.saved_tensors[6:11]
        factor = _common_factor(upstream, known)
        if factor is not None:
            gradients = [None if g is None else g if factor == 1 else g * factor for g in ctx.saved_tensors[11:]]
        else:
            run = _Chunks(inputs, targets, ctx.settings)
            gradients = run.new_gradients(ctx.needs_input_grad[:6])
            for rows in run.slices():
                p, q = run.logits(rows)
                if not run.keeps_levels and bool((without := (given[rows][:, [0, 2]] == 0).all(1)).any()):
                    p, q = without_levels(p, q, without)
                run.add_gradients(gradients, rows, p, q, upstream[rows], table[rows], given[rows], tops[rows])
            run.reduce(gradients)
        cast = [
            None if g is None or tensor is None else g.to(tensor.dtype)
            for g, tensor in zip(gradients, inputs, strict=True)
        ]
        return *cast, None, None


class _Chunks:
    """The matrix products of the two heads for chunks of positions, and the gradients of what follows them."""

    def __init__(self, inputs: _Inputs, targets: Tensor | None, settings: _Settings) -> None:
        self.hidden = inputs[0], inputs[3]
        self.weight = inputs[1], inputs[4]
        self.bias = inputs[2], inputs[5]
        self.ids = targets
        self.settings = settings
        self.dtype = torch.float32
        for tensor in inputs:
            if tensor is not None:
                self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        rows = min(settings.chunk, len(self.hidden[0]))
        self.difference = self._changes()
        # The derivative of a cap is a function of the logits, and the parts of a vocabulary have maxima of their own.
        is_capped = any(transform.cap is not None for transform in settings.transforms)
        self.keeps_levels = is_capped or self.difference is not None or settings.part.group is not None
        self.buffers = [self.hidden[0].new_empty(rows, len(self.weight[0]), dtype=self.dtype) for _ in range(2)]

    def slices(self) -> list[slice]:
        count, step = len(self.hidden[0]), self.settings.chunk
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def targets(self, rows: slice) -> Tensor | None:
        return None if self.ids is None else self.ids[rows]

    def logits(self, rows: slice) -> list[Tensor]:
        """The logits of both heads at these positions, in the two buffers; with `difference`, of p and of q minus p."""
        transforms, temperature = self.settings.transforms, self.settings.temperature
        p, q = (buffer[: rows.stop - rows.start] for buffer in self.buffers)
        with _without_autocast(p):
            self._products(0, rows, p)
            if self.difference is None:
                self._products(1, rows, q)
                for transform, products in zip(transforms, (p, q), strict=True):
                    transform.apply(products, temperature)
                return [p, q]
            changes_hidden, changes_weight = self.difference
            q.zero_()
            if changes_hidden:
                q.addmm_(self.hidden[1][rows] - self.hidden[0][rows], self.weight[1].T)
            if changes_weight:
                for tile in range(0, len(self.weight[0]), _TILE):
                    part = slice(tile, tile + _TILE)
                    q[:, part].addmm_(self.hidden[0][rows], (self.weight[1][part] - self.weight[0][part]).T)
            bias_p, bias_q = self.bias
            if bias_p is not None or bias_q is not None:
                change = (0 if bias_q is None else bias_q) - (0 if bias_p is None else bias_p)
                q += torch.where(torch.isneginf(bias_p), 0.0, change) if bias_p is not None else change
            transforms[1].apply_to_change(q, p, temperature)
            transforms[0].apply(p, temperature)
        return [p, q]

    def _products(self, side: int, rows: slice, out: Tensor) -> None:
        """Write the products of a head at these positions, with its bias."""
        _product(self.hidden[side][rows], self.weight[side], out)
        bias = self.bias[side]
        if bias is not None:
            out += bias

    def _changes(self) -> tuple[bool, bool] | None:
        """Whether the hidden states and the weights differ, if the logits of q are computed by their difference from p.

        z_q - z_p = (hidden_q - hidden_p) weight_q^T + hidden_p (weight_q - weight_p)^T has more digits than the
        difference of two rounded logits. It needs one product where one side is shared, as by the frozen head of a
        policy and its reference, and two products otherwise, which are only spent where the models are close.
        """
        scale_p, scale_q = self.settings.transforms
        tensors = (*self.hidden, *self.weight)
        if self.hidden[0].shape != self.hidden[1].shape or any(tensor.dtype != self.dtype for tensor in tensors):
            return None
        if scale_p != scale_q:
            return None
        excluded = [torch.zeros((), dtype=torch.bool) if bias is None else ~bias.isfinite() for bias in self.bias]
        if any(bool(entries.any()) for entries in excluded):
            biases = [bias[entries] for bias, entries in zip(self.bias, excluded, strict=True) if bias is not None]
            # Tokens that both sides exclude are excluded by p's logits, to which 0 is added.
            if len(biases) < 2 or not torch.equal(*excluded) or any(bool((x != -math.inf).any()) for x in biases):
                return None
        distances = [_relative_distance(*self.hidden), _relative_distance(*self.weight)]
        if max(distances) < (_DISTANT if min(distances) == 0 else _CLOSE):
            return distances[0] != 0, distances[1] != 0
        return None

    def new_gradients(self, needed: tuple[bool, ...]) -> list[Tensor | None]:
        """Zeros for each input whose gradient is needed, in the dtype of the computation."""
        inputs = (self.hidden[0], self.weight[0], self.bias[0], self.hidden[1], self.weight[1], self.bias[1])
        return [
            torch.zeros(tensor.shape, dtype=self.dtype, device=tensor.device) if use and tensor is not None else None
            for tensor, use in zip(inputs, needed, strict=True)
        ]

    def add_gradients(
        self,
        gradients: list[Tensor | None],
        rows: slice,
        p: Tensor,
        q: Tensor,
        upstream: Tensor,
        table: Tensor,
        given: Tensor,
        tops: Tensor,
    ) -> None:
        """Add the gradients of these positions; the logits are overwritten."""
        of = list(coefficients(upstream, table, given))
        chosen = self._chosen(rows, (p, q))
        for side in range(2):
            scale, curvature = self.settings.transforms[side].derivative(self.settings.temperature)
            of[side][:, 5], of[side][:, 6] = scale, curvature
        needed = [any(g is not None for g in gradients[3 * side : 3 * side + 3]) for side in range(2)]
        engine.gradients(
            p,
            q,
            given,
            *(of[side] if needed[side] else None for side in range(2)),
            difference=self.difference is not None,
        )
        for side, z in enumerate((p, q)):
            if not needed[side]:
                continue
            if chosen is not None:
                inside, columns, logits = chosen
                name = "log_prob_p" if side == 0 else "log_prob_q"
                slope = of[side][inside, 5] - of[side][inside, 6] * logits[side].double().square()
                z[inside, columns] += (upstream[inside, COLUMNS[name]] * slope).to(z.dtype)
            if self.settings.transforms[side].cap is None:
                probability = table[:, COLUMNS["top1_prob_p" if side == 0 else "top1_prob_q"]]
                balance_top(z, tops[:, side], probability, self.settings.part)
            by_hidden, by_weight, by_bias = gradients[3 * side : 3 * side + 3]
            with _without_autocast(z):
                if by_hidden is not None:
                    _product_with_rows(z, self.weight[side], by_hidden[rows])
                if by_weight is not None:
                    _add_outer_product(z, self.hidden[side][rows], by_weight)
                if by_bias is not None:
                    by_bias += z.sum(0)

    def _chosen(self, rows: slice, logits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]] | None:
        """Which targets are in this part of the vocabulary, their columns and their logits."""
        if self.ids is None:
            return None
        inside, columns = self.settings.part.columns(self.ids[rows], logits[0].shape[1])
        of_p, of_q = (z[inside, columns[inside]] for z in logits)
        return inside, columns[inside], [of_p, of_q if self.difference is None else of_p + of_q]

    def reduce(self, gradients: list[Tensor | None]) -> None:
        """Sum the gradients of the hidden states over the parts of the vocabulary."""
        for index in (0, 3):
            gradient = gradients[index]
            if gradient is not None:
                self.settings.part.reduced(gradient)


def _product(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """out = hidden @ weight.T, in the dtype of `out`."""
    if hidden.dtype == weight.dtype == out.dtype:
        torch.mm(hidden, weight.T, out=out)
    elif _has_wide_products(hidden, weight):
        torch.mm(hidden, weight.T, out.dtype, out=out)  # type: ignore[call-overload]
    else:
        hidden = hidden.to(out.dtype)
        for tile in range(0, len(weight), _TILE):
            torch.mm(hidden, weight[tile : tile + _TILE].to(out.dtype).T, out=out[:, tile : tile + _TILE])


def _product_with_rows(z: Tensor, weight: Tensor, out: Tensor) -> None:
    """out = z @ weight."""
    if weight.dtype == z.dtype:
        torch.mm(z, weight, out=out)
    elif _has_wide_products(weight, weight):
        torch.mm(z.to(weight.dtype), weight, out.dtype, out=out)  # type: ignore[call-overload]
    else:
        for tile in range(0, len(weight), _TILE):
            out.addmm_(z[:, tile : tile + _TILE], weight[tile : tile + _TILE].to(z.dtype), beta=float(tile > 0))


def _add_outer_product(z: Tensor, hidden: Tensor, out: Tensor) -> None:
    """out += z.T @ hidden."""
    if _has_wide_products(hidden, hidden):
        out += torch.mm(z.to(hidden.dtype).T, hidden, out.dtype)  # type: ignore[call-overload]
    else:
        out.addmm_(z.T, hidden.to(z.dtype))


def _has_wide_products(a: Tensor, b: Tensor) -> bool:
    """Whether the device multiplies these half-precision matrices with a result in float32."""
    return a.is_cuda and a.dtype == b.dtype and a.dtype in _HALF


def _relative_distance(a: Tensor, b: Tensor) -> float:
    """The norm of a - b relative to the norm of a; 0 if and only if they are equal."""
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return 0.0
    pairs = list(zip(a.split(_TILE), b.split(_TILE), strict=True))
    if not pairs or not a.numel():
        return 0.0
    change, size = (
        math.sqrt(float(torch.stack(parts).sum()))
        for parts in ([(x - y).square().sum() for x, y in pairs], [x.square().sum() for x, _ in pairs])
    )
    if change == 0:  # also where the squares are too small for the dtype
        return 0.0 if all(torch.equal(x, y) for x, y in pairs) else math.inf
    return change / size if size > 0 else math.inf


def _without_autocast(tensor: Tensor) -> Any:
    return torch.autocast(tensor.device.type, enabled=False)


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the dtype of autocast, if it is enabled for their device."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [None if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _common_factor(upstream: Tensor, known: Tensor | None) -> float | None:
    """The factor between the upstream derivatives and the known weights; None if it differs between positions."""
    if known is None:
        return None
    if not known.numel():
        return 1.0
    at = known.abs().argmax()
    largest = known.flatten()[at]
    if not bool(largest != 0):
        return None if bool((upstream != 0).any()) else 0.0
    factor = upstream.flatten()[at].double() / largest
    scaled = factor * known
    return float(factor) if bool(((upstream - scaled).abs() <= 1e-6 * scaled.abs()).all()) else None


def _local_head(side: str, weight: Tensor, bias: Tensor | None, group: Any) -> tuple[Tensor, Tensor | None, Any]:
    """The rows of a head on this process, and the group of its parts."""
    tensors: Any = sys.modules.get("torch.distributed.tensor")  # a DTensor exists only if this is imported
    if tensors is None or not isinstance(weight, tensors.DTensor):
        return weight, bias, group
    head: Any = weight
    sharded = [index for index, placement in enumerate(head.placements) if isinstance(placement, tensors.Shard)]
    partial = any(placement.is_partial() for placement in head.placements)
    if partial or len(sharded) > 1 or any(head.placements[index].dim != 0 for index in sharded):
        raise ShapeError(
            f"expected weight_{side} with its rows in shards of one group, got placements {head.placements}; "
            "redistribute it to Shard(0)"
        )
    given_bias: Any = bias
    local_bias = given_bias.to_local() if isinstance(bias, tensors.DTensor) else bias
    found = head.device_mesh.get_group(sharded[0]) if sharded else group
    return head.to_local(), local_bias, found


def _vocabulary_part(size: int, group: Any, device: torch.device) -> tuple[int, int]:
    """The first token id of this process' part of the vocabulary, and the number of tokens of all parts."""
    if group is None:
        return 0, size
    sizes = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(sizes, torch.tensor(size, device=device), group=group)
    counts = [int(count) for count in sizes]
    return sum(counts[: torch.distributed.get_rank(group)]), sum(counts)


def require_positive(name: str, value: float) -> float:
    if not (is_number(value) and math.isfinite(value) and value > 0):
        raise SupportError(f"expected {name} to be a positive finite number, got {shown(value)}")
    return float(value)


def require_settings(temperature: float, chunk: int) -> tuple[float, int]:
    """The temperature, and the number of positions per chunk within 64 bits."""
    temperature = require_temperature(temperature)
    if not (is_index(chunk) and chunk >= 1):
        raise ShapeError(f"expected a chunk of at least 1 position, as a whole number, got {shown(chunk)}")
    return temperature, min(int(chunk), 2**62)


def _chunked(
    chunk_kl: Callable[[Tensor, Tensor], Tensor],
    hidden_p: Float[Tensor, "*batch d"],
    hidden_q: Float[Tensor, "*batch e"],
    mask: Shaped[Tensor, "*batch"] | None,
    chunk: int,
) -> Float[Tensor, "*batch"]:
    """The KL at the positions that count, by a function of one chunk of hidden states, recomputed for the gradient."""
    shape = hidden_p.shape[:-1]
    rows_p, rows_q = hidden_p.reshape(-1, hidden_p.shape[-1]), hidden_q.reshape(-1, hidden_q.shape[-1])
    kept = None
    if mask is not None:
        kept = as_mask(mask, shape).reshape(-1).nonzero().squeeze(-1)
        rows_p, rows_q = rows_p[kept], rows_q[kept]
    # If the mask is false everywhere, there is one empty chunk, so that the result is differentiable with gradient 0.
    pieces = [
        checkpoint(chunk_kl, *rows, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else chunk_kl(*rows)
        for rows in zip(rows_p.split(chunk), rows_q.split(chunk), strict=True)
    ]
    kl = torch.cat(pieces)
    if kept is not None:
        kl = kl.new_zeros(shape.numel()).index_copy(0, kept, kl)
    return kl.reshape(shape)


def require_heads(
    hidden_p: Float[Tensor, "*batch d"],
    weight_p: Float[Tensor, "vocab d"],
    bias_p: Float[Tensor, " vocab"] | None,
    hidden_q: Float[Tensor, "*batch e"],
    weight_q: Float[Tensor, "vocab e"],
    bias_q: Float[Tensor, " vocab"] | None,
) -> None:
    """Raises ShapeError unless hidden states, weights and biases match."""
    for side, hidden, weight, bias in (("p", hidden_p, weight_p, bias_p), ("q", hidden_q, weight_q, bias_q)):
        if weight.ndim != 2 or hidden.ndim == 0 or hidden.shape[-1] != weight.shape[1]:
            raise ShapeError(
                f"expected hidden_{side} (..., d) and weight_{side} (V, d), got {tuple(hidden.shape)} and "
                f"{tuple(weight.shape)}; a weight has one row per token, as in torch.nn.Linear"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(f"expected bias_{side} of shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if weight_p.shape[0] != weight_q.shape[0]:
        raise ShapeError(
            f"expected one vocabulary, got weight_p with {weight_p.shape[0]} tokens and weight_q with "
            f"{weight_q.shape[0]}; pad or truncate the heads to the tokens that both models share"
        )
    _require_positions(hidden_p, hidden_q)


def _require_positions(hidden_p: Float[Tensor, "*batch d"], hidden_q: Float[Tensor, "*batch e"]) -> None:
    """Raises ShapeError unless the hidden states have the same positions."""
    if hidden_p.shape[:-1] != hidden_q.shape[:-1]:
        raise ShapeError(
            "expected hidden_p and hidden_q at the same positions, got leading shapes "
            f"{tuple(hidden_p.shape[:-1])} and {tuple(hidden_q.shape[:-1])}"
        )
