"""`kullback doctor`: the faults of a training run, from its files."""

import argparse
import json
from pathlib import Path
from typing import Any

from kullback.cli.output import print_result, strict
from kullback.runs.printable import one_line

__all__ = ["add_parser"]

HAS_FINDINGS = 1
EPILOG = """Exit status: 0 without findings, 1 with findings, 2 for invalid input, 130 after Ctrl-C. docs/doctor.md
explains every finding."""


def add_parser(commands: Any) -> None:
    """Add the command `doctor`."""
    parser = commands.add_parser("doctor", help="find faults in the KL control of a training run", epilog=EPILOG)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a run directory of `kullback train`, a directory with checkpoints of TRL, a directory of such "
        "directories, or a JSON or YAML file of TRL's settings",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from kullback.doctor.run import doctor_runs

    findings = {str(run): found for path in options.runs for run, found in doctor_runs(path).items()}
    if options.json:
        content = {path: [finding.to_dict() for finding in of_path] for path, of_path in findings.items()}
        print_result(json.dumps(strict({"findings": content}), allow_nan=False))
    else:
        print_result("\n\n".join(_as_text(path, of_path) for path, of_path in findings.items()))
    return HAS_FINDINGS if any(findings.values()) else 0


def _as_text(path: str, findings: list[Any]) -> str:
    if not findings:
        return f"{one_line(path)}: nothing found"
    lines = "\n".join(str(finding) for finding in findings)
    return f"{one_line(path)}: {len(findings)} finding{'s' if len(findings) > 1 else ''}\n{lines}"
