"""The set-ups of users: what the trainer logs, and what it scales, against the models' own logits in float64."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import (
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from trl import GRPOConfig

from kullback import KLBudget
from kullback.budget.controllers import PPO2017, FixedBeta, RLlibController, Ziegler2019
from kullback.doctor.trl import doctor_trainer
from kullback.errors import BudgetError, InputError
from kullback.integrations.position_ids import counts_padding
from kullback.integrations.transformers_reference import evaluation_mode
from kullback.integrations.trl import BudgetGRPOTrainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),  # PEFT on tied weights, and on biases
    pytest.mark.filterwarnings("ignore:.*:UserWarning:peft.*"),
]

SIZES: dict[str, Any] = {
    "vocab_size": 14,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}

MakeTrainer = Callable[..., Any]


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **settings}))


def gpt2(dropout: float) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 14, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(**sizes, **rates, **tokens))


def perturb(model: torch.nn.Module, size: float = 0.2) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(size * weight.std().nan_to_num(0.1) * torch.randn_like(weight))
    return model


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> MakeTrainer:
    def trainer(model: Any, budget: Any = None, **settings: Any) -> Any:
        names = ("peft_config", "ref_model", "preflight", "resume_budget")
        extra = {name: settings.pop(name) for name in names if name in settings}
        rows = settings.pop("rows", [{"prompt": f"{a}+{a + 1}="} for a in range(40)])
        config = GRPOConfig(
            **{
                "output_dir": str(tmp_path / "checkpoints"),
                "per_device_train_batch_size": 16,
                "num_generations": 4,
                "max_completion_length": 6,
                "max_steps": 3,
                "learning_rate": 1e-2,
                "lr_scheduler_type": "constant",
                "bf16": False,
                "use_cpu": True,
                "gradient_checkpointing": False,
                "dataloader_pin_memory": False,
                "report_to": "none",
                "disable_tqdm": True,
                "logging_steps": 1,
                "save_strategy": "no",
                **settings,
            }
        )
        return BudgetGRPOTrainer(
            model,
            lambda completions, **_: [text.count("7") / 6 for text in completions],
            config,
            budget=KLBudget(0.05) if budget is None else budget,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(tiny_model, padding_side="left"),
            **extra,
        )

    return trainer


def batch_of(trainer: Any) -> dict[str, Any]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.accelerator.gradient_state._set_sync_gradients(False)  # more micro-batches of the step follow
    has_one_length = len({len(row["prompt"]) for row in trainer.train_dataset}) == 1
    prompts = ("1+2=", "3+5=", "6+8=", "0+0=") if has_one_length else ("1+2=", "34+5=", "67+89=", "0+0=")
    return trainer._prepare_inputs([{"prompt": prompt} for prompt in prompts for _ in range(4)])


@torch.no_grad()
def true_kl(policy: Any, reference: Any, inputs: dict[str, Any], temperature: float = 1.0) -> torch.Tensor:
    """The KL of every completion without padding, by full logits in float64 and in evaluation mode."""
    values = []
    for prompt, kept, completion, mask in zip(
        *(inputs[f"{part}_{kind}"] for part in ("prompt", "completion") for kind in ("ids", "mask")), strict=True
    ):
        ids = torch.cat([prompt[kept.bool()], completion])[None]
        log_probs = []
        for model in (policy, reference):
            # The forward pass of the class: TRL and accelerate replace it in the model, and use autocast.
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            with evaluation_mode(base):
                logits = type(base).forward(base, input_ids=ids).logits[0, -len(completion) - 1 : -1]
            log_probs.append((logits.double() / temperature).log_softmax(-1))
        log_p, log_q = log_probs
        values.append(((log_p.exp() * (log_p - log_q)).sum(-1) * mask).sum())
    return torch.stack(values)


def check(trainer: Any, given: Any, temperature: float = 1.0) -> None:
    """Check that the KL at step 1 is 0, that the measured KL is the true KL, and that all of it can be scaled away."""
    trainer.train()
    logged = [row["kl_policy_ref_per_token"] for row in trainer.state.log_history if "reward" in row]
    assert logged[0] == 0.0
    assert logged[-1] > 0
    inputs = batch_of(trainer)
    policy = trainer.accelerator.unwrap_model(trainer.model)
    perturb_trained(policy)
    trainer._controller.batches.clear()
    trainer.compute_loss(trainer.model, inputs)
    truth = true_kl(policy, given, inputs, temperature)
    measured = trainer._controller.measured()[1].value
    assert measured > 1e-4
    assert measured == pytest.approx(float(truth.mean()), rel=1e-4)
    trainer._controller.weights.scale_displacement(0.0)
    assert float(true_kl(policy, given, inputs).max()) < 1e-9


def perturb_trained(model: torch.nn.Module) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))


def merged_adapter() -> Any:
    adapted = get_peft_model(llama(), LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "down_proj"]))
    return adapted.merge_and_unload().requires_grad_(True)


def resized_embeddings() -> Any:
    model = llama(vocab_size=12)
    model.resize_token_embeddings(14, mean_resizing=False)
    return model


def partly_frozen() -> Any:
    model = llama()
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    return model


def trained_after_loading(tiny_model: Path) -> Any:
    return perturb(LlamaForCausalLM.from_pretrained(tiny_model))


@pytest.mark.parametrize(
    "given", [trained_after_loading, llama, merged_adapter, resized_embeddings, partly_frozen], ids=lambda f: f.__name__
)
def test_the_reference_is_the_model_as_it_is_passed(make: MakeTrainer, given: Any, tiny_model: Path) -> None:
    model = given(tiny_model) if given is trained_after_loading else given()
    original = copy.deepcopy(model)
    trainer = make(model)
    for weight, reference in zip(original.parameters(), trainer.ref_model.parameters(), strict=True):
        assert torch.equal(weight, reference)
    frozen = {weight.data_ptr() for weight in model.parameters() if not weight.requires_grad}
    assert frozen <= {weight.data_ptr() for weight in trainer.ref_model.parameters()}
    check(trainer, original)


TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, Any] = {
    "lora": LoraConfig(r=2, target_modules=TARGETS),
    "dora": LoraConfig(r=2, target_modules=TARGETS, use_dora=True),
    "rslora": LoraConfig(r=2, target_modules=TARGETS, use_rslora=True),
    "pissa": LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="pissa"),
    "olora": LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="olora"),
    "head in full": LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["lm_head"]),
    "embeddings in full": LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["embed_tokens"]),
    "norm in full": LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["norm"]),
    "all biases": LoraConfig(r=2, target_modules=TARGETS, bias="all"),
    "biases of adapted layers": LoraConfig(r=2, target_modules=TARGETS, bias="lora_only"),
    "tokens": LoraConfig(r=2, target_modules=TARGETS, trainable_token_indices={"embed_tokens": [3, 4]}),
    "adapted embeddings": LoraConfig(r=2, target_modules=[*TARGETS, "embed_tokens"]),
    "dropout": LoraConfig(r=2, target_modules=TARGETS, lora_dropout=0.3),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=2, target_modules=TARGETS),
    "oft": OFTConfig(target_modules=TARGETS, oft_block_size=4),
    "vera": VeraConfig(r=2, target_modules=["q_proj", "v_proj"]),
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_trainable_weight_of_an_adapter_is_measured_and_scaled(make: MakeTrainer, name: str, tied: bool) -> None:
    model = perturb(llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=tied))
    original = copy.deepcopy(model)
    adapter = copy.deepcopy(ADAPTERS[name])
    adapter.task_type = "CAUSAL_LM"
    trainer = make(model, peft_config=adapter)
    assert trainer.ref_model is None
    if name in ("pissa", "olora"):  # up to the rounding of the residual weights
        ids = torch.arange(9)[None]
        torch.testing.assert_close(trainer.model(ids).logits, original(ids).logits, rtol=1e-3, atol=1e-3)
    check(trainer, original)


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM"),
        FourierFTConfig(n_frequency=50, target_modules=["q_proj"], scaling=1e4, task_type="CAUSAL_LM"),
    ],
    ids=["lora", "fourier"],
)
def test_a_new_adapter_that_changes_the_model_is_refused(make: MakeTrainer, adapter: Any) -> None:
    """The KL would be relative to the changed model, and not to the model that is passed."""
    with pytest.raises(BudgetError, match="expected a new adapter that does not change the model"):
        make(llama(), KLBudget(0.05), peft_config=adapter)
    given = get_peft_model(llama(), adapter)
    check(make(given), copy.deepcopy(given))


def test_a_merged_adapter_is_refused(make: MakeTrainer) -> None:
    adapted = get_peft_model(llama(), LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"))
    adapted.merge_adapter()
    with pytest.raises(BudgetError, match="merged into them"):
        make(adapted, KLBudget(0.05))
    adapted.unmerge_adapter()
    make(adapted, KLBudget(0.05)).train()


@pytest.mark.parametrize("kind", [VeraConfig, LoHaConfig, LoKrConfig, HRAConfig, LNTuningConfig, OFTConfig])
def test_the_frozen_weights_of_a_model_with_an_adapter_give_no_finding(make: MakeTrainer, kind: Any) -> None:
    sizes = {} if kind is LNTuningConfig else {"oft_block_size": 4} if kind is OFTConfig else {"r": 2}
    targets = ["input_layernorm"] if kind is LNTuningConfig else ["q_proj", "v_proj"]
    trainer = make(llama(), peft_config=kind(target_modules=targets, task_type="CAUSAL_LM", **sizes))
    assert doctor_trainer(trainer) == []


def test_experts_of_a_mixture_are_measured_and_scaled(make: MakeTrainer) -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4))
    original = copy.deepcopy(model)
    adapter = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        task_type="CAUSAL_LM",
    )
    check(make(model, peft_config=adapter), original)


def test_an_adapter_that_was_trained_before_is_a_part_of_the_reference(make: MakeTrainer) -> None:
    adapted = get_peft_model(llama(), LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"))
    perturb_trained(adapted)
    original = copy.deepcopy(adapted)
    check(make(adapted), original)


def test_an_original_layer_that_peft_keeps_is_not_copied(make: MakeTrainer) -> None:
    adapter = LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    trainer = make(llama(), peft_config=adapter)
    original = trainer.model.get_base_model().lm_head.original_module.weight
    assert original.data_ptr() in {anchor.data_ptr() for anchor in trainer._controller.weights.reference.anchors}


def test_a_frozen_policy_is_refused(make: MakeTrainer) -> None:
    with pytest.raises(BudgetError, match="got none: merge_and_unload"):
        make(llama().requires_grad_(False))


def test_trained_prompts_are_refused(make: MakeTrainer) -> None:
    adapter = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(BudgetError, match="got prompts that are trained"):
        make(llama(), peft_config=adapter)


def test_a_weight_that_becomes_trainable_later_is_refused(make: MakeTrainer) -> None:
    model = partly_frozen()
    trainer = make(model)
    model.lm_head.requires_grad_(True)
    with pytest.raises(BudgetError, match=r"got lm_head\.weight too"):
        trainer.train()


# -- output heads --


HEADS: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8},  # TRL's fused head has this cap
    "nanochat": {"final_logit_softcapping": 3.0},
    "recurrent_gemma": {
        "lru_width": 16,
        "head_dim": 8,
        "logits_soft_cap": 1.0,
        "block_types": ["recurrent", "attention"],
    },
    "modernbert-decoder": {"cls_token_id": 1, "sep_token_id": 1},
    "bert": {"is_decoder": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "granite": {"logits_scaling": 4.0},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "logit_scale": 0.5},
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_any_output_head_is_trained_and_measured(make: MakeTrainer, name: str, unit: Any) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_key_value_heads": 1, "bos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**sizes, **HEADS[name]}))
    if name == "recurrent_gemma":
        model.get_output_embeddings().weight.data.mul_(20)  # logits large enough for the cap
    original = copy.deepcopy(model)
    # The state of RecurrentGemma reads padding, so that its prompts must have one length.
    rows = {"rows": [{"prompt": f"{a % 9}+{a % 9 + 1}="} for a in range(40)]} if name == "recurrent_gemma" else {}
    trainer = make(model, KLBudget(0.05, unit=unit), temperature=0.9, **rows)
    ids = torch.randint(2, 14, (2, 9))
    with torch.no_grad(), evaluation_mode(model):
        # The log-probabilities of TRL's loss.
        batch = model, ids, torch.ones_like(ids), 8
        log_probs, entropy, *_ = trainer._get_per_token_logps_and_entropies(*batch, compute_entropy=True)
        log_p = (type(model).forward(model, input_ids=ids).logits[:, :-1] / 0.9).log_softmax(-1)
    torch.testing.assert_close(log_probs, log_p.gather(-1, ids[:, 1:, None])[..., 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1), rtol=1e-4, atol=1e-5)
    check(trainer, original, temperature=0.9)


# -- models whose hidden states are not those from which completions are sampled --


@pytest.mark.parametrize("name", ["gpt2", "bert", "openai-gpt", "biogpt", "ctrl"])
def test_models_that_count_padding_get_position_ids(make: MakeTrainer, name: str) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, **DECODERS.get(name, {}), "is_decoder": True}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))
    perturb(model, 1.0)
    original = copy.deepcopy(model)
    check(make(model, KLBudget(0.05), disable_dropout=True), original)
    assert counts_padding(original)  # the given model is not changed


DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "openai-gpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "ctrl": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "dff": 32},
}


def test_padding_that_a_state_reads_is_refused(make: MakeTrainer) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, **HEADS["recurrent_gemma"], "num_key_value_heads": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("recurrent_gemma", **sizes))
    with pytest.raises(BudgetError, match="expected prompts of one length for RecurrentGemma"):
        make(model, KLBudget(0.05)).train()


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_models_that_read_later_tokens_are_refused(make: MakeTrainer, name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES))
    rows = [{"prompt": f"{a % 9}+{a % 9 + 1}="} for a in range(40)]
    with pytest.raises(BudgetError, match="reads-later-tokens"):
        make(perturb(model, 1.0), KLBudget(0.05), rows=rows, disable_dropout=True).train()


def test_weights_that_evaluation_mode_rescales_are_refused(make: MakeTrainer) -> None:
    config = AutoConfig.for_model("rwkv", vocab_size=14, hidden_size=16, num_hidden_layers=2, context_length=32)
    with pytest.raises(BudgetError, match="evaluation mode rescales them"):
        make(AutoModelForCausalLM.from_config(config), KLBudget(0.05))


def test_logits_of_minus_infinity_in_both_models_are_measured(make: MakeTrainer) -> None:
    model = llama()
    excluded = torch.tensor([False] * 12 + [True] * 2)
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.masked_fill(excluded, -torch.inf))
    trainer = make(model, KLBudget(0.05))
    trainer.train()
    assert 0 < trainer.state.log_history[-2]["kl_policy_ref_per_token"] < 0.2


def test_a_head_of_several_layers_is_measured(make: MakeTrainer) -> None:
    model = llama()
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 14))
    check(make(model, KLBudget(0.05)), copy.deepcopy(model))


def test_an_output_head_in_float32_of_a_model_in_bfloat16(make: MakeTrainer) -> None:
    trainer = make(llama().to(torch.bfloat16), KLBudget(0.05), cast_lm_head_to_fp32=True)
    trainer.train()
    assert trainer.state.log_history[0]["kl_policy_ref_per_token"] == 0


def test_more_tokens_than_embeddings_and_weights_that_are_not_finite_are_refused(make: MakeTrainer) -> None:
    with pytest.raises(InputError, match="expected a model with an embedding of each of the tokenizer's 14 tokens"):
        make(llama(vocab_size=10), KLBudget(0.05))
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[1, 2] = torch.nan
    with pytest.raises(InputError, match=r"got nan at index \(1, 2\) of model.layers.0.mlp.up_proj.weight"):
        make(model, KLBudget(0.05))
    with pytest.raises(BudgetError, match=r"expected budget to be a controller such as KLBudget\(0.05\), got 0.05"):
        make(llama(), 0.05)


def test_float16_autocast_is_held_like_float32(make: MakeTrainer) -> None:
    """Its first KL is of rounding alone, which says nothing about the KL after the first step."""
    filtered = {}
    for fp16 in (False, True):
        trainer = make(llama(), KLBudget(0.05), fp16=fp16, max_steps=6)
        trainer.train()
        filtered[fp16] = trainer.budget.filtered_kl
    assert filtered[True] == pytest.approx(filtered[False], rel=0.1)


# -- a reference that is passed --


def test_a_reference_of_another_depth_is_refused(make: MakeTrainer) -> None:
    model = llama(num_hidden_layers=1)
    with pytest.raises(BudgetError, match="wrong-reference"):
        make(model, KLBudget(0.05), ref_model=llama(num_hidden_layers=2)).train()


def test_a_reference_that_is_passed_is_used_and_pulled_towards(make: MakeTrainer) -> None:
    reference = llama()
    model = perturb(copy.deepcopy(reference), 0.05)  # continues a run
    original = copy.deepcopy(reference)
    trainer = make(model, ref_model=reference)
    assert trainer.ref_model is reference
    inputs = batch_of(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["kl_policy_ref_per_token"] > 1e-4
    trainer._controller.weights.scale_displacement(0.0)
    assert float(true_kl(model, original, inputs).max()) < 1e-9


def test_a_reference_is_loaded_from_a_path(make: MakeTrainer, tiny_model: Path) -> None:
    trainer = make(LlamaForCausalLM.from_pretrained(tiny_model), ref_model=str(tiny_model))
    check(trainer, LlamaForCausalLM.from_pretrained(tiny_model))


def test_the_base_model_is_a_reference_of_a_new_adapter(make: MakeTrainer) -> None:
    model, adapter = llama(), LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM")
    original = copy.deepcopy(model)
    check(make(model, peft_config=adapter, ref_model=copy.deepcopy(model)), original)


def test_another_model_as_the_reference_of_an_adapter_is_refused(make: MakeTrainer) -> None:
    adapter = LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM")
    trainer = make(llama(), peft_config=adapter, ref_model=perturb(llama()))
    with pytest.raises(BudgetError, match="error wrong-reference"):
        trainer.train()


def test_the_policy_itself_is_refused_as_the_reference(make: MakeTrainer) -> None:
    model = llama()
    tied = copy.deepcopy(model)
    tied.lm_head.weight = model.lm_head.weight
    with pytest.raises(BudgetError, match=r"shares lm_head\.weight with the policy"):
        make(model, ref_model=tied)
    with pytest.raises(BudgetError, match=r"shares model\.embed_tokens\.weight with the policy"):
        make(model, ref_model=model)


# -- preflight --


def test_a_policy_that_changed_before_training_is_refused(make: MakeTrainer) -> None:
    trainer = make(llama())
    perturb(trainer.model)
    with pytest.raises(BudgetError, match=r"(?s)preflight=False omits.*error wrong-reference"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_second_call_of_train_goes_on(make: MakeTrainer) -> None:
    trainer = make(llama())
    trainer.train()
    trainer.train()
    assert trainer.state.log_history[0]["kl_policy_ref_per_token"] > 0


def test_preflight_can_be_omitted(make: MakeTrainer) -> None:
    trainer = make(llama(), preflight=False, max_steps=1)
    perturb(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_weight_that_is_not_finite_is_refused(make: MakeTrainer) -> None:
    trainer = make(llama())
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = float("nan")
    inputs = {**batch_of(make(llama()))}
    trainer._controller.needs_preflight = True
    trainer.state.global_step = 0
    with pytest.raises(BudgetError, match="error kl-not-finite"):
        trainer.compute_loss(trainer.model, inputs)


def test_a_head_that_is_incomplete_is_refused(make: MakeTrainer) -> None:
    trainer = make(llama())
    head = trainer._controller.weights.head
    trainer._controller.weights.head = lambda **options: lambda hidden: torch.tanh(head(**options)(hidden))
    with pytest.raises(BudgetError, match="error head-differs"):
        trainer.train()


def test_a_masked_end_of_sequence_is_reported(make: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(llama())
    inputs = batch_of(trainer)
    inputs["completion_mask"] = torch.ones_like(inputs["completion_mask"])
    trainer._controller.needs_preflight = True
    with pytest.raises(BudgetError, match="error padding-counted"):
        trainer.compute_loss(trainer.model, inputs)


def test_a_sampling_filter_is_reported(make: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kullback"):
        make(llama(), top_k=3, max_steps=1).train()
    assert "warning sampling-filter" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "kullback"):
        make(llama(), generation_kwargs={"repetition_penalty": 2.0, "temperature": 0.5}, max_steps=1).train()
    assert "repetition_penalty 2, temperature of generation_kwargs 0.5" in caplog.text


# -- dropout --


@pytest.mark.parametrize("kind", ["gpt2", "attention dropout", "lora dropout"])
@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_dropout_is_no_kl(make: MakeTrainer, kind: str, unit: Any) -> None:
    model = gpt2(0.1) if kind == "gpt2" else llama(attention_dropout=0.2 if kind == "attention dropout" else 0.0)
    adapter = LoraConfig(r=2, target_modules=TARGETS, lora_dropout=0.3, task_type="CAUSAL_LM")
    settings = {"peft_config": adapter} if kind == "lora dropout" else {}
    original = copy.deepcopy(model)
    trainer = make(model, KLBudget(0.01, unit=unit), **settings)
    check(trainer, original)
    assert trainer.model.training
    assert all(module.training for module in trainer.model.modules())


def test_without_dropout_the_forward_pass_is_shared(make: MakeTrainer) -> None:
    trainer = make(llama(), max_steps=1)
    trainer.train()
    assert trainer._controller.has_one_mode is True
    trainer = make(gpt2(0.1), max_steps=1, disable_dropout=True)
    trainer.train()
    assert trainer._controller.has_one_mode is True


def test_dropout_gives_the_penalty_without_dropout(make: MakeTrainer) -> None:
    gradients: list[Any] = []
    inputs: dict[str, Any] = {}
    for dropout in (0.0, 0.2):
        trainer = make(llama(attention_dropout=dropout), KLBudget(0.05, price=0.05))
        inputs = inputs or batch_of(trainer)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        perturb(trainer.model)
        controller = trainer._controller
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        states = trainer.model.model(input_ids=ids, attention_mask=attention).last_hidden_state
        hidden = controller.evaluation_hidden(inputs, states)
        controller.penalty(inputs, controller.score(inputs, hidden, controller.ref_hidden(inputs)), hidden).backward()
        gradients.append({name: weight.grad.clone() for name, weight in trainer.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


# -- masks --


def never_ends() -> Any:
    model = llama()
    model.lm_head = torch.nn.Linear(16, 14)
    torch.nn.init.constant_(model.lm_head.bias, 0.0)
    model.lm_head.bias.data[:2] = -100.0  # TRL takes a padding token as an end too
    return model


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_a_step_whose_completions_are_all_masked_goes_on(
    make: MakeTrainer, unit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(never_ends(), KLBudget(0.05, unit=unit), mask_truncated_completions=True)
    with caplog.at_level(logging.WARNING, "kullback"):
        trainer.train()
    assert trainer.state.global_step == 3
    assert "every completion is masked" in caplog.text
    assert trainer.budget.filtered_kl == 0.0
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


@pytest.mark.parametrize("masked", ["first step", "middle step", "last step", "all but one completion"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_steps_with_masked_completions_go_on(make: MakeTrainer, masked: str, accumulated: int) -> None:
    settings = {"per_device_train_batch_size": 16 // accumulated, "gradient_accumulation_steps": accumulated}
    trainer = make(llama(), KLBudget(0.001), mask_truncated_completions=True, **settings)
    steps = {"first step": [0], "middle step": [1], "last step": [2]}.get(masked, [0, 1, 2])
    calls: list[int] = []

    def generate(prompts: list[str], trainer: Any) -> dict[str, Any]:
        completions = [[2 + (7 * i + j) % 10 for j in range(4)] + [1] for i in range(len(prompts))]
        if len(calls) in steps:  # the completions lack their end
            ended = completions[0]
            completions = [ids[:-1] for ids in completions]
            if masked == "all but one completion":
                completions[0] = ended
        calls.append(len(prompts))
        tokenizer = trainer.processing_class
        return {"prompt_ids": tokenizer(prompts)["input_ids"], "completion_ids": completions, "logprobs": None}

    trainer.rollout_func = generate
    trainer.train()
    rows = [row for row in trainer.state.log_history if "reward" in row]
    assert calls == [16, 16, 16]
    measured = ["kl_policy_ref_per_token" in row for row in rows]
    assert measured == [masked == "all but one completion" or step not in steps for step in range(3)]
    assert trainer.budget.filtered_kl > 0
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_masked_completions_are_left_out(make: MakeTrainer, unit: Any) -> None:
    original = llama()
    trainer = make(llama(), KLBudget(0.05, unit=unit, price=0.05), mask_truncated_completions=True)
    perturb(trainer.model)
    inputs = batch_of(trainer)
    counted = inputs["completion_mask"].any(1)
    assert 0 < counted.sum() < 16
    inputs["advantages"] = torch.zeros_like(inputs["advantages"])
    loss = trainer.compute_loss(trainer.model, inputs)
    truth = true_kl(trainer.model, original, inputs)
    assert truth[~counted].abs().max() == 0
    expected = truth.sum() / (inputs["completion_mask"].sum() if unit == "token" else counted.sum())
    token_and_sequence = trainer._controller.measured()
    assert token_and_sequence[unit == "sequence"].value == pytest.approx(float(expected), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert trainer._controller.newest.sample_by_kl(8).mask.any(dim=1).all()


def test_a_run_with_masked_completions_is_held(make: MakeTrainer) -> None:
    trainer = make(
        llama(),
        KLBudget(0.05, unit="sequence"),
        mask_truncated_completions=True,
        max_steps=60,
        learning_rate=3e-3,
        per_device_train_batch_size=32,
    )
    original = llama()
    trainer.train()
    truths = []
    for _ in range(8):
        inputs = batch_of(trainer)
        counted = inputs["completion_mask"].any(1)
        truths.append(true_kl(trainer.model, original, inputs)[counted])
    assert float(torch.cat(truths).mean()) == pytest.approx(0.05, rel=0.35)


# -- precision --


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_kl_of_held_out_completions_is_that_in_float32(
    make: MakeTrainer, weights: str, adapter: bool, autocast: bool
) -> None:
    model = llama().to(getattr(torch, weights))
    original = copy.deepcopy(model).double()
    lora = LoraConfig(r=2, target_modules=TARGETS, bias="all", modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    trainer = make(model, bf16=autocast, peft_config=lora if adapter else None)
    trainer.train()
    logged = [row["kl_policy_ref_per_token"] for row in trainer.state.log_history if "reward" in row]
    assert logged[0] == 0.0
    controller = trainer._controller
    held_out = controller.held_out
    prompt = held_out.ids.shape[1] - held_out.mask.shape[1]
    inputs = {
        "prompt_ids": held_out.ids[:, :prompt],
        "prompt_mask": held_out.attention[:, :prompt],
        "completion_ids": held_out.ids[:, prompt:],
        "completion_mask": held_out.mask,
    }
    kl = controller.with_present_kl(held_out).kl.sum(1).double()
    for weight in controller.weights.reference.weights:
        weight.data = controller.weights.copies.copy_of(weight).data
    truth = true_kl(trainer.model.double(), original, inputs)
    assert float(truth.mean()) > 1e-6
    torch.testing.assert_close(kl, truth, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_low_precision_does_not_stop_the_learning(make: MakeTrainer, weights: str) -> None:
    scales, kls = {}, {}
    settings = {"max_steps": 60, "learning_rate": 1e-3, "per_device_train_batch_size": 32}
    for low in (False, True):
        model = llama().to(getattr(torch, weights if low else "float32"))
        trainer = make(model, KLBudget(0.005), bf16=low, **settings)
        trainer.train()
        rows = [row for row in trainer.state.log_history if "reward" in row]
        scales[low] = torch.tensor([row["learning_rate_scale"] for row in rows[20:]]).log().mean().exp()
        kls[low] = sum(row["kl_policy_ref_per_token"] for row in rows[-20:]) / 20
    assert 0.5 < scales[True] / scales[False] < 2
    assert 0.5 < kls[True] / kls[False] < 2


def test_the_optimizer_acts_on_float32_copies_of_low_precision(make: MakeTrainer) -> None:
    trainer = make(llama().to(torch.bfloat16), max_steps=2, learning_rate=1e-4)
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    trainer.train()
    copies = [trainer._controller.weights.copies.copy_of(weight) for weight in trainer.model.parameters()]
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(copy.to(w.dtype), w) for copy, w in zip(copies, trainer.model.parameters(), strict=True))
    moved = [float((copy.detach() - w.float()).abs().max()) for copy, w in zip(copies, before, strict=True)]
    assert min(moved) > 0
    optimized = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert optimized == {id(copy) for copy in copies}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_checkpointing_changes_nothing(make: MakeTrainer, adapter: bool, reentrant: bool) -> None:
    logs = []
    for checkpointing in (False, True):
        lora = LoraConfig(r=2, target_modules=TARGETS, bias="all", task_type="CAUSAL_LM") if adapter else None
        settings = {"gradient_checkpointing": checkpointing}
        settings |= {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}} if checkpointing else {}
        trainer = make(llama(attention_bias=True), peft_config=lora, **settings)
        trainer.train()
        logs.append([row["kl_policy_ref_per_token"] for row in trainer.state.log_history if "reward" in row])
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    assert logs[0][-1] > 0


# -- resumption --


@pytest.mark.parametrize("choice", ["refuse", "given", "saved"])
def test_a_budget_that_differs_from_the_checkpoints(make: MakeTrainer, tmp_path: Path, choice: str) -> None:
    first = make(llama(), KLBudget(0.02), save_strategy="steps", save_steps=3)
    first.train()
    checkpoint = str(tmp_path / "checkpoints" / "checkpoint-3")
    resumed = make(llama(), KLBudget(0.04, price_max=1.0), max_steps=4, resume_budget=choice)
    if choice == "refuse":
        with pytest.raises(BudgetError, match=r"'target': 0\.04.*'target': 0\.02.*resume_budget='given'"):
            resumed.train(resume_from_checkpoint=checkpoint)
        return
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 4
    assert resumed.budget.target == (0.04 if choice == "given" else 0.02)
    assert resumed.budget.price_max == (1.0 if choice == "given" else 0.5)
    assert resumed.budget.pull_exponent.mean_log_kl_step != 0.0  # what the first run measured is kept


@pytest.mark.parametrize("choice", ["refuse", "given", "saved"])
def test_units_are_never_mixed(make: MakeTrainer, tmp_path: Path, choice: str) -> None:
    make(llama(), KLBudget(0.02), save_strategy="steps", save_steps=3).train()
    resumed = make(llama(), KLBudget(0.02, unit="sequence"), max_steps=4, resume_budget=choice)
    with pytest.raises(BudgetError, match="a KL per token is not a KL per sequence"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-3"))


@pytest.mark.parametrize("controller", [PPO2017(0.03), Ziegler2019(0.05), RLlibController(0.01), FixedBeta(0.3)])
def test_a_controller_that_changed_its_beta_resumes(make: MakeTrainer, tmp_path: Path, controller: Any) -> None:
    first = make(llama(), controller, save_strategy="steps", save_steps=3)
    first.train()
    resumed = make(llama(), controller, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-3"))
    assert resumed.state.global_step == 4
    other = make(llama(), PPO2017(0.5), max_steps=4)
    with pytest.raises(BudgetError, match="differs from the checkpoint's"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-3"))


@pytest.mark.parametrize("adapter", [False, True])
def test_resumption_with_another_reference_is_refused(make: MakeTrainer, tmp_path: Path, adapter: bool) -> None:
    lora = LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM") if adapter else None
    make(llama(), peft_config=lora, save_strategy="steps", save_steps=3).train()
    checkpoint = str(tmp_path / "checkpoints" / "checkpoint-3")
    resumed = make(perturb(llama(), 0.05), peft_config=copy.deepcopy(lora), max_steps=4)
    with pytest.raises(BudgetError, match="expected the reference of the checkpoint"):
        resumed.train(resume_from_checkpoint=checkpoint)
    resumed = make(llama(), peft_config=copy.deepcopy(lora), max_steps=4)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 4


def test_evaluation_mode_restores_the_mode_of_each_module() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2)))
    model[1][1].eval()
    modes = [module.training for module in model.modules()]
    with evaluation_mode(model):
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes == [True, True, True, True, False]
