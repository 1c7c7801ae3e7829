"""The tasks of benchmarks/budget.py: how each is trained inside a budget, and by what its runs are judged."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

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
_BROKEN = "broken.txt"
_PPO = {"n_envs": 4, "n_steps": 256, "batch_size": 64, "save_every": 1000}
_ROLLOUT = 1024
_JUDGED = 2048  # prompts: 512 know the KL of all to 3 to 10% only
_DISCOUNT = {"CartPole-v1": 0.99, "Pendulum-v1": 0.9}


@dataclass(frozen=True)
class Trace:
    """A run as it was judged: `kls` in the order of their steps, the late ones after the first third.

    Of a run that broke down they are those before.
    """

    task: str
    name: str
    kind: str
    budget: float
    rate: float
    seed: int
    steps: list[int]
    kls: list[float]
    batches: float
    rewards: list[float]
    beta: float
    broken: bool
    free: list[
        bool
    ]  # whether the price lay within a quarter of its floor, and the KL below the budget: it was not to be held

    @property
    def late(self) -> list[float]:
        return self._after(self.steps[-1] / 3)

    @property
    def reward(self) -> float:
        """Over the last two thirds."""
        return fmean(self.rewards[len(self.rewards) // 3 :])

    def settled(self, close: float) -> float | None:
        """The step at which the KL first lies near its budget."""
        near = (step for step, kl in zip(self.steps, self.kls, strict=True) if abs(kl / self.budget - 1) <= close)
        return next(near, None)

    def held(self, close: float) -> list[float]:
        """The KLs of the last two thirds, without those on the way to the budget or where it did not bind."""
        start = max(self.steps[-1] / 3, (self.settled(close) or 0) - 1)
        rows = zip(self.steps, self.kls, self.free, strict=True)
        return [kl for step, kl, free in rows if step > start and not free]

    def _after(self, start: float) -> list[float]:
        return [kl for step, kl in zip(self.steps, self.kls, strict=True) if step > start]


@dataclass(frozen=True)
class Task:
    """Budgets that span 100 times, rates that span 20, and the keys of a run's files."""

    train: Callable[..., None]
    budget: Callable[[float], KLBudget]
    budgets: tuple[float, ...]
    rates: tuple[float, ...]
    steps: int
    kl: str
    batch_kl: str
    reward: str
    judged: str  # "evaluations" or "metrics"


def name_of(kind: str, budget: float, rate: float, seed: int, steps: int) -> str:
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
    """Train, unless that was done, and judge."""
    run = RunDirectory(output / task / name_of(kind, budget, rate, seed, steps))
    if not (run.model.is_dir() or (run.path / _BROKEN).is_file()):
        shutil.rmtree(run.path, ignore_errors=True)
        try:
            TASKS[task].train(run.path, controller, rate, seed, steps)
        except (RuntimeError, ValueError, InputError) as error:  # a beta of 1e38 makes inf and nan of the weights
            (run.path / _BROKEN).write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
        for kept in run.checkpoints.glob("checkpoint-*"):
            shutil.rmtree(kept)
    return _trace(task, run)


def read(output: Path, task: str) -> list[Trace]:
    """All runs of a task that came to their end."""
    runs = (RunDirectory(path.parent) for path in sorted((output / task).glob("*/config.json")))
    return [_trace(task, run) for run in runs if run.model.is_dir() or (run.path / _BROKEN).is_file()]


def _trace(task: str, run: RunDirectory) -> Trace:
    told, metrics = TASKS[task], run.metrics()
    rows = metrics if told.judged == "metrics" else run.evaluations()
    judged = [row for row in rows if row["step"] > 0]
    kind, budget, rate, seed, _ = run.path.name.split("_")
    settled = metrics[-1]["step"] / 3
    floor = 1.25 * run.config()["budget"].get("price_min", 0.0) / float(budget) if kind == "KLBudget" else 0.0
    betas = {row["step"]: row["beta"] for row in metrics if kind == "KLBudget"}
    return Trace(
        task,
        run.path.name,
        kind,
        float(budget),
        float(rate),
        int(seed),
        [row["step"] for row in judged],
        [row[told.kl] for row in judged],
        fmean(row[told.batch_kl] for row in metrics if row["step"] > settled),
        [reward for row in rows if (reward := row[told.reward]) is not None],
        metrics[-1].get("beta") or 0.0,
        (run.path / _BROKEN).is_file(),
        [betas.get(row["step"], 1.0) <= floor and row[told.kl] < float(budget) for row in judged],
    )


def _sums(output: Path, controller: Controller | None, rate: float, seed: int, steps: int) -> None:
    reference = output.parents[1] / f"reference-{seed}-700"
    if not (reference / "model.safetensors").is_file():
        reference.mkdir(parents=True, exist_ok=True)
        train_reference(reference, steps=700, seed=seed, report=lambda _step, _kl: None)
    settings: dict[str, Any] = {"learning_rate": rate, "lr_scheduler_type": "constant", "save_steps": steps}
    plan = demo_plan(reference, output, controller, steps=steps, seed=seed, **settings)
    train_grpo(replace(plan, evaluation_rows=spread_rows(_JUDGED)), console=QUIET)


def _ppo(env: str, output: Path, controller: Controller | None, rate: float, seed: int, steps: int) -> None:
    """From a policy of one update, which has all to learn: there budgets bind."""
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
