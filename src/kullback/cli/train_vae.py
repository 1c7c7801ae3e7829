"""`kullback train vae` and `kullback train bottleneck`: latent-variable models of images, with a KL budget."""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

from kullback.cli.run_options import add_run_options, check_run_options, require_own_report
from kullback.cli.run_summary import make_console, print_outcome, progress_console, results_on_stdout, write_report
from kullback.errors import InputError

__all__ = ["add_bottleneck", "add_vae"]

VAE_EXAMPLES = """examples:
  kullback train vae --budget 5 --output runs/vae                  digits, with 5 nats per image
  kullback train vae --data faces/ --likelihood gaussian --beta 2 --anneal linear --steps 5000 --output runs/faces
  kullback train vae --free-bits 0.25 --output runs/free           no penalty on the first 0.25 nats of each dimension
"""
BOTTLENECK_EXAMPLES = """example:
  kullback train bottleneck --budgets 0.5 1 2 3 4 8 --output runs/bottleneck
      train one classifier for each budget, and report its accuracy against its KL in nats
"""
_MAX_REPORTED_RUNS = 6


def add_vae(recipes: Any) -> None:
    """Add the recipe `vae`."""
    parser = recipes.add_parser(
        "vae",
        help="train a variational autoencoder of images, with a fixed beta or with a KL budget",
        epilog=VAE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data",
        default="digits",
        metavar="DATA",
        help="the images: digits (of scikit-learn), a .npy file of shape (n, height, width), or a directory of image "
        "files (default: digits)",
    )
    add(
        "--budget",
        type=float,
        metavar="NATS",
        help="keep KL(q(z|x) || p(z)) at NATS nats per image (default: no budget, see --beta)",
    )
    add(
        "--beta",
        type=float,
        metavar="B",
        help="multiply the KL in the loss by B; with --anneal, B is the final coefficient (default: 1)",
    )
    add(
        "--anneal",
        choices=("linear", "cyclical"),
        help="increase beta from 0: linear over the first third of the steps, or cyclical, four times over the run "
        "(default: constant beta)",
    )
    add(
        "--free-bits",
        type=float,
        metavar="NATS",
        help="do not penalise the first NATS nats of KL (default: penalise all)",
    )
    add(
        "--free-of",
        choices=("dimension", "example"),
        help="apply --free-bits to each latent dimension or to each example (default: dimension)",
    )
    add(
        "--likelihood",
        choices=("bernoulli", "gaussian"),
        default="bernoulli",
        help="the distribution of a pixel given z (default: bernoulli)",
    )
    _add_common_options(parser)
    parser.set_defaults(run=_vae)


def add_bottleneck(recipes: Any) -> None:
    """Add the recipe `bottleneck`."""
    parser = recipes.add_parser(
        "bottleneck",
        help="train classifiers of images through an information bottleneck, one for each KL budget",
        epilog=BOTTLENECK_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="digits", choices=("digits",), help="the images and their classes (default: digits)")
    add(
        "--budgets",
        type=float,
        nargs="+",
        default=[0.5, 1.0, 2.0, 3.0, 4.0, 8.0],
        metavar="NATS",
        help="the KL budgets in nats per image, each of which bounds the mutual information I(x; z) (default: 0.5 1 "
        "2 3 4 8)",
    )
    _add_common_options(parser)
    parser.set_defaults(run=_bottleneck)


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--latents", type=int, default=16, metavar="N", help="the number of latent dimensions (default: 16)")
    add("--hidden", type=int, default=256, metavar="N", help="the width of the hidden layers (default: 256)")
    add("--steps", type=int, default=3000, metavar="N", help="train for N optimizer steps (default: 3000)")
    add("--batch-size", type=int, default=128, metavar="N", help="the number of images per step (default: 128)")
    add(
        "--learning-rate",
        type=float,
        default=1e-3,
        metavar="X",
        help="the learning rate of the optimizer (default: 0.001)",
    )
    add_run_options(parser, evaluate_every=100, interval="optimizer steps")


def _vae(options: argparse.Namespace) -> int:
    check_run_options(options, least_interval=1)
    _check_numbers(options)
    budget, schedule, free = _create_penalty(options)
    from kullback.runs.run_directory import RunDirectory

    finished = _train(
        options, options.output, "vae", resume=options.resume, budget=budget, schedule=schedule, free=free
    )
    runs = {options.output.name: RunDirectory(options.output)}
    return _finish(options, runs, finished=finished, title="A variational autoencoder")


def _bottleneck(options: argparse.Namespace) -> int:
    from kullback.runs.run_directory import RunDirectory
    from kullback.train.run_checks import require_budget

    require_own_report(options.output)
    budgets = sorted(set(options.budgets))
    for nats in budgets:
        require_budget("--budgets", nats)
    for lower, upper in pairwise(budgets):
        if f"{lower:g}" == f"{upper:g}":  # the names of their directories
            raise InputError(f"--budgets: expected budgets that differ in six digits, got {lower!r} and {upper!r}")
    _check_numbers(options)
    for nats in budgets:
        path = options.output / f"budget-{nats:g}"
        resume = options.resume and (path / "config.json").is_file()
        each = argparse.Namespace(**{**vars(options), "output": path, "resume": resume})
        check_run_options(each, least_interval=1)
    runs, finished = {}, True
    for nats in budgets:
        path = options.output / f"budget-{nats:g}"
        resume = options.resume and (path / "config.json").is_file()
        finished = _train(options, path, "bottleneck", budget=_create_budget(nats), resume=resume)
        runs[f"{nats:g} nats"] = RunDirectory(path)
        if not finished:
            break
    if options.resume:  # the report keeps the runs whose budgets are not named again
        for path in options.output.glob("budget-*"):
            name = path.name.removeprefix("budget-")
            if _is_number(name) and (path / "evaluations.jsonl").is_file():
                runs.setdefault(f"{name} nats", RunDirectory(path))
        runs = dict(sorted(runs.items(), key=lambda item: float(item[0].removesuffix(" nats"))))
    reported = dict(list(runs.items())[-_MAX_REPORTED_RUNS:])
    title = "Accuracy against KL: an information bottleneck"
    return _finish(options, reported, finished=finished, title=title, summary=_accuracies(runs))


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _accuracies(runs: dict[str, Any]) -> str:
    """The accuracy of each run and its KL, as a sentence."""
    rows = [(run.evaluations() or [{}])[-1] for run in runs.values()]
    pairs = [f"{row['accuracy']:.1%} at {row['kl_posterior_prior_per_image']:.2f} nats" for row in rows if row]
    return f"Accuracy on held-out images: {', '.join(pairs)}"


def _create_penalty(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The budget, the schedule of beta and the free bits; the budget is None if beta follows the schedule."""
    if options.budget is not None and (options.beta is not None or options.anneal or options.free_bits is not None):
        raise InputError("--budget: the budget determines beta; remove --beta, --anneal and --free-bits")
    if options.beta is not None and not 0 <= options.beta < float("inf"):
        raise InputError(f"--beta: expected a finite number >= 0, got {options.beta}")
    if options.free_of and options.free_bits is None:
        raise InputError("--free-of: expected --free-bits as well, which this option is for")
    if options.free_bits is not None:
        _require_positive("--free-bits", options.free_bits)
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
        free = FreeBits(options.free_bits, options.free_of or "dimension")
    return None if options.budget is None else _create_budget(options.budget), schedule, free


def _check_numbers(options: argparse.Namespace) -> None:
    from kullback.train.run_checks import require_at_least

    require_at_least("--latents", options.latents, 1)
    require_at_least("--hidden", options.hidden, 1)
    require_at_least("--batch-size", options.batch_size, 2)
    if not 0 < options.learning_rate < 1:
        raise InputError(f"--learning-rate: expected a number between 0 and 1, got {options.learning_rate}")
    if options.data != "digits" and not (options.data and Path(options.data).exists()):
        raise InputError(f"--data {options.data}: not found; expected digits, a .npy file or a folder of images")


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise InputError(f"{name}: expected a finite number of nats > 0, got {value}")


def _require_libraries() -> None:
    from kullback.train.run_checks import require_packages

    require_packages(("torch", "sklearn", "PIL", "safetensors", "rich"), extra="vae")


def _create_budget(nats: float) -> Any:
    _require_libraries()
    from kullback.train.vae.train import latent_budget

    return latent_budget(nats)


def _train(options: argparse.Namespace, path: Path, kind: Any, *, resume: bool, **penalty: Any) -> bool:
    """Train one model in the run directory `path`; return whether the run finished."""
    from kullback.train.vae.data import load_images
    from kullback.train.vae.train import LatentPlan, train_latent

    names = ("latents", "hidden", "steps", "batch_size", "learning_rate", "evaluate_every", "seed", "data")
    settings = {name: getattr(options, name) for name in names}
    likelihood: Any = getattr(options, "likelihood", "bernoulli")
    plan = LatentPlan(output=path, kind=kind, likelihood=likelihood, **settings, **penalty)
    images = load_images(options.data)
    with results_on_stdout():
        return train_latent(
            plan,
            images,
            resume=resume,
            overwrite=options.overwrite,
            console=progress_console(quiet=options.json),
        )


def _finish(options: argparse.Namespace, runs: dict[str, Any], *, finished: bool, title: str, summary: str = "") -> int:
    console = make_console(quiet=options.json)
    write_report(runs, options.output / "report.html", title=title, console=console, summary=summary)
    return print_outcome(options, runs, finished=finished, console=console)
