"""The example scripts run to their end, and print what their docstrings promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# A pattern in the output of each script, and the numbers that it must contain.
EXPECTED = {
    "measure_divergences.py": r"KL\(p \|\| q\) = 0\.033980 nats = 0\.049022 bits",
    "forward_and_reverse_fits.py": r"scale 10\.198, KL 0\.935902 nats(.|\n)*scale 8\.4451, KL 3\.306604 nats",
    "optimal_policy.py": r"16  0\.9064  1\.6768 nats",
    "grpo_with_budget.py": r"KL 0\.\d+ of 0\.05 nats per token",
    "ppo_with_budget.py": r"3  0\.0(09|10)\d+ nats per step",
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(EXPECTED[name], done.stdout), done.stdout


@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 40
