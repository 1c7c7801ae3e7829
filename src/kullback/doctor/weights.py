"""What the weights of a policy and its reference say: what trains, what does not, and how the two differ."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kullback.doctor.finding import Finding

__all__ = ["check_trained_weights", "is_adapter", "named_weights", "rounding_between"]

_WRAPPINGS = ("base_model.model.", "base_layer.", "_orig_mod.", "module.")
_HALF = (torch.bfloat16, torch.float16)


def is_adapter(name: str) -> bool:
    """Whether a weight of that name is an adapter's (PEFT)."""
    return any(mark in name for mark in ("lora_", "adapter_", "ia3_", "prompt_encoder"))


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights by name, without what wrappers put before it and without adapters."""
    named = {}
    for name, weight in model.named_parameters():
        if not is_adapter(name):
            for wrapping in _WRAPPINGS:
                name = name.replace(wrapping, "")
            named[name] = weight
    return named


def check_trained_weights(
    policy: nn.Module, reference: nn.Module | None, optimizer: torch.optim.Optimizer | None
) -> list[Finding]:
    """Whether what should train does, and what should not does not."""
    named = dict(policy.named_parameters())
    trains = {name: weight for name, weight in named.items() if weight.requires_grad}
    adapters = [name for name in named if is_adapter(name)]
    found = []
    if not trains:
        what = "the adapter" if adapters else "the policy"
        cause = f"{what} is frozen: no weight requires a gradient, the curves look healthy and nothing is learned"
        remedy = "load the adapter with is_trainable=True" if adapters else "policy.requires_grad_(True)"
        evidence = {"weights that train": 0, "of": len(named), "first": (adapters or list(named))[0]}
        found.append(Finding("frozen", "error", cause, remedy, evidence))
    elif (still := [name for name in (adapters or named) if name not in trains]) and not _one_kind(still):
        cause = f"a part of the {'adapter' if adapters else 'policy'} is frozen"
        remedy = "leave it so if it is meant; else requires_grad_(True), before the optimizer is made"
        evidence = {"frozen": len(still), "of": len(adapters or named), "first": still[0]}
        found.append(Finding("partly-frozen", "warning", cause, remedy, evidence))
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]} if optimizer else None
    if held is not None and (lost := [name for name, weight in trains.items() if id(weight) not in held]):
        cause = "the optimizer does not hold weights that should train: it was made before they were replaced"
        remedy = "make the optimizer after the model is wrapped, from its trainable parameters"
        evidence = {"not held": len(lost), "of": len(trains), "first": lost[0]}
        found.append(Finding("not-in-optimizer", "error", cause, remedy, evidence))
    if reference is None:
        return found
    places = {weight.data_ptr() for weight in trains.values() if weight.numel()}
    shared = [name for name, weight in reference.named_parameters() if weight.data_ptr() in places]
    if shared:
        cause = "the reference shares weights with the policy: it moves along, and the KL stays 0 whatever is learned"
        remedy = "copy.deepcopy the model before training, or load it a second time, and freeze the copy"
        evidence = {"shared weights": len(shared), "first": shared[0]}
        found.append(Finding("reference-is-policy", "error", cause, remedy, evidence))
    elif held and any(id(weight) in held for weight in reference.parameters()):
        cause = "the optimizer holds the reference's weights: the reference trains"
        remedy = "give the optimizer the policy's parameters alone, and freeze the reference"
        found.append(Finding("reference-moved", "error", cause, remedy, {"reference's weights in the optimizer": True}))
    return found


def _one_kind(names: Iterable[str]) -> bool:
    """Adapters beside the one that trains ("ref" in TRL) are meant to be frozen."""
    return all(".ref." in name or name.endswith(".ref") for name in names)


def rounding_between(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> torch.dtype | None:
    """The dtype in which the two hold the same weights, where they do not as they are."""
    for dtype in _HALF:
        if all(torch.equal(ours[name].to(dtype), theirs[name].to(ours[name].device, dtype)) for name in ours):
            return dtype
    return None
