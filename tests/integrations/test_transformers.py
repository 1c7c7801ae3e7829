"""Output heads: the KL, the log-probabilities and the entropy from hidden states, against the models' own logits."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kullback.integrations.transformers import (
    Completions,
    Head,
    completion_entropy,
    completion_kl,
    completion_log_prob,
    end_tokens,
    head_of,
    last_hidden,
    load_model,
    load_tokenizer,
    sample,
)
from kullback.tokens import token_kl
from kullback.tokens.linear import head_token_kl
from kullback.train.evaluation import Evaluation

SIZES: dict[str, Any] = {
    "vocab_size": 14,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
GEMMA3N = {
    "head_dim": 16,
    "vocab_size_per_layer_input": 14,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "layer_types": ["full_attention"] * 2,
}
BERT = {"is_decoder": True}
# The architecture, its settings, and whether its head is linear.
ARCHITECTURES: list[tuple[str, dict[str, Any], bool]] = [
    ("llama", {}, True),
    ("gpt2", GPT, True),
    ("phi", {}, True),  # a bias
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, True),
    ("bart", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}, True),
    ("mixtral", {"num_local_experts": 2}, True),
    ("mamba", {"state_size": 4}, True),
    # Scaled.
    ("mpt", {"d_model": 32, "n_heads": 2, "n_layers": 2, "expansion_ratio": 2, "logit_scale": 0.5}, True),
    ("mpt", {"d_model": 32, "n_heads": 2, "n_layers": 2, "logit_scale": "inv_sqrt_d_model"}, True),
    ("cohere", {"logit_scale": 0.25}, True),
    ("cohere2", {"logit_scale": 0.25}, True),
    ("granite", {"logits_scaling": 4.0}, True),
    ("hyperclovax", {"logits_scaling": 0.5}, True),
    ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "lm_head_multiplier": 0.3}, True),
    # Capped.
    ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 16}, False),
    ("gemma2", {"final_logit_softcapping": None, "head_dim": 16}, True),
    ("gemma3_text", {"final_logit_softcapping": 3.0, "head_dim": 16}, False),
    (
        "gemma3n_text",
        {**GEMMA3N, "laurel_rank": 4, "altup_num_inputs": 2, "intermediate_size": [64, 64],
         "activation_sparsity_pattern": [0.0, 0.0], "final_logit_softcapping": 3.0},
        False,
    ),
    ("gemma4_text", {**GEMMA3N, "global_head_dim": 16, "final_logit_softcapping": 3.0}, False),
    ("vaultgemma", {"final_logit_softcapping": 3.0, "head_dim": 16}, False),
    ("nanochat", {"final_logit_softcapping": 3.0}, False),
    (
        "recurrent_gemma",
        {"lru_width": 32, "head_dim": 16, "logits_soft_cap": 1.0, "block_types": ["recurrent", "attention"]},
        False,
    ),
    (
        "xlstm",
        {"hidden_size": 64, "embedding_dim": 64, "num_heads": 4, "num_blocks": 2, "chunk_size": 8,
         "output_logit_soft_cap": 1.0, "mode": "inference", "return_last_states": True},
        False,
    ),
    # Layers before the projection.
    ("bert", BERT, False),
    ("roberta", BERT, False),
    ("electra", BERT, False),
    ("rembert", {**BERT, "input_embedding_size": 32, "output_embedding_size": 24}, False),
    ("roformer", {**BERT, "embedding_size": 32}, False),
    ("modernbert-decoder", {"cls_token_id": 1, "sep_token_id": 1}, False),
]  # fmt: skip


def two_models(architecture: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """A random model, and a copy whose weights are displaced."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**SIZES, **settings})
    policy = AutoModelForCausalLM.from_config(config).eval()
    if architecture in ("recurrent_gemma", "xlstm"):  # logits large enough for the cap
        policy.get_output_embeddings().weight.data.mul_(20)
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.1 * weight.std().nan_to_num(0.1) * torch.randn_like(weight))
    return policy, reference


@pytest.mark.parametrize(("architecture", "settings", "linear"), ARCHITECTURES)
def test_a_head_gives_the_logits_of_its_model(architecture: str, settings: dict[str, Any], linear: bool) -> None:
    policy, reference = two_models(architecture, settings)
    ids = torch.randint(2, 14, (4, 16))
    attention, mask = torch.ones_like(ids), torch.ones(4, 5)
    head = head_of(policy)
    assert isinstance(head, Head) == linear
    hidden = last_hidden(policy, ids, attention)
    log_p, log_q = (
        (model(input_ids=ids, use_cache=False).logits[:, 10:-1].double() / 0.7).log_softmax(-1).detach()
        for model in (policy, reference)
    )
    truth = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert truth.mean() > 1e-4
    with torch.no_grad():
        ref_hidden = last_hidden(reference, ids, attention)
        kl = completion_kl(head, hidden, head_of(reference), ref_hidden, mask, temperature=0.7)
        log_prob = completion_log_prob(head, hidden, ids, mask, temperature=0.7)
        entropy = completion_entropy(head, hidden, mask, temperature=0.7)
    torch.testing.assert_close(kl.double(), truth, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(log_prob.double(), log_p.gather(-1, ids[:, 11:, None])[..., 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gemma2", "bert"])
def test_the_gradient_through_a_head_that_is_not_linear_is_that_through_the_logits(architecture: str) -> None:
    settings = {"final_logit_softcapping": 3.0, "head_dim": 16} if architecture == "gemma2" else BERT
    policy, reference = two_models(architecture, settings)
    ids = torch.randint(2, 14, (2, 12))
    mask = torch.ones(2, 5)
    mask[1, 3:] = 0
    logits = policy(input_ids=ids).logits[:, 6:-1]
    token_kl(logits, reference(input_ids=ids).logits[:, 6:-1].detach(), mask=mask).sum().backward()
    expected = {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.grad is not None}
    policy.zero_grad()
    states = policy.get_decoder()(input_ids=ids).last_hidden_state
    ref_states = last_hidden(reference, ids, torch.ones_like(ids))
    completion_kl(head_of(policy), states, head_of(reference), ref_states, mask, temperature=1.0).sum().backward()
    assert len(expected) > 10
    for name, weight in policy.named_parameters():
        if name in expected:
            torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_a_batch_without_a_position_that_counts() -> None:
    hidden = torch.ones(2, 3, 4, requires_grad=True)
    kl = head_token_kl(hidden, torch.tanh, hidden.detach(), torch.tanh, mask=torch.zeros(2, 3))
    assert kl.tolist() == [[0.0] * 3] * 2
    kl.sum().backward()
    assert not hidden.grad.any()


@pytest.mark.parametrize("has_function", [True, False], ids=["torch's function", "chunks"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_log_probability_of_a_linear_head_is_that_of_full_logits(
    monkeypatch: pytest.MonkeyPatch, has_function: bool, bias: bool
) -> None:
    """The value and every gradient, with and without torch's linear_cross_entropy, which torch 2.10 to 2.12 lack."""
    if not has_function:
        monkeypatch.setattr("kullback.integrations.transformers._HAS_LINEAR_CROSS_ENTROPY", False)
    torch.manual_seed(0)
    weight, offset, hidden = torch.randn(11, 8), torch.randn(11) if bias else None, torch.randn(3, 200, 8)
    tensors = [tensor.requires_grad_() for tensor in (weight, offset, hidden) if tensor is not None]
    ids, mask = torch.randint(11, (3, 200)), torch.rand(3, 150) < 0.7
    found = completion_log_prob(Head(weight, offset, 1.7), hidden, ids, mask, temperature=0.7)
    weights = torch.randn(3, 150)
    gradients = torch.autograd.grad((found * weights).sum(), tensors)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    logits = 1.7 / 0.7 * (doubles[-1] @ doubles[0].T + (doubles[1] if bias else 0.0))
    expected = logits[:, 49:-1].log_softmax(-1).gather(-1, ids[:, 50:, None])[..., 0] * mask
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for gradient, exact in zip(gradients, torch.autograd.grad((expected * weights).sum(), doubles), strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "defaults",
    [
        {"repetition_penalty": 1.5},
        {"min_p": 0.5},
        {"typical_p": 0.2},
        {"top_p": 0.1, "top_k": 1, "temperature": 0.1, "do_sample": True},
        {"suppress_tokens": [3, 4, 5]},
        {"no_repeat_ngram_size": 1},
        {"max_length": 5, "num_beams": 2},
    ],
)
def test_samples_do_not_depend_on_the_defaults_of_the_model(defaults: dict[str, Any], tiny_model: Path) -> None:
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)

    def sampled() -> Completions:
        torch.manual_seed(0)
        return sample(model, tokenizer, ["1+2=", "34+5="] * 8, max_new_tokens=4, temperature=1.0)

    expected = sampled()
    for name, value in defaults.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config
    torch.testing.assert_close(sampled().ids, expected.ids, rtol=0, atol=0)
    assert model.generation_config is before


def test_every_end_that_the_model_declares_ends_a_completion(tiny_model: Path) -> None:
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    torch.manual_seed(0)
    whole = sample(model, tokenizer, ["1+2="] * 64, max_new_tokens=6, temperature=1.0)
    end = int(whole.ids[:, -6:].flatten().mode().values)  # a token that is frequent in completions
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    assert end_tokens(model, tokenizer) == [tokenizer.eos_token_id, end]
    torch.manual_seed(0)
    ended = sample(model, tokenizer, ["1+2="] * 64, max_new_tokens=6, temperature=1.0)
    for row, mask in zip(ended.ids[:, -ended.mask.shape[1] :], ended.mask, strict=True):
        places = torch.isin(row, torch.tensor([tokenizer.eos_token_id, end])).nonzero()
        assert int(mask.sum()) == (int(places[0]) + 1 if len(places) else 6)
    row = Evaluation([{"prompt": "1+2="}] * 64, [], tokenizer, max_new_tokens=1, temperature=1.0).measure(
        model, copy.deepcopy(model), step=0
    )[0]
    assert 0 < row["truncated"] < 1
