"""Networks that say what they know of an example by a normal over latent variables, and what that is worth."""

from math import ceil, log, pi
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from kullback.closed_forms import FORMS
from kullback.families import Normal

__all__ = ["VAE", "Bottleneck", "Likelihood", "kl_to_prior"]

Likelihood = Literal["bernoulli", "gaussian"]

_LARGE = 16  # sides from which images are convolved


def kl_to_prior(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """KL(q(z | x) || p(z)) of normal posteriors to the standard normal prior, for each latent dimension.

    Args:
        loc: Means, shape (batch, latents).
        scale: Standard deviations, the same shape.

    Returns:
        Nats, shape (batch, latents), differentiable.
    """
    return FORMS[Normal, Normal](Normal(loc=loc, scale=scale), Normal(loc=0.0, scale=1.0))


class _Encoder(nn.Module):
    """Images to the means and standard deviations of a normal over the latent variables."""

    def __init__(self, size: tuple[int, int], latents: int, hidden: int) -> None:
        super().__init__()
        height, width = size
        if min(size) >= _LARGE:
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
    """Latent variables to the logits of pixels."""

    def __init__(self, size: tuple[int, int], latents: int, hidden: int) -> None:
        super().__init__()
        self.size = size
        height, width = size
        if min(size) >= _LARGE:
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
    """A variational autoencoder: q(z | x) normal, p(z) standard normal, p(x | z) stated.

    Args:
        size: Height and width of the images.
        latents: How many latent dimensions.
        hidden: Width of the hidden layers.
        likelihood: "bernoulli": each pixel a probability, its cross-entropy the cost; "gaussian": each pixel normal
            around the decoded value in [0, 1], with `noise` for a standard deviation.
        noise: The standard deviation of "gaussian".
    """

    def __init__(
        self, size: tuple[int, int], latents: int, hidden: int, likelihood: Likelihood = "bernoulli", noise: float = 0.1
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = _Encoder(size, latents, hidden), _Decoder(size, latents, hidden)
        self.latents, self.likelihood, self.noise = latents, likelihood, noise

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations of q(z | x), (batch, latents) each."""
        return self.encoder(x)

    def cost(self, z: torch.Tensor, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The distortion -log p(x | z) of each example, nats, shape (batch,)."""
        del labels
        logits = self.decoder(z)
        if self.likelihood == "bernoulli":
            each = functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        else:
            away = (x - logits.sigmoid()) / self.noise
            each = 0.5 * away * away + log(self.noise) + 0.5 * log(2 * pi)
        return each.flatten(1).sum(1)

    def decoded(self, z: torch.Tensor) -> torch.Tensor:
        """The mean image of each z, in [0, 1]."""
        return self.decoder(z).sigmoid()


class Bottleneck(nn.Module):
    """A classifier that sees an example only through noisy latent variables: I(x; z) <= E KL(q(z | x) || p(z)).

    Args:
        size: Height and width of the images.
        latents: How many latent dimensions.
        hidden: Width of the hidden layers.
        classes: How many classes.

    Source: [alemi2017].
    """

    def __init__(self, size: tuple[int, int], latents: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.encoder = _Encoder(size, latents, hidden)
        self.latents = latents
        self.head = nn.Sequential(nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations of q(z | x), (batch, latents) each."""
        return self.encoder(x)

    def cost(self, z: torch.Tensor, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The cross-entropy -log p(label | z) of each example, nats, shape (batch,)."""
        del x
        return functional.cross_entropy(self.head(z), labels, reduction="none")  # pyright: ignore[reportArgumentType]
