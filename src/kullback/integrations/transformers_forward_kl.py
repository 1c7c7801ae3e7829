"""A callback for the transformers `Trainer` that logs forward KL and the entropy floor of its loss."""

from bisect import bisect_left
from collections.abc import Iterator, Sized
from itertools import islice, pairwise, zip_longest
from math import inf
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

from kullback.numerics.arguments import is_index, is_number, shown
from kullback.samples.clustered_mean import kl_per_token
from kullback.tokens.entropy_floor import EmpiricalConditional, Prefixes

__all__ = ["ForwardKL"]

Row = dict[str, Any]
_IGNORED = -100
_TOLERANCE, _TOLERANCE_OF_16_BITS = 1e-4, 0.1  # of equal logits, relative to the largest logit


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
    """An example: its input, and the outcomes that count, with -log of the model's probability of each outcome.

    Args:
        source: The bytes of the input of a classifier, or the token ids of a text.
        places: The number of tokens before each outcome, which are its context; not used for a classifier.
        outcomes: The classes or the token ids.
        surprises: Nats, one for each outcome.
    """

    source: bytes | list[int]
    places: list[int]
    outcomes: list[int]
    surprises: list[float]


_Row = list[_Scored]  # the examples of a row of a batch: several where examples are packed


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
    keys end in `_per_example`. Labels of -100 and padding are not counted. Where examples are packed into one row, the
    prefix of a token begins at its own example if the model separates the examples by their position ids, which is
    measured.

    Args:
        trainer: A `Trainer` or `SFTTrainer` of a causal language model or a sequence classifier. The callback is
            added with `trainer.add_callback(ForwardKL(trainer))`.
        max_examples: The maximum number of examples of each set. They are taken at even intervals, and from the
            beginning of a set that is streamed.
        entropy: The entropy of an outcome given its context in nats, if it is known. It replaces the entropy floor of
            the examples.

    Raises:
        InputError: The trainer is not a `Trainer`, it has no training examples, or its labels are neither token ids nor
            classes.

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
        if not isinstance(trainer, Trainer):
            raise InputError(f"expected a Trainer of transformers, got {shown(trainer)}")
        if not (is_index(max_examples) and max_examples >= 1):
            raise InputError(f"expected max_examples to be a whole number, 1 or more, got {shown(max_examples)}")
        if entropy is not None and not (is_number(entropy) and 0 <= entropy < inf):
            raise InputError(f"expected entropy to be a finite number of nats, 0 or more, got {shown(entropy)}")
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
        scored = _examples(gather_object([list(self._score(subset))]), len(subset), self.trainer.args.eval_batch_size)
        unit = "example" if all(isinstance(example.source, bytes) for example in scored) else "token"
        # The contexts are numbered here, because each process has seen its own examples only.
        prefixes, empirical, pairs = Prefixes(), EmpiricalConditional(), []
        for example in scored:
            pairs.append(list(zip(_contexts(example, prefixes), example.outcomes, strict=True)))
            for pair in pairs[-1]:
                empirical.add(*pair)
        floor, lengths = empirical.floor(), [len(example.outcomes) for example in scored]
        if not floor.count:
            raise InputError(f"{prefix[:-1]}: expected labels that count, got none in {len(subset)} examples")
        minima = [
            [empirical.surprise(*pair) if self.entropy is None else self.entropy for pair in pairs_of_example]
            for pairs_of_example in pairs
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

    def _score(self, dataset: Any) -> Iterator[list[_Row]]:
        """Evaluate the model on the batches of this process, in evaluation mode and without gradient."""
        trainer = self.trainer
        model: Any = trainer.model
        if getattr(model.config, "is_encoder_decoder", False):
            raise InputError(
                f"expected a causal language model or a classifier, got {type(model).__name__}, an encoder-decoder "
                "model: the loss has no entropy floor by prefixes of tokens"
            )
        is_separate: bool | None = None
        mode = model.training
        model.eval()
        try:
            for batch in trainer.get_eval_dataloader(dataset):
                batch = trainer._prepare_inputs(batch)
                labels = batch["labels"]
                with torch.no_grad(), trainer.compute_loss_context_manager():
                    inputs = {key: value for key, value in batch.items() if key != "labels"}
                    logits = model(**inputs).logits
                    # In all processes, because each evaluation of a sharded model takes all of them.
                    may_have_parts = is_separate is None and logits.ndim == 3 and "position_ids" in inputs
                    if may_have_parts and any(gather_object([_last_part(inputs) is not None])):
                        is_separate = all(gather_object([_separates_examples(model, inputs, logits)]))
                if labels.ndim == 1 and not labels.is_floating_point() and logits.shape[-1] > 1:
                    yield _score_classes(inputs, labels, logits)
                elif labels.ndim == 2 and labels.shape == inputs["input_ids"].shape and model.can_generate():
                    yield _score_tokens(inputs, labels, logits, is_separate=bool(is_separate))
                else:
                    raise InputError(
                        f"expected token labels of a causal language model or class labels, got {labels.dtype} of "
                        f"shape {tuple(labels.shape)} for {type(model).__name__}, which have no entropy floor"
                    )
        finally:
            model.train(mode)


def _examples(batches: list[list[list[_Row]]], size: int, batch_size: int) -> list[_Scored]:
    """The examples of the batches of all processes, each once.

    Several processes take the batches of a data set in turn. The last batches are completed with examples from the
    beginning, so that in the order of the batches the repeated examples are last.

    Args:
        batches: The batches of each process.
        size: The number of examples of the data set.
        batch_size: The number of them in a batch.

    Returns:
        The examples, several for an example of the data set into which several were packed.

    Raises:
        InputError: A row has the packed examples of a whole batch, and some of them are repeated.
    """
    rows = [row for turn in zip_longest(*batches, fillvalue=[]) for batch in turn for row in batch]
    examples = [example for row in rows for example in row]
    taken = batch_size * sum(map(len, batches))
    if len(batches) == 1 or taken == size:
        return examples
    if len(rows) >= size:
        return [example for row in rows[:size] for example in row]
    if len(examples) != taken:
        raise InputError(
            f"expected a number of packed rows that is a multiple of {batch_size} rows on each of {len(batches)} "
            f"processes, got {size}: some would count twice; pass a multiple of {batch_size * len(batches)} as "
            "max_examples"
        )
    return examples[:size]


def _contexts(example: _Scored, prefixes: Prefixes) -> list[Any]:
    """The context of each outcome: the input of a classifier, or the number of a prefix of tokens."""
    if isinstance(example.source, bytes):
        return [example.source] * len(example.outcomes)
    numbers = prefixes.along([*example.source, 0])
    return [numbers[place] for place in example.places]


def _score_classes(inputs: Row, labels: Tensor, logits: Tensor) -> list[_Row]:
    """The examples of a batch of a classifier: the context is the bytes of the unpadded input."""
    counted = labels != _IGNORED
    outside = counted & ((labels < 0) | (labels >= logits.shape[-1]))
    if bool(outside.any()):
        raise InputError(
            f"expected labels from 0 to {logits.shape[-1] - 1}, the classes of the model, got {int(labels[outside][0])}"
        )
    surprises = _surprises(logits, labels)
    attended = inputs.get("attention_mask")
    rows = []
    for i, label in enumerate(labels.tolist()):
        # Padding depends on the batch and is removed, so that equal inputs are equal contexts.
        parts = [value[i] if attended is None or value.shape != attended.shape else value[i][attended[i].bool()]
                 for key, value in sorted(inputs.items()) if key != "attention_mask"]  # fmt: skip
        source = b"".join(part.cpu().numpy().tobytes() for part in parts)
        count = int(counted[i])
        rows.append([_Scored(source, [0] * count, [label] * count, [surprises[i]] * count)])
    return rows


def _score_tokens(inputs: Row, labels: Tensor, logits: Tensor, *, is_separate: bool) -> list[_Row]:
    """The examples of a batch of a language model: the context of a token is the tokens before it.

    Args:
        inputs: The inputs of the model.
        labels: The labels, shape (rows, tokens).
        logits: The logits, shape (rows, tokens, vocabulary).
        is_separate: Whether the model begins a new context where the position ids begin again.
    """
    ids, attended = inputs["input_ids"], inputs.get("attention_mask")
    attended = torch.ones_like(ids) if attended is None else attended
    mask = (labels[:, 1:] != _IGNORED) & attended[:, 1:].bool()
    rows = []
    for i in range(len(ids)):
        not_padding = attended[i].bool().nonzero().squeeze(-1)
        tokens = ids[i][not_padding].tolist()
        starts = _starts(inputs["position_ids"].expand_as(ids)[i][not_padding]) if is_separate else [0][: len(tokens)]
        outcomes = labels[i, 1:][mask[i]]
        surprises = _surprises(logits[i, :-1][mask[i]], outcomes)
        # The logits of the column before an outcome follow from the tokens up to that column.
        columns = torch.searchsorted(not_padding, mask[i].nonzero().squeeze(-1), right=True).tolist()
        examples = [_Scored(tokens[start:end], [], [], []) for start, end in pairwise([*starts, len(tokens)])]
        for count, outcome, surprise in zip(columns, outcomes.tolist(), surprises, strict=True):
            index = max(0, bisect_left(starts, count) - 1)
            examples[index].places.append(count - starts[index])
            examples[index].outcomes.append(outcome)
            examples[index].surprises.append(surprise)
        rows.append(examples)
    return rows


def _starts(position_ids: Tensor) -> list[int]:
    """The places at which position ids, shape (tokens,), do not continue those before, from the first on."""
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[1:] = position_ids[1:] != position_ids[:-1] + 1
    return begins.nonzero().squeeze(-1).tolist()


def _last_part(inputs: Row) -> tuple[int, int, int] | None:
    """The row, the first and the last column of the last part of the first row whose position ids begin again."""
    ids, attended = inputs["input_ids"], inputs.get("attention_mask")
    position_ids = inputs["position_ids"].expand_as(ids)
    for row in range(len(ids)):
        columns = torch.arange(ids.shape[1], device=ids.device) if attended is None else attended[row].nonzero()[:, 0]
        if len(starts := _starts(position_ids[row][columns])) > 1:
            return row, int(columns[starts[-1]]), int(columns[-1])
    return None


def _separates_examples(model: Any, inputs: Row, logits: Tensor) -> bool:
    """Whether the model begins a new context where the position ids of a packed row begin again.

    The last part of a row with several parts is evaluated alone; without such a row, the first token.
    """
    row, first, last = _last_part(inputs) or (0, 0, 0)
    columns = slice(first, last + 1)
    position_ids = inputs["position_ids"].expand_as(inputs["input_ids"])
    alone = {
        "input_ids": inputs["input_ids"][row : row + 1, columns],
        "position_ids": position_ids[row : row + 1, columns],
    }
    if inputs.get("attention_mask") is not None:
        alone["attention_mask"] = inputs["attention_mask"][row : row + 1, columns]
    expected, got = model(**alone).logits[0].float(), logits[row, columns].float()
    if (first, last) == (0, 0):
        return True  # the model was evaluated for the other processes
    tolerance = _TOLERANCE if model.dtype.itemsize >= 4 else _TOLERANCE_OF_16_BITS
    return bool((expected - got).abs().max() <= tolerance * expected.abs().max())


def _surprises(logits: Tensor, outcomes: Tensor) -> list[float]:
    """The negative log-softmax of the logits at the outcomes, in nats."""
    return torch.nn.functional.cross_entropy(logits.float(), outcomes, reduction="none").double().tolist()
