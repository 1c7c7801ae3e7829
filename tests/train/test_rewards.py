"""Reward functions found by name, and what each kind of broken one is told."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from kullback.errors import InputError, RewardError
from kullback.train.rewards import checked, find_reward


def give(values: Any) -> Any:
    def broken(completions: list[str], **_: Any) -> Any:
        return values

    return broken


def test_good_rewards_pass_unchanged() -> None:
    assert checked(give([1, 0.5, None]))(completions=["a", "b", "c"]) == [1.0, 0.5, None]
    assert checked(give([1])).__name__ == "broken"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, math.nan], "gave nan for completion 1, 'b'"),
        ([math.inf, 0.0], "gave inf for completion 0"),
        ([1.0, "good"], "gave 'good' for completion 1"),
        (0.5, "returned float; expected a list"),
    ],
)
def test_broken_rewards_are_named(values: Any, said: str) -> None:
    with pytest.raises(RewardError, match="the reward broken") as caught:
        checked(give(values))(completions=["a", "b"])
    assert said in str(caught.value)


def test_a_reward_that_raises_is_named_with_its_error() -> None:
    def fails(completions: list[str], **_: Any) -> list[float]:
        raise KeyError("answer")

    with pytest.raises(RewardError, match="the reward fails raised KeyError: 'answer'"):
        checked(fails)(completions=["a"])


def test_asynchronous_rewards_stay_asynchronous() -> None:
    async def slow(completions: list[str], **_: Any) -> list[float]:
        return [math.nan]

    with pytest.raises(RewardError, match="slow gave nan"):
        asyncio.run(checked(slow)(completions=["a"]))


def test_functions_are_found_beside_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_mine.py").write_text("number = 3\ndef one(completions, **_):\n    return [1.0]\n")
    (tmp_path / "rewards_broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert find_reward("rewards_of_mine:one")(["x"]) == [1.0]
    for name, said in {
        "rewards_of_mine": "expected module:function",
        "rewards_of_mine:two": "has no function two",
        "rewards_of_mine:number": "has no function number",
        "rewards_absent:one": "ModuleNotFoundError",
        "rewards_broken:one": "RuntimeError: two lines",
    }.items():
        with pytest.raises(InputError, match=said):
            find_reward(name)
