"""Parsing of GRPOConfig fields to their types, and error messages for invalid arguments."""

from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig, RLOOConfig

from kullback.errors import InputError
from kullback.train.trl_settings import make_config, parse_settings


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_values_take_the_types_of_their_fields() -> None:
    words = ["learning_rate=1e-5", "num_generations=4", "bf16=false", "loss_type=grpo"]
    assert parse_settings(words) == {
        "learning_rate": 1e-5,
        "num_generations": 4,
        "bf16": False,
        "loss_type": "grpo",
    }
    assert parse_settings([]) == {}
    given = parse_settings(['generation_kwargs={"num_beams": 1}', "delta=none", "reward_weights=[1, 0.5]"])
    assert given["delta"] is None
    assert given["reward_weights"] == [1, 0.5]
    assert GRPOConfig("x", use_cpu=True, bf16=False, **given).generation_kwargs == {"num_beams": 1}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learning_rat=1e-5", "the nearest is learning_rate"),
        ("learn=1e-5", "GRPOConfig has no learn"),
        ("learning_rate", "expected key=value"),
        ("=3", "expected key=value"),
        ("beta=0.1", "see --budget"),
        ("output_dir=x", "see --output"),
        ("num_generations=four", "invalid int value: 'four'"),
        ("bf16=perhaps", "Truthy value expected"),
    ],
)
def test_invalid_arguments_are_rejected(word: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_settings([word])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [GRPOConfig, RLOOConfig])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("x", "expected an object of JSON, .*, got 'x'"),
        ([1], "expected an object of JSON"),
        ({"foo": 2}, "GenerationConfig of transformers has no foo; the nearest is "),
        ({"num_beam": 2}, "no num_beam; the nearest is num_beams"),
        ({"temperature": 0.5}, "expected no temperature, .* use --set temperature=0.5"),
        ({"max_new_tokens": 2}, "expected no max_new_tokens, .* use --set max_completion_length=2"),
        ({"use_cache": True, "top_p": 0.9}, "expected no top_p, .* use --set top_p=0.9"),
    ],
)
def test_entries_of_generation_kwargs_are_checked(
    entries: Any, message: str, config: type[Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        make_config(config, {"generation_kwargs": entries}, output_dir=str(tmp_path))
    accepted = {"generation_kwargs": {"num_beams": 1, "use_cache": True}}
    assert make_config(config, accepted, output_dir=str(tmp_path)).generation_kwargs == accepted["generation_kwargs"]
