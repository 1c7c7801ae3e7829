"""The doctor for a policy, its reference and one batch: every check that needs the models."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from kullback.doctor.arguments import as_batch, require_models, require_options
from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import CompletionBatch, PolicyAndReference, completion_batch
from kullback.doctor.head import check_head
from kullback.doctor.initial_kl import check_initial_kl
from kullback.doctor.kl_value import check_logged_value, require_shape_of_kl
from kullback.doctor.masks import check_masks, up_to_eos
from kullback.doctor.penalty_gradient import Penalty, check_penalty_gradient
from kullback.doctor.recorded_log_probs import (
    check_causality,
    check_padding_positions,
    check_recorded_log_probs,
)
from kullback.doctor.tokenizers import check_tokens, check_vocabularies
from kullback.doctor.weights import check_trained_weights
from kullback.errors import InputError
from kullback.tokens.logits import require_temperature

__all__ = ["doctor"]


def doctor(
    policy: Any,
    reference: Any,
    batch: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    ref_tokenizer: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    autocast: torch.dtype | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    penalty: Penalty | None = None,
    at_start: bool = True,
    on_policy: bool = True,
    as_reference: Callable[[], AbstractContextManager[Any]] | None = None,
    head_logits: Callable[[CompletionBatch], torch.Tensor] | None = None,
) -> list[Finding]:
    """Check the computation of KL(policy || reference) in a training set-up.

    The KL and the log-probabilities are recomputed under one changed condition after another (without dropout, at
    another temperature, ...). The condition under which a discrepancy vanishes is its cause. The weights, the modes of
    the modules and the random numbers stay as they are, and nothing is trained. Forward passes use 8 rows of the
    batch and 64 tokens of each completion, except for the check of "kl", which uses the whole batch.

    Args:
        policy: A causal language model of transformers, or a PEFT model around one.
        reference: The reference model. None for a PEFT policy, whose adapter is then disabled to get the reference.
            If the policy has no adapter either (TRL's beta = 0), the checks that need a reference are skipped.
        batch: Tensors, NumPy arrays or lists, as TRL prepares them: "prompt_ids", "prompt_mask", "completion_ids" and
            "completion_mask", each of shape (batch, time). Optional: "tool_mask"; the recorded
            log-probabilities "old_log_prob", "sampler_log_prob" and "ref_log_prob" (or TRL's names of them), in nats;
            and "kl", the logged KL in nats per token, as one number or of shape (batch, time). TRL's other tensors,
            such as "advantages", are ignored; another key is refused.
        tokenizer: The tokenizer of the policy; None: texts, chat templates and the end of the completion mask, which
            depends on the end-of-sequence token, are not checked.
        ref_tokenizer: The tokenizer of the reference, if it has another.
        chat_template_kwargs: Further arguments of the chat template with which the prompts were encoded.
        temperature: The sampling temperature, at which the KL is measured too.
        autocast: The dtype of the trainer's mixed precision; None: no autocast.
        optimizer: The optimizer of the policy; None: its parameters are not checked.
        penalty: The KL term of the loss, as `check_penalty_gradient` takes it; None: its gradient is not checked.
        at_start: Whether no training step was taken yet, so that the KL must be 0.
        on_policy: Whether the completions, "old_log_prob" and "sampler_log_prob" come from the current weights.
        as_reference: If the reference is the policy with other weights: a function that returns a context manager in
            which the policy has these weights. None: as for `reference`.
        head_logits: The logits of the policy as a trainer computes them, if not by the model's forward pass; None: they
            are not checked.

    Returns:
        Findings, errors first; an empty list if nothing is wrong. docs/doctor.md lists them.

    Raises:
        InputError: The batch lacks a required key, has an unknown key, a negative token id, or a value of the reference
            without a reference; a model has no output layer; or an option has a value that it does not take.
        ArrayTypeError: A value of the batch, or the result of `penalty` or `head_logits`, has no real numbers of the
            expected kind.
        ShapeError: The shapes of the batch do not fit together, no token counts, or a prompt is empty.
        SupportError: The temperature is not a positive finite number.

    Example:
        >>> from copy import deepcopy
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        >>> policy = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, attention_dropout=0.5))
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> batch = {"prompt_ids": ids, "prompt_mask": ids > 0, "completion_ids": ids, "completion_mask": ids > 0}
        >>> [finding.name for finding in doctor(policy, deepcopy(policy), batch)]
        ['dropout']
    """
    require_models(policy, reference)
    require_options(
        tokenizer=tokenizer,
        ref_tokenizer=ref_tokenizer,
        chat_template_kwargs=chat_template_kwargs,
        autocast=autocast,
        optimizer=optimizer,
        penalty=penalty,
        at_start=at_start,
        on_policy=on_policy,
        as_reference=as_reference,
        head_logits=head_logits,
    )
    temperature = float(require_temperature(temperature))
    batch = as_batch(batch)
    completions = completion_batch(batch, next(policy.parameters()).device)
    require_shape_of_kl(batch.get("kl", 0.0), completions.mask)
    pair = PolicyAndReference(policy, reference, completions, autocast, as_reference)
    for key in ("kl", "ref_log_prob", "ref_per_token_logps"):
        if batch.get(key) is not None and not pair.has_reference:
            raise InputError(f"expected a reference model beside the batch's {key}, got None")
    eos = tokenizer.eos_token_id if tokenizer is not None else None
    findings = check_masks(completions.prompt_mask, completions.tokens, completions.mask, end=eos)
    if eos is not None:  # a mask that counts padding gives one finding and must not cause others
        completions = replace(completions, mask=completions.mask & up_to_eos(completions.tokens, eos))
    findings += check_trained_weights(policy, reference, optimizer)
    subset = completions.subset()
    findings += check_tokens(subset, tokenizer, ref_tokenizer, chat_template_kwargs)
    findings += check_vocabularies(policy, reference, subset, tokenizer)
    if penalty is not None:
        log_prob = torch.zeros(batch["completion_ids"].shape) - 1.0
        findings += check_penalty_gradient(penalty, log_prob, batch["completion_mask"])
    names = {finding.name for finding in findings}
    # The subset is empty if every token that counts is after an end-of-sequence token.
    if len(subset.ids) and "vocabulary" not in names:
        pair = replace(pair, batch=subset)
        if head_logits is not None:
            findings += check_head(pair, head_logits)
        if at_start and pair.has_reference:
            findings += check_initial_kl(pair, temperature)
        if "padding-side" not in names:
            findings += check_causality(pair) or check_padding_positions(pair)
        recorded = check_recorded_log_probs(pair, temperature, on_policy=on_policy)
        if recorded and "padding-moves-positions" in {finding.name for finding in findings}:
            # Log-probabilities that agree with positions from the first token come from a trainer that passes them.
            passing = replace(pair, pass_position_ids=True)
            explained = check_recorded_log_probs(passing, temperature, on_policy=on_policy)
            if _are_stale(recorded) and not _are_stale(explained):
                pair, recorded = passing, explained
                findings = [finding for finding in findings if finding.name != "padding-moves-positions"]
        findings += recorded
        if batch.get("kl") is not None:
            findings += check_logged_value(replace(pair, batch=completions), batch["kl"], temperature)
    return sorted(_remove_duplicates(findings), key=lambda finding: finding.severity != "error")


def _are_stale(findings: Iterable[Finding]) -> bool:
    """Whether no condition reproduces recorded log-probabilities."""
    return any(finding.name in ("stale-policy", "stale-reference") for finding in findings)


def _remove_duplicates(findings: Iterable[Finding]) -> list[Finding]:
    """Keep one finding of each name and each recorded quantity, because several checks can find the same fault."""
    kept: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        kept.setdefault((finding.name, str(finding.evidence.get("recorded", ""))), finding)
    return list(kept.values())
