"""Language models of the transformers library: loaded safely, their hidden states, heads and completions."""

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
    "require_model_directory",
    "sample",
]

Prompt = str | list[dict[str, str]]

_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
_IGNORED = -100


@dataclass(frozen=True)
class Head:
    """What turns a model's last hidden states into logits: `scale * (hidden @ weight.T + bias)`."""

    weight: Tensor
    bias: Tensor | None
    scale: float


@dataclass(frozen=True)
class Completions:
    """Sampled completions: ids of shape (batch, prompt + completion), and which of them are what."""

    ids: Tensor
    attention: Tensor
    mask: Tensor
    """Shape (batch, completion): true for the completion's tokens, its end mark included."""


def require_model_directory(directory: Path) -> None:
    """Refuse, in one line, what is not a local safetensors model with a tokenizer, without loading it.

    Raises:
        InputError: The directory is absent, or lacks config.json, safetensors (pickles are never read) or a tokenizer.
    """
    if not directory.is_dir():
        raise InputError(f"--model {directory}: no such directory; name a local transformers directory")
    if not (directory / "config.json").is_file():
        raise InputError(f"--model {directory}: expected a config.json there; save the model by save_pretrained")
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
        found = f"found {pickled[0]}, a pickle, which can run code" if pickled else "found no weights"
        raise InputError(f"--model {directory}: expected *.safetensors, {found}; save it by save_pretrained")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise InputError(f"--model {directory}: no tokenizer there; save it beside the model by save_pretrained")


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model directory, padding on the left as generation needs."""
    require_model_directory(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left", trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--model {directory}: its tokenizer does not load: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"--model {directory}: its tokenizer has no end-of-sequence token, so that nothing would stop")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(directory: Path) -> PreTrainedModel:
    """A causal language model from a local directory, from safetensors only, in float32."""
    require_model_directory(directory)
    try:
        return AutoModelForCausalLM.from_pretrained(
            directory, use_safetensors=True, trust_remote_code=False, local_files_only=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"--model {directory}: it does not load: {_first_line(error)}") from error


def head_of(model: PreTrainedModel) -> Head:
    """The output head of a causal language model.

    Raises:
        BudgetError: The model caps its logits (`final_logit_softcapping`), which no linear head can say.
    """
    config = model.config.get_text_config()
    if getattr(config, "final_logit_softcapping", None):
        raise BudgetError(
            f"{type(model).__name__} caps its logits (final_logit_softcapping), and the exact KL from hidden states "
            "needs a linear head: use a model without the cap"
        )
    scale = 1.0
    for name in _MULTIPLIERS:
        scale *= getattr(config, name, None) or 1.0
    for name in _DIVISORS:
        divisor = getattr(config, name, None) or 1.0
        # HyperCLOVA X multiplies by what the others divide by.
        scale *= divisor if config.model_type == "hyperclovax" else 1 / divisor
    layer: Any = model.get_output_embeddings()
    return Head(layer.weight, layer.bias, scale)


@contextmanager
def recorded_hidden(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The last hidden states of every forward pass of `model` inside the block, in order, with their gradient."""
    states: list[Tensor] = []
    decoder: Any = model.get_decoder()
    handle = decoder.register_forward_hook(lambda _module, _arguments, output: states.append(output.last_hidden_state))
    try:
        yield states
    finally:
        handle.remove()


def last_hidden(model: PreTrainedModel, ids: Tensor, attention: Tensor) -> Tensor:
    """The last hidden states, shape (batch, time, d), without gradient."""
    decoder: Any = model.get_decoder()
    with torch.no_grad():
        return decoder(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state


def completion_kl(
    policy: Head, hidden: Tensor, reference: Head, ref_hidden: Tensor, mask: Tensor, *, temperature: float
) -> Tensor:
    """KL(policy || reference) at every completion token, exact over the vocabulary, in nats.

    Args:
        policy: The policy's head.
        hidden: Shape (batch, prompt + completion, d): the policy's last hidden states.
        reference: The reference's head.
        ref_hidden: The same of the reference.
        mask: Shape (batch, completion): true for the tokens that count.
        temperature: At which the policy samples; both sides' logits are divided by it.

    Returns:
        Shape (batch, completion), zero where masked; with the policy's gradient, the visited prefixes held fixed.
    """
    time = mask.shape[1]
    before = slice(-time - 1, -1)  # the state before a token is what predicts it
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
    """The log-probability of every completion token, in nats, a few positions' logits held at a time.

    Args:
        head: The model's head.
        hidden: Shape (batch, prompt + completion, d): its last hidden states.
        ids: Shape (batch, prompt + completion).
        mask: Shape (batch, completion): true for the tokens that count.
        temperature: What the logits are divided by.

    Returns:
        Shape (batch, completion), zero where masked; differentiable.
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
    """The entropy of the next-token distribution at every completion token, in nats: log V - KL(p || uniform).

    Args:
        head: The model's head.
        hidden: Shape (batch, prompt + completion, d): its last hidden states.
        mask: Shape (batch, completion): true for the tokens that count.
        temperature: What the logits are divided by.

    Returns:
        Shape (batch, completion), zero where masked.
    """
    uniform = Head(head.weight.new_zeros(len(head.weight), 1), None, 1.0)
    kl = completion_kl(head, hidden, uniform, hidden.new_zeros(*hidden.shape[:2], 1), mask, temperature=temperature)
    return torch.where(mask.bool(), math.log(len(head.weight)) - kl, 0.0)


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, max_new_tokens: int, temperature: float
) -> Completions:
    """Completions sampled from the whole distribution at `temperature`: no top-p, no top-k.

    Args:
        model: A causal language model, in the mode (train or eval) that the caller wants.
        tokenizer: Its tokenizer, padding on the left.
        prompts: Text, or lists of messages for the tokenizer's chat template.
        max_new_tokens: Where a completion is cut.
        temperature: What the logits are divided by.
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
    written = ids[:, attention.shape[1] :]
    ends = (written == tokenizer.eos_token_id).cumsum(dim=1)
    mask = (ends == 0) | ((ends == 1) & (written == tokenizer.eos_token_id))
    return Completions(ids, torch.cat([attention, mask.to(attention.dtype)], dim=1), mask)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
