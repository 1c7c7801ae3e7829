"""The tables and the progress of runs: colours, narrow terminals, and user code that closes standard output."""

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from kullback.cli.run_summary import make_console, progress_console, results_on_stdout, write_report
from kullback.runs.progress import RunProgress
from kullback.runs.run_directory import RunDirectory

COLOUR = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|4[0-8]|9\d|10[0-7])(?:;[\d;]*)?m")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """The directory of a run with values of several digits."""
    run = RunDirectory(tmp_path / "run")
    run.create({"kind": "grpo", "budget": {"target": 0.05, "unit": "token"}, "rewards": ["good"], "watched": []})
    for step in range(1, 4):
        run.add_metrics({"step": step, "kl_policy_ref_per_token": 0.01 * step, "reward": 0.5, "seconds": step})
    names = ("kl_policy_ref_per_token", "kl_policy_ref_per_sequence")
    for step, value in ((0, 0.0), (3, 1.2345e-5)):
        kl = {key: value for name in names for key in (name, f"{name}_std_error")}
        run.add_evaluation({"step": step, "rewards/good": 0.4567, "entropy": 3.789, **kl})
    return run


def show(run: RunDirectory) -> None:
    """The output of a training command: its progress, and the table at its end."""
    with RunProgress("run", 3, target=0.05, unit="token", console=progress_console(quiet=False)) as progress:
        for row in run.metrics():
            progress.show(row)
    write_report({"run": run}, run.report, title="run", console=make_console(quiet=False))


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_no_color_and_dumb_terminals_have_no_colours(
    term: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(run)
    colourful = capsys.readouterr()
    assert bool(COLOUR.search(colourful.err)) == (term == "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    show(run)
    plain = capsys.readouterr()
    assert not COLOUR.search(plain.out + plain.err)
    assert "1.23e-05" in plain.out
    assert "3/3" in plain.err


@pytest.mark.parametrize("columns", ["1", "5", "20", "40", "60", "0", "-3", "x", ""])
def test_a_narrow_terminal_shows_every_digit(
    columns: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    show(run)
    output = capsys.readouterr().out
    assert "…" not in output
    for text in ("0.457", "1.23e-05", "(budget", "0.05)", "(optimised)", "3.79", "steps", f"report: {run.report}"):
        assert text in output
    assert max(len(line) for line in output.splitlines() if not line.startswith("report")) <= 80


def test_standard_error_stays_open_if_user_code_closes_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    with results_on_stdout():
        print("from user code")
        sys.stdout.close()
    print("result")
    print("kullback: a message", file=sys.stderr)
    captured = capfd.readouterr()
    assert captured.out == "result\n"
    assert captured.err == "from user code\nkullback: a message\n"


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_standard_error_need_not_be_a_file(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with results_on_stdout():
        print("from user code")
    assert stream is None or stream.getvalue() == "from user code\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_console_continues_after_its_reader_has_closed_the_pipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", buffering=1, encoding="utf-8") as stream:
        monkeypatch.setattr(sys, name, stream)
        console = make_console(quiet=False, stderr=name == "stderr")
        console.print("step 1")
        assert os.read(reader, 100) == b"step 1\n"
        os.close(reader)
        progress = RunProgress("run", 12, target=None, unit=None, console=console)
        for step in range(1, 13):
            progress.show({"step": step, "loss": 0.5})
            console.print("text " * 10_000)
        print("text", file=stream, flush=True)  # of other code, which the closed pipe must not end either
