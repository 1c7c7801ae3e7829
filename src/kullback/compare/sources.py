"""The models of a comparison on disk: where they are, and what identifies their weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kullback.compare.llama_cpp import is_log_prob_file
from kullback.errors import InputError
from kullback.integrations.gguf import is_gguf, require_gguf, weight_types
from kullback.integrations.hub import find_model, hub_source
from kullback.integrations.openai_server import is_endpoint

__all__ = ["DTYPES", "ModelSource", "find_source", "gguf_warning", "weights_hash"]

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class ModelSource:
    """A model that is to be compared.

    Args:
        name: The name in the results, which is unique in a comparison.
        directory: The directory of the whole model, or its GGUF file.
        adapter: The directory of a PEFT adapter of it, or None.
        dtype: The dtype in which it is computed, a name of `DTYPES`; "auto": the dtype of the saved weights.
    """

    name: str
    directory: Path
    adapter: Path | None = None
    dtype: str = "auto"


def find_source(name: str, option: str, *, dtype: str, base: ModelSource | None = None) -> ModelSource:
    """Find a model: a transformers directory, a GGUF file, a model of the hub, or the directory of a PEFT adapter.

    Args:
        name: The directory or the name.
        option: The argument that the name came from, for error messages.
        dtype: The dtype in which it is computed.
        base: The base, whose adapters are accepted; None: adapters are refused.

    Returns:
        The source.

    Raises:
        InputError: The model does not exist, or it is not a causal language model in safetensors or GGUF.
        MissingDependencyError: The model is a GGUF file, and the package gguf is not installed.
    """
    if is_endpoint(name):
        raise InputError(
            f"{option}: expected a model on this machine or of the hub, got the model of a server, openai:URL#NAME, "
            "which is compared by `kullback compare BASE MODEL --text CORPUS`, or in Python by "
            "kullback.compare.endpoint.compare_with_endpoint"
        )
    path = Path(name)
    if path.is_file() and is_log_prob_file(path):
        raise InputError(
            f"{option} {name}: expected a model, got a file of llama.cpp's --kl-divergence-base; it can be BASE in "
            "`kullback compare BASE MODEL`, or in Python the path of kullback.compare.stored_base.compare_with_file"
        )
    if is_gguf(path):
        require_gguf(path, option)
        return ModelSource(name, path, None, dtype)
    if base is not None and (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        if not list(path.glob("*.safetensors")):
            raise InputError(f"{option} {name}: expected adapter_model.safetensors, found none; save the adapter again")
        return ModelSource(name, base.directory, path, dtype)
    if option == "--adapter" and path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"--adapter {name}: expected an adapter_config.json in the directory, found none")
    try:
        return ModelSource(name, find_model(name, option), None, dtype)
    except InputError as error:
        raise InputError(str(error).replace("--model ", f"{option} ", 1)) from error


def weights_hash(source: ModelSource) -> dict[str, Any]:
    """What identifies the weights of a model: the hash of its files, and its commit on the hub.

    Args:
        source: The model.

    Returns:
        The SHA-256 of the safetensors and of the configuration; for a model of the hub's cache its name and commit too,
        and for a GGUF file the formats of its tensors, which are dequantised.
    """
    if is_gguf(source.directory):
        with source.directory.open("rb") as file:
            found: dict[str, Any] = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        found |= {"weights": "dequantised from GGUF", "gguf_types": weight_types(source.directory)}
    else:
        found = {"sha256": _hash_of_files(source.directory)}
    if source.adapter is not None:
        found["adapter_sha256"] = _hash_of_files(source.adapter)
    if (hub := hub_source(source.directory)) is not None:
        found["hub"], found["commit"] = hub
    return found


def gguf_warning(source: ModelSource) -> list[str]:
    """A sentence about a model whose weights are packed in GGUF, or nothing for other models.

    Args:
        source: The model.

    Returns:
        A list of one sentence or none.
    """
    if not is_gguf(source.directory):
        return []
    packed = [kind for kind in weight_types(source.directory) if kind not in ("F64", "F32", "F16", "BF16")]
    if not packed:
        return []
    return [
        f"The weights of {source.name} are dequantised from GGUF ({', '.join(packed)}). llama.cpp computes with packed "
        "weights, and its logits differ by rounding; its --kl-divergence-base writes them to a file, which can be BASE."
    ]


def _hash_of_files(directory: Path) -> str:
    """The SHA-256 of the names and the contents of the weights and of the configuration in a directory."""
    total = hashlib.sha256()
    files: Sequence[Path] = sorted([*directory.glob("*.safetensors"), *directory.glob("*config.json")])
    for path in files:
        if path.name in ("tokenizer_config.json", "generation_config.json"):
            continue
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
