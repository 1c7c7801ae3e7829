"""Models against a base whose log-probabilities are in a file of llama.cpp, on the tokens of the file."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kullback.compare.arguments import checked_arguments
from kullback.compare.bounds import (
    BoundComparison,
    BoundModel,
    Progress,
    compute_parts,
    earlier_sums,
    require_single_process,
)
from kullback.compare.comparison import read_result
from kullback.compare.corpus import encode, read_documents, token_prefix
from kullback.compare.llama_cpp import kl_bounds, open_log_probs, write_log_probs
from kullback.compare.llama_cpp_statistics import LlamaCppTokens, llama_cpp_statistics, llama_cpp_tokens
from kullback.compare.models import LoadedModel, load
from kullback.compare.preflight import require_positions, require_same_vocabulary, tokenizer_hash
from kullback.compare.quantile_sketch import numbers_to_json
from kullback.compare.runner import choose_device
from kullback.compare.sources import find_source, gguf_warning, weights_hash
from kullback.compare.statistics import ModelStatistics
from kullback.errors import InputError, NotNormalizedError
from kullback.integrations.transformers import Head, last_hidden, load_tokenizer
from kullback.runs.run_directory import versions

__all__ = ["compare_with_file", "write_base_file"]

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


_SAME = {
    "the file of the base": lambda config: config["base_sha256"],
    "the BOS token": lambda config: config["bos_token"],
}


@checked_arguments
def compare_with_file(
    path: str | Path,
    models: Sequence[str],
    *,
    bos: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    against: str | Path | None = None,
    progress: Progress | None = None,
) -> BoundComparison:
    """Compare models with a file of llama.cpp's `--kl-divergence-base`, on the tokens of the file.

    Args:
        path: The file.
        models: Directories or names of models, or GGUF files.
        bos: Whether the first token of each chunk is replaced by the BOS token: "always", "never", or "auto" for as
            the tokenizer of the first model does. The file does not state what its writer did.
        dtype: The dtype of the models.
        device: The device; "auto": a GPU if there is one.
        output: The run directory for `resume` and result.json; None: nothing is stored.
        resume: Whether the interrupted comparison in `output` is continued.
        overwrite: Whether a comparison in `output` may be replaced.
        against: The result.json of an earlier comparison with the same file, or None.
        progress: A function that is called with finished tokens, all tokens and the name of the model.

    Returns:
        The results. The divergences are lower bounds, and the intervals are clustered by chunk.

    Raises:
        InputError: The file or a model is not valid, the vocabularies have different sizes, the vocabularies of two
            models differ, the model has fewer positions than a chunk has tokens, the run directory cannot be used, or
            the earlier result is of another file.

    Example:
        >>> comparison = compare_with_file("base.kld", ["quantised"], bos="always")  # doctest: +SKIP
        >>> comparison["quantised"].metrics["kl"].value  # doctest: +SKIP
        0.0023
    """
    file = open_log_probs(path)
    if not models:
        raise InputError("expected a model to compare with the base: MODEL")
    require_single_process()
    sources = [find_source(name, "MODEL", dtype=dtype) for name in models]
    tokenizers = [load_tokenizer(source.directory) for source in sources]
    for source, tokenizer in zip(sources[1:], tokenizers[1:], strict=True):
        require_same_vocabulary(tokenizers[0], tokenizer, sources[0].name, source.name)
    prefix = token_prefix(tokenizers[0], bos)
    bos_token = prefix[0] if prefix else None
    place = choose_device(device)
    with Path(path).open("rb") as stored:
        base_hash = hashlib.file_digest(stored, "sha256").hexdigest()
    config = {
        "kind": "compare-file",
        "versions": versions("torch", "transformers"),
        "base": str(path),
        "base_sha256": base_hash,
        "bos_token": bos_token,
        "models": {source.name: {"dtype": source.dtype, **weights_hash(source)} for source in sources},
        "tokenizer_sha256": tokenizer_hash(tokenizers[0]),
        "device": place.type,
    }
    earlier = earlier_sums(None if against is None else read_result(Path(against), kind="compare-file"), config, _SAME)

    def start(index: int) -> Callable[[int], tuple[ModelStatistics, Any]]:
        source = sources[index]
        # llama.cpp takes the softmax over all rows of the head, so that its padding is part of the vocabulary.
        model = load(source, file.n_vocab, place)
        rows = model.settings["head_rows"]
        if rows != file.n_vocab:
            raise InputError(
                f"{source.name}: expected an output head of {file.n_vocab} tokens, as {path} has, got {rows}; the KL "
                "divergence of tokens requires one vocabulary"
            )
        require_positions(model.settings["positions"], file.n_ctx, source.name)

        def compute(chunk: int) -> tuple[ModelStatistics, Any]:
            statistics, parts = ModelStatistics(_COLUMNS), []
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
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
            return statistics, [numbers_to_json(column.astype(np.float64).tolist()) for column in columns]

        return compute

    found = compute_parts(
        [source.name for source in sources],
        [file.rows_per_chunk] * file.n_chunk,
        start,
        config=config,
        output=None if output is None else Path(output),
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )
    results = []
    for source, parts in zip(sources, found, strict=True):
        statistics = ModelStatistics(_COLUMNS)
        for _, part, _ in parts:
            statistics.merge(part)
        columns = zip(*(tokens for _, _, tokens in parts), strict=True)
        arrays = [np.concatenate([np.asarray(part, np.float64) for part in column]) for column in columns]
        nll, nll_base, kld, delta_p = (array.astype(np.float32) for array in arrays[:4])
        tokens = LlamaCppTokens(nll, nll_base, kld, delta_p, arrays[4] > 0)
        results.append(BoundModel(source.name, statistics, llama_cpp_statistics(tokens)))
    cut = file.find_cut()
    tokens, chunks = file.n_chunk * file.rows_per_chunk, file.n_chunk
    shown_cut = "no row was cut" if cut is None else f"cut {cut:g} nats below the largest log-probability"
    shown_bos = "kept" if bos_token is None else f"replaced by the BOS token {bos_token}"
    comparison = BoundComparison(
        str(path),
        tuple(results),
        _LABELS,
        config,
        (
            f"base  {path}: {tokens} tokens in {chunks} chunks, {shown_cut}",
            f"      the first token of each chunk was {shown_bos} (--bos)",
        ),
        tuple(warning for source in sources for warning in gguf_warning(source)),
        earlier,
        {"tokens": tokens, "chunks": chunks, "cut": cut, "bos_token": bos_token},
    )
    if output is not None:
        comparison.save(Path(output) / "result.json")
    return comparison


@checked_arguments
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

    Example:
        >>> write_base_file("base.kld", "base", "corpus", context=512)  # doctest: +SKIP
        37
    """
    if not isinstance(text, str | Path):
        raise InputError("text: expected the path of a corpus, got a list of texts; write them to a file")
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
