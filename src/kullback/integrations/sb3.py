"""PPO by stable-baselines3, with the policy held inside a KL budget."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kullback.errors import BudgetError
from kullback.integrations.sb3_budget import BudgetStep
from kullback.integrations.sb3_policies import (
    States,
    actor_weights,
    kl_at,
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

from kullback.budget.controllers import Controller
from kullback.budget.kl_budget import KLBudget
from kullback.budget.kl_filter import KLFilter
from kullback.budget.pull_response import PullExponent
from kullback.result import Estimate
from kullback.samples.clustered_mean import kl_per_token

__all__ = ["BudgetPPO"]

_MOST_PULLS = 8
_CLOSE = 1.02  # an update that ends this near its budget is not pulled again


class BudgetPPO(PPO):
    """The `PPO` of stable-baselines3 with a KL penalty at every visited state, exact in value and gradient.

    loss = PPO's + beta E_s[KL(policy || reference)] + beta_old E_s[KL(old || policy)], the visited states s held fixed;
    old is the policy that collected the rollout, the reference a frozen one. Each beta is its controller's.

    A `KLBudget` also acts on the actor's weights after every optimizer step, as docs/budget.md says: towards the
    reference for good, towards the old policy anew in each update, which ends on its budget or below. Other controllers
    are told the KL once an update.

    Without budgets, and with a clip, it trains as `PPO` does, weight for weight: `train` is wrapped, not copied.
    What is measured goes to the logger, under train/: KL(policy || reference) before an update, on the states that the
    policy itself went to; KL(old || policy), and KL(policy || reference) at the `reference_states`, after it.
    `BudgetPPO.load` unpickles, as all of stable-baselines3 does.

    Args:
        policy: As for `PPO`.
        env: As for `PPO`.
        budget: Of KL(policy || reference), nats per step; None only measures it.
        old_budget: Of KL(old || policy) over one update, the PPO paper's direction, nats per step.
        reference: A trained policy of the same shape, or the algorithm that holds it. Training starts at its weights.
            None: with a `budget`, the policy as it is made.
        reference_states: States that the `budget` is of, the same all along, such as where the reference goes. None:
            where the policy goes, which each update changes.
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
        reference_states: States | None = None,
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
        self.reference_states = reference_states
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
            require_same_shape(self.policy, self.reference.state_dict())
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
        self.model, self.policy = model, model.policy
        self.states = rollout_states(model.rollout_buffer)
        self.episodes = rollout_episodes(model.rollout_buffer)
        self.actor = actor_weights(model.policy, some_states(self.states, slice(2)))
        self.entropies: list[float] = []
        self.weights: list[Tensor] = []
        if isinstance(model.old_budget, KLBudget):  # each update starts at the old policy
            model.old_budget = replace(model.old_budget, kl_filter=KLFilter(), pull_exponent=PullExponent())
        self.fresh = None if model.reference is None else self.over_rollout(model.policy, model.reference)
        if isinstance(model.budget, KLBudget) and self.fresh is not None and model.reference_states is None:
            # Other states than the last update was held on: what the policy makes of itself is what is to be held.
            model.budget = model.budget.update_evaluation(self.fresh.value, std_error=self.fresh.std_error)
        self.leashes = [BudgetStep(self, name) for name in ("budget", "old_budget") if getattr(model, name) is not None]

    @contextmanager
    def penalised(self) -> Iterator[None]:
        """Within, the loss holds the penalties: they join the one thing that it charges by the state, the entropy."""
        model, evaluate, weight = self.model, self.policy.evaluate_actions, self.model.ent_coef
        if not self.leashes:
            yield
            return

        def charged(obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            values, log_prob, entropy = evaluate(obs, actions)
            entropy = -log_prob if entropy is None else entropy
            self.entropies.append(float(entropy.detach().mean()))
            return values, log_prob, weight * entropy - sum(leash.charge(obs) for leash in self.leashes)

        self.policy.evaluate_actions, model.ent_coef = charged, 1.0  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.policy.evaluate_actions
            model.ent_coef = weight
        model.logger.record("train/entropy_loss", -float(np.mean(self.entropies)))

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Within, each `KLBudget` acts on every optimizer step."""
        acting = [leash for leash in self.leashes if leash.acts]
        if not acting:
            yield
            return

        def before(*_: Any) -> None:
            for leash in acting:
                leash.before_step()
            scale = min(leash.held.learning_rate_scale for leash in acting)  # one step is taken for all
            for leash in acting:
                leash.held = replace(leash.held, learning_rate_scale=scale)
            self.weights = [weight.detach().clone() for weight in self.policy_weights(self.policy)]

        def after(*_: Any) -> None:
            # The same as the factor on the learning rate, for the actor alone.
            self.draw(self.weights, acting[0].held.learning_rate_scale)
            if len(acting) == 1:
                acting[0].after_step()
                return
            # What one pulls the other must not take for the step's doing.
            for leash in acting:
                leash.held = leash.held.after_step(*leash.looked(), displacement_scale=1.0)
            for leash in acting:
                leash.after_step(is_told=True)
                for other in acting:
                    if other is not leash:
                        other.held = other.held.after_brake(*other.looked(), factor=1.0)

        hooks = [
            self.policy.optimizer.register_step_pre_hook(before),
            self.policy.optimizer.register_step_post_hook(after),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def end(self) -> None:
        """Keep the update inside the old policy's budget, tell the controllers, and log."""
        model, old = self.model, self.model.old_budget
        if isinstance(old, KLBudget):
            self._keep_near(old.target)
        seen = {"kl_old_policy_per_step": self.over_rollout(model.old, self.policy)}
        if self.fresh is not None:
            seen["kl_policy_ref_per_step"] = self.fresh
        if model.reference is not None and model.reference_states is not None:
            seen["kl_policy_ref_per_reference_step"] = kl_at(self.policy, model.reference, model.reference_states)
        for leash in self.leashes:
            leash.end(seen[leash.measured])
        for key, estimate in seen.items():
            model.logger.record(f"train/{key}", estimate.value)
            model.logger.record(f"train/{key}_std_error", estimate.std_error)

    def over_rollout(self, p: ActorCriticPolicy, q: ActorCriticPolicy) -> Estimate:
        """The mean KL over the rollout's states; its standard error takes the episodes as the independent draws."""
        kls = kl_over(p, q, self.states).double().cpu().numpy()
        sums, lengths = np.bincount(self.episodes, kls), np.bincount(self.episodes)
        return kl_per_token(sums, lengths, np.arange(len(sums)))

    def policy_weights(self, policy: ActorCriticPolicy) -> list[Tensor]:
        return [policy.get_parameter(name) for name in self.actor]

    @torch.no_grad()
    def draw(self, towards: list[Tensor], factor: float) -> None:
        """Scale the displacement of the actor's weights from others."""
        if factor != 1.0:
            for weight, other in zip(self.policy_weights(self.policy), towards, strict=True):
                weight.copy_(torch.lerp(other, weight, factor))

    def _keep_near(self, target: float) -> None:
        """Draw the actor back where the panel did not tell that the rollout's KL(old || policy) is over its budget."""
        for _ in range(_MOST_PULLS):
            moved = self.over_rollout(self.model.old, self.policy).value
            if moved <= _CLOSE * target:
                break
            self.draw(self.policy_weights(self.model.old), math.sqrt(target / moved))
