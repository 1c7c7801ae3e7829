"""Variants of a model: rounded keys and values, attention kernels and batch sizes, against token-by-token decoding."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import kullback
from kullback.compare.variants import CACHE_DTYPES, RoundedCache, Variant, floor_variant, round_cache
from kullback.errors import InputError

logging.disable_progress_bar()

TEXTS = [f"{a}+{b}={a + b}" for a in range(3, 60, 7) for b in (8, 55)]


@pytest.fixture(scope="module")
def wide_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heads have 32 entries, as the formats with blocks require."""
    directory = tmp_path_factory.mktemp("variants") / "wide"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@torch.no_grad()
def decoded_kl(base: Path, model: Path, dtype: str) -> float:
    """The mean KL of a model that decodes token by token, with all earlier and present keys and values rounded."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    p, q = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, model))
    kls: list[float] = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        cache = RoundedCache(dtype, q.config)
        log_p = p(ids).logits[0, :-1].double().log_softmax(-1)
        steps = [q(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits[0] for i in range(ids.shape[1] - 1)]
        log_q = torch.cat(steps).double().log_softmax(-1)
        kls += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
    return float(np.mean(kls))


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_a_rounded_cache_equals_decoding_token_by_token(wide_model: Path, dtype: str) -> None:
    comparison = kullback.compare(wide_model, [], text=TEXTS, kv_cache_dtype=dtype)
    (model,) = comparison.models
    assert model.name == f"{wide_model} (kv-cache-dtype={dtype})"
    expected = decoded_kl(wide_model, wide_model, dtype)
    assert expected > 1e-8
    assert model.metrics["kl"].value == pytest.approx(expected, rel=2e-3, abs=1e-9)


def test_a_coarser_cache_is_farther_from_the_base(wide_model: Path) -> None:
    dtypes = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
    found = kullback.compare(wide_model, [], text=TEXTS, kv_cache_dtype=[*dtypes, "q8_0", "q4_0"])
    kl = [model.metrics["kl"].value for model in found.models]
    assert kl[:4] == sorted(kl[:4])
    assert kl[4] < kl[5]
    assert all(pair.is_distinguishable for pair in (found.paired()[found.models[2].name, found.models[3].name],))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_floating_dtypes_round_to_the_nearest_of_all_their_numbers(dtype: str) -> None:
    kind = getattr(torch, dtype)
    width = torch.finfo(kind).bits
    codes = torch.arange(2**width, dtype=torch.int32)
    numbers = codes.to(torch.uint8 if width == 8 else torch.uint16).view(kind).float()
    numbers = numbers[numbers.isfinite()].unique().double()
    states = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 3
    states = torch.cat([states, torch.tensor([0.0, 1e30, -1e30, 1e-30])])
    nearest = numbers[(states.double()[:, None] - numbers).abs().argmin(1)] if width == 8 else None
    rounded = round_cache(states, dtype)
    if nearest is None:
        middle = states[:2000]
        nearest = middle.to(kind).double()
        rounded = rounded[:2000]
        assert ((nearest - middle.double()).abs() <= torch.finfo(kind).eps / 2 * middle.double().abs()).all()
    assert (
        (states[: len(rounded)].double() - rounded).abs() <= (states[: len(rounded)].double() - nearest).abs()
    ).all()


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf, the independent implementation, is missing")
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_block_formats_equal_the_package_gguf(dtype: str) -> None:
    from gguf import GGMLQuantizationType, quants

    states = torch.randn(64, 96, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 2, 64)[:, None]
    states[3, :32] = 0
    kind = getattr(GGMLQuantizationType, dtype.upper())
    expected = quants.dequantize(quants.quantize(states.numpy(), kind), kind)
    np.testing.assert_array_equal(round_cache(states, dtype).numpy(), expected)


def test_blocks_require_heads_of_a_multiple_of_32(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="--kv-cache-dtype q8_0: expected heads whose size is a multiple of 32, got 8"):
        kullback.compare(tiny_model, [], text=TEXTS, kv_cache_dtype="q8_0")


def test_the_attention_kernel_of_a_variant_is_used_and_restored(
    wide_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    calls = []
    eager = modeling_llama.eager_attention_forward
    monkeypatch.setattr(
        modeling_llama, "eager_attention_forward", lambda *args, **kwargs: calls.append(1) or eager(*args, **kwargs)
    )
    found = kullback.compare(wide_model, [wide_model], text=TEXTS, attention="eager", floor="attention=eager")
    batches = -(-len(TEXTS) // 4)
    assert len(calls) == 2 * 2 * batches  # layers; the variant and the floor
    plain, variant = (model.metrics["kl"].value for model in found.models)
    assert plain == 0
    assert 0 <= variant < 1e-9
    assert variant == found.floors[0].metrics["kl"].value
    assert found.above_floor()[found.models[1].name, "floor (attention=eager)"].is_distinguishable is False


def test_the_floor_of_a_batch_size_has_its_forward_passes(wide_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kullback.compare.models import LoadedModel

    sizes = []
    hidden = LoadedModel.hidden
    monkeypatch.setattr(
        LoadedModel, "hidden", lambda self, ids, attention: sizes.append(len(ids)) or hidden(self, ids, attention)
    )
    found = kullback.compare(wide_model, [], text=TEXTS, kv_cache_dtype="float16", floor=["batch-size=1", "bfloat16"])
    assert sizes.count(1) == len(TEXTS)
    kl = {floor.name: floor.metrics["kl"].value for floor in found.floors}
    assert 0 <= kl["floor (batch-size=1)"] < 1e-9 < kl["floor (bfloat16)"]
    texts = [entry["text"] for entry in found.to_dict()["above_floor"]]
    assert "is above the floor (batch-size=1)" in texts[0]
    assert "is below the floor (bfloat16)" in texts[1]
    assert found.config["models"]["floor (batch-size=1)"]["batch_size"] == 1


def test_one_model_at_a_time_gives_the_same_results(wide_model: Path, tiny_model: Path) -> None:
    settings: dict[str, Any] = {"text": TEXTS, "kv_cache_dtype": "bfloat16", "floor": ["attention=eager", "float16"]}
    first, second = (
        kullback.compare(wide_model, [wide_model, tiny_model], **settings, one_at_a_time=alone) for alone in (0, 1)
    )
    assert [model.name for model in first.models][1:] == [
        f"{wide_model} (model) (kv-cache-dtype=bfloat16)",
        str(tiny_model),
        f"{tiny_model} (kv-cache-dtype=bfloat16)",
    ]
    for one, other in zip((*first.models, *first.floors), (*second.models, *second.floors), strict=True):
        assert one.statistics == other.statistics


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"floor": "int4"}, "--floor: expected dtype to be one of float32, bfloat16, float16, float64, got 'int4'"),
        ({"floor": "auto"}, "--floor: expected dtype"),
        ({"floor": "kernel=x"}, "--floor: expected a dtype, batch-size=N, attention=NAME or kv-cache-dtype"),
        ({"floor": "batch-size=x"}, "--floor: expected a whole number as batch-size, got 'x'"),
        ({"floor": "batch-size=4"}, "--floor: expected a batch size from 1 to 3, less than --batch-size 4, got 4"),
        ({"floor": "batch-size=0"}, "--floor: expected a batch size from 1 to 3"),
        ({"floor": "attention=fast"}, "--floor: expected attention to be one of eager, sdpa"),
        ({"attention": "fast"}, "--attention: expected attention to be one of eager, sdpa"),
        ({"attention": "flash_attention_2"}, "--attention flash_attention_2: it cannot be used for "),
        ({"kv_cache_dtype": "int3"}, "--kv-cache-dtype: expected kv-cache-dtype to be one of float16"),
        ({"floor": ["bfloat16", "bfloat16"]}, r"expected each model once, got floor \(bfloat16\) twice"),
    ],
)
def test_invalid_variants_are_refused(tiny_model: Path, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        kullback.compare(tiny_model, tiny_model, text=TEXTS, **settings)


def test_a_model_without_a_key_value_cache_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = MambaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        state_size=4,
        num_hidden_layers=1,
        eos_token_id=tokenizer.eos_token_id,
    )
    MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="--kv-cache-dtype: "):
        kullback.compare(tmp_path, [], text=TEXTS, context=32, kv_cache_dtype="float16")


def test_variants_have_names() -> None:
    assert str(Variant(attention="eager", kv_cache_dtype="q8_0")) == "attention=eager, kv-cache-dtype=q8_0"
    assert str(floor_variant("dtype=float16")) == "float16"
