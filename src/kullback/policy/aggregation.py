"""From values at tokens to one number: over which tokens, and what each sequence weighs."""

from typing import Literal, get_args

import torch
from torch import Tensor

from kullback.errors import PenaltyError
from kullback.tokens.logits import as_mask

__all__ = ["Aggregate", "aggregate_tokens", "counted", "require_aggregate"]

Aggregate = Literal["token_mean", "sequence_mean", "sequence_sum"]


def aggregate_tokens(
    values: Tensor,
    mask: Tensor | None = None,
    how: Aggregate = "token_mean",
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """The mean of values at tokens.

        token_mean      sum over all tokens / number of tokens               (DAPO: a long sequence weighs more)
        sequence_mean   mean over sequences of (sum over tokens / number)    (GRPO: its tokens weigh less)
        sequence_sum    mean over sequences of the sum over tokens           (RLOO; Dr. GRPO, up to a constant)

    Args:
        values: Shape (batch, time).
        mask: Shape (batch, time), true (or not 0) for the tokens that count; the rest may hold anything. None: all do.
        how: One of the three.
        normalizer: Replaces the number of tokens (token_mean) or of sequences. Pass the count of the whole batch where
            `values` is a part of it; for Dr. GRPO, pass the number of sequences times the maximal length.

    Returns:
        A number, differentiable. A sequence without tokens counts as 0, and so does a batch without any.

    Raises:
        ShapeError: The mask does not fit.
        PenaltyError: `how` is none of the three.

    Source: [shao2024] for sequence_mean, [yu2025] for token_mean, [liu2025] for what sequence_mean does to lengths.

    Example:
        >>> losses, mask = torch.tensor([[1.0, 1.0, 4.0], [3.0, 0.0, 0.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
        >>> [aggregate_tokens(losses, mask, how).item() for how in ("token_mean", "sequence_mean", "sequence_sum")]
        [2.25, 2.5, 4.5]
    """
    require_aggregate(how)
    kept = counted(values, mask)
    sums, lengths = torch.where(kept, values, 0.0).sum(-1), kept.sum(-1)
    if how == "sequence_mean":
        sums = sums / lengths.clamp(min=1)
    if normalizer is None:
        normalizer = lengths.sum().clamp(min=1) if how == "token_mean" else len(sums)
    return sums.sum() / normalizer


def counted(values: Tensor, mask: Tensor | None) -> Tensor:
    """True for the tokens that count, of the values' shape (batch, time); all of them where there is no mask.

    Raises:
        ShapeError: The mask does not fit.
    """
    return torch.ones_like(values, dtype=torch.bool) if mask is None else as_mask(mask, values.shape)


def require_aggregate(how: str) -> None:
    if how not in get_args(Aggregate):
        raise PenaltyError(f"expected an aggregate of {', '.join(get_args(Aggregate))}, got {how!r}")
