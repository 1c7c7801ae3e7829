"""Forward passes of a policy and its reference over a batch of completions, under chosen conditions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from kullback.errors import InputError, ShapeError
from kullback.numerics.arguments import shown

__all__ = [
    "TRL_NAMES",
    "CheckedModels",
    "CompletionBatch",
    "PolicyAndReference",
    "base_model",
    "completion_batch",
    "forward_logits",
    "preserve_training_state",
    "token_log_probs",
]

_MAX_ROWS, _MAX_TOKENS = 8, 64  # enough to identify a cause; logits of this size fit in memory for 256k tokens
TRL_NAMES = {
    "old_per_token_logps": "old_log_prob",
    "sampling_per_token_logps": "sampler_log_prob",
    "ref_per_token_logps": "ref_log_prob",
}


@dataclass(frozen=True)
class CheckedModels:
    """The models of a trainer that `kullback.doctor` checks.

    Args:
        policy: A model that computes the policy.
        reference: A separate model that computes the reference, or None.
        as_reference: Without a separate reference: a function that returns a context manager in which `policy` computes
            the reference.
        optimized: The module whose parameters the optimizer has; None: they are copies.
    """

    policy: Any
    reference: Any
    as_reference: Callable[[], AbstractContextManager[Any]] | None
    optimized: Any


@dataclass(frozen=True)
class CompletionBatch:
    """A batch of prompts with their completions.

    Args:
        ids: Token ids, prompt and completion concatenated, shape (rows, prompt + completion).
        attention_mask: 0 at the padding of a prompt, 1 elsewhere; the same shape as `ids`. Tokens after an
            end-of-sequence token have 1, because causal attention excludes them from the context of the tokens that
            count.
        prompt_mask: 0 at the padding of a prompt, 1 elsewhere, shape (rows, prompt).
        mask: True for the completion tokens that count, shape (rows, completion).
        recorded: Log-probabilities that came with the batch, by name ("old_log_prob", "sampler_log_prob",
            "ref_log_prob"), each of shape (rows, completion).
    """

    ids: Tensor
    attention_mask: Tensor
    prompt_mask: Tensor
    mask: Tensor
    recorded: Mapping[str, Tensor]

    @property
    def tokens(self) -> Tensor:
        """The token ids of the completions, shape (rows, completion)."""
        return self.ids[:, -self.mask.shape[1] :]

    def select(self, rows: Tensor | slice, max_tokens: int) -> "CompletionBatch":
        """The given rows, with completions cut to their first `max_tokens` tokens."""
        width = self.prompt_mask.shape[1] + max_tokens
        return CompletionBatch(
            self.ids[rows, :width],
            self.attention_mask[rows, :width],
            self.prompt_mask[rows],
            self.mask[rows, :max_tokens],
            {name: values[rows, :max_tokens] for name, values in self.recorded.items()},
        )

    def subset(self) -> "CompletionBatch":
        """The first 8 rows with a token that counts among the first 64 completion tokens, cut to 64 tokens."""
        return self.select(self.mask[:, :_MAX_TOKENS].any(-1).nonzero()[:_MAX_ROWS, 0], _MAX_TOKENS)

    def without_padding(self, row: int) -> "CompletionBatch":
        """One row as a separate batch, with the padding of its prompt removed and without recorded values."""
        prompt_length = int(self.prompt_mask[row].sum())
        rows = slice(row, row + 1)
        prompt = self.ids[rows, : -self.mask.shape[1]][:, self.prompt_mask[row].bool()]
        ids = torch.cat([prompt, self.tokens[rows]], 1)
        return CompletionBatch(ids, torch.ones_like(ids), torch.ones_like(ids[:, :prompt_length]), self.mask[rows], {})


def completion_batch(batch: Mapping[str, Tensor], device: torch.device) -> CompletionBatch:
    """The batch that `kullback.doctor.arguments.as_batch` returned, with prompts and completions concatenated.

    Args:
        batch: "prompt_ids", "prompt_mask", "completion_ids" and "completion_mask", each of shape (batch, time), and
            optionally "tool_mask" and recorded log-probabilities, by the names of TRL or of `CompletionBatch`.
        device: The device of the returned tensors.

    Returns:
        The batch; its mask is true where `completion_mask` and `tool_mask` are.

    Raises:
        ShapeError: The shapes do not fit together, no token counts, or a prompt is empty.
    """
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    prompts, prompt_mask, tokens, mask = (batch[key].to(device) for key in keys)
    if (
        not prompts.ndim == tokens.ndim == 2
        or prompts.shape != prompt_mask.shape
        or tokens.shape != mask.shape
        or len(prompts) != len(tokens)
    ):
        raise ShapeError(
            "expected ids and masks of one shape (batch, time), got prompts "
            f"{tuple(prompts.shape)} and {tuple(prompt_mask.shape)}, completions {tuple(tokens.shape)} and "
            f"{tuple(mask.shape)}; pad prompts on the left and completions on the right"
        )
    names = {**TRL_NAMES, **{name: name for name in ("tool_mask", *TRL_NAMES.values())}}
    by_name = {name: batch[key].to(device) for key, name in names.items() if key in batch}
    for name, values in by_name.items():
        if values.shape != tokens.shape:
            raise ShapeError(
                f"expected {name} of shape {tuple(tokens.shape)}, as the completions have, got {tuple(values.shape)}"
            )
    mask = mask & by_name.pop("tool_mask", mask)
    if not mask[:, :_MAX_TOKENS].any():
        raise ShapeError(
            f"expected a token with mask 1 among the first {_MAX_TOKENS} tokens of {len(mask)} rows, got none: check "
            "completion_mask and tool_mask"
        )
    if (empty := mask.any(-1) & ~prompt_mask.any(-1)).any():
        raise ShapeError(
            f"expected a prompt of at least one token before each completion, got none in row {int(empty.nonzero()[0])}"
            " of prompt_mask; add a beginning-of-sequence token"
        )
    return CompletionBatch(
        torch.cat([prompts, tokens], 1),
        torch.cat([prompt_mask.long(), torch.ones_like(tokens)], 1),
        prompt_mask,
        mask,
        by_name,
    )


@torch.no_grad()
def forward_logits(
    model: Any,
    batch: CompletionBatch,
    *,
    training: bool = False,
    attend_to_padding: bool = False,
    pass_position_ids: bool = False,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """The logits of a batch, from the position before the first completion token to the last completion token.

    The modes of the modules, the `requires_grad` flags and the state of the random number generator are restored.

    Args:
        model: A causal language model of transformers.
        batch: The completions.
        training: Run in training mode, with dropout; without: in evaluation mode.
        attend_to_padding: Replace the attention mask by ones.
        pass_position_ids: Pass positions that start at the first token that is not padding, if the model takes them.
        autocast: The dtype of mixed precision; None: no autocast.

    Returns:
        Logits of shape (rows, completion + 1, vocabulary), in float32 or float64.
    """
    attention_mask = torch.ones_like(batch.attention_mask) if attend_to_padding else batch.attention_mask
    device_type = batch.ids.device.type
    # A cache would keep the weights of a policy that computes the reference with other weights.
    precision = torch.autocast(device_type, dtype=autocast, enabled=autocast is not None, cache_enabled=False)
    devices = [batch.ids.device] if device_type == "cuda" else []
    with preserve_training_state(model), torch.random.fork_rng(devices), precision:
        model.train(training)
        # Prompts may be much longer than completions, so their logits are not computed where the model allows it.
        options: dict[str, Any] = {"use_cache": False}
        if _accepts(model, "logits_to_keep"):
            options["logits_to_keep"] = batch.mask.shape[1] + 1
        if pass_position_ids and _accepts(model, "position_ids"):
            options["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=batch.ids, attention_mask=attention_mask, **options).logits
    logits = logits[:, -batch.mask.shape[1] - 1 :]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def base_model(model: Any) -> Any:
    """The model of transformers within a PEFT model, or the model itself.

    PEFT 0.18 leaves the attribute `peft_config` on a model whose adapter was merged.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _accepts(model: Any, argument: str) -> bool:
    """Whether the forward pass of a model takes an argument."""
    return argument in signature(type(base_model(model)).forward).parameters


def token_log_probs(
    logits: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    unshifted: bool = False,
) -> Tensor:
    """The log-probabilities of tokens, optionally after a temperature and a sampling filter.

    Args:
        logits: Shape (rows, time + 1, vocabulary), as `forward_logits` returns them.
        tokens: Token ids, shape (rows, time).
        temperature: Divides the logits.
        top_p: Keep the smallest set of tokens whose probability reaches top_p; 1: keep all.
        top_k: Keep the top_k most probable tokens; 0: keep all. With top_k, top_p is ignored.
        unshifted: Use the logits at the position of the token itself, an error by one position. The correct logits
            are at the preceding position.

    Returns:
        Log-probabilities of shape (rows, time), in nats; -inf for a token that the filter removes.
    """
    scaled = (logits[:, 1:] if unshifted else logits[:, :-1]) / temperature
    log_p = scaled.log_softmax(-1)
    token_log_p = log_p.gather(-1, tokens[..., None])[..., 0]
    if top_k:
        smallest = log_p.topk(min(top_k, log_p.shape[-1])).values[..., -1:]
        kept = log_p >= smallest
    elif top_p < 1:
        ordered, order = log_p.sort(dim=-1, descending=True)
        preceding_mass = ordered.exp().cumsum(-1) - ordered.exp()
        kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, order, preceding_mass < top_p)
    else:
        return token_log_p
    log_mass = torch.where(kept, log_p, -torch.inf).logsumexp(-1)
    return torch.where(kept.gather(-1, tokens[..., None])[..., 0], token_log_p - log_mass, -torch.inf)


@dataclass(frozen=True)
class PolicyAndReference:
    """A policy, its reference and a batch to evaluate both on.

    Args:
        policy: A causal language model of transformers, or a PEFT model around one.
        reference: The reference model; None: the policy within `as_reference`, or with its adapter disabled.
        batch: The completions.
        autocast: The dtype of the trainer's mixed precision; None: no autocast.
        as_reference: Returns a context manager in which the policy computes the reference.
        pass_position_ids: Whether the trainer passes position ids that start at the first token.
    """

    policy: Any
    reference: Any
    batch: CompletionBatch
    autocast: torch.dtype | None = None
    as_reference: Callable[[], AbstractContextManager[Any]] | None = None
    pass_position_ids: bool = False

    @property
    def _conditions(self) -> dict[str, Any]:
        return {"autocast": self.autocast, "pass_position_ids": self.pass_position_ids}

    @property
    def has_reference(self) -> bool:
        """Whether a reference can be evaluated: a separate model, or the policy with other weights or no adapter."""
        return self.reference is not None or self.as_reference is not None or hasattr(self.policy, "disable_adapter")

    def policy_logits(self, **conditions: Any) -> Tensor:
        """The logits of the policy; `conditions` are keyword arguments of `forward_logits`."""
        return forward_logits(self.policy, self.batch, **{**self._conditions, **conditions})

    def reference_logits(self, **conditions: Any) -> Tensor:
        """The logits of the reference; `conditions` are keyword arguments of `forward_logits`."""
        with self._reference_adapter():
            model = self.reference or self.policy
            return forward_logits(model, self.batch, **{**self._conditions, **conditions})

    @contextmanager
    def _reference_adapter(self) -> Iterator[None]:
        """Where the reference is not a separate model, switch the policy to it: to its "ref" adapter or no adapter."""
        if self.reference is not None:
            yield
            return
        if self.as_reference is not None:
            context = self.as_reference()
            if not isinstance(context, AbstractContextManager):
                raise InputError(
                    f"expected as_reference to return a context manager, got {shown(context)}; decorate a function "
                    "that yields with contextlib.contextmanager"
                )
            with context:
                yield
            return
        from trl.trainer.utils import use_adapter

        adapter = "ref" if "ref" in self.policy.peft_config else None
        with preserve_training_state(self.policy), use_adapter(self.policy, adapter):
            yield


@contextmanager
def preserve_training_state(model: Any) -> Iterator[None]:
    """Restore the mode of each module and the `requires_grad` flag of each weight on exit.

    PEFT sets `requires_grad` on the weights of an adapter that it activates.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)
