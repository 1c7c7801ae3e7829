"""The process of the `kullback` command: pipes, closed streams, encodings, terminals, Ctrl-C and exit statuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "kullback"]
MEASURE = "measure 0.4,0.6 0.5,0.5"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells and signals")


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash, in which `kullback` is the command."""
    script = f'kullback() {{ "{sys.executable}" -m kullback "$@"; }}\n{script}'
    environment = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file whose table of terms exceeds the buffer of a pipe."""
    path = tmp_path_factory.mktemp("large") / "p.csv"
    path.write_text(",".join(["1e-4"] * 10_000))
    return str(path)


@pytest.mark.parametrize(
    "command",
    [
        MEASURE,
        "measure --list",
        "fit 'normal(0,1)' normal",
        "doctor .",
        "--help",
        "--version",
        "train --help",
        "train grpo --help",
        "measure LARGE LARGE --terms --json",
        "explore --output /dev/stdout",
    ],
)
def test_a_reader_that_closes_the_pipe_causes_no_error(command: str, large: str) -> None:
    command = command.replace("LARGE", large)
    done = shell(f"kullback {command} | head -0; exit ${{PIPESTATUS[0]}}")
    assert done.stderr.count("\n") <= 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode in ((0,) if command != "doctor ." else (1, 2))


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2> >(head -0)", "2>&-"])
def test_progress_that_cannot_be_written_does_not_end_a_command(redirection: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from kullback.cli.process import run_as_process\n"
        "from kullback.cli.run_summary import results_on_stdout\n"
        "def run(words):\n"
        "    with results_on_stdout():\n"
        "        for stream in (sys.stdout, sys.stderr, sys.__stderr__):\n"
        "            for _ in range(2000):\n"
        "                print('progress ' * 20, file=stream, flush=True)\n"
        "            stream.buffer.write(b'x')\n"
        "            stream.buffer.flush()\n"
        "    print('done')\n"
        "    return 0\n"
        "sys.exit(run_as_process(run, []))\n"
    )
    done = shell(f'"{sys.executable}" "{script}" {redirection}')
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_standard_error_can_be_a_closed_pipe_or_closed() -> None:
    for redirection in ("2> >(head -0)", "2>&-", "2>/dev/full"):
        done = shell(f"kullback measure nan,1 0.5,0.5 {redirection}")
        assert (done.returncode, done.stdout) == (2, ""), redirection
        done = shell(f"kullback {MEASURE} {redirection}")
        assert done.returncode == 0, redirection
        assert "KL(P || Q)" in done.stdout, redirection


@pytest.mark.slow
def test_closed_and_full_standard_streams(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"beta": -0.04}')  # settings with a finding, for which the status would be 1
    for command in (MEASURE, "measure --list", "fit 'normal(0,1)' normal", "doctor p.json", "--help", "--version"):
        for redirection in (">&-", "<&- >&-"):
            done = shell(f"cd {tmp_path}; kullback {command} {redirection}")
            assert done.returncode == 2, command
            assert done.stderr.startswith("kullback: the output cannot be written: standard output is closed"), command
            assert done.stderr.count("\n") == 1, command
    assert shell(f"kullback {MEASURE} >&- 2>&-").returncode == 2
    assert shell("kullback measure nan,1 0.5,0.5 >&-").stderr.count("\n") == 1
    for command in (MEASURE, "--help", "--version"):
        done = shell(f"kullback {command} >/dev/full")
        assert done.returncode == 2, command
        assert done.stderr == "kullback: the output cannot be written: No space left on device\n", command
    done = shell("kullback measure - 0.5,0.5 <&-")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_outcome_of_training_that_cannot_be_written_is_an_error(tmp_path):
    train = f"kullback train vae --budget 5 --steps 2 --output {tmp_path}/run"
    assert shell(train).returncode == 0
    for options in ("", "--json"):
        done = shell(f"{train} --resume {options} >/dev/full")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == "kullback: the output cannot be written: No space left on device"
        assert shell(f"{train} --resume {options} | head -0; exit ${{PIPESTATUS[0]}}").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "cp1252"},
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        {"COLUMNS": "20"},
        {"COLUMNS": "1"},
        {"COLUMNS": "x"},
    ],
)
def test_encodings_and_terminals(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("α,0.5\n→,0.5\n", encoding="utf-8")
    done = shell(f"kullback measure '{tmp_path}/p.csv' 0.5,0.5 --terms", **environment)
    assert done.returncode == 0, done.stderr
    assert "KL(P || Q)   0 nats" in done.stdout
    done = shell("kullback measure '→' 0.5,0.5", **environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    for command in ("--help", "measure --help", "train grpo --help", "doctor --help"):
        done = shell(f"kullback {command}", **environment)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert "\x1b" not in done.stdout


def test_arguments_that_are_not_unicode_and_control_characters() -> None:
    for argument in (b"\xff", b"\x1b[31mred", b"a\nb", b"\xc3\x28.csv", b"a\rb.csv"):
        done = subprocess.run([*COMMAND, "measure", argument, "0.5,0.5"], capture_output=True)
        assert done.returncode == 2
        assert done.stderr.count(b"\n") == 1
        assert b"\x1b" not in done.stderr
        assert b"\r" not in done.stderr


def test_the_output_of_json_is_one_object_whatever_the_warnings(tmp_path: Path) -> None:
    done = shell("kullback measure 'normal(0, 1)' 'normal_mixture([0.5, 0.5], [0, 50], [1, 1])' --json")
    assert done.returncode == 0
    json.loads(done.stdout)
    done = shell("kullback measure 0.5,0.5 1,0 --json")
    assert json.loads(done.stdout)["kl"] == "inf"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["fit normal(0,1) student_t", "measure normal(0,1) student_t(3,0,1)", "doctor .", "train demo --output OUT"],
)
def test_an_interrupt_at_any_time_gives_one_line(command: str, tmp_path: Path) -> None:
    words = [word.replace("OUT", str(tmp_path / "demo")) for word in command.split()]
    # The interpreter itself prints a traceback if the signal arrives before the program starts.
    code = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from kullback.cli import main\nos.write(1, b'started\\n')\nsys.exit(main())"
    for delay in (0.0, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0):
        process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1].decode()
        if error.count("File ") == 1 and 'File "<string>"' in error:
            continue  # before the first line of the program
        assert process.returncode in (0, 1, 2, 130), (delay, error)
        assert "Traceback" not in error, delay
        assert process.returncode != 130 or error == "kullback: interrupted\n", delay


def test_an_interrupt_that_an_import_hides_is_an_interrupt(tmp_path: Path) -> None:
    (tmp_path / "hidden.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent of the tests may ignore SIGINT\n"
        "from kullback.cli import process\n"
        "def run(words):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); sum(range(1000))\n"
        "    except BaseException: raise ImportError('hidden')\n"
        "try: sys.exit(process.run_as_process(run, []))\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    done = subprocess.run([sys.executable, str(tmp_path / "hidden.py")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_process_whose_partner_stopped_does_not_report_a_defect(tmp_path: Path) -> None:
    code = (
        "from kullback.cli import process\n"
        "def run(words): raise RuntimeError('[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:4')\n"
        "import sys; sys.exit(process.run_as_process(run, []))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "process 1: another process of this run stopped" in done.stderr
    assert "defect" not in done.stderr


def test_a_defect_gives_one_line_and_a_file_with_the_traceback(tmp_path: Path) -> None:
    code = (
        "from kullback.cli import process\n"
        "def run(words): raise ZeroDivisionError('x')\n"
        "import sys; sys.exit(process.run_as_process(run, []))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    [file] = tmp_path.glob("kullback-*.txt")
    assert str(file) in done.stderr
    assert "ZeroDivisionError: x" in file.read_text()


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["measure", "--help"], ["train", "grpo", "--help"]])
def test_help_and_version_load_no_library(words: list[str]) -> None:
    code = (
        "import sys\nfrom kullback.cli import main\n"
        f"main({words!r})\n"
        "print(sorted({'numpy', 'scipy', 'torch', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ["measure", "0.5,0.5"],
        ["measure", "a", "b", "--error", "nan"],
        ["measure", "a", "b", "--bit"],
        ["fit", "normal(0,1)", "normal", "--fixed", "scale=x"],
        ["fit", "normal(0,1)", "normal", "--components", "0"],
        ["explore", "--port", "70000"],
        ["doctor"],
        ["train", "grpo", "--learning-rat", "3"],
    ],
)
def test_errors_of_options_come_before_the_import_of_libraries(words: list[str]) -> None:
    code = (
        "import sys\nfrom kullback.cli import main\n"
        f"status = main({words!r})\n"
        "print(status, sorted({'numpy', 'scipy', 'torch', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert done.stderr.count("\n") == 1


def test_a_vector_is_measured_without_scipy() -> None:
    code = "import sys\nfrom kullback.cli import main\nmain(['measure', '1/2,1/2', '0.9,0.1'])\n"
    code += "print(sorted({'scipy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
