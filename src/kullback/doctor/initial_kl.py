"""Why a policy is not its reference before anything was trained."""

from typing import Any

import torch

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import PolicyAndReference
from kullback.doctor.logged_kl import SAME
from kullback.doctor.weights import is_adapter, named_weights, rounding_between
from kullback.tokens import token_kl

__all__ = ["check_initial_kl"]

_COMPUTED = ("attn_implementation", "_attn_implementation", "rope_theta", "rope_parameters", "rope_scaling", "dtype")


def check_initial_kl(pair: PolicyAndReference, temperature: float) -> list[Finding]:
    """KL(policy || reference) with and without dropout, and what makes it other than 0."""

    def kl(**conditions: Any) -> float:
        values = token_kl(pair.policy(**conditions)[:, :-1], pair.reference()[:, :-1], temperature=temperature)
        return float(values[pair.seen.mask].double().mean())

    still, training = kl(), kl(training=True)
    found = []
    if abs(training - still) > max(SAME, 0.01 * still):
        cause = "dropout is on while the policy is compared with its reference: two passes differ with equal weights"
        remedy = "set it to 0 in the model's config, or disable_dropout=True in TRL's config"
        evidence = {"KL in training mode": training, "KL in evaluation mode": still, **_dropouts(pair.model)}
        found.append(Finding("dropout", "error", cause, remedy, evidence))
    if still > SAME or still != still:
        found.append(_apart(pair, still))
    return found


def _dropouts(model: Any) -> dict[str, Any]:
    told = model.config.to_dict()
    on = {key: value for key, value in told.items() if ("dropout" in key or "pdrop" in key) and value}
    modules = sum(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return {**on, **({"dropout modules": modules} if modules else {})}


def _apart(pair: PolicyAndReference, kl: float) -> Finding:
    evidence: dict[str, Any] = {"KL(policy || ref), nats per token": kl}
    if pair.other is None:
        adapter = {name: weight for name, weight in pair.model.named_parameters() if is_adapter(name)}
        moved = [name for name, weight in adapter.items() if "lora_B" in name and bool(weight.any())]
        cause = "the adapter is not a new one: its reference is the model without it, which is not where it starts"
        remedy = 'merge it into the model first, or keep a frozen copy of it, named "ref", as the reference'
        evidence |= {"lora_B other than 0": len(moved), "first": moved[0] if moved else None}
        return Finding("wrong-reference", "error", cause, remedy, evidence)
    ours, theirs = named_weights(pair.model), named_weights(pair.other)
    common = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    lost = sorted(ours.keys() ^ theirs.keys()) + [name for name in ours if name in theirs and name not in common]
    if lost:
        cause = "the reference is another model: its weights have other names or shapes"
        remedy = "load the reference from where the policy starts"
        evidence |= {"without a counterpart": len(lost), "first": lost[0]}
        return Finding("wrong-reference", "error", cause, remedy, evidence)
    pairs = {name: (ours[name].detach().float(), theirs[name].detach().to(ours[name].device).float()) for name in ours}
    differ = [name for name, (a, b) in pairs.items() if not torch.equal(a, b)]
    if differ:
        evidence |= {"weights that differ": len(differ), "of": len(ours), "first": differ[0]}
        if dtype := rounding_between(ours, theirs):
            cause = f"the precision differs: both hold the same weights, one of them rounded to {_short(dtype)}"
            remedy = "load both in one dtype; a reference in lower precision is another policy, if a near one"
            return Finding("precision", "error", cause, remedy, evidence)
        size = sum(float((b**2).sum()) for _, b in pairs.values()) ** 0.5
        evidence["relative distance"] = sum(float(((a - b) ** 2).sum()) for a, b in pairs.values()) ** 0.5 / size
        cause = "the reference holds other weights than the policy starts from: another checkpoint, or one that moved"
        remedy = "load the reference from where the policy starts; see sync_ref_model and resumed runs"
        return Finding("wrong-reference", "error", cause, remedy, evidence)
    if any(is_adapter(name) for name, _ in pair.model.named_parameters()):
        cause = "the adapter is not a new one: it already changes the policy, and the reference lacks it"
        remedy = "give the reference the same adapter, frozen"
        return Finding("wrong-reference", "error", cause, remedy, evidence)
    cause = "equal weights, and yet another policy: the two are computed differently"
    remedy = "load both with one config, one dtype and one attention implementation"
    return Finding("computed-differently", "error", cause, remedy, {**evidence, **_configs(pair)})


def _configs(pair: PolicyAndReference) -> dict[str, str]:
    told = [
        {**model.config.to_dict(), **{key: getattr(model.config, key, None) for key in _COMPUTED}}
        for model in (pair.model, pair.other)
    ]
    keys = sorted(key for key in told[0].keys() | told[1].keys() if told[0].get(key) != told[1].get(key))
    return {key: f"{told[0].get(key)} / {told[1].get(key)}" for key in keys[:6]}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
