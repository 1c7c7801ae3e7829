"""Enumeration of all sequences of a small language model, so that its optimal policy is a tilt of one distribution."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from kullback.discrete.validation import require_logits
from kullback.errors import InputError, ShapeError
from kullback.numerics.arguments import as_float64, is_index, is_number, shown
from kullback.numerics.arrays import ArrayLike
from kullback.numerics.records import EqualByValue

__all__ = ["Sequences", "enumerate_sequences", "next_token_probs", "tabulate"]

_BATCH = 4096  # prefixes per call of the model
_LARGEST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Sequences(EqualByValue):
    """The completions of one prompt and their probabilities under the reference.

    Args:
        tokens: Token ids, shape (n, longest), padded with -1 after the end.
        lengths: The number of tokens of each completion, the end token included, shape (n,).
        log_probs: Log-probabilities, nats, shape (n,).
        rest: The total probability of the omitted completions.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probs: np.ndarray
    rest: float


def enumerate_sequences(
    next_logits: Callable[[np.ndarray], ArrayLike],
    *,
    max_tokens: int,
    end: int | None = None,
    min_prob: float = 0.0,
    limit: int = 10_000_000,
) -> Sequences:
    """Enumerates the completions of a prompt with their log-probabilities under a language model.

        log ref(y) = sum_t log ref(y_t | y_<t)

    Args:
        next_logits: A function that receives prefixes of the completion, token ids of shape (batch, t) with t >= 0, and
            returns the logits of the next token, shape (batch, vocabulary): log-probabilities or unnormalised logits,
            with -inf for impossible tokens. The function itself conditions on the prompt.
        max_tokens: The largest number of tokens of a completion.
        end: The token that ends a completion; None if all completions have `max_tokens` tokens.
        min_prob: Prefixes with a smaller probability are omitted. Their total probability is returned as `rest`, which
            bounds the error of the optimum; see `tabulate`.
        limit: The largest permitted number of prefixes and completions.

    Returns:
        `Sequences`, without completions of probability 0; log-probabilities in nats, all finite.

    Raises:
        ShapeError: `next_logits` returned an array of another shape.
        SupportError: `next_logits` returned nan or +inf, or -inf for every token.
        InputError: `max_tokens` is less than 1, or there are more than `limit` sequences.

    Example:
        >>> coin = lambda prefixes: np.zeros((len(prefixes), 2))
        >>> completions = enumerate_sequences(coin, max_tokens=2, end=1)
        >>> completions.tokens.tolist(), np.exp(completions.log_probs).round(2).tolist()
        ([[1, -1], [0, 0], [0, 1]], [0.5, 0.25, 0.25])
    """
    if not callable(next_logits):
        raise InputError(f"expected next_logits to be a function of prefixes, got {shown(next_logits)}")
    for name, value in (("max_tokens", max_tokens), ("limit", limit)):
        if not (is_index(value) and 1 <= value <= _LARGEST):
            raise InputError(f"expected {name} to be a whole number from 1 to {_LARGEST}, got {shown(value)}")
    if end is not None and not is_index(end):
        raise InputError(f"expected end to be a token id or None, got {shown(end)}")
    if not (is_number(min_prob) and min_prob <= 1):
        raise InputError(f"expected min_prob to be a probability, got {shown(min_prob)}")
    prefixes, log_probs = np.zeros((1, 0), dtype=np.int64), np.zeros(1)
    finished_tokens: list[np.ndarray] = []
    finished_log_probs: list[np.ndarray] = []
    rest, finished = 0.0, 0
    for step in range(1, max_tokens + 1):
        extended = log_probs[:, None] + _next_log_probs(next_logits, prefixes)
        kept = (extended > -np.inf) & (np.exp(extended) >= float(min_prob))
        rest += float(np.exp(extended[~kept]).sum())
        rows, chosen = np.nonzero(kept)
        if (count := finished + len(rows)) > limit:
            raise InputError(
                f"expected at most {limit} sequences, but there are {count} at token {step}; increase min_prob or limit"
            )
        prefixes, log_probs = np.concatenate([prefixes[rows], chosen[:, None]], axis=1), extended[kept]
        is_finished = (step == max_tokens) | (chosen == (-1 if end is None else end))
        finished_tokens.append(prefixes[is_finished])
        finished_log_probs.append(log_probs[is_finished])
        prefixes, log_probs, finished = (
            prefixes[~is_finished],
            log_probs[~is_finished],
            finished + int(is_finished.sum()),
        )
        if not len(prefixes):
            break
    longest = len(finished_tokens)
    padded = [np.pad(x, ((0, 0), (0, longest - x.shape[1])), constant_values=-1) for x in finished_tokens]
    tokens = np.concatenate(padded)
    return Sequences(tokens, (tokens >= 0).sum(axis=1), np.concatenate(finished_log_probs), rest)


def tabulate(
    found: Sequence[Sequences], rewards: Sequence[ArrayLike], *, rest_reward: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The arrays `ref` and `reward` of several prompts, for `tilt`, `tilt_to_budget` and `frontier` with `contexts`.

    Args:
        found: The completions of each prompt, from `enumerate_sequences`.
        rewards: The rewards of each prompt's completions, each of shape (n,).
        rest_reward: The reward assigned to all omitted completions; required if any were omitted. With the largest
            possible reward the optimum is an upper bound, with the smallest possible reward it is a lower bound.

    Returns:
        Two arrays of shape (prompts, largest number of completions + 1): probabilities, padded with 0, and rewards. The
        last column stands for the omitted completions.

    Raises:
        ShapeError: The numbers of rewards and completions differ.
        InputError: Completions were omitted and `rest_reward` is None.

    Example:
        >>> coin = lambda prefixes: np.zeros((len(prefixes), 2))
        >>> ref, reward = tabulate([enumerate_sequences(coin, max_tokens=1)], [[0.0, 1.0]])
        >>> ref.round(2), reward
        (array([[0.5, 0.5, 0. ]]), array([[0., 1., 0.]]))
    """
    _require_list("found", found)
    _require_list("rewards", rewards)
    for each in found:
        _require_sequences(each)
    if rest_reward is not None and not is_number(rest_reward):
        raise InputError(f"expected rest_reward to be a number or None, got {shown(rest_reward)}")
    if len(found) != len(rewards) or not len(found):
        raise ShapeError(
            f"expected at least one prompt and rewards for each of {len(found)} prompts, got rewards for {len(rewards)}"
        )
    width = max(len(each.lengths) for each in found) + 1
    ref, reward = np.zeros((len(found), width)), np.zeros((len(found), width))
    for row, (completions, given) in enumerate(zip(found, rewards, strict=True)):
        row_rewards = as_float64(f"rewards[{row}]", given)
        if row_rewards.shape != completions.lengths.shape:
            raise ShapeError(
                f"expected rewards of shape {completions.lengths.shape} for prompt {row}, got {row_rewards.shape}"
            )
        if completions.rest > 0 and rest_reward is None:
            raise InputError(
                f"expected rest_reward, because prompt {row} omits completions of probability {completions.rest:.3g}; "
                "pass the largest possible reward for an upper bound or the smallest for a lower bound"
            )
        ref[row, : len(row_rewards)], reward[row, : len(row_rewards)] = np.exp(completions.log_probs), row_rewards
        ref[row, -1], reward[row, -1] = completions.rest, rest_reward or 0.0
    return ref, reward


def next_token_probs(found: Sequences, probs: ArrayLike, prefix: Sequence[int], vocabulary: int) -> np.ndarray:
    """The conditional distribution of the next token under a distribution over sequences.

        p(token | prefix) = sum of p(y) over sequences y that start with prefix + token, normalised over tokens

    Args:
        found: The completions of a prompt, from `enumerate_sequences`.
        probs: The probabilities of the completions, shape (n,), for example a row of `Optimum.policy`. Entries after
            the first n are ignored.
        prefix: The token ids of the prefix.
        vocabulary: The number of tokens in the vocabulary.

    Returns:
        Probabilities, shape (vocabulary,).

    Raises:
        InputError: No sequence of positive probability continues the prefix.

    Example:
        >>> coin = lambda prefixes: np.zeros((len(prefixes), 2))
        >>> next_token_probs(enumerate_sequences(coin, max_tokens=2), [0.1, 0.2, 0.3, 0.4], [0], 2).round(3)
        array([0.333, 0.667])
    """
    _require_sequences(found)
    weights, tokens = as_float64("probs", probs), as_float64("prefix", prefix)
    if weights.ndim != 1 or len(weights) < len(found.lengths):
        raise ShapeError(f"expected probs of shape ({len(found.lengths)},), got {weights.shape}")
    if tokens.ndim != 1 or (tokens % 1).any() or not (is_index(vocabulary) and 1 <= vocabulary <= _LARGEST):
        raise InputError(
            f"expected prefix to be a list of token ids and vocabulary a number of tokens, got {shown(prefix)} and "
            f"{shown(vocabulary)}"
        )
    step = len(tokens)
    if step >= found.tokens.shape[1]:
        raise InputError(f"expected a prefix shorter than {found.tokens.shape[1]} tokens, got {shown(list(prefix))}")
    continues = (found.tokens[:, :step] == tokens).all(axis=1) & (found.lengths > step)
    mass = np.bincount(
        found.tokens[continues, step], weights=weights[: len(continues)][continues], minlength=vocabulary
    )
    if not mass.sum() > 0:
        raise InputError(f"expected a prefix with a continuation of positive probability, got {list(prefix)}")
    return mass / mass.sum()


def _require_list(name: str, values: object) -> None:
    """Raise InputError unless the values have a length and an order."""
    is_list = hasattr(type(values), "__len__") and hasattr(type(values), "__getitem__")
    if not is_list or isinstance(values, str | bytes | Mapping) or getattr(values, "ndim", 1) == 0:
        raise InputError(f"expected {name} to be a list with one entry per prompt, got {shown(values)}")


def _require_sequences(found: object) -> None:
    """Raise InputError unless the argument is a `Sequences`."""
    if not isinstance(found, Sequences):
        raise InputError(f"expected Sequences from enumerate_sequences, got {shown(found)}")


def _next_log_probs(next_logits: Callable[[np.ndarray], ArrayLike], prefixes: np.ndarray) -> np.ndarray:
    """The log-probabilities of the next token, shape (prefixes, vocabulary), computed in batches."""
    pieces = []
    for start in range(0, len(prefixes), _BATCH):
        batch = prefixes[start : start + _BATCH]
        logits = as_float64("the result of next_logits", next_logits(batch))
        if logits.ndim != 2 or len(logits) != len(batch):
            raise ShapeError(
                f"expected next_logits to return logits of shape ({len(batch)}, vocabulary), got {logits.shape}"
            )
        require_logits(np, "next_logits", logits, -1)
        pieces.append(log_softmax(logits, axis=1))
    return np.concatenate(pieces)
