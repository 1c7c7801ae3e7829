"""The minimiser of the DPO loss is the KL-regularised optimum, by enumeration; the loss agrees with TRL."""

import math
from collections import defaultdict
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from kullback.errors import PenaltyError, ShapeError
from kullback.policy.dpo import dpo_loss, implicit_reward

from ..oracles.enumeration import Language, weights

BETA = 0.7


def optimal_weights(language: Language, reference: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """The next-token logits at every prefix of the policy ref e^(reward/beta) / Z."""
    tilted = language.probability(reference) * (rewards / BETA).exp()
    logits = torch.empty(21, 4, dtype=torch.float64)
    for node in range(21):
        at = language.nodes == node
        for token in range(4):
            logits[node, token] = tilted[(at & (language.tokens == token)).any(-1)].sum().log()
    return logits


def test_the_gradient_vanishes_at_the_kl_regularised_optimum_and_not_at_the_reference() -> None:
    language, reference = Language(tools=False), weights(1)
    rewards = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ref_prob = language.probability(reference)

    def loss(policy: torch.Tensor) -> torch.Tensor:
        """The mean loss over pairs of reference samples, with Bradley-Terry preferences sigmoid(r1 - r2)."""
        log_prob, ref = language.log_prob(policy), language.log_prob(reference)
        total = torch.zeros((), dtype=torch.float64)
        for i, j in product(range(0, 64, 3), range(1, 64, 5)):
            for chosen, rejected in ((i, j), (j, i)):
                preferred = torch.sigmoid(rewards[chosen] - rewards[rejected])
                total = total + ref_prob[i] * ref_prob[j] * preferred * dpo_loss(
                    chosen_log_prob=log_prob[[chosen]],
                    rejected_log_prob=log_prob[[rejected]],
                    ref_chosen_log_prob=ref[[chosen]],
                    ref_rejected_log_prob=ref[[rejected]],
                    beta=BETA,
                )
        return total

    optimum = optimal_weights(language, reference, rewards).requires_grad_()
    at_optimum = torch.autograd.grad(loss(optimum), optimum)[0]
    start = reference.clone().requires_grad_()
    assert at_optimum.abs().max() < 1e-14
    assert torch.autograd.grad(loss(start), start)[0].abs().max() > 1e-4


def test_the_mean_implicit_reward_is_beta_kl() -> None:
    language, policy, reference = Language(tools=True), weights(0), weights(1)
    rewards = implicit_reward(language.log_prob(policy), language.log_prob(reference), language.mask, beta=BETA)
    mean = (language.probability(policy) * rewards).sum()
    assert mean.item() == pytest.approx(BETA * language.kl_sequence(policy, reference).item(), rel=1e-12)


def test_value_and_gradient_agree_with_trl() -> None:
    pytest.importorskip("trl")
    from trl import DPOTrainer

    generator = torch.Generator().manual_seed(0)
    log_prob, ref = (-2 * torch.rand(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [1] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
    log_prob.requires_grad_()
    zeros = torch.zeros(6, 5)
    outputs = SimpleNamespace(
        log_probs=log_prob * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=lambda v: v, gather_for_metrics=lambda v: v),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        label_smoothing=0.0,
        beta=BETA,
        use_weighting=False,
        _metrics={"eval": defaultdict(list), "train": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": torch.zeros(6, 6, dtype=torch.int64),
        "attention_mask": torch.ones(6, 6, dtype=torch.int64),
        "completion_mask": torch.cat([torch.zeros(6, 1, dtype=torch.int64), mask], dim=1),
        "ref_chosen_logps": (ref * mask).sum(-1)[:3],
        "ref_rejected_logps": (ref * mask).sum(-1)[3:],
    }
    expected = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    got = dpo_loss(
        chosen_log_prob=log_prob[:3],
        rejected_log_prob=log_prob[3:],
        ref_chosen_log_prob=ref[:3],
        ref_rejected_log_prob=ref[3:],
        chosen_mask=mask[:3],
        rejected_mask=mask[3:],
        beta=BETA,
    )
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(of, log_prob, retain_graph=True)[0] for of in (got, expected)), rtol=1e-12, atol=1e-16
    )


def test_large_log_ratios_and_invalid_arguments() -> None:
    far = torch.full((1, 2), -1e4, requires_grad=True)
    near = torch.full((1, 2), -1.0)
    loss = dpo_loss(
        chosen_log_prob=far, rejected_log_prob=near, ref_chosen_log_prob=near, ref_rejected_log_prob=near, beta=1.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(2e4, rel=1e-3)
    torch.testing.assert_close(far.grad, torch.full((1, 2), -1.0))
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(PenaltyError, match="beta"):
            implicit_reward(near, near, beta=beta)
    with pytest.raises(ShapeError, match=r"\(1, 2\) and \(1, 1\)"):
        implicit_reward(near, near[:, :1])
    with pytest.raises(ShapeError, match="2 and 1"):
        dpo_loss(
            chosen_log_prob=near.expand(2, 2),
            rejected_log_prob=near,
            ref_chosen_log_prob=near.expand(2, 2),
            ref_rejected_log_prob=near,
        )
