"""The models of a comparison in memory, and the statistics of pairs of their heads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from safetensors import safe_open
from torch import Tensor

from kullback.compare.sources import ModelSource
from kullback.errors import InputError, MissingDependencyError
from kullback.integrations.transformers import AnyHead, Head, head_of, last_hidden, load_model
from kullback.runs.library_errors import is_out_of_memory, library_errors
from kullback.tokens import TokenStats, linear_token_kl, token_stats

__all__ = ["LoadedModel", "head_stats", "load", "top_tokens"]

_CHUNK = 256  # positions whose logits are in memory at a time


@dataclass
class LoadedModel:
    """A model in memory.

    Args:
        source: Where it is from.
        model: The transformers model; None after `release`.
        head: Its output head for the tokens of the vocabulary alone.
        vocabulary: The number of tokens of the vocabulary.
        dtype: The dtype of its output head.
        settings: Facts about the model for the results.
    """

    source: ModelSource
    model: Any
    head: AnyHead
    vocabulary: int
    dtype: str
    settings: dict[str, Any]

    def hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        """The last hidden states, shape (batch, time, d), without gradient."""
        return last_hidden(self.model, ids, attention)

    def release(self) -> None:
        """Delete all weights but the output head. A head that is not linear keeps the whole model."""
        if isinstance(self.head, Head):
            bias = self.head.bias
            self.head = Head(self.head.weight.detach().clone(), None if bias is None else bias.clone(), self.head.scale)
            self.model = None


def load(source: ModelSource, vocabulary: int, device: torch.device | str) -> LoadedModel:
    """Load a model in evaluation mode, without dropout.

    Args:
        source: The model.
        vocabulary: The number of tokens of the tokenizer. Further rows of the output head are padding, and are left
            out of the softmax.
        device: The device.

    Returns:
        The model.

    Raises:
        InputError: The model or its adapter does not load, or its head has fewer rows than the vocabulary.
    """
    dtype = source.dtype if source.dtype == "auto" else getattr(torch, source.dtype)
    try:
        model: Any = load_model(source.directory, dtype)
    except InputError as error:
        raise InputError(str(error).replace("--model ", "", 1)) from error
    if source.adapter is not None:
        model = _with_adapter(model, source, source.adapter)
    model = model.eval().requires_grad_(False).to(device)
    # Matrix products round differently for memory of another alignment, which the mapped files of weights can have.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    with library_errors(f"{source.name}: its output head"):
        head = head_of(model)
        layer = model.get_output_embeddings()
        rows = len(head.weight) if isinstance(head, Head) else int(getattr(layer, "out_features", 0)) or vocabulary
    if rows < vocabulary:
        raise InputError(
            f"{source.name}: expected an output head of {vocabulary} tokens or more, as the vocabulary has, got {rows}"
        )
    config = model.config.get_text_config()
    settings = {
        "class": type(model).__name__,
        "dtype": str(layer.weight.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": getattr(model.config, "_attn_implementation", None),
        "head_rows": rows,
        "head": "linear" if isinstance(head, Head) else "by the forward pass of the model",
        "positions": getattr(config, "max_position_embeddings", None),
        "dropout": any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in model.modules()),
    }
    return LoadedModel(source, model, _sliced(head, vocabulary), vocabulary, settings["dtype"], settings)


def _with_adapter(model: Any, source: ModelSource, adapter: Path) -> Any:
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    except ModuleNotFoundError as error:
        raise MissingDependencyError("peft is missing: pip install 'kullback[train]'") from error
    place = f"--adapter {adapter}"
    with library_errors(place):
        config = PeftConfig.from_pretrained(str(adapter))
        if config.is_prompt_learning:
            raise InputError(f"{place}: expected an adapter of weights, such as LoRA, got a learned prompt")
        saved = _tensor_names(adapter)
        adapted, reason = None, ""
        try:
            with catch_warnings():
                simplefilter("ignore", FutureWarning)  # of transformers about its own methods, which PEFT calls
                adapted = PeftModel.from_pretrained(model, str(adapter))
            known = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
            # An adapter of embeddings contains their weights, too, which PEFT has loaded.
            unused = {name for name in saved - known if ".base_layer." not in name}
            if unused:
                reason = f"the base has no layer for {min(unused)}"
        except (RuntimeError, ValueError, KeyError) as error:
            if is_out_of_memory(error):
                raise
            reason = "its weights have other shapes, or layers that the base does not have"
        if adapted is None or reason:
            raise InputError(
                f"{place}: expected an adapter of {source.directory}, but {reason}; the base in its "
                f"adapter_config.json is {config.base_model_name_or_path or 'an unnamed model'}"
            )
        return adapted.get_base_model()


def _tensor_names(adapter: Path) -> set[str]:
    """The names of the tensors of an adapter."""
    return {name for path in adapter.glob("*.safetensors") for name in safe_open(path, "pt").keys()}  # noqa: SIM118


def _sliced(head: AnyHead, vocabulary: int) -> AnyHead:
    """The head without the padding of its vocabulary, which would take part in the softmax."""
    if isinstance(head, Head):
        return Head(head.weight[:vocabulary], None if head.bias is None else head.bias[:vocabulary], head.scale)
    return lambda hidden: head(hidden)[..., :vocabulary]


def head_stats(hidden_p: Tensor, head_p: AnyHead, hidden_q: Tensor, head_q: AnyHead, targets: Tensor) -> TokenStats:
    """The statistics of tokens from last hidden states and the heads of base and model.

    Args:
        hidden_p: The last hidden states of the base, shape (n, d).
        head_p: The head of the base.
        hidden_q: The last hidden states of the model, shape (n, e).
        head_q: The head of the model.
        targets: The tokens that follow, shape (n,).

    Returns:
        The statistics of each position. The logits of at most 256 positions are in memory at a time.
    """
    if isinstance(head_p, Head) and isinstance(head_q, Head) and head_p.scale > 0 and head_q.scale > 0:
        return linear_token_kl(
            hidden_p,
            head_p.weight,
            hidden_q,
            head_q.weight,
            targets=targets,
            bias_p=head_p.bias,
            bias_q=head_q.bias,
            logit_scale_p=head_p.scale,
            logit_scale_q=head_q.scale,
            chunk=_CHUNK,
        )
    parts = [
        token_stats(head_p(hidden_p[rows]), head_q(hidden_q[rows]), targets[rows])
        for rows in (slice(start, start + _CHUNK) for start in range(0, len(targets), _CHUNK))
    ]
    return TokenStats(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in TokenStats.__dataclass_fields__}
    )


def top_tokens(hidden: Tensor, head: AnyHead, count: int) -> list[tuple[int, float]]:
    """The most probable tokens at one position, with their probabilities.

    Args:
        hidden: The last hidden state, shape (d,).
        head: The output head.
        count: The number of tokens.

    Returns:
        Token ids and probabilities, in decreasing order.
    """
    logits = head(hidden[None].to(head.weight.dtype) if isinstance(head, Head) else hidden[None])[0].double()
    values, ids = logits.log_softmax(-1).topk(min(count, len(logits)))
    return list(zip(ids.tolist(), values.exp().tolist(), strict=True))
