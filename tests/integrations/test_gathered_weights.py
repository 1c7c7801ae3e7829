"""Copies of models without weights compute what the models compute, with the weights of a few blocks at a time."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from kullback.errors import BudgetError
from kullback.integrations.gathered_weights import copy_without_weights, share_buffers, weights_on_call
from kullback.integrations.policy_weights import base_model
from kullback.integrations.transformers import decoder_of, last_hidden, model_head

SIZES = {
    "vocab_size": 14,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "gemma2": {"final_logit_softcapping": 3.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_neox": {},
    "qwen3": {"tie_word_embeddings": True},
}
ADAPTERS: dict[str, Any] = {
    "lora": LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    "dora": LoraConfig(r=2, target_modules=["q_proj", "up_proj"], use_dora=True, init_lora_weights=False),
    "in full": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    "on the head": LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False),
}


def make(name: str) -> Any:
    torch.manual_seed(0)
    if name in ADAPTERS:
        return get_peft_model(make("llama"), ADAPTERS[name]).eval()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES, **MODELS[name]))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def blocks_of(model: Any, sharded: str) -> list[str]:
    """The names of the layers, or of nothing, and of the parts of the decoder."""
    names = {id(module): name for name, module in model.named_modules()}
    parts = [names[id(part)] for part in decoder_of(base_model(model)).children()]
    layers = [
        name for name in names.values() if name.split(".")[-1].isdigit() and name.split(".")[-2] in ("layers", "h")
    ]
    return [*(layers if sharded == "layers" else []), *parts]


@pytest.mark.parametrize("name", [*MODELS, *ADAPTERS])
@pytest.mark.parametrize("sharded", ["layers", "nothing"])
def test_a_copy_without_weights_computes_the_model(name: str, sharded: str) -> None:
    model = make(name)
    outline: Any = copy_without_weights(model)
    share_buffers(outline, model, torch.device("cpu"))
    assert sum(weight.untyped_storage().nbytes() for weight in outline.parameters()) < 1000
    weights = dict(model.named_parameters())
    gathered: list[str] = []

    def whole(name: str) -> torch.Tensor:
        gathered.append(name)
        return weights[name]

    ids = torch.arange(1, 13).view(2, 6)
    attention = torch.ones_like(ids)
    with torch.no_grad(), weights_on_call(outline, blocks_of(model, sharded), whole):
        hidden = last_hidden(base_model(outline), ids, attention)
        logits = outline(input_ids=ids, attention_mask=attention).logits
        from_hidden = model_head(base_model(outline))(hidden[0])
    expected = last_hidden(base_model(model), ids, attention)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(input_ids=ids, attention_mask=attention).logits, rtol=0, atol=0)
        torch.testing.assert_close(from_hidden, model_head(base_model(model))(expected[0]), rtol=1e-6, atol=1e-6)
    assert set(gathered) <= set(weights)
    assert all(weight.isnan().all() for weight in outline.parameters())  # the weights are gone again


def test_a_weight_that_is_used_without_a_call_is_nan() -> None:
    model = make("llama")
    outline: Any = copy_without_weights(model)
    share_buffers(outline, model, torch.device("cpu"))
    ids = torch.arange(1, 7)[None]
    assert outline(input_ids=ids).logits.isnan().all()


def test_weights_are_removed_after_an_error() -> None:
    model = make("llama")
    outline: Any = copy_without_weights(model)
    share_buffers(outline, model, torch.device("cpu"))
    weights = dict(model.named_parameters())

    def fail(*_: Any) -> None:
        raise ValueError("of a hook")

    outline.model.layers[1].self_attn.register_forward_pre_hook(fail)
    copied = weights_on_call(outline, blocks_of(model, "layers"), weights.__getitem__)
    with pytest.raises(ValueError, match="of a hook"), copied:
        outline(input_ids=torch.arange(1, 7)[None])
    assert all(weight.isnan().all() for weight in outline.parameters())
    assert not any(
        m._forward_hooks or len(m._forward_pre_hooks) > (m is outline.model.layers[1].self_attn)
        for m in outline.modules()
    )


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = make("llama")
    model.generator = (value for value in range(3))
    with pytest.raises(BudgetError, match="expected a model that"):
        copy_without_weights(model)
