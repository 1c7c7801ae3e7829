"""The doctor for a trainer of TRL that is set up, before or between its training steps."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from kullback.doctor.arguments import BATCH_KEYS
from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import CheckedModels, preserve_training_state
from kullback.doctor.models import doctor
from kullback.doctor.settings import UNFILTERED, check_settings
from kullback.doctor.weights import check_optimizer_parameters
from kullback.errors import InputError, ShapeError

__all__ = ["doctor_batch", "doctor_trainer"]


def doctor_trainer(
    trainer: GRPOTrainer | RLOOTrainer, rows: Sequence[Mapping[str, Any]] | None = None
) -> list[Finding]:
    """Check a `GRPOTrainer`, an `RLOOTrainer`, or one with a budget, on one batch that it generates.

    Runs `kullback.doctor` on the trainer's models, batch, optimizer and KL term, and `check_settings` on its
    settings. The metrics, modes, weights and random numbers of the trainer are restored, and the order of its prompts
    does not change.

    Args:
        trainer: A trainer that is ready for `train()`.
        rows: Rows of a data set, each with a prompt; None: the first rows of the trainer's data set, as many as one
            step of a device takes.

    Returns:
        Findings, errors first; an empty list if nothing is wrong.

    Raises:
        InputError: `trainer` is of another class, or has no prompts.
        ShapeError: No completion has a token that counts.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from trl import GRPOConfig
        >>> from kullback.train.demo.addition_task import exact_match, make_model, make_tokenizer, prompt_rows
        >>> settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4}
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     tokenizer = make_tokenizer()
        ...     make_model(tokenizer).save_pretrained(directory)
        ...     args = GRPOConfig(directory, beta=0.04, use_cpu=True, bf16=False, report_to="none", **settings)
        ...     data = Dataset.from_list(prompt_rows(2, seed=0))
        ...     trainer = GRPOTrainer(directory, exact_match, args, train_dataset=data, processing_class=tokenizer)
        ...     doctor_trainer(trainer)
        []
    """
    if not isinstance(trainer, GRPOTrainer | RLOOTrainer):
        raise InputError(
            f"expected a GRPOTrainer or an RLOOTrainer of TRL, got {type(trainer).__name__}; for other trainers call "
            "kullback.doctor with their models and log-probabilities"
        )
    grpo: Any = trainer
    if rows is None:
        group = grpo.num_generations
        prompts = max(1, grpo.args.per_device_train_batch_size // group)
        # A data set that is streamed has no length and no index.
        first = list(itertools.islice(grpo.train_dataset, prompts))
        if not first:
            raise InputError("expected a train_dataset with prompts, got none")
        rows = [first[i % len(first)] for i in range(prompts) for _ in range(group)]
    with _preserve_trainer_state(grpo):
        with preserve_training_state(grpo.model):
            grpo.model.train()
            inputs = grpo._generate_and_score_completions([dict(row) for row in rows])
        return doctor_batch(grpo, inputs)


def doctor_batch(trainer: GRPOTrainer | RLOOTrainer, inputs: Mapping[str, Any]) -> list[Finding]:
    """Check a `GRPOTrainer`, an `RLOOTrainer`, or one with a budget, on a batch that it has generated and scored.

    These are the checks of `doctor_trainer`. `BudgetGRPOTrainer` and `BudgetRLOOTrainer` run them on their first batch.

    Args:
        trainer: The trainer.
        inputs: A batch as TRL prepares it for `compute_loss`.

    Returns:
        Findings, errors first; an empty list if nothing is wrong.

    Raises:
        ShapeError: No completion has a token that counts.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from trl import GRPOConfig
        >>> from kullback.train.demo.addition_task import exact_match, make_model, make_tokenizer, prompt_rows
        >>> settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4}
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     tokenizer, rows = make_tokenizer(), prompt_rows(2, seed=0)
        ...     make_model(tokenizer).save_pretrained(directory)
        ...     args = GRPOConfig(directory, use_cpu=True, bf16=False, report_to="none", **settings)
        ...     data = Dataset.from_list(rows)
        ...     trainer = GRPOTrainer(directory, exact_match, args, train_dataset=data, processing_class=tokenizer)
        ...     trainer.current_gradient_accumulation_steps = 1
        ...     batch = trainer._prepare_inputs([row for row in rows for _ in range(2)])
        ...     doctor_batch(trainer, batch)
        []
    """
    grpo: Any = trainer
    if getattr(grpo, "mask_truncated_completions", False) and not inputs["completion_mask"].any():
        raise ShapeError(
            f"expected a completion that ends within {grpo.max_completion_length} tokens, but all "
            f"{len(inputs['completion_mask'])} of this batch are truncated, and mask_truncated_completions leaves them "
            "out; increase max_completion_length"
        )
    # A trainer of this package defines the policy and the reference, and computes the logits from hidden states.
    controller = getattr(grpo, "_controller", None)
    optimizer = getattr(grpo.optimizer, "optimizer", grpo.optimizer)
    with _checked_models(grpo) as models:
        is_copied = models.optimized is not models.policy
        findings = []
        if is_copied and models.optimized is not None and optimizer is not None:
            findings += check_optimizer_parameters(models.optimized, optimizer)
        findings += doctor(
            models.policy,
            models.reference,
            {name: value for name, value in inputs.items() if name in BATCH_KEYS},  # versions of TRL add others
            tokenizer=getattr(grpo.processing_class, "tokenizer", grpo.processing_class),
            chat_template_kwargs=grpo.chat_template_kwargs,
            temperature=grpo.temperature,
            autocast=torch.bfloat16 if grpo.args.bf16 else torch.float16 if grpo.args.fp16 else None,
            optimizer=None if is_copied else optimizer,
            # RLOOTrainer has its KL in the rewards, and its loss has no KL term.
            penalty=_kl_term(grpo, inputs) if grpo.beta != 0 and isinstance(grpo, GRPOTrainer) else None,
            at_start=grpo.state.global_step == 0 and not getattr(controller, "has_trained", False),
            as_reference=models.as_reference,
            head_logits=None if controller is None else controller.head_logits,
        )
    names = {finding.name for finding in findings}
    settings = {**_generation_defaults(grpo), **_set_values(grpo.args), "beta": grpo.beta}
    return findings + [finding for finding in check_settings(settings) if finding.name not in names]


def _checked_models(trainer: Any) -> AbstractContextManager[CheckedModels]:
    """A context manager with the models of a trainer, as a trainer of this package defines them."""
    if (controller := getattr(trainer, "_controller", None)) is not None:
        return controller.weights.checked()
    policy, reference = (
        None if model is None else trainer.accelerator.unwrap_model(model)
        for model in (trainer.model, trainer.ref_model)
    )
    return nullcontext(CheckedModels(policy, reference, None, policy))


def _generation_defaults(trainer: Any) -> dict[str, Any]:
    """The settings of sampling that `generate` takes from the model where TRL passes none; vLLM does not."""
    if trainer.args.use_vllm:
        return {}
    config = getattr(trainer.accelerator.unwrap_model(trainer.model), "generation_config", None)
    return {key: getattr(config, key, None) for key in UNFILTERED}


def _set_values(args: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if value is not None}


def _kl_term(trainer: Any, inputs: Mapping[str, Any]) -> Any:
    """The KL term of TRL's loss as a function of the log-probabilities: the loss with all advantages 0."""

    def penalty(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
        device = inputs["completion_ids"].device
        on_device = log_prob.to(device)
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (on_device, torch.zeros_like(on_device), None)
        try:
            batch = {name: value for name, value in inputs.items() if name != "old_per_token_logps"}
            batch["advantages"] = torch.zeros_like(inputs["advantages"])
            batch["ref_per_token_logps"] = ref_log_prob.to(device)
            return trainer._compute_loss(trainer.model, batch)
        finally:
            del trainer._get_per_token_logps_and_entropies

    return penalty


@contextmanager
def _preserve_trainer_state(trainer: Any) -> Iterator[None]:
    """Restore what generating and scoring a batch changes: logged metrics, counters and random numbers."""
    logs = {name: copy.deepcopy(getattr(trainer, name)) for name in ("_metrics", "_logs", "_total_train_tokens")}
    steps = getattr(trainer, "current_gradient_accumulation_steps", None)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    tokens = trainer.state.num_input_tokens_seen
    devices = [trainer.model.device] if trainer.model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        trainer.state.num_input_tokens_seen = tokens
        trainer.current_gradient_accumulation_steps = steps
        for name, value in logs.items():
            setattr(trainer, name, value)
