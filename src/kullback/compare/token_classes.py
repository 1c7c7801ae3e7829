"""Classes of tokens: digits, punctuation of code, words and others."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["TokenClasses", "token_class"]

_CODE = frozenset("{}[]()<>=+-*/\\|&^%$#@~`;:_")
_WORD_STARTS = ("\u0120", "\u2581", " ")  # of byte-level BPE, of SentencePiece, and of vocabularies of plain text


class TokenClasses:
    """The class of each token of a tokenizer.

    Args:
        tokenizer: A tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._known: dict[int, str] = {}

    def __call__(self, ids: ArrayLike) -> NDArray[np.str_]:
        """The classes of token ids.

        Args:
            ids: Token ids, shape (n,).

        Returns:
            Names of classes, shape (n,); see `token_class`.
        """
        unique, inverse = np.unique(np.asarray(ids), return_inverse=True)
        return np.array([self._name(int(token)) for token in unique])[inverse]

    def _name(self, token: int) -> str:
        if token not in self._known:
            raw = str(self.tokenizer.convert_ids_to_tokens(token) or "")
            text = self.tokenizer.decode([token])
            is_start = raw.startswith(_WORD_STARTS)
            self._known[token] = "special" if token in self._special else token_class(text, starts_word=is_start)
        return self._known[token]


def token_class(text: str, *, starts_word: bool = False) -> str:
    """The class of a token.

    Args:
        text: The text of the token.
        starts_word: Whether the token begins with the space before a word, which decoding can drop.

    Returns:
        "whitespace", "digits", "code punctuation", "punctuation", "word start", "word continuation" or "other".

    Example:
        >>> [token_class(text) for text in (" ", "42", "){", ",", " the", "ing", "\u4e2d")]
        ['whitespace', 'digits', 'code punctuation', 'punctuation', 'word start', 'word continuation', 'other']
    """
    content = text.strip()
    if not content:
        return "whitespace"
    if content.isdecimal():
        return "digits"
    if content.isascii() and not any(c.isalnum() for c in content):
        return "code punctuation" if any(c in _CODE for c in content) else "punctuation"
    if all(c.isascii() and (c.isalnum() or c in "'_-") for c in content):
        return "word start" if starts_word or text[0].isspace() else "word continuation"
    return "other"
