"""PPO by stable-baselines3, with the KL of the policy held at a budget."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kullback.errors import BudgetError
from kullback.integrations.sb3_budget import PolicyConstraint
from kullback.integrations.sb3_policies import (
    States,
    actor_weights,
    estimate_mean_kl,
    frozen_policy_copy,
    kl_per_state,
    require_same_shape,
    rollout_episodes,
    rollout_states,
    select_states,
)

# isort: split
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from kullback.budget.controllers import Controller
from kullback.budget.displacement import scale_displacement
from kullback.budget.kl_budget import KLBudget
from kullback.budget.kl_filter import KLFilter
from kullback.budget.pull_response import PullExponent
from kullback.result import Estimate
from kullback.samples.clustered_mean import kl_per_token

__all__ = ["BudgetPPO"]

_MAX_SCALINGS = 8  # number of scalings of the displacement at the end of an update
_TOLERANCE = 1.02  # an update whose KL ends below this multiple of its budget is not scaled again


class BudgetPPO(PPO):
    """The `PPO` of stable-baselines3 with an exact KL penalty at every visited state, and with the KL held at budgets.

    loss = PPO's loss + beta E_s[KL(policy || reference)] + beta_old E_s[KL(old policy || policy)]

    The expectations are over the visited states s, which are held fixed. The old policy is the policy that collected
    the rollout; the reference is frozen. Each beta is set by its controller.

    A `KLBudget` also scales the displacement of the actor's weights after every optimizer step (see docs/budget.md):
    the displacement from the reference throughout training, and the displacement from the old policy within each
    update, so that the KL at the end of the update is at most its budget. Other controllers are updated with the KL
    once per update.

    Without budgets, and with a clip, the trained weights are bit-identical to the weights of `PPO`: `train` is wrapped,
    not copied. The measured KLs are logged under "train/": KL(policy || reference) before an update, on the states that
    the policy visited; KL(old policy || policy), and KL(policy || reference) at the `reference_states`, after it.
    `BudgetPPO.load` uses pickle, as all of stable-baselines3 does.

    Args:
        policy: As for `PPO`.
        env: As for `PPO`.
        budget: The controller of KL(policy || reference), in nats per step. None: the KL is measured but not
            controlled.
        old_budget: The controller of KL(old policy || policy) over one update, in nats per step. This is the direction
            of the PPO paper.
        reference: A trained policy of the same shape, or the algorithm that contains it. Training starts from its
            weights. None: with a `budget`, the initial policy is the reference.
        reference_states: Fixed states on which the `budget` holds the KL, such as states that the reference visits.
            None: the states that the policy visits, which differ in each update.
        clip: The clip range of the probability ratio, or a schedule of it; None disables clipping.
        **kwargs: As for `PPO`, except `clip_range`.

    Raises:
        BudgetError: A budget is not per step, or the reference differs from the policy in shape.

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
                raise BudgetError(
                    f"expected a {name} per 'step', got {controller.unit!r}: the KL is a mean over visited states"
                )
        if "clip_range" in kwargs:
            raise BudgetError("expected the argument clip (which may be None), got clip_range")
        self.budget, self.old_budget = budget, old_budget
        self.reference: Any = getattr(reference, "policy", reference)
        self.has_reference = reference is not None or budget is not None
        self.reference_states = reference_states
        super().__init__(policy, env, clip_range=math.inf if clip is None else clip, **kwargs)

    def train(self) -> None:
        """Update the policy on the collected rollout with the penalties in the loss, and hold the budgets."""
        self.old.load_state_dict(self.policy.state_dict())
        update = _Update(self)
        with update.penalised_loss(), update.controlled_steps():
            super().train()
        update.end()

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.reference is not None:
            require_same_shape(self.policy, self.reference.state_dict())
            self.policy.load_state_dict(self.reference.state_dict())
        self.reference = frozen_policy_copy(self) if self.has_reference else None
        self.old = frozen_policy_copy(self)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "reference", "old"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return [*modules, *(["reference"] if self.has_reference else [])], tensors


class _Update:
    """One update of the policy: its constraints, their penalties, and what is measured."""

    def __init__(self, model: BudgetPPO) -> None:
        self.model, self.policy = model, model.policy
        self.states = rollout_states(model.rollout_buffer)
        self.episodes = rollout_episodes(model.rollout_buffer)
        self.actor = actor_weights(model.policy, select_states(self.states, slice(2)))
        self.entropies: list[float] = []
        self.weights_before: list[Tensor] = []
        if isinstance(model.old_budget, KLBudget):  # The displacement from the old policy starts at 0.
            model.old_budget = replace(model.old_budget, kl_filter=KLFilter(), pull_exponent=PullExponent())
        self.initial = None if model.reference is None else self.rollout_kl(model.policy, model.reference)
        if isinstance(model.budget, KLBudget) and self.initial is not None and model.reference_states is None:
            # The states differ from the states of the last update; the controller must hold the KL on these states.
            model.budget = model.budget.update_evaluation(self.initial.value, std_error=self.initial.std_error)
        names = ("budget", "old_budget")
        self.constraints = [PolicyConstraint(self, name) for name in names if getattr(model, name) is not None]

    @contextmanager
    def penalised_loss(self) -> Iterator[None]:
        """Within the context, the loss contains the penalties, which are added to the entropy term of each state."""
        model, evaluate, weight = self.model, self.policy.evaluate_actions, self.model.ent_coef
        if not self.constraints:
            yield
            return

        def evaluate_with_penalty(obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            values, log_prob, entropy = evaluate(obs, actions)
            entropy = -log_prob if entropy is None else entropy
            self.entropies.append(float(entropy.detach().mean()))
            penalty = sum(constraint.penalty(obs) for constraint in self.constraints)
            return values, log_prob, weight * entropy - penalty

        self.policy.evaluate_actions, model.ent_coef = evaluate_with_penalty, 1.0  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.policy.evaluate_actions
            model.ent_coef = weight
        model.logger.record("train/entropy_loss", -float(np.mean(self.entropies)))

    @contextmanager
    def controlled_steps(self) -> Iterator[None]:
        """Within the context, each `KLBudget` acts on every optimizer step."""
        constraints = [constraint for constraint in self.constraints if constraint.scales_weights]
        if not constraints:
            yield
            return

        def before(*_: Any) -> None:
            for constraint in constraints:
                constraint.before_step()
            # The constraints share one step.
            scale = min(constraint.controller.learning_rate_scale for constraint in constraints)
            for constraint in constraints:
                constraint.controller = replace(constraint.controller, learning_rate_scale=scale)
            self.weights_before = [weight.detach().clone() for weight in self.policy_weights(self.policy)]

        def after(*_: Any) -> None:
            # Equivalent to the factor on the learning rate, but for the actor alone.
            scale = constraints[0].controller.learning_rate_scale
            scale_displacement(self.policy_weights(self.policy), self.weights_before, scale)
            if len(constraints) == 1:
                constraints[0].after_step()
                return
            # The change of the KL by the step is measured before either constraint scales the displacement.
            for constraint in constraints:
                previous, now, error = constraint.held_out.remeasure()
                constraint.controller = constraint.controller.after_step(
                    previous, now, displacement_scale=1.0, std_error=error
                )
            for constraint in constraints:
                constraint.after_step(step_is_known=True)
                for other in constraints:
                    if other is not constraint:
                        previous, now = other.held_out.remeasure()[:2]
                        other.controller = other.controller.after_brake(previous, now, factor=1.0)

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
        """Scale the update back to the old policy's budget if it exceeds it, update the controllers, and log."""
        model, old = self.model, self.model.old_budget
        if isinstance(old, KLBudget):
            self._hold_rollout_kl(old.target)
        estimates = {"kl_old_policy_per_step": self.rollout_kl(model.old, self.policy)}
        if self.initial is not None:
            estimates["kl_policy_ref_per_step"] = self.initial
        if model.reference is not None and model.reference_states is not None:
            estimates["kl_policy_ref_per_reference_step"] = estimate_mean_kl(
                self.policy, model.reference, model.reference_states
            )
        for constraint in self.constraints:
            constraint.end(estimates[constraint.metric])
        for key, estimate in estimates.items():
            model.logger.record(f"train/{key}", estimate.value)
            model.logger.record(f"train/{key}_std_error", estimate.std_error)

    def rollout_kl(self, p: ActorCriticPolicy, q: ActorCriticPolicy) -> Estimate:
        """Estimate the mean KL(p || q) over the rollout's states, with episodes as the independent samples."""
        kls = kl_per_state(p, q, self.states).double().cpu().numpy()
        sums, lengths = np.bincount(self.episodes, kls), np.bincount(self.episodes)
        return kl_per_token(sums, lengths, np.arange(len(sums)))

    def policy_weights(self, policy: ActorCriticPolicy) -> list[Tensor]:
        """Return the weights of a policy's actor."""
        return [policy.get_parameter(name) for name in self.actor]

    def _hold_rollout_kl(self, target: float) -> None:
        """Scale the actor's displacement until KL(old policy || policy) over the whole rollout is at the target."""
        for _ in range(_MAX_SCALINGS):
            kl = self.rollout_kl(self.model.old, self.policy).value
            if kl <= _TOLERANCE * target:
                break
            weights, anchors = (self.policy_weights(policy) for policy in (self.policy, self.model.old))
            scale_displacement(weights, anchors, math.sqrt(target / kl))
