"""The models of a comparison on disk: where they are, and what identifies their weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kullback.errors import InputError
from kullback.integrations.hub import find_model, hub_source

__all__ = ["DTYPES", "ModelSource", "find_source", "weights_hash"]

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class ModelSource:
    """A model that is to be compared.

    Args:
        name: The name in the results, which is unique in a comparison.
        directory: The directory of the whole model.
        adapter: The directory of a PEFT adapter of it, or None.
        dtype: The dtype in which it is computed, a name of `DTYPES`; "auto": the dtype of the saved weights.
    """

    name: str
    directory: Path
    adapter: Path | None = None
    dtype: str = "auto"


def find_source(name: str, option: str, *, dtype: str, base: ModelSource | None = None) -> ModelSource:
    """Find a model: a transformers directory, a model of the hub, or the directory of a PEFT adapter of the base.

    Args:
        name: The directory or the name.
        option: The argument that the name came from, for error messages.
        dtype: The dtype in which it is computed.
        base: The base, whose adapters are accepted; None: adapters are refused.

    Returns:
        The source.

    Raises:
        InputError: The model does not exist, or it is not a causal language model in safetensors.
    """
    path = Path(name)
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
        The SHA-256 of the safetensors and of the configuration; for a model of the hub's cache its name and commit too.
    """
    found: dict[str, Any] = {"sha256": _hash_of_files(source.directory)}
    if source.adapter is not None:
        found["adapter_sha256"] = _hash_of_files(source.adapter)
    if (hub := hub_source(source.directory)) is not None:
        found["hub"], found["commit"] = hub
    return found


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
