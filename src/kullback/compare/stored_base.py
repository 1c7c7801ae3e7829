"""Models against a base whose log-probabilities are in a file of llama.cpp, on the tokens of the file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kullback.compare.corpus import encode, read_documents, token_prefix
from kullback.compare.llama_cpp import kl_bounds, open_log_probs, write_log_probs
from kullback.compare.llama_cpp_statistics import (
    LlamaCppStatistic,
    LlamaCppTokens,
    llama_cpp_statistics,
    llama_cpp_tokens,
)
from kullback.compare.models import LoadedModel, load
from kullback.compare.preflight import require_positions, require_same_vocabulary
from kullback.compare.runner import choose_device
from kullback.compare.sources import find_source
from kullback.compare.statistics import ModelStatistics
from kullback.errors import InputError, NotNormalizedError
from kullback.integrations.transformers import Head, last_hidden, load_tokenizer
from kullback.result import Estimate

__all__ = ["FileComparison", "FileModel", "compare_with_file", "write_base_file"]

_ROWS = 64  # positions whose logits are in memory at a time
_COLUMNS = {
    "kl": "nats per token",
    "certain_kl": "nats per token",
    "reverse_kl": "nats per token",
    "certain_reverse_kl": "nats per token",
    "tail_mass": "",
    "model_tail_mass": "",
}
_LABELS = {
    "kl": "KL(base || model), lower bound",
    "certain_kl": "  for all roundings of the codes",
    "reverse_kl": "KL(model || base), lower bound",
    "certain_reverse_kl": "  for all roundings of the codes",
    "tail_mass": "missing mass of the base, at most",
    "model_tail_mass": "mass of these tokens in the model",
}


@dataclass(frozen=True)
class FileModel:
    """The results of one model.

    Args:
        name: The name of the model.
        bounds: The means of the columns of `TokenBounds` over the tokens, with intervals clustered by chunk. The
            divergences are lower bounds.
        llama_cpp: The statistics of llama.cpp under its names.
    """

    name: str
    bounds: dict[str, Estimate]
    llama_cpp: tuple[LlamaCppStatistic, ...]


@dataclass(frozen=True)
class FileComparison:
    """The results of models against a file of base log-probabilities.

    Args:
        file: The file.
        tokens: The number of tokens that are predicted.
        chunks: The number of chunks.
        cut: The nats below the largest log-probability at which the file was cut, or None.
        bos_token: The id that replaced the first token of each chunk, or None.
        models: The results of the models.
    """

    file: str
    tokens: int
    chunks: int
    cut: float | None
    bos_token: int | None
    models: tuple[FileModel, ...]

    def __str__(self) -> str:
        cut = "no row was cut" if self.cut is None else f"cut {self.cut:g} nats below the largest log-probability"
        bos = "kept" if self.bos_token is None else f"replaced by the BOS token {self.bos_token}"
        lines = [
            f"base  {self.file}: {self.tokens} tokens in {self.chunks} chunks, {cut}",
            f"      the first token of each chunk was {bos} (--bos)",
        ]
        for model in self.models:
            lines += ["", f"model {model.name}"]
            for name, label in _LABELS.items():
                value = model.bounds[name]
                limits = "" if value.interval is None else " [{:.4g}, {:.4g}]".format(*value.interval)
                lines.append(f"  {label:<36}{value.value:.4g}{limits} {value.unit}".rstrip())
            lines += ["", "  statistics of llama.cpp (uncertainties as if tokens were independent)"]
            for line in model.llama_cpp:
                error = "" if line.uncertainty is None else f" ± {line.uncertainty:.6f}"
                lines.append(f"  {line.name:<36}{line.value:.6f}{error} {line.unit}".rstrip())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The results as numbers and strings, for JSON."""
        return {
            "base": self.file,
            "is_lower_bound": True,
            "tokens": self.tokens,
            "chunks": self.chunks,
            "cut": self.cut,
            "bos_token": self.bos_token,
            "models": [
                {
                    "name": model.name,
                    "bounds": {
                        name: {"value": value.value, "interval": value.interval, "unit": value.unit}
                        for name, value in model.bounds.items()
                    },
                    "llama_cpp": [line._asdict() for line in model.llama_cpp],
                }
                for model in self.models
            ],
        }


def compare_with_file(
    path: str | Path, models: Sequence[str], *, bos: str = "auto", dtype: str = "auto", device: str = "auto"
) -> FileComparison:
    """Compare models with a file of llama.cpp's `--kl-divergence-base`, on the tokens of the file.

    Args:
        path: The file.
        models: Directories or names of models.
        bos: Whether the first token of each chunk is replaced by the BOS token: "always", "never", or "auto" for as
            the tokenizer of the first model does. The file does not state what its writer did.
        dtype: The dtype of the models.
        device: The device; "auto": a GPU if there is one.

    Returns:
        The results.

    Raises:
        InputError: The file or a model is not valid, the vocabularies have different sizes, the vocabularies of two
            models differ, or the model has fewer positions than a chunk has tokens.
    """
    file = open_log_probs(path)
    if not models:
        raise InputError("expected a model to compare with the base: MODEL")
    sources = [find_source(name, "MODEL", dtype=dtype) for name in models]
    tokenizers = [load_tokenizer(source.directory) for source in sources]
    for source, tokenizer in zip(sources[1:], tokenizers[1:], strict=True):
        require_same_vocabulary(tokenizers[0], tokenizer, sources[0].name, source.name)
    prefix = token_prefix(tokenizers[0], bos)
    bos_token = prefix[0] if prefix else None
    place = choose_device(device)
    results = []
    for source in sources:
        # llama.cpp takes the softmax over all rows of the head, so that its padding is part of the vocabulary.
        model = load(source, file.n_vocab, place)
        rows = model.settings["head_rows"]
        if rows != file.n_vocab:
            raise InputError(
                f"{source.name}: expected an output head of {file.n_vocab} tokens, as {path} has, got {rows}; the KL "
                "divergence of tokens requires one vocabulary"
            )
        require_positions(model.settings["positions"], file.n_ctx, source.name)
        statistics, parts = ModelStatistics(_COLUMNS), []
        for chunk in range(file.n_chunk):
            hidden = _chunk_hidden(model, file.inputs(chunk, bos_token=bos_token), file.first_row)
            for block in file.blocks([chunk]):
                states = hidden[block.start : block.start + len(block.targets)]
                logits = _finite_logits(model, states, f"chunk {chunk} of {path}")
                log_probs = logits.double().log_softmax(-1).cpu().numpy()
                try:
                    bounds = kl_bounds(block.rows, log_probs)
                except NotNormalizedError as error:
                    raise InputError(f"{path}, chunk {chunk}: {error}") from error
                statistics.add(chunk, {name: getattr(bounds, name) for name in _COLUMNS}, window=block.start)
                parts.append(llama_cpp_tokens(block.rows, block.targets, log_probs))
        tokens = LlamaCppTokens(*map(np.concatenate, zip(*parts, strict=True)))
        means = statistics.summary().means
        results.append(FileModel(source.name, {name: means[name] for name in _COLUMNS}, llama_cpp_statistics(tokens)))
    return FileComparison(
        str(path), file.n_chunk * file.rows_per_chunk, file.n_chunk, file.find_cut(), bos_token, tuple(results)
    )


def write_base_file(
    path: str | Path,
    base: str,
    text: str | Path,
    *,
    context: int | None = None,
    form: str | None = None,
    bos: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
) -> int:
    """Write the log-probabilities of a base over a corpus as llama.cpp does with `--kl-divergence-base`.

    The documents are joined without separators and cut into chunks; tokens after the last whole chunk are left out.

    Args:
        path: The file to write.
        base: The directory or name of the model.
        text: The corpus.
        context: The number of tokens of a chunk; None: 512, as in llama.cpp.
        form: The format of the corpus.
        bos: Whether the first token of each chunk is replaced by the BOS token when the model is evaluated.
        dtype: The dtype of the model.
        device: The device; "auto": a GPU if there is one.
        overwrite: Whether an earlier file of llama.cpp may be replaced.

    Returns:
        The number of chunks.

    Raises:
        InputError: The model or the text is not valid, the text has fewer tokens than a chunk, the file exists and is
            not to be replaced, or it cannot be written.
    """
    n_ctx = 512 if context is None else context
    _require_new_file(Path(path), overwrite=overwrite)
    source = find_source(base, "BASE", dtype=dtype)
    corpus = encode(read_documents(text, form=form), load_tokenizer(source.directory), bos=bos)
    ids = np.concatenate([document.ids for document in corpus.documents])
    if not 3 <= n_ctx <= len(ids):
        raise InputError(f"--context: expected from 3 to {len(ids)} tokens, the tokens of the text, got {n_ctx}")
    count = len(ids) // n_ctx
    place = choose_device(device)
    model = load(source, 1, place)  # for the number of rows of the head
    model = load(source, model.settings["head_rows"], place)
    require_positions(model.settings["positions"], n_ctx, source.name)
    tokens = ids[: count * n_ctx].reshape(count, n_ctx)

    def logits() -> Iterator[Any]:
        for chunk in tokens:
            inputs = chunk.astype(np.int64)
            inputs[: len(corpus.prefix)] = corpus.prefix
            hidden = _chunk_hidden(model, inputs, n_ctx // 2)[:-1]
            for states in hidden.split(_ROWS):
                yield _finite_logits(model, states, str(text)).float().cpu().numpy()

    write_log_probs(path, tokens, logits(), n_vocab=model.vocabulary)
    return count


def _chunk_hidden(model: LoadedModel, tokens: Any, first: int) -> torch.Tensor:
    """The last hidden states of a chunk from a position on."""
    place = next(model.model.parameters()).device
    ids = torch.from_numpy(tokens.astype(np.int64))[None].to(place)
    return last_hidden(model.model, ids, torch.ones_like(ids))[0, first:]


def _finite_logits(model: LoadedModel, states: torch.Tensor, place: str) -> torch.Tensor:
    """The logits of hidden states; raises InputError, with the place in the text, if one is nan or infinite."""
    logits = model.head(states.to(model.head.weight.dtype) if isinstance(model.head, Head) else states)
    if not bool(torch.isfinite(logits).all()):
        raise InputError(
            f"{model.source.name}: expected finite logits, got nan or infinity for {place}; check the weights of the "
            "model, or compute it in another dtype by --dtype"
        )
    return logits


def _require_new_file(path: Path, *, overwrite: bool) -> None:
    """Raise InputError if a file would be replaced that is not an earlier file of llama.cpp with `overwrite`."""
    option = f"--write-llama-cpp {path}"
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"{option}: expected the path of a file in a directory that exists")
    if not path.is_file():
        return
    if not overwrite:
        raise InputError(f"{option}: expected a new file, but it already exists; choose another path, or --overwrite")
    try:
        open_log_probs(path)
    except InputError as error:
        raise InputError(
            f"{option}: --overwrite replaces a file of llama.cpp only, and this is none: {error}"
        ) from error
