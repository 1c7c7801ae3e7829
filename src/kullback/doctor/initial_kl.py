"""Checks of KL(policy || reference) before training, when it should be 0."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import PolicyAndReference
from kullback.doctor.logged_kl import NEGLIGIBLE_KL
from kullback.doctor.weights import WeightComparison, compare_weights, is_adapter, named_weights
from kullback.tokens import token_kl

__all__ = [
    "check_computation",
    "check_dropout",
    "check_finite_kl",
    "check_initial_adapter",
    "check_initial_kl",
    "check_reference_adapter",
    "check_reference_architecture",
    "check_reference_precision",
    "check_reference_weights",
]

_FORWARD_PASS_SETTINGS = (
    "attn_implementation",
    "_attn_implementation",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "dtype",
)
_MAX_SETTINGS = 6  # in the evidence of `computed-differently`
_SAME_CHECKPOINT = "load the reference from the checkpoint that the policy starts from"

Evidence = Mapping[str, Any]


def check_initial_kl(pair: PolicyAndReference, temperature: float) -> list[Finding]:
    """Check that the policy equals its reference before training.

    Criterion: the exact KL(policy || reference), averaged over the tokens that count, is at most 1e-6 nats per token
    in evaluation mode, and training mode does not change it. Where it is larger, the adapter, the architecture, the
    precision, the weights and the computation are compared in this order, up to the first finding.

    Args:
        pair: The policy, the reference and the batch.
        temperature: The sampling temperature, which divides the logits of both models.

    Returns:
        `dropout` where training mode changes the KL, and one of `wrong-reference`, `precision` and
        `computed-differently` where the KL is above 0 in evaluation mode; `kl-not-finite` where it is inf or nan.
    """

    def kl(**conditions: Any) -> float:
        logits, ref_logits = pair.policy_logits(**conditions), pair.reference_logits()
        values = token_kl(logits[:, :-1], ref_logits[:, :-1], temperature=temperature)
        return float(values[pair.batch.mask].double().mean())

    kl_eval, kl_train = kl(), kl(training=True)
    if not math.isfinite(kl_eval):
        return check_finite_kl(kl_eval)
    findings = check_dropout(pair.policy, kl_eval=kl_eval, kl_train=kl_train)
    if kl_eval <= NEGLIGIBLE_KL:
        return findings
    policy, reference = pair.policy, pair.reference
    evidence = {"KL(policy || reference), nats per token": kl_eval}
    if pair.as_reference is not None:
        return findings + check_computation(policy, policy, evidence)
    if reference is None:
        return findings + check_initial_adapter(policy, evidence)
    if different := check_reference_architecture(policy, reference, evidence):
        return findings + different
    weights = compare_weights(named_weights(policy), named_weights(reference))
    return findings + (
        check_reference_precision(weights, evidence)
        or check_reference_weights(weights, evidence)
        or check_reference_adapter(policy, evidence)
        or check_computation(policy, reference, evidence)
    )


def check_finite_kl(kl: float) -> list[Finding]:
    """Check that KL(policy || reference) is a finite number.

    Args:
        kl: The measured KL, nats per token.

    Returns:
        `kl-not-finite` (error), or nothing.
    """
    if math.isfinite(kl):
        return []
    cause = (
        "the KL is inf: the reference gives probability 0 to a token of the policy"
        if kl == math.inf
        else "the KL is nan: a logit is nan or inf, so that a weight is not finite or a product overflows"
    )
    remedy = "allow the same tokens in both models" if kl == math.inf else "check the weights; use bfloat16 or float32"
    return [Finding("kl-not-finite", "error", cause, remedy, {"KL(policy || reference), nats per token": kl})]


def check_dropout(policy: Any, *, kl_eval: float, kl_train: float) -> list[Finding]:
    """Check that dropout is off while the policy is compared with its reference.

    Criterion: the KL in training mode and in evaluation mode differ by at most 1e-6 nats per token or 1%.

    Args:
        policy: The policy, whose config names the dropout probabilities.
        kl_eval: KL(policy || reference) with the policy in evaluation mode, nats per token.
        kl_train: KL(policy || reference) with the policy in training mode, nats per token.

    Returns:
        `dropout` (error), or nothing.
    """
    if not abs(kl_train - kl_eval) > max(NEGLIGIBLE_KL, 0.01 * kl_eval):
        return []
    cause = (
        "dropout is on while the policy is compared with its reference: two forward passes with equal weights differ"
    )
    remedy = "set dropout to 0 in the model's config, or set disable_dropout=True in TRL's config"
    evidence = {"KL in training mode": kl_train, "KL in evaluation mode": kl_eval, **_dropout_settings(policy)}
    return [Finding("dropout", "error", cause, remedy, evidence)]


def _dropout_settings(model: Any) -> dict[str, Any]:
    """The dropout probabilities above 0 in the config of a model, and the number of its active dropout modules."""
    config = model.config.to_dict()
    settings = {key: value for key, value in config.items() if ("dropout" in key or "pdrop" in key) and value}
    modules = sum(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return {**settings, **({"dropout modules": modules} if modules else {})}


def check_initial_adapter(policy: Any, evidence: Evidence) -> list[Finding]:
    """Check that the adapter of the policy is new, where the reference is the policy without its adapter.

    Criterion: the caller measured a KL above 1e-6 nats per token, so the adapter already changes the policy. A new
    LoRA adapter has lora_B = 0.

    Args:
        policy: A PEFT model.
        evidence: The measured KL.

    Returns:
        `wrong-reference` (error).
    """
    nonzero = [name for name, weight in policy.named_parameters() if "lora_B" in name and bool(weight.any())]
    cause = "the adapter was trained before: the reference is the model without it, not the policy at its start"
    remedy = 'merge the adapter into the model first, or keep a frozen copy of it, named "ref", as the reference'
    evidence = {**evidence, "lora_B other than 0": len(nonzero), "first": nonzero[0] if nonzero else None}
    return [Finding("wrong-reference", "error", cause, remedy, evidence)]


def check_reference_architecture(policy: Any, reference: Any, evidence: Evidence) -> list[Finding]:
    """Check that the policy and the reference have weights of the same names and shapes.

    Args:
        policy: The policy; the weights of its adapters are ignored.
        reference: The reference.
        evidence: The measured KL.

    Returns:
        `wrong-reference` (error), or nothing.
    """
    weights, ref_weights = named_weights(policy), named_weights(reference)
    unmatched = sorted(weights.keys() ^ ref_weights.keys())
    unmatched += [name for name in weights if name in ref_weights and weights[name].shape != ref_weights[name].shape]
    if not unmatched:
        return []
    cause = "the reference is a different model: its weights have other names or shapes than the policy's"
    evidence = {**evidence, "weights without a counterpart": len(unmatched), "first": unmatched[0]}
    return [Finding("wrong-reference", "error", cause, _SAME_CHECKPOINT, evidence)]


def check_reference_precision(weights: WeightComparison, evidence: Evidence) -> list[Finding]:
    """Check that the weights of policy and reference are not equal up to rounding to bfloat16 or float16.

    Args:
        weights: The comparison of the weights.
        evidence: The measured KL.

    Returns:
        `precision` (error), or nothing.
    """
    if not weights.differing or weights.common_dtype is None:
        return []
    dtype = str(weights.common_dtype).removeprefix("torch.")
    cause = f"the precision differs: both models have the same weights, but one has them rounded to {dtype}"
    remedy = "load both models in one dtype: a reference in lower precision is a slightly different policy"
    return [Finding("precision", "error", cause, remedy, {**evidence, **weights.evidence})]


def check_reference_weights(weights: WeightComparison, evidence: Evidence) -> list[Finding]:
    """Check that the weights of policy and reference are equal.

    Args:
        weights: The comparison of the weights.
        evidence: The measured KL.

    Returns:
        `wrong-reference` (error), or nothing.
    """
    if not weights.differing:
        return []
    cause = (
        "the reference has other weights than the policy starts from: it was loaded from another checkpoint, or it "
        "was updated"
    )
    remedy = f"{_SAME_CHECKPOINT}; check sync_ref_model and how the run was resumed"
    evidence = {**evidence, **weights.evidence, "relative distance": weights.relative_distance}
    return [Finding("wrong-reference", "error", cause, remedy, evidence)]


def check_reference_adapter(policy: Any, evidence: Evidence) -> list[Finding]:
    """Check that the policy has no adapter, where a separate reference has the same base weights.

    Criterion: the caller measured a KL above 1e-6 nats per token with equal base weights, so an adapter causes it.

    Args:
        policy: The policy.
        evidence: The measured KL.

    Returns:
        `wrong-reference` (error), or nothing.
    """
    if not any(is_adapter(name) for name, _ in policy.named_parameters()):
        return []
    cause = "the adapter was trained before: it already changes the policy, and the reference does not have it"
    remedy = "give the reference a frozen copy of the adapter"
    return [Finding("wrong-reference", "error", cause, remedy, evidence)]


def check_computation(policy: Any, reference: Any, evidence: Evidence) -> list[Finding]:
    """Check that policy and reference compute the same function of equal weights.

    Criterion: the caller measured a KL above 1e-6 nats per token with equal weights and no adapter.

    Args:
        policy: The policy.
        reference: The reference.
        evidence: The measured KL.

    Returns:
        `computed-differently` (error).
    """
    cause = "policy and reference have equal weights but different outputs: their forward passes differ"
    remedy = "load both models with one config, one dtype and one attention implementation"
    evidence = {**evidence, **_differing_settings(policy, reference)}
    return [Finding("computed-differently", "error", cause, remedy, evidence)]


def _differing_settings(policy: Any, reference: Any) -> dict[str, str]:
    """The settings that differ between the configs of two models, as "value / value"."""
    first, second = (
        {**model.config.to_dict(), **{key: getattr(model.config, key, None) for key in _FORWARD_PASS_SETTINGS}}
        for model in (policy, reference)
    )
    keys = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    return {key: f"{first.get(key)} / {second.get(key)}" for key in keys[:_MAX_SETTINGS]}
