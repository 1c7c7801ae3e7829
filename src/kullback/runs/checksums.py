"""Checksums of checkpoints and of single files, by which incomplete and damaged ones are recognised."""

import hashlib
import json
import zipfile
from pathlib import Path

from kullback.runs.atomic_write import follow_umask, open_atomically, write_atomically

__all__ = [
    "CHECKSUMS",
    "find_damage",
    "find_model_damage",
    "has_safetensors_length",
    "read_checked",
    "weight_files",
    "write_checked",
    "write_checksums",
]

CHECKSUMS = "checksums.json"
_DIGEST_BYTES = hashlib.sha256().digest_size


def write_checksums(checkpoint: Path) -> None:
    """Write the SHA-256 of every file of a checkpoint to checksums.json, which must be its last file.

    All files receive the mode of new files.

    Args:
        checkpoint: The directory of the checkpoint, with all other files in it.

    Raises:
        OSError: A file cannot be read or written.
    """
    follow_umask(checkpoint)
    sums = {
        path.relative_to(checkpoint).as_posix(): _sha256(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS
    }
    write_atomically(checkpoint / CHECKSUMS, json.dumps(sums, indent=2) + "\n")


def find_damage(checkpoint: Path) -> str | None:
    """Return a description of the first damage of a checkpoint, or None if it is intact.

    A checkpoint without checksums.json was written by an earlier version, or its process ended before the last file.
    Its trainer_state.json, safetensors files and zip files are then checked for their structure.

    Args:
        checkpoint: The directory of the checkpoint.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     _ = (Path(directory) / "trainer_state.json").write_text("{}")
        ...     write_checksums(Path(directory))
        ...     _ = (Path(directory) / "trainer_state.json").write_text("{")
        ...     find_damage(Path(directory))
        'trainer_state.json differs from its checksum'
    """
    try:
        if not (checkpoint / "trainer_state.json").is_file():
            return "trainer_state.json is missing"
        if not (checkpoint / CHECKSUMS).is_file():
            return _find_structural_damage(checkpoint)
        sums = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if _sha256(path) != expected:
                return f"{name} differs from its checksum"
    except (ValueError, AttributeError):
        return f"{CHECKSUMS} is not a JSON object"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None


def weight_files(model: Path) -> list[str]:
    """Return the names of the safetensors files of a saved model.

    Args:
        model: The directory of the model.
    """
    return sorted(path.name for path in model.glob("*.safetensors"))


def find_model_damage(model: Path) -> str | None:
    """Return a description of the first damage of the weights of a trained model, or None if they are intact.

    Other files of the model may have been changed by a user, and are not examined.

    Args:
        model: The directory of the model. Its training.json has the names of the safetensors files under "weights"; a
            model of an earlier version does not have this entry.
    """
    names = {path.relative_to(model).as_posix() for path in model.rglob("*.safetensors")}
    try:
        if (model / "training.json").is_file():
            listed = json.loads((model / "training.json").read_text(encoding="utf-8")).get("weights")
            names.update(name for name in listed if isinstance(name, str)) if isinstance(listed, list) else None
        for name in sorted(names):
            if not (model / name).is_file():
                return f"{name} is missing"
            if not has_safetensors_length(model / name):
                return f"{name} is truncated"
    except (ValueError, AttributeError):
        return "training.json is not a JSON object"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None


def write_checked(path: Path, content: bytes) -> None:
    """Write a file that begins with the SHA-256 of its content, for `read_checked`. The file is whole or absent.

    Args:
        path: The file.
        content: The content.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_checked(Path(directory) / "a.bin", b"content")
        ...     read_checked(Path(directory) / "a.bin")
        b'content'
    """
    with open_atomically(path) as file:
        file.write(hashlib.sha256(content).digest())
        file.write(content)


def read_checked(path: Path) -> bytes | None:
    """Read a file of `write_checked`.

    Args:
        path: The file.

    Returns:
        The content; None if the file is absent, cannot be read, or differs from its checksum.
    """
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def _find_structural_damage(checkpoint: Path) -> str | None:
    """Return the first damage that the formats of the files of a checkpoint reveal, or None."""
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix == ".json" and not _is_json(path):
            return f"{path.name} is not JSON"
        if path.suffix == ".safetensors" and not has_safetensors_length(path):
            return f"{path.name} is truncated"
        if path.suffix in (".pt", ".pth") and not _is_intact_zip(path):
            return f"{path.name} is damaged"
    return None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def has_safetensors_length(path: Path) -> bool:
    """Return whether a safetensors file has a header in JSON, and the length that the header implies.

    Args:
        path: The file.

    Returns:
        Whether both hold. The values of the weights are not read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)


def _is_intact_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
