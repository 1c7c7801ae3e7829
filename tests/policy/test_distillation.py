"""Losses of distillation: the definitions, gradients, masks, and agreement with TRL's losses."""

import math

import pytest
import torch

from kullback.errors import ArrayTypeError, PenaltyError
from kullback.policy.aggregation import aggregate_tokens
from kullback.policy.distillation import (
    DISTILLATION_DIVERGENCES,
    WEIGHTED_DIVERGENCES,
    distillation_loss,
    logit_divergence,
)

MASK = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1]])


def naive(teacher, student, name, w):
    t, s = teacher.softmax(-1), student.softmax(-1)

    def kl(a, b):
        return (a * (a.log() - b.log())).sum(-1)

    m = {"skew_reverse": w * s + (1 - w) * t, "js": (t + s) / 2}.get(name, w * t + (1 - w) * s)
    return {
        "forward": kl(t, s),
        "reverse": kl(s, t),
        "js": (kl(t, m) + kl(s, m)) / 2,
        "skew_forward": kl(t, m),
        "skew_reverse": kl(s, m),
        "generalized_js": w * kl(t, m) + (1 - w) * kl(s, m),
    }[name]


def logits(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(3, 4, 30, dtype=torch.float64, generator=generator) for _ in range(2))


def hidden(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = (3, 4, 5), (30, 5), (3, 4, 7), (30, 7)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("name", DISTILLATION_DIVERGENCES)
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_divergences_of_logits_and_their_gradients_follow_the_definitions(name, weight):
    teacher, student = logits()
    student.requires_grad_()
    got = logit_divergence(teacher, student, name, weight=weight if name in WEIGHTED_DIVERGENCES else None)
    expected = naive(teacher, student, name, weight)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)
    gradients = [torch.autograd.grad(value.sum(), student)[0] for value in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5, 0.3])
def test_losses_equal_the_loss_of_trl(beta):
    trainer = pytest.importorskip("trl.trainer.distillation_trainer", reason="TRL 1.14 has no such trainer")
    name = {0.0: "forward", 1.0: "reverse", 0.5: "js"}.get(beta, "generalized_js")
    states = hidden(torch.float32)
    ours = distillation_loss(*states, divergence=name, weight=beta if name in WEIGHTED_DIVERGENCES else None, mask=MASK)
    theirs, entropies, count = trainer._chunked_divergence_loss(
        states[2], states[0].detach(), states[3], states[1].detach(), MASK, beta
    )
    torch.testing.assert_close(ours.loss, theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.student_entropy.sum(), entropies, rtol=1e-5, atol=0)
    assert ours.tokens == count
    gradients = [torch.autograd.grad(loss, states[2:]) for loss in (ours.loss, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DISTILLATION_DIVERGENCES)
@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "sequence_sum"])
def test_losses_from_hidden_states_with_caps_and_scales(name, aggregate):
    states = hidden()
    bias = torch.randn(30, dtype=torch.float64).requires_grad_()
    weight = 0.2 if name in WEIGHTED_DIVERGENCES else None
    result = distillation_loss(
        *states, divergence=name, weight=weight, mask=MASK, aggregate=aggregate, student_bias=bias, temperature=1.5,
        teacher_softcap=3.0, student_logit_scale=0.7, chunk=4,
    )  # fmt: skip
    teacher = 3 * torch.tanh(states[0] @ states[1].T / 3) / 1.5
    student = 0.7 * (states[2] @ states[3].T + bias) / 1.5
    values = naive(teacher.detach(), student, name, 0.2)
    expected = aggregate_tokens(values, MASK, aggregate)
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(result.divergence, (values * MASK).detach(), rtol=1e-9, atol=1e-13)
    entropy = -(student.softmax(-1) * student.log_softmax(-1)).sum(-1) * MASK
    torch.testing.assert_close(result.student_entropy, entropy.detach(), rtol=1e-9, atol=1e-13)
    trained = [states[2], states[3], bias]
    gradients = [torch.autograd.grad(loss, trained) for loss in (result.loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert torch.autograd.grad(distillation_loss(*states, divergence=name).loss, states[:2], allow_unused=True) == (
        None,
        None,
    )


def test_the_gradient_is_computed_with_the_logits_of_the_forward_pass():
    states = hidden(torch.float32)
    with torch.profiler.profile() as profile:
        result = distillation_loss(*states, divergence="reverse", mask=MASK)
        (1024 * result.loss / 2).backward()  # a loss scale and accumulation of gradients
    assert sum(e.count for e in profile.key_averages() if e.key in ("aten::mm", "aten::addmm_")) == 4


def test_equal_models_have_the_loss_zero_and_a_masked_batch_too():
    states = hidden()
    for name in DISTILLATION_DIVERGENCES:
        result = distillation_loss(states[2].detach(), states[3].detach(), *states[2:], divergence=name)
        assert result.loss.item() == pytest.approx(0, abs=1e-15)
        empty = distillation_loss(*states, divergence=name, mask=torch.zeros(3, 4))
        assert empty.loss == 0
        empty.loss.backward()
        assert (states[2].grad == 0).all()


def test_tokens_that_the_student_excludes():
    teacher, student = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -math.inf]])
    assert logit_divergence(teacher, student, "forward") == math.inf
    assert logit_divergence(teacher, student, "reverse").item() == pytest.approx(math.log(2))
    assert logit_divergence(teacher, student, "skew_forward", weight=0.1).isfinite()


def test_invalid_arguments_raise():
    states = hidden()
    with pytest.raises(PenaltyError, match="generalized_js, got 'fkl'"):
        distillation_loss(*states, divergence="fkl")
    for weight in (0, 1, math.nan, "half"):
        with pytest.raises(PenaltyError, match="weight between 0 and 1"):
            distillation_loss(*states, divergence="skew_forward", weight=weight)
    for name in ("forward", "reverse", "js"):
        with pytest.raises(PenaltyError, match=f"expected no weight, because the divergence '{name}' has none"):
            distillation_loss(*states, divergence=name, weight=0.1)
        with pytest.raises(PenaltyError, match="expected no weight"):
            logit_divergence(*logits(), name, weight=0.5)
    for normalizer in (-1, 0, math.nan, math.inf):
        with pytest.raises(PenaltyError, match="expected a positive finite normalizer"):
            distillation_loss(*states, normalizer=normalizer)
    with pytest.raises(ArrayTypeError, match=r"expected group to be a process group of torch\.distributed, got 3"):
        distillation_loss(*states, group=3)
    with pytest.raises(PenaltyError, match="heads in shards"):
        distillation_loss(*states, divergence="skew_forward", group=object())
