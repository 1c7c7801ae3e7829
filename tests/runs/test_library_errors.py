"""Exceptions of libraries and of user code as one line that names the cause."""

import errno
from pathlib import Path

import pytest
import torch

from kullback.cli import main
from kullback.errors import InputError
from kullback.runs.library_errors import is_out_of_memory, library_errors
from kullback.runs.write_errors import write_errors


class TransportError(Exception):
    """As the base class of the network errors of httpx."""


class ConnectError(TransportError):
    """As in httpx."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectError("[Errno -2] Name or service not known"), "the network cannot be reached: .*push_to_hub"),
        (ConnectionError("offline mode is enabled"), "the network cannot be reached"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the memory is not sufficient"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "the memory is not sufficient"),
        (SystemExit(0), "SystemExit: 0"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_the_cause_is_named(error: BaseException, message: str) -> None:
    with pytest.raises(InputError, match=f"GRPO: {message}") as raised, library_errors("GRPO"):
        raise error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 448 vs 342"),
    ],
)
def test_a_full_disk_is_named_by_the_outer_context(error: Exception) -> None:
    expected = "run: cannot be written: .*; free some space, and continue with --resume"
    with (
        pytest.raises(InputError, match=expected),
        write_errors(Path("run"), "continue with --resume"),
        library_errors("PPO"),
    ):
        raise error


def test_an_error_of_shapes_is_no_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_network_that_exceeds_the_memory_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "vae", "--hidden", "100000000000", "--steps", "1", "--output", "run"]) == 2
    error = capsys.readouterr().err
    assert "the memory is not sufficient" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_path_of_a_file_near_the_root_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile("raise RuntimeError('no simulator')", "/srv/environment.py", "exec")
    with pytest.raises(InputError, match=r"no simulator \(/srv/environment\.py, line 1\)"), library_errors("--env x"):
        exec(code)
