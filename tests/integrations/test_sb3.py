"""PPO of stable-baselines3: the exact KL of its policies, and an algorithm that is PPO but for what it is to hold."""

import math
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from stable_baselines3 import PPO
from stable_baselines3.common import distributions as d
from stable_baselines3.common.callbacks import BaseCallback
from torch.distributions import kl_divergence

from kullback.budget.controllers import PPO2017, FixedBeta
from kullback.budget.kl_budget import KLBudget
from kullback.errors import BudgetError, NoClosedFormError, ShapeError
from kullback.integrations.sb3 import BudgetPPO, _Update
from kullback.integrations.sb3_policies import (
    ActionDistributions,
    actor_weights,
    differentiable_kl_per_state,
    kl_per_state,
    policy_kl,
)

STATES = 5


class Toy(gymnasium.Env):
    """Eight steps in which any action will do; some earn more."""

    def __init__(self, actions: spaces.Space, observations: spaces.Space | None = None) -> None:
        self.action_space = actions
        self.observation_space = observations or spaces.Box(-1, 1, (3,))
        self.left = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = 8
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self.observation_space.sample(), float(np.mean(action)), self.left == 0, False, {}


SPACES = {
    "categorical": spaces.Discrete(4),
    "multi-categorical": spaces.MultiDiscrete([2, 3]),
    "bernoulli": spaces.MultiBinary(3),
    "normal": spaces.Box(-1, 1, (2,)),
}


def make(kind: str, weights: torch.Tensor) -> d.Distribution:
    """A distribution of each kind from ten numbers a state; both of a pair are made alike."""
    match kind:
        case "categorical":
            return d.CategoricalDistribution(4).proba_distribution(weights[:, :4])
        case "multi-categorical":
            return d.MultiCategoricalDistribution([2, 3]).proba_distribution(weights[:, :5])
        case "bernoulli":
            return d.BernoulliDistribution(3).proba_distribution(weights[:, :3])
        case "normal":
            return d.DiagGaussianDistribution(2).proba_distribution(weights[:, :2], weights[0, 2:4])
        case "squashed":
            return d.SquashedDiagGaussianDistribution(2).proba_distribution(weights[:, :2], weights[0, 2:4])
        case _:
            noise = d.StateDependentNoiseDistribution(2, squash_output=kind.endswith("squashed"))
            noise.proba_distribution_net(3, latent_sde_dim=3)
            return noise.proba_distribution(weights[:, :2], weights[:3, 2:4], weights[:, 4:7])


KINDS = ["categorical", "multi-categorical", "bernoulli", "normal", "squashed", "sde", "sde squashed"]


def numbers(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(STATES, 10, dtype=torch.float64, generator=generator).to(dtype)


def by_torch(p: Any, q: Any) -> torch.Tensor:
    """The sum over an action's parts of PyTorch's own formulas."""
    if isinstance(p.distribution, list):
        return sum(kl_divergence(one, other) for one, other in zip(p.distribution, q.distribution, strict=True))
    each = kl_divergence(p.distribution, q.distribution)
    return each.sum(-1) if each.ndim > 1 else each


@pytest.mark.parametrize("kind", KINDS)
def test_the_kl_and_its_gradient_are_pytorchs(kind: str) -> None:
    for seed in range(20):
        p, q = numbers(seed).requires_grad_(), numbers(seed + 100).requires_grad_()
        ours, theirs = policy_kl(make(kind, p), make(kind, q)), by_torch(make(kind, p), make(kind, q))
        assert ours.shape == (STATES,)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
        got = torch.autograd.grad(ours.sum(), (p, q))
        for one, other in zip(got, torch.autograd.grad(theirs.sum(), (p, q)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "actions"),
    [
        ("categorical", [(a,) for a in range(4)]),
        ("multi-categorical", list(product(range(2), range(3)))),
        ("bernoulli", list(product(range(2), repeat=3))),
    ],
)
def test_the_kl_is_the_sum_over_all_actions(kind: str, actions: list[tuple[int, ...]]) -> None:
    p, q = make(kind, numbers(1)), make(kind, numbers(2))
    expected = torch.zeros(STATES, dtype=torch.float64)
    for action in actions:
        taken = torch.tensor([action] * STATES)
        taken = taken.squeeze(-1) if kind == "categorical" else taken
        taken = taken.double() if kind == "bernoulli" else taken
        log_p, log_q = p.log_prob(taken), q.log_prob(taken)
        expected += log_p.exp() * (log_p - log_q)
    torch.testing.assert_close(policy_kl(p, q), expected, rtol=1e-12, atol=0)


def test_a_squashed_normals_kl_is_that_of_its_densities_on_the_interval() -> None:
    p, q = make("squashed", numbers(3)[:1]), make("squashed", numbers(4)[:1])
    total = 0.0
    for axis in range(2):
        (mean, sd), (other, width) = (
            (float(one.distribution.mean[0, axis]), float(one.distribution.stddev[0, axis])) for one in (p, q)
        )

        def integrand(a: float, mean=mean, sd=sd, other=other, width=width) -> float:
            x, jacobian = math.atanh(a), -math.log1p(-a * a)
            log_p, log_q = norm.logpdf(x, mean, sd) + jacobian, norm.logpdf(x, other, width) + jacobian
            return math.exp(log_p) * (log_p - log_q)

        total += quad(integrand, -1 + 1e-15, 1 - 1e-15, epsabs=1e-11, limit=400, points=[math.tanh(mean)])[0]
    assert float(policy_kl(p, q)[0]) == pytest.approx(total, rel=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_keeps_the_digits_of_a_small_kl(kind: str) -> None:
    p = numbers(5, torch.float32)
    q = p + 1e-4 * numbers(6, torch.float32)
    got = policy_kl(make(kind, p), make(kind, q))
    truth = policy_kl(make(kind, p.double()), make(kind, q.double()))
    assert truth.max() < 1e-6
    # What the inputs' own rounding leaves: 6e-8 of numbers near 1, against differences of about 1e-4.
    torch.testing.assert_close(got.double(), truth, rtol=1e-2, atol=0)
    assert (policy_kl(make(kind, p), make(kind, p)) == 0).all()


@given(seed=st.integers(0, 10_000), size=st.floats(0.0, 3.0))
def test_no_kl_is_negative(seed: int, size: float) -> None:
    for kind in KINDS:
        p = numbers(seed, torch.float32)
        assert (policy_kl(make(kind, p), make(kind, p + size * numbers(seed + 1, torch.float32))) >= 0).all()


@pytest.mark.parametrize(("kind", "other"), [("normal", "squashed"), ("sde", "sde squashed"), ("bernoulli", "normal")])
def test_two_kinds_have_no_kl(kind: str, other: str) -> None:
    with pytest.raises(NoClosedFormError, match="two distributions of one class"):
        policy_kl(make(kind, numbers(0)), make(other, numbers(0)))


def test_what_is_not_known_or_does_not_fit_is_refused() -> None:
    class Mine(d.Distribution):
        distribution = torch.distributions.Normal(0.0, 1.0)

        def __init__(self) -> None: ...

        proba_distribution_net = proba_distribution = log_prob = entropy = sample = mode = None
        actions_from_params = log_prob_from_params = None

    with pytest.raises(NoClosedFormError, match="class of stable-baselines3, got Mine"):
        policy_kl(Mine(), Mine())
    for kind in KINDS[:4]:
        with pytest.raises(ShapeError, match=r"equal shapes \(states, actions\)"):
            policy_kl(make(kind, numbers(0)), make(kind, numbers(0)[:2]))


def trained(kind: Any, env: Any, *, policy: str = "MlpPolicy", steps: int = 256, **settings: Any) -> Any:
    settings = {"n_steps": 128, "batch_size": 64, "n_epochs": 4, "seed": 3, "device": "cpu"} | settings
    return kind(policy, env, **settings).learn(steps, log_interval=None)


def seen(model: Any) -> dict[str, float]:
    return {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items()}


def same(first: Any, second: Any) -> bool:
    pairs = zip(first.policy.parameters(), second.policy.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_with_a_clip_and_no_budget_it_is_ppo_weight_for_weight(env: str) -> None:
    plain = trained(PPO, env)
    assert same(plain, trained(BudgetPPO, env))
    assert same(plain, trained(BudgetPPO, env, reference=PPO("MlpPolicy", env, seed=3, device="cpu")))  # only watched
    assert not same(plain, trained(BudgetPPO, env, clip=None, old_budget=KLBudget(1e-3, unit="step")))


def test_with_state_dependent_noise_too() -> None:
    assert same(trained(PPO, "Pendulum-v1", use_sde=True), trained(BudgetPPO, "Pendulum-v1", use_sde=True))


@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
def test_a_price_of_nothing_and_no_clip_is_ppo_without_its_clip(ent_coef: float) -> None:
    free = trained(BudgetPPO, "CartPole-v1", clip=None, old_budget=FixedBeta(0.0), ent_coef=ent_coef)
    plain = trained(PPO, "CartPole-v1", clip_range=1e9, ent_coef=ent_coef)
    for one, other in zip(free.policy.parameters(), plain.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert free.ent_coef == ent_coef
    assert "evaluate_actions" not in vars(free.policy)
    assert seen(free)["entropy_loss"] == pytest.approx(seen(plain)["entropy_loss"], rel=1e-5)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("ent_coef", [0.0, 0.05])
def test_the_penalty_adds_beta_times_the_gradient_of_the_exact_kl(name: str, ent_coef: float) -> None:
    # One step of plain gradient descent on the whole rollout shows the gradient itself.
    one_step = {
        "n_epochs": 1,
        "batch_size": 128,
        "learning_rate": 0.1,
        "max_grad_norm": 1e9,
        "ent_coef": ent_coef,
        "policy_kwargs": {"optimizer_class": torch.optim.SGD},
    }
    weights = {}
    for beta in (0.0, 0.7):
        model = BudgetPPO(
            "MlpPolicy", Toy(SPACES[name]), n_steps=128, seed=0, device="cpu", budget=FixedBeta(beta), **one_step
        )
        torch.manual_seed(1)
        for weight in model.reference.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
        start = {key: weight.detach().clone() for key, weight in model.policy.named_parameters()}
        model.learn(128, log_interval=None)
        weights[beta] = {key: weight.detach().clone() for key, weight in model.policy.named_parameters()}
    states = torch.as_tensor(model.rollout_buffer.observations)
    model.policy.load_state_dict(start)
    model.policy.zero_grad()
    p, q = model.policy.get_distribution(states), model.reference.get_distribution(states)
    by_torch(p, q).mean().backward()
    assert seen(model)["kl_policy_ref_per_step"] > 1e-3
    largest = max(float(w.grad.abs().max()) for w in model.policy.parameters() if w.grad is not None)
    for key, weight in model.policy.named_parameters():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        moved = (weights[0.0][key] - weights[0.7][key]) / (0.1 * 0.7)
        torch.testing.assert_close(moved, gradient, rtol=2e-3, atol=2e-4 * largest)


@pytest.mark.parametrize("name", SPACES)
def test_each_state_is_charged_both_kls_in_their_own_directions(name: str) -> None:
    budgets = {"budget": FixedBeta(0.3), "old_budget": FixedBeta(0.7)}
    model = trained(BudgetPPO, Toy(SPACES[name]), ent_coef=0.1, **budgets)
    for number, anchor in enumerate((model.reference, model.old)):
        torch.manual_seed(number)
        for weight in anchor.parameters():
            weight.data += 0.5 * torch.randn_like(weight)
    model.rollout_buffer.reset()
    states = torch.randn(6, 3)
    actions = torch.tensor(np.stack([model.action_space.sample() for _ in range(6)]))
    actions = actions.float() if name == "bernoulli" else actions
    _, _, entropy = model.policy.evaluate_actions(states, actions)
    with _Update(model).penalised_loss():
        assert model.ent_coef == 1.0
        _, _, bonus = model.policy.evaluate_actions(states, actions)
    now, then, old = (one.get_distribution(states) for one in (model.policy, model.reference, model.old))
    expected = 0.1 * entropy - 0.3 * by_torch(now, then) - 0.7 * by_torch(old, now)
    torch.testing.assert_close(bonus, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_each_update_ends_on_the_old_policys_budget(name: str) -> None:
    target, kls = 1e-3, []
    model = BudgetPPO(
        "MlpPolicy",
        Toy(SPACES[name]),
        old_budget=KLBudget(target, unit="step"),
        clip=None,
        n_steps=256,
        learning_rate=1e-3,
        seed=0,
        device="cpu",
    )
    for _ in range(8):
        model.learn(256, log_interval=None, reset_num_timesteps=False)
        kls.append(seen(model)["kl_old_policy_per_step"])
        moved = kl_per_state(model.old, model.policy, torch.as_tensor(model.rollout_buffer.observations))
        assert kls[-1] == pytest.approx(float(moved.mean()), rel=1e-4)
    assert max(kls) < 1.021 * target
    assert np.mean(kls[2:]) == pytest.approx(target, rel=0.1)


@pytest.mark.slow
def test_two_budgets_are_kept_at_once() -> None:
    model = BudgetPPO(
        "MlpPolicy",
        "CartPole-v1",
        budget=KLBudget(2e-3, unit="step"),
        old_budget=KLBudget(5e-4, unit="step"),
        n_steps=256,
        seed=0,
        device="cpu",
    )
    model.learn(2048, log_interval=None)
    got = seen(model)
    assert 0 < got["kl_old_policy_per_step"] < 5.2e-4
    assert got["kl_policy_ref_per_step"] == pytest.approx(2e-3, rel=0.3)
    assert {
        "beta",
        "beta_old",
        "kl_filtered",
        "kl_filtered_old",
        "displacement_scale",
        "displacement_scale_old",
    } <= got.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("use_sde", "seed"), [(True, 0), (False, 2)])
def test_of_two_budgets_neither_takes_the_others_pull_for_a_step(use_sde: bool, seed: int) -> None:
    model = BudgetPPO(
        "MlpPolicy",
        Toy(SPACES["normal"]),
        budget=KLBudget(0.02, unit="step"),
        old_budget=KLBudget(0.003, unit="step"),
        clip=None,
        use_sde=use_sde,
        n_steps=128,
        batch_size=32,
        n_epochs=6,
        learning_rate=1e-3,
        seed=seed,
        device="cpu",
    )
    scales = []
    for _ in range(10):
        model.learn(128, log_interval=None, reset_num_timesteps=False)
        scales.append(min(seen(model)["learning_rate_scale"], seen(model)["learning_rate_scale_old"]))
    assert min(scales) > 0.05


def test_the_steps_of_the_critic_are_left_alone() -> None:
    once = {"n_epochs": 1, "batch_size": 128, "steps": 128, "max_grad_norm": 1e9}
    plain = trained(PPO, "CartPole-v1", **once)
    held = trained(BudgetPPO, "CartPole-v1", budget=KLBudget(1e-4, unit="step"), **once)
    states = torch.zeros(2, 4)
    acting = actor_weights(plain.policy, states)
    assert {name.partition(".")[0] for name in acting} == {"mlp_extractor", "action_net"}
    assert not any("value" in name for name in acting)
    for name, weight in plain.policy.named_parameters():
        assert torch.equal(weight, held.policy.get_parameter(name)) == (name not in acting)
    continuous = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
    assert "log_std" in actor_weights(continuous.policy, torch.zeros(2, 3))


def test_the_step_scale_is_that_factor_on_the_actors_step() -> None:
    once = {"n_epochs": 1, "batch_size": 128, "steps": 128, "max_grad_norm": 1e9}
    start = BudgetPPO("MlpPolicy", "CartPole-v1", seed=3, device="cpu").policy.action_net.weight.detach().clone()
    plain = trained(PPO, "CartPole-v1", **once).policy.action_net.weight - start
    # A budget that is far away: nothing else is done to the weights.
    budget = KLBudget(1e3, unit="step", learning_rate_scale=0.25)
    held = trained(BudgetPPO, "CartPole-v1", budget=budget, **once)
    scale = seen(held)["learning_rate_scale"]
    assert 0.25 <= scale < 0.4
    torch.testing.assert_close(held.policy.action_net.weight - start, scale * plain, rtol=1e-3, atol=1e-7)


def test_published_rules_are_told_the_kl_once_an_update() -> None:
    rule = PPO2017(1e-3)
    model = BudgetPPO("MlpPolicy", "CartPole-v1", old_budget=rule, clip=None, n_steps=128, seed=0, device="cpu")
    for _ in range(5):
        model.learn(128, log_interval=None, reset_num_timesteps=False)
        assert seen(model)["beta_old"] == rule.beta
        rule = rule.update(seen(model)["kl_old_policy_per_step"])
        assert model.old_budget == rule
    assert rule.beta != 1.0


def test_dictionaries_of_observations_are_states_too() -> None:
    observations = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)})
    env = Toy(spaces.Discrete(3), observations)
    budgets = {"budget": KLBudget(1e-3, unit="step"), "old_budget": KLBudget(1e-3, unit="step")}
    model = trained(BudgetPPO, env, policy="MultiInputPolicy", clip=None, **budgets)
    assert 0 < seen(model)["kl_policy_ref_per_step"] < 2e-3


def test_images_share_their_features_with_the_critic() -> None:
    env = Toy(spaces.Discrete(2), spaces.Box(0, 255, (3, 36, 36), np.uint8))
    model = BudgetPPO(
        "CnnPolicy", env, budget=KLBudget(1e-3, unit="step"), n_steps=16, batch_size=8, n_epochs=2, seed=0, device="cpu"
    )
    model.learn(32, log_interval=None)
    assert 0 < seen(model)["kl_policy_ref_per_step"] < 5e-3
    states = torch.zeros(1, 3, 36, 36, dtype=torch.uint8)
    assert any("features_extractor" in name for name in actor_weights(model.policy, states))


def test_training_starts_at_the_reference_and_the_reference_stays() -> None:
    reference = trained(PPO, "CartPole-v1", seed=5)
    before = [weight.clone() for weight in reference.policy.parameters()]
    model = BudgetPPO("MlpPolicy", "CartPole-v1", reference=reference, budget=FixedBeta(1.0), seed=0, device="cpu")
    assert same(reference, model)
    assert float(differentiable_kl_per_state(model.policy, model.reference, torch.randn(9, 4)).detach().max()) == 0.0
    model.learn(2048, log_interval=None)
    for weight, twin, theirs in zip(before, model.reference.parameters(), reference.policy.parameters(), strict=True):
        assert torch.equal(weight, twin)
        assert torch.equal(weight, theirs)


def test_a_saved_model_comes_back_with_its_reference_and_its_controllers(tmp_path: Path) -> None:
    budgets = {"budget": KLBudget(1e-3, unit="step"), "old_budget": PPO2017(1e-3)}
    reference = PPO("MlpPolicy", "CartPole-v1", seed=9, device="cpu")
    model = trained(BudgetPPO, "CartPole-v1", reference=reference, clip=None, **budgets)
    model.save(tmp_path / "model.zip")
    loaded = BudgetPPO.load(tmp_path / "model.zip", env=gymnasium.make("CartPole-v1"), device="cpu")
    assert same(model, loaded)
    assert loaded.budget == model.budget != budgets["budget"]
    assert loaded.old_budget == model.old_budget
    for one, other in zip(model.reference.parameters(), loaded.reference.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not other.requires_grad
    loaded.learn(128, log_interval=None)
    assert math.isfinite(seen(loaded)["kl_policy_ref_per_step"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": KLBudget(0.1)}, "budget per 'step', got 'token'"),
        ({"old_budget": KLBudget(0.1, unit="sequence")}, "old_budget per 'step', got 'sequence'"),
        ({"budget": 0.01}, r"expected budget to be a controller such as KLBudget\(0\.01, unit='step'\), got 0\.01"),
        ({"old_budget": "0.01"}, "expected old_budget to be a controller"),
        ({"clip_range": 0.2}, "expected the argument clip"),
        ({"reference": "acrobot"}, r"policy_net\.0\.weight is \(64, 6\) in the reference and \(64, 4\) in the policy"),
        ({"reference": "wide"}, r"policy_net\.0\.weight is \(32, 4\) in the reference and \(64, 4\) in the policy"),
        ({"reference": "deep"}, r"policy_net\.4\.weight is \(64, 64\) in the reference and absent in the policy"),
    ],
)
def test_what_could_not_be_held_is_refused(settings: dict[str, Any], said: str) -> None:
    made = {
        "acrobot": lambda: PPO("MlpPolicy", "Acrobot-v1", device="cpu"),
        "wide": lambda: PPO("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs={"net_arch": [32, 32]}),
        "deep": lambda: PPO("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs={"net_arch": [64, 64, 64]}),
    }
    if "reference" in settings:
        settings = {"reference": made[settings["reference"]]()}
    with pytest.raises(BudgetError, match=said):
        BudgetPPO("MlpPolicy", "CartPole-v1", device="cpu", **settings)


def test_a_policy_that_has_broken_says_so() -> None:
    model = BudgetPPO(
        "MlpPolicy", "Pendulum-v1", old_budget=FixedBeta(1.0), n_steps=64, learning_rate=1e6, clip=None, device="cpu"
    )
    with pytest.raises(ValueError, match=r"to be > 0 and finite|to be finite|finite KL|invalid values"):
        model.learn(640, log_interval=None)


def test_one_method_that_runs_is_wrapped_and_an_update_leaves_no_trace() -> None:
    own = {name for name, value in vars(BudgetPPO).items() if callable(value)}
    wrapped = {"train", "collect_rollouts", "set_parameters"}
    assert own == {"__init__", "_setup_model", "_excluded_save_params", "_get_torch_save_params"} | wrapped
    model = trained(BudgetPPO, "CartPole-v1", budget=KLBudget(1e-3, unit="step"))
    assert not model.policy.optimizer._optimizer_step_pre_hooks
    assert not model.policy.optimizer._optimizer_step_post_hooks
    model.rollout_buffer.reset()
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        _Update(model).penalised_loss(),
        _Update(model).controlled_steps(),
    ):
        raise RuntimeError("on purpose")
    assert not {"evaluate_actions", "_get_action_dist_from_latent"} & vars(model.policy).keys()
    assert not {"_get_samples", "add"} & vars(model.rollout_buffer).keys()
    assert not model.policy.optimizer._optimizer_step_pre_hooks
    assert model.ent_coef == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["categorical", "bernoulli", "normal"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_update_ends_at_a_binding_budget_for_every_seed(name: str, seed: int) -> None:
    target, kls = 2e-3, []
    model = BudgetPPO(
        "MlpPolicy",
        Toy(SPACES[name]),
        old_budget=KLBudget(target, unit="step", price=5e-4),
        clip=None,
        n_steps=256,
        learning_rate=2e-3,
        seed=seed,
        device="cpu",
    )
    for _ in range(6):
        model.learn(256, log_interval=None, reset_num_timesteps=False)
        states = torch.as_tensor(model.rollout_buffer.observations)
        with torch.no_grad():
            p, q = (one.get_distribution(states) for one in (model.old, model.policy))
            kls.append(float(by_torch(p, q).double().mean()))
    np.testing.assert_allclose(kls[2:], target, rtol=0.025)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["categorical", "normal"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mean_budget_is_spent_over_the_updates(name: str, seed: int, tmp_path: Path) -> None:
    target, kls, scales = 2e-3, [], []
    model = BudgetPPO(
        "MlpPolicy",
        Toy(SPACES[name]),
        old_budget=KLBudget(target, unit="step"),
        mean_over_updates=True,
        clip=None,
        n_steps=256,
        learning_rate=1e-3,
        seed=seed,
        device="cpu",
    )
    for update in range(24):
        if update == 12:
            model.save(tmp_path / "model.zip")
            model = BudgetPPO.load(tmp_path / "model.zip", env=Toy(SPACES[name]), device="cpu")
            assert model.mean_over_updates
        model.learn(256, log_interval=None, reset_num_timesteps=False)
        states = torch.as_tensor(model.rollout_buffer.observations)
        with torch.no_grad():
            p, q = (one.get_distribution(states) for one in (model.old, model.policy))
            kls.append(float(by_torch(p, q).double().mean()))
        scales.append(seen(model)["displacement_scale_old"])
    totals = np.cumsum(kls)
    assert (totals <= 1.03 * target * np.arange(1, 25)).all()
    assert max(kls) < 2.05 * target
    assert max(kls) > 1.04 * target  # what earlier updates left was spent
    assert totals[-1] == pytest.approx(24 * target, rel=0.12)
    assert max(scales) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("is_mean", [False, True])
@pytest.mark.parametrize("decay", [1.0, 2.5])
def test_a_budget_with_a_decay_has_its_mean_over_the_training(is_mean: bool, decay: float) -> None:
    class Record(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if "train/kl_budget_old" in self.logger.name_to_value:
                rows.append(dict(self.logger.name_to_value))

    target, updates, rows = 2e-3, 16, []
    model = BudgetPPO(
        "MlpPolicy",
        Toy(SPACES["categorical"]),
        old_budget=KLBudget(target, unit="step"),
        mean_over_updates=is_mean,
        budget_decay=decay,
        clip=None,
        n_steps=256,
        learning_rate=1e-3,
        seed=0,
        device="cpu",
    ).learn(256 * updates, callback=Record(), log_interval=None)
    rows.append(dict(model.logger.name_to_value))
    budgets = [row["train/kl_budget_old"] for row in rows]
    kls = [row["train/kl_old_policy_per_step"] for row in rows]
    # The mean of (1 + decay) x^decay over an update, by the midpoints of its thousandth parts.
    middles = (np.arange(1000 * updates) + 0.5) / (1000 * updates)
    shares = ((1 + decay) * (1 - middles) ** decay).reshape(updates, 1000).mean(axis=1)
    np.testing.assert_allclose(budgets, target * shares, rtol=1e-4)
    assert np.mean(budgets) == pytest.approx(target, rel=1e-9)
    assert (np.cumsum(kls) <= 1.03 * np.cumsum(budgets)).all()
    if not is_mean:
        np.testing.assert_allclose(kls[2:-2], budgets[2:-2], rtol=0.03)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([[0.0, 0.0, 0.0, np.nan]], "expected finite reference_states, got nan"),
        (np.zeros((3, 5)), r"of shape \(states, 4\), as observations have, got \(3, 5\)"),
        (np.zeros(4), r"got \(4,\)"),
        (np.zeros((0, 4)), r"got \(0, 4\)"),
        ([["a"]], "a tensor or an array of numbers"),
        (object(), "a tensor or an array of numbers"),
    ],
)
def test_states_that_are_no_observations_are_refused(states: Any, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        BudgetPPO("MlpPolicy", "CartPole-v1", budget=KLBudget(0.01, unit="step"), reference_states=states, device="cpu")


def test_states_without_a_reference_are_refused_and_arrays_are_converted() -> None:
    states = np.random.default_rng(0).normal(size=(8, 4))
    with pytest.raises(BudgetError, match="a budget or a reference with reference_states"):
        BudgetPPO("MlpPolicy", "CartPole-v1", reference_states=states, device="cpu")
    settings = {"n_steps": 64, "seed": 0, "device": "cpu", "budget": KLBudget(0.01, unit="step")}
    models = [
        BudgetPPO("MlpPolicy", "CartPole-v1", reference_states=given, **settings).learn(128)
        for given in (states, states.tolist(), torch.as_tensor(states))
    ]
    key = "train/kl_policy_ref_per_reference_step"
    assert len({model.logger.name_to_value[key] for model in models}) == 1


def test_a_decay_needs_a_budget_of_the_old_policy_and_a_number() -> None:
    for budgets in ({}, {"old_budget": PPO2017(0.01)}, {"budget": KLBudget(0.01, unit="step")}):
        with pytest.raises(BudgetError, match="expected a KLBudget as old_budget with budget_decay=1"):
            BudgetPPO("MlpPolicy", "CartPole-v1", budget_decay=1.0, device="cpu", **budgets)
    for decay in (-1.0, np.nan, np.inf, "2", True):
        with pytest.raises(BudgetError, match="expected budget_decay from 0 to 10"):
            BudgetPPO(
                "MlpPolicy", "CartPole-v1", old_budget=KLBudget(0.01, unit="step"), budget_decay=decay, device="cpu"
            )


def test_a_mean_over_updates_needs_a_budget_of_the_old_policy() -> None:
    for budgets in ({}, {"old_budget": PPO2017(0.01)}, {"budget": KLBudget(0.01, unit="step")}):
        with pytest.raises(BudgetError, match="expected a KLBudget as old_budget with mean_over_updates=True"):
            BudgetPPO("MlpPolicy", "CartPole-v1", mean_over_updates=True, device="cpu", **budgets)


def test_an_update_that_cannot_reach_its_budget_is_not_extrapolated() -> None:
    model = BudgetPPO(
        "MlpPolicy",
        "CartPole-v1",
        old_budget=KLBudget(10.0, unit="step", learning_rate_scale=1.0),
        clip=None,
        n_steps=128,
        n_epochs=2,
        seed=0,
        device="cpu",
    ).learn(512, log_interval=None)
    got = seen(model)
    assert got["kl_old_policy_per_step"] < 1.0
    assert got["displacement_scale_old"] == 1.0
    assert got["beta_old"] < KLBudget(10.0, unit="step").beta


@pytest.mark.slow
@pytest.mark.parametrize("budgets", [("budget",), ("old_budget",), ("budget", "old_budget")])
def test_the_distributions_of_the_anchors_are_computed_once_in_an_update(budgets: tuple[str, ...]) -> None:
    model = BudgetPPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=512,
        batch_size=16,
        seed=0,
        device="cpu",
        **{name: KLBudget(0.01, unit="step") for name in budgets},
    )
    calls = dict.fromkeys(("policy", "old", "reference"), 0)

    def count(name: str, method: Any) -> Any:
        def counted(*args: Any) -> Any:
            calls[name] += 1
            return method(*args)

        return counted

    for name in calls:
        policy = getattr(model, name)
        if policy is not None:
            policy.get_distribution = count(name, policy.get_distribution)
    model.learn(512, log_interval=None)
    assert calls["old"] == 1
    assert calls["reference"] == ("budget" in budgets)
    assert calls["policy"] < 60  # of 320 minibatches, whose distributions are taken from the loss


class Betas(BaseCallback):
    """Records beta, the factor on the displacement and the KL at the reference states after each update."""

    NAMES = ("beta", "displacement_scale", "kl_policy_ref_per_reference_step")

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[float, ...]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        values = self.model.logger.name_to_value
        if "train/beta" in values:
            self.rows.append(tuple(float(values[f"train/{name}"]) for name in self.NAMES))


def betas(budget: KLBudget, updates: int, **settings: Any) -> list[tuple[float, ...]]:
    states = np.random.default_rng(0).uniform(-0.1, 0.1, (64, 4)).astype(np.float32)
    model = BudgetPPO(
        "MlpPolicy",
        "CartPole-v1",
        budget=budget,
        reference_states=states,
        n_steps=128,
        batch_size=32,
        seed=0,
        **settings,
    )
    recorded = Betas()
    model.learn(128 * (updates + 1), callback=recorded, log_interval=None)
    return recorded.rows[:updates]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "beta"),
    [
        (KLBudget(0.25, unit="step"), 0.06 / 0.5),
        (KLBudget(4.0, unit="step"), 0.06 / 2),
        (KLBudget(1e-6, unit="step"), 500.0),  # the smallest price
        (KLBudget(0.25, unit="step", price=0.1), 0.1 / 0.25),
        (KLBudget(0.25, unit="step", gain=0.02), 5e-3 / 0.25),
    ],
)
def test_the_beta_of_the_reference_starts_near_the_multiplier_and_decreases_slowly_far_below_the_budget(
    budget: KLBudget, beta: float
) -> None:
    # With a learning rate of almost 0, the KL stays far below the budget.
    rows = betas(budget, 3, learning_rate=1e-9)
    expected = [max(budget.price_min / budget.target, beta * 0.95**update) for update in (1, 2, 3)]
    assert [row[0] for row in rows] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("target", "ratio"), [(2.0, 0.8), (1 / 0.9, 0.9), (1 / 1.3, 1.3), (0.02, 2.0)])
def test_the_penalty_grows_with_the_third_power_of_the_kl_within_an_update(target: float, ratio: float) -> None:
    # `target` is relative to the KL; ratios below 0.8 and above 2 count as these.
    model = trained(BudgetPPO, Toy(SPACES["categorical"]), budget=KLBudget(1.0, unit="step"))
    torch.manual_seed(0)
    for weight in model.policy.parameters():
        weight.data += 0.5 * torch.randn_like(weight)
    model.old.load_state_dict(model.policy.state_dict())
    model.rollout_buffer.reset()
    model.rollout_buffer.observations[:] = np.random.default_rng(0).normal(size=model.rollout_buffer.observations.shape)
    states = torch.as_tensor(model.rollout_buffer.observations)[:, 0]
    now, then = (one.get_distribution(states) for one in (model.policy, model.reference))
    kl = by_torch(now, then).detach()
    target *= float(kl.mean())
    model.budget = KLBudget(target, unit="step", price=0.1, price_max=0.1)
    (constraint,) = _Update(model).constraints
    constraint.after_interval(1, is_late=False)
    penalty = constraint.penalty(states, ActionDistributions.of(model.policy.get_distribution(states)))
    if ratio < 2:  # a KL above twice the set point is scaled to it
        torch.testing.assert_close(penalty, 0.1 / target * ratio**3 * kl, rtol=1e-4, atol=1e-6)
    assert constraint.beta_factor == pytest.approx(ratio**3, rel=1e-5)


@pytest.mark.slow
def test_the_beta_of_the_reference_converges_from_a_low_and_from_a_high_initial_price() -> None:
    # The Lagrange multiplier is a property of the task: it does not depend on the initial price.
    low, high = (betas(KLBudget(0.005, unit="step", price=price), 24, learning_rate=1e-3) for price in (5e-4, 3e-2))
    means = [math.exp(fmean(math.log(row[0]) for row in rows[-8:])) for rows in (low, high)]
    assert means[0] > 4 * 0.1
    assert means[1] < 6 / 3
    assert 1 / 3 < means[0] / means[1] < 3
    # A KL that is far below the budget is increased by the optimizer alone.
    far_below = [after[1] for before, after in pairwise(high) if max(before[2], after[2]) < 0.8 * 0.005]
    assert len(far_below) > 5
    assert set(far_below) == {1.0}
    # While beta changes, the KL is at the budget.
    for rows in (low, high):
        assert [row[2] for row in rows[-4:]] == pytest.approx([0.005] * 4, rel=0.025)
