"""The findings of the doctor for the pages of runs, each with the step that it refers to."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kullback.doctor.run import doctor_path
from kullback.errors import KullbackError

__all__ = ["BackgroundChecks", "check_run", "shown_finding"]

_SHARE = 0.05  # of the processor time of one core that the checks of growing runs may take
_LEAST_PAUSE = 10.0  # seconds between two checks of a run
_STEP_KEYS = ("first step", "its step", "last step", "step")


def check_run(path: Path) -> list[dict[str, Any]] | None:
    """Return the findings of `kullback doctor` for a run.

    Args:
        path: A run directory or an output directory of TRL.

    Returns:
        The findings as JSON types, errors first; None if the run cannot be checked, for example because it has not
        taken a step.
    """
    try:
        return [shown_finding(finding.to_dict()) for finding in doctor_path(path)]
    except (KullbackError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
        return None


def shown_finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    """Return a finding with `step`, the step that its evidence names, or None.

    Example:
        >>> from kullback.doctor.finding import Finding
        >>> finding = Finding("kl-not-finite", "error", "overflow", "use float32", {"first step": 51})
        >>> shown_finding(finding.to_dict())["step"]
        51
    """
    evidence = finding["evidence"]
    step = next((evidence[key] for key in _STEP_KEYS if isinstance(evidence.get(key), (int, float))), None)
    if step is None:
        found = [match for key in evidence if (match := re.search(r"\bat step (\d+)$", key))]
        step = int(found[0][1]) if found else None
    texts = [[name, f"{value:.4g}" if isinstance(value, float) else str(value)] for name, value in evidence.items()]
    return {**finding, "evidence": texts, "step": step}


@dataclass
class _Check:
    rows: int = -1
    findings: list[dict[str, Any]] | None = None
    next_time: float = 0.0
    is_running: bool = False


@dataclass
class BackgroundChecks:
    """Checks growing runs in processes of their own, with at most 5% of the time of one core."""

    _checks: dict[Path, _Check] = field(default_factory=dict)

    def latest(self, path: Path, rows: int) -> list[dict[str, Any]] | None:
        """Return the newest findings for a run, and start another check if it has grown since.

        Args:
            path: The run.
            rows: The number of its rows.

        Returns:
            The findings as `check_run` returns them; None before the first check has ended.
        """
        check = self._checks.setdefault(path, _Check())
        if rows and rows != check.rows and not check.is_running and time.monotonic() >= check.next_time:
            check.is_running, check.rows = True, rows
            threading.Thread(target=self._run, args=(path, check), daemon=True).start()
        return check.findings

    def _run(self, path: Path, check: _Check) -> None:
        started = time.monotonic()
        command = [sys.executable, "-m", "kullback", "doctor", "--json", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
            (found,) = json.loads(done.stdout)["findings"].values()
            check.findings = [shown_finding(finding) for finding in found]
        except (OSError, ValueError, LookupError):
            pass  # the run cannot be checked; earlier findings stay
        finally:
            duration = time.monotonic() - started
            check.next_time = time.monotonic() + max(_LEAST_PAUSE, duration / _SHARE)
            check.is_running = False
