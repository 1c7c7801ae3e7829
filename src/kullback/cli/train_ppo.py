"""`kullback train ppo`: a policy for an environment, with a KL budget."""

import argparse
from pathlib import Path
from typing import Any

from kullback.cli.run_options import ONLY_AT_ENDS, add_run_options, check_run_options
from kullback.cli.run_summary import progress_console, report_run, results_on_stdout
from kullback.errors import InputError

__all__ = ["add_ppo"]

EXAMPLES = """examples:
  kullback train ppo --env CartPole-v1 --budget 0.01 --clip none --steps 100000 --output runs/cartpole
  kullback train ppo --env CartPole-v1 --reference runs/cartpole --budget 0.05 --steps 50000 --output runs/tuned
"""
_CONTROLLERS = ("KLBudget", "PPO2017", "RLlibController", "Ziegler2019", "FixedBeta")


def add_ppo(recipes: Any) -> None:
    """Add the recipe `ppo`."""
    parser = recipes.add_parser(
        "ppo",
        help="train a policy for a Gymnasium environment, by proximal policy optimisation (PPO) of stable-baselines3",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--env", required=True, metavar="NAME", help="the name of the environment in Gymnasium")
    add(
        "--budget",
        type=float,
        metavar="NATS",
        help="keep the constrained KL at NATS nats per environment step (default: no constraint)",
    )
    add(
        "--constrain",
        choices=("old-policy", "reference"),
        help="the constrained KL: KL(old policy || policy) of each update, or KL(policy || reference) (default: "
        "reference if --reference is given, else old-policy)",
    )
    add(
        "--mean-over-updates",
        action="store_true",
        help="with --constrain old-policy, keep the mean of the KL over the updates at --budget; one update may have "
        "at most twice the budget (default: the KL of each update)",
    )
    add(
        "--budget-decay",
        type=float,
        default=0.0,
        metavar="P",
        help="with --constrain old-policy, let the budget of an update decrease in proportion to the power P of the "
        "remaining part of the training, with the mean --budget; 2 gives the first update three times the budget "
        "(default: 0, the same budget for each update)",
    )
    add(
        "--states",
        choices=("visited", "reference"),
        default="visited",
        help="the states over which KL(policy || reference) is averaged: the states that the policy visits, or 1024 "
        "fixed states that the reference visited (default: visited)",
    )
    add(
        "--reference",
        type=Path,
        metavar="PATH",
        help="start from the policy at PATH, which is also the reference: a run directory of this command, or a zip "
        "file of stable-baselines3 (default: a new policy)",
    )
    add(
        "--clip",
        type=_parse_clip,
        default=0.2,
        metavar="X",
        help="clip the probability ratio to the interval from 1 - X to 1 + X; none disables clipping (default: 0.2)",
    )
    add(
        "--controller",
        choices=_CONTROLLERS,
        default="KLBudget",
        help="the rule that changes beta, the coefficient of the KL penalty (default: KLBudget)",
    )
    add(
        "--beta",
        type=float,
        metavar="B",
        help="start a controller other than KLBudget with the penalty coefficient beta = B, which FixedBeta keeps "
        "(default: the default of the controller)",
    )
    add(
        "--steps",
        type=int,
        required=True,
        metavar="N",
        help="train for N environment steps, rounded up to whole updates of n_steps * n_envs (2048) steps",
    )
    add_run_options(
        parser,
        evaluate_every=10,
        interval=f"updates; {ONLY_AT_ENDS}",
        settings="the PPO of stable-baselines3, such as n_steps,",
    )
    parser.set_defaults(run=_ppo)


def _parse_clip(text: str) -> float | None:
    try:
        return None if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or none, got {text!r}") from None


def _ppo(options: argparse.Namespace) -> int:
    check_run_options(options)
    constrain = options.constrain or ("reference" if options.reference else "old-policy")
    controller = _create_controller(options)
    if options.constrain and controller is None:
        raise InputError("--constrain: expected --budget or --controller FixedBeta as well")
    from kullback.budget.kl_budget import MAX_BUDGET_DECAY

    if not 0 <= options.budget_decay <= MAX_BUDGET_DECAY:
        expected = f"expected a number from 0 to {MAX_BUDGET_DECAY:g}"
        raise InputError(f"--budget-decay: {expected}, got {options.budget_decay:g}")
    for option, is_given in (
        ("--mean-over-updates", options.mean_over_updates),
        ("--budget-decay", options.budget_decay != 0),
    ):
        if is_given and not (constrain == "old-policy" and options.controller == "KLBudget"):
            raise InputError(f"{option}: expected --constrain old-policy and no other --controller than KLBudget")
        if is_given and controller is None:
            raise InputError(f"{option}: expected --budget as well")

    from kullback.train.ppo_settings import parse_ppo_settings, require_valid_ppo_options
    from kullback.train.run_checks import require_packages

    require_packages(("torch", "stable_baselines3", "gymnasium", "safetensors", "rich"), extra="rl")
    settings = parse_ppo_settings(options.set)
    has_reference = options.reference is not None
    require_valid_ppo_options(
        settings, clip=options.clip, constrain=constrain, states=options.states, has_reference=has_reference
    )
    if has_reference and not options.reference.exists():
        raise InputError(f"--reference {options.reference}: no such file or directory")

    import kullback.integrations.sb3_saved  # noqa: F401  imported first: its error names the extra to install

    # isort: split
    from kullback.train.ppo import PPOPlan, train_ppo

    plan = PPOPlan(
        env=options.env,
        steps=options.steps,
        output=options.output,
        budget=controller,
        constrain=constrain,
        mean_over_updates=options.mean_over_updates,
        budget_decay=options.budget_decay,
        states=options.states,
        reference=options.reference,
        clip=options.clip,
        seed=options.seed,
        settings=settings,
        evaluate_every=options.evaluate_every,
    )
    with results_on_stdout():
        finished = train_ppo(
            plan,
            resume=options.resume,
            overwrite=options.overwrite,
            console=progress_console(quiet=options.json),
        )
    return report_run(options, title=f"PPO: {options.env}", finished=finished)


def _create_controller(options: argparse.Namespace) -> Any:
    """The controller that the options describe, or None; checked before importing libraries that take seconds."""
    from kullback.budget.controllers import CONTROLLERS
    from kullback.budget.kl_budget import KLBudget

    kind, target, beta = options.controller, options.budget, options.beta
    if kind == "FixedBeta":
        if beta is None or target is not None:
            raise InputError("--controller FixedBeta: expected --beta and no --budget: FixedBeta has no target")
        return CONTROLLERS[kind](beta)
    if target is None:
        if beta is not None or kind != "KLBudget":
            raise InputError(f"--controller {kind}: expected --budget, the target of the controller")
        return None
    if kind == "KLBudget":
        if beta is not None:
            raise InputError("--beta: KLBudget determines beta itself; remove --beta or choose another --controller")
        return KLBudget(target, unit="step")
    return CONTROLLERS[kind](target, **({} if beta is None else {"beta": beta}))
