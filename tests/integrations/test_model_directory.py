"""Directories that are not a causal language model with a tokenizer in safetensors are refused, and state why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kullback.errors import InputError
from kullback.integrations.model_directory import require_model_directory


def set_config(directory: Path, **values: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


def make_adapter(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    (directory / "adapter_model.safetensors").write_bytes(b"")


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def overwrite(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def make_pickle(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def remove_tokenizer(directory: Path) -> None:
    for path in directory.glob("*token*"):
        path.unlink()


def remove_shard(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-1-of-2.safetensors")
    weights = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "adapter": (make_adapter, "got an adapter of base; merge it in Python by peft.AutoPeftModelForCausalLM"),
    "truncated": (truncate, "model.safetensors does not load: it is truncated"),
    "pointer": (overwrite, "model.safetensors does not load: it is truncated"),
    "pickle": (make_pickle, "pytorch_model.bin, a pickle, which can run code"),
    "tokenizer": (remove_tokenizer, "no tokenizer found"),
    "shard": (remove_shard, "model-2-of-2.safetensors is missing"),
    "masked": (lambda d: set_config(d, architectures=["BertForMaskedLM"]), "config.json has BertForMaskedLM"),
    "classifier": (
        lambda d: set_config(d, architectures=["LlamaForSequenceClassification"]),
        "expected a causal language model",
    ),
    "encoder-decoder": (
        lambda d: set_config(d, architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        "config.json has T5ForConditionalGeneration",
    ),
    "no-config": (lambda d: (d / "config.json").unlink(), "expected a config.json"),
    "bad-config": (lambda d: (d / "config.json").write_text("{"), "its config.json is not JSON"),
    "list-config": (lambda d: (d / "config.json").write_text("[]"), "config.json to be a JSON object, got list"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_unusable_directory_is_refused(case: str, tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model, directory)
    require_model_directory(directory)
    change, message = CASES[case]
    change(directory)
    with pytest.raises(InputError) as caught:
        require_model_directory(directory)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--model {directory}: ")
    assert "\n" not in str(caught.value)


def test_a_file_and_an_absent_path_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got a file"):
        require_model_directory(tiny_model / "config.json")
    with pytest.raises(InputError, match="no such directory"):
        require_model_directory(tmp_path / "absent")


def test_missing_weights_are_not_drawn_at_random(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from kullback.integrations.transformers import load_model

    directory = tmp_path / "model"
    shutil.copytree(tiny_model, directory)
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight is missing \(1 in total\)"):
        load_model(directory)


@pytest.mark.parametrize(
    ("quantisation", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "it does not load: .*optimum"),
        ({"quant_method": "awq", "bits": 4}, "it does not load: "),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "it does not load: .*bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": "int8"}, "it does not load: "),
        ({"quant_method": "superquant", "bits": 2}, "expected a quantisation that .* supports, got 'superquant'"),
    ],
)
def test_quantised_weights_that_cannot_be_used_are_refused(
    quantisation: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    from kullback.integrations.transformers import load_model

    directory = tmp_path / "model"
    shutil.copytree(tiny_model, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": quantisation}))
    with pytest.raises(InputError, match=message):
        load_model(directory)


def test_tied_weights_are_not_missing(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from kullback.integrations.transformers import load_model

    shutil.copytree(tiny_model, tmp_path / "tied")
    config = GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "tied")
    model = load_model(tmp_path / "tied")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
