"""Policies of stable-baselines3: the exact KL between two policies, frozen copies, and the weights of the actor."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from kullback.errors import BudgetError, MissingDependencyError, NoClosedFormError, ShapeError

try:
    import numpy as np
    import torch
    from stable_baselines3.common.distributions import (
        BernoulliDistribution,
        CategoricalDistribution,
        DiagGaussianDistribution,
        Distribution,
        MultiCategoricalDistribution,
        StateDependentNoiseDistribution,
    )
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.preprocessing import get_obs_shape
    from stable_baselines3.common.vec_env import unwrap_vec_normalize
except ModuleNotFoundError as error:
    if error.name not in ("torch", "stable_baselines3", "gymnasium"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[rl]'") from error

from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence
from torch.distributions import Distribution as TorchDistribution
from torch.nn.functional import kl_div

from kullback.distributions import kl
from kullback.numerics.arguments import shown
from kullback.result import Estimate
from kullback.runs.finite import require_finite
from kullback.samples.clustered_mean import kl_per_token

__all__ = [
    "ActionDistributions",
    "ObservationStatistics",
    "States",
    "action_distributions",
    "actor_weights",
    "as_states",
    "differentiable_kl_per_state",
    "estimate_mean_kl",
    "flattened_states",
    "frozen_policy_copy",
    "kl_per_state",
    "policy_kl",
    "require_plain_policy",
    "require_plain_policy_of",
    "require_same_actions",
    "require_same_shape",
    "rollout_episodes",
    "rollout_states",
    "select_states",
]

_MASKED = (
    "expected a {what} without action masks, got {name} of MaskablePPO: PPO takes actions that are masked, where the "
    "KL is infinite. Train without masks, with a penalty for invalid actions in the reward; the KL of two masked "
    "policies is policy_kl(p.get_distribution(states, masks), q.get_distribution(states, masks))"
)
_RECURRENT = (
    "expected a {what} without a recurrent state, got {name} of RecurrentPPO: its action distribution depends on the "
    "whole episode. Use a feedforward policy, with the last observations stacked by VecFrameStack"
)

States = Tensor | dict[str, Tensor]

_CHUNK = 1024  # states of one forward pass
_COMPARED, _MODERATE = 8, 10.0  # random observations, and their largest absolute value
_SAME_ACTIONS = 1e-6  # nats
_FACTORISED = (BernoulliDistribution, DiagGaussianDistribution, StateDependentNoiseDistribution)
_SUPPORTED = (CategoricalDistribution, MultiCategoricalDistribution, *_FACTORISED)
# The distributions of sb3-contrib with action masks, and the class with the same set of actions and no masks.
_UNMASKED = {
    "MaskableCategoricalDistribution": "CategoricalDistribution",
    "MaskableMultiCategoricalDistribution": "MultiCategoricalDistribution",
}


@dataclass(frozen=True)
class ActionDistributions:
    """The action distributions of a policy at a number of states.

    stable-baselines3 reuses one object for the distributions at any states, so that a copy is required to keep them.

    Args:
        name: The name of the class of stable-baselines3; the names of two classes with one set of actions are equal.
        factorised: Whether the last axis of the parts' batch shape indexes independent components of an action.
        parts: The torch distributions, of which a multi-categorical distribution has several; rows of a categorical
            distribution that were selected by `rows` are `_LogProbabilities`.
    """

    name: str
    factorised: bool
    parts: list[Any]

    @classmethod
    def of(cls, distribution: Any) -> "ActionDistributions":
        """The action distributions in an object of stable-baselines3 or sb3-contrib.

        Raises:
            NoClosedFormError: The object is of another class.
        """
        is_masked = hasattr(distribution, "apply_masking")
        name = type(distribution).__name__
        if not (isinstance(distribution, _SUPPORTED) or is_masked):
            raise NoClosedFormError(f"expected a distribution class of stable-baselines3, got {name}")
        parts = getattr(distribution, "distributions", None) if is_masked else None
        parts = distribution.distribution if parts is None else parts
        parts = [_with_impossible_actions(part) for part in (parts if isinstance(parts, list) else [parts])]
        squashed = "" if getattr(distribution, "bijector", None) is None else ", squashed"
        return cls(_UNMASKED.get(name, name) + squashed, isinstance(distribution, _FACTORISED), parts)

    def rows(self, index: Any) -> "ActionDistributions":
        """The distributions at the states with these indices."""
        return ActionDistributions(self.name, self.factorised, [_rows(part, index) for part in self.parts])

    def kl_to(self, q: "ActionDistributions") -> Tensor:
        """KL(self || q) at each state; see `policy_kl`."""
        self._require_same_actions(q)
        kls = [kl(p_part, q_part) for p_part, q_part in zip(self.parts, q.parts, strict=True)]
        return kls[0].sum(-1) if self.factorised else torch.stack(kls).sum(0)

    def kl_with_torch_gradient(self, q: "ActionDistributions") -> Tensor:
        """KL(self || q) at each state by the formulas of PyTorch, whose gradient takes a third of the time of `kl_to`.

        The gradient is accurate. The value is not: in float32 it has an absolute rounding error of about 1e-7 nats.
        """
        kls = [_kl_with_torch_gradient(p_part, q_part) for p_part, q_part in zip(self.parts, q.parts, strict=True)]
        return kls[0].sum(-1) if self.factorised else sum(kls[1:], kls[0])

    def _require_same_actions(self, q: "ActionDistributions") -> None:
        """Raise NoClosedFormError or ShapeError unless self and q are of one class, and of one shape."""
        if self.name != q.name:
            raise NoClosedFormError(f"expected two distributions of one class, got {self.name} and {q.name}")
        shapes = [[tuple(getattr(part, "param_shape", part.batch_shape)) for part in side.parts] for side in (self, q)]
        if shapes[0] != shapes[1]:
            raise ShapeError(f"expected equal shapes (states, actions), got {shapes[0]} and {shapes[1]}")


class _LogProbabilities(NamedTuple):
    """Normalised log-probabilities of shape (states, actions), which a `Categorical` would normalise once more."""

    logits: Tensor


def _rows(part: Any, index: Any) -> Any:
    """The rows of a torch distribution with these indices; its parameters have been validated."""
    if isinstance(part, Normal):
        return Normal(part.loc[index], part.scale[index], validate_args=False)
    if isinstance(part, Categorical):
        return _LogProbabilities(part.logits[index])
    return type(part)(logits=part.logits[index], validate_args=False)


def _kl_with_torch_gradient(p: Any, q: Any) -> Tensor:
    """KL(p || q) at each state; for categorical distributions by one function of PyTorch, instead of ten."""
    if isinstance(p, (Categorical, _LogProbabilities)):
        return kl_div(q.logits, p.logits, reduction="none", log_target=True).sum(-1)
    return kl_divergence(p, q)


def _joined(parts: list[Any]) -> TorchDistribution:
    """The torch distribution with the rows of several."""
    if isinstance(parts[0], Normal):
        return Normal(torch.cat([p.loc for p in parts]), torch.cat([p.scale for p in parts]), validate_args=False)
    return type(parts[0])(logits=torch.cat([p.logits for p in parts]), validate_args=False)


def _with_impossible_actions(part: Any) -> Any:
    """A categorical distribution in which masked actions are impossible; other distributions unchanged.

    sb3-contrib sets the logits of masked actions to -1e8, for which the KL would be about 1e8 in place of infinite.
    """
    masks = getattr(part, "masks", None)
    if not hasattr(part, "apply_masking"):
        return part
    logits = part.logits if masks is None else torch.where(masks, part.logits, -inf)
    return Categorical(logits=logits, validate_args=False)


def policy_kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(p || q) of two action distributions, exactly, at each state.

    The KL is the sum over the independent components of an action. Squashing is a bijection, which leaves the KL
    unchanged, so that the KL of squashed normals is the KL of the normals. A masked action has the probability 0.

    Args:
        p: The result of `policy.get_distribution(states)`: categorical, multi-categorical, Bernoulli, diagonal normal
            (squashed or not), the marginal distribution of state-dependent exploration, or a categorical or
            multi-categorical distribution of sb3-contrib with action masks.
        q: Another distribution of the same class; the masks may differ, or be absent.

    Returns:
        Shape (states,), in nats, differentiable; `inf` where p allows an action that is masked in q, and where numbers
        overflow.

    Raises:
        NoClosedFormError: The classes differ, or are not classes of stable-baselines3 or sb3-contrib.
        ShapeError: The numbers of states or of actions differ.

    Example:
        >>> p = CategoricalDistribution(2).proba_distribution(torch.tensor([[0.0, 0.0]]))
        >>> q = CategoricalDistribution(2).proba_distribution(torch.tensor([[0.0, 1.0]]))
        >>> policy_kl(p, q)
        tensor([0.1201])
    """
    return ActionDistributions.of(p).kl_to(ActionDistributions.of(q))


def differentiable_kl_per_state(p: ActorCriticPolicy, q: ActorCriticPolicy, states: States) -> Tensor:
    """KL(p || q) of the action distributions of two policies at each state, in nats, differentiable."""
    return policy_kl(p.get_distribution(states), q.get_distribution(states))  # type: ignore[arg-type]


def action_distributions(policy: ActorCriticPolicy, states: States) -> ActionDistributions:
    """The action distributions of a policy at any number of states, without gradient, in evaluation mode."""
    mode = policy.training
    policy.set_training_mode(False)
    try:
        with torch.no_grad():
            count = len(next(iter(states.values())) if isinstance(states, dict) else states)
            chunks = [select_states(states, slice(start, start + _CHUNK)) for start in range(0, count, _CHUNK)]
            found = [ActionDistributions.of(policy.get_distribution(chunk)) for chunk in chunks]  # type: ignore[arg-type]
    finally:
        policy.set_training_mode(mode)
    if len(found) == 1:
        return found[0]
    parts = [_joined(list(of_part)) for of_part in zip(*(one.parts for one in found), strict=True)]
    return ActionDistributions(found[0].name, found[0].factorised, parts)


def kl_per_state(p: ActorCriticPolicy, q: ActorCriticPolicy, states: States, q_states: States | None = None) -> Tensor:
    """KL(p || q) at each state, in nats, without gradient, in evaluation mode, for any number of states.

    Args:
        p: A policy.
        q: Another policy.
        states: The states as p observes them.
        q_states: The same states as q observes them, if the two policies normalise observations differently.
    """
    q_states = states if q_states is None else q_states
    with torch.no_grad():
        return action_distributions(p, states).kl_to(action_distributions(q, q_states))


def estimate_mean_kl(
    p: ActorCriticPolicy, q: ActorCriticPolicy, states: States, q_states: States | None = None
) -> Estimate:
    """The mean of KL(p || q) over independently sampled states, in nats per state; see `kl_per_state`."""
    kls = kl_per_state(p, q, states, q_states).double().cpu().numpy()
    return kl_per_token(kls, np.ones_like(kls), np.arange(len(kls)))


def as_states(given: Any, space: Any, device: Any) -> States:
    """Observations of a space as tensors, one row for each state.

    Args:
        given: Tensors, arrays or lists of shape (states, ...); by key for a dictionary of observations.
        space: The space of observations.
        device: The device of the tensors.

    Raises:
        BudgetError: The values are not finite observations of the space, or there are none.
    """
    shapes = get_obs_shape(space)
    if not isinstance(shapes, dict):
        return _as_observations("reference_states", given, shapes, device)
    if not isinstance(given, Mapping) or given.keys() != shapes.keys():
        got = f"the keys {', '.join(map(str, given))}" if isinstance(given, Mapping) else shown(given)
        raise BudgetError(f"expected reference_states by the keys {', '.join(shapes)} of the observations, got {got}")
    return {
        key: _as_observations(f"reference_states[{key!r}]", given[key], shape, device) for key, shape in shapes.items()
    }


def _as_observations(name: str, values: Any, shape: tuple[int, ...], device: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BudgetError(f"expected {name} to be a tensor or an array of numbers, got {shown(values)}") from error
    if tensor.ndim != 1 + len(shape) or tuple(tensor.shape[1:]) != tuple(shape) or not len(tensor):
        expected = ", ".join(map(str, ("states", *shape)))
        raise BudgetError(f"expected {name} of shape ({expected}), as observations have, got {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        raise BudgetError(f"expected finite {name}, got {float(tensor[~tensor.isfinite()][0])}")
    return tensor


def select_states(states: States, index: Any) -> States:
    """The states with these indices."""
    return {key: values[index] for key, values in states.items()} if isinstance(states, dict) else states[index]


@dataclass(frozen=True)
class ObservationStatistics:
    """The statistics by which a VecNormalize normalises observations: clip((x - mean) / sqrt(var + epsilon)).

    Args:
        moments: (mean, var) by the key of a dictionary of observations; the key is None for observations without keys.
        epsilon: The number that is added to the variance.
        clip: The largest absolute value.
        is_fresh: Whether the moments are initial values, from no observation.
    """

    moments: dict[str | None, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]
    epsilon: float
    clip: float
    is_fresh: bool

    @classmethod
    def of(cls, env: Any) -> "ObservationStatistics | None":
        """A copy of the present statistics of an environment; None if its observations are not normalised."""
        wrapper = None if env is None else unwrap_vec_normalize(env)
        if wrapper is None or not wrapper.norm_obs:
            return None
        running: Any = wrapper.obs_rms
        running = running if isinstance(running, dict) else {None: running}
        moments = {key: (np.array(rms.mean), np.array(rms.var)) for key, rms in running.items()}
        is_fresh = all(rms.count < 1 for rms in running.values())
        return cls(moments, wrapper.epsilon, wrapper.clip_obs, is_fresh)

    def is_equal(self, other: "ObservationStatistics | None") -> bool:
        """Whether two policies with these statistics see the same observations."""
        if other is None or (self.epsilon, self.clip) != (other.epsilon, other.clip):
            return False
        return self.moments.keys() == other.moments.keys() and all(
            np.array_equal(a, b)
            for key in self.moments
            for a, b in zip(self.moments[key], other.moments[key], strict=True)
        )

    def normalize(self, states: States) -> States:
        """Observations of the environment, normalised."""
        if isinstance(states, dict):
            return {key: self._normalize(v, key) if key in self.moments else v for key, v in states.items()}
        return self._normalize(states, None)

    def _normalize(self, values: Tensor, key: str | None) -> Tensor:
        mean, variance = self.moments[key]
        normal = np.clip((values.cpu().numpy() - mean) / np.sqrt(variance + self.epsilon), -self.clip, self.clip)
        return torch.as_tensor(normal.astype(np.float32), device=values.device)


def rollout_states(buffer: Any) -> States:
    """All states of a rollout buffer before it is flattened, environment by environment."""
    return flattened_states(buffer, buffer.observations)


def flattened_states(buffer: Any, observations: Any) -> States:
    """Observations of shape (steps, environments, ...) as states in the order of `rollout_states`."""

    def flat(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.as_tensor(buffer.swap_and_flatten(values), device=buffer.device)

    return {k: flat(v) for k, v in observations.items()} if isinstance(observations, dict) else flat(observations)


def rollout_episodes(buffer: Any) -> np.ndarray[Any, Any]:
    """The index of the episode of each state, in the order of `rollout_states`."""
    starts = buffer.episode_starts != 0
    starts[0] = True
    return np.cumsum(starts.swapaxes(0, 1).ravel()) - 1


def frozen_policy_copy(algorithm: OnPolicyAlgorithm) -> ActorCriticPolicy:
    """A frozen copy of an algorithm's policy."""
    with torch.random.fork_rng():
        duplicate = algorithm.policy_class(
            algorithm.observation_space,
            algorithm.action_space,
            algorithm.lr_schedule,
            use_sde=algorithm.use_sde,
            **algorithm.policy_kwargs,
        ).to(algorithm.device)
    assert isinstance(duplicate, ActorCriticPolicy)
    duplicate.load_state_dict(algorithm.policy.state_dict())
    duplicate.requires_grad_(False)
    duplicate.set_training_mode(False)
    return duplicate


def actor_weights(policy: ActorCriticPolicy, states: States) -> list[str]:
    """The names of the weights that the action distribution depends on; weights of the critic alone are excluded."""
    named = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    distribution = policy.get_distribution(states)  # type: ignore[arg-type]
    log_prob = distribution.log_prob(distribution.mode()).sum()
    gradients = torch.autograd.grad(log_prob, list(named.values()), allow_unused=True)
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]


def require_plain_policy(policy_class: type, what: str) -> None:
    """Check that the action distribution of a policy depends on the observation alone.

    Raises:
        BudgetError: The policy has action masks (MaskablePPO) or a recurrent state (RecurrentPPO), or is not a policy
            of an on-policy algorithm of stable-baselines3.
    """
    name = policy_class.__name__
    evaluate = getattr(policy_class, "evaluate_actions", None)
    arguments = () if evaluate is None else inspect.signature(evaluate).parameters
    if "action_masks" in arguments:
        raise BudgetError(_MASKED.format(what=what, name=name))
    if "lstm_states" in arguments:
        raise BudgetError(_RECURRENT.format(what=what, name=name))
    if not issubclass(policy_class, ActorCriticPolicy):
        raise BudgetError(
            f"expected a {what} that is an ActorCriticPolicy of stable-baselines3, as PPO and A2C have, got {name}"
        )


def require_plain_policy_of(module: str, what: str) -> None:
    """Check by the name of its module that a saved policy has neither action masks nor a recurrent state.

    Args:
        module: The name of the module of the policy's class.
        what: "policy" or "reference", for the message.

    Raises:
        BudgetError: The policy is of MaskablePPO or RecurrentPPO of sb3-contrib.

    Example:
        >>> require_plain_policy_of("stable_baselines3.common.policies", "reference")
    """
    if module.startswith("sb3_contrib.common.maskable"):
        raise BudgetError(_MASKED.format(what=what, name="a policy"))
    if module.startswith("sb3_contrib.common.recurrent"):
        raise BudgetError(_RECURRENT.format(what=what, name="a policy"))


def require_same_shape(policy: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that the weights of a reference have the names and shapes of the policy's weights.

    Raises:
        BudgetError: A name or a shape differs. The message gives the first difference.
    """
    policy_shapes, reference_shapes = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (policy.state_dict(), weights)
    )
    for name in (*policy_shapes, *reference_shapes):
        if policy_shapes.get(name) != reference_shapes.get(name):
            raise BudgetError(
                f"expected a reference with the policy's architecture, but {name} is "
                f"{reference_shapes.get(name, 'absent')} in the reference and {policy_shapes.get(name, 'absent')} in "
                "the policy; check its environment and net_arch"
            )


def require_same_actions(policy: ActorCriticPolicy, reference: ActorCriticPolicy) -> None:
    """Check that a policy with the weights of a reference takes the actions of the reference.

    Weights of equal shapes can belong to networks with other activations, and action spaces of equal size to other
    actions.

    Args:
        policy: The policy, with the weights of the reference.
        reference: The reference.

    Raises:
        BudgetError: The action spaces differ, or the action distributions at 8 random observations.
    """
    if policy.action_space != reference.action_space:
        raise BudgetError(
            f"expected a reference with the policy's action space {policy.action_space}, got {reference.action_space}"
        )
    require_finite("weight", reference.named_parameters(), where="the reference")
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    samples = [space.sample() for _ in range(_COMPARED)]
    if isinstance(samples[0], dict):
        observations: Any = {key: _moderate([sample[key] for sample in samples]) for key in samples[0]}
    else:
        observations = _moderate(samples)
    states, _ = policy.obs_to_tensor(observations)
    device = reference.device
    try:
        largest = float(kl_per_state(policy, reference.to(policy.device), states).max())  # type: ignore[arg-type]
    except NoClosedFormError as error:
        raise BudgetError(f"expected a reference with the policy's kind of action distribution: {error}") from error
    finally:
        reference.to(device)
    if not largest <= _SAME_ACTIONS:
        raise BudgetError(
            "expected a reference with the policy's architecture, but with the same weights the KL of their actions is "
            f"{largest:.3g} nats; check activation_fn, squash_output and the features extractor in policy_kwargs"
        )


def _moderate(observations: Any) -> np.ndarray:
    """Observations as one array; real numbers are clipped, because some spaces are as wide as their type."""
    array = np.stack(observations)
    return array.clip(-_MODERATE, _MODERATE) if array.dtype.kind == "f" else array
