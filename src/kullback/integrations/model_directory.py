"""Checks of a directory with a language model, which import no library of machine learning."""

import json
from pathlib import Path
from typing import Any

from kullback.errors import InputError
from kullback.runs.checksums import has_safetensors_length

__all__ = ["require_model_directory"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_CAUSAL = ("CausalLM", "LMHeadModel", "ForConditionalGeneration")


def require_model_directory(directory: Path, name: str = "") -> None:
    """Check that a directory contains a causal language model in safetensors and a tokenizer, without loading them.

    Args:
        directory: A local directory in the format of `save_pretrained`.
        name: The name of the model in messages; empty: the directory.

    Raises:
        InputError: The directory does not exist, is an adapter, or has no config.json of a causal language model, no
            intact safetensors or no tokenizer. Pickles are not accepted.
    """
    option = f"--model {name or directory}"
    if directory.is_file():
        raise InputError(f"{option}: expected a directory in the format of save_pretrained, got a file")
    if not directory.is_dir():
        raise InputError(
            f"{option}: no such directory; expected a local transformers directory, or a "
            "model of the Hugging Face hub such as Qwen/Qwen3-0.6B"
        )
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise InputError(_about_adapter(option, directory, _read_json(directory / "adapter_config.json", option)))
    if not (directory / "config.json").is_file():
        raise InputError(f"{option}: expected a config.json; save the model with save_pretrained")
    _require_causal(_read_json(directory / "config.json", option), option)
    _require_safetensors(directory, option)
    if not any((directory / name).is_file() for name in (*_TOKENIZER_FILES, "tokenizer_config.json")):
        raise InputError(f"{option}: no tokenizer found; save it to the same directory with save_pretrained")


def _about_adapter(option: str, directory: Path, config: dict[str, Any]) -> str:
    base = config.get("base_model_name_or_path") or "its base model"
    return (
        f"{option}: expected a whole model, got an adapter of {base}; merge it in Python by "
        f"peft.AutoPeftModelForCausalLM.from_pretrained({str(directory)!r}).merge_and_unload().save_pretrained(NEW), "
        "save the tokenizer to NEW too, and pass NEW instead"
    )


def _read_json(path: Path, option: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: its {path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{option}: expected its {path.name} to be a JSON object, got {type(content).__name__}")
    return content


def _require_causal(config: dict[str, Any], option: str) -> None:
    """Raise InputError if a configuration states that the model is not a causal language model."""
    names = config.get("architectures") or []
    is_causal = not names or any(str(name).endswith(_CAUSAL) for name in names)
    if not is_causal or config.get("is_encoder_decoder") is True:
        found = ", ".join(map(str, names)) or "an encoder and decoder"
        raise InputError(
            f"{option}: expected a causal language model, such as LlamaForCausalLM, but its config.json has {found}"
        )


def _require_safetensors(directory: Path, option: str) -> None:
    """Raise InputError if the weights are not in safetensors, or a file is absent or truncated."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
        found = f"found {pickled[0]}, a pickle, which can run code" if pickled else "found no weights"
        raise InputError(f"{option}: expected *.safetensors, {found}; save the model with save_pretrained")
    index = directory / "model.safetensors.index.json"
    if index.is_file() and not (directory / "model.safetensors").is_file():
        parts = _read_json(index, option).get("weight_map")
        missing = sorted({str(name) for name in dict(parts or {}).values()} - {path.name for path in files})
        if missing:
            raise InputError(f"{option}: {missing[0]} is missing, which {index.name} lists; copy the model again")
    for path in files:
        if not has_safetensors_length(path):
            raise InputError(f"{option}: {path.name} does not load: it is truncated or damaged; copy the model again")
