"""The tasks of benchmarks/budget.py: how each task is trained with a KL budget, and how its runs are evaluated."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.console import Console

from kullback.budget.controllers import Controller, FixedBeta
from kullback.budget.kl_budget import KLBudget
from kullback.errors import InputError
from kullback.runs.run_directory import RunDirectory
from kullback.train.demo.addition_task import spread_rows, train_reference
from kullback.train.demo.run import demo_plan
from kullback.train.grpo import train_grpo
from kullback.train.ppo import PPOPlan, train_ppo
from kullback.train.vae.data import load_images
from kullback.train.vae.train import LatentPlan, latent_budget, train_latent

QUIET = Console(quiet=True)
_ERROR_FILE = "error.txt"
_PPO = {"n_envs": 4, "n_steps": 256, "batch_size": 64, "save_every": 1000}
_ROLLOUT = 1024
_EVALUATION_PROMPTS = 2048  # 512 prompts give a standard error of 3 to 10%
_EVALUATION_EPISODES = 256
_DISCOUNT = {"CartPole-v1": 0.99, "Pendulum-v1": 0.9}


@dataclass(frozen=True)
class Trace:
    """The evaluations of a run.

    Args:
        steps: The steps of the evaluations, without step 0.
        kls: KL at these steps, in the unit of the task; of a diverged run, before it diverged.
        batch_kl: Mean KL over the training batches after the first third.
        diverged: Whether training ended with an error.
        final_reward: The reward of the last policy, in evaluation episodes or on held-out samples.
        not_binding: For each evaluation, whether the price was within a quarter of its minimum and the KL below the
            budget.
    """

    task: str
    name: str
    kind: str
    budget: float
    rate: float
    seed: int
    steps: list[int]
    kls: list[float]
    batch_kl: float
    rewards: list[float]
    final_reward: float
    beta: float
    diverged: bool
    not_binding: list[bool]

    @property
    def late_kls(self) -> list[float]:
        """KL after the first third."""
        return [kl for step, kl in zip(self.steps, self.kls, strict=True) if step > self.steps[-1] / 3]

    @property
    def late_reward(self) -> float:
        """Mean reward after the first third."""
        return fmean(self.rewards[len(self.rewards) // 3 :])

    def settling_step(self, close: float) -> float | None:
        """Return the first step at which |KL / budget - 1| <= close, or None."""
        near = (step for step, kl in zip(self.steps, self.kls, strict=True) if abs(kl / self.budget - 1) <= close)
        return next(near, None)

    def binding_kls(self, close: float) -> list[float]:
        """Return KL after the first third and after the settling step, where the constraint binds."""
        start = max(self.steps[-1] / 3, (self.settling_step(close) or 0) - 1)
        rows = zip(self.steps, self.kls, self.not_binding, strict=True)
        return [kl for step, kl, not_binding in rows if step > start and not not_binding]


@dataclass(frozen=True)
class Task:
    """How to train a task, its budgets (over a factor of 100), its learning rates (over 20), and the keys of its logs.

    `source` states where `kl` and `reward` are read: in the "evaluations" or the "metrics" of the run directory.
    """

    train: Callable[..., None]
    budget: Callable[[float], KLBudget]
    budgets: tuple[float, ...]
    rates: tuple[float, ...]
    steps: int
    kl: str
    batch_kl: str
    reward: str
    source: Literal["evaluations", "metrics"]


def name_of(kind: str, budget: float, rate: float, seed: int, steps: int) -> str:
    """Return the name of a run's directory."""
    return f"{kind}_{budget:g}_{rate:g}_{seed}_{steps}"


def train(
    output: Path,
    task: str,
    controller: Controller | None,
    kind: str,
    budget: float,
    rate: float,
    seed: int,
    steps: int,
) -> Trace:
    """Train, unless the run exists, and return its evaluations."""
    run = RunDirectory(output / task / name_of(kind, budget, rate, seed, steps))
    if not (run.model.is_dir() or (run.path / _ERROR_FILE).is_file()):
        shutil.rmtree(run.path, ignore_errors=True)
        try:
            TASKS[task].train(run.path, controller, rate, seed, steps)
        except (RuntimeError, ValueError, InputError) as error:  # a beta of 1e38 makes weights inf or nan
            (run.path / _ERROR_FILE).write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
        for kept in run.checkpoints.glob("checkpoint-*"):
            shutil.rmtree(kept)
    return _trace(task, run)


def read(output: Path, task: str) -> list[Trace]:
    """Return all runs of a task that finished or diverged."""
    runs = (RunDirectory(path.parent) for path in sorted((output / task).glob("*/config.json")))
    return [_trace(task, run) for run in runs if run.model.is_dir() or (run.path / _ERROR_FILE).is_file()]


def _trace(task: str, run: RunDirectory) -> Trace:
    keys, metrics = TASKS[task], run.metrics()
    rows = metrics if keys.source == "metrics" else run.evaluations()
    after_start = [row for row in rows if row["step"] > 0]
    kind, budget, rate, seed, _ = run.path.name.split("_")
    first_third = metrics[-1]["step"] / 3
    low_price = 1.25 * run.config()["budget"].get("price_min", 0.0) / float(budget) if kind == "KLBudget" else 0.0
    betas = {row["step"]: row["beta"] for row in metrics if kind == "KLBudget"}
    return Trace(
        task,
        run.path.name,
        kind,
        float(budget),
        float(rate),
        int(seed),
        [row["step"] for row in after_start],
        [row[keys.kl] for row in after_start],
        fmean(row[keys.batch_kl] for row in metrics if row["step"] > first_third),
        [reward for row in rows if (reward := row[keys.reward]) is not None],
        run.evaluations()[-1][keys.reward],
        metrics[-1].get("beta") or 0.0,
        (run.path / _ERROR_FILE).is_file(),
        [betas.get(row["step"], 1.0) <= low_price and row[keys.kl] < float(budget) for row in after_start],
    )


def _sums(output: Path, controller: Controller | None, rate: float, seed: int, steps: int) -> None:
    reference = output.parents[1] / f"reference-{seed}-700"
    if not (reference / "model.safetensors").is_file():
        reference.mkdir(parents=True, exist_ok=True)
        train_reference(reference, steps=700, seed=seed, report=lambda _step, _kl: None)
    settings: dict[str, Any] = {"learning_rate": rate, "lr_scheduler_type": "constant", "save_steps": steps}
    plan = demo_plan(reference, output, controller, steps=steps, seed=seed, **settings)
    train_grpo(replace(plan, evaluation_rows=spread_rows(_EVALUATION_PROMPTS)), console=QUIET)


def _ppo(env: str, output: Path, controller: Controller | None, rate: float, seed: int, steps: int) -> None:
    """Train from a reference of one PPO update, whose reward is low, so that budgets bind."""
    reference = output.parents[1] / f"reference-{env}-{seed}"
    settings = {**_PPO, "gamma": _DISCOUNT[env]}
    if not RunDirectory(reference).model.is_dir():
        shutil.rmtree(reference, ignore_errors=True)
        train_ppo(PPOPlan(env, _ROLLOUT, reference, seed=seed, settings=settings, evaluate_every=0), console=QUIET)
    plan = PPOPlan(
        env,
        _ROLLOUT * steps,
        output,
        budget=controller or FixedBeta(0.0),
        constrain="reference",
        states="reference",
        reference=reference,
        seed=seed,
        settings={**settings, "learning_rate": rate},
        evaluate_every=0,
        evaluation_episodes=_EVALUATION_EPISODES,
    )
    train_ppo(plan, console=QUIET)


def _digits(output: Path, controller: Controller | None, rate: float, seed: int, steps: int) -> None:
    plan = LatentPlan(
        "digits",
        steps,
        output,
        budget=controller or FixedBeta(0.0),
        learning_rate=rate,
        seed=seed,
        evaluate_every=25,
        save_every=steps,
    )
    train_latent(plan, load_images("digits"), console=QUIET)


_STEP_KEYS = ("kl_policy_ref_per_reference_step", "kl_policy_ref_per_step", "rewards/return", "metrics")
_TOKEN_KEYS = ("kl_policy_ref_per_token", "kl_policy_ref_per_token", "rewards/exact_match", "evaluations")
_LATENT_KEYS = ("kl_posterior_prior_per_image", "kl_posterior_prior_per_image", "elbo", "evaluations")
_RATES = (1e-4, 4.5e-4, 2e-3)

TASKS = {
    "sums": Task(_sums, KLBudget, (0.005, 0.05, 0.5), (5e-5, 2.2e-4, 1e-3), 200, *_TOKEN_KEYS),
    "CartPole-v1": Task(
        partial(_ppo, "CartPole-v1"), partial(KLBudget, unit="step"), (0.004, 0.04, 0.4), _RATES, 30, *_STEP_KEYS
    ),
    "Pendulum-v1": Task(
        partial(_ppo, "Pendulum-v1"), partial(KLBudget, unit="step"), (0.01, 0.1, 1.0), _RATES, 30, *_STEP_KEYS
    ),
    "digits": Task(_digits, latent_budget, (0.25, 2.5, 25.0), _RATES, 1000, *_LATENT_KEYS),
}
