"""Published objectives: their constants, their components, and the caveats about their gradients."""

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from kullback.errors import PenaltyError
from kullback.policy.losses import grpo_loss, ppo_loss
from kullback.policy.penalty import KLPenalty
from kullback.policy.presets import PRESETS, Preset, preset

from ..oracles.enumeration import Language, weights

REFERENCES = Path(__file__).parents[2] / "docs" / "references.bib"


def batch():
    language = Language(tools=True)
    policy, reference, old = weights(0).requires_grad_(), weights(1), weights(2)
    arrays = {
        "log_prob": language.log_prob(policy),
        "ref_log_prob": language.log_prob(reference),
        "old_log_prob": language.log_prob(old),
        "mask": language.mask,
    }
    return arrays, torch.linspace(-1, 1, 64, dtype=torch.float64), policy


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("ppo2017", {"clip": 0.2, "beta": 0.0, "penalty": None, "discount": 0.99, "decay": 0.95}),
        ("ppo2017_adaptive_kl", {"clip": None, "kl_target": 0.01, "kl_unit": "step", "towards": "old"}),
        ("ziegler2019", {"kl_target": 6.0, "kl_unit": "sequence", "clip": 0.2, "discount": 1.0, "decay": 0.95}),
        ("instructgpt", {"beta": 0.02, "clip": 0.2, "discount": 1.0}),
        ("deepseekmath", {"beta": 0.04, "group": 64, "aggregate": "sequence_mean", "advantages": "group"}),
        ("deepseek_r1", {"beta": 0.001, "group": 16, "clip": 10.0}),
        ("rloo", {"advantages": "leave_one_out", "ratio": "sequence", "beta": 0.05}),
        (
            "dr_grpo",
            {"clip": 0.2, "group": 8, "advantages": "group_centred", "aggregate": "sequence_sum", "penalty": None},
        ),
        ("dapo", {"clip": (0.2, 0.28), "aggregate": "token_mean", "penalty": None, "group": 16}),
        ("gspo", {"clip": (3e-4, 4e-4), "ratio": "sequence_mean", "penalty": None}),
    ],
)
def test_the_constants_are_as_published(name: str, published: dict) -> None:
    got = preset(name)
    assert {field: getattr(got, field) for field in published} == published
    assert set(PRESETS) >= {name}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_preset_is_a_ppo_loss_with_its_constants(name: str) -> None:
    arrays, advantages, policy = batch()
    published = preset(name)
    if published.penalty and published.penalty.estimator == "exact":
        language = Language(tools=True)
        arrays |= {"logits": language.logits(policy), "ref_logits": language.logits(weights(2))}
        del arrays["ref_log_prob"]
    loss = published.loss(**arrays, advantages=advantages)
    in_loss = published.penalty is not None and published.penalty.placement == "loss"
    if published.towards == "old":
        arrays["ref_log_prob"] = arrays["old_log_prob"]
    expected = ppo_loss(
        **arrays,
        advantages=advantages,
        clip=published.clip,
        ratio=published.ratio,
        aggregate=published.aggregate,
        beta=published.beta if in_loss else 0.0,
        penalty=published.penalty or KLPenalty(),
    )
    assert loss.item() == expected.item()
    if in_loss:
        assert published.loss(**arrays, advantages=advantages, beta=2.0).item() != loss.item()
    else:
        assert published.loss(**arrays, advantages=advantages, beta=0.0).item() == loss.item()
    for beta in (math.nan, -1.0, math.inf, *([] if in_loss else [2.0, torch.tensor(0.5)])):
        with pytest.raises(PenaltyError, match=r"expected no beta|beta to be a finite number|placement='loss'"):
            published.loss(**arrays, advantages=advantages, beta=beta)
    (gradient,) = torch.autograd.grad(loss, policy)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_the_deepseekmath_penalty_estimates_the_reverse_kl_and_descends_the_forward_kl() -> None:
    language, policy, reference = Language(tools=True), weights(0).requires_grad_(), weights(1)
    penalty = preset("deepseekmath").penalty
    assert penalty is not None
    loss = penalty.loss(
        log_prob=language.log_prob(policy), ref_log_prob=language.log_prob(reference), mask=language.mask
    )
    mean = (language.probability(policy).detach() * loss.sum(-1)).sum()
    assert mean.item() == pytest.approx(language.kl_token(policy, reference, policy).item())
    got, forward, reverse = (
        torch.autograd.grad(of, policy, retain_graph=True)[0]
        for of in (mean, language.kl_token(reference, policy, policy), language.kl_token(policy, reference, policy))
    )
    torch.testing.assert_close(got, forward, rtol=0, atol=1e-12)
    assert (got - reverse).norm() > 0.1 * reverse.norm()


def test_the_caveat_names_the_kl_that_is_descended_instead() -> None:
    for name in ("deepseekmath", "deepseek_r1"):
        assert "KL(ref || policy)" in (preset(name).caveat or "")
    for name in set(PRESETS) - {"deepseekmath", "deepseek_r1"}:
        assert preset(name).caveat is None


def test_the_default_penalty_of_grpo_differs_from_the_published_penalty() -> None:
    arrays, advantages, _ = batch()
    paper = preset("deepseekmath").loss(**arrays, advantages=advantages)
    ours = grpo_loss(**arrays, advantages=advantages, clip=None, beta=0.04)
    unpenalised = grpo_loss(**arrays, advantages=advantages, clip=None)
    assert len({paper.item(), ours.item(), unpenalised.item()}) == 3


def test_every_source_is_in_the_bibliography_and_every_field_is_documented() -> None:
    keys = set(re.findall(r"@\w+\{(\w+),", REFERENCES.read_text()))
    for published in PRESETS.values():
        assert set(re.findall(r"\[(\w+)\]", published.source)) & keys
    assert all(f"{field.name}:" in (Preset.__doc__ or "") for field in fields(Preset))


def test_an_unknown_name_raises() -> None:
    with pytest.raises(PenaltyError, match="'ppo2018'"):
        preset("ppo2018")
