"""Language models with different tokenizers, compared by the log-likelihoods of whole texts.

The KL divergence of tokens is not defined for different vocabularies. The number of bits that a model needs for a text
is: its negative log-likelihood in base 2. Divided by the bytes of the text it does not depend on the tokenizer.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kullback.compare.arguments import checked_arguments
from kullback.compare.bounds import Progress, compute_parts, earlier_sums, require_single_process
from kullback.compare.comparison import read_result
from kullback.compare.corpus import Document, Window, read_documents, windows
from kullback.compare.models import LoadedModel, load
from kullback.compare.preflight import require_positions, tokenizer_hash, vocabulary_size
from kullback.compare.runner import choose_device
from kullback.compare.sources import find_source, gguf_warning, weights_hash
from kullback.compare.statistics import DocumentSums, ModelStatistics, PairedDifference, paired_difference
from kullback.errors import InputError
from kullback.integrations.transformers import Head, load_config, load_tokenizer
from kullback.result import Estimate
from kullback.runs.atomic_write import write_atomically
from kullback.runs.printable import one_line
from kullback.runs.run_directory import versions

__all__ = ["TextLevelComparison", "TextLevelModel", "compare_text_level"]

_FORMAT = 1
_DEFAULT_CONTEXT = 2048
_ROWS = 256  # positions whose logits are in memory at a time
_SHOWN = 5  # documents of the largest differences
_UNITS = {"bits": "bits per byte"}
_KEY = "bits_by_document"


@dataclass(frozen=True)
class TextLevelModel:
    """The log-likelihoods of one model.

    Args:
        name: The name of the model.
        sums: The bits of each document over its bytes.
        tokens: The number of tokens of the corpus in the model's tokenizer.
        start: The token that begins each window, which is not counted.
        context: The number of tokens of a window.
    """

    name: str
    sums: DocumentSums
    tokens: int
    start: str
    context: int

    @property
    def bits_per_byte(self) -> Estimate:
        """-log2 p(text) divided by the number of bytes, with a 95% interval that is clustered by document."""
        return self.sums.mean("bits")

    @property
    def log_likelihood(self) -> float:
        """The log-likelihood of all documents in nats."""
        return -self.bits_per_byte.value * self.sums.tokens * log(2)


@dataclass(frozen=True)
class TextLevelComparison:
    """A comparison of models by the log-likelihoods of whole texts. It is not a KL divergence of tokens.

    Args:
        base: The results of the base.
        models: The results of the models.
        documents: The names of the documents.
        config: What the comparison was computed from: hashes and settings.
        warnings: Sentences that describe limitations.
        earlier: The bits of the models of an earlier result for the same texts, by name.

    Example:
        >>> comparison = compare_text_level("llama", ["qwen"], text="corpus")  # doctest: +SKIP
        >>> comparison.base.bits_per_byte.value, comparison.models[0].bits_per_byte.value  # doctest: +SKIP
        (0.83, 0.81)
    """

    base: TextLevelModel
    models: tuple[TextLevelModel, ...]
    documents: tuple[str, ...]
    config: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    earlier: Mapping[str, DocumentSums] | None = None

    def differences(self) -> dict[str, PairedDifference]:
        """The bits per byte of each model minus the bits per byte of the base, paired by document.

        Returns:
            The differences by the name of the model, and of "NAME (earlier)" for the models of an earlier result.
        """
        found = {model.name: paired_difference(model.sums, self.base.sums, "bits") for model in self.models}
        for name, sums in (self.earlier or {}).items():
            if name != self.base.name:
                found[f"{name} (earlier)"] = paired_difference(sums, self.base.sums, "bits")
        return found

    def by_document(self) -> list[dict[str, Any]]:
        """The bits per byte of each document.

        Returns:
            For each document, its name, its bytes and the bits per byte of the base and of each model by name.
        """
        states = {model.name: model.sums.state()["documents"] for model in (self.base, *self.models)}
        rows = []
        for number, name in enumerate(self.documents):
            size = states[self.base.name][str(number)][0]
            bits = {model: sum(map(float, documents[str(number)][1])) / size for model, documents in states.items()}
            rows.append({"document": name, "bytes": size, "bits_per_byte": bits})
        return rows

    def __str__(self) -> str:
        text = self.config["text"]
        lines = [
            "text level: the log-likelihoods of whole texts, not the KL divergence of tokens",
            f"base  {one_line(self.base.name)}",
            f"text  {one_line(text['source'])}: {text['documents']} documents, {text['bytes']} bytes",
        ]
        differences = self.differences()
        for model in (self.base, *self.models):
            size = self.base.sums.tokens
            lines += [
                "",
                one_line(f"{'base' if model is self.base else 'model'} {model.name}"),
                f"  bits per byte             {_shown(model.bits_per_byte)}",
                f"  log-likelihood            {model.log_likelihood:.6g} nats",
                f"  tokens                    {model.tokens}, {size / model.tokens:.4g} bytes per token",
                one_line(f"  windows                   {model.context} tokens, which begin with {model.start!r}"),
            ]
            if model.name in differences and model is not self.base:
                lines.append(f"  minus the base, paired    {_shown(differences[model.name].difference)} bits per byte")
                lines += self._largest(model.name)
        lines += [
            one_line(f"{name} minus the base: {_shown(differences[name].difference)} bits per byte")
            for name in differences
            if name.endswith(" (earlier)")
        ]
        lines += ["", "[...] are 95% intervals, clustered by document."]
        found = [*self.warnings, *self.base.bits_per_byte.warnings]
        return "\n".join([*lines, *(one_line(f"Warning: {warning}") for warning in dict.fromkeys(found))])

    def _largest(self, name: str) -> list[str]:
        """The documents of the largest differences from the base, per byte."""
        rows = self.by_document()
        found = [(row["bits_per_byte"][name] - row["bits_per_byte"][self.base.name], row["document"]) for row in rows]
        order = sorted(found, key=lambda pair: -abs(pair[0]))[:_SHOWN]
        return [one_line(f"    {difference:+.4g} bits per byte in {document}") for difference, document in order]

    def to_dict(self) -> dict[str, Any]:
        """All results as a dictionary that JSON can store, the content of result.json.

        Returns:
            The results. Infinities and nan are the strings "inf", "-inf" and "nan".
        """
        differences = self.differences()
        return {
            "format": _FORMAT,
            "level": "text",
            "base": self.base.name,
            "config": dict(self.config),
            "models": [
                {
                    "name": model.name,
                    "bits_per_byte": model.bits_per_byte.to_dict(),
                    "log_likelihood": _finite(model.log_likelihood),
                    "tokens": model.tokens,
                    "context": model.context,
                    "start": model.start,
                    _KEY: model.sums.state(),
                }
                for model in (self.base, *self.models)
            ],
            "differences": [
                {"model": name, "difference": pair.difference.to_dict()} for name, pair in differences.items()
            ],
            "documents": [
                {**row, "bits_per_byte": {name: _finite(value) for name, value in row["bits_per_byte"].items()}}
                for row in self.by_document()
            ],
            "warnings": list(self.warnings),
        }

    def save(self, path: str | Path) -> None:
        """Write the results to a JSON file, for `against` of a later comparison.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be written.
        """
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")


def _shown(estimate: Estimate) -> str:
    limits = "" if estimate.interval is None else " [{:.4g}, {:.4g}]".format(*estimate.interval)
    return f"{estimate.value:.4g}{limits}"


def _finite(number: float) -> float | str:
    return number if abs(number) < float("inf") else str(number)


@checked_arguments
def compare_text_level(
    base: str,
    models: Sequence[str],
    *,
    text: str | Path | Sequence[str],
    context: int | None = None,
    stride: int | None = None,
    form: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    against: str | Path | None = None,
    progress: Progress | None = None,
) -> TextLevelComparison:
    """Compare models, which may have different tokenizers, by the log-likelihoods of whole texts.

        bits per byte = -sum_i log2 p(token i | tokens before) / number of bytes

    Each model encodes the documents by its own tokenizer. Every window begins with the model's BOS token, or with its
    end-of-sequence token if it has none, so that all tokens of a document are counted. The sum over the tokens of one
    encoding is a lower bound of the log-likelihood of the text, which other encodings have too.

    Args:
        base: A transformers directory, a GGUF file, or a model of the Hugging Face hub.
        models: Models like `base`.
        text: The corpus, or the texts of documents. Chat messages are refused.
        context: The number of tokens of a window; None: 2048, or the positions of each model if it has fewer.
        stride: The distance between the starts of windows; None: as large as possible.
        form: "text" or "jsonl"; None: by the suffix of each file.
        dtype: The dtype of the models.
        device: The device; "auto": a GPU if there is one.
        output: The run directory for `resume` and result.json; None: nothing is stored.
        resume: Whether the interrupted comparison in `output` is continued.
        overwrite: Whether a comparison in `output` may be replaced.
        against: The result.json of an earlier comparison of the same texts, or None.
        progress: A function that is called with finished bytes, all bytes and the name of the model.

    Returns:
        The results: bits per byte, and their differences from the base with intervals that are paired and clustered by
        document.

    Raises:
        InputError: An argument, a model or the text is not valid, or the run directory cannot be used.

    Example:
        >>> comparison = compare_text_level("llama", ["qwen"], text="corpus")  # doctest: +SKIP
        >>> comparison.differences()["qwen"].difference.interval  # doctest: +SKIP
        (-0.021, -0.014)
    """
    require_single_process()
    if not models:
        raise InputError("expected a model to compare with the base: MODEL")
    names = [base, *models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"expected each model once, got {twice} twice")
    sources = [find_source(name, "BASE" if name == base else "MODEL", dtype=dtype) for name in names]
    if isinstance(text, str | Path):
        documents = list(read_documents(text, form=form))
    else:
        documents = [Document(f"text {number}", one) for number, one in enumerate(text)]
    if bad := next((one for one in documents if not isinstance(one.content, str)), None):
        raise InputError(f"{bad.name}: expected plain text, because chat templates differ between models, got messages")
    contents = [str(one.content) for one in documents]
    kept = [number for number, content in enumerate(contents) if content]
    if not kept:
        raise InputError("expected a text that is not empty, got none")
    contents = [contents[number] for number in kept]
    sizes = [len(content.encode("utf-8", "surrogatepass")) for content in contents]
    tokenizers = [load_tokenizer(source.directory) for source in sources]
    starts = [_start(tokenizer) for tokenizer in tokenizers]
    contexts = []
    for source in sources:
        limit = getattr(load_config(source.directory), "max_position_embeddings", None)
        contexts.append(min(_DEFAULT_CONTEXT, limit or _DEFAULT_CONTEXT) if context is None else context)
        require_positions(limit, contexts[-1], source.name)
        windows(1, contexts[-1], stride, prefix=1)  # refuses settings that are not valid
    config = {
        "kind": "compare-texts",
        "versions": versions("torch", "transformers"),
        "base": base,
        "models": {
            source.name: {
                "dtype": source.dtype,
                "tokenizer_sha256": tokenizer_hash(tokenizer),
                "start": start,
                "context": size,
                **weights_hash(source),
            }
            for source, tokenizer, start, size in zip(sources, tokenizers, starts, contexts, strict=True)
        },
        "text": {
            "source": str(text) if isinstance(text, str | Path) else f"{len(text)} texts",
            "documents": len(contents),
            "bytes": sum(sizes),
            "sha256": _hash(contents),
        },
        "settings": {"stride": stride, "device": choose_device(device).type},
    }
    same: dict[str, Callable[[Any], Any]] = {"the hash of the texts": lambda one: one["text"]["sha256"]}
    former = None if against is None else read_result(Path(against), kind="compare-texts", sums=_KEY)
    earlier = earlier_sums(former, config, same, sums=_KEY)
    place = choose_device(device)

    def start(index: int) -> Callable[[int], tuple[ModelStatistics, Any]]:
        tokenizer = tokenizers[index]
        model = load(sources[index], vocabulary_size(tokenizer), place)

        def compute(number: int) -> tuple[ModelStatistics, Any]:
            ids = tokenizer(contents[number], add_special_tokens=False, verbose=False)["input_ids"]
            parts = windows(len(ids), contexts[index], stride, prefix=1)
            nats = sum(_nats(model, [starts[index], *ids[w.start : w.end]], w) for w in parts)
            if nats != nats:
                raise InputError(
                    f"{documents[kept[number]].name}: expected the log-likelihood by {names[index]} to be a number, "
                    f"got {nats}: the logits of the model are not finite; compute the models in another dtype by "
                    "--dtype"
                )
            statistics = ModelStatistics(_UNITS)
            bits = np.zeros(sizes[number])  # the mean over bytes is the bits of the document divided by its bytes
            bits[0] = nats / log(2)
            statistics.add(number, {"bits": bits})
            own = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            return statistics, [len(ids), own == contents[number]]

        return compute

    found = compute_parts(
        names,
        sizes,
        start,
        config=config,
        output=None if output is None else Path(output),
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )
    results, warnings = [], [warning for source in sources for warning in gguf_warning(source)]
    for index, parts in enumerate(found):
        statistics = ModelStatistics(_UNITS)
        for _, part, _ in parts:
            statistics.merge(part)
        tokens = sum(count for _, _, (count, _) in parts)
        shown = tokenizers[index].decode([starts[index]])
        results.append(TextLevelModel(names[index], statistics.sums, tokens, shown, contexts[index]))
        changed = sum(not is_same for _, _, (_, is_same) in parts)
        if changed:
            warnings.append(
                f"The tokenizer of {names[index]} does not reproduce {changed} of {len(parts)} documents, whose "
                "likelihoods are computed for changed texts."
            )
    base_result, *others = results
    comparison = TextLevelComparison(
        base_result,
        tuple(others),
        tuple(documents[number].name for number in kept),
        config,
        tuple(warnings),
        earlier,
    )
    if output is not None:
        comparison.save(Path(output) / "result.json")
    return comparison


def _start(tokenizer: Any) -> int:
    """The token that begins each window: BOS, or the end of a sequence, which separates documents in training."""
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def _hash(contents: Sequence[str]) -> str:
    total = hashlib.sha256()
    for content in contents:
        total.update(content.encode("utf-8", "surrogatepass") + b"\0")
    return total.hexdigest()


def _nats(model: LoadedModel, prompt: Sequence[int], window: Window) -> float:
    """-log p of the counted tokens of a window, whose first token is the token that begins it."""
    place = next(model.model.parameters()).device
    ids = torch.tensor([prompt], device=place)
    first = window.first - window.start + 1
    hidden = model.hidden(ids, torch.ones_like(ids))[0, first - 1 : -1]
    total = 0.0
    for states, targets in zip(hidden.split(_ROWS), ids[0, first:].split(_ROWS), strict=True):
        head = model.head
        logits = head(states.to(head.weight.dtype)) if isinstance(head, Head) else head(states)
        total -= float(logits.double().log_softmax(-1).gather(1, targets[:, None]).sum())
    return total
