"""Distillation by TRL, with the exact divergence between teacher and student as the loss."""

from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

from kullback.errors import InputError, MissingDependencyError

try:
    import torch
    from accelerate.utils import is_peft_model
    from transformers import AutoTokenizer, TrainerCallback
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers", "accelerate"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[train]'") from error

try:
    from trl import DistillationConfig, DistillationTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer
except ImportError as error:  # DistillationTrainer is a part of TRL since version 1.16
    raise MissingDependencyError(
        "expected TRL 1.16 or later, which has DistillationTrainer: pip install --upgrade 'trl>=1.16'"
    ) from error

from torch import Tensor

from kullback.doctor.forward_pass import base_model
from kullback.integrations.position_ids import ignore_padding
from kullback.integrations.transformers import capped_head_of, recorded_hidden
from kullback.integrations.trl_checkpoint import load_generations, save_generations
from kullback.policy.aggregation import Aggregate, require_aggregate
from kullback.policy.distillation import (
    DISTILLATION_DIVERGENCES,
    WEIGHTED_DIVERGENCES,
    DistillationDivergence,
    DistillationLoss,
    distillation_loss,
)

__all__ = [
    "DistillationConfig",
    "ExactDistillationTrainer",
    "ExactGKDTrainer",
    "GKDConfig",
    "divergence_of_beta",
    "require_same_vocabulary",
]

_IGNORED = -100


def divergence_of_beta(beta: float) -> tuple[DistillationDivergence, float]:
    """The divergence of TRL's setting `beta` by the names of `logit_divergence`.

    Args:
        beta: 0 for forward KL, 1 for reverse KL, and between them the weight of the teacher in the mixture.

    Returns:
        The name, and the weight w of `logit_divergence`.

    Raises:
        InputError: `beta` is not between 0 and 1.

    Example:
        >>> [divergence_of_beta(beta) for beta in (0.0, 1.0, 0.3)]
        [('forward', 0.5), ('reverse', 0.5), ('generalized_js', 0.3)]
    """
    if not 0 <= beta <= 1:
        raise InputError(f"expected beta in [0, 1], got {beta}")
    names: Mapping[float, DistillationDivergence] = {0.0: "forward", 0.5: "js", 1.0: "reverse"}
    return (names[beta], 0.5) if beta in names else ("generalized_js", float(beta))


def _require_uncompiled(config: Any) -> None:
    if config.torch_compile:
        raise InputError(
            "expected torch_compile=False, got True: the loss is computed from the output layers, which are called "
            "without their decoders"
        )


def require_same_vocabulary(student: Any, teacher: Any) -> None:
    """Check that two tokenizers give every token the same id.

    Args:
        student: The tokenizer of the student.
        teacher: The tokenizer of the teacher.

    Raises:
        InputError: A token has another id. The message names the token with the smallest id that differs.

    Example:
        >>> from kullback.train.demo.addition_task import make_tokenizer
        >>> require_same_vocabulary(make_tokenizer(), make_tokenizer())
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    if differing:
        ids = {token: (ours.get(token), theirs.get(token)) for token in differing}
        first = min(differing, key=lambda token: (min(i for i in ids[token] if i is not None), token))
        places = ["has none" if i is None else f"has the id {i}" for i in ids[first]]
        raise InputError(
            f"expected a teacher with the student's vocabulary, got {len(differing)} tokens that differ; the first is "
            f"{first!r}, which {places[0]} in the student's and {places[1]} in the teacher's"
        )


class _ExactLoss:
    """What both trainers share: the divergence of the loss, and the output heads of student and teacher."""

    accelerator: Any
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool
    model: Any
    teacher_model: Any

    def _choose_divergence(
        self, beta: float, divergence: DistillationDivergence | None, weight: float | None, aggregate: Aggregate
    ) -> None:
        chosen, default_weight = divergence_of_beta(beta) if divergence is None else (divergence, 0.5)
        if chosen not in DISTILLATION_DIVERGENCES:
            raise InputError(f"expected a divergence out of {', '.join(DISTILLATION_DIVERGENCES)}, got {chosen!r}")
        if weight is not None and not 0 < weight < 1:
            raise InputError(f"expected a weight between 0 and 1, got {weight}")
        if weight is not None and chosen not in WEIGHTED_DIVERGENCES:
            raise InputError(f"expected no weight, because the divergence {chosen!r} has none, got weight={weight}")
        require_aggregate(aggregate)
        self.divergence: DistillationDivergence = chosen
        self.divergence_weight: float | None = None
        if chosen in WEIGHTED_DIVERGENCES:
            self.divergence_weight = default_weight if weight is None else weight
        self.aggregate: Aggregate = aggregate

    def _find_heads(self) -> None:
        """Find the scale and the cap of both heads while all weights are whole, and refuse what the loss cannot use."""
        if self.teacher_model is None:
            raise InputError("expected a teacher_model, got None; its output head is a part of the loss")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise InputError("expected whole weights on each process, got FSDP or DeepSpeed; use data parallelism")
        models = {"teacher": self.teacher_model, "student": self.model}
        models = {name: self.accelerator.unwrap_model(model) for name, model in models.items()}
        self._scales = {name: _scale_and_cap(model, name) for name, model in models.items()}
        for model in models.values():
            ignore_padding(base_model(model))

    def _loss(
        self,
        teacher: tuple[Any, Tensor],
        student: tuple[Any, Tensor],
        mask: Tensor,
        *,
        temperature: float,
        normalizer: Any,
    ) -> DistillationLoss:
        """The loss of the hidden states of both models at the positions that predict the tokens of the mask."""
        arguments: dict[str, Any] = {}
        states = []
        for name, (model, hidden) in (("teacher", teacher), ("student", student)):
            layer = _output_layer(model)
            scale, cap = self._scales[name]
            arguments |= {f"{name}_bias": layer.bias, f"{name}_logit_scale": scale, f"{name}_softcap": cap}
            states += [hidden.to(layer.weight.device), layer.weight]
        return distillation_loss(
            *states,
            divergence=self.divergence,
            weight=self.divergence_weight,
            mask=mask.to(states[-1].device),
            aggregate=self.aggregate,
            normalizer=normalizer,
            temperature=temperature,
            **arguments,
        )


class ExactDistillationTrainer(_ExactLoss, DistillationTrainer):
    """TRL's `DistillationTrainer` whose loss is `kullback.policy.distillation.distillation_loss`.

    The loss has TRL's value to rounding for the same `beta`, keeps its digits when teacher and student are nearly
    equal, and may be any divergence of `logit_divergence`. The student generates the completions, or they are given.

    Args:
        *args: The positional arguments of `DistillationTrainer`.
        divergence: A name of `logit_divergence`. None: the divergence of the configuration's `beta`.
        weight: w of `logit_divergence`. None: `beta` where it selects "generalized_js", otherwise 1/2.
        aggregate: How the tokens of the batch are averaged; see `aggregate_tokens`.
        off_policy: Whether the completions are the column "completion" of the data, text or messages, instead of
            samples of the student. An end-of-sequence token follows a completion that is text. Completions are cut at
            `max_completion_length`.
        teacher_tokenizer: The tokenizer of the teacher, which is compared with the student's. None: the tokenizer in
            the directory of the teacher, if the teacher is a path.
        **kwargs: The keyword arguments of `DistillationTrainer`.

    Raises:
        InputError: The divergence or its weight is invalid, the teacher is None, the vocabularies differ, a step takes
            more prompts than there are, an output head is neither linear nor linear with a cap, or the weights are in
            shards.
        PenaltyError: The aggregation is unknown.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from transformers.trainer_callback import PrinterCallback
        >>> from kullback.train.demo.addition_task import make_model, make_tokenizer, prompt_rows
        >>> settings = {"per_device_train_batch_size": 4, "max_completion_length": 4, "max_steps": 1}
        >>> settings |= {"save_strategy": "no", "disable_tqdm": True, "report_to": "none"}
        >>> tokenizer = make_tokenizer()
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     args = DistillationConfig(directory, use_cpu=True, bf16=False, **settings)
        ...     models, data = (make_model(tokenizer), make_model(tokenizer)), Dataset.from_list(prompt_rows(4, seed=0))
        ...     data_and_tokenizer = {"train_dataset": data, "processing_class": tokenizer}
        ...     trainer = ExactDistillationTrainer(*models, args, divergence="js", **data_and_tokenizer)
        ...     trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> trainer.state.global_step, trainer.divergence
        (1, 'js')
    """

    def __init__(
        self,
        *args: Any,
        divergence: DistillationDivergence | None = None,
        weight: float | None = None,
        aggregate: Aggregate = "token_mean",
        off_policy: bool = False,
        teacher_tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        config = kwargs.get("args", args[2] if len(args) > 2 else None) or DistillationConfig
        _require_uncompiled(config)
        self._choose_divergence(config.beta, divergence, weight, aggregate)
        self.off_policy = off_policy
        _require_vocabulary_of(args, kwargs, teacher_tokenizer)
        super().__init__(*args, **kwargs)
        self._find_heads()
        self._require_a_batch()
        self._given: list[tuple[Any, Any]] = []
        if off_policy and (columns := getattr(self.train_dataset, "column_names", None)):
            _require_completions(columns)
        self._generations = _Generations(self)
        self.add_callback(self._generations)

    def _require_a_batch(self) -> None:
        """Raise InputError if a step takes more prompts than there are; TRL would end without a step or an error."""
        data, settings = self.train_dataset, self.args
        needed = self._train_batch_size * self.accelerator.num_processes * settings.gradient_accumulation_steps
        if isinstance(data, Sized) and len(data) < needed:
            raise InputError(
                f"expected at least {needed} prompts, as many as a step takes (per_device_train_batch_size="
                f"{settings.per_device_train_batch_size}, gradient_accumulation_steps="
                f"{settings.gradient_accumulation_steps}), got {len(data)}; add prompts, or lower these settings"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._generations.checkpoint = Path(resume_from_checkpoint)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.off_policy and "completion" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "completion"]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.off_policy:
            _require_completions(inputs[0])
            self._given = [(row["prompt"], row["completion"]) for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.off_policy:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        settings: Any = self.chat_template_kwargs
        return [
            completion_tokens(self.processing_class, *given, ids, settings)[: self.max_completion_length]
            for given, ids in zip(self._given, prompt_ids, strict=True)
        ]

    def _compute_loss(
        self, unwrapped_student: Any, inputs: Any, num_items_in_batch: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        time = mask.shape[1]
        if "pixel_values" in inputs:
            raise InputError("expected prompts without images, got images; the loss is computed for text")
        student_hidden = self._get_last_hidden_state(unwrapped_student, ids, attention, time)
        self.teacher_model.eval()
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        with torch.no_grad():
            teacher_hidden = self._forward_redirection(
                self.teacher_model, teacher, self._get_last_hidden_state, teacher, ids, attention, time
            )
        normalizer = num_items_in_batch
        if normalizer is not None and self.aggregate != "token_mean":
            normalizer = len(mask) * self.args.gradient_accumulation_steps
        result = self._loss(
            (teacher, teacher_hidden),
            (unwrapped_student, student_hidden),
            mask,
            temperature=self.temperature,
            normalizer=normalizer,
        )
        return result.loss, result.student_entropy.sum(), result.tokens


class _Generations(TrainerCallback):
    """Stores in checkpoints what TRL's trainer omits, so that a resumed run equals an uninterrupted run."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.checkpoint: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.checkpoint is not None:
            load_generations(self.trainer, self.checkpoint, kwargs["train_dataloader"])
            self.checkpoint = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        save_generations(self.trainer, Path(args.output_dir) / f"checkpoint-{state.global_step}", None)


class ExactGKDTrainer(_ExactLoss, GKDTrainer):
    """TRL's `GKDTrainer` whose loss is `kullback.policy.distillation.distillation_loss`.

    The loss has TRL's value to rounding for the same `beta`, and the logits of the batch are not stored. As in TRL, the
    temperature of the configuration is the temperature of sampling, and not of the loss.

    The loss differs from TRL's where TRL does not divide by the number of tokens: generated completions count with
    their own tokens, and the gradients of several processes are averaged over all tokens.

    Args:
        *args: The positional arguments of `GKDTrainer`.
        divergence: A name of `logit_divergence`. None: the divergence of the configuration's `beta`.
        weight: w of `logit_divergence`. None: `beta` where it selects "generalized_js", otherwise 1/2.
        aggregate: How the tokens of the batch are averaged; see `aggregate_tokens`.
        teacher_tokenizer: The tokenizer of the teacher, which is compared with the student's. None: the tokenizer in
            the directory of the teacher, if the teacher is a path.
        **kwargs: The keyword arguments of `GKDTrainer`.

    Raises:
        InputError: As for `ExactDistillationTrainer`.
        PenaltyError: The aggregation is unknown.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from kullback.train.demo.addition_task import make_model, make_tokenizer
        >>> tokenizer = make_tokenizer()
        >>> tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        >>> messages = [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     args = GKDConfig(directory, use_cpu=True, bf16=False, report_to="none", beta=0.3)
        ...     models, data = [make_model(tokenizer) for _ in range(2)], Dataset.from_list([{"messages": messages}])
        ...     trainer = ExactGKDTrainer(*models, args, train_dataset=data, processing_class=tokenizer)
        >>> trainer.divergence, trainer.divergence_weight
        ('generalized_js', 0.3)
    """

    def __init__(
        self,
        *args: Any,
        divergence: DistillationDivergence | None = None,
        weight: float | None = None,
        aggregate: Aggregate = "token_mean",
        teacher_tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        config = kwargs.get("args", args[2] if len(args) > 2 else None) or GKDConfig
        _require_uncompiled(config)
        self._choose_divergence(config.beta, divergence, weight, aggregate)
        _require_vocabulary_of(args, kwargs, teacher_tokenizer)
        self._is_generated = False
        super().__init__(*args, **kwargs)
        self._find_heads()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of a batch.

        Args:
            model: The student, wrapped for data parallelism.
            inputs: The batch: "input_ids", "attention_mask" and "labels".
            return_outputs: Whether the outputs of the student are returned too, with the logits of all positions.
            num_items_in_batch: The number of tokens of the whole batch, the denominator of the loss.

        Returns:
            The loss in nats, a scalar; or the loss and the outputs.
        """
        student = _without_adapter(self.accelerator.unwrap_model(model))
        teacher = _without_adapter(self.accelerator.unwrap_model(self.teacher_model))
        self.teacher_model.eval()
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with recorded_hidden(student) as states:
            outputs = model(**batch, use_cache=False, **({} if return_outputs else {"logits_to_keep": 1}))
        with torch.no_grad(), recorded_hidden(teacher) as teacher_states:
            self.teacher_model(**batch, use_cache=False, logits_to_keep=1)
        mask = inputs["labels"][:, 1:] != _IGNORED
        result = self._loss(
            (teacher, teacher_states[-1][:, :-1]),
            (student, states[-1][:, :-1]),
            mask,
            temperature=1.0,
            normalizer=self._denominator(mask, num_items_in_batch),
        )
        mode = "train" if self.model.training else "eval"
        if result.tokens:
            self._metrics[mode]["entropy"].append((result.student_entropy.sum() / result.tokens).item())
        return (result.loss, outputs) if return_outputs else result.loss

    def _denominator(self, mask: Tensor, num_items_in_batch: Any) -> Any:
        """The denominator of the loss of a micro-batch; None for its own number of tokens or sequences."""
        if num_items_in_batch is None:
            return None
        is_generated = self.model.training and self._is_generated
        if is_generated or self.aggregate != "token_mean":
            count = mask.sum().clamp(min=1) if self.aggregate == "token_mean" else len(mask)
            return count * (self.current_gradient_accumulation_steps if self.model.training else 1)
        # The count is the sum over all processes, and their gradients are averaged.
        return num_items_in_batch / (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Train on a batch, whose completions are replaced with probability `lmbda`; see `GKDTrainer`.

        Args:
            model: The student, wrapped for data parallelism.
            inputs: The batch.
            num_items_in_batch: The number of tokens of the whole batch before completions are replaced.

        Returns:
            The loss of the micro-batch, a scalar in nats.
        """
        self._is_generated = False
        return super().training_step(model, inputs, num_items_in_batch)

    def generate_on_policy_outputs(self, model: Any, inputs: Any, generation_config: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Generate completions; see `GKDTrainer`.

        Args:
            model: The student, or the teacher with `seq_kd`.
            inputs: The batch.
            generation_config: The configuration of the generation.

        Returns:
            The token ids, the attention mask and the labels.
        """
        self._is_generated = True
        return GKDTrainer.generate_on_policy_outputs(model, inputs, generation_config)


def completion_tokens(
    tokenizer: Any,
    prompt: Any,
    completion: Any,
    prompt_ids: list[int],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a given completion after its prompt.

    Args:
        tokenizer: The tokenizer.
        prompt: A text, or a list of messages.
        completion: A text, which the end-of-sequence token follows; or a list of messages, which end as in the chat
            template.
        prompt_ids: The tokens of the prompt.
        chat_template_kwargs: Further arguments of the chat template.

    Raises:
        InputError: The chat template does not begin the conversation with the tokens of the prompt.

    Example:
        >>> from kullback.train.demo.addition_task import make_tokenizer
        >>> completion_tokens(make_tokenizer(), "7+8=", "15", [9, 12, 10, 13])
        [3, 7, 1]
    """
    if isinstance(completion, str):
        return [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    messages = [*prompt, *completion]
    settings = chat_template_kwargs or {}
    encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **settings)["input_ids"]
    length = len(prompt_ids)
    if encoded[:length] != list(prompt_ids) or len(encoded) == length:
        raise InputError(
            "expected a chat template whose conversations begin with the tokens of their prompt, got a template that "
            "changes them"
        )
    return encoded[length:]


def _require_completions(columns: Iterable[str]) -> None:
    """Raise InputError unless there is a column of completions, which off_policy=True trains on."""
    if "completion" not in columns:
        raise InputError(
            f"expected a column completion in the data, got {', '.join(columns)}; with off_policy=True the student is "
            "trained on given completions, and without it on its own"
        )


def _require_vocabulary_of(positional: tuple[Any, ...], named: Mapping[str, Any], teacher_tokenizer: Any) -> None:
    """Compare the tokenizers where both can be found, and the sizes of the vocabularies of two models."""
    student: Any
    teacher: Any
    student, teacher = (
        named.get(name, positional[i] if len(positional) > i else None)
        for i, name in enumerate(("model", "teacher_model"))
    )
    tokenizer = named.get("processing_class")
    if tokenizer is not None and (teacher_tokenizer is not None or isinstance(teacher, str)):
        loaded = teacher_tokenizer or AutoTokenizer.from_pretrained(teacher, trust_remote_code=False)
        require_same_vocabulary(tokenizer, loaded)
    configs: list[Any] = [getattr(model, "config", None) for model in (student, teacher)]
    sizes = [config and config.get_text_config().vocab_size for config in configs]
    if None not in sizes and sizes[0] != sizes[1]:
        raise InputError(
            f"expected a teacher with logits of {sizes[0]} tokens as of the student, got {sizes[1]}; resize the "
            "embeddings of one model by resize_token_embeddings"
        )


def _without_adapter(model: Any) -> Any:
    return model.get_base_model() if is_peft_model(model) else model


def _output_layer(model: Any) -> Any:
    """The linear layer of the output head; the layer that PEFT trains in full, if there is one."""
    layer = model.get_output_embeddings()
    return layer.modules_to_save[layer.active_adapters[0]] if hasattr(layer, "modules_to_save") else layer


def _scale_and_cap(model: Any, name: str) -> tuple[float, float | None]:
    """The factor of the logits and the bound of capped logits."""
    found = capped_head_of(_without_adapter(model))
    if found is None:
        raise InputError(
            f"expected a {name} whose output head is linear, or linear with capped logits, got another head in "
            f"{type(model).__name__}; compute its loss by logit_divergence from its logits"
        )
    return found[0].scale, found[1]
