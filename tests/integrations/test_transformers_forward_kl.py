"""Forward KL and entropy floor in a real Trainer, against sums over all contexts and all tokens."""

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
from kullback.integrations.transformers_forward_kl import ForwardKL, _examples, _Scored

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

# Several answers to one prompt, prompts that are prefixes of others, and a prompt that occurs once.
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


def make_rows(tokenizer: Any, texts: list[tuple[str, str]]) -> Dataset:
    rows = []
    for prompt, answer in texts:
        before, after = tokenizer(prompt)["input_ids"], [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        labels = [-100] * len(before) + after
        rows.append({"input_ids": before + after, "attention_mask": [1] * len(labels), "labels": labels})
    return Dataset.from_list(rows)


def expected_values(model: Any, rows: Dataset) -> tuple[float, float, float]:
    """Cross-entropy, entropy floor and KL(empirical || model) in float64, as sums over contexts and the vocabulary."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for row in rows:
        for t, label in enumerate(row["labels"]):
            if label != -100:
                counts[tuple(row["input_ids"][:t])][label] += 1
    total = sum(map(Counter.total, counts.values()))
    ce = floor = kl = 0.0
    model.eval()
    for context, outcomes in counts.items():
        with torch.no_grad():
            log_q = model(torch.tensor([context])).logits[0, -1].double().log_softmax(-1).numpy()
        p = np.zeros_like(log_q)
        for token, count in outcomes.items():
            p[token] = count / outcomes.total()
        observed = p > 0
        weight = outcomes.total() / total
        ce -= weight * (p[observed] * log_q[observed]).sum()
        floor -= weight * (p[observed] * np.log(p[observed])).sum()
        # The non-negative form of the KL, summed over the whole vocabulary.
        kl += weight * ((p[observed] * (np.log(p[observed]) - log_q[observed])).sum() + np.exp(log_q).sum() - p.sum())
    return ce, floor, kl


def make_trainer(tiny_model: Path, tmp_path: Path, *, side: str = "right", **more: Any) -> tuple[Trainer, Dataset]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side=side)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = make_rows(tokenizer, TEXTS)
    trainer = Trainer(
        model,
        arguments(tmp_path, **more),
        train_dataset=rows,
        eval_dataset=make_rows(tokenizer, TEXTS[:2]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    return trainer, rows


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_logged_kl_is_the_kl_from_the_empirical_distribution(tiny_model: Path, tmp_path: Path, side: str) -> None:
    trainer, rows = make_trainer(tiny_model, tmp_path, side=side, max_steps=20, eval_strategy="steps", eval_steps=10)
    trainer.add_callback(ForwardKL(trainer))
    before = expected_values(trainer.model, rows)
    trainer.train()
    after = expected_values(trainer.model, rows)
    logged = [row for row in trainer.state.log_history if "train_forward_kl_per_token" in row]
    assert [row["step"] for row in logged] == [0, 10, 20]
    for row, (ce, floor, kl) in ((logged[0], before), (logged[-1], after)):
        assert row["train_cross_entropy_per_token"] == pytest.approx(ce, rel=1e-5)
        assert row["train_entropy_floor_per_token"] == pytest.approx(floor, rel=1e-12)
        assert row["train_forward_kl_per_token"] == pytest.approx(kl, rel=1e-5)
        assert 0 < row["train_forward_kl_per_token_std_error"] < row["train_forward_kl_per_token"]
    assert after[2] < 0.5 * before[2]
    # Some of the tokens follow a prefix that no other row has, for example the end of "11".
    contexts = [tuple(row["input_ids"][:t]) for row in rows for t, label in enumerate(row["labels"]) if label != -100]
    unique = sum(contexts.count(context) == 1 for context in contexts) / len(contexts)
    assert logged[0]["train_contexts_seen_once"] == pytest.approx(unique)
    assert 0.3 < unique < 1
    # The two held-out rows are equal, so that their entropy is 0.
    assert logged[-1]["eval_entropy_floor_per_token"] == 0.0
    held_out = expected_values(trainer.model, trainer.eval_dataset)
    assert logged[-1]["eval_forward_kl_per_token"] == pytest.approx(held_out[2], rel=1e-5)


@pytest.mark.slow
def test_the_callback_does_not_change_training(tiny_model: Path, tmp_path: Path) -> None:
    weights = []
    for with_callback in (False, True):
        trainer, _ = make_trainer(tiny_model, tmp_path, max_steps=6)
        if with_callback:
            trainer.add_callback(ForwardKL(trainer))
        trainer.train()
        weights.append(torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()]))  # type: ignore[union-attr]
    assert torch.equal(*weights)


def test_a_known_entropy_replaces_the_floor(tiny_model: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(tiny_model, tmp_path)
    row = ForwardKL(trainer, entropy=0.25).measure()
    assert row["train_entropy_floor_per_token"] == 0.25
    assert row["train_forward_kl_per_token"] == pytest.approx(row["train_cross_entropy_per_token"] - 0.25)


def test_max_examples_limits_the_sample(tiny_model: Path, tmp_path: Path) -> None:
    trainer, rows = make_trainer(tiny_model, tmp_path)
    row = ForwardKL(trainer, max_examples=3).measure()
    _, floor, kl = expected_values(trainer.model, rows.select([0, 3, 6]))
    assert row["train_entropy_floor_per_token"] == pytest.approx(floor, rel=1e-12)
    assert row["train_forward_kl_per_token"] == pytest.approx(kl, rel=1e-5)


def test_a_streamed_data_set_is_measured_from_its_beginning(tiny_model: Path, tmp_path: Path) -> None:
    trainer, rows = make_trainer(tiny_model, tmp_path)
    trainer.train_dataset = rows.to_iterable_dataset()
    row = ForwardKL(trainer, max_examples=3).measure()
    _, floor, kl = expected_values(trainer.model, rows.select([0, 1, 2]))
    assert row["train_entropy_floor_per_token"] == pytest.approx(floor, rel=1e-12)
    assert row["train_forward_kl_per_token"] == pytest.approx(kl, rel=1e-5)


def test_the_floor_of_a_classifier_matches_a_calculation_by_hand(tiny_model: Path, tmp_path: Path) -> None:
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
    ce = -sum(float(row[label]) for row, label in zip(log_q, classes, strict=True)) / 6
    assert last["train_forward_kl_per_example"] == pytest.approx(ce - floor, rel=1e-5)
    assert last["train_contexts_seen_once"] == pytest.approx(1 / 6)


def test_inputs_without_an_entropy_floor_are_rejected(tiny_model: Path, tmp_path: Path) -> None:
    trainer, rows = make_trainer(tiny_model, tmp_path)
    with pytest.raises(InputError, match="max_examples to be a whole number, 1 or more"):
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


def test_classes_of_minus_100_do_not_count(tiny_model: Path, tmp_path: Path) -> None:
    """As in the loss of the Trainer: two of four equal inputs are labelled, with different classes."""
    model = LlamaForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    rows = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": label} for label in (0, 1, -100, -100)])
    row = ForwardKL(Trainer(model, arguments(tmp_path), train_dataset=rows)).measure()
    log_p = model.double().eval()(torch.tensor([[5, 6, 7]])).logits[0].detach().log_softmax(-1)
    assert row["train_entropy_floor_per_example"] == pytest.approx(math.log(2))
    assert row["train_cross_entropy_per_example"] == pytest.approx(-float(log_p[0] + log_p[1]) / 2, rel=1e-5)
    outside = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": 3}])
    with pytest.raises(InputError, match="labels from 0 to 2"):
        ForwardKL(Trainer(model.float(), arguments(tmp_path), train_dataset=outside)).measure()


@pytest.mark.parametrize(
    "settings",
    [{"packing": True, "max_length": 24}, {"padding_free": True, "max_length": None}, {"packing": False}],
    ids=["packing", "padding free", "padding"],
)
def test_packed_examples_have_the_contexts_of_their_own_example(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = make_rows(tokenizer, TEXTS * 3)
    rows = rows.map(lambda row: {"completion_mask": [int(label != -100) for label in row["labels"]]})
    config = trl.SFTConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        dataloader_pin_memory=False,
        completion_only_loss=True,
        **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = trl.SFTTrainer(model, config, train_dataset=rows.remove_columns(["labels"]), processing_class=tokenizer)
    row = ForwardKL(trainer).measure()
    expected = expected_values(AutoModelForCausalLM.from_pretrained(tiny_model), rows)
    found = [row[f"train_{name}_per_token"] for name in ("cross_entropy", "entropy_floor", "forward_kl")]
    assert found == pytest.approx(expected, rel=1e-5)


def test_examples_that_a_model_does_not_separate_have_the_whole_row_as_context(
    tiny_model: Path, tmp_path: Path
) -> None:
    """With an attention mask, transformers does not separate the examples by their position ids."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = [
        {
            "input_ids": [first, 6, 5, 7],
            "position_ids": [0, 1, 0, 1],
            "attention_mask": [1] * 4,
            "labels": [-100, -100, -100, 7 + i],
        }
        for i, first in enumerate((8, 9))
    ]
    packed = [{key: value for key, value in row.items() if key != "attention_mask"} for row in rows]
    # The first batch, of three rows, has one example in each: whether the model separates them is found out later.
    single = {"input_ids": [2, 3, 4, 5], "position_ids": [0, 1, 2, 3], "attention_mask": [1] * 4, "labels": [-100] * 4}
    # Padding on the right, whose position ids do not continue those of the tokens, is not a part.
    padded = [
        {
            "input_ids": [*row["input_ids"], 0, 0],
            "position_ids": [0, 1, 2, 3, 1, 1],
            "attention_mask": [1, 1, 1, 1, 0, 0],
            "labels": [*row["labels"], -100, -100],
        }
        for row in rows
    ]
    for dataset, floor in (
        (packed, math.log(2)),
        (rows, 0.0),
        ([single] * 3 + rows, 0.0),
        (padded, 0.0),
    ):
        trainer = Trainer(model, arguments(tmp_path), train_dataset=Dataset.from_list(dataset))
        assert ForwardKL(trainer).measure()["train_entropy_floor_per_token"] == pytest.approx(floor)


def test_encoder_decoder_models_are_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    configuration: Any = T5Config(**sizes)
    configuration.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(configuration)
    rows = Dataset.from_list([{"input_ids": [4, 5, 6, 2], "labels": [7, 8, 9, 2]}])
    with pytest.raises(InputError, match="an encoder-decoder model"):
        ForwardKL(Trainer(model, arguments(tmp_path), train_dataset=rows)).measure()


@pytest.mark.parametrize(
    "keywords", [{"max_examples": 2.5}, {"max_examples": True}, {"entropy": -1.0}, {"entropy": "x"}]
)
def test_arguments_that_are_no_numbers_of_their_kind_are_refused(
    tiny_model: Path, tmp_path: Path, keywords: dict[str, Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = Dataset.from_list([{"input_ids": [5, 6], "labels": [5, 6]}])
    with pytest.raises(InputError, match=f"expected {next(iter(keywords))}"):
        ForwardKL(Trainer(model, arguments(tmp_path), train_dataset=rows), **keywords)


@pytest.mark.parametrize("trainer", [3, None, Trainer])
def test_what_is_not_a_trainer_is_refused(trainer: Any) -> None:
    with pytest.raises(InputError, match="expected a Trainer of transformers, got"):
        ForwardKL(trainer)


@pytest.mark.parametrize("size", [7, 9, 17, 24])
@pytest.mark.parametrize("processes", [2, 3])
def test_examples_of_several_processes_count_once(size: int, processes: int) -> None:
    """In the order in which accelerate gives batches of 4 to the processes, with repeated examples at the end."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    batches = [
        [
            [[_Scored([index], [0], [0], [0.0])] for index in batch]
            for batch in BatchSamplerShard(BatchSampler(SequentialSampler(range(size)), 4, False), processes, process)
        ]
        for process in range(processes)
    ]
    assert [example.source for example in _examples(batches, size, 4)] == [[index] for index in range(size)]
    joined = [[[[row[0] for row in batch]] for batch in part] for part in batches]
    assert [example.source for example in _examples(joined, size, 4)] == [[index] for index in range(size)]
