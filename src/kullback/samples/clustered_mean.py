"""The mean KL over sampled completions, with a standard error that is clustered by prompt."""

import numpy as np
from numpy.typing import ArrayLike

from kullback.errors import ShapeError, SupportError
from kullback.numerics.arguments import as_float64, as_real_array
from kullback.numerics.labels import plain_arrays
from kullback.result import Estimate

__all__ = ["kl_per_sequence", "kl_per_token"]


def kl_per_token(kl_sums: ArrayLike, lengths: ArrayLike, prompts: ArrayLike) -> Estimate:
    """KL(p || q) per token, from completions sampled from p, with a standard error clustered by prompt.

    With S_g the KL summed over the tokens of prompt g, N_g the number of these tokens and N = sum_g N_g:

        value = sum_g S_g / N
        std_error = sqrt(n / (n - 1) sum_g (S_g - value N_g)^2) / N

    The n prompts are independent samples. The completions of one prompt are dependent.

    Args:
        kl_sums: The KL of each completion, summed over its tokens, in nats, shape (sequences,).
        lengths: The number of tokens of each completion, shape (sequences,).
        prompts: The prompt of each completion as a number, equal for completions of the same prompt, shape
            (sequences,).

    Returns:
        An `Estimate` in nats per token. `count` is the number of prompts. `std_error` is nan for fewer than 2 prompts.

    Raises:
        ShapeError: The arguments differ in shape or in their pandas index, are not one-dimensional, or contain no
            token.
        SupportError: A KL or a prompt is nan, or a length is negative or not finite.

    References:
        Cochran (1977), Sampling Techniques, chapter 6, for the ratio estimator.

    Example:
        >>> estimate = kl_per_token([0.2, 0.4, 0.3, 0.1], [4, 4, 3, 3], prompts=[0, 0, 1, 1])
        >>> f"{estimate.value:.4f} +- {estimate.std_error:.4f}"
        '0.0714 +- 0.0041'
    """
    return _ratio(kl_sums, lengths, prompts, "nats per token")


def kl_per_sequence(kl_sums: ArrayLike, prompts: ArrayLike) -> Estimate:
    """KL(p || q) per sequence, from completions sampled from p, with a standard error clustered by prompt.

    With S_g the KL summed over the tokens of prompt g, N_g the number of its completions and N = sum_g N_g:

        value = sum_g S_g / N
        std_error = sqrt(n / (n - 1) sum_g (S_g - value N_g)^2) / N

    Args:
        kl_sums: The KL of each completion, summed over its tokens, in nats, shape (sequences,).
        prompts: The prompt of each completion as a number, equal for completions of the same prompt, shape
            (sequences,).

    Returns:
        An `Estimate` in nats per sequence. `count` is the number of prompts. `std_error` is nan for fewer than 2
        prompts.

    Raises:
        ShapeError: The arguments differ in shape or in their pandas index, are not one-dimensional, or are empty.
        SupportError: A KL or a prompt is nan.

    Example:
        >>> round(kl_per_sequence([0.2, 0.4, 0.3, 0.1], prompts=[0, 0, 1, 1]).value, 6)
        0.25
    """
    return _ratio(kl_sums, np.ones(as_float64("kl_sums", kl_sums).shape), prompts, "nats per sequence")


def _ratio(sums: ArrayLike, weights: ArrayLike, prompts: ArrayLike, unit: str) -> Estimate:
    """The ratio estimator sum(sums) / sum(weights), clustered by prompt."""
    sums, weights, prompts = plain_arrays(sums, weights, prompts)
    sums, weights = as_float64("kl_sums", sums), as_float64("lengths", weights)
    prompts = as_real_array("prompts", prompts)
    if not sums.shape == weights.shape == prompts.shape or sums.ndim != 1:
        raise ShapeError(
            f"expected a KL, a length and a prompt for each completion, each of shape (sequences,), got shapes "
            f"{sums.shape}, {weights.shape}, {prompts.shape}"
        )
    for name, values, bad, words in (
        ("the KL of each completion", sums, np.isnan(sums), "a number"),
        ("the length of each completion", weights, ~((weights >= 0) & (weights < np.inf)), ">= 0 and finite"),
        ("the prompt of each completion", prompts, np.isnan(prompts), "a number"),
    ):
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise SupportError(f"expected {name} to be {words}, but it is {values[first]} at index {first}")
    total = weights.sum()
    if not total > 0:
        raise ShapeError("expected at least one token that the mask includes, got none: check the mask")
    value = sums.sum() / total
    if np.isinf(sums).any():
        count = np.unique(prompts).size
        return Estimate(float(value), np.nan, count, unit, "exact KL at sampled positions")
    _, group = np.unique(prompts, return_inverse=True)
    count = int(group.max()) + 1
    residual = np.bincount(group, weights=sums - value * weights)
    error = np.sqrt(count / (count - 1) * (residual**2).sum()) / total if count > 1 else np.nan
    return Estimate(float(value), float(error), count, unit, "exact KL at sampled positions")
