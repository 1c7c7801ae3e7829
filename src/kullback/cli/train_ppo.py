"""`kullback train ppo`: options in, a run directory and its report out."""

import argparse
import json
from pathlib import Path
from typing import Any

from kullback.cli.run_summary import finish
from kullback.errors import InputError

__all__ = ["add_ppo"]

EXAMPLE = """examples:
  kullback train ppo --env CartPole-v1 --budget 0.01 --clip none --steps 100000 --output runs/cartpole
  kullback train ppo --env CartPole-v1 --reference runs/cartpole --budget 0.05 --steps 50000 --output runs/tuned
"""
_CONTROLLERS = ("KLBudget", "PPO2017", "RLlibController", "Ziegler2019", "FixedBeta")


def add_ppo(recipes: Any) -> None:
    """Add `ppo` to what can be trained."""
    parser = recipes.add_parser(
        "ppo",
        help="a policy for an environment of Gymnasium, by PPO of stable-baselines3",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--env", required=True, metavar="NAME", help="the environment's name in Gymnasium")
    add("--budget", type=float, metavar="NATS", help="nats per step that the KL is held to; without: not held")
    add(
        "--constrain",
        choices=("old-policy", "reference"),
        help="which KL is constrained: KL(old policy || policy) of an update, or KL(policy || reference)",
    )
    over = "of the reference's KL: where the policy goes (visited), or 1024 states where the reference went (reference)"
    add("--states", choices=("visited", "reference"), default="visited", help=over)
    add("--reference", type=Path, metavar="PATH", help="start here, and stay near: a run of this, or SB3's model.zip")
    add("--clip", type=_clip, default=0.2, metavar="X", help="of the probability ratio, or none (default: 0.2)")
    add("--controller", choices=_CONTROLLERS, default="KLBudget", help="what sets beta (default: KLBudget)")
    add("--beta", type=float, metavar="B", help="where the other controllers' beta starts, or stays (FixedBeta)")
    add("--steps", type=int, required=True, metavar="N", help="environment steps")
    add("--output", type=Path, required=True, metavar="RUN", help="the run directory to make")
    add("--resume", action="store_true", help="go on from RUN's last checkpoint")
    add("--seed", type=int, default=0)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of PPO, such as n_steps; repeatable")
    add("--evaluate-every", type=int, default=10, metavar="N", help="updates between judgements, 0: only at the ends")
    add("--json", action="store_true", help="print the outcome as JSON and nothing else")
    parser.set_defaults(run=_ppo)


def _clip(text: str) -> float | None:
    try:
        return None if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or none, got {text!r}") from None


def _ppo(options: argparse.Namespace) -> int:
    constrain = options.constrain or ("reference" if options.reference else "old-policy")
    controller = _controller(options)
    if options.constrain and controller is None:
        raise InputError("--constrain: expected --budget beside it, or --controller FixedBeta")

    import kullback.integrations.sb3_saved  # noqa: F401  first: where a library is missing it says what to install

    # isort: split
    from rich.console import Console

    from kullback.runs.run_directory import RunDirectory
    from kullback.train.ppo import PPOPlan, train_ppo
    from kullback.train.ppo_settings import parse_ppo_settings

    console = Console(quiet=options.json)
    plan = PPOPlan(
        env=options.env,
        steps=options.steps,
        output=options.output,
        budget=controller,
        constrain=constrain,
        states=options.states,
        reference=options.reference,
        clip=options.clip,
        seed=options.seed,
        settings=parse_ppo_settings(options.set),
        evaluate_every=options.evaluate_every,
    )
    ended = train_ppo(plan, resume=options.resume, console=console)

    run = RunDirectory(options.output)
    finish({options.output.name: run}, run.report, title=f"PPO: {options.env}", console=console)
    if options.json:
        print(json.dumps({"run": str(run.path), "ended": ended, "last": (run.evaluations() or [None])[-1]}))
    elif not ended:
        console.print(f"stopped; go on with --resume --output {options.output}", highlight=False)
    return 0 if ended else 130


def _controller(options: argparse.Namespace) -> Any:
    """What the options ask for; refused before the libraries that take seconds to import."""
    from kullback.budget.controllers import CONTROLLERS
    from kullback.budget.kl_budget import KLBudget

    kind, target, beta = options.controller, options.budget, options.beta
    if kind == "FixedBeta":
        if beta is None or target is not None:
            raise InputError("--controller FixedBeta: expected --beta and no --budget, which it would not hold")
        return CONTROLLERS[kind](beta)
    if target is None:
        if beta is not None or kind != "KLBudget":
            raise InputError(f"--controller {kind}: expected --budget, which it is to hold")
        return None
    if kind == "KLBudget":
        if beta is not None:
            raise InputError("--beta: KLBudget finds its own; name another --controller")
        return KLBudget(target, unit="step")
    return CONTROLLERS[kind](target, **({} if beta is None else {"beta": beta}))
