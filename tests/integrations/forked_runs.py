"""Runs a script on one or several processes, forked from one process that has imported the libraries.

    python forked_runs.py SCRIPT [LIBRARY ...]

Each line of the standard input is a JSON list: the number of processes, the file of their output, and the arguments of
the script. When all processes have ended, a line with 0 or 1 (a process has failed) is written to the standard output.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

_LIBRARIES = [
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "datasets",
    "peft",
    "trl",
    "kullback.integrations.trl",
]


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def _run_rank(script: str, words: list[str], environment: dict[str, str], output: Path) -> None:
    """Run the script in this process, and end the process."""
    status = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.environ |= environment
        sys.argv = [script, *words]
        runpy.run_path(script, run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(script: str, processes: int, output: Path, words: list[str]) -> bool:
    """Run the script on some processes, and return whether all have succeeded; the first failure ends the others."""
    port = _free_port()
    ranks = {}
    for rank in range(processes):
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        if (process := os.fork()) == 0:
            _run_rank(script, words, environment if processes > 1 else {}, output)
        ranks[process] = rank
    succeeded = True
    while ranks:
        process, status = os.wait()
        del ranks[process]
        if status != 0 and succeeded:
            succeeded = False
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return succeeded


def main() -> None:
    """Answer requests until the standard input ends."""
    for name in [*sys.argv[2:], *_LIBRARIES]:
        importlib.import_module(name)
    for line in sys.stdin:
        processes, output, *words = json.loads(line)
        print(int(not run(sys.argv[1], processes, Path(output), words)), flush=True)


if __name__ == "__main__":
    main()
