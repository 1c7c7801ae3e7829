"""Checks of the prompt mask and the completion mask of a batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from kullback.doctor.finding import Finding

__all__ = [
    "check_eos_counted",
    "check_mask_shift",
    "check_masks",
    "check_padding_counted",
    "check_padding_side",
    "up_to_eos",
]


def check_masks(prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor, *, end: int | None) -> list[Finding]:
    """Check that prompts are padded on the left and that a completion counts up to its end-of-sequence token.

    Runs `check_padding_side`; then, where `end` is given, the first of `check_mask_shift`, `check_padding_counted` and
    `check_eos_counted` that finds something.

    Args:
        prompt_mask: 1 for the tokens of a prompt, 0 for padding, shape (batch, prompt).
        completion_ids: Token ids, shape (batch, time).
        mask: True for the tokens that count, shape (batch, time).
        end: The id of the end-of-sequence token; None: unknown, and only the prompts are checked.

    Returns:
        Findings named `padding-side`, `mask-shifted`, `padding-counted` or `end-not-counted`.

    Example:
        >>> ids = torch.tensor([[5, 6, 1, 0]])
        >>> check_masks(torch.ones(1, 2), ids, torch.tensor([[0, 1, 1, 1]]), end=1)[0].name
        'mask-shifted'
    """
    findings = check_padding_side(prompt_mask)
    if end is not None:
        findings += (
            check_mask_shift(completion_ids, mask, end=end)
            or check_padding_counted(completion_ids, mask, end=end)
            or check_eos_counted(completion_ids, mask, end=end)
        )
    return findings


def up_to_eos(completion_ids: Tensor, end: int) -> Tensor:
    """True up to and including the first end-of-sequence token; the shape of `completion_ids`.

    Example:
        >>> up_to_eos(torch.tensor([[5, 1, 0]]), 1)
        tensor([[ True,  True, False]])
    """
    is_eos = completion_ids == end
    return (is_eos.cumsum(-1) - is_eos.long()) == 0


class _EosCounts(NamedTuple):
    """The mask compared with the tokens up to the first end-of-sequence token, in the rows with a token that counts.

    A trainer may exclude a whole completion, so rows without any token that counts are ignored.
    """

    mask: Tensor
    expected: Tensor
    counted_after: int
    not_counted: int
    total: int

    @property
    def is_wrong(self) -> bool:
        """Whether a token after an end-of-sequence token counts, or no end-of-sequence token does."""
        return self.counted_after > 0 or (self.total > 0 and self.not_counted == self.total)

    @property
    def evidence(self) -> dict[str, int]:
        return {
            "tokens counted after the end-of-sequence token": self.counted_after,
            "end-of-sequence tokens not counted": self.not_counted,
            "end-of-sequence tokens": self.total,
        }


_COUNT_TO_EOS = (
    "set the mask to 1 from the first token of a completion to its end-of-sequence token, included; entry t of the "
    "mask belongs to token t"
)


def _compare_with_eos(completion_ids: Tensor, mask: Tensor, end: int) -> _EosCounts:
    mask, expected = mask.bool(), up_to_eos(completion_ids, end)
    rows = mask.any(-1)
    after, is_eos = (mask & ~expected)[rows], (expected & (completion_ids == end))[rows]
    not_counted = is_eos & ~mask[rows]
    return _EosCounts(mask, expected, int(after.sum()), int(not_counted.sum()), int(is_eos.sum()))


def check_padding_side(prompt_mask: Tensor) -> list[Finding]:
    """Check that prompts are padded on the left.

    Criterion: no row of the mask goes from 1 to 0. Padding between a prompt and its completion separates the two.

    Args:
        prompt_mask: 1 for the tokens of a prompt, 0 for padding, shape (batch, prompt).

    Returns:
        `padding-side` (error), or nothing.
    """
    right_padded = (prompt_mask[:, :-1] > prompt_mask[:, 1:]).any(-1)
    if not right_padded.any():
        return []
    cause = "prompts are padded on the right: there is padding between a prompt and its completion"
    remedy = 'set tokenizer.padding_side = "left" before the prompts are encoded'
    evidence = {"rows": int(right_padded.sum()), "of": len(right_padded)}
    return [Finding("padding-side", "error", cause, remedy, evidence)]


def check_mask_shift(completion_ids: Tensor, mask: Tensor, *, end: int) -> list[Finding]:
    """Check that the completion mask is not shifted by one position.

    Criterion: the mask equals, in every row with a token that counts, the correct mask moved by one position to the
    right or to the left. If all completions end, a mask moved to the left is the mask that leaves out the
    end-of-sequence token, and `check_eos_counted` finds it.

    Args:
        completion_ids: Token ids, shape (batch, time).
        mask: True for the tokens that count, shape (batch, time).
        end: The id of the end-of-sequence token.

    Returns:
        `mask-shifted` (error), or nothing.
    """
    counts = _compare_with_eos(completion_ids, mask, end)
    if not counts.is_wrong:
        return []
    rows = counts.mask.any(-1)
    for shift, direction in ((1, "late"), (-1, "early")):
        shifted = torch.roll(counts.expected, shift, dims=-1)
        shifted[:, 0 if shift > 0 else -1] = False
        has_truncated = counts.total < int(rows.sum())
        if torch.equal(counts.mask[rows], shifted[rows]) and (shift > 0 or has_truncated):
            cause = f"the completion mask is shifted by one: it starts and ends one token too {direction}"
            return [Finding("mask-shifted", "error", cause, _COUNT_TO_EOS, counts.evidence)]
    return []


def check_padding_counted(completion_ids: Tensor, mask: Tensor, *, end: int) -> list[Finding]:
    """Check that no token after the end-of-sequence token counts.

    Criterion: the mask is 0 at every position after the first end-of-sequence token.

    Args:
        completion_ids: Token ids, shape (batch, time).
        mask: True for the tokens that count, shape (batch, time).
        end: The id of the end-of-sequence token.

    Returns:
        `padding-counted` (error), or nothing.
    """
    counts = _compare_with_eos(completion_ids, mask, end)
    if counts.counted_after == 0:
        return []
    cause = "tokens after the end-of-sequence token count: the KL and the lengths include padding"
    return [Finding("padding-counted", "error", cause, _COUNT_TO_EOS, counts.evidence)]


def check_eos_counted(completion_ids: Tensor, mask: Tensor, *, end: int) -> list[Finding]:
    """Check that the end-of-sequence token counts.

    Criterion: the mask is 1 at the end-of-sequence token of at least one completion that has such a token.

    Args:
        completion_ids: Token ids, shape (batch, time).
        mask: True for the tokens that count, shape (batch, time).
        end: The id of the end-of-sequence token.

    Returns:
        `end-not-counted` (warning), or nothing.
    """
    counts = _compare_with_eos(completion_ids, mask, end)
    if counts.total == 0 or counts.not_counted < counts.total:
        return []
    cause = "the end-of-sequence token never counts: no KL penalty applies to the decision to stop"
    return [Finding("end-not-counted", "warning", cause, _COUNT_TO_EOS, counts.evidence)]
