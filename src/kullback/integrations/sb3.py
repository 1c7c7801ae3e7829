"""PPO by stable-baselines3, with the KL of the policy held at a budget."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kullback.errors import BudgetError
from kullback.integrations.sb3_budget import PolicyConstraint
from kullback.integrations.sb3_policies import (
    ActionDistributions,
    ObservationStatistics,
    States,
    action_distributions,
    actor_weights,
    as_states,
    estimate_mean_kl,
    flattened_states,
    frozen_policy_copy,
    require_plain_policy,
    require_same_actions,
    require_same_shape,
    rollout_episodes,
    rollout_states,
    select_states,
)

# isort: split
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from torch import Tensor

from kullback.budget.controllers import Controller
from kullback.budget.displacement import scale_displacement
from kullback.budget.kl_budget import MAX_BUDGET_DECAY, KLBudget
from kullback.numerics.arguments import is_number
from kullback.result import Estimate
from kullback.samples.clustered_mean import kl_per_token

__all__ = ["BudgetPPO"]

_MEASUREMENTS = 20  # number of measurements of the KL in one update
_MAX_ROUNDS = 4  # number of times that two budgets are held one after the other at the end of an update


class BudgetPPO(PPO):
    """The `PPO` of stable-baselines3 with an exact KL penalty at every visited state, and with the KL held at budgets.

    loss = PPO's loss + beta E_s[KL(policy || reference)] + beta_old E_s[KL(old policy || policy)]

    The expectations are over the visited states s, which are held fixed. The old policy is the policy that collected
    the rollout; the reference is frozen. Each beta is set by its controller.

    A `KLBudget` changes beta within the update. At the end of the update, it scales the displacement of the actor's
    weights from the reference or from the old policy, so that the KL is at most the budget (see docs/ppo.md). Other
    controllers are updated with the KL once per update.

    Without budgets, and with a clip, the trained weights are bit-identical to the weights of `PPO`: `train` is wrapped,
    not copied. The measured KLs are logged under "train/": KL(policy || reference) before an update, on the states that
    the policy visited; KL(old policy || policy), and KL(policy || reference) at the `reference_states`, after it.
    `BudgetPPO.load` uses pickle, as all of stable-baselines3 does.

    Of the settings of a `KLBudget`, `step_limit` has an effect only in a `budget` without `reference_states`, and
    `gain` only in an `old_budget`.

    Args:
        policy: As for `PPO`.
        env: As for `PPO`.
        budget: The controller of KL(policy || reference), in nats per step. A `KLBudget` with default settings starts
            at a beta of 0.06 / sqrt(target). None: the KL is measured but not controlled.
        old_budget: The controller of KL(old policy || policy) over one update, in nats per step. This is the direction
            of the PPO paper.
        mean_over_updates: Whether a `KLBudget` as `old_budget` holds the mean of the KL over the updates instead of the
            KL of each update. An update may then have less, and at most twice the budget.
        budget_decay: The exponent of the decay of a `KLBudget` as `old_budget` during `learn`: the budget of an update
            is (1 + decay) x^decay times the budget, where x is the remaining part of the training. Its mean over the
            updates is the budget. 0 for no decay.
        reference: A trained policy of the same shape, or the algorithm that contains it. Training starts from its
            weights. None: with a `budget`, the initial policy is the reference. If the environment of the algorithm is
            a `VecNormalize`, the reference acts on observations that are normalised by its statistics at this time.
        reference_env: The environment that the reference was trained in, if `reference` is a policy, or an algorithm
            without an environment, and the environment `env` is a `VecNormalize`.
        reference_states: Fixed states on which the `budget` holds the KL, such as states that the reference visits, as
            observations before any normalisation by `VecNormalize`: a tensor or an array of shape (states, ...), or one
            for each key of a dictionary of observations. None: the states that the policy visits, which
            differ in each update.
        clip: The clip range of the probability ratio, or a schedule of it; None disables clipping.
        **kwargs: As for `PPO`, except `clip_range`.

    Raises:
        BudgetError: A budget is not per step; `reference_states` are not observations of the environment; the reference
            differs from the policy in shape; the policy or the reference has action masks or a recurrent state; or the
            statistics of the reference are unknown.

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
        mean_over_updates: bool = False,
        budget_decay: float = 0.0,
        reference: Any = None,
        reference_env: VecNormalize | None = None,
        reference_states: States | None = None,
        clip: Any = 0.2,
        **kwargs: Any,
    ) -> None:
        if "clip_range" in kwargs:
            raise BudgetError("expected the argument clip (which may be None), got clip_range")
        self.budget, self.old_budget = budget, old_budget
        self.mean_over_updates, self.budget_decay = mean_over_updates, budget_decay
        self.reference: Any = reference
        self.reference_env = reference_env
        self.has_reference = False
        self.reference_statistics: ObservationStatistics | None = None
        self.shares_observations, self.has_observations_of_reference = True, False
        self.reference_states = reference_states
        self.raw_observations: list[Any] = []
        super().__init__(policy, env, clip_range=math.inf if clip is None else clip, **kwargs)

    @classmethod
    def load(cls, path: Any, env: Any = None, *args: Any, **kwargs: Any) -> "BudgetPPO":  # type: ignore[override]
        """Load a saved `BudgetPPO`, or a saved `PPO`, whose policy is then the reference of a `budget`.

        Args:
            path: A zip file that `save` wrote.
            env: As for `PPO.load`.
            *args: As for `PPO.load`.
            **kwargs: As for `PPO.load`. Arguments of the constructor replace what was saved: budget, old_budget,
                mean_over_updates, budget_decay, reference, reference_env, reference_states and clip.

        Returns:
            The algorithm.

        Raises:
            BudgetError: As for the constructor.
        """
        if "clip" in kwargs:
            clip = kwargs.pop("clip")
            kwargs["clip_range"] = math.inf if clip is None else clip
        return super().load(path, env, *args, **kwargs)

    def train(self) -> None:
        """Update the policy on the collected rollout with the penalties in the loss, and hold the budgets."""
        self.old.load_state_dict(self.policy.state_dict())
        update = _Update(self)
        with update.penalised_loss(), update.controlled_steps():
            super().train()
        update.end()

    def collect_rollouts(self, env: Any, callback: Any, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Collect a rollout, and record the observations before normalisation if the reference needs them."""
        with _recorded_observations(self, env, rollout_buffer):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: Any = "auto") -> None:
        """Load parameters; a given reference is kept, and without any reference the loaded policy becomes it."""
        params = load_path_or_dict
        if self.has_reference and isinstance(params, dict) and (self.is_reference_given or "reference" not in params):
            own = self.reference.state_dict() if self.is_reference_given else params["policy"]
            params = {**params, "reference": own}
        super().set_parameters(params, exact_match=exact_match, device=device)

    def _setup_model(self) -> None:
        for name in ("budget", "old_budget"):
            controller = getattr(self, name)
            if controller is not None and not (hasattr(controller, "beta") and hasattr(controller, "update")):
                raise BudgetError(
                    f"expected {name} to be a controller such as KLBudget(0.01, unit='step'), got {controller!r}"
                )
            if isinstance(controller, KLBudget) and controller.unit != "step":
                raise BudgetError(
                    f"expected {name} per 'step', got {controller.unit!r}: the KL is a mean over visited states"
                )
        if self.mean_over_updates and not isinstance(self.old_budget, KLBudget):
            raise BudgetError(
                f"expected a KLBudget as old_budget with mean_over_updates=True, got {self.old_budget!r}: other "
                "controllers do not hold a mean"
            )
        if not (is_number(self.budget_decay) and 0 <= self.budget_decay <= MAX_BUDGET_DECAY):
            raise BudgetError(f"expected budget_decay from 0 to {MAX_BUDGET_DECAY:g}, got {self.budget_decay!r}")
        if self.budget_decay and not isinstance(self.old_budget, KLBudget):
            raise BudgetError(
                f"expected a KLBudget as old_budget with budget_decay={self.budget_decay}, got {self.old_budget!r}"
            )
        require_plain_policy(self.policy_class, "policy")
        super()._setup_model()
        given, self.is_reference_given = self.reference, self.reference is not None
        self.has_reference = self.has_reference or self.is_reference_given or self.budget is not None
        if self.reference_states is not None:
            if not self.has_reference:
                raise BudgetError(
                    "expected a budget or a reference with reference_states, got none: they are the states of "
                    "KL(policy || reference)"
                )
            self.reference_states = as_states(self.reference_states, self.observation_space, self.device)
        if self.is_reference_given:
            reference = getattr(given, "policy", given)
            require_plain_policy(type(reference), "reference")
            require_same_shape(self.policy, reference.state_dict())
            self.policy.load_state_dict(reference.state_dict())
            require_same_actions(self.policy, reference)
        if self.has_reference and (self.is_reference_given or not self.has_observations_of_reference):
            _set_observations_of_reference(self, given)
        self.reference_env = None
        self.reference = frozen_policy_copy(self) if self.has_reference else None
        self.old = frozen_policy_copy(self)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "reference", "old", "raw_observations", "is_reference_given"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return [*modules, *(["reference"] if self.has_reference else [])], tensors


def _set_observations_of_reference(model: BudgetPPO, given: Any) -> None:
    """Determine how the reference normalises observations: as the policy does, by frozen statistics, or not."""
    own = ObservationStatistics.of(model.env)
    environment = model.reference_env
    if environment is None and given is not None:
        environment = getattr(given, "env", None)
        if environment is None and own is not None:
            raise BudgetError(
                "expected a reference_env, since the policy's observations are normalised by VecNormalize and the "
                f"reference is {type(given).__name__} without an environment; pass the VecNormalize that the "
                "reference was trained with, or the reference's own unnormalised environment"
            )
    model.has_observations_of_reference = True
    if environment is None:
        # Statistics without data are trained from the start, as the policy is, and both policies share them.
        model.shares_observations = own is None or own.is_fresh
        model.reference_statistics = None if model.shares_observations else own
        return
    model.reference_statistics = ObservationStatistics.of(environment)
    model.shares_observations = own is None and model.reference_statistics is None
    if not (model.shares_observations or (own is not None and own.is_equal(model.reference_statistics))):
        warnings.warn(
            "The policy starts from the weights of the reference, but VecNormalize normalises their observations "
            "differently, so that KL(policy || reference) is not 0 at the start and a small budget cannot be met. "
            "Load the statistics of the reference into the policy's environment by VecNormalize.load, and set "
            "training = False, to start at a KL of 0.",
            stacklevel=4,
        )


@contextmanager
def _recorded_observations(model: BudgetPPO, env: Any, buffer: Any) -> Iterator[None]:
    """Within the context, the observations before VecNormalize are recorded, if the reference needs them."""
    wrapper = unwrap_vec_normalize(env)
    model.raw_observations = []
    if model.shares_observations or model.reference is None or wrapper is None or not wrapper.norm_obs:
        yield
        return
    add, last = buffer.add, [wrapper.get_original_obs()]

    def add_and_record(*args: Any, **kwargs: Any) -> None:
        # The environment has already taken the step from the observation that is added.
        model.raw_observations.append(last[0])
        last[0] = wrapper.get_original_obs()
        add(*args, **kwargs)

    buffer.add = add_and_record
    try:
        yield
    finally:
        del buffer.add


def _states_of_reference(model: BudgetPPO, states: States) -> States:
    """The states of the rollout as the reference observes them."""
    if model.shares_observations:
        return states
    raw: Any = states
    if model.raw_observations:
        first = model.raw_observations[0]
        recorded: Any = (
            {key: np.stack([observations[key] for observations in model.raw_observations]) for key in first}
            if isinstance(first, dict)
            else np.stack(model.raw_observations)
        )
        raw = flattened_states(model.rollout_buffer, recorded)
        if _shapes(raw) != _shapes(states):
            raise BudgetError(
                "expected VecNormalize as the outermost wrapper of the environment, but its observations have the "
                f"shapes {_shapes(raw)}, and the policy's have {_shapes(states)}: the reference normalises "
                "observations differently, and cannot be given the policy's"
            )
    return _normalized(raw, model.reference_statistics)


def _views_of_fixed_states(model: BudgetPPO) -> tuple[States, States]:
    """The `reference_states` as the policy observes them, and as the reference observes them."""
    states = model.reference_states
    assert states is not None
    own = _normalized(states, ObservationStatistics.of(model.env))
    return own, own if model.shares_observations else _normalized(states, model.reference_statistics)


def _normalized(states: States, statistics: ObservationStatistics | None) -> States:
    """Observations of an environment as a policy with these statistics observes them."""
    return states if statistics is None else statistics.normalize(states)


def _shapes(states: States) -> Any:
    """The shape of states, or the shapes by name."""
    return {key: tuple(v.shape) for key, v in states.items()} if isinstance(states, dict) else tuple(states.shape)


class _Update:
    """One update of the policy: its constraints, their penalties, and what is measured."""

    def __init__(self, model: BudgetPPO) -> None:
        self.model, self.policy = model, model.policy
        self.states = rollout_states(model.rollout_buffer)
        self.episodes = rollout_episodes(model.rollout_buffer)
        self.actor = actor_weights(model.policy, select_states(self.states, slice(2)))
        self.old = action_distributions(model.old, self.states)
        # The distributions of the policy, which is the old policy until its weights change; None: not computed yet.
        self.present: ActionDistributions | None = self.old
        self.reference: ActionDistributions | None = None
        if model.reference is not None:
            self.reference = action_distributions(model.reference, _states_of_reference(model, self.states))
        if model.reference_states is not None:
            self.fixed_states = _views_of_fixed_states(model)
        self.batch_rows: np.ndarray[Any, Any] | None = None
        self.entropies: list[float] = []
        self.weights_before: list[Tensor] = []
        self.initial = None if self.reference is None else self.rollout_kl(self.policy_distributions(), self.reference)
        names = ("budget", "old_budget")
        self.constraints = [PolicyConstraint(self, name) for name in names if getattr(model, name) is not None]

    @contextmanager
    def penalised_loss(self) -> Iterator[None]:
        """Within the context, the loss contains the penalties, which are added to the entropy term of each state."""
        model, evaluate, weight = self.model, self.policy.evaluate_actions, self.model.ent_coef
        if not self.constraints:
            yield
            return

        buffer = model.rollout_buffer
        select, make_distribution = buffer._get_samples, self.policy._get_action_dist_from_latent
        distributions: list[Any] = []

        def select_and_record(rows: Any, *args: Any, **kwargs: Any) -> Any:
            self.batch_rows = rows
            return select(rows, *args, **kwargs)

        def make_and_record(*args: Any, **kwargs: Any) -> Any:
            distributions.append(make_distribution(*args, **kwargs))
            return distributions[-1]

        def evaluate_with_penalty(obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            distributions.clear()
            values, log_prob, entropy = evaluate(obs, actions)
            entropy = -log_prob if entropy is None else entropy
            self.entropies.append(float(entropy.detach().mean()))
            # The distributions of the loss are used again; a policy class with its own methods makes them once more.
            now = ActionDistributions.of(distributions[-1] if distributions else self.policy.get_distribution(obs))
            penalty = sum(constraint.penalty(obs, now) for constraint in self.constraints)
            return values, log_prob, weight * entropy - penalty

        policy: Any = self.policy
        policy.evaluate_actions, policy._get_action_dist_from_latent = evaluate_with_penalty, make_and_record
        buffer._get_samples = select_and_record  # type: ignore[method-assign]
        model.ent_coef = 1.0
        try:
            yield
        finally:
            del policy.evaluate_actions, policy._get_action_dist_from_latent, buffer._get_samples
            model.ent_coef = weight
        model.logger.record("train/entropy_loss", -float(np.mean(self.entropies)))

    @contextmanager
    def controlled_steps(self) -> Iterator[None]:
        """Within the context, each `KLBudget` acts on the optimizer steps."""
        constraints = [constraint for constraint in self.constraints if constraint.scales_weights]
        if not constraints:
            yield
            return
        batches = -(-len(self.episodes) // self.model.batch_size)
        total = self.model.n_epochs * batches
        interval = max(1, round(total / _MEASUREMENTS))
        step, scale, weights = 0, 1.0, self.policy_weights(self.policy)

        def before(*_: Any) -> None:
            nonlocal scale
            # The constraints share one step.
            scale = min(constraint.controller.learning_rate_scale for constraint in constraints)
            for constraint in constraints:
                constraint.learning_rate_scales.append(scale)
            self.weights_before = []
            if scale < 1.0:
                self.weights_before = [weight.detach().clone() for weight in weights]

        def after(*_: Any) -> None:
            nonlocal step
            step += 1
            self.present = None
            if self.weights_before:  # Equivalent to the factor on the learning rate, but for the actor alone.
                scale_displacement(weights, self.weights_before, scale)
            if step % interval == 0 and step < total:
                for constraint in constraints:
                    constraint.after_interval(interval, is_late=2 * step > total)

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
        """Scale the displacement until the KLs are at the budgets, update the controllers, and log."""
        model, self.present = self.model, None
        held = [constraint for constraint in self.constraints if constraint.scales_weights]
        for constraint in held:
            constraint.after_steps()
        for _ in range(_MAX_ROUNDS):
            # The budget of the old policy is last, since a scaling for one budget may change the KL of the other.
            changes = [constraint.scale_to_budget(may_increase=len(held) == 1) for constraint in held]
            if len(held) < 2 or not any(changes):
                break
        estimates = {"kl_old_policy_per_step": self.rollout_kl(self.old, self.policy_distributions())}
        if self.initial is not None:
            estimates["kl_policy_ref_per_step"] = self.initial
        if model.reference is not None and model.reference_states is not None:
            estimates["kl_policy_ref_per_reference_step"] = estimate_mean_kl(
                self.policy, model.reference, *self.fixed_states
            )
        for constraint in self.constraints:
            constraint.end(estimates[constraint.metric])
        for key, estimate in estimates.items():
            model.logger.record(f"train/{key}", estimate.value)
            model.logger.record(f"train/{key}_std_error", estimate.std_error)

    def rollout_kl(self, p: ActionDistributions, q: ActionDistributions) -> Estimate:
        """Estimate the mean KL(p || q) over the rollout's states, with episodes as the independent samples."""
        kls = p.kl_to(q).double().cpu().numpy()
        sums, lengths = np.bincount(self.episodes, kls), np.bincount(self.episodes)
        return kl_per_token(sums, lengths, np.arange(len(sums)))

    def policy_distributions(self) -> ActionDistributions:
        """The action distributions of the present policy at the states of the rollout."""
        if self.present is None:
            self.present = action_distributions(self.policy, self.states)
        return self.present

    def policy_weights(self, policy: ActorCriticPolicy) -> list[Tensor]:
        """Return the weights of a policy's actor."""
        return [policy.get_parameter(name) for name in self.actor]
