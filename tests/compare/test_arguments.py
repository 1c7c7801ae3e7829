"""Functions that compare models refuse arguments of a wrong kind, and arguments without effect, by one line."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import kullback
from kullback.compare.endpoint import compare_with_endpoint
from kullback.compare.stored_base import compare_with_file, write_base_file
from kullback.compare.text_level import compare_text_level
from kullback.errors import InputError

TEXTS = ["12+34=46", "1+2=3"]
WRONG = [
    *(None, True, 2.5, -1, "5", "", b"x", {}, [1], {1}, object(), float("nan"), np.float32(2.5), 10**400, "a\0b"),
    *(np.array([1, 2]), Path("absent"), torch.float32),
]


@pytest.fixture(scope="module")
def stored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stored")
    (directory / "a.txt").write_text("12+34=46" * 4)
    write_base_file(directory / "base.kld", str(tiny_model), directory / "a.txt", context=16)
    return directory / "base.kld"


@pytest.mark.parametrize(
    "function", [kullback.compare, compare_text_level, compare_with_file, write_base_file, compare_with_endpoint]
)
def test_arguments_of_a_wrong_kind(
    function: Callable[..., Any], tiny_model: Path, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = "openai:http://127.0.0.1:9/v1#absent"
    given: dict[str, dict[str, Any]] = {
        "compare": {"base": str(tiny_model), "models": str(tiny_model), "text": TEXTS, "context": 8},
        "compare_text_level": {"base": str(tiny_model), "models": ["absent"], "text": TEXTS},
        "compare_with_file": {"path": stored, "models": [str(tiny_model)]},
        "write_base_file": {"path": "new.kld", "base": str(tiny_model), "text": stored.with_name("a.txt")},
        "compare_with_endpoint": {"base": str(tiny_model), "models": [server], "text": TEXTS},
    }
    for name in inspect.signature(function).parameters:
        for value in WRONG:
            with suppress(InputError):
                function(
                    **{**given[function.__name__], name: value, **({"overwrite": True} if name != "overwrite" else {})}
                )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"generate": 2.5}, "generate: expected a whole number or None, got 2.5"),
        ({"generate": True}, "generate: expected a whole number or None, got True"),
        ({"context": "5"}, "context: expected a whole number or None, got '5'"),
        ({"text": None}, "text: expected a path, the name of a data set, or a list of texts, got None"),
        ({"text": ["a", 1]}, "text: expected a path or a list of texts, got 1 at index 1"),
        ({"against": {}}, "against: expected a path or a name or None, got {}"),
        ({"models": {"a": 1}}, "models: expected a name or a list of names, got {'a': 1}"),
        ({"models": [3]}, "models: expected names or paths, got 3 at index 0"),
        ({"resume": "yes"}, "resume: expected True or False, got 'yes'"),
        ({"device": torch.device("cpu")}, "device: expected the name of a device"),
        ({"continuations": 3}, "continuations: expected generate too"),
        ({"seed": 1}, "seed: expected generate too"),
        ({"resume": True}, "resume: expected output too, the run directory, got none"),
        ({"overwrite": True}, "overwrite: expected output too"),
        ({"output": "run", "resume": True, "overwrite": True}, "compare: expected resume or overwrite, got both"),
        (
            {"base": "openai:http://host/v1#name"},
            "BASE: expected a model on this machine or of the hub, got the model of",
        ),
        (
            {"models": "openai:http://u:secret@host/v1#name"},
            "MODEL: expected a model on this machine .*compare_with_end",
        ),
    ],
)
def test_the_line_names_the_argument(tiny_model: Path, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        kullback.compare(**{"base": str(tiny_model), "models": str(tiny_model), "text": TEXTS, **settings})
    assert "secret" not in str(caught.value)


def test_whole_numbers_of_numpy_and_single_adapters_are_accepted(tiny_model: Path, tmp_path: Path) -> None:
    model = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path / "lora"))
    context: Any = np.int64(8)
    comparison = kullback.compare(
        tiny_model, [], adapters=str(tmp_path / "lora"), text=TEXTS, context=context, output=tmp_path / "run"
    )
    assert comparison.models[0].metrics["kl"].value == 0  # a LoRA adapter starts at the base


def test_a_file_of_llama_cpp_as_a_model_is_refused_by_name(tiny_model: Path, stored: Path) -> None:
    line = (
        "base.kld: expected a model, got a file of llama.cpp's --kl-divergence-base; it can be BASE .*compare_with_file"
    )
    with pytest.raises(InputError, match=f"MODEL .*{line}"):
        kullback.compare(tiny_model, stored, text=TEXTS)
    with pytest.raises(InputError, match=f"BASE .*{line}"):
        kullback.compare(stored, tiny_model, text=TEXTS)
    with pytest.raises(
        InputError, match="MODEL: expected a model on this machine or of the hub, got the model of a se"
    ):
        compare_with_file(stored, ["openai:http://host/v1#name"])


@pytest.mark.parametrize(("layers", "hidden"), [(4, 16), (2, 32)], ids=["more layers", "wider"])
def test_an_adapter_of_another_base_is_one_line(tiny_model: Path, tmp_path: Path, layers: int, hidden: int) -> None:
    config = LlamaConfig.from_pretrained(tiny_model, num_hidden_layers=layers, hidden_size=hidden)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "other")
    other = LlamaForCausalLM.from_pretrained(tmp_path / "other")
    get_peft_model(other, LoraConfig(target_modules=["q_proj"])).save_pretrained(str(tmp_path / "lora"))
    with pytest.raises(
        InputError,
        match=r"--adapter .*lora: expected an adapter of .*, but .* the base in its adapter_config.json is .*other",
    ):
        kullback.compare(tiny_model, tmp_path / "lora", text=TEXTS, output=tmp_path / "run")
    # The corrected call can use the same directory.
    assert (
        kullback.compare(tiny_model, tiny_model, text=TEXTS, output=tmp_path / "run").models[0].metrics["kl"].value == 0
    )


def test_heads_that_cannot_be_rounded_in_blocks_are_refused_before_the_run_directory_is_created(
    tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--kv-cache-dtype q8_0: expected heads whose size is a multiple of 32, got 8"):
        kullback.compare(tiny_model, tiny_model, text=TEXTS, kv_cache_dtype="q8_0", output=tmp_path / "run")
    with pytest.raises(InputError, match="expected heads whose size is a multiple of 32, got 8"):
        kullback.compare(tiny_model, tiny_model, text=TEXTS, floor="kv-cache-dtype=q4_0", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
