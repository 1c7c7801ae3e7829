"""`--set key=value` words, taken apart."""

import difflib
from collections.abc import Collection, Mapping, Sequence

from kullback.errors import InputError

__all__ = ["read_words"]


def read_words(
    words: Sequence[str], known: Collection[str], taken: Mapping[str, str], *, owner: str
) -> list[tuple[str, str, str]]:
    """Each word with its key and its value as text.

    Args:
        words: Such as learning_rate=1e-3.
        known: The keys that there are.
        taken: Keys that have an option of their own, and which.
        owner: Whose keys they are.

    Raises:
        InputError: A word has no "=", or its key is taken or is none; the message names the nearest that is.

    Example:
        >>> read_words(["gamma=0.9"], ["gamma"], {}, owner="PPO")
        [('gamma=0.9', 'gamma', '0.9')]
    """
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"--set {word}: expected key=value, for example learning_rate=1e-3")
        if key in taken:
            raise InputError(f"--set {word}: {key} is not free here, {taken[key]}")
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise InputError(f"--set {word}: {owner} has no {key}; the nearest is {nearest[0]}")
        found.append((word, key, value))
    return found
