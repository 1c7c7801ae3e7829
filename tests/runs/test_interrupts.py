"""Signals: the first is a request to stop, the second raises KeyboardInterrupt, and ignored signals stay ignored."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kullback.runs.interrupts import Interrupts, termination_as_interrupt

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.usefixtures("hangup_is_not_ignored")
@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_request_and_the_second_an_exception(number: int) -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    with Interrupts() as interrupts:
        assert not interrupts.requested
        os.kill(os.getpid(), number)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


@pytest.mark.usefixtures("hangup_is_not_ignored")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_raises_keyboard_interrupt(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), termination_as_interrupt():
        os.kill(os.getpid(), number)


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with termination_as_interrupt(), Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupts.requested
    finally:
        signal.signal(signal.SIGHUP, previous)


def initialise(signals: int, done: list[int]) -> None:
    """Receive SIGTERM in a function that the import system calls, as it calls the initialisation of an extension."""
    for _ in range(signals):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
    done.append(signals)


def initialise_and_wait(signals: int, done: list[int]) -> None:
    importlib._bootstrap._call_with_frames_removed(initialise, signals, done)  # type: ignore[attr-defined]
    time.sleep(5)


@pytest.mark.parametrize(("signals", "is_done"), [(1, True), (2, False)])
def test_a_signal_during_the_initialisation_of_an_extension_waits_and_a_second_does_not(
    signals: int, is_done: bool
) -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), termination_as_interrupt():
        initialise_and_wait(signals, done)
    assert bool(done) == is_done
    with termination_as_interrupt():
        time.sleep(0.2)  # no signal is left over


def test_a_signal_during_the_import_of_a_python_module_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_module.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.2)\nos.environ['IMPORTED'] = '1'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("IMPORTED", "0")
    with pytest.raises(KeyboardInterrupt), termination_as_interrupt():
        importlib.import_module("imported_module")
    assert os.environ["IMPORTED"] == "0"


def test_a_signal_that_waits_is_not_lost_with_its_handler() -> None:
    code = (
        "import importlib, os, signal, time\n"
        "from kullback.runs.interrupts import termination_as_interrupt\n"
        "with termination_as_interrupt():\n"
        "    importlib._bootstrap._call_with_frames_removed(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "time.sleep(20)\n"
        "print('not interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""


@pytest.mark.slow
def test_an_interrupt_at_any_time_of_the_import_of_an_extension_module_does_not_abort() -> None:
    code = (
        "import enum, os, signal, sys, time\n"
        "from kullback.runs.interrupts import interrupt_after_imports\n"
        "signal.signal(signal.SIGINT, interrupt_after_imports())\n"
        "signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))\n"
        "signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))\n"
        "try:\n    import triton._C.libtriton\n    time.sleep(5)\n"
        "except KeyboardInterrupt: os._exit(130)\n"
    )
    for delay in range(1, 40):
        done = subprocess.run([sys.executable, "-c", code, str(delay / 200)], capture_output=True, text=True)
        assert done.returncode == 130, (delay, done.stderr)
