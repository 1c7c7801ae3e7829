"""Checks of which weights train, and the comparison of the weights of a policy and its reference."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kullback.doctor.finding import Finding

__all__ = [
    "WeightComparison",
    "check_frozen",
    "check_optimizer_has_reference",
    "check_optimizer_parameters",
    "check_partly_frozen",
    "check_shared_weights",
    "check_trained_weights",
    "compare_weights",
    "is_adapter",
    "named_weights",
]

_WRAPPER_PREFIXES = ("base_model.model.", "base_layer.", "_orig_mod.", "module.")
# The beginnings of the names that PEFT gives to the weights of its adapters.
_ADAPTER_PREFIXES = (
    *("adamss_", "adapter_", "beft_", "boft_", "bone_", "c3a_", "deft_", "delora_", "fourierft_", "frod_", "glora_"),
    *("gralora_", "hada_", "hira_", "hra_", "ia3_", "lily_", "ln_tuning_", "lokr_", "lora_", "miss_", "oft_", "osf_"),
    *("peanut_", "poly_", "prompt_encoder", "psoft_", "pvera_", "randlora_", "road_", "shadow_", "shira_"),
    *("supertuning_", "tinylora_", "trainable_tokens_", "unilora_", "vblora_", "vera_", "waveft_"),
)
_HALF_PRECISION = (torch.bfloat16, torch.float16)


def is_adapter(name: str) -> bool:
    """Whether a weight of that name belongs to a PEFT adapter."""
    return any(part.startswith(_ADAPTER_PREFIXES) for part in name.split("."))


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model by name, without adapters and without the prefixes that wrappers add to names."""
    named = {}
    for name, weight in model.named_parameters():
        if not is_adapter(name):
            for prefix in _WRAPPER_PREFIXES:
                name = name.replace(prefix, "")
            named[name] = weight
    return named


class WeightComparison(NamedTuple):
    """How the weights of a policy differ from the weights of its reference.

    Args:
        differing: The names of the weights that differ.
        total: The number of weights.
        relative_distance: ||policy - reference|| / ||reference|| over all weights, Euclidean; 0 if no weight differs.
        common_dtype: The dtype that makes all weights equal when both models are rounded to it, if there is one.
    """

    differing: list[str]
    total: int
    relative_distance: float
    common_dtype: torch.dtype | None

    @property
    def evidence(self) -> dict[str, Any]:
        return {"weights that differ": len(self.differing), "of": self.total, "first": self.differing[0]}


def compare_weights(weights: dict[str, Tensor], ref_weights: dict[str, Tensor]) -> WeightComparison:
    """Compare the weights of two models with the same names and shapes.

    Args:
        weights: The weights of the policy, by name.
        ref_weights: The weights of the reference, by name.

    Returns:
        The comparison, in float32.
    """
    differing, squared_distance, squared_norm = [], 0.0, 0.0
    for name, weight in weights.items():
        ours = weight.detach().float()
        theirs = ref_weights[name].detach().to(weight.device).float()
        if not torch.equal(ours, theirs):
            differing.append(name)
        squared_distance += float(((ours - theirs) ** 2).sum())
        squared_norm += float((theirs**2).sum())
    if not differing:
        return WeightComparison([], len(weights), 0.0, None)
    dtype = _common_dtype(weights, ref_weights)
    relative_distance = squared_distance**0.5 / squared_norm**0.5 if squared_norm else math.inf
    return WeightComparison(differing, len(weights), relative_distance, dtype)


def _common_dtype(weights: dict[str, Tensor], ref_weights: dict[str, Tensor]) -> torch.dtype | None:
    for dtype in _HALF_PRECISION:
        if all(
            torch.equal(weight.to(dtype), ref_weights[name].to(weight.device, dtype))
            for name, weight in weights.items()
        ):
            return dtype
    return None


def check_trained_weights(
    policy: nn.Module, reference: nn.Module | None, optimizer: torch.optim.Optimizer | None
) -> list[Finding]:
    """Check that the weights of the policy train and the weights of the reference do not.

    Runs `check_frozen` or `check_partly_frozen`, `check_optimizer_parameters`, and `check_shared_weights` or
    `check_optimizer_has_reference`.

    Args:
        policy: The policy.
        reference: The reference, if it is a separate model.
        optimizer: The optimizer of the policy, if there is one already.

    Returns:
        Findings named `frozen`, `partly-frozen`, `not-in-optimizer`, `reference-is-policy` or `reference-moved`.
    """
    findings = check_frozen(policy) or check_partly_frozen(policy)
    if optimizer is not None:
        findings += check_optimizer_parameters(policy, optimizer)
    if reference is not None:
        shared = check_shared_weights(policy, reference)
        if not shared and optimizer is not None:
            findings += check_optimizer_has_reference(reference, optimizer)
        findings += shared
    return findings


def check_frozen(policy: nn.Module) -> list[Finding]:
    """Check that the policy has a trainable weight.

    Criterion: at least one parameter has `requires_grad`.

    Returns:
        `frozen` (error), or nothing.
    """
    names = [name for name, _ in policy.named_parameters()]
    if any(weight.requires_grad for weight in policy.parameters()):
        return []
    adapters = [name for name in names if is_adapter(name)]
    cause = f"{'the adapter' if adapters else 'the policy'} is frozen: no weight requires a gradient, so nothing trains"
    remedy = "load the adapter with is_trainable=True" if adapters else "policy.requires_grad_(True)"
    evidence = {"trainable weights": 0, "of": len(names), "first": (adapters or names)[0]}
    return [Finding("frozen", "error", cause, remedy, evidence)]


def check_partly_frozen(policy: nn.Module) -> list[Finding]:
    """Check that every weight of the adapter trains, or every weight of the policy if it has no adapter.

    Criterion: every such parameter has `requires_grad`. The adapter that TRL names "ref" is meant to be frozen.

    Returns:
        `partly-frozen` (warning), or nothing.
    """
    named = dict(policy.named_parameters())
    adapters = [name for name in named if is_adapter(name)]
    frozen = [name for name in (adapters or named) if not named[name].requires_grad]
    if not frozen or _are_reference_adapters(frozen):
        return []
    cause = f"a part of the {'adapter' if adapters else 'policy'} is frozen"
    remedy = "ignore this if it is intended; else call requires_grad_(True) before the optimizer is created"
    evidence = {"frozen weights": len(frozen), "of": len(adapters or named), "first": frozen[0]}
    return [Finding("partly-frozen", "warning", cause, remedy, evidence)]


def _are_reference_adapters(names: Iterable[str]) -> bool:
    return all(".ref." in name or name.endswith(".ref") for name in names)


def check_optimizer_parameters(policy: nn.Module, optimizer: torch.optim.Optimizer) -> list[Finding]:
    """Check that the optimizer has every trainable weight of the policy.

    Criterion: each parameter with `requires_grad` is in one of the parameter groups.

    Returns:
        `not-in-optimizer` (error), or nothing.
    """
    trainable = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    optimized = _ids_of_parameters(optimizer)
    missing = [name for name, weight in trainable.items() if id(weight) not in optimized]
    if not missing:
        return []
    cause = "the optimizer lacks trainable weights of the policy: it was created before the weights were replaced"
    remedy = "create the optimizer after the model is wrapped, from its trainable parameters"
    evidence = {"weights not in the optimizer": len(missing), "of": len(trainable), "first": missing[0]}
    return [Finding("not-in-optimizer", "error", cause, remedy, evidence)]


def check_shared_weights(policy: nn.Module, reference: nn.Module) -> list[Finding]:
    """Check that the reference does not share memory with the policy.

    Criterion: no weight of the reference has the address of a trainable weight of the policy.

    Returns:
        `reference-is-policy` (error), or nothing.
    """
    addresses = {weight.data_ptr() for weight in policy.parameters() if weight.requires_grad and weight.numel()}
    shared = [name for name, weight in reference.named_parameters() if weight.data_ptr() in addresses]
    if not shared:
        return []
    cause = (
        "the reference shares weights with the policy: it changes with the policy, and the KL stays 0 during training"
    )
    remedy = "copy.deepcopy the model before training, or load it a second time, and freeze the copy"
    evidence = {"shared weights": len(shared), "first": shared[0]}
    return [Finding("reference-is-policy", "error", cause, remedy, evidence)]


def check_optimizer_has_reference(reference: nn.Module, optimizer: torch.optim.Optimizer) -> list[Finding]:
    """Check that the optimizer has no weight of the reference.

    Returns:
        `reference-moved` (error), or nothing.
    """
    optimized = _ids_of_parameters(optimizer)
    if not any(id(weight) in optimized for weight in reference.parameters()):
        return []
    cause = "the optimizer has weights of the reference, so the reference trains"
    remedy = "give the optimizer the parameters of the policy only, and freeze the reference"
    evidence = {"weights of the reference in the optimizer": True}
    return [Finding("reference-moved", "error", cause, remedy, evidence)]


def _ids_of_parameters(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(weight) for group in optimizer.param_groups for weight in group["params"]}
