"""`kullback train`: its recipes, and the commands `kullback train grpo`, `rloo` and `demo`."""

import argparse
from pathlib import Path
from typing import Any

from kullback.cli.run_options import (
    ONLY_AT_ENDS,
    add_lora_option,
    add_run_options,
    check_lora,
    check_run_options,
    column_entries,
    require_own_report,
)
from kullback.cli.run_summary import (
    make_console,
    results_on_stdout,
    train_and_report,
    transformers_console,
    write_report,
)
from kullback.cli.train_distill import add_distill
from kullback.cli.train_ppo import add_ppo
from kullback.cli.train_sft import add_sft
from kullback.cli.train_vae import add_bottleneck, add_vae
from kullback.errors import InputError

__all__ = ["add_parser"]

EXAMPLES = """example:
  kullback train {recipe} --model my-model --prompts prompts.jsonl --reward my_rewards:exact --budget 0.05 \\
      --steps 500 --output runs/mine --set learning_rate=1e-5 --set num_generations=8
  accelerate launch --num_processes 2 -m kullback train {recipe} ...     run it on several processes
"""
_ALGORITHMS = {
    "grpo": "group relative policy optimisation (GRPO)",
    "rloo": "REINFORCE with the leave-one-out baseline (RLOO)",
}


def add_parser(commands: Any) -> None:
    """Add the command `train` and its recipes."""
    parser = commands.add_parser(
        "train",
        help="train a policy with a KL budget, a language model on examples, or a variational autoencoder",
        epilog="`kullback train RECIPE --help` describes the options of a recipe.",
    )
    recipes = parser.add_subparsers(required=True, metavar="RECIPE")
    for recipe in _ALGORITHMS:
        _add_policy_recipe(recipes, recipe)
    add_ppo(recipes)
    add_sft(recipes)
    add_distill(recipes)
    add_vae(recipes)
    add_bottleneck(recipes)
    _add_demo(recipes)


def _add_policy_recipe(recipes: Any, recipe: str) -> None:
    """Add the recipe `grpo` or `rloo`, which have the same options."""
    parser = recipes.add_parser(
        recipe,
        help=f"train a language model on rewards, by {_ALGORITHMS[recipe]} of TRL",
        epilog=EXAMPLES.format(recipe=recipe),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="MODEL",
        help="start from MODEL, a transformers directory with weights in the safetensors format, or a model of the "
        "Hugging Face hub such as Qwen/Qwen3-0.6B; the model is also the reference",
    )
    add(
        "--prompts",
        required=True,
        metavar="FILE",
        help='read training prompts from FILE, in JSON Lines (each line is an object with a "prompt" or with '
        '"messages"), JSON, CSV, TSV or Parquet; or from a data set of the Hugging Face hub, '
        "NAME[:CONFIGURATION[:SPLIT]], such as openai/gsm8k:main (default of SPLIT: train)",
    )
    add(
        "--prompt-column",
        default="prompt",
        metavar="NAME",
        help="the column of --prompts and --evaluate that is the prompt; the rewards receive the other columns "
        "(default: prompt)",
    )
    add(
        "--reward",
        action="append",
        required=True,
        metavar="MODULE:FUNCTION",
        help="optimise the reward that FUNCTION of the Python module MODULE computes, in the format of TRL; MODULE may "
        "be a file MODULE.py in the working directory; may be repeated, and the rewards are added",
    )
    add(
        "--watch",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="log a reward without optimising it, in the format of --reward; may be repeated",
    )
    add(
        "--budget",
        type=float,
        metavar="NATS",
        help="keep KL(policy || reference) at NATS nats per --unit (default: no constraint)",
    )
    add("--unit", choices=("token", "sequence"), help="the unit of --budget (default: token)")
    add("--steps", type=int, required=True, metavar="N", help="train for N optimizer steps")
    add(
        "--evaluate",
        metavar="FILE",
        help="evaluate on the prompts in FILE, in the formats of --prompts (default: the first 128 prompts of "
        "--prompts)",
    )
    add_lora_option(parser)
    add_run_options(
        parser,
        evaluate_every=20,
        interval=f"optimizer steps; {ONLY_AT_ENDS}",
        settings=f"the {recipe.upper()}Config of TRL",
    )
    parser.set_defaults(run=_train_policy_and_report, recipe=recipe)


def _add_demo(recipes: Any) -> None:
    parser = recipes.add_parser(
        "demo", help="train a small model on addition with a biased grader, without and with a KL budget"
    )
    add = parser.add_argument
    add(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="write the runs and their report to the directory DIR (default: runs/demo)",
    )
    add(
        "--budget",
        type=float,
        default=0.05,
        metavar="NATS",
        help="keep KL(policy || reference) at NATS nats per token (default: 0.05)",
    )
    add("--steps", type=int, default=200, metavar="N", help="train each run for N GRPO steps (default: 200)")
    add(
        "--reference-steps",
        type=int,
        default=700,
        metavar="N",
        help="train the reference for N supervised steps (default: 700)",
    )
    add("--seed", type=int, default=0, metavar="N", help="the seed of all random numbers (default: 0)")
    add("--overwrite", action="store_true", help="replace an earlier demo in DIR")
    parser.set_defaults(run=_demo)


def _train_policy_and_report(options: argparse.Namespace) -> int:
    return train_and_report(options, _train_policy, title=options.recipe.upper())


def _train_policy(options: argparse.Namespace) -> bool:
    """Validate the options, and train; return whether the run finished."""
    # Validate the input before importing libraries that take seconds to import.
    from kullback.budget.kl_budget import KLBudget
    from kullback.integrations.hub import find_model
    from kullback.train.prompts import read_prompts
    from kullback.train.rewards import find_reward
    from kullback.train.run_checks import require_packages
    from kullback.train.trl_fields import check_settings

    check_run_options(options)
    if options.unit and options.budget is None:
        raise InputError("--unit: expected --budget as well, whose unit this is")
    budget = None if options.budget is None else KLBudget(options.budget, unit=options.unit or "token")
    require_packages(("torch", "transformers", "trl", "datasets", "accelerate", "safetensors"), extra="train")
    check_settings(options.set, f"{options.recipe.upper()}Config")
    lora = check_lora(options.lora)
    model = find_model(options.model)
    column = options.prompt_column
    rows = read_prompts(options.prompts, column=column)
    evaluation_rows = read_prompts(options.evaluate, "--evaluate", column=column) if options.evaluate else []
    rewards = [find_reward(name) for name in options.reward]
    watched = [find_reward(name, "--watch") for name in options.watch]

    import trl

    from kullback.train.grpo import GRPOPlan, train_grpo
    from kullback.train.trl_settings import parse_settings

    console = transformers_console(quiet=options.json)
    plan = GRPOPlan(
        model=model,
        rows=rows,
        rewards=rewards,
        watched=watched,
        budget=budget,
        steps=options.steps,
        output=options.output,
        seed=options.seed,
        settings=parse_settings(options.set, getattr(trl, f"{options.recipe.upper()}Config")),
        evaluation_rows=evaluation_rows,
        evaluate_every=options.evaluate_every,
        named={
            "prompts": str(options.prompts),
            "reward_functions": [*options.reward, *options.watch],
            **column_entries(prompt=options.prompt_column),
        },
        algorithm=options.recipe,
        lora=lora,
    )
    return train_grpo(plan, resume=options.resume, overwrite=options.overwrite, console=console)


def _demo(options: argparse.Namespace) -> int:
    from kullback.train.run_checks import (
        DEMO_RUNS,
        require_at_least,
        require_budget,
        require_new_runs,
        require_packages,
        require_seed,
    )

    require_budget("--budget", options.budget)  # before the reference is trained
    require_at_least("--steps", options.steps, 1)
    require_at_least("--reference-steps", options.reference_steps, 1)
    require_seed(options.seed)
    require_packages(("torch", "transformers", "trl", "datasets", "accelerate", "safetensors"), extra="train")
    require_new_runs(options.output, DEMO_RUNS, overwrite=options.overwrite)
    require_own_report(options.output)

    from kullback.explore.run_tables import write_run_report
    from kullback.train.demo.run import demo_summary, train_demo

    with results_on_stdout():
        runs = train_demo(
            options.output,
            target=options.budget,
            steps=options.steps,
            reference_steps=options.reference_steps,
            seed=options.seed,
            overwrite=options.overwrite,
            console=transformers_console(quiet=False),
        )
    for name, run in runs.items():
        write_run_report({name: run}, run.report, title=f"Addition with a biased grader, {name}")
    write_report(
        runs,
        options.output / "report.html",
        title="Addition with a biased grader",
        summary=demo_summary(runs),
        console=make_console(quiet=False),
    )
    return 0
