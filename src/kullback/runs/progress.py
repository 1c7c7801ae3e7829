"""How a run tells how far it is: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["RunProgress"]

_PLAIN_LINES = 12


class RunProgress:
    """Shows one training run; a context manager.

    Args:
        name: What the line begins with.
        steps: How many there are in all.
        target: The budget in nats, or None.
        unit: The budget's unit; None: no KL is told at each step.
        console: Where to write; nothing is written if None.
    """

    def __init__(
        self, name: str, steps: int, *, target: float | None, unit: str | None, console: Console | None
    ) -> None:
        self.name, self.steps, self.target, self.unit, self.console = name, steps, target, unit, console
        self.live: Progress | None = None
        self.first: tuple[int, float] | None = None
        self.lines = 0

    def __enter__(self) -> "RunProgress":
        if self.console is not None and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[said]}  left"),
                TimeRemainingColumn(),
            )
            self.live = Progress(*columns, console=self.console)
            self.task = self.live.add_task(self.name, total=self.steps, said="")
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, row: Mapping[str, Any]) -> None:
        """One step's metrics."""
        step, now = int(row["step"]), time.monotonic()
        self.first = self.first or (step - 1, now)
        if self.live is not None:
            self.live.update(self.task, completed=step, said=self._said(row))
        elif self.console is not None and step * _PLAIN_LINES // self.steps > self.lines:
            self.lines = step * _PLAIN_LINES // self.steps
            done, since = step - self.first[0], now - self.first[1]
            left = since / (done - 1) * (self.steps - step) if done > 1 else float("nan")
            time_left = f"{left:.0f} s left" if left == left else ""
            self.console.print(
                f"{self.name}  step {step}/{self.steps}  {self._said(row)}  {time_left}",
                highlight=False,
                soft_wrap=True,
            )

    def _said(self, row: Mapping[str, Any]) -> str:
        parts = [
            f"{name} {_number(row[name])}" for name in ("reward", "loss")[: 1 if "reward" in row else 2] if name in row
        ]
        if self.unit is not None:
            kl = row.get("kl_filtered") or row.get(f"kl_policy_ref_per_{self.unit}")
            of = f" of {self.target:g}" if self.target is not None else ""
            parts.append(f"KL {_number(kl)}{of} nats/{self.unit}")
        if row.get("beta") is not None:
            parts.append(f"beta {_number(row['beta'])}")
        return "  ".join(parts)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"
