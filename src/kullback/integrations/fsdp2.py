"""The weights of a policy and of its reference under FSDP2, which shards them over the processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kullback.errors import MissingDependencyError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install 'kullback[train]'") from error

from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from kullback.budget.displacement import scale_displacement
from kullback.doctor.forward_pass import CheckedModels, base_model
from kullback.integrations.gathered_weights import GatheredWeights, canonical_name
from kullback.integrations.transformers import Head, recorded_hidden
from kullback.integrations.transformers_reference import evaluation_mode

__all__ = ["Fsdp2Weights"]

_HALF_PRECISION = (torch.bfloat16, torch.float16)


class Fsdp2Weights(GatheredWeights):
    """Weights of which each process has shards, and shards of their values in the reference.

    The forward passes of training are passes of the sharded model. For the reference in the precision of training, the
    values of the shards are exchanged. All other measurements are passes of the copy of the model, in float32. No
    process has more than the weights of one block and both output heads, which are 2 V d numbers for V tokens and
    hidden states of size d.

    Args:
        model: The model of the trainer before it is sharded, perhaps a PEFT model.
        device: The device on which the process computes.

    Raises:
        BudgetError: The model cannot be copied.
    """

    backend = "FSDP2"

    def __init__(self, model: Any, device: torch.device) -> None:
        super().__init__(model, device)
        self._model: Any = None
        self._shards: dict[str, Tensor] = {}
        self._anchors: dict[str, Tensor] = {}

    # -- storing --

    def place(self, model: Any) -> bool:
        """Store the initial values of the shards, when FSDP2 has sharded the model."""
        if self._model is not None or not isinstance(model, FSDPModule):
            return False
        self._model = model
        self._reshard()
        self._anchors = {name: self._shards[name].detach().clone() for name in self.names}
        self._copy_distributed(model)
        return True

    def _reshard(self) -> None:
        """Free the weights that FSDP2 has gathered, and find the shards.

        A change of a gathered weight is lost when it is gathered again, and the gradient of a shard is not cleared
        while its weight is gathered.
        """
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        self._shards = {canonical_name(name): weight for name, weight in self._model.named_parameters()}

    def scale_displacement(self, factor: float) -> None:
        """Multiply the displacement of the trainable shards from their values in the reference by a factor."""
        self._reshard()
        scale_displacement([self._shards[name] for name in self.names], self._anchors.values(), factor)

    # -- forward passes --

    def _blocks(self) -> list[str]:
        """The modules that FSDP2 shards together, and the parts of the decoder, which is called on its own."""
        sharded = [
            canonical_name(name)
            for name, module in self._model.named_modules()
            if name and isinstance(module, FSDPModule)
        ]
        return sharded + super()._blocks()

    def _whole(self, name: str, *, float32: bool = True) -> Tensor:  # noqa: ARG002
        """The whole value of a weight, in float32 if it is stored in 16 bits."""
        shard = self._anchors.get(name, self._shards[name]) if self._is_reference else self._shards[name]
        weight = (shard.full_tensor() if isinstance(shard, DTensor) else shard).detach().to(self._device)
        return weight.float() if weight.dtype in _HALF_PRECISION else weight

    def evaluation_hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the policy's hidden states in evaluation mode and in the precision of training, with gradient.

        The sharded model is called, because its decoder alone does not gather all weights.
        """
        with evaluation_mode(self._model), recorded_hidden(base_model(self._model)) as states:
            self._model(input_ids=ids, attention_mask=attention, use_cache=False, logits_to_keep=1)
        return states[-1]

    @torch.no_grad()
    def ref_hidden(self, ids: Tensor, attention: Tensor, *, float32: bool = False) -> Tensor:
        """Return the reference's hidden states, without gradient, in the precision of training or in float32."""
        if float32:
            return super().ref_hidden(ids, attention, float32=True)
        self._exchange_shards()
        try:
            return self.evaluation_hidden(ids, attention)
        finally:
            self._exchange_shards()

    @torch.no_grad()
    def _exchange_shards(self) -> None:
        """Exchange the values of the shards and their values in the reference."""
        self._reshard()
        for name, anchor in self._anchors.items():
            shard, stored = (x.to_local() if isinstance(x, DTensor) else x for x in (self._shards[name], anchor))
            present = shard.clone()
            shard.copy_(stored)
            stored.copy_(present)

    # -- heads --

    def head(self, *, float32: bool = False) -> Head:
        """Return the policy's output head, gathered on each process.

        With gradient, it is the weight that FSDP2 gathers, through which FSDP2 receives the gradient. In mixed
        precision, it has the value of the weight before rounding.
        """
        if float32:
            return self._gathered_head(float32=True)
        modules: dict[str, Any] = {canonical_name(name): module for name, module in self._model.named_modules()}
        weights: list[Any] = []
        for name in self._head_names:
            if name is None:
                weights.append(None)
                continue
            owner, _, attribute = name.rpartition(".")
            if isinstance(getattr(modules[owner], attribute), DTensor):
                parts = owner.split(".")
                around = [modules[".".join(parts[:i])] for i in range(len(parts) + 1)]
                [module for module in around if isinstance(module, FSDPModule)][-1].unshard()
            weights.append(getattr(modules[owner], attribute))
        if weights[0].dtype in _HALF_PRECISION:
            gathered = self._gathered_head(float32=True)
            values = (gathered.weight, gathered.bias)
            weights = [w if w is None else _WithValue.apply(w, value) for w, value in zip(weights, values, strict=True)]
        return Head(weights[0], weights[1], self._head_scale)

    def release(self) -> None:
        """Free the weights that FSDP2 has gathered."""
        self._reshard()

    # -- the checks before the first step --

    @contextmanager
    def checked(self) -> Iterator[CheckedModels]:
        """A context manager with a copy of the model whose blocks gather their weights in float32."""
        self._reshard()
        with super().checked() as models:
            yield replace(models, optimized=self._model)


class _WithValue(torch.autograd.Function):
    """The values of another tensor, with the gradient of a tensor that is rounded to 16 bits."""

    @staticmethod
    def forward(ctx: Any, rounded: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtype = rounded.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.to(ctx.dtype), None
