"""`kullback train vae` and `kullback train bottleneck`: options in, run directories and their report out."""

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from kullback.cli.run_summary import finish
from kullback.errors import InputError, MissingDependencyError

__all__ = ["add_latents"]

VAE_EXAMPLE = """examples:
  kullback train vae --budget 5 --output runs/vae                        digits, 5 nats an image
  kullback train vae --data faces/ --likelihood gaussian --beta 2 --anneal linear --steps 5000 --output runs/faces
  kullback train vae --free-bits 0.25 --output runs/free                 a quarter of a nat of each dimension is free
"""
BOTTLENECK_EXAMPLE = """example:
  kullback train bottleneck --budgets 0.5 1 2 3 4 8 --output runs/bottleneck
      a classifier at each budget, and its accuracy against the nats that it was left
"""


def add_latents(recipes: Any) -> None:
    """Add `vae` and `bottleneck` to what can be trained."""
    parser = _parser(recipes, "vae", "a variational autoencoder of images, at a price or inside a budget", VAE_EXAMPLE)
    add = parser.add_argument
    add(
        "--data", default="digits", metavar="DATA", help="digits, a .npy of (n, height, width), or a folder of pictures"
    )
    add("--budget", type=float, metavar="NATS", help="what KL(q(z|x) || p(z)) is held to, nats an image")
    add("--beta", type=float, default=None, metavar="B", help="what a nat costs without a budget (default: 1)")
    add("--anneal", choices=("linear", "cyclical"), help="beta from 0, once over a third of the steps, or 4 times")
    add("--free-bits", type=float, metavar="NATS", help="nats that cost nothing")
    add("--free-of", choices=("dimension", "example"), default="dimension", help="of what (default: dimension)")
    add("--likelihood", choices=("bernoulli", "gaussian"), default="bernoulli", help="of pixels (default: bernoulli)")
    parser.set_defaults(run=_vae)
    parser = _parser(recipes, "bottleneck", "a classifier that is left a few nats of each image", BOTTLENECK_EXAMPLE)
    add = parser.add_argument
    add("--data", default="digits", choices=("digits",), help="what to classify")
    add("--budgets", type=float, nargs="+", default=[0.5, 1.0, 2.0, 3.0, 4.0, 8.0], metavar="NATS", help="of I(x; z)")
    parser.set_defaults(run=_bottleneck)


def _parser(recipes: Any, name: str, words: str, examples: str) -> argparse.ArgumentParser:
    parser = recipes.add_parser(name, help=words, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--latents", type=int, default=16, metavar="N", help="latent dimensions (default: 16)")
    add("--hidden", type=int, default=256, metavar="N", help="width of the hidden layers (default: 256)")
    add("--steps", type=int, default=3000, metavar="N", help="optimizer steps (default: 3000)")
    add("--batch-size", type=int, default=128, metavar="N")
    add("--learning-rate", type=float, default=1e-3, metavar="X")
    add("--evaluate-every", type=int, default=100, metavar="N", help="steps between judgements (default: 100)")
    add("--output", type=Path, required=True, metavar="RUN", help="the run directory to make")
    add("--resume", action="store_true", help="go on from RUN's last checkpoint")
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="print the outcome as JSON and nothing else")
    return parser


def _vae(options: argparse.Namespace) -> int:
    budget, schedule, free = _priced(options)
    from kullback.runs.run_directory import RunDirectory

    ended, run = _train(options, options.output, "vae", budget=budget, schedule=schedule, free=free)
    return _close(options, {options.output.name: RunDirectory(run)}, ended, options.output, "A variational autoencoder")


def _bottleneck(options: argparse.Namespace) -> int:
    from kullback.runs.run_directory import RunDirectory

    budgets = sorted(set(options.budgets))
    for nats in budgets:
        _require_positive("--budgets", nats)
    runs, ended = {}, True
    for nats in budgets:
        path = options.output / f"budget-{nats:g}"
        resumed = options.resume and RunDirectory(path).last_checkpoint() is not None
        ended, run = _train(options, path, "bottleneck", budget=_budget(nats), resume=resumed)
        runs[f"{nats:g} nats"] = RunDirectory(run)
        if not ended:
            break
    shown = dict(list(runs.items())[-6:])
    title = "Accuracy against nats: an information bottleneck"
    return _close(options, shown, ended, options.output, title, _curve(runs))


def _curve(runs: dict[str, Any]) -> str:
    told = [(run.evaluations() or [{}])[-1] for run in runs.values()]
    pairs = [f"{row['accuracy']:.1%} at {row['kl_posterior_prior_per_image']:.2f} nats" for row in told if row]
    return f"Accuracy on held-out images: {', '.join(pairs)}"


def _priced(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The budget, or the schedule that stands for it; and what is free."""
    if options.budget is not None:
        _require_positive("--budget", options.budget)
        if options.beta is not None or options.anneal or options.free_bits is not None:
            raise InputError("--budget: it sets the price itself; leave out --beta, --anneal and --free-bits")
    if options.beta is not None and not 0 <= options.beta < float("inf"):
        raise InputError(f"--beta: expected a finite number >= 0, got {options.beta}")
    _require_libraries()
    from kullback.train.vae.beta_schedules import Constant, Cyclical, FreeBits, Linear

    beta = 1.0 if options.beta is None else options.beta
    schedule = Constant(beta)
    if options.anneal == "linear":
        schedule = Linear(beta, warmup=max(1, options.steps // 3))
    if options.anneal == "cyclical":
        schedule = Cyclical(beta, total=options.steps)
    free = None
    if options.free_bits is not None:
        _require_positive("--free-bits", options.free_bits)
        free = FreeBits(options.free_bits, options.free_of)
    return None if options.budget is None else _budget(options.budget), schedule, free


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise InputError(f"{name}: expected a finite number of nats > 0, got {value}")


def _require_libraries() -> None:
    for name in ("torch", "sklearn", "PIL", "safetensors", "rich"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(f"{name} is missing: pip install 'kullback[vae]'") from error


def _budget(nats: float) -> Any:
    _require_libraries()
    from kullback.train.vae.train import latent_budget

    return latent_budget(nats)


def _train(options: argparse.Namespace, path: Path, kind: Any, *, resume: Any = None, **priced: Any) -> Any:
    from rich.console import Console

    from kullback.train.vae.data import load_images
    from kullback.train.vae.train import LatentPlan, train_latent

    same = ("latents", "hidden", "steps", "batch_size", "learning_rate", "evaluate_every", "seed", "data")
    likelihood: Any = getattr(options, "likelihood", "bernoulli")
    given = {name: getattr(options, name) for name in same}
    plan = LatentPlan(output=path, kind=kind, likelihood=likelihood, **given, **priced)
    images = load_images(options.data)
    again = options.resume if resume is None else resume
    return train_latent(plan, images, resume=again, console=Console(quiet=options.json)), path


def _close(
    options: argparse.Namespace, runs: dict[str, Any], ended: bool, output: Path, title: str, summary: str = ""
) -> int:
    from rich.console import Console

    console = Console(quiet=options.json)
    finish(runs, output / "report.html", title=title, console=console, summary=summary)
    if options.json:
        last = {name: (run.evaluations() or [None])[-1] for name, run in runs.items()}
        print(json.dumps({"run": str(output), "ended": ended, "last": last}))
    elif not ended:
        console.print(f"stopped; go on with --resume --output {output}", highlight=False)
    return 0 if ended else 130
