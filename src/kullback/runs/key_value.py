"""Settings in the form `key=value`, as the option --set takes them."""

import difflib
from collections.abc import Collection, Mapping, Sequence

from kullback.errors import InputError

__all__ = ["parse_key_values"]


def parse_key_values(
    words: Sequence[str], known: Collection[str], taken: Mapping[str, str], *, owner: str
) -> list[tuple[str, str, str]]:
    """Split settings of the form `key=value`, and check their keys.

    Args:
        words: The settings, for example "learning_rate=1e-3".
        known: The valid keys.
        taken: Keys that cannot be set in this way, each with the reason or the option to use instead.
        owner: The name of the object that has the settings, for error messages.

    Returns:
        The setting, its key and its value, all as text, for each element of `words`.

    Raises:
        InputError: A setting is not of the form `key=value`, its key is in `taken`, or its key is not in `known`; the
            message then names the most similar valid key.

    Example:
        >>> parse_key_values(["gamma=0.9"], ["gamma"], {}, owner="PPO")
        [('gamma=0.9', 'gamma', '0.9')]
    """
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"--set {word}: expected key=value, for example learning_rate=1e-3")
        if key in taken:
            raise InputError(f"--set {word}: {key} cannot be set with --set, {taken[key]}")
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise InputError(f"--set {word}: {owner} has no {key}; the nearest is {nearest[0]}")
        found.append((word, key, value))
    return found
