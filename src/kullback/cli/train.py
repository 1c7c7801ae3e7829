"""`kullback train`: policies inside a KL budget, and what else is KL. Options in, a run and its report out."""

import argparse
import json
from pathlib import Path
from typing import Any

from kullback.budget.kl_budget import KLBudget
from kullback.cli.run_summary import finish, transformers_console
from kullback.cli.train_ppo import add_ppo
from kullback.cli.train_sft import add_sft
from kullback.cli.train_vae import add_latents

__all__ = ["add_parser"]

GRPO_EXAMPLE = """example:
  kullback train grpo --model my-model --prompts prompts.jsonl --reward my_rewards:exact --budget 0.05 --steps 500 \\
      --output runs/mine --set learning_rate=1e-5 --set num_generations=8
  accelerate launch --num_processes 2 -m kullback train grpo ...     the same on several processes
"""


def add_parser(commands: Any) -> None:
    """Add `train` and what can be trained."""
    recipes = commands.add_parser(
        "train", help="train a policy inside a KL budget; a VAE; a model on examples"
    ).add_subparsers(required=True, metavar="RECIPE")
    _add_grpo(recipes)
    add_ppo(recipes)
    add_sft(recipes)
    add_latents(recipes)
    _add_demo(recipes)


def _add_grpo(recipes: Any) -> None:
    parser = recipes.add_parser(
        "grpo",
        help="a language model against rewards, by TRL's GRPO",
        epilog=GRPO_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="a local transformers directory (safetensors)")
    add("--prompts", type=Path, required=True, metavar="FILE", help='JSON lines, each with a "prompt"')
    add("--reward", action="append", required=True, metavar="MODULE:FUNCTION", help="to be optimised; repeatable")
    add("--watch", action="append", default=[], metavar="MODULE:FUNCTION", help="a reward only to log; repeatable")
    add("--budget", type=float, metavar="NATS", help="what KL(policy || reference) is held to; without: unconstrained")
    add("--unit", choices=("token", "sequence"), default="token", help="what the budget is per (default: token)")
    add("--steps", type=int, required=True, metavar="N", help="optimizer steps")
    add("--output", type=Path, required=True, metavar="RUN", help="the run directory to make")
    add("--resume", action="store_true", help="go on from RUN's last checkpoint")
    add("--seed", type=int, default=0)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of TRL's GRPOConfig; repeatable")
    add("--evaluate", type=Path, metavar="FILE", help="prompts to judge by (default: the first 128 of --prompts)")
    add("--evaluate-every", type=int, default=20, metavar="N", help="steps between judgements, 0: only at the ends")
    add("--json", action="store_true", help="print the outcome as JSON and nothing else")
    parser.set_defaults(run=_grpo)


def _add_demo(recipes: Any) -> None:
    parser = recipes.add_parser("demo", help="the embedded task: sums, a flawed verifier, without and with a budget")
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/demo"), metavar="DIR")
    add("--budget", type=float, default=0.05, metavar="NATS", help="nats per token (default: 0.05)")
    add("--steps", type=int, default=200, metavar="N", help="GRPO steps of each arm (default: 200)")
    add("--reference-steps", type=int, default=700, metavar="N", help="supervised steps (default: 700)")
    add("--seed", type=int, default=0)
    add("--overwrite", action="store_true", help="replace an earlier demo in DIR")
    parser.set_defaults(run=_demo)


def _grpo(options: argparse.Namespace) -> int:
    budget = None if options.budget is None else KLBudget(options.budget, unit=options.unit)
    # Bad input is answered before the libraries that take seconds to import.
    from kullback.integrations.transformers import require_model_directory
    from kullback.train.prompts import read_prompts
    from kullback.train.rewards import find_reward

    require_model_directory(options.model)
    rows = read_prompts(options.prompts)
    judged = read_prompts(options.evaluate) if options.evaluate else []
    rewards, watched = [find_reward(name) for name in options.reward], [find_reward(name) for name in options.watch]

    from kullback.train.grpo import GRPOPlan, train_grpo
    from kullback.train.trl_settings import parse_settings

    console = transformers_console(quiet=options.json)
    plan = GRPOPlan(
        model=options.model,
        rows=rows,
        rewards=rewards,
        watched=watched,
        budget=budget,
        steps=options.steps,
        output=options.output,
        seed=options.seed,
        settings=parse_settings(options.set),
        evaluation_rows=judged,
        evaluate_every=options.evaluate_every,
        named={"prompts": str(options.prompts), "reward_functions": [*options.reward, *options.watch]},
    )
    ended = train_grpo(plan, resume=options.resume, console=console)

    from kullback.runs.run_directory import RunDirectory

    run = RunDirectory(options.output)
    if not _is_main_process():
        return 0
    finish({options.output.name: run}, run.report, title=f"GRPO: {options.output.name}", console=console)
    if options.json:
        print(json.dumps({"run": str(run.path), "ended": ended, "last": (run.evaluations() or [None])[-1]}))
    elif not ended:
        console.print(f"stopped; go on with --resume --output {options.output}", highlight=False)
    return 0 if ended else 130


def _demo(options: argparse.Namespace) -> int:
    KLBudget(options.budget)  # refuse a bad one before a minute's work
    from kullback.explore.run_tables import report_runs
    from kullback.train.demo.run import train_demo, verdict

    console = transformers_console(quiet=False)
    runs = train_demo(
        options.output,
        target=options.budget,
        steps=options.steps,
        reference_steps=options.reference_steps,
        seed=options.seed,
        overwrite=options.overwrite,
        console=console,
    )
    for name, run in runs.items():
        report_runs({name: run}, run.report, title=f"Sums, {name}")
    finish(
        runs, options.output / "report.html", title="Sums by a flawed verifier", summary=verdict(runs), console=console
    )
    return 0


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
