"""KL penalties: gradients and values against enumeration, refused combinations, and extreme ratios."""

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


class Combination(NamedTuple):
    direction: str
    estimator: str
    placement: str
    horizon: str
    sampler: str

    def __str__(self) -> str:
        return "-".join(self)


COMBINATIONS = [Combination(*choice) for choice in product(DIRECTIONS, ESTIMATORS, PLACEMENTS, HORIZONS, SAMPLERS)]


def is_correct(combination: Combination) -> bool:
    """Whether the penalty has the gradient of the KL that it names, as in the tables of docs/penalty.md."""
    if combination.direction == "forward":
        return combination.placement == "loss" and combination.estimator in ("exact", "k3")
    if combination.placement == "reward":
        return combination.estimator in ("exact", "k1")
    if combination.horizon == "sequence":
        return False
    return combination.estimator in {"policy": ("exact", "k2"), "behaviour": ("exact", "k1", "k3")}[combination.sampler]


def read_table(heading: str) -> list[Combination]:
    """The combinations in the table under a heading of docs/penalty.md, with each "any" expanded."""
    text = DOCUMENT.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:6]] for line in text.splitlines() if line.startswith("|")][2:]
    choices = (DIRECTIONS, ESTIMATORS, PLACEMENTS, HORIZONS, SAMPLERS)
    return [
        Combination(*combination)
        for row in rows
        for combination in product(
            *(every if cell == "any" else [cell] for cell, every in zip(row, choices, strict=True))
        )
    ]


CORRECT, INCORRECT = (
    [combination for combination in COMBINATIONS if is_correct(combination)],
    [combination for combination in COMBINATIONS if not is_correct(combination)],
)


class Task:
    """A differentiated policy, a reference and a sampler, with every expectation computed by enumeration."""

    def __init__(
        self, combination: Combination, tools: bool, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        self.combination, self.language = combination, Language(tools)
        self.policy = weights(3 * seed).requires_grad_()
        self.reference = weights(3 * seed + 1)
        self.behaviour = weights(3 * seed + 2) if combination.sampler == "behaviour" else self.policy.detach()
        self.sampler_probs = self.language.probability(self.behaviour).detach()
        language = self.language
        self.batch = {
            "log_prob": language.log_prob(self.policy).to(dtype),
            "ref_log_prob": language.log_prob(self.reference).to(dtype),
            "logits": language.logits(self.policy).to(dtype),
            "ref_logits": language.logits(self.reference).to(dtype),
            "mask": language.mask,
        }
        if combination.sampler == "behaviour":
            self.batch["old_log_prob"] = language.log_prob(self.behaviour).to(dtype)

    def exact_kl(self, combination: Combination | None = None) -> torch.Tensor:
        """The KL that a combination names."""
        combination = combination or self.combination
        p, q = (self.policy, self.reference) if combination.direction == "reverse" else (self.reference, self.policy)
        if combination.horizon == "sequence":
            return self.language.kl_sequence(p, q)
        return self.language.kl_token(p, q, self.behaviour)

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, self.policy, retain_graph=True)[0]

    def mean(self, token_values: torch.Tensor) -> torch.Tensor:
        """The expectation over sampled sequences of the sum over tokens."""
        return (self.sampler_probs * token_values.sum(-1)).sum()


def test_the_page_lists_every_combination_once() -> None:
    assert sorted(read_table("Accepted combinations")) == sorted(CORRECT)
    assert sorted(read_table("Refused combinations")) == sorted(INCORRECT)


@pytest.mark.parametrize("tools", [False, True], ids=["plain", "tools"])
@pytest.mark.parametrize("combination", CORRECT, ids=str)
def test_the_gradient_is_the_gradient_of_the_named_kl(combination: Combination, tools: bool) -> None:
    for seed in range(3):
        task = Task(combination, tools, seed)
        loss = KLPenalty(*combination).loss(**task.batch)
        truth = task.gradient(task.exact_kl())
        torch.testing.assert_close(task.gradient(task.mean(loss)), truth, rtol=0, atol=1e-12)
        assert truth.abs().max() > 0.05


@pytest.mark.parametrize("tools", [False, True], ids=["plain", "tools"])
@pytest.mark.parametrize(
    "combination", [combination for combination in CORRECT if combination.placement == "reward"], ids=str
)
def test_to_go_in_the_returns_has_the_same_gradient(combination: Combination, tools: bool) -> None:
    task = Task(combination, tools)
    to_go = KLPenalty(*combination).to_go(**task.batch)
    assert not to_go.requires_grad
    assert (to_go[~task.language.mask] == 0).all()
    score = task.mean(torch.where(task.language.mask, to_go * task.batch["log_prob"], 0.0))
    torch.testing.assert_close(task.gradient(score), task.gradient(task.exact_kl()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("combination", INCORRECT, ids=str)
def test_refused_combinations_have_a_different_gradient(combination: Combination) -> None:
    with pytest.raises(PenaltyError, match=r"unsafe=True"):
        KLPenalty(*combination)
    task = Task(combination, tools=True)
    penalty = KLPenalty(*combination, unsafe=True)
    truth = task.gradient(task.exact_kl())
    wrong = task.gradient(task.mean(penalty.loss(**task.batch)))
    assert (wrong - truth).norm() > 0.1 * truth.norm()
    if combination.placement == "reward":
        score = task.mean(torch.where(task.language.mask, penalty.to_go(**task.batch) * task.batch["log_prob"], 0.0))
        torch.testing.assert_close(task.gradient(score), wrong, rtol=0, atol=1e-12)


ON_POLICY_K3 = Combination("reverse", "k3", "loss", "token", "policy")
DESCENDED_INSTEAD = [
    (ON_POLICY_K3._replace(estimator="k1"), None),
    (ON_POLICY_K3, ON_POLICY_K3._replace(direction="forward")),
    (ON_POLICY_K3._replace(estimator="k2", direction="forward"), ON_POLICY_K3),
    (ON_POLICY_K3._replace(horizon="sequence", estimator="exact"), ON_POLICY_K3),
    (ON_POLICY_K3._replace(horizon="sequence", estimator="k2"), ON_POLICY_K3),
    (
        ON_POLICY_K3._replace(horizon="sequence", estimator="k3", sampler="behaviour"),
        ON_POLICY_K3._replace(sampler="behaviour"),
    ),
    (ON_POLICY_K3._replace(direction="forward", estimator="k1"), None),
    (ON_POLICY_K3._replace(direction="forward", estimator="k1", horizon="sequence"), None),
    (
        ON_POLICY_K3._replace(direction="forward", estimator="k1", sampler="behaviour"),
        ON_POLICY_K3._replace(sampler="behaviour"),
    ),
]


@pytest.mark.parametrize(("combination", "descended"), DESCENDED_INSTEAD, ids=str)
def test_the_kl_that_is_descended_instead(combination: Combination, descended: Combination | None) -> None:
    task = Task(combination, tools=True)
    wrong = task.gradient(task.mean(KLPenalty(*combination, unsafe=True).loss(**task.batch)))
    expected = torch.zeros_like(wrong) if descended is None else task.gradient(task.exact_kl(descended))
    torch.testing.assert_close(wrong, expected, rtol=0, atol=1e-12)


def test_k3_in_the_reward_descends_the_difference_of_both_directions() -> None:
    task = Task(Combination("reverse", "k3", "reward", "token", "policy"), tools=True)
    wrong = task.gradient(task.mean(KLPenalty(*task.combination, unsafe=True).loss(**task.batch)))
    both = [task.gradient(task.exact_kl(task.combination._replace(direction=direction))) for direction in DIRECTIONS]
    torch.testing.assert_close(wrong, both[0] - both[1], rtol=0, atol=1e-12)


REMEDY = re.compile(rf"({'|'.join(Combination._fields)})='(\w+)'((?: or '\w+')*)")


@pytest.mark.parametrize("combination", INCORRECT, ids=str)
def test_the_message_lists_the_correct_combinations(combination: Combination) -> None:
    with pytest.raises(PenaltyError) as caught:
        KLPenalty(*combination)
    assert isinstance(caught.value, KullbackError)
    assert isinstance(caught.value, ValueError)
    advice = str(caught.value).split(": use ")[1]
    named = []
    for part in advice.split("; or "):
        changes = [
            [(name, value) for value in [first, *re.findall(r"\w+(?=')", more)]]
            for name, first, more in REMEDY.findall(part)
        ]
        named += [combination._replace(**dict(choice)) for choice in product(*changes)]
    assert combination not in named
    assert all(is_correct(each) for each in named)
    # A correct combination for the same KL and the same samples exists, and the message lists all of them.
    same = [each for each in CORRECT if (each.direction, *each[3:]) == (combination.direction, *combination[3:])]
    near = [each for each in same if each.estimator == combination.estimator or each.placement == combination.placement]
    assert set(near or same) <= set(named)


def test_k3_with_the_ratio_is_correct_on_policy() -> None:
    task = Task(ON_POLICY_K3, tools=True)
    batch = task.batch | {"old_log_prob": task.batch["log_prob"].detach()}
    loss = KLPenalty(estimator="k3", sampler="behaviour").loss(**batch)
    torch.testing.assert_close(task.gradient(task.mean(loss)), task.gradient(task.exact_kl()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "combination", [combination for combination in CORRECT if combination.estimator != "k2"], ids=str
)
def test_the_value_is_the_named_kl(combination: Combination) -> None:
    task, penalty, total = Task(combination, tools=True), KLPenalty(*combination), 0.0
    for row in range(64):
        batch = {name: values[row : row + 1] for name, values in task.batch.items()}
        estimate = penalty.value(**batch, aggregate="sequence_sum")
        assert math.isnan(estimate.std_error)
        assert estimate.unit == "nats per sequence"
        total += task.sampler_probs[row].item() * estimate.value
    assert total == pytest.approx(task.exact_kl().item(), rel=1e-12)
    assert total == pytest.approx(task.mean(penalty.loss(**task.batch)).item(), rel=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_value_of_k2_is_correct_to_second_order(direction: str) -> None:
    language, errors = Language(tools=True), []
    for scale in (1e-2, 1e-3):
        policy = weights(0)
        reference = policy + scale * weights(1)
        batch = {"log_prob": language.log_prob(policy), "ref_log_prob": language.log_prob(reference)}
        penalty = KLPenalty(direction, "k2", unsafe=True)
        value = (language.probability(policy) * penalty.loss(**batch, mask=language.mask).sum(-1)).sum()
        arguments = (policy, reference) if direction == "reverse" else (reference, policy)
        truth = language.kl_token(*arguments, policy)
        errors.append(abs(value / truth - 1).item())
    assert errors[0] < 0.05
    assert errors[1] < 0.15 * errors[0]


def test_an_estimate_is_within_four_standard_errors_of_the_exact_value() -> None:
    combination = Combination("reverse", "k3", "loss", "token", "behaviour")
    task = Task(combination, tools=True)
    drawn = torch.multinomial(task.sampler_probs, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    batch = {name: values[drawn] for name, values in task.batch.items()}
    summed = KLPenalty(*combination).value(**batch, aggregate="sequence_sum")
    assert abs(summed.value - task.exact_kl().item()) < 4 * summed.std_error
    assert summed.std_error < 0.05 * summed.value
    lengths = task.language.mask.double().sum(-1)
    mean = KLPenalty(*combination).value(**batch, aggregate="token_mean")
    assert abs(mean.value - task.exact_kl().item() / (task.sampler_probs @ lengths).item()) < 4 * mean.std_error
    each = KLPenalty(*combination).value(**batch, aggregate="sequence_mean")
    ratios = KLPenalty(*combination).loss(**task.batch).detach().sum(-1) / lengths
    assert abs(each.value - (task.sampler_probs @ ratios).item()) < 4 * each.std_error
    # Duplicated completions of one prompt do not reduce the standard error.
    twice = {name: values.repeat(2, *[1] * (values.ndim - 1)) for name, values in batch.items()}
    together = KLPenalty(*combination).value(**twice, aggregate="sequence_sum", prompts=torch.arange(20_000).repeat(2))
    assert together.std_error == pytest.approx(summed.std_error, rel=1e-6)
    assert together.count == 20_000


# -- errors that depend on the inputs --


def test_missing_ratios_and_logits_raise() -> None:
    incomplete = {"log_prob": torch.full((2, 3), -1.0), "ref_log_prob": torch.full((2, 3), -1.5)}
    for estimator in ("k1", "k3"):
        with pytest.raises(PenaltyError, match="pass old_log_prob"):
            KLPenalty(estimator=estimator, sampler="behaviour").loss(**incomplete)
        KLPenalty(estimator=estimator, sampler="behaviour", unsafe=True).loss(**incomplete)
    for call in ("loss", "value", "statistics"):
        with pytest.raises(PenaltyError, match="logits and ref_logits"):
            getattr(KLPenalty(), call)(**incomplete)
    with pytest.raises(PenaltyError, match="count twice"):
        KLPenalty(estimator="k2").to_go(**incomplete)
    with pytest.raises(TypeError, match="unexpected keyword"):
        KLPenalty(estimator="k1", placement="reward").to_go(**incomplete, advantages=1)


def test_samples_of_another_policy_raise() -> None:
    log_prob = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    off_policy = log_prob + torch.tensor([[0.0, 0.0], [0.25, 0.0]])
    ref, mask = log_prob - 0.5, torch.tensor([[1, 1], [0, 1]])
    penalty = KLPenalty(estimator="k2")
    with pytest.raises(PenaltyError, match=r"old_log_prob\[1, 0\] is -2\.75 where log_prob is -3\.0.*'behaviour'"):
        penalty.loss(log_prob=log_prob, ref_log_prob=ref, old_log_prob=off_policy)
    expected = penalty.loss(log_prob=log_prob, ref_log_prob=ref, mask=mask)
    for old in (off_policy, log_prob + 1e-4):  # differences at masked tokens and rounding errors are accepted
        torch.testing.assert_close(
            penalty.loss(log_prob=log_prob, ref_log_prob=ref, old_log_prob=old, mask=mask), expected, rtol=0, atol=0
        )
    # The exact KL at visited prefixes needs no ratio, for samples of any policy.
    logits = torch.zeros(2, 2, 3)
    given = {"log_prob": log_prob, "ref_log_prob": ref, "logits": logits, "ref_logits": logits + torch.arange(3)}
    on_policy, behaviour = KLPenalty(), KLPenalty(sampler="behaviour")
    assert torch.equal(on_policy.loss(**given, old_log_prob=off_policy), behaviour.loss(**given))


def test_off_policy_samples_without_the_ratio_give_a_different_gradient() -> None:
    task = Task(Combination("reverse", "k1", "reward", "sequence", "behaviour"), tools=True)
    penalty, truth = KLPenalty(*task.combination, unsafe=True), task.gradient(task.exact_kl())
    weighted = task.gradient(task.mean(penalty.loss(**task.batch)))
    torch.testing.assert_close(weighted, truth, rtol=0, atol=1e-12)
    del task.batch["old_log_prob"]
    assert (task.gradient(task.mean(penalty.loss(**task.batch))) - truth).norm() > 0.1 * truth.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_invalid_options_raise(arguments: dict, message: str) -> None:
    with pytest.raises(PenaltyError, match=message):
        KLPenalty(**arguments)


@pytest.mark.parametrize("name", ["ref_log_prob", "old_log_prob", "mask", "logits", "ref_logits"])
def test_invalid_shapes_raise(name: str) -> None:
    batch = {key: torch.zeros(2, 3) for key in ("log_prob", "ref_log_prob", "old_log_prob", "mask")}
    batch |= {key: torch.zeros(2, 3, 5) for key in ("logits", "ref_logits")}
    KLPenalty().loss(**batch)
    with pytest.raises(ShapeError, match=r"\(2, 3"):
        KLPenalty().loss(**batch | {name: batch[name][:, :2]})
    with pytest.raises(ShapeError, match="batch, time"):
        KLPenalty(estimator="k2").loss(log_prob=torch.zeros(3), ref_log_prob=torch.zeros(3))
    with pytest.raises(ShapeError, match="at least one token"):
        KLPenalty().value(**batch | {"mask": torch.zeros(2, 3)})
    with pytest.raises(PenaltyError, match="one of token_mean, sequence_mean"):
        KLPenalty().value(**batch, aggregate="mean")


# -- extreme values and precision --


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_log_ratios_of_ten_thousand_give_finite_losses_and_gradients(
    combination: Combination, dtype: torch.dtype
) -> None:
    shifts = torch.tensor([[-1e4, 0.5, 1e4], [1e4, 1e4, 0.5], [0.25, -1e4, -1e4]], dtype=torch.float64)
    log_prob = torch.full((3, 3), -2.0, dtype=dtype).requires_grad_()
    logits = torch.zeros(3, 3, 4, dtype=dtype)
    logits[..., 0] = shifts
    logits.requires_grad_()
    for ref_shift, old_shift in ((shifts, 0.5 * shifts), (0.3 * shifts, shifts), (-shifts, shifts), (shifts, -shifts)):
        ref, old = ((log_prob.detach().double() - shift).to(dtype) for shift in (ref_shift, old_shift))
        batch = {"log_prob": log_prob, "ref_log_prob": ref, "logits": logits, "ref_logits": torch.zeros_like(logits)}
        if combination.sampler == "behaviour":
            batch["old_log_prob"] = old
        penalty = KLPenalty(*combination, unsafe=True)
        loss = penalty.loss(**batch)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert loss.isfinite().all()
        assert penalty.to_go(**batch).isfinite().all()
        for gradient in torch.autograd.grad(loss.sum(), (log_prob, logits), allow_unused=True):
            # Autograd returns the gradient in the dtype of the input, and e^20 overflows float16.
            assert gradient is None or dtype == torch.float16 or gradient.isfinite().all()


@pytest.mark.parametrize(
    ("combination", "log_ratio", "expected"),
    [
        (Combination("reverse", "k2", "loss", "token", "policy"), -1e4, -1e4),
        (Combination("reverse", "k2", "loss", "token", "policy"), 1e4, 1e4),
        (Combination("reverse", "k3", "loss", "token", "behaviour"), -1e4, -1e4),
        (Combination("reverse", "k3", "loss", "token", "behaviour"), 1e4, 1e4),
        (Combination("forward", "k3", "loss", "token", "policy"), -1e4, 1 - math.exp(20)),
        (Combination("forward", "k3", "loss", "token", "policy"), 1e4, 1.0),
    ],
    ids=str,
)
def test_gradients_do_not_vanish_beyond_the_bound(combination: Combination, log_ratio: float, expected: float) -> None:
    log_prob = torch.tensor([[-3.0]], dtype=torch.float64, requires_grad=True)
    given = {"log_prob": log_prob, "ref_log_prob": log_prob.detach() - log_ratio}
    if combination.sampler == "behaviour":
        given["old_log_prob"] = log_prob.detach()
    (gradient,) = torch.autograd.grad(KLPenalty(*combination).loss(**given).sum(), log_prob)
    assert gradient.item() == pytest.approx(expected, rel=1e-12)


def test_raw_and_bounded_values_are_reported_separately() -> None:
    log_prob = torch.full((4, 5), -2.0)
    ref = log_prob.clone()
    ref[0, 0] = -2.0 + 60  # k3 there: e^60
    logged = KLPenalty(direction="forward", estimator="k3").statistics(log_prob=log_prob, ref_log_prob=ref)
    raw = logged["kl_ref_policy_per_token"]
    d = float(ref[0, 0] - log_prob[0, 0])
    assert raw == pytest.approx(math.exp(d) * (d - 1) / 20, rel=1e-6)  # r phi(L) at L = -d
    assert logged["kl_ref_policy_per_token_bounded"] == pytest.approx(math.exp(20) * (d - 1) / 20, rel=1e-6)
    assert logged["kl_ref_policy_per_token_std_error"] > logged["kl_ref_policy_per_token_bounded_std_error"] > 0
    assert logged["kl_ref_policy_per_token_p99"] == pytest.approx(20 * raw, rel=1e-6)
    assert logged["effective_sample_size"] == pytest.approx(1.0)
    assert logged["beyond_bound"] == pytest.approx(1 / 20)
    assert (logged["tokens"], logged["sequences"]) == (20, 4)


def test_every_statistic_is_documented_and_bounds_change_nothing_for_moderate_ratios() -> None:
    task = Task(Combination("reverse", "k1", "reward", "sequence", "behaviour"), tools=True)
    for aggregate in ("token_mean", "sequence_mean", "sequence_sum"):
        penalty = KLPenalty(*task.combination)
        logged, value = (
            penalty.statistics(**task.batch, aggregate=aggregate),
            penalty.value(**task.batch, aggregate=aggregate),
        )
        name = "kl_policy_ref_per_sequence" if aggregate == "sequence_sum" else "kl_policy_ref_per_token"
        assert (logged[name], logged[f"{name}_std_error"]) == (value.value, value.std_error)
        assert logged[f"{name}_bounded"] == value.value
        assert logged["beyond_bound"] == 0
        for key in logged:
            assert key.replace(name, "NAME") in (KLPenalty.statistics.__doc__ or "")
    log_w = torch.where(task.language.mask, task.batch["log_prob"] - task.batch["old_log_prob"], 0.0).cumsum(-1)
    w = log_w.detach()[task.language.mask].exp()
    assert logged["effective_sample_size"] == pytest.approx((w.sum() ** 2 / (w**2).sum()).item())


def test_a_token_of_reference_probability_zero_gives_infinity() -> None:
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
    assert forward[0, 1] == 1.0  # v phi(L) = w - v + v log(v/w), which is w = 1 at v = 0
    assert torch.autograd.grad(forward.sum(), log_prob)[0][0, 1] == 1.0


@pytest.mark.parametrize(
    "combination", [combination for combination in COMBINATIONS if combination.sampler == "behaviour"], ids=str
)
@pytest.mark.parametrize("log_ratio", [0.0, 0.5, -1.0, -30.0, 30.0])
def test_overflowing_weights_do_not_give_nan(combination: Combination, log_ratio: float) -> None:
    log_prob = torch.full((2, 3), -2.0)
    batch = {"log_prob": log_prob, "ref_log_prob": log_prob - log_ratio, "old_log_prob": log_prob - 1e4}
    logits = torch.zeros(2, 3, 4)
    logits[..., 0] = log_ratio
    logged = KLPenalty(*combination, unsafe=True).statistics(**batch, logits=logits, ref_logits=torch.zeros(2, 3, 4))
    assert not any(math.isnan(value) for key, value in logged.items() if not key.endswith("_std_error"))
    if log_ratio == 0:  # 0 times an overflowing weight is 0
        assert next(iter(logged.values())) == 0


def test_a_token_of_policy_probability_zero_has_weight_zero() -> None:
    log_prob = torch.tensor([[-math.inf, -1.0]], requires_grad=True)
    old, ref = torch.tensor([[-2.0, -1.0]]), torch.tensor([[-1.5, -1.25]])
    for estimator in ("k1", "k3"):
        penalty = KLPenalty(estimator=estimator, sampler="behaviour")
        loss = penalty.loss(log_prob=log_prob, ref_log_prob=ref, old_log_prob=old)
        assert loss.isfinite().all()
        assert loss[0, 0].item() == pytest.approx(0.0 if estimator == "k1" else math.exp(0.5))
        assert torch.autograd.grad(loss.sum(), log_prob)[0].tolist()[0][0] == 0.0


@pytest.mark.parametrize("combination", CORRECT, ids=str)
def test_equal_policies_have_zero_penalty_and_gradient(combination: Combination) -> None:
    task = Task(combination, tools=True)
    policy = task.batch["logits"].detach().float().requires_grad_()
    log_prob = policy.log_softmax(-1).gather(-1, task.language.tokens[..., None])[..., 0]
    batch = task.batch | {"logits": policy, "ref_logits": policy.detach()}
    batch |= {"log_prob": log_prob, "ref_log_prob": log_prob.detach()}
    loss = KLPenalty(*combination).loss(**batch)
    assert (loss == 0).all()
    # The derivative of w k1 is w, whose product with the score is 0 only in the mean.
    if combination.estimator != "k1" or combination.placement == "reward":
        by_logits = torch.autograd.grad(loss.sum(), policy)[0]
        assert by_logits.abs().max() < 1e-6


@pytest.mark.parametrize("ignored", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("combination", CORRECT, ids=str)
def test_values_at_masked_tokens_are_ignored(combination: Combination, ignored: float) -> None:
    task = Task(combination, tools=True)
    out = ~task.language.mask
    expected = KLPenalty(*combination).loss(**task.batch)
    modified = {
        name: values if name == "mask" else values.masked_fill(out if values.ndim == 2 else out[..., None], ignored)
        for name, values in task.batch.items()
    }
    loss = KLPenalty(*combination).loss(**modified)
    assert (loss[out] == 0).all()
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(task.gradient(task.mean(loss)), task.gradient(task.mean(expected)), rtol=0, atol=0)
    for mask in (task.language.mask.long(), task.language.mask.float()):
        assert torch.equal(KLPenalty(*combination).loss(**modified | {"mask": mask}), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("combination", CORRECT, ids=str)
def test_low_precision_inputs_give_the_same_gradient_to_their_precision(
    combination: Combination, dtype: torch.dtype
) -> None:
    wide, narrow = Task(combination, tools=True), Task(combination, tools=True, dtype=dtype)
    truth = wide.gradient(wide.exact_kl())
    loss = KLPenalty(*combination).loss(**narrow.batch)
    assert loss.dtype == torch.float32
    got = narrow.gradient(narrow.mean(loss))
    assert (got - truth).norm() < (1e-5 if dtype == torch.float32 else 0.05) * truth.norm()


floats = st.floats(-50, 0, allow_subnormal=False)


@settings(deadline=None)
@given(st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=6))
def test_k3_is_non_negative_and_accurate_for_small_log_ratios(rows: list[tuple[float, float, float]]) -> None:
    log_prob, ref, old = (torch.tensor([column], dtype=torch.float64) for column in zip(*rows, strict=True))
    given_ = {"log_prob": log_prob, "ref_log_prob": ref, "old_log_prob": old}
    for direction in DIRECTIONS:
        token_values = KLPenalty(direction, "k3", sampler="behaviour").loss(**given_)
        assert (token_values >= 0).all()
    near = log_prob + 1e-9
    tiny = KLPenalty(estimator="k3", sampler="behaviour").loss(
        log_prob=log_prob, ref_log_prob=near, old_log_prob=log_prob
    )
    torch.testing.assert_close(tiny, (near - log_prob) ** 2 / 2, rtol=1e-8, atol=0)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(CORRECT), st.integers(0, 2**31))
def test_a_sequence_does_not_depend_on_other_sequences_of_the_batch(combination: Combination, seed: int) -> None:
    task = Task(combination, tools=True, seed=seed % 1000)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:7]
    part = {name: values[order] for name, values in task.batch.items()}
    torch.testing.assert_close(
        KLPenalty(*combination).loss(**part), KLPenalty(*combination).loss(**task.batch)[order], rtol=0, atol=0
    )


def test_the_exact_penalty_is_token_kl() -> None:
    task = Task(Combination("reverse", "exact", "loss", "token", "policy"), tools=True)
    batch = task.batch
    assert torch.equal(
        KLPenalty().loss(**batch), token_kl(batch["logits"], batch["ref_logits"], mask=task.language.mask)
    )
    forward = KLPenalty(direction="forward").loss(**batch)
    assert torch.equal(forward, token_kl(batch["ref_logits"], batch["logits"], mask=task.language.mask))


def test_the_value_is_a_float_and_the_penalty_is_immutable() -> None:
    task = Task(Combination("reverse", "k2", "loss", "token", "policy"), tools=True)
    penalty = KLPenalty(*task.combination)
    assert isinstance(penalty.value(**task.batch).value, float)
    assert penalty == KLPenalty(estimator="k2")
    assert hash(penalty) == hash(KLPenalty(estimator="k2"))
    with pytest.raises(AttributeError):
        penalty.estimator = "k3"  # type: ignore[misc]
