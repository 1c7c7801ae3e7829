"""The penalty's gradients, each against the truth by enumeration; its values; its refusals; its extremes."""

import math
import re
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.errors import KullbackError, PenaltyError, ShapeError
from kullback.policy.penalty import KLPenalty
from kullback.tokens import token_kl

from ..oracles.enumeration import Language, weights

DIRECTIONS, ESTIMATORS, PLACEMENTS = ("reverse", "forward"), ("exact", "k1", "k2", "k3"), ("loss", "reward")
HORIZONS, SAMPLERS = ("token", "sequence"), ("policy", "behaviour")


DOCUMENT = Path(__file__).parents[2] / "docs" / "penalty.md"


class Kind(NamedTuple):
    direction: str
    estimator: str
    placement: str
    horizon: str
    sampler: str

    def __str__(self) -> str:
        return "-".join(self)


KINDS = [Kind(*choice) for choice in product(DIRECTIONS, ESTIMATORS, PLACEMENTS, HORIZONS, SAMPLERS)]


def is_right(kind: Kind) -> bool:
    """The table of docs/penalty.md, written a second time."""
    if kind.direction == "forward":
        return kind.placement == "loss" and kind.estimator in ("exact", "k3")
    if kind.placement == "reward":
        return kind.estimator in ("exact", "k1")
    if kind.horizon == "sequence":
        return False
    return kind.estimator in {"policy": ("exact", "k2"), "behaviour": ("exact", "k1", "k3")}[kind.sampler]


def rows_of(heading: str) -> list[Kind]:
    """The table under a heading of docs/penalty.md, each "any" written out."""
    text = DOCUMENT.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:6]] for line in text.splitlines() if line.startswith("|")][2:]
    choices = (DIRECTIONS, ESTIMATORS, PLACEMENTS, HORIZONS, SAMPLERS)
    return [
        Kind(*kind)
        for row in rows
        for kind in product(*(every if cell == "any" else [cell] for cell, every in zip(row, choices, strict=True)))
    ]


RIGHT, WRONG = [kind for kind in KINDS if is_right(kind)], [kind for kind in KINDS if not is_right(kind)]


class World:
    """A policy that is differentiated, its reference, and who samples."""

    def __init__(self, kind: Kind, tools: bool, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        self.kind, self.language = kind, Language(tools)
        self.policy = weights(3 * seed).requires_grad_()
        self.reference = weights(3 * seed + 1)
        self.behaviour = weights(3 * seed + 2) if kind.sampler == "behaviour" else self.policy.detach()
        self.seen = self.language.probability(self.behaviour).detach()
        language = self.language
        self.batch = {
            "log_prob": language.log_prob(self.policy).to(dtype),
            "ref_log_prob": language.log_prob(self.reference).to(dtype),
            "logits": language.logits(self.policy).to(dtype),
            "ref_logits": language.logits(self.reference).to(dtype),
            "mask": language.mask,
        }
        if kind.sampler == "behaviour":
            self.batch["old_log_prob"] = language.log_prob(self.behaviour).to(dtype)

    def truth(self, kind: Kind | None = None) -> torch.Tensor:
        kind = kind or self.kind
        p, q = (self.policy, self.reference) if kind.direction == "reverse" else (self.reference, self.policy)
        if kind.horizon == "sequence":
            return self.language.kl_sequence(p, q)
        return self.language.kl_token(p, q, self.behaviour)

    def gradient(self, of: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(of, self.policy, retain_graph=True)[0]

    def mean(self, at_tokens: torch.Tensor) -> torch.Tensor:
        return (self.seen * at_tokens.sum(-1)).sum()


def test_the_document_says_of_each_combination_once_what_becomes_of_it() -> None:
    assert sorted(rows_of("What is accepted")) == sorted(RIGHT)
    assert sorted(rows_of("What is refused")) == sorted(WRONG)


@pytest.mark.parametrize("tools", [False, True], ids=["plain", "tools"])
@pytest.mark.parametrize("kind", RIGHT, ids=str)
def test_the_gradient_is_that_of_the_stated_kl(kind: Kind, tools: bool) -> None:
    for seed in range(3):
        world = World(kind, tools, seed)
        loss = KLPenalty(*kind).loss(**world.batch)
        truth = world.gradient(world.truth())
        torch.testing.assert_close(world.gradient(world.mean(loss)), truth, rtol=0, atol=1e-12)
        assert truth.abs().max() > 0.05


@pytest.mark.parametrize("tools", [False, True], ids=["plain", "tools"])
@pytest.mark.parametrize("kind", [kind for kind in RIGHT if kind.placement == "reward"], ids=str)
def test_subtracted_from_returns_it_has_the_same_gradient(kind: Kind, tools: bool) -> None:
    world = World(kind, tools)
    to_go = KLPenalty(*kind).to_go(**world.batch)
    assert not to_go.requires_grad
    assert (to_go[~world.language.mask] == 0).all()
    score = world.mean(torch.where(world.language.mask, to_go * world.batch["log_prob"], 0.0))
    torch.testing.assert_close(world.gradient(score), world.gradient(world.truth()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", WRONG, ids=str)
def test_what_is_refused_has_another_gradient(kind: Kind) -> None:
    with pytest.raises(PenaltyError, match=r"unsafe=True"):
        KLPenalty(*kind)
    world = World(kind, tools=True)
    penalty = KLPenalty(*kind, unsafe=True)
    truth = world.gradient(world.truth())
    wrong = world.gradient(world.mean(penalty.loss(**world.batch)))
    assert (wrong - truth).norm() > 0.1 * truth.norm()
    if kind.placement == "reward":
        score = world.mean(
            torch.where(world.language.mask, penalty.to_go(**world.batch) * world.batch["log_prob"], 0.0)
        )
        torch.testing.assert_close(world.gradient(score), wrong, rtol=0, atol=1e-12)


def other(kind: Kind, **changes: str) -> Kind:
    return kind._replace(**changes)


PLAIN = Kind("reverse", "k3", "loss", "token", "policy")
LEADS = [
    (other(PLAIN, estimator="k1"), None),
    (PLAIN, other(PLAIN, direction="forward")),
    (other(PLAIN, estimator="k2", direction="forward"), other(PLAIN)),
    (other(PLAIN, horizon="sequence", estimator="exact"), PLAIN),
    (other(PLAIN, horizon="sequence", estimator="k2"), PLAIN),
    (other(PLAIN, horizon="sequence", estimator="k3", sampler="behaviour"), other(PLAIN, sampler="behaviour")),
    (other(PLAIN, direction="forward", estimator="k1"), None),
    (other(PLAIN, direction="forward", estimator="k1", horizon="sequence"), None),
    (other(PLAIN, direction="forward", estimator="k1", sampler="behaviour"), other(PLAIN, sampler="behaviour")),
]


@pytest.mark.parametrize(("kind", "truly"), LEADS, ids=str)
def test_whose_gradient_it_has_instead(kind: Kind, truly: Kind | None) -> None:
    world = World(kind, tools=True)
    wrong = world.gradient(world.mean(KLPenalty(*kind, unsafe=True).loss(**world.batch)))
    expected = torch.zeros_like(wrong) if truly is None else world.gradient(world.truth(truly))
    torch.testing.assert_close(wrong, expected, rtol=0, atol=1e-12)


def test_k3_in_the_reward_has_the_difference_of_both_directions() -> None:
    world = World(Kind("reverse", "k3", "reward", "token", "policy"), tools=True)
    wrong = world.gradient(world.mean(KLPenalty(*world.kind, unsafe=True).loss(**world.batch)))
    both = [world.gradient(world.truth(world.kind._replace(direction=direction))) for direction in DIRECTIONS]
    torch.testing.assert_close(wrong, both[0] - both[1], rtol=0, atol=1e-12)


REMEDY = re.compile(rf"({'|'.join(Kind._fields)})='(\w+)'((?: or '\w+')*)")


@pytest.mark.parametrize("kind", WRONG, ids=str)
def test_the_message_names_the_right_ones(kind: Kind) -> None:
    with pytest.raises(PenaltyError) as caught:
        KLPenalty(*kind)
    assert isinstance(caught.value, KullbackError)
    assert isinstance(caught.value, ValueError)
    advice = str(caught.value).split(": take ")[1]
    named = []
    for part in advice.split("; or "):
        changes = [
            [(name, word) for word in [first, *re.findall(r"\w+(?=')", more)]]
            for name, first, more in REMEDY.findall(part)
        ]
        named += [kind._replace(**dict(choice)) for choice in product(*changes)]
    assert kind not in named
    assert all(is_right(one) for one in named)
    # The same KL on the same samples can always be had, and all ways to have it are named.
    same = [one for one in RIGHT if (one.direction, *one[3:]) == (kind.direction, *kind[3:])]
    near = [one for one in same if one.estimator == kind.estimator or one.placement == kind.placement]
    assert set(near or same) <= set(named)


def test_with_its_own_ratio_k3_is_right_on_the_policys_own_samples() -> None:
    world = World(PLAIN, tools=True)
    batch = world.batch | {"old_log_prob": world.batch["log_prob"].detach()}
    loss = KLPenalty(estimator="k3", sampler="behaviour").loss(**batch)
    torch.testing.assert_close(world.gradient(world.mean(loss)), world.gradient(world.truth()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in RIGHT if kind.estimator != "k2"], ids=str)
def test_the_value_is_the_stated_kl(kind: Kind) -> None:
    world, penalty, total = World(kind, tools=True), KLPenalty(*kind), 0.0
    for row in range(64):
        batch = {name: values[row : row + 1] for name, values in world.batch.items()}
        estimate = penalty.value(**batch, aggregate="sequence_sum")
        assert math.isnan(estimate.std_error)
        assert estimate.unit == "nats per sequence"
        total += world.seen[row].item() * estimate.value
    assert total == pytest.approx(world.truth().item(), rel=1e-12)
    assert total == pytest.approx(world.mean(penalty.loss(**world.batch)).item(), rel=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_k2s_value_is_right_to_second_order(direction: str) -> None:
    language, errors = Language(tools=True), []
    for scale in (1e-2, 1e-3):
        policy = weights(0)
        reference = policy + scale * weights(1)
        batch = {"log_prob": language.log_prob(policy), "ref_log_prob": language.log_prob(reference)}
        penalty = KLPenalty(direction, "k2", unsafe=True)
        seen = (language.probability(policy) * penalty.loss(**batch, mask=language.mask).sum(-1)).sum()
        pair = (policy, reference) if direction == "reverse" else (reference, policy)
        truth = language.kl_token(*pair, policy)
        errors.append(abs(seen / truth - 1).item())
    assert errors[0] < 0.05
    assert errors[1] < 0.15 * errors[0]


def test_an_estimate_is_within_its_error_of_the_truth() -> None:
    kind = Kind("reverse", "k3", "loss", "token", "behaviour")
    world = World(kind, tools=True)
    drawn = torch.multinomial(world.seen, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    batch = {name: values[drawn] for name, values in world.batch.items()}
    summed = KLPenalty(*kind).value(**batch, aggregate="sequence_sum")
    assert abs(summed.value - world.truth().item()) < 4 * summed.std_error
    assert summed.std_error < 0.05 * summed.value
    lengths = world.language.mask.double().sum(-1)
    mean = KLPenalty(*kind).value(**batch, aggregate="token_mean")
    assert abs(mean.value - world.truth().item() / (world.seen @ lengths).item()) < 4 * mean.std_error
    each = KLPenalty(*kind).value(**batch, aggregate="sequence_mean")
    ratios = KLPenalty(*kind).loss(**world.batch).detach().sum(-1) / lengths
    assert abs(each.value - (world.seen @ ratios).item()) < 4 * each.std_error
    # Two completions of one prompt that are the same one are one draw.
    twice = {name: values.repeat(2, *[1] * (values.ndim - 1)) for name, values in batch.items()}
    together = KLPenalty(*kind).value(**twice, aggregate="sequence_sum", prompts=torch.arange(20_000).repeat(2))
    assert together.std_error == pytest.approx(summed.std_error, rel=1e-6)
    assert together.count == 20_000


# -- what only the call knows --


def test_a_ratio_or_logits_that_are_missing_are_asked_for() -> None:
    lone = {"log_prob": torch.full((2, 3), -1.0), "ref_log_prob": torch.full((2, 3), -1.5)}
    for estimator in ("k1", "k3"):
        with pytest.raises(PenaltyError, match="pass old_log_prob"):
            KLPenalty(estimator=estimator, sampler="behaviour").loss(**lone)
        KLPenalty(estimator=estimator, sampler="behaviour", unsafe=True).loss(**lone)
    for call in ("loss", "value", "statistics"):
        with pytest.raises(PenaltyError, match="logits and ref_logits"):
            getattr(KLPenalty(), call)(**lone)
    with pytest.raises(PenaltyError, match="count twice"):
        KLPenalty(estimator="k2").to_go(**lone)
    with pytest.raises(TypeError, match="unexpected keyword"):
        KLPenalty(estimator="k1", placement="reward").to_go(**lone, advantages=1)


def test_samples_of_another_policy_are_not_taken_for_its_own() -> None:
    log_prob = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    stale = log_prob + torch.tensor([[0.0, 0.0], [0.25, 0.0]])
    ref, mask = log_prob - 0.5, torch.tensor([[1, 1], [0, 1]])
    penalty = KLPenalty(estimator="k2")
    with pytest.raises(PenaltyError, match=r"old_log_prob\[1, 0\] is -2\.75 where log_prob is -3\.0.*'behaviour'"):
        penalty.loss(log_prob=log_prob, ref_log_prob=ref, old_log_prob=stale)
    fresh = penalty.loss(log_prob=log_prob, ref_log_prob=ref, mask=mask)
    for old in (stale, log_prob + 1e-4):  # the one that differs is masked; rounding is no other policy
        torch.testing.assert_close(
            penalty.loss(log_prob=log_prob, ref_log_prob=ref, old_log_prob=old, mask=mask), fresh, rtol=0, atol=0
        )
    # The exact KL at visited prefixes needs no ratio, whoever visited them.
    logits = torch.zeros(2, 2, 3)
    given = {"log_prob": log_prob, "ref_log_prob": ref, "logits": logits, "ref_logits": logits + torch.arange(3)}
    own, others = KLPenalty(), KLPenalty(sampler="behaviour")
    assert torch.equal(own.loss(**given, old_log_prob=stale), others.loss(**given))


def test_off_policy_without_the_ratio_has_another_gradient() -> None:
    world = World(Kind("reverse", "k1", "reward", "sequence", "behaviour"), tools=True)
    penalty, truth = KLPenalty(*world.kind, unsafe=True), world.gradient(world.truth())
    weighted = world.gradient(world.mean(penalty.loss(**world.batch)))
    torch.testing.assert_close(weighted, truth, rtol=0, atol=1e-12)
    del world.batch["old_log_prob"]
    assert (world.gradient(world.mean(penalty.loss(**world.batch))) - truth).norm() > 0.1 * truth.norm()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"direction": "backward"}, "expected direction to be 'reverse' or 'forward', got 'backward'"),
        ({"estimator": "k4"}, "'k3', got 'k4'"),
        ({"placement": "both"}, "got 'both'"),
        ({"horizon": "word"}, "got 'word'"),
        ({"sampler": None}, "got None"),
        ({"bound": 0.0}, "from 1 to 40.*got 0.0"),
        ({"bound": math.nan}, "got nan"),
    ],
)
def test_nonsense_is_refused(arguments: dict, said: str) -> None:
    with pytest.raises(PenaltyError, match=said):
        KLPenalty(**arguments)


@pytest.mark.parametrize("name", ["ref_log_prob", "old_log_prob", "mask", "logits", "ref_logits"])
def test_shapes_must_fit(name: str) -> None:
    batch = {key: torch.zeros(2, 3) for key in ("log_prob", "ref_log_prob", "old_log_prob", "mask")}
    batch |= {key: torch.zeros(2, 3, 5) for key in ("logits", "ref_logits")}
    KLPenalty().loss(**batch)
    with pytest.raises(ShapeError, match=r"\(2, 3"):
        KLPenalty().loss(**batch | {name: batch[name][:, :2]})
    with pytest.raises(ShapeError, match="batch, time"):
        KLPenalty(estimator="k2").loss(log_prob=torch.zeros(3), ref_log_prob=torch.zeros(3))
    with pytest.raises(ShapeError, match="at least one token"):
        KLPenalty().value(**batch | {"mask": torch.zeros(2, 3)})
    with pytest.raises(PenaltyError, match="of token_mean, sequence_mean"):
        KLPenalty().value(**batch, aggregate="mean")


# -- numbers --


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_log_ratios_of_ten_thousand_keep_a_finite_live_gradient(kind: Kind, dtype: torch.dtype) -> None:
    shifts = torch.tensor([[-1e4, 0.5, 1e4], [1e4, 1e4, 0.5], [0.25, -1e4, -1e4]], dtype=torch.float64)
    log_prob = torch.full((3, 3), -2.0, dtype=dtype).requires_grad_()
    logits = torch.zeros(3, 3, 4, dtype=dtype)
    logits[..., 0] = shifts
    logits.requires_grad_()
    for ref_shift, old_shift in ((shifts, 0.5 * shifts), (0.3 * shifts, shifts), (-shifts, shifts), (shifts, -shifts)):
        ref, old = ((log_prob.detach().double() - shift).to(dtype) for shift in (ref_shift, old_shift))
        batch = {"log_prob": log_prob, "ref_log_prob": ref, "logits": logits, "ref_logits": torch.zeros_like(logits)}
        if kind.sampler == "behaviour":
            batch["old_log_prob"] = old
        penalty = KLPenalty(*kind, unsafe=True)
        loss = penalty.loss(**batch)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert loss.isfinite().all()
        assert penalty.to_go(**batch).isfinite().all()
        for gradient in torch.autograd.grad(loss.sum(), (log_prob, logits), allow_unused=True):
            # A derivative near e^20 is more than float16 can hold, but autograd hands it over in that.
            assert gradient is None or dtype == torch.float16 or gradient.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "log_ratio", "expected"),
    [
        (Kind("reverse", "k2", "loss", "token", "policy"), -1e4, -1e4),
        (Kind("reverse", "k2", "loss", "token", "policy"), 1e4, 1e4),
        (Kind("reverse", "k3", "loss", "token", "behaviour"), -1e4, -1e4),
        (Kind("reverse", "k3", "loss", "token", "behaviour"), 1e4, 1e4),
        (Kind("forward", "k3", "loss", "token", "policy"), -1e4, 1 - math.exp(20)),
        (Kind("forward", "k3", "loss", "token", "policy"), 1e4, 1.0),
    ],
    ids=str,
)
def test_no_gradient_dies_beyond_the_bound(kind: Kind, log_ratio: float, expected: float) -> None:
    log_prob = torch.tensor([[-3.0]], dtype=torch.float64, requires_grad=True)
    given = {"log_prob": log_prob, "ref_log_prob": log_prob.detach() - log_ratio}
    if kind.sampler == "behaviour":
        given["old_log_prob"] = log_prob.detach()
    (gradient,) = torch.autograd.grad(KLPenalty(*kind).loss(**given).sum(), log_prob)
    assert gradient.item() == pytest.approx(expected, rel=1e-12)


def test_raw_and_bounded_values_are_told_apart() -> None:
    log_prob = torch.full((4, 5), -2.0)
    ref = log_prob.clone()
    ref[0, 0] = -2.0 + 60  # k3 there: e^60
    seen = KLPenalty(direction="forward", estimator="k3").statistics(log_prob=log_prob, ref_log_prob=ref)
    raw = seen["kl_ref_policy_per_token"]
    d = float(ref[0, 0] - log_prob[0, 0])
    assert raw == pytest.approx(math.exp(d) * (d - 1) / 20, rel=1e-6)  # r phi(L) at L = -d
    assert seen["kl_ref_policy_per_token_bounded"] == pytest.approx(math.exp(20) * (d - 1) / 20, rel=1e-6)
    assert seen["kl_ref_policy_per_token_std_error"] > seen["kl_ref_policy_per_token_bounded_std_error"] > 0
    assert seen["kl_ref_policy_per_token_p99"] == pytest.approx(20 * raw, rel=1e-6)
    assert seen["effective_sample_size"] == pytest.approx(1.0)
    assert seen["beyond_bound"] == pytest.approx(1 / 20)
    assert (seen["tokens"], seen["sequences"]) == (20, 4)


def test_every_statistic_is_explained_and_plain_where_nothing_is_extreme() -> None:
    world = World(Kind("reverse", "k1", "reward", "sequence", "behaviour"), tools=True)
    for aggregate in ("token_mean", "sequence_mean", "sequence_sum"):
        penalty = KLPenalty(*world.kind)
        seen, value = (
            penalty.statistics(**world.batch, aggregate=aggregate),
            penalty.value(**world.batch, aggregate=aggregate),
        )
        name = "kl_policy_ref_per_sequence" if aggregate == "sequence_sum" else "kl_policy_ref_per_token"
        assert (seen[name], seen[f"{name}_std_error"]) == (value.value, value.std_error)
        assert seen[f"{name}_bounded"] == value.value
        assert seen["beyond_bound"] == 0
        for key in seen:
            assert key.replace(name, "NAME") in (KLPenalty.statistics.__doc__ or "")
    log_w = torch.where(world.language.mask, world.batch["log_prob"] - world.batch["old_log_prob"], 0.0).cumsum(-1)
    w = log_w.detach()[world.language.mask].exp()
    assert seen["effective_sample_size"] == pytest.approx((w.sum() ** 2 / (w**2).sum()).item())


def test_a_token_that_the_reference_rules_out_is_infinite() -> None:
    log_prob = torch.full((2, 2), -1.0, requires_grad=True)
    ref = torch.tensor([[-1.0, -math.inf], [-1.0, -1.0]])
    for penalty in (KLPenalty(estimator="k2"), KLPenalty(estimator="k1", placement="reward")):
        loss = penalty.loss(log_prob=log_prob, ref_log_prob=ref)
        assert loss[0, 1] == math.inf
        assert (loss[1] == 0).all()
        estimate = penalty.value(log_prob=log_prob, ref_log_prob=ref)
        assert estimate.value == math.inf
        assert math.isnan(estimate.std_error)
    forward = KLPenalty(direction="forward", estimator="k3").loss(log_prob=log_prob, ref_log_prob=ref)
    assert forward[0, 1] == 1.0  # the term of p_i = 0 is q_i, over q_i
    assert torch.autograd.grad(forward.sum(), log_prob)[0][0, 1] == 1.0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.sampler == "behaviour"], ids=str)
@pytest.mark.parametrize("log_ratio", [0.0, 0.5, -1.0, -30.0, 30.0])
def test_a_weight_that_overflows_leaves_a_raw_value_that_is_a_number(kind: Kind, log_ratio: float) -> None:
    log_prob = torch.full((2, 3), -2.0)
    batch = {"log_prob": log_prob, "ref_log_prob": log_prob - log_ratio, "old_log_prob": log_prob - 1e4}
    logits = torch.zeros(2, 3, 4)
    logits[..., 0] = log_ratio
    seen = KLPenalty(*kind, unsafe=True).statistics(**batch, logits=logits, ref_logits=torch.zeros(2, 3, 4))
    assert not any(math.isnan(value) for key, value in seen.items() if not key.endswith("_std_error"))
    if log_ratio == 0:  # e^10000 times nothing
        assert next(iter(seen.values())) == 0


def test_a_token_that_the_policy_no_longer_makes_weighs_nothing() -> None:
    log_prob = torch.tensor([[-math.inf, -1.0]], requires_grad=True)
    old, ref = torch.tensor([[-2.0, -1.0]]), torch.tensor([[-1.5, -1.25]])
    for estimator in ("k1", "k3"):
        penalty = KLPenalty(estimator=estimator, sampler="behaviour")
        loss = penalty.loss(log_prob=log_prob, ref_log_prob=ref, old_log_prob=old)
        assert loss.isfinite().all()
        assert loss[0, 0].item() == pytest.approx(0.0 if estimator == "k1" else math.exp(0.5))
        assert torch.autograd.grad(loss.sum(), log_prob)[0].tolist()[0][0] == 0.0


@pytest.mark.parametrize("kind", RIGHT, ids=str)
def test_equal_policies_have_exactly_no_penalty_nor_gradient(kind: Kind) -> None:
    world = World(kind, tools=True)
    policy = world.batch["logits"].detach().float().requires_grad_()
    log_prob = policy.log_softmax(-1).gather(-1, world.language.tokens[..., None])[..., 0]
    batch = world.batch | {"logits": policy, "ref_logits": policy.detach()}
    batch |= {"log_prob": log_prob, "ref_log_prob": log_prob.detach()}
    loss = KLPenalty(*kind).loss(**batch)
    assert (loss == 0).all()
    if kind.estimator != "k1" or kind.placement == "reward":  # w k1 has a derivative w whose mean is 0
        by_logits = torch.autograd.grad(loss.sum(), policy)[0]
        assert by_logits.abs().max() < 1e-6


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("kind", RIGHT, ids=str)
def test_masked_tokens_may_hold_anything(kind: Kind, junk: float) -> None:
    world = World(kind, tools=True)
    out = ~world.language.mask
    clean = KLPenalty(*kind).loss(**world.batch)
    dirty = {
        name: values if name == "mask" else values.masked_fill(out if values.ndim == 2 else out[..., None], junk)
        for name, values in world.batch.items()
    }
    loss = KLPenalty(*kind).loss(**dirty)
    assert (loss[out] == 0).all()
    torch.testing.assert_close(loss, clean, rtol=0, atol=0)
    torch.testing.assert_close(world.gradient(world.mean(loss)), world.gradient(world.mean(clean)), rtol=0, atol=0)
    for mask in (world.language.mask.long(), world.language.mask.float()):
        assert torch.equal(KLPenalty(*kind).loss(**dirty | {"mask": mask}), clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", RIGHT, ids=str)
def test_narrow_types_give_the_same_gradient_to_their_precision(kind: Kind, dtype: torch.dtype) -> None:
    wide, narrow = World(kind, tools=True), World(kind, tools=True, dtype=dtype)
    truth = wide.gradient(wide.truth())
    loss = KLPenalty(*kind).loss(**narrow.batch)
    assert loss.dtype == torch.float32
    got = narrow.gradient(narrow.mean(loss))
    assert (got - truth).norm() < (1e-5 if dtype == torch.float32 else 0.05) * truth.norm()


floats = st.floats(-50, 0, allow_subnormal=False)


@settings(deadline=None)
@given(st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=6))
def test_k3_is_never_negative_and_keeps_its_digits(rows: list[tuple[float, float, float]]) -> None:
    log_prob, ref, old = (torch.tensor([column], dtype=torch.float64) for column in zip(*rows, strict=True))
    given_ = {"log_prob": log_prob, "ref_log_prob": ref, "old_log_prob": old}
    for direction in DIRECTIONS:
        at_tokens = KLPenalty(direction, "k3", sampler="behaviour").loss(**given_)
        assert (at_tokens >= 0).all()
    near = log_prob + 1e-9
    tiny = KLPenalty(estimator="k3", sampler="behaviour").loss(
        log_prob=log_prob, ref_log_prob=near, old_log_prob=log_prob
    )
    torch.testing.assert_close(tiny, (near - log_prob) ** 2 / 2, rtol=1e-8, atol=0)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(RIGHT), st.integers(0, 2**31))
def test_a_sequence_does_not_depend_on_those_beside_it(kind: Kind, seed: int) -> None:
    world = World(kind, tools=True, seed=seed % 1000)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:7]
    part = {name: values[order] for name, values in world.batch.items()}
    torch.testing.assert_close(
        KLPenalty(*kind).loss(**part), KLPenalty(*kind).loss(**world.batch)[order], rtol=0, atol=0
    )


def test_exact_is_token_kl() -> None:
    world = World(Kind("reverse", "exact", "loss", "token", "policy"), tools=True)
    batch = world.batch
    assert torch.equal(
        KLPenalty().loss(**batch), token_kl(batch["logits"], batch["ref_logits"], mask=world.language.mask)
    )
    forward = KLPenalty(direction="forward").loss(**batch)
    assert torch.equal(forward, token_kl(batch["ref_logits"], batch["logits"], mask=world.language.mask))


def test_the_value_carries_no_gradient_and_the_record_is_frozen() -> None:
    world = World(Kind("reverse", "k2", "loss", "token", "policy"), tools=True)
    penalty = KLPenalty(*world.kind)
    assert isinstance(penalty.value(**world.batch).value, float)
    assert penalty == KLPenalty(estimator="k2")
    assert hash(penalty) == hash(KLPenalty(estimator="k2"))
    with pytest.raises(AttributeError):
        penalty.estimator = "k3"  # type: ignore[misc]
