"""The file of base log-probabilities of llama.cpp: bytes, KL bounds against exact sums, and damaged files."""

import contextlib
import math
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kullback.compare.llama_cpp import EncodedRows, encode_rows, kl_bounds, open_log_probs, write_log_probs
from kullback.errors import ArrayTypeError, InputError, KullbackError, NotNormalizedError, ShapeError, SupportError


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.float64(logits) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def to_float(value: float) -> float:
    """A number rounded to float32."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def encode_one(logits: list[float], cut: float) -> bytes:
    """The bytes of one row, number by number: each operation in float32, halves rounded to even."""
    top = max(logits)
    low = max(min(logits), to_float(top - cut))
    log_sum = to_float(math.log(math.fsum(math.exp(z - top) for z in logits)))
    scale = to_float(to_float(top - low) / 65535)
    smallest = to_float(to_float(low - top) - log_sum)
    codes = [0] * len(logits)
    if scale > 3e-39:  # the inverse of a smaller scale overflows in float32
        inverse = to_float(1 / scale)
        codes = [round(to_float(inverse * to_float(z - low))) if z > low else 0 for z in logits]
    codes += [0] * (len(codes) % 2)
    return struct.pack(f"<2f{len(codes)}H", scale, smallest, *codes)


def small_file(path: Path, *, n_chunk: int = 2, n_ctx: int = 7, n_vocab: int = 5, cut: float = 16.0) -> np.ndarray:
    """Write a file of random logits, and return the logits, shape (n_chunk, rows, n_vocab)."""
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(0, 6, (n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab)))
    write_log_probs(path, rng.integers(0, n_vocab, (n_chunk, n_ctx)), logits, n_vocab=n_vocab, cut=cut)
    return logits


# The bytes.


@pytest.mark.parametrize("n_ctx", [3, 4, 7, 8])
@pytest.mark.parametrize("n_vocab", [1, 2, 5, 6])
@pytest.mark.parametrize("cut", [16.0, 24.0])
def test_files_have_the_bytes_of_the_format(tmp_path: Path, n_ctx: int, n_vocab: int, cut: float) -> None:
    logits = small_file(tmp_path / "a", n_ctx=n_ctx, n_vocab=n_vocab, cut=cut)
    file = open_log_probs(tmp_path / "a")
    header = b"_logits_" + struct.pack("<3i", n_ctx, n_vocab, 2) + file.tokens.astype("<i4").tobytes()
    rows = [encode_one([float(z) for z in row], cut) for row in logits.reshape(-1, n_vocab)]
    assert (tmp_path / "a").read_bytes() == header + b"".join(rows)


@given(
    st.lists(st.floats(-40, 40, width=32) | st.just(-math.inf), min_size=1, max_size=9).filter(
        lambda row: max(row) > -math.inf
    ),
    st.sampled_from([16.0, 24.0]),
)
@example([0.0, -8.0, -16.0], 16.0)
@example([1e-38, 0.0], 16.0)
def test_rows_are_encoded_as_number_by_number(row: list[float], cut: float) -> None:
    rows = encode_rows([row], cut=cut)
    codes = [*rows.codes[0].tolist(), *[0] * (len(row) % 2)]
    expected = encode_one(row, cut)
    if rows.scale[0]:
        assert struct.pack("<f", rows.scale[0]) == expected[:4]
    else:  # a scale whose inverse overflows in float32 is replaced by 0
        assert abs(struct.unpack("<f", expected[:4])[0]) < 3e-39
    # The logarithm of the sum of float32 exponentials may differ by one unit in the last place.
    assert rows.min_log_prob[0] == pytest.approx(struct.unpack("<f", expected[4:8])[0], rel=3e-7)
    if rows.scale[0]:
        assert struct.pack(f"<{len(codes)}H", *codes) == expected[8:]


def test_rows_predict_the_second_half_of_each_chunk(tmp_path: Path) -> None:
    logits = small_file(tmp_path / "a", n_chunk=3, n_ctx=8)
    file = open_log_probs(tmp_path / "a")
    blocks = list(file.blocks(max_rows=2))
    assert [(block.chunk, block.start, len(block.targets)) for block in blocks] == [
        (chunk, start, size) for chunk in range(3) for start, size in ((0, 2), (2, 1))
    ]
    for block in blocks:
        end = block.start + len(block.targets)
        assert block.targets.tolist() == file.tokens[block.chunk, 5 + block.start : 5 + end].tolist()
        expected = encode_rows(logits[block.chunk, block.start : end])
        for part, own in zip(block.rows, expected, strict=True):
            assert np.array_equal(part, own)
    assert [block.chunk for block in file.blocks([2, 0], max_rows=99)] == [2, 0]
    with pytest.raises(InputError, match="chunk from 0 to 2, got 3"):
        next(file.blocks([3]))
    with pytest.raises(InputError, match="max_rows"):
        next(file.blocks(max_rows=0))


def test_the_first_token_of_a_chunk_is_replaced_only_on_request(tmp_path: Path) -> None:
    small_file(tmp_path / "a")
    file = open_log_probs(tmp_path / "a")
    original = file.tokens[1].tolist()
    assert file.inputs(1, bos_token=None).tolist() == original
    assert file.inputs(1, bos_token=4).tolist() == [4, *original[1:]]
    assert file.tokens[1].tolist() == original
    for token in (-1, 5):
        with pytest.raises(InputError, match=f"BOS token from 0 to 4, got {token}"):
            file.inputs(0, bos_token=token)


def test_the_cut_is_recognised(tmp_path: Path) -> None:
    for cut in (16.0, 24.0):
        small = [[[0.0, -3.0, -40.0]]]
        write_log_probs(tmp_path / "a", [[0, 1, 2]], small, n_vocab=3, cut=cut)
        assert open_log_probs(tmp_path / "a").find_cut() == cut
    write_log_probs(tmp_path / "a", [[0, 1, 2]], [[[0.0, -3.0, -20.0]]], n_vocab=3, cut=24.0)
    assert open_log_probs(tmp_path / "a").find_cut() is None
    write_log_probs(tmp_path / "a", [[0, 1, 2]], [[[9000.0, 8996.0, 1.0]]], n_vocab=3)
    assert open_log_probs(tmp_path / "a").find_cut() == 16.0


# The bounds.


def exact_kls(p_logits: np.ndarray, q_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(p || q) and KL(q || p) of float64 softmaxes; tokens of probability 0 contribute nothing."""
    p, q = log_softmax(p_logits), log_softmax(q_logits)

    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.where(a > -np.inf, np.exp(a) * (a - b), 0.0).sum(-1)

    return kl(p, q), kl(q, p)


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a base and of a model that is near to it or far from it, with ties and impossible tokens."""
    size = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = np.float32(draw(st.sampled_from([0.0, 1e-3, 1.0, 5.0, 12.0])) * rng.normal(size=size))
    base[draw(st.lists(st.integers(0, size - 1), max_size=5))] = draw(st.sampled_from([0.0, -16.0, -24.0, -50.0]))
    base += np.float32(draw(st.sampled_from([0.0, 0.0, 1e3, -1e4])))
    model = np.float64(base) + draw(st.sampled_from([0.0, 1e-5, 1e-2, 1.0, 8.0])) * rng.normal(size=size)
    return base, model


@given(logit_pairs(), st.sampled_from([16.0, 24.0]))
@settings(max_examples=200)
def test_bounds_are_below_the_exact_kl(pair: tuple[np.ndarray, np.ndarray], cut: float) -> None:
    base, model = pair
    bounds = kl_bounds(encode_rows(base[None], cut=cut), log_softmax(model))
    assert all((value >= 0).all() for value in bounds)
    kl, reverse = exact_kls(base, model)
    slack = 1e-12 * (1 + abs(model).max())  # of the exact sums
    assert bounds.certain_kl <= kl + slack
    assert bounds.certain_reverse_kl <= reverse + slack
    assert bounds.certain_kl <= bounds.kl + slack
    assert bounds.certain_reverse_kl <= bounds.reverse_kl + slack
    p = np.exp(log_softmax(base))
    below = log_softmax(base) < log_softmax(base).max() - 16.1
    if cut == 16:
        assert bounds.tail_mass >= p[below].sum() - 1e-12
    assert bounds.tail_mass <= 1


@pytest.mark.parametrize("distance", [1e-4, 1e-2, 0.3])
def test_bounds_are_close_to_the_kl_with_one_tail_bucket(distance: float) -> None:
    rng = np.random.default_rng(1)
    base = np.float32(rng.normal(0, 3.2, (200, 5000)))
    base[:, 0] += 6
    model = base + distance * rng.normal(size=base.shape)
    p, q = np.exp(log_softmax(base)), np.exp(log_softmax(model))
    rows = encode_rows(base)
    cut = rows.codes == 0
    assert 20 < cut.sum(1).mean() < 4000
    lumped = [
        np.concatenate([np.where(cut, 0, mass), np.where(cut, mass, 0).sum(1, keepdims=True)], axis=1)
        for mass in (p, q)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(lumped[0] > 0, np.log(lumped[0]) - np.log(lumped[1]), 0)
    kl, reverse = (lumped[0] * ratios).sum(1), -(lumped[1] * ratios).sum(1)
    bounds = kl_bounds(rows, log_softmax(model))
    # The tail is at its most favourable value, and rounding the codes adds scale^2 / 24 on average.
    rounding = 5e-9 + 2e-5 * distance
    assert abs((bounds.kl - kl).mean()) < rounding
    assert abs((bounds.reverse_kl - reverse).mean()) < rounding
    assert (bounds.kl - bounds.certain_kl < 1.4e-4 * (lumped[0] * abs(ratios)).sum(1) + 1e-8).all()


def test_equal_models_have_no_ghost_mass() -> None:
    rng = np.random.default_rng(2)
    base = np.float32(rng.normal(0, 3.5, (50, 20_000)))
    rows = encode_rows(base)
    naive = np.exp(np.float64(rows.scale)[:, None] * rows.codes + np.float64(rows.min_log_prob)[:, None]).sum(1)
    assert (naive - 1).max() > 2e-4
    bounds = kl_bounds(rows, log_softmax(base))
    assert bounds.kl.max() < 1e-8
    assert bounds.reverse_kl.max() < 1e-8
    assert bounds.certain_kl.max() == 0
    p = np.exp(log_softmax(base))
    assert (bounds.tail_mass >= np.where(rows.codes == 0, p, 0).sum(1)).all()
    assert (bounds.tail_mass < np.where(rows.codes == 0, p, 0).sum(1) + 2.6e-4).all()


def test_rows_that_were_not_cut_have_no_tail() -> None:
    base = np.float32([[0.0, -1.0, -1.0], [0.0, 0.0, 0.0], [0.0, -15.0, -15.0]])
    model = log_softmax(np.float32([[0.0, -1.5, -0.5], [0.0, 1.0, 2.0], [0.0, -1.0, -2.0]]))
    bounds = kl_bounds(encode_rows(base), model)
    kl, reverse = exact_kls(base, model)
    assert bounds.tail_mass.tolist() == [0, 0, 0]
    assert bounds.kl == pytest.approx(kl, rel=1e-4)
    assert bounds.reverse_kl == pytest.approx(reverse, rel=1e-4)
    assert bounds.kl[1] == pytest.approx(kl[1], rel=1e-6)  # equal logits are exact


def test_impossible_tokens_of_the_model() -> None:
    rows = encode_rows([[0.0, -1.0, -30.0], [0.0, -1.0, -30.0]])
    with np.errstate(divide="ignore"):
        model = np.log([[1.0, 0.0, 0.0], [0.7, 0.3, 0.0]])
    bounds = kl_bounds(rows, model)
    assert bounds.kl[0] == bounds.certain_kl[0] == math.inf
    assert bounds.reverse_kl[0] == pytest.approx(np.log1p(np.exp(-1)), rel=1e-3)
    # The base may have no probability in its tail, which the cut does not determine.
    assert bounds.kl[1] < 0.01
    assert bounds.model_tail_mass.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounded_normalisation_is_second_order(dtype: type) -> None:
    rng = np.random.default_rng(3)
    base = np.float32(rng.normal(0, 3, (20, 3000)))
    exact = log_softmax(base + 0.01 * rng.normal(size=base.shape))
    rows = encode_rows(base)
    bounds, shifted = kl_bounds(rows, exact), kl_bounds(rows, (exact + 3e-6).astype(dtype))
    assert shifted.kl == pytest.approx(bounds.kl, rel=1e-3)
    assert (shifted.certain_kl < bounds.certain_kl * (1 + 1e-3)).all()


def test_one_row_and_no_row() -> None:
    rows = encode_rows([[0.0, -1.0]])
    assert kl_bounds(rows, np.log([0.5, 0.5])).kl.shape == (1,)
    assert kl_bounds(encode_rows(np.zeros((0, 2))), np.zeros((0, 2))).kl.shape == (0,)


# Invalid arguments and damaged files.


@pytest.mark.parametrize(
    ("log_probs", "error", "words"),
    [
        ([[0.0, 1.0]], NotNormalizedError, r"sum to 1 within .* row 0 they sum to 3\.7.*log_softmax"),
        ([[math.nan, -1.0]], NotNormalizedError, "row 0 they sum to .*nan"),
        ([[800.0, -1.0]], NotNormalizedError, "row 0 they sum to .*inf"),
        ([[0.0, -1.0, 3.0]], ShapeError, r"\(1, 2\)"),
        ([["a", "b"]], ArrayTypeError, "real numbers"),
    ],
)
def test_invalid_log_probs_raise(log_probs: list, error: type[KullbackError], words: str) -> None:
    with pytest.raises(error, match=words):
        kl_bounds(encode_rows([[0.0, -1.0]]), log_probs)


def test_a_sum_that_exceeds_1_by_rounding_keeps_bounds_finite() -> None:
    rows = encode_rows([[0.0, -1.0, -2.0, -30.0]])
    rows = EncodedRows(rows.scale, rows.min_log_prob + np.float32(5e-4), rows.codes)
    bounds = kl_bounds(rows, log_softmax(np.float32([0.0, -1.0, -2.0, -20.0])))
    assert bounds.kl < 1e-6
    assert bounds.reverse_kl < 1e-6
    assert 0 < bounds.tail_mass < 2e-7


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_rows_whose_probabilities_do_not_sum_to_1_raise(factor: float) -> None:
    rows = encode_rows([[0.0, -1.0, -2.0]])
    wrong = EncodedRows(rows.scale, rows.min_log_prob + np.float32(np.log(factor)), rows.codes)
    with pytest.raises(NotNormalizedError, match=r"row 0 of the block .* damaged"):
        kl_bounds(wrong, log_softmax(np.zeros(3)))


@pytest.mark.parametrize(
    ("logits", "error", "words"),
    [
        ([[math.nan, 1.0]], SupportError, "row 0 is nan"),
        ([[0.0, 1.0], [math.inf, 1.0]], SupportError, "row 1 is inf"),
        ([[-math.inf, -math.inf]], SupportError, "row 0 is -inf"),
        ([0.0, 1.0], ShapeError, r"\(n, V\)"),
        ([["a"]], ArrayTypeError, "real numbers"),
    ],
)
def test_logits_that_cannot_be_encoded_raise(logits: list, error: type[KullbackError], words: str) -> None:
    with pytest.raises(error, match=words):
        encode_rows(logits)


def test_other_cuts_raise() -> None:
    with pytest.raises(SupportError, match="16 nats"):
        encode_rows([[0.0, 1.0]], cut=20)


@pytest.mark.parametrize(
    ("tokens", "logits", "error", "words"),
    [
        ([[0, 1, 2]], [], ShapeError, "expected 1 rows .* got 0"),
        ([[0, 1, 2]], [np.zeros((1, 3))] * 2, ShapeError, r"after 1 rows"),
        ([[0, 1, 2]], [np.zeros((1, 4))], ShapeError, r"of 3 logits .* \(1, 4\)"),
        ([[0, 1]], [], ShapeError, "n_ctx >= 3"),
        ([[0, 1, 3]], [np.zeros((1, 3))], SupportError, "from 0 to n_vocab - 1 = 2, got 0 to 3"),
        ([[0.0, 1.0, 2.0]], [np.zeros((1, 3))], ArrayTypeError, "integers"),
        ([[0, 1, 2]], [np.full((1, 3), np.nan)], SupportError, "nan"),
    ],
)
def test_a_write_that_fails_keeps_the_old_file(
    tmp_path: Path, tokens: list, logits: list, error: type[KullbackError], words: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error, match=words):
        write_log_probs(tmp_path / "a", tokens, iter(logits), n_vocab=3)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_path_that_cannot_be_written_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory that exists"):
        write_log_probs(tmp_path / "no" / "a", [[0, 1, 2]], [np.zeros((1, 3))], n_vocab=3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"starts with the bytes _logits_, got b'' in a file of 0 bytes"),
        (b"GGUF\0\0\0\0\0\0\0\0", "starts with the bytes _logits_"),
        (b"_logits_", "header of 20 bytes, got 8"),
        (b"_logits_" + struct.pack("<3i", 8, 5, 0), "n_chunk 0"),
        (b"_logits_" + struct.pack("<3i", 8, -5, 1), "n_vocab -5"),
        (b"_logits_" + struct.pack("<3i", 2, 5, 1), "n_ctx >= 3.* got n_ctx 2"),
        (b"_logits_" + struct.pack("<3i", *[2**31 - 1] * 3), r"has 0 of 2147483647 chunks: it is truncated"),
    ],
)
def test_wrong_headers_raise_without_an_allocation(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=words) as found:
            open_log_probs(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["absent", ".", "nul\0"])
def test_paths_that_are_no_files_raise(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"does not exist|is a directory|cannot be read"):
        open_log_probs(tmp_path / name)


def test_truncated_and_extended_files_raise(tmp_path: Path) -> None:
    small_file(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for size in range(8, len(content), 3):
        (tmp_path / "a").write_bytes(content[:size])
        with pytest.raises(InputError, match="truncated"):
            open_log_probs(tmp_path / "a")
    (tmp_path / "a").write_bytes(content[:-1])
    with pytest.raises(InputError, match="1 of 2 chunks"):
        open_log_probs(tmp_path / "a")
    (tmp_path / "a").write_bytes(content + b"\0")
    with pytest.raises(InputError, match="1 bytes after its end"):
        open_log_probs(tmp_path / "a")


def damaged(path: Path, offset: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize("token", [-1, 5, 2**31 - 1, -(2**31)])
def test_token_ids_outside_of_the_vocabulary_raise(tmp_path: Path, token: int) -> None:
    small_file(tmp_path / "a")
    damaged(tmp_path / "a", 20 + 4 * 9, struct.pack("<i", token))
    with pytest.raises(InputError, match=f"0 to 4, got {token} at position 2 of chunk 1"):
        open_log_probs(tmp_path / "a")


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1e-4, 1.0, 3e38])
def test_impossible_scales_raise(tmp_path: Path, scale: float) -> None:
    small_file(tmp_path / "a")
    damaged(tmp_path / "a", 20 + 4 * 14 + 20 * 4, struct.pack("<f", scale))
    file = open_log_probs(tmp_path / "a")
    with pytest.raises(InputError, match=r"scale from 0 .* row 1 of chunk 1"):
        list(file.blocks())
    with pytest.raises(InputError, match=r"scale from 0 .* row 1 of chunk 1"):
        file.find_cut()


@pytest.mark.parametrize("smallest", [math.nan, math.inf, -math.inf, 0.0, -60.0])
def test_impossible_log_probs_raise(tmp_path: Path, smallest: float) -> None:
    small_file(tmp_path / "a")
    damaged(tmp_path / "a", 20 + 4 * 14 + 20 * 4 + 4, struct.pack("<f", smallest))
    with pytest.raises(InputError, match=r"largest log-probability from .* row 1 of chunk 1"):
        list(open_log_probs(tmp_path / "a").blocks(max_rows=1))


def read_whole(path: Path) -> None:
    """Open a file and compute the bounds of all its rows; the results are numbers."""
    file = open_log_probs(path)
    assert file.find_cut() in (None, 16.0, 24.0)
    file.inputs(file.n_chunk - 1, bos_token=0)
    for block in file.blocks():
        bounds = kl_bounds(block.rows, np.full(block.rows.codes.shape, -np.log(file.n_vocab)))
        assert not np.isnan(bounds).any()


FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.binary(max_size=200), st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 6), min_size=3, max_size=3))
@FUZZ
def test_random_bytes_are_read_or_raise(tmp_path: Path, content: bytes, header: list[int]) -> None:
    for start in (b"", b"_logits_", b"_logits_" + struct.pack("<3i", *header)):
        (tmp_path / "a").write_bytes(start + content)
        with pytest.raises(KullbackError):
            read_whole(tmp_path / "a")


@given(st.data())
@FUZZ
def test_flipped_bits_are_read_or_raise(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "whole").exists():
        small_file(tmp_path / "whole")
    content = bytearray((tmp_path / "whole").read_bytes())
    for position in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), max_size=4)):
        content[position // 8] ^= 1 << position % 8
    size = data.draw(st.sampled_from([len(content)] * 3 + [len(content) // 2]))
    (tmp_path / "a").write_bytes(content[:size])
    with contextlib.suppress(KullbackError):
        read_whole(tmp_path / "a")


def test_random_rows_are_read_or_raise(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    header = b"_logits_" + struct.pack("<6i", 3, 4, 1, 0, 1, 2)
    for _ in range(100):
        (tmp_path / "a").write_bytes(header + rng.bytes(16))
        with pytest.raises(KullbackError):
            read_whole(tmp_path / "a")


def test_a_large_file_needs_the_memory_of_one_block(tmp_path: Path) -> None:
    n_ctx, n_vocab, n_chunk = 64, 30_001, 40
    size = 20 + 4 * n_ctx * n_chunk + n_chunk * 31 * (8 + 2 * 30_002)
    with (tmp_path / "a").open("wb") as file:  # 74 MB of zeros, which take no space on most systems
        file.write(b"_logits_" + struct.pack("<3i", n_ctx, n_vocab, n_chunk))
        file.truncate(size)
    tracemalloc.start()
    try:
        opened = open_log_probs(tmp_path / "a")
        assert sum(len(block.targets) for block in opened.blocks(max_rows=4)) == 31 * n_chunk
        opened.find_cut()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_writing_streams_its_rows(tmp_path: Path) -> None:
    def blocks():
        for _ in range(62):
            yield np.zeros((10, 5000), np.float32)

    tracemalloc.start()
    try:
        write_log_probs(tmp_path / "a", np.zeros((20, 64), int), blocks(), n_vocab=5000)
        assert tracemalloc.get_traced_memory()[1] < 2_500_000
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a").stat().st_size > 6_000_000
