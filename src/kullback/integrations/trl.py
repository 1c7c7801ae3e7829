"""GRPO by TRL, with the policy held inside a KL budget."""

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
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
from kullback.budget.kl_budget import KLBudget
from kullback.budget.step import pull_and_brake
from kullback.integrations.heldout_positions import HeldOutCompletions, prompt_fingerprints
from kullback.integrations.transformers import completion_kl, completion_log_prob, head_of, last_hidden, recorded_hidden
from kullback.result import Estimate
from kullback.samples.clustered_mean import kl_per_sequence, kl_per_token

__all__ = ["BudgetGRPOTrainer"]

_PANEL_STEPS = 8  # optimizer steps that held-out positions serve


class BudgetGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with KL(policy || reference) held to a budget, by its exact value and its exact gradient.

    The loss gains beta times the KL over the whole vocabulary at every sampled position. Per token, its gradient is
    taken with the prefixes held fixed; per sequence, it is that of the KL of whole completions: a token answers for the
    KL that it leads to as well. The budget sets beta and, after every step, the size of the next one and the
    displacement of the weights from the reference's. The reference is the model as it was given.

    Two methods of the base class are wrapped: the constructor and `compute_loss`. The controller's state goes into the
    checkpoints with the trainer's own.

    Args:
        model: As for `GRPOTrainer`; an object must have been saved first, since TRL loads the reference from its path.
        reward_funcs: As for `GRPOTrainer`.
        args: A `GRPOConfig` whose `beta` is 0 (TRL's own penalty) or left alone.
        budget: The budget; None only measures the KL. Another controller sets beta alone, once a step, by the KL per
            token; `KLBudget` also acts on the weights.
        **kwargs: As for `GRPOTrainer`.

    Raises:
        BudgetError: A set-up in which the budget could not be held: TRL's own penalty on, a sharded or image model.
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
                f"expected GRPOConfig.beta = 0, got {args.beta}: the budget sets the price of a nat itself"
            )
        args.beta = 1.0  # with 0 TRL would not build the reference
        super().__init__(model, reward_funcs, args, **kwargs)
        self.beta = 0.0
        if self._is_vlm or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise BudgetError("the budget needs whole weights of a text model: plain data parallelism, no FSDP or ZeRO")
        self.budget, self.unit = budget, getattr(budget, "unit", "token")
        if self.unit not in ("token", "sequence"):
            raise BudgetError(f"expected a budget per 'token' or 'sequence', got {self.unit!r}: these are completions")
        self._holder = _BudgetHolder(self)
        self.add_callback(self._holder)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus beta times the exact KL; what was seen of the KL goes to the budget."""
        policy = self._holder.policy
        with recorded_hidden(policy) as states:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        scored = self._holder.score(inputs, states[-1])
        if policy.training:
            self._holder.record(inputs, scored)
            if self.budget is not None:
                loss = loss + self.budget.beta * self._holder.penalty(inputs, scored, states[-1])
        return loss


class _BudgetHolder(TrainerCallback, ExportableState):
    """Measures the KL of each step, tells the budget, and does to the optimizer and the weights what it asks."""

    def __init__(self, trainer: BudgetGRPOTrainer) -> None:
        self.trainer = trainer
        self.policy: Any = trainer.accelerator.unwrap_model(trainer.model)
        self.is_adapter = trainer.ref_model is None  # TRL keeps no second model for an adapter: it switches it off
        if self.is_adapter:
            self.policy = self.reference = self.policy.get_base_model()
            self.anchor = {name: weight.detach().clone() for name, weight in self._learned()}
        else:
            self.reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        # An adapter on the head is refused by TRL, so that a head is the same object with the adapter on or off.
        self.head, self.ref_head = head_of(self.policy), head_of(self.reference)
        self.reset()

    def reset(self) -> None:
        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self.newest: HeldOutCompletions | None = None
        self.panel: HeldOutCompletions | None = None
        self.rates: list[float] = []

    # -- measuring --

    def score(self, inputs: Mapping[str, Any], hidden: Tensor) -> HeldOutCompletions:
        """The KL at every completion token of a batch, given the policy's hidden states on it."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        with self.trainer.accelerator.autocast(), self._as_reference():
            ref_hidden = last_hidden(self.reference, ids, attention)[:, -mask.shape[1] - 1 :]
        alike = torch.ones(len(ids), dtype=torch.float64, device=ids.device)
        return HeldOutCompletions(ids, attention, mask, ref_hidden, self._kl(hidden, ref_hidden, mask), alike)

    def record(self, inputs: Mapping[str, Any], scored: HeldOutCompletions) -> None:
        """Remember a micro-batch's KL until the optimizer steps, from every process."""
        self.newest = replace(scored, kl=scored.kl.detach())
        keep = self.trainer.accelerator.gather
        prompts = prompt_fingerprints(inputs["prompt_ids"], inputs["prompt_mask"])
        sums, lengths = self.newest.kl.double().sum(dim=1), scored.mask.double().sum(dim=1)
        self.batches.append((keep(sums), keep(lengths), keep(prompts)))  # type: ignore[arg-type]

    def penalty(self, inputs: Mapping[str, Any], scored: HeldOutCompletions, hidden: Tensor) -> Tensor:
        """The mean KL in the budget's unit over the global batch, as this process's share of one optimizer step."""
        trainer: Any = self.trainer
        steps = trainer.current_gradient_accumulation_steps
        if trainer.unit == "sequence":
            return (scored.kl.sum() + self._by_choice(scored, hidden)) / (len(scored) * steps)
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        return scored.kl.sum() / (tokens * steps / trainer.args.steps_per_generation)

    def _by_choice(self, scored: HeldOutCompletions, hidden: Tensor) -> Tensor:
        """0, whose gradient is that of the later tokens' KL by the tokens that lead to them."""
        log_prob = completion_log_prob(self.head, hidden, scored.ids, scored.mask, temperature=self.trainer.temperature)
        surrogate = (scored.still_to_come() * log_prob).sum()
        return surrogate - surrogate.detach()

    def measured(self) -> tuple[Estimate, Estimate]:
        """KL(policy || reference) per token and per sequence over the samples of one optimizer step."""
        sums, lengths, prompts = (torch.cat(column).cpu().numpy() for column in zip(*self.batches, strict=True))
        return kl_per_token(sums, lengths, prompts), kl_per_sequence(sums, prompts)

    def seen_again(self, positions: HeldOutCompletions) -> HeldOutCompletions:
        """The same positions with their KL under the weights as they are."""
        with self.trainer.accelerator.autocast(), torch.no_grad():
            hidden = last_hidden(self.policy, positions.ids, positions.attention)
            return replace(positions, kl=self._kl(hidden, positions.ref_hidden, positions.mask))

    def change(self, old: HeldOutCompletions, new: HeldOutCompletions) -> tuple[float, float, float]:
        """The same positions' KL in the budget's unit, before and after, and the relative error of its change."""
        trainer, weight = self.trainer, old.weight
        before, after = (weight * one.kl.double().sum(dim=1) for one in (old, new))
        shares = weight * (old.mask.sum(dim=1) if trainer.unit == "token" else 1.0)
        total: Any = trainer.accelerator.reduce(torch.stack([before.sum(), after.sum(), shares.sum()]), reduction="sum")
        first, last, share = (float(one) for one in total)
        if first <= 0 or last <= 0:
            return first / share, last / share, math.nan
        apart: Any = trainer.accelerator.reduce((after - before * (last / first)).square().sum(), reduction="sum")
        return first / share, last / share, math.sqrt(float(apart)) / last

    def _kl(self, hidden: Tensor, ref_hidden: Tensor, mask: Tensor) -> Tensor:
        temperature = self.trainer.temperature
        return completion_kl(self.head, hidden, self.ref_head, ref_hidden, mask, temperature=temperature)

    def _as_reference(self) -> Any:
        if not self.is_adapter:
            return nullcontext()
        adapted: Any = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return use_adapter(adapted, "ref" if "ref" in adapted.peft_config else None)

    # -- acting --

    @torch.no_grad()
    def pull(self, factor: float) -> None:
        """Scale the displacement of the weights from the reference's."""
        if factor == 1.0:
            return
        for weight, anchor in self._displaced():
            weight.copy_(torch.lerp(anchor.to(weight.dtype), weight, factor))

    def _displaced(self) -> Any:
        if self.is_adapter:
            return [(weight, self.anchor[name]) for name, weight in self._learned()]
        return zip(self.policy.parameters(), self.reference.parameters(), strict=True)

    def _learned(self) -> Any:
        return [(name, weight) for name, weight in self.policy.named_parameters() if weight.requires_grad]

    # -- the trainer's events --

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.reset()
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        if self.trainer.budget is not None and saved.get("budget"):
            self.trainer.budget = controller_from_dict(saved["budget"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        trainer = self.trainer
        token, sequence = self.measured()
        self.batches.clear()
        log = trainer._metrics["train"]
        for name, estimate in (("token", token), ("sequence", sequence)):
            log[f"kl_policy_ref_per_{name}"].append(estimate.value)
            log[f"kl_policy_ref_per_{name}_std_error"].append(estimate.std_error)
        if trainer.budget is None:
            return
        log["beta"].append(trainer.budget.beta)
        seen = token if trainer.unit == "token" else sequence
        trainer.budget = trainer.budget.update(seen.value, std_error=seen.std_error, count=seen.count)
        if not isinstance(trainer.budget, KLBudget):
            return
        # The scheduler may compute its next rate from this one, so it is put back after the step.
        self.rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= trainer.budget.learning_rate_scale

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        trainer = self.trainer
        if not isinstance(trainer.budget, KLBudget):
            return
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        log = trainer._metrics["train"]
        log["learning_rate_scale"].append(trainer.budget.learning_rate_scale)
        log["displacement_scale"].append(self._hold(trainer.budget))
        log["kl_filtered"].append(trainer.budget.filtered_kl)

    def _hold(self, budget: KLBudget) -> float:
        """Pull and brake, where there are positions to see it on; the factor on the displacement."""
        if self.panel is None:
            pulled = budget.displacement_scale
            self.pull(pulled)
        else:
            budget, pulled = pull_and_brake(budget, self.pull, self._looked)
        self.trainer.budget = budget
        if self.newest is not None:
            self._renew_panel(self.newest)
        return pulled

    def _looked(self) -> tuple[float, float, float]:
        """The panel's KL as it was when last looked at, as it is now, and the relative error of the change."""
        assert self.panel is not None
        old, self.panel = self.panel, self.seen_again(self.panel)
        return self.change(old, self.panel)

    def _renew_panel(self, newest: HeldOutCompletions) -> None:
        """Half a batch of positions, an eighth of them new after each step: many prompts, none of them old.

        The step was taken on the newest, and their KL before it is not typical; what later steps do to them is.
        """
        size = (len(newest) + 1) // 2
        if self.panel is None:
            self.panel = self.seen_again(newest.drawn(size))
        else:
            fresh = self.seen_again(newest.drawn(math.ceil(size / _PANEL_STEPS)))
            self.panel = fresh.followed_by(self.panel).take(slice(size))

    def state(self) -> dict[str, Any]:
        budget = self.trainer.budget
        return {"args": {}, "attributes": {"budget": None if budget is None else controller_to_dict(budget)}}
