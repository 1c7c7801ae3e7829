"""Store the figures of a benchmark as data, with the commit, the processor and the versions of the packages.

Every benchmark calls `save` when it ends. `python benchmarks/render.py` (`make bench-tables`) writes the tables in
benchmarks/README.md from these files.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


def save(benchmark: str, tables: Mapping[str, Table], *, packages: Sequence[str] = ()) -> Path:
    """Write the tables of one benchmark to benchmarks/results/BENCHMARK.json; other tables in the file are kept.

    Args:
        benchmark: The name of the benchmark's script without its suffix.
        tables: For each table name, the column names and the rows, whose cells are text or numbers.
        packages: Packages whose versions are stored, in addition to Kullback and NumPy.

    Returns:
        The path of the file.
    """
    path = RESULTS / f"{benchmark}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    source = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions("kullback", "numpy", *packages),
    }
    for name, (columns, rows) in tables.items():
        stored[name] = {**source, "columns": list(columns), "rows": [list(row) for row in rows]}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def add_save_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --no-save, for runs that are too short to replace the stored figures."""
    parser.add_argument("--no-save", action="store_true", help="print the figures without storing them in results/")


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    columns, rows = table
    return "\n".join([markdown_row(columns), "|" + "---|" * len(columns), *map(markdown_row, rows)])


def markdown_row(cells: Sequence[Any]) -> str:
    """Return one row of a table in Markdown."""
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def significant(value: float, digits: int) -> str:
    """Format a number with a fixed number of significant digits, such as 0.20, 14, 3.8e-5 or 3e3."""
    if value == 0.0 or 0.01 <= abs(float(f"{value:.{digits - 1}e}")) < 1000:
        return f"{value:#.{digits}g}".rstrip(".") if abs(value) < 10**digits else f"{value:.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def has_avx512() -> bool:
    """Return whether the processor has the AVX-512 instructions, by /proc/cpuinfo."""
    return "avx512f" in _cpuinfo().get("flags", "").split()


def commit() -> str:
    """Return the abbreviated hash of the current commit, with "-dirty" if tracked files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    return completed.stdout.strip() or "unknown"


def machine() -> str:
    """Return the processor's name, whether it has AVX-512, and the number of cores."""
    name = _cpuinfo().get("model name", platform.processor() or platform.machine())
    return f"{name}, {'AVX-512' if has_avx512() else 'no AVX-512'}, {os.cpu_count()} cores"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    """The fields of /proc/cpuinfo, of the last core; empty where the file does not exist."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = (line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}
