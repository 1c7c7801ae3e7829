"""Position ids for models that count the padding before a prompt as positions."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from kullback.integrations.transformers import decoder_of, last_hidden
from kullback.integrations.transformers_reference import evaluation_mode

__all__ = ["counts_padding", "ignore_padding", "pass_position_ids"]

_TOKENS, _PADDING = 8, 4
_TOLERANCE, _TOLERANCE_OF_16_BITS = 1e-4, 0.1  # relative to the largest hidden state


@torch.no_grad()
def counts_padding(model: Any) -> bool:
    """Whether the hidden states of a causal language model depend on the padding before a prompt.

    `generate` passes position ids that start at the first token, so that the probabilities of completions do not depend
    on padding when they are sampled.

    Args:
        model: A causal language model of transformers, whose weights are whole.

    Returns:
        Whether hidden states of fixed tokens change when padding is added, by more than rounding.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=16, n_embd=8, n_layer=1, n_head=1))
        >>> counts_padding(model)
        True
        >>> ignore_padding(model), counts_padding(model)
        (True, False)
    """
    ids = torch.arange(1, _TOKENS + 1, device=model.device)[None] % model.config.get_text_config().vocab_size
    # A model that reads padding shows it with any tokens; the embedding of its padding token may be 0.
    padded = torch.cat([ids[:, :_PADDING], ids], dim=1)
    attention = torch.ones_like(padded)
    attention[:, :_PADDING] = 0
    with evaluation_mode(model), torch.autocast(model.device.type, enabled=False):
        alone = last_hidden(model, ids, torch.ones_like(ids)).float()
        beside = last_hidden(model, padded, attention)[:, _PADDING:].float()
    tolerance = _TOLERANCE if model.dtype.itemsize >= 4 else _TOLERANCE_OF_16_BITS
    return not bool((alone - beside).abs().max() <= tolerance * alone.abs().max())


def pass_position_ids(model: Any) -> None:
    """Pass position ids that start at the first token with attention to the decoder of a model where it gets none.

    Args:
        model: A causal language model of transformers. A decoder without the argument `position_ids` is not changed.
    """
    decoder = decoder_of(model)
    is_passed = _add_position_ids in decoder._forward_pre_hooks.values()
    if not is_passed and "position_ids" in signature(type(decoder).forward).parameters:
        decoder.register_forward_pre_hook(_add_position_ids, with_kwargs=True)


def ignore_padding(model: Any, agree: Callable[[bool], bool] = bool) -> bool:
    """Pass position ids to a model whose weights are whole, if it counts the padding before a prompt.

    Args:
        model: A causal language model of transformers.
        agree: Returns the answer of all processes, given the answer of this one.

    Returns:
        Whether the hidden states of the model are now independent of the padding before a prompt.
    """
    if not agree(counts_padding(model)):
        return True
    pass_position_ids(model)
    return not agree(counts_padding(model))


def _add_position_ids(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a forward pass with the position ids that `generate` would pass."""
    attention: Tensor | None = kwargs.get("attention_mask")
    is_given = kwargs.get("position_ids") is not None or kwargs.get("past_key_values") is not None
    if is_given or attention is None or attention.ndim != 2:
        return args, kwargs
    return args, {**kwargs, "position_ids": (attention.long().cumsum(-1) - 1).clamp(min=0)}
