"""Environments of the user's own modules: faults of their code give one line, and not the exit status of a success."""

import json
from pathlib import Path

import pytest

from kullback.cli import main

pytest.importorskip("stable_baselines3")

MODULE = """
import gymnasium, numpy

class Counter(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), numpy.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, fault="", render_mode=None):
        if fault == "constructor":
            raise RuntimeError("no licence")
        self.fault, self.time = fault, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return numpy.zeros(2, numpy.float32), {}

    def step(self, action):
        self.time += 1
        observation, reward = numpy.zeros(2, numpy.float32), 1.0
        if self.fault == "exit":
            raise SystemExit(0)
        if self.fault == "exception":
            raise KeyError("speed")
        if self.fault == "interrupt":
            raise KeyboardInterrupt
        if self.fault == "reward" and self.time == 3:
            reward = float("nan")
        if self.fault == "observation":
            observation[:] = numpy.nan
        if self.fault == "print":
            print("from the environment")
        return observation, reward, self.time == 5, False, {}

for fault in ("", "constructor", "exit", "exception", "interrupt", "reward", "observation", "print"):
    gymnasium.register(f"Counter{fault}-v0", Counter, kwargs={"fault": fault}, disable_env_checker=True)
"""


@pytest.fixture(autouse=True)
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("counter_env.py").write_text(MODULE)
    Path("broken_env.py").write_text("def (:")
    Path("exit_env.py").write_text("raise SystemExit(0)")


def words(env: str) -> list[str]:
    settings = [word for key in ("n_steps=16", "batch_size=16", "n_epochs=1") for word in ("--set", key)]
    return ["train", "ppo", "--env", env, "--steps", "32", "--output", "run", "--evaluate-every", "0", *settings]


@pytest.mark.parametrize(
    ("env", "status", "message"),
    [
        ("counter_env:Counterconstructor-v0", 2, "RuntimeError: no licence"),
        ("counter_env:Counterexit-v0", 2, "SystemExit: 0"),
        ("counter_env:Counterexception-v0", 2, "KeyError: 'speed'"),
        ("counter_env:Counterinterrupt-v0", 130, "interrupted"),
        ("counter_env:Counterreward-v0", 2, "expected finite rewards of the environment, got nan"),
        ("counter_env:Counterobservation-v0", 2, "expected finite outputs of the model"),
        ("broken_env:X-v0", 2, "SyntaxError: invalid syntax"),
        ("exit_env:X-v0", 2, "SystemExit: 0"),
        ("absent_env:X-v0", 2, "No module named 'absent_env'"),
        ("", 2, "--env '': "),
    ],
)
def test_a_faulty_environment_gives_one_line(
    env: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(env)) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "defect" not in captured.err


def test_the_output_of_an_environment_is_not_mixed_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words("counter_env:Counterprint-v0"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ended"] is True
    assert "from the environment" in captured.err
