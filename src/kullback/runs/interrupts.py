"""Ctrl-C and termination signals as requests to stop a training run after the current step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupts", "interrupt_after_imports", "termination_as_interrupt"]

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_PYTHON_IMPORTS = ("exec", "_gcd_import", "__import__")
_SECONDS_UNTIL_NEXT_ATTEMPT = 0.02


def interrupt_after_imports() -> Callable[[int, FrameType | None], None]:
    """Return a handler of signals that raises KeyboardInterrupt, but not during the import of an extension module.

    An exception during the initialisation of an extension module can abort the process. The exception is then raised
    after the initialisation, or at a second signal.
    """
    timer: threading.Timer | None = None
    is_from_timer = False

    def send_again(number: int, main_thread: int) -> None:
        nonlocal is_from_timer
        is_from_timer = True
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main_thread, number)  # also ends a call of the operating system that waits
        else:
            signal.raise_signal(number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal timer, is_from_timer
        is_second_signal = timer is not None and not is_from_timer
        is_from_timer = False
        if timer is not None:
            timer.cancel()
            timer = None
        if is_second_signal or not _initialises_extension(frame):
            raise KeyboardInterrupt
        timer = threading.Timer(_SECONDS_UNTIL_NEXT_ATTEMPT, send_again, [number, threading.get_ident()])
        timer.daemon = True
        timer.start()

    return interrupt


def _initialises_extension(frame: FrameType | None) -> bool:
    """Return whether the import system is creating or initialising an extension module."""
    while frame is not None:
        # By this function, the import system executes Python modules, imports parents, and initialises extensions.
        if frame.f_code.co_filename == _IMPORT_SYSTEM and frame.f_code.co_name == "_call_with_frames_removed":
            called = frame.f_locals.get("f")
            if getattr(called, "__name__", None) not in _PYTHON_IMPORTS:
                return True
        frame = frame.f_back
    return False


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

    with _handled(_termination_signals(), interrupt_after_imports()):
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
