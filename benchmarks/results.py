"""Store the figures of a benchmark as data, with the commit, the processor and the versions that they belong to.

Every benchmark calls `save` when it ends. `python benchmarks/render.py` (`make bench-tables`) writes the tables in
benchmarks/README.md from these files.
"""

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
        benchmark: The name of the benchmark's file without its suffix.
        tables: For each name, the column names and the rows, whose cells are text or numbers.
        packages: The packages whose versions matter, beside Kullback and NumPy.

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


def commit() -> str:
    """Return the abbreviated hash of the present commit, with "-dirty" if files of the package were changed since."""
    described = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(described, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    """Return the processor's name, whether it has AVX-512, and the number of cores."""
    name, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    vectors = "AVX-512" if "avx512f" in flags else "no AVX-512"
    return f"{name}, {vectors}, {os.cpu_count()} cores"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
