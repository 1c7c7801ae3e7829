"""Aggregation of token values into one number: over tokens, over sequences, or over sums of sequences."""

from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from kullback.errors import PenaltyError, ShapeError
from kullback.numerics.arguments import is_name, shown
from kullback.numerics.array_types import Bool, Float, Shaped
from kullback.tokens.logits import as_mask, as_scalar, can_be_checked, is_scalar, require_tensors

__all__ = ["Aggregate", "aggregate_tokens", "require_aggregate", "token_mask"]

Aggregate = Literal["token_mean", "sequence_mean", "sequence_sum"]


def aggregate_tokens(
    values: Shaped[Tensor, "batch time"],
    mask: Shaped[Tensor, "batch time"] | None = None,
    how: Aggregate = "token_mean",
    *,
    normalizer: float | Tensor | None = None,
) -> Float[Tensor, ""]:
    """The mean of token values, by one of three published conventions.

        token_mean      sum over all tokens / number of tokens                      (DAPO)
        sequence_mean   mean over sequences of (sum over tokens / number of tokens) (GRPO)
        sequence_sum    mean over sequences of the sum over tokens                  (RLOO; Dr. GRPO up to a constant)

    With "token_mean" a sequence has a weight proportional to its length; with "sequence_mean" all sequences have equal
    weight, so that each token of a long sequence has a smaller weight.

    Args:
        values: Shape (batch, time), in any unit.
        mask: Shape (batch, time), true (or nonzero) for the tokens that count. Values at other tokens are ignored, nan
            included. None: all tokens count.
        how: "token_mean", "sequence_mean" or "sequence_sum".
        normalizer: Replaces the denominator: the number of tokens for "token_mean", the number of sequences otherwise.
            Where `values` is a part of a batch, pass the count of the whole batch. For Dr. GRPO, pass the number of
            sequences times the maximal length.

    Returns:
        A scalar in the unit of `values`, in float32 or float64, differentiable. A sequence without tokens contributes
        0; a batch without tokens gives 0.

    Raises:
        ShapeError: The mask does not have the shape of `values`.
        PenaltyError: `how` is not one of the three conventions, or `normalizer` is not a positive number.

    References:
        Shao et al. (2024), "DeepSeekMath", for "sequence_mean" [shao2024].
        Yu et al. (2025), "DAPO", for "token_mean" [yu2025].
        Liu et al. (2025), "Understanding R1-Zero-Like Training", for the length bias of "sequence_mean" [liu2025].

    Example:
        >>> losses, mask = torch.tensor([[1.0, 1.0, 4.0], [3.0, 0.0, 0.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
        >>> [aggregate_tokens(losses, mask, how).item() for how in ("token_mean", "sequence_mean", "sequence_sum")]
        [2.25, 2.5, 4.5]
    """
    require_aggregate(how)
    if normalizer is not None and not is_scalar(normalizer):
        raise PenaltyError(f"expected normalizer to be a number, got {normalizer!r}")
    if normalizer is not None and can_be_checked(normalizer) and not 0 < normalizer < inf:
        raise PenaltyError(f"expected a positive finite normalizer, got {shown(normalizer)}")
    mask = token_mask(values, mask)
    values = values.to(torch.promote_types(values.dtype, torch.float32))  # sums of 16 bits overflow, or do not increase
    sums, lengths = torch.where(mask, values, 0.0).sum(-1), mask.sum(-1)
    if how == "sequence_mean":
        sums = sums / lengths.clamp(min=1)
    if normalizer is None:
        normalizer = lengths.sum().clamp(min=1) if how == "token_mean" else len(sums)
    return sums.sum() / as_scalar(normalizer)


def token_mask(
    values: Shaped[Tensor, "batch time"], mask: Shaped[Tensor, "batch time"] | None
) -> Bool[Tensor, "batch time"]:
    """The mask as booleans of the shape of `values`, (batch, time); all true if `mask` is None.

    Raises:
        ShapeError: The mask does not have the shape of `values`.
    """
    require_tensors(values=values)
    if values.ndim != 2:
        raise ShapeError(f"expected values of shape (batch, time), got {tuple(values.shape)}")
    return torch.ones_like(values, dtype=torch.bool) if mask is None else as_mask(mask, values.shape)


def require_aggregate(how: str) -> None:
    """Raises PenaltyError unless `how` is the name of an aggregation."""
    if not is_name(how, get_args(Aggregate)):
        raise PenaltyError(f"expected the aggregation to be one of {', '.join(get_args(Aggregate))}, got {how!r}")
