"""Ctrl-C as a request to stop a training run after the current step."""

import signal
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """A context manager in which the first Ctrl-C sets `requested`, and the second Ctrl-C raises KeyboardInterrupt.

    A training loop checks `requested` after each step, and stops with a checkpoint when it is true.
    """

    def __init__(self) -> None:
        self.requested = False
        self.previous: Any = None

    def __enter__(self) -> "Interrupts":
        self.previous = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _handle(self, number: int, frame: Any) -> None:  # noqa: ARG002
        """Record the request, and restore the previous handler for the next Ctrl-C."""
        self.requested = True
        signal.signal(signal.SIGINT, self.previous)
