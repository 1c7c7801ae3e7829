"""Callbacks of transformers trainers: metrics of each step, checksums of checkpoints, and the conditions to stop."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from rich.console import Console
from transformers import TrainerCallback

from kullback.errors import InputError
from kullback.runs.checksums import write_checksums
from kullback.runs.finite import finite_outputs, require_finite_gradients, require_finite_loss, require_finite_weights
from kullback.runs.interrupts import Interrupts
from kullback.runs.library_errors import library_errors
from kullback.runs.progress import RunProgress
from kullback.runs.run_directory import RunDirectory

__all__ = [
    "StopOnInterrupt",
    "StopOnNonFinite",
    "WriteChecksums",
    "WriteMetrics",
    "require_all_steps",
    "train_with_checkpoints",
]


def train_with_checkpoints(
    trainer: Any,
    run: RunDirectory,
    steps: int,
    *,
    checkpoint: Path | None,
    names: Mapping[str, str],
    callbacks: Sequence[TrainerCallback],
    console: Console | None,
    target: float | None = None,
    unit: str | None = None,
) -> bool:
    """Train with metrics, checkpoints and progress, until the last step or an interrupt.

    A checkpoint that an error interrupted is deleted, so that all checkpoints are complete.

    Args:
        trainer: A trainer of transformers.
        run: The run directory.
        steps: The number of steps of the run.
        checkpoint: The checkpoint to continue from, or None.
        names: The trainer's key of each metric, mapped to the key in metrics.jsonl.
        callbacks: Further callbacks, which follow the callback of the metrics.
        console: Where the progress is shown in the main process; None: the progress is not coloured.
        target: The KL budget of the run, or None.
        unit: The unit of the budget, or None.

    Returns:
        Whether all steps were taken; False after an interrupt.

    Raises:
        InputError: Training failed, or ended before its last step without an error.
    """
    main_console = console if trainer.is_world_process_zero() else None
    stop = Interrupts()
    with RunProgress(run.path.name, steps, target=target, unit=unit, console=main_console) as progress, stop:
        for callback in (WriteMetrics(run, names, progress), *callbacks, StopOnInterrupt(stop), WriteChecksums()):
            trainer.add_callback(callback)
        trainer.callback_handler.callbacks.insert(0, StopOnNonFinite())
        _train(trainer, checkpoint)
        require_all_steps(trainer, steps, stop)
    return trainer.state.global_step >= steps


def _train(trainer: Any, checkpoint: Path | None) -> None:
    """Train, and delete the checkpoint that an error interrupted."""
    try:
        # An exception names the settings in most cases, such as an optimizer that the library does not have.
        with library_errors(type(trainer).__name__), finite_outputs(lambda: trainer.state.global_step + 1):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except BaseException:
        unfinished = _checkpoint_of_step(trainer.args, trainer.state)
        if (
            trainer.is_world_process_zero()
            and unfinished != checkpoint
            and not (unfinished / "checksums.json").exists()
        ):
            shutil.rmtree(unfinished, ignore_errors=True)
        raise


def require_all_steps(trainer: Any, steps: int, interrupts: Interrupts) -> None:
    """Check that training did not end before its last step, as it does without an error if a data set has no batch.

    Args:
        trainer: A trainer of transformers, after its training.
        steps: The number of steps of the run.
        interrupts: The interrupts, after which training may end earlier.

    Raises:
        InputError: Training ended earlier.
    """
    step = trainer.state.global_step
    if step < steps and not interrupts.requested:
        raise InputError(
            f"step {step}: {type(trainer).__name__} ended before step {steps}, without an error; the data set may have "
            "no batch, or a setting ends training"
        )


def _checkpoint_of_step(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


class WriteMetrics(TrainerCallback):
    """Appends a row to metrics.jsonl and updates the progress line at every optimizer step.

    Args:
        run: The run directory.
        names: The trainer's key of each metric, mapped to the key in metrics.jsonl.
        progress: The progress line.
    """

    def __init__(self, run: RunDirectory, names: Mapping[str, str], progress: RunProgress) -> None:
        self.run, self.names, self.progress = run, names, progress
        self.start_time = time.monotonic() - run.elapsed_seconds()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return  # the logs of an evaluation, or of the whole training, have no "loss"
        row: dict[str, Any] = {"step": state.global_step}
        row |= {key: logs[trainer_key] for trainer_key, key in self.names.items() if trainer_key in logs}
        row["seconds"] = round(time.monotonic() - self.start_time, 3)
        self.run.add_metrics(row)
        self.progress.show(row)


class WriteChecksums(TrainerCallback):
    """Writes the checksums of each checkpoint after all processes have saved their files."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            write_checksums(_checkpoint_of_step(args, state))


class StopOnInterrupt(TrainerCallback):
    """Saves a checkpoint and stops training after the current step if an interrupt of any process was requested."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts = interrupts

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if args.world_size > 1:
            self.interrupts.requested = any(gather_object([self.interrupts.requested]))
        if self.interrupts.requested:
            control.should_save = control.should_training_stop = True


class StopOnNonFinite(TrainerCallback):
    """Raises InputError at the first loss, gradient or weight that is not finite, before a checkpoint is saved.

    It must precede the callbacks that evaluate the model or that use the gradients.
    """

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if not args.fp16:  # the loss scaling of float16 skips steps with infinite gradients
            require_finite_gradients(model, step=state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        require_finite_weights(model, step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if logs and "loss" in logs:
            require_finite_loss(logs["loss"], step=state.global_step)
