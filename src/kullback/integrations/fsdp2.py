"""The weights of a policy and of its reference under FSDP2, which shards them over the processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kullback.errors import BudgetError, MissingDependencyError

try:
    import torch
    from accelerate.utils import broadcast_object_list
except ModuleNotFoundError as error:
    if error.name not in ("torch", "accelerate"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[train]'") from error

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from kullback.budget.displacement import scale_displacement
from kullback.doctor.forward_pass import CheckedModels, base_model
from kullback.integrations.gathered_weights import (
    canonical_name,
    copy_without_weights,
    share_buffers,
    weights_on_call,
)
from kullback.integrations.transformers import Head, decoder_of, head_of, last_hidden, recorded_hidden
from kullback.integrations.transformers_reference import evaluation_mode

__all__ = ["Fsdp2Weights"]

_HALF_PRECISION = (torch.bfloat16, torch.float16)


class Fsdp2Weights:
    """Weights of which each process has shards, and shards of their values in the reference.

    The forward passes of training are passes of the sharded model. For the reference in the precision of training, the
    values of the shards are exchanged. All other measurements are passes of a copy of the model without weights, whose
    blocks gather the weights when they are called, in float32. No process has more than the weights of one block and
    both output heads, which are 2 V d numbers for V tokens and hidden states of size d.

    Args:
        model: The model of the trainer before it is sharded, perhaps a PEFT model.
        device: The device on which the process computes.

    Raises:
        BudgetError: The model cannot be copied.
    """

    is_displaced_from_given = False

    def __init__(self, model: Any, device: torch.device) -> None:
        self.names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        self._device = device
        self._outline: Any = copy_without_weights(model)
        self._model: Any = None
        self._shards: dict[str, Tensor] = {}
        self._anchors: dict[str, Tensor] = {}
        self._is_reference = False

    # -- storing --

    def place(self, model: Any) -> bool:
        """Store the initial values of the shards, when FSDP2 has sharded the model."""
        if self._model is not None or not isinstance(model, FSDPModule):
            return False
        self._model = model
        self._reshard()
        self._anchors = {name: self._shards[name].detach().clone() for name in self.names}
        share_buffers(self._outline, model, self._device)
        self._find_head()
        return True

    def _find_head(self) -> None:
        """Find the names of the weights of the linear output head."""
        names = {id(weight): name for name, weight in self._outline.named_parameters()}
        policy = base_model(self._outline)
        layer = policy.get_output_embeddings()
        layer_names = {key: names.get(id(weight)) for key, weight in layer.named_parameters()}
        with self._with_weights() as filled, filled(layer):
            head = head_of(policy)
            if not isinstance(head, Head):
                raise BudgetError(
                    f"expected a linear output head under FSDP2, got the head of {type(policy).__name__}; use plain "
                    "data parallelism"
                )
            values = {id(value): layer_names[key] for key, value in _all_weights(layer).items()}
            self._head_names = [values.get(id(value)) for value in (head.weight, head.bias)]
            self._head_scale = head.scale

    def _reshard(self) -> None:
        """Free the weights that FSDP2 has gathered, and find the shards.

        A change of a gathered weight is lost when it is gathered again, and the gradient of a shard is not cleared
        while its weight is gathered.
        """
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        self._shards = {canonical_name(name): weight for name, weight in self._model.named_parameters()}

    def replace_in(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing, because the optimizer acts on the shards."""

    def before_step(self) -> None:
        """Do nothing, because the shards have the gradients."""

    def after_step(self) -> None:
        """Do nothing, because the shards are gathered again by the next forward pass."""

    def scale_displacement(self, factor: float) -> None:
        """Multiply the displacement of the trainable shards from their values in the reference by a factor."""
        self._reshard()
        scale_displacement([self._shards[name] for name in self.names], self._anchors.values(), factor)

    # -- forward passes --

    @property
    def _blocks(self) -> list[str]:
        """The modules that FSDP2 shards together, and the parts of the decoder, which is called on its own."""
        sharded = [
            canonical_name(name)
            for name, module in self._model.named_modules()
            if name and isinstance(module, FSDPModule)
        ]
        parts = list(decoder_of(base_model(self._outline)).children())
        return sharded + [name for name, module in self._outline.named_modules() if any(module is x for x in parts)]

    def _with_weights(self) -> Any:
        """A context manager in which the blocks of the copy gather their weights, in float32, when they are called."""
        return weights_on_call(self._outline, self._blocks, self._whole)

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """A context manager in which the values that weights have in the reference are gathered."""
        self._is_reference = True
        try:
            yield
        finally:
            self._is_reference = False

    def _whole(self, name: str) -> Tensor:
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

    def float32_hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the policy's hidden states in evaluation mode, without gradient, from weights gathered in float32."""
        with evaluation_mode(self._outline), self._with_weights():
            return last_hidden(base_model(self._outline), ids, attention)

    @torch.no_grad()
    def ref_hidden(self, ids: Tensor, attention: Tensor, *, float32: bool = False) -> Tensor:
        """Return the reference's hidden states, without gradient, in the precision of training or in float32."""
        if float32:
            with self._as_reference():
                return self.float32_hidden(ids, attention)
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
            return self._gathered_head()
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
            gathered = self._gathered_head()
            values = (gathered.weight, gathered.bias)
            weights = [w if w is None else _WithValue.apply(w, value) for w, value in zip(weights, values, strict=True)]
        return Head(weights[0], weights[1], self._head_scale)

    def ref_head(self, *, float32: bool = False) -> Head:  # noqa: ARG002
        """Return the reference's output head, gathered on each process."""
        with self._as_reference():
            return self._gathered_head()

    def _gathered_head(self) -> Head:
        whole = [None if name is None else self._whole(name) for name in self._head_names]
        return Head(whole[0], whole[1], self._head_scale)  # type: ignore[arg-type]

    def release(self) -> None:
        """Free the weights that FSDP2 has gathered."""
        self._reshard()

    # -- the checks before the first step --

    @contextmanager
    def checked(self) -> Iterator[CheckedModels]:
        """A context manager with a copy of the model whose blocks gather their weights in float32."""
        self._reshard()
        with self._with_weights():
            yield CheckedModels(self._outline, None, self._as_reference, self._model)

    def checked_batch(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch of the first process, because all processes have to call the same blocks."""
        tensors = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        batch: Any = broadcast_object_list([tensors])[0]
        return {name: x.to(self._device) if isinstance(x, Tensor) else x for name, x in batch.items()}


class _WithValue(torch.autograd.Function):
    """The values of another tensor, with the gradient of a tensor that is rounded to 16 bits."""

    @staticmethod
    def forward(ctx: Any, rounded: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtype = rounded.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.to(ctx.dtype), None


def _all_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module and of the modules within it by name, whether they are parameters or not."""
    return {
        f"{prefix}.{key}" if prefix else key: weight
        for prefix, child in module.named_modules()
        for key, weight in child._parameters.items()
        if weight is not None
    }
