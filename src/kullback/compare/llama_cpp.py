"""The file of base log-probabilities that llama.cpp writes with `--kl-divergence-base`, and KL bounds from it.

The file has no version. All its numbers are little-endian:

    8 bytes                    "_logits_"
    3 int32                    n_ctx, n_vocab, n_chunk
    n_chunk * n_ctx int32      the token ids of the text, chunk by chunk
    n_chunk * R rows           R = n_ctx - 1 - floor(n_ctx / 2)

Row i of a chunk predicts its token floor(n_ctx / 2) + 1 + i. A row is a float32 `scale`, a float32 `min_log_prob` and
n_vocab codes of 16 bits, with an unused code at the end where n_vocab is odd:

    log p_v = scale * code_v + min_log_prob

Three properties of the file affect what is computed from it:

- Log-probabilities below the largest log-probability minus 16 nats (24 nats in files of ik_llama.cpp) have code 0,
  which means "at most min_log_prob". The sum of exp(log p) over all codes therefore exceeds 1. `kl_bounds` puts these
  tokens into one tail bucket, whose mass follows from the other tokens. By the data-processing inequality, a KL
  divergence with such a bucket is a lower bound.
- If the tokenizer of the model adds a BOS token, llama.cpp replaces the first token of every chunk by it when it
  evaluates the model. The file has the original token, and does not state whether a token was replaced.
- The codes round log p by up to scale / 2, which is 1.2e-4 nats where the range is 16 nats.

A model is compared with a file chunk by chunk. With `log_softmax(model(tokens))` of shape (n_ctx, V):

    file = open_log_probs("base.kld")
    for chunk in range(file.n_chunk):
        log_probs = log_softmax(model(file.inputs(chunk, bos_token=1)))[file.first_row :]
        for block in file.blocks([chunk]):
            bounds = kl_bounds(block.rows, log_probs[block.start : block.start + len(block.targets)])
"""

import os
from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kullback.discrete.validation import log_mass_tolerance
from kullback.errors import ArrayTypeError, InputError, NotNormalizedError, ShapeError, SupportError
from kullback.numerics.phi import mass_phi, phi
from kullback.runs.atomic_write import open_atomically
from kullback.runs.write_errors import write_errors

__all__ = [
    "EncodedRows",
    "LogProbFile",
    "RowBlock",
    "TokenBounds",
    "encode_rows",
    "is_log_prob_file",
    "kl_bounds",
    "open_log_probs",
    "write_log_probs",
]

_MAGIC = b"_logits_"
_HEADER = np.dtype([("magic", "S8"), ("n_ctx", "<i4"), ("n_vocab", "<i4"), ("n_chunk", "<i4")])
_LEVELS = 65535  # the largest code
_CUTS = (16.0, 24.0)  # in nats: llama.cpp, ik_llama.cpp
_CUT_ROUNDING = 2.0**-6  # in nats: a cut that was subtracted from a float32 logit of up to 2.6e5 is off by this much
_BLOCK_ENTRIES = 2**20
_MASS_SLACK = 1e-3  # a row of an intact file can exceed its rounding bounds by less


class EncodedRows(NamedTuple):
    """Rows of the file: log p_v = scale * code_v + min_log_prob.

    Args:
        scale: Nats per unit of a code, float32, shape (n,); 0 where all log-probabilities of a row are equal.
        min_log_prob: The log-probability of code 0 in nats, float32, shape (n,).
        codes: The codes, uint16, shape (n, V).
    """

    scale: NDArray[np.float32]
    min_log_prob: NDArray[np.float32]
    codes: NDArray[np.uint16]


class RowBlock(NamedTuple):
    """Consecutive rows of one chunk of a file.

    Args:
        chunk: The number of the chunk, from 0.
        start: The number of the first row in its chunk, from 0; row i predicts token floor(n_ctx / 2) + 1 + i.
        targets: The token ids that the rows predict, int32, shape (n,).
        rows: The rows.
    """

    chunk: int
    start: int
    targets: NDArray[np.int32]
    rows: EncodedRows


class TokenBounds(NamedTuple):
    """Bounds of the KL divergence between a base distribution in a file and a model, one for each row.

    Args:
        kl: KL(base || model) with one tail bucket, in nats, shape (n,), with the base as its codes state it. It is a
            lower bound except for the rounding of the codes.
        certain_kl: A lower bound of KL(base || model) in nats, for all roundings of the codes, shape (n,).
        reverse_kl: KL(model || base) with one tail bucket, in nats, shape (n,).
        certain_reverse_kl: A lower bound of KL(model || base) in nats, for all roundings of the codes, shape (n,).
        tail_mass: The largest base probability that the tokens of the tail bucket can have, shape (n,).
        model_tail_mass: The probability of these tokens under the model, shape (n,).
    """

    kl: NDArray[np.float64]
    certain_kl: NDArray[np.float64]
    reverse_kl: NDArray[np.float64]
    certain_reverse_kl: NDArray[np.float64]
    tail_mass: NDArray[np.float64]
    model_tail_mass: NDArray[np.float64]


def open_log_probs(path: str | os.PathLike[str]) -> "LogProbFile":
    """Open a file of base log-probabilities of llama.cpp or ik_llama.cpp.

    The size of the file is compared with its header before anything is mapped or allocated. The rows stay on disk, and
    are read when they are used; the file must not be changed meanwhile.

    Args:
        path: The file.

    Returns:
        The open file.

    Raises:
        InputError: The file is absent, is not a regular file, has another format, is truncated or has bytes after its
            end, or has a token id outside of its vocabulary.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "base.kld"
        ...     write_log_probs(path, [[0, 1, 2, 1]], [[[0.0, 1.0, 2.0]]], n_vocab=3)
        ...     file = open_log_probs(path)
        ...     file.n_chunk, file.rows_per_chunk, [block.targets.tolist() for block in file.blocks()]
        (1, 1, [[1]])
    """
    path = Path(path)
    try:
        if not path.is_file():
            reason = "is a directory or a device" if path.exists() else "does not exist"
            raise InputError(f"{path}: expected a file of llama.cpp's --kl-divergence-base, but the path {reason}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_HEADER.itemsize)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from error
    if not start.startswith(_MAGIC):
        raise InputError(
            f"{path}: expected a file of llama.cpp's --kl-divergence-base, which starts with the bytes _logits_, got "
            f"{start[:8]!r} in a file of {size} bytes"
        )
    if len(start) < _HEADER.itemsize:
        raise InputError(f"{path}: expected a header of {_HEADER.itemsize} bytes, got {size} bytes: it is truncated")
    n_ctx, n_vocab, n_chunk = np.frombuffer(start, _HEADER)[["n_ctx", "n_vocab", "n_chunk"]][0].tolist()
    if n_ctx < 3 or n_vocab < 1 or n_chunk < 1:
        raise InputError(
            f"{path}: expected n_ctx >= 3, n_vocab >= 1 and n_chunk >= 1, got n_ctx {n_ctx}, n_vocab {n_vocab} and "
            f"n_chunk {n_chunk}: the file is damaged"
        )
    prefix, per_chunk = _HEADER.itemsize + 4 * n_ctx * n_chunk, _rows_per_chunk(n_ctx) * _row_bytes(n_vocab)
    expected = prefix + n_chunk * per_chunk
    if size != expected:
        whole = min(max(size - prefix, 0) // per_chunk, n_chunk)
        remedy = (
            f"it has {whole} of {n_chunk} chunks: it is truncated, or is still being written; write it again"
            if size < expected
            else f"it has {size - expected} bytes after its end: it is damaged; write it again"
        )
        raise InputError(
            f"{path}: expected {expected} bytes for n_ctx {n_ctx}, n_vocab {n_vocab} and n_chunk {n_chunk}, got "
            f"{size}; {remedy}"
        )
    return LogProbFile(path, n_ctx, n_vocab, n_chunk)


def is_log_prob_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that starts as the files of llama.cpp's `--kl-divergence-base` do.

    Args:
        path: The path.

    Returns:
        Whether the file exists and starts with the bytes of this format.

    Example:
        >>> is_log_prob_file("absent.kld")
        False
    """
    try:
        with Path(path).open("rb") as file:
            return Path(path).is_file() and file.read(len(_MAGIC)) == _MAGIC
    except (OSError, ValueError):
        return False


def _rows_per_chunk(n_ctx: int) -> int:
    return n_ctx - 1 - n_ctx // 2


def _row_bytes(n_vocab: int) -> int:
    return 8 + 4 * ((n_vocab + 1) // 2)


def _row_dtype(n_vocab: int) -> np.dtype[Any]:
    codes = 2 * ((n_vocab + 1) // 2)
    return np.dtype([("scale", "<f4"), ("min_log_prob", "<f4"), ("codes", "<u2", (codes,))])


class LogProbFile:
    """An open file of base log-probabilities; `open_log_probs` returns it.

    The tokens and rows are mapped into memory and not loaded: a process needs memory for the rows that it uses only.
    `tokens` has the shape (n_chunk, n_ctx). `rows_per_chunk` is R, and `first_row` the position in a chunk whose
    prediction is the first row.

    Args:
        path: The file, whose size agrees with the three numbers.
        n_ctx: The number of tokens in a chunk.
        n_vocab: The number of tokens in the vocabulary, V.
        n_chunk: The number of chunks.

    Raises:
        InputError: A token id is outside of the vocabulary.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "base.kld"
        ...     write_log_probs(path, [[0, 1, 2, 1]], [[[0.0, 1.0, 2.0]]], n_vocab=3)
        ...     file = open_log_probs(path)
        ...     file.inputs(0, bos_token=2).tolist(), file.find_cut()
        ([2, 1, 2, 1], None)
    """

    def __init__(self, path: Path, n_ctx: int, n_vocab: int, n_chunk: int) -> None:
        self.path, self.n_ctx, self.n_vocab, self.n_chunk = path, n_ctx, n_vocab, n_chunk
        self.rows_per_chunk, self.first_row = _rows_per_chunk(n_ctx), n_ctx // 2
        shape, offset = (n_chunk, n_ctx), _HEADER.itemsize
        self.tokens: NDArray[np.int32] = np.memmap(path, "<i4", "r", offset, shape)
        shape, offset = (n_chunk, self.rows_per_chunk), offset + self.tokens.nbytes
        self._rows = np.memmap(path, _row_dtype(n_vocab), "r", offset, shape)
        for chunk, tokens in enumerate(self.tokens):
            if tokens.min() < 0 or tokens.max() >= n_vocab:
                position = int(np.flatnonzero((tokens < 0) | (tokens >= n_vocab))[0])
                raise InputError(
                    f"{path}: expected token ids from 0 to {n_vocab - 1}, got {tokens[position]} at position "
                    f"{position} of chunk {chunk}: the file is damaged"
                )

    def inputs(self, chunk: int, *, bos_token: int | None) -> NDArray[np.int32]:
        """The tokens of a chunk with which a model must be evaluated.

        If the tokenizer of the base adds a BOS token, llama.cpp evaluates every chunk with that token in place of its
        first token. The file has the original token and does not state whether it was replaced, so the caller must. A
        wrong choice changes the logits of every row of the chunk.

        Args:
            chunk: The number of the chunk, from 0.
            bos_token: The id of the BOS token if the tokenizer of the base adds it (`tokenizer.ggml.add_bos_token` in
                a GGUF file), and None otherwise.

        Returns:
            The token ids, int32, shape (n_ctx,). Row i is predicted from the first floor(n_ctx / 2) + 1 + i of them.

        Raises:
            InputError: The BOS token is not in the vocabulary, or the chunk is not in the file.
        """
        if not 0 <= chunk < self.n_chunk:
            raise InputError(f"{self.path}: expected a chunk from 0 to {self.n_chunk - 1}, got {chunk}")
        tokens = np.array(self.tokens[chunk], np.int32)
        if bos_token is not None:
            if not 0 <= bos_token < self.n_vocab:
                raise InputError(
                    f"{self.path}: expected a BOS token from 0 to {self.n_vocab - 1}, got {bos_token}; pass None if "
                    "the tokenizer adds none"
                )
            tokens[0] = bos_token
        return tokens

    def blocks(self, chunks: Iterable[int] | None = None, *, max_rows: int | None = None) -> Iterator[RowBlock]:
        """The rows of the file in order, a block of rows of one chunk at a time.

        Args:
            chunks: The numbers of the chunks to read; None: all chunks.
            max_rows: The largest number of rows in a block; None: as many as have 2^20 codes.

        Returns:
            An iterator of blocks. Each block is a copy of its part of the file.

        Raises:
            InputError: The scale or the smallest log-probability of a row is impossible: the file is damaged; or a
                chunk is not in the file, or `max_rows` is below 1.
        """
        step = max(1, _BLOCK_ENTRIES // self.n_vocab) if max_rows is None else max_rows
        if step < 1:
            raise InputError(f"expected max_rows to be 1 or more, got {max_rows}")
        first = self.first_row + 1
        for chunk in range(self.n_chunk) if chunks is None else chunks:
            if not 0 <= chunk < self.n_chunk:
                raise InputError(f"{self.path}: expected a chunk from 0 to {self.n_chunk - 1}, got {chunk}")
            for start in range(0, self.rows_per_chunk, step):
                stored = self._rows[chunk, start : start + step]
                rows = EncodedRows(
                    np.array(stored["scale"], np.float32),
                    np.array(stored["min_log_prob"], np.float32),
                    np.array(stored["codes"][:, : self.n_vocab], np.uint16),
                )
                self._require_possible(rows, chunk, start)
                targets = np.array(self.tokens[chunk, first + start : first + start + len(stored)], np.int32)
                yield RowBlock(chunk, start, targets, rows)

    def find_cut(self) -> float | None:
        """The number of nats below the largest log-probability at which the smaller ones were cut.

        It is the largest range of a row, scale * 65535, if that is the cut of a known program. The scale of each row
        is read.

        Returns:
            16.0 for a file of llama.cpp, 24.0 for a file of ik_llama.cpp, and None if no row was cut.

        Raises:
            InputError: A scale is negative or not finite, or a range exceeds 24 nats.
        """
        widest = 0.0
        for chunk, stored in enumerate(self._rows):
            scale = np.array(stored["scale"], np.float32)
            self._require_scale(scale, chunk, 0)
            widest = max(widest, float(scale.max()) * _LEVELS)
        return next((cut for cut in _CUTS if abs(widest - cut) < _CUT_ROUNDING), None)

    def _require_scale(self, scale: NDArray[np.float32], chunk: int, start: int) -> None:
        """Raise InputError unless the range of each row is from 0 to the largest cut."""
        bad = ~((scale >= 0) & (scale < (_CUTS[-1] + _CUT_ROUNDING) / _LEVELS))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"{self.path}: expected a scale from 0 to {_CUTS[-1] / _LEVELS:.4g} nats, got {scale[row]} in row "
                f"{start + row} of chunk {chunk}: the file is damaged, or the base has logits that are not finite"
            )

    def _require_possible(self, rows: EncodedRows, chunk: int, start: int) -> None:
        """Raise InputError unless the largest log-probability of each row is in [-log V, 0]."""
        self._require_scale(rows.scale, chunk, start)
        finite = np.isfinite(rows.min_log_prob)
        rows = rows._replace(min_log_prob=np.where(finite, rows.min_log_prob, np.float32(0)))
        top = rows.min_log_prob.astype(np.float64) + rows.scale.astype(np.float64) * _LEVELS
        rounding = _float_rounding(rows)
        bad = ~(finite & (top <= rounding) & (top >= -np.log(self.n_vocab) - rounding))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            found = f"{top[row]:.6g}" if finite[row] else "a min_log_prob that is not finite"
            raise InputError(
                f"{self.path}: expected a largest log-probability from -log(n_vocab) = {-np.log(self.n_vocab):.6g} to "
                f"0, got {found} in row {start + row} of chunk {chunk}: the file is damaged"
            )


def _float_rounding(rows: EncodedRows) -> NDArray[np.float64]:
    """A bound of the error of each log-probability from the float32 arithmetic of the writer, in nats, shape (n,).

    With u = 2^-24, the logits minus their maximum, their division by the scale and the product have errors of 4 u times
    the range; the normaliser and the sum of min_log_prob, 2 u (|min_log_prob| + 1).
    """
    size = rows.scale.astype(np.float64) * _LEVELS + abs(rows.min_log_prob.astype(np.float64)) + 1
    return 2.0**-22 * size


def encode_rows(logits: ArrayLike, *, cut: float = 16.0) -> EncodedRows:
    """Encode logits as llama.cpp does.

        scale = (max - min) / 65535,  code = round((z - min) / scale),  min_log_prob = min - max - log sum exp(z - max)

    with min the larger of the smallest logit and max - cut. All steps are in float32, and halves are rounded to even.

    Args:
        logits: Logits or log-probabilities, shape (n, V); -inf for a token of probability 0. They are rounded to
            float32.
        cut: 16 nats as llama.cpp, or 24 nats as ik_llama.cpp.

    Returns:
        The rows.

    Raises:
        ShapeError: The logits do not have the shape (n, V).
        SupportError: A logit is nan or +inf, all logits of a row are -inf, or `cut` is another number.

    Example:
        >>> encode_rows([[0.0, -1.0, -20.0]]).codes.tolist()
        [[65535, 61439, 0]]
    """
    z = np.asarray(logits)
    if z.dtype.kind not in "fiu":
        raise ArrayTypeError(f"expected logits, an array of real numbers, got dtype {z.dtype}")
    z = z.astype(np.float32, copy=False)
    if z.ndim != 2 or z.shape[1] == 0:
        raise ShapeError(f"expected logits of shape (n, V), got {z.shape}")
    if cut not in _CUTS:
        raise SupportError(f"expected a cut of 16 nats (llama.cpp) or 24 nats (ik_llama.cpp), got {cut!r}")
    top = z.max(1)  # nan if any logit is nan
    if not np.isfinite(top).all():
        row = int(np.flatnonzero(~np.isfinite(top))[0])
        raise SupportError(
            f"expected logits below +inf with a finite logit in each row, but the largest of row {row} is {top[row]}"
        )
    low = np.maximum(z.min(1), top - np.float32(cut))
    # The C library rounds exponentials in float32 correctly, which NumPy does not.
    exponentials = np.exp(z - top[:, None], dtype=np.float64).astype(np.float32)
    log_sum = np.log(exponentials.sum(1, dtype=np.float64)).astype(np.float32)
    scale = (top - low) / np.float32(_LEVELS)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    scale[np.isinf(inverse)] = 0  # all logits are equal, or differ by less than 1e-33
    inverse[np.isinf(inverse)] = 0
    codes = np.rint(inverse[:, None] * (np.maximum(z, low[:, None]) - low[:, None])).astype(np.uint16)
    return EncodedRows(scale, low - top - log_sum, codes)


def write_log_probs(
    path: str | os.PathLike[str],
    tokens: ArrayLike,
    logits: Iterable[ArrayLike],
    *,
    n_vocab: int,
    cut: float = 16.0,
) -> None:
    """Write a file of base log-probabilities that llama.cpp reads with `--kl-divergence`.

    The rows are written as they come, and the whole file replaces `path` at the end. After an error the path has its
    old content.

    Args:
        path: The file to write.
        tokens: The token ids of the text, before a BOS token replaces the first of each chunk, shape (n_chunk, n_ctx).
        logits: Blocks of logits, each of shape (n, n_vocab), together n_chunk * (n_ctx - 1 - floor(n_ctx / 2)) rows:
            for each chunk, the predictions of its tokens floor(n_ctx / 2) + 1, ..., n_ctx - 1. See `encode_rows`.
        n_vocab: The number of tokens in the vocabulary.
        cut: 16 nats as llama.cpp, or 24 nats as ik_llama.cpp.

    Raises:
        ArrayTypeError: The tokens are not integers.
        InputError: The file cannot be written.
        ShapeError: The tokens or a block have another shape, or the number of rows differs.
        SupportError: A token id is outside of the vocabulary, or `encode_rows` raises it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "base.kld"
        ...     write_log_probs(path, [[0, 1, 2, 1]], [[[0.0, 1.0, 2.0]]], n_vocab=3)
        ...     path.stat().st_size
        52
    """
    path, text = Path(path), np.asarray(tokens)
    if text.dtype.kind not in "iu":
        raise ArrayTypeError(f"expected token ids, an array of integers, got dtype {text.dtype}")
    if text.ndim != 2 or text.shape[0] < 1 or text.shape[1] < 3:
        raise ShapeError(f"expected tokens of shape (n_chunk, n_ctx) with n_ctx >= 3, got {text.shape}")
    if not 1 <= n_vocab < 2**31:
        raise SupportError(f"expected n_vocab to be 1 or more, got {n_vocab}")
    if text.min() < 0 or text.max() >= n_vocab:
        raise SupportError(
            f"expected token ids from 0 to n_vocab - 1 = {n_vocab - 1}, got {text.min()} to {text.max()}"
        )
    n_chunk, n_ctx = text.shape
    expected, written = n_chunk * _rows_per_chunk(n_ctx), 0
    header = np.array((_MAGIC, n_ctx, n_vocab, n_chunk), _HEADER)
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: expected a path in a directory that exists")
    with write_errors(path, "repeat the command, or choose another path"), open_atomically(path) as file:
        file.write(header.tobytes())
        file.write(text.astype("<i4").tobytes())
        for block in logits:
            rows = encode_rows(block, cut=cut)
            written += len(rows.codes)
            if rows.codes.shape[1] != n_vocab or written > expected:
                raise ShapeError(
                    f"expected {expected} rows of {n_vocab} logits for tokens of shape {text.shape}, got a block of "
                    f"shape {rows.codes.shape} after {written - len(rows.codes)} rows"
                )
            stored = np.zeros(len(rows.codes), _row_dtype(n_vocab))
            stored["scale"], stored["min_log_prob"] = rows.scale, rows.min_log_prob
            stored["codes"][:, :n_vocab] = rows.codes
            file.write(stored.tobytes())
        if written < expected:
            raise ShapeError(f"expected {expected} rows of logits for tokens of shape {text.shape}, got {written}")


def kl_bounds(rows: EncodedRows, log_probs: ArrayLike) -> TokenBounds:
    """KL(base || model) and KL(model || base) for rows of a file, with the tokens below the cut as one tail bucket.

    With p_v = exp(scale * code_v + min_log_prob), the model's q_v and d_v = log(q_v / p_v) for the tokens above the
    cut, and with the probabilities t of the base and s of the model for the tokens at the cut or below:

        KL(base || model) >= sum_v p_v phi(d_v) + t phi(log(s / t))
        KL(model || base) >= sum_v q_v phi(-d_v) + s phi(log(t / s))

    where phi(d) = e^d - 1 - d, so that each term is >= 0. These are the KL divergences with one tail bucket. The
    codes do not determine t exactly: of its possible values, the nearest to s is used, which minimises both terms. A
    row whose range is below 16 nats was not cut and has no tail.

    `certain_kl` allows for the rounding of each code by at most delta = scale / 2 and the rounding of float32. The term
    of a token then decreases by at most delta e^delta p_v |d_v|, and remains >= 0; the term of KL(model || base), by at
    most delta (|q_v - p_v| + p_v (e^delta - 1)).

    Args:
        rows: n rows of a file, from `LogProbFile.blocks` or `encode_rows`.
        log_probs: The log-probabilities of the model for the same positions in nats, normalised, shape (n, V), or (V,)
            for one row.

    Returns:
        The bounds in nats. A bound is `inf` where the model has probability 0 for a token or a tail that has a positive
        probability under the base; `reverse_kl` is finite, because the base has no such token.

    Raises:
        ArrayTypeError: The log-probabilities are not an array of real numbers.
        NotNormalizedError: The log-probabilities of the model do not sum to 1, as logits do not; or the probabilities
            of a row do not, because the file is damaged.
        ShapeError: The shapes differ.

    References:
        Cover and Thomas (2006), Elements of Information Theory, section 2.8, for the data-processing inequality.

    Example:
        >>> base = np.log([[0.7, 0.3 - 1e-9, 1e-9]])
        >>> bounds = kl_bounds(encode_rows(base), np.log([[0.6, 0.4 - 1e-6, 1e-6]]))
        >>> f"{bounds.certain_kl[0]:.5f} {bounds.kl[0]:.5f} {bounds.tail_mass[0]:.1e}"
        '0.02157 0.02159 7.9e-08'
    """
    q = as_model_log_probs(rows, log_probs)
    step = max(1, 2**16 // q.shape[1])  # so that the temporary arrays stay in the cache
    blocks = [
        _block_bounds(
            EncodedRows(rows.scale[k : k + step], rows.min_log_prob[k : k + step], rows.codes[k : k + step]),
            q[k : k + step],
            k,
        )
        for k in range(0, len(q), step)
    ]
    return TokenBounds(*map(np.concatenate, zip(*blocks, strict=True))) if blocks else TokenBounds(*[np.empty(0)] * 6)


def as_model_log_probs(rows: EncodedRows, log_probs: ArrayLike) -> NDArray[Any]:
    """The log-probabilities of a model with the shape (n, V) of the rows; raises ArrayTypeError and ShapeError."""
    q = np.asarray(log_probs)
    if q.dtype.kind not in "fiu":
        raise ArrayTypeError(f"expected log-probabilities, an array of real numbers, got dtype {q.dtype}")
    q = q[None] if q.ndim == 1 else q
    if q.shape != rows.codes.shape:
        raise ShapeError(
            f"expected log-probabilities of shape (n, V) = {rows.codes.shape} for {len(rows.codes)} rows, got {q.shape}"
        )
    return q


def _block_bounds(rows: EncodedRows, log_probs: NDArray[Any], start: int) -> TokenBounds:
    """`kl_bounds` of a block, whose first row has the number `start`."""
    log_q = log_probs.astype(np.float64, copy=False)
    scale, low = (part.astype(np.float64)[:, None] for part in (rows.scale, rows.min_log_prob))
    floats = _float_rounding(rows)[:, None]
    delta = scale / 2 + floats
    was_cut = scale * _LEVELS >= _CUTS[0] - _CUT_ROUNDING
    in_tail = was_cut & (rows.codes == 0)
    with np.errstate(over="ignore"):
        q = np.exp(log_q)
        _require_mass(q, log_probs.dtype, start)
    log_p = scale * rows.codes + low
    p = np.where(in_tail, 0.0, np.exp(log_p))
    d = np.where(in_tail, 0.0, log_q - log_p)

    # The base probability of the tail is 1 minus the probability of the other tokens, which the rounding makes
    # uncertain. The largest of them was not rounded to a code.
    top = np.exp(low + scale * _LEVELS) * (rows.codes.max(1, keepdims=True) == _LEVELS)
    rest = np.maximum(p.sum(1, keepdims=True) - top, 0.0)
    least = np.maximum(1 - top * np.exp(floats) - rest * np.exp(delta), 0.0)
    most = 1 - top * np.exp(-floats) - rest * np.exp(-delta)
    limit = in_tail.sum(1, keepdims=True) * np.exp(low + delta)
    damaged = (most < -_MASS_SLACK) | (least > limit + _MASS_SLACK)
    if damaged.any():
        row = int(np.flatnonzero(damaged)[0])
        raise NotNormalizedError(
            f"expected the probabilities of a row to sum to 1, but in row {start + row} of the block the codes above "
            f"the cut sum to {float(p.sum(1)[row])!r} and those at the cut to at most {float(limit[row, 0])!r}: the "
            "file is damaged"
        )
    # A program with another rounding may write rows whose sum slightly exceeds 1; only the cut then limits the tail.
    most = np.where(most > 0, np.minimum(most, limit), limit)
    s = np.where(in_tail, q, 0.0).sum(1, keepdims=True)
    t = np.minimum(np.maximum(s, least), most)

    with np.errstate(invalid="ignore"):
        unit, ratio = phi(d), np.expm1(d)
        forward = p * unit
        # q phi(-d) = p (expm1(d) d - phi(d)); a model probability of 0 contributes p.
        reverse = p * np.where(d == -inf, 1.0, ratio * d - unit)
        certain = np.where(d == -inf, inf, np.maximum(forward - np.exp(delta) * delta * p * abs(d), 0.0))
        certain_reverse = np.maximum(reverse - delta * p * (abs(ratio) + np.expm1(delta)), 0.0)
    tail, reverse_tail = _tail_term(t, s), _tail_term(s, t)
    # The sums include the contribution of the rounded normalisation of the model, which is subtracted.
    mass = q.sum(1)
    return TokenBounds(
        forward.sum(1) + tail,
        np.maximum(certain.sum(1) + tail - phi(np.log(mass)), 0.0),
        reverse.sum(1) + reverse_tail,
        np.maximum((certain_reverse.sum(1) + reverse_tail) / mass - phi(-np.log(mass)), 0.0),
        most[:, 0],
        s[:, 0],
    )


def _require_mass(q: NDArray[np.float64], dtype: np.dtype[Any], start: int) -> None:
    """Raise NotNormalizedError unless each row sums to 1 within the tolerance of float32, or of float16 if it is."""
    sums = q.sum(1)
    tolerance = log_mass_tolerance("float16" if dtype == np.float16 else "float32", q.shape[1])
    bad = ~(abs(sums - 1) <= tolerance)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise NotNormalizedError(
            f"expected log-probabilities of the model whose exponentials sum to 1 within {tolerance:.2g}, but in "
            f"row {start + row} they sum to {float(sums[row])!r}; apply log_softmax to logits"
        )


def _tail_term(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """a phi(log(b / a)) for the probabilities of the tail buckets, shape (n, 1) to (n,); b where a is 0."""
    with np.errstate(divide="ignore"):
        return mass_phi(np, a, b)[:, 0]
