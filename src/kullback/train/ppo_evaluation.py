"""Evaluation of a reinforcement-learning policy in episodes with fixed seeds: return, KL divergence and entropy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from kullback.integrations.sb3 import BudgetPPO
from kullback.integrations.sb3_policies import States, estimate_mean_kl, frozen_policy_copy, kl_per_state, select_states
from kullback.samples.clustered_mean import kl_per_token

__all__ = ["EpisodeEvaluation"]

Row = dict[str, Any]
_MAX_EPISODE_STEPS = 1000  # the limit for environments that do not terminate


@dataclass(frozen=True)
class EpisodeEvaluation:
    """Evaluates a policy in episodes with fixed seeds, which has less noise than one rollout of training.

    The initial states and the random numbers are the same in every evaluation. All further states are visited by the
    policy itself.

    Args:
        env: Environments that are not used in training; their number is the number of episodes.
        seed: The seed of the environments and of the actions. The state of the global random number generators of
            PyTorch is not changed.
    """

    env: VecEnv
    seed: int = 0

    def measure(self, model: BudgetPPO) -> Row:
        """Run one episode in each environment, and average over the episodes.

        Args:
            model: The algorithm whose current policy is evaluated.

        Returns:
            "step", "count" (the number of episodes), the mean return and the mean episode length; the mean entropy in
            nats where it has a closed form; KL(policy || reference) and KL(old policy || policy) in nats per step with
            standard errors, if the algorithm has a reference or an old policy; and KL(policy || reference) at the
            states of the reference, if these were set.
        """
        devices = [model.device] if model.device.type == "cuda" else []
        policy = frozen_policy_copy(model)
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(self.seed)
            states, returns, lengths = self._run_episodes(policy)
            entropy = policy.get_distribution(states).entropy()  # type: ignore[arg-type]
        row: Row = {"step": model.num_timesteps, "count": len(returns), **_mean("rewards/return", returns)}
        for name, policies in (
            ("kl_policy_ref_per_step", (policy, model.reference)),
            ("kl_old_policy_per_step", (model.old, policy)),
        ):
            if all(policies):
                kls = kl_per_state(*policies, states).double().cpu().numpy()
                episodes = np.repeat(np.arange(len(lengths)), lengths)
                estimate = kl_per_token(np.bincount(episodes, kls), lengths, np.arange(len(lengths)))
                row |= {name: estimate.value, f"{name}_std_error": estimate.std_error}
        if model.reference is not None and model.reference_states is not None:
            estimate = estimate_mean_kl(policy, model.reference, model.reference_states)
            name = "kl_policy_ref_per_reference_step"
            row |= {name: estimate.value, f"{name}_std_error": estimate.std_error}
        if entropy is not None:  # a squashed normal has no closed-form entropy
            row["entropy"] = float(entropy.double().mean())
        return row | {"episode_length": float(lengths.mean())}

    def states_of(self, policy: Any, count: int) -> States:
        """States that a policy visits in these episodes.

        Args:
            policy: A policy of stable-baselines3.
            count: The number of states to select.

        Returns:
            `count` states at even intervals along the episodes, or all visited states if there are fewer.
        """
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(self.seed)
            states, _, lengths = self._run_episodes(policy)
        total = int(lengths.sum())
        return select_states(states, np.linspace(0, total - 1, min(count, total)).round().astype(int))

    def _run_episodes(self, policy: Any) -> tuple[States, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The visited states, episode by episode, and the returns and the lengths of the episodes."""
        count = self.env.num_envs
        self.env.seed(self.seed)
        if policy.use_sde:
            policy.reset_noise(count)
        observations: list[Any] = []
        active_masks: list[Any] = []
        returns, active = np.zeros(count), np.ones(count, dtype=bool)
        obs: Any = self.env.reset()
        while active.any() and len(observations) < _MAX_EPISODE_STEPS:
            observations.append({k: v.copy() for k, v in obs.items()} if isinstance(obs, dict) else obs.copy())
            active_masks.append(active.copy())
            actions, _ = policy.predict(obs, deterministic=False)
            obs, rewards, dones, _ = self.env.step(actions)
            returns[active] += rewards[active]
            active &= ~dones
        mask = np.stack(active_masks, axis=1)
        stacked = (
            {k: np.stack([observation[k] for observation in observations], axis=1)[mask] for k in observations[0]}
            if isinstance(observations[0], dict)
            else np.stack(observations, axis=1)[mask]
        )
        return obs_as_tensor(stacked, policy.device), returns, mask.sum(axis=1)


def _mean(name: str, values: np.ndarray[Any, Any]) -> Row:
    """The mean over episodes and its standard error, which is None for a single episode."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {name: float(values.mean()), f"{name}_std_error": error}
