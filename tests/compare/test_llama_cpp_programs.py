"""Files and servers of llama.cpp itself: its printed statistics, its files and its log-probabilities equal ours.

The programs are built by `make llama-cpp`; LLAMA_CPP_BIN is their directory.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import kullback
from kullback.compare.endpoint import compare_with_endpoint
from kullback.compare.llama_cpp import open_log_probs
from kullback.compare.stored_base import compare_with_file, write_base_file

from ..oracles import llama_cpp_programs
from ..oracles.tiny_gguf import byte_model, write_gguf

PROGRAMS = Path(os.environ.get("LLAMA_CPP_BIN", ""))
pytestmark = pytest.mark.skipif(
    "LLAMA_CPP_BIN" not in os.environ, reason="LLAMA_CPP_BIN is not set: `make llama-cpp` builds the programs"
)
pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")

CONTEXT = 64


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models as GGUF, a text, and the file that llama-perplexity writes for the first model."""
    directory = tmp_path_factory.mktemp("programs")
    byte_model(directory / "base")
    model = byte_model(directory / "changed")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(directory / "changed")
    found = {name: directory / f"{name}.gguf" for name in ("base", "changed", "packed")}
    for name, path in found.items():
        write_gguf(path, directory / ("base" if name == "base" else "changed"), "Q8_0" if name == "packed" else "F32")
    found |= {"text": directory / "text.txt", "kld": directory / "base.kld"}
    found["text"].write_text(Path(__file__).read_text(encoding="utf-8")[:1500], encoding="utf-8")
    words = ("-f", found["text"], "-c", CONTEXT, "-b", CONTEXT)
    llama_cpp_programs.perplexity(PROGRAMS, found["base"], found["kld"], *words)
    return found


def test_the_printed_statistics_equal_ours(files: dict[str, Path]) -> None:
    words = ("-c", CONTEXT, "-b", CONTEXT, "--kl-divergence")
    theirs = llama_cpp_programs.statistics(
        llama_cpp_programs.perplexity(PROGRAMS, files["changed"], files["kld"], *words)
    )
    comparison = compare_with_file(files["kld"], [str(files["changed"])], bos="never")
    lines = comparison.models[0].llama_cpp
    assert len(lines) > 30
    for line in lines:
        value, uncertainty = theirs[line.name]
        step = 1e-2 if line.name.startswith("Cor") else 1e-3 if line.unit == "%" else 1e-6
        assert line.value == pytest.approx(value, rel=3e-6, abs=3 * step), line.name
        if uncertainty is not None:
            assert line.uncertainty == pytest.approx(uncertainty, rel=3e-5, abs=3 * step), line.name


def test_our_file_equals_the_file_of_the_program(files: dict[str, Path], tmp_path: Path) -> None:
    write_base_file(tmp_path / "ours.kld", str(files["base"]), files["text"], context=CONTEXT, bos="never")
    ours, theirs = open_log_probs(tmp_path / "ours.kld"), open_log_probs(files["kld"])
    assert (ours.n_ctx, ours.n_vocab, ours.n_chunk) == (theirs.n_ctx, theirs.n_vocab, theirs.n_chunk)
    for own, other in zip(ours.blocks(), theirs.blocks(), strict=True):
        np.testing.assert_array_equal(own.targets, other.targets)
        np.testing.assert_allclose(own.rows.scale, other.rows.scale, rtol=1e-4)
        np.testing.assert_allclose(own.rows.min_log_prob, other.rows.min_log_prob, rtol=1e-4)
        assert np.abs(own.rows.codes.astype(int) - other.rows.codes.astype(int)).max() <= 8
    words = ("-c", CONTEXT, "-b", CONTEXT, "--kl-divergence")
    read = [
        llama_cpp_programs.statistics(llama_cpp_programs.perplexity(PROGRAMS, files["changed"], path, *words))
        for path in (tmp_path / "ours.kld", files["kld"])
    ]
    assert read[0]["Mean KLD"][0] == pytest.approx(read[1]["Mean KLD"][0], rel=1e-4)


def test_dequantised_weights_differ_from_the_packed_kernels_by_rounding(files: dict[str, Path]) -> None:
    words = ("-c", CONTEXT, "-b", CONTEXT, "--kl-divergence")
    theirs = llama_cpp_programs.statistics(
        llama_cpp_programs.perplexity(PROGRAMS, files["packed"], files["kld"], *words)
    )
    comparison = compare_with_file(files["kld"], [str(files["packed"])], bos="never")
    ours = {line.name: line.value for line in comparison.models[0].llama_cpp}
    assert ours["Mean KLD"] == pytest.approx(theirs["Mean KLD"][0], rel=0.02)
    assert ours["Mean KLD"] != pytest.approx(theirs["Mean KLD"][0], rel=1e-5)
    assert any("llama.cpp computes with packed weights" in warning for warning in comparison.warnings)


def test_all_log_probabilities_of_llama_server_give_the_exact_kl(files: dict[str, Path]) -> None:
    texts = [files["text"].read_text(encoding="utf-8")[:90], "A tänzer ☃ in the inner ring"]
    exact = kullback.compare(files["base"], files["changed"], text=texts).models[0].metrics
    with llama_cpp_programs.server(PROGRAMS, files["changed"], 256) as url:
        name = f"openai:{url}#tiny"
        whole = (
            compare_with_endpoint(str(files["base"]), [name], text=texts, top=1000, sampled_positions=0)
            .models[0]
            .metrics
        )
        part = (
            compare_with_endpoint(str(files["base"]), [name], text=texts, top=20, sampled_positions=0).models[0].metrics
        )
    for direction in ("kl", "reverse_kl"):
        assert whole[direction].value == pytest.approx(exact[direction].value, rel=1e-4)
        assert part[direction].value < exact[direction].value
    assert part["reverse_kl_upper"].value > exact["reverse_kl"].value
