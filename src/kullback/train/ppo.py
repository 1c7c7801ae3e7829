"""Training of a policy for a Gymnasium environment by PPO with a KL budget."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
from kullback.runs.finite import finite_outputs, require_finite_step, require_finite_weights
from kullback.runs.interrupts import Interrupts
from kullback.runs.library_errors import library_errors
from kullback.runs.metrics import kl_key
from kullback.runs.progress import RunProgress
from kullback.runs.run_directory import RunDirectory, versions
from kullback.train.ppo_checkpoint import (
    derived_seed,
    reset_and_reseed,
    restore_ppo_checkpoint,
    save_ppo_checkpoint,
)
from kullback.train.ppo_evaluation import EpisodeEvaluation
from kullback.train.ppo_settings import POLICY_SETTINGS, PPO_SETTINGS, require_valid_ppo_options
from kullback.train.run_checks import require_at_least, require_seed

__all__ = ["PPOPlan", "train_ppo"]

Row = dict[str, Any]

# BudgetPPO's key of each metric, and the key in metrics.jsonl.
_FROM_SB3 = {
    **{key: key for key in ("kl_policy_ref_per_step", "kl_policy_ref_per_step_std_error")},
    **{key: key for key in ("kl_old_policy_per_step", "kl_old_policy_per_step_std_error")},
    **{key: key for key in ("kl_policy_ref_per_reference_step", "kl_policy_ref_per_reference_step_std_error")},
    **{key: key for key in ("clip_fraction", "explained_variance", "learning_rate", "loss", "value_loss")},
    "policy_gradient_loss": "policy_loss",
    "std": "action_std",
}
_REFERENCE_STATES = 1024  # the number of states for `states="reference"`
_CONTROLLER_KEYS = ("beta", "kl_budget", "kl_filtered", "learning_rate_scale", "displacement_scale")


@dataclass(frozen=True)
class PPOPlan:
    """The configuration of a PPO run.

    Args:
        env: The name of the environment in Gymnasium.
        steps: The number of environment steps, which is rounded up to whole rollouts.
        output: The run directory.
        budget: The controller of the KL in nats per step, for example a `KLBudget`. None leaves the KL unconstrained.
        constrain: The KL that is constrained: "reference" for KL(policy || reference), "old-policy" for
            KL(old policy || policy) of one update.
        mean_over_updates: Whether a `KLBudget` with constrain="old-policy" holds the mean of the KL over the updates
            instead of the KL of each update.
        budget_decay: The exponent of the decay of such a budget during the training; see `BudgetPPO`.
        states: The states at which KL(policy || reference) is constrained: "visited" for the states of the rollouts,
            "reference" for 1024 states that the reference visits, which stay the same throughout the run.
        reference: A saved policy, see `load_policy`. Training starts from it, and it is the reference of the KL.
        clip: The clipping range of PPO's probability ratio, or None for no clipping.
        seed: The seed of all random numbers.
        settings: Further settings, with keys from `PPO_SETTINGS`.
        evaluate_every: The number of updates between two evaluations. 0 evaluates only before and after training.
        evaluation_episodes: The number of episodes of each evaluation.

    Example:
        >>> from kullback import KLBudget
        >>> plan = PPOPlan("CartPole-v1", 5000, Path("run"), budget=KLBudget(0.01, unit="step"), clip=None)
        >>> plan.kl_key, plan.rollout, plan.total_steps
        ('kl_old_policy_per_step', 2048, 6144)
        >>> plan.config()["budget"]["constrain"]
        'old-policy'
    """

    env: str
    steps: int
    output: Path
    budget: Controller | None = None
    constrain: Literal["old-policy", "reference"] = "old-policy"
    mean_over_updates: bool = False
    budget_decay: float = 0.0
    states: Literal["visited", "reference"] = "visited"
    reference: Path | None = None
    clip: float | None = 0.2
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluate_every: int = 10
    evaluation_episodes: int = 16

    def config(self) -> Row:
        """The contents of config.json.

        Returns:
            The settings of the run as JSON types, by name.
        """
        return {
            "kind": "ppo",
            "env": self.env,
            "reference": None if self.reference is None else str(self.reference),
            "budget": self._budget_config(),
            "clip": self.clip,
            "rewards": ["return"],
            "watched": [],
            "steps": self.steps,
            "seed": self.seed,
            "settings": dict(self.settings),
            "evaluate_every": self.evaluate_every,
            "evaluation_episodes": self.evaluation_episodes,
        }

    def _budget_config(self) -> Row | None:
        if self.budget is None:
            return None
        mean = {"mean_over_updates": True} if self.mean_over_updates else {}
        mean |= {"decay": self.budget_decay} if self.budget_decay else {}
        states = {"constrain": self.constrain, "states": self.states}
        return controller_config(self.budget, unit="step") | states | mean

    @property
    def kl_key(self) -> str:
        """The metric key of the constrained KL."""
        return kl_key("step", constrain=self.constrain, states=self.states)

    @property
    def all_settings(self) -> Row:
        """The settings, with the default values of `PPO_SETTINGS` for those that are not set."""
        return {**PPO_SETTINGS, **self.settings}

    @property
    def rollout(self) -> int:
        """The number of environment steps between two updates."""
        return self.all_settings["n_steps"] * self.all_settings["n_envs"]

    @property
    def total_steps(self) -> int:
        """The number of environment steps, rounded up to whole rollouts."""
        return -(-self.steps // self.rollout) * self.rollout


def train_ppo(plan: PPOPlan, *, resume: bool = False, overwrite: bool = False, console: Console | None = None) -> bool:
    """Train a policy by PPO, and write a run directory.

    The initial policy is evaluated before anything is written, so that invalid inputs leave no files. At each
    checkpoint the environments are reset, and all random number generators are seeded from the seed and the step, so
    that a resumed run is identical to an uninterrupted run.

    Args:
        plan: The configuration of the run.
        resume: Whether to continue from the newest intact checkpoint in the run directory, including the controller's
            state. A run that has already taken all steps is not changed.
        overwrite: Whether to replace a run in the run directory.
        console: The console that shows the progress, or None for no output.

    Returns:
        True if all steps were taken; False after an interrupt, which saves a checkpoint and evaluates the policy.

    Raises:
        InputError: The plan is invalid, the run directory does not allow the run to start or to continue, or a gradient
            or a weight is not finite.

    Example:
        >>> import tempfile
        >>> from kullback import KLBudget
        >>> settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
        >>> budget = KLBudget(0.01, unit="step")
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     output = Path(directory) / "run"
        ...     plan = PPOPlan("CartPole-v1", 64, output, budget=budget, settings=settings, evaluation_episodes=2)
        ...     finished = train_ppo(plan)
        ...     steps = [row["step"] for row in RunDirectory(output).metrics()]
        >>> finished, steps
        (True, [32, 64])
    """
    run = RunDirectory(plan.output)
    _validate(plan)
    if overwrite and plan.reference is not None:
        run.check_not_replaced("--reference", plan.reference)
    with run.open_for_training(plan.config(), resume=resume, overwrite=overwrite):
        return (resume and run.is_finished(plan.total_steps)) or _train(plan, run, resume, console)


def _train(plan: PPOPlan, run: RunDirectory, resume: bool, console: Console | None) -> bool:
    """Train in a run directory that is locked; see `train_ppo`."""
    checkpoint = run.checkpoint_to_resume() if resume else None
    env = make_environments(plan.env, plan.all_settings["n_envs"])
    evaluation_env = make_environments(plan.env, plan.evaluation_episodes)
    try:
        # The copy of the reference exists if the run has a checkpoint.
        reference = run.path / "reference" if checkpoint is not None and plan.reference else plan.reference
        model, shape = _make_model(plan, env, reference)
        require_finite_weights(model.policy, step=0)
        evaluation = EpisodeEvaluation(evaluation_env, seed=derived_seed(plan.seed, -1))
        if plan.states == "reference":
            model.reference_states = evaluation.states_of(model.reference, _REFERENCE_STATES)
        if checkpoint is None:
            _start_run(plan, run, model, shape, evaluation)
        else:
            step = restore_ppo_checkpoint(model, checkpoint)
            run.remove_rows_after(step)
            if not _is_checkpoint_due(plan, step):
                print(
                    f"kullback: --resume: the run stopped at step {step}, at which no checkpoint was due: the "
                    "environments start new episodes here, so that the next rows differ from an uninterrupted run",
                    file=sys.stderr,
                )
        target = getattr(plan.budget, "target", None)
        if console is not None and plan.total_steps != plan.steps:
            console.print(_about_rounding(plan), highlight=False, soft_wrap=True)
        with (
            RunProgress(plan.output.name, plan.total_steps, target=target, unit="step", console=console) as progress,
            Interrupts() as interrupts,
        ):
            recorder = _RecordUpdates(plan, run, model, evaluation, progress, interrupts)
            remaining = plan.total_steps - model.num_timesteps
            # The callback writes the logs; a resumed run continues the step count of its checkpoint.
            with _finite_updates(model), library_errors("PPO"), finite_outputs(lambda: model.num_timesteps):
                model.learn(remaining, callback=recorder, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
        if model.num_timesteps < plan.total_steps:
            with suppress(KeyboardInterrupt):  # another interrupt omits the evaluation
                recorder.evaluate()
            return False
        recorder.evaluate()
        run.save_model(
            model.num_timesteps,
            lambda directory: save_policy(model.policy, directory, environment=plan.env, settings=shape),
        )
    finally:
        env.close()
        evaluation_env.close()
    return True


def _is_checkpoint_due(plan: PPOPlan, step: int) -> bool:
    """Whether an uninterrupted run saves a checkpoint, and resets the environments, at this step."""
    return (step // plan.rollout) % plan.all_settings["save_every"] == 0


def _about_rounding(plan: PPOPlan) -> str:
    updates = plan.total_steps // plan.rollout
    return (
        f"--steps {plan.steps} is rounded up to {plan.total_steps} environment steps, which are "
        f"{updates} update{'s' if updates > 1 else ''} of n_steps * n_envs = {plan.rollout} steps"
    )


@contextmanager
def _finite_updates(model: BudgetPPO) -> Iterator[None]:
    """Within the context, an optimizer step raises InputError if a gradient or a weight is not finite."""
    weights = list(model.policy.named_parameters())
    hook = model.policy.optimizer.register_step_post_hook(
        lambda *_: require_finite_step(weights, step=model.num_timesteps)
    )
    try:
        yield
    finally:
        hook.remove()


class _RecordUpdates(BaseCallback):
    """Between two updates: stores the metrics, evaluates, saves checkpoints, and stops after an interrupt."""

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
        self.recorded_step = model.num_timesteps
        self.evaluated_step = (run.evaluations() or [{"step": -1}])[-1]["step"]
        self.episodes: list[Row] = []
        self.stopping = False
        self.start_time = time.monotonic() - run.elapsed_seconds()

    def evaluate(self) -> None:
        """Evaluate the policy unless this step has been evaluated."""
        step = self.recorded_step  # after an interrupt, the environments are ahead of the last update
        if self.evaluated_step == step:
            return
        row = self.evaluation.measure(self.ppo)
        self.evaluated_step = step
        self.run.add_evaluation({**row, "step": step})

    def _on_step(self) -> bool:
        rewards = self.locals["rewards"]
        if not np.isfinite(rewards).all():
            raise InputError(
                f"step {self.ppo.num_timesteps}: expected finite rewards of the environment, got "
                f"{float(rewards[~np.isfinite(rewards)][0])}; training stops, and all checkpoints of earlier steps are "
                "kept"
            )
        self.episodes += [info["episode"] for info in self.locals["infos"] if "episode" in info]
        return not self.stopping

    def _on_rollout_start(self) -> None:
        step = self.ppo.num_timesteps
        if step > self.recorded_step:
            self._record_update()
            self.stopping = self.interrupts.requested
        elif self.run.last_checkpoint() is not None:  # the run was resumed from this checkpoint
            reset_and_reseed(self.ppo, self.plan.seed)
            return
        if self.stopping or _is_checkpoint_due(self.plan, step):
            save_ppo_checkpoint(self.ppo, self.run.checkpoints)
            reset_and_reseed(self.ppo, self.plan.seed)

    def _on_training_end(self) -> None:
        if self.ppo.num_timesteps >= self.plan.total_steps > self.recorded_step:
            self._record_update()
            save_ppo_checkpoint(self.ppo, self.run.checkpoints)

    def _record_update(self) -> None:
        """Store the metrics of the update that has just ended, and evaluate if it is time to."""
        model = self.ppo
        self.recorded_step = model.num_timesteps
        logged = {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items()}
        row: Row = {"step": model.num_timesteps, "rewards/return": None, "episode_length": None}
        if self.episodes:
            row["rewards/return"] = float(np.mean([episode["r"] for episode in self.episodes]))
            row["episode_length"] = float(np.mean([episode["l"] for episode in self.episodes]))
        row["episodes"] = len(self.episodes)
        row |= {key: float(logged[sb3_key]) for sb3_key, key in _FROM_SB3.items() if sb3_key in logged}
        suffix = "_old" if self.plan.constrain == "old-policy" else ""
        row |= {key: float(logged[key + suffix]) for key in _CONTROLLER_KEYS if key + suffix in logged}
        row["entropy"] = -float(logged["entropy_loss"])
        row["seconds"] = round(time.monotonic() - self.start_time, 3)
        self.episodes.clear()
        self.run.add_metrics(row)
        measured = row.get(self.plan.kl_key)
        shown = {"reward": row["rewards/return"], "kl_filtered": measured, "beta": row.get("beta")}
        shown |= {key: row[key] for key in ("kl_budget",) if key in row}
        self.progress.show({"step": row["step"], **shown})
        every = self.plan.evaluate_every
        if every and (row["step"] // self.plan.rollout) % every == 0:
            self.evaluate()


def _make_model(plan: PPOPlan, env: Any, reference: Path | None) -> tuple[BudgetPPO, Row]:
    """The algorithm, and the settings of its policy network, which a reference determines."""
    settings = plan.all_settings
    loaded, shape = load_policy(reference, env) if reference else (None, settings)
    for key in plan.settings.keys() & shape.keys():
        if plan.settings[key] != shape[key]:
            raise InputError(f"--set {key}={plan.settings[key]}: expected {shape[key]}, which the reference has")
    not_ppo_arguments = {"n_envs", "save_every", "use_sde", *POLICY_SETTINGS}
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
            mean_over_updates=plan.mean_over_updates,
            budget_decay=plan.budget_decay,
            **{key: value for key, value in settings.items() if key not in not_ppo_arguments},
        )
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, KullbackError):
            raise
        raise InputError(f"PPO rejects these settings: {' '.join(str(error).split())}") from error
    return model, {key: shape[key] for key in ("net_arch", "activation_fn", "log_std_init", "use_sde") if key in shape}


def _start_run(plan: PPOPlan, run: RunDirectory, model: BudgetPPO, shape: Row, evaluation: EpisodeEvaluation) -> None:
    """Evaluate the initial policy, then create the run directory; a failing environment leaves no files."""
    with library_errors(f"--env {plan.env}"), finite_outputs(lambda: 0):
        before = evaluation.measure(model)
    run.create(
        {
            **plan.config(),
            "total_steps": plan.total_steps,
            "versions": versions("torch", "stable_baselines3", "gymnasium"),
        }
    )
    run.remove_rows_after(-1)
    run.add_evaluation(before)
    if model.reference is not None:
        save_policy(model.reference, run.path / "reference", environment=plan.env, settings=shape)


def _validate(plan: PPOPlan) -> None:
    """Raise InputError if the plan is invalid."""
    require_at_least("--steps", plan.steps, 1)
    require_at_least("--evaluate-every", plan.evaluate_every, 0)
    require_at_least("evaluation_episodes", plan.evaluation_episodes, 1)
    require_seed(plan.seed)
    require_valid_ppo_options(
        plan.settings,
        clip=plan.clip,
        constrain=plan.constrain,
        states=plan.states,
        has_reference=plan.reference is not None,
    )
    _require_device(plan.all_settings["device"])


def _require_device(name: str) -> None:
    """Raise InputError if PyTorch lacks the device; stable-baselines3 would use the CPU without a warning."""
    try:
        torch.empty(0, device="cpu" if name == "auto" else name)
    except (RuntimeError, AssertionError) as error:
        message = str(error).partition("\n")[0]
        raise InputError(f"--set device={name}: expected a device that PyTorch has, such as cpu: {message}") from error
