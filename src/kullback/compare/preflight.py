"""Checks of two models before any forward pass: vocabulary, templates and positions."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kullback.errors import InputError

__all__ = [
    "require_comparable",
    "require_positions",
    "require_same_vocabulary",
    "template_hash",
    "tokenizer_hash",
    "vocabulary_size",
]


def vocabulary_size(tokenizer: Any) -> int:
    """The number of token ids that a tokenizer uses: the largest id plus 1.

    Args:
        tokenizer: A tokenizer of transformers.

    Returns:
        The number. Rows of an output head beyond it are padding.
    """
    return max(tokenizer.get_vocab().values()) + 1


def require_same_vocabulary(base: Any, other: Any, base_name: str, name: str) -> None:
    """Check that two tokenizers give each id to the same token.

    Args:
        base: The tokenizer of the base.
        other: The tokenizer of the model.
        base_name: The name of the base in messages.
        name: The name of the model in messages.

    Raises:
        InputError: The vocabularies differ; the message has the first id at which they differ.
    """
    tokens, others = ({number: token for token, number in one.get_vocab().items()} for one in (base, other))
    differing = sorted(number for number in tokens.keys() | others.keys() if tokens.get(number) != others.get(number))
    if not differing:
        return
    first = differing[0]
    found = [f"{one[first]!r}" if first in one else "no token" for one in (tokens, others)]
    raise InputError(
        f"{name}: expected the vocabulary of {base_name}, but {len(differing)} token ids differ: id {first} is "
        f"{found[0]} for {base_name} and {found[1]} for {name}; the KL divergence of tokens requires one "
        "vocabulary"
    )


def require_positions(positions: int | None, context: int, name: str) -> None:
    """Check that a model supports windows of the context length.

    Args:
        positions: The number of positions of the model; None: unlimited.
        context: The number of tokens of the longest window.
        name: The name of the model in messages.

    Raises:
        InputError: The windows are longer.
    """
    if positions is not None and context > positions:
        raise InputError(f"--context: expected at most {positions} tokens, the positions of {name}, got {context}")


def template_hash(tokenizer: Any) -> str | None:
    """The SHA-256 of a chat template.

    Args:
        tokenizer: The tokenizer.

    Returns:
        The hash, hexadecimal; None without a template.
    """
    template = tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """The SHA-256 of the vocabulary of a tokenizer.

    Args:
        tokenizer: The tokenizer.

    Returns:
        The hash of the pairs of token and id, hexadecimal.
    """
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def require_comparable(config: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Check that a comparison has the base, the tokens and the windows of an earlier comparison.

    Args:
        config: The configuration of the comparison.
        earlier: The content of the earlier result.json.

    Raises:
        InputError: They differ; the message has every difference.
    """
    try:
        pairs = [
            (name, read(earlier["config"]), read(config))
            for name, read in {
                "the hash of the tokens": lambda c: c["text"]["tokens_sha256"],
                "the hash of the vocabulary": lambda c: c["tokenizer"]["sha256"],
                "the BOS token": lambda c: c["tokenizer"]["bos"],
                "the context": lambda c: c["settings"]["context"],
                "the stride": lambda c: c["settings"]["stride"],
                "the hash of the weights of the base": lambda c: c["models"][c["base"]]["sha256"],
                "the hash of the adapter of the base": lambda c: c["models"][c["base"]].get("adapter_sha256"),
                "the dtype of the base": lambda c: c["models"][c["base"]]["dtype"],
            }.items()
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"--against: expected a result.json of kullback compare, got one without {error}") from error
    if differing := [f"{name} was {before}, is {now}" for name, before, now in pairs if before != now]:
        raise InputError(f"--against: expected a comparable result, but {'; '.join(map(str, differing))}")
