"""`kullback doctor`: what is wrong with a run, from what it left. Exit status 0: nothing; 1: findings; 2: bad input."""

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["add_parser"]

FINDINGS = 1
ABOUT = """Reads a run directory of `kullback train`, a directory that TRL wrote checkpoints to, or a JSON file of TRL's
settings. Exit status: 0 nothing found, 1 findings, 2 bad input. docs/doctor.md explains every finding."""


def add_parser(commands: Any) -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="what is wrong with a run, and why", epilog=ABOUT)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_OR_CONFIG")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from kullback.doctor.run import doctor_path

    found = {str(path): doctor_path(path) for path in options.runs}
    if options.json:
        told = {path: [one.to_dict() for one in findings] for path, findings in found.items()}
        print(json.dumps({"findings": told}, allow_nan=False))
    else:
        print("\n\n".join(_shown(path, findings) for path, findings in found.items()))
    return FINDINGS if any(found.values()) else 0


def _shown(path: str, findings: list[Any]) -> str:
    if not findings:
        return f"{path}: nothing found"
    said = "\n".join(str(one) for one in findings)
    return f"{path}: {len(findings)} finding{'s' if len(findings) > 1 else ''}\n{said}"
