"""The doctor for real trainers: each inserted fault gives its finding, and a correct trainer gives none."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
)
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from kullback import KLBudget
from kullback.doctor.finding import Finding
from kullback.doctor.models import doctor
from kullback.doctor.trl import doctor_trainer
from kullback.errors import InputError, ShapeError
from kullback.integrations.trl import BudgetGRPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

MakeTrainer = Callable[..., Any]
PROMPTS = [{"prompt": prompt} for prompt in ("1+2=", "34+5=", "67+89=", "0+0=") for _ in range(4)]


def longer(completions: list[str], **_: Any) -> list[float]:
    return [len(text) / 6 for text in completions]


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> MakeTrainer:
    def trainer(*, kind: Any = GRPOTrainer, model: Any = None, tokenizer: Any = None, **settings: Any) -> Any:
        extra = {name: settings.pop(name) for name in ("peft_config", "budget") if name in settings}
        config = GRPOConfig(
            **{
                "output_dir": str(tmp_path / "checkpoints"),
                "per_device_train_batch_size": 16,
                "num_generations": 4,
                "max_completion_length": 6,
                "max_steps": 3,
                "learning_rate": 1e-2,
                "beta": 0.04 if kind is not BudgetGRPOTrainer else 0.0,
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
        return kind(
            model or AutoModelForCausalLM.from_pretrained(tiny_model),
            longer,
            config,
            train_dataset=Dataset.from_list([{"prompt": f"{a}+{a + 1}="} for a in range(40)]),
            processing_class=tokenizer or AutoTokenizer.from_pretrained(tiny_model, padding_side="left"),
            **extra,
        )

    return trainer


def names(findings: list[Finding]) -> list[str]:
    assert all(finding.cause and finding.remedy and finding.evidence for finding in findings)
    return [finding.name for finding in findings]


def found_in(trainer: Any) -> list[str]:
    return names(doctor_trainer(trainer, PROMPTS))


def perturb(model: torch.nn.Module, size: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(size * weight.std() * torch.randn(weight.shape, generator=generator))


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


# -- correct trainers --


def test_another_trainer_is_refused() -> None:
    for other in (None, 3, torch.nn.Linear(1, 1)):
        with pytest.raises(InputError, match="expected a GRPOTrainer or an RLOOTrainer of TRL, got"):
            doctor_trainer(other)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"num_iterations": 2, "steps_per_generation": 2},
        {"loss_type": "grpo"},
        {"kind": BudgetGRPOTrainer, "budget": KLBudget(0.05)},
        {"mask_truncated_completions": True},
    ],
    ids=str,
)
def test_a_correct_trainer_gives_no_finding_before_and_after_training(
    make: MakeTrainer, settings: dict[str, Any]
) -> None:
    trainer = make(**settings)
    assert doctor_trainer(trainer) == []
    trainer.train()
    assert doctor_trainer(trainer, PROMPTS) == []


def test_a_correct_adapter_gives_no_finding(make: MakeTrainer) -> None:
    trainer = make(peft_config=lora())
    assert doctor_trainer(trainer, PROMPTS) == []
    trainer.train()
    assert doctor_trainer(trainer, PROMPTS) == []


def test_bfloat16_autocast_gives_no_finding(make: MakeTrainer) -> None:
    assert found_in(make(bf16=True, num_iterations=2, steps_per_generation=2)) == []


@pytest.mark.slow
def test_the_doctor_does_not_change_training(make: MakeTrainer) -> None:
    weights, logs = [], []
    for with_doctor in (False, True):
        torch.manual_seed(3)
        trainer = make()
        if with_doctor:
            assert doctor_trainer(trainer) == []
        trainer.train()
        weights.append([weight.detach().clone() for weight in trainer.model.parameters()])
        logs.append([(row["kl"], row["reward"]) for row in trainer.state.log_history if "reward" in row])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert logs[0] == logs[1]
    assert logs[0][-1][0] > 0


@pytest.mark.parametrize("settings", [{}, {"peft_config": True}])
def test_modes_flags_and_random_numbers_are_restored(
    make: MakeTrainer, tiny_model: Path, settings: dict[str, Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.1)
    trainer = make(model=model, **{name: lora() for name in settings})
    batch = batch_of(trainer)
    trainer.model.train()
    modules, weights = list(trainer.model.modules()), list(trainer.model.parameters())
    modules[5].training = False
    for weight in weights[::2]:
        weight.requires_grad_(False)
    state = torch.get_rng_state()

    def current_state() -> Any:
        return [module.training for module in modules], [weight.requires_grad for weight in weights]

    before = current_state()
    assert names(doctor(trainer.model, trainer.ref_model, batch))[0] == "dropout"
    assert torch.equal(torch.get_rng_state(), state)
    assert current_state() == before
    doctor_trainer(trainer, PROMPTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert current_state() == before


# -- the KL at the start --


def test_dropout(make: MakeTrainer, tiny_model: Path) -> None:
    trainer = make(model=AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.1))
    [found] = doctor_trainer(trainer, PROMPTS)
    assert found.name == "dropout"
    assert found.evidence["KL in training mode"] > 1e-3
    assert found.evidence["KL in evaluation mode"] == 0.0
    assert found.evidence["attention_dropout"] == 0.1


def test_a_wrong_reference(make: MakeTrainer) -> None:
    trainer = make()
    perturb(trainer.ref_model, 0.1)
    [found] = doctor_trainer(trainer, PROMPTS)
    assert found.name == "wrong-reference"
    assert found.evidence["weights that differ"] == 16  # the weights of the norms are all 1, so the noise on them is 0
    assert found.evidence["relative distance"] == pytest.approx(0.1, rel=0.2)


def test_two_faults_give_two_findings(make: MakeTrainer, tiny_model: Path) -> None:
    trainer = make(model=AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.3))
    perturb(trainer.ref_model, 0.01)
    assert found_in(trainer) == ["dropout", "wrong-reference"]


def test_an_adapter_that_was_trained_before(make: MakeTrainer) -> None:
    trainer = make(peft_config=lora())
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    [found] = doctor_trainer(trainer, PROMPTS)
    assert found.name == "wrong-reference"
    assert found.evidence["lora_B other than 0"] == 4


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_reference_in_lower_precision(make: MakeTrainer, stored: torch.dtype) -> None:
    trainer = make()
    trainer.ref_model.to(torch.bfloat16).to(stored)
    [found] = doctor_trainer(trainer, PROMPTS)
    assert found.name == "precision"
    assert "bfloat16" in found.cause


def test_equal_weights_computed_differently(make: MakeTrainer) -> None:
    trainer = make()
    trainer.ref_model.config.rms_norm_eps = 0.1
    for module in trainer.ref_model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.1
    [found] = doctor_trainer(trainer, PROMPTS)
    assert found.name == "computed-differently"
    assert "rms_norm_eps" in found.evidence


# -- recorded log-probabilities --


class Engine(GRPOTrainer):
    """TRL's trainer with an inference engine, whose log-probabilities `change` replaces."""

    change: Callable[[Any, dict[str, Any]], None]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        type(self).change(self, batch)
        return batch


def plain_log_probs(
    model: Any, batch: dict[str, Any], *, temperature: float = 1.0, top_p: float = 1.0, mask: bool = True
) -> torch.Tensor:
    """Log-probabilities computed token by token, with top-p filtering by a loop."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention if mask else torch.ones_like(attention)).logits.double()
    start = batch["prompt_ids"].shape[1]
    result = torch.zeros(batch["completion_ids"].shape)
    for row in range(len(ids)):
        for t in range(result.shape[1]):
            p = (logits[row, start + t - 1] / temperature).softmax(-1)
            kept, mass = [], 0.0
            for token in p.argsort(descending=True).tolist():
                if mass >= top_p:
                    break
                kept.append(token)
                mass += float(p[token])
            token = int(ids[row, start + t])
            result[row, t] = (p[token] / mass).log() if token in kept else -torch.inf
    return result


def engine_of(change: Callable[[Any, dict[str, Any]], None]) -> type:
    return type("Changed", (Engine,), {"change": staticmethod(change)})


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_an_engine_with_current_weights_gives_no_finding(make: MakeTrainer, temperature: float) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        batch["sampling_per_token_logps"] = plain_log_probs(trainer.model, batch, temperature=temperature)
        batch["sampling_per_token_logps"][0, 0] = torch.nan  # vLLM does not score every token

    assert found_in(make(kind=engine_of(change), temperature=temperature)) == []


def test_a_reference_at_another_temperature(make: MakeTrainer) -> None:
    trainer = make(temperature=0.7)
    add_fused_lm_head(trainer.ref_model, temperature=1.0)
    [found] = doctor_trainer(trainer, PROMPTS)
    assert found.name == "temperature"
    assert found.evidence["recorded"] == "ref_log_prob"
    assert found.evidence["reproduced by"] == "temperature 1"


def test_recorded_log_probs_after_a_sampling_filter(make: MakeTrainer) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        batch["sampling_per_token_logps"] = plain_log_probs(trainer.model, batch, top_p=0.9)

    trainer = make(kind=engine_of(change), top_p=0.9)
    found = doctor_trainer(trainer, PROMPTS)
    assert names(found) == ["sampling-filter"]
    assert found[0].evidence["recorded"] == "sampler_log_prob"
    assert found[0].evidence["reproduced by"] == "top_p 0.9 at temperature 1"


def test_a_sampling_filter_in_the_settings(make: MakeTrainer) -> None:
    [found] = doctor_trainer(make(top_k=3), PROMPTS)
    assert (found.name, found.severity, dict(found.evidence)) == ("sampling-filter", "warning", {"top_k": 3})


@pytest.mark.parametrize(
    ("defaults", "settings", "evidence"),
    [
        ({"repetition_penalty": 1.1, "top_p": 0.8, "top_k": 20, "temperature": 0.7}, {}, None),  # TRL sets these
        ({"min_p": 0.1}, {}, {"min_p": 0.1}),
        ({"min_p": 0.1}, {"min_p": 0.0}, None),
        ({"typical_p": 0.9, "suppress_tokens": [3]}, {}, {"typical_p": 0.9, "suppress_tokens": [3]}),
        ({"typical_p": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}, {}, None),
        ({}, {"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ],
)
def test_defaults_of_the_model_that_filter_its_samples(
    make: MakeTrainer, tiny_model: Path, defaults: dict[str, Any], settings: dict[str, Any], evidence: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for name, value in defaults.items():
        setattr(model.generation_config, name, value)
    found = doctor_trainer(make(model=model, **settings))
    assert [dict(finding.evidence) for finding in found] == ([] if evidence is None else [evidence])
    assert {finding.name for finding in found} <= {"sampling-filter"}


def test_an_engine_with_older_weights(make: MakeTrainer) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        old = AutoModelForCausalLM.from_pretrained(trainer.model.config._name_or_path)
        perturb(old, 0.3)
        batch["sampling_per_token_logps"] = plain_log_probs(old, batch)

    [found] = doctor_trainer(make(kind=engine_of(change)), PROMPTS)
    assert found.name == "stale-policy"
    assert found.evidence["mean |recorded - recomputed|, nats"] > 0.05


def test_an_engine_with_the_weights_of_the_reference(make: MakeTrainer) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        batch["sampling_per_token_logps"] = plain_log_probs(trainer.ref_model, batch)

    trainer = make(kind=engine_of(change))
    assert found_in(trainer) == []
    trainer.train()
    [found] = doctor_trainer(trainer, PROMPTS)
    assert found.name == "stale-policy"
    assert "computed with the reference" in found.cause


def test_an_engine_that_attends_to_padding(make: MakeTrainer) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        batch["sampling_per_token_logps"] = plain_log_probs(trainer.model, batch, mask=False)

    assert found_in(make(kind=engine_of(change))) == ["padding-attended"]


def test_an_engine_in_bfloat16(make: MakeTrainer, tiny_model: Path) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        lower = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
        batch["old_per_token_logps"] = plain_log_probs(lower, batch)

    [found] = doctor_trainer(make(kind=engine_of(change)), PROMPTS)
    assert (found.name, found.severity) == ("precision", "warning")


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("name", ["old_log_prob", "ref_log_prob"])
def test_recorded_log_probs_that_are_not_finite(make: MakeTrainer, name: str, value: float) -> None:
    trainer = make()
    batch = batch_of(trainer)
    recorded = torch.full(batch["completion_ids"].shape, value)
    [found] = doctor(trainer.model, trainer.ref_model, {**batch, name: recorded})
    assert found.name == "log-prob-not-finite"
    assert found.evidence["not finite"] == found.evidence["of"] > 0


def test_a_trainer_without_a_reference_is_checked(make: MakeTrainer) -> None:
    assert found_in(make(beta=0.0, num_iterations=2, steps_per_generation=2)) == []
    trainer = make(beta=0.0)
    trainer.model.requires_grad_(False)
    assert found_in(trainer) == ["frozen"]
    batch = batch_of(trainer)
    found = doctor(trainer.model.requires_grad_(True), None, {**batch, "old_log_prob": torch.zeros(16, 6) - 1})
    assert names(found) == ["stale-policy"]


def test_a_stale_cache_of_the_reference(make: MakeTrainer) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        other = AutoModelForCausalLM.from_pretrained(trainer.model.config._name_or_path)
        perturb(other, 0.3)
        batch["ref_per_token_logps"] = plain_log_probs(other, batch)

    assert found_in(make(kind=engine_of(change))) == ["stale-reference"]


@pytest.mark.parametrize("shift", [1, -1])
def test_reference_log_probs_shifted_by_one_token(make: MakeTrainer, shift: int) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        batch["ref_per_token_logps"] = torch.roll(batch["ref_per_token_logps"], shift, 1)

    assert found_in(make(kind=engine_of(change))) == ["shifted"]


def test_reference_log_probs_of_the_policy(make: MakeTrainer) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        batch["ref_per_token_logps"] = plain_log_probs(trainer.model, batch)

    trainer = make(kind=engine_of(change))
    trainer.train()
    assert found_in(trainer) == ["reference-is-policy"]


def test_old_log_probs_with_dropout(make: MakeTrainer, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.1)
    trainer = make(model=model, num_iterations=2, steps_per_generation=2)
    found = doctor_trainer(trainer, PROMPTS)
    assert set(names(found)) == {"dropout"}
    assert "old_log_prob" in {finding.evidence.get("recorded") for finding in found}


# -- healthy set-ups of the trainer with a budget --


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("adapter", [None, {}, {"modules_to_save": ["lm_head", "norm"]}, {"use_dora": True}])
def test_a_healthy_trainer_with_a_budget_is_clean(
    make: MakeTrainer, tiny_model: Path, precision: str, adapter: Any
) -> None:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)
    settings: dict[str, Any] = {"model": model, "kind": BudgetGRPOTrainer, "budget": KLBudget(0.05)}
    settings |= {"bf16": precision != "float32"}
    if adapter is not None:
        from peft import LoraConfig

        settings["peft_config"] = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **adapter)
    trainer = make(**settings)
    assert doctor_trainer(trainer, PROMPTS) == []
    trainer.train()
    assert doctor_trainer(trainer, PROMPTS) == []


# -- the output head --


@pytest.mark.parametrize("fault", ["cap", "scale", "bias", "vocabulary"])
def test_logits_of_a_trainer_that_are_not_the_models(make: MakeTrainer, fault: str) -> None:
    trainer = make()
    batch, model = batch_of(trainer), trainer.model

    def head_logits(completions: Any) -> torch.Tensor:
        ids, mask = completions.ids, completions.attention_mask
        with torch.no_grad():
            logits = type(model).forward(model, input_ids=ids, attention_mask=mask).logits
        logits = logits[:, -completions.mask.shape[1] - 1 :]
        changed = {"cap": 30 * torch.tanh(logits / 30), "scale": 1.01 * logits, "vocabulary": logits[..., :-1]}
        return changed.get(fault, logits + 0.01 * torch.arange(14))

    found = doctor(model, trainer.ref_model, batch, head_logits=head_logits)
    assert names(found) == ["head-differs"]


def test_logits_that_are_not_finite(make: MakeTrainer) -> None:
    trainer = make()
    batch = batch_of(trainer)
    for name in ("ref_per_token_logps", "old_per_token_logps", "sampling_per_token_logps"):
        batch.pop(name, None)
    with torch.no_grad():
        trainer.model.lm_head.weight[3, 0] = float("inf")
    assert "kl-not-finite" in names(doctor(trainer.model, trainer.ref_model, batch))


# -- masks, padding, tokenizers --


@pytest.mark.parametrize(("shift", "message"), [(1, "too late"), (-1, "too early")])
def test_a_mask_shifted_by_one(make: MakeTrainer, shift: int, message: str) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        shifted = torch.roll(batch["completion_mask"], shift, 1)
        shifted[:, 0 if shift > 0 else -1] = 0
        batch["completion_mask"] = shifted

    [found] = doctor_trainer(make(kind=engine_of(change)), PROMPTS)
    assert found.name == "mask-shifted"
    assert message in found.cause


def test_a_mask_that_counts_only_padding(make: MakeTrainer) -> None:
    trainer = make()
    batch = batch_of(trainer)
    batch["completion_ids"][:, 0] = trainer.processing_class.eos_token_id
    batch["completion_mask"] = torch.ones_like(batch["completion_ids"])
    batch["completion_mask"][:, 0] = 0
    found = doctor(trainer.model, trainer.ref_model, batch, tokenizer=trainer.processing_class)
    assert names(found) == ["padding-counted"]


def test_rows_that_do_not_count_are_skipped(make: MakeTrainer) -> None:
    trainer = make()
    perturb(trainer.ref_model, 0.1)
    batch = batch_of(trainer)
    batch["completion_mask"][:12] = 0  # mask_truncated_completions
    assert names(doctor(trainer.model, trainer.ref_model, batch)) == ["wrong-reference"]


def test_padding_that_counts(make: MakeTrainer) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        batch["completion_mask"] = torch.ones_like(batch["completion_mask"])

    assert found_in(make(kind=engine_of(change))) == ["padding-counted"]


def test_prompts_padded_on_the_right(make: MakeTrainer) -> None:
    def change(trainer: Any, batch: dict[str, Any]) -> None:
        lengths = batch["prompt_mask"].sum(1).tolist()
        for name in ("prompt_ids", "prompt_mask"):
            batch[name] = torch.stack([torch.roll(row, n) for row, n in zip(batch[name], lengths, strict=True)])
        del batch["ref_per_token_logps"]

    assert found_in(make(kind=engine_of(change))) == ["padding-side"]


def test_position_ids_that_include_padding(make: MakeTrainer, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side="left")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    trainer = make(model=AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2"), tokenizer=tokenizer)
    assert found_in(trainer) == ["padding-moves-positions"]
    equal_lengths = [{"prompt": prompt} for prompt in ("1+2=", "3+5=", "6+9=", "0+0=") for _ in range(4)]
    assert doctor_trainer(trainer, equal_lengths) == []


def test_a_streamed_data_set(make: MakeTrainer) -> None:
    trainer = make()
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    assert doctor_trainer(trainer) == []
    trainer.train_dataset = []
    with pytest.raises(InputError, match="train_dataset with prompts"):
        doctor_trainer(trainer)


def test_a_trainer_that_passes_position_ids_is_recognised_by_its_log_probabilities() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    policy = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()
    prompts, completions = torch.randint(1, 16, (6, 5)), torch.randint(1, 16, (6, 7))
    prompt_mask = (torch.arange(5) >= torch.tensor([0, 1, 2, 3, 4, 0])[:, None]).long()
    batch = {"prompt_ids": prompts * prompt_mask, "prompt_mask": prompt_mask}
    batch |= {"completion_ids": completions, "completion_mask": torch.ones_like(completions)}

    def log_probs(temperature: float) -> torch.Tensor:
        rows = []  # each row alone, without padding
        for prompt, mask, completion in zip(prompts, prompt_mask, completions, strict=True):
            ids = torch.cat([prompt[mask.bool()], completion])[None]
            with torch.no_grad():
                scaled = policy(input_ids=ids).logits[0, -8:-1] / temperature
            rows.append(scaled.log_softmax(-1).gather(-1, completion[:, None])[:, 0])
        return torch.stack(rows)

    right = {"old_log_prob": log_probs(1.0), "ref_log_prob": log_probs(1.0)}
    assert doctor(policy, deepcopy(policy), batch | right) == []
    found = doctor(policy, deepcopy(policy), batch | {"old_log_prob": log_probs(0.7)})
    assert [finding.name for finding in found] == ["temperature"]
    assert [finding.name for finding in doctor(policy, deepcopy(policy), batch)] == ["padding-moves-positions"]
    stale = batch | {"old_log_prob": log_probs(1.0) + torch.randn(6, 7)}
    assert {finding.name for finding in doctor(policy, deepcopy(policy), stale)} == {
        "padding-moves-positions",
        "stale-policy",
    }


def test_a_model_that_reads_later_tokens() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    batch = {"prompt_ids": ids, "prompt_mask": ids > 0, "completion_ids": ids, "completion_mask": ids > 0}
    for is_decoder, expected in ((False, ["reads-later-tokens"]), (True, [])):
        config = BertConfig(**sizes, intermediate_size=32, initializer_range=0.5, is_decoder=is_decoder)
        policy = BertLMHeadModel(config).eval()
        assert [finding.name for finding in doctor(policy, deepcopy(policy), batch)] == expected


def batch_of(trainer: Any) -> dict[str, Any]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer._prepare_inputs(PROMPTS)


def test_another_tokenizer_and_another_template(make: MakeTrainer, tiny_model: Path) -> None:
    from tokenizers import Tokenizer

    trainer = make()
    batch, tokenizer = batch_of(trainer), trainer.processing_class
    arguments = {"policy": trainer.model, "reference": trainer.ref_model, "batch": batch, "tokenizer": tokenizer}
    ref_tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert doctor(**arguments, ref_tokenizer=ref_tokenizer) == []
    text = ref_tokenizer.backend_tokenizer.to_str().replace('"3":5', '"3":6').replace('"4":6', '"4":5')
    ref_tokenizer._tokenizer = Tokenizer.from_str(text)
    [found] = doctor(**arguments, ref_tokenizer=ref_tokenizer)
    assert found.name == "tokenizer"
    assert found.evidence["tokens with different ids"] == 2
    other = AutoTokenizer.from_pretrained(tiny_model)
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    assert names(doctor(**arguments, ref_tokenizer=other)) == ["chat-template"]


def test_a_chat_template_that_was_not_applied(make: MakeTrainer, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side="left")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}=={% endif %}"
    )
    trainer = make(tokenizer=tokenizer)
    assert found_in(trainer) == ["chat-template"]
    chats = [{"prompt": [{"role": "user", "content": "1+2"}]}] * 4 + [
        {"prompt": [{"role": "user", "content": "11+2"}]}
    ] * 4
    assert doctor_trainer(trainer, chats) == []


def test_two_beginning_of_sequence_tokens(make: MakeTrainer) -> None:
    trainer = make()
    batch = batch_of(trainer)
    trainer.processing_class.bos_token = "+"
    bos = torch.full((16, 2), trainer.processing_class.bos_token_id)
    batch["prompt_ids"] = torch.cat([bos, batch["prompt_ids"][:, -2:]], 1)
    batch["prompt_mask"] = torch.ones_like(batch["prompt_ids"])
    batch.pop("ref_per_token_logps")
    found = doctor(trainer.model, trainer.ref_model, batch, tokenizer=trainer.processing_class)
    assert names(found) == ["chat-template"]
    assert found[0].evidence["prompts"] == 8


def test_vocabularies_of_two_sizes(make: MakeTrainer) -> None:
    trainer = make()
    batch = batch_of(trainer)
    trainer.ref_model.resize_token_embeddings(20, mean_resizing=False)
    assert names(doctor(trainer.model, trainer.ref_model, batch)) == ["vocabulary"]
    trainer.ref_model.resize_token_embeddings(14, mean_resizing=False)
    trainer.processing_class.add_tokens(["x"])
    found = doctor(trainer.model, trainer.ref_model, batch, tokenizer=trainer.processing_class)
    assert names(found) == ["vocabulary"]


# -- what trains --


def test_a_frozen_policy(make: MakeTrainer) -> None:
    trainer = make()
    trainer.model.requires_grad_(False)
    assert found_in(trainer) == ["frozen"]
    trainer.model.model.layers.requires_grad_(True)
    [found] = doctor_trainer(trainer, PROMPTS)
    assert (found.name, found.severity) == ("partly-frozen", "warning")


def test_a_frozen_adapter(make: MakeTrainer) -> None:
    trainer = make(peft_config=lora())
    for name, weight in trainer.model.named_parameters():
        if "lora_" in name:
            weight.requires_grad_(False)
    [found] = doctor_trainer(trainer, PROMPTS)
    assert found.name == "frozen"
    assert "adapter" in found.cause
    assert "is_trainable=True" in found.remedy


def test_an_optimizer_without_a_trainable_weight(make: MakeTrainer) -> None:
    trainer = make()
    trainer.create_optimizer()
    assert found_in(trainer) == []
    trainer.model.lm_head.weight = torch.nn.Parameter(trainer.model.lm_head.weight.detach().clone())
    [found] = doctor_trainer(trainer, PROMPTS)
    assert found.name == "not-in-optimizer"
    assert found.evidence["first"] == "lm_head.weight"


def test_a_reference_that_is_the_policy(make: MakeTrainer) -> None:
    trainer = make()
    trainer.ref_model = trainer.model
    assert found_in(trainer) == ["reference-is-policy"]


def test_a_reference_that_trains(make: MakeTrainer) -> None:
    trainer = make()
    trainer.optimizer = torch.optim.SGD([*trainer.model.parameters(), *trainer.ref_model.parameters()], lr=0.1)
    assert found_in(trainer) == ["reference-moved"]


# -- the estimator --


def test_k3_as_a_loss(make: MakeTrainer) -> None:
    found = doctor_trainer(make(use_bias_correction_kl=False), PROMPTS)
    assert names(found) == ["logged-kl-differs-from-trained"]
    assert "form of the gradient" in found[0].evidence  # measured from TRL's loss, not read from its settings


def test_the_wrong_sign(make: MakeTrainer) -> None:
    assert found_in(make(beta=-0.04)) == ["kl-sign"]


def test_a_reference_that_is_synchronised(make: MakeTrainer) -> None:
    assert found_in(make(sync_ref_model=True)) == ["reference-moved"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda kl, _: kl, []),
        (lambda kl, _: -kl, ["kl-sign"]),
        (lambda kl, share: kl * share, ["padding-counted"]),
        (lambda kl, _: 3 * kl + 1, ["logged-kl-unknown"]),
        (lambda kl, _: torch.full((16, 6), kl), ["logged-kl-unknown"]),
    ],
)
def test_the_kl_that_trl_logs(make: MakeTrainer, change: Callable[[float, float], Any], expected: list[str]) -> None:
    trainer = make()
    perturb(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = trainer._prepare_inputs(PROMPTS)
    trainer.compute_loss(trainer.model, batch)
    logged = trainer._metrics["train"]["kl"][-1]
    share = float(batch["completion_mask"].float().mean())
    batch["kl"] = change(logged, share)
    assert names(doctor(trainer.model, trainer.ref_model, batch, at_start=False)) == expected


# -- bad input --


def test_bad_input_is_refused(make: MakeTrainer) -> None:
    trainer = make()
    batch = batch_of(trainer)
    policy, reference = trainer.model, trainer.ref_model
    with pytest.raises(InputError, match="got none of completion_mask"):
        doctor(policy, reference, {name: value for name, value in batch.items() if name != "completion_mask"})
    with pytest.raises(InputError, match="beside the batch's kl, got None"):
        doctor(policy, None, {**batch, "kl": 0.1})
    with pytest.raises(ShapeError, match=r"prompts \(16, \d\) and \(16, 1\)"):
        doctor(policy, reference, {**batch, "prompt_mask": batch["prompt_mask"][:, :1]})
    with pytest.raises(ShapeError, match="of 16 rows, got none: check completion_mask"):
        doctor(policy, reference, {**batch, "completion_mask": torch.zeros_like(batch["completion_mask"])})
    with pytest.raises(
        ShapeError, match=r"expected old_log_prob of shape \(16, 6\), as the completions have, got \(16, 2\)"
    ):
        doctor(policy, reference, {**batch, "old_log_prob": torch.zeros(16, 2)})
    with pytest.raises(ShapeError, match="expected one logged KL, or one of shape"):
        doctor(policy, reference, {**batch, "kl": torch.zeros(16, 2)})
