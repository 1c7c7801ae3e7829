"""The output at the end of the commands `kullback train ...`."""

import argparse
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["INTERRUPTED", "print_outcome", "transformers_console", "write_report"]

INTERRUPTED = 130


def write_report(runs: Mapping[str, Any], path: Path, *, title: str, console: Any, summary: str = "") -> None:
    """Print the final metrics of runs as a table, and write their report to an HTML file."""
    from rich.table import Table

    from kullback.explore.run_tables import outcome_table, write_run_report

    outcomes = outcome_table(runs)
    table = Table(*outcomes["columns"])
    for row in outcomes["rows"]:
        table.add_row(*row)
    console.print(table)
    if summary:
        console.print(summary, highlight=False, soft_wrap=True)
    write_run_report(runs, path, title=title, summary=summary)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


def print_outcome(options: argparse.Namespace, *, finished: bool, last: Any, console: Any) -> int:
    """Print the outcome of a training command, as JSON or as text.

    Args:
        options: The options of the command.
        finished: Whether the run finished; if not, it was interrupted and has a checkpoint.
        last: The last row of evaluations, or the rows by the name of the run.
        console: The console for text.

    Returns:
        The exit status.
    """
    if options.json:
        print(json.dumps({"run": str(options.output), "ended": finished, "last": last}))
    elif not finished:
        console.print(f"interrupted; continue with --resume --output {options.output}", highlight=False)
    return 0 if finished else INTERRUPTED


def transformers_console(*, quiet: bool) -> Any:
    """The console for the progress of a run, with the output of transformers and datasets disabled."""
    import datasets
    import transformers
    from rich.console import Console

    # TRL sets options that transformers has renamed; the user cannot change that.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return Console(quiet=quiet)
