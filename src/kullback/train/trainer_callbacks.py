"""What every run by a trainer of transformers does between two steps: write its metrics, and end when asked to."""

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from kullback.runs.interrupts import Interrupts
from kullback.runs.progress import RunProgress
from kullback.runs.run_directory import RunDirectory

__all__ = ["StopOnInterrupt", "WriteMetrics"]


class WriteMetrics(TrainerCallback):
    """A row of metrics.jsonl for every step, and the progress line.

    Args:
        run: Where to.
        names: What the trainer logs, and what the run calls it.
        progress: The line.
        told_by: The key by which the log of a step is known.
    """

    def __init__(self, run: RunDirectory, names: Mapping[str, str], progress: RunProgress, *, told_by: str) -> None:
        self.run, self.names, self.progress, self.told_by = run, names, progress, told_by
        earlier = run.metrics()
        self.since = time.monotonic() - (earlier[-1]["seconds"] if earlier else 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if not state.is_world_process_zero or not logs or self.told_by not in logs:
            return
        row: dict[str, Any] = {"step": state.global_step}
        row |= {ours: logs[theirs] for theirs, ours in self.names.items() if theirs in logs}
        row["seconds"] = round(time.monotonic() - self.since, 3)
        self.run.add_metrics(row)
        self.progress.show(row)


class StopOnInterrupt(TrainerCallback):
    """Ends the run after the step in hand, with a checkpoint, once Ctrl-C was pressed."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts = interrupts

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.interrupts.asked:
            control.should_save = control.should_training_stop = True
