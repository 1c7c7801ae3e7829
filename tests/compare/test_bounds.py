"""Comparisons of bounds: what the run directory has, how it continues, and what an earlier result must have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kullback.cli import main
from kullback.compare.llama_cpp import write_log_probs
from kullback.compare.stored_base import compare_with_file

N_CTX, N_CHUNK = 12, 6


@pytest.fixture(scope="module")
def stored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of the tiny model, and a changed model."""
    directory = tmp_path_factory.mktemp("stored")
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    torch.manual_seed(0)
    ids = torch.randint(0, base.config.vocab_size, (N_CHUNK, N_CTX))
    with torch.no_grad():
        p = base(ids).logits[:, N_CTX // 2 : -1].log_softmax(-1)
        for parameter in base.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    base.save_pretrained(directory / "changed")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory / "changed")
    write_log_probs(directory / "base.kld", ids.numpy(), p.numpy(), n_vocab=base.config.vocab_size)
    return directory / "base.kld", directory / "changed"


def words_of(stored: tuple[Path, Path], tiny_model: Path, *more: object) -> list[str]:
    return ["compare", str(stored[0]), str(stored[1]), str(tiny_model), "--bos", "never", *map(str, more)]


def test_a_killed_run_continues_with_the_same_results(
    stored: tuple[Path, Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(words_of(stored, tiny_model, "--output", run)) == 0
    output, errors = capsys.readouterr()
    assert "compare.html is not written, because it shows the exact KL" in errors
    assert f"{stored[1]} minus {tiny_model}" in output
    whole = (run / "result.json").read_bytes()
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == [
        "config.json",
        "parts-0.jsonl",
        "result.json",
    ]
    lines = (run / "parts-0.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * N_CHUNK
    (run / "parts-0.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])
    (run / "result.json").unlink()
    assert main(words_of(stored, tiny_model, "--output", run)) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(words_of(stored, tiny_model, "--output", run, "--resume", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(whole)
    assert (run / "result.json").read_bytes() == whole
    assert len((run / "parts-0.jsonl").read_bytes().splitlines()) == 2 * N_CHUNK
    assert main([*words_of(stored, tiny_model, "--output", run, "--resume"), "--dtype", "float64"]) == 2
    assert "was started with" in capsys.readouterr().err
    intact = lines[2]
    digit = next(i for i in range(len(intact) // 2, len(intact)) if intact[i : i + 1] in b"12345678")
    changed = intact[:digit] + bytes([intact[digit] + 1]) + intact[digit + 1 :]
    for damaged in (b"{}\n", changed):
        lines[2] = damaged
        (run / "parts-0.jsonl").write_bytes(b"".join(lines))
        (run / "result.json").unlink()
        assert main(words_of(stored, tiny_model, "--output", run, "--resume")) == 0
        assert "line 3 is damaged; its block is computed again" in capsys.readouterr().err
        assert (run / "result.json").read_bytes() == whole
    assert main(words_of(stored, tiny_model, "--output", run, "--overwrite")) == 0
    assert (run / "result.json").read_bytes() == whole


def test_an_earlier_result_is_compared_chunk_by_chunk(
    stored: tuple[Path, Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(words_of(stored, tiny_model, "--output", tmp_path / "run"))
    capsys.readouterr()
    words = ["compare", str(stored[0]), str(stored[1]), "--bos", "never"]
    assert main([*words, "--against", str(tmp_path / "run"), "--json"]) == 0
    pairs: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["paired"]
    found = {pair["second"]: pair["difference"]["value"] for pair in pairs}
    assert found[f"{stored[1]} (earlier)"] == 0
    results = json.loads((tmp_path / "run" / "result.json").read_text())["models"]
    kl = [model["bounds"]["kl"]["value"] for model in results]
    np.testing.assert_allclose(found[f"{tiny_model} (earlier)"], kl[0] - kl[1])
    content = bytearray(stored[0].read_bytes())
    content[-2] ^= 1
    (tmp_path / "other.kld").write_bytes(content)
    words[1] = str(tmp_path / "other.kld")
    assert main([*words, "--against", str(tmp_path / "run")]) == 2
    assert "--against: expected a comparable result, but the file of the base was" in capsys.readouterr().err
    (tmp_path / "exact.json").write_text('{"format": 1, "config": {}, "models": []}')
    assert main([*words, "--against", str(tmp_path / "exact.json")]) == 2
    assert "expected a result of a comparison of the same kind" in capsys.readouterr().err


def test_several_processes_are_refused(
    stored: tuple[Path, Path], tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words_of(stored, tiny_model)) == 2
    assert "expected one process" in capsys.readouterr().err


def test_the_results_are_a_data_frame(stored: tuple[Path, Path]) -> None:
    comparison = compare_with_file(stored[0], [str(stored[1])], bos="never")
    frame = comparison.to_frame()
    row = frame[frame.metric == "kl"].iloc[0]
    assert (row.value, row.low) == (
        comparison.models[0].metrics["kl"].value,
        comparison.models[0].metrics["kl"].interval[0],
    )
    assert row.label == "KL(base || model), lower bound"
