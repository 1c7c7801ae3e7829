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


@pytest.fixture
def slow_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that sends itself SIGTERM as often as SIGNALS_DURING_IMPORT says, and states when its import is over."""
    (tmp_path / "slow_module_of_the_test.py").write_text(
        "import os, signal, time\n"
        "for _ in range(int(os.environ['SIGNALS_DURING_IMPORT'])):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.2)\n"
        "os.environ['IMPORT_IS_OVER'] = '1'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("IMPORT_IS_OVER", "0")
    monkeypatch.delitem(sys.modules, "slow_module_of_the_test", raising=False)
    return "slow_module_of_the_test"


def import_and_wait(name: str) -> None:
    importlib.import_module(name)
    time.sleep(5)


@pytest.mark.parametrize(("signals", "is_over"), [(1, "1"), (2, "0")])
def test_a_signal_during_an_import_waits_and_a_second_does_not(
    signals: int, is_over: str, slow_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNALS_DURING_IMPORT", str(signals))
    with pytest.raises(KeyboardInterrupt), termination_as_interrupt():
        import_and_wait(slow_module)
    assert os.environ["IMPORT_IS_OVER"] == is_over
    with termination_as_interrupt():
        time.sleep(0.2)  # no signal is left over


def test_a_signal_that_waits_for_an_import_is_not_lost_with_its_handler(slow_module: str) -> None:
    code = (
        "import importlib, sys, time\n"
        "from kullback.runs.interrupts import termination_as_interrupt\n"
        "with termination_as_interrupt():\n"
        "    importlib.import_module(sys.argv[1])\n"
        "time.sleep(20)\n"
    )
    environment = {**os.environ, "SIGNALS_DURING_IMPORT": "1", "PYTHONPATH": sys.path[0]}
    before = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, slow_module], env=environment, capture_output=True)
    assert done.returncode != 0
    assert time.monotonic() - before < 10


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
