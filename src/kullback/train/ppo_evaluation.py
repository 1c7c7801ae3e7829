"""What a policy does in episodes from a fixed set of starts: its return, its KL, how undecided it is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from kullback.integrations.sb3 import BudgetPPO
from kullback.integrations.sb3_policies import States, kl_at, kl_over, some_states, twin_of
from kullback.samples.clustered_mean import kl_per_token

__all__ = ["EpisodeEvaluation"]

Row = dict[str, Any]
_LONGEST = 1000  # steps of an episode that would not end by itself


@dataclass(frozen=True)
class EpisodeEvaluation:
    """Episodes to judge a policy by: one rollout of training is too noisy for that.

    The starts and the random numbers are the same each time; the states that follow are the policy's own.

    Args:
        env: As many environments as there are episodes, used for nothing else.
        seed: Of the starts and of the actions; the training's own random numbers are left alone.
    """

    env: VecEnv
    seed: int = 0

    def measure(self, model: BudgetPPO) -> Row:
        """One row of numbers over all the episodes."""
        devices = [model.device] if model.device.type == "cuda" else []
        policy = twin_of(model)
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(self.seed)
            states, returns, lengths = self._play(policy)
            spread = policy.get_distribution(states).entropy()  # type: ignore[arg-type]
        row: Row = {"step": model.num_timesteps, "count": len(returns), **_mean("rewards/return", returns)}
        for name, pair in (
            ("kl_policy_ref_per_step", (policy, model.reference)),
            ("kl_old_policy_per_step", (model.old, policy)),
        ):
            if all(pair):
                kls = kl_over(*pair, states).double().cpu().numpy()
                episodes = np.repeat(np.arange(len(lengths)), lengths)
                estimate = kl_per_token(np.bincount(episodes, kls), lengths, np.arange(len(lengths)))
                row |= {name: estimate.value, f"{name}_std_error": estimate.std_error}
        if model.reference is not None and model.reference_states is not None:
            there = kl_at(policy, model.reference, model.reference_states)
            name = "kl_policy_ref_per_reference_step"
            row |= {name: there.value, f"{name}_std_error": there.std_error}
        if spread is not None:  # a squashed normal has no closed form of it
            row["entropy"] = float(spread.double().mean())
        return row | {"episode_length": float(lengths.mean())}

    def states_of(self, policy: Any, count: int) -> States:
        """Where a policy goes in these episodes: so many states, or all if they are fewer, evenly along the way."""
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(self.seed)
            states, _, lengths = self._play(policy)
        total = int(lengths.sum())
        return some_states(states, np.linspace(0, total - 1, min(count, total)).round().astype(int))

    def _play(self, policy: Any) -> tuple[States, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The visited states, one episode after the other, and the episodes' returns and lengths."""
        count = self.env.num_envs
        self.env.seed(self.seed)
        if policy.use_sde:
            policy.reset_noise(count)
        seen: list[Any] = []
        alive: list[Any] = []
        returns, playing = np.zeros(count), np.ones(count, dtype=bool)
        obs: Any = self.env.reset()
        while playing.any() and len(seen) < _LONGEST:
            seen.append({k: v.copy() for k, v in obs.items()} if isinstance(obs, dict) else obs.copy())
            alive.append(playing.copy())
            actions, _ = policy.predict(obs, deterministic=False)
            obs, rewards, dones, _ = self.env.step(actions)
            returns[playing] += rewards[playing]
            playing &= ~dones
        kept = np.stack(alive, axis=1)
        stacked = (
            {k: np.stack([one[k] for one in seen], axis=1)[kept] for k in seen[0]}
            if isinstance(seen[0], dict)
            else np.stack(seen, axis=1)[kept]
        )
        return obs_as_tensor(stacked, policy.device), returns, kept.sum(axis=1)


def _mean(name: str, values: np.ndarray[Any, Any]) -> Row:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {name: float(values.mean()), f"{name}_std_error": error}
