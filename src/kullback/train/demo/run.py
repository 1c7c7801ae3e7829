"""The embedded task from end to end: a supervised reference, then GRPO without and with a KL budget."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from kullback.budget.controllers import Controller
from kullback.budget.kl_budget import KLBudget
from kullback.errors import InputError
from kullback.runs.run_directory import RunDirectory
from kullback.train.demo.addition_task import (
    answer_entropy,
    exact_match,
    prefix_found,
    prompt_rows,
    spread_rows,
    train_reference,
)
from kullback.train.grpo import GRPOPlan, train_grpo

__all__ = ["DEMO_SETTINGS", "demo_plan", "train_demo", "verdict"]

DEMO_SETTINGS: Mapping[str, Any] = {
    # So large that the unconstrained arm finds out within 200 steps how to cheat; at 5e-4 it does not.
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "max_completion_length": 12,
    "gradient_checkpointing": False,
    "save_steps": 100,
}
_TRAINING_PROMPTS = 4800
_JUDGED_PROMPTS = 1024  # they know the KL of all to 2 to 5%


def demo_plan(
    reference: Path, output: Path, budget: Controller | None, *, steps: int, seed: int, **settings: Any
) -> GRPOPlan:
    """One arm of the embedded task: the flawed verifier is optimised, the exact match only watched."""
    return GRPOPlan(
        model=reference,
        rows=prompt_rows(_TRAINING_PROMPTS, seed),
        evaluation_rows=spread_rows(_JUDGED_PROMPTS),
        rewards=[prefix_found],
        watched=[exact_match],
        budget=budget,
        steps=steps,
        seed=seed,
        evaluate_every=20 if budget else 40,  # without a budget there is less to judge, and its completions are long
        output=output,
        settings={**DEMO_SETTINGS, **settings},
        named={"task": "sums a+b=c, a and b from 0 to 99"},
    )


def train_demo(
    output: Path, *, target: float, steps: int, reference_steps: int, seed: int, overwrite: bool, console: Console
) -> dict[str, RunDirectory]:
    """Train both arms under `output`, and give their run directories by name.

    Args:
        output: Gets `reference/model`, `unconstrained` and `budget`.
        target: The budget in nats per token.
        steps: GRPO steps of each arm.
        reference_steps: Steps of the supervised stage.
        seed: Of everything.
        overwrite: Replace an earlier demo there.
        console: Where the progress goes.

    Raises:
        InputError: `output` holds something that is not to be replaced.
    """
    runs = {name: RunDirectory(output / name) for name in ("unconstrained", "budget")}
    supervised = RunDirectory(output / "reference")
    parts = [supervised.path, *(run.path for run in runs.values())]
    for part in parts:
        if part.exists() and not (overwrite and (part / "config.json").is_file()):
            raise InputError(f"--output {output}: {part.name} is there; name another, or replace a run by --overwrite")
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    supervised.create({"kind": "supervised", "steps": reference_steps, "seed": seed, "data_entropy": answer_entropy()})
    supervised.model.mkdir()
    console.print(
        f"supervised stage: {reference_steps} steps on sums, a quarter of the answers wrong "
        f"(their entropy: {answer_entropy():.3f} nats)",
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
        if not train_grpo(plan, console=console):
            raise KeyboardInterrupt
    return runs


def verdict(runs: Mapping[str, RunDirectory]) -> str:
    """What happened in the two arms, in one sentence, from their first and last evaluations."""
    said = []
    for name, run in runs.items():
        rows = run.evaluations()
        (proxy, proxy_then), (true, true_then) = (
            (rows[-1][f"rewards/{reward.__name__}"], rows[0][f"rewards/{reward.__name__}"])
            for reward in (prefix_found, exact_match)
        )
        if true < true_then and proxy > true + 0.2:
            what = "cheats the verifier"
        elif true < true_then:
            what = "gets worse"
        else:
            what = "learns to add"
        kl = rows[-1]["kl_policy_ref_per_token"]
        budget = run.config()["budget"]
        held = f" of a budget of {budget['target']:g}" if budget else ""
        who = "the budgeted policy" if budget else f"the {name} policy"
        said.append(
            f"{who} {what}: proxy {proxy_then:.2f} → {proxy:.2f}, true reward {true_then:.2f} → {true:.2f}, "
            f"at {kl:.3f}{held} nats per token"
        )
    sentence = "; ".join(said)
    return f"{sentence[0].upper()}{sentence[1:]}."
