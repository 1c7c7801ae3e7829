"""Language models in GGUF, the format of llama.cpp, with their weights dequantised by transformers."""

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kullback.errors import InputError, MissingDependencyError
from kullback.runs.library_errors import library_errors

__all__ = ["is_gguf", "load_gguf_config", "load_gguf_model", "load_gguf_tokenizer", "require_gguf", "weight_types"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that begins as GGUF does, or a file or missing file with the suffix .gguf.

    Args:
        path: The path.

    Example:
        >>> is_gguf(Path("model.gguf")), is_gguf(Path("model"))
        (True, False)
    """
    if path.is_dir():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC
    except OSError:
        return False


def require_gguf(path: Path, option: str) -> None:
    """Check that a file is GGUF and that the package gguf is installed, without reading the weights.

    Args:
        path: The file.
        option: The argument that the path came from, for error messages.

    Raises:
        InputError: The file does not exist, is not GGUF, has a version that is not supported, or is one of several
            parts of a model.
        MissingDependencyError: The package gguf is not installed.
    """
    place = f"{option} {path}"
    try:
        with path.open("rb") as file:
            header = file.read(8)
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror or error}") from error
    if header[:4] != _MAGIC or len(header) < 8:
        raise InputError(f"{place}: expected a GGUF file, which begins with the bytes 'GGUF', got {header[:4]!r}")
    (version,) = struct.unpack("<I", header[4:])
    if version not in _VERSIONS:
        raise InputError(f"{place}: expected GGUF of version 2 or 3 in little-endian order, got version {version}")
    if not _is_installed():
        raise MissingDependencyError(f"{place}: gguf is missing: pip install gguf")
    with library_errors(f"{place}: it does not load"):
        parts = _field(path, "split.count")
    if parts is not None and int(parts) > 1:
        raise InputError(
            f"{place}: expected a model in one file, got one of {int(parts)} parts; merge them by "
            "llama-gguf-split --merge"
        )


def _is_installed() -> bool:
    try:
        return find_spec("gguf") is not None
    except ValueError:  # its import is blocked
        return False


def _field(path: Path, name: str) -> Any:
    """The value of a field of the header, or None."""
    from gguf import GGUFReader

    field = GGUFReader(path).get_field(name)
    return None if field is None else field.contents()


def weight_types(path: Path) -> dict[str, int]:
    """The formats of the tensors in a GGUF file.

    Args:
        path: The file.

    Returns:
        The number of tensors of each format, such as {"Q4_1": 210, "F32": 61}, in decreasing order of their number.

    Raises:
        InputError: The file is damaged.
    """
    from gguf import GGUFReader

    with library_errors(f"{path}: it does not load"):
        found: dict[str, int] = {}
        for tensor in GGUFReader(path).tensors:
            found[tensor.tensor_type.name] = found.get(tensor.tensor_type.name, 0) + 1
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def load_gguf_config(path: Path) -> Any:
    """Load the configuration of the model in a GGUF file.

    Args:
        path: The file.

    Returns:
        A configuration of transformers.

    Raises:
        InputError: The file is damaged, or transformers does not support the architecture of the model.
    """
    from transformers import AutoConfig

    with library_errors(f"{path}: it does not load"):
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)


def load_gguf_tokenizer(path: Path) -> Any:
    """Load the tokenizer in a GGUF file.

    Args:
        path: The file.

    Returns:
        A tokenizer of transformers.

    Raises:
        InputError: The file has no tokenizer, or transformers cannot convert it or adds tokens to it.
    """
    from transformers import AutoTokenizer

    with library_errors(f"{path}: its tokenizer does not load"):
        tokenizer = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, padding_side="left", local_files_only=True
        )
        tokens = _field(path, "tokenizer.ggml.tokens")
    added = {number: token for token, number in tokenizer.get_vocab().items() if number >= len(tokens)}
    if added:
        raise InputError(
            f"{path}: expected a tokenizer of {len(tokens)} tokens, as the file has, but transformers adds "
            f"{added[min(added)]!r}; convert the model to a transformers directory with its original tokenizer"
        )
    return tokenizer


def load_gguf_model(path: Path, dtype: Any = "auto") -> Any:
    """Load the model in a GGUF file with its weights dequantised.

    Args:
        path: The file.
        dtype: The dtype of the dequantised weights; "auto": float32, which contains the values of every format.

    Returns:
        A causal language model of transformers. Its logits differ from the logits of llama.cpp by rounding, because
        llama.cpp multiplies packed weights by activations that it rounds too.

    Raises:
        InputError: The file is damaged, a weight is missing, or transformers does not support the architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with library_errors(f"{path}: it does not load"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32 if dtype == "auto" else dtype,
            quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
            local_files_only=True,
            output_loading_info=True,
        )
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):  # transformers would draw them at random
        raise InputError(
            f"{path}: expected all weights of {type(model).__name__}, but {missing[0]} is missing ({len(missing)} in "
            "total)"
        )
    return model
