"""The process of the `kullback` command: its standard streams, Ctrl-C, and errors that are defects of the program."""

import _thread
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["run_as_process"]

# Messages of gloo and NCCL in a process whose partner has stopped.
_LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


def run_as_process(run: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """Run a command as the main program of this process.

    Args:
        run: The command, which returns its exit status.
        words: The arguments of the command.

    Returns:
        The exit status.

    Raises:
        KeyboardInterrupt: The process was interrupted by Ctrl-C.
    """
    _open_closed_streams()
    _keep_stderr_writable()
    for stream in (sys.stdout, sys.stderr):
        # A character that the encoding of the terminal does not have must not end the command.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    interrupted = _remember_interrupts()
    try:
        status = run(words)
    except Exception as error:
        if interrupted:  # an import turned the interrupt into an exception of another type
            raise KeyboardInterrupt from None
        status = _report_defect(error)
    status = _close_streams(status)
    with suppress(ValueError):  # outside of the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is done, and only the interpreter has to end
    return status


class _LostOutput(io.TextIOWrapper):
    """The null device in place of a closed standard output, which records whether anything was written."""

    is_written = False

    def __init__(self) -> None:
        super().__init__(open(os.devnull, "wb"), encoding="utf-8")  # noqa: SIM115

    def write(self, text: str, /) -> int:
        self.is_written = self.is_written or bool(text)
        return super().write(text)


def _open_closed_streams() -> None:
    """Open the null device for standard streams that are closed, so that no other file gets their descriptors."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
        if getattr(sys, name) is None:
            is_output = name == "stdout"
            stream = _LostOutput() if is_output else open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


def _keep_stderr_writable() -> None:
    """Replace standard error by a stream that discards what cannot be written: progress must not end a command."""
    from kullback.cli.output import open_diagnostics

    with suppress(OSError, ValueError, AttributeError):  # standard error is not a file
        sys.stderr.flush()
        sys.stderr = sys.__stderr__ = open_diagnostics(os.dup(sys.stderr.fileno()), sys.stderr.encoding)


def _remember_interrupts() -> list[int]:
    """Record the interrupts by Ctrl-C in a list, because imports can swallow KeyboardInterrupt or replace it.

    Returns:
        The list of received signals, which is extended when a signal arrives.
    """
    from kullback.runs.interrupts import interrupt_after_imports

    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        return received
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return received

    interrupt = interrupt_after_imports()

    def record(number: int, frame: Any) -> None:
        received.append(number)
        interrupt(number, frame)

    previous_hook = sys.unraisablehook

    def raise_again(unraisable: Any) -> None:
        # The interrupt arrived in a callback of the garbage collector, from which no exception is propagated.
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()
        else:
            previous_hook(unraisable)

    signal.signal(signal.SIGINT, record)
    sys.unraisablehook = raise_again
    return received


def _report_defect(error: Exception) -> int:
    """Describe an unexpected error in one line, with its traceback in a file."""
    import tempfile
    import traceback

    from kullback.cli import INVALID_INPUT, print_error
    from kullback.runs.run_directory import process_rank

    rank, processes = process_rank()
    if processes > 1 and any(text in str(error) for text in _LOST_CONNECTION):
        print_error(f"process {rank}: another process of this run stopped, which ended the connection; see its message")
        return INVALID_INPUT
    with tempfile.NamedTemporaryFile(
        "w", prefix="kullback-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        traceback.print_exception(error, file=file)
    print_error(
        f"unexpected {type(error).__name__}: {error}; this is a defect of kullback or of a library that it calls; the "
        f"traceback is in {file.name}"
    )
    return INVALID_INPUT


def _close_streams(status: int) -> int:
    """Write the buffered output. A closed pipe is not an error; a full disk and a closed standard output are."""
    from kullback.cli import INVALID_INPUT, print_error
    from kullback.cli.output import discard_output

    if isinstance(sys.stdout, _LostOutput) and sys.stdout.is_written and status != INVALID_INPUT:
        print_error("the output cannot be written: standard output is closed; redirect it to /dev/null to discard it")
        status = INVALID_INPUT
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            discard_output(stream)
        except (OSError, ValueError) as error:
            discard_output(stream)
            if stream is sys.stdout:
                print_error(f"the output cannot be written: {getattr(error, 'strerror', None) or error}")
                status = INVALID_INPUT
    return status
