"""Train a language model on examples by TRL's SFT, its forward KL and the floor under its loss told: one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from kullback.errors import InputError
from kullback.integrations.transformers import load_model, load_tokenizer
from kullback.integrations.transformers_forward_kl import ForwardKL
from kullback.runs.interrupts import Interrupts
from kullback.runs.progress import RunProgress
from kullback.runs.run_directory import RunDirectory, versions
from kullback.train.trainer_callbacks import StopOnInterrupt, WriteMetrics
from kullback.train.trl_settings import make_config

__all__ = ["SFTPlan", "train_sft"]

Row = dict[str, Any]

# What TRL logs under another name than the run's metrics do.
_FROM_TRL = {
    **{key: key for key in ("loss", "entropy", "learning_rate")},
    "mean_token_accuracy": "accuracy",
    "grad_norm": "gradient_norm",
}


@dataclass(frozen=True)
class SFTPlan:
    """All that a run is told.

    Args:
        model: A local transformers directory, where the model starts.
        rows: The examples, each with a "prompt" and a "completion"; completions alone are learned.
        steps: Optimizer steps.
        output: The run directory.
        seed: Of everything.
        settings: More fields of TRL's SFTConfig.
        evaluation_rows: Held-out examples, if there are any.
        evaluate_every: Steps between two judgements; 0: only at the ends.
        max_examples: The number of examples of each set that the model is evaluated on, at most.
        named: What to write into config.json beside this: where the rows came from.
    """

    model: Path
    rows: Sequence[Row]
    steps: int
    output: Path
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluation_rows: Sequence[Row] = ()
    evaluate_every: int = 50
    max_examples: int = 1024
    named: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> Row:
        """What config.json says of it."""
        same = ("steps", "seed", "evaluate_every", "max_examples")
        return {
            "kind": "sft",
            "model": str(self.model),
            "budget": None,
            "rewards": [],
            "watched": [],
            **{name: getattr(self, name) for name in same},
            "settings": dict(self.settings),
            "examples": len(self.rows),
            "evaluation_examples": len(self.evaluation_rows),
            **self.named,
        }


def train_sft(plan: SFTPlan, *, resume: bool = False, console: Console | None = None) -> bool:
    """Train, and leave a run directory behind.

    Args:
        plan: What to do.
        resume: Go on from the run directory's last checkpoint.
        console: Where to show the progress; quiet if None.

    Returns:
        Whether the run came to its end: False after an interrupt, which leaves a checkpoint.

    Raises:
        InputError: The plan cannot be carried out; the message says why.
    """
    run = RunDirectory(plan.output)
    _require_sense(plan, run, resume)
    args = make_config(
        SFTConfig,
        plan.settings,
        output_dir=str(run.checkpoints),
        max_steps=plan.steps,
        seed=plan.seed,
        packing=False,
    )
    tokenizer, model = load_tokenizer(plan.model), load_model(plan.model)
    trainer = SFTTrainer(
        model,
        args,
        train_dataset=_dataset(plan.rows),
        eval_dataset=_dataset(plan.evaluation_rows) if plan.evaluation_rows else None,
        processing_class=tokenizer,
    )
    trainer.pop_callback(PrinterCallback)
    judge = _Judge(ForwardKL(trainer, max_examples=plan.max_examples), run, plan.evaluate_every)
    checkpoint = run.last_checkpoint() if resume else None
    main = args.process_index == 0
    if checkpoint is None:
        before = judge.forward.measure()  # nothing is left behind of examples that cannot be learned
        if main:
            run.create({**plan.config(), "versions": versions("torch", "transformers", "trl", "accelerate")})
            run.forget_after(-1)
            run.add_evaluation({"step": 0, **before})
    elif main:
        run.forget_after(int(checkpoint.name.rpartition("-")[2]))
    stop = Interrupts()
    shown = console if main else None
    with RunProgress(plan.output.name, plan.steps, target=None, unit=None, console=shown) as progress, stop:
        trainer.add_callback(WriteMetrics(run, _FROM_TRL, progress, told_by="loss"))
        trainer.add_callback(judge)
        trainer.add_callback(StopOnInterrupt(stop))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.asked and trainer.state.global_step < plan.steps:
        return False
    judge.look(trainer.state.global_step)
    if main:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(run.model)  # type: ignore[operator]
        tokenizer.save_pretrained(run.model)
    trainer.accelerator.wait_for_everyone()
    return True


class _Judge(TrainerCallback):
    """Measures the model on fixed examples every so many steps."""

    def __init__(self, forward: ForwardKL, run: RunDirectory, every: int) -> None:
        self.forward, self.run, self.every = forward, run, every
        self.newest = 0

    def look(self, step: int) -> None:
        """Measure now, unless this step was measured already."""
        if self.newest != step:
            self.newest = step
            row = self.forward.measure()
            if self.forward.trainer.is_world_process_zero():
                self.run.add_evaluation({"step": step, **row})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.every and state.global_step % self.every == 0:
            self.look(state.global_step)


def _dataset(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


def _require_sense(plan: SFTPlan, run: RunDirectory, resume: bool) -> None:
    for name, value, least in (
        ("--steps", plan.steps, 1),
        ("--evaluate-every", plan.evaluate_every, 0),
        ("--max-examples", plan.max_examples, 1),
        ("--seed", plan.seed, 0),
    ):
        if value < least:
            raise InputError(f"{name}: expected {least} or more, got {value}")
    run.check_can_start(plan.config(), resume=resume)
