"""Checks of masks, penalties and logged numbers: every inserted fault gives its finding, valid numbers give none."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kullback.doctor.budget_and_rewards import check_budget, check_reward_hacking
from kullback.doctor.finding import Finding
from kullback.doctor.kl_value import check_kl_value
from kullback.doctor.logged_kl import check_finite_training, check_learning, check_logged_kl
from kullback.doctor.masks import check_masks
from kullback.doctor.penalty_gradient import check_penalty_gradient
from kullback.doctor.recorded_log_probs import explain
from kullback.errors import ArrayTypeError, InputError, ShapeError, SupportError
from kullback.policy.penalty import KLPenalty

END, PAD = 1, 0


def names(findings: list[Finding]) -> list[str]:
    assert all(finding.cause and finding.remedy and finding.evidence for finding in findings)
    return [finding.name for finding in findings]


# -- masks --


def completions(lengths: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of completions of the given lengths, truncated at the width, and their correct mask."""
    ids = torch.full((len(lengths), width), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = 5
        if length <= width:
            ids[row, length - 1] = END
    return ids, torch.arange(width) < torch.tensor(lengths)[:, None]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 3))
def test_correct_masks_give_no_finding(lengths: list[int], padding: int) -> None:
    ids, mask = completions(lengths, 7)
    prompts = torch.cat([torch.zeros(len(lengths), padding), torch.ones(len(lengths), 2)], 1)
    assert check_masks(prompts, ids, mask, end=END) == []
    # Models without a padding token usually pad with the end-of-sequence token.
    ids[~mask] = END
    assert check_masks(prompts, ids, mask.long(), end=END) == []


@given(st.lists(st.integers(2, 6), min_size=1, max_size=6))
def test_incorrect_masks_are_identified(lengths: list[int]) -> None:
    ids, mask = completions(lengths, 8)
    prompts = torch.ones(len(lengths), 3)
    late = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)
    early = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    assert names(check_masks(prompts, ids, late, end=END)) == ["mask-shifted"]
    assert "too late" in check_masks(prompts, ids, late, end=END)[0].cause
    [found] = check_masks(prompts, ids, early, end=END)
    assert found.name == "end-not-counted"  # no row shows whether the mask is shifted
    assert found.evidence["end-of-sequence tokens not counted"] == len(lengths)
    truncated = torch.cat([torch.full((1, 8), 5), ids])
    early = torch.cat([torch.tensor([[True] * 7 + [False]]), early])
    [found] = check_masks(torch.ones(len(early), 3), truncated, early, end=END)
    assert found.name == "mask-shifted"
    assert "too early" in found.cause
    [found] = check_masks(prompts, ids, torch.ones_like(mask), end=END)
    assert found.name == "padding-counted"
    assert found.evidence["tokens counted after the end-of-sequence token"] == sum(8 - length for length in lengths)


def test_masks_with_gaps_excluded_rows_and_right_padding() -> None:
    ids, mask = completions([3, 4, 9], 6)
    assert names(check_masks(torch.ones(3, 2), ids, mask & (ids != END) & (torch.arange(6) > 0), end=END)) == [
        "end-not-counted"
    ]
    tools = mask.clone()
    tools[:, 1] = False
    excluded = mask.clone()
    excluded[2] = False  # mask_truncated_completions
    for valid in (tools, excluded):
        assert check_masks(torch.ones(3, 2), ids, valid, end=END) == []
    right = torch.tensor([[1, 1], [1, 0], [1, 1]])
    [found] = check_masks(right, ids, mask, end=END)
    assert found.name == "padding-side"
    assert found.evidence["rows"] == 1
    assert check_masks(torch.ones(3, 2), ids, torch.ones_like(mask), end=None) == []


# -- recorded log-probabilities --


def test_an_explanation_leaves_less_than_a_tenth_of_the_difference() -> None:
    expected, mask = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[True, True, False]])
    recorded = torch.tensor([[-1.5, -2.5, -99.0]])
    near, far = expected - 0.46, expected - 0.44
    found = explain(recorded, expected, {"near": near, "far": far}, mask)
    assert (found.cause, round(found.difference, 6), round(found.remaining, 6)) == ("near", 0.5, 0.04)
    assert explain(recorded, expected, {"far": far}, mask).cause is None
    assert explain(expected, expected, {}, mask).difference == 0.0
    nothing = torch.full_like(expected, math.nan)
    assert explain(recorded, expected, {"nothing to compare": nothing}, mask).cause is None
    with pytest.raises(ShapeError, match=r"shape \(1, 3\), as the completions have, got \(1, 2\)"):
        explain(recorded[:, :2], expected, {}, mask)


# -- penalties: those that KLPenalty accepts give no finding, those that it refuses do --

LOG_PROB = torch.linspace(-3, -0.1, 40, dtype=torch.float64).reshape(4, 10)


def penalty(**options: Any) -> Any:
    kl_penalty = KLPenalty(placement="loss", horizon="token", unsafe=True, **options)

    def loss(log_prob: torch.Tensor, ref_log_prob: torch.Tensor) -> torch.Tensor:
        old = log_prob.detach() if options["sampler"] == "behaviour" else None
        return kl_penalty.loss(log_prob=log_prob, ref_log_prob=ref_log_prob, old_log_prob=old)

    return loss


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"estimator": "k2", "sampler": "policy"}, None),
        ({"estimator": "k1", "sampler": "behaviour"}, None),
        ({"estimator": "k3", "sampler": "behaviour"}, None),
        ({"estimator": "k3", "sampler": "policy"}, "logged-kl-differs-from-trained"),
        ({"estimator": "k1", "sampler": "policy"}, "kl-without-gradient"),
        ({"estimator": "k2", "sampler": "behaviour"}, "kl-direction"),
    ],
)
@pytest.mark.parametrize("weight", [0.04, 1.0, 700.0])
def test_penalties_are_identified_by_their_gradient(options: dict[str, Any], name: str | None, weight: float) -> None:
    loss = penalty(**options)
    expected = [name] if name else []
    assert names(check_penalty_gradient(lambda p, q: weight * loss(p, q), LOG_PROB)) == expected
    # A loss that is averaged by sequence has another weight in each row.
    rows = torch.tensor([[1.0], [0.5], [0.1], [3.0]], dtype=torch.float64)
    assert names(check_penalty_gradient(lambda p, q: (weight * rows * loss(p, q)).sum(), LOG_PROB)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_signs_detached_terms_and_clamps_are_identified(dtype: torch.dtype) -> None:
    at = LOG_PROB.to(dtype)
    k2 = penalty(estimator="k2", sampler="policy")
    assert names(check_penalty_gradient(lambda p, q: -k2(p, q), at)) == ["kl-sign"]
    assert names(check_penalty_gradient(lambda p, q: (p.detach() - q) ** 2, at)) == ["kl-without-gradient"]
    assert names(check_penalty_gradient(lambda p, q: 0 * p, at)) == ["kl-without-gradient"]
    assert names(check_penalty_gradient(lambda p, q: (p - q).exp() - 1 - (p - q), at)) == ["kl-direction"]
    assert names(check_penalty_gradient(lambda p, q: ((p - q) ** 2).clamp(max=0.5), at)) == ["kl-gradient-unknown"]
    # Only tokens that count enter the check.
    mask = torch.zeros(at.shape, dtype=torch.bool)
    mask[:, :6] = True
    outside = torch.where(mask, 1.0, -5.0).to(dtype)
    assert check_penalty_gradient(lambda p, q: (outside * k2(p, q)).sum(), at, mask) == []


def test_a_penalty_with_nan_or_inf_is_not_clean():
    at = torch.full((2, 8), -1.0)
    nan, inf = float("nan"), float("inf")
    for penalty in (
        lambda p, q: torch.sqrt(q - p),
        lambda p, q: (p - q) * nan,
        lambda p, q: (p - q) * inf,
        lambda p, q: torch.exp(1e3 * (p - q)),
    ):
        assert names(check_penalty_gradient(penalty, at)) == ["kl-gradient-unknown"]
    with pytest.raises(SupportError, match="finite log_prob"):
        check_penalty_gradient(lambda p, q: (p - q) ** 2 / 2, at * nan)
    for values in ([[-1.0] * 8] * 2, np.full((2, 8), -1.0)):
        with pytest.raises(ArrayTypeError, match="expected log_prob to be a tensor"):
            check_penalty_gradient(lambda p, q: (p - q) ** 2 / 2, values)
    with pytest.raises(ArrayTypeError, match=r"log_prob to be a tensor of floats, got torch\.int64"):
        check_penalty_gradient(lambda p, q: (p - q) ** 2 / 2, torch.full((2, 8), -1))
    with pytest.raises(ArrayTypeError, match="expected penalty to be a function"):
        check_penalty_gradient(3, at)  # pyright: ignore


def test_completions_of_one_token_share_one_factor() -> None:
    k2 = penalty(estimator="k2", sampler="policy")
    k3 = penalty(estimator="k3", sampler="policy")
    at = torch.full((12, 1), -1.0, dtype=torch.float64)
    assert check_penalty_gradient(k2, at) == []
    assert names(check_penalty_gradient(k3, at)) == ["logged-kl-differs-from-trained"]


# -- logged values --


def test_logged_values_are_identified() -> None:
    torch.manual_seed(0)
    logits, ref_logits = torch.randn(2, 4, 6, 9, dtype=torch.float64)
    p, q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    tokens = torch.distributions.Categorical(logits=p).sample()[..., None]
    ratio = (p.gather(-1, tokens) - q.gather(-1, tokens))[..., 0]
    exact, ref_exact = (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1)
    mask = torch.arange(6) < torch.tensor([6, 3, 2, 5])[:, None]
    measured = {"log_ratio": ratio, "exact": exact, "ref_exact": ref_exact, "mask": mask}

    def mean(values: torch.Tensor) -> float:
        return float(values[mask].mean())

    k3 = (-ratio).exp() - 1 + ratio
    for values in (exact, ratio, ratio**2 / 2, k3):
        assert check_kl_value(mean(values), **measured) == []
        assert check_kl_value(values, **measured) == []
    assert names(check_kl_value(mean(-ratio), **measured)) == ["kl-sign"]
    assert names(check_kl_value(-exact, **measured)) == ["kl-sign"]
    assert names(check_kl_value(mean(ref_exact), **measured)) == ["kl-direction"]
    assert names(check_kl_value(ratio.exp() - 1 - ratio, **measured)) == ["kl-direction"]
    assert names(check_kl_value(float((exact * mask).mean()), **measured)) == ["padding-counted"]
    assert names(check_kl_value(17.0, **measured)) == ["logged-kl-unknown"]


# -- the rows of a run --


def rows_with(**series: list[Any]) -> list[dict[str, Any]]:
    return [
        {"step": step, **{name: values[step - 1] for name, values in series.items()}}
        for step in range(1, len(next(iter(series.values()))) + 1)
    ]


CONSTRAINED_KL = [0.0, *[0.05 + 0.004 * math.sin(i) for i in range(40)]]


def test_valid_rows_give_no_finding() -> None:
    lengths = [3.2] * len(CONSTRAINED_KL)
    rows = rows_with(
        kl_policy_ref_per_token=CONSTRAINED_KL,
        kl_policy_ref_per_sequence=[3.2 * kl for kl in CONSTRAINED_KL],
        completion_length=lengths,
        beta=[0.3] * len(CONSTRAINED_KL),
    )
    evaluations = [{"step": step, "kl_policy_ref_per_token": CONSTRAINED_KL[step]} for step in (0, 10, 20, 30, 40)]
    assert check_logged_kl(rows, evaluations) == check_learning(rows) == []
    assert check_budget(rows, evaluations, target=0.05, unit="token", price=(5e-4, 0.5)) == []


@pytest.mark.parametrize(
    ("series", "name"),
    [
        ([1e-3, *CONSTRAINED_KL[1:]], "kl-at-start"),
        ([0.0, *[-kl for kl in CONSTRAINED_KL[1:]]], "negative-kl"),
        ([*CONSTRAINED_KL[:20], None, *CONSTRAINED_KL[20:]], "kl-not-finite"),
        ([*CONSTRAINED_KL[:20], 1e-5, 1e-4, *CONSTRAINED_KL[20:]], "reference-moved"),
    ],
)
def test_faulty_rows_are_identified(series: list[Any], name: str) -> None:
    assert names(check_logged_kl(rows_with(kl_policy_ref_per_token=series), [])) == [name]


def test_the_first_row_can_be_of_a_later_step() -> None:
    rows = rows_with(kl=CONSTRAINED_KL)[10:]
    assert check_logged_kl(rows, []) == []
    after = rows_with(kl_policy_ref_per_step=CONSTRAINED_KL[1:])
    assert check_logged_kl(after, [], first_is_reference=False) == []


def test_k1_is_identified_by_single_negative_values() -> None:
    noisy = [0.0, *[0.05 + 0.2 * math.sin(7 * i) for i in range(40)]]
    [found] = check_logged_kl(rows_with(kl=noisy), [])
    assert (found.name, found.severity) == ("negative-kl", "warning")
    assert "k1" in found.cause


def test_lengths_and_evaluations_must_agree_with_the_metrics() -> None:
    padded = rows_with(
        kl_policy_ref_per_token=[kl / 2 for kl in CONSTRAINED_KL],
        kl_policy_ref_per_sequence=[3.2 * kl for kl in CONSTRAINED_KL],
        completion_length=[3.2] * len(CONSTRAINED_KL),
    )
    assert names(check_logged_kl(padded, [])) == ["mask-mismatch"]
    evaluations = [
        {"step": step, "kl_policy_ref_per_token": 1.6 * CONSTRAINED_KL[step]} for step in (0, 10, 20, 30, 40)
    ]
    assert names(check_logged_kl(rows_with(kl_policy_ref_per_token=CONSTRAINED_KL), evaluations)) == [
        "logged-kl-differs-from-evaluation"
    ]
    few = evaluations[:3]
    assert check_logged_kl(rows_with(kl_policy_ref_per_token=CONSTRAINED_KL), few) == []


def test_an_engine_that_differs_from_the_trainer() -> None:
    key = "sampling/sampling_logp_difference/mean"
    assert names(check_logged_kl([{"step": 9, key: 0.3}], [])) == ["engine-mismatch"]
    assert check_logged_kl([{"step": 9, key: 0.01}], []) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"gradient_norm": [0.0] * 8}, "frozen"),
        ({"gradient_norm": [1.0] * 8}, "both are one model"),
        ({"gradient_norm": [0.0] * 8, "reward_std": [0.0] * 8}, "equal rewards"),
        ({}, "both are one model"),
    ],
)
def test_the_cause_of_no_training_is_identified(columns: dict[str, Any], message: str) -> None:
    [found] = check_learning(rows_with(kl_policy_ref_per_token=[0.0] * 8, **columns))
    assert found.name == "nothing-trains"
    assert message in found.cause
    assert check_learning(rows_with(kl_policy_ref_per_token=[*[0.0] * 7, 1e-9], **columns)) == []


BOUNDS = (5e-4, 0.5)


@pytest.mark.parametrize(
    ("kls", "betas", "expected"),
    [
        ([0.05] * 40, [0.3] * 40, []),
        ([0.058] * 40, [0.3] * 40, []),
        ([0.08] * 40, [0.3] * 40, ["over-budget"]),
        ([0.051] * 40, [10.0] * 40, ["beta-at-upper-bound"]),
        ([0.4] * 40, [10.0] * 40, ["beta-at-upper-bound", "over-budget"]),
        ([0.01] * 40, [0.01] * 40, ["budget-not-reached"]),
        ([0.01] * 40, [0.3] * 40, ["budget-not-reached"]),
        ([0.0005 * i for i in range(40)], [0.1] * 40, []),  # still rising
        ([0.05] * 40, [1e-3 * 3.0**i for i in range(40)], ["beta-at-upper-bound", "beta-diverges"]),
        ([0.4] * 4, [0.3] * 4, []),  # too few steps
    ],
)
def test_budgets(kls: list[float], betas: list[float], expected: list[str]) -> None:
    rows = rows_with(kl_policy_ref_per_token=kls, beta=betas)
    assert names(check_budget(rows, [], target=0.05, unit="token", price=BOUNDS)) == expected


def test_an_unknown_unit_of_a_budget_is_refused() -> None:
    with pytest.raises(InputError, match="'step' or 'image', got 'tokens'"):
        check_budget([], [], target=0.05, unit="tokens")


FRAME = pd.DataFrame({"step": [1, 2], "kl_policy_ref_per_token": [0.0, 0.01]})


@pytest.mark.parametrize("rows", [FRAME, {"step": 1}, "metrics.jsonl", 3, None, [FRAME], [1, 2]])
@pytest.mark.parametrize(
    "check",
    [
        check_finite_training,
        check_learning,
        lambda rows: check_logged_kl(rows, []),
        lambda rows: check_logged_kl([], rows),
        lambda rows: check_budget(rows, [], target=0.05, unit="token"),
        lambda rows: check_budget([], rows, target=0.05, unit="token"),
        lambda rows: check_reward_hacking(rows, proxies=["reward"]),
        lambda rows: check_reward_hacking([], proxies=["reward"], metrics=rows),
    ],
)
def test_what_is_not_a_list_of_rows_is_refused(check: Callable[[Any], Any], rows: Any) -> None:
    with pytest.raises(InputError, match=r"expected (metrics|evaluations)(\[0\])? to be .*; pass \[json\.loads"):
        check(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": -1}, "budget that is a finite number of nats above 0, got -1"),
        ({"target": np.nan}, "got nan"),
        ({"target": "0.05"}, "got '0.05'"),
        ({"unit": ["token"]}, "expected unit to be"),
        ({"price": 3}, "lower and the upper bound of beta"),
        ({"price": (1.0, 2.0, 3.0)}, "lower and the upper bound of beta"),
        ({"price": (2.0, 1.0)}, "in ascending order"),
        ({"price": (-1.0, 1.0)}, "0 or more"),
        ({"name": 3}, "expected name to be the key of a KL"),
    ],
)
def test_arguments_of_a_budget_are_validated(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_budget([], [], **{"target": 0.05, "unit": "token"} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"proxies": "reward"}, "expected proxies to be a list of names of rewards, got 'reward'"),
        ({"watched": [3]}, "expected watched to be a list of names"),
        ({"watched": None}, "expected watched to be a list of names"),
        ({"budget": 0.05}, "the key of a KL and its budget in nats, got 0.05"),
        ({"budget": ("kl", -1)}, "number of nats above 0"),
        ({"completions": 0}, "expected completions to be a whole number, 1 or more"),
    ],
)
def test_arguments_about_rewards_are_validated(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_reward_hacking([], **{"proxies": ["reward"]} | arguments)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.array])
def test_numbers_of_numpy_are_numbers(kind: Callable[[float], Any]) -> None:
    rows = rows_with(kl_policy_ref_per_token=[kind(0.4)] * 40, beta=[kind(0.3)] * 40)
    assert names(check_budget(rows, [], target=0.05, unit="token", price=BOUNDS)) == ["over-budget"]


@pytest.mark.parametrize(("filtered", "message"), [(0.05, "--states reference"), (0.01, "larger learning rate")])
def test_a_budget_that_holds_on_other_states_is_identified(filtered: float, message: str) -> None:
    rows = rows_with(kl_policy_ref_per_step=[0.02] * 40, kl_filtered=[filtered] * 40, beta=[0.3] * 40)
    [found] = check_budget(rows, [], target=0.05, unit="step", price=BOUNDS)
    assert found.name == "budget-not-reached"
    assert message in found.remedy


def test_evaluations_take_precedence_if_there_are_enough() -> None:
    rows = rows_with(kl_policy_ref_per_token=[0.05] * 40, beta=[0.3] * 40)
    evaluations = [{"step": step, "kl_policy_ref_per_token": 0.08} for step in range(0, 41, 8)]
    assert names(check_budget(rows, evaluations, target=0.05, unit="token", price=BOUNDS)) == ["over-budget"]
    assert check_budget(rows, evaluations[:3], target=0.05, unit="token", price=BOUNDS) == []


def evaluation_rows(**series: list[float]) -> list[dict[str, Any]]:
    return [{**row, "count": 128} for row in rows_with(**{key.replace("__", "/"): v for key, v in series.items()})]


@pytest.mark.parametrize(
    ("proxy", "true", "expected"),
    [
        ([0.5, 0.7, 0.9], [0.5, 0.7, 0.9], []),
        ([0.5, 0.7, 0.9], [0.5, 0.48, 0.46], []),  # within the margin of error
        ([0.5, 0.7, 0.9], [0.5, 0.3, 0.1], ["reward-hacking"]),
        ([0.5, 0.7, 0.9], [0.5, 0.8, 0.1], ["reward-hacking"]),  # up, then down: over-optimisation
        ([0.8, 0.7, 0.6], [0.7, 0.3, 0.0], ["reward-hacking"]),
        ([0.8, 0.5, 0.1], [0.8, 0.5, 0.1], ["collapse"]),
        ([50.0, 70.0, 90.0], [0.5, 0.3, 0.1], ["reward-hacking"]),
    ],
)
def test_falling_watched_rewards_are_identified(proxy: list[float], true: list[float], expected: list[str]) -> None:
    rows = evaluation_rows(rewards__proxy=proxy, rewards__true=true)
    assert names(check_reward_hacking(rows, proxies=["proxy"], watched=["true"])) == expected


def test_without_a_watched_reward_text_statistics_are_checked() -> None:
    rising = {"rewards__proxy": [0.3, 0.9]}
    assert check_reward_hacking(evaluation_rows(**rising, entropy=[1.0, 0.6]), proxies=["proxy"]) == []
    for odd in ({"entropy": [1.0, 0.01]}, {"entropy": [0.5, 2.5]}, {"repetition": [0.0, 0.5]}):
        [found] = check_reward_hacking(evaluation_rows(**rising, **odd), proxies=["proxy"])
        assert (found.name, found.severity) == ("degeneration", "warning")
        assert next(iter(odd)) in found.cause
    assert (
        check_reward_hacking(evaluation_rows(rewards__proxy=[0.9, 0.9], repetition=[0, 1.0]), proxies=["proxy"]) == []
    )


def test_the_evidence_has_the_ratio_of_kl_and_budget() -> None:
    rows = evaluation_rows(rewards__p=[0.2, 0.9], rewards__t=[0.9, 0.1], kl_policy_ref_per_token=[0.0, 0.05])
    [found] = check_reward_hacking(rows, proxies=["p"], watched=["t"], budget=("kl_policy_ref_per_token", 0.05))
    assert found.evidence["kl/budget"] == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"step": 1, "kl_policy_ref_per_token": None}] * 2])
def test_rows_without_numbers_are_ignored(rows: list[dict[str, Any]]) -> None:
    found = (
        check_logged_kl(rows, rows) + check_learning(rows) + check_reward_hacking(rows, proxies=["p"], watched=["t"])
    )
    found += check_budget(rows, rows, target=0.05, unit="token")
    assert names(found) in ([], ["kl-not-finite"])
