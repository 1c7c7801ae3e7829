"""The doctor: looks at a policy, its reference and one batch, and says what is broken before it costs a run."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import PolicyAndReference, completion_batch, token_log_probs
from kullback.doctor.initial_kl import check_initial_kl
from kullback.doctor.masks import check_masks, up_to_end
from kullback.doctor.penalty_gradient import Penalty, check_kl_value, check_penalty_gradient
from kullback.doctor.recorded_log_probs import check_padding, check_recorded_log_probs
from kullback.doctor.tokenizers import check_tokens, check_vocabularies
from kullback.doctor.weights import check_trained_weights
from kullback.errors import InputError
from kullback.tokens import token_kl

__all__ = ["doctor"]


def doctor(
    policy: Any,
    reference: Any,
    batch: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    ref_tokenizer: Any = None,
    temperature: float = 1.0,
    autocast: torch.dtype | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    penalty: Penalty | None = None,
    at_start: bool = True,
    on_policy: bool = True,
) -> list[Finding]:
    """What is wrong with KL(policy || reference) as it is set up; an empty list where nothing is.

    It measures again, under one changed condition after another, and names the condition under which a discrepancy
    vanishes. Models, modes and random numbers are left as they were; nothing is trained. It looks at 8 rows.

    Args:
        policy: A causal language model of transformers, or a PEFT model around one.
        reference: The same; None for a PEFT policy, whose adapter is switched off for it. Where there is none
            (TRL's beta = 0), what asks for one is passed over.
        batch: As TRL prepares it: prompt_ids, prompt_mask, completion_ids, completion_mask, each (batch, time), and
            what is there of tool_mask, old_log_prob, sampler_log_prob, ref_log_prob (or TRL's names of these), and
            "kl", what is logged: one number, nats per token, or (batch, time).
        tokenizer: The policy's; without it texts and templates are not judged.
        ref_tokenizer: The reference's, if it has its own.
        temperature: At which the policy samples, and at which its KL is meant.
        autocast: The dtype that the trainer computes in, where it is not the weights'.
        optimizer: What trains the policy.
        penalty: The KL term of the loss, as `check_penalty_gradient` takes it.
        at_start: Whether nothing was trained yet, so that the KL has to be 0.
        on_policy: Whether the completions, old_log_prob and sampler_log_prob are of the policy as it is.

    Returns:
        Findings, errors first.

    Raises:
        InputError: The batch lacks a key, or something in it is of a reference and there is none.
        ShapeError: Its shapes do not fit together.

    Source: what users report, collected in docs/doctor.md.

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
    seen = completion_batch(batch, next(policy.parameters()).device)
    pair = PolicyAndReference(policy, reference, seen, autocast)
    told = [key for key in ("kl", "ref_log_prob", "ref_per_token_logps") if batch.get(key) is not None]
    if told and not pair.has_reference:
        raise InputError(f"expected a reference model beside the batch's {told[0]}, got None")
    end = tokenizer.eos_token_id if tokenizer is not None else None
    found = check_masks(seen.prompt_mask, seen.tokens, seen.mask, end=end)
    if end is not None:  # a mask that counts padding is one finding, and no part of the others
        seen = replace(seen, mask=seen.mask & up_to_end(seen.tokens, end))
    found += check_trained_weights(policy, reference, optimizer)
    whole, seen = seen, seen.sample()
    found += check_tokens(seen, tokenizer, ref_tokenizer)
    found += check_vocabularies(policy, reference, seen, tokenizer)
    if penalty is not None:
        found += check_penalty_gradient(
            penalty, torch.zeros(batch["completion_ids"].shape) - 1.0, batch["completion_mask"]
        )
    # A mask may be so wrong that nothing of what should count does.
    if len(seen.ids) and not any(one.name == "vocabulary" for one in found):
        pair = replace(pair, seen=seen)
        found += check_initial_kl(pair, temperature) if at_start and pair.has_reference else []
        found += check_padding(pair) if not any(one.name == "padding-side" for one in found) else []
        found += check_recorded_log_probs(pair, temperature, on_policy=on_policy)
        found += _logged(replace(pair, seen=whole), temperature, batch.get("kl"))
    return sorted(_once(found), key=lambda one: one.severity != "error")


def _logged(pair: PolicyAndReference, temperature: float, logged: Tensor | float | None) -> list[Finding]:
    if logged is None:
        return []
    whole = pair.seen
    if isinstance(logged, Tensor) and logged.ndim:
        logged = logged.to(whole.ids.device)
    parts = []
    for row in range(len(whole.ids)):  # a mean over the batch needs all of it, but not all its logits at once
        part = replace(pair, seen=whole.part(slice(row, row + 1), whole.mask.shape[1]))
        p, q, tokens = part.policy(), part.reference(), part.seen.tokens
        ratio = token_log_probs(p, tokens, temperature=temperature) - token_log_probs(
            q, tokens, temperature=temperature
        )
        both = ((p, q), (q, p))
        parts.append((ratio, *(token_kl(a[:, :-1], b[:, :-1], temperature=temperature) for a, b in both)))
    ratio, exact, ref_exact = (torch.cat(values) for values in zip(*parts, strict=True))
    return check_kl_value(logged, log_ratio=ratio, exact=exact, ref_exact=ref_exact, mask=whole.mask)


def _once(findings: Iterable[Finding]) -> list[Finding]:
    """One finding of each name and evidence: two measurements may meet the same cause."""
    kept: dict[tuple[str, str], Finding] = {}
    for one in findings:
        kept.setdefault((one.name, str(one.evidence.get("recorded", ""))), one)
    return list(kept.values())
