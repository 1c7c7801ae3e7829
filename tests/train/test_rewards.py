"""Import of reward functions by name, and the error message for each kind of invalid return value."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from kullback.errors import InputError, RewardError
from kullback.train.rewards import find_reward, with_output_check


def returning(values: Any) -> Any:
    def broken(completions: list[str], **_: Any) -> Any:
        return values

    return broken


def test_valid_rewards_are_returned_unchanged() -> None:
    assert with_output_check(returning([1, 0.5, None]))(completions=["a", "b", "c"]) == [1.0, 0.5, None]
    assert with_output_check(returning([1])).__name__ == "broken"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, math.nan], "gave nan for completion 1, 'b'"),
        ([math.inf, 0.0], "gave inf for completion 0"),
        ([1.0, "good"], "gave 'good' for completion 1"),
        (0.5, "returned float; expected a list"),
    ],
)
def test_the_message_names_the_invalid_reward(values: Any, message: str) -> None:
    with pytest.raises(RewardError, match="the reward broken") as caught:
        with_output_check(returning(values))(completions=["a", "b"])
    assert message in str(caught.value)


def test_the_message_quotes_the_exception_of_a_reward() -> None:
    def fails(completions: list[str], **_: Any) -> list[float]:
        raise KeyError("answer")

    with pytest.raises(RewardError, match="the reward fails raised KeyError: 'answer'"):
        with_output_check(fails)(completions=["a"])


def test_coroutine_functions_remain_coroutine_functions() -> None:
    async def slow(completions: list[str], **_: Any) -> list[float]:
        return [math.nan]

    with pytest.raises(RewardError, match="slow gave nan"):
        asyncio.run(with_output_check(slow)(completions=["a"]))


def test_functions_are_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_mine.py").write_text("number = 3\ndef one(completions, **_):\n    return [1.0]\n")
    (tmp_path / "rewards_broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert find_reward("rewards_of_mine:one")(["x"]) == [1.0]
    for name, message in {
        "rewards_of_mine": "expected module:function",
        "rewards_of_mine:two": "has no function two",
        "rewards_of_mine:number": "has no function number",
        "rewards_absent:one": "ModuleNotFoundError",
        "rewards_broken:one": "RuntimeError: two lines",
    }.items():
        with pytest.raises(InputError, match=message):
            find_reward(name)
