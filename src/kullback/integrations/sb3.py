"""PPO by stable-baselines3, with the policy held inside a KL budget."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kullback.errors import BudgetError
from kullback.integrations.sb3_policies import (
    actor_weights,
    kl_of_policies,
    kl_over,
    require_same_shape,
    rollout_episodes,
    rollout_states,
    some_states,
    twin_of,
)

# isort: split
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from kullback.policy.budget import KLBudget
from kullback.policy.controllers import Controller
from kullback.result import Estimate
from kullback.tokens.average import kl_per_token

__all__ = ["BudgetPPO"]

_PANEL = 256  # states on which each step is followed
_MOST_BRAKES = 3
_MOST_PULLS = 8
_CLOSE = 1.02  # an update this near its budget is not pulled again
_WANTED = 2.0  # budgets that an update is to want: one that wanted a single one would miss it every other time


class BudgetPPO(PPO):
    """The `PPO` of stable-baselines3 with a KL penalty at every visited state, exact in value and gradient.

    loss = PPO's + beta E_s[KL(policy || reference)] + beta_old E_s[KL(old || policy)], the visited states s held fixed;
    old is the policy that collected the rollout, the reference a frozen one. Each beta is its controller's.

    A `KLBudget` also acts on the actor's weights. Towards the reference it does so after every optimizer step, as in
    docs/budget.md. Towards the old policy the end of an update is what counts: there the KL is known exactly, and
    weights beyond the budget are drawn back onto it. Other controllers are told the KL once an update.

    Without budgets, and with a clip, it trains as `PPO` does, weight for weight: `train` is wrapped, not copied.
    What is measured goes to the logger, under train/. `BudgetPPO.load` unpickles, as all of stable-baselines3 does.

    Args:
        policy: As for `PPO`.
        env: As for `PPO`.
        budget: Of KL(policy || reference), nats per step; None only measures it.
        old_budget: Of KL(old || policy) over one update, the PPO paper's direction, nats per step.
        reference: A trained policy of the same shape, or the algorithm that holds it. Training starts at its weights.
            None: with a `budget`, the policy as it is made.
        clip: How far the probability ratio may leave 1, or a schedule of it; None leaves it free.
        **kwargs: As for `PPO`, `clip_range` apart.

    Raises:
        BudgetError: A budget is not per step, or the reference is not of the policy's shape.

    Example:
        >>> model = BudgetPPO("MlpPolicy", "CartPole-v1", old_budget=KLBudget(1e-4, unit="step"), clip=None, n_steps=64)
        >>> _ = model.learn(64)
        >>> 0 < model.logger.name_to_value["train/kl_old_policy_per_step"] < 1.02e-4
        True
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        *,
        budget: Controller | None = None,
        old_budget: Controller | None = None,
        reference: Any = None,
        clip: Any = 0.2,
        **kwargs: Any,
    ) -> None:
        for name, controller in (("budget", budget), ("old_budget", old_budget)):
            if isinstance(controller, KLBudget) and controller.unit != "step":
                raise BudgetError(f"expected a {name} per 'step', got {controller.unit!r}: these are visited states")
        if "clip_range" in kwargs:
            raise BudgetError("expected clip, got clip_range: here it may be None")
        self.budget, self.old_budget = budget, old_budget
        self.reference: Any = getattr(reference, "policy", reference)
        self.has_reference = reference is not None or budget is not None
        super().__init__(policy, env, clip_range=math.inf if clip is None else clip, **kwargs)

    def train(self) -> None:
        """PPO's update on the collected rollout, the penalties in its loss and the budgets kept."""
        self.old.load_state_dict(self.policy.state_dict())
        update = _Update(self)
        with update.penalised(), update.followed():
            super().train()
        update.end()

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.reference is not None:
            require_same_shape(self.policy, self.reference)
            self.policy.load_state_dict(self.reference.state_dict())
        self.reference = twin_of(self) if self.has_reference else None
        self.old = twin_of(self)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "reference", "old"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return [*modules, *(["reference"] if self.has_reference else [])], tensors


class _Update:
    """One update of the policy: the penalties, what is done to the weights, and what was seen."""

    def __init__(self, model: BudgetPPO) -> None:
        self.model, self.policy, self.old, self.reference = model, model.policy, model.old, model.reference
        self.states = rollout_states(model.rollout_buffer)
        self.episodes = rollout_episodes(model.rollout_buffer)
        places = np.linspace(0, len(self.episodes) - 1, min(_PANEL, len(self.episodes))).round().astype(int)
        self.panel = some_states(self.states, places)
        self.actor = actor_weights(self.policy, some_states(self.states, slice(2)))
        self.entropies: list[float] = []
        self.scales: list[float] = []
        self.kls = torch.empty(0)
        self.pulled = 1.0

    @contextmanager
    def penalised(self) -> Iterator[None]:
        """Within, the loss holds the penalties: they join the one thing that it charges by the state, the entropy."""
        model, evaluate, weight = self.model, self.policy.evaluate_actions, self.model.ent_coef
        if model.budget is None and model.old_budget is None:
            yield
            return

        def charged(obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            values, log_prob, entropy = evaluate(obs, actions)
            entropy = -log_prob if entropy is None else entropy
            self.entropies.append(float(entropy.detach().mean()))
            bonus = weight * entropy
            if model.budget is not None:
                kls = kl_of_policies(self.policy, self.reference, obs)
                self.kls = kls.detach().double()
                bonus = bonus - model.budget.beta * kls
            if model.old_budget is not None:
                bonus = bonus - model.old_budget.beta * kl_of_policies(self.old, self.policy, obs)
            return values, log_prob, bonus

        self.policy.evaluate_actions, model.ent_coef = charged, 1.0  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.policy.evaluate_actions
            model.ent_coef = weight
        model.logger.record("train/entropy_loss", -float(np.mean(self.entropies)))

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Within, a `KLBudget` towards the reference acts on every optimizer step."""
        if not isinstance(self.model.budget, KLBudget):
            yield
            return
        self.seen = self._on_panel()
        optimizer = self.policy.optimizer
        before = optimizer.register_step_pre_hook(lambda *_: self._before_step())
        after = optimizer.register_step_post_hook(lambda *_: self._after_step())
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def end(self) -> None:
        """Tell the controllers what the update did, keep it inside the old policy's budget, and log."""
        model = self.model
        record = model.logger.record
        if model.old_budget is not None:
            record("train/beta_old", model.old_budget.beta)
            moved = self._over_rollout(self.old, self.policy).value
            # No error: these are the very states that the update is judged by.
            exactly = {"std_error": 0.0, "count": len(self.episodes)}
            if isinstance(model.old_budget, KLBudget):
                model.old_budget = model.old_budget.update(moved / _WANTED, **exactly)
                record("train/pull_old", self._keep_near(model.old_budget.target, moved))
            else:
                model.old_budget = model.old_budget.update(moved, **exactly)
        _record(model, "kl_old_policy_per_step", self._over_rollout(self.old, self.policy))
        if self.reference is None:
            return
        apart = self._over_rollout(self.policy, self.reference)
        _record(model, "kl_policy_ref_per_step", apart)
        if model.budget is None:
            return
        record("train/beta", model.budget.beta)
        if isinstance(model.budget, KLBudget):
            record("train/kl_level", model.budget.level)
            record("train/step_scale", float(np.mean(self.scales)))
            record("train/pull", self.pulled)
        else:
            model.budget = model.budget.update(apart.value, std_error=apart.std_error, count=apart.count)

    def _over_rollout(self, p: ActorCriticPolicy, q: ActorCriticPolicy) -> Estimate:
        """The mean KL over the rollout's states; its standard error takes the episodes as the independent draws."""
        kls = kl_over(p, q, self.states).double().cpu().numpy()
        sums, lengths = np.bincount(self.episodes, kls), np.bincount(self.episodes)
        return kl_per_token(sums, lengths, np.arange(len(sums)))

    def _on_panel(self) -> float:
        return float(kl_over(self.policy, self.reference, self.panel).double().mean())

    def _keep_near(self, target: float, moved: float) -> float:
        """Draw the actor back to where KL(old || policy) is the target, if it is beyond; by which factor."""
        drawn = 1.0
        for _ in range(_MOST_PULLS):
            if moved <= _CLOSE * target:
                break
            factor = math.sqrt(target / moved)
            self._draw(_weights(self.old, self.actor), factor)
            drawn *= factor
            moved = self._over_rollout(self.old, self.policy).value
        return drawn

    def _before_step(self) -> None:
        budget, count = self.model.budget, len(self.kls)
        assert isinstance(budget, KLBudget)
        error = float(self.kls.std()) / math.sqrt(count) if count > 1 else math.nan
        self.model.budget = budget.update(float(self.kls.mean()), std_error=error, count=count)
        self.before = [weight.detach().clone() for weight in _weights(self.policy, self.actor)]

    def _after_step(self) -> None:
        budget = self.model.budget
        assert isinstance(budget, KLBudget)
        anchors = _weights(self.reference, self.actor)
        # The same as the factor on the learning rate, for the actor alone.
        self._draw(self.before, budget.step_scale)
        self.scales.append(budget.step_scale)
        pulled = budget.pull
        self._draw(anchors, pulled)
        budget = budget.moved(*self._looked(), pull=pulled)
        for _ in range(_MOST_BRAKES):
            if (brake := budget.brake) == 1.0:
                break
            self._draw(anchors, brake)
            pulled *= brake
            budget = budget.braked(*self._looked())
        self.model.budget = budget
        self.pulled *= pulled

    def _looked(self) -> tuple[float, float]:
        """The panel's KL as it was when last looked at, and as it is now."""
        before, self.seen = self.seen, self._on_panel()
        return before, self.seen

    @torch.no_grad()
    def _draw(self, towards: list[Tensor], factor: float) -> None:
        """Scale the displacement of the actor's weights from others."""
        if factor != 1.0:
            for weight, other in zip(_weights(self.policy, self.actor), towards, strict=True):
                weight.copy_(torch.lerp(other, weight, factor))


def _weights(policy: ActorCriticPolicy, names: list[str]) -> list[Tensor]:
    return [policy.get_parameter(name) for name in names]


def _record(model: BudgetPPO, name: str, estimate: Estimate) -> None:
    model.logger.record(f"train/{name}", estimate.value)
    model.logger.record(f"train/{name}_std_error", estimate.std_error)
