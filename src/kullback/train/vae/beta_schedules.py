"""What a nat of KL costs along a run that has no budget, and which nats are free."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

__all__ = ["Constant", "Cyclical", "FreeBits", "Linear", "Schedule", "priced_kl"]


class Schedule(Protocol):
    """Beta by step."""

    def beta(self, step: int) -> float:
        """The coefficient of the KL at a step, counted from 1."""
        ...


@dataclass(frozen=True)
class Constant:
    """beta throughout; 1 is the evidence bound, above 1 the beta-VAE.

    Source: [higgins2017].
    """

    value: float = 1.0

    def beta(self, step: int) -> float:
        del step
        return self.value


@dataclass(frozen=True)
class Linear:
    """From 0 to `value` over the first `warmup` steps.

    Source: [bowman2016], who anneal by a sigmoid or a line.

    Example:
        >>> Linear(1.0, warmup=100).beta(25)
        0.25
    """

    value: float = 1.0
    warmup: int = 1000

    def beta(self, step: int) -> float:
        return self.value * min(1.0, step / self.warmup)


@dataclass(frozen=True)
class Cyclical:
    """`cycles` times from 0 to `value`, along the first `ratio` of each cycle, then level.

    Source: [fu2019], eqs. 6-7.

    Example:
        >>> [round(Cyclical(1.0, total=400, cycles=4, ratio=0.5).beta(step), 2) for step in (1, 26, 75, 101)]
        [0.0, 0.5, 1.0, 0.0]
    """

    value: float = 1.0
    total: int = 1000
    cycles: int = 4
    ratio: float = 0.5

    def beta(self, step: int) -> float:
        length = self.total / self.cycles
        along = ((step - 1) % length) / length
        return self.value * min(1.0, along / self.ratio)


@dataclass(frozen=True)
class FreeBits:
    """The first `nats` of KL cost nothing.

    Args:
        nats: How many are free: of each latent dimension, or of all of an example's.
        of: "dimension": the mean over the batch of each dimension's KL, as Kingma et al. have it, so that a dimension
            may spend more on one image and less on another; "example": the KL of each example, all dimensions together.

    Source: [kingma2016], eq. 15, for "dimension".
    """

    nats: float = 0.0
    of: Literal["dimension", "example"] = "dimension"


def priced_kl(kl: torch.Tensor, free: FreeBits | None) -> torch.Tensor:
    """The KL that beta multiplies: the mean over the batch, less what is free.

    With free nats f, sum_j max(f, mean_i kl_ij) of dimensions j, or mean_i max(f, sum_j kl_ij) of examples i.

    Args:
        kl: Nats, shape (batch, latents).
        free: What is free, or None.

    Returns:
        Nats an example, a scalar; no gradient where all is free.

    Example:
        >>> kl = torch.tensor([[0.1, 0.7], [0.3, 0.9]])
        >>> round(float(priced_kl(kl, FreeBits(0.5))), 6), round(float(priced_kl(kl, FreeBits(0.9, of="example"))), 6)
        (1.3, 1.05)
    """
    if free is None:
        return kl.sum(1).mean()
    if free.of == "dimension":
        return kl.mean(0).clamp(min=free.nats).sum()
    return kl.sum(1).clamp(min=free.nats).mean()
