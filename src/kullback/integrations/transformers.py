"""Language models of transformers: loading without pickles, hidden states, output heads, sampling and token KL."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kullback.errors import BudgetError, InputError, MissingDependencyError

try:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers", "safetensors"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[train]'") from error

from torch import Tensor
from torch.nn.functional import linear_cross_entropy

from kullback.integrations.model_directory import require_model_directory
from kullback.tokens import linear_token_kl

__all__ = [
    "Completions",
    "Head",
    "completion_entropy",
    "completion_kl",
    "completion_log_prob",
    "head_of",
    "last_hidden",
    "load_model",
    "load_tokenizer",
    "recorded_hidden",
    "sample",
]

Prompt = str | list[dict[str, str]]

_SCALE_NAMES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_INVERSE_SCALE_NAMES = ("logits_scaling",)
_IGNORED = -100


@dataclass(frozen=True)
class Head:
    """The linear map from the last hidden states to logits: `scale * (hidden @ weight.T + bias)`.

    Args:
        weight: Shape (vocabulary, d).
        bias: Shape (vocabulary,), or None.
        scale: A factor of the logits.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float


@dataclass(frozen=True)
class Completions:
    """Sampled completions.

    Args:
        ids: Token ids, shape (batch, prompt + completion).
        attention: The attention mask, shape (batch, prompt + completion).
        mask: Shape (batch, completion): true for the tokens of the completion, including its end-of-sequence token.
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer of a model directory, with padding on the left as generation requires.

    Args:
        directory: A local directory in the format of `save_pretrained`.

    Raises:
        InputError: The directory is not valid, the tokenizer does not load, or it has no end-of-sequence token.
    """
    require_model_directory(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left", trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain exceptions for a damaged file
        raise InputError(f"--model {directory}: its tokenizer does not load: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"--model {directory}: expected a tokenizer with an end-of-sequence token, got one without")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(directory: Path) -> PreTrainedModel:
    """Load a causal language model from the safetensors in a local directory, in float32.

    Args:
        directory: A local directory in the format of `save_pretrained`.

    Raises:
        InputError: The directory is not valid, or the model does not load.
    """
    require_model_directory(directory)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"--model {directory}: it does not load: {_first_line(error)}") from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):  # transformers would draw them at random
        raise InputError(
            f"--model {directory}: expected all weights of {type(model).__name__}, but {missing[0]} is missing "
            f"({len(missing)} in total); save the whole model with save_pretrained"
        )
    return model


def head_of(model: PreTrainedModel) -> Head:
    """The output head of a causal language model, with the logit scale of its configuration.

    Raises:
        BudgetError: The model applies `final_logit_softcapping`, so that its logits are not linear in the hidden
            states.
    """
    config = model.config.get_text_config()
    if getattr(config, "final_logit_softcapping", None):
        raise BudgetError(
            f"{type(model).__name__} caps its logits (final_logit_softcapping), but the exact KL from hidden states "
            "requires a linear head; use a model without the cap"
        )
    scale = 1.0
    for name in _SCALE_NAMES:
        scale *= getattr(config, name, None) or 1.0
    for name in _INVERSE_SCALE_NAMES:
        value = getattr(config, name, None) or 1.0
        # HyperCLOVA X multiplies by this value, all other models divide by it.
        scale *= value if config.model_type == "hyperclovax" else 1 / value
    layer: Any = model.get_output_embeddings()
    return Head(layer.weight, layer.bias, scale)


@contextmanager
def recorded_hidden(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """A context manager that collects the last hidden states of every forward pass of `model`, with gradient."""
    states: list[Tensor] = []
    decoder: Any = model.get_decoder()
    handle = decoder.register_forward_hook(lambda _module, _arguments, output: states.append(output.last_hidden_state))
    try:
        yield states
    finally:
        handle.remove()


def last_hidden(model: PreTrainedModel, ids: Tensor, attention: Tensor) -> Tensor:
    """The last hidden states of a forward pass, shape (batch, time, d), without gradient."""
    decoder: Any = model.get_decoder()
    with torch.no_grad():
        return decoder(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state


def completion_kl(
    policy: Head, hidden: Tensor, reference: Head, ref_hidden: Tensor, mask: Tensor, *, temperature: float
) -> Tensor:
    """KL(policy || reference) of the next token at every completion token, exact over the vocabulary.

    Args:
        policy: The output head of the policy.
        hidden: The last hidden states of the policy, shape (batch, prompt + completion, d).
        reference: The output head of the reference.
        ref_hidden: The last hidden states of the reference, shape (batch, prompt + completion, d).
        mask: Shape (batch, completion): true for the tokens that count.
        temperature: The sampling temperature, which divides the logits of both models.

    Returns:
        Nats, shape (batch, completion), zero where masked. The gradient is with respect to the policy, with the sampled
        prefixes held fixed.
    """
    time = mask.shape[1]
    before = slice(-time - 1, -1)  # the hidden state of a token predicts the next token
    return linear_token_kl(
        (hidden[:, before] * policy.scale).to(policy.weight.dtype),
        policy.weight,
        (ref_hidden[:, before] * reference.scale).to(reference.weight.dtype),
        reference.weight,
        bias_p=None if policy.bias is None else policy.bias * policy.scale,
        bias_q=None if reference.bias is None else reference.bias * reference.scale,
        mask=mask,
        temperature=temperature,
    )


def completion_log_prob(head: Head, hidden: Tensor, ids: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """The log-probability of every completion token, without storing the logits of all positions.

    This equals `log_softmax(head(hidden) / temperature)` at the token ids.

    Args:
        head: The output head of the model.
        hidden: The last hidden states, shape (batch, prompt + completion, d).
        ids: Token ids, shape (batch, prompt + completion).
        mask: Shape (batch, completion): true for the tokens that count.
        temperature: The divisor of the logits.

    Returns:
        Nats, shape (batch, completion), zero where masked, differentiable.
    """
    time = mask.shape[1]
    states = (hidden[:, -time - 1 : -1] * (head.scale / temperature)).to(head.weight.dtype)
    loss = linear_cross_entropy(
        states.flatten(0, 1),
        head.weight,
        torch.where(mask.bool(), ids[:, -time:], _IGNORED).flatten(),
        linear_bias=None if head.bias is None else head.bias * (head.scale / temperature),
        reduction="none",
        options=torch.nn.LinearCrossEntropyOptions(),
    )
    return -loss.view(mask.shape)


def completion_entropy(head: Head, hidden: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """The entropy of the next-token distribution at every completion token: log V - KL(p || uniform).

    Args:
        head: The output head of the model.
        hidden: The last hidden states, shape (batch, prompt + completion, d).
        mask: Shape (batch, completion): true for the tokens that count.
        temperature: The divisor of the logits.

    Returns:
        Nats, shape (batch, completion), zero where masked.
    """
    uniform = Head(head.weight.new_zeros(len(head.weight), 1), None, 1.0)
    kl = completion_kl(head, hidden, uniform, hidden.new_zeros(*hidden.shape[:2], 1), mask, temperature=temperature)
    return torch.where(mask.bool(), math.log(len(head.weight)) - kl, 0.0)


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, max_new_tokens: int, temperature: float
) -> Completions:
    """Sample one completion of each prompt from the full distribution, without top-p or top-k.

    Args:
        model: A causal language model. Its training or evaluation mode is not changed.
        tokenizer: The tokenizer of the model, with padding on the left.
        prompts: Texts, or lists of messages for the tokenizer's chat template.
        max_new_tokens: The maximum length of a completion in tokens.
        temperature: The divisor of the logits.
    """
    if all(isinstance(prompt, str) for prompt in prompts):
        encoded = tokenizer(list(prompts), return_tensors="pt", padding=True)
    else:
        encoded = tokenizer.apply_chat_template(
            list(prompts), add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
    encoded = encoded.to(model.device)
    attention = encoded["attention_mask"]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    ids = model.generate(input_ids=encoded["input_ids"], attention_mask=attention, generation_config=config)
    completion_ids = ids[:, attention.shape[1] :]
    ends = (completion_ids == tokenizer.eos_token_id).cumsum(dim=1)
    mask = (ends == 0) | ((ends == 1) & (completion_ids == tokenizer.eos_token_id))
    return Completions(ids, torch.cat([attention, mask.to(attention.dtype)], dim=1), mask)


def _first_line(error: Exception) -> str:
    """The first line of an exception's message, or its class if the message is empty."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
