"""The transformers Trainer: a callback that logs forward KL, and the entropy floor under its loss."""

from collections.abc import Iterator
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


class _Scored(NamedTuple):
    """One example: its contexts and outcomes, and -log of what the model gives to each."""

    contexts: list[Any]
    outcomes: list[int]
    surprises: list[float]


class ForwardKL(TrainerCallback):
    """Logs KL(data || model) while a transformers `Trainer` descends cross-entropy, and the floor under its loss.

    The loss of a language model or a classifier is cross-entropy = floor + KL(data || model): the floor is the entropy
    of the sample's outcomes given their contexts (for a language model the whole prefix), and no model comes below it.
    Both are of the same fixed examples, so that on training data the difference is the KL to their empirical
    distribution exactly. On held-out data it is the KL to those examples' own empirical distribution: above the KL to
    their source on average, the more so the more contexts are seen once.

    Logged at the start, at every evaluation and at the end, by `trainer.log`, for "train" and, where there is an
    `eval_dataset`, "eval": `train_cross_entropy_per_token`, `train_entropy_floor_per_token`,
    `train_forward_kl_per_token` with its `_std_error` over examples, and `train_contexts_seen_once`, a share. Of a
    classifier it is `_per_example`. Labels of -100 and padding count nowhere.

    Args:
        trainer: A `Trainer` or `SFTTrainer` of a causal language model or a classifier of sequences; then
            `trainer.add_callback(ForwardKL(trainer))`.
        max_examples: How many examples of each set are judged, evenly spread.
        entropy: The source's true entropy in nats an outcome, where it is known: then it is the floor.

    Raises:
        InputError: The trainer has no training examples, or its labels are neither tokens nor classes.

    docs/supervised.md runs an example.
    """

    def __init__(self, trainer: Trainer, *, max_examples: int = 1024, entropy: float | None = None) -> None:
        if max_examples < 1:
            raise InputError(f"expected max_examples to be 1 or more, got {max_examples}")
        if trainer.train_dataset is None:
            raise InputError("expected a Trainer with a train_dataset, got none: its floor is what is logged")
        self.trainer, self.max_examples, self.entropy = trainer, max_examples, entropy
        self.newest = -1

    def measure(self) -> Row:
        """What is logged, now."""
        row: Row = {}
        for name, dataset in (("train", self.trainer.train_dataset), ("eval", self.trainer.eval_dataset)):
            # Sets of sets, by name, are the Trainer's way to have several.
            for key, one in dataset.items() if isinstance(dataset, dict) else [("", dataset)]:
                if one is not None:
                    row |= self._measured(f"{name}_{key}_" if key else f"{name}_", one)
        return row

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._tell(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._tell(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._tell(state.global_step)

    def _tell(self, step: int) -> None:
        if step != self.newest:
            self.newest = step
            self.trainer.log(self.measure())

    def _measured(self, prefix: str, dataset: Any) -> Row:
        count, kept = len(dataset), min(len(dataset), self.max_examples)
        chosen = [round(i * (count - 1) / max(1, kept - 1)) for i in range(kept)]
        token_log_probs = (
            dataset.select(chosen) if hasattr(dataset, "select") else torch.utils.data.Subset(dataset, chosen)
        )
        # Sequential, collated as evaluations are; each process has a share, and may repeat some at the end.
        scored = gather_object(list(self._scored(token_log_probs)))[: len(chosen)]
        unit = "example" if all(isinstance(one.contexts[0], bytes) for one in scored if one.contexts) else "token"
        seen = EmpiricalConditional()
        for one in scored:
            for pair in zip(one.contexts, one.outcomes, strict=True):
                seen.add(*pair)
        floor, lengths = seen.floor(), [len(one.outcomes) for one in scored]
        if not floor.count:
            raise InputError(f"{prefix[:-1]}: expected labels that count, got none in {len(chosen)} examples")
        base = [
            [seen.surprise(*pair) if self.entropy is None else self.entropy for pair in zip(c, o, strict=True)]
            for c, o, _ in scored
        ]
        above = [sum(one.surprises) - sum(least) for one, least in zip(scored, base, strict=True)]
        kl = kl_per_token(above, lengths, range(len(scored)))
        least = floor.nats if self.entropy is None else self.entropy
        return {
            f"{prefix}cross_entropy_per_{unit}": sum(sum(one.surprises) for one in scored) / floor.count,
            f"{prefix}entropy_floor_per_{unit}": least,
            f"{prefix}forward_kl_per_{unit}": kl.value,
            f"{prefix}forward_kl_per_{unit}_std_error": kl.std_error,
            f"{prefix}contexts_seen_once": floor.seen_once,
        }

    def _scored(self, dataset: Any) -> Iterator[_Scored]:
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
                    yield from _classes(inputs, labels, logits)
                elif labels.ndim == 2 and labels.shape == inputs["input_ids"].shape and model.can_generate():
                    yield from _tokens(inputs, labels, logits, prefixes)
                else:
                    raise InputError(
                        f"expected labels of a causal language model or of classes, got shape {tuple(labels.shape)} "
                        f"for {type(model).__name__}: there is no entropy floor for these here"
                    )
        finally:
            model.train(mode)


def _classes(inputs: Row, labels: Tensor, logits: Tensor) -> Iterator[_Scored]:
    surprises = _surprises(logits, labels)
    attended = inputs.get("attention_mask")
    for i, label in enumerate(labels.tolist()):
        # Two batches pad one input differently.
        parts = [value[i] if attended is None or value.shape != attended.shape else value[i][attended[i].bool()]
                 for key, value in sorted(inputs.items()) if key != "attention_mask"]  # fmt: skip
        context = b"".join(part.cpu().numpy().tobytes() for part in parts)
        yield _Scored([context], [label], [surprises[i]])


def _tokens(inputs: Row, labels: Tensor, logits: Tensor, prefixes: Prefixes) -> Iterator[_Scored]:
    ids, attended = inputs["input_ids"], inputs.get("attention_mask")
    attended = torch.ones_like(ids) if attended is None else attended
    kept = (labels[:, 1:] != _IGNORED) & attended[:, 1:].bool()
    for i in range(len(ids)):
        here = attended[i].bool()
        before = torch.full_like(ids[i], -1)
        before[here] = ids.new_tensor(prefixes.along(ids[i][here].tolist()))
        outcomes = labels[i, 1:][kept[i]]
        surprises = _surprises(logits[i, :-1][kept[i]], outcomes)
        yield _Scored(before[1:][kept[i]].tolist(), outcomes.tolist(), surprises)


def _surprises(logits: Tensor, outcomes: Tensor) -> list[float]:
    """-log softmax at the outcomes."""
    return torch.nn.functional.cross_entropy(logits.float(), outcomes, reduction="none").double().tolist()
