"""GRPO by TRL, with the KL of the policy held at a budget."""

import copy
import math
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

from kullback.errors import BudgetError, MissingDependencyError

try:
    import torch
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import use_adapter
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers", "trl"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[train]'") from error

from torch import Tensor

from kullback.budget.controllers import Controller, controller_from_dict, controller_to_dict
from kullback.budget.displacement import scale_displacement
from kullback.budget.kl_budget import KLBudget
from kullback.budget.step import BudgetStep, scaled_learning_rates
from kullback.integrations.heldout_positions import HeldOutCompletions, prompt_fingerprints
from kullback.integrations.transformers import completion_kl, completion_log_prob, head_of, last_hidden, recorded_hidden
from kullback.result import Estimate
from kullback.runs.metrics import kl_key
from kullback.samples.clustered_mean import kl_per_sequence, kl_per_token

__all__ = ["BudgetGRPOTrainer"]

_FORMER_CALLBACK = "_BudgetHolder"  # the key of the state in checkpoints that were saved before the class was renamed
_HELD_OUT_STEPS = 8  # the number of optimizer steps for which a held-out completion is used


class BudgetGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with KL(policy || reference) held at a budget, by its exact value and its exact gradient.

    Beta times the KL over the whole vocabulary at every sampled position is added to the loss. With a budget per token,
    the gradient is taken with the prefixes held fixed. With a budget per sequence, it is the gradient of the KL of
    whole completions, which includes the effect of each token on the KL of later tokens. The budget sets beta and,
    after every step, the learning rate of the next step and the displacement of the weights from the reference.

    Two methods of the base class are wrapped: the constructor and `compute_loss`. The controller's state is saved in
    the checkpoints with the trainer's own.

    Args:
        model: As for `GRPOTrainer`. TRL loads the reference from the path of the model, so that a model object must
            have been saved before.
        reward_funcs: As for `GRPOTrainer`.
        args: A `GRPOConfig` whose `beta` (the coefficient of TRL's own penalty) is 0 or not set.
        budget: The controller. None: the KL is measured but not controlled. A `KLBudget` sets beta and acts on the
            weights; other controllers set only beta, once per step, from the KL per token.
        **kwargs: As for `GRPOTrainer`.

    Raises:
        BudgetError: The budget could not be held in this set-up: TRL's own penalty is on, the weights are sharded, or
            the model takes images.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from transformers.trainer_callback import PrinterCallback
        >>> from kullback.train.demo.addition_task import exact_match, make_model, make_tokenizer, prompt_rows
        >>> settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4}
        >>> settings |= {"max_steps": 1, "save_strategy": "no", "disable_tqdm": True}
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     tokenizer = make_tokenizer()
        ...     make_model(tokenizer).save_pretrained(directory)
        ...     args = GRPOConfig(directory, use_cpu=True, bf16=False, report_to="none", **settings)
        ...     data = Dataset.from_list(prompt_rows(2, seed=0))
        ...     data_and_tokenizer = {"train_dataset": data, "processing_class": tokenizer}
        ...     trainer = BudgetGRPOTrainer(directory, exact_match, args, budget=KLBudget(0.05), **data_and_tokenizer)
        ...     trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> trainer.state.global_step, round(trainer.budget.beta, 3), trainer.budget.status
        (1, 0.1, 'held')
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *,
        budget: Controller | None,
        **kwargs: Any,
    ) -> None:
        args = copy.copy(args) if args is not None else GRPOConfig("budget-grpo", beta=0.0)
        if args.beta != 0:
            raise BudgetError(
                f"expected GRPOConfig.beta = 0, got {args.beta}: the budget sets the coefficient of the KL penalty"
            )
        args.beta = 1.0  # with 0 TRL would not build the reference
        super().__init__(model, reward_funcs, args, **kwargs)
        self.beta = 0.0
        if self._is_vlm or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise BudgetError(
                "expected a text model whose weights are whole on each process; FSDP, ZeRO and image models are not "
                "supported, use plain data parallelism"
            )
        self.budget, self.unit = budget, getattr(budget, "unit", "token")
        if self.unit not in ("token", "sequence"):
            raise BudgetError(f"expected a budget per 'token' or 'sequence' of completions, got {self.unit!r}")
        self._controller = _BudgetCallback(self)
        self.add_callback(self._controller)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss plus beta times the exact KL, and record the KL for the controller."""
        policy = self._controller.policy
        with recorded_hidden(policy) as states:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        scored = self._controller.score(inputs, states[-1])
        if policy.training:
            self._controller.record(inputs, scored)
            if self.budget is not None:
                loss = loss + self.budget.beta * self._controller.penalty(inputs, scored, states[-1])
        return loss


class _BudgetCallback(TrainerCallback, ExportableState):
    """Measures the KL of each step, updates the controller, and applies its outputs to the optimizer and weights."""

    def __init__(self, trainer: BudgetGRPOTrainer) -> None:
        self.trainer = trainer
        self.policy: Any = trainer.accelerator.unwrap_model(trainer.model)
        self.is_adapter = trainer.ref_model is None  # TRL disables an adapter instead of loading a second model
        if self.is_adapter:
            self.policy = self.reference = self.policy.get_base_model()
            self.anchors = {name: weight.detach().clone() for name, weight in self._trained_weights()}
        else:
            self.reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        # TRL refuses an adapter on the head, so that the head is the same object with the adapter on or off.
        self.head, self.ref_head = head_of(self.policy), head_of(self.reference)
        self.step = BudgetStep(self.scale_displacement, self)
        self.learning_rates = ExitStack()
        self.reset()

    def reset(self) -> None:
        """Discard what was recorded."""
        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self.newest: HeldOutCompletions | None = None
        self.held_out: HeldOutCompletions | None = None
        self.learning_rates.close()

    # -- measurements --

    def score(self, inputs: Mapping[str, Any], hidden: Tensor) -> HeldOutCompletions:
        """Return the KL at every completion token of a batch, given the policy's hidden states on it."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        with self.trainer.accelerator.autocast(), self._as_reference():
            ref_hidden = last_hidden(self.reference, ids, attention)[:, -mask.shape[1] - 1 :]
        weight = torch.ones(len(ids), dtype=torch.float64, device=ids.device)
        return HeldOutCompletions(ids, attention, mask, ref_hidden, self._kl(hidden, ref_hidden, mask), weight)

    def record(self, inputs: Mapping[str, Any], scored: HeldOutCompletions) -> None:
        """Keep the KL of a micro-batch, gathered from every process, until the optimizer steps."""
        self.newest = replace(scored, kl=scored.kl.detach())
        gather = self.trainer.accelerator.gather
        prompts = prompt_fingerprints(inputs["prompt_ids"], inputs["prompt_mask"])
        sums, lengths = self.newest.kl.double().sum(dim=1), scored.mask.double().sum(dim=1)
        self.batches.append((gather(sums), gather(lengths), gather(prompts)))  # type: ignore[arg-type]

    def penalty(self, inputs: Mapping[str, Any], scored: HeldOutCompletions, hidden: Tensor) -> Tensor:
        """Return this process's share of the mean KL over the global batch, in the budget's unit."""
        trainer: Any = self.trainer
        steps = trainer.current_gradient_accumulation_steps
        if trainer.unit == "sequence":
            return (scored.kl.sum() + self._score_function_term(scored, hidden)) / (len(scored) * steps)
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        return scored.kl.sum() / (tokens * steps / trainer.args.steps_per_generation)

    def _score_function_term(self, scored: HeldOutCompletions, hidden: Tensor) -> Tensor:
        """Return 0 with the gradient of the later tokens' KL through the probabilities of the tokens before them."""
        log_prob = completion_log_prob(self.head, hidden, scored.ids, scored.mask, temperature=self.trainer.temperature)
        surrogate = (scored.centred_kl_to_go() * log_prob).sum()
        return surrogate - surrogate.detach()

    def measured(self) -> tuple[Estimate, Estimate]:
        """Return KL(policy || reference) per token and per sequence over the samples of one optimizer step."""
        sums, lengths, prompts = (torch.cat(column).cpu().numpy() for column in zip(*self.batches, strict=True))
        return kl_per_token(sums, lengths, prompts), kl_per_sequence(sums, prompts)

    def with_present_kl(self, completions: HeldOutCompletions) -> HeldOutCompletions:
        """Return the same completions with their KL under the current weights."""
        with self.trainer.accelerator.autocast(), torch.no_grad():
            hidden = last_hidden(self.policy, completions.ids, completions.attention)
            return replace(completions, kl=self._kl(hidden, completions.ref_hidden, completions.mask))

    def remeasure(self) -> tuple[float, float, float]:
        """Return the held-out KL at the previous measurement, the KL now, and the relative error of their ratio."""
        assert self.held_out is not None
        before, self.held_out = self.held_out, self.with_present_kl(self.held_out)
        return self.change(before, self.held_out)

    def change(self, old: HeldOutCompletions, new: HeldOutCompletions) -> tuple[float, float, float]:
        """Return the mean KL of the same completions before and after, and the relative error of their ratio."""
        trainer, weight = self.trainer, old.weight
        before, after = (weight * completions.kl.double().sum(dim=1) for completions in (old, new))
        counts = weight * (old.mask.sum(dim=1) if trainer.unit == "token" else 1.0)
        sums: Any = torch.stack([before.sum(), after.sum(), counts.sum()])
        total_before, total_after, count = (float(x) for x in trainer.accelerator.reduce(sums, reduction="sum"))
        if total_before <= 0 or total_after <= 0:
            return total_before / count, total_after / count, math.nan
        residuals: Any = (after - before * (total_after / total_before)).square().sum()
        variance: Any = trainer.accelerator.reduce(residuals, reduction="sum")
        return total_before / count, total_after / count, math.sqrt(float(variance)) / total_after

    def _kl(self, hidden: Tensor, ref_hidden: Tensor, mask: Tensor) -> Tensor:
        temperature = self.trainer.temperature
        return completion_kl(self.head, hidden, self.ref_head, ref_hidden, mask, temperature=temperature)

    def _as_reference(self) -> Any:
        """Return a context manager in which the forward pass of the policy computes the reference."""
        if not self.is_adapter:
            return nullcontext()
        adapted: Any = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return use_adapter(adapted, "ref" if "ref" in adapted.peft_config else None)

    # -- actuators --

    def scale_displacement(self, factor: float) -> None:
        """Scale the displacement of the weights from the weights of the reference."""
        if self.is_adapter:
            names, weights = zip(*self._trained_weights(), strict=True)
            scale_displacement(weights, [self.anchors[name] for name in names], factor)
        else:
            scale_displacement(self.policy.parameters(), self.reference.parameters(), factor)

    def _trained_weights(self) -> Any:
        return [(name, weight) for name, weight in self.policy.named_parameters() if weight.requires_grad]

    # -- the trainer's events --

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.reset()
        states = state.stateful_callbacks
        saved = states.get(type(self).__name__, states.get(_FORMER_CALLBACK, {})).get("attributes", {})
        if self.trainer.budget is not None and saved.get("budget"):
            self.trainer.budget = controller_from_dict(saved["budget"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        trainer = self.trainer
        token, sequence = self.measured()
        self.batches.clear()
        log = trainer._metrics["train"]
        for name, estimate in (("token", token), ("sequence", sequence)):
            log[kl_key(name)].append(estimate.value)
            log[f"{kl_key(name)}_std_error"].append(estimate.std_error)
        if trainer.budget is None:
            return
        log["beta"].append(trainer.budget.beta)
        estimate = token if trainer.unit == "token" else sequence
        trainer.budget = trainer.budget.update(estimate.value, std_error=estimate.std_error, count=estimate.count)
        if isinstance(trainer.budget, KLBudget):
            scale = trainer.budget.learning_rate_scale
            self.learning_rates.enter_context(scaled_learning_rates(optimizer.param_groups, scale))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        trainer = self.trainer
        if not isinstance(trainer.budget, KLBudget):
            return
        self.learning_rates.close()
        log = trainer._metrics["train"]
        log["learning_rate_scale"].append(trainer.budget.learning_rate_scale)
        log["displacement_scale"].append(self._apply(trainer.budget))
        log["kl_filtered"].append(trainer.budget.filtered_kl)

    def _apply(self, budget: KLBudget) -> float:
        """Scale the displacement, with the brake if there are held-out completions, and return the factor."""
        if self.held_out is None:
            factor = budget.displacement_scale
            self.scale_displacement(factor)
        else:
            self.trainer.budget, factor = self.step.apply(budget)
        if self.newest is not None:
            self._renew_held_out(self.newest)
        return factor

    def _renew_held_out(self, newest: HeldOutCompletions) -> None:
        """Replace an eighth of the held-out completions, which are half a batch, by completions of the newest batch.

        The KL of the newest batch before the step is not representative, because the step was taken on this batch. The
        effect of later steps on its KL is representative.
        """
        size = (len(newest) + 1) // 2
        if self.held_out is None:
            self.held_out = self.with_present_kl(newest.sample_by_kl(size))
        else:
            added = self.with_present_kl(newest.sample_by_kl(math.ceil(size / _HELD_OUT_STEPS)))
            self.held_out = added.concatenate(self.held_out).take(slice(size))

    def state(self) -> dict[str, Any]:
        """Return the controller's state, which is saved in every checkpoint."""
        budget = self.trainer.budget
        return {"args": {}, "attributes": {"budget": None if budget is None else controller_to_dict(budget)}}
