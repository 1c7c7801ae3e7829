"""The output at the end of the commands `kullback train ...`."""

import argparse
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from kullback.cli.output import discard_output, open_diagnostics, output_errors, strict
from kullback.runs.printable import one_line, printable

__all__ = [
    "INTERRUPTED",
    "make_console",
    "print_outcome",
    "progress_console",
    "report_run",
    "results_on_stdout",
    "train_and_report",
    "transformers_console",
    "write_report",
]

INTERRUPTED = 130
_MIN_WIDTH = 40  # a narrower table would omit columns


def write_report(runs: Mapping[str, Any], path: Path, *, title: str, console: Any, summary: str = "") -> None:
    """Write the report of runs to an HTML file, and print their final metrics as a table.

    The report is written first, so that an error of the output cannot prevent it.
    """
    from rich.table import Column, Table

    from kullback.explore.run_tables import outcome_table, write_run_report
    from kullback.runs.write_errors import write_errors

    with write_errors(path, "repeat the command with --resume; the run itself has been saved"):
        write_run_report(runs, path, title=title, summary=summary)
    outcomes = outcome_table(runs)
    # On a narrow terminal, a number continues on the next line instead of losing its last digits.
    table = Table(*(Column(_encodable(one_line(name), console), overflow="fold") for name in outcomes["columns"]))
    for row in outcomes["rows"]:
        table.add_row(*(_encodable(cell, console) for cell in row))
    with output_errors():
        console.print(table)
        if summary:
            console.print(_encodable(summary, console), highlight=False, soft_wrap=True)
        console.print(_encodable(f"report: {one_line(str(path))}", console), highlight=False, soft_wrap=True)


def print_outcome(options: argparse.Namespace, runs: Mapping[Any, Any], *, finished: bool, console: Any) -> int:
    """Print the outcome of a training command, as JSON or as text.

    Args:
        options: The options of the command.
        runs: The run directories by name. A single run with the name None is shown without a name.
        finished: Whether the run finished; if not, it was interrupted and has a checkpoint.
        console: The console for text.

    Returns:
        The exit status.
    """
    last = {name: (run.evaluations() or [None])[-1] for name, run in runs.items()}
    steps = {name: (run.metrics() or [{"step": 0}])[-1]["step"] for name, run in runs.items()}
    with output_errors():
        if options.json:
            outcome = {"run": str(options.output), "ended": finished, "step": steps, "last": last}
            if None in runs:
                outcome |= {"step": steps[None], "last": last[None]}
            print(json.dumps(strict(outcome), allow_nan=False), flush=True)
        elif not finished:
            text = f"interrupted; continue with --resume --output {shlex.quote(one_line(str(options.output)))}"
            console.print(_encodable(text, console), highlight=False)
    return 0 if finished else INTERRUPTED


def train_and_report(options: argparse.Namespace, train: Callable[[argparse.Namespace], bool], *, title: str) -> int:
    """Train in every process, write the report and print the outcome in the main process; return the exit status.

    Args:
        options: The options of the command.
        train: A function that validates the options and trains, and returns whether the run finished.
        title: The title of the report, before the name of the run.
    """
    with results_on_stdout():
        finished = train(options)

    from accelerate import PartialState

    if not PartialState().is_main_process:
        return 0
    return report_run(options, title=f"{title}: {options.output.name}", finished=finished)


def report_run(options: argparse.Namespace, *, title: str, finished: bool) -> int:
    """Write the report of the run in `--output`, print its outcome, and return the exit status."""
    from kullback.runs.run_directory import RunDirectory

    run, console = RunDirectory(options.output), make_console(quiet=options.json)
    write_report({options.output.name: run}, run.report, title=title, console=console)
    return print_outcome(options, {None: run}, finished=finished, console=console)


@contextmanager
def results_on_stdout() -> Iterator[None]:
    """Within the context, everything that is written to standard output goes to standard error.

    The output of user code, such as a reward that prints, and of libraries and child processes thus cannot mix with the
    results of the command, which are printed after the context.
    """
    saved = None
    with suppress(OSError, ValueError, AttributeError):  # a stream is closed or is not a file
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with _copy_of_stderr() as stream, redirect_stdout(stream):
            yield
    finally:
        if saved is not None:
            with suppress(OSError, ValueError, AttributeError):
                sys.__stdout__.flush()  # type: ignore[union-attr]
            os.dup2(saved, 1)
            os.close(saved)


@contextmanager
def _copy_of_stderr() -> Iterator[Any]:
    """A stream of its own to standard error, because user code that closes it must not close standard error."""
    try:
        stream = open_diagnostics(os.dup(sys.stderr.fileno()), sys.stderr.encoding)
    except (OSError, ValueError, AttributeError):  # standard error is closed or is not a file
        yield sys.stderr
        return
    try:
        yield stream
    finally:
        with suppress(OSError, ValueError):  # the terminal was closed
            stream.close()


def progress_console(*, quiet: bool) -> Any:
    """The console for the progress of a run: standard error, with characters replaced that it cannot encode."""
    return make_console(quiet=quiet, stderr=True)


def make_console(*, quiet: bool, stderr: bool = False) -> Any:
    """The console for the results of a run, which replaces characters that it cannot encode.

    If the reader of the output closes the pipe, the rest of the output is discarded, and the command continues.
    """
    from rich.console import Console as RichConsole

    class Console(RichConsole):
        """A console that does not end the process, and the training with it, at a closed pipe."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            discard_output(self.file)

    # The names of runs are printed as they are, without the markup and the emoji codes of rich.
    console = Console(quiet=quiet, stderr=stderr, markup=False, emoji=False)
    console.width = max(console.width, _MIN_WIDTH)
    if hasattr(console.file, "reconfigure"):
        console.file.reconfigure(errors="replace")  # type: ignore[union-attr]
    return console


def _encodable(text: str, console: Any) -> str:
    """Replace control characters, and the characters of tables that the console cannot encode."""
    text = printable(text)
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return text.replace("→", "->").replace("±", "+-")
    except LookupError:
        pass  # the encoding has no name that Python supports
    return text


def transformers_console(*, quiet: bool) -> Any:
    """The console for the progress of a run, with the output of transformers and datasets disabled."""
    import datasets
    import transformers

    # TRL sets options that transformers has renamed; the user cannot change that.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return progress_console(quiet=quiet)
