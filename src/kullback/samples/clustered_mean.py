"""The mean KL over sampled completions, with a standard error that knows that completions share prompts."""

import numpy as np
from numpy.typing import ArrayLike

from kullback.errors import ShapeError
from kullback.result import Estimate

__all__ = ["kl_per_sequence", "kl_per_token"]


def kl_per_token(kl_sums: ArrayLike, lengths: ArrayLike, prompts: ArrayLike) -> Estimate:
    """KL(p || q) per token: sum of the KL over all tokens / number of tokens, the completions drawn from p.

    A ratio estimate; its standard error, sqrt(n/(n-1) sum_g (S_g - mean N_g)^2) / N, takes the n prompts g as the
    independent draws: completions of one prompt are alike.

    Args:
        kl_sums: Shape (sequences,), nats: each completion's KL summed over its tokens.
        lengths: Shape (sequences,): how many tokens that was.
        prompts: Shape (sequences,): equal numbers for completions of one prompt.

    Returns:
        An `Estimate` in nats per token; `count` is the number of prompts, `std_error` nan where that is below 2.

    Raises:
        ShapeError: The arguments differ in length, or hold no token.

    Example:
        >>> estimate = kl_per_token([0.2, 0.4, 0.3, 0.1], [4, 4, 3, 3], prompts=[0, 0, 1, 1])
        >>> f"{estimate.value:.4f} +- {estimate.std_error:.4f}"
        '0.0714 +- 0.0041'
    """
    return _ratio(kl_sums, lengths, prompts, "nats per token")


def kl_per_sequence(kl_sums: ArrayLike, prompts: ArrayLike) -> Estimate:
    """KL(p || q) per sequence: the mean over completions drawn from p of the KL summed over their tokens.

    Args:
        kl_sums: Shape (sequences,), nats.
        prompts: Shape (sequences,): equal numbers for completions of one prompt.

    Returns:
        An `Estimate` in nats per sequence, its standard error as in `kl_per_token`.

    Raises:
        ShapeError: The arguments differ in length, or are empty.

    Example:
        >>> round(kl_per_sequence([0.2, 0.4, 0.3, 0.1], prompts=[0, 0, 1, 1]).value, 6)
        0.25
    """
    return _ratio(kl_sums, np.ones(np.shape(kl_sums)), prompts, "nats per sequence")


def _ratio(sums: ArrayLike, weights: ArrayLike, prompts: ArrayLike, unit: str) -> Estimate:
    sums, weights = np.asarray(sums, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    prompts = np.asarray(prompts)
    if not sums.shape == weights.shape == prompts.shape or sums.ndim != 1:
        raise ShapeError(
            f"expected one KL, length and prompt for each completion, got shapes {sums.shape}, {weights.shape}, "
            f"{prompts.shape}"
        )
    total = weights.sum()
    if not total > 0:
        raise ShapeError("expected at least one token that counts, got none: look at the mask")
    value = sums.sum() / total
    _, group = np.unique(prompts, return_inverse=True)
    count = int(group.max()) + 1
    residual = np.bincount(group, weights=sums - value * weights)
    error = np.sqrt(count / (count - 1) * (residual**2).sum()) / total if count > 1 else np.nan
    return Estimate(float(value), float(error), count, unit, "exact KL at sampled positions")
