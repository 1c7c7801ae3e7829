"""Models in GGUF are compared with their weights dequantised, and the result states it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import kullback
from kullback.cli import main
from kullback.errors import InputError, MissingDependencyError
from kullback.integrations.gguf import load_gguf_model, load_gguf_tokenizer, weight_types

from ..oracles.tiny_gguf import byte_model, write_gguf

pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")

TEXTS = ["the man and the inner ring", "and then she went there", "in the end they can rest", "a tänzer ☃ and 12 + 30"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gguf") / "base"
    byte_model(directory)
    return directory


@pytest.fixture(scope="module")
def packed(base: Path) -> Callable[[str], tuple[Path, dict[str, torch.Tensor]]]:
    def write(kind: str) -> tuple[Path, dict[str, torch.Tensor]]:
        path = base.parent / f"model.{kind}.gguf"
        return path, write_gguf(path, base, kind)

    return write


def test_a_file_of_float32_weights_equals_its_transformers_directory(base: Path, packed: Callable) -> None:
    path, _ = packed("F32")
    ids = load_gguf_tokenizer(path)(TEXTS[3])["input_ids"]
    assert ids == PreTrainedTokenizerFast.from_pretrained(base)(TEXTS[3])["input_ids"]
    result = kullback.compare(base, path, text=TEXTS)
    for name in ("kl", "reverse_kl", "js"):
        assert result.models[0].metrics[name].value == 0, name


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16"])
def test_packed_weights_equal_a_directory_of_the_dequantised_weights(
    base: Path, packed: Callable, tmp_path: Path, kind: str
) -> None:
    path, weights = packed(kind)
    model = LlamaForCausalLM.from_pretrained(base)
    model.load_state_dict(weights)
    model.save_pretrained(tmp_path / "dequantised")
    PreTrainedTokenizerFast.from_pretrained(base).save_pretrained(tmp_path / "dequantised")
    result = kullback.compare(base, [path, tmp_path / "dequantised"], text=TEXTS)
    packed_kl, dequantised_kl = (model.metrics["kl"].value for model in result.models)
    assert packed_kl == pytest.approx(dequantised_kl, rel=1e-4)
    assert packed_kl > {"Q8_0": 1e-5, "Q4_1": 1e-3, "F16": 1e-9}[kind]
    described = result.config["models"][str(path)]
    assert described["weights"] == "dequantised from GGUF"
    assert set(described["gguf_types"]) == {kind, "F32"} == set(weight_types(path))
    warnings = [warning for warning in result.warnings if f"{path} are dequantised from GGUF ({kind})" in warning]
    assert len(warnings) == (kind != "F16")


def test_a_file_can_be_the_base_of_the_command(
    base: Path, packed: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = packed("Q8_0")
    (tmp_path / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    assert main(["compare", str(path), str(base), "--text", str(tmp_path / "a.txt"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["config"]["models"][str(path)]["weights"] == "dequantised from GGUF"
    assert result["models"][0]["metrics"]["kl"]["value"] > 0


def test_dtypes_apply_to_the_dequantised_weights(packed: Callable) -> None:
    path, _ = packed("Q8_0")
    assert load_gguf_model(path).dtype == torch.float32
    assert load_gguf_model(path, torch.bfloat16).dtype == torch.bfloat16


def test_files_that_are_not_valid_are_refused_in_one_line(
    base: Path, packed: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = packed("Q8_0")
    content = path.read_bytes()
    damaged = {
        "absent.gguf": (None, "cannot be read: No such file"),
        "text.gguf": (b"weights", "expected a GGUF file"),
        "short.gguf": (b"GGUF", "expected a GGUF file"),
        "old.gguf": (b"GGUF\x01\0\0\0" + content[8:], "got version 1"),
        "big-endian.gguf": (b"GGUF\0\0\0\x03" + content[8:], "expected GGUF of version 2 or 3 in little-endian order"),
        "header.gguf": (content[:500], "it does not load"),
        "weights.gguf": (content[:-3000], "it does not load"),
    }
    for name, (data, expected) in damaged.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        (tmp_path / "a.txt").write_text(TEXTS[0])
        words = ["compare", str(base), str(tmp_path / name), "--text", str(tmp_path / "a.txt")]
        assert main(words) == 2, name
        output, errors = capsys.readouterr()
        assert output == ""
        assert expected in errors, (name, errors)
        assert errors.count("\n") == 1, (name, errors)


def test_one_part_of_several_is_refused(tmp_path: Path, base: Path) -> None:
    import gguf

    path = tmp_path / "model-00001-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="one of 3 parts"):
        kullback.compare(base, path, text=TEXTS)


def test_the_missing_package_is_named(base: Path, packed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = packed("F32")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"gguf is missing: pip install gguf"):
        kullback.compare(base, path, text=TEXTS)
