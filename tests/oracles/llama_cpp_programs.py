"""The programs llama-perplexity and llama-server of llama.cpp, which `make llama-cpp` builds.

They compute in float32 here: the cache of keys and values is not rounded to float16, and attention is not fused.
"""

import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SETTINGS = ("-t", "1", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-warmup")
_LINE = re.compile(r"^\s*(\S.*?)\s*:\s+(-?[\d.]+)(?: ±\s+([\d.]+))?\s*%?$")


def perplexity(programs: Path, model: Path, base: Path, *words: object) -> str:
    """Run llama-perplexity with a file of --kl-divergence-base, and return what it prints."""
    command = [programs / "llama-perplexity", "-m", model, "--kl-divergence-base", base, *_SETTINGS, *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return done.stdout


def statistics(output: str) -> dict[str, tuple[float, float | None]]:
    """The values and the uncertainties of the statistics that llama-perplexity prints with --kl-divergence."""
    found = {}
    for line in output.splitlines():
        if match := _LINE.match(line):
            found[" ".join(match[1].split())] = float(match[2]), None if match[3] is None else float(match[3])
    return found


@contextmanager
def server(programs: Path, model: Path, context: int) -> Iterator[str]:
    """A running llama-server; the value is its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [programs / "llama-server", "-m", model, "--port", port, "--host", "127.0.0.1", "-c", context, "-np", 1]
    process = subprocess.Popen([*map(str, command), *_SETTINGS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()
