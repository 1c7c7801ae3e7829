"""Held-out completions on which the KL is measured again while the weights change."""

from collections.abc import Callable
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

__all__ = ["HeldOutCompletions", "prompt_fingerprints"]


@dataclass(frozen=True)
class HeldOutCompletions:
    """Completions, the reference's hidden states on them, and the KL of the policy at each token.

    Args:
        ids: Shape (batch, prompt + completion); prompts are padded on the left, completions on the right.
        attention: The same shape: 1 where `ids` is not padding.
        mask: Shape (batch, completion): true for the tokens that count.
        ref_hidden: Shape (batch, completion + 1, d): the reference's last hidden states, from the position before the
            first completion token.
        kl: Shape (batch, completion), nats, zero where masked.
        weight: Shape (batch,): the inverse of each row's relative sampling probability; 1 for equal probabilities, and
            0 for a row that does not count.
        place: Shape (batch,): the place of each row among the rows of all processes, newest first.
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor
    ref_hidden: Tensor
    kl: Tensor
    weight: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def take(self, rows: Tensor | slice) -> Self:
        """Return a subset of the rows."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def sample_by_kl(
        self, count: int, *, first: int = 0, gather: Callable[[Tensor], Tensor] = lambda values: values
    ) -> Self:
        """Return rows sampled with a probability proportional to their KL plus the mean KL, with inverse weights.

        Few rows contain most of the KL and most of its change. The sampling is systematic along the rows of all
        processes, sorted by prompt and completion. Thus many prompts are represented, and the sample does not depend on
        the number of processes. The mean KL bounds the weights by 2. Rows without a token that counts are not sampled.
        Each process returns the sampled rows that it has.

        Args:
            count: The number of rows to sample from all processes together.
            first: The number of rows of the processes before this one.
            gather: Concatenates tensors of shape (batch,) over all processes.
        """
        kl, counted = gather(self.kl.detach().double().sum(dim=1)), gather(self.mask.sum(dim=1)) > 0
        size = kl + kl.sum() / counted.sum() if kl.sum() > 0 else torch.ones_like(kl)
        size = torch.where(counted, size, 0.0)
        order = torch.argsort(gather(self._completion_fingerprints()), stable=True)
        order = order[torch.argsort(gather(self._fingerprints())[order], stable=True)]
        ends = size[order].cumsum(0)
        points = (torch.arange(count, device=size.device) + 0.5) * (ends[-1] / count)
        rows = order[torch.searchsorted(ends, points).clamp(max=len(order) - 1)]
        place = torch.nonzero((rows >= first) & (rows < first + len(self))).squeeze(1)
        weight = size.sum() / counted.sum() / size[rows[place]]
        return self._selected(replace(self.take(rows[place] - first), weight=weight, place=place))

    def renewed(self, added: Self, count: int, size: int) -> Self:
        """Return newly sampled rows followed by these rows, without the oldest.

        Args:
            added: The rows of this process among the newly sampled rows.
            count: The number of newly sampled rows of all processes together.
            size: The number of rows of all processes together that are kept.
        """
        both = added.concatenate(replace(self, place=self.place + count))
        return both._selected(both.take((both.place < size) & (both.weight > 0)))

    def _selected(self, rows: Self) -> Self:
        """Return the rows without the last columns if these are padding, or the first of these with weight 0.

        All processes take part in a forward pass of sharded weights, so that each process needs a row. The padding on
        the right has no effect on the tokens before it.
        """
        if len(rows) == 0:
            rows = self.take(slice(1))
            rows = replace(rows, weight=torch.zeros_like(rows.weight))
        prompt = rows.ids.shape[1] - rows.mask.shape[1]
        longest = max(1, int(rows.attention[:, prompt:].sum(dim=1).max()))
        return replace(
            rows,
            ids=rows.ids[:, : prompt + longest],
            attention=rows.attention[:, : prompt + longest],
            mask=rows.mask[:, :longest],
            ref_hidden=rows.ref_hidden[:, : longest + 1],
            kl=rows.kl[:, :longest],
        )

    def centred(
        self,
        values: Tensor,
        *,
        otherwise: float,
        first: int = 0,
        gather: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> Tensor:
        """Return one value of each row minus a baseline that does not depend on the row's own completion.

        The baseline is the mean of the other completions of the same prompt, or of all other rows if there are none.
        The rows of all processes are included, so that the baseline does not depend on the number of processes. Rows
        without a token that counts are left out of the mean.

        Args:
            values: Shape (batch,).
            otherwise: The baseline of a row without other rows.
            first: The number of rows of the processes before this one.
            gather: Concatenates tensors of shape (batch,) over all processes.
        """
        prints, counted = gather(self._fingerprints()), gather(self.mask.any(dim=1))
        all_values, own = gather(values), torch.arange(len(self), device=values.device) + first
        other = counted & (torch.arange(len(prints), device=values.device) != own[:, None])
        of_prompt = other & (prints == prints[own, None])
        chosen = torch.where(of_prompt.any(dim=1, keepdim=True), of_prompt, other).to(values.dtype)
        count = chosen.sum(dim=1)
        return values - torch.where(count > 0, chosen @ all_values / count.clamp(min=1.0), otherwise)

    def concatenate(self, others: Self) -> Self:
        """Return these rows followed by others, padded to a common shape."""
        both = (self, others)
        prompt = max(rows.ids.shape[1] - rows.mask.shape[1] for rows in both)
        completion = max(rows.mask.shape[1] for rows in both)
        padded = [rows._padded(prompt, completion) for rows in both]
        return type(self)(*(torch.cat([getattr(rows, field.name) for rows in padded]) for field in fields(self)))

    def _fingerprints(self) -> Tensor:
        prompt = self.ids.shape[1] - self.mask.shape[1]
        return prompt_fingerprints(self.ids[:, :prompt], self.attention[:, :prompt])

    def _completion_fingerprints(self) -> Tensor:
        """Return a hash of each row's completion that does not depend on the padding on its right, shape (batch,)."""
        completion = slice(self.ids.shape[1] - self.mask.shape[1], None)
        return prompt_fingerprints(self.ids[:, completion].flip(1), self.attention[:, completion].flip(1))

    def _padded(self, prompt: int, completion: int) -> Self:
        """Return the rows with prompts padded on the left and completions on the right to the given lengths."""
        right = completion - self.mask.shape[1]
        left = prompt - (self.ids.shape[1] - self.mask.shape[1])
        return type(self)(
            pad(self.ids, (left, right)),
            pad(self.attention, (left, right)),
            pad(self.mask, (0, right)),
            pad(self.ref_hidden, (0, 0, 0, right)),
            pad(self.kl, (0, right)),
            self.weight,
            self.place,
        )


def prompt_fingerprints(ids: Tensor, attention: Tensor) -> Tensor:
    """Return a hash of each row's prompt that does not depend on the padding on its left, shape (batch,)."""
    powers = torch.full_like(ids, 1_000_003).cumprod(dim=1).flip(1)  # Integer overflow wraps, which suits a hash.
    return ((ids + 1) * attention * powers).sum(dim=1)
