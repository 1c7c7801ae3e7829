"""What holds a policy of stable-baselines3 to one other while it is updated."""

import math
from typing import Any

from kullback.integrations.sb3_policies import kl_of_policies, kl_over, some_states

# isort: split
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from kullback.budget.controllers import Controller
from kullback.budget.kl_budget import KLBudget
from kullback.budget.step import pull_and_brake
from kullback.result import Estimate

__all__ = ["BudgetStep"]

_PANEL = 256  # states on which each step is followed


class BudgetStep:
    """What holds the policy to one other during an update: a controller, and if it is a `KLBudget` the weights too."""

    def __init__(self, update: Any, name: str) -> None:
        self.update, self.model, self.name = update, update.model, name
        self.is_old = name == "old_budget"
        fixed = None if self.is_old else update.model.reference_states
        self.measured = "kl_old_policy_per_step" if self.is_old else "kl_policy_ref_per_step"
        if fixed is not None:
            self.measured = "kl_policy_ref_per_reference_step"
        self.is_judge = self.is_old or fixed is not None  # the panel's states are those that the budget is of
        self.anchor: ActorCriticPolicy = self.model.old if self.is_old else self.model.reference
        pair = (self.model.old, self.model.policy) if self.is_old else (self.model.policy, self.model.reference)
        self.p, self.q = pair
        self.acts = isinstance(self.held, KLBudget)
        self.scales: list[float] = []
        self.pulled = 1.0
        self.kls = torch.empty(0)
        if self.acts:
            count = len(update.episodes)
            places = np.linspace(0, count - 1, min(_PANEL, count)).round().astype(int)
            self.panel = some_states(update.states, places) if fixed is None else fixed
            self.seen = self._on_panel()

    @property
    def held(self) -> Any:
        return getattr(self.model, self.name)

    @held.setter
    def held(self, controller: Controller) -> None:
        setattr(self.model, self.name, controller)

    def charge(self, obs: Any) -> Tensor:
        """What the KL costs at each state of a minibatch, in reward."""
        kls = kl_of_policies(self.p, self.q, obs)
        self.kls = kls.detach().double()
        return self.held.beta * kls

    def before_step(self) -> None:
        count = len(self.kls)
        if self.is_judge:  # the KL has no error
            self.held = self.held.update(self.seen, std_error=0.0, count=count)
        else:
            error = float(self.kls.std()) / math.sqrt(count) if count > 1 else math.nan
            self.held = self.held.update(float(self.kls.mean()), std_error=error, count=count)

    def after_step(self, *, is_told: bool = False) -> None:
        """Pull, and brake; `is_told` where the budget knows already what the step itself did."""
        budget: KLBudget = self.held
        self.scales.append(budget.learning_rate_scale)
        anchors = self.update.policy_weights(self.anchor)
        self.held, pulled = pull_and_brake(
            budget,
            lambda factor: self.update.draw(anchors, factor),
            lambda: (*self.looked(), math.nan),
            is_told=is_told,
        )
        self.pulled *= pulled

    def end(self, apart: Estimate) -> None:
        """Log what the controller did; tell it the KL, unless it was told at every step."""
        record, end = self.model.logger.record, "_old" if self.is_old else ""
        record(f"train/beta{end}", self.held.beta)
        if self.acts:
            record(f"train/kl_filtered{end}", self.held.filtered_kl)
            record(f"train/learning_rate_scale{end}", float(np.mean(self.scales)))
            record(f"train/displacement_scale{end}", self.pulled)
        else:
            self.held = self.held.update(apart.value, std_error=apart.std_error, count=apart.count)

    def looked(self) -> tuple[float, float]:
        """The panel's KL as it was when last looked at, and as it is now."""
        before, self.seen = self.seen, self._on_panel()
        return before, self.seen

    def _on_panel(self) -> float:
        return float(kl_over(self.p, self.q, self.panel).double().mean())
