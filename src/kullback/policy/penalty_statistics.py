"""What is logged of a KL penalty: an estimate with its error, and how far to trust it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.errors import ShapeError
from kullback.policy.aggregation import Aggregate, require_aggregate
from kullback.result import Estimate
from kullback.samples.clustered_mean import kl_per_sequence, kl_per_token

__all__ = ["Prompts", "estimate", "statistics"]

Prompts = Sequence[int] | Tensor | None


def estimate(values: Tensor, mask: Tensor, aggregate: Aggregate, prompts: Prompts, method: str) -> Estimate:
    """The mean of values (batch, time) that are 0 where the mask is false; prompts are the independent draws."""
    require_aggregate(aggregate)
    sums, lengths = _numbers(values.sum(-1, dtype=torch.float64)), _numbers(mask.sum(-1))
    if not lengths.any():
        raise ShapeError("expected at least one token that counts, got none: look at the mask")
    draws: Any = prompts.cpu() if isinstance(prompts, Tensor) else prompts
    draws = np.arange(len(sums)) if draws is None else np.asarray(draws)
    with np.errstate(invalid="ignore"):  # an infinite KL has no standard error: inf - inf
        if aggregate == "token_mean":
            result = kl_per_token(sums, lengths, draws)
        elif aggregate == "sequence_mean":
            result = kl_per_sequence(np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0), draws)
        else:
            result = kl_per_sequence(sums, draws)
    return replace(result, unit="nats per sequence" if aggregate == "sequence_sum" else "nats per token", method=method)


def statistics(
    name: str, raw: Tensor, bounded: Tensor, log_weight: Tensor, mask: Tensor, aggregate: Aggregate, prompts: Prompts
) -> dict[str, float]:
    """The keys that `KLPenalty.statistics` explains."""
    name += "_per_sequence" if aggregate == "sequence_sum" else "_per_token"
    as_is, held = (estimate(values, mask, aggregate, prompts, "") for values in (raw, bounded))
    log_weight = log_weight[mask].double()
    effective = torch.exp(2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0))
    return {
        name: as_is.value,
        f"{name}_std_error": as_is.std_error,
        f"{name}_bounded": held.value,
        f"{name}_bounded_std_error": held.std_error,
        # Of numbers that came, so that an infinite one is not interpolated.
        f"{name}_p99": float(np.quantile(_numbers(raw[mask]), 0.99, method="inverted_cdf")),
        "effective_sample_size": effective.item(),
        "beyond_bound": (raw != bounded)[mask].double().mean().item(),
        "tokens": float(mask.sum()),
        "sequences": float(mask.any(-1).sum()),
    }


def _numbers(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
