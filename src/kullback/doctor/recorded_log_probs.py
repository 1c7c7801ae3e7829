"""Checks of log-probabilities that were recorded with a batch: which computation produced them.

Each check recomputes the log-probabilities under one changed condition, such as another temperature. A condition that
reproduces the recorded values is their cause.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import CompletionBatch, PolicyAndReference, forward_logits, token_log_probs
from kullback.errors import ShapeError

__all__ = [
    "Explanation",
    "RecordedLogProbs",
    "check_attention_mask",
    "check_causality",
    "check_finite",
    "check_padding_positions",
    "check_recorded_dropout",
    "check_recorded_log_probs",
    "check_recorded_precision",
    "check_sampling_filter",
    "check_shift",
    "check_source_model",
    "check_stale_weights",
    "check_temperature",
    "explain",
]

_TOP_P = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_TOP_K = (5, 10, 20, 40, 50, 100)
_FLOAT32_TOLERANCE = 1e-4  # nats: twenty times the difference between two float32 kernels
_BFLOAT16_TOLERANCE = 0.02  # nats: the rounding error of bfloat16
_MAX_REMAINING = 0.1  # share of the difference that may remain under a condition that explains it
_REMAINING = "remaining mean difference, nats"
_SOURCES = {
    "old_log_prob": "the policy",
    "sampler_log_prob": "the policy in the inference engine",
    "ref_log_prob": "the reference",
}


class Explanation(NamedTuple):
    """How far recorded log-probabilities are from the expected ones, and which computation reproduces them.

    Args:
        difference: Mean |recorded - expected| over the tokens that count, in nats.
        cause: The name of the candidate that reproduces the recorded values; None if at least a tenth of the
            difference remains under every candidate.
        remaining: Mean |recorded - candidate| under the cause, in nats; the difference if `cause` is None.
    """

    difference: float
    cause: str | None
    remaining: float


def explain(recorded: Tensor, expected: Tensor, candidates: Mapping[str, Tensor], mask: Tensor) -> Explanation:
    """Find the computation that recorded log-probabilities come from.

    Args:
        recorded: Recorded values in nats, shape (batch, time); nan where nothing was recorded.
        expected: The values as they should be, shape (batch, time).
        candidates: The values under other conditions, by the name of the condition, each of shape (batch, time); nan
            where a condition gives no value.
        mask: True for the tokens that count, shape (batch, time).

    Returns:
        The difference, the cause and the remaining difference. A difference without any token to compare is inf.

    Raises:
        ShapeError: The shapes differ.

    Example:
        >>> expected, mask = torch.tensor([[-1.0, -2.0, -0.5]]), torch.ones(1, 3, dtype=torch.bool)
        >>> shifted = torch.tensor([[torch.nan, -1.0, -2.0]])
        >>> explain(torch.tensor([[-0.3, -1.0, -2.0]]), expected, {"shift": shifted}, mask).cause
        'shift'
    """
    if not recorded.shape == expected.shape == mask.shape:
        raise ShapeError(
            f"expected recorded log-probabilities of shape {tuple(expected.shape)}, as the completions have, got "
            f"{tuple(recorded.shape)}, and a mask of shape {tuple(mask.shape)}"
        )
    difference = _mean_abs_difference(recorded, expected, mask)
    remaining = {name: _mean_abs_difference(recorded, values, mask) for name, values in candidates.items()}
    best = min(remaining, key=lambda name: remaining[name], default=None)
    if best is None or remaining[best] > _MAX_REMAINING * difference:
        return Explanation(difference, None, difference)
    return Explanation(difference, best, remaining[best])


def _mean_abs_difference(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """Mean |a - b| over the tokens that count and are not nan in either; inf if there are none."""
    difference = (a.double() - b.double()).abs()[mask.bool() & ~a.isnan() & ~b.isnan()]
    return float(difference.mean()) if difference.numel() else float("inf")


@dataclass(frozen=True)
class RecordedLogProbs:
    """Recorded log-probabilities, with the model that they should come from.

    Args:
        name: "old_log_prob", "sampler_log_prob" or "ref_log_prob".
        values: The recorded log-probabilities in nats, shape (batch, time); nan where nothing was recorded.
        batch: The completions.
        forward: Returns the logits of the model that the values should come from; takes the keyword arguments of
            `forward_logits`.
        other_forward: Returns the logits of the other model: of the reference for the policy's values, of the policy
            for the reference's. None without a reference.
        temperature: The temperature that the values should be computed at.
        tolerance: The largest mean absolute difference, in nats, that counts as rounding.
    """

    name: str
    values: Tensor
    batch: CompletionBatch
    forward: Callable[..., Tensor]
    other_forward: Callable[[], Tensor] | None
    temperature: float
    tolerance: float

    @cached_property
    def logits(self) -> Tensor:
        """The logits of the model that the values should come from."""
        return self.forward()

    @cached_property
    def expected(self) -> Tensor:
        """The log-probabilities as they should be."""
        return self.log_probs(self.logits)

    @cached_property
    def difference(self) -> float:
        """Mean |recorded - expected|, in nats."""
        return _mean_abs_difference(self.values, self.expected, self.batch.mask)

    @property
    def source(self) -> str:
        return f"{self.name} (of {_SOURCES[self.name]})"

    @property
    def evidence(self) -> dict[str, Any]:
        return {"recorded": self.name, "mean |recorded - recomputed|, nats": self.difference}

    def log_probs(self, logits: Tensor, **conditions: Any) -> Tensor:
        """The log-probabilities of the tokens; `conditions` are keyword arguments of `token_log_probs`."""
        return token_log_probs(logits, self.batch.tokens, **{"temperature": self.temperature, **conditions})

    def explained_by(self, candidates: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """The evidence for the candidate that reproduces the recorded values, or None; see `explain`."""
        explanation = explain(self.values, self.expected, candidates, self.batch.mask)
        if explanation.cause is None:
            return None
        return {**self.evidence, "reproduced by": explanation.cause, _REMAINING: explanation.remaining}


def check_recorded_log_probs(pair: PolicyAndReference, temperature: float, *, on_policy: bool) -> list[Finding]:
    """Check that recorded log-probabilities equal the log-probabilities of the policy and of the reference.

    Criterion: the mean absolute difference between the recorded and the recomputed values is at most 1e-4 nats, or
    0.02 nats in lower precision than float32 and for an inference engine. A larger difference gives one finding: of
    the condition that reproduces the values best, where it leaves less than a tenth of the difference; else of the
    condition that causes differences of the same size, dropout or bfloat16; else of stale weights.

    Args:
        pair: The policy, the reference and the batch.
        temperature: The temperature at which the log-probabilities should have been computed.
        on_policy: Whether the policy still has the weights that it had when the values were recorded. If not, only
            "ref_log_prob" is checked.

    Returns:
        At most one finding for each of "old_log_prob", "sampler_log_prob" and "ref_log_prob": `log-prob-not-finite`,
        `shifted`, `padding-attended`, `reference-is-policy`, `stale-policy`, `sampling-filter`, `temperature`,
        `dropout`, `precision` or `stale-reference`.
    """
    findings = []
    for name in pair.batch.recorded:
        if on_policy or name == "ref_log_prob":
            findings += _check_one(_recorded(pair, name, temperature))
    return findings


def _recorded(pair: PolicyAndReference, name: str, temperature: float) -> RecordedLogProbs:
    is_reference = name == "ref_log_prob"
    forward, other = pair.policy_logits, pair.reference_logits
    if is_reference:
        forward, other = other, forward
    is_coarse = _is_low_precision(pair) or name == "sampler_log_prob"  # an engine uses other kernels
    return RecordedLogProbs(
        name=name,
        values=pair.batch.recorded[name],
        batch=pair.batch,
        forward=forward,
        other_forward=other if pair.has_reference else None,
        temperature=temperature,
        tolerance=_BFLOAT16_TOLERANCE if is_coarse else _FLOAT32_TOLERANCE,
    )


def _check_one(recorded: RecordedLogProbs) -> list[Finding]:
    if findings := check_finite(recorded):
        return findings
    if recorded.difference <= recorded.tolerance:
        return []
    # A filter can approximate a temperature, but only the right condition leaves nothing except rounding.
    deterministic = (check_shift, check_attention_mask, check_source_model, check_sampling_filter, check_temperature)
    if findings := [finding for check in deterministic for finding in check(recorded)]:
        return [min(findings, key=lambda finding: finding.evidence[_REMAINING])]
    return check_recorded_dropout(recorded) or check_recorded_precision(recorded) or check_stale_weights(recorded)


def check_finite(recorded: RecordedLogProbs) -> list[Finding]:
    """Check that recorded log-probabilities are finite.

    Criterion: no recorded value of a token that counts is infinite, and not all are nan. Single values may be nan:
    an inference engine does not score every token.

    Args:
        recorded: The recorded values.

    Returns:
        `log-prob-not-finite` (error), or nothing.
    """
    values = recorded.values[recorded.batch.mask]
    not_finite = values.isinf() | values.isnan().all()
    if not not_finite.any():
        return []
    cause = f"{recorded.source} is inf or nan: a sampling filter excluded a sampled token, or numbers overflowed"
    remedy = "compute it from the unfiltered distribution, with logits in float32, and examine the affected tokens"
    evidence = {"recorded": recorded.name, "not finite": int(not_finite.sum()), "of": len(not_finite)}
    return [Finding("log-prob-not-finite", "error", cause, remedy, evidence)]


def check_temperature(recorded: RecordedLogProbs) -> list[Finding]:
    """Check that recorded log-probabilities were computed at the sampling temperature.

    Criterion: another temperature, the best fit between 1/8 and 8, leaves less than a tenth of the difference.

    Args:
        recorded: The recorded values, whose difference exceeds the tolerance.

    Returns:
        `temperature` (error), or nothing.
    """

    def distance(log2_temperature: float) -> float:
        log_probs = recorded.log_probs(recorded.logits, temperature=2.0**log2_temperature)
        return _mean_abs_difference(recorded.values, log_probs, recorded.batch.mask)

    fit = minimize_scalar(distance, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-6})
    best = 2.0 ** float(fit.x)  # type: ignore[union-attr]
    candidates = {f"temperature {best:.4g}": recorded.log_probs(recorded.logits, temperature=best)}
    if (evidence := recorded.explained_by(candidates)) is None:
        return []
    cause = (
        f"{recorded.source} was computed at {evidence['reproduced by']}, but the policy samples at "
        f"{recorded.temperature:g}"
    )
    remedy = "divide the logits by the sampling temperature in every log-probability, or in none"
    return [Finding("temperature", "error", cause, remedy, evidence)]


def check_sampling_filter(recorded: RecordedLogProbs) -> list[Finding]:
    """Check that recorded log-probabilities were computed from the unfiltered distribution.

    Criterion: a top-p of 0.5, 0.7, 0.8, 0.9, 0.95, 0.98 or 0.99, or a top-k of 5, 10, 20, 40, 50 or 100, at the
    sampling temperature or at temperature 1, leaves less than a tenth of the difference.

    Args:
        recorded: The recorded values, whose difference exceeds the tolerance.

    Returns:
        `sampling-filter` (error), or nothing.
    """
    logits, candidates = recorded.logits, {}
    for temperature in dict.fromkeys((recorded.temperature, 1.0)):
        filters = [("top_p", top_p) for top_p in _TOP_P]
        filters += [("top_k", top_k) for top_k in _TOP_K if top_k < logits.shape[-1]]
        for key, value in filters:
            log_probs = recorded.log_probs(logits, temperature=temperature, **{key: value})
            candidates[f"{key} {value} at temperature {temperature:g}"] = log_probs
    if (evidence := recorded.explained_by(candidates)) is None:
        return []
    cause = (
        f"{recorded.source} was computed after the sampling filter, {evidence['reproduced by']}, so the "
        "probability ratio compares a filtered with an unfiltered distribution"
    )
    remedy = "sample without top-p and top-k, or configure the engine to return log-probabilities before the filters"
    return [Finding("sampling-filter", "error", cause, remedy, evidence)]


def check_shift(recorded: RecordedLogProbs) -> list[Finding]:
    """Check that entry t of recorded log-probabilities belongs to token t.

    Criterion: the log-probabilities of the preceding or of the following token, or log-probabilities from the logits
    at the token's own position, leave less than a tenth of the difference.

    Args:
        recorded: The recorded values, whose difference exceeds the tolerance.

    Returns:
        `shifted` (error), or nothing.
    """
    candidates = {
        "a shift by +1 token": _roll_within(recorded.expected, recorded.batch.mask, 1),
        "a shift by -1 token": _roll_within(recorded.expected, recorded.batch.mask, -1),
        "logits at the token's own position": recorded.log_probs(recorded.logits, unshifted=True),
    }
    if (evidence := recorded.explained_by(candidates)) is None:
        return []
    cause = f"{recorded.source} is shifted by one token: entry t does not belong to token t"
    remedy = "the logits at position t - 1 predict token t: gather logits[:, :-1] at ids[:, 1:]"
    return [Finding("shifted", "error", cause, remedy, evidence)]


def _roll_within(values: Tensor, mask: Tensor, shift: int) -> Tensor:
    """The values moved by one position where the mask is true; nan where the neighbour has no value."""
    rolled = torch.roll(torch.where(mask, values, torch.nan), shift, dims=-1)
    rolled[:, 0 if shift > 0 else -1] = torch.nan
    return rolled


def check_attention_mask(recorded: RecordedLogProbs) -> list[Finding]:
    """Check that recorded log-probabilities were computed with the attention mask.

    Criterion: a forward pass that attends to padding leaves less than a tenth of the difference.

    Args:
        recorded: The recorded values, whose difference exceeds the tolerance.

    Returns:
        `padding-attended` (error), or nothing.
    """
    unmasked = recorded.log_probs(recorded.forward(attend_to_padding=True))
    if (evidence := recorded.explained_by({"no attention mask": unmasked})) is None:
        return []
    cause = f"{recorded.source} was computed without an attention mask: the model attended to padding"
    remedy = "pass attention_mask in every forward pass"
    return [Finding("padding-attended", "error", cause, remedy, evidence)]


def check_source_model(recorded: RecordedLogProbs) -> list[Finding]:
    """Check that the policy's recorded log-probabilities are not the reference's, and vice versa.

    Criterion: the log-probabilities of the other model leave less than a tenth of the difference.

    Args:
        recorded: The recorded values, whose difference exceeds the tolerance.

    Returns:
        `reference-is-policy` (error) for "ref_log_prob", `stale-policy` (error) for the policy's values, or nothing.
    """
    if recorded.other_forward is None:
        return []
    other = recorded.log_probs(recorded.other_forward())
    if (evidence := recorded.explained_by({"the other model": other})) is None:
        return []
    if recorded.name == "ref_log_prob":
        cause = f"{recorded.source} was computed with the policy: the measured KL stays 0 although the policy changes"
        remedy = "compute it with the frozen reference, or with the adapter disabled"
        return [Finding("reference-is-policy", "error", cause, remedy, evidence)]
    cause = f"{recorded.source} was computed with the reference: the engine or the trainer samples with fixed weights"
    remedy = "send the policy's weights to the engine after every step"
    return [Finding("stale-policy", "error", cause, remedy, evidence)]


def check_recorded_dropout(recorded: RecordedLogProbs) -> list[Finding]:
    """Check that recorded log-probabilities were not computed with dropout.

    Criterion: forward passes with and without dropout differ by between a third and three times the difference. The
    random numbers of the recorded pass are unknown, so only the size of the difference is compared.

    Args:
        recorded: The recorded values, whose difference exceeds the tolerance and has no deterministic cause.

    Returns:
        `dropout` (error), or nothing.
    """
    with_dropout = recorded.log_probs(recorded.forward(training=True))
    size = _mean_abs_difference(with_dropout, recorded.expected, recorded.batch.mask)
    if not recorded.difference / 3 < size < 3 * recorded.difference:
        return []
    cause = f"{recorded.name} was computed with dropout: a forward pass with dropout differs by the same amount"
    remedy = "compute log-probabilities without dropout: disable_dropout=True in TRL's config"
    evidence = {**recorded.evidence, "mean difference due to dropout, nats": size}
    return [Finding("dropout", "error", cause, remedy, evidence)]


def check_recorded_precision(recorded: RecordedLogProbs) -> list[Finding]:
    """Check that recorded log-probabilities were not computed in lower precision.

    Criterion: the difference is below three times the difference between a pass in bfloat16 and one in the dtype of
    the weights.

    Args:
        recorded: The recorded values, whose difference exceeds the tolerance and has no deterministic cause.

    Returns:
        `precision` (warning), or nothing.
    """
    rounded = recorded.log_probs(recorded.forward(autocast=torch.bfloat16))
    size = _mean_abs_difference(rounded, recorded.expected, recorded.batch.mask)
    if not recorded.difference < 3 * size:
        return []
    cause = f"{recorded.name} was computed in lower precision: a pass in bfloat16 differs by the same amount"
    remedy = "compute both log-probabilities of a ratio in one dtype, with one kernel"
    evidence = {**recorded.evidence, "mean difference due to bfloat16, nats": size}
    return [Finding("precision", "warning", cause, remedy, evidence)]


def check_stale_weights(recorded: RecordedLogProbs) -> list[Finding]:
    """Check that recorded log-probabilities come from the current weights.

    Criterion: the mean absolute difference is at most the tolerance of `check_recorded_log_probs`. This check comes
    last, so other causes have been excluded.

    Args:
        recorded: The recorded values.

    Returns:
        `stale-reference` (error) for "ref_log_prob", `stale-policy` (error) for the policy's values, or nothing.
    """
    if recorded.difference <= recorded.tolerance:
        return []
    if recorded.name == "ref_log_prob":
        cause = "ref_log_prob was not computed with this reference: it is cached, or from another checkpoint"
        remedy = "recompute it with the reference, and discard caches of it when the reference changes"
        return [Finding("stale-reference", "error", cause, remedy, recorded.evidence)]
    cause = f"{recorded.name} was not computed with this policy: the engine has older weights or another tokenization"
    remedy = "send the policy's weights to the engine after every step, and compare the token ids that it returns"
    return [Finding("stale-policy", "error", cause, remedy, recorded.evidence)]


def check_padding_positions(pair: PolicyAndReference) -> list[Finding]:
    """Check that the log-probabilities of a row do not depend on the padding before its prompt.

    Criterion: in the row with the most padding, no log-probability of the policy changes by more than 1e-3 nats when
    the padding is removed, or by more than 0.3 nats in lower precision than float32.

    Args:
        pair: The policy, the reference and the batch.

    Returns:
        `padding-moves-positions` (error), or nothing.
    """
    batch = pair.batch
    padding = batch.prompt_mask.shape[1] - batch.prompt_mask.sum(-1)
    row = int(padding.argmax())
    if int(padding[row]) == 0:
        return []
    unpadded = batch.without_padding(row)
    with_padding = token_log_probs(pair.policy_logits()[row : row + 1], unpadded.tokens)
    without = token_log_probs(replace(pair, batch=unpadded).policy_logits(), unpadded.tokens)
    largest = float((with_padding - without).abs()[unpadded.mask].max())
    if not largest > _largest_rounding(pair):
        return []
    cause = (
        "log-probabilities depend on the padding before a prompt: the position ids include the padding, whereas "
        "they do not when the completions are sampled"
    )
    remedy = "pass position_ids that start at the first token that is not padding, or batch prompts of equal length"
    evidence = {"padding tokens": int(padding[row]), "largest |difference| to the row without padding, nats": largest}
    return [Finding("padding-moves-positions", "error", cause, remedy, evidence)]


def check_causality(pair: PolicyAndReference) -> list[Finding]:
    """Check that the log-probabilities of a token do not depend on later tokens.

    Criterion: in the row with the most tokens that count, no log-probability of the policy changes by more than 1e-3
    nats when the second half of the completion is removed, or by more than 0.3 nats in lower precision than float32.

    Args:
        pair: The policy, the reference and the batch.

    Returns:
        `reads-later-tokens` (error), or nothing.
    """
    row = int(pair.batch.mask.sum(-1).argmax())
    whole = pair.batch.select(slice(row, row + 1), pair.batch.mask.shape[1])
    kept = int(whole.mask.sum()) // 2
    first_half = whole.select(slice(None), kept)
    log_probs, alone = (
        forward_logits(pair.policy, batch, autocast=pair.autocast)[:, : kept + 1].log_softmax(-1)
        for batch in (whole, first_half)
    )
    # Logits of -inf are equal in both.
    largest = float((log_probs - alone).nan_to_num(nan=0.0).abs().max())
    if not largest > _largest_rounding(pair):
        return []
    cause = (
        "the model reads later tokens: the log-probabilities of a token change when the tokens after it are removed, "
        "so that they are not the probabilities from which completions are sampled"
    )
    remedy = "use a causal language model; for BERT and related models, set is_decoder=True in the configuration"
    evidence = {
        "tokens removed": whole.mask.shape[1] - kept,
        "largest |difference| of a log-probability, nats": largest,
    }
    return [Finding("reads-later-tokens", "error", cause, remedy, evidence)]


def _is_low_precision(pair: PolicyAndReference) -> bool:
    return pair.autocast is not None or next(pair.policy.parameters()).dtype.itemsize < 4


def _largest_rounding(pair: PolicyAndReference) -> float:
    """The largest change of a log-probability in nats that is attributed to rounding."""
    return 0.3 if _is_low_precision(pair) else 1e-3
