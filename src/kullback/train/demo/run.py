"""The demonstration: a supervised reference, then GRPO on the addition task without and with a KL budget."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from kullback.budget.controllers import Controller
from kullback.budget.kl_budget import KLBudget
from kullback.runs.lock import run_lock
from kullback.runs.run_directory import RunDirectory
from kullback.train.demo.addition_task import (
    BONUS_PER_CHARACTER,
    answer_entropy,
    exact_match,
    grader,
    prompt_rows,
    spread_rows,
    train_reference,
)
from kullback.train.grpo import GRPOPlan, train_grpo
from kullback.train.run_checks import DEMO_RUNS, require_new_runs

__all__ = ["DEMO_SETTINGS", "demo_plan", "demo_summary", "train_demo"]

DEMO_SETTINGS: Mapping[str, Any] = {
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "max_completion_length": 12,
    "gradient_checkpointing": False,
    "save_steps": 100,
}
_TRAINING_PROMPTS = 4800
_EVALUATION_PROMPTS = 1024  # these give a standard error of the KL of 2 to 5%


def demo_plan(
    reference: Path, output: Path, budget: Controller | None, *, steps: int, seed: int, **settings: Any
) -> GRPOPlan:
    """The configuration of one GRPO run on the addition task, which optimises the biased grader.

    Args:
        reference: The directory of the reference model.
        output: The run directory.
        budget: The controller of the KL, or None for an unconstrained run.
        steps: The number of optimizer steps.
        seed: The seed of all random numbers.
        **settings: Fields of TRL's GRPOConfig, which replace the values in `DEMO_SETTINGS`.
    """
    return GRPOPlan(
        model=reference,
        rows=prompt_rows(_TRAINING_PROMPTS, seed),
        evaluation_rows=spread_rows(_EVALUATION_PROMPTS),
        rewards=[grader],
        watched=[exact_match],
        budget=budget,
        steps=steps,
        seed=seed,
        evaluate_every=20,
        output=output,
        settings={**DEMO_SETTINGS, **settings},
        named={"task": "sums a+b=c, a and b from 0 to 99"},
    )


def train_demo(
    output: Path, *, target: float, steps: int, reference_steps: int, seed: int, overwrite: bool, console: Console
) -> dict[str, RunDirectory]:
    """Train the reference, then a policy without and a policy with a budget.

    Args:
        output: The directory that receives `reference/model`, `unconstrained` and `budget`.
        target: The budget in nats per token.
        steps: The number of GRPO steps of each run.
        reference_steps: The number of supervised steps.
        seed: The seed of all random numbers.
        overwrite: Whether to replace an earlier demonstration in `output`.
        console: The console that shows the progress.

    Returns:
        The run directories "unconstrained" and "budget", by name.

    Raises:
        InputError: `output` contains files that may not be replaced, or another process writes to it.
    """
    with run_lock(output):
        return _train_all(
            output,
            target,
            steps=steps,
            reference_steps=reference_steps,
            seed=seed,
            overwrite=overwrite,
            console=console,
        )


def _train_all(
    output: Path, target: float, *, steps: int, reference_steps: int, seed: int, overwrite: bool, console: Console
) -> dict[str, RunDirectory]:
    """Train in a directory that is locked; see `train_demo`."""
    runs = {name: RunDirectory(output / name) for name in ("unconstrained", "budget")}
    supervised = RunDirectory(output / "reference")
    require_new_runs(output, DEMO_RUNS, overwrite=overwrite)
    supervised.create({"kind": "supervised", "steps": reference_steps, "seed": seed, "data_entropy": answer_entropy()})
    supervised.model.mkdir()
    console.print(
        f"supervised stage: {reference_steps} steps on sums with a quarter of wrong answers, and a few repeated digits "
        f"(entropy: {answer_entropy():.3f} nats per answer)",
        highlight=False,
        soft_wrap=True,
    )

    def report(step: int, kl: float) -> None:
        supervised.add_metrics({"step": step, "kl_data_model_per_sequence": kl})
        console.print(f"  step {step}/{reference_steps}  KL(data || model) {kl:.3f} nats per answer", highlight=False)

    train_reference(supervised.model, steps=reference_steps, seed=seed, report=report)
    budgets = {"unconstrained": None, "budget": KLBudget(target, unit="token")}
    for name, run in runs.items():
        plan = demo_plan(supervised.model, run.path, budgets[name], steps=steps, seed=seed)
        if not train_grpo(plan, overwrite=overwrite, console=console):
            raise KeyboardInterrupt
    return runs


def demo_summary(runs: Mapping[str, RunDirectory]) -> str:
    """The flaw of the grader, and for each run the KL and the changes of the rewards."""
    sentences = [
        "The grader, which is optimised, adds a flaw to the share of correct digits: "
        f"{BONUS_PER_CHARACTER:g} for each character of a completion, whether it is correct or not."
    ]
    for run in runs.values():
        evaluations = run.evaluations()
        first, last = evaluations[0], evaluations[-1]
        budget = run.config()["budget"]
        condition = f"With a budget of {budget['target']:g} nats per token" if budget else "Without a budget"
        scores, matches = (
            _change(first[f"rewards/{reward.__name__}"], last[f"rewards/{reward.__name__}"])
            for reward in (grader, exact_match)
        )
        kl = f"KL(policy || reference) is {last['kl_policy_ref_per_token']:.3g} nats per token"
        sentences.append(f"{condition}, the grader's score {scores}, the share of exact matches {matches}, and {kl}.")
    return " ".join(sentences)


def _change(before: float, after: float) -> str:
    """The change of a value in words, at the two decimals that are printed."""
    first, last = f"{before:.2f}", f"{after:.2f}"
    if first == last:
        return f"stays at {last}"
    return f"{'rises' if after > before else 'falls'} from {first} to {last}"
