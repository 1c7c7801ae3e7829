"""Evaluation of latent-variable models on held-out images, and detection of posterior collapse."""

from math import log
from typing import Any

import torch

from kullback.train.vae.models import VAE, Bottleneck, kl_to_prior

__all__ = ["collapse_warning", "evaluate"]

Row = dict[str, Any]

_ACTIVE = 0.01  # the least variance of a dimension's means [burda2016], or its least KL in nats, to count as active
_IMPORTANCE_SAMPLES = 256  # for each example
_MAX_WEIGHTED_EXAMPLES = 256  # examples whose likelihood is estimated
_CLASSIFIER_SAMPLES = 16  # latent samples of an image; the classifier has one at a time
_COLLAPSED_KL = 0.05  # nats per image over all dimensions, below which the posteriors have collapsed


@torch.no_grad()
def evaluate(
    model: VAE | Bottleneck,
    x: torch.Tensor,
    labels: torch.Tensor | None,
    *,
    step: int,
    seed: int = 0,
    likelihood: bool = True,
) -> Row:
    """Evaluate a model on held-out images.

    Args:
        model: The model.
        x: Held-out images, shape (n, height, width).
        labels: The classes of the images, shape (n,), for a `Bottleneck`; None for a `VAE`.
        step: The training step, which is stored in the row.
        seed: The seed of the latent samples, which are the same at every step.
        likelihood: Whether the log-likelihood of a `VAE` is estimated, which takes the time of 50 training steps.

    Returns:
        Means over images in nats with standard errors (`_std_error`): the KL, and either distortion, evidence lower
        bound and log-likelihood, or the cross-entropy and accuracy of a classifier with one latent sample. `kl_latents`
        is the mean KL of each latent dimension; `active_units` and `active_units_by_kl` count the active dimensions.
    """
    generator = torch.Generator().manual_seed(seed)
    loc, scale = model.posterior(x)
    kl = kl_to_prior(loc, scale)
    z = loc + scale * torch.randn(loc.shape, generator=generator)
    row: Row = {"step": step, **_mean("kl_posterior_prior_per_image", kl.sum(1))}
    row["kl_latents"] = kl.mean(0).tolist()
    row["active_units"] = int((loc.var(0) > _ACTIVE).sum())
    row["active_units_by_kl"] = int((kl.mean(0) > _ACTIVE).sum())
    if isinstance(model, VAE):
        cost = model.cost(z, x)
        row |= _mean("distortion", cost) | _mean("elbo", -cost - kl.sum(1))
        if not likelihood:
            return row
        return row | _mean("log_likelihood", _log_likelihood(model, x[:_MAX_WEIGHTED_EXAMPLES], generator))
    assert labels is not None
    # A mean of class probabilities over several samples would be a classifier with more information than one KL.
    costs, correct = [], []
    for _ in range(_CLASSIFIER_SAMPLES):
        log_probs = model.head(loc + scale * torch.randn(loc.shape, generator=generator)).log_softmax(-1)
        costs.append(-log_probs.gather(1, labels[:, None])[:, 0])
        correct.append((log_probs.argmax(1) == labels).double())
    return row | _mean("cross_entropy", torch.stack(costs).mean(0)) | _mean("accuracy", torch.stack(correct).mean(0))


def collapse_warning(row: Row, beta: float, *, has_budget: bool) -> str | None:
    """A warning if the KL of an evaluation shows posterior collapse, otherwise None.

    Args:
        row: A row that `evaluate` returned.
        beta: The coefficient of the KL, which the warning quotes.
        has_budget: Whether a budget controls beta.
    """
    kl = row["kl_posterior_prior_per_image"]
    if kl >= _COLLAPSED_KL:
        return None
    remedy = f"decrease beta ({beta:.3g}), anneal it, use free bits, or set --budget"
    if has_budget:
        remedy = f"train for more steps, or set a larger --budget (beta is {beta:.3g})"
    used = f"the latent variables carry {kl:.3g} nats per image, and the decoder ignores them"
    return f"posterior collapse: {used}; {remedy}"


def _log_likelihood(model: VAE, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The importance-sampling estimate of log p(x) of each image.

    Its expectation is a lower bound of log p(x), which becomes tight as the number of samples grows [burda2016].
    """
    loc, scale = model.posterior(x)
    log_weights = []
    for _ in range(_IMPORTANCE_SAMPLES):
        noise = torch.randn(loc.shape, generator=generator)
        z = loc + scale * noise
        # log p(z) - log q(z | x), whose normalising constants cancel
        log_ratio = 0.5 * (noise * noise - z * z) + scale.log()
        log_weights.append(log_ratio.sum(1) - model.cost(z, x))
    return torch.stack(log_weights).logsumexp(0) - log(_IMPORTANCE_SAMPLES)


def _mean(name: str, values: torch.Tensor) -> Row:
    """The mean over images and its standard error."""
    values = values.double()
    return {name: float(values.mean()), f"{name}_std_error": float(values.std() / len(values) ** 0.5)}
