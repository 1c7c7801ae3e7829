"""The KL budget of a VAE's encoder or of a bottleneck: the mean KL(q(z | x) || prior) over images is held."""

import numpy as np
import torch

from kullback.budget.step import BudgetStep, HeldOutMean
from kullback.train.vae.models import VAE, Bottleneck, kl_to_prior

__all__ = ["encoder_budget_step"]

# The relative standard error of a step's change of KL is 0.3% with 64 images, and `KLFilter` assumes at least 1.2%.
_HELD_OUT_IMAGES = 64


def encoder_budget_step(model: VAE | Bottleneck, x: torch.Tensor) -> BudgetStep:
    """Return the `BudgetStep` that acts on a model's encoder.

    The prior is the posterior whose means and log standard deviations are 0. Scaling the weights of the encoder's last
    layers therefore moves every posterior towards the prior.

    Args:
        model: The model whose encoder is trained.
        x: Training images, shape (images, pixels); some of them serve as the held-out samples.

    Returns:
        The budget step.
    """
    images = x[np.linspace(0, len(x) - 1, min(_HELD_OUT_IMAGES, len(x))).round().astype(int)]

    @torch.no_grad()
    def scale(factor: float) -> None:
        for layer in (model.encoder.loc, model.encoder.log_scale):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)

    @torch.no_grad()
    def mean_kl() -> float:
        return float(kl_to_prior(*model.posterior(images)).sum(1).double().mean())

    return BudgetStep(scale, HeldOutMean(mean_kl))
