"""What a run's numbers say is wrong with its KL: rows as `docs/metrics.md` explains them in, findings out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, TypeAlias

from kullback.doctor.finding import Finding

__all__ = ["SAME", "Row", "check_learning", "check_logged_kl", "kl_names", "late_half", "series"]


Row: TypeAlias = Mapping[str, Any]


def kl_names(rows: Iterable[Row]) -> list[str]:
    """The keys of KL(policy || reference) that occur, "kl" (TRL's sampled one) among them."""
    keys = {key for row in rows for key in row}
    return [
        name
        for name in (*(f"kl_policy_ref_per_{unit}" for unit in ("token", "sequence", "step", "reference_step")), "kl")
        if name in keys
    ]


def series(rows: Iterable[Row], key: str) -> list[tuple[int, float]]:
    """(step, value) of every row that has a finite number there."""
    kept = [(int(row.get("step") or 0), row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    return [(step, float(value)) for step, value in kept if math.isfinite(value)]


def late_half(values: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """The second half."""
    return values[len(values) // 2 :]


SAME = 1e-6
"""Nats per token below which two policies count as one: rounding in float32 gives 1e-10, bfloat16 1e-4 and more."""
_OF_UPDATES = "kl_old_policy_per_step"
_ENOUGH = 5  # rows before a run is judged as a whole


def check_logged_kl(
    metrics: Sequence[Row], evaluations: Sequence[Row], *, first_is_reference: bool = True
) -> list[Finding]:
    """Whether the logged KL is one: zero at the start, never negative, finite, with one mask, of one reference.

    Args:
        metrics: A row for each step; those that lack a key are passed over.
        evaluations: A row for each judgement on fixed prompts.
        first_is_reference: Whether the row of step 1 was measured before any weight moved.

    Example:
        >>> [one.name for one in check_logged_kl([{"step": 1, "kl_policy_ref_per_token": 0.02}], [])]
        ['kl-at-start']
    """
    found: list[Finding] = []
    for name in kl_names([*metrics, *evaluations]):
        seen = series(metrics, name)
        first = [*series(evaluations[:1], name), *(seen[:1] if first_is_reference else [])]
        for step, value in first:
            if step <= 1 and abs(value) > SAME:
                found.append(_not_zero(name, step, value))
                break
        found += _not_finite(metrics, name)
        found += _negative(name, [value for _, value in [*seen, *series(evaluations, name)]])
        found += _moved_reference(name, metrics)
    # That of an update starts anew each time: all that can be said of it is that it is a KL.
    found += _not_finite(metrics, _OF_UPDATES) + _negative(_OF_UPDATES, [v for _, v in series(metrics, _OF_UPDATES)])
    # Per token and per sequence it is one fault.
    found = list({one.name: one for one in reversed(found)}.values())[::-1]
    return found + _mask_mismatch([*metrics, *evaluations]) + _logged_apart(metrics, evaluations) + _engine(metrics)


def check_learning(metrics: Sequence[Row]) -> list[Finding]:
    """Whether anything is being learned: a KL of exactly 0 after steps were taken says that nothing moves.

    Example:
        >>> rows = [{"step": i, "kl_policy_ref_per_token": 0.0, "gradient_norm": 0.0} for i in range(1, 9)]
        >>> check_learning(rows)[0].name
        'nothing-trains'
    """
    for name in (*kl_names(metrics), _OF_UPDATES):
        later = [value for step, value in series(metrics, name) if step > 1]
        if len(later) < _ENOUGH or any(value != 0 for value in later):
            continue
        gradients = [row["gradient_norm"] for row in metrics if row.get("gradient_norm") is not None]
        spreads = [row["reward_std"] for row in metrics if row.get("reward_std") is not None]
        evidence = {f"largest {name}": 0.0, "steps": len(later) + 1}
        if gradients:
            evidence["largest gradient_norm"] = max(gradients)
        if spreads and max(spreads) == 0:
            evidence["largest reward_std"] = 0.0
            cause = "every prompt's completions are all rewarded alike, so that no advantage differs from 0"
            remedy = "take a reward that tells completions apart, or more or harder prompts"
        elif gradients and max(gradients) == 0:
            cause = "no gradient reaches the weights: what should train is frozen"
            remedy = (
                "look at requires_grad (a loaded adapter needs is_trainable=True) and at the optimizer's parameters; "
                "kullback.doctor.models.doctor names them"
            )
        else:
            cause = "the policy does not leave its reference: both are one model, or the steps change other weights"
            remedy = (
                "give the reference its own frozen copy, and the optimizer the policy's parameters; see learning_rate"
            )
        return [Finding("nothing-trains", "error", cause, remedy, evidence)]
    return []


# -- the KL --


def _not_zero(name: str, step: int, value: float) -> Finding:
    return Finding(
        "kl-at-start",
        "error",
        "the policy is not its reference before anything was learned: dropout is on, the reference is another model or "
        "adapter, or the two were computed at different temperatures, precisions, masks or templates",
        "kullback.doctor.models.doctor(policy, reference, batch) measures again and names which",
        {f"{name} at step {step}": value, "expected at most": SAME},
    )


def _not_finite(metrics: Sequence[Row], name: str) -> list[Finding]:
    steps = [row.get("step") for row in metrics if name in row and (row[name] is None or not math.isfinite(row[name]))]
    if not steps:
        return []
    cause = "the KL is inf or nan: the policy gives mass to what the reference rules out, or logits overflowed"
    remedy = "let the sampler and the reference rule out the same tokens; keep logits in float32"
    return [Finding("kl-not-finite", "error", cause, remedy, {"first step": steps[0], "steps": len(steps)})]


def _negative(name: str, values: Sequence[float]) -> list[Finding]:
    low = [value for value in values if value < -SAME]
    if not low:
        return []
    mean = fmean(values)
    error = math.sqrt(fmean((value - mean) ** 2 for value in values) / len(values))
    evidence = {"lowest": min(low), f"mean {name}": mean, "its standard error": error, "negative rows": len(low)}
    if mean < -3 * error:
        cause = "the KL is negative on average: its sign is turned, as in log ref/policy where log policy/ref is meant"
        remedy = "on the policy's samples the mean of log policy/ref is the KL; kullback.kl_logits has the exact one"
        return [Finding("negative-kl", "error", cause, remedy, evidence)]
    cause = "single values of the KL are negative: k1 = log policy/ref is logged, whose value for a batch may be"
    remedy = "log k3 = phi(log ref/policy) or the exact KL, which cannot be; a budget must not follow k1"
    return [Finding("negative-kl", "warning", cause, remedy, evidence)]


def _moved_reference(name: str, metrics: Sequence[Row]) -> list[Finding]:
    rows = [row for row in metrics if isinstance(row.get(name), (int, float))]
    for index in range(_ENOUGH, len(rows)):
        usual = median(row[name] for row in rows[index - _ENOUGH : index])
        row = rows[index]
        # The controller pulls to its target, never to the reference itself.
        if usual > 1e-4 and abs(row[name]) < 0.02 * usual and row.get("displacement_scale", 1.0) > 0.5:
            cause = "the KL fell to about 0 at once: the reference was replaced, by the policy or by a checkpoint of it"
            remedy = "keep the first model as the reference when resuming; see sync_ref_model"
            evidence = {"step": row.get("step"), f"median {name} of the {_ENOUGH} rows before": usual, name: row[name]}
            return [Finding("reference-moved", "error", cause, remedy, evidence)]
    return []


def _mask_mismatch(rows: Sequence[Row]) -> list[Finding]:
    keys = ("kl_policy_ref_per_token", "kl_policy_ref_per_sequence", "completion_length")
    for row in rows:
        token, sequence, length = (row.get(key) for key in keys)
        if not (token and sequence and length):
            continue
        ratio = sequence / (token * length)
        if abs(ratio - 1) > 0.01:
            cause = "the KL and the lengths count different tokens: padding or the end mark is in one mask alone"
            remedy = "count a completion's tokens up to its end mark, that included, in both; see docs/metrics.md"
            evidence = {"step": row.get("step"), "kl per sequence / (kl per token * length)": ratio}
            return [Finding("mask-mismatch", "error", cause, remedy, evidence)]
    return []


def _logged_apart(metrics: Sequence[Row], evaluations: Sequence[Row]) -> list[Finding]:
    """The row of step s + 1 is the policy after step s, which the evaluation of step s judged too."""
    name = "kl_policy_ref_per_token"
    judged = dict(series(evaluations, name))
    pairs = [(value, judged[step - 1]) for step, value in series(metrics, name) if judged.get(step - 1, 0) > 1e-4]
    ratios = [logged / kl for logged, kl in pairs]
    if len(ratios) < 3 or 1 / 1.5 < (middle := median(ratios)) < 1.5:
        return []
    cause = (
        "what is logged (and trained on) is not the KL on the judged prompts: another estimator, mask or temperature"
    )
    remedy = "compare them on one batch: kullback.doctor.models.doctor(policy, reference, batch)"
    evidence = {"median of logged/judged": middle, "pairs": len(ratios)}
    return [Finding("logged-is-not-judged", "error", cause, remedy, evidence)]


def _engine(metrics: Sequence[Row]) -> list[Finding]:
    apart = [value for _, value in series(metrics, "sampling/sampling_logp_difference/mean")]
    if not apart or median(apart) <= 0.05:
        return []
    cause = (
        "the inference engine's log-probabilities are not the trainer's: precision, sampling filters or stale weights"
    )
    remedy = "kullback.doctor.models.doctor with the batch's sampling_per_token_logps names which"
    evidence = {"median |log-probability difference|, nats": median(apart), "largest": max(apart)}
    return [Finding("engine-mismatch", "error", cause, remedy, evidence)]
