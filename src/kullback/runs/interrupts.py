"""Ctrl-C as a request: the first asks the run to end after the step in hand, the second ends it at once."""

import signal
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """Within this context `asked` says whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False
        self.previous: Any = None

    def __enter__(self) -> "Interrupts":
        self.previous = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _interrupted(self, number: int, frame: Any) -> None:  # noqa: ARG002
        self.asked = True
        signal.signal(signal.SIGINT, self.previous)
