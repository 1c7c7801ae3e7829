"""The doctor on a TRL trainer that was set up, before or between its steps."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import left_as_it_was
from kullback.doctor.models import doctor
from kullback.doctor.settings import check_settings

__all__ = ["doctor_trainer"]


def doctor_trainer(trainer: GRPOTrainer, rows: Sequence[Mapping[str, Any]] | None = None) -> list[Finding]:
    """What is wrong with a `GRPOTrainer`, or a `BudgetGRPOTrainer`, found on one batch that it generates.

    Its metrics, modes and weights are left as they were; the order of its prompts is not touched.

    Args:
        trainer: Set up as for `train()`.
        rows: Prompts to try; None: the first ones of its data set, as many as one step takes.

    Returns:
        Findings, errors first; see `doctor`.
    """
    held: Any = trainer
    policy, reference = (
        None if model is None else held.accelerator.unwrap_model(model) for model in (held.model, held.ref_model)
    )
    if rows is None:
        group = held.num_generations
        size = max(1, held.args.per_device_train_batch_size // group)
        rows = [held.train_dataset[i % len(held.train_dataset)] for i in range(size) for _ in range(group)]
    with _left_alone(held):
        with left_as_it_was(held.model):
            held.model.train()
            inputs = held._generate_and_score_completions([dict(row) for row in rows])
        penalty = _penalty_of(held, inputs) if held.beta != 0 else None
        found = doctor(
            policy,
            reference,
            inputs,
            tokenizer=getattr(held.processing_class, "tokenizer", held.processing_class),
            temperature=held.temperature,
            autocast=torch.bfloat16 if held.args.bf16 else torch.float16 if held.args.fp16 else None,
            optimizer=getattr(held.optimizer, "optimizer", held.optimizer),
            penalty=penalty,
            at_start=held.state.global_step == 0,
        )
    known = {one.name for one in found}
    settings = {**vars(held.args), "beta": held.beta}
    return found + [one for one in check_settings(settings) if one.name not in known]


def _penalty_of(trainer: Any, inputs: Mapping[str, Any]) -> Any:
    """TRL's own KL term: its loss with no advantages, as a function of the log-probabilities alone."""

    def penalty(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
        device = inputs["completion_ids"].device
        held = log_prob.to(device)
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (held, torch.zeros_like(held), None)
        try:
            given = {name: value for name, value in inputs.items() if name != "old_per_token_logps"}
            given["advantages"] = torch.zeros_like(inputs["advantages"])
            given["ref_per_token_logps"] = ref_log_prob.to(device)
            return trainer._compute_loss(trainer.model, given)
        finally:
            del trainer._get_per_token_logps_and_entropies

    return penalty


@contextmanager
def _left_alone(trainer: Any) -> Iterator[None]:
    """Generation logs and draws as in training: what it logged goes, and the random numbers go back."""
    kept = {name: copy.deepcopy(getattr(trainer, name)) for name in ("_metrics", "_logs", "_total_train_tokens")}
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
        for name, value in kept.items():
            setattr(trainer, name, value)
