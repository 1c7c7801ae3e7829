"""Checks of prompts and examples with the tokenizer and the model that they are for."""

from collections.abc import Mapping, Sequence
from typing import Any

from kullback.errors import InputError

__all__ = ["positions_of", "require_chat_template", "require_prompts_fit"]

Row = dict[str, Any]
_BATCH = 1024  # prompts that are tokenized at once


def positions_of(model: Any) -> int | None:
    """The maximum length of a sequence that a model was made for, or None if its configuration states none.

    Args:
        model: A language model of transformers.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def require_chat_template(rows: Sequence[Row], tokenizer: Any, option: str) -> None:
    """Check that a tokenizer has a chat template if prompts are messages.

    Args:
        rows: The prompts, all of which are text, or all of which are messages.
        tokenizer: The tokenizer.
        option: The option that named the file of the prompts, for the message.

    Raises:
        InputError: The prompts are messages, and the tokenizer has no template.
    """
    if rows and not isinstance(rows[0]["prompt"], str) and not tokenizer.chat_template:
        raise InputError(
            f"{option}: the prompts are messages, but the tokenizer of --model has no chat template; use prompts that "
            "are text, or the tokenizer of a chat model"
        )


def require_prompts_fit(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    positions: int | None,
    max_new_tokens: int,
    option: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Check that every prompt can be encoded, and that a completion fits into the model's positions after it.

    Args:
        rows: The prompts.
        tokenizer: The tokenizer.
        positions: The maximum length of a sequence, or None for no limit.
        max_new_tokens: The maximum length of a completion.
        option: The option that named the file of the prompts, for the message.
        chat_template_kwargs: Further arguments of the chat template, as in training.

    Raises:
        InputError: The chat template rejects a prompt, a prompt has no token, or it is too long. The message gives the
            number of the row, counted from 1.
    """
    require_chat_template(rows, tokenizer, option)
    settings = chat_template_kwargs or {}
    for start in range(0, len(rows), _BATCH):
        prompts = [row["prompt"] for row in rows[start : start + _BATCH]]
        for number, length in enumerate(_lengths(prompts, tokenizer, start, option, settings), start=start + 1):
            if length == 0:
                raise InputError(f"{option}, row {number}: expected a prompt with a token, got none after tokenization")
            if positions is not None and length + max_new_tokens > positions:
                raise InputError(
                    f"{option}, row {number}: the prompt has {length} tokens, and a completion up to {max_new_tokens} "
                    f"(--set max_completion_length), but the model has {positions} positions; shorten the prompt, or "
                    "lower max_completion_length"
                )


def _lengths(prompts: Sequence[Any], tokenizer: Any, start: int, option: str, settings: Mapping[str, Any]) -> list[int]:
    """The number of tokens of each prompt, with the text that a chat template adds."""
    if isinstance(prompts[0], str):
        return [len(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    lengths = []
    for number, prompt in enumerate(prompts, start=start + 1):
        try:
            encoded = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **settings
            )
        except Exception as error:  # a template raises errors of jinja, and may raise others
            message = " ".join(str(error).split())
            raise InputError(f"{option}, row {number}: the chat template rejects the prompt: {message}") from error
        lengths.append(len(encoded["input_ids"]))
    return lengths
