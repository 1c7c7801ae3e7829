"""The doctor's checks on numbers: every fault planted in them is named, and sound numbers pass."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kullback.doctor.budget_and_rewards import check_budget, check_reward_hacking
from kullback.doctor.finding import Finding
from kullback.doctor.logged_kl import check_learning, check_logged_kl
from kullback.doctor.masks import check_masks, explain
from kullback.doctor.penalty_gradient import check_kl_value, check_penalty_gradient
from kullback.errors import ShapeError
from kullback.policy.penalty import KLPenalty

END, PAD = 1, 0


def names(findings: list[Finding]) -> list[str]:
    assert all(one.cause and one.remedy and one.evidence for one in findings)
    return [one.name for one in findings]


# -- masks --


def completions(lengths: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that end at those lengths (a length beyond the width: cut off), and the mask they should have."""
    ids = torch.full((len(lengths), width), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = 5
        if length <= width:
            ids[row, length - 1] = END
    return ids, torch.arange(width) < torch.tensor(lengths)[:, None]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 3))
def test_proper_masks_pass(lengths: list[int], padding: int) -> None:
    ids, mask = completions(lengths, 7)
    prompts = torch.cat([torch.zeros(len(lengths), padding), torch.ones(len(lengths), 2)], 1)
    assert check_masks(prompts, ids, mask, end=END) == []
    # An end mark that pads too is the usual set-up of models without a padding token.
    ids[~mask] = END
    assert check_masks(prompts, ids, mask.long(), end=END) == []


@given(st.lists(st.integers(2, 6), min_size=1, max_size=6))
def test_faulty_masks_are_named(lengths: list[int]) -> None:
    ids, mask = completions(lengths, 8)
    prompts = torch.ones(len(lengths), 3)
    late = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)
    early = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    assert names(check_masks(prompts, ids, late, end=END)) == ["mask-shifted"]
    assert "too late" in check_masks(prompts, ids, late, end=END)[0].cause
    [found] = check_masks(prompts, ids, early, end=END)
    assert found.name == "mask-shifted"
    assert "too early" in found.cause
    assert found.evidence["end marks left out"] == len(lengths)
    [found] = check_masks(prompts, ids, torch.ones_like(mask), end=END)
    assert found.name == "padding-counted"
    assert found.evidence["tokens beyond the end mark"] == sum(8 - length for length in lengths)


def test_other_masks() -> None:
    ids, mask = completions([3, 4, 9], 6)
    assert names(check_masks(torch.ones(3, 2), ids, mask & (ids != END) & (torch.arange(6) > 0), end=END)) == [
        "end-not-counted"
    ]
    tools = mask.clone()
    tools[:, 1] = False
    left_out = mask.clone()
    left_out[2] = False  # mask_truncated_completions
    for fine in (tools, left_out):
        assert check_masks(torch.ones(3, 2), ids, fine, end=END) == []
    right = torch.tensor([[1, 1], [1, 0], [1, 1]])
    [found] = check_masks(right, ids, mask, end=END)
    assert found.name == "padding-side"
    assert found.evidence["rows"] == 1
    assert check_masks(torch.ones(3, 2), ids, torch.ones_like(mask), end=None) == []


# -- recorded log-probabilities --


def test_an_explanation_has_to_leave_less_than_a_tenth() -> None:
    truth, mask = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[True, True, False]])
    recorded = torch.tensor([[-1.5, -2.5, -99.0]])
    near, far = truth - 0.46, truth - 0.44
    told = explain(recorded, truth, {"near": near, "far": far}, mask)
    assert (told.by, round(told.apart, 6), round(told.left, 6)) == ("near", 0.5, 0.04)
    assert explain(recorded, truth, {"far": far}, mask).by is None
    assert explain(truth, truth, {}, mask).apart == 0.0
    never = torch.full_like(truth, math.nan)
    assert explain(recorded, truth, {"nothing to compare": never}, mask).by is None
    with pytest.raises(ShapeError, match=r"shape \(1, 3\), as the completions have, got \(1, 2\)"):
        explain(recorded[:, :2], truth, {}, mask)


# -- penalties: those that KLPenalty accepts pass, the refused ones are named --

LOG_PROB = torch.linspace(-3, -0.1, 40, dtype=torch.float64).reshape(4, 10)


def penalty(**words: Any) -> Any:
    made = KLPenalty(placement="loss", horizon="token", unsafe=True, **words)

    def loss(log_prob: torch.Tensor, ref_log_prob: torch.Tensor) -> torch.Tensor:
        old = log_prob.detach() if words["sampler"] == "behaviour" else None
        return made.loss(log_prob=log_prob, ref_log_prob=ref_log_prob, old_log_prob=old)

    return loss


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"estimator": "k2", "sampler": "policy"}, None),
        ({"estimator": "k1", "sampler": "behaviour"}, None),
        ({"estimator": "k3", "sampler": "behaviour"}, None),
        ({"estimator": "k3", "sampler": "policy"}, "logged-is-not-trained"),
        ({"estimator": "k1", "sampler": "policy"}, "kl-without-gradient"),
        ({"estimator": "k2", "sampler": "behaviour"}, "kl-direction"),
    ],
)
@pytest.mark.parametrize("weight", [0.04, 1.0, 700.0])
def test_a_penalty_is_told_by_its_slope(words: dict[str, Any], name: str | None, weight: float) -> None:
    loss = penalty(**words)
    expected = [name] if name else []
    assert names(check_penalty_gradient(lambda p, q: weight * loss(p, q), LOG_PROB)) == expected
    # Averaged by sequence, each row has a weight of its own.
    rows = torch.tensor([[1.0], [0.5], [0.1], [3.0]], dtype=torch.float64)
    assert names(check_penalty_gradient(lambda p, q: (weight * rows * loss(p, q)).sum(), LOG_PROB)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signs_detachments_and_clamps(dtype: torch.dtype) -> None:
    at = LOG_PROB.to(dtype)
    k2 = penalty(estimator="k2", sampler="policy")
    assert names(check_penalty_gradient(lambda p, q: -k2(p, q), at)) == ["kl-sign"]
    assert names(check_penalty_gradient(lambda p, q: (p.detach() - q) ** 2, at)) == ["kl-without-gradient"]
    assert names(check_penalty_gradient(lambda p, q: 0 * p, at)) == ["kl-without-gradient"]
    assert names(check_penalty_gradient(lambda p, q: (p - q).exp() - 1 - (p - q), at)) == ["kl-direction"]
    assert names(check_penalty_gradient(lambda p, q: ((p - q) ** 2).clamp(max=0.5), at)) == ["kl-gradient-unknown"]
    # Only what counts is looked at.
    mask = torch.zeros(at.shape, dtype=torch.bool)
    mask[:, :6] = True
    outside = torch.where(mask, 1.0, -5.0).to(dtype)
    assert check_penalty_gradient(lambda p, q: (outside * k2(p, q)).sum(), at, mask) == []


def test_completions_of_one_token_are_judged_together() -> None:
    k2 = penalty(estimator="k2", sampler="policy")
    k3 = penalty(estimator="k3", sampler="policy")
    at = torch.full((12, 1), -1.0, dtype=torch.float64)
    assert check_penalty_gradient(k2, at) == []
    assert names(check_penalty_gradient(k3, at)) == ["logged-is-not-trained"]


# -- logged values --


def test_a_logged_value_is_told_by_what_it_equals() -> None:
    torch.manual_seed(0)
    logits, ref_logits = torch.randn(2, 4, 6, 9, dtype=torch.float64)
    p, q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    tokens = torch.distributions.Categorical(logits=p).sample()[..., None]
    ratio = (p.gather(-1, tokens) - q.gather(-1, tokens))[..., 0]
    exact, ref_exact = (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1)
    mask = torch.arange(6) < torch.tensor([6, 3, 2, 5])[:, None]
    told = {"log_ratio": ratio, "exact": exact, "ref_exact": ref_exact, "mask": mask}

    def mean(values: torch.Tensor) -> float:
        return float(values[mask].mean())

    k3 = (-ratio).exp() - 1 + ratio
    for values in (exact, ratio, ratio**2 / 2, k3):
        assert check_kl_value(mean(values), **told) == []
        assert check_kl_value(values, **told) == []
    assert names(check_kl_value(mean(-ratio), **told)) == ["kl-sign"]
    assert names(check_kl_value(-exact, **told)) == ["kl-sign"]
    assert names(check_kl_value(mean(ref_exact), **told)) == ["kl-direction"]
    assert names(check_kl_value(ratio.exp() - 1 - ratio, **told)) == ["kl-direction"]
    assert names(check_kl_value(float((exact * mask).mean()), **told)) == ["padding-counted"]
    assert names(check_kl_value(17.0, **told)) == ["logged-kl-unknown"]


# -- the rows of a run --


def rows_with(**series: list[Any]) -> list[dict[str, Any]]:
    return [
        {"step": step, **{name: values[step - 1] for name, values in series.items()}}
        for step in range(1, len(next(iter(series.values()))) + 1)
    ]


HELD = [0.0, *[0.05 + 0.004 * math.sin(i) for i in range(40)]]


def test_a_healthy_series_passes() -> None:
    lengths = [3.2] * len(HELD)
    rows = rows_with(
        kl_policy_ref_per_token=HELD,
        kl_policy_ref_per_sequence=[3.2 * kl for kl in HELD],
        completion_length=lengths,
        beta=[0.3] * len(HELD),
    )
    judged = [{"step": step, "kl_policy_ref_per_token": HELD[step]} for step in (0, 10, 20, 30, 40)]
    assert check_logged_kl(rows, judged) == check_learning(rows) == []
    assert check_budget(rows, judged, target=0.05, unit="token", price=(5e-4, 0.5)) == []


@pytest.mark.parametrize(
    ("series", "name"),
    [
        ([1e-3, *HELD[1:]], "kl-at-start"),
        ([0.0, *[-kl for kl in HELD[1:]]], "negative-kl"),
        ([*HELD[:20], None, *HELD[20:]], "kl-not-finite"),
        ([*HELD[:20], 1e-5, 1e-4, *HELD[20:]], "reference-moved"),
    ],
)
def test_a_faulty_series_is_named(series: list[Any], name: str) -> None:
    assert names(check_logged_kl(rows_with(kl_policy_ref_per_token=series), [])) == [name]


def test_the_first_row_may_be_later_than_the_first_step() -> None:
    rows = rows_with(kl=HELD)[10:]
    assert check_logged_kl(rows, []) == []
    after = rows_with(kl_policy_ref_per_step=HELD[1:])
    assert check_logged_kl(after, [], first_is_reference=False) == []


def test_k1_may_be_negative_now_and_then() -> None:
    noisy = [0.0, *[0.05 + 0.2 * math.sin(7 * i) for i in range(40)]]
    [found] = check_logged_kl(rows_with(kl=noisy), [])
    assert (found.name, found.severity) == ("negative-kl", "warning")
    assert "k1" in found.cause


def test_lengths_and_judgements_have_to_agree() -> None:
    padded = rows_with(
        kl_policy_ref_per_token=[kl / 2 for kl in HELD],
        kl_policy_ref_per_sequence=[3.2 * kl for kl in HELD],
        completion_length=[3.2] * len(HELD),
    )
    assert names(check_logged_kl(padded, [])) == ["mask-mismatch"]
    judged = [{"step": step, "kl_policy_ref_per_token": 1.6 * HELD[step]} for step in (0, 10, 20, 30, 40)]
    assert names(check_logged_kl(rows_with(kl_policy_ref_per_token=HELD), judged)) == ["logged-is-not-judged"]
    few = judged[:3]
    assert check_logged_kl(rows_with(kl_policy_ref_per_token=HELD), few) == []


def test_an_engine_far_from_the_trainer() -> None:
    key = "sampling/sampling_logp_difference/mean"
    assert names(check_logged_kl([{"step": 9, key: 0.3}], [])) == ["engine-mismatch"]
    assert check_logged_kl([{"step": 9, key: 0.01}], []) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"gradient_norm": [0.0] * 8}, "frozen"),
        ({"gradient_norm": [1.0] * 8}, "both are one model"),
        ({"gradient_norm": [0.0] * 8, "reward_std": [0.0] * 8}, "rewarded alike"),
        ({}, "both are one model"),
    ],
)
def test_nothing_trains_for_one_of_three_reasons(more: dict[str, Any], said: str) -> None:
    [found] = check_learning(rows_with(kl_policy_ref_per_token=[0.0] * 8, **more))
    assert found.name == "nothing-trains"
    assert said in found.cause
    assert check_learning(rows_with(kl_policy_ref_per_token=[*[0.0] * 7, 1e-9], **more)) == []


BOUNDS = (5e-4, 0.5)


@pytest.mark.parametrize(
    ("kls", "betas", "expected"),
    [
        ([0.05] * 40, [0.3] * 40, []),
        ([0.058] * 40, [0.3] * 40, []),
        ([0.08] * 40, [0.3] * 40, ["over-budget"]),
        ([0.051] * 40, [10.0] * 40, ["beta-at-ceiling"]),
        ([0.4] * 40, [10.0] * 40, ["beta-at-ceiling", "over-budget"]),
        ([0.01] * 40, [0.01] * 40, ["budget-not-reached"]),
        ([0.01] * 40, [0.3] * 40, ["budget-not-reached"]),
        ([0.0005 * i for i in range(40)], [0.1] * 40, []),  # on its way
        ([0.05] * 40, [1e-3 * 3.0**i for i in range(40)], ["beta-at-ceiling", "beta-runs-away"]),
        ([0.4] * 4, [0.3] * 4, []),  # too early to say
    ],
)
def test_budgets(kls: list[float], betas: list[float], expected: list[str]) -> None:
    rows = rows_with(kl_policy_ref_per_token=kls, beta=betas)
    assert names(check_budget(rows, [], target=0.05, unit="token", price=BOUNDS)) == expected


@pytest.mark.parametrize(("level", "said"), [(0.05, "--states reference"), (0.01, "larger learning rate")])
def test_a_budget_held_elsewhere_is_told_from_one_out_of_reach(level: float, said: str) -> None:
    rows = rows_with(kl_policy_ref_per_step=[0.02] * 40, kl_filtered=[level] * 40, beta=[0.3] * 40)
    [found] = check_budget(rows, [], target=0.05, unit="step", price=BOUNDS)
    assert found.name == "budget-not-reached"
    assert said in found.remedy


def test_the_judged_prompts_count_where_there_are_enough() -> None:
    rows = rows_with(kl_policy_ref_per_token=[0.05] * 40, beta=[0.3] * 40)
    judged = [{"step": step, "kl_policy_ref_per_token": 0.08} for step in range(0, 41, 8)]
    assert names(check_budget(rows, judged, target=0.05, unit="token", price=BOUNDS)) == ["over-budget"]
    assert check_budget(rows, judged[:3], target=0.05, unit="token", price=BOUNDS) == []


def judged_rows(**series: list[float]) -> list[dict[str, Any]]:
    return [{**row, "count": 128} for row in rows_with(**{key.replace("__", "/"): v for key, v in series.items()})]


@pytest.mark.parametrize(
    ("proxy", "true", "expected"),
    [
        ([0.5, 0.7, 0.9], [0.5, 0.7, 0.9], []),
        ([0.5, 0.7, 0.9], [0.5, 0.48, 0.46], []),  # within the noise
        ([0.5, 0.7, 0.9], [0.5, 0.3, 0.1], ["reward-hacking"]),
        ([0.5, 0.7, 0.9], [0.5, 0.8, 0.1], ["reward-hacking"]),  # up, then down: over-optimisation
        ([0.8, 0.7, 0.6], [0.7, 0.3, 0.0], ["reward-hacking"]),
        ([0.8, 0.5, 0.1], [0.8, 0.5, 0.1], ["collapse"]),
        ([50.0, 70.0, 90.0], [0.5, 0.3, 0.1], ["reward-hacking"]),
    ],
)
def test_rewards(proxy: list[float], true: list[float], expected: list[str]) -> None:
    rows = judged_rows(rewards__proxy=proxy, rewards__true=true)
    assert names(check_reward_hacking(rows, proxies=["proxy"], watched=["true"])) == expected


def test_without_a_watched_reward_the_text_has_to_tell() -> None:
    rising = {"rewards__proxy": [0.3, 0.9]}
    assert check_reward_hacking(judged_rows(**rising, entropy=[1.0, 0.6]), proxies=["proxy"]) == []
    for odd in ({"entropy": [1.0, 0.01]}, {"entropy": [0.5, 2.5]}, {"repetition": [0.0, 0.5]}):
        [found] = check_reward_hacking(judged_rows(**rising, **odd), proxies=["proxy"])
        assert (found.name, found.severity) == ("degeneration", "warning")
        assert next(iter(odd)) in found.cause
    assert check_reward_hacking(judged_rows(rewards__proxy=[0.9, 0.9], repetition=[0, 1.0]), proxies=["proxy"]) == []


def test_the_budget_is_in_the_evidence() -> None:
    rows = judged_rows(rewards__p=[0.2, 0.9], rewards__t=[0.9, 0.1], kl_policy_ref_per_token=[0.0, 0.05])
    [found] = check_reward_hacking(rows, proxies=["p"], watched=["t"], budget=("kl_policy_ref_per_token", 0.05))
    assert found.evidence["kl/budget"] == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"step": 1, "kl_policy_ref_per_token": None}] * 2])
def test_rows_without_numbers_break_nothing(rows: list[dict[str, Any]]) -> None:
    found = (
        check_logged_kl(rows, rows) + check_learning(rows) + check_reward_hacking(rows, proxies=["p"], watched=["t"])
    )
    found += check_budget(rows, rows, target=0.05, unit="token")
    assert names(found) in ([], ["kl-not-finite"])
