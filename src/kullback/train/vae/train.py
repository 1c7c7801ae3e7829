"""Train a model of latent variables, at a price of KL or inside a budget of it: one run, one run directory."""

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from kullback.budget.controllers import Controller, controller_config, controller_from_dict, controller_to_dict
from kullback.budget.kl_budget import KLBudget
from kullback.errors import InputError
from kullback.runs.atomic_write import write_whole
from kullback.runs.interrupts import Interrupts
from kullback.runs.progress import RunProgress
from kullback.runs.run_directory import RunDirectory, versions
from kullback.train.vae.beta_schedules import Constant, FreeBits, Schedule, priced_kl
from kullback.train.vae.budget_step import BudgetStep
from kullback.train.vae.data import Images
from kullback.train.vae.evaluation import alarm, judge
from kullback.train.vae.image_grids import add_pictures
from kullback.train.vae.models import VAE, Bottleneck, Likelihood, kl_to_prior

__all__ = ["LatentPlan", "latent_budget", "train_latent"]

Row = dict[str, Any]


def latent_budget(nats: float) -> KLBudget:
    """A budget of nats an image over all latent dimensions. Costs are in nats too, so that prices are around 1 each.

    Its steps may move the KL farther than a policy's: what a pull does is seen on the panel without noise.
    """
    return KLBudget(nats, unit="image", price=nats, price_min=1e-3 * nats, price_max=1e3 * nats, step_limit=0.1)


@dataclass(frozen=True)
class LatentPlan:
    """All that a run is told.

    Args:
        data: What `load_images` is to read.
        steps: Optimizer steps.
        output: The run directory.
        kind: "vae", or "bottleneck": classify.
        budget: What holds the KL, in nats an image; see `latent_budget`. None: the schedule prices it.
        schedule: Beta by step, without a budget.
        free: Which nats are free.
        latents: How many latent dimensions.
        hidden: Width of the hidden layers.
        likelihood: Of pixels.
        learning_rate: Adam's.
        batch_size: Images a step.
        seed: Of everything.
        evaluate_every: Steps between judgements on held-out images.
        save_every: Steps between checkpoints.
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
        """What config.json says of it."""
        schedule = {"name": type(self.schedule).__name__, **asdict(self.schedule)}  # pyright: ignore[reportArgumentType]
        same = ("data", "latents", "hidden", "learning_rate", "batch_size", "seed", "evaluate_every", "steps")
        return {
            "kind": self.kind,
            **{name: getattr(self, name) for name in same},
            "likelihood": self.likelihood if self.kind == "vae" else "categorical",
            "budget": None if self.budget is None else controller_config(self.budget, unit="image"),
            "schedule": None if self.budget is not None else schedule,
            "free": None if self.free is None else asdict(self.free),
            "rewards": [],
            "watched": [],
        }


def train_latent(plan: LatentPlan, images: Images, *, resume: bool = False, console: Console | None = None) -> bool:
    """Train, and leave a run directory behind.

    Each step descends the mean of distortion + beta KL(q(z | x) || p(z)) over a batch. Batches and noise are drawn from
    the seed and the step, so that a run that was killed and resumed is the run that was not.

    Args:
        plan: What to do.
        images: As `load_images` gives them; with labels for a bottleneck.
        resume: Go on from the run directory's last checkpoint.
        console: Where to show the progress; quiet if None.

    Returns:
        Whether the run came to its end: False after an interrupt, which leaves a checkpoint.

    Raises:
        InputError: The plan cannot be carried out; the message says why.
    """
    run = RunDirectory(plan.output)
    _require_sense(plan, images, run, resume)
    model = _model(plan, images)
    others = [parameter for name, parameter in model.named_parameters() if not name.startswith("encoder.")]
    groups = [{"params": list(model.encoder.parameters())}, {"params": others}]
    optimiser = torch.optim.Adam(groups, lr=plan.learning_rate)
    budget, step = plan.budget, 0
    checkpoint = run.last_checkpoint() if resume else None
    if checkpoint is not None:
        step, budget = _restore(model, optimiser, checkpoint)
        run.forget_after(step)
    else:
        run.create({**plan.config(), "versions": versions("torch")})
        run.forget_after(-1)
    x, labels, judged, judged_labels = (None if one is None else torch.from_numpy(one) for one in _ordered(images))
    assert x is not None
    assert judged is not None
    leash = BudgetStep(model, x) if isinstance(budget, KLBudget) else None
    earlier = run.metrics()
    since = time.monotonic() - (earlier[-1]["seconds"] if earlier else 0.0)
    told = RunProgress(
        plan.output.name, plan.steps, target=getattr(budget, "target", None), unit="image", console=console
    )
    with told as progress, Interrupts() as interrupts:
        if step == 0:
            run.add_evaluation(judge(model, judged, judged_labels, step=0))
            add_pictures(run, model, judged, "before")
        while step < plan.steps and not interrupts.asked:
            step += 1
            draws = torch.Generator().manual_seed(derived_seed(plan.seed, step))
            rows = torch.randint(len(x), (min(plan.batch_size, len(x)),), generator=draws)
            loc, scale = model.posterior(x[rows])
            kl = kl_to_prior(loc, scale)
            z = loc + scale * torch.randn(loc.shape, generator=draws)
            cost = model.cost(z, x[rows], None if labels is None else labels[rows]).mean()
            each = kl.detach().sum(1).double()
            rate, error = float(each.mean()), float(each.std() / len(each) ** 0.5)
            if not np.isfinite(rate + float(cost.detach())):
                raise InputError(f"step {step}: the loss is no longer finite; lower --learning-rate")
            if budget is not None:
                budget = budget.update(rate, std_error=error, count=len(rows))
            beta = plan.schedule.beta(step) if budget is None else budget.beta
            optimiser.zero_grad()
            (cost + beta * priced_kl(kl, plan.free)).backward()
            acted: Row = {}
            if leash is None:
                optimiser.step()
            else:
                assert isinstance(budget, KLBudget)
                scale_of_step = budget.learning_rate_scale
                budget, pulled = leash.step(budget, optimiser)
                acted = {
                    "kl_filtered": budget.filtered_kl,
                    "learning_rate_scale": scale_of_step,
                    "displacement_scale": pulled,
                }
            row = {
                "step": step,
                "kl_posterior_prior_per_image": rate,
                "kl_posterior_prior_per_image_std_error": error,
            }
            row |= {"distortion" if plan.kind == "vae" else "cross_entropy": float(cost.detach()), "beta": beta}
            row |= acted
            run.add_metrics({**row, "seconds": round(time.monotonic() - since, 3)})
            progress.show({**row, "reward": -float(cost.detach())})
            if step % plan.evaluate_every == 0 or step == plan.steps:
                found = judge(model, judged, judged_labels, step=step)
                if (words := alarm(found, beta)) is not None:
                    found["alarm"] = words
                    if console is not None and step == plan.steps:
                        console.print(words, highlight=False, soft_wrap=True)
                run.add_evaluation(found)
                if isinstance(budget, KLBudget):
                    name = "kl_posterior_prior_per_image"
                    budget = budget.update_evaluation(found[name], std_error=found[f"{name}_std_error"])
            if step % plan.save_every == 0 or step == plan.steps or interrupts.asked:
                _save(model, optimiser, run.checkpoints, step, budget)
    if step < plan.steps:
        return False
    add_pictures(run, model, judged, "after")
    run.model.mkdir(exist_ok=True)
    save_file(model.state_dict(), run.model / "model.safetensors")
    shape = {"size": images.train.shape[1:], "latents": plan.latents, "hidden": plan.hidden, "kind": plan.kind}
    write_whole(run.model / "model.json", json.dumps(shape | {"likelihood": plan.likelihood}, indent=2) + "\n")
    return True


def derived_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def _model(plan: LatentPlan, images: Images) -> VAE | Bottleneck:
    size = images.train.shape[1], images.train.shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        if plan.kind == "vae":
            return VAE(size, plan.latents, plan.hidden, plan.likelihood)
        assert images.train_labels is not None  # as _require_sense saw
        classes = 1 + int(images.train_labels.max())
        return Bottleneck(size, plan.latents, plan.hidden, classes)


def _ordered(images: Images) -> tuple[np.ndarray | None, ...]:
    return images.train, images.train_labels, images.held_out, images.held_out_labels


def _save(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, checkpoints: Path, step: int, budget: Controller | None
) -> None:
    """A checkpoint; trainer_state.json comes last and says that it is whole."""
    path = checkpoints / f"checkpoint-{step}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    save_file(model.state_dict(), path / "model.safetensors")
    moments = optimiser.state_dict()["state"]
    named = {f"{i}.{name}": value.contiguous() for i, one in moments.items() for name, value in one.items()}
    save_file(named, path / "optimizer.safetensors")
    state = {"step": step, "budget": None if budget is None else controller_to_dict(budget)}
    write_whole(path / "trainer_state.json", json.dumps(state, indent=2) + "\n")
    for old in sorted(checkpoints.glob("checkpoint-*"), key=lambda one: int(one.name.rpartition("-")[2]))[:-2]:
        shutil.rmtree(old)


def _restore(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, checkpoint: Path
) -> tuple[int, Controller | None]:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    moments: dict[int, Row] = {}
    for key, value in load_file(checkpoint / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return state["step"], None if state["budget"] is None else controller_from_dict(state["budget"])


def _require_sense(plan: LatentPlan, images: Images, run: RunDirectory, resume: bool) -> None:
    least = {"steps": 1, "latents": 1, "hidden": 1, "batch_size": 2, "seed": 0, "evaluate_every": 1, "save_every": 1}
    for name, low in least.items():
        if getattr(plan, name) < low:
            raise InputError(f"--{name.replace('_', '-')}: expected {low} or more, got {getattr(plan, name)}")
    if not 0 < plan.learning_rate < 1:
        raise InputError(f"--learning-rate: expected a number between 0 and 1, got {plan.learning_rate}")
    if plan.kind == "bottleneck" and images.train_labels is None:
        raise InputError(f"--data {plan.data}: expected classes to learn, which digits has and images alone have not")
    run.check_can_start(plan.config(), resume=resume)
