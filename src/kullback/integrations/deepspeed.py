"""The weights of a policy and of its reference under DeepSpeed ZeRO, which partitions them over the processes."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from kullback.errors import BudgetError, MissingDependencyError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install 'kullback[train]'") from error

import torch.distributed as dist
from torch import Tensor

from kullback.budget.displacement import scale_displacement
from kullback.doctor.forward_pass import base_model
from kullback.integrations.gathered_weights import GatheredWeights
from kullback.integrations.transformers import Head, recorded_hidden
from kullback.integrations.transformers_reference import evaluation_mode

__all__ = ["ZeroWeights", "require_supported_zero"]

_HALF_PRECISION = (torch.bfloat16, torch.float16)


def require_supported_zero(settings: Mapping[str, Any]) -> None:
    """Raise BudgetError unless a budget can be held with a configuration of DeepSpeed.

    Args:
        settings: The configuration, as in DeepSpeed's JSON file.
    """
    zero = settings.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise BudgetError(
            f"expected DeepSpeed ZeRO stage 1, 2 or 3, got {zero.get('stage')}; use plain data parallelism"
        )
    for name in ("offload_optimizer", "offload_param"):
        if (zero.get(name) or {}).get("device", "none") not in ("none", None):
            raise BudgetError(
                f"expected no {name} under DeepSpeed, got device {zero[name]['device']}: the float32 weights are "
                "scaled on the device of the process; set the device to none"
            )
    unsupported = {
        "fp16": "steps that overflow are skipped, so that the effect of a step on the KL is not measured; use bf16",
        "torch_autocast": "the policy would be computed in another precision than the reference; use bf16",
        "amp": "the policy would be computed in another precision than the reference; use bf16",
    }
    for name, reason in unsupported.items():
        if (settings.get(name) or {}).get("enabled"):
            raise BudgetError(f"expected DeepSpeed without {name}: {reason}")
    for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zenflow", "zeropp_loco_param"):
        if zero.get(name):
            raise BudgetError(f"expected ZeRO without {name}, which changes the weights outside of the optimizer step")
    for name, default in (("zero_hpz_partition_size", 1), ("mics_shard_size", -1)):
        if zero.get(name, default) not in (default, "auto"):
            raise BudgetError(f"expected ZeRO without {name}, got {zero[name]}: the weights have a second partition")
    if (settings.get("bf16") or {}).get("bf16_master_weights_and_grads"):
        raise BudgetError("expected float32 weights in DeepSpeed's optimizer, got bf16_master_weights_and_grads")


class _Replicated:
    """ZeRO-1 and ZeRO-2: whole weights on each process, and a partition of their float32 values in the optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def piece(self, weight: Any) -> Tensor | None:
        """The float32 values that this process has of a trainable weight, which the optimizer changes."""
        mapping = getattr(weight, "_hp_mapping", None)
        return None if mapping is None else mapping.get_hp_fragment()

    def whole(self, weight: Any, piece: Tensor | None) -> Tensor:
        """The whole weight from the pieces of all processes."""
        gathered = torch.zeros(weight.numel(), dtype=torch.float32, device=weight.device)
        if piece is not None:
            place = weight._hp_mapping.lp_fragment_address
            gathered.narrow(0, place.start, place.numel).copy_(piece)
        dist.all_reduce(gathered, group=weight._dp_group)
        return gathered.view(weight.shape)

    def working(self, weight: Any) -> Tensor:
        """The whole weight as forward passes have it."""
        return weight.detach()

    def marked(self, whole: Tensor) -> Tensor:
        """The same whole weight."""
        return whole

    def trained(self, weight: Any) -> Tensor:
        """The whole weight as forward passes have it, through which it receives its gradient."""
        return weight

    def use_outside_of_layer(self, model: Any, weights: list[Any]) -> None:
        """Do nothing, because the weights are whole during the backward pass."""

    def update_working(self) -> None:
        """Set the weights of forward passes and of generation to the values in the optimizer."""
        self._optimizer.update_lp_params()


class _Partitioned:
    """ZeRO-3: a partition of the weights, and a partition of their float32 values in the optimizer."""

    def __init__(self, optimizer: Any, weights: list[Any]) -> None:
        from deepspeed.runtime.zero.partition_parameters import (  # type: ignore[import-not-found]
            GatheredParameters,
            ZeroParamStatus,
            register_external_parameter,
        )

        self._optimizer, self._weights = optimizer, weights
        self._register = register_external_parameter
        self._gathered_parameters, self._available = GatheredParameters, ZeroParamStatus.AVAILABLE

    def piece(self, weight: Any) -> Tensor:
        """The float32 values that this process has of a trainable weight, which the optimizer changes."""
        return self._optimizer.get_local_fp32_param(weight)

    def whole(self, weight: Any, piece: Tensor) -> Tensor:
        """The whole weight from the pieces of all processes."""
        group = weight.ds_process_group
        piece = piece.detach().flatten()
        gathered = piece.new_empty(len(piece) * dist.get_world_size(group))
        dist.all_gather_into_tensor(gathered, piece.contiguous(), group=group)
        return gathered[: weight.ds_numel].view(weight.ds_shape)

    def working(self, weight: Any) -> Tensor:
        """The whole weight as forward passes have it."""
        return self.whole(weight, weight.ds_tensor)

    def marked(self, whole: Any) -> Tensor:
        """The same whole weight, marked as whole for TRL's output head, which gathers a weight that is not."""
        whole.ds_status = self._available
        return whole

    def trained(self, weight: Any) -> Tensor:
        """The whole weight as forward passes have it, through which it receives its gradient."""
        # Autograd takes the shape of the gradient from the weight, which is empty unless it is gathered.
        is_gathered = weight.ds_status == self._available
        with nullcontext() if is_gathered else self._gathered_parameters([weight]):
            return _WithGradientTo.apply(weight.detach().clone(), weight)

    def use_outside_of_layer(self, model: Any, weights: list[Any]) -> None:
        """Let DeepSpeed gather weights for the backward pass of a model, which may not call the layer that has them."""
        for weight in weights:
            self._register(model, weight)

    def update_working(self) -> None:
        """Set the weights of forward passes and of generation to the values in the optimizer."""
        optimizer = self._optimizer
        optimizer.empty_partition_cache()  # a gathered weight would keep its former value
        for weight in self._weights:
            weight.ds_tensor.data.copy_(self.piece(weight).view(-1))
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


class ZeroWeights(GatheredWeights):
    """Weights of which DeepSpeed's optimizer has float32 partitions, and partitions of their values in the reference.

    The forward pass of training is a pass of DeepSpeed's engine. All other measurements are passes of the copy of the
    model, so that the engine is not disturbed. Beside what ZeRO stores, a process has no more than the weights of one
    block and of both output heads, which are 2 V d numbers for V tokens and hidden states of size d.

    Under bf16, DeepSpeed rounds the given weights before it stores them in float32. The reference has the rounded
    weights.

    Args:
        model: The model of the trainer before DeepSpeed's engine has it, perhaps a PEFT model.
        accelerator: The accelerator of the trainer, which creates the engine.

    Raises:
        BudgetError: The model cannot be copied.
    """

    backend = "DeepSpeed"

    def __init__(self, model: Any, accelerator: Any) -> None:
        super().__init__(model, accelerator.device)
        self._accelerator = accelerator
        self._engine: Any = None
        self._weights: dict[str, Any] = {}
        self._anchors: dict[str, Tensor | None] = {}

    # -- storing --

    def place(self, model: Any) -> bool:
        """Store the initial float32 values of the partitions, when DeepSpeed's engine has been created."""
        wrapped = self._accelerator.deepspeed_engine_wrapped
        engine = None if wrapped is None else wrapped.engine
        if engine is self._engine:
            return False
        if self._engine is not None:  # accelerate frees the engine at the beginning of train()
            raise BudgetError(
                "expected one call of train() under DeepSpeed, got another, for which DeepSpeed has no longer the "
                "partitions of the weights; create a trainer, and pass resume_from_checkpoint"
            )
        self._engine = engine
        optimizer = self._engine.optimizer
        self._weights = dict(model.named_parameters())
        trained = [self._weights[name] for name in self.names]
        partitions = {
            "DeepSpeedZeroOptimizer": lambda: _Replicated(optimizer),
            "DeepSpeedZeroOptimizer_Stage3": lambda: _Partitioned(optimizer, trained),
        }
        if type(optimizer).__name__ not in partitions:
            raise BudgetError(
                f"expected an optimizer of ZeRO that has float32 weights, got {type(optimizer).__name__}: set the "
                "stage of zero_optimization to 2 or 3"
            )
        self._partitions: Any = partitions[type(optimizer).__name__]()
        pieces = {name: self._partitions.piece(self._weights[name]) for name in self.names}
        self._anchors = {name: None if piece is None else piece.detach().clone() for name, piece in pieces.items()}
        self._copy_distributed(model)
        head = [self._weights[name] for name in self._head_names if name is not None]
        self._partitions.use_outside_of_layer(base_model(model), head)
        return True

    @torch.no_grad()
    def scale_displacement(self, factor: float) -> None:
        """Multiply the displacement of the float32 partitions from their values in the reference by a factor."""
        if factor == 1.0:
            return
        for name, anchor in self._anchors.items():
            if anchor is not None:
                scale_displacement([self._partitions.piece(self._weights[name])], [anchor], factor)
        self._partitions.update_working()

    # -- forward passes --

    @torch.no_grad()
    def _whole(self, name: str, *, float32: bool) -> Tensor:
        """The whole value of a weight, in float32 or in the precision of forward passes."""
        weight = self._weights[name]
        dtype = getattr(weight, "ds_tensor", weight).dtype
        if name not in self._anchors or (not self._is_reference and (not float32 or dtype == torch.float32)):
            value = self._partitions.working(weight)
        else:
            piece = self._anchors[name] if self._is_reference else self._partitions.piece(weight)
            value = self._partitions.whole(weight, piece)
        if float32:
            dtype = torch.float32 if value.dtype in _HALF_PRECISION else value.dtype
        return self._partitions.marked(value.to(dtype))

    def evaluation_hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the policy's hidden states in evaluation mode and in the precision of training, with gradient."""
        if not torch.is_grad_enabled():
            return self._gathered_hidden(ids, attention, float32=False)
        model = self._engine.module
        with evaluation_mode(model), recorded_hidden(base_model(model)) as states:
            self._engine(input_ids=ids, attention_mask=attention, use_cache=False, logits_to_keep=1)
        return states[-1]

    # -- heads --

    def head(self, *, float32: bool = False) -> Head:
        """Return the policy's output head, whole on each process, with gradient if `float32` is false."""
        if torch.is_grad_enabled() and not float32:
            return self._head_with(lambda name: self._partitions.trained(self._weights[name]))
        return self._gathered_head(float32=float32)

    def release(self) -> None:
        """Do nothing, because gathered weights are not kept."""


class _WithGradientTo(torch.autograd.Function):
    """A gathered weight whose gradient goes to the parameter that DeepSpeed reduces."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]  # noqa: ARG004
        return None, gradient
