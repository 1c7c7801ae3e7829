"""The KL divergences that runs log, with their titles and units, and the KL that a budget constrains."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kullback.explore.downsample import finite
from kullback.runs.metrics import constrained_kl

__all__ = ["DIVERGENCES", "Divergence", "budget_of", "budgeted_kl"]

Row = Mapping[str, Any]


class Divergence(NamedTuple):
    """How the report presents a KL metric.

    Args:
        name: The identifier of the chart.
        title: The title of the chart.
        short: The name in a table.
        unit: The KL is in nats per this unit.
        note: The caption of the chart.
    """

    name: str
    title: str
    short: str
    unit: str
    note: str


_POLICY_REF = ("KL(policy || reference)", "KL(policy || ref)")
_OLD_POLICY = "KL(old policy || policy)"
_POSTERIOR_PRIOR = "KL(q(z | x) || p(z))"

DIVERGENCES = {
    "kl_policy_ref_per_token": Divergence(
        "kl-token", *_POLICY_REF, "token", "Mean KL per token of completions that are sampled from the policy."
    ),
    "kl_policy_ref_per_sequence": Divergence(
        "kl-sequence", *_POLICY_REF, "sequence", "Mean KL per completion that is sampled from the policy."
    ),
    "kl_policy_ref_per_step": Divergence(
        "kl-step", *_POLICY_REF, "step", "Mean KL over the states that the policy visits."
    ),
    "kl_policy_ref_per_reference_step": Divergence(
        "kl-reference-step",
        *_POLICY_REF,
        "step at reference states",
        "Mean KL over a fixed set of states that the reference policy visits.",
    ),
    "kl_old_policy_per_step": Divergence(
        "kl-old",
        _OLD_POLICY,
        _OLD_POLICY,
        "step",
        "Mean KL of an update over visited states; the old policy is the policy before the update.",
    ),
    "train_forward_kl_per_token": Divergence(
        "forward-kl", "KL(data || model)", "KL(data || model)", "token", "Cross-entropy minus the entropy floor."
    ),
    "kl_student_teacher_per_token": Divergence(
        "kl-student",
        "KL(student || teacher)",
        "KL(student || teacher)",
        "token",
        "Mean KL per token of the completions of the evaluation.",
    ),
    "kl_teacher_student_per_token": Divergence(
        "kl-teacher",
        "KL(teacher || student)",
        "KL(teacher || student)",
        "token",
        "Mean KL per token of the completions of the evaluation.",
    ),
    "kl_posterior_prior_per_image": Divergence(
        "kl-latent",
        _POSTERIOR_PRIOR,
        _POSTERIOR_PRIOR,
        "image",
        "Mean KL over images, summed over the latent dimensions.",
    ),
}


def budget_of(config: Row) -> tuple[float, str] | None:
    """Read the KL budget of a run.

    Args:
        config: The settings of a run.

    Returns:
        The target in nats and its unit, or None when the run has no budget.

    Example:
        >>> budget_of({"budget": {"target": 0.05, "unit": "token"}}), budget_of({"budget": None})
        ((0.05, 'token'), None)
    """
    budget = config.get("budget")
    if not isinstance(budget, Mapping):
        return None
    target = finite(budget.get("target"))
    return (target, str(budget.get("unit", "token"))) if target is not None and target > 0 else None


def budgeted_kl(config: Row) -> str | None:
    """Return the metric key of the KL that the budget of a run constrains, or None when the run has no budget.

    Example:
        >>> budgeted_kl({"budget": {"target": 0.01, "unit": "step", "constrain": "old-policy"}})
        'kl_old_policy_per_step'
    """
    return constrained_kl(config) if budget_of(config) else None
