"""The progress of a training run on the console: a live progress bar on a terminal, lines of text elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kullback.runs.printable import one_line

__all__ = ["RunProgress"]

_OBJECTIVES = ("reward", "loss", "distortion", "cross_entropy")  # the first of these that a row has is shown
_LINES = 12  # lines of text per run when the console is not a terminal


class RunProgress:
    """A context manager that shows the progress of one training run.

    Args:
        name: The text at the start of the line.
        steps: The number of steps of the run.
        target: The KL budget in nats, or None.
        unit: The unit of the KL, such as "token" or "step". If None, no KL is shown.
        console: The console to write to. If None, nothing is written.
    """

    def __init__(
        self, name: str, steps: int, *, target: float | None, unit: str | None, console: Console | None
    ) -> None:
        self.name, self.steps, self.target, self.unit, self.console = one_line(name), steps, target, unit, console
        self.live: Progress | None = None
        self.first: tuple[int, float] | None = None
        self.lines = 0

    def __enter__(self) -> "RunProgress":
        if self.console is not None and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[metrics]}  left", markup=False),
                TimeRemainingColumn(),
            )
            self.live = Progress(*columns, console=self.console)
            self.task = self.live.add_task(self.name, total=self.steps, metrics="")
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, row: Mapping[str, Any]) -> None:
        """Show a row of metrics."""
        try:
            self._show(row)
        except OSError:
            self.console = None  # the terminal was closed; training continues

    def _show(self, row: Mapping[str, Any]) -> None:
        step, now = int(row["step"]), time.monotonic()
        self.first = self.first or (step - 1, now)
        if self.live is not None:
            self.live.update(self.task, completed=step, metrics=self._format_metrics(row))
        elif self.console is not None and step * _LINES // self.steps > self.lines:
            self.lines = step * _LINES // self.steps
            done, elapsed = step - self.first[0], now - self.first[1]
            # `elapsed` starts at the end of the first step that is shown.
            remaining = f"{elapsed / (done - 1) * (self.steps - step):.0f} s left" if done > 1 else ""
            self.console.print(
                f"{self.name}  step {step}/{self.steps}  {self._format_metrics(row)}  {remaining}",
                highlight=False,
                markup=False,
                emoji=False,
                soft_wrap=True,
            )

    def _format_metrics(self, row: Mapping[str, Any]) -> str:
        """Return the reward or the objective, the KL and beta of a row of metrics as text."""
        objective = next((name for name in _OBJECTIVES if name in row), None)
        parts = [] if objective is None else [f"{objective.replace('_', ' ')} {_number(row[objective])}"]
        if self.unit is not None:
            keys = ("kl_filtered", f"kl_policy_ref_per_{self.unit}", f"kl_posterior_prior_per_{self.unit}")
            kl = next((row[key] for key in keys if row.get(key) is not None), None)
            target = row.get("kl_budget", self.target)
            budget = f" of {target:.3g}" if target is not None else ""
            if kl is not None:
                parts.append(f"KL {_number(kl)}{budget} nats/{self.unit}")
        if row.get("beta") is not None:
            parts.append(f"beta {_number(row['beta'])}")
        return "  ".join(parts)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"
