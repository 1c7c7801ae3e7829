"""Which computation the log-probabilities that came with a batch are from."""

from collections.abc import Mapping
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import PolicyAndReference, logits_of, token_log_probs
from kullback.doctor.masks import Explanation, explain

__all__ = ["check_padding", "check_recorded_log_probs"]

_TOP_P = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_TOP_K = (5, 10, 20, 40, 50, 100)
_FINE = 1e-4  # nats: twenty times what two float32 kernels differ by
_COARSE = 0.02  # nats: what bfloat16 costs
_WHO = {
    "old_log_prob": "the policy",
    "sampler_log_prob": "the inference engine's policy",
    "ref_log_prob": "the reference",
}


def check_padding(pair: PolicyAndReference) -> list[Finding]:
    """Whether a row's log-probabilities depend on the padding before it."""
    seen = pair.seen
    padded = seen.prompt_mask.shape[1] - seen.prompt_mask.sum(-1)
    row = int(padded.argmax())
    if int(padded[row]) == 0:
        return []
    alone = seen.alone(row)
    ours = token_log_probs(pair.policy()[row : row + 1], alone.tokens)
    truth = token_log_probs(logits_of(pair.model, alone, autocast=pair.autocast), alone.tokens)
    apart = float((ours - truth).abs()[alone.mask].max())
    if not apart > (0.3 if _is_coarse(pair) else 1e-3):
        return []
    cause = (
        "log-probabilities depend on the padding before a prompt: positions are counted through it, as they are not "
    )
    cause += "where the completions are sampled"
    remedy = "pass position_ids counted from the first token that is none, or batch prompts of one length"
    evidence = {"padding": int(padded[row]), "largest |difference| to the row alone, nats": apart}
    return [Finding("padding-moves-positions", "error", cause, remedy, evidence)]


def check_recorded_log_probs(pair: PolicyAndReference, temperature: float, *, on_policy: bool) -> list[Finding]:
    """A finding for each kind of recorded log-probabilities that is not what it should be.

    Args:
        pair: Policy, reference and batch.
        temperature: At which they should have been taken.
        on_policy: Whether the policy's own can still be measured again.
    """
    names = [name for name in pair.seen.recorded if on_policy or name == "ref_log_prob"]
    return [found for name in names if (found := _of_one(pair, name, temperature)) is not None]


def _of_one(pair: PolicyAndReference, name: str, temperature: float) -> Finding | None:
    seen, recorded = pair.seen, pair.seen.recorded[name]
    own, other = (pair.reference, pair.policy) if name == "ref_log_prob" else (pair.policy, pair.reference)
    logits = own()
    truth = token_log_probs(logits, seen.tokens, temperature=temperature)
    # Engines compute in kernels of their own.
    most = _COARSE if _is_coarse(pair) or name == "sampler_log_prob" else _FINE
    kept = recorded[seen.mask]  # nan where nothing was recorded, which may be some but not all
    if (odd := kept.isinf() | kept.isnan().all()).any():
        cause = f"{name} (of {_WHO[name]}) is inf or nan: a filter ruled out a token that came, or numbers overflowed"
        remedy = "take it from the whole distribution, with logits in float32; see which tokens they are"
        evidence: dict[str, Any] = {"recorded": name, "not finite": int(odd.sum()), "of": len(odd)}
        return Finding("log-prob-not-finite", "error", cause, remedy, evidence)
    told = explain(recorded, truth, {}, seen.mask)
    if told.apart <= most:
        return None
    evidence = {"recorded": name, "mean |recorded - measured|, nats": told.apart}
    explanations = {
        "shift": _rolled(truth, seen.mask, 1),
        "shift back": _rolled(truth, seen.mask, -1),
        "late": token_log_probs(logits, seen.tokens, temperature=temperature, late=True),
        "padding": token_log_probs(own(blind=True), seen.tokens, temperature=temperature),
        **(
            {"other model": token_log_probs(other(), seen.tokens, temperature=temperature)}
            if pair.has_reference
            else {}
        ),
        **_filters(logits, seen.tokens, (temperature, 1.0)),
        **_temperature(recorded, logits, seen.tokens, seen.mask),
    }
    # A filter may imitate a temperature, but only the right one leaves nothing but rounding: the least counts.
    best = explain(recorded, truth, explanations, seen.mask)
    if best.by is not None:
        return _explained(name, best, evidence, temperature)
    return _by_size(pair, name, truth, temperature, told, evidence)


def _rolled(values: Tensor, mask: Tensor, by: int) -> Tensor:
    """The neighbour's, where it counts: what trainers write beyond a completion differs."""
    rolled = torch.roll(torch.where(mask, values, torch.nan), by, dims=-1)
    rolled[:, 0 if by > 0 else -1] = torch.nan
    return rolled


def _filters(logits: Tensor, tokens: Tensor, temperatures: tuple[float, ...]) -> dict[str, Tensor]:
    found = {}
    for at in dict.fromkeys(temperatures):
        for top_p in _TOP_P:
            found[f"top_p {top_p} at temperature {at:g}"] = token_log_probs(logits, tokens, temperature=at, top_p=top_p)
        for top_k in (k for k in _TOP_K if k < logits.shape[-1]):
            found[f"top_k {top_k} at temperature {at:g}"] = token_log_probs(logits, tokens, temperature=at, top_k=top_k)
    return found


def _temperature(recorded: Tensor, logits: Tensor, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The one that fits best."""

    def apart(log_t: float) -> float:
        return explain(recorded, token_log_probs(logits, tokens, temperature=2.0**log_t), {}, mask).apart

    best = 2.0 ** float(minimize_scalar(apart, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-6}).x)  # type: ignore[union-attr]
    return {f"temperature {best:.4g}": token_log_probs(logits, tokens, temperature=best)}


def _explained(name: str, best: Explanation, evidence: Mapping[str, Any], temperature: float) -> Finding:
    by = str(best.by)
    evidence = {**evidence, "measured as": by, "leaves": best.left}
    who = f"{name} (of {_WHO[name]})"
    if by.startswith("temperature"):
        cause = f"{who} was taken at {by}, and the policy samples at {temperature:g}"
        remedy = "divide the logits by the sampling temperature in every log-probability, or in none"
        return Finding("temperature", "error", cause, remedy, evidence)
    if by.startswith("top_"):
        cause = f"{who} is of the filtered distribution, {by}: the filter leaks into the ratio"
        remedy = "sample without top-p and top-k, or ask the engine for log-probabilities from before the filters"
        return Finding("sampling-filter", "error", cause, remedy, evidence)
    if by in ("shift", "shift back", "late"):
        cause = f"{who} is shifted by one: its entry t is not of token t"
        remedy = "the logits at position t - 1 predict token t: gather logits[:, :-1] at ids[:, 1:]"
        return Finding("shifted", "error", cause, remedy, evidence)
    if by == "padding":
        cause = f"{who} was taken without an attention mask: padding was read as text"
        remedy = "pass attention_mask in every forward pass"
        return Finding("padding-attended", "error", cause, remedy, evidence)
    if name == "ref_log_prob":
        cause = f"{who} is of the policy itself: the KL is 0 whatever is learned"
        remedy = "take it from the frozen reference, or with the adapter switched off"
        return Finding("reference-is-policy", "error", cause, remedy, evidence)
    cause = f"{who} is of the reference: the engine or the trainer samples from weights that do not learn"
    remedy = "send the policy's weights to the engine after every step"
    return Finding("stale-policy", "error", cause, remedy, evidence)


def _by_size(
    pair: PolicyAndReference, name: str, truth: Tensor, temperature: float, told: Explanation, evidence: dict[str, Any]
) -> Finding:
    """Chance and rounding cannot be repeated, but their size can."""
    seen = pair.seen
    own = pair.reference if name == "ref_log_prob" else pair.policy
    with_dropout = token_log_probs(own(training=True), seen.tokens, temperature=temperature)
    size = explain(with_dropout, truth, {}, seen.mask).apart
    if told.apart / 3 < size < 3 * told.apart:
        cause = f"{name} was taken with dropout: a pass with dropout differs by as much"
        remedy = "compute log-probabilities without dropout: disable_dropout=True in TRL's config"
        return Finding("dropout", "error", cause, remedy, {**evidence, "dropout makes": size})
    lower = token_log_probs(own(autocast=torch.bfloat16), seen.tokens, temperature=temperature)
    size = explain(lower, truth, {}, seen.mask).apart
    if told.apart < 3 * size:
        cause = f"{name} was computed in lower precision: bfloat16 differs by as much"
        remedy = "compute every log-probability of a ratio in one dtype, with one kernel"
        return Finding("precision", "warning", cause, remedy, {**evidence, "bfloat16 makes": size})
    if name == "ref_log_prob":
        cause = "ref_log_prob is of another model than the reference: it is stale, or of another checkpoint"
        remedy = "take it again from the reference; caches of it must go when the reference changes"
        return Finding("stale-reference", "error", cause, remedy, evidence)
    cause = f"{name} is not the policy's: the engine holds older weights, or tokenizes otherwise"
    remedy = "send the policy's weights to the engine after every step, and compare the token ids that it returns"
    return Finding("stale-policy", "error", cause, remedy, evidence)


def _is_coarse(pair: PolicyAndReference) -> bool:
    return pair.autocast is not None or next(pair.model.parameters()).dtype.itemsize < 4
