"""Networks with normally distributed latent variables: the variational autoencoder and the information bottleneck."""

from math import ceil, log, pi
from typing import Literal

import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional

from kullback.distributions import kl

__all__ = ["VAE", "Bottleneck", "Likelihood", "kl_to_prior"]

Likelihood = Literal["bernoulli", "gaussian"]

_CONVOLUTION_SIDE = 16  # pixels; images whose sides are at least this long use convolutions


def kl_to_prior(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """KL(q(z | x) || p(z)) from normal posteriors to the standard normal prior, for each latent dimension.

    phi(2 log(scale))/2 + loc^2/2, where phi(d) = e^d - 1 - d: the closed form of `kullback.kl` for two normals.

    Args:
        loc: Posterior means, shape (batch, latents).
        scale: Posterior standard deviations, shape (batch, latents).

    Returns:
        Nats, shape (batch, latents), differentiable.

    Raises:
        ParameterError: A mean is not finite, or a standard deviation is not a finite positive number.

    Example:
        >>> kl_to_prior(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([[0.5000, 0.0000]])
    """
    prior = Normal(loc.new_zeros(()), loc.new_ones(()), validate_args=False)
    return kl(Normal(loc, scale, validate_args=False), prior)


class _Encoder(nn.Module):
    """Maps images to the means and standard deviations of normal posteriors."""

    def __init__(self, size: tuple[int, int], latents: int, hidden: int) -> None:
        super().__init__()
        height, width = size
        if min(size) >= _CONVOLUTION_SIDE:
            self.body = nn.Sequential(
                nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                nn.Linear(64 * (height // 4) * (width // 4), hidden), nn.ReLU(),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(height * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
            )
        self.loc = nn.Linear(hidden, latents)
        self.log_scale = nn.Linear(hidden, latents)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.body(x[:, None])
        return self.loc(h), self.log_scale(h).exp()


class _Decoder(nn.Module):
    """Maps latent variables to the logits of pixels."""

    def __init__(self, size: tuple[int, int], latents: int, hidden: int) -> None:
        super().__init__()
        self.size = size
        height, width = size
        if min(size) >= _CONVOLUTION_SIDE:
            low = ceil(height / 4), ceil(width / 4)
            self.body = nn.Sequential(
                nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, 64 * low[0] * low[1]), nn.ReLU(),
                nn.Unflatten(1, (64, *low)), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
                nn.ConvTranspose2d(32, 1, 4, 2, 1),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(
                nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                nn.Linear(hidden, height * width), nn.Unflatten(1, (1, height, width)),
            )  # fmt: skip

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        height, width = self.size
        return self.body(z)[:, 0, :height, :width]


class VAE(nn.Module):
    """A variational autoencoder with normal q(z | x), standard normal p(z), and a choice of p(x | z).

    Args:
        size: The height and the width of the images.
        latents: The number of latent dimensions.
        hidden: The width of the hidden layers.
        likelihood: "bernoulli" interprets each pixel as a probability and uses the cross-entropy. "gaussian" uses a
            normal distribution whose mean is the decoded value in [0, 1].
        noise: The standard deviation of a pixel for "gaussian".
    """

    def __init__(
        self, size: tuple[int, int], latents: int, hidden: int, likelihood: Likelihood = "bernoulli", noise: float = 0.1
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = _Encoder(size, latents, hidden), _Decoder(size, latents, hidden)
        self.latents, self.likelihood, self.noise = latents, likelihood, noise

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The means and the standard deviations of q(z | x), shape (batch, latents) each."""
        return self.encoder(x)

    def cost(self, z: torch.Tensor, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The distortion -log p(x | z) of each example in nats, shape (batch,). The labels are ignored."""
        del labels
        logits = self.decoder(z)
        if self.likelihood == "bernoulli":
            pixel_costs = functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        else:
            residual = (x - logits.sigmoid()) / self.noise
            pixel_costs = 0.5 * residual * residual + log(self.noise) + 0.5 * log(2 * pi)
        return pixel_costs.flatten(1).sum(1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """The mean image of each z, shape (batch, height, width), values in [0, 1]."""
        return self.decoder(z).sigmoid()


class Bottleneck(nn.Module):
    """A classifier whose only input is a sample of latent variables z.

    The mean KL to the prior bounds the information about the example: I(x; z) <= E KL(q(z | x) || p(z)).

    Args:
        size: The height and the width of the images.
        latents: The number of latent dimensions.
        hidden: The width of the hidden layers.
        classes: The number of classes.

    References:
        Alemi et al., 2017 [alemi2017].
    """

    def __init__(self, size: tuple[int, int], latents: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.encoder = _Encoder(size, latents, hidden)
        self.latents = latents
        self.head = nn.Sequential(nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The means and the standard deviations of q(z | x), shape (batch, latents) each."""
        return self.encoder(x)

    def cost(self, z: torch.Tensor, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The cross-entropy -log p(label | z) of each example in nats, shape (batch,). The images are ignored."""
        del x
        return functional.cross_entropy(self.head(z), labels, reduction="none")  # pyright: ignore[reportArgumentType]
