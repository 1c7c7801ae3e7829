"""llama.cpp's file and statistics, against its own code, the definitions token by token and NumPy's percentiles."""

import base64
import json
import math
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from kullback.compare.llama_cpp import encode_rows, kl_bounds, open_log_probs, write_log_probs
from kullback.compare.llama_cpp_statistics import LlamaCppTokens, llama_cpp_statistics, llama_cpp_tokens
from kullback.errors import KullbackError, ShapeError, SupportError

TESTS = Path(__file__).parents[1]
LLAMA_CPP = json.loads((TESTS / "data" / "llama_cpp.json").read_text(encoding="utf-8"))

sys.path.insert(0, str(TESTS / "oracles"))
oracle = import_module("llama_cpp_perplexity")
sys.path.remove(str(TESTS / "oracles"))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.float64(logits) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def sample(n: int = 300, size: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a base and of a model, and targets."""
    rng = np.random.default_rng(0)
    base = np.float32(rng.normal(0, 4, (n, size)))
    targets = (base + rng.gumbel(size=base.shape)).argmax(1)
    return base, np.float32(base + 0.3 * rng.normal(size=base.shape)), targets


# The results of the functions of llama.cpp, which tests/oracles/llama_cpp_perplexity.py compiles and stores.


@pytest.mark.parametrize("cut", [16.0, 24.0])
def test_the_file_has_the_bytes_of_llama_cpp(tmp_path: Path, cut: float) -> None:
    text = oracle.tokens()
    rows = oracle.logits(False)[:, oracle.N_CTX // 2 : -1]
    write_log_probs(tmp_path / "own", text, rows, n_vocab=oracle.N_VOCAB, cut=cut)
    stored = base64.b64decode(LLAMA_CPP["files"][f"{cut:.0f}"])
    assert (tmp_path / "own").read_bytes() == stored
    (tmp_path / "theirs").write_bytes(stored)
    file = open_log_probs(tmp_path / "theirs")
    assert np.array_equal(file.tokens, text)
    assert file.find_cut() == cut
    evaluated = np.concatenate([file.inputs(chunk, bos_token=oracle.BOS) for chunk in range(file.n_chunk)])
    assert evaluated.ravel().tolist() == list(map(int, LLAMA_CPP["evaluated_tokens"].split()))


def test_the_statistics_are_those_that_llama_cpp_prints(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(base64.b64decode(LLAMA_CPP["files"]["16"]))
    file, parts = open_log_probs(tmp_path / "base"), []
    for block in file.blocks(max_rows=3):
        start = file.first_row + block.start
        model = oracle.logits(True)[block.chunk, start : start + len(block.targets)]
        parts.append(llama_cpp_tokens(block.rows, block.targets, log_softmax(model)))
    tokens = LlamaCppTokens(*map(np.concatenate, zip(*parts, strict=True)))
    printed = LLAMA_CPP["statistics"]
    found = llama_cpp_statistics(tokens)
    assert [line.name for line in found] == [name for name, _, _ in printed]
    for line, (name, value, error) in zip(found, printed, strict=True):
        for own, text in ((line.value, value), (line.uncertainty, error)):
            assert (own is None) == (text == ""), name
            if own is not None:
                # Within one unit of the last digit that is printed.
                digit = 10.0 ** -len(text.partition(".")[2])
                assert own == pytest.approx(float(text), rel=1e-6, abs=1.001 * digit), name


def test_the_bounds_are_below_the_exact_kl_of_the_models_in_the_file_of_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(base64.b64decode(LLAMA_CPP["files"]["16"]))
    file = open_log_probs(tmp_path / "base")
    first = file.first_row
    for block in file.blocks():
        log_p, log_q = (log_softmax(oracle.logits(model)[block.chunk, first:-1]) for model in (False, True))
        exact = (np.exp(log_p) * (log_p - log_q)).sum(1)
        bounds = kl_bounds(block.rows, log_q)
        assert (bounds.certain_kl <= exact).all()
        assert bounds.kl == pytest.approx(exact, rel=2e-3, abs=1e-6)
        assert (bounds.kl > 0).all()


# Definitions.


def test_tokens_match_the_definitions_computed_one_by_one() -> None:
    base, model, targets = sample(40)
    rows, log_q = encode_rows(base), np.float32(log_softmax(model))
    tokens = llama_cpp_tokens(rows, targets, log_q)
    for row, target in enumerate(targets):
        decoded = [float(rows.scale[row]) * int(code) + float(rows.min_log_prob[row]) for code in rows.codes[row]]
        terms = [math.exp(p) * (p - float(q)) for p, q in zip(decoded, log_q[row], strict=True) if p > -16]
        assert tokens.kld[row] == pytest.approx(math.fsum(terms), rel=2e-5, abs=2e-6)
        assert tokens.nll[row] == -log_q[row, target]
        assert tokens.nll_base[row] == pytest.approx(-decoded[target], rel=1e-6)
        change = math.exp(log_q[row, target]) - math.exp(decoded[target])
        assert tokens.delta_p[row] == pytest.approx(change, abs=1e-6)
        assert tokens.same_top[row] == (np.argmax(decoded) == np.argmax(log_q[row]))


def test_statistics_match_their_definitions() -> None:
    base, model, targets = sample()
    tokens = llama_cpp_tokens(encode_rows(base), targets, log_softmax(model))
    found = {line.name: line for line in llama_cpp_statistics(tokens)}
    assert len(found) == 6 + 12 + 15 + 1
    n = len(targets)
    nll, nll_base, kld, delta, same = (np.float64(part) for part in tokens)

    def sem(values: np.ndarray) -> float:
        return values.std(ddof=1) / math.sqrt(n)

    ppl, ppl_base = np.exp(nll.mean()), np.exp(nll_base.mean())
    covariance = np.cov(nll, nll_base)[0, 1] / n
    expected = {
        "Mean PPL(Q)": (ppl, ppl * sem(nll)),
        "Mean PPL(base)": (ppl_base, ppl_base * sem(nll_base)),
        "Cor(ln(PPL(Q)), ln(PPL(base)))": (100 * np.corrcoef(nll, nll_base)[0, 1], None),
        "Mean ln(PPL(Q)/PPL(base))": ((nll - nll_base).mean(), sem(nll - nll_base)),
        "Mean PPL(Q)/PPL(base)": (ppl / ppl_base, ppl / ppl_base * sem(nll - nll_base)),
        "Mean PPL(Q)-PPL(base)": (
            ppl - ppl_base,
            math.sqrt((ppl * sem(nll)) ** 2 + (ppl_base * sem(nll_base)) ** 2 - 2 * ppl * ppl_base * covariance),
        ),
        "Mean KLD": (kld.mean(), sem(kld)),
        "Maximum KLD": (kld.max(), None),
        "Median KLD": (np.median(kld), None),
        "Minimum KLD": (kld.min(), None),
        "Mean Δp": (100 * delta.mean(), 100 * sem(delta)),
        "Maximum Δp": (100 * delta.max(), None),
        "Minimum Δp": (100 * delta.min(), None),
        "RMS Δp": (
            100 * math.sqrt((delta**2).mean()),
            100 * 0.5 * sem(delta**2) / math.sqrt((delta**2).mean()),
        ),
        "Same top p": (100 * same.mean(), 100 * sem(same)),
    }
    for name, (value, error) in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-6), name
        assert (found[name].uncertainty is None) == (error is None)
        assert error is None or found[name].uncertainty == pytest.approx(error, rel=1e-6), name
    for percent in (99.9, 99, 95, 90, 10, 5, 1, 0.1):
        assert found[f"{percent:.1f}% KLD"].value == pytest.approx(np.percentile(kld, percent), rel=1e-4)
    for percent in (99.9, 99, 95, 90, 75, 25, 10, 5, 1, 0.1):
        assert found[f"{percent:.1f}% Δp"].value == pytest.approx(100 * np.percentile(delta, percent), rel=1e-4)


def test_statistics_do_not_depend_on_the_order_of_tokens() -> None:
    base, model, targets = sample(101)
    tokens = llama_cpp_tokens(encode_rows(base), targets, log_softmax(model))
    order = np.random.default_rng(1).permutation(101)
    assert llama_cpp_statistics(LlamaCppTokens(*(part[order] for part in tokens))) == llama_cpp_statistics(tokens)


def test_an_infinite_kld_and_few_tokens() -> None:
    tokens = LlamaCppTokens(*(np.float32([1, 2]) for _ in range(2)), np.float32([0, np.inf]), *np.zeros((2, 2)))
    found = {line.name: line for line in llama_cpp_statistics(tokens)}
    assert found["Mean KLD"].value == found["Maximum KLD"].value == math.inf
    assert math.isnan(found["Mean KLD"].uncertainty)
    assert math.isnan(found["Mean PPL(Q)"].uncertainty)
    assert found["Minimum KLD"].value == 0
    one = LlamaCppTokens(*np.ones((5, 1)))
    assert {line.name: line.value for line in llama_cpp_statistics(one)}["99.9% KLD"] == 1


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (LlamaCppTokens(*np.ones((5, 0))), ShapeError, "one token or more"),
        (LlamaCppTokens(*np.ones((4, 3)), np.ones(2)), ShapeError, r"\(2,\)"),
        (LlamaCppTokens(*np.full((5, 2), np.nan)), SupportError, "nll to be a number, got nan at token 0"),
    ],
)
def test_invalid_tokens_raise(tokens: LlamaCppTokens, error: type[KullbackError], words: str) -> None:
    with pytest.raises(error, match=words):
        llama_cpp_statistics(tokens)


@pytest.mark.parametrize(
    ("targets", "error"), [([0, 1], ShapeError), ([2], SupportError), ([-1], SupportError), ([0.0], ShapeError)]
)
def test_invalid_targets_raise(targets: list, error: type[KullbackError]) -> None:
    with pytest.raises(error):
        llama_cpp_tokens(encode_rows([[0.0, 1.0]]), targets, log_softmax(np.zeros((1, 2))))
