"""Checks of the KL budget and the rewards of a run, from its rows of metrics; docs/metrics.md explains the keys."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from kullback.doctor.finding import Finding
from kullback.doctor.logged_kl import (
    Row,
    finite_values,
    kl_keys,
    logged_std_errors,
    number,
    require_rows,
    second_half,
)
from kullback.doctor.sampling_error import exceeds, std_error_of_mean, upper_bound_of_mean
from kullback.errors import InputError
from kullback.numerics.arguments import is_index, is_name, is_number, shown
from kullback.runs.metrics import kl_key

__all__ = [
    "BudgetRows",
    "check_beta_at_upper_bound",
    "check_beta_divergence",
    "check_budget",
    "check_budget_not_reached",
    "check_degeneration",
    "check_over_budget",
    "check_reward_hacking",
    "check_watched_rewards",
]

_UNITS = ("token", "sequence", "step", "image")
_MIN_STEPS = 5  # before conclusions about a whole run are drawn
_DEFAULT_COUNT = 128  # prompts of an evaluation that does not state their number
_DIFFERENCE_IN_STD_ERRORS = 6.0  # of one value; the standard error of a difference is sqrt(2) times larger


@dataclass(frozen=True)
class BudgetRows:
    """The rows of a run with a KL budget.

    Args:
        metrics: One row for each step.
        evaluations: One row for each evaluation on fixed prompts.
        target: The budget, in nats per unit.
        unit: "token", "sequence", "step" or "image".
        price: The lower and the upper bound of beta * target, in units of the reward.
        key: The key of the constrained KL.
    """

    metrics: Sequence[Row]
    evaluations: Sequence[Row]
    target: float
    unit: str
    price: tuple[float, float]
    key: str

    @cached_property
    def logged(self) -> list[float]:
        """The constrained KL in the second half of the metrics."""
        return [value for _, value in second_half(finite_values(self.metrics, self.key))]

    @cached_property
    def are_evaluations(self) -> bool:
        """Whether `values` are of the evaluations."""
        return len(second_half(finite_values(self.evaluations, self.key))) >= 3

    @cached_property
    def values(self) -> list[float]:
        """The constrained KL in the second half of the evaluations; of the metrics if these are fewer than 3."""
        rows = self.evaluations if self.are_evaluations else self.metrics
        return [value for _, value in second_half(finite_values(rows, self.key))]

    @cached_property
    def kl(self) -> float:
        return fmean(self.values)

    @cached_property
    def kl_std_error(self) -> float:
        """The standard error of `kl`. Evaluations use the same prompts each time, so that they share their errors."""
        rows = self.evaluations if self.are_evaluations else self.metrics
        errors = logged_std_errors(rows, self.key)
        are_shared = self.are_evaluations or self.key == kl_key("step", states="reference")
        return std_error_of_mean(self.values, errors[len(errors) // 2 :], shared=are_shared)

    @cached_property
    def betas(self) -> list[float]:
        return [value for _, value in finite_values(self.metrics, "beta")]

    @cached_property
    def late_prices(self) -> list[float]:
        """beta * target in the second half of the metrics."""
        return [beta * self.target for beta in self.betas[len(self.betas) // 2 :]]

    @property
    def evidence(self) -> dict[str, Any]:
        facts = {
            f"mean {self.key} of the second half": self.kl,
            "budget": self.target,
            "standard error of this mean": self.kl_std_error,
            "kl/budget": self.kl / self.target,
        }
        return {**facts, "last beta": self.betas[-1]} if self.late_prices else facts

    @property
    def evidence_in_other_unit(self) -> dict[str, float]:
        """The mean KL per sequence of a budget per token, and vice versa, where it was logged."""
        other = {"token": "sequence", "sequence": "token"}.get(self.unit)
        if other is None:
            return {}
        values = [value for _, value in second_half(finite_values(self.metrics, kl_key(other)))]
        return {f"mean KL per {other}": fmean(values)} if values else {}


def check_budget(
    metrics: Sequence[Row],
    evaluations: Sequence[Row],
    *,
    target: float,
    unit: str,
    price: tuple[float, float] = (0.0, math.inf),
    name: str | None = None,
) -> list[Finding]:
    """Check that the KL meets its budget, and that beta is within its bounds.

    Runs `check_beta_at_upper_bound`, `check_beta_divergence`, `check_over_budget` and `check_budget_not_reached` on
    the second half of the evaluations, or of the steps if the second half has fewer than 3 evaluations. A run of
    fewer than 5 such steps gives no finding.

    Args:
        metrics: One row for each step.
        evaluations: One row for each evaluation on fixed prompts.
        target: The budget, in nats per unit.
        unit: "token", "sequence", "step" or "image".
        price: The lower and the upper bound of beta * target, in units of the reward.
        name: The key of the constrained KL; None: KL(policy || reference) per unit.

    Returns:
        Findings named `beta-at-upper-bound`, `beta-diverges`, `over-budget` or `budget-not-reached`.

    Raises:
        InputError: The metrics or the evaluations are not a sequence of mappings, or the budget, its unit, the bounds
            or the name are not of the kind above.

    Example:
        >>> rows = [{"step": i, "kl_policy_ref_per_token": 0.4, "beta": 0.1} for i in range(40)]
        >>> [finding.name for finding in check_budget(rows, [], target=0.05, unit="token")]
        ['over-budget']
    """
    require_rows("metrics", metrics)
    require_rows("evaluations", evaluations)
    _require_budget(target)
    if not is_name(unit, _UNITS):
        units = f"{', '.join(map(repr, _UNITS[:-1]))} or {_UNITS[-1]!r}"
        raise InputError(f"expected unit to be {units}, got {shown(unit)}")
    if not (isinstance(price, Sequence) and len(price) == 2 and all(is_number(bound) for bound in price)):
        raise InputError(f"expected price to be the lower and the upper bound of beta * target, got {shown(price)}")
    if not 0 <= price[0] <= price[1]:
        raise InputError(f"expected the bounds of price to be 0 or more and in ascending order, got {shown(price)}")
    if name is not None and not isinstance(name, str):
        raise InputError(f"expected name to be the key of a KL or None, got {shown(name)}")
    rows = BudgetRows(metrics, evaluations, target, unit, price, name or kl_key(unit))
    if len(rows.logged) < _MIN_STEPS or not rows.values:
        return []
    checks = (check_beta_at_upper_bound, check_beta_divergence, check_over_budget, check_budget_not_reached)
    return [finding for check in checks for finding in check(rows)]


def _require_budget(target: Any) -> None:
    if not (is_number(target) and 0 < target < math.inf):
        raise InputError(f"expected a KL budget that is a finite number of nats above 0, got {shown(target)}")


def check_beta_at_upper_bound(rows: BudgetRows) -> list[Finding]:
    """Check that beta is below its upper bound.

    Criterion: beta * target is at its upper bound in at most 10% of the second half of the steps.

    Args:
        rows: The rows of the run.

    Returns:
        `beta-at-upper-bound` (warning), or nothing.
    """
    upper = rows.price[1]
    share = sum(price >= upper * (1 - 1e-9) for price in rows.late_prices) / max(1, len(rows.late_prices))
    if share <= 0.1:
        return []
    cause = "beta is at its upper bound: the penalty no longer changes the KL, and only small steps limit it"
    remedy = "lower the learning rate, or raise the budget; raise price_max only if rewards are large"
    evidence = {
        **rows.evidence,
        "upper bound of beta": upper / rows.target,
        "share of the second half at the bound": share,
    }
    return [Finding("beta-at-upper-bound", "warning", cause, remedy, evidence)]


def check_beta_divergence(rows: BudgetRows) -> list[Finding]:
    """Check that beta does not grow without bound.

    Criterion: the last beta is at most 10^4 times the first positive beta, or at most 10 times the beta in the middle
    of the run. A controller may start with a beta of 0, or with a beta that is much too small.

    Args:
        rows: The rows of the run.

    Returns:
        `beta-diverges` (error), or nothing.
    """
    first = next((beta for beta in rows.betas if beta > 0), math.inf)
    if not rows.betas or rows.betas[-1] <= 1e4 * first or rows.betas[-1] <= 10 * rows.betas[len(rows.betas) // 2]:
        return []
    cause = "beta diverges: the controller raises it without bound, and the KL does not change in response"
    remedy = (
        "bound beta, and check that the gradient of the penalty is the gradient of the measured KL; KLBudget does both"
    )
    return [Finding("beta-diverges", "error", cause, remedy, {**rows.evidence, "first beta": first})]


def check_over_budget(rows: BudgetRows) -> list[Finding]:
    """Check that the KL is not above its budget.

    Criterion: the mean KL of the second half of the run is at most 1.2 times the budget, or sampling errors explain
    the difference.

    Args:
        rows: The rows of the run.

    Returns:
        `over-budget` (error), or nothing.
    """
    count = _DEFAULT_COUNT if rows.are_evaluations else len(rows.values)
    if not exceeds(rows.kl, 1.2 * rows.target, rows.kl_std_error, count, probability=1e-3):
        return []
    cause = "the KL stays above its budget: the steps are too large, or one step changes the KL by more than the budget"
    if not rows.late_prices:
        cause = "the KL is above its budget, and no beta is logged: no controller constrains the KL"
    remedy = "lower the learning rate, enlarge the batch, or raise the budget"
    evidence = {**rows.evidence, **rows.evidence_in_other_unit}
    return [Finding("over-budget", "error", cause, remedy, evidence)]


def check_budget_not_reached(rows: BudgetRows) -> list[Finding]:
    """Check that the KL reaches its budget.

    Criterion: the mean KL of the second half of the run is at least half the budget, or an upper bound on its
    expectation is, unless the KL still rises and beta is above its lower bound. The KL still rises if its mean over the
    last third of these values is at least 1.1 times its mean over the first third.

    Args:
        rows: The rows of the run.

    Returns:
        `budget-not-reached` (warning), or nothing.
    """
    at_lower_bound = bool(rows.late_prices) and rows.late_prices[-1] <= rows.price[0] * (1 + 1e-9)
    upper = rows.kl + 4 * rows.kl_std_error
    if not rows.are_evaluations:  # a mean of skewed values is often far below its expectation
        upper = max(upper, upper_bound_of_mean(rows.values))
    if upper >= 0.5 * rows.target or not (at_lower_bound or _has_stopped_rising(rows.values)):
        return []
    evidence = rows.evidence
    cause = (
        "the budget is not reached: the KL stays far below it, with beta at its lower bound or without a further rise"
    )
    remedy = (
        "change nothing if the reward is at its maximum; else use a larger learning rate or more steps. Check whether "
        f"the budget was meant per {rows.unit}"
    )
    filtered = [value for _, value in second_half(finite_values(rows.metrics, "kl_filtered"))]
    if filtered and fmean(filtered) > 0.8 * rows.target:
        evidence["mean kl_filtered of the second half"] = fmean(filtered)
        cause = (
            "the controller keeps its filtered KL at the budget, but the KL measured on other samples is far below it"
        )
        remedy = (
            "use larger rollouts or batches; for PPO use --states reference, which constrains the KL on fixed states"
        )
    evidence |= rows.evidence_in_other_unit
    return [Finding("budget-not-reached", "warning", cause, remedy, evidence)]


def _has_stopped_rising(values: Sequence[float]) -> bool:
    third = len(values) // 3
    return third >= 3 and fmean(values[-third:]) < 1.1 * fmean(values[:third])


class _RewardChange(NamedTuple):
    """A reward before, a reward now, and the margin of their difference; all 0 if unknown."""

    before: float
    now: float
    margin: float

    @property
    def in_margins(self) -> float:
        """The change in units of the margin, so that rewards of different scales can be compared."""
        return (self.now - self.before) / self.margin if self.margin else 0.0


def check_reward_hacking(
    evaluations: Sequence[Row],
    *,
    proxies: Sequence[str],
    watched: Sequence[str] = (),
    budget: tuple[str, float] | None = None,
    metrics: Sequence[Row] = (),
    completions: int | None = None,
) -> list[Finding]:
    """Check that the watched rewards do not fall and that the text does not degenerate while a reward is optimised.

    Runs `check_watched_rewards`, and `check_degeneration` if there are no watched rewards.

    Args:
        evaluations: One row for each evaluation on fixed prompts; the first is of the reference.
        proxies: The names of the optimised rewards.
        watched: The names of the rewards that are logged but not optimised.
        budget: The key of the constrained KL and its budget in nats; None: no budget.
        metrics: One row for each step, whose variation gives the standard errors of the rewards.
        completions: The number of completions of a step; None: at least as many as of an evaluation.

    Returns:
        A finding named `reward-hacking`, `collapse` or `degeneration`, or nothing.

    Raises:
        InputError: The evaluations or the metrics are not a sequence of mappings, or another argument is not of the
            kind above.

    Example:
        >>> first = {"rewards/proxy": 0.5, "rewards/true": 0.5, "count": 500, "entropy": 0.6}
        >>> last = {"rewards/proxy": 0.9, "rewards/true": 0.0, "count": 500, "entropy": 1.9}
        >>> check_reward_hacking([first, last], proxies=["proxy"], watched=["true"])[0].name
        'reward-hacking'
    """
    require_rows("evaluations", evaluations)
    require_rows("metrics", metrics)
    for names, argument in ((proxies, "proxies"), (watched, "watched")):
        is_list = isinstance(names, Sequence) and not isinstance(names, str)
        if not (is_list and all(isinstance(name, str) for name in names)):
            raise InputError(f"expected {argument} to be a list of names of rewards, got {shown(names)}")
    if budget is not None:
        if not (isinstance(budget, Sequence) and len(budget) == 2 and isinstance(budget[0], str)):
            raise InputError(f"expected budget to be the key of a KL and its budget in nats, got {shown(budget)}")
        _require_budget(budget[1])
    if completions is not None and not (is_index(completions) and completions >= 1):
        raise InputError(f"expected completions to be a whole number, 1 or more, or None, got {shown(completions)}")
    if len(evaluations) < 2:
        return []
    errors = {name: _reward_std_error(metrics, evaluations, name, completions) for name in (*proxies, *watched)}
    if watched:
        return check_watched_rewards(evaluations, proxies=proxies, watched=watched, budget=budget, std_errors=errors)
    return check_degeneration(evaluations, proxies=proxies, budget=budget, std_errors=errors)


_HACKING_REMEDY = (
    "use a smaller KL budget (--budget), stop at the best value of the watched reward, and correct the optimised reward"
)


def check_watched_rewards(
    evaluations: Sequence[Row],
    *,
    proxies: Sequence[str],
    watched: Sequence[str],
    budget: tuple[str, float] | None = None,
    std_errors: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Check that no watched reward falls.

    Criterion: the last value of each watched reward is at most three standard errors below its best earlier value.
    The standard error of a reward with two values is 0.5 * max |value| / sqrt(count). A larger standard error in
    `std_errors`, or in the rows of the evaluations, takes precedence. If a reward fell further, the
    finding is `collapse` where the optimised rewards fell as well, to within one such margin, and `reward-hacking`
    otherwise. Changes of the optimised rewards are from their first to their last value.

    Args:
        evaluations: One row for each evaluation, at least two.
        proxies: The names of the optimised rewards.
        watched: The names of the watched rewards.
        budget: The key of the constrained KL and its budget in nats; None: no budget.
        std_errors: The standard error of one evaluation by the name of a reward, where it is known.

    Returns:
        `reward-hacking` (error) or `collapse` (error), or nothing.
    """
    for name in watched:
        change = _reward_change(evaluations, name, std_errors, from_best=True)
        if change.now >= change.before - change.margin or not change.margin:
            continue
        evidence = {
            **_proxy_evidence(evaluations, proxies),
            f"watched {name}": f"{change.before:.3g} at best -> {change.now:.3g}",
            **_text_changes(evaluations),
            **_kl_evidence(evaluations, budget),
        }
        if _proxy_gain(evaluations, proxies, std_errors) > change.in_margins + 1:
            cause = f"reward hacking: {name} fell, while the optimised reward did not fall"
            return [Finding("reward-hacking", "error", cause, _HACKING_REMEDY, evidence)]
        cause = f"the policy became worse: {name} fell, and the optimised reward fell too"
        remedy = "lower the learning rate, or constrain the KL (--budget)"
        return [Finding("collapse", "error", cause, remedy, evidence)]
    return []


def check_degeneration(
    evaluations: Sequence[Row],
    *,
    proxies: Sequence[str],
    budget: tuple[str, float] | None = None,
    std_errors: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Check that the text does not degenerate while the optimised reward rises.

    Criterion: where the optimised rewards rose by more than three standard errors in total, the entropy stays between
    a tenth and three times its first value, the repetition rises by at most 0.2, and the share of truncated
    completions rises by at most 0.3.

    Args:
        evaluations: One row for each evaluation, at least two.
        proxies: The names of the optimised rewards.
        budget: The key of the constrained KL and its budget in nats; None: no budget.
        std_errors: The standard error of one evaluation by the name of a reward, where it is known.

    Returns:
        `degeneration` (warning), or nothing.
    """
    changes = _text_changes(evaluations)
    if not changes or _proxy_gain(evaluations, proxies, std_errors) <= 1:
        return []
    cause = (
        f"the optimised reward rose while the text degenerated ({', '.join(sorted(changes))}): the policy may exploit "
        "an error of the reward"
    )
    evidence = {**_proxy_evidence(evaluations, proxies), **changes, **_kl_evidence(evaluations, budget)}
    return [Finding("degeneration", "warning", cause, f"read samples of the completions; {_HACKING_REMEDY}", evidence)]


def _reward_change(
    evaluations: Sequence[Row], name: str, std_errors: Mapping[str, float] | None = None, *, from_best: bool
) -> _RewardChange:
    """The change of a reward from its first value, or from its best value before the last, to its last value."""
    values = [value for _, value in finite_values(evaluations, f"rewards/{name}")]
    if len(values) < 2:
        return _RewardChange(0.0, 0.0, 0.0)
    count = min(number(row, "count") or _DEFAULT_COUNT for row in evaluations)
    before = max(values[:-1]) if from_best else values[0]
    of_two_values = 1.5 * max(map(abs, values)) / math.sqrt(count)
    logged = [error for error in logged_std_errors(evaluations, f"rewards/{name}") if error is not None]
    std_error = max([*logged, (std_errors or {}).get(name, 0.0)])
    # The best of n values exceeds their expectation by about sqrt(2 log n) standard errors.
    factor = _DIFFERENCE_IN_STD_ERRORS + math.sqrt(2 * math.log(len(values) - 1))
    return _RewardChange(before, values[-1], max(of_two_values, factor * std_error))


def _reward_std_error(metrics: Sequence[Row], evaluations: Sequence[Row], name: str, completions: int | None) -> float:
    """The standard error of a reward in one evaluation, from its variation between steps; 0 where it is unknown."""
    values = [value for _, value in finite_values(metrics, f"rewards/{name}")]
    if len(values) < _MIN_STEPS:
        return 0.0
    of_a_step = std_error_of_mean(values, [None] * len(values)) * math.sqrt(len(values))
    count = min((number(row, "count") or _DEFAULT_COUNT for row in evaluations), default=_DEFAULT_COUNT)
    return of_a_step * math.sqrt((completions or count) / count)


def _proxy_gain(
    evaluations: Sequence[Row], proxies: Sequence[str], std_errors: Mapping[str, float] | None = None
) -> float:
    """The sum of the changes of the optimised rewards, each in units of three standard errors."""
    return sum(_reward_change(evaluations, name, std_errors, from_best=False).in_margins for name in proxies)


def _proxy_evidence(evaluations: Sequence[Row], proxies: Sequence[str]) -> dict[str, str]:
    changes = {name: _reward_change(evaluations, name, from_best=False) for name in proxies}
    return {f"proxy {name}": f"{change.before:.3g} -> {change.now:.3g}" for name, change in changes.items()}


def _text_changes(evaluations: Sequence[Row]) -> dict[str, str]:
    """The text statistics that left the bounds that `check_degeneration` states."""
    changes = {}
    largest_rise = {"entropy": None, "repetition": 0.2, "truncated": 0.3}
    for key, rise in largest_rise.items():
        values = [value for _, value in finite_values(evaluations, key)]
        if len(values) < 2:
            continue
        first, last = values[0], values[-1]
        if (last - first > rise) if rise else not 0.1 * first <= last <= 3 * first:
            changes[key] = f"{first:.3g} -> {last:.3g}"
    return changes


def _kl_evidence(evaluations: Sequence[Row], budget: tuple[str, float] | None) -> dict[str, Any]:
    """The constrained KL of the last evaluation and its ratio to the budget, or another KL without a budget."""
    last = evaluations[-1]
    if budget is not None and last.get(budget[0]) is not None:
        return {"kl/budget": last[budget[0]] / budget[1], budget[0]: last[budget[0]]}
    return next(({key: last[key]} for key in kl_keys(evaluations) if last.get(key) is not None), {})
