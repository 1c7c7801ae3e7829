"""Sampled positions at which the KL is looked at again while the weights change."""

from dataclasses import dataclass, fields, replace
from typing import Self

from kullback.errors import MissingDependencyError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install 'kullback[train]'") from error

from torch import Tensor
from torch.nn.functional import pad

from kullback.policy.estimators import sum_after

__all__ = ["HeldOutCompletions", "prompt_fingerprints"]


@dataclass(frozen=True)
class HeldOutCompletions:
    """Completions, what the reference makes of them, and the policy's KL from it there.

    Args:
        ids: Shape (batch, prompt + completion), prompts padded on the left, completions on the right.
        attention: The same shape: 1 for what is not padding.
        mask: Shape (batch, completion): true for the tokens that count.
        ref_hidden: Shape (batch, completion + 1, d): the reference's states, from the one before the first token.
        kl: Shape (batch, completion), nats, zero where masked.
        weight: Shape (batch,): what each counts, 1 where it is no likelier to be here than the others were.
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor
    ref_hidden: Tensor
    kl: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def take(self, rows: Tensor | slice) -> Self:
        """Some of the rows."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def drawn(self, count: int) -> Self:
        """So many of the rows, those of much KL likelier than others and weighted down by as much.

        Few rows have most of the KL, and most of its change. They are taken at equal distances along the rows' sizes,
        prompt by prompt, so that they are of many prompts; a size is the KL and the mean KL, so that none weighs more
        than 2.
        """
        kl = self.kl.detach().double().sum(dim=1)
        size = kl + kl.mean() if kl.sum() > 0 else torch.ones_like(kl)
        order = torch.argsort(self._fingerprints(), stable=True)
        ends = size[order].cumsum(0)
        places = (torch.arange(count, device=size.device) + 0.5) * (ends[-1] / count)
        rows = order[torch.searchsorted(ends, places).clamp(max=len(order) - 1)]
        return replace(self.take(rows), weight=size.mean() / size[rows])

    def still_to_come(self) -> Tensor:
        """The KL of each row's later tokens, less the mean of the prompt's other rows at the same place (no gradient).

        What the others have is independent of the row's own token: it takes noise away, and nothing else. A row that is
        alone of its prompt is held against all others.
        """
        later = sum_after(self.kl.detach())
        others = self._same_prompt().fill_diagonal_(False)
        everyone = ~torch.eye(len(self), dtype=torch.bool, device=others.device)
        others = torch.where(others.any(dim=1, keepdim=True), others, everyone).to(later.dtype)
        return later - others @ later / others.sum(dim=1, keepdim=True).clamp(min=1.0)

    def followed_by(self, others: Self) -> Self:
        """These rows and the others', padded to one shape."""
        prompt, completion = (
            max(one.ids.shape[1] - one.mask.shape[1] for one in (self, others)),
            max(one.mask.shape[1] for one in (self, others)),
        )
        first, second = self._padded(prompt, completion), others._padded(prompt, completion)
        return type(self)(*(torch.cat([getattr(one, field.name) for one in (first, second)]) for field in fields(self)))

    def _same_prompt(self) -> Tensor:
        prints = self._fingerprints()
        return prints[:, None] == prints[None, :]

    def _fingerprints(self) -> Tensor:
        prompt = self.ids.shape[1] - self.mask.shape[1]
        return prompt_fingerprints(self.ids[:, :prompt], self.attention[:, :prompt])

    def _padded(self, prompt: int, completion: int) -> Self:
        right = completion - self.mask.shape[1]
        left = prompt - (self.ids.shape[1] - self.mask.shape[1])
        return type(self)(
            pad(self.ids, (left, right)),
            pad(self.attention, (left, right)),
            pad(self.mask, (0, right)),
            pad(self.ref_hidden, (0, 0, 0, right)),
            pad(self.kl, (0, right)),
            self.weight,
        )


def prompt_fingerprints(ids: Tensor, attention: Tensor) -> Tensor:
    """A number for each row that is equal for equal prompts, however much padding stands on their left."""
    powers = torch.full_like(ids, 1_000_003).cumprod(dim=1).flip(1)  # wraps around, as a hash may
    return ((ids + 1) * attention * powers).sum(dim=1)
