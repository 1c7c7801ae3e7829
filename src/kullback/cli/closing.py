"""What the commands that train say in the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["finish"]


def finish(runs: Mapping[str, Any], path: Path, *, title: str, console: Any, summary: str = "") -> None:
    """Show how runs ended, and write their report."""
    from rich.table import Table

    from kullback.explore.runs import closing_table, report_runs

    closing = closing_table(runs)
    table = Table(*closing["columns"])
    for row in closing["rows"]:
        table.add_row(*row)
    console.print(table)
    if summary:
        console.print(summary, highlight=False, soft_wrap=True)
    report_runs(runs, path, title=title, summary=summary)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)
