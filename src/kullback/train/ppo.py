"""Train a policy for an environment of Gymnasium by PPO, inside a KL budget: one run, one run directory."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback

from kullback.budget.controllers import Controller, controller_config
from kullback.errors import InputError, KullbackError
from kullback.integrations.sb3 import BudgetPPO
from kullback.integrations.sb3_saved import (
    load_policy,
    make_environments,
    policy_kwargs,
    policy_name,
    save_policy,
)
from kullback.runs.interrupts import Interrupts
from kullback.runs.progress import RunProgress
from kullback.runs.run_directory import RunDirectory, versions
from kullback.train.ppo_checkpoint import derived_seed, draw_anew, restore_checkpoint, save_checkpoint
from kullback.train.ppo_evaluation import EpisodeEvaluation
from kullback.train.ppo_settings import PPO_SETTINGS

__all__ = ["PPOPlan", "train_ppo"]

Row = dict[str, Any]

# What BudgetPPO logs under another name than the run's metrics do.
_FROM_SB3 = {
    **{key: key for key in ("kl_policy_ref_per_step", "kl_policy_ref_per_step_std_error")},
    **{key: key for key in ("kl_old_policy_per_step", "kl_old_policy_per_step_std_error")},
    **{key: key for key in ("kl_policy_ref_per_reference_step", "kl_policy_ref_per_reference_step_std_error")},
    **{key: key for key in ("clip_fraction", "explained_variance", "learning_rate", "loss", "value_loss")},
    "policy_gradient_loss": "policy_loss",
    "std": "action_std",
}
_REFERENCE_STATES = 1024
_CONTROL = ("beta", "kl_filtered", "learning_rate_scale", "displacement_scale")


@dataclass(frozen=True)
class PPOPlan:
    """All that a run is told.

    Args:
        env: The environment, by its name in Gymnasium.
        steps: Environment steps; whole rollouts are taken.
        output: The run directory.
        budget: What holds the KL, in nats per step; a `KLBudget` or another controller. None: nothing does.
        constrain: Which KL is constrained: "reference" for KL(policy || reference), "old-policy" for
            KL(old policy || policy) over one update.
        states: The states that KL(policy || reference) is held at: where the policy goes ("visited"), or 1024 states
            where the reference went, the same all along ("reference").
        reference: A policy on disk, where training starts and what KL(policy || reference) is of: see `load_policy`.
        clip: PPO's clip of the probability ratio, or None.
        seed: Of everything.
        settings: Of those in `PPO_SETTINGS`.
        evaluate_every: Updates between two judgements; 0: only at the ends.
        evaluation_episodes: How many episodes judge the policy.
    """

    env: str
    steps: int
    output: Path
    budget: Controller | None = None
    constrain: Literal["old-policy", "reference"] = "old-policy"
    states: Literal["visited", "reference"] = "visited"
    reference: Path | None = None
    clip: float | None = 0.2
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluate_every: int = 10
    evaluation_episodes: int = 16

    def config(self) -> Row:
        """What config.json says of it."""
        return {
            "kind": "ppo",
            "env": self.env,
            "reference": None if self.reference is None else str(self.reference),
            "budget": None
            if self.budget is None
            else controller_config(self.budget, unit="step") | {"constrain": self.constrain, "states": self.states},
            "clip": self.clip,
            "rewards": ["return"],
            "watched": [],
            "steps": self.steps,
            "seed": self.seed,
            "settings": dict(self.settings),
            "evaluate_every": self.evaluate_every,
            "evaluation_episodes": self.evaluation_episodes,
        }

    @property
    def held(self) -> str:
        """The key of the KL that the budget is of."""
        if self.constrain == "old-policy":
            return "kl_old_policy_per_step"
        return "kl_policy_ref_per_reference_step" if self.states == "reference" else "kl_policy_ref_per_step"

    @property
    def all_settings(self) -> Row:
        return {**PPO_SETTINGS, **self.settings}

    @property
    def rollout(self) -> int:
        """Environment steps of one update."""
        return self.all_settings["n_steps"] * self.all_settings["n_envs"]

    @property
    def whole_steps(self) -> int:
        return -(-self.steps // self.rollout) * self.rollout


def train_ppo(plan: PPOPlan, *, resume: bool = False, console: Console | None = None) -> bool:
    """Train, and leave a run directory behind; nothing is left if the inputs are bad.

    At each checkpoint the environments are reset and all random numbers drawn anew from the seed and the step, so that
    a run that was killed and resumed is the run that was not.

    Args:
        plan: What to do.
        resume: Go on from the run directory's last checkpoint, with the controller as it was there.
        console: Where to show the progress; quiet if None.

    Returns:
        Whether the run came to its end: False after an interrupt, which leaves a checkpoint.

    Raises:
        InputError: The plan cannot be carried out; the message says why.
    """
    run = RunDirectory(plan.output)
    _require_sense(plan, run, resume)
    checkpoint = run.last_checkpoint() if resume else None
    env = make_environments(plan.env, plan.all_settings["n_envs"])
    judging = make_environments(plan.env, plan.evaluation_episodes)
    try:
        model, shape = _make_model(plan, env, run.path / "reference" if resume and plan.reference else plan.reference)
        evaluation = EpisodeEvaluation(judging, seed=derived_seed(plan.seed, -1))
        if plan.states == "reference":
            model.reference_states = evaluation.states_of(model.reference, _REFERENCE_STATES)
        if checkpoint is None:
            _begin(plan, run, model, shape, evaluation)
        else:
            run.forget_after(restore_checkpoint(model, checkpoint))
        target = getattr(plan.budget, "target", None)
        with (
            RunProgress(plan.output.name, plan.whole_steps, target=target, unit="step", console=console) as progress,
            Interrupts() as interrupts,
        ):
            keeper = _Keeper(plan, run, model, evaluation, progress, interrupts)
            left = plan.whole_steps - model.num_timesteps
            # Logs are this run's own, and steps are counted on from where the checkpoint is.
            model.learn(left, callback=keeper, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
        if model.num_timesteps < plan.whole_steps:
            return False
        keeper.look()
        save_policy(model.policy, run.model, environment=plan.env, settings=shape)
    finally:
        env.close()
        judging.close()
    return True


class _Keeper(BaseCallback):
    """Between two updates: a row of metrics, the judgement, the checkpoint, and the end when it was asked for."""

    def __init__(
        self,
        plan: PPOPlan,
        run: RunDirectory,
        model: BudgetPPO,
        evaluation: EpisodeEvaluation,
        progress: RunProgress,
        interrupts: Interrupts,
    ) -> None:
        super().__init__()
        self.plan, self.run, self.evaluation, self.progress = plan, run, evaluation, progress
        self.interrupts, self.ppo = interrupts, model
        self.told = self.looked = model.num_timesteps
        self.episodes: list[Row] = []
        self.stopping = False
        earlier = run.metrics()
        self.since = time.monotonic() - (earlier[-1]["seconds"] if earlier else 0.0)

    def look(self) -> None:
        """Judge the policy, unless that was done at this step."""
        model = self.ppo
        if self.looked == model.num_timesteps:
            return
        self.looked = model.num_timesteps
        self.run.add_evaluation(self.evaluation.measure(model))

    def _on_step(self) -> bool:
        self.episodes += [info["episode"] for info in self.locals["infos"] if "episode" in info]
        return not self.stopping

    def _on_rollout_start(self) -> None:
        step = self.ppo.num_timesteps
        if step > self.told:
            self._after_update()
            self.stopping = self.interrupts.asked
        elif self.run.last_checkpoint() is not None:  # the one that was resumed
            draw_anew(self.ppo, self.plan.seed)
            return
        if self.stopping or (step // self.plan.rollout) % self.plan.all_settings["save_every"] == 0:
            save_checkpoint(self.ppo, self.run.checkpoints)
            draw_anew(self.ppo, self.plan.seed)

    def _on_training_end(self) -> None:
        if self.ppo.num_timesteps >= self.plan.whole_steps > self.told:
            self._after_update()
            save_checkpoint(self.ppo, self.run.checkpoints)

    def _after_update(self) -> None:
        model = self.ppo
        self.told = model.num_timesteps
        seen = {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items()}
        row: Row = {"step": model.num_timesteps, "rewards/return": None, "episode_length": None}
        if self.episodes:
            row["rewards/return"] = float(np.mean([episode["r"] for episode in self.episodes]))
            row["episode_length"] = float(np.mean([episode["l"] for episode in self.episodes]))
        row["episodes"] = len(self.episodes)
        row |= {ours: float(seen[theirs]) for theirs, ours in _FROM_SB3.items() if theirs in seen}
        end = "_old" if self.plan.constrain == "old-policy" else ""
        row |= {key: float(seen[key + end]) for key in _CONTROL if key + end in seen}
        row["entropy"] = -float(seen["entropy_loss"])
        row["seconds"] = round(time.monotonic() - self.since, 3)
        self.episodes.clear()
        self.run.add_metrics(row)
        measured = row.get(self.plan.held)
        shown = {"reward": row["rewards/return"], "kl_filtered": measured, "beta": row.get("beta")}
        self.progress.show({"step": row["step"], **shown})
        every = self.plan.evaluate_every
        if every and (row["step"] // self.plan.rollout) % every == 0:
            self.look()


def _make_model(plan: PPOPlan, env: Any, reference: Path | None) -> tuple[BudgetPPO, Row]:
    """The algorithm, and the settings that shape its policy: the reference's, where there is one."""
    settings = plan.all_settings
    loaded, shape = load_policy(reference, env) if reference else (None, settings)
    for key in plan.settings.keys() & shape.keys():
        if plan.settings[key] != shape[key]:
            raise InputError(f"--set {key}={plan.settings[key]}: the reference has {shape[key]}")
    own = {"n_envs", "net_arch", "activation_fn", "log_std_init", "save_every", "use_sde"}
    budgets = {"budget" if plan.constrain == "reference" else "old_budget": plan.budget}
    try:
        model = BudgetPPO(
            policy_name(env.observation_space),
            env,
            reference=loaded,
            clip=plan.clip,
            seed=plan.seed,
            use_sde=bool(shape.get("use_sde", False)),
            policy_kwargs=policy_kwargs(shape),
            **budgets,
            **{key: value for key, value in settings.items() if key not in own},
        )
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, KullbackError):
            raise
        raise InputError(f"PPO refuses this: {' '.join(str(error).split())}") from error
    return model, {key: shape[key] for key in ("net_arch", "activation_fn", "log_std_init", "use_sde") if key in shape}


def _begin(plan: PPOPlan, run: RunDirectory, model: BudgetPPO, shape: Row, evaluation: EpisodeEvaluation) -> None:
    """The first judgement, before anything is written: an environment that cannot be run leaves no run behind."""
    before = evaluation.measure(model)
    run.create({**plan.config(), "versions": versions("torch", "stable_baselines3", "gymnasium")})
    run.forget_after(-1)
    run.add_evaluation(before)
    if model.reference is not None:
        save_policy(model.reference, run.path / "reference", environment=plan.env, settings=shape)


def _require_sense(plan: PPOPlan, run: RunDirectory, resume: bool) -> None:
    settings = plan.all_settings
    for name, value, least in (
        ("--steps", plan.steps, 1),
        ("--evaluate-every", plan.evaluate_every, 0),
        ("--seed", plan.seed, 0),
        *((f"--set {key}", settings[key], 1) for key in ("n_envs", "n_steps", "batch_size", "n_epochs", "save_every")),
    ):
        if value < least:
            raise InputError(f"{name}: expected {least} or more, got {value}")
    if plan.clip is not None and not 0 < plan.clip < math.inf:
        raise InputError(f"--clip: expected a finite number > 0, or none, got {plan.clip}")
    for key in ("gamma", "gae_lambda"):
        if not 0 <= settings[key] <= 1:
            raise InputError(f"--set {key}: expected a number from 0 to 1, got {settings[key]}")
    _require_device(settings["device"])
    if not settings["max_grad_norm"] > 0:
        raise InputError(f"--set max_grad_norm: expected a number > 0, got {settings['max_grad_norm']}")
    if plan.rollout % settings["batch_size"]:
        raise InputError(
            f"--set batch_size={settings['batch_size']}: expected a divisor of n_steps * n_envs = {plan.rollout}, so "
            "that all minibatches are whole"
        )
    if plan.states == "reference" and plan.constrain != "reference":
        raise InputError("--states reference: expected --constrain reference beside it, whose KL is held at states")
    if plan.constrain == "reference" and plan.reference is None:
        raise InputError(
            "--constrain reference: expected --reference, a run or a zip of stable-baselines3, to stay near to"
        )
    run.check_can_start(plan.config(), resume=resume)


def _require_device(name: str) -> None:
    """Tried here, since stable-baselines3 takes the CPU where there is no such device, and says nothing."""
    try:
        torch.empty(0, device="cpu" if name == "auto" else name)
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition("\n")[0]
        raise InputError(f"--set device={name}: expected a device that PyTorch has, such as cpu: {said}") from error
