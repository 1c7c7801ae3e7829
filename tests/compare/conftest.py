"""The command `kullback compare` in two processes."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

# The libraries are imported once, before the second process is forked.
TWO_PROCESSES = """
import os, sys
import kullback.compare.runner
from kullback.cli import main
other = os.fork()
os.environ["RANK"] = "0" if other else "1"
status = main(sys.argv[1:])
sys.stdout.flush()
if not other:
    os._exit(status)
sys.exit(status or os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


@pytest.fixture(scope="session")
def in_two_processes() -> Callable[..., str]:
    """Runs the command line in two processes, and returns the standard output."""

    def run(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, "-c", TWO_PROCESSES, *map(str, words)],
            env={**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": str(torch.get_num_threads())},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
