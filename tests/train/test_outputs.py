"""The files of a run have the modes that the umask of the process gives, and its output goes where it should."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kullback.cli import main
from kullback.runs.run_directory import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

VAE = ["train", "vae", "--steps", "2", "--hidden", "4", "--output", "run"]
PPO = ["train", "ppo", "--env", "CartPole-v1", "--output", "run", "--set", "n_steps=32", "--set", "batch_size=16"]


@pytest.fixture(params=[0o002, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vae", "ppo", "sft"])
def test_modes_follow_the_umask(
    recipe: str, umask: int, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "1+2=", "completion": "3"}\n' * 4)
    sft = ["train", "sft", "--model", str(tiny_model), "--data", "rows.jsonl", "--steps", "1", "--output", "run"]
    words = {"vae": VAE, "ppo": [*PPO, "--steps", "32"], "sft": sft}[recipe]
    assert main(words) == 0
    paths = [Path("run"), *Path("run").rglob("*")]
    expected = {False: 0o666 & ~umask, True: 0o777 & ~umask}
    found = {str(path): stat.S_IMODE(path.stat().st_mode) for path in paths}
    different = {name: oct(mode) for name, mode in found.items() if mode != expected[Path(name).is_dir()]}
    assert not different


def test_the_progress_of_a_vae_has_its_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(VAE) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("run  step ")]
    assert len(lines) == 2
    assert all("distortion " in line and " nats/image" in line and "reward" not in line for line in lines)
    assert "KL -" not in captured.err
    assert "step 2/2" not in captured.out
    assert "report: run/report.html" in captured.out
    assert "\x1b" not in captured.out + captured.err


def test_ppo_states_that_it_rounds_the_steps_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*PPO, "--steps", "33"]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first == (
        "--steps 33 is rounded up to 64 environment steps, which are 2 updates of n_steps * n_envs = 32 steps"
    )
    config = RunDirectory(Path("run")).config()
    assert (config["steps"], config["total_steps"]) == (33, 64)
    assert main([*PPO, "--steps", "64", "--resume", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["step"] == 64
    assert "rounded" not in captured.err


@pytest.mark.parametrize(
    ("env", "message"),
    {
        "CartPole-v9": "CartPole",
        "Nope-v0": "Nope",
        "nope_module:Nope-v0": "nope_module",
        "": "--env",
        "Blackjack-v1": "",
    }.items(),
)
def test_environments_that_cannot_be_used_are_refused(
    env: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "ppo", "--env", env, "--output", "run", "--steps", "32"]
    assert main([*words, "--set", "n_steps=32", "--set", "batch_size=16"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("kullback: ")
    assert error.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((30, 4)), "of shape (n, height, width)"),
        (np.zeros((30, 4, 4, 3)), "of shape (n, height, width)"),
        (np.zeros((3, 4, 4)), "20 images or more"),
        (np.zeros((0, 4, 4)), "of shape (n, height, width)"),
        (np.full((30, 4, 4), 1.5), "values in [0, 1]"),
        (np.full((30, 4, 4), -1), "values in [0, 1]"),
        (np.full((30, 4, 4), np.nan), "values in [0, 1]"),
        (np.zeros((30, 4, 4), complex), "expected numbers"),
        (np.full((30, 4, 4), "a"), "expected numbers"),
        (np.full((30, 4, 4), 256), "values in [0, 1]"),
        (np.full((30, 4, 4), None), "expected an array"),
        ({"a": np.zeros((30, 4, 4))}, "an archive of np.savez"),
        (b"", "expected an array"),
        (b"PK\x03\x04", "expected an array"),
    ],
)
def test_images_of_another_form_are_refused(
    array: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("images.npy")
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif isinstance(array, dict):
        with path.open("wb") as file:
            np.savez(file, **array)
    else:
        np.save(path, array)
    assert main([*VAE, "--data", "images.npy"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kullback: --data images.npy: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("run").exists()
