"""The KL of the base from itself with one module of a model, against models that are assembled from both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from transformers.utils import logging

import kullback
from kullback.cli import main
from kullback.compare.results import Comparison
from kullback.errors import InputError

logging.disable_progress_bar()

TEXTS = [f"{a}+{b}={a + b}" for a in range(3, 60, 7) for b in (8, 55)]
MODULES = {
    "embed_tokens": "model.embed_tokens.",
    "layers.0": "model.layers.0.",
    "layers.1": "model.layers.1.",
    "norm": "model.norm.",
    "head": "lm_head.",
}


@pytest.fixture(scope="module")
def changed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a copy of the tiny model with noise in the weights whose names begin with one of the prefixes."""

    def save(name: str, *prefixes: str, scale: float = 0.05, dtype: Any = torch.float32) -> Path:
        directory = tmp_path_factory.mktemp("modules") / name
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        torch.manual_seed(1)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key.startswith(prefixes):
                    parameter += scale * torch.randn_like(parameter)
        model.to(dtype).save_pretrained(directory)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
        return directory

    return save


@pytest.fixture(scope="module")
def model(changed: Callable[..., Path]) -> Path:
    return changed("all", *MODULES.values())


@pytest.fixture(scope="module")
def comparison(tiny_model: Path, model: Path) -> Comparison:
    return kullback.compare(tiny_model, model, text=TEXTS, by_module="layer")


@torch.no_grad()
def assembled_kl(base: Path, model: Path, prefix: str) -> float:
    """KL(base || base with the weights of the model whose names begin with the prefix), in float64."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    p, q, other = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (base, base, model))
    q.load_state_dict({k: w for k, w in other.state_dict().items() if k.startswith(prefix)}, strict=False)
    kls = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        log_p, log_q = (one(ids).logits[0, :-1].log_softmax(-1) for one in (p, q))
        kls += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
    return float(np.mean(kls))


def test_the_kl_of_each_module_equals_an_assembled_model(comparison: Comparison, tiny_model: Path, model: Path) -> None:
    modules = comparison[str(model)].modules
    assert modules is not None
    assert list(modules.kl) == list(MODULES)
    for name, prefix in MODULES.items():
        expected = assembled_kl(tiny_model, model, prefix)
        assert expected > 1e-5
        assert modules.kl[name].value == pytest.approx(expected, rel=1e-4), name
    total = comparison[str(model)].metrics["kl"].value
    parts = sum(estimate.value for estimate in modules.kl.values())
    assert modules.remainder.difference.value == pytest.approx(total - parts, rel=1e-9)
    assert modules.remainder.second.value == pytest.approx(parts, rel=1e-12)


def test_one_damaged_layer_is_found(tiny_model: Path, changed: Callable[..., Path]) -> None:
    damaged = changed("damaged", "model.layers.1.")
    found = kullback.compare(tiny_model, damaged, text=TEXTS, by_module="layer").models[0]
    assert found.modules is not None
    kl = {name: estimate.value for name, estimate in found.modules.kl.items()}
    assert kl.pop("layers.1") == pytest.approx(found.metrics["kl"].value, rel=1e-6)
    assert set(kl.values()) == {0.0}
    assert found.modules.remainder.difference.value == pytest.approx(0, abs=1e-9)


def test_the_parts_of_layers(tiny_model: Path, model: Path) -> None:
    found = kullback.compare(tiny_model, model, text=TEXTS, by_module="part").models[0]
    assert found.modules is not None
    names = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    assert [name for name in found.modules.kl if name.startswith("layers")] == [
        f"layers.{index}.{name}" for index in (0, 1) for name in names
    ]
    for name in ("self_attn", "post_attention_layernorm"):
        expected = assembled_kl(tiny_model, model, f"model.layers.1.{name}.")
        assert found.modules.kl[f"layers.1.{name}"].value == pytest.approx(expected, rel=1e-3, abs=1e-10)


def test_modules_of_another_dtype_are_converted(tiny_model: Path, changed: Callable[..., Path]) -> None:
    half = changed("half", dtype=torch.bfloat16)
    found = kullback.compare(tiny_model, half, text=TEXTS, by_module="layer").models[0]
    assert found.modules is not None
    for name, prefix in MODULES.items():
        expected = assembled_kl(tiny_model, half, prefix)
        assert found.modules.kl[name].value == pytest.approx(expected, rel=1e-3, abs=1e-10), name


def test_an_adapter_is_attributed_to_its_layers(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1])
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path)
    found = kullback.compare(tiny_model, [], adapters=[tmp_path], text=TEXTS, by_module="layer").models[0]
    assert found.modules is not None
    assert found.metrics["kl"].value > 1e-5
    kl = {name: estimate.value for name, estimate in found.modules.kl.items()}
    assert kl.pop("layers.1") == pytest.approx(found.metrics["kl"].value, rel=1e-6)
    assert set(kl.values()) == {0.0}


def test_tied_heads_and_positions_are_modules(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=tokenizer.eos_token_id
    )
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    found = kullback.compare(tmp_path / "a", tmp_path / "b", text=TEXTS, by_module="layer").models[0]
    assert found.modules is not None
    assert list(found.modules.kl) == ["wte", "wpe", "h.0", "ln_f", "head"]
    assert found.modules.kl["wte"].value > 0
    assert found.modules.kl["head"].value > 0
    assert found.modules.kl["ln_f"].value == 0  # both are newly initialised


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_hidden_layers": 3}, "5 and 6 modules|4 and 5 modules"),
        ({"intermediate_size": 40}, r"\(32, 16\) and \(40, 16\) for layers.0.mlp.gate_proj.weight"),
        ({"attention_bias": True}, "no weight and .* for layers.0.self_attn.q_proj.bias"),
        ({"hidden_size": 24}, r"\(\d+, 16\) and \(\d+, 24\) for embed_tokens.weight"),
    ],
)
def test_other_architectures_are_refused_before_a_forward_pass(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], expected: str
) -> None:
    config = AutoModelForCausalLM.from_pretrained(tiny_model).config
    for name, value in change.items():
        setattr(config, name, value)
    if "hidden_size" in change:
        config.head_dim = 12
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    from kullback.compare.models import LoadedModel

    monkeypatch.setattr(LoadedModel, "hidden", lambda *_: pytest.fail("a forward pass"))
    with pytest.raises(InputError, match=f"--by-module: expected .* to have the same modules, got ({expected})"):
        kullback.compare(tiny_model, tmp_path, text=TEXTS, by_module="layer")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"by_module": "token"}, "--by-module: expected one of layer, part, got 'token'"),
        ({"by_module": "layer", "one_at_a_time": True}, "--by-module: expected two models in memory"),
        ({"by_module": "layer", "models": [], "attention": "eager"}, "--by-module: expected a MODEL with weights"),
    ],
)
def test_invalid_settings_are_refused(tiny_model: Path, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        kullback.compare(tiny_model, **{"models": [tiny_model], "text": TEXTS, **settings})


def test_the_command_prints_and_stores_the_modules(
    comparison: Comparison, tiny_model: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = ["compare", str(tiny_model), str(model), "--text", str(tmp_path / "texts.jsonl"), "--by-module"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "modules in the base" in output
    assert "sum of the modules" in output
    expected = comparison.to_dict()["models"][0]["modules"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["models"][0]["modules"] == expected
    # An interrupted run continues, with equal results.
    lines = (tmp_path / "run" / "modules-0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "modules-0.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    assert main([*words, "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["models"][0]["modules"] == expected


@pytest.mark.slow
def test_two_processes_give_the_same_modules(
    comparison: Comparison, tiny_model: Path, model: Path, tmp_path: Path, in_two_processes: Callable[..., str]
) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = ["compare", tiny_model, model, "--text", tmp_path / "texts.jsonl", "--by-module", "--json"]
    output = in_two_processes(*words, "--output", tmp_path / "run")
    assert (tmp_path / "run" / "modules-1.jsonl").stat().st_size
    assert json.loads(output)["models"][0]["modules"] == comparison.to_dict()["models"][0]["modules"]
