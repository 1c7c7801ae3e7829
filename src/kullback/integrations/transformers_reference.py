"""The reference of a policy of transformers: the model as it was given, evaluated without a second copy if possible."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kullback.errors import BudgetError, MissingDependencyError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install 'kullback[train]'") from error

from torch import Tensor, nn

__all__ = [
    "Reference",
    "copy_for_reference",
    "evaluation_mode",
    "float32_weights",
    "has_half_precision",
]

_HALF_PRECISION = (torch.bfloat16, torch.float16)


class Reference:
    """The weights that a policy had when it was given, or the weights of a separate reference model.

    Without a separate model, the initial values of all trainable weights are kept (adapters of any kind, layers that
    PEFT trains in full, biases, ...), and `active` exchanges them with the present values. The frozen weights are
    shared, and an adapter stays switched on, with its initial values, so that the reference is the given model for
    every kind of adapter.

    Args:
        policy: The policy, or the PEFT model around it.
        model: A separate reference model; None: the policy with the initial values of its trainable weights.

    Raises:
        BudgetError: No weight of the policy is trainable.
    """

    def __init__(self, policy: nn.Module, model: nn.Module | None = None) -> None:
        self.model = model
        self.policy = policy
        named = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        if not named:
            raise BudgetError(
                "expected a policy with trainable weights, got none: merge_and_unload, for example, leaves all weights "
                "frozen; call model.requires_grad_(True)"
            )
        self.names = list(named)
        counterparts = dict(model.named_parameters()) if model is not None else {}
        has_same_names = counterparts.keys() == dict(policy.named_parameters()).keys()
        self.is_counterpart = has_same_names and all(
            counterparts[name].shape == weight.shape for name, weight in named.items()
        )
        if self.is_counterpart:
            self.anchors = [counterparts[name].detach() for name in named]
        else:
            originals = _frozen_originals(policy)
            self.anchors = [
                originals[id(weight)] if id(weight) in originals else weight.detach().clone()
                for weight in named.values()
            ]
        self._anchor_of = dict(zip(map(id, named.values()), self.anchors, strict=True))

    @property
    def weights(self) -> list[Tensor]:
        """The trainable weights of the policy."""
        present = dict(self.policy.named_parameters())
        return [present[name] for name in self.names]

    def anchor(self, weight: Tensor | None) -> Tensor | None:
        """Return the value that a weight of the policy has in the reference."""
        return weight if weight is None else self._anchor_of.get(id(weight), weight)

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context manager in which the policy has the weights of the reference, unless that is a separate model."""
        if self.model is not None:
            yield
            return
        weights = self.weights
        present = [weight.data for weight in weights]
        try:
            for weight, anchor in zip(weights, self.anchors, strict=True):
                weight.data = anchor
            yield
        finally:
            for weight, value in zip(weights, present, strict=True):
                weight.data = value


def _frozen_originals(policy: nn.Module) -> dict[int, Tensor]:
    """The frozen originals that PEFT keeps of the layers which it trains in full, by the id of the trained weight."""
    originals = {}
    module: Any
    for module in policy.modules():
        if not (hasattr(module, "modules_to_save") and hasattr(module, "original_module")):
            continue
        frozen = dict(module.original_module.named_parameters())
        for trained in module.modules_to_save.values():
            for name, weight in trained.named_parameters():
                original = frozen.get(name)
                if original is not None and not original.requires_grad and torch.equal(original, weight):
                    originals[id(weight)] = original.detach()
    return originals


def copy_for_reference(model: nn.Module) -> nn.Module:
    """A frozen copy of a model with its present weights, in evaluation mode; frozen weights are shared, not copied.

    Raises:
        BudgetError: The model cannot be copied.
    """
    memo = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    try:
        duplicate = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise BudgetError(
            f"expected a model that copy.deepcopy accepts, got {type(model).__name__}: {error}; pass a separate "
            "ref_model"
        ) from error
    for module in duplicate.modules():
        # A function that was put there computes with the weights of the original.
        if module.__dict__.pop("forward", None) is not None and isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_cast_input)  # TRL's function for an output head in float32 casts it
    return duplicate.requires_grad_(False).eval()


def _cast_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The input of a layer in the dtype of its weight."""
    return (args[0].to(module.weight.dtype), *args[1:])


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """A context manager in which all modules of some models are in evaluation mode, so that dropout is off."""
    modules = [module for model in models for module in model.modules() if module.training]

    def set_mode(training: bool) -> None:
        for module in modules:
            # `Module.__setattr__` first searches parameters, buffers and submodules, which takes 12 times as long.
            object.__setattr__(module, "training", training)

    try:
        set_mode(False)
        yield
    finally:
        set_mode(True)


def has_half_precision(model: nn.Module) -> bool:
    """Whether a weight of a model is in bfloat16 or float16."""
    return any(weight.dtype in _HALF_PRECISION for weight in model.parameters())


@contextmanager
def float32_weights(model: nn.Module, replacements: Mapping[int, Tensor] | None = None) -> Iterator[None]:
    """A context manager in which every module computes with float32 values of its bfloat16 and float16 weights.

    The weights of a module are converted when the module is called, and for the duration of the call, so that the
    float32 weights of a few modules are in memory at a time.

    Args:
        model: The model.
        replacements: Float32 tensors by the id of the weight that they replace, instead of a conversion.
    """
    replacements = replacements or {}
    handles: list[Any] = []
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []

    def convert(module: nn.Module, _arguments: Any) -> None:
        for name, weight in module._parameters.items():
            if weight is not None and weight.dtype in _HALF_PRECISION:
                replaced.append((module, name, weight))  # type: ignore[arg-type]
                value = replacements.get(id(weight))
                module._parameters[name] = weight.detach().float() if value is None else value  # type: ignore[assignment]

    def restore(module: nn.Module | None = None, *_arguments: Any) -> None:
        for entry in [entry for entry in replaced if module is None or entry[0] is module]:
            entry[0]._parameters[entry[1]] = entry[2]
            replaced.remove(entry)

    try:
        for module in model.modules():
            if any(weight is not None and weight.dtype in _HALF_PRECISION for weight in module._parameters.values()):
                handles.append(module.register_forward_pre_hook(convert))
                handles.append(module.register_forward_hook(restore))
        yield
    finally:
        for handle in handles:
            handle.remove()
        restore()
