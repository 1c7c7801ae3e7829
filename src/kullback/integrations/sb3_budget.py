"""One KL constraint on a policy of stable-baselines3 during an update: a controller and its effect on the weights."""

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

from kullback.integrations.sb3_policies import ActionDistributions, States, action_distributions

# isort: split
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from kullback.budget.controllers import Controller
from kullback.budget.displacement import scale_displacement
from kullback.budget.kl_budget import KLBudget, require_kl
from kullback.budget.kl_filter import KLFilter
from kullback.budget.pull_response import PullExponent
from kullback.result import Estimate

__all__ = ["PolicyConstraint"]

_TOLERANCE = 1.02  # an update ends at a KL below this multiple of its set point
_MAX_SCALINGS = 8  # number of scalings of the displacement at the end of an update
_OUTWARD_FROM = 0.2  # share of the set point above which scaling may increase the KL to it ...
_OUTWARD_FROM_HIGH = 0.05  # ... if the KL was above the set point within the update
_LIMIT = 2.0  # multiple of the set point above which the displacement is scaled within an update
_PRICE_JUMP = 1.5  # factor on the price after a measurement above that limit
_STEP_CUT = 0.7  # factor on the learning rate after it ...
_STEP_GROWTH = 1.2  # ... and its growth in one step, for at most _GROWTH_STEPS steps, after a measurement below it
_GROWTH_STEPS = 4
_LEAD = 1.0  # intervals by which the KL is extrapolated
_INITIAL_PRICE = 0.06  # initial price of the KL to the reference / sqrt(target)
_FAR_BELOW = 0.8  # share of the set point below which the optimizer alone increases the KL to the reference, and ...
_PRICE_DECAY = 0.95  # ... its price is multiplied by this factor in an update
_PRICE_FALL, _PRICE_RISE = 0.25, 1.0  # largest changes of its log(price) in another update
_BETA_EXPONENT = 3.0  # within an update, its beta is multiplied by (KL / set point) to this power ...
_RATIO_MIN, _RATIO_MAX = 0.8, 2.0  # ... with the ratio within these limits
_HELD_FROM = 0.9  # share of the set point above which an update was held
_OFFSET_GAIN = 0.3  # share of the difference between the KL on new states and the budget that is corrected at once
_OFFSET_MAX = math.log(3.0)  # largest |log| of this correction
_HORIZON = 10  # updates over which a mean budget spends what earlier updates left


class PolicyConstraint:
    """A constraint on KL(old policy || policy) or on KL(policy || reference) during one update of `BudgetPPO`.

    The KL to the old policy starts at 0, and a `KLBudget` changes its beta at intervals within the update, so that the
    optimizer itself ends the update near the set point. At the end the displacement of the actor's weights is scaled so
    that the KL is at the set point.

    The beta of the KL to the reference is an estimate of the Lagrange multiplier, which is changed once in an update.
    Within the update it is multiplied by (KL / set point)^3 at each interval, as in the method of multipliers with an
    augmented Lagrangian: the optimizer itself then returns to the set point, and the scaling at the end, which changes
    all weights by the same factor and costs reward, is small. At the end of the update, beta is multiplied by the mean
    of these factors and by the ratio that remains, so that it is constant where the KL is at the set point on average.

    The KL to the reference increases over many updates. Its beta starts near the Lagrange multiplier and decreases
    slowly, because the optimizer spends the KL on changes with little reward if beta is low before the KL is at its
    budget. With advantages of unit variance, the reward is about c sqrt(KL) with c from 0.1 to 0.5, so that the
    multiplier is c / (2 sqrt(budget)). For the same reason, a KL that is far below the budget at the start of an update
    is increased by the optimizer alone, and not by scaling.

    With `mean_over_updates`, the mean of KL(old policy || policy) over the updates is held at the budget. An update may
    have its own budget and a tenth of what earlier updates left, and the displacement is only reduced. With
    `budget_decay`, the budget of an update decreases during the training, see `_share_of_update`.

    Args:
        update: The update that it is a part of.
        name: The attribute of the model that holds the controller: "old_budget" or "budget".
    """

    def __init__(self, update: Any, name: str) -> None:
        self.update, self.model, self.name = update, update.model, name
        self.is_old = name == "old_budget"
        self.is_mean = self.is_old and self.model.mean_over_updates
        self.share = _share_of_update(self.model) if self.is_old else 1.0
        self.metric = "kl_old_policy_per_step" if self.is_old else "kl_policy_ref_per_step"
        self.anchor: ActorCriticPolicy = self.model.old if self.is_old else self.model.reference
        self.anchor_on_rollout: ActionDistributions = update.old if self.is_old else update.reference
        self.states: States = update.states
        self.anchor_distributions = self.anchor_on_rollout
        self.has_fixed_states = not self.is_old and self.model.reference_states is not None
        if self.has_fixed_states:
            self.metric = "kl_policy_ref_per_reference_step"
            self.states, view_of_reference = update.fixed_states
            self.anchor_distributions = action_distributions(self.anchor, view_of_reference)
        self.scales_weights = isinstance(self.controller, KLBudget)
        self.learning_rate_scales: list[float] = []
        self.displacement_scale = 1.0
        self.beta_factor, self.log_beta_factors = 1.0, [0.0]
        self.highest_kl = 0.0  # within the update
        self.is_far_below = False  # at the start of the update
        if self.scales_weights:
            self._start_update()

    @property
    def controller(self) -> Any:
        """The controller's present state, which is an attribute of the model so that it is saved with it."""
        return getattr(self.model, self.name)

    @controller.setter
    def controller(self, controller: Controller) -> None:
        setattr(self.model, self.name, controller)

    @property
    def set_point(self) -> float:
        """The KL at the end of the update for which the KL on the states of the next rollout is the budget.

        With a budget of the mean, it is the budget of the update and a share of what earlier updates left, which is
        stored as an offset.
        """
        offset = max(-_OFFSET_MAX, min(_OFFSET_MAX, self.controller.kl_filter.offset))
        return self.controller.target * (self.share + math.expm1(-offset))

    def penalty(self, obs: Any, now: ActionDistributions) -> Tensor:
        """Return beta, with its factor within the update, times the KL at each state of a minibatch, shape (states,).

        Args:
            obs: The observations of the policy.
            now: The policy's action distributions at these.
        """
        rows = self.update.batch_rows
        anchor = action_distributions(self.anchor, obs) if rows is None else self.anchor_on_rollout.rows(rows)
        beta = self.beta_factor * self.controller.beta
        return beta * self._kl(now, anchor, ActionDistributions.kl_with_torch_gradient)

    def mean_kl(self) -> float:
        """The mean KL of the present policy, over all states of the rollout or over the fixed states."""
        if self.has_fixed_states:
            now = action_distributions(self.model.policy, self.states)
        else:
            now = self.update.policy_distributions()
        kl = float(self._kl(now, self.anchor_distributions, ActionDistributions.kl_to).double().mean())
        return require_kl(kl, self.metric)

    def after_interval(self, steps: int, *, is_late: bool) -> None:
        """Measure the KL after a number of optimizer steps, change the price, and scale the displacement if it is high.

        Args:
            steps: The number of steps since the last measurement.
            is_late: Whether the second half of the update has begun. Before, the KL to the old policy is below its set
                point in any case.
        """
        budget, kl, set_point = self.controller, self.mean_kl(), self.set_point
        self.highest_kl = max(self.highest_kl, kl)
        predicted = kl + _LEAD * (kl - budget.filtered_kl)
        if self.is_old and (predicted > set_point or is_late):
            budget = budget.update_price(predicted, set_point=set_point, steps=steps)
        is_high = kl > _LIMIT * set_point
        if is_high:  # A high price keeps the KL near its set point; scaling the displacement also removes progress.
            budget = budget.with_price(_PRICE_JUMP * budget.price)
        if not self.is_old:
            self.beta_factor = max(_RATIO_MIN, min(_RATIO_MAX, kl / set_point)) ** _BETA_EXPONENT
            self.log_beta_factors.append(math.log(self.beta_factor))
        if self.is_old or self.has_fixed_states:
            change = _STEP_CUT if is_high else _STEP_GROWTH ** min(steps, _GROWTH_STEPS)
            budget = replace(budget, learning_rate_scale=min(1.0, change * budget.learning_rate_scale))
        else:  # The KL on the states of the next rollout follows the KL on these states only if the steps are small.
            budget = budget.update_learning_rate_scale(budget.filtered_kl, kl, steps=steps)
        self.controller = replace(budget, kl_filter=_measured(budget.kl_filter, kl))
        if is_high:
            self.scale_to(set_point, kl)

    def after_steps(self) -> None:
        """Change the price of the KL to the reference by the KL after all optimizer steps of the update."""
        if self.is_old:
            return
        budget, set_point, kl = self.controller, self.set_point, self.mean_kl()
        if self.is_far_below and kl < _FAR_BELOW * set_point:
            factor = _PRICE_DECAY
        else:
            change = fmean(self.log_beta_factors) + (math.log(kl / set_point) if kl > 0 else -math.inf)
            factor = math.exp(max(-_PRICE_FALL, min(_PRICE_RISE, change)))
        self.controller = budget.with_price(factor * budget.price)

    def scale_to(self, set_point: float, kl: float) -> float:
        """Scale the displacement of the actor's weights once, for the KL to be at the set point.

        Args:
            set_point: The KL in nats.
            kl: The present KL.

        Returns:
            The KL after it.
        """
        factor = (set_point / kl) ** (1 / self.controller.pull_exponent.value)
        weights, anchors = (self.update.policy_weights(policy) for policy in (self.model.policy, self.anchor))
        scale_displacement(weights, anchors, factor)
        self.update.present = None
        self.displacement_scale *= factor
        after = self.mean_kl()
        budget = self.controller
        exponent = budget.pull_exponent
        if factor != 1.0 and min(kl, after) > 0:
            exponent = exponent.after_scaling(math.log(factor), math.log(after / kl))
        self.controller = replace(budget, pull_exponent=exponent, kl_filter=_measured(budget.kl_filter, after))
        return after

    def scale_to_budget(self, *, may_increase: bool) -> bool:
        """Scale the displacement at the end of the update until the KL is at the set point.

        Args:
            may_increase: Whether a KL that is slightly short of a binding budget may be increased to it.

        Returns:
            Whether the weights were changed.
        """
        set_point, kl, first = self.set_point, self.mean_kl(), self.displacement_scale
        if self.is_far_below:
            least = _FAR_BELOW * set_point
        else:
            least = (_OUTWARD_FROM_HIGH if self.highest_kl > set_point else _OUTWARD_FROM) * set_point
        may_increase = may_increase and not self.is_mean and self.controller.status != "not binding" and kl > least
        for _ in range(_MAX_SCALINGS):
            if (set_point / _TOLERANCE <= kl or not may_increase) and kl <= _TOLERANCE * set_point:
                break
            kl = self.scale_to(set_point, kl)
        self.controller = replace(self.controller, kl_filter=_measured(self.controller.kl_filter, kl))
        return self.displacement_scale != first

    def end(self, estimate: Estimate) -> None:
        """Log the controller's outputs, and update a controller other than `KLBudget` with the KL of the update."""
        record, suffix = self.model.logger.record, "_old" if self.is_old else ""
        record(f"train/beta{suffix}", self.controller.beta)
        if self.scales_weights:
            scales = self.learning_rate_scales or [self.controller.learning_rate_scale]
            record(f"train/kl_filtered{suffix}", self.controller.filtered_kl)
            record(f"train/learning_rate_scale{suffix}", sum(scales) / len(scales))
            record(f"train/displacement_scale{suffix}", self.displacement_scale)
            if self.is_old and self.model.budget_decay:
                record("train/kl_budget_old", self.share * self.controller.target)
            if self.is_mean:
                self._spend(estimate.value)
        else:
            self.controller = self.controller.update(estimate.value, std_error=estimate.std_error, count=estimate.count)

    def _start_update(self) -> None:
        """Reset the KL to the old policy, or correct the set point by the KL to the reference on the new states."""
        budget = self.controller
        if self.is_old:
            offset = budget.kl_filter.offset if self.is_mean else 0.0
            self.controller = replace(budget, kl_filter=KLFilter(offset=offset), pull_exponent=PullExponent())
            return
        if budget == KLBudget(budget.target, unit="step"):  # the initial state with default settings
            budget = budget.with_price(_INITIAL_PRICE * math.sqrt(budget.target))
        kl, kl_filter = self.mean_kl(), budget.kl_filter
        was_held = budget.status != "not binding" and budget.filtered_kl > _HELD_FROM * self.set_point
        if not self.has_fixed_states and was_held and kl > 0:
            # The offset is log(KL on new states / KL on the states of the update). Integral control of the KL, not of
            # its logarithm, makes the mean KL equal to the budget.
            offset = kl_filter.offset + _OFFSET_GAIN * min(1.0, kl / budget.target - 1)
            kl_filter = replace(kl_filter, offset=max(-_OFFSET_MAX, min(_OFFSET_MAX, offset)))
        self.controller = replace(budget, kl_filter=_measured(kl_filter, kl))
        self.is_far_below = kl < _FAR_BELOW * self.set_point

    def _spend(self, kl: float) -> None:
        """Set the set point of the next update to its budget and a share of what the updates so far have left.

        What is left is the sum of the budgets minus the sum of the KLs, within 0 and `_HORIZON` mean budgets.
        """
        budget, own = self.controller, self.share * self.controller.target
        left = _HORIZON * (self.set_point - own) + own - kl
        share = max(0.0, min(1.0, left / (_HORIZON * budget.target)))
        self.controller = replace(budget, kl_filter=replace(budget.kl_filter, offset=-math.log1p(share)))

    def _kl(self, now: ActionDistributions, anchor: ActionDistributions, kl: Any) -> Tensor:
        """The KL at each state in the constraint's direction."""
        return kl(anchor, now) if self.is_old else kl(now, anchor)


def _share_of_update(model: Any) -> float:
    """The budget of the present update as a multiple of its mean over the training.

    The share is the mean of (1 + decay) x^decay over the update, where x is the remaining part of the training, so that
    the mean over the updates is 1.
    """
    if not model.budget_decay or not model._total_timesteps:
        return 1.0
    length = model.n_steps * model.n_envs / model._total_timesteps
    end = max(0.0, 1 - model.num_timesteps / model._total_timesteps)
    return ((end + length) ** (1 + model.budget_decay) - end ** (1 + model.budget_decay)) / length


def _measured(kl_filter: KLFilter, kl: float) -> KLFilter:
    """The state of the filter after a measurement without error."""
    return replace(kl_filter, value=kl, rel_std_error=0.0, covariance=0.0)
