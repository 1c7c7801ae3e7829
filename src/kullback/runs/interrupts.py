"""Ctrl-C and termination signals as requests to stop a training run after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupts", "termination_as_interrupt"]


def _termination_signals() -> list[int]:
    """SIGTERM and, where it exists, SIGHUP, except signals that the process ignores, as nohup requires."""
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Within the context, SIGTERM and SIGHUP raise KeyboardInterrupt, so that all clean-up is executed.

    Schedulers such as Slurm and Kubernetes end a process by SIGTERM, and a terminal that closes sends SIGHUP. Outside
    of the main thread, which alone receives signals, the context has no effect.
    """

    def interrupt(number: int, frame: Any) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with _handled(_termination_signals(), interrupt):
        yield


class Interrupts:
    """A context manager in which the first signal sets `requested`, and the second raises KeyboardInterrupt.

    The signals are Ctrl-C, SIGTERM and SIGHUP. A training loop checks `requested` after each step, and stops with a
    checkpoint when it is true. Outside of the main thread, which alone receives signals, the context has no effect.
    """

    def __init__(self) -> None:
        self.requested = False
        self.context: Any = None

    def __enter__(self) -> "Interrupts":
        self.context = _handled([signal.SIGINT, *_termination_signals()], self._handle)
        self.previous = self.context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)

    def _handle(self, number: int, frame: Any) -> None:  # noqa: ARG002
        """Record the request, and let the next signal raise KeyboardInterrupt."""
        self.requested = True
        for handled in self.previous:
            signal.signal(handled, signal.default_int_handler)


@contextmanager
def _handled(signals: list[int], handler: Any) -> Iterator[dict[int, Any]]:
    """Within the context, a function handles the signals. The value is the previous handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    previous = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        signal.signal(number, handler)
    try:
        yield previous
    finally:
        for number, earlier in previous.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
