"""TRL's distillation trainers with the loss of `distillation_loss`: equal values and gradients, given completions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

pytest.importorskip("trl.trainer.distillation_trainer", reason="TRL 1.14 has no such trainer")

from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from kullback.errors import InputError, PenaltyError
from kullback.integrations.trl_distillation import (
    ExactDistillationTrainer,
    ExactGKDTrainer,
    completion_tokens,
    divergence_of_beta,
    require_same_vocabulary,
)
from kullback.policy.distillation import logit_divergence

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(3) for b in range(3)]
CHAT = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in ROWS
]
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
}
BETAS = [0.0, 1.0, 0.5, 0.3]


def perturbed(model: Any, seed: int, scale: float = 0.1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return model


def student_and_teacher(path: Path, scale: float = 0.1) -> tuple[Any, Any]:
    student = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return student, perturbed(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), 1, scale)


def gemma(path: Path, seed: int) -> Any:
    size = AutoTokenizer.from_pretrained(path).vocab_size
    config = Gemma2Config(
        vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    return perturbed(Gemma2ForCausalLM(config), seed, 0.3)


def make(trainer_class: Any, path: Path, output: Path, models: Any = None, *, beta: float = 1.0, **more: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    student, teacher = models or student_and_teacher(path)
    is_gkd = issubclass(trainer_class, GKDTrainer)
    length = {"max_new_tokens": 4, "max_length": 32} if is_gkd else {"max_completion_length": 4}
    settings = {**SETTINGS, **length, **more.pop("settings", {})}
    if is_gkd:
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    data = Dataset.from_list(more.pop("rows", CHAT if is_gkd else ROWS))
    return trainer_class(
        model=student,
        teacher_model=teacher,
        args=(GKDConfig if is_gkd else DistillationConfig)(output_dir=str(output), beta=beta, **settings),
        train_dataset=data.to_iterable_dataset() if more.pop("streamed", False) else data,
        processing_class=tokenizer,
        **more,
    )


def batch(vocabulary: int = 14) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, vocabulary, (3, 9), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    prompt = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]])
    return {
        "prompt_ids": ids[:, :4], "prompt_mask": prompt, "completion_ids": ids[:, 4:], "completion_mask": mask,
        "num_items_in_batch": torch.tensor(20.0),
    }  # fmt: skip


def loss_and_gradients(trainer: Any, inputs: Any, count: Any = None) -> tuple[float, list[Tensor]]:
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count)
    loss.backward()
    return loss.item(), [weight.grad.clone() for weight in trainer.model.parameters()]


def assert_equal_losses(ours: Any, theirs: Any, inputs: Any, count: Any = None) -> None:
    (loss, gradients), (expected, expected_gradients) = (
        loss_and_gradients(trainer, dict(inputs), count) for trainer in (ours, theirs)
    )
    assert loss == pytest.approx(expected, rel=2e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_the_loss_equals_the_loss_of_trl(beta: float, tiny_model: Path, tmp_path: Path) -> None:
    ours, theirs = (make(c, tiny_model, tmp_path, beta=beta) for c in (ExactDistillationTrainer, DistillationTrainer))
    assert_equal_losses(ours, theirs, batch())
    assert ours._metrics["train"]["entropy"] == pytest.approx(theirs._metrics["train"]["entropy"])


@pytest.mark.parametrize("beta", BETAS)
def test_the_loss_of_gkd_equals_the_loss_of_trl(beta: float, tiny_model: Path, tmp_path: Path) -> None:
    ours, theirs = (make(c, tiny_model, tmp_path, beta=beta) for c in (ExactGKDTrainer, GKDTrainer))
    examples = next(iter(ours.get_train_dataloader()))
    assert (examples["labels"] != -100).any()
    assert_equal_losses(ours, theirs, examples)
    assert_equal_losses(ours, theirs, examples, torch.tensor(17))


@pytest.mark.parametrize("classes", [(ExactDistillationTrainer, DistillationTrainer), (ExactGKDTrainer, GKDTrainer)])
def test_capped_logits_are_found(classes: Any, tiny_model: Path, tmp_path: Path) -> None:
    ours, theirs = (
        make(c, tiny_model, tmp_path, (gemma(tiny_model, 1), gemma(tiny_model, 2)), beta=0.5) for c in classes
    )
    # The two models are drawn independently, and are the same in both trainers.
    theirs.model.load_state_dict(ours.model.state_dict())
    theirs.teacher_model.load_state_dict(ours.teacher_model.state_dict())
    assert ours._scales["student"] == (1.0, 2.0)
    inputs = batch() if classes[0] is ExactDistillationTrainer else next(iter(ours.get_train_dataloader()))
    assert_equal_losses(ours, theirs, inputs)


def test_small_divergences_keep_their_digits(tiny_model: Path, tmp_path: Path) -> None:
    models = student_and_teacher(tiny_model, 1e-5)
    ours = make(ExactDistillationTrainer, tiny_model, tmp_path, models)
    theirs = make(DistillationTrainer, tiny_model, tmp_path, models)
    inputs = batch()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():  # the same hidden states, and heads in float64
        logits = [
            trainer_model.lm_head.weight.double()
            @ ours._get_last_hidden_state(trainer_model, ids, attention, 5).double().mT
            for trainer_model in (ours.teacher_model, ours.model)
        ]
        values = logit_divergence(*(value.mT for value in logits), "reverse")
        truth = float((values * inputs["completion_mask"]).sum() / inputs["completion_mask"].sum())
        errors = [
            abs(trainer.compute_loss(trainer.model, dict(inputs)).item() - truth) / truth for trainer in (ours, theirs)
        ]
    assert truth < 1e-6
    assert errors[0] < 1e-3 < errors[1], errors


def test_losses_per_sequence_and_other_divergences(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make(
        ExactDistillationTrainer, tiny_model, tmp_path, divergence="skew_reverse", weight=0.2, aggregate="sequence_mean"
    )
    inputs = batch()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    mask = inputs["completion_mask"]
    with torch.no_grad():
        logits = [
            model(input_ids=ids, attention_mask=attention).logits[:, -6:-1]
            for model in (trainer.teacher_model.eval(), trainer.model)
        ]
        values = logit_divergence(*logits, "skew_reverse", weight=0.2) * mask
        loss = trainer.compute_loss(trainer.model, inputs).item()
    assert loss == pytest.approx(float((values.sum(1) / mask.sum(1)).mean()), rel=1e-5)


def test_training_on_given_completions_uses_their_tokens(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make(ExactDistillationTrainer, tiny_model, tmp_path, off_policy=True, settings={"max_steps": 2})
    inputs = trainer._prepare_inputs([dict(row) for row in ROWS[:4]])
    got = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    ]
    tokenizer = trainer.processing_class
    assert sorted(got) == sorted([*tokenizer(row["completion"])["input_ids"], 1] for row in ROWS[:4])
    trainer._buffered_inputs, trainer._step = None, 0
    trainer.train()
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_given_completions_must_be_in_the_data(tiny_model: Path, tmp_path: Path) -> None:
    prompts = [{"prompt": row["prompt"]} for row in ROWS]
    for streamed in (False, True):
        with pytest.raises(InputError, match="expected a column completion in the data, got prompt"):
            make(
                ExactDistillationTrainer,
                tiny_model,
                tmp_path,
                off_policy=True,
                rows=prompts,
                streamed=streamed,
                settings={"max_steps": 1},
            ).train()


@pytest.mark.slow
@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "sequence_sum"])
@pytest.mark.parametrize("trainer_class", [ExactDistillationTrainer, ExactGKDTrainer])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    trainer_class: Any, aggregate: Any, tiny_model: Path, tmp_path: Path
) -> None:
    is_gkd = trainer_class is ExactGKDTrainer
    steps = []
    for size, parts in ((8, 1), (2, 4)):
        settings = {
            "max_steps": 1, "per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "optim": "sgd",
            "learning_rate": 1.0, "max_grad_norm": 0.0, **({"lmbda": 0.0} if is_gkd else {}),
        }  # fmt: skip
        more = {} if is_gkd else {"off_policy": True}
        trainer = make(trainer_class, tiny_model, tmp_path, aggregate=aggregate, settings=settings, **more)
        data = trainer.train_dataset.select(range(8))
        trainer.train_dataset = data
        trainer.train()
        steps.append([weight.detach().clone() for weight in trainer.model.parameters()])
    for first, second in zip(*steps, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_the_loss_of_gkd_on_policy_is_the_mean_over_the_generated_tokens(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 1, "gradient_accumulation_steps": 2, "learning_rate": 0.0, "lmbda": 1.0}
    trainer = make(ExactGKDTrainer, tiny_model, tmp_path, settings=settings)
    means, compute = [], trainer.compute_loss

    def with_mean(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        means.append(compute(model, inputs).item())  # without a count: the mean over the tokens of the micro-batch
        return compute(model, inputs, num_items_in_batch=num_items_in_batch)

    trainer.compute_loss = with_mean
    trainer.train()
    assert len(means) == 2
    logged = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    assert logged == pytest.approx(sum(means) / 2, rel=1e-5)


def test_completions_of_messages_continue_the_prompt(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    prompt, completion = [{"role": "user", "content": "1+2="}], [{"role": "assistant", "content": "3"}]
    ids = tokenizer("1+2=")["input_ids"]
    assert completion_tokens(tokenizer, prompt, completion, ids) == tokenizer("3")["input_ids"]
    with pytest.raises(InputError, match="a template that changes them"):
        completion_tokens(tokenizer, prompt, completion, [5, *ids])


@pytest.mark.slow
def test_both_trainers_train_on_policy(tiny_model: Path, tmp_path: Path) -> None:
    for trainer_class in (ExactDistillationTrainer, ExactGKDTrainer):
        trainer = make(trainer_class, tiny_model, tmp_path, settings={"max_steps": 2, "gradient_accumulation_steps": 2})
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        assert len(rows) == 2
        assert all(row["loss"] > 0 and row["entropy"] > 0 for row in rows)


@pytest.mark.parametrize("trainer_class", [ExactDistillationTrainer, ExactGKDTrainer])
def test_compiled_models_are_refused(trainer_class: Any, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected torch_compile=False"):
        make(trainer_class, tiny_model, tmp_path, settings={"torch_compile": True})


def test_what_is_not_handled_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a divergence out of forward"):
        make(ExactDistillationTrainer, tiny_model, tmp_path, divergence="backward")
    with pytest.raises(InputError, match="expected a weight between 0 and 1"):
        make(ExactGKDTrainer, tiny_model, tmp_path, divergence="skew_forward", weight=1.0)
    with pytest.raises(PenaltyError, match="expected the aggregation to be one of"):
        make(ExactDistillationTrainer, tiny_model, tmp_path, aggregate="mean")
    with pytest.raises(InputError, match="expected beta in"):
        divergence_of_beta(1.5)
    student, teacher = student_and_teacher(tiny_model)

    class Squared(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits**2
            return outputs

    teacher.__class__ = Squared
    with pytest.raises(InputError, match="expected a teacher whose output head is linear"):
        make(ExactDistillationTrainer, tiny_model, tmp_path, (student, teacher))


def test_the_first_token_that_differs_is_named(tiny_model: Path) -> None:
    student, teacher = (AutoTokenizer.from_pretrained(tiny_model) for _ in range(2))
    teacher.add_tokens(["x", "y"])
    with pytest.raises(InputError, match=r"2 tokens that differ; the first is 'x', which has none in the student's"):
        require_same_vocabulary(student, teacher)


@pytest.mark.parametrize("trainer_class", [ExactDistillationTrainer, ExactGKDTrainer])
def test_teachers_with_another_vocabulary_are_refused(trainer_class: Any, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["x"])
    with pytest.raises(InputError, match="the first is 'x'"):
        make(trainer_class, tiny_model, tmp_path, teacher_tokenizer=tokenizer)
    student, teacher = student_and_teacher(tiny_model)
    teacher.resize_token_embeddings(20)
    with pytest.raises(InputError, match="logits of 14 tokens as of the student, got 20"):
        make(trainer_class, tiny_model, tmp_path, (student, teacher))


def test_fewer_prompts_than_a_step_takes_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at least \d+ prompts, as many as a step takes .* got \d+"):
        make(ExactDistillationTrainer, tiny_model, tmp_path, settings={"gradient_accumulation_steps": 100})
