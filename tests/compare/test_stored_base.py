"""Models against files of llama.cpp, by the command and against the exact KL of the two models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kullback.cli import main
from kullback.compare.llama_cpp import write_log_probs

N_CTX, N_CHUNK = 12, 3


@pytest.fixture(scope="module")
def stored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """A file of the tiny model, a changed model, and their exact mean KL."""
    directory = tmp_path_factory.mktemp("stored")
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    changed = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        changed.save_pretrained(directory / "changed")
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory / "changed")
        size = base.get_output_embeddings().weight.shape[0]
        ids = torch.randint(0, size, (N_CHUNK, N_CTX))
        p, q = (model(ids).logits[:, N_CTX // 2 : -1].double().log_softmax(-1) for model in (base, changed))
    write_log_probs(directory / "base.kld", ids.numpy(), p.float().numpy(), n_vocab=size)
    return directory / "base.kld", directory / "changed", float((p.exp() * (p - q)).sum(-1).mean())


def test_the_bound_equals_the_exact_kl_where_nothing_was_cut(
    stored: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    file, model, kl = stored
    assert main(["compare", str(file), str(model), "--bos", "never", "--dtype", "float32", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    bounds = result["models"][0]["bounds"]
    assert result["is_lower_bound"]
    assert (result["cut"], result["bos_token"]) == (None, None)
    np.testing.assert_allclose(bounds["kl"]["value"], kl, rtol=1e-3)
    assert bounds["certain_kl"]["value"] <= kl
    assert bounds["tail_mass"]["value"] < 1e-3
    means = {line["name"]: line["value"] for line in result["models"][0]["llama_cpp"]}
    np.testing.assert_allclose(means["Mean KLD"], kl, rtol=2e-2, atol=2e-4)


def test_the_table_labels_the_bounds(stored: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]) -> None:
    file, model, _ = stored
    assert main(["compare", str(file), str(model), "--bos", "never", "--fail-above", "0"]) == 3
    output = capsys.readouterr().out
    for label in ("KL(base || model), lower bound", "missing mass of the base", "Mean KLD", "Same top p", "was kept"):
        assert label in output


@pytest.mark.parametrize("n_vocab", [5, 5000])
def test_another_vocabulary_is_refused(
    stored: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str], n_vocab: int
) -> None:
    write_log_probs(tmp_path / "other.kld", [[0, 1, 2, 1]], [np.zeros((1, n_vocab))], n_vocab=n_vocab)
    assert main(["compare", str(tmp_path / "other.kld"), str(stored[1]), "--bos", "never"]) == 2
    assert f"expected an output head of {n_vocab} tokens" in capsys.readouterr().err


def test_options_that_need_a_model_are_refused(
    stored: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(stored[0]), str(stored[1]), "--text", "corpus"]) == 2
    assert "--text: expected a model as BASE" in capsys.readouterr().err
    assert main(["compare", str(stored[1]), str(stored[1])]) == 2
    assert "--text: expected a corpus" in capsys.readouterr().err


def test_a_written_base_has_bound_zero_from_itself(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("12+34=46" * 6)
    path = str(tmp_path / "base.kld")
    words = ["--text", str(tmp_path / "text.txt"), "--context", "12", "--bos", "never"]
    assert main(["compare", str(tiny_model), "--write-llama-cpp", path, *words]) == 0
    assert capsys.readouterr().out.startswith("wrote ")
    assert main(["compare", path, str(tiny_model), "--bos", "never", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["models"][0]
    assert model["bounds"]["certain_kl"]["value"] == 0
    assert 0 <= model["bounds"]["kl"]["value"] < 1e-7


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--context", "0"], "--context: expected from 3 to"),
        (["--context", "4000"], "--context: expected from 3 to"),
        (["--floor", "bfloat16"], "--floor: expected a comparison"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    (tmp_path / "text.txt").write_text("12+34=46" * 6)
    start = ["compare", str(tiny_model), "--text", str(tmp_path / "text.txt"), "--write-llama-cpp"]
    assert main([*start, str(tmp_path / "base.kld"), *words]) == 2
    assert expected in capsys.readouterr().err


def test_the_bos_token_replaces_the_first_token_on_request(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    if tokenizer.bos_token_id is None:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(1)
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("12+34=46" * 6)
    model, path = str(tmp_path / "model"), str(tmp_path / "base.kld")
    words = ["--text", str(tmp_path / "text.txt"), "--context", "12", "--bos", "always"]
    assert main(["compare", model, "--write-llama-cpp", path, *words]) == 0
    capsys.readouterr()
    found = {}
    for bos in ("always", "never"):
        assert main(["compare", path, model, "--bos", bos, "--json"]) == 0
        found[bos] = json.loads(capsys.readouterr().out)
    assert found["always"]["bos_token"] == tokenizer.bos_token_id
    assert found["always"]["models"][0]["bounds"]["kl"]["value"] < 1e-7
    assert found["never"]["models"][0]["bounds"]["kl"]["value"] > 1e-6


def test_files_are_not_overwritten_by_accident(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("1+2=3" * 20)
    command = ["compare", str(tiny_model), "--text", str(text), "--context", "16", "--write-llama-cpp"]
    kld = tmp_path / "base.kld"
    assert main([*command, str(kld)]) == 0
    before = kld.read_bytes()
    for path, expected in (
        (text, "expected a new file, but it already exists"),
        (kld, "expected a new file, but it already exists"),
        (tmp_path, "expected the path of a file in a directory that exists"),
        (tmp_path / "no" / "base.kld", "expected the path of a file in a directory that exists"),
    ):
        capsys.readouterr()
        assert main([*command, str(path)]) == 2
        assert expected in capsys.readouterr().err
    assert main([*command, str(text), "--overwrite"]) == 2
    assert "--overwrite replaces a file of llama.cpp only" in capsys.readouterr().err
    assert text.read_text() == "1+2=3" * 20
    assert main([*command, str(kld), "--overwrite"]) == 0
    assert kld.read_bytes() == before


def test_a_model_that_is_not_finite_is_named_in_one_line(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("1+2=3" * 20)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        next(model.parameters())[:] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "nan")
    write = ["--text", str(tmp_path / "text.txt"), "--context", "16", "--write-llama-cpp", str(tmp_path / "base.kld")]
    assert main(["compare", str(tiny_model), *write]) == 0
    capfd.readouterr()
    (tmp_path / "copy.kld").write_bytes((tmp_path / "base.kld").read_bytes())
    (tmp_path / "base.kld").unlink()
    for command in (
        ["compare", str(tmp_path / "nan"), *write],
        ["compare", str(tmp_path / "copy.kld"), str(tmp_path / "nan")],
    ):
        assert main(command) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"kullback: {tmp_path / 'nan'}: expected finite logits, got nan or infinity for ")
        assert error.count("\n") == 1
    assert not (tmp_path / "base.kld").exists()


def test_one_chunk_has_no_interval(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = AutoModelForCausalLM.from_pretrained(tiny_model).get_output_embeddings().weight.shape[0]
    write_log_probs(tmp_path / "base.kld", [[0, 1, 2, 1]], [np.zeros((1, size))], n_vocab=size)
    assert main(["compare", str(tmp_path / "base.kld"), str(tiny_model), "--bos", "never"]) == 0
    assert "[" not in next(line for line in capsys.readouterr().out.splitlines() if "lower bound" in line)
