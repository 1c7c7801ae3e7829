"""Language models of transformers: loading without pickles, hidden states, output heads, sampling and token KL."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kullback.errors import InputError, MissingDependencyError

try:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
    from transformers.utils import ModelOutput
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers", "safetensors"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[train]'") from error

from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from kullback.integrations.gguf import is_gguf, load_gguf_config, load_gguf_model, load_gguf_tokenizer
from kullback.integrations.model_directory import require_model_directory
from kullback.tokens.linear import head_token_kl, linear_token_kl

__all__ = [
    "AnyHead",
    "Completions",
    "Head",
    "capped_head_of",
    "completion_entropy",
    "completion_kl",
    "completion_log_prob",
    "decoder_of",
    "decoder_output",
    "end_tokens",
    "head_of",
    "last_hidden",
    "load_config",
    "load_model",
    "load_tokenizer",
    "model_head",
    "recorded_hidden",
    "require_embeddings",
    "sample",
]

# ImportError: the library of a quantised model is missing.
_LOAD_ERRORS = (AttributeError, ImportError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)

Prompt = str | list[dict[str, str]]

_SCALE_NAMES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_INVERSE_SCALE_NAMES = ("logits_scaling",)
_IGNORED = -100
_CHUNK = 256  # positions whose logits are in memory at a time
_HAS_LINEAR_CROSS_ENTROPY = hasattr(torch.nn, "LinearCrossEntropyOptions")  # since torch 2.13


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

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states of shape (..., d)."""
        bias = None if self.bias is None else self.bias * self.scale
        return linear((hidden * self.scale).to(self.weight.dtype), self.weight, bias)


AnyHead = Head | Callable[[Tensor], Tensor]
"""The output head of a model: a `Head` if it is linear, otherwise a function from hidden states to logits."""


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


def load_config(directory: Path) -> Any:
    """Load the configuration of a language model, the part for text if it has several.

    Args:
        directory: A local directory in the format of `save_pretrained`, or a GGUF file.

    Raises:
        InputError: A GGUF file does not load.
    """
    if is_gguf(directory):
        return load_gguf_config(directory).get_text_config()
    return AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config()


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer of a model directory, with padding on the left as generation requires.

    Args:
        directory: A local directory in the format of `save_pretrained`, or a GGUF file.

    Raises:
        InputError: The directory is not valid, the tokenizer does not load, or it has no end-of-sequence token.
    """
    if is_gguf(directory):
        tokenizer = load_gguf_tokenizer(directory)
    else:
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


def load_model(directory: Path, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """Load a causal language model from the safetensors in a local directory, or dequantised from a GGUF file.

    Args:
        directory: A local directory in the format of `save_pretrained`, or a GGUF file.
        dtype: The dtype of the weights; "auto": as they were saved, and float32 for a GGUF file.

    Raises:
        InputError: The directory is not valid, or the model does not load.
    """
    if is_gguf(directory):
        return load_gguf_model(directory, dtype)
    require_model_directory(directory)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except _LOAD_ERRORS as error:
        raise InputError(f"--model {directory}: it does not load: {_first_line(error)}") from error
    model, loading = loaded
    quantisation = getattr(model.config, "quantization_config", None)
    if quantisation is not None and getattr(model, "hf_quantizer", None) is None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        raise InputError(
            f"--model {directory}: expected a quantisation that this version of transformers supports, got {method!r} "
            "in its config.json; save the dequantised weights, or remove quantization_config if they are not quantised"
        )
    if missing := sorted(loading["missing_keys"]):  # transformers would draw them at random
        raise InputError(
            f"--model {directory}: expected all weights of {type(model).__name__}, but {missing[0]} is missing "
            f"({len(missing)} in total); save the whole model with save_pretrained"
        )
    return model


def require_embeddings(model: Any, tokenizer: Any) -> None:
    """Raise InputError if a tokenizer has more tokens than a model has embeddings."""
    embeddings = model.get_input_embeddings()
    count, tokens = getattr(embeddings, "num_embeddings", None), len(getattr(tokenizer, "tokenizer", tokenizer))
    if count is not None and tokens > count:
        raise InputError(
            f"expected a model with an embedding of each of the tokenizer's {tokens} tokens, got {count} embeddings; "
            f"call resize_token_embeddings({tokens}), or pass the tokenizer of the model"
        )


def decoder_of(model: PreTrainedModel) -> Any:
    """The module of a causal language model whose output is the input of its output head."""
    decoder = model.get_decoder()
    # The attribute `decoder` of some models is the projection to logits, not the decoder.
    if isinstance(decoder, PreTrainedModel) and decoder is not model:
        return decoder
    # Llama 4 declares the name that the decoder has in the model of text and images.
    return model.base_model if model.base_model is not model else model.model


@dataclass
class _DecoderOutput(ModelOutput):
    """The output of a decoder that contains nothing but hidden states; every other attribute is None."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


@contextmanager
def decoder_output(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """A context manager in which the decoder of a model returns the given hidden states, of shape (batch, time, d)."""
    decoder = decoder_of(model)
    former = decoder.__dict__.get("forward")
    decoder.forward = lambda *_, **__: _DecoderOutput(last_hidden_state=hidden)
    try:
        yield
    finally:
        del decoder.forward
        if former is not None:
            decoder.forward = former


def model_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The output head of a causal language model as its own forward pass computes it, caps and scales included.

    Args:
        model: The model. Its decoder is replaced, during a call of the head, by a function that returns the hidden
            states which the head is applied to.

    Returns:
        A differentiable function from hidden states of shape (n, d) to logits of shape (n, vocabulary).
    """

    def head(hidden: Tensor) -> Tensor:
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with decoder_output(model, hidden[None]):
            return type(model).forward(model, input_ids=ids, use_cache=False, return_dict=True).logits[0]

    return head


def head_of(model: PreTrainedModel) -> AnyHead:
    """The output head of a causal language model.

    The head is taken as linear if its last layer is a `torch.nn.Linear`, and if this layer with the logit scale of the
    model's configuration, or without a scale, gives the logits of the model for hidden states of ordinary and of very
    large size. All other heads (capped logits, layers before the projection, adapters on the projection) are computed
    by the model's own forward pass.

    Args:
        model: The model, whose weights are whole on this process.

    Returns:
        A `Head` if the head is linear, otherwise the function of `model_head`.
    """
    head = model_head(model)
    layer: Any = model.get_output_embeddings()
    if hasattr(layer, "modules_to_save"):  # PEFT's copy of a layer that is trained in full
        layer = layer.modules_to_save[layer.active_adapters[0]]
    # The weight of an adapted or parametrised layer is not one tensor that the optimizer changes.
    if not isinstance(layer, torch.nn.Linear) or hasattr(layer, "parametrizations"):
        return head
    for scale in dict.fromkeys((_configured_scale(model), 1.0)):
        candidate = Head(layer.weight, layer.bias, scale)
        if _is_equal(candidate, layer.weight, head):
            return candidate
    return head


def capped_head_of(model: PreTrainedModel) -> tuple[Head, float | None] | None:
    """The output head of a causal language model as a linear map and the bound c of capped logits, c tanh(logits / c).

    Args:
        model: The model, whose weights are whole on this process.

    Returns:
        The linear head and its bound, which is None for logits that are not capped; None if the head is neither. As in
        `head_of`, the model's own forward pass decides.
    """
    head = head_of(model)
    if isinstance(head, Head):
        return head, None
    layer: Any = model.get_output_embeddings()
    bound = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if not bound or not isinstance(layer, torch.nn.Linear) or hasattr(layer, "parametrizations"):
        return None
    for scale in dict.fromkeys((_configured_scale(model), 1.0)):
        linear_head = Head(layer.weight, layer.bias, scale)
        if _is_equal(lambda states, inner=linear_head: bound * torch.tanh(inner(states) / bound), layer.weight, head):
            return linear_head, float(bound)
    return None


def _configured_scale(model: PreTrainedModel) -> float:
    """The factor of the logits by the names that model configurations use for it; 1 if there is none."""
    config = model.config.get_text_config()
    scale = 1.0
    for name in _SCALE_NAMES:
        value = getattr(config, name, None)
        scale *= value if isinstance(value, int | float) and value else 1.0
    for name in _INVERSE_SCALE_NAMES:
        value = getattr(config, name, None) or 1.0
        # HyperCLOVA X multiplies by this value, all other models divide by it.
        scale *= value if config.model_type == "hyperclovax" else 1 / value
    return scale


@torch.no_grad()
def _is_equal(candidate: AnyHead, weight: Tensor, head: Callable[[Tensor], Tensor]) -> bool:
    """Whether a head with this weight gives the logits of the model, for logits of ordinary size and of about 1000."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        largest = float(candidate(hidden).abs().max())
        for factor in (1.0, 1e3 / largest if largest > 0 else 1.0):
            expected = candidate(hidden * factor).double()
            try:
                logits = head(hidden * factor).double()
            except RuntimeError:  # a layer before the projection takes hidden states of another size
                return False
            tolerance = 16 * torch.finfo(weight.dtype).eps * float(expected.abs().max())
            if logits.shape != expected.shape or not bool(((logits - expected).abs() <= tolerance).all()):
                return False
    return True


@contextmanager
def recorded_hidden(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """A context manager that collects the last hidden states of every forward pass of `model`, with gradient."""
    states: list[Tensor] = []
    handle = decoder_of(model).register_forward_hook(
        lambda _module, _arguments, output: states.append(output.last_hidden_state)
    )
    try:
        yield states
    finally:
        handle.remove()


def last_hidden(model: PreTrainedModel, ids: Tensor, attention: Tensor) -> Tensor:
    """The last hidden states of a forward pass, shape (batch, time, d), without gradient."""
    with torch.no_grad():
        return decoder_of(model)(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state


def completion_kl(
    policy: AnyHead, hidden: Tensor, reference: AnyHead, ref_hidden: Tensor, mask: Tensor, *, temperature: float
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
    if not (isinstance(policy, Head) and isinstance(reference, Head)):
        states = (hidden[:, before], policy, ref_hidden[:, before], reference)
        return head_token_kl(*states, mask=mask, temperature=temperature)
    return linear_token_kl(
        (hidden[:, before] * policy.scale).to(policy.weight.dtype),
        policy.weight,
        (ref_hidden[:, before] * reference.scale).to(reference.weight.dtype),
        reference.weight,
        bias_p=None if policy.bias is None else policy.bias * policy.scale,
        bias_q=None if reference.bias is None else reference.bias * reference.scale,
        mask=mask,
        temperature=temperature,
        # A loss weights all tokens alike, so that its gradient is computed while the logits are in memory.
        token_weights=mask.to(hidden.dtype),
    ).kl


def completion_log_prob(head: AnyHead, hidden: Tensor, ids: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
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
    targets = torch.where(mask.bool(), ids[:, -time:], _IGNORED).flatten()
    if not (isinstance(head, Head) and _HAS_LINEAR_CROSS_ENTROPY):
        return -_chunked_cross_entropy(head, hidden[:, -time - 1 : -1].flatten(0, 1), targets, temperature).view(
            mask.shape
        )
    states = (hidden[:, -time - 1 : -1] * (head.scale / temperature)).to(head.weight.dtype)
    loss = torch.nn.functional.linear_cross_entropy(
        states.flatten(0, 1),
        head.weight,
        targets,
        linear_bias=None if head.bias is None else head.bias * (head.scale / temperature),
        reduction="none",
        options=torch.nn.LinearCrossEntropyOptions(),
    )
    return -loss.view(mask.shape)


def _chunked_cross_entropy(
    head: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """The cross-entropy at every row, 0 where the target is ignored; the logits are computed a chunk at a time."""

    def chunk(rows: Tensor, targets: Tensor) -> Tensor:
        logits = head(rows)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        return cross_entropy(logits, targets, ignore_index=_IGNORED, reduction="none")

    pieces = [
        checkpoint(chunk, *piece, use_reentrant=False, preserve_rng_state=False)
        for piece in zip(rows.split(_CHUNK), targets.split(_CHUNK), strict=True)
    ]
    return torch.cat(pieces)


def completion_entropy(head: AnyHead, hidden: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """The entropy of the next-token distribution at every completion token: log V - KL(p || uniform).

    Args:
        head: The output head of the model.
        hidden: The last hidden states, shape (batch, prompt + completion, d).
        mask: Shape (batch, completion): true for the tokens that count.
        temperature: The divisor of the logits.

    Returns:
        Nats, shape (batch, completion), zero where masked.
    """
    if isinstance(head, Head):
        size, dtype = len(head.weight), head.weight.dtype
    else:
        logits = head(hidden[0, :1])
        size, dtype = logits.shape[-1], logits.dtype
    uniform = Head(hidden.new_zeros(size, 1, dtype=dtype), None, 1.0)
    kl = completion_kl(head, hidden, uniform, hidden.new_zeros(*hidden.shape[:2], 1), mask, temperature=temperature)
    return torch.where(mask.bool(), math.log(size) - kl, 0.0)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a completion in TRL too.

    Args:
        model: A causal language model.
        tokenizer: The tokenizer of the model.

    Returns:
        The tokenizer's end of sequence and the ends in the model's generation configuration, such as the end of a turn.
    """
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else declared if isinstance(declared, list) else [declared]
    return list(dict.fromkeys([tokenizer.eos_token_id, *declared]))


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Completions:
    """Sample one completion of each prompt from the full distribution of the model.

    The defaults of the model's generation configuration (a repetition penalty, top-p, min-p, ...) are not applied. A
    completion ends with one of `end_tokens`.

    Args:
        model: A causal language model. Its training or evaluation mode is not changed.
        tokenizer: The tokenizer of the model, with padding on the left.
        prompts: Texts, or lists of messages for the tokenizer's chat template.
        max_new_tokens: The maximum length of a completion in tokens.
        temperature: The divisor of the logits.
        chat_template_kwargs: Further arguments of the chat template, as in TRL's settings.
    """
    if all(isinstance(prompt, str) for prompt in prompts):
        encoded = tokenizer(list(prompts), return_tensors="pt", padding=True)
    else:
        encoded = tokenizer.apply_chat_template(
            list(prompts),
            add_generation_prompt=True,
            return_tensors="pt",
            padding=True,
            return_dict=True,
            **(chat_template_kwargs or {}),
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
        eos_token_id=(ends := end_tokens(model, tokenizer)),
        bos_token_id=tokenizer.bos_token_id,
    )
    defaults = model.generation_config
    model.generation_config = GenerationConfig()  # `generate` takes every setting from it that `config` lacks
    try:
        ids = model.generate(input_ids=encoded["input_ids"], attention_mask=attention, generation_config=config)
    finally:
        model.generation_config = defaults
    completion_ids = ids[:, attention.shape[1] :]
    is_end = torch.isin(completion_ids, torch.tensor(ends, device=ids.device))
    count = is_end.cumsum(dim=1)
    mask = (count == 0) | ((count == 1) & is_end)
    return Completions(ids, torch.cat([attention, mask.to(attention.dtype)], dim=1), mask)


def _first_line(error: Exception) -> str:
    """The first line of an exception's message, or its class if the message is empty."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
