"""Schedules of the KL coefficient beta for training without a budget, and free bits."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

__all__ = ["Constant", "Cyclical", "FreeBits", "Linear", "Schedule", "kl_with_free_bits"]


class Schedule(Protocol):
    """The coefficient beta of the KL as a function of the step."""

    def beta(self, step: int) -> float:
        """The coefficient at a step; the first step has number 1."""
        ...


@dataclass(frozen=True)
class Constant:
    """A constant beta. 1 gives the evidence lower bound, larger values give the beta-VAE.

    Args:
        value: The coefficient.

    References:
        Higgins et al., 2017 [higgins2017].
    """

    value: float = 1.0

    def beta(self, step: int) -> float:
        del step
        return self.value


@dataclass(frozen=True)
class Linear:
    """A beta that increases linearly from 0 to `value` over the first `warmup` steps and is constant afterwards.

    Args:
        value: The final coefficient.
        warmup: The number of steps of the increase.

    References:
        Bowman et al., 2016 [bowman2016], who use a sigmoid or a linear function.

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
    """A beta that increases linearly from 0 to `value` in the first part of each cycle and is constant in the rest.

    Args:
        value: The coefficient at the end of each cycle.
        total: The number of steps of all cycles together.
        cycles: The number of cycles.
        ratio: The fraction of a cycle in which beta increases.

    References:
        Fu et al., 2019 [fu2019], equations 6 and 7.

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
        phase = ((step - 1) % length) / length
        return self.value * min(1.0, phase / self.ratio)


@dataclass(frozen=True)
class FreeBits:
    """A lower limit below which the KL is not penalised.

    Args:
        nats: The limit in nats.
        of: "dimension" applies the limit to the batch mean of the KL of each latent dimension, so that a dimension may
            have a larger KL for some images than for others. "example" applies it to the KL of each example, summed
            over the dimensions.

    References:
        Kingma et al., 2016 [kingma2016], equation 15, for "dimension".
    """

    nats: float = 0.0
    of: Literal["dimension", "example"] = "dimension"


def kl_with_free_bits(kl: torch.Tensor, free: FreeBits | None) -> torch.Tensor:
    """The penalised KL: the mean over the batch, with a lower limit.

    With the limit f, this is sum_j max(f, mean_i kl_ij) for dimensions j, or mean_i max(f, sum_j kl_ij) for examples i.

    Args:
        kl: The KL of each example and latent dimension in nats, shape (batch, latents).
        free: The lower limit, or None for none.

    Returns:
        Nats per example, a scalar. The gradient is zero where the KL is below the limit.

    Example:
        >>> kl = torch.tensor([[0.1, 0.7], [0.3, 0.9]])
        >>> round(float(kl_with_free_bits(kl, FreeBits(0.5))), 6)
        1.3
        >>> round(float(kl_with_free_bits(kl, FreeBits(0.9, of="example"))), 6)
        1.05
    """
    if free is None:
        return kl.sum(1).mean()
    if free.of == "dimension":
        return kl.mean(0).clamp(min=free.nats).sum()
    return kl.sum(1).clamp(min=free.nats).mean()
