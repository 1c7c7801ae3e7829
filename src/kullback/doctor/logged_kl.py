"""Checks of the KL values that a run logged, from its rows of metrics; docs/metrics.md explains the keys."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, TypeAlias

from kullback.doctor.finding import Finding
from kullback.runs.metrics import METRICS

__all__ = [
    "NEGLIGIBLE_KL",
    "Row",
    "check_engine_mismatch",
    "check_kl_at_start",
    "check_kl_finite",
    "check_learning",
    "check_logged_against_evaluation",
    "check_logged_kl",
    "check_mask_mismatch",
    "check_negative_kl",
    "check_reference_moved",
    "finite_values",
    "kl_keys",
    "second_half",
]

Row: TypeAlias = Mapping[str, Any]

NEGLIGIBLE_KL = 1e-6
"""The largest KL, in nats per token, between models that count as equal. Rounding in float32 gives about 1e-10,
rounding in bfloat16 1e-4 and more."""

_UPDATE_KL = "kl_old_policy_per_step"
_MIN_ROWS = 5  # before conclusions about a whole run are drawn


def kl_keys(rows: Iterable[Row]) -> list[str]:
    """The keys of KL(policy || reference) that occur in the rows, including TRL's sampled estimate "kl"."""
    present = {key for row in rows for key in row}
    keys = dict.fromkeys(metric.key for metric in METRICS if metric.symbol == "KL(policy || reference)")
    return [key for key in (*keys, "kl") if key in present]


def finite_values(rows: Iterable[Row], key: str) -> list[tuple[int, float]]:
    """The pairs (step, value) of the rows with a finite number under the key."""
    numbers = [(int(row.get("step") or 0), row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    return [(step, float(value)) for step, value in numbers if math.isfinite(value)]


def second_half(values: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """The second half of a sequence."""
    return values[len(values) // 2 :]


def check_logged_kl(
    metrics: Sequence[Row], evaluations: Sequence[Row], *, first_is_reference: bool = True
) -> list[Finding]:
    """Check that logged values are valid KL values: 0 at the start, finite, non-negative, of one mask and reference.

    Runs `check_kl_at_start`, `check_kl_finite`, `check_negative_kl` and `check_reference_moved` for every KL that was
    logged, then `check_mask_mismatch`, `check_logged_against_evaluation` and `check_engine_mismatch`. A fault that
    occurs in several units gives one finding.

    Args:
        metrics: One row for each step; keys may be absent.
        evaluations: One row for each evaluation on fixed prompts.
        first_is_reference: Whether the row of step 1 was measured before the weights changed.

    Returns:
        Findings named `kl-at-start`, `kl-not-finite`, `negative-kl`, `reference-moved`, `mask-mismatch`,
        `logged-kl-differs-from-evaluation` or `engine-mismatch`.

    Example:
        >>> [finding.name for finding in check_logged_kl([{"step": 1, "kl_policy_ref_per_token": 0.02}], [])]
        ['kl-at-start']
    """
    findings: list[Finding] = []
    for key in kl_keys([*metrics, *evaluations]):
        findings += check_kl_at_start(key, metrics if first_is_reference else [], evaluations)
        findings += check_kl_finite(key, metrics)
        findings += check_negative_kl(key, [*metrics, *evaluations])
        findings += check_reference_moved(key, metrics)
    # The old policy is another model in every update, so only these two checks apply to its KL.
    findings += check_kl_finite(_UPDATE_KL, metrics) + check_negative_kl(_UPDATE_KL, metrics)
    first_of_each_name = list({finding.name: finding for finding in reversed(findings)}.values())[::-1]
    return (
        first_of_each_name
        + check_mask_mismatch([*metrics, *evaluations])
        + check_logged_against_evaluation(metrics, evaluations)
        + check_engine_mismatch(metrics)
    )


def check_learning(metrics: Sequence[Row]) -> list[Finding]:
    """Check that the policy changes.

    Criterion: a logged KL is not exactly 0 in all of at least 5 rows after step 1. The rewards and the gradient norm
    identify the cause.

    Args:
        metrics: One row for each step; keys may be absent.

    Returns:
        `nothing-trains` (error), or nothing.

    Example:
        >>> rows = [{"step": i, "kl_policy_ref_per_token": 0.0, "gradient_norm": 0.0} for i in range(1, 9)]
        >>> check_learning(rows)[0].name
        'nothing-trains'
    """
    for key in (*kl_keys(metrics), _UPDATE_KL):
        later = [value for step, value in finite_values(metrics, key) if step > 1]
        if len(later) < _MIN_ROWS or any(value != 0 for value in later):
            continue
        gradient_norms = [row["gradient_norm"] for row in metrics if row.get("gradient_norm") is not None]
        reward_stds = [row["reward_std"] for row in metrics if row.get("reward_std") is not None]
        evidence = {f"largest {key}": 0.0, "steps": len(later) + 1}
        if gradient_norms:
            evidence["largest gradient_norm"] = max(gradient_norms)
        if reward_stds and max(reward_stds) == 0:
            evidence["largest reward_std"] = 0.0
            cause = "all completions of a prompt get equal rewards, so every advantage is 0"
            remedy = "use a reward that differs between completions, or more or harder prompts"
        elif gradient_norms and max(gradient_norms) == 0:
            cause = "no gradient reaches the weights: the weights that should train are frozen"
            remedy = (
                "check requires_grad (a loaded adapter needs is_trainable=True) and the parameters of the optimizer; "
                "kullback.doctor(policy, reference, batch) names them"
            )
        else:
            cause = (
                "the policy stays equal to its reference: both are one model, or the optimizer updates other weights"
            )
            remedy = (
                "give the reference a frozen copy of the weights, give the optimizer the parameters of the policy, "
                "and check learning_rate"
            )
        return [Finding("nothing-trains", "error", cause, remedy, evidence)]
    return []


def check_kl_at_start(key: str, metrics: Sequence[Row], evaluations: Sequence[Row]) -> list[Finding]:
    """Check that the KL is 0 before training.

    Criterion: |KL| is at most 1e-6 nats in the first evaluation and in the first row of metrics, where their step is
    0 or 1.

    Args:
        key: The key of the KL.
        metrics: One row for each step, the first of them measured before the weights changed; or none.
        evaluations: One row for each evaluation.

    Returns:
        `kl-at-start` (error), or nothing.
    """
    for step, value in [*finite_values(evaluations[:1], key), *finite_values(metrics, key)[:1]]:
        if step <= 1 and abs(value) > NEGLIGIBLE_KL:
            cause = (
                "the policy differs from its reference before training: dropout is on, the reference is another model "
                "or adapter, or the two were computed with different temperatures, precisions, masks or templates"
            )
            remedy = "kullback.doctor(policy, reference, batch) recomputes the KL and names the cause"
            evidence = {f"{key} at step {step}": value, "expected at most": NEGLIGIBLE_KL}
            return [Finding("kl-at-start", "error", cause, remedy, evidence)]
    return []


def check_kl_finite(key: str, metrics: Sequence[Row]) -> list[Finding]:
    """Check that the KL is finite.

    Criterion: no row of metrics has inf, nan or null under the key.

    Args:
        key: The key of the KL.
        metrics: One row for each step.

    Returns:
        `kl-not-finite` (error), or nothing.
    """
    steps = [row.get("step") for row in metrics if key in row and (row[key] is None or not math.isfinite(row[key]))]
    if not steps:
        return []
    cause = "the KL is inf or nan: a token has probability 0 under the reference only, or logits overflowed"
    remedy = "exclude the same tokens in the sampler and in the reference; keep logits in float32"
    return [Finding("kl-not-finite", "error", cause, remedy, {"first step": steps[0], "steps": len(steps)})]


def check_negative_kl(key: str, rows: Sequence[Row]) -> list[Finding]:
    """Check that the KL is not negative.

    Criterion: no value is below -1e-6 nats. If one is, the finding is an error where the mean is more than three
    standard errors below 0 (the sign is wrong), and a warning otherwise (the estimator k1 = log policy/ref, which
    is negative for some batches, was logged).

    Args:
        key: The key of the KL.
        rows: Rows of metrics and evaluations.

    Returns:
        `negative-kl` (error or warning), or nothing.
    """
    values = [value for _, value in finite_values(rows, key)]
    negative = [value for value in values if value < -NEGLIGIBLE_KL]
    if not negative:
        return []
    mean = fmean(values)
    std_error = math.sqrt(fmean((value - mean) ** 2 for value in values) / len(values))
    evidence = {
        "lowest": min(negative),
        f"mean {key}": mean,
        "standard error of the mean": std_error,
        "negative rows": len(negative),
    }
    if mean < -3 * std_error:
        cause = "the KL is negative on average: its sign is reversed, log ref/policy instead of log policy/ref"
        remedy = "log the mean of log policy/ref on samples of the policy, or the exact KL of kullback.kl_logits"
        return [Finding("negative-kl", "error", cause, remedy, evidence)]
    cause = "some values of the KL are negative: the estimator k1 = log policy/ref is logged, which can be negative"
    remedy = (
        "log k3 = phi(log ref/policy) or the exact KL, which are never negative, and do not control a KL budget with k1"
    )
    return [Finding("negative-kl", "warning", cause, remedy, evidence)]


def check_reference_moved(key: str, metrics: Sequence[Row]) -> list[Finding]:
    """Check that the reference stays the same during the run.

    Criterion: the KL does not fall below 2% of the median of the 5 rows before, where this median is above 1e-4
    nats. Rows in which a controller scaled the displacement of the weights by 0.5 or less are ignored.

    Args:
        key: The key of the KL.
        metrics: One row for each step.

    Returns:
        `reference-moved` (error), or nothing.
    """
    rows = [row for row in metrics if isinstance(row.get(key), (int, float))]
    for index in range(_MIN_ROWS, len(rows)):
        before = median(row[key] for row in rows[index - _MIN_ROWS : index])
        row = rows[index]
        if before > 1e-4 and abs(row[key]) < 0.02 * before and row.get("displacement_scale", 1.0) > 0.5:
            cause = (
                "the KL fell to about 0 in one step: the reference was replaced by the policy or by a checkpoint of it"
            )
            remedy = "keep the initial model as the reference when a run is resumed; check sync_ref_model"
            evidence = {"step": row.get("step"), f"median {key} of the {_MIN_ROWS} rows before": before, key: row[key]}
            return [Finding("reference-moved", "error", cause, remedy, evidence)]
    return []


def check_mask_mismatch(rows: Sequence[Row]) -> list[Finding]:
    """Check that the KL and the completion lengths use the same mask.

    Criterion: KL per sequence / (KL per token * completion length) is within 1% of 1 in every row.

    Args:
        rows: Rows of metrics and evaluations.

    Returns:
        `mask-mismatch` (error), or nothing.
    """
    keys = ("kl_policy_ref_per_token", "kl_policy_ref_per_sequence", "completion_length")
    for row in rows:
        per_token, per_sequence, length = (row.get(key) for key in keys)
        if not (per_token and per_sequence and length):
            continue
        ratio = per_sequence / (per_token * length)
        if abs(ratio - 1) > 0.01:
            cause = (
                "the KL and the lengths count different tokens: one of the masks includes padding or lacks the "
                "end-of-sequence token"
            )
            remedy = (
                "count the tokens of a completion up to its end-of-sequence token, included, in both; see "
                "docs/metrics.md"
            )
            evidence = {"step": row.get("step"), "kl per sequence / (kl per token * length)": ratio}
            return [Finding("mask-mismatch", "error", cause, remedy, evidence)]
    return []


def check_logged_against_evaluation(metrics: Sequence[Row], evaluations: Sequence[Row]) -> list[Finding]:
    """Check that the KL of the training batches agrees with the KL of the evaluations.

    Criterion: the median ratio of the two, over at least 3 steps with an evaluated KL above 1e-4 nats per token, is
    between 1/1.5 and 1.5. The row of metrics of step s + 1 and the evaluation of step s measure the same policy.

    Args:
        metrics: One row for each step.
        evaluations: One row for each evaluation on fixed prompts.

    Returns:
        `logged-kl-differs-from-evaluation` (error), or nothing.
    """
    key = "kl_policy_ref_per_token"
    evaluated = dict(finite_values(evaluations, key))
    ratios = [
        logged / evaluated[step - 1]
        for step, logged in finite_values(metrics, key)
        if evaluated.get(step - 1, 0) > 1e-4
    ]
    if len(ratios) < 3 or 1 / 1.5 < (ratio := median(ratios)) < 1.5:
        return []
    cause = (
        "the KL of the training batches, which is logged and trained on, differs from the KL of the evaluations: they "
        "use different estimators, masks or temperatures"
    )
    remedy = "compare them on one batch: kullback.doctor(policy, reference, batch)"
    evidence = {"median of logged/evaluated": ratio, "pairs": len(ratios)}
    return [Finding("logged-kl-differs-from-evaluation", "error", cause, remedy, evidence)]


def check_engine_mismatch(metrics: Sequence[Row]) -> list[Finding]:
    """Check that the log-probabilities of the inference engine agree with the trainer's.

    Criterion: the median of TRL's "sampling/sampling_logp_difference/mean" is at most 0.05 nats.

    Args:
        metrics: One row for each step.

    Returns:
        `engine-mismatch` (error), or nothing.
    """
    differences = [value for _, value in finite_values(metrics, "sampling/sampling_logp_difference/mean")]
    if not differences or median(differences) <= 0.05:
        return []
    cause = (
        "the log-probabilities of the inference engine differ from the trainer's: the precision, the sampling filters "
        "or the weights differ"
    )
    remedy = "kullback.doctor(policy, reference, batch) with sampling_per_token_logps in the batch names the cause"
    evidence = {"median |log-probability difference|, nats": median(differences), "largest": max(differences)}
    return [Finding("engine-mismatch", "error", cause, remedy, evidence)]
