"""The values of single tokens in a compact form, for the page of a comparison.

The KL has the 16 leading bits of a float32 (a relative error of at most 0.4%). A log-probability is one of 256 levels,
whose ratio is constant (a relative error of at most 2.3% between 0.001 and 100 nats). The statistics of a comparison
are computed before, from the exact values.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from kullback.compare.corpus import Corpus
from kullback.runs.checksums import read_checked, write_checked

__all__ = ["NLL_LEVELS", "DocumentTokens", "TokenStore", "TokenValues", "kl_from_codes", "shown_documents"]

KEPT_TOKENS = 2**22
"""The tokens that a process keeps for each model; blocks of a smaller KL are removed."""

NLL_LEVELS = np.concatenate([[0.0], np.geomspace(1e-3, 100.0, 255)])
"""The values of -log p in nats, by code."""

_NLL_BOUNDS = np.concatenate([[5e-4], np.sqrt(NLL_LEVELS[1:-1] * NLL_LEVELS[2:])])


class TokenValues(NamedTuple):
    """The values of the counted tokens of a document, which are its last n tokens.

    Args:
        kl: KL(base || model), the 16 leading bits of a float32, uint16, shape (n,).
        nll_base: -log p(token) of the base, as an index into `NLL_LEVELS`, uint8, shape (n,).
        nll: -log q(token) of the model, as an index into `NLL_LEVELS`, uint8, shape (n,).
    """

    kl: NDArray[np.uint16]
    nll_base: NDArray[np.uint8]
    nll: NDArray[np.uint8]

    @classmethod
    def encode(cls, kl: NDArray[np.float64], nll_base: NDArray[np.float64], nll: NDArray[np.float64]) -> "TokenValues":
        """The codes of values in nats.

        Args:
            kl: KL(base || model) >= 0, possibly `inf`.
            nll_base: -log p(token) of the base.
            nll: -log q(token) of the model.

        Returns:
            The codes.

        Example:
            >>> codes = TokenValues.encode(np.array([0.01]), np.array([1.5]), np.array([1.6]))
            >>> f"{kl_from_codes(codes.kl)[0]:.3g} {NLL_LEVELS[codes.nll[0]]:.2g}"
            '0.01 1.6'
        """
        bits = np.maximum(kl, 0).astype(np.float32).view(np.uint32)
        leading = ((bits.astype(np.uint64) + 2**15) >> 16).astype(np.uint16)
        codes = [np.searchsorted(_NLL_BOUNDS, values).astype(np.uint8) for values in (nll_base, nll)]
        return cls(leading, *codes)


def kl_from_codes(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The KL in nats of the codes of `TokenValues`.

    Args:
        codes: The codes, shape (n,).

    Returns:
        The KL in nats, shape (n,); possibly `inf`.

    Example:
        >>> kl_from_codes(np.array([0x3F80], np.uint16)).tolist()
        [1.0]
    """
    return (codes.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, eq=False)
class DocumentTokens:
    """The tokens of a document with their values, for a page.

    Args:
        name: The name of the document.
        length: The number of tokens of the document, of which `tokens` are the first.
        tokens: The text of each token; empty for a token that ends within a character.
        first: The index of the first token that is counted.
        values: The values of each model, from the token `first`; None where they are not stored.
    """

    name: str
    length: int
    tokens: tuple[str, ...]
    first: int
    values: tuple[TokenValues | None, ...]


class TokenStore:
    """The values of the tokens of blocks: files in the directory `tokens`, or arrays in memory.

    Example:
        >>> store, values = TokenStore(None), TokenValues.encode(*np.ones((3, 1)))
        >>> store.add(0, 0, {7: values})
        >>> list(store.documents([(0, 0)]))
        [(0, 7)]
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = None if directory is None else directory / "tokens"
        self.blocks: dict[tuple[int, int], dict[int, TokenValues]] = {}
        self.kept: dict[int, list[tuple[float, int, int]]] = {}  # by model: the largest mean KL, tokens, block

    def add(self, block: int, model: int, documents: Mapping[int, TokenValues]) -> None:
        """Store the values of the documents of a block, and remove the blocks of the smallest KL beyond the limit."""
        if self.directory is None:
            self.blocks[block, model] = dict(documents)
        else:
            self.directory.mkdir(exist_ok=True)
            counts = [len(values.kl) for values in documents.values()]
            arrays: dict[str, NDArray[Any]] = {
                name: np.concatenate([getattr(values, name) for values in documents.values()])
                for name in TokenValues._fields
            }
            arrays |= {"documents": np.array(list(documents)), "counts": np.array(counts)}
            write_checked(self._path(block, model), save(arrays))
        largest = max(_mean_kl(values) for values in documents.values())
        kept = self.kept.setdefault(model, [])
        kept.append((largest, sum(len(values.kl) for values in documents.values()), block))
        kept.sort(reverse=True)
        while sum(count for _, count, _ in kept) - kept[-1][1] >= KEPT_TOKENS:
            _, _, removed = kept.pop()
            self.blocks.pop((removed, model), None)
            if self.directory is not None:
                self._path(removed, model).unlink(missing_ok=True)

    def documents(self, keys: Iterable[tuple[int, int]]) -> dict[tuple[int, int], TokenValues]:
        """The stored values of blocks and models, by model and document; damaged files are left out."""
        found: dict[tuple[int, int], TokenValues] = {}
        for block, model in keys:
            for document, values in self._read(block, model).items():
                found[model, document] = values
        return found

    def _path(self, block: int, model: int) -> Path:
        assert self.directory is not None
        return self.directory / f"{block}-{model}.bin"

    def _read(self, block: int, model: int) -> dict[int, TokenValues]:
        if self.directory is None:
            return self.blocks.get((block, model), {})
        content = read_checked(self._path(block, model))
        if content is None:
            return {}
        try:
            arrays = load(content)
            ends = np.cumsum(arrays["counts"])[:-1]
            columns = [np.split(arrays[name], ends) for name in TokenValues._fields]
            return dict(zip(arrays["documents"].tolist(), map(TokenValues, *columns), strict=True))
        except (SafetensorError, KeyError, ValueError):
            return {}


def _mean_kl(values: TokenValues) -> float:
    return float(kl_from_codes(values.kl).mean(dtype=np.float64))


def shown_documents(
    found: Mapping[tuple[int, int], TokenValues], models: int, corpus: Corpus, tokenizer: Any, limit: int
) -> tuple[DocumentTokens, ...]:
    """The documents of the largest KL whose tokens and codes together have at most `limit` bytes on a page.

    Documents are sorted by the sum over the models of their mean KL. The last document may be cut.

    Args:
        found: The values by model and document.
        models: The number of models.
        corpus: The corpus.
        tokenizer: The tokenizer.
        limit: The number of bytes.

    Returns:
        The documents, in the order of decreasing KL.
    """
    score: dict[int, float] = {}
    for (model, document), values in found.items():
        if model < models:
            score[document] = score.get(document, 0.0) + _mean_kl(values)
    shown = []
    for document in sorted(score, key=lambda i: (-score[i], i)):
        tokenized = corpus.documents[document]
        values = [found.get((model, document)) for model in range(models)]
        first = len(tokenized.ids) - next(len(v.kl) for v in values if v is not None)
        tokens = []
        limit -= 100 + 50 * models + _page_bytes(tokenized.name)
        for text in _token_texts(tokenized.ids.tolist(), tokenizer):
            limit -= _page_bytes(text) + 16 * models // 3 + 1  # 4 bytes of each model in base64
            if limit < 0:
                break
            tokens.append(text)
        if len(tokens) > first:
            count = len(tokens) - first
            cut = [v and TokenValues(v.kl[:count], v.nll_base[:count], v.nll[:count]) for v in values]
            shown.append(DocumentTokens(tokenized.name, len(tokenized.ids), tuple(tokens), first, tuple(cut)))
        if limit < 0:
            break
    return tuple(shown)


def _page_bytes(text: str) -> int:
    """The bytes of a string and a comma in the data of a page, where "<", ">" and "&" are escape sequences."""
    return len(json.dumps(text)) + 1 + 5 * sum(map(text.count, "<>&"))


def _token_texts(ids: list[int], tokenizer: Any) -> Iterable[str]:
    """The text that each token adds; tokens that end within a character add nothing, and the last of them adds it."""
    start = read = 0
    before = ""
    for index in range(len(ids)):
        text = tokenizer.decode(ids[start : index + 1], clean_up_tokenization_spaces=False)
        is_incomplete = text.endswith("\ufffd") and index + 1 < len(ids) and index - read < 4
        if is_incomplete:
            yield ""
            continue
        yield text[len(before) :]
        start, read = read, index + 1
        before = tokenizer.decode(ids[start:read], clean_up_tokenization_spaces=False)
