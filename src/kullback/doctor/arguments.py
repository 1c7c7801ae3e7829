"""The arguments of `kullback.doctor`, which are checked and converted before any model is called."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kullback.doctor.forward_pass import TRL_NAMES
from kullback.errors import ArrayTypeError, InputError
from kullback.numerics.arguments import as_real_array, boolean_mask, is_number, shown
from kullback.tokens.logits import is_scalar, require_tensors

__all__ = ["BATCH_KEYS", "as_batch", "require_models", "require_options"]

_REQUIRED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
_MASKS = ("prompt_mask", "completion_mask", "tool_mask")
_IDS = ("prompt_ids", "completion_ids")

BATCH_KEYS = (*_REQUIRED, "tool_mask", "kl", *TRL_NAMES.values(), *TRL_NAMES)
"""The keys of a batch that the doctor reads."""

_IGNORED = (
    "advantages",
    "image_grid_thw",
    "image_position_ids",
    "image_sizes",
    "importance_sampling_ratio",
    "mm_token_type_ids",
    "num_images",
    "num_items_in_batch",
    "num_tiles",
    "pixel_attention_mask",
    "pixel_values",
    "spatial_shapes",
    "token_type_ids",
)  # the other keys of TRL's batches
_PRECISIONS = (torch.bfloat16, torch.float16)
_OF_TOKENIZER = ("eos_token_id", "bos_token_id", "chat_template", "get_vocab", "decode", "apply_chat_template")


def as_batch(batch: Any) -> dict[str, Any]:
    """The values of a batch that the doctor reads, as dense tensors without gradients.

    Args:
        batch: As `kullback.doctor` takes it.

    Returns:
        Token ids in int64, masks of booleans, recorded log-probabilities in float32 or float64, and "kl" as one float
        or as a tensor. A value of None is left out.

    Raises:
        InputError: The batch is not a mapping, has an unknown key, lacks a required key, or has a negative token id.
        ArrayTypeError: A value is not an array of numbers of the expected kind.
        ShapeError: The rows of a list have different lengths.
    """
    if not isinstance(batch, Mapping):
        raise InputError(
            f"expected batch to be a mapping with the keys {', '.join(_REQUIRED)}, got {shown(batch)}; pass the batch "
            "of one step"
        )
    for key in batch:
        if key not in BATCH_KEYS and key not in _IGNORED:
            similar = get_close_matches(str(key), BATCH_KEYS, n=1)
            remedy = f"did you mean {similar[0]!r}?" if similar else "leave it out"
            raise InputError(f"expected keys of a batch among {', '.join(BATCH_KEYS)}, got {shown(key)}; {remedy}")
    given = {key: batch[key] for key in BATCH_KEYS if batch.get(key) is not None}
    if missing := [key for key in _REQUIRED if key not in given]:
        raise InputError(f"expected a batch with {', '.join(_REQUIRED)}, got none of {', '.join(missing)}")
    return {key: _value(key, value) for key, value in given.items()}


def _value(key: str, value: Any) -> Tensor | float:
    if key in _IDS:
        return _token_ids(key, _as_tensor(key, value))
    if key in _MASKS:
        try:
            return boolean_mask(_as_tensor(key, value))
        except ArrayTypeError as error:
            raise ArrayTypeError(f"{key}: {error}") from error
    if key == "kl" and (is_number(value) or (is_scalar(value) and not value.ndim)):
        return float(value)
    return _floats(key, _as_tensor(key, value))


def _as_tensor(name: str, value: Any) -> Tensor:
    """An array or a list as a tensor of integers, floats or booleans, without gradients."""
    if isinstance(value, Tensor):
        require_tensors(**{name: value})
        return value.detach()
    array = as_real_array(name, value)
    dtype = {"b": np.bool, "f": np.float64}.get(array.dtype.kind, np.int64)
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def _token_ids(name: str, ids: Tensor) -> Tensor:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ArrayTypeError(f"expected {name} to be integers, got {ids.dtype}; pass the token ids of the tokenizer")
    ids = ids.long()
    if (negative := ids[ids < 0]).numel():
        raise InputError(
            f"expected {name} of at least 0, got {int(negative[0])}; pass token ids instead of labels, and any token "
            "id where the mask is 0"
        )
    return ids


def _floats(name: str, values: Tensor) -> Tensor:
    if values.dtype == torch.bool:
        raise ArrayTypeError(f"expected {name} to be real numbers in nats, got booleans; pass the recorded values")
    return values if values.dtype == torch.float64 else values.float()


def require_models(policy: Any, reference: Any) -> None:
    """Raises InputError unless the policy, and the reference if there is one, is a causal language model."""
    _require_model("policy", policy)
    if reference is not None:
        _require_model("reference", reference)


def _require_model(name: str, model: Any) -> None:
    remedy = "load it with AutoModelForCausalLM.from_pretrained(...)"
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else shown(model)
        raise InputError(f"expected {name} to be a causal language model of transformers, got {got}; {remedy}")
    if isinstance(getattr(model, "module", None), nn.Module):
        remedy = f"pass the model within the wrapper, {name}.module"
    try:
        head = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        head = None
    config = getattr(model, "config", None)
    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    if config is None or is_encoder_decoder or not isinstance(head, nn.Module):
        kind = "an encoder with a decoder" if is_encoder_decoder else f"{type(model).__name__} without an output layer"
        raise InputError(f"expected {name} to be a causal language model of transformers, got {kind}; {remedy}")


def require_options(
    *,
    tokenizer: Any,
    ref_tokenizer: Any,
    chat_template_kwargs: Any,
    autocast: Any,
    optimizer: Any,
    penalty: Any,
    at_start: Any,
    on_policy: Any,
    as_reference: Any,
    head_logits: Any,
) -> None:
    """Raises InputError at the first option of `kullback.doctor` that has a value of another kind than it takes."""
    for name, value in (("tokenizer", tokenizer), ("ref_tokenizer", ref_tokenizer)):
        _require_tokenizer(name, value)
    if ref_tokenizer is not None and tokenizer is None:
        raise InputError("expected tokenizer beside ref_tokenizer, got None; pass the tokenizer of the policy")
    if not isinstance(chat_template_kwargs, Mapping | None):
        raise InputError(f"expected chat_template_kwargs to be a mapping or None, got {shown(chat_template_kwargs)}")
    if autocast is not None and not (isinstance(autocast, torch.dtype) and autocast in _PRECISIONS):
        raise InputError(f"expected autocast to be torch.bfloat16, torch.float16 or None, got {shown(autocast)}")
    if optimizer is not None and not _are_parameter_groups(getattr(optimizer, "param_groups", None)):
        raise InputError(
            f"expected optimizer to be an optimizer of PyTorch or None, got {shown(optimizer)}; pass the object that "
            "has param_groups"
        )
    for name, flag in (("at_start", at_start), ("on_policy", on_policy)):
        if not isinstance(flag, bool | np.bool):
            raise InputError(f"expected {name} to be True or False, got {shown(flag)}")
    _require_function("penalty", penalty, ("log_prob", "ref_log_prob"))
    _require_function("head_logits", head_logits, ("batch",))
    _require_function("as_reference", as_reference, ())


def _require_tokenizer(name: str, tokenizer: Any) -> None:
    is_complete = all(hasattr(tokenizer, attribute) for attribute in _OF_TOKENIZER)
    if tokenizer is None or (is_complete and not isinstance(tokenizer, type)):
        return
    has_inner = getattr(tokenizer, "tokenizer", None) is not None
    remedy = f"pass {name}.tokenizer" if has_inner else "load it with AutoTokenizer.from_pretrained(...)"
    raise InputError(f"expected {name} to be a tokenizer of transformers or None, got {shown(tokenizer)}; {remedy}")


def _are_parameter_groups(groups: Any) -> bool:
    return isinstance(groups, Iterable) and all(isinstance(group, Mapping) and "params" in group for group in groups)


def _require_function(name: str, function: Callable[..., Any] | None, arguments: tuple[str, ...]) -> None:
    """Raises InputError unless a value is None or a function that can be called with the given number of arguments."""
    if function is None:
        return
    expected = f"expected {name} to be a function of ({', '.join(arguments)}) or None"
    # A model can be called, and so can the context manager that a function with @contextmanager returns.
    is_other = name == "as_reference" and (isinstance(function, nn.Module) or hasattr(function, "__enter__"))
    if is_other or not callable(function):
        raise InputError(f"{expected}, got {shown(function)}; pass the function itself, not its name or its result")
    try:
        signature(function).bind(*arguments)
    except TypeError as error:
        raise InputError(f"{expected}, got a function that cannot be called with them: {error}") from error
    except ValueError:  # a function of C has no signature
        return
