"""Keeps the nats that a model's posteriors say inside a budget: by the size of the encoder's steps, and at once."""

import math

import numpy as np
import torch

from kullback.budget.kl_budget import KLBudget
from kullback.budget.step import pull_and_brake
from kullback.train.vae.models import VAE, Bottleneck, kl_to_prior

__all__ = ["BudgetStep"]

_PANEL = 256  # images that the KL is looked at again on


class BudgetStep:
    """Does to the encoder what a `KLBudget` asks, and tells it what came of that.

    The prior is a posterior whose means and log standard deviations are 0: scaling what the encoder's last layers give
    pulls all posteriors towards it.

    Args:
        model: Whose encoder it acts on.
        x: Images that it learns from; some of them serve as a panel.
    """

    def __init__(self, model: VAE | Bottleneck, x: torch.Tensor) -> None:
        self.model = model
        self.panel = x[np.linspace(0, len(x) - 1, min(_PANEL, len(x))).round().astype(int)]
        self.seen = self._on_panel()

    def step(self, budget: KLBudget, optimiser: torch.optim.Optimizer) -> tuple[KLBudget, float]:
        """The optimiser's step, whose first group is the encoder; the budget after it, and the factor it pulled by."""
        encoder = optimiser.param_groups[0]
        rate = encoder["lr"]
        encoder["lr"] = rate * budget.learning_rate_scale
        optimiser.step()
        encoder["lr"] = rate
        return pull_and_brake(budget, self._pull, self._looked)

    @torch.no_grad()
    def _pull(self, factor: float) -> None:
        for layer in (self.model.encoder.loc, self.model.encoder.log_scale):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)

    def _looked(self) -> tuple[float, float, float]:
        before, self.seen = self.seen, self._on_panel()
        return before, self.seen, math.nan

    @torch.no_grad()
    def _on_panel(self) -> float:
        return float(kl_to_prior(*self.model.posterior(self.panel)).sum(1).double().mean())
