"""What the commands that train say, and in the end."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["finish", "transformers_console"]


def finish(runs: Mapping[str, Any], path: Path, *, title: str, console: Any, summary: str = "") -> None:
    """Show how runs ended, and write their report."""
    from rich.table import Table

    from kullback.explore.run_tables import closing_table, report_runs

    closing = closing_table(runs)
    table = Table(*closing["columns"])
    for row in closing["rows"]:
        table.add_row(*row)
    console.print(table)
    if summary:
        console.print(summary, highlight=False, soft_wrap=True)
    report_runs(runs, path, title=title, summary=summary)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


def transformers_console(*, quiet: bool) -> Any:
    """Where a run by transformers shows how it goes; its libraries are told to be quiet."""
    import datasets
    import transformers
    from rich.console import Console

    # TRL still sets options that transformers has renamed: nothing that the user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return Console(quiet=quiet)
