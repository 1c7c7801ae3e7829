"""Every sequence that a small language model can write, so that its best policy is a tilt of one distribution."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from kullback.discrete.validation import require_logits
from kullback.errors import InputError, ShapeError
from kullback.numerics.arrays import ArrayLike

__all__ = ["Sequences", "enumerate_sequences", "next_token_probs", "tabulate"]

_BATCH = 4096  # prefixes that the model is asked about at a time


@dataclass(frozen=True, eq=False)
class Sequences:
    """The completions of one prompt, and how probable each is under the reference.

    Args:
        tokens: Token ids, shape (n, longest), -1 after the end.
        lengths: How many tokens each has, the end among them, shape (n,).
        log_probs: Their log-probabilities, nats, shape (n,).
        rest: The probability of what was left out.
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
    """Every completion of a prompt, with its log-probability: sum_t log ref(y_t | y_<t).

    Args:
        next_logits: Called with the prefixes written so far, token ids of shape (batch, t), t from 0; returns the
            logits of the next token, log-probabilities or unnormalised, shape (batch, vocabulary), -inf for what cannot
            follow. The prompt is its own affair.
        max_tokens: How many tokens a completion has at most.
        end: The token that ends a completion; None where all are `max_tokens` long.
        min_prob: Prefixes with a smaller probability are left out. Their total probability is returned as `rest`,
            which bounds the error of the optimum (see `tabulate`).
        limit: How many prefixes or completions there may be before this gives up.

    Returns:
        `Sequences`; impossible ones are not among them.

    Raises:
        ShapeError: `next_logits` returned another shape.
        SupportError: It returned nan or +inf, or -inf for every token.
        InputError: There are more than `limit`.

    Example:
        >>> coin = lambda prefixes: np.zeros((len(prefixes), 2))
        >>> found = enumerate_sequences(coin, max_tokens=2, end=1)
        >>> found.tokens.tolist(), np.exp(found.log_probs).round(2).tolist()
        ([[1, -1], [0, 0], [0, 1]], [0.5, 0.25, 0.25])
    """
    if max_tokens < 1:
        raise InputError(f"expected max_tokens >= 1, got {max_tokens}")
    prefixes, logs = np.zeros((1, 0), dtype=np.int64), np.zeros(1)
    done_tokens: list[np.ndarray] = []
    done_logs: list[np.ndarray] = []
    rest, done = 0.0, 0
    for step in range(1, max_tokens + 1):
        following = logs[:, None] + _asked(next_logits, prefixes)
        kept = (following > -np.inf) & (np.exp(following) >= min_prob)
        rest += float(np.exp(following[~kept]).sum())
        rows, chosen = np.nonzero(kept)
        if (count := done + len(rows)) > limit:
            raise InputError(
                f"expected at most {limit} sequences, but there are {count} by token {step}; raise min_prob"
            )
        prefixes, logs = np.concatenate([prefixes[rows], chosen[:, None]], axis=1), following[kept]
        over = (step == max_tokens) | (chosen == (-1 if end is None else end))
        done_tokens.append(np.pad(prefixes[over], ((0, 0), (0, max_tokens - step)), constant_values=-1))
        done_logs.append(logs[over])
        prefixes, logs, done = prefixes[~over], logs[~over], done + int(over.sum())
        if not len(prefixes):
            break
    tokens = np.concatenate(done_tokens)
    return Sequences(tokens, (tokens >= 0).sum(axis=1), np.concatenate(done_logs), rest)


def tabulate(
    found: Sequence[Sequences], rewards: Sequence[ArrayLike], *, rest_reward: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`ref` and `reward` of several prompts, for `tilt`, `tilt_to_budget` and `frontier` with `contexts`.

    Args:
        found: The completions of each prompt.
        rewards: The rewards of each prompt's completions, shape (n,) each.
        rest_reward: What all that was left out is taken to earn: the optimum is then a bound from above, if it is the
            largest reward there is, or from below, if it is the smallest. Needed where anything was left out.

    Returns:
        Two arrays of shape (prompts, most completions + 1), padded with `ref` 0; the last column is what was left out.

    Raises:
        ShapeError: The rewards do not go with the completions.
        InputError: Something was left out, and `rest_reward` is not given.

    Example:
        >>> coin = lambda prefixes: np.zeros((len(prefixes), 2))
        >>> ref, reward = tabulate([enumerate_sequences(coin, max_tokens=1)], [[0.0, 1.0]])
        >>> ref.round(2), reward
        (array([[0.5, 0.5, 0. ]]), array([[0., 1., 0.]]))
    """
    if len(found) != len(rewards):
        raise ShapeError(f"expected rewards for each of {len(found)} prompts, got {len(rewards)}")
    width = max(len(each.lengths) for each in found) + 1
    ref, reward = np.zeros((len(found), width)), np.zeros((len(found), width))
    for row, (each, given) in enumerate(zip(found, rewards, strict=True)):
        earned = np.asarray(given, dtype=np.float64)
        if earned.shape != each.lengths.shape:
            raise ShapeError(f"expected rewards of shape {each.lengths.shape} for prompt {row}, got {earned.shape}")
        if each.rest > 0 and rest_reward is None:
            raise InputError(
                f"expected rest_reward, since prompt {row} leaves out completions of probability {each.rest:.3g}: give "
                "the largest reward for a bound from above, the smallest for one from below"
            )
        ref[row, : len(earned)], reward[row, : len(earned)] = np.exp(each.log_probs), earned
        ref[row, -1], reward[row, -1] = each.rest, rest_reward or 0.0
    return ref, reward


def next_token_probs(found: Sequences, probs: ArrayLike, prefix: Sequence[int], vocabulary: int) -> np.ndarray:
    """The probabilities of the token after `prefix` under a distribution over sequences: how an optimum would write.

    Args:
        found: The completions of a prompt.
        probs: Their probabilities, shape (n,), such as a row of `Optimum.policy`.
        prefix: The tokens written so far.
        vocabulary: How many tokens there are.

    Returns:
        Shape (vocabulary,).

    Raises:
        InputError: The prefix has probability 0.

    Example:
        >>> coin = lambda prefixes: np.zeros((len(prefixes), 2))
        >>> next_token_probs(enumerate_sequences(coin, max_tokens=2), [0.1, 0.2, 0.3, 0.4], [0], 2).round(3)
        array([0.333, 0.667])
    """
    step = len(prefix)
    begins = (found.tokens[:, :step] == np.asarray(prefix, dtype=np.int64)).all(axis=1) & (found.lengths > step)
    mass = np.bincount(
        found.tokens[begins, step], weights=np.asarray(probs)[: len(begins)][begins], minlength=vocabulary
    )
    if not mass.sum() > 0:
        raise InputError(f"no sequence that can be written goes on from {list(prefix)}")
    return mass / mass.sum()


def _asked(next_logits: Callable[[np.ndarray], ArrayLike], prefixes: np.ndarray) -> np.ndarray:
    pieces = []
    for start in range(0, len(prefixes), _BATCH):
        asked = prefixes[start : start + _BATCH]
        logs = np.asarray(next_logits(asked), dtype=np.float64)
        if logs.ndim != 2 or len(logs) != len(asked):
            raise ShapeError(f"expected logits of shape ({len(asked)}, vocabulary), got {logs.shape}")
        require_logits(np, "next_logits", logs, -1)
        pieces.append(log_softmax(logs, axis=1))
    return np.concatenate(pieces)
