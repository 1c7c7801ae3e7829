"""What a run's numbers say of its budget and its rewards: rows as `docs/metrics.md` explains them in, findings out."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from kullback.doctor.finding import Finding
from kullback.doctor.logged_kl import Row, kl_names, late_half, series

__all__ = ["check_budget", "check_reward_hacking"]

_ENOUGH = 5  # steps before a run is judged as a whole


def check_budget(
    metrics: Sequence[Row],
    evaluations: Sequence[Row],
    *,
    target: float,
    unit: str,
    price: tuple[float, float] = (0.0, math.inf),
    name: str | None = None,
) -> list[Finding]:
    """Whether the budget is held, whether it can be, and whether beta lies at a bound.

    Args:
        metrics: A row for each step.
        evaluations: A row for each judgement; the last half of them is believed, or of the steps where there are few.
        target: Nats per unit.
        unit: "token", "sequence" or "step".
        price: The bounds of beta * target.
        name: The key of the KL that is held; None: KL(policy || reference) in that unit.

    Example:
        >>> rows = [{"step": i, "kl_policy_ref_per_token": 0.4, "beta": 0.1} for i in range(40)]
        >>> [one.name for one in check_budget(rows, [], target=0.05, unit="token")]
        ['over-budget']
    """
    name = name or f"kl_policy_ref_per_{unit}"
    judged, seen = ([value for _, value in late_half(series(rows, name))] for rows in (evaluations, metrics))
    values = judged if len(judged) >= 3 else seen
    if len(seen) < _ENOUGH or not values:
        return []
    kl = fmean(values)
    betas = [value for _, value in series(metrics, "beta")]
    late = [beta * target for beta in betas[len(betas) // 2 :]]
    evidence: dict[str, Any] = {f"mean {name} of the last half": kl, "budget": target, "kl/budget": kl / target}
    if late:
        evidence["last beta"] = betas[-1]
    found: list[Finding] = []
    at_ceiling = sum(value >= price[1] * (1 - 1e-9) for value in late) / max(1, len(late))
    at_floor = bool(late) and late[-1] <= price[0] * (1 + 1e-9)
    if at_ceiling > 0.1:
        said = {"beta's ceiling": price[1] / target, "share of the last half at it": at_ceiling}
        cause = "beta lies at its upper bound: the price of a nat no longer moves the policy, small steps alone hold it"
        remedy = "lower the learning rate, or raise the budget; raise price_max only where rewards are large"
        found.append(Finding("beta-at-ceiling", "warning", cause, remedy, {**evidence, **said}))
    if betas and betas[-1] > 1e4 * max(betas[0], 1e-12):
        cause = "beta runs away: the controller raises it without bound, and the KL does not follow"
        remedy = "bound it, and look whether the penalty's gradient is the measured KL's; KLBudget does both"
        found.append(Finding("beta-runs-away", "error", cause, remedy, {**evidence, "first beta": betas[0]}))
    if kl > 1.2 * target:
        cause = (
            "the KL stays above its budget: steps are too large to hold it, or the budget is below what a step moves"
        )
        if not late:
            cause = "the KL is above its budget, and no beta is logged: nothing holds it"
        remedy = "lower the learning rate, enlarge the batch, or raise the budget"
        found.append(Finding("over-budget", "error", cause, remedy, {**evidence, **_in_other_unit(metrics, unit)}))
    # Still on its way there is no fault: only a floor price or a KL at rest says that it will not arrive.
    elif kl < 0.5 * target and (at_floor or _at_rest(values)):
        cause = "the budget is out of reach: the policy stays far below it with beta at its floor or the KL at rest"
        remedy = (
            "nothing, if the reward is as high as it can be; else a larger learning rate or more steps. See whether "
            f"the budget was meant per {unit}"
        )
        levels = [value for _, value in late_half(series(metrics, "kl_filtered"))]
        if levels and fmean(levels) > 0.8 * target:
            evidence["mean kl_filtered of the last half"] = fmean(levels)
            cause = "the budget is held where the controller looks, and what the policy comes to next shows far less"
            remedy = (
                "larger rollouts or batches; in PPO --states reference, which holds it at states that stay the same"
            )
        found.append(
            Finding("budget-not-reached", "warning", cause, remedy, {**evidence, **_in_other_unit(metrics, unit)})
        )
    return found


def check_reward_hacking(
    evaluations: Sequence[Row],
    *,
    proxies: Sequence[str],
    watched: Sequence[str] = (),
    budget: tuple[str, float] | None = None,
) -> list[Finding]:
    """Whether the optimised reward is being cheated: it holds while a watched one falls, or the text degenerates.

    A fall counts beyond three standard errors of a reward that takes two values, 3 * 0.5 * scale / sqrt(count).

    Args:
        evaluations: A row for each judgement on fixed prompts, the first of them the reference.
        proxies: The optimised rewards' names.
        watched: The rewards that are only watched: what is really wanted.
        budget: The key of the KL that is held, and what to; None: nothing is held.

    Example:
        >>> then = {"rewards/proxy": 0.5, "rewards/true": 0.5, "count": 500, "entropy": 0.6}
        >>> now = {"rewards/proxy": 0.9, "rewards/true": 0.0, "count": 500, "entropy": 1.9}
        >>> check_reward_hacking([then, now], proxies=["proxy"], watched=["true"])[0].name
        'reward-hacking'
    """
    if len(evaluations) < 2:
        return []
    last = evaluations[-1]
    count = min(row.get("count") or 128 for row in evaluations)
    gain, evidence = 0.0, {}
    for name in proxies:
        then, now, unsure = _change(evaluations, f"rewards/{name}", count, best=False)
        gain += (now - then) / unsure if unsure else 0.0
        evidence |= {f"proxy {name}": f"{then:.3g} -> {now:.3g}"}
    odd = _oddities(evaluations)
    kl = next(((name, last[name]) for name in kl_names(evaluations) if last.get(name) is not None), None)
    if budget is not None and last.get(budget[0]) is not None:
        kl = budget[0], last[budget[0]]
        odd["kl/budget"] = last[budget[0]] / budget[1]
    if kl is not None:
        odd[kl[0]] = kl[1]
    remedy = "hold the KL to a smaller budget (--budget), stop at the best watched reward, and mend the optimised one"
    for name in watched:
        then, now, unsure = _change(evaluations, f"rewards/{name}", count, best=True)
        if now >= then - unsure or not unsure:
            continue
        said = {**evidence, f"watched {name}": f"{then:.3g} at best -> {now:.3g}", **odd}
        # In units of their errors, so that rewards of different sizes compare.
        if gain > (now - then) / unsure + 1:
            cause = f"reward hacking: {name} fell, and the optimised reward did not fall alike"
            return [Finding("reward-hacking", "error", cause, remedy, said)]
        cause = f"the policy got worse: {name} fell, and the optimised reward with it"
        return [Finding("collapse", "error", cause, "lower the learning rate, or hold the KL (--budget)", said)]
    strange = {key for key in odd if key in ("entropy", "repetition", "truncated")}
    if gain > 1 and strange and not watched:
        cause = (
            f"the optimised reward rose while the text degenerated ({', '.join(sorted(strange))}): it may be cheated"
        )
        return [Finding("degeneration", "warning", cause, f"read the samples; {remedy}", {**evidence, **odd})]
    return []


def _at_rest(values: Sequence[float]) -> bool:
    third = len(values) // 3
    return third >= 3 and fmean(values[-third:]) < 1.1 * fmean(values[:third])


def _in_other_unit(metrics: Sequence[Row], unit: str) -> dict[str, float]:
    other = {"token": "sequence", "sequence": "token"}.get(unit)
    values = [value for _, value in late_half(series(metrics, f"kl_policy_ref_per_{other}"))]
    return {f"the same per {other}": fmean(values)} if values else {}


def _change(evaluations: Sequence[Row], key: str, count: int, *, best: bool) -> tuple[float, float, float]:
    """What it was (at first, or at best), what it is, and three standard errors."""
    values = [value for _, value in series(evaluations, key)]
    if len(values) < 2:
        return 0.0, 0.0, 0.0
    before: Callable[..., float] = max if best else (lambda those: those[0])
    return before(values[:-1]), values[-1], 1.5 * max(map(abs, values)) / math.sqrt(count)


def _oddities(evaluations: Sequence[Row]) -> dict[str, Any]:
    odd = {}
    bounds = {"entropy": None, "repetition": 0.2, "truncated": 0.3}
    for key, rise in bounds.items():
        values = [value for _, value in series(evaluations, key)]
        if len(values) < 2:
            continue
        then, now = values[0], values[-1]
        if (now - then > rise) if rise else not 0.1 * then <= now <= 3 * then:
            odd[key] = f"{then:.3g} -> {now:.3g}"
    return odd
