"""Policies of stable-baselines3: the exact KL between two policies, frozen copies, and the weights of the actor."""

from collections.abc import Mapping
from typing import Any

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
except ModuleNotFoundError as error:
    if error.name not in ("torch", "stable_baselines3", "gymnasium"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[rl]'") from error

from torch import Tensor

from kullback.distributions import kl
from kullback.result import Estimate
from kullback.samples.clustered_mean import kl_per_token

__all__ = [
    "States",
    "actor_weights",
    "differentiable_kl_per_state",
    "estimate_mean_kl",
    "frozen_policy_copy",
    "kl_per_state",
    "policy_kl",
    "require_same_shape",
    "rollout_episodes",
    "rollout_states",
    "select_states",
]

States = Tensor | dict[str, Tensor]

_CHUNK = 1024  # states of one forward pass
_FACTORISED = (BernoulliDistribution, DiagGaussianDistribution, StateDependentNoiseDistribution)


def policy_kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(p || q) of two action distributions, exactly, at each state.

    The KL is the sum over the independent components of an action. Squashing is a bijection, which leaves the KL
    unchanged, so that the KL of squashed normals is the KL of the normals.

    Args:
        p: The result of `policy.get_distribution(states)`: categorical, multi-categorical, Bernoulli, diagonal normal
            (squashed or not), or the marginal distribution of state-dependent exploration.
        q: Another distribution of the same class.

    Returns:
        Shape (states,), in nats, differentiable; `inf` only where numbers overflow.

    Raises:
        NoClosedFormError: The classes differ, or are not classes of stable-baselines3.
        ShapeError: The numbers of states or of actions differ.

    Example:
        >>> p = CategoricalDistribution(2).proba_distribution(torch.tensor([[0.0, 0.0]]))
        >>> q = CategoricalDistribution(2).proba_distribution(torch.tensor([[0.0, 1.0]]))
        >>> policy_kl(p, q)
        tensor([0.1201])
    """
    if _class_name(p) != _class_name(q):
        raise NoClosedFormError(f"expected two distributions of one class, got {_class_name(p)} and {_class_name(q)}")
    if not isinstance(p, (CategoricalDistribution, MultiCategoricalDistribution, *_FACTORISED)):
        raise NoClosedFormError(f"expected a distribution class of stable-baselines3, got {_class_name(p)}")
    p_parts, q_parts = _torch_distributions(p), _torch_distributions(q)
    p_shapes, q_shapes = (
        [tuple(getattr(part, "param_shape", part.batch_shape)) for part in parts] for parts in (p_parts, q_parts)
    )
    if p_shapes != q_shapes:
        raise ShapeError(f"expected equal shapes (states, actions), got {p_shapes} and {q_shapes}")
    kls = [kl(p_part, q_part) for p_part, q_part in zip(p_parts, q_parts, strict=True)]
    return kls[0].sum(-1) if isinstance(p, _FACTORISED) else torch.stack(kls).sum(0)


def _class_name(distribution: Any) -> str:
    name = type(distribution).__name__
    return name if getattr(distribution, "bijector", None) is None else f"{name}, squashed"


def _torch_distributions(distribution: Any) -> list[Any]:
    """The torch distributions of an action distribution, of which a multi-categorical one has several."""
    parts = distribution.distribution
    return parts if isinstance(parts, list) else [parts]


def differentiable_kl_per_state(p: ActorCriticPolicy, q: ActorCriticPolicy, states: States) -> Tensor:
    """KL(p || q) of the action distributions of two policies at each state, in nats, differentiable."""
    return policy_kl(p.get_distribution(states), q.get_distribution(states))  # type: ignore[arg-type]


def kl_per_state(p: ActorCriticPolicy, q: ActorCriticPolicy, states: States) -> Tensor:
    """KL(p || q) at each state, in nats, without gradient, in evaluation mode, for any number of states."""
    modes = [(policy, policy.training) for policy in (p, q)]
    for policy, _ in modes:
        policy.set_training_mode(False)
    try:
        with torch.no_grad():
            count = len(next(iter(states.values())) if isinstance(states, dict) else states)
            chunks = (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))
            return torch.cat([differentiable_kl_per_state(p, q, select_states(states, chunk)) for chunk in chunks])
    finally:
        for policy, mode in modes:
            policy.set_training_mode(mode)


def estimate_mean_kl(p: ActorCriticPolicy, q: ActorCriticPolicy, states: States) -> Estimate:
    """The mean of KL(p || q) over independently sampled states, in nats per state."""
    kls = kl_per_state(p, q, states).double().cpu().numpy()
    return kl_per_token(kls, np.ones_like(kls), np.arange(len(kls)))


def select_states(states: States, index: Any) -> States:
    """The states with these indices."""
    return {key: values[index] for key, values in states.items()} if isinstance(states, dict) else states[index]


def rollout_states(buffer: Any) -> States:
    """All states of a rollout buffer before it is flattened, environment by environment."""

    def flat(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.as_tensor(buffer.swap_and_flatten(values), device=buffer.device)

    observations = buffer.observations
    return {k: flat(v) for k, v in observations.items()} if isinstance(observations, dict) else flat(observations)


def rollout_episodes(buffer: Any) -> np.ndarray[Any, Any]:
    """The index of the episode of each state, in the order of `rollout_states`."""
    starts = buffer.episode_starts != 0
    starts[0] = True
    return np.cumsum(starts.swapaxes(0, 1).ravel()) - 1


def frozen_policy_copy(algorithm: OnPolicyAlgorithm) -> ActorCriticPolicy:
    """A frozen copy of an algorithm's policy."""
    with torch.random.fork_rng():
        copy = algorithm.policy_class(
            algorithm.observation_space,
            algorithm.action_space,
            algorithm.lr_schedule,
            use_sde=algorithm.use_sde,
            **algorithm.policy_kwargs,
        ).to(algorithm.device)
    assert isinstance(copy, ActorCriticPolicy)
    copy.load_state_dict(algorithm.policy.state_dict())
    copy.requires_grad_(False)
    copy.set_training_mode(False)
    return copy


def actor_weights(policy: ActorCriticPolicy, states: States) -> list[str]:
    """The names of the weights that the action distribution depends on; weights of the critic alone are excluded."""
    named = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    distribution = policy.get_distribution(states)  # type: ignore[arg-type]
    log_prob = distribution.log_prob(distribution.mode()).sum()
    gradients = torch.autograd.grad(log_prob, list(named.values()), allow_unused=True)
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]


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
