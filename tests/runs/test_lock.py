"""The lock of a run directory: one process at a time, and no lock remains after a process was killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kullback.errors import InputError
from kullback.runs.lock import LOCK_FILE, run_lock

HOLD = "import sys, time; from pathlib import Path; from kullback.runs.lock import run_lock\n"
HOLD += "with run_lock(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"


def start_holder(run: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "parent" / "run"
    process = start_holder(run)
    with pytest.raises(InputError, match=f"process {process.pid} on .* is writing"), run_lock(run):
        pass
    assert (run / LOCK_FILE).is_file()  # the attempt did not delete the lock of the other process
    process.kill()
    process.communicate()
    assert (run / LOCK_FILE).is_file()
    with run_lock(run):
        pass
    assert not (run / LOCK_FILE).exists()


def test_directories_that_the_lock_created_are_deleted_if_they_are_empty(tmp_path: Path) -> None:
    with run_lock(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a").exists()
    with run_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").write_text("")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_of_many_processes_one_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from kullback.runs.lock import run_lock; from kullback.errors import InputError\n"
        "run, end = Path(sys.argv[1]), time.monotonic() + 2\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        with run_lock(run):\n"
        "            (run / 'inside').mkdir(); (run / 'inside').rmdir()\n"
        "    except InputError: pass\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")]) for _ in range(3)]
    time.sleep(0.1)
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path; from kullback.runs.lock import run_lock\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "with run_lock(Path(sys.argv[1])): pass"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True)
    assert "expected a writable directory, got: File too large" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_directory_that_is_not_writable_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a writable directory"), run_lock(tmp_path / "file" / "run"):
        pass
