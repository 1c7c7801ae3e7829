"""GRPO by TRL, with the policy held inside a KL budget."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
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

from kullback.integrations.transformers import completion_kl, head_of, last_hidden, recorded_hidden
from kullback.policy.budget import KLBudget
from kullback.result import Estimate
from kullback.tokens.average import kl_per_sequence, kl_per_token

__all__ = ["BudgetGRPOTrainer"]

_PANEL_STEPS = 8  # optimizer steps that one set of held-out positions serves
_MOST_BRAKES = 3
_IDS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class BudgetGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with KL(policy || reference) held to a budget, by its exact value and its exact gradient.

    The loss gains beta times the KL over the whole vocabulary at every sampled position (the prefixes held fixed), per
    token or per sequence as the budget's unit says; the budget sets beta and, after every step, the size of the next
    one and the displacement of the weights from the reference's. The reference is the model as it was given.

    Two methods of the base class are wrapped: the constructor and `compute_loss`. The controller's state goes into the
    checkpoints with the trainer's own.

    Args:
        model: As for `GRPOTrainer`; an object must have been saved first, since TRL loads the reference from its path.
        reward_funcs: As for `GRPOTrainer`.
        args: A `GRPOConfig` whose `beta` is 0 (TRL's own penalty) or left alone.
        budget: The budget; None only measures the KL.
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
        budget: KLBudget | None,
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
        self.budget = budget
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
            self._holder.record(scored)
            if self.budget is not None:
                loss = loss + self.budget.beta * self._holder.penalty(scored)
        return loss


@dataclass
class _Scored:
    """A batch and its KL: what the loss, the measurement and the held-out panel all look at."""

    inputs: Mapping[str, Any]
    mask: Tensor
    ref_hidden: Tensor
    kl: Tensor

    def first_half(self) -> "_Scored":
        """Half of the sequences (TRL shuffles them): as a panel nearly as good as all, at half the price."""
        half = slice((len(self.mask) + 1) // 2)
        inputs = {name: self.inputs[name][half] for name in _IDS}
        return _Scored(inputs, self.mask[half], self.ref_hidden[half], self.kl[half].detach())


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
        self.newest: _Scored | None = None
        self.panel: _Scored | None = None
        self.panel_kl = 0.0
        self.panel_age = 0
        self.rates: list[float] = []

    # -- measuring --

    def score(self, inputs: Mapping[str, Any], hidden: Tensor) -> _Scored:
        """The KL at every completion token of a batch, given the policy's hidden states on it."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        with self.trainer.accelerator.autocast(), self._as_reference():
            ref_hidden = last_hidden(self.reference, *_ids(inputs))
        return _Scored(inputs, mask, ref_hidden, self._kl(hidden, ref_hidden, mask))

    def record(self, scored: _Scored) -> None:
        """Remember a micro-batch's KL until the optimizer steps, from every process."""
        self.newest = scored
        keep = self.trainer.accelerator.gather
        prompts = _fingerprints(scored.inputs["prompt_ids"], scored.inputs["prompt_mask"])
        sums, lengths = scored.kl.detach().double().sum(dim=1), scored.mask.double().sum(dim=1)
        self.batches.append((keep(sums), keep(lengths), keep(prompts)))  # type: ignore[arg-type]

    def penalty(self, scored: _Scored) -> Tensor:
        """The mean KL in the budget's unit over the global batch, as this process's share of one optimizer step."""
        trainer: Any = self.trainer
        steps = trainer.current_gradient_accumulation_steps
        if trainer.budget is not None and trainer.budget.unit == "sequence":
            return scored.kl.sum() / (len(scored.kl) * steps)
        tokens = scored.inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        return scored.kl.sum() / (tokens * steps / trainer.args.steps_per_generation)

    def measured(self) -> tuple[Estimate, Estimate]:
        """KL(policy || reference) per token and per sequence over the samples of one optimizer step."""
        sums, lengths, prompts = (torch.cat(column).cpu().numpy() for column in zip(*self.batches, strict=True))
        return kl_per_token(sums, lengths, prompts), kl_per_sequence(sums, prompts)

    def held_out_kl(self) -> float:
        """The KL of the panel, in the budget's unit, under the weights as they are."""
        panel, trainer = self.panel, self.trainer
        assert panel is not None
        with trainer.accelerator.autocast(), torch.no_grad():
            hidden = last_hidden(self.policy, *_ids(panel.inputs))
            kl = self._kl(hidden, panel.ref_hidden, panel.mask).double()
        per_token = trainer.budget is None or trainer.budget.unit == "token"
        share = panel.mask.double().sum() if per_token else kl.new_tensor(len(kl))
        total: Any = trainer.accelerator.reduce(torch.stack([kl.sum(), share]), reduction="sum")
        return float(total[0] / total[1].clamp(min=1.0))

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
            self.trainer.budget = KLBudget.from_dict(saved["budget"])

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
        seen = token if trainer.budget.unit == "token" else sequence
        trainer.budget = trainer.budget.update(seen.value, std_error=seen.std_error, count=seen.count)
        # The scheduler may compute its next rate from this one, so it is put back after the step.
        self.rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= trainer.budget.step_scale

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        trainer = self.trainer
        if trainer.budget is None:
            return
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        log = trainer._metrics["train"]
        log["step_scale"].append(trainer.budget.step_scale)
        log["pull"].append(self._hold(trainer.budget))
        log["kl_level"].append(trainer.budget.level)

    def _hold(self, budget: KLBudget) -> float:
        """Pull the weights, see on held-out positions where the step went, brake if it went too far."""
        pulled = budget.pull
        self.pull(pulled)
        if self.panel is not None:
            before, self.panel_kl = self.panel_kl, self.held_out_kl()
            budget = budget.moved(before, self.panel_kl, pull=pulled)
            for _ in range(_MOST_BRAKES):
                if (brake := budget.brake) == 1.0:
                    break
                self.pull(brake)
                pulled *= brake
                before, self.panel_kl = self.panel_kl, self.held_out_kl()
                budget = budget.braked(before, self.panel_kl)
        self.trainer.budget = budget
        self.panel_age += 1
        if self.newest is not None and (self.panel is None or self.panel_age >= _PANEL_STEPS):
            # The step was taken on this batch, and its KL there is no longer typical; the next steps' will be.
            self.panel, self.panel_age = self.newest.first_half(), 0
            self.panel_kl = self.held_out_kl()
        return pulled

    def state(self) -> dict[str, Any]:
        budget = self.trainer.budget
        return {"args": {}, "attributes": {"budget": None if budget is None else budget.to_dict()}}


def _ids(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    return ids, torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)


def _fingerprints(ids: Tensor, mask: Tensor) -> Tensor:
    """A number for each row that is equal for equal prompts, however much padding stands on their left."""
    powers = torch.full_like(ids, 1_000_003).cumprod(dim=1).flip(1)  # wraps around, as a hash may
    return ((ids + 1) * mask * powers).sum(dim=1)
