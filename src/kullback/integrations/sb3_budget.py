"""One KL constraint on a policy of stable-baselines3 during an update: a controller and its effect on the weights."""

import math
from typing import Any

from kullback.integrations.sb3_policies import ActionDistributions, States, action_distributions, select_states

# isort: split
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from kullback.budget.controllers import Controller
from kullback.budget.displacement import scale_displacement
from kullback.budget.kl_budget import KLBudget
from kullback.budget.step import BudgetStep, HeldOutMean
from kullback.result import Estimate

__all__ = ["PolicyConstraint"]

_HELD_OUT_STATES = 256


class PolicyConstraint:
    """A constraint on KL(old policy || policy) or on KL(policy || reference) during one update of `BudgetPPO`.

    Args:
        update: The update that it is a part of.
        name: The attribute of the model that holds the controller: "old_budget" or "budget".
    """

    def __init__(self, update: Any, name: str) -> None:
        self.update, self.model, self.name = update, update.model, name
        self.is_old = name == "old_budget"
        fixed_states = None if self.is_old else update.model.reference_states
        self.metric = "kl_old_policy_per_step" if self.is_old else "kl_policy_ref_per_step"
        if fixed_states is not None:
            self.metric = "kl_policy_ref_per_reference_step"
        # The KL on the held-out states has no sampling error if the budget applies to the same states.
        self.is_exact = self.is_old or fixed_states is not None
        self.anchor: ActorCriticPolicy = self.model.old if self.is_old else self.model.reference
        self.scales_weights = isinstance(self.controller, KLBudget)
        self.learning_rate_scales: list[float] = []
        self.displacement_scale = 1.0
        self.batch_kls = torch.empty(0)
        if self.scales_weights:
            count = len(update.episodes)
            rows = np.linspace(0, count - 1, min(_HELD_OUT_STATES, count)).round().astype(int)
            anchor = update.old if self.is_old else update.reference
            self.states: States = select_states(update.states, rows)
            self.anchor_distributions: ActionDistributions = anchor.rows(rows)
            if fixed_states is not None:
                self.states, reference_view = update.fixed_states
                self.anchor_distributions = action_distributions(self.anchor, reference_view)
            self.held_out = HeldOutMean(self._mean_kl)
            self.step = BudgetStep(self._scale_displacement, self.held_out)

    @property
    def controller(self) -> Any:
        """The controller's present state, which is an attribute of the model so that it is saved with it."""
        return getattr(self.model, self.name)

    @controller.setter
    def controller(self, controller: Controller) -> None:
        setattr(self.model, self.name, controller)

    def penalty(self, obs: Any, now: ActionDistributions) -> Tensor:
        """Return beta times the KL at each state of a minibatch, shape (states,).

        Args:
            obs: The observations of the policy.
            now: The policy's action distributions at these.
        """
        kls = self._kl_from_to(now, self._anchor_at(obs), ActionDistributions.kl_with_torch_gradient)
        self.batch_kls = kls.detach().double().clamp(min=0.0)
        return self.controller.beta * kls

    def before_step(self) -> None:
        """Update the controller with the KL of the minibatch."""
        count = len(self.batch_kls)
        if self.is_exact:
            self.controller = self.controller.update(self.held_out.kl, std_error=0.0, count=count)
        else:
            error = float(self.batch_kls.std()) / math.sqrt(count) if count > 1 else math.nan
            self.controller = self.controller.update(float(self.batch_kls.mean()), std_error=error, count=count)

    def after_step(self, *, step_is_known: bool = False) -> None:
        """Scale the displacement of the actor's weights, and apply the brake.

        Args:
            step_is_known: Whether the controller's state contains the change of the KL by the optimizer step already.
        """
        self.learning_rate_scales.append(self.controller.learning_rate_scale)
        self.controller, factor = self.step.apply(self.controller, step_is_known=step_is_known)
        self.displacement_scale *= factor

    def end(self, estimate: Estimate) -> None:
        """Log the controller's outputs, and update a controller other than `KLBudget` with the KL of the update."""
        record, suffix = self.model.logger.record, "_old" if self.is_old else ""
        record(f"train/beta{suffix}", self.controller.beta)
        if self.scales_weights:
            record(f"train/kl_filtered{suffix}", self.controller.filtered_kl)
            record(f"train/learning_rate_scale{suffix}", float(np.mean(self.learning_rate_scales)))
            record(f"train/displacement_scale{suffix}", self.displacement_scale)
        else:
            self.controller = self.controller.update(estimate.value, std_error=estimate.std_error, count=estimate.count)

    def _anchor_at(self, obs: Any) -> ActionDistributions:
        """The anchor's action distributions at a minibatch of the rollout."""
        rows, anchor = self.update.batch_rows, self.update.old if self.is_old else self.update.reference
        return action_distributions(self.anchor, obs) if rows is None else anchor.rows(rows)

    def _kl_from_to(self, now: ActionDistributions, anchor: ActionDistributions, kl: Any) -> Tensor:
        """The KL at each state in the constraint's direction."""
        return kl(anchor, now) if self.is_old else kl(now, anchor)

    def _mean_kl(self) -> float:
        """The mean KL over the held-out states."""
        now = action_distributions(self.model.policy, self.states)
        return float(self._kl_from_to(now, self.anchor_distributions, ActionDistributions.kl_to).double().mean())

    def _scale_displacement(self, factor: float) -> None:
        weights, anchors = (self.update.policy_weights(policy) for policy in (self.model.policy, self.anchor))
        scale_displacement(weights, anchors, factor)
