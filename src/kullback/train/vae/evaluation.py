"""What a model of latent variables is worth on images that it did not learn from."""

from math import log
from typing import Any

import torch

from kullback.train.vae.models import VAE, Bottleneck, kl_to_prior

__all__ = ["alarm", "judge"]

Row = dict[str, Any]

_ACTIVE = 0.01  # of the variance of the means [burda2016]; and nats of a dimension's KL
_WEIGHED = 256  # draws of each example's importance weights
_MOST = 256  # examples that are weighed
_SILENT = 0.05  # nats of all dimensions together, below which nothing is said


@torch.no_grad()
def judge(model: VAE | Bottleneck, x: torch.Tensor, labels: torch.Tensor | None, *, step: int, seed: int = 0) -> Row:
    """A row of evaluations: rate, distortion, active units; the likelihood or the accuracy.

    Args:
        model: The model.
        x: Held-out images, (n, height, width).
        labels: Their classes, of a `Bottleneck`.
        step: Where the run is.
        seed: Of the draws, the same at every step.

    Returns:
        Means over images, nats, with `_std_error` over images; `kl_latents` is the mean KL of each dimension.
    """
    draws = torch.Generator().manual_seed(seed)
    loc, scale = model.posterior(x)
    kl = kl_to_prior(loc, scale)
    z = loc + scale * torch.randn(loc.shape, generator=draws)
    row: Row = {"step": step, **_mean("kl_posterior_prior_per_image", kl.sum(1))}
    row["kl_latents"] = kl.mean(0).tolist()
    row["active_units"] = int((loc.var(0) > _ACTIVE).sum())
    row["active_units_by_kl"] = int((kl.mean(0) > _ACTIVE).sum())
    if isinstance(model, VAE):
        cost = model.cost(z, x)
        row |= _mean("distortion", cost) | _mean("elbo", -cost - kl.sum(1))
        return row | _mean("log_likelihood", _log_likelihood(model, x[:_MOST], draws))
    assert labels is not None
    logits = torch.stack(
        [model.head(loc + scale * torch.randn(loc.shape, generator=draws)).log_softmax(-1) for _ in range(16)]
    ).logsumexp(0) - log(16)
    cost = -logits.gather(1, labels[:, None])[:, 0]
    return row | _mean("cross_entropy", cost) | _mean("accuracy", (logits.argmax(1) == labels).double())


def alarm(row: Row, beta: float) -> str | None:
    """Why the latent variables say nothing, if they do not."""
    rate = row["kl_posterior_prior_per_image"]
    if rate >= _SILENT:
        return None
    return (
        f"posterior collapse: the latent variables carry {rate:.3g} nats an image, and the decoder does without them; "
        f"lower beta ({beta:.3g}), anneal it, leave bits free, or set --budget"
    )


def _log_likelihood(model: VAE, x: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """log p(x) of each image by importance weights: a lower bound in the mean, tight with many draws [burda2016]."""
    loc, scale = model.posterior(x)
    logs = []
    for _ in range(_WEIGHED):
        noise = torch.randn(loc.shape, generator=draws)
        z = loc + scale * noise
        # log p(z) - log q(z | x), whose constants cancel
        gap = 0.5 * (noise * noise - z * z) + scale.log()
        logs.append(gap.sum(1) - model.cost(z, x))
    return torch.stack(logs).logsumexp(0) - log(_WEIGHED)


def _mean(name: str, values: torch.Tensor) -> Row:
    values = values.double()
    return {name: float(values.mean()), f"{name}_std_error": float(values.std() / len(values) ** 0.5)}
