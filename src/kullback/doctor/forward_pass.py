"""A batch of completions, looked at by a language model under one condition and another."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from kullback.errors import InputError, ShapeError

__all__ = [
    "CompletionBatch",
    "PolicyAndReference",
    "completion_batch",
    "left_as_it_was",
    "logits_of",
    "token_log_probs",
]

_ROWS, _TIME = 8, 64  # enough to name a cause, and few enough for a vocabulary of 256k
_KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
_RECORDED = {
    "old_per_token_logps": "old_log_prob",
    "sampling_per_token_logps": "sampler_log_prob",
    "ref_per_token_logps": "ref_log_prob",
}


@dataclass(frozen=True)
class CompletionBatch:
    """A batch of completions, or a part of one.

    Args:
        ids: Shape (rows, prompt + completion).
        attention: The same shape: 1 for what is not a prompt's padding. What comes after an end mark is seen by none.
        prompt_mask: Shape (rows, prompt).
        mask: Shape (rows, completion): true for the tokens that count.
        recorded: Log-probabilities that came with the batch, by our names, each (rows, completion).
    """

    ids: Tensor
    attention: Tensor
    prompt_mask: Tensor
    mask: Tensor
    recorded: Mapping[str, Tensor]

    @property
    def tokens(self) -> Tensor:
        """The completions' ids."""
        return self.ids[:, -self.mask.shape[1] :]

    def part(self, rows: Tensor | slice, time: int) -> "CompletionBatch":
        """Some of the rows, with no more than so many of the completions' first tokens."""
        cut = self.prompt_mask.shape[1] + time
        return CompletionBatch(
            self.ids[rows, :cut],
            self.attention[rows, :cut],
            self.prompt_mask[rows],
            self.mask[rows, :time],
            {name: values[rows, :time] for name, values in self.recorded.items()},
        )

    def sample(self) -> "CompletionBatch":
        """The first rows in which something counts."""
        return self.part(self.mask[:, :_TIME].any(-1).nonzero()[:_ROWS, 0], _TIME)

    def alone(self, row: int) -> "CompletionBatch":
        """One row, with its prompt's padding cut away."""
        start = int(self.prompt_mask[row].sum())
        one = slice(row, row + 1)
        cut = torch.cat([self.ids[one, : -self.mask.shape[1]][:, self.prompt_mask[row].bool()], self.tokens[one]], 1)
        return CompletionBatch(cut, torch.ones_like(cut), torch.ones_like(cut[:, :start]), self.mask[one], {})


def completion_batch(batch: Mapping[str, Any], device: torch.device) -> CompletionBatch:
    """A batch as TRL prepares it; log-probabilities go by TRL's names or by ours.

    Raises:
        InputError: A key is missing.
        ShapeError: The shapes do not fit together.
    """
    missing = [key for key in _KEYS if key not in batch]
    if missing:
        raise InputError(f"expected a batch with {', '.join(_KEYS)}, got none of {', '.join(missing)}")
    prompts, prompt_mask, tokens, kept = (batch[key].to(device) for key in _KEYS)
    mask = kept * batch["tool_mask"].to(device) if batch.get("tool_mask") is not None else kept
    if prompts.shape != prompt_mask.shape or tokens.shape != mask.shape or len(prompts) != len(tokens):
        raise ShapeError(
            f"expected ids and masks of one shape, got prompts {tuple(prompts.shape)} and {tuple(prompt_mask.shape)}, "
            f"completions {tuple(tokens.shape)} and {tuple(mask.shape)}"
        )
    if not mask[:, :_TIME].any():
        raise ShapeError(
            f"expected a token that counts in the first {_TIME} of {len(mask)} rows, got none: see the mask"
        )
    recorded = {
        name: batch[key].to(device)
        for theirs, name in _RECORDED.items()
        for key in (theirs, name)
        if batch.get(key) is not None
    }
    for name, values in recorded.items():
        if values.shape != tokens.shape:
            raise ShapeError(
                f"expected {name} of shape {tuple(tokens.shape)}, as the completions have, got {tuple(values.shape)}"
            )
    return CompletionBatch(
        torch.cat([prompts, tokens], 1),
        torch.cat([prompt_mask.long(), torch.ones_like(tokens)], 1),
        prompt_mask,
        mask.bool(),
        recorded,
    )


@torch.no_grad()
def logits_of(
    model: Any,
    seen: CompletionBatch,
    *,
    training: bool = False,
    blind: bool = False,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """The logits from before the first completion token to after the last, (rows, completion + 1, V), float32 at least.

    Args:
        model: A causal language model of transformers.
        seen: The batch.
        training: With dropout as in training; else without.
        blind: Attend to padding too.
        autocast: Compute in that dtype, as a mixed-precision trainer does.
    """
    attention = torch.ones_like(seen.attention) if blind else seen.attention
    kind = seen.ids.device.type
    lower = torch.autocast(kind, dtype=autocast) if autocast else nullcontext()
    devices = [seen.ids.device] if kind == "cuda" else []
    # The random numbers of the training go on as if nobody had looked.
    with left_as_it_was(model), torch.random.fork_rng(devices), lower:
        model.train(training)
        # A prompt's own logits may be many times the completion's.
        keep = {"logits_to_keep": seen.mask.shape[1] + 1} if _keeps(model) else {}
        logits = model(input_ids=seen.ids, attention_mask=attention, use_cache=False, **keep).logits
    logits = logits[:, -seen.mask.shape[1] - 1 :]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _keeps(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    return "logits_to_keep" in signature(type(base).forward).parameters


def token_log_probs(
    logits: Tensor, tokens: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, late: bool = False
) -> Tensor:
    """log p of the tokens, (rows, time): at a temperature, after sampling filters, or `late`: from the logits after.

    A token that the filter would not have let through is -inf.
    """
    scaled = (logits[:, 1:] if late else logits[:, :-1]) / temperature
    log_p = scaled.log_softmax(-1)
    chosen = log_p.gather(-1, tokens[..., None])[..., 0]
    if top_k:
        least = log_p.topk(min(top_k, log_p.shape[-1])).values[..., -1:]
        kept = log_p >= least
    elif top_p < 1:
        ordered, order = log_p.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, order, before < top_p)
    else:
        return chosen
    mass = torch.where(kept, log_p, -torch.inf).logsumexp(-1)
    return torch.where(kept.gather(-1, tokens[..., None])[..., 0], chosen - mass, -torch.inf)


@dataclass(frozen=True)
class PolicyAndReference:
    """A policy and its reference, before one batch.

    Args:
        model: The policy.
        other: The reference; None: the policy's adapter is switched off for it.
        seen: The batch.
        autocast: The dtype that the trainer computes in; None: the weights'.
    """

    model: Any
    other: Any
    seen: CompletionBatch
    autocast: torch.dtype | None = None

    @property
    def has_reference(self) -> bool:
        """Whether there is one to compare with: a model, or the policy without its adapter."""
        return self.other is not None or hasattr(self.model, "disable_adapter")

    def policy(self, **conditions: Any) -> Tensor:
        """The policy's logits; see `logits_of`."""
        return logits_of(self.model, self.seen, **{"autocast": self.autocast, **conditions})

    def reference(self, **conditions: Any) -> Tensor:
        """The reference's logits."""
        with self._as_reference():
            return logits_of(self.other or self.model, self.seen, **{"autocast": self.autocast, **conditions})

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        if self.other is not None:
            yield
            return
        from trl.trainer.utils import use_adapter

        with left_as_it_was(self.model), use_adapter(self.model, "ref" if "ref" in self.model.peft_config else None):
            yield


@contextmanager
def left_as_it_was(model: Any) -> Iterator[None]:
    """Each module's mode and each weight's need of a gradient go back: PEFT frees an adapter that it switches on."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)
