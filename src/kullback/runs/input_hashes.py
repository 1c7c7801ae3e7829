"""Hashes of the inputs of a run, by which a resumed run recognises that they have changed."""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["hash_of_arrays", "hash_of_function", "hash_of_model", "hash_of_rows"]

_DIGITS = 16  # of a SHA-256 in hexadecimal, which are 64 bits
_PARTS, _PART = 64, 1 << 16  # the number and the size in bytes of the parts of a file of weights that are read
_WEIGHTS = (".safetensors", ".bin", ".gguf")


def hash_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """The hash of rows of a data set, in their order.

    Args:
        rows: The rows. Values that JSON does not have are converted to text.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> hash_of_rows([{"prompt": "1+2="}]) == hash_of_rows([{"prompt": "1-2="}])
        False
    """
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(dict(row), sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()[:_DIGITS]


def hash_of_model(directory: Path) -> str | None:
    """The hash of the configuration and of samples of the weights of a model.

    Of each file of weights, its size and 64 parts of 64 KiB at equal distances are read, because training changes all
    weights and a whole file may have many gigabytes.

    Args:
        directory: The directory of the model.

    Returns:
        16 hexadecimal digits; None for a directory without weights.
    """
    if not directory.is_dir():
        return None
    weights = sorted(path for path in directory.iterdir() if path.suffix in _WEIGHTS)
    total = hashlib.sha256()
    for path in weights:
        size = path.stat().st_size
        total.update(f"{path.name}\0{size}\n".encode())
        with path.open("rb") as file:
            for start in sorted({size * part // _PARTS for part in range(_PARTS)}):
                file.seek(start)
                total.update(file.read(_PART))
    for path in (directory / "config.json", directory / "adapter_config.json"):
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()[:_DIGITS] if weights else None


def hash_of_function(function: Callable[..., Any]) -> str | None:
    """The hash of the source of a function, or of the class of an instance.

    Args:
        function: A function, a `functools.partial` with its arguments, or an instance with the method `__call__`.

    Returns:
        16 hexadecimal digits; None where Python cannot read the source, as in an interactive session.
    """
    text = ""
    while isinstance(function, functools.partial):
        text += f"{function.args!r}{function.keywords!r}"
        function = function.func
    try:
        text += inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def hash_of_arrays(arrays: Iterable[Any]) -> str:
    """The hash of NumPy arrays with their shapes; None in place of an array is counted too.

    Returns:
        16 hexadecimal digits.
    """
    total = hashlib.sha256()
    for array in arrays:
        total.update(b"none\n" if array is None else f"{array.shape}{array.dtype}\n".encode() + array.tobytes())
    return total.hexdigest()[:_DIGITS]
