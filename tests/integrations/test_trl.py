"""The trainer, as TRL runs it: its penalty's gradient, its controller, its checkpoints."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from kullback import KLBudget
from kullback.doctor.trl import doctor_trainer
from kullback.errors import BudgetError
from kullback.integrations.heldout_positions import HeldOutCompletions
from kullback.integrations.trl import BudgetGRPOTrainer, BudgetRLOOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

MakeTrainer = Callable[..., Any]
BOTH = pytest.mark.parametrize("kind", [BudgetGRPOTrainer, BudgetRLOOTrainer])


def longer(completions: list[str], **_: Any) -> list[float]:
    return [len(text) / 6 for text in completions]


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Iterator[MakeTrainer]:
    def trainer(budget: KLBudget | None = None, *, kind: Any = BudgetGRPOTrainer, **settings: Any) -> Any:
        extra = {name: settings.pop(name) for name in ("peft_config",) if name in settings}
        config = (GRPOConfig if issubclass(kind, GRPOTrainer) else RLOOConfig)(
            **{
                "output_dir": str(tmp_path / "checkpoints"),
                "per_device_train_batch_size": 16,
                "num_generations": 4,
                "max_completion_length": 6,
                "max_steps": 4,
                "learning_rate": 1e-3,
                "beta": 0.0,
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
        if kind in (BudgetGRPOTrainer, BudgetRLOOTrainer):
            extra["budget"] = budget
        return kind(
            AutoModelForCausalLM.from_pretrained(tiny_model),
            longer,
            config,
            train_dataset=Dataset.from_list([{"prompt": f"{a}+{a + 1}="} for a in range(40)]),
            processing_class=AutoTokenizer.from_pretrained(tiny_model, padding_side="left"),
            **extra,
        )

    return trainer


def perturb(model: torch.nn.Module, size: float = 0.2) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(size * weight.std() * torch.randn_like(weight))


def batch_of(trainer: Any) -> dict[str, Any]:
    """A generation batch, prepared as TRL prepares it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.accelerator.gradient_state._set_sync_gradients(False)  # more micro-batches of the step follow
    rows = [{"prompt": prompt} for prompt in ("1+2=", "34+5=", "67+89=", "0+0=") for _ in range(4)]
    return trainer._prepare_inputs(rows)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.double().clone() for name, weight in model.named_parameters() if weight.grad is not None}


def enumerated_penalty(trainer: Any, inputs: dict[str, Any], unit: str) -> torch.Tensor:
    """The mean KL by the plain double sum over the vocabulary, in float64, from full logits of whole models.

    Per sequence, its gradient is the gradient of log-probabilities of completions, weighted by their log-ratios minus
    the mean log-ratio of the other completions of the prompt.
    """
    policy, reference = trainer.model.double(), trainer.ref_model.double()
    total, weight = torch.zeros((), dtype=torch.float64), 0
    rows: list[tuple[list[int], torch.Tensor, float]] = []
    for row in range(len(inputs["completion_ids"])):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        length = int(inputs["completion_mask"][row].sum())
        ids = torch.cat([prompt, inputs["completion_ids"][row][:length]])[None]
        logits = type(policy).forward(policy, input_ids=ids).logits[0] / trainer.temperature
        with torch.no_grad():
            ref_logits = type(reference).forward(reference, input_ids=ids).logits[0] / trainer.temperature
        kls, log_prob, log_ratio = [], torch.zeros((), dtype=torch.float64), 0.0
        for position in range(len(prompt) - 1, len(prompt) + length - 1):
            log_p, log_q = logits[position].log_softmax(-1), ref_logits[position].log_softmax(-1)
            kls.append(sum(log_p[token].exp() * (log_p[token] - log_q[token]) for token in range(logits.shape[-1])))
            token = ids[0, position + 1]
            log_prob = log_prob + log_p[token]
            log_ratio += float((log_p[token] - log_q[token]).detach())
        total = total + sum(kls)
        weight += length if unit == "token" else 1
        rows.append((prompt.tolist(), log_prob, log_ratio))
    if unit == "sequence":
        total = total.detach()
        for row, (prompt_of, log_prob, log_ratio) in enumerate(rows):
            others = [ratio for index, (prompt, _, ratio) in enumerate(rows) if prompt == prompt_of and index != row]
            total = total + (log_ratio - sum(others) / len(others)) * (log_prob - log_prob.detach())
    return total / weight


@BOTH
@pytest.mark.parametrize("unit", ["token", "sequence"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_penalty_and_its_gradient_are_the_enumerated_ones(
    make: MakeTrainer, unit: Any, temperature: float, kind: Any
) -> None:
    beta = 0.7
    trainer = make(KLBudget(0.05, unit=unit, price=beta * 0.05), kind=kind, temperature=temperature)
    perturb(trainer.model)
    inputs = batch_of(trainer)
    inputs["advantages"] = torch.zeros_like(inputs["advantages"])  # leaves the penalty alone in the loss
    trainer.model.double(), trainer.ref_model.double()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    ours = gradients(trainer.model)
    trainer.model.zero_grad()
    truth = enumerated_penalty(trainer, inputs, unit)
    (beta * truth).backward()
    exact = gradients(trainer.model)
    value = float(truth.detach())
    assert value > 0.01
    assert float(loss.detach()) == pytest.approx(beta * value, rel=1e-5)
    assert exact.keys() <= ours.keys()
    largest = max(float(gradient.abs().max()) for gradient in exact.values())
    for name, gradient in exact.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6 * largest)
    seen = trainer._controller.measured()[unit == "sequence"]
    assert seen.value == pytest.approx(value, rel=1e-5)


def test_per_sequence_the_noise_of_the_penalty_cancels_the_noise_of_the_reward(make: MakeTrainer) -> None:
    """At the optimum, reward - beta log(policy / reference) is constant: every batch has a gradient of 0."""
    beta = 0.7
    budget = KLBudget(0.05, unit="sequence", price=beta * 0.05, price_max=10.0)
    trainer = make(budget, loss_type="dr_grpo")
    perturb(trainer.model)
    inputs = batch_of(trainer)
    prompt, completion = inputs["prompt_ids"], inputs["completion_ids"]
    ids, attention = (
        torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
    )

    def log_probs(model: Any) -> torch.Tensor:
        states = slice(prompt.shape[1] - 1, -1)
        logits = type(model).forward(model, input_ids=ids, attention_mask=attention).logits[:, states].detach().double()
        each = (logits / trainer.temperature).log_softmax(-1).gather(-1, completion[..., None])[..., 0]
        return (each * inputs["completion_mask"]).sum(dim=1)

    log_ratio = log_probs(trainer.model) - log_probs(trainer.ref_model)
    same = (prompt[:, None] == prompt[None]).all(dim=2).double()
    excess = log_ratio - (same @ log_ratio - log_ratio) / (same.sum(dim=1) - 1)
    largest = {}
    for name, advantages in {"optimum": beta * trainer.max_completion_length * excess, "elsewhere": -excess}.items():
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, {**inputs, "advantages": advantages.float()}).backward()
        largest[name] = max(float(gradient.abs().max()) for gradient in gradients(trainer.model).values())
    assert largest["optimum"] < 1e-4 * largest["elsewhere"]


def completions_of(log_probs: torch.Tensor, end: int) -> list[list[int]]:
    """All completions of two tokens at most."""
    tokens = range(len(log_probs))
    return [[end], *([first, second] for first in tokens if first != end for second in tokens)]


@pytest.mark.slow
def test_per_sequence_the_expected_gradient_is_that_of_whole_completions(make: MakeTrainer) -> None:
    """Summed over all that can be written, one row at a time, against the KL of the completions' distributions."""
    trainer = make(KLBudget(0.05, unit="sequence", price=0.05))  # beta 1
    perturb(trainer.model)
    tokenizer = trainer.processing_class
    prompt = torch.tensor([tokenizer("1+2=")["input_ids"]])
    inputs = batch_of(trainer)
    policy, reference = trainer.model, trainer.ref_model
    rows = completions_of(policy.get_output_embeddings().weight[:, 0], tokenizer.eos_token_id)

    def log_probs(model: Any) -> torch.Tensor:
        """In float64, of every completion."""
        ids = torch.tensor([row + [0] * (2 - len(row)) for row in rows])
        whole = torch.cat([prompt.expand(len(ids), -1), ids], dim=1)
        logits = type(model).forward(model.double(), input_ids=whole).logits[:, -3:-1]
        each = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return torch.where(torch.tensor([[True, len(row) > 1] for row in rows]), each, 0.0).sum(1)

    for row, chance in zip(rows, log_probs(policy).exp().tolist(), strict=True):
        completion = torch.tensor([row])
        given = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": completion}
        given |= {"completion_mask": torch.ones_like(completion), "advantages": torch.zeros(1)}
        (chance * trainer.compute_loss(policy, {**inputs, **given})).backward()
    ours = gradients(policy)
    policy.zero_grad()
    log_policy, log_ref = log_probs(policy), log_probs(reference).detach()
    (log_policy.exp() * (log_policy - log_ref)).sum().backward()
    exact = gradients(policy)
    largest = max(float(gradient.abs().max()) for gradient in exact.values())
    for name, gradient in exact.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6 * largest)


@BOTH
def test_without_a_budget_the_loss_and_its_gradient_are_trls(make: MakeTrainer, kind: Any) -> None:
    watched = make(None, kind=kind)
    inputs = batch_of(watched)
    watched.compute_loss(watched.model, inputs).backward()
    plain = make(kind=GRPOTrainer if issubclass(kind, GRPOTrainer) else RLOOTrainer)
    plain.current_gradient_accumulation_steps = 1
    plain.model.train()
    plain.compute_loss(plain.model, inputs).backward()
    expected = gradients(plain.model)
    assert any(float(gradient.abs().max()) > 0 for gradient in expected.values())
    for name, gradient in gradients(watched.model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_micro_batches_add_up_to_the_whole_batch(make: MakeTrainer, kind: Any, unit: Any) -> None:
    whole = make(KLBudget(0.05, price=0.025, unit=unit), kind=kind)
    perturb(whole.model)
    inputs = batch_of(whole)
    inputs["advantages"] = torch.zeros_like(inputs["advantages"])
    whole_loss = whole.compute_loss(whole.model, inputs)
    whole_loss.backward()
    expected = gradients(whole.model)
    two = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    halves = make(KLBudget(0.05, price=0.025, unit=unit), kind=kind, **two)
    perturb(halves.model)
    halves.model.train()
    halves.current_gradient_accumulation_steps = 2
    halves.accelerator.gradient_state._set_sync_gradients(False)
    total = 0.0
    for part in (slice(0, 8), slice(8, 16)):
        half = {k: v[part] if isinstance(v, torch.Tensor) and v.ndim else v for k, v in inputs.items()}
        loss = halves.compute_loss(halves.model, half)
        loss = loss if halves.loss_is_scaled_for_ga else loss / 2  # as transformers does before the backward pass
        loss.backward()
        total += float(loss.detach())
    assert total == pytest.approx(float(whole_loss.detach()), rel=1e-5)
    if unit == "token":  # the baseline of a sequence is over the completions of its prompt in the same micro-batch
        for name, gradient in gradients(halves.model).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
    assert halves._controller.measured()[0].value == pytest.approx(whole._controller.measured()[0].value, rel=1e-6)


def test_masked_tool_tokens_cost_nothing(make: MakeTrainer) -> None:
    trainer = make(KLBudget(0.05))
    perturb(trainer.model)
    inputs = batch_of(trainer)
    trainer.compute_loss(trainer.model, inputs)
    everything = trainer._controller.newest.kl.detach()
    inputs["tool_mask"] = torch.ones_like(inputs["completion_mask"])
    inputs["tool_mask"][:, 1::2] = 0
    trainer.compute_loss(trainer.model, inputs)
    torch.testing.assert_close(trainer._controller.newest.kl.detach(), everything * inputs["tool_mask"])


def test_the_kl_is_exactly_zero_at_the_reference(make: MakeTrainer) -> None:
    trainer = make(KLBudget(0.05))
    trainer.compute_loss(trainer.model, batch_of(trainer))
    token, sequence = trainer._controller.measured()
    assert token.value == sequence.value == 0.0


def test_pulling_scales_the_displacement(make: MakeTrainer) -> None:
    trainer = make(KLBudget(0.05))
    perturb(trainer.model)
    before = [w - r for w, r in zip(trainer.model.parameters(), trainer.ref_model.parameters(), strict=True)]
    trainer._controller.weights.scale_displacement(0.5)
    after = [w - r for w, r in zip(trainer.model.parameters(), trainer.ref_model.parameters(), strict=True)]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one / 2, rtol=1e-4, atol=1e-6)


def test_the_schedulers_rate_is_put_back_after_the_step(make: MakeTrainer) -> None:
    trainer = make(KLBudget(1e-4, learning_rate_scale=0.25), max_steps=3)  # small: the controller keeps its steps small
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-3)
    # Unlike the usual ones, this schedule computes the next rate from the one that it finds.
    trainer.optimizer, trainer.lr_scheduler = optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer.train()
    assert trainer.budget.learning_rate_scale < 0.5
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**3)


@pytest.mark.slow
@BOTH
def test_it_holds_the_tiny_budget_that_a_plain_run_breaks(make: MakeTrainer, kind: Any) -> None:
    kls = {}
    for target in (None, 0.02):
        trainer = make(target and KLBudget(target), kind=kind, max_steps=60, learning_rate=1e-2)
        trainer.train()
        logged = [row["kl_policy_ref_per_token"] for row in trainer.state.log_history if "reward" in row]
        kls[target] = sum(logged[-20:]) / 20
    assert kls[None] > 0.2
    assert kls[0.02] == pytest.approx(0.02, rel=0.3)


@pytest.mark.slow
@BOTH
def test_a_resumed_run_goes_on_with_the_same_controller(make: MakeTrainer, tmp_path: Path, kind: Any) -> None:
    first = make(KLBudget(0.02), kind=kind, max_steps=6, save_strategy="steps", save_steps=6)
    first.train()
    resumed = make(KLBudget(0.02), kind=kind, max_steps=7)
    seen: list[KLBudget] = []
    holder = resumed._controller
    before_last_backward = holder.before_last_backward

    def noting() -> None:
        seen.append(resumed.budget)
        before_last_backward()

    holder.before_last_backward = noting
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-6"))
    assert seen == [first.budget]
    assert seen[0] != KLBudget(0.02)


@pytest.mark.slow
def test_an_adapter_is_held_by_its_own_weights(make: MakeTrainer) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    trainer = make(KLBudget(0.01), peft_config=config, max_steps=40, learning_rate=2e-2)
    frozen = {name: weight.clone() for name, weight in trainer.model.named_parameters() if not weight.requires_grad}
    trainer.train()
    logged = [row["kl_policy_ref_per_token"] for row in trainer.state.log_history if "reward" in row]
    assert logged[0] == 0.0
    assert sum(logged[-15:]) / 15 == pytest.approx(0.01, rel=0.3)
    for name, weight in trainer.model.named_parameters():
        if name in frozen:
            assert torch.equal(weight, frozen[name])


def test_no_more_than_the_documented_methods_of_the_trainers_are_wrapped() -> None:
    own = [{name for name, value in vars(kind).items() if callable(value)} for kind in BudgetRLOOTrainer.mro()[:2]]
    assert own[0] - {"config_class"} == {"_generate_and_score_completions"}
    loading = {"_load_from_checkpoint", "_load_optimizer_and_scheduler"}
    assert own[1] == {"__init__", "create_optimizer", "create_scheduler", "compute_loss", *loading}
    assert not {name for name, value in vars(BudgetGRPOTrainer).items() if callable(value)} - {"config_class"}


def test_truncated_completions_of_rloo_are_left_out(make: MakeTrainer) -> None:
    budget = KLBudget(0.05, price=0.05)
    trainer = make(budget, kind=BudgetRLOOTrainer, mask_truncated_completions=True, max_completion_length=3)
    perturb(trainer.model)
    inputs = batch_of(trainer)
    counted = inputs["completion_mask"].any(dim=1)
    assert 0 < int(counted.sum()) < len(counted)
    assert int(inputs["num_items_in_batch"]) == int(inputs["completion_mask"].sum())
    inputs["advantages"] = torch.zeros_like(inputs["advantages"])
    loss = trainer.compute_loss(trainer.model, inputs)
    kept = {key: value[counted] if value.ndim else value for key, value in inputs.items()}
    assert float(loss.detach()) == pytest.approx(float(enumerated_penalty(trainer, kept, "token").detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.05}, r"RLOOConfig.beta = 0, got 0\.05, which is its default.*pass beta=0\.0"),
        ({"beta": 0.1}, r"RLOOConfig.beta = 0, got 0\.1: the budget"),
        ({"sync_ref_model": True}, r"RLOOConfig.sync_ref_model = False"),
    ],
)
def test_trls_own_kl_of_rloo_is_refused_beside_the_budget(
    make: MakeTrainer, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        make(KLBudget(0.05), kind=BudgetRLOOTrainer, **settings)


@pytest.mark.parametrize("kind", [BudgetRLOOTrainer, RLOOTrainer])
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_the_doctor_finds_nothing_in_rloo(make: MakeTrainer, kind: Any, beta: float) -> None:
    if kind is RLOOTrainer or beta == 0:
        assert doctor_trainer(make(KLBudget(0.05), kind=kind, beta=beta)) == []


@pytest.mark.parametrize("kind", [BudgetGRPOTrainer, BudgetRLOOTrainer])
def test_settings_by_which_the_kl_would_be_wrong_are_refused(make: MakeTrainer, kind: Any) -> None:
    from peft import LoraConfig

    with pytest.raises(BudgetError, match="expected torch_compile=False"):
        make(KLBudget(0.05), kind=kind, torch_compile=True)
    for replication in ([[0, 2], [0, 2]], [[0, 2], [1, 2]]):
        adapter = LoraConfig(r=2, layer_replication=replication, task_type="CAUSAL_LM")
        with pytest.raises(BudgetError, match="expected a peft_config without layer_replication"):
            make(KLBudget(0.05), kind=kind, peft_config=adapter)


def test_a_budget_per_step_is_refused(make: MakeTrainer) -> None:
    with pytest.raises(BudgetError, match="'token' or 'sequence' of completions, got 'step'"):
        make(KLBudget(0.05, unit="step"))


def test_trls_own_penalty_is_refused_beside_the_budget(make: MakeTrainer) -> None:
    with pytest.raises(BudgetError, match=r"beta = 0, got 0\.04"):
        make(KLBudget(0.05), beta=0.04)


@pytest.mark.parametrize("kind", [BudgetGRPOTrainer, BudgetRLOOTrainer])
def test_fewer_prompts_than_a_generation_takes_are_refused(make: MakeTrainer, kind: Any) -> None:
    with pytest.raises(BudgetError, match=r"at least 41 prompts, as many as a generation takes .* got 40"):
        make(KLBudget(0.05), kind=kind, per_device_train_batch_size=164)


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_a_panel_tells_the_change_of_all_and_how_badly(make: MakeTrainer, unit: Any) -> None:
    trainer = make(KLBudget(0.05, unit=unit))
    holder, lengths = trainer._controller, torch.randint(1, 6, (400,), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < lengths[:, None]
    surprises = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        sizes, moves = torch.randn(2, 400, 1, generator=generator, dtype=torch.float64)
        kl = (1.5 * sizes).exp() * mask
        ids, place = torch.arange(400)[:, None].expand(-1, 8), torch.arange(400)
        rows = HeldOutCompletions(ids, torch.ones_like(ids), mask, mask, kl, torch.ones(400), place)
        after = kl * (0.1 + 0.2 * moves).exp()
        whole = holder.change(rows, replace(rows, kl=after))
        share = float(mask.sum()) if unit == "token" else 400
        assert whole[:2] == pytest.approx((float(kl.sum()) / share, float(after.sum()) / share), rel=1e-12)
        panel = rows.sample_by_kl(40)
        before, later, std_error = holder.change(panel, replace(panel, kl=after[panel.ids[:, 0]]))
        surprises.append(math.log(later / before / (whole[1] / whole[0])) / std_error)
    surprises = torch.tensor(surprises)
    assert abs(surprises.mean()) < 4 / 200**0.5
    assert 0.6 < surprises.std() < 1.1  # less than 1: rows that are sure to be drawn err less than the formula says


def test_without_trls_fused_head_its_loss_by_liger_is_refused(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kullback.integrations.trl.FusedCausalLMOutput", None)  # as in TRL 1.14
    with pytest.raises(BudgetError, match="use_liger_kernel=False with TRL"):
        make(KLBudget(0.05), use_liger_kernel=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "rows"),
    # Half of a batch is held out, and on average an eighth of that is added in each step. No step needs the brake.
    [(16, [8, 9, 9, 9, 9]), (8, [4, 5, 4, 5, 4]), (32, [16, 18, 18, 18, 18])],
)
def test_a_step_is_measured_by_one_forward_pass_and_every_held_out_kl_is_present(
    make: MakeTrainer, batch: int, rows: list[int]
) -> None:
    trainer = make(KLBudget(0.05), max_steps=5, per_device_train_batch_size=batch)
    controller = trainer._controller
    passes, measure = [], controller.weights.float32_hidden
    controller.weights.float32_hidden = lambda ids, attention: passes.append(len(ids)) or measure(ids, attention)
    trainer.train()
    assert passes == rows
    held_out = controller.held_out
    assert len(held_out) == batch // 2
    assert controller.added is None
    torch.testing.assert_close(held_out.kl, controller.with_present_kl(held_out).kl, rtol=1e-4, atol=1e-7)
