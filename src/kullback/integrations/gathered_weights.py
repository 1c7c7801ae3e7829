"""A copy of a model without weights, whose blocks gather their weights while they are called.

Such a copy computes what a sharded model computes, in any precision, with the weights of the policy or of the
reference, and without the hooks of the library that shards the model. `Fsdp2Weights` and `ZeroWeights` use it.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
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

from kullback.doctor.forward_pass import CheckedModels, base_model
from kullback.integrations.transformers import Head, decoder_of, head_of, last_hidden
from kullback.integrations.transformers_reference import evaluation_mode

__all__ = ["GatheredWeights", "canonical_name", "copy_without_weights", "share_buffers", "weights_on_call"]

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)
_WRAPPERS = ("_checkpoint_wrapped_module", "_orig_mod")


def canonical_name(name: str) -> str:
    """The name of a module or weight without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def copy_without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose weights are placeholders: of the same shape and dtype, nan, with storage for one number.

    Raises:
        BudgetError: The model cannot be copied.
    """
    memo: dict[int, Any] = {
        id(weight): _placeholder(weight, weight.device, weight.dtype) for weight in model.parameters()
    }
    try:
        duplicate = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise BudgetError(
            f"expected a model that copy.deepcopy accepts when its weights are sharded, got {type(model).__name__}: "
            f"{error}"
        ) from error
    for module in duplicate.modules():
        module.__dict__.pop("forward", None)  # a function that was put there computes with the weights of the original
    return duplicate


def _placeholder(weight: Tensor, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    shape = getattr(weight, "ds_shape", weight.shape)  # DeepSpeed may have partitioned the weight, which is then empty
    one = torch.full((1,) * len(shape), torch.nan if dtype.is_floating_point else 0, dtype=dtype, device=device)
    return nn.Parameter(one.expand(shape), requires_grad=weight.requires_grad)


def share_buffers(model: nn.Module, original: Any, device: torch.device) -> None:
    """Give a copy without weights the buffers of the distributed original, and placeholders of its dtypes."""
    dtypes = {canonical_name(name): weight.dtype for name, weight in original.named_parameters()}
    names = {id(weight): name for name, weight in model.named_parameters()}
    modules = {canonical_name(name): module for name, module in original.named_modules()}
    placeholders: dict[int, nn.Parameter] = {}
    for name, module in model.named_modules():
        for key in module._buffers:
            module._buffers[key] = modules[name]._buffers[key]
        for key, weight in module._parameters.items():
            if weight is not None:
                dtype = dtypes[names[id(weight)]]
                module._parameters[key] = placeholders.setdefault(id(weight), _placeholder(weight, device, dtype))


@contextmanager
def weights_on_call(
    model: nn.Module, blocks: Iterable[str], weight_of: Callable[[str], Tensor]
) -> Iterator[Callable[[nn.Module], AbstractContextManager[None]]]:
    """A context manager in which the blocks of a copy without weights have their weights while they are called.

    Args:
        model: The copy, from `copy_without_weights`.
        blocks: The names of the modules whose weights are gathered together, and of the modules that are called on
            their own. Modules outside of the blocks have their weights while the outermost module around them that
            contains no block is called.
        weight_of: Returns a whole weight by its name. It is called for the same names in the same order on each
            process, whatever the batch is.

    Yields:
        A function that returns a context manager in which a module has its weights without being called.
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    modules = dict(model.named_modules())
    owners = _owners(modules, set(blocks))
    handles: list[Any] = []
    open_calls: dict[int, ExitStack] = {}

    @contextmanager
    def filled(owner: nn.Module) -> Iterator[None]:
        replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
        values: dict[int, Tensor] = {}
        try:
            for module in owners.get(id(owner), owner.modules()):
                for key, weight in module._parameters.items():
                    if weight is None or id(weight) not in names:
                        continue
                    if id(weight) not in values:
                        values[id(weight)] = weight_of(names[id(weight)])
                    replaced.append((module, key, weight))
            for module, key, weight in replaced:
                module._parameters[key] = values[id(weight)]  # type: ignore[assignment]
            yield
        finally:
            for module, key, weight in replaced:
                module._parameters[key] = weight

    def fill(owner: nn.Module, _arguments: Any) -> None:
        open_calls[id(owner)] = ExitStack()
        open_calls[id(owner)].enter_context(filled(owner))

    def empty(owner: nn.Module, *_arguments: Any) -> None:
        open_calls.pop(id(owner)).close()

    try:
        for owner in modules.values():
            if id(owner) in owners:
                handles.append(owner.register_forward_pre_hook(fill))
                handles.append(owner.register_forward_hook(empty, always_call=True))
        yield filled
    finally:
        for handle in handles:
            handle.remove()
        for stack in open_calls.values():
            stack.close()


def _owners(modules: dict[str, nn.Module], blocks: set[str]) -> dict[int, list[nn.Module]]:
    """The modules whose weights are present during the call of a module, by the id of the module that is called."""
    around_blocks = {""} | {".".join(block.split(".")[:i]) for block in blocks for i in range(block.count(".") + 1)}
    owners: dict[int, list[nn.Module]] = {}
    for name, module in modules.items():
        if all(weight is None for weight in module._parameters.values()):
            continue
        parts = name.split(".") if name else []
        around = [".".join(parts[: i + 1]) for i in range(len(parts))]
        inside = [a for a in around if a in blocks and not isinstance(modules[a], _NEVER_CALLED)]
        outside = [a for a in around if a not in around_blocks and not isinstance(modules[a], _NEVER_CALLED)]
        owner = modules[inside[-1] if inside else outside[0] if outside else name]
        owners.setdefault(id(owner), []).append(module)
    return owners


class GatheredWeights:
    """The part of `PolicyWeights` that does not depend on the library that shards the weights.

    Measurements are passes of a copy of the model without weights, whose blocks gather their weights when they are
    called. The weights of the policy or of the reference are gathered, so that no second model is needed. A subclass
    defines `_whole`, and calls `_copy_distributed` when the weights have been distributed.

    Args:
        model: The model of the trainer before its weights are distributed, perhaps a PEFT model.
        device: The device on which the process computes.

    Raises:
        BudgetError: The model cannot be copied.
    """

    is_displaced_from_given = False
    backend: str
    """The name of the library in messages."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        self._device = device
        self._outline: Any = copy_without_weights(model)
        self._is_reference = False

    def _whole(self, name: str, *, float32: bool) -> Tensor:
        """The whole value of a weight of the policy or the reference, in float32 or as forward passes have it."""
        raise NotImplementedError

    def _copy_distributed(self, model: Any) -> None:
        """Complete the copy when the model's weights have been distributed, and find its linear output head."""
        share_buffers(self._outline, model, self._device)
        policy = base_model(self._outline)
        layer = policy.get_output_embeddings()
        names = {id(weight): name for name, weight in self._outline.named_parameters()}
        layer_names = {key: names[id(weight)] for key, weight in layer.named_parameters()}
        with self._filled(float32=True) as filled, filled(layer):
            head = head_of(policy)
            if not isinstance(head, Head):
                raise BudgetError(
                    f"expected a linear output head under {self.backend}, got the head of {type(policy).__name__}; use "
                    "plain data parallelism"
                )
            values = {id(value): layer_names[key] for key, value in layer.named_parameters()}
            self._head_names = [values.get(id(value)) for value in (head.weight, head.bias)]
            self._head_scale = head.scale

    # -- optimizer steps --

    def replace_in(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing, because the library gives the optimizer the weights that it changes."""

    def before_step(self) -> None:
        """Do nothing, because the library gives the optimizer the gradients."""

    def after_step(self) -> None:
        """Do nothing, because the library gives forward passes the changed weights."""

    # -- forward passes --

    def _blocks(self) -> list[str]:
        """The names of the modules whose weights are gathered together: the parts of the decoder."""
        parts = list(decoder_of(base_model(self._outline)).children())
        return [name for name, module in self._outline.named_modules() if any(module is part for part in parts)]

    def _filled(self, *, float32: bool) -> Any:
        """A context manager in which the blocks of the copy gather their weights when they are called."""
        return weights_on_call(self._outline, self._blocks(), lambda name: self._whole(name, float32=float32))

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """A context manager in which the values that weights have in the reference are gathered."""
        self._is_reference = True
        try:
            yield
        finally:
            self._is_reference = False

    def _gathered_hidden(self, ids: Tensor, attention: Tensor, *, float32: bool) -> Tensor:
        """The hidden states of the copy in evaluation mode."""
        with evaluation_mode(self._outline), self._filled(float32=float32):
            return last_hidden(base_model(self._outline), ids, attention)

    def float32_hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the policy's hidden states in evaluation mode, without gradient and without 16-bit rounding."""
        return self._gathered_hidden(ids, attention, float32=True)

    def ref_hidden(self, ids: Tensor, attention: Tensor, *, float32: bool = False) -> Tensor:
        """Return the reference's hidden states, without gradient, in the precision of training or in float32."""
        with self._as_reference():
            return self._gathered_hidden(ids, attention, float32=float32)

    # -- heads --

    def ref_head(self, *, float32: bool = False) -> Head:
        """Return the reference's output head, whole on each process."""
        with self._as_reference():
            return self._gathered_head(float32=float32)

    def _gathered_head(self, *, float32: bool) -> Head:
        """The output head of the policy or the reference, without gradient."""
        return self._head_with(lambda name: self._whole(name, float32=float32))

    def _head_with(self, weight_of: Callable[[str], Tensor]) -> Head:
        weight, bias = (None if name is None else weight_of(name) for name in self._head_names)
        return Head(weight, bias, self._head_scale)  # type: ignore[arg-type]

    # -- the checks before the first step --

    @contextmanager
    def checked(self) -> Iterator[CheckedModels]:
        """A context manager with a copy of the model whose blocks gather their weights in float32."""
        with self._filled(float32=True):
            yield CheckedModels(self._outline, None, self._as_reference, None)

    def checked_batch(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch of the first process, because all processes have to call the same blocks."""
        tensors = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        batch: Any = broadcast_object_list([tensors])[0]
        return {name: x.to(self._device) if isinstance(x, Tensor) else x for name, x in batch.items()}
