"""Forward KL and its floor, logged by a real Trainer, against sums over every context and every token."""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from kullback.errors import InputError
from kullback.integrations.transformers_forward_kl import ForwardKL

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

# Two answers to one prompt, prompts that end early, and one that nothing repeats.
TEXTS = [("1+1=", "2"), ("1+1=", "2"), ("1+1=", "11"), ("3+4=", "7"), ("3+4=", "8"), ("12+5=", "17"), ("1+1=", "3")]


def arguments(output: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        str(output),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        logging_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        seed=0,
        **more,
    )


def rows_of(tokenizer: Any, texts: list[tuple[str, str]]) -> Dataset:
    rows = []
    for prompt, answer in texts:
        before, after = tokenizer(prompt)["input_ids"], [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        labels = [-100] * len(before) + after
        rows.append({"input_ids": before + after, "attention_mask": [1] * len(labels), "labels": labels})
    return Dataset.from_list(rows)


def truth(model: Any, rows: Dataset) -> tuple[float, float, float]:
    """Cross-entropy, floor and KL(empirical || model), context by context over the whole vocabulary, in float64."""
    seen: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for row in rows:
        for t, label in enumerate(row["labels"]):
            if label != -100:
                seen[tuple(row["input_ids"][:t])][label] += 1
    total = sum(map(Counter.total, seen.values()))
    ce = floor = kl = 0.0
    model.eval()
    for context, outcomes in seen.items():
        with torch.no_grad():
            log_q = model(torch.tensor([context])).logits[0, -1].double().log_softmax(-1).numpy()
        p = np.zeros_like(log_q)
        for token, count in outcomes.items():
            p[token] = count / outcomes.total()
        here = p > 0
        weight = outcomes.total() / total
        ce -= weight * (p[here] * log_q[here]).sum()
        floor -= weight * (p[here] * np.log(p[here])).sum()
        # The phi form, every token of the vocabulary counted.
        kl += weight * ((p[here] * (np.log(p[here]) - log_q[here])).sum() + np.exp(log_q).sum() - p.sum())
    return ce, floor, kl


def trainer_of(tiny_model: Path, tmp_path: Path, *, side: str = "right", **more: Any) -> tuple[Trainer, Dataset]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side=side)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = rows_of(tokenizer, TEXTS)
    trainer = Trainer(
        model,
        arguments(tmp_path, **more),
        train_dataset=rows,
        eval_dataset=rows_of(tokenizer, TEXTS[:2]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    return trainer, rows


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_logged_is_the_kl_to_the_empirical_distribution(tiny_model: Path, tmp_path: Path, side: str) -> None:
    trainer, rows = trainer_of(tiny_model, tmp_path, side=side, max_steps=20, eval_strategy="steps", eval_steps=10)
    trainer.add_callback(ForwardKL(trainer))
    before = truth(trainer.model, rows)
    trainer.train()
    after = truth(trainer.model, rows)
    logged = [row for row in trainer.state.log_history if "train_forward_kl_per_token" in row]
    assert [row["step"] for row in logged] == [0, 10, 20]
    for row, (ce, floor, kl) in ((logged[0], before), (logged[-1], after)):
        assert row["train_cross_entropy_per_token"] == pytest.approx(ce, rel=1e-5)
        assert row["train_entropy_floor_per_token"] == pytest.approx(floor, rel=1e-12)
        assert row["train_forward_kl_per_token"] == pytest.approx(kl, rel=1e-5)
        assert 0 < row["train_forward_kl_per_token_std_error"] < row["train_forward_kl_per_token"]
    assert after[2] < 0.5 * before[2]
    # Fifteen tokens, five of which follow a prefix that no other row has: "11", the ends of "7", "8", "11", "3" ...
    contexts = [tuple(row["input_ids"][:t]) for row in rows for t, label in enumerate(row["labels"]) if label != -100]
    alone = sum(contexts.count(one) == 1 for one in contexts) / len(contexts)
    assert logged[0]["train_contexts_seen_once"] == pytest.approx(alone)
    assert 0.3 < alone < 1
    # Both held-out rows are alike: nothing is uncertain there.
    assert logged[-1]["eval_entropy_floor_per_token"] == 0.0
    held_out = truth(trainer.model, trainer.eval_dataset)
    assert logged[-1]["eval_forward_kl_per_token"] == pytest.approx(held_out[2], rel=1e-5)


def test_training_is_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    weights = []
    for watched in (False, True):
        trainer, _ = trainer_of(tiny_model, tmp_path, max_steps=6)
        if watched:
            trainer.add_callback(ForwardKL(trainer))
        trainer.train()
        weights.append(torch.cat([one.detach().flatten() for one in trainer.model.parameters()]))  # type: ignore[union-attr]
    assert torch.equal(*weights)


def test_a_known_entropy_is_the_floor(tiny_model: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_of(tiny_model, tmp_path)
    row = ForwardKL(trainer, entropy=0.25).measure()
    assert row["train_entropy_floor_per_token"] == 0.25
    assert row["train_forward_kl_per_token"] == pytest.approx(row["train_cross_entropy_per_token"] - 0.25)


def test_some_examples_are_a_sample_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    trainer, rows = trainer_of(tiny_model, tmp_path)
    row = ForwardKL(trainer, max_examples=3).measure()
    _, floor, kl = truth(trainer.model, rows.select([0, 3, 6]))
    assert row["train_entropy_floor_per_token"] == pytest.approx(floor, rel=1e-12)
    assert row["train_forward_kl_per_token"] == pytest.approx(kl, rel=1e-5)


def test_a_classifier(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    texts = ["1+1=", "1+1=", "1+1=", "12+5=", "12+5=", "7"]
    classes = [0, 0, 1, 2, 1, 2]
    rows = [{**tokenizer(text), "labels": label} for text, label in zip(texts, classes, strict=True)]
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=4),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.add_callback(ForwardKL(trainer))
    trainer.train()
    last = [row for row in trainer.state.log_history if "train_forward_kl_per_example" in row][-1]
    floor = (3 * (math.log(3) - 2 / 3 * math.log(2)) + 2 * math.log(2)) / 6
    assert last["train_entropy_floor_per_example"] == pytest.approx(floor, rel=1e-12)
    model.eval()
    with torch.no_grad():
        log_q = [model(**tokenizer(text, return_tensors="pt")).logits[0].double().log_softmax(-1) for text in texts]
    ce = -sum(float(one[label]) for one, label in zip(log_q, classes, strict=True)) / 6
    assert last["train_forward_kl_per_example"] == pytest.approx(ce - floor, rel=1e-5)
    assert last["train_contexts_seen_once"] == pytest.approx(1 / 6)


def test_what_has_no_floor_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    trainer, rows = trainer_of(tiny_model, tmp_path)
    with pytest.raises(InputError, match="most to be 1 or more"):
        ForwardKL(trainer, max_examples=0)
    nothing = rows.map(lambda row: {"labels": [-100] * len(row["labels"])})
    trainer.train_dataset = nothing
    with pytest.raises(InputError, match="expected labels that count, got none in 7 examples"):
        ForwardKL(trainer).measure()
    trainer.train_dataset = None
    with pytest.raises(InputError, match="expected a Trainer with a train_dataset"):
        ForwardKL(trainer)
    regression = LlamaForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    numbers = Dataset.from_list([{"input_ids": [1, 2], "attention_mask": [1, 1], "labels": 0.5}])
    trainer = Trainer(regression, arguments(tmp_path), train_dataset=numbers)
    with pytest.raises(InputError, match="no entropy floor"):
        ForwardKL(trainer).measure()
