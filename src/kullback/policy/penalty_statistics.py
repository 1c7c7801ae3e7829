"""Statistics of a KL penalty for logging: the estimate, its standard error, and diagnostics of its weights."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kullback.errors import ShapeError
from kullback.numerics.array_types import Bool, Float, Shaped
from kullback.numerics.labels import plain_arrays
from kullback.policy.aggregation import Aggregate, require_aggregate
from kullback.result import Estimate
from kullback.samples.clustered_mean import kl_per_sequence, kl_per_token
from kullback.tokens.logits import require_tensors

__all__ = ["Prompts", "estimate", "statistics"]

Prompts = Sequence[int] | Tensor | None


def estimate(
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    aggregate: Aggregate,
    prompts: Prompts,
    method: str,
) -> Estimate:
    """The mean of token values, with a standard error that treats prompts as the independent samples.

    `values` has shape (batch, time) and is 0 where the mask is false.
    """
    require_aggregate(aggregate)
    sums, lengths = _to_numpy(values.sum(-1, dtype=torch.float64)), _to_numpy(mask.sum(-1))
    if not lengths.any():
        raise ShapeError(
            "expected at least one token where the mask is true, but the mask of shape "
            f"{tuple(mask.shape)} is false everywhere"
        )
    if isinstance(prompts, Tensor):
        require_tensors(prompts=prompts)
        clusters = prompts.cpu().numpy()
    else:
        clusters = np.arange(len(sums)) if prompts is None else plain_arrays(prompts)[0]
    with np.errstate(invalid="ignore"):  # the standard error of an infinite KL is nan: inf - inf
        if aggregate == "token_mean":
            result = kl_per_token(sums, lengths, clusters)
        elif aggregate == "sequence_mean":
            result = kl_per_sequence(np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0), clusters)
        else:
            result = kl_per_sequence(sums, clusters)
    return replace(result, unit="nats per sequence" if aggregate == "sequence_sum" else "nats per token", method=method)


def statistics(
    name: str,
    raw: Float[Tensor, "batch time"],
    bounded: Float[Tensor, "batch time"],
    log_weight: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    aggregate: Aggregate,
    prompts: Prompts,
) -> dict[str, float]:
    """The statistics that `KLPenalty.statistics` documents, from raw and bounded estimates at every token."""
    require_aggregate(aggregate)
    name += "_per_sequence" if aggregate == "sequence_sum" else "_per_token"
    raw_mean, bounded_mean = (estimate(values, mask, aggregate, prompts, "") for values in (raw, bounded))
    log_weight = log_weight[mask].double()
    effective = torch.exp(2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0))
    return {
        name: raw_mean.value,
        f"{name}_std_error": raw_mean.std_error,
        f"{name}_bounded": bounded_mean.value,
        f"{name}_bounded_std_error": bounded_mean.std_error,
        # The percentile is one of the values, because interpolation with an infinite value would give nan.
        f"{name}_p99": float(np.quantile(_to_numpy(raw[mask]), 0.99, method="inverted_cdf")),
        "effective_sample_size": effective.item(),
        "beyond_bound": (raw != bounded)[mask].double().mean().item(),
        "tokens": float(mask.sum()),
        "sequences": float(mask.any(-1).sum()),
    }


def _to_numpy(values: Shaped[Tensor, "..."]) -> np.ndarray:
    return values.double().cpu().numpy()
