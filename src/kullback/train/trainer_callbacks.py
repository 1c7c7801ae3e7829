"""Callbacks of transformers trainers: writing the metrics of each step, and stopping after an interrupt."""

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from kullback.runs.interrupts import Interrupts
from kullback.runs.progress import RunProgress
from kullback.runs.run_directory import RunDirectory

__all__ = ["StopOnInterrupt", "WriteMetrics"]


class WriteMetrics(TrainerCallback):
    """Appends a row to metrics.jsonl and updates the progress line at every optimizer step.

    Args:
        run: The run directory.
        names: The trainer's key of each metric, mapped to the key in metrics.jsonl.
        progress: The progress line.
        marker_key: A trainer's key that only the logs of an optimizer step contain. Other logs are ignored.
    """

    def __init__(self, run: RunDirectory, names: Mapping[str, str], progress: RunProgress, *, marker_key: str) -> None:
        self.run, self.names, self.progress, self.marker_key = run, names, progress, marker_key
        rows = run.metrics()
        self.start_time = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if not state.is_world_process_zero or not logs or self.marker_key not in logs:
            return
        row: dict[str, Any] = {"step": state.global_step}
        row |= {key: logs[trainer_key] for trainer_key, key in self.names.items() if trainer_key in logs}
        row["seconds"] = round(time.monotonic() - self.start_time, 3)
        self.run.add_metrics(row)
        self.progress.show(row)


class StopOnInterrupt(TrainerCallback):
    """Saves a checkpoint and stops training after the current step if an interrupt was requested."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts = interrupts

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.interrupts.requested:
            control.should_save = control.should_training_stop = True
