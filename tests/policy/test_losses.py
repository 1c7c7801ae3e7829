"""Policy losses agree with the policy gradient by enumeration and with TRL, and stay finite for any ratio."""

import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from kullback.errors import PenaltyError, ShapeError
from kullback.policy.losses import clipped_surrogate, grpo_loss, ppo_loss
from kullback.policy.penalty import KLPenalty

from ..oracles.enumeration import Language, weights

inf = math.inf


def make_task(seed: int = 0):
    """A language with tools, a policy, a reference, the arguments of a loss, and a reward for each sequence."""
    language, policy, reference = Language(tools=True), weights(seed).requires_grad_(), weights(seed + 1)
    batch = {
        "log_prob": language.log_prob(policy),
        "ref_log_prob": language.log_prob(reference),
        "mask": language.mask,
    }
    rewards = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return language, policy, reference, batch, rewards


def expected_loss(language, policy, loss_of, batch, **columns):
    """The expected loss of one sequence sampled from the policy."""
    probabilities = language.probability(policy).detach()
    total = 0.0
    for row in torch.nonzero(probabilities)[:, 0].tolist():
        one = {name: values[row : row + 1] for name, values in (batch | columns).items()}
        total = total + probabilities[row] * loss_of(**one)
    return total


@pytest.mark.parametrize("clip", [0.2, None, (0.0, 0.5)])
@pytest.mark.parametrize("loss", [ppo_loss, grpo_loss])
def test_on_policy_the_gradient_is_the_policy_gradient(loss, clip) -> None:
    language, policy, _, batch, rewards = make_task()
    mean_loss = expected_loss(
        language, policy, lambda **given: loss(**given, clip=clip, aggregate="sequence_sum"), batch, advantages=rewards
    )
    truth = -(language.probability(policy) * rewards).sum()
    got, expected = (torch.autograd.grad(of, policy, retain_graph=True)[0] for of in (mean_loss, truth))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_with_a_penalty_the_gradient_is_the_gradient_of_the_regularised_objective() -> None:
    language, policy, reference, batch, rewards = make_task()
    mean_loss = expected_loss(
        language,
        policy,
        lambda **given: grpo_loss(**given, beta=0.3, aggregate="sequence_sum"),
        batch,
        advantages=rewards,
    )
    kl = language.kl_token(policy, reference, policy)
    truth = 0.3 * kl - (language.probability(policy) * rewards).sum()
    got, expected = (torch.autograd.grad(of, policy, retain_graph=True)[0] for of in (mean_loss, truth))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_with_the_kl_in_the_returns_the_gradient_includes_the_kl_of_sequences() -> None:
    language, policy, reference, batch, rewards = make_task()
    penalty = KLPenalty(estimator="k1", placement="reward", horizon="sequence")
    returns = rewards[:, None] - 0.3 * penalty.to_go(**batch)
    mean_loss = expected_loss(
        language, policy, lambda **given: ppo_loss(**given, aggregate="sequence_sum"), batch, advantages=returns
    )
    truth = 0.3 * language.kl_sequence(policy, reference) - (language.probability(policy) * rewards).sum()
    got, expected = (torch.autograd.grad(of, policy, retain_graph=True)[0] for of in (mean_loss, truth))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_mean"])
def test_the_surrogate_agrees_with_its_formula(ratio: str) -> None:
    generator = torch.Generator().manual_seed(1)
    log_prob, old = (-torch.rand(5, 4, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    advantages = torch.randn(5, generator=generator, dtype=torch.float64)
    got = clipped_surrogate(
        log_prob=log_prob, old_log_prob=old, advantages=advantages, mask=mask, clip=(0.1, 0.4), ratio=ratio
    )
    for row, step in product(range(5), range(4)):
        if not mask[row, step]:
            assert got[row, step] == 0
            continue
        terms = [(log_prob - old)[row, t].item() for t in range(4) if mask[row, t]]
        x = {
            "token": (log_prob - old)[row, step].item(),
            "sequence": sum(terms),
            "sequence_mean": sum(terms) / len(terms),
        }
        w, a = math.exp(x[ratio]), advantages[row].item()
        assert got[row, step].item() == pytest.approx(-min(w * a, min(max(w, 0.9), 1.4) * a), rel=1e-14)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "has_gradient"),
    [(0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (-0.5, -1.0, False), (0.1, 1.0, True), (0.1, -1.0, True)],
)
def test_the_clip_removes_only_gradients_that_increase_the_deviation(
    log_ratio: float, advantage: float, has_gradient: bool
) -> None:
    log_prob = torch.tensor([[-1.0 + log_ratio]], requires_grad=True)
    loss = ppo_loss(log_prob=log_prob, old_log_prob=torch.tensor([[-1.0]]), advantages=torch.tensor([advantage]))
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert gradient.item() == pytest.approx(-advantage * math.exp(log_ratio) if has_gradient else 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_mean"])
@pytest.mark.parametrize("clip", [0.2, None])
def test_ratios_of_any_size_give_finite_gradients(dtype, ratio, clip) -> None:
    shift = torch.tensor([[1e4, 1e4], [-1e4, -1e4], [1e4, 1e4], [-1e4, -1e4]]).to(dtype)
    log_prob = torch.full((4, 2), -1.0, dtype=dtype, requires_grad=True)
    old, advantages = log_prob.detach() - shift, torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = ppo_loss(log_prob=log_prob, old_log_prob=old, advantages=advantages, clip=clip, ratio=ratio)
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert gradient.isfinite().all()
    assert (gradient[2] > 1e6).all()  # a large ratio with a negative advantage is not clipped
    assert (gradient[0] == 0).all() == (clip is not None)


def test_values_at_masked_tokens_are_ignored() -> None:
    _, policy, _, batch, rewards = make_task()
    out = ~batch["mask"]
    clean = grpo_loss(**batch, advantages=rewards, beta=0.1)
    dirty = {name: v if name == "mask" else v.masked_fill(out, math.nan) for name, v in batch.items()}
    masked_advantages = rewards[:, None].expand(64, 3).masked_fill(out, math.nan)
    for given in (dirty | {"advantages": rewards}, dirty | {"advantages": masked_advantages}):
        loss = grpo_loss(**given, beta=0.1)
        assert loss.item() == clean.item()
        torch.testing.assert_close(
            *(torch.autograd.grad(of, policy, retain_graph=True)[0] for of in (loss, clean)), rtol=0, atol=0
        )


def test_advantages_and_old_probabilities_are_not_differentiated() -> None:
    log_prob = torch.full((2, 3), -1.0, requires_grad=True)
    old, advantages = (torch.full((2, 3), value, requires_grad=True) for value in (-1.1, 2.0))
    ppo_loss(log_prob=log_prob, old_log_prob=old, advantages=advantages).backward()
    assert old.grad is None
    assert advantages.grad is None
    assert log_prob.grad is not None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"beta": 0.1}, PenaltyError, "needs ref_log_prob"),
        ({"beta": 0.1, "penalty": KLPenalty(estimator="k1", placement="reward")}, PenaltyError, "from the returns"),
        ({"advantages": torch.zeros(3)}, ShapeError, r"\(2, 3\) or \(2,\)"),
        ({"old_log_prob": torch.zeros(2, 2)}, ShapeError, r"\(2, 3\) and \(2, 2\)"),
        ({"mask": torch.ones(2)}, ShapeError, r"\(2, 3\)"),
        ({"ratio": "word"}, PenaltyError, "'word'"),
        ({"clip": -0.1}, PenaltyError, "-0.1"),
        ({"clip": (0.1,)}, PenaltyError, r"\(0\.1,\)"),
        ({"beta": -0.1, "ref_log_prob": torch.zeros(2, 3)}, PenaltyError, "-0.1"),
        ({"beta": math.nan, "ref_log_prob": torch.zeros(2, 3)}, PenaltyError, "nan"),
        ({"aggregate": "sum"}, PenaltyError, "'sum'"),
        ({"clip": (0.2, math.nan)}, PenaltyError, "nan"),
    ],
)
def test_invalid_arguments_raise(changes: dict, error: type[Exception], message: str) -> None:
    given = {"log_prob": torch.zeros(2, 3), "advantages": torch.zeros(2)}
    for loss in (ppo_loss, grpo_loss):
        loss(**given)
        with pytest.raises(error, match=message):
            loss(**given | changes)


def test_an_on_policy_penalty_rejects_samples_of_another_policy() -> None:
    log_prob = torch.full((2, 3), -1.0)
    given = {"log_prob": log_prob, "advantages": torch.ones(2), "ref_log_prob": log_prob - 1, "beta": 0.1}
    given["penalty"] = KLPenalty(estimator="k2")
    ppo_loss(**given, old_log_prob=log_prob)
    with pytest.raises(PenaltyError, match="'behaviour'"):
        ppo_loss(**given, old_log_prob=log_prob - 0.5)


# -- the losses of TRL, computed by its trainers --


@pytest.fixture
def samples():
    """Six completions of 5 tokens in the format of TRL: one has two tool tokens and two have padding."""
    generator = torch.Generator().manual_seed(3)
    log_prob, old, ref = (-3 * torch.rand(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(6, 5, dtype=torch.int64)
    mask[1, 1:3], mask[2, 3:], mask[4, 1:] = 0, 0, 0
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    return {"log_prob": log_prob.requires_grad_(), "old_log_prob": old, "ref_log_prob": ref}, mask, advantages


class Accelerator:
    num_processes, sync_gradients, device = 1, True, "cpu"

    def reduce(self, values, reduction="sum"):
        return values

    gather = gather_for_metrics = staticmethod(lambda values: values)


def trl_grpo(batch, mask, advantages, **changes):
    from trl import GRPOTrainer

    options = {"loss_type": "grpo", "beta": 0.0, "bias": False, "low": 0.2, "high": 0.2, "level": "token"} | changes
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch["log_prob"], torch.zeros(6, 5), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=options["level"],
        beta=options["beta"],
        args=SimpleNamespace(use_bias_correction_kl=options["bias"], delta=None, steps_per_generation=1),
        loss_type=options["loss_type"],
        epsilon_low=options["low"],
        epsilon_high=options["high"],
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=7,
        accelerator=Accelerator(),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(6, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(6, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(6, 5, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": batch["old_log_prob"],
        "ref_per_token_logps": batch["ref_log_prob"],
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


PLAIN_K3, WEIGHTED_K3 = KLPenalty(estimator="k3", unsafe=True), KLPenalty(estimator="k3", sampler="behaviour")


@pytest.mark.parametrize(
    ("trl_options", "options"),
    [
        ({}, {}),
        ({"beta": 0.04}, {"beta": 0.04, "penalty": PLAIN_K3}),
        ({"beta": 0.04, "bias": True}, {"beta": 0.04, "penalty": WEIGHTED_K3}),
        ({"loss_type": "bnpo", "beta": 0.04}, {"aggregate": "token_mean", "beta": 0.04, "penalty": PLAIN_K3}),
        ({"loss_type": "dapo", "high": 0.28}, {"aggregate": "token_mean", "clip": (0.2, 0.28)}),
        ({"loss_type": "dr_grpo"}, {"aggregate": "sequence_sum", "normalizer": 6 * 7}),
        ({"level": "sequence", "low": 3e-4, "high": 4e-4}, {"ratio": "sequence_mean", "clip": (3e-4, 4e-4)}),
    ],
    ids=str,
)
def test_values_and_gradients_agree_with_trl(samples, trl_options: dict, options: dict) -> None:
    pytest.importorskip("trl")
    batch, mask, advantages = samples
    expected = trl_grpo(batch, mask, advantages, **trl_options)
    got = grpo_loss(**batch, mask=mask, advantages=advantages, **options)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)
    gradients = [torch.autograd.grad(of, batch["log_prob"])[0] for of in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_rloo_agrees_with_trl(samples) -> None:
    pytest.importorskip("trl")
    from trl import RLOOTrainer

    batch, mask, advantages = samples
    old = (batch["old_log_prob"] * mask).sum(-1)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch["log_prob"], torch.zeros(6, 5), None),
        aux_loss_enabled=False,
        epsilon_low=0.2,
        epsilon_high=0.2,
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(6, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(6, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(6, 5, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": advantages,
        "old_logps": old,
    }
    expected = RLOOTrainer._compute_loss(trainer, None, inputs)
    got = grpo_loss(**batch, mask=mask, advantages=advantages, ratio="sequence")
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)
    gradients = [torch.autograd.grad(of, batch["log_prob"])[0] for of in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("module", ["penalty", "losses", "advantages", "dpo", "presets"])
def test_without_pytorch_the_error_names_the_extra(module: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from kullback.errors import MissingDependencyError\n"
        f"try: import kullback.policy.{module}\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'kullback[train]'" in done.stdout, done.stderr


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("loss", [ppo_loss, grpo_loss])
def test_a_beta_in_a_tensor_is_checked_as_a_number(loss: Callable[..., torch.Tensor], bad: float) -> None:
    log_prob = torch.full((2, 3), -1.0, requires_grad=True)
    rest = {"log_prob": log_prob, "ref_log_prob": torch.full((2, 3), -2.0), "advantages": torch.zeros(2)}
    for beta in (bad, torch.tensor(bad), torch.tensor([[0.1], [bad]])):
        with pytest.raises(PenaltyError, match=r"expected .*beta"):
            loss(**rest, beta=beta)
    assert loss(**rest, beta=torch.tensor(0.1)) == loss(**rest, beta=0.1)
