"""Checks of the KL values that a run logged, from its rows of metrics; docs/metrics.md explains the keys."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, TypeAlias

from kullback.doctor.finding import Finding, Severity
from kullback.doctor.sampling_error import (
    exceeds,
    log_noise,
    mean_log_ratio_differs,
    std_error_of_mean,
    student_quantile,
)
from kullback.errors import InputError
from kullback.numerics.arguments import is_number, shown
from kullback.runs.metrics import METRICS

__all__ = [
    "NEGLIGIBLE_KL",
    "Row",
    "check_engine_mismatch",
    "check_finite_training",
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
    "logged_std_errors",
    "number",
    "require_rows",
    "second_half",
]

Row: TypeAlias = Mapping[str, Any]

NEGLIGIBLE_KL = 1e-6
"""The largest KL, in nats per token, between models that count as equal. Rounding in float32 gives about 1e-10,
rounding in bfloat16 1e-4 and more."""

_UPDATE_KL = "kl_old_policy_per_step"
_MIN_ROWS = 5  # before conclusions about a whole run are drawn
_BFLOAT16_KL = 1e-3  # nats per token: rounding of logits to bfloat16 causes at most about this KL of equal models
_LOSSES = ("loss", "policy_loss", "value_loss", "distortion", "cross_entropy", "gradient_norm")


def kl_keys(rows: Iterable[Row]) -> list[str]:
    """The keys of KL(policy || reference) that occur in the rows, including TRL's sampled estimate "kl"."""
    present = {key for row in rows for key in row}
    keys = dict.fromkeys(metric.key for metric in METRICS if metric.symbol == "KL(policy || reference)")
    return [key for key in (*keys, "kl") if key in present]


def number(row: Row, key: str) -> float | None:
    """The number under a key, which may be inf or nan; None where the key is absent or its value is not a number."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return float(value) if value is not None and is_number(value) else None


def _finite(row: Row, key: str) -> float | None:
    """The number under a key; None unless it is a finite number."""
    value = number(row, key)
    return value if value is not None and math.isfinite(value) else None


def finite_values(rows: Iterable[Row], key: str) -> list[tuple[int, float]]:
    """The pairs (step, value) of the rows with a finite number under the key."""
    numbers = [(int(_finite(row, "step") or 0), _finite(row, key)) for row in rows]
    return [(step, value) for step, value in numbers if value is not None]


def logged_std_errors(rows: Iterable[Row], key: str) -> list[float | None]:
    """The standard errors of the rows with a finite number under the key; None where none was logged."""
    return [_finite(row, f"{key}_std_error") for row in rows if _finite(row, key) is not None]


def second_half(values: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """The second half of a sequence."""
    return values[len(values) // 2 :]


def require_rows(name: str, rows: Any) -> None:
    """Check that an argument is a sequence of rows.

    Args:
        name: The name of the argument.
        rows: The argument.

    Raises:
        InputError: It is not a sequence of mappings.
    """
    remedy = 'pass [json.loads(line) for line in open("metrics.jsonl")], or frame.to_dict("records") of a table'
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise InputError(f"expected {name} to be a list of mappings, one for each row, got {shown(rows)}; {remedy}")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"expected {name}[{index}] to be a mapping of keys to values, got {shown(row)}; {remedy}")


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

    Raises:
        InputError: The metrics or the evaluations are not a sequence of mappings.

    Example:
        >>> [finding.name for finding in check_logged_kl([{"step": 1, "kl_policy_ref_per_token": 0.02}], [])]
        ['kl-at-start']
    """
    require_rows("metrics", metrics)
    require_rows("evaluations", evaluations)
    findings: list[Finding] = []
    for key in kl_keys([*metrics, *evaluations]):
        findings += check_kl_at_start(key, metrics if first_is_reference else [], evaluations)
        findings += check_kl_finite(key, metrics)
        findings += check_negative_kl(key, metrics) + check_negative_kl(key, evaluations)
        findings += check_reference_moved(key, metrics)
    # The old policy is another model in every update, so only these two checks apply to its KL.
    findings += check_kl_finite(_UPDATE_KL, metrics) + check_negative_kl(_UPDATE_KL, metrics)
    first_of_each_name = list({finding.name: finding for finding in reversed(findings)}.values())[::-1]
    return (
        first_of_each_name
        + (check_mask_mismatch(metrics) or check_mask_mismatch(evaluations))
        + check_logged_against_evaluation(metrics, evaluations)
        + check_engine_mismatch(metrics)
    )


def check_finite_training(metrics: Sequence[Row]) -> list[Finding]:
    """Check that the losses and the gradient of a run are finite.

    Criterion: no row has inf, nan or null as a loss, and the last row has a finite gradient norm. In float16, single
    steps with a gradient that is not finite are normal, because the loss scaler skips them.

    Args:
        metrics: One row for each step; keys may be absent.

    Returns:
        `training-not-finite` (error), or nothing.

    Raises:
        InputError: The metrics are not a sequence of mappings.

    Example:
        >>> check_finite_training([{"step": 1, "loss": 0.2}, {"step": 2, "loss": None}])[0].evidence
        {'first step': 2, 'value': 'loss', 'rows': 1}
    """
    require_rows("metrics", metrics)
    affected = [
        (index, key)
        for index, row in enumerate(metrics)
        for key in _LOSSES
        if key in row and _finite(row, key) is None
        if key != "gradient_norm" or index == len(metrics) - 1
    ]
    if not affected:
        return []
    first, key = affected[0]
    cause = "the loss or the gradient is inf or nan: the numbers overflowed, or a weight was nan before"
    remedy = (
        "lower the learning rate, clip the gradient (max_grad_norm), keep logits in float32, and continue from a "
        "checkpoint before this step"
    )
    evidence = {"first step": metrics[first].get("step"), "value": key, "rows": len({index for index, _ in affected})}
    return [Finding("training-not-finite", "error", cause, remedy, evidence)]


def check_learning(metrics: Sequence[Row]) -> list[Finding]:
    """Check that the policy changes.

    Criterion: a logged KL is not exactly 0 in all of at least 5 rows after step 1. The rewards and the gradient norm
    identify the cause. The finding is a warning where the rewards give no direction, because such a run computes what
    its settings state.

    Args:
        metrics: One row for each step; keys may be absent.

    Returns:
        `nothing-trains` (error or warning), or nothing.

    Raises:
        InputError: The metrics are not a sequence of mappings.

    Example:
        >>> rows = [{"step": i, "kl_policy_ref_per_token": 0.0, "gradient_norm": 0.0} for i in range(1, 9)]
        >>> check_learning(rows)[0].name
        'nothing-trains'
    """
    require_rows("metrics", metrics)
    for key in (*kl_keys(metrics), _UPDATE_KL):
        later = [value for step, value in finite_values(metrics, key) if step > 1]
        if len(later) < _MIN_ROWS or any(value != 0 for value in later):
            continue
        gradient_norms = [value for _, value in finite_values(metrics, "gradient_norm")]
        reward_stds = [value for _, value in finite_values(metrics, "reward_std")]
        evidence = {f"largest {key}": 0.0, "steps": len(later) + 1}
        severity: Severity = "error"
        if gradient_norms:
            evidence["largest gradient_norm"] = max(gradient_norms)
        if (rows := _rows_without_reward(metrics)) and not any(reward_stds):
            severity = "warning"
            evidence["rows without a reward"] = rows
            cause = "no completion has a reward: the reward functions returned None, so every advantage is 0"
            remedy = "return a number for at least some of the completions of each prompt"
        elif reward_stds and max(reward_stds) == 0:
            severity = "warning"
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
        return [Finding("nothing-trains", severity, cause, remedy, evidence)]
    return []


def _rows_without_reward(metrics: Sequence[Row]) -> int:
    """The number of rows that log a reward, if a reward is None or nan in all of them; else 0."""
    without: dict[str, list[bool]] = {}
    for row in metrics:
        for key in row:
            is_mean = key.startswith("rewards/") and not key.endswith(("/std", "_std_error", "/return"))
            if key == "reward" or is_mean:
                without.setdefault(key, []).append(_finite(row, key) is None)
    return max((len(flags) for flags in without.values() if all(flags)), default=0)


def check_kl_at_start(key: str, metrics: Sequence[Row], evaluations: Sequence[Row]) -> list[Finding]:
    """Check that the KL is 0 before training.

    Criterion: |KL| is at most 1e-6 nats in the first evaluation and in the first row of metrics, where their step is
    0 or 1. Up to 1e-3 nats the finding is a warning, because rounding in bfloat16 causes such values.

    Args:
        key: The key of the KL.
        metrics: One row for each step, the first of them measured before the weights changed; or none.
        evaluations: One row for each evaluation.

    Returns:
        `kl-at-start` (error or warning), or nothing.
    """
    first = [pair for pair in [*finite_values(evaluations[:1], key), *finite_values(metrics, key)[:1]] if pair[0] <= 1]
    for step, value in sorted(first, key=lambda pair: -abs(pair[1]))[:1]:
        if abs(value) > NEGLIGIBLE_KL:
            cause = (
                "the policy differs from its reference before training: dropout is on, the reference is another model "
                "or adapter, or the two were computed with different temperatures, precisions, masks or templates"
            )
            remedy = "kullback.doctor(policy, reference, batch) recomputes the KL and names the cause"
            evidence = {f"{key} at step {step}": value, "expected at most": NEGLIGIBLE_KL}
            severity: Severity = "error" if abs(value) > _BFLOAT16_KL else "warning"
            return [Finding("kl-at-start", severity, cause, remedy, evidence)]
    return []


def check_kl_finite(key: str, metrics: Sequence[Row]) -> list[Finding]:
    """Check that the KL is finite.

    Criterion: no row of metrics has inf, nan or null under the key, except where all completions were truncated, and
    may therefore be excluded by the settings.

    Args:
        key: The key of the KL.
        metrics: One row for each step.

    Returns:
        `kl-not-finite` (error), or nothing.
    """
    steps = [
        row.get("step")
        for row in metrics
        if key in row and _finite(row, key) is None and not (row[key] is None and number(row, "truncated") == 1)
    ]
    if not steps:
        return []
    cause = "the KL is inf or nan: a token has probability 0 under the reference only, or logits overflowed"
    remedy = "exclude the same tokens in the sampler and in the reference; keep logits in float32"
    return [Finding("kl-not-finite", "error", cause, remedy, {"first step": steps[0], "steps": len(steps)})]


def check_negative_kl(key: str, rows: Sequence[Row]) -> list[Finding]:
    """Check that the KL is not negative.

    Criterion: no value is below -1e-6 nats. If one is, the finding is an error where the mean is below 0 by more than
    sampling errors explain (the sign is wrong), and a warning otherwise: the estimator k1 = log policy/ref, which is
    negative for some batches, was logged, or there are too few rows to identify a wrong sign.

    Args:
        key: The key of the KL.
        rows: Rows of metrics, or of evaluations.

    Returns:
        `negative-kl` (error or warning), or nothing.
    """
    values = [value for _, value in finite_values(rows, key)]
    negative = [value for value in values if value < -NEGLIGIBLE_KL]
    if not negative:
        return []
    mean = fmean(values)
    between = std_error_of_mean(values, [None] * len(values))
    is_negative = len(values) >= _MIN_ROWS and exceeds(-mean, 0.0, between, len(values))
    evidence = {
        "lowest": min(negative),
        f"mean {key}": mean,
        "standard error of the mean": between,
        "negative rows": len(negative),
    }
    remedy = "log the mean of log policy/ref on samples of the policy, or the exact KL of kullback.kl_logits"
    if is_negative:
        cause = "the KL is negative on average: its sign is reversed, log ref/policy instead of log policy/ref"
        return [Finding("negative-kl", "error", cause, remedy, evidence)]
    if max(values) <= NEGLIGIBLE_KL:
        cause = (
            "no value of the KL is positive: its sign is reversed, or the estimator k1 = log policy/ref is logged, "
            "which can be negative; the rows do not distinguish the two"
        )
        return [Finding("negative-kl", "warning", cause, remedy, evidence)]
    cause = "some values of the KL are negative: the estimator k1 = log policy/ref is logged, which can be negative"
    remedy = (
        "log k3 = phi(log ref/policy) or the exact KL, which are never negative, and do not control a KL budget with k1"
    )
    return [Finding("negative-kl", "warning", cause, remedy, evidence)]


def check_reference_moved(key: str, metrics: Sequence[Row]) -> list[Finding]:
    """Check that the reference stays the same during the run.

    Criterion: the KL does not fall below 2% of the median of the 5 rows before, where this median is above 1e-4 nats.
    A single small value does not suffice, because some prompts have a small KL. The fall must therefore exceed the
    variation of log KL between all rows before by more than chance explains, and the next row must be below 20% of the
    median. Where log KL varies by more than 0.5, the row and the next three must be below the least of the 20 rows
    before. Rows in which a controller scaled the displacement of the weights by 0.5 or less are ignored, and so are
    rows after a negative value, because an estimator that can be negative is near 0 by chance.

    Args:
        key: The key of the KL.
        metrics: One row for each step.

    Returns:
        `reference-moved` (error), or nothing.
    """
    rows = [row for row in metrics if _finite(row, key) is not None]
    values = [value for _, value in finite_values(rows, key)]
    for index in range(_MIN_ROWS, len(rows)):
        before = median(values[index - _MIN_ROWS : index])
        if not before > 1e-4 or abs(values[index]) >= 0.02 * before or min(values[:index]) < -NEGLIGIBLE_KL:
            continue
        if any((number(row, "displacement_scale") or 1.0) <= 0.5 for row in rows[index - 1 : index + 1]):
            continue
        earlier = [value for value in values[:index] if value > 0]
        noise = log_noise(earlier)
        size, least = (2, 0.2 * before) if noise <= 0.5 else (4, min(earlier[-20:]))
        following = [abs(value) for value in values[index : index + size]]
        is_sustained = len(following) == size and max(following) < least
        fall = math.log(before / max(abs(values[index]), 1e-12))
        quantile = student_quantile(len(earlier) - 1)
        if is_sustained and fall > quantile * math.sqrt(1 + 1 / _MIN_ROWS) * noise:
            cause = (
                "the KL fell to about 0 in one step: the reference was replaced by the policy or by a checkpoint of it"
            )
            remedy = "keep the initial model as the reference when a run is resumed; check sync_ref_model"
            evidence = {
                "step": rows[index].get("step"),
                f"median {key} of the {_MIN_ROWS} rows before": before,
                key: values[index],
            }
            return [Finding("reference-moved", "error", cause, remedy, evidence)]
    return []


def check_mask_mismatch(rows: Sequence[Row]) -> list[Finding]:
    """Check that the KL and the completion lengths use the same mask.

    Criterion: KL per sequence / (KL per token * completion length), which is 1 in every row of one mask, is within 1%
    of 1 in the median, or its deviation from 1 is not consistent: the lengths of a step can be of more completions than
    its KL (`steps_per_generation`).

    Args:
        rows: Rows of metrics, or of evaluations.

    Returns:
        `mask-mismatch` (error), or nothing.
    """
    keys = ("kl_policy_ref_per_token", "kl_policy_ref_per_sequence", "completion_length")
    ratios = []
    for row in rows:
        per_token, per_sequence, length = (_finite(row, key) or 0.0 for key in keys)
        if per_token > 0 and per_sequence > 0 and length > 0:
            ratios.append((row.get("step"), per_sequence / per_token / length))
    deviating = [(step, ratio) for step, ratio in ratios if abs(ratio - 1) > 0.01]
    middle = median(ratio for _, ratio in ratios) if ratios else 1.0
    if not deviating or abs(middle - 1) <= 0.01:
        return []
    logs = [math.log(ratio) for _, ratio in ratios]
    mean = fmean(logs)
    if len(logs) < 3 or not exceeds(abs(mean), 0.0, std_error_of_mean(logs, [None] * len(logs)), len(logs)):
        return []
    cause = (
        "the KL and the lengths count different tokens: one of the masks includes padding or lacks the "
        "end-of-sequence token"
    )
    remedy = "count the tokens of a completion up to its end-of-sequence token, included, in both; see docs/metrics.md"
    evidence = {
        "first step": deviating[0][0],
        "median of kl per sequence / (kl per token * length)": middle,
        "rows": len(deviating),
    }
    return [Finding("mask-mismatch", "error", cause, remedy, evidence)]


def check_logged_against_evaluation(metrics: Sequence[Row], evaluations: Sequence[Row]) -> list[Finding]:
    """Check that the KL of the training batches agrees with the KL of the evaluations.

    Criterion: the ratio of the two has an expectation of 1. It is examined at 3 or more steps with an evaluated KL
    above 1e-4 nats per token. A finding requires that the means of both differ by a factor above 1.5, that the median
    ratio deviates in the same direction, and that the mean of the logarithm of the ratio deviates by more than the
    variation between steps and the standard errors of the evaluations explain. The median alone does not suffice: the
    KL of one prompt is skewed, and its median can be a tenth of its mean.

    The finding is a warning, because prompts of the evaluations that differ from the training prompts have another KL.

    Args:
        metrics: One row for each step. The row of step s is measured before step s.
        evaluations: One row for each evaluation, after the step that it names.

    Returns:
        `logged-kl-differs-from-evaluation` (warning), or nothing.
    """
    key = "kl_policy_ref_per_token"
    evaluated = {step: value for step, value in finite_values(evaluations, key) if value > 1e-4}
    errors = [
        error / value
        for (_, value), error in zip(finite_values(evaluations, key), logged_std_errors(evaluations, key), strict=True)
        if error is not None and value > 1e-4
    ]
    pairs = [(logged, evaluated[step - 1]) for step, logged in finite_values(metrics, key) if step - 1 in evaluated]
    if len(pairs) < 3 or any(logged < 0 for logged, _ in pairs):
        return []
    ratios = [max(logged / value, 1e-12) for logged, value in pairs]
    of_means = sum(logged for logged, _ in pairs) / sum(value for _, value in pairs)
    middle = median(ratios)
    is_large = min(of_means, middle) > 1.5 or max(of_means, middle) < 1 / 1.5
    if not is_large or not mean_log_ratio_differs(ratios, fmean(errors) if errors else 0.0):
        return []
    cause = (
        "the KL of the training batches, which is logged and trained on, differs from the KL of the evaluations: they "
        "use different estimators, masks or temperatures, or the prompts of the evaluations are of another kind"
    )
    remedy = "compare them on one batch: kullback.doctor(policy, reference, batch)"
    evidence = {"median of logged/evaluated": middle, "mean logged / mean evaluated": of_means, "pairs": len(pairs)}
    return [Finding("logged-kl-differs-from-evaluation", "warning", cause, remedy, evidence)]


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
