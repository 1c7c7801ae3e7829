"""Training of latent-variable models with a schedule of beta or a KL budget."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file

from kullback.budget.controllers import Controller, controller_config, controller_from_dict, controller_to_dict
from kullback.budget.kl_budget import KLBudget
from kullback.budget.step import scaled_learning_rates
from kullback.errors import InputError
from kullback.runs.atomic_write import write_atomically
from kullback.runs.checkpoint import load_checkpoint, save_checkpoint
from kullback.runs.finite import finite_outputs, require_finite_step
from kullback.runs.input_hashes import hash_of_arrays
from kullback.runs.interrupts import Interrupts
from kullback.runs.metrics import kl_key
from kullback.runs.progress import RunProgress
from kullback.runs.run_directory import RunDirectory, versions
from kullback.train.run_checks import require_at_least, require_seed
from kullback.train.vae.beta_schedules import Constant, FreeBits, Schedule, kl_with_free_bits
from kullback.train.vae.budget_step import encoder_budget_step
from kullback.train.vae.data import Images
from kullback.train.vae.evaluation import collapse_warning, evaluate
from kullback.train.vae.image_grids import add_pictures
from kullback.train.vae.models import VAE, Bottleneck, Likelihood, kl_to_prior

__all__ = ["LatentPlan", "latent_budget", "train_latent"]

Row = dict[str, Any]


def latent_budget(nats: float) -> KLBudget:
    """A KL budget in nats per image, summed over all latent dimensions.

    The distortion is in nats as well, so that the expected beta is of order 1. The step limit is larger than for a
    policy, because the KL on the held-out images is exact.

    Args:
        nats: The target of the mean KL, > 0.

    Returns:
        A `KLBudget` whose initial beta is 1.

    Example:
        >>> budget = latent_budget(10.0)
        >>> budget.target, budget.unit, budget.beta
        (10.0, 'image', 1.0)
    """
    return KLBudget(nats, unit="image", price=nats, price_min=1e-3 * nats, price_max=1e3 * nats, step_limit=0.1)


@dataclass(frozen=True)
class LatentPlan:
    """The configuration of a run.

    Args:
        data: The argument of `load_images`.
        steps: The number of optimizer steps.
        output: The run directory.
        kind: "vae" for a variational autoencoder, "bottleneck" for a classifier.
        budget: The controller of the KL in nats per image, see `latent_budget`. None uses the schedule.
        schedule: Beta as a function of the step, for a run without a budget.
        free: The lower limit below which the KL is not penalised, or None.
        latents: The number of latent dimensions.
        hidden: The width of the hidden layers.
        likelihood: The distribution of a pixel given the latent variables.
        learning_rate: The learning rate of Adam.
        batch_size: The number of images per step.
        seed: The seed of all random numbers.
        evaluate_every: The number of steps between two evaluations on held-out images.
        save_every: The number of steps between two checkpoints.

    Example:
        >>> plan = LatentPlan("digits", 1000, Path("run"), budget=latent_budget(10.0))
        >>> plan.config()["kind"], plan.config()["budget"]["target"], plan.config()["schedule"]
        ('vae', 10.0, None)
        >>> LatentPlan("digits", 1000, Path("run")).config()["schedule"]
        {'name': 'Constant', 'value': 1.0}
    """

    data: str
    steps: int
    output: Path
    kind: Literal["vae", "bottleneck"] = "vae"
    budget: Controller | None = None
    schedule: Schedule = field(default_factory=Constant)
    free: FreeBits | None = None
    latents: int = 16
    hidden: int = 256
    likelihood: Likelihood = "bernoulli"
    learning_rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 500

    def config(self) -> Row:
        """The contents of config.json.

        Returns:
            The settings of the run as JSON types, by name.
        """
        schedule = {"name": type(self.schedule).__name__, **asdict(self.schedule)}  # pyright: ignore[reportArgumentType]
        copied = ("data", "latents", "hidden", "learning_rate", "batch_size", "seed", "evaluate_every", "steps")
        return {
            "kind": self.kind,
            **{name: getattr(self, name) for name in copied},
            "likelihood": self.likelihood if self.kind == "vae" else "categorical",
            "budget": None if self.budget is None else controller_config(self.budget, unit="image"),
            "schedule": None if self.budget is not None else schedule,
            "free": None if self.free is None else asdict(self.free),
            "rewards": [],
            "watched": [],
        }


def train_latent(
    plan: LatentPlan, images: Images, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> bool:
    """Train a latent-variable model, and write a run directory.

    Each step descends the batch mean of distortion + beta KL(q(z | x) || p(z)). Batches and noise are drawn from the
    seed and the step, so that a resumed run is identical to an uninterrupted run.

    Args:
        plan: The configuration of the run.
        images: The result of `load_images`, with labels for a bottleneck.
        resume: Whether to continue from the newest intact checkpoint in the run directory. A run that has already
            taken all steps is not changed.
        overwrite: Whether to replace a run in the run directory.
        console: The console that shows the progress, or None for no output.

    Returns:
        True if all steps were taken; False after an interrupt, which saves a checkpoint and evaluates the model.

    Raises:
        InputError: The plan is invalid, the run directory does not allow the run to start or to continue, or a loss, a
            gradient or a weight is not finite.

    Example:
        >>> import tempfile
        >>> pixels = np.random.default_rng(0).random((40, 4, 4), np.float32)
        >>> images = Images(pixels[:32], pixels[32:])
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     plan = LatentPlan("random", 2, Path(directory) / "run", budget=latent_budget(1.0), latents=2, hidden=8)
        ...     finished = train_latent(plan, images)
        ...     steps = [row["step"] for row in RunDirectory(plan.output).metrics()]
        >>> finished, steps
        (True, [1, 2])
    """
    run = RunDirectory(plan.output)
    _validate(plan, images)
    with run.open_for_training(_config(plan, images), resume=resume, overwrite=overwrite):
        return (resume and run.is_finished(plan.steps)) or _train(plan, images, run, resume, console)


def _train(plan: LatentPlan, images: Images, run: RunDirectory, resume: bool, console: Console | None) -> bool:
    """Train in a run directory that is locked; see `train_latent`."""
    model = _make_model(plan, images)
    weights = list(model.named_parameters())
    other_parameters = [parameter for name, parameter in weights if not name.startswith("encoder.")]
    groups = [{"params": list(model.encoder.parameters())}, {"params": other_parameters}]
    optimiser = torch.optim.Adam(groups, lr=plan.learning_rate, fused=True)
    budget, step = plan.budget, 0
    checkpoint = run.checkpoint_to_resume() if resume else None
    if checkpoint is not None:
        step, budget = _restore_checkpoint(model, optimiser, checkpoint)
        run.remove_rows_after(step)
    else:
        run.create({**_config(plan, images), "versions": versions("torch")})
        run.remove_rows_after(-1)
    x, held_out = (torch.from_numpy(np.asarray(pixels, np.float32)) for pixels in (images.train, images.held_out))
    labels, held_out_labels = (
        None if classes is None else torch.from_numpy(classes)
        for classes in (images.train_labels, images.held_out_labels)
    )
    budget_step = encoder_budget_step(model, x) if isinstance(budget, KLBudget) else None
    start_time = time.monotonic() - run.elapsed_seconds()
    progress_line = RunProgress(
        plan.output.name, plan.steps, target=getattr(budget, "target", None), unit="image", console=console
    )
    outputs = finite_outputs(lambda: step, remedy="lower --learning-rate")
    with progress_line as progress, Interrupts() as interrupts, outputs:
        if step == 0:
            run.add_evaluation(evaluate(model, held_out, held_out_labels, step=0, likelihood=False))
            add_pictures(run, model, held_out, "before")
        while step < plan.steps and not interrupts.requested:
            step += 1
            generator = torch.Generator().manual_seed(derived_seed(plan.seed, step))
            rows = torch.randint(len(x), (min(plan.batch_size, len(x)),), generator=generator)
            batch = x[rows]
            loc, scale = model.posterior(batch)
            kl = kl_to_prior(loc, scale)
            z = loc + scale * torch.randn(loc.shape, generator=generator)
            cost = model.cost(z, batch, None if labels is None else labels[rows]).mean()
            image_kl = kl.detach().sum(1).double()
            mean_kl, error = float(image_kl.mean()), float(image_kl.std() / len(image_kl) ** 0.5)
            if not np.isfinite(mean_kl + float(cost.detach())):
                raise InputError(
                    f"step {step}: expected a finite loss, got a distortion of {float(cost.detach())} and a KL of "
                    f"{mean_kl} nats; lower --learning-rate"
                )
            if budget is not None:
                budget = budget.update(mean_kl, std_error=error, count=len(rows))
            beta = plan.schedule.beta(step) if budget is None else budget.beta
            optimiser.zero_grad()
            (cost + beta * kl_with_free_bits(kl, plan.free)).backward()
            # The learning rate of the encoder is scaled.
            learning_rate_scale = budget.learning_rate_scale if isinstance(budget, KLBudget) else 1.0
            with scaled_learning_rates(optimiser.param_groups[:1], learning_rate_scale):
                optimiser.step()
            require_finite_step(weights, step=step)
            controller_row: Row = {}
            if budget_step is not None:
                assert isinstance(budget, KLBudget)
                budget, displacement_scale = budget_step.apply(budget)
                controller_row = {
                    "kl_filtered": budget.filtered_kl,
                    "learning_rate_scale": learning_rate_scale,
                    "displacement_scale": displacement_scale,
                }
            row = {
                "step": step,
                "kl_posterior_prior_per_image": mean_kl,
                "kl_posterior_prior_per_image_std_error": error,
            }
            row |= {"distortion" if plan.kind == "vae" else "cross_entropy": float(cost.detach()), "beta": beta}
            row |= controller_row
            run.add_metrics({**row, "seconds": round(time.monotonic() - start_time, 3)})
            progress.show(row)
            if step % plan.evaluate_every == 0 or step == plan.steps:
                is_last = step == plan.steps
                evaluation = evaluate(model, held_out, held_out_labels, step=step, likelihood=is_last)
                if (warning := collapse_warning(evaluation, beta, has_budget=budget is not None)) is not None:
                    evaluation["alarm"] = warning
                    if console is not None and step == plan.steps:
                        console.print(warning, highlight=False, soft_wrap=True)
                run.add_evaluation(evaluation)
                if isinstance(budget, KLBudget):
                    name = kl_key("image")
                    budget = budget.update_evaluation(evaluation[name], std_error=evaluation[f"{name}_std_error"])
            if step % plan.save_every == 0 or step == plan.steps or interrupts.requested:
                _save_checkpoint(model, optimiser, run.checkpoints, step, budget)
    if step < plan.steps:
        with suppress(KeyboardInterrupt):  # another interrupt omits the evaluation
            run.add_evaluation_once(evaluate(model, held_out, held_out_labels, step=step))
        return False
    if all(row["step"] != step for row in run.evaluations()):  # a killed run has saved only its last checkpoint
        run.add_evaluation(evaluate(model, held_out, held_out_labels, step=step))
    add_pictures(run, model, held_out, "after")
    architecture = {"size": images.train.shape[1:], "latents": plan.latents, "hidden": plan.hidden, "kind": plan.kind}
    architecture |= {"likelihood": plan.likelihood}

    def write(directory: Path) -> None:
        save_file(model.state_dict(), directory / "model.safetensors")
        write_atomically(directory / "model.json", json.dumps(architecture, indent=2) + "\n")

    run.save_model(step, write)
    return True


def _config(plan: LatentPlan, images: Images) -> Row:
    """The contents of config.json with a hash of the images and of their classes."""
    return {**plan.config(), "hashes": {"images": hash_of_arrays(images)}}


def derived_seed(seed: int, step: int) -> int:
    """A seed below 2**63 that depends on the seed of the run and the step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def _make_model(plan: LatentPlan, images: Images) -> VAE | Bottleneck:
    """The model with initial weights that the seed determines."""
    size = images.train.shape[1], images.train.shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        if plan.kind == "vae":
            return VAE(size, plan.latents, plan.hidden, plan.likelihood)
        assert images.train_labels is not None  # _validate has checked this
        classes = 1 + int(images.train_labels.max())
        return Bottleneck(size, plan.latents, plan.hidden, classes)


def _save_checkpoint(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, checkpoints: Path, step: int, budget: Controller | None
) -> None:
    state = {"budget": None if budget is None else controller_to_dict(budget)}
    save_checkpoint(checkpoints, step, model, optimiser, state)


def _restore_checkpoint(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, checkpoint: Path
) -> tuple[int, Controller | None]:
    """Restore the model and the optimiser, and return the step and the controller of the checkpoint."""
    state = load_checkpoint(checkpoint, model, optimiser)
    return state["step"], None if state["budget"] is None else controller_from_dict(state["budget"])


def _validate(plan: LatentPlan, images: Images) -> None:
    """Raise InputError if the plan is invalid."""
    minima = {"steps": 1, "latents": 1, "hidden": 1, "batch_size": 2, "evaluate_every": 1, "save_every": 1}
    for name, minimum in minima.items():
        require_at_least(f"--{name.replace('_', '-')}", getattr(plan, name), minimum)
    require_seed(plan.seed)
    if not 0 < plan.learning_rate < 1:
        raise InputError(f"--learning-rate: expected a number between 0 and 1, got {plan.learning_rate}")
    if plan.kind == "bottleneck" and images.train_labels is None:
        raise InputError(f"--data {plan.data}: expected images with classes for a bottleneck, such as digits")
    _validate_images(images)


def _validate_images(images: Images) -> None:
    """Raise InputError unless the images are numbers in [0, 1] of equal size, with one class for each image."""
    sides = {
        "train": (images.train, images.train_labels, 2),
        "held_out": (images.held_out, images.held_out_labels, 1),
    }
    for name, (pixels, labels, least) in sides.items():
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.dtype.kind != "f":
            got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise InputError(f"images.{name}: expected an array of floats of shape (n, height, width), got {got}")
        if len(pixels) < least or pixels.shape[1:] != images.train.shape[1:] or 0 in pixels.shape:
            raise InputError(
                f"images.{name}: expected at least {least} images of the size {images.train.shape[1:]}, got the shape "
                f"{pixels.shape}"
            )
        outside = ~((pixels >= 0) & (pixels <= 1))
        if outside.any():
            index = tuple(int(i) for i in np.argwhere(outside)[0])
            raise InputError(f"images.{name}: expected values in [0, 1], got {pixels[index]} at index {index}")
        if labels is not None and np.shape(labels) != pixels.shape[:1]:
            raise InputError(
                f"images.{name}_labels: expected one class for each of {len(pixels)} images, got the shape "
                f"{np.shape(labels)}"
            )
