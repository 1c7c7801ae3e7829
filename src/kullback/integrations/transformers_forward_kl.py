"""A callback for the transformers `Trainer` that logs forward KL and the entropy floor of its loss."""

from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any, NamedTuple

from kullback.errors import InputError, MissingDependencyError

try:
    import torch
    from accelerate.utils import gather_object
    from transformers import Trainer, TrainerCallback
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers", "accelerate"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[train]'") from error

from torch import Tensor

from kullback.samples.clustered_mean import kl_per_token
from kullback.tokens.entropy_floor import EmpiricalConditional, Prefixes

__all__ = ["ForwardKL"]

Row = dict[str, Any]
_IGNORED = -100


def _evenly_spaced(dataset: Any, most: int) -> Any:
    """At most so many examples of a data set at even intervals; the first ones of a data set without a length."""
    if not isinstance(dataset, Sized):
        return list(islice(dataset, most))
    size, count = len(dataset), min(len(dataset), most)
    indices = [round(i * (size - 1) / max(1, count - 1)) for i in range(count)]
    if hasattr(dataset, "select"):
        return dataset.select(indices)  # pyright: ignore[reportAttributeAccessIssue]
    return torch.utils.data.Subset(dataset, indices)  # pyright: ignore[reportArgumentType]


class _Scored(NamedTuple):
    """The contexts and outcomes of one example, and -log of the model's probability of each outcome."""

    contexts: list[Any]
    outcomes: list[int]
    surprises: list[float]


class ForwardKL(TrainerCallback):
    """Logs KL(data || model) and the entropy floor while a transformers `Trainer` minimises cross-entropy.

    cross-entropy = entropy floor + KL(data || model)

    The entropy floor is the entropy of the outcomes given their contexts in a fixed set of examples. It is the minimum
    of the cross-entropy over all models. For a language model the context of a token is its whole prefix, for a
    classifier it is the input. On training examples the difference is exactly the KL from their empirical distribution.
    On held-out examples its mean is larger than the KL from the distribution of the data, and the difference grows with
    the fraction of contexts that occur once.

    These keys are logged with `trainer.log` before training, at every evaluation and after training:
    `train_cross_entropy_per_token`, `train_entropy_floor_per_token`, `train_forward_kl_per_token`, its standard error
    over examples `train_forward_kl_per_token_std_error`, and `train_contexts_seen_once`, the fraction of tokens whose
    context occurs once. With an `eval_dataset` there are the same keys with the prefix `eval_`. For a classifier the
    keys end in `_per_example`. Labels of -100 and padding are not counted.

    Args:
        trainer: A `Trainer` or `SFTTrainer` of a causal language model or a sequence classifier. The callback is
            added with `trainer.add_callback(ForwardKL(trainer))`.
        max_examples: The maximum number of examples of each set. They are taken at even intervals, and from the
            beginning of a set that is streamed.
        entropy: The entropy of an outcome given its context in nats, if it is known. It replaces the entropy floor of
            the examples.

    Raises:
        InputError: The trainer has no training examples, or its labels are neither token ids nor classes.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
        >>> rows = [{"input_ids": [1, 2, token], "labels": [-100, -100, token]} for token in (3, 3, 4)]
        >>> sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     args = TrainingArguments(directory, use_cpu=True, report_to="none", dataloader_pin_memory=False)
        ...     trainer = Trainer(model, args, train_dataset=Dataset.from_list(rows))
        ...     values = ForwardKL(trainer).measure()
        >>> round(values["train_entropy_floor_per_token"], 4), values["train_forward_kl_per_token"] > 0
        (0.6365, True)
    """

    def __init__(self, trainer: Trainer, *, max_examples: int = 1024, entropy: float | None = None) -> None:
        if max_examples < 1:
            raise InputError(f"expected max_examples to be 1 or more, got {max_examples}")
        if trainer.train_dataset is None:
            raise InputError("expected a Trainer with a train_dataset, got none; its entropy floor is logged")
        self.trainer, self.max_examples, self.entropy = trainer, max_examples, entropy
        self.latest_step = -1

    def measure(self) -> Row:
        """Measure cross-entropy, entropy floor and forward KL of the trainer's model on all sets.

        Returns:
            The logged values by key, in nats per token or per example except `contexts_seen_once`.
        """
        row: Row = {}
        for name, dataset in (("train", self.trainer.train_dataset), ("eval", self.trainer.eval_dataset)):
            # The Trainer accepts a dictionary of several named sets.
            for key, subset in dataset.items() if isinstance(dataset, dict) else [("", dataset)]:
                if subset is not None:
                    row |= self._measure_dataset(f"{name}_{key}_" if key else f"{name}_", subset)
        return row

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._log(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._log(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._log(state.global_step)

    def _log(self, step: int) -> None:
        """Measure and log unless this step has been logged."""
        if step != self.latest_step:
            self.latest_step = step
            self.trainer.log(self.measure())

    def _measure_dataset(self, prefix: str, dataset: Any) -> Row:
        """The logged values of one set of examples."""
        subset = _evenly_spaced(dataset, self.max_examples)
        # The evaluation DataLoader is sequential. With several processes it may repeat examples at the end.
        scored = gather_object(list(self._score(subset)))[: len(subset)]
        is_classifier = all(isinstance(example.contexts[0], bytes) for example in scored if example.contexts)
        unit = "example" if is_classifier else "token"
        empirical = EmpiricalConditional()
        for example in scored:
            for pair in zip(example.contexts, example.outcomes, strict=True):
                empirical.add(*pair)
        floor, lengths = empirical.floor(), [len(example.outcomes) for example in scored]
        if not floor.count:
            raise InputError(f"{prefix[:-1]}: expected labels that count, got none in {len(subset)} examples")
        minima = [
            [empirical.surprise(*pair) if self.entropy is None else self.entropy for pair in zip(c, o, strict=True)]
            for c, o, _ in scored
        ]
        excess = [sum(example.surprises) - sum(minimum) for example, minimum in zip(scored, minima, strict=True)]
        kl = kl_per_token(excess, lengths, range(len(scored)))
        return {
            f"{prefix}cross_entropy_per_{unit}": sum(sum(example.surprises) for example in scored) / floor.count,
            f"{prefix}entropy_floor_per_{unit}": floor.nats if self.entropy is None else self.entropy,
            f"{prefix}forward_kl_per_{unit}": kl.value,
            f"{prefix}forward_kl_per_{unit}_std_error": kl.std_error,
            f"{prefix}contexts_seen_once": floor.seen_once,
        }

    def _score(self, dataset: Any) -> Iterator[_Scored]:
        """Evaluate the model on all examples, in evaluation mode and without gradient."""
        trainer, prefixes = self.trainer, Prefixes()
        model: Any = trainer.model
        mode = model.training
        model.eval()
        try:
            for batch in trainer.get_eval_dataloader(dataset):
                batch = trainer._prepare_inputs(batch)
                labels = batch["labels"]
                with torch.no_grad(), trainer.compute_loss_context_manager():
                    inputs = {key: value for key, value in batch.items() if key != "labels"}
                    logits = model(**inputs).logits
                if labels.ndim == 1 and not labels.is_floating_point():
                    yield from _score_classes(inputs, labels, logits)
                elif labels.ndim == 2 and labels.shape == inputs["input_ids"].shape and model.can_generate():
                    yield from _score_tokens(inputs, labels, logits, prefixes)
                else:
                    raise InputError(
                        f"expected token labels of a causal language model or class labels, got {labels.dtype} of "
                        f"shape {tuple(labels.shape)} for {type(model).__name__}, which have no entropy floor"
                    )
        finally:
            model.train(mode)


def _score_classes(inputs: Row, labels: Tensor, logits: Tensor) -> Iterator[_Scored]:
    """The examples of a batch of a classifier: the context is the bytes of the unpadded input."""
    surprises = _surprises(logits, labels)
    attended = inputs.get("attention_mask")
    for i, label in enumerate(labels.tolist()):
        # Padding depends on the batch and is removed, so that equal inputs are equal contexts.
        parts = [value[i] if attended is None or value.shape != attended.shape else value[i][attended[i].bool()]
                 for key, value in sorted(inputs.items()) if key != "attention_mask"]  # fmt: skip
        context = b"".join(part.cpu().numpy().tobytes() for part in parts)
        yield _Scored([context], [label], [surprises[i]])


def _score_tokens(inputs: Row, labels: Tensor, logits: Tensor, prefixes: Prefixes) -> Iterator[_Scored]:
    """The examples of a batch of a language model: the context of a token is the number of its prefix."""
    ids, attended = inputs["input_ids"], inputs.get("attention_mask")
    attended = torch.ones_like(ids) if attended is None else attended
    mask = (labels[:, 1:] != _IGNORED) & attended[:, 1:].bool()
    for i in range(len(ids)):
        not_padding = attended[i].bool()
        contexts = torch.full_like(ids[i], -1)
        contexts[not_padding] = ids.new_tensor(prefixes.along(ids[i][not_padding].tolist()))
        outcomes = labels[i, 1:][mask[i]]
        surprises = _surprises(logits[i, :-1][mask[i]], outcomes)
        yield _Scored(contexts[1:][mask[i]].tolist(), outcomes.tolist(), surprises)


def _surprises(logits: Tensor, outcomes: Tensor) -> list[float]:
    """The negative log-softmax of the logits at the outcomes, in nats."""
    return torch.nn.functional.cross_entropy(logits.float(), outcomes, reduction="none").double().tolist()
