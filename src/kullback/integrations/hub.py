"""Models and data sets of the Hugging Face hub, from the hub's own cache on this machine, or downloaded into it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from kullback.errors import InputError, MissingDependencyError
from kullback.integrations.model_directory import require_model_directory
from kullback.integrations.openai_server import is_endpoint
from kullback.runs.library_errors import library_errors

__all__ = ["dataset_rows", "find_model", "hub_source", "is_hub_dataset"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OLD_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # such as gpt2, from the time before organisations
_FILE_SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".safetensors", ".tsv", ".txt")
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_CARD = "README.md"  # the file of a data set that lists its configurations


def _is_hub_name(name: str, kind: str) -> bool:
    """Whether a text has the form ORGANISATION/NAME without the suffix of a file, or is a NAME alone that is cached."""
    if name.lower().endswith(_FILE_SUFFIXES):
        return False
    return _NAME.fullmatch(name) is not None or (_OLD_NAME.fullmatch(name) is not None and _is_cached(name, kind))


def is_hub_dataset(name: str) -> bool:
    """Whether a name is a data set of the hub: ORGANISATION/NAME[:CONFIGURATION[:SPLIT]], and no local path.

    Args:
        name: The name.

    Example:
        >>> is_hub_dataset("openai/gsm8k:main"), is_hub_dataset("data/prompts.jsonl"), is_hub_dataset("prompts")
        (True, False, False)
    """
    return not Path(name).exists() and _is_hub_name(name.split(":", 1)[0], "dataset")


def find_model(name: str, option: str = "--model") -> Path:
    """Return the directory of a model: a local directory, or the snapshot of a model of the Hugging Face hub.

    A local path takes precedence. The snapshot in the hub's cache is used as it is, without a network; a model that is
    not in the cache is downloaded into it.

    Args:
        name: A directory, or a name such as "Qwen/Qwen3-0.6B".
        option: The command-line option that the name came from, for error messages.

    Returns:
        The directory, which contains a causal language model in safetensors and a tokenizer.

    Raises:
        InputError: The directory does not exist, the model is not in the cache and cannot be downloaded, or
            `require_model_directory` refuses it.
    """
    if not name:
        raise InputError(f"{option}: expected a directory or the name of a model, got an empty argument")
    if is_endpoint(name):
        raise InputError(
            f"{option}: expected a model on this machine or of the hub, whose weights are read, got the model of a "
            "server, openai:URL#NAME; only `kullback compare` accepts it"
        )
    if Path(name).exists() or not _is_hub_name(name, "model"):
        require_model_directory(Path(name))
        return Path(name)
    cached = _cached_snapshot(name, "model", _MODEL_FILES)
    if cached is not None:
        try:
            require_model_directory(cached)
            return cached
        except InputError:
            pass  # an interrupted download, which is continued
    snapshot = _download_snapshot(name, "model", _MODEL_FILES, f"{option} {name}")
    try:
        require_model_directory(snapshot, name)
    except InputError as error:
        raise InputError(f"{error}; if the snapshot {snapshot} is incomplete, run `hf download {name}`") from error
    return snapshot


def hub_source(directory: Path) -> tuple[str, str] | None:
    """Return the name and the commit of the hub's model in a directory of the hub's cache.

    Args:
        directory: A directory.

    Returns:
        The name and the commit, or None if the directory is not a snapshot in the cache.

    Example:
        >>> hub_source(Path("cache/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a0"))
        ('Qwen/Qwen3-0.6B', 'c1899de289a0')
        >>> hub_source(Path("my-model")) is None
        True
    """
    parts = directory.parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots" or not parts[0].startswith("models--"):
        return None
    return parts[0].removeprefix("models--").replace("--", "/"), parts[2]


def dataset_rows(name: str, option: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the rows of a data set of the Hugging Face hub, from the hub's cache if it is there.

    Args:
        name: ORGANISATION/NAME[:CONFIGURATION[:SPLIT]], such as "openai/gsm8k:main" or "openai/gsm8k:main:test[:100]".
            The configuration may be left out if there is one only. The split is "train" if it is left out.
        option: The command-line option that the name came from, for error messages.

    Returns:
        The place of each row, for error messages, and the row.

    Raises:
        InputError: The data set is not in the cache and cannot be downloaded, it has no such configuration or split,
            or it does not load.
    """
    location = f"{option} {name}"
    repository, configuration, split = (*name.split(":", 2), "", "")[:3]
    try:
        import datasets
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[train]'") from error
    datasets.disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()  # data sets without metadata cause warnings
    listed = _configurations(repository, location)
    expected = f"{location}: expected a configuration"
    if listed:
        default = next((name for name, entry in listed.items() if entry.get("default")), "default")
        configuration = _choose(configuration, list(listed), default, expected, repository)
    snapshot = str(_dataset_snapshot(repository, listed.get(configuration, {}), location))
    with library_errors(location):
        if not listed:
            names = datasets.get_dataset_config_names(snapshot)
            configuration = _choose(configuration, names, "default", expected, repository)
        splits = datasets.get_dataset_split_names(snapshot, configuration)
        place = f"{repository}:{configuration}"
        base = re.split(r"[\[+]", split, maxsplit=1)[0]  # `datasets` takes slices and sums of splits
        chosen = _choose(base, splits, "train", f"{location}: expected a split", place)
        rows = datasets.load_dataset(snapshot, configuration, split=split or chosen)
        for number, row in enumerate(rows, start=1):
            yield f"{location}, row {number}", dict(row)


def _choose(given: str, known: Sequence[str], default: str, expected: str, owner: str) -> str:
    """The given name, the default or the only name; InputError if the name does not exist."""
    if given in known:
        return given
    if not given and (default in known or len(known) == 1):
        return default if default in known else known[0]
    example = get_close_matches(given, known, n=1, cutoff=0.0)[0] if given else known[0]
    got = f"got {given}" if given else "got none"
    raise InputError(f"{expected} of {owner}, {got}; it has {', '.join(known)}, as in {owner}:{example}")


def _configurations(repository: str, location: str) -> dict[str, dict[str, Any]]:
    """The configurations of a data set by name, from the metadata of its card; empty if it lists none."""
    card = _cached_snapshot(repository, "dataset", [_CARD]) or _download_snapshot(
        repository, "dataset", [_CARD], location
    )
    if not (card / _CARD).is_file():
        return {}
    from huggingface_hub import metadata_load

    with library_errors(location):
        entries = (metadata_load(card / _CARD) or {}).get("configs") or []
        return {str(entry.get("config_name", "default")): entry for entry in entries}


def _dataset_snapshot(repository: str, configuration: Mapping[str, Any], location: str) -> Path:
    """The directory of a data set, with the files of a configuration; all files if its metadata does not list them."""
    patterns = _data_files(configuration)
    wanted = None if patterns is None else [_CARD, *patterns]
    snapshot = _cached_snapshot(repository, "dataset", wanted)
    if snapshot is None or not _has_files(snapshot, patterns):
        snapshot = _download_snapshot(repository, "dataset", wanted, location)
    if not _has_files(snapshot, patterns):
        files = " ".join(patterns or ["data files"])
        raise InputError(
            f"{location}: expected {files} in the snapshot {snapshot}, which lacks some; if it is incomplete, run "
            f"`hf download {repository} --repo-type dataset`"
        )
    return snapshot


def _data_files(configuration: Mapping[str, Any]) -> list[str] | None:
    """The patterns of the files of a configuration, from its metadata; None for all files."""
    directory = str(configuration.get("data_dir") or "")
    patterns = list(_patterns(configuration.get("data_files"))) or (["**"] if directory else [])
    # In the patterns of the hub's client, * matches / too. Files on other hosts are not in the snapshot.
    local = [pattern.removeprefix("./").replace("**/", "*") for pattern in patterns if "://" not in pattern]
    return [f"{directory}/{pattern}" if directory else pattern for pattern in local] or None


def _patterns(data_files: Any) -> Iterator[str]:
    """The patterns in a value of `data_files`: a pattern, a list, or an object of patterns by split."""
    if isinstance(data_files, str):
        yield data_files
    elif isinstance(data_files, list):
        for entry in data_files:
            yield from _patterns(entry.get("path") if isinstance(entry, dict) else entry)
    elif isinstance(data_files, dict):
        for entry in data_files.values():
            yield from _patterns(entry)


def _has_files(snapshot: Path, patterns: Iterable[str] | None) -> bool:
    """Whether each pattern matches a file of a snapshot; without patterns, whether it has a file besides its card."""
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    if patterns is None:
        return any(name != _CARD and not name.startswith(".") for name in names)
    return all(any(fnmatch(name, pattern) for name in names) for pattern in patterns)


def _is_cached(name: str, kind: str) -> bool:
    """Whether the cache has a directory for a repository, which may be incomplete."""
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        return False
    return (Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}").is_dir()


def _is_offline() -> bool:
    """Whether the user has switched off all access of the hub's client to the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _cached_snapshot(name: str, kind: str, patterns: Sequence[str] | None) -> Path | None:
    """The newest snapshot of a repository in the cache, or None; no network is used."""
    try:
        return _snapshot(name, kind, patterns, local_files_only=True)
    except OSError:  # the errors of the hub's client for absent and for incomplete snapshots
        return None


def _download_snapshot(name: str, kind: str, patterns: Sequence[str] | None, location: str) -> Path:
    """Download the files of a repository that match the patterns into the cache; InputError if it is not possible."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    absent = f"{location}: expected a local path or a {kind} of the Hugging Face hub; the path does not exist, and"
    try:
        return _snapshot(name, kind, patterns)
    except GatedRepoError as error:
        raise InputError(
            f"{absent} access to the {kind} is restricted: request it on the page of the {kind}, and log in by "
            "`hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"{absent} the hub has no {kind} {name} that you may read") from error
    except Exception as error:  # every failure of the network, of several libraries
        if isinstance(error, OSError) and error.errno is not None:  # such as a full disk
            raise
        reason = "HF_HUB_OFFLINE is set" if _is_offline() else " ".join(str(error.__cause__ or error).split())[:200]
        flag = "" if kind == "model" else " --repo-type dataset"
        raise InputError(
            f"{absent} {name} is neither in the cache {constants.HF_HUB_CACHE}, or not in full, nor can it be "
            f"downloaded: {reason}; run `hf download {name}{flag}` with access to the network"
        ) from error


def _snapshot(name: str, kind: str, patterns: Sequence[str] | None, **options: Any) -> Path:
    """The directory of the files of a repository that match the patterns, by the hub's client."""
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.utils import disable_progress_bars
    except ModuleNotFoundError as error:
        raise MissingDependencyError("huggingface_hub is missing: pip install 'kullback[train]'") from error
    disable_progress_bars()
    # Subdirectories of models have copies of the weights in other formats.
    ignored = ["*/*"] if kind == "model" else None
    files = {"allow_patterns": patterns and list(patterns), "ignore_patterns": ignored}
    return Path(snapshot_download(name, repo_type=kind, cache_dir=constants.HF_HUB_CACHE, **files, **options))
