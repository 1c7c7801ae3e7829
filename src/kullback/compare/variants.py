"""Variants of how a model is computed: dtype, attention kernel, batch size, and the dtype of its key-value cache.

A variant of the base is a noise floor: the KL of the base from itself. A variant of a model is a further model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from kullback.compare.models import LoadedModel
from kullback.compare.sources import DTYPES, ModelSource
from kullback.errors import InputError
from kullback.integrations.transformers import decoder_of

__all__ = [
    "ATTENTION",
    "CACHE_DTYPES",
    "Candidate",
    "RoundedCache",
    "Variant",
    "attention_kernel",
    "floor_variant",
    "head_size",
    "require_head_size",
    "round_cache",
    "token_hidden",
]

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""The attention implementations of transformers."""

CACHE_DTYPES = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "q8_0", "q4_0")
"""The dtypes to which the keys and values of a cache can be rounded; q8_0 and q4_0 are formats of llama.cpp."""

_BLOCK_DTYPES = ("q8_0", "q4_0")
_BLOCK = 32  # entries of a key or a value with one scale in q8_0 and q4_0


@dataclass(frozen=True)
class Variant:
    """How a model is computed; None is the setting of the comparison.

    Args:
        dtype: The dtype of the weights.
        attention: The attention implementation, a name of `ATTENTION`.
        batch_size: The number of windows of a forward pass.
        kv_cache_dtype: The dtype to which keys and values are rounded, a name of `CACHE_DTYPES`.
    """

    dtype: str | None = None
    attention: str | None = None
    batch_size: int | None = None
    kv_cache_dtype: str | None = None

    def __str__(self) -> str:
        settings = {name.replace("_", "-"): value for name, value in self.settings().items()}
        return ", ".join(str(value) if name == "dtype" else f"{name}={value}" for name, value in settings.items())

    def settings(self) -> dict[str, Any]:
        """The settings that differ from the settings of the comparison, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def require_valid(self, option: str, *, batch_size: int) -> None:
        """Check the settings.

        Args:
            option: The command-line option that the variant came from, for error messages.
            batch_size: The number of windows of a forward pass of the comparison.

        Raises:
            InputError: A setting is not one of its possible values.
        """
        for name, value, expected in (
            ("dtype", self.dtype, DTYPES[1:]),
            ("attention", self.attention, ATTENTION),
            ("kv-cache-dtype", self.kv_cache_dtype, CACHE_DTYPES),
        ):
            if value is not None and value not in expected:
                raise InputError(f"{option}: expected {name} to be one of {', '.join(expected)}, got {value!r}")
        if self.batch_size is not None and not 1 <= self.batch_size < batch_size:
            raise InputError(
                f"{option}: expected a batch size from 1 to {batch_size - 1}, less than --batch-size {batch_size}, got "
                f"{self.batch_size}"
            )


@dataclass(frozen=True)
class Candidate:
    """A model that is compared with the base, or a noise floor.

    Args:
        source: The model, with its name in the results.
        variant: How it is computed.
    """

    source: ModelSource
    variant: Variant = Variant()

    @property
    def name(self) -> str:
        """The name in the results."""
        return self.source.name

    def varied(self, variant: Variant) -> "Candidate":
        """The candidate as another variant, with the settings of the variant in its name."""
        return Candidate(replace(self.source, name=f"{self.name} ({variant})"), variant)


def floor_variant(text: str) -> Variant:
    """The variant of a noise floor from its text: a dtype, or NAME=VALUE.

    Args:
        text: Such as "bfloat16", "batch-size=1", "attention=eager" or "kv-cache-dtype=float8_e4m3fn".

    Returns:
        The variant.

    Raises:
        InputError: The text is not a variant.

    Example:
        >>> floor_variant("batch-size=1"), str(floor_variant("bfloat16"))
        (Variant(dtype=None, attention=None, batch_size=1, kv_cache_dtype=None), 'bfloat16')
    """
    name, is_named, value = text.partition("=")
    if not is_named:
        name, value = "dtype", text
    key = name.replace("-", "_")
    if key not in Variant.__dataclass_fields__ or not value:
        raise InputError(
            f"--floor: expected a dtype, batch-size=N, attention=NAME or kv-cache-dtype=DTYPE, got {text!r}"
        )
    if key != "batch_size":
        return replace(Variant(), **{key: value})
    if not value.isdecimal():
        raise InputError(f"--floor: expected a whole number as batch-size, got {value!r}")
    return Variant(batch_size=int(value))


def round_cache(states: Tensor, dtype: str) -> Tensor:
    """Keys or values as a cache of a dtype returns them, in the dtype of the model.

    A floating dtype rounds to the nearest, and numbers beyond its range become its largest number, as with a scale of 1
    in vLLM. q8_0 and q4_0 have a scale in float16 for every 32 entries of a head, as in llama.cpp.

    Args:
        states: Keys or values, shape (..., d).
        dtype: A name of `CACHE_DTYPES`.

    Returns:
        The rounded states, shape (..., d).

    Raises:
        InputError: The dtype is q8_0 or q4_0, and d is not a multiple of 32.
    """
    if dtype in _BLOCK_DTYPES:
        require_head_size(dtype, states.shape[-1])
        blocks = states.float().unflatten(-1, (-1, _BLOCK))
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        scale = largest.abs() / 127 if dtype == "q8_0" else largest / -8
        codes = torch.where(scale == 0, 0.0, blocks * (1 / scale))
        if dtype == "q8_0":
            codes = codes.abs().add(0.5).floor() * codes.sign()
        else:
            codes = (codes + 8.5).floor().clamp(max=15) - 8
        return (codes * scale.half().float()).flatten(-2).to(states.dtype)
    rounded = getattr(torch, dtype)
    limit = torch.finfo(rounded).max
    return states.clamp(-limit, limit).to(rounded).to(states.dtype)


def require_head_size(dtype: str, size: int) -> None:
    """Check that keys and values of heads of a size can be rounded to a dtype.

    Args:
        dtype: A name of `CACHE_DTYPES`.
        size: The number of entries of a key or a value.

    Raises:
        InputError: The dtype is q8_0 or q4_0, and the size is not a multiple of 32.
    """
    if dtype in _BLOCK_DTYPES and size % _BLOCK:
        raise InputError(f"--kv-cache-dtype {dtype}: expected heads whose size is a multiple of {_BLOCK}, got {size}")


def head_size(config: Any) -> int | None:
    """The number of entries of a key and a value of each head, or None where the configuration does not determine it.

    Args:
        config: The configuration of a model of transformers.

    Example:
        >>> from types import SimpleNamespace
        >>> head_size(SimpleNamespace(hidden_size=64, num_attention_heads=4)), head_size(SimpleNamespace())
        (16, None)
    """
    if getattr(config, "kv_lora_rank", None):  # compressed keys and values, whose sizes differ
        return None
    if isinstance(size := getattr(config, "head_dim", None), int):
        return size
    hidden, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None


class RoundedCache(DynamicCache):
    """A key-value cache whose keys and values are rounded when they are stored.

    Attention reads all keys and values from the cache, including the keys and values of the present token. A forward
    pass over a window with it therefore gives the hidden states of generation with this cache, token by token.

    Args:
        dtype: A name of `CACHE_DTYPES`.
        config: The configuration of the model.
    """

    def __init__(self, dtype: str, config: Any) -> None:
        super().__init__(config=config)
        self.dtype = dtype
        self.updates = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the rounded keys and values, and return all keys and values of the layer."""
        self.updates += 1
        key_states, value_states = round_cache(key_states, self.dtype), round_cache(value_states, self.dtype)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def require_used(self, name: str) -> None:
        """Check that the model has stored keys and values in the cache.

        Raises:
            InputError: It has not, as models without attention do.
        """
        if not self.updates:
            raise InputError(f"--kv-cache-dtype: expected a model with a key-value cache, but {name} does not use it")


@contextmanager
def attention_kernel(model: LoadedModel, name: str | None) -> Iterator[None]:
    """Within the context, a model computes attention by the named implementation; None: by its own.

    Raises:
        InputError: The model or the installed packages do not support it.
    """
    if name is None:
        yield
        return
    former = model.model.config._attn_implementation
    try:
        try:
            model.model.set_attn_implementation(name)
            reason = "" if model.model.config._attn_implementation == name else "the model does not support it"
        except (ValueError, ImportError, RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
        if reason:
            raise InputError(f"--attention {name}: it cannot be used for {model.source.name}: {reason}")
        yield
    finally:
        model.model.set_attn_implementation(former)


def token_hidden(
    model: LoadedModel, variant: Variant, rows: Sequence[tuple[NDArray[np.int64], int]], device: torch.device
) -> Tensor:
    """The last hidden states that predict tokens.

    Args:
        model: The model.
        variant: How it is computed.
        rows: The token ids of each row, and the number of tokens at its end that are predicted.
        device: The device.

    Returns:
        The hidden states before each predicted token of each row, shape (n, d).

    Raises:
        InputError: The model does not support the variant.
    """
    size = variant.batch_size or len(rows)
    parts = []
    with attention_kernel(model, variant.attention):
        for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
            ids = torch.zeros(len(batch), max(len(tokens) for tokens, _ in batch), dtype=torch.long)
            attention = torch.zeros_like(ids)
            for row, (tokens, _) in enumerate(batch):
                ids[row, : len(tokens)] = torch.from_numpy(tokens)
                attention[row, : len(tokens)] = 1
            hidden = _hidden(model, variant, ids.to(device), attention.to(device))
            # The position before a token predicts the token.
            parts += [
                hidden[row, len(tokens) - count - 1 : len(tokens) - 1] for row, (tokens, count) in enumerate(batch)
            ]
    return torch.cat(parts)


@torch.no_grad()
def _hidden(model: LoadedModel, variant: Variant, ids: Tensor, attention: Tensor) -> Tensor:
    """The last hidden states, shape (batch, time, d)."""
    if variant.kv_cache_dtype is None:
        return model.hidden(ids, attention)
    cache = RoundedCache(variant.kv_cache_dtype, model.model.config)
    decoder = decoder_of(model.model)
    found = decoder(input_ids=ids, attention_mask=attention, past_key_values=cache, use_cache=True).last_hidden_state
    cache.require_used(model.source.name)
    return found
