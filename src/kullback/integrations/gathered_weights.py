"""A copy of a model without weights, whose blocks gather their weights while they are called.

Such a copy computes what a sharded model computes, in any precision, with the weights of the policy or of the
reference, and without the hooks of the library that shards the model.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from kullback.errors import BudgetError, MissingDependencyError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install 'kullback[train]'") from error

from torch import Tensor, nn

__all__ = ["canonical_name", "copy_without_weights", "share_buffers", "weights_on_call"]

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
