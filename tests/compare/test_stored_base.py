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
