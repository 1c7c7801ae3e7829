"""The policies of stable-baselines3: the exact KL between two, frozen twins, and the weights that make the actor."""

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
    "kl_at",
    "kl_of_policies",
    "kl_over",
    "policy_kl",
    "require_same_shape",
    "rollout_episodes",
    "rollout_states",
    "some_states",
    "twin_of",
]

States = Tensor | dict[str, Tensor]

_CHUNK = 1024  # states that go through a network at once
_SUMMED = (BernoulliDistribution, DiagGaussianDistribution, StateDependentNoiseDistribution)


def policy_kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(p || q) of two policies' distributions of actions, exact, at each state.

    The sum over the independent parts of an action. A squashed action is a fixed invertible map of a normal one, which
    changes no KL: it is that of the normals.

    Args:
        p: What `policy.get_distribution(states)` gives: categorical, multi-categorical, Bernoulli, a diagonal normal,
            squashed or not, or one of state-dependent exploration (its marginal at each state).
        q: Another of the same kind.

    Returns:
        Shape (states,), nats, differentiable; `inf` only where numbers overflow.

    Raises:
        NoClosedFormError: The kinds differ, or are of your own making.
        ShapeError: The numbers of states or of actions differ.

    Example:
        >>> p = CategoricalDistribution(2).proba_distribution(torch.tensor([[0.0, 0.0]]))
        >>> q = CategoricalDistribution(2).proba_distribution(torch.tensor([[0.0, 1.0]]))
        >>> policy_kl(p, q)
        tensor([0.1201])
    """
    if _kind(p) != _kind(q):
        raise NoClosedFormError(f"expected two distributions of one kind, got {_kind(p)} and {_kind(q)}")
    if not isinstance(p, (CategoricalDistribution, MultiCategoricalDistribution, *_SUMMED)):
        raise NoClosedFormError(f"expected a distribution of stable-baselines3, got {_kind(p)}: its KL is not known")
    parts = [_parts(distribution) for distribution in (p, q)]
    shapes = [[tuple(getattr(part, "param_shape", part.batch_shape)) for part in some] for some in parts]
    if shapes[0] != shapes[1]:
        raise ShapeError(f"expected states and actions alike, got {shapes[0]} and {shapes[1]} (states, actions)")
    each = [kl(one, other) for one, other in zip(*parts, strict=True)]
    return each[0].sum(-1) if isinstance(p, _SUMMED) else torch.stack(each).sum(0)


def _kind(distribution: Any) -> str:
    name = type(distribution).__name__
    return name if getattr(distribution, "bijector", None) is None else f"{name}, squashed"


def _parts(distribution: Any) -> list[Any]:
    parts = distribution.distribution
    return parts if isinstance(parts, list) else [parts]


def kl_of_policies(p: ActorCriticPolicy, q: ActorCriticPolicy, states: States) -> Tensor:
    """KL(p || q) of the policies' actions at each state, nats; differentiable where their weights are."""
    return policy_kl(p.get_distribution(states), q.get_distribution(states))  # type: ignore[arg-type]


def kl_over(p: ActorCriticPolicy, q: ActorCriticPolicy, states: States) -> Tensor:
    """The same without gradient, both policies as they act, not as they train; however many the states are."""
    modes = [(policy, policy.training) for policy in (p, q)]
    for policy, _ in modes:
        policy.set_training_mode(False)
    try:
        with torch.no_grad():
            count = len(next(iter(states.values())) if isinstance(states, dict) else states)
            chunks = (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))
            return torch.cat([kl_of_policies(p, q, some_states(states, chunk)) for chunk in chunks])
    finally:
        for policy, mode in modes:
            policy.set_training_mode(mode)


def kl_at(p: ActorCriticPolicy, q: ActorCriticPolicy, states: States) -> Estimate:
    """Its mean over states that are each a draw of their own."""
    kls = kl_over(p, q, states).double().cpu().numpy()
    return kl_per_token(kls, np.ones_like(kls), np.arange(len(kls)))


def some_states(states: States, index: Any) -> States:
    return {key: values[index] for key, values in states.items()} if isinstance(states, dict) else states[index]


def rollout_states(buffer: Any) -> States:
    """All states of a rollout that has just been collected, one environment after the other."""

    def flat(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.as_tensor(buffer.swap_and_flatten(values), device=buffer.device)

    observations = buffer.observations
    return {k: flat(v) for k, v in observations.items()} if isinstance(observations, dict) else flat(observations)


def rollout_episodes(buffer: Any) -> np.ndarray[Any, Any]:
    """The episode that each of these states belongs to."""
    starts = buffer.episode_starts != 0
    starts[0] = True
    return np.cumsum(starts.swapaxes(0, 1).ravel()) - 1


def twin_of(algorithm: OnPolicyAlgorithm) -> ActorCriticPolicy:
    """A frozen copy of an algorithm's policy."""
    with torch.random.fork_rng():
        twin = algorithm.policy_class(
            algorithm.observation_space,
            algorithm.action_space,
            algorithm.lr_schedule,
            use_sde=algorithm.use_sde,
            **algorithm.policy_kwargs,
        ).to(algorithm.device)
    assert isinstance(twin, ActorCriticPolicy)
    twin.load_state_dict(algorithm.policy.state_dict())
    twin.requires_grad_(False)
    twin.set_training_mode(False)
    return twin


def actor_weights(policy: ActorCriticPolicy, states: States) -> list[str]:
    """The names of the weights that the distribution of actions depends on: the critic's own are not among them."""
    named = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    distribution = policy.get_distribution(states)  # type: ignore[arg-type]
    likely = distribution.log_prob(distribution.mode()).sum()
    gradients = torch.autograd.grad(likely, list(named.values()), allow_unused=True)
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]


def require_same_shape(policy: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse a reference whose weights are not of the policy's names and shapes.

    Raises:
        BudgetError: They are not; the message names the first that differs.
    """
    ours, theirs = ({k: tuple(v.shape) for k, v in some.items()} for some in (policy.state_dict(), weights))
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            raise BudgetError(
                f"expected a reference of the policy's shape, but its {name} is {theirs.get(name, 'absent')} where the "
                f"policy's is {ours.get(name, 'absent')}: is it of another environment or net_arch?"
            )
