"""What the tensors of one batch say is wrong: its masks, and the log-probabilities that were recorded with it.

A cause is named by measuring again: whichever change makes a discrepancy vanish is what caused it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.doctor.finding import Finding
from kullback.errors import ShapeError

__all__ = ["Explanation", "check_masks", "explain", "up_to_end"]

_SHARE = 0.1  # of a discrepancy that an explanation may leave


class Explanation(NamedTuple):
    """How far recorded numbers are from what they should be, and which other computation gives them.

    Args:
        apart: Mean |recorded - truth| over the mask, in nats.
        by: The name of the explanation; None where none leaves less than a tenth of it.
        left: What it leaves.
    """

    apart: float
    by: str | None
    left: float


def explain(recorded: Tensor, truth: Tensor, explanations: Mapping[str, Tensor], mask: Tensor) -> Explanation:
    """Which of some computations recorded log-probabilities came from.

    Args:
        recorded: Shape (batch, time); nan where nothing was recorded.
        truth: What they should be.
        explanations: What they would be, by cause, each (batch, time); nan where it says nothing.
        mask: True for the tokens that count.

    Example:
        >>> truth, mask = torch.tensor([[-1.0, -2.0, -0.5]]), torch.ones(1, 3, dtype=torch.bool)
        >>> shifted = torch.tensor([[torch.nan, -1.0, -2.0]])
        >>> explain(torch.tensor([[-0.3, -1.0, -2.0]]), truth, {"shift": shifted}, mask).by
        'shift'
    """
    if not recorded.shape == truth.shape == mask.shape:
        raise ShapeError(
            f"expected recorded log-probabilities of shape {tuple(truth.shape)}, as the completions have, got "
            f"{tuple(recorded.shape)}, and a mask of shape {tuple(mask.shape)}"
        )
    apart = _apart(recorded, truth, mask)
    left = {name: _apart(recorded, other, mask) for name, other in explanations.items()}
    best = min(left, key=lambda name: left[name], default=None)
    if best is None or left[best] > _SHARE * apart:
        return Explanation(apart, None, apart)
    return Explanation(apart, best, left[best])


def _apart(a: Tensor, b: Tensor, mask: Tensor) -> float:
    away = (a.double() - b.double()).abs()[mask.bool() & ~a.isnan() & ~b.isnan()]
    return float(away.mean()) if away.numel() else float("inf")


def up_to_end(completion_ids: Tensor, end: int) -> Tensor:
    """True up to the first end mark, that included; the same shape."""
    ends = completion_ids == end
    return (ends.cumsum(-1) - ends.long()) == 0


def check_masks(prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor, *, end: int | None) -> list[Finding]:
    """Whether the masks cover what they should: prompts padded on the left, completions up to their end mark.

    Args:
        prompt_mask: Shape (batch, prompt): 1 for what is not padding.
        completion_ids: Shape (batch, time).
        mask: The same shape: true for the tokens that count.
        end: The id of the end mark; None: unknown, and the completions are not judged.

    Example:
        >>> ids = torch.tensor([[5, 6, 1, 0]])
        >>> check_masks(torch.ones(1, 2), ids, torch.tensor([[0, 1, 1, 1]]), end=1)[0].name
        'mask-shifted'
    """
    found = []
    holes = (prompt_mask[:, :-1] > prompt_mask[:, 1:]).any(-1)
    if holes.any():
        cause = "prompts are padded on the right: padding stands between a prompt and its completion"
        remedy = 'set tokenizer.padding_side = "left" before the prompts are encoded'
        found.append(Finding("padding-side", "error", cause, remedy, {"rows": int(holes.sum()), "of": len(holes)}))
    if end is None:
        return found
    mask, proper = mask.bool(), up_to_end(completion_ids, end)
    judged = mask.any(-1)  # a row left out as a whole is the trainer's choice
    over, ended = (mask & ~proper)[judged], (proper & (completion_ids == end))[judged]
    short = ended & ~mask[judged]
    if not over.any() and not (ended.any() and bool(short.sum() == ended.sum())):
        return found
    evidence = {
        "tokens beyond the end mark": int(over.sum()),
        "end marks left out": int(short.sum()),
        "end marks": int(ended.sum()),
    }
    remedy = "count a completion's tokens from its first to its end mark, that included: position t belongs to token t"
    for by, side in ((1, "late"), (-1, "early")):
        moved = torch.roll(proper, by, dims=-1)
        moved[:, 0 if by > 0 else -1] = False
        if torch.equal(mask[judged], moved[judged]):
            cause = f"the mask is shifted by one: it begins and ends one token too {side}"
            return [*found, Finding("mask-shifted", "error", cause, remedy, evidence)]
    if over.any():
        cause = "tokens after the end mark count: padding is in the KL and in the lengths"
        return [*found, Finding("padding-counted", "error", cause, remedy, evidence)]
    cause = "the end mark never counts: the policy is not held to the reference in when to stop"
    return [*found, Finding("end-not-counted", "warning", cause, remedy, evidence)]
